"""Tools, thoughts and prefills through the whole server.

The demo model answers what it was taught. Where an output has to be an exact one, the stub says it:
it repeats the prompt's tokens from the one numbered `seed`, so from the end of the question on.
"""

import json

import pytest
from tokenizers import Tokenizer

from qwenapi.settings.table import etc_dir
from tests.running_server import RunningServer

TOKENIZER = Tokenizer.from_file(str(etc_dir() / "models/demo/tokenizer.json"))
CHAT = "/v1/chat/completions"
QUESTION = "What is the weather in Paris?"
ASKED = {"role": "user", "content": QUESTION}
ANSWER = "It is sunny in Paris, 21 degrees."
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
OTHER = '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>'
PERSON = "Return JSON with name and age: Alice is 30 years old"


def tool(name="get_weather", **parameters):
    parameters = parameters or {"city": {"type": "string"}}
    schema = {"type": "object", "properties": parameters, "required": [*parameters]}
    function = {"name": name, "description": "Get the weather of a city", "parameters": schema}
    return {"type": "function", "function": function}


WEATHER = tool()
NAMED = {"type": "function", "function": {"name": "get_weather"}}
ANY_OBJECT = {"type": "json_object"}
TIME = {"type": "function", "function": {"name": "get_time"}}


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tools")
    server = RunningServer(folder / "run", environ={"OMP_WAIT_POLICY": "PASSIVE"})
    try:
        yield server.wait_until_ready()
        assert server.stop() == 0
    finally:
        server.close()


def post(server, *messages, **asked):
    body = {"messages": messages or [ASKED], "temperature": 0, **asked}
    return server.post(CHAT, body)


def choices(server, *messages, **asked):
    """Return the choices of a whole answer, which is 200."""
    answer = post(server, *messages, **asked)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"]


def message(server, *messages, **asked):
    return choices(server, *messages, **asked)[0]["message"]


def refusal(server, *messages, **asked):
    answer = post(server, *messages, **asked)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    return error["param"], error["message"]


def streamed(server, *messages, **asked):
    """Return the choices of a streamed answer, put together as clients do it."""
    answer = post(server, *messages, stream=True, **asked)
    assert answer.status_code == 200, answer.text
    *lines, done = answer.text.strip().split("\n\n")
    assert done == "data: [DONE]"
    joined = {}
    for line in lines:
        for choice in json.loads(line.removeprefix("data: "))["choices"]:
            join(joined.setdefault(choice["index"], new_choice(choice["index"])), choice)
    return [joined[index] for index in sorted(joined)]


def new_choice(index):
    return {
        "index": index,
        "message": {"content": ""},
        "logprobs": None,
        "finish_reason": None,
    }


def join(whole, choice):
    """Add one chunk's choice to what came of it before."""
    assert whole["finish_reason"] is None, "something came behind the end"
    whole["finish_reason"] = choice["finish_reason"]
    if choice.get("logprobs"):
        known = whole["logprobs"] or {"content": []}
        whole["logprobs"] = {"content": known["content"] + choice["logprobs"]["content"]}
    for key, value in choice["delta"].items():
        if key == "tool_calls":
            for call in value:
                join_call(whole["message"].setdefault("tool_calls", []), call)
        elif key == "role":
            whole["message"]["role"] = value
        else:
            whole["message"][key] = whole["message"].get(key, "") + value


def join_call(calls, delta):
    if "id" in delta:
        assert delta["index"] == len(calls), "calls are numbered as they come"
        calls.append({key: delta[key] for key in ("id", "type")} | {"function": {"arguments": ""}})
        calls[-1]["function"]["name"] = delta["function"]["name"]
    calls[delta["index"]]["function"]["arguments"] += delta["function"].get("arguments", "")


def comparable(choice):
    """Return a choice without what differs between two answers of the same tokens."""
    said = dict(choice["message"])
    said.pop("refusal", None)
    said["content"] = said["content"] or ""
    said["tool_calls"] = [call["function"] for call in said.get("tool_calls", ())]
    logprobs = (choice["logprobs"] or {}).get("content")
    return choice["index"], said, logprobs, choice["finish_reason"]


def from_the_end(text):
    """Return the seed by which the stub says the end of the last message, from this text on."""
    return -len(TOKENIZER.encode(f"{text}\n<|im_start|>assistant\n").ids)


def says(text, **asked):
    """Return the fields of a request that the stub answers by this text."""
    im_start = TOKENIZER.token_to_id("<|im_start|>")
    question = {"role": "user", "content": f"Say: {text}"}
    fields = {"seed": from_the_end(text), "stop_token_ids": [im_start], "max_tokens": 400}
    return {"messages": [question], "tools": [WEATHER, TIME], **fields, **asked}


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"tools": [WEATHER]},
        {"tools": [WEATHER], "enable_thinking": False},
        {"tools": [WEATHER], "messages": [{"role": "user", "content": "北京今天天气怎么样？"}]},
        {"tools": [WEATHER], "tool_choice": "required"},
        {"tools": [WEATHER], "tool_choice": NAMED},
        {"tools": [WEATHER], "parallel_tool_calls": False},
        {"tools": [WEATHER], "n": 2, "temperature": 1, "seed": 7},
        {"tools": [WEATHER], "logprobs": True, "top_logprobs": 2},
        {"tools": [WEATHER], "include_reasoning": False},
        {"tools": [WEATHER], "max_tokens": 5},
        {"tools": [WEATHER], "max_tokens": 20},
        {"tools": [WEATHER], "stop": "city"},
        {"messages": [{"role": "user", "content": PERSON}], "response_format": ANY_OBJECT},
    ],
    ids=lambda asked: ",".join(f"{key}" for key in asked if key != "tools") or "plain",
)  # fmt: skip
def test_a_stream_of_the_model_joins_to_the_whole_answer(demo, asked):
    whole = [comparable(choice) for choice in choices(demo, **asked)]
    assert [comparable(choice) for choice in streamed(demo, **asked)] == whole


@pytest.mark.parametrize(
    "text",
    [
        CALL,
        f"Let me see.\n{CALL}",
        f"{CALL}\n{OTHER}",
        f"{OTHER}\n{CALL}\nthat is all",
        f"```\n{CALL}\n```",
        f"<think>\nI may {CALL} it\n</think>\n\nNo.",
        f"<think>\nI call it.\n</think>\n\n{CALL}",
        f"<think>\nI call it.\n{CALL}",
        CALL.replace("get_weather", "get_wetter"),
        CALL.replace("}}", ""),
        CALL.replace("Paris", '巴黎 \\"🌤\\" </tool_call'),
        "1 < 2 and <tool> is none",
    ],
)
def test_a_stream_of_any_output_joins_to_the_whole_answer(stub_server, text):
    whole = [comparable(choice) for choice in choices(stub_server, **says(text))]
    assert [comparable(choice) for choice in streamed(stub_server, **says(text))] == whole


def test_a_whole_loop_ends_with_the_answer(demo):
    asked = message(demo, tools=[WEATHER])
    (call,) = asked["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"city": "Paris"}
    result = {"role": "tool", "tool_call_id": call["id"], "content": '{"weather": "sunny", "temperature": 21}'}  # fmt: skip # noqa: E501
    (said,) = choices(demo, ASKED, asked, result, tools=[WEATHER])
    assert (said["message"]["content"], said["finish_reason"]) == (ANSWER, "stop")


def test_calls_beside_each_other_have_their_own_ids(stub_server):
    for said in (choices, streamed):
        (choice,) = said(stub_server, **says(f"{CALL}\n{OTHER}"))
        calls = choice["message"]["tool_calls"]
        assert [call["function"]["name"] for call in calls] == ["get_weather", "get_time"]
        assert calls[1]["function"]["arguments"] == "{}"
        assert len({call["id"] for call in calls}) == 2
        assert all(call["id"].startswith("call_") for call in calls)
        assert choice["finish_reason"] == "tool_calls"


def test_one_call_at_most_where_one_was_asked_for(demo):
    asked = message(demo, tools=[WEATHER], tool_choice="required", parallel_tool_calls=False)
    assert len(asked["tool_calls"]) == 1


def test_a_call_that_the_limit_cuts_is_not_said_to_be_one(stub_server):
    asked = says(CALL, max_tokens=4)
    for said in (choices, streamed):
        (choice,) = said(stub_server, **asked)
        assert choice["finish_reason"] == "length"
        assert not choice["message"].get("tool_calls")
        assert choice["message"]["content"].startswith("<tool_call>")


def test_every_choice_has_its_own_calls(demo):
    said = choices(demo, tools=[WEATHER], n=2)
    assert [choice["finish_reason"] for choice in said] == ["tool_calls"] * 2
    ids = {choice["message"]["tool_calls"][0]["id"] for choice in said}
    assert len(ids) == 2


def test_log_probabilities_are_of_every_token_of_thought_and_call(demo):
    answer = post(demo, tools=[WEATHER], logprobs=True).json()
    (choice,) = answer["choices"]
    tokens = choice["logprobs"]["content"]
    assert len(tokens) + 1 == answer["usage"]["completion_tokens"]  # the last one ends it
    assert "<tool_call>" in [token["token"] for token in tokens]


def test_a_thought_that_nobody_wants_to_see_is_counted_all_the_same(demo):
    shown = post(demo, tools=[WEATHER]).json()
    hidden = post(demo, tools=[WEATHER], include_reasoning=False).json()
    assert shown["choices"][0]["message"]["reasoning_content"]
    assert not {"reasoning", "reasoning_content"} & hidden["choices"][0]["message"].keys()
    assert shown["usage"] == hidden["usage"] | {"prompt_tokens_details": shown["usage"]["prompt_tokens_details"]}  # fmt: skip # noqa: E501
    assert hidden["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0


@pytest.mark.parametrize(
    ("asked", "thinks"),
    [
        ({}, True),
        ({"reasoning_effort": "none"}, False),
        ({"reasoning_effort": "minimal"}, False),
        ({"reasoning_effort": "high"}, True),
        ({"enable_thinking": False}, False),
        ({"chat_template_kwargs": {"enable_thinking": False}}, False),
        ({"chat_template_kwargs": {"enable_thinking": True}, "reasoning_effort": "none"}, True),
        ({"chat_template_kwargs": {"anything": {"else": [1]}}}, True),
    ],
    ids=str,
)
def test_who_asks_not_to_think_gets_no_thought(demo, asked, thinks):
    for said in (choices, streamed):
        (choice,) = said(demo, tools=[WEATHER], **asked)
        assert bool(choice["message"].get("reasoning_content")) is thinks
        assert choice["message"]["tool_calls"] and not choice["message"]["content"]


def test_a_thought_without_an_end_is_a_thought(stub_server):
    for said in (choices, streamed):
        (choice,) = said(stub_server, **says("<think>\nwhat if", max_tokens=4))
        assert choice["message"]["reasoning_content"].strip() and not choice["message"]["content"]


@pytest.mark.parametrize(
    "asked",
    [
        {"continue_final_message": True, "add_generation_prompt": False},
        {"prefix": True},
        {"partial": True},
    ],
    ids=lambda asked: [*asked][0],
)
def test_a_prefill_is_gone_on_with(demo, asked):
    begun = {"role": "assistant", "content": ANSWER[:14]}
    begun |= {key: asked.pop(key) for key in ("prefix", "partial") if key in asked}
    result = {"role": "tool", "content": '{"weather": "sunny", "temperature": 21}'}
    function = {"name": "get_weather", "arguments": '{"city":"Paris"}'}
    call = {"type": "function", "function": function}
    before = [ASKED, {"role": "assistant", "content": None, "tool_calls": [call]}, result]
    for said in (choices, streamed):
        (choice,) = said(demo, *before, begun, tools=[WEATHER], **asked)
        assert ANSWER[:14] + choice["message"]["content"] == ANSWER


def test_a_prefill_ends_the_prompt(stub_server):
    """The stub repeats the prompt's last tokens, which are the prefill's."""
    begun = {"role": "assistant", "content": "It is sunny", "prefix": True}
    num_tokens = len(TOKENIZER.encode(begun["content"]).ids)
    said = message(stub_server, ASKED, begun, seed=-num_tokens, max_tokens=num_tokens)
    assert said["content"] == "It is sunny"


def test_results_of_calls_that_are_not_in_the_history_are_taken(demo):
    result = {"role": "tool", "tool_call_id": "call_lost", "content": "sunny, 21 degrees"}
    said = message(demo, ASKED, result, tools=[WEATHER])
    assert said["content"] or said["tool_calls"]


def test_two_tools_of_one_name_are_refused_by_the_place_of_the_second(stub_server):
    assert refusal(stub_server, tools=[WEATHER, TIME, WEATHER]) == (
        "tools[2].function.name",
        "'tools[2].function.name' is the name of another tool as well.",
    )


@pytest.mark.parametrize(
    ("asked", "claim"),
    [
        ({"tool_choice": "required"}, "there are no 'tools'"),
        ({"tools": [WEATHER], "tool_choice": "always"}, "must be none, auto, required"),
        (
            {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "f"}}},
            "names 'f', which is none of 'tools'",
        ),
        (
            {
                "tools": [WEATHER],
                "tool_choice": {
                    "type": "allowed_tools",
                    "allowed_tools": {"mode": "auto", "tools": [TIME]},
                },
            },
            "names 'get_time', which is none of 'tools'",
        ),
    ],
)
def test_a_choice_of_tools_that_are_not_there_is_refused(stub_server, asked, claim):
    param, words = refusal(stub_server, **asked)
    assert param == "tool_choice" and claim in words


def test_a_schema_that_cannot_be_kept_to_is_refused_by_its_keyword(demo):
    schema = {"type": "object", "properties": {"x": {"not": {"type": "string"}}}}
    asked = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    for stream in (False, True):
        param, words = refusal(demo, response_format=asked, stream=stream)
        assert "not" in words and "chema" in words
    assert message(demo, tools=[WEATHER])["tool_calls"], "and others are answered"


def test_a_strict_tool_whose_schema_cannot_be_kept_to_is_refused(demo):
    strict = tool(city={"not": {"type": "string"}})
    strict["function"]["strict"] = True
    _, words = refusal(demo, tools=[strict])
    assert "not" in words


def test_a_tool_that_is_too_large_is_refused_by_its_size(stub_server):
    large = tool(**{f"p{i}": {"type": "string", "description": "x" * 100} for i in range(3000)})
    param, words = refusal(stub_server, tools=[large])
    assert param == "tools[0].function.parameters" and "bytes" in words


def test_what_openai_has_replaced_is_refused_by_what_replaced_it(stub_server):
    function = WEATHER["function"]
    assert "use tools" in refusal(stub_server, functions=[function])[1]
    assert "use tool_choice" in refusal(stub_server, function_call={"name": "get_weather"})[1]
    old = {"role": "function", "name": "get_weather", "content": "sunny"}
    assert "role tool" in refusal(stub_server, ASKED, old)[1]
