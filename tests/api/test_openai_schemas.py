import math
from typing import Any

import pytest

from qwenapi.api.openai.foreign_fields import (
    CHAT_UNSUPPORTED,
    COMPLETION_UNSUPPORTED,
    MESSAGE_UNSUPPORTED,
    UNSUPPORTED,
    WITHOUT_EFFECT,
)
from qwenapi.api.openai.messages import MAX_MESSAGES, MAX_PARTS
from qwenapi.api.openai.schemas import (
    ChatRequest,
    ChatSchema,
    CompletionRequest,
    CompletionSchema,
)
from qwenapi.api.openai.token_fields import MAX_BIASES, MAX_PROMPTS, MAX_STOPS
from qwenapi.errors import BadRequest
from qwenapi.http.schemas import ignored_fields, load_request, refuse_unknown

HELLO = [{"role": "user", "content": "hi"}]


def chat(**body: Any) -> ChatRequest:
    return load_request(ChatSchema(), {"messages": HELLO, **body})


def completion(**body: Any) -> CompletionRequest:
    return load_request(CompletionSchema(), {"prompt": "hi", **body})


def refusal(ask: Any, **body: Any) -> tuple[str | None, str]:
    with pytest.raises(BadRequest) as caught:
        ask(**body)
    return caught.value.param, caught.value.message


def test_silence_leaves_every_choice_to_the_server() -> None:
    request = chat()
    assert request == ChatRequest(messages=({"role": "user", "content": "hi"},))
    assert request.max_tokens is request.temperature is request.seed is request.logprobs is None
    assert (request.n, request.stop, request.stream, request.enable_thinking) == (
        1,
        (),
        False,
        None,
    )


def test_null_is_silence() -> None:
    names = [name for name in ChatSchema().fields if name != "messages"]
    names += [*CHAT_UNSUPPORTED, *WITHOUT_EFFECT, "no such field"]
    assert chat(**dict.fromkeys(names)) == chat()
    names = [field.data_key or name for name, field in CompletionSchema().fields.items()]
    names.remove("prompt")
    names += [*COMPLETION_UNSUPPORTED, *WITHOUT_EFFECT, "no such field"]
    assert completion(**dict.fromkeys(names)) == completion()


def test_a_missing_prompt_is_missing_however_it_is_missing() -> None:
    assert refusal(completion, prompt=None) == ("prompt", "'prompt' is required.")
    with pytest.raises(BadRequest) as caught:
        load_request(CompletionSchema(), {"prompts": "hi"})
    assert caught.value.param == "prompt"


def test_every_field_of_sampling_arrives() -> None:
    request = chat(
        model="m", max_tokens=5, max_completion_tokens=7, min_tokens=2, temperature=0, top_p=0.5,
        top_k=-1, min_p=0.1, repetition_penalty=1.1, presence_penalty=-2, frequency_penalty=2,
        logit_bias={"0": -100, "12": 1.5}, seed=-(2**63), n=8, stop=["a", "b"],
        stop_token_ids=[1, 2], ignore_eos=True, skip_special_tokens=False, logprobs=True,
        top_logprobs=20, priority=-3, stream=True, stream_options={"include_usage": True},
        chat_template_kwargs={"enable_thinking": False},
    )  # fmt: skip
    assert request == ChatRequest(
        messages=({"role": "user", "content": "hi"},), model="m", max_tokens=7, min_tokens=2,
        temperature=0.0, top_p=0.5, top_k=-1, min_p=0.1, repetition_penalty=1.1,
        presence_penalty=-2.0, frequency_penalty=2.0, logit_bias={0: -100.0, 12: 1.5},
        seed=-(2**63), n=8, stop=("a", "b"), stop_token_ids=(1, 2), ignore_eos=True,
        skip_special_tokens=False, logprobs=20, priority=-3, stream=True, include_usage=True,
        enable_thinking=False,
    )  # fmt: skip


def test_a_value_never_shows_what_was_said() -> None:
    assert "secret" not in repr(
        chat(messages=[{"role": "user", "content": "secret"}], stop="secret")
    )
    assert "secret" not in repr(completion(prompt="secret"))


INTEGERS = {
    # field: (lowest, highest); None for no bound. T22: whatever lies outside is refused by name.
    "max_tokens": (1, None),
    "max_completion_tokens": (1, None),
    "min_tokens": (0, 2**31 - 1),
    "n": (1, 128),
    "top_k": (-1, 2**31 - 1),
    "seed": (-(2**63), 2**63 - 1),
    "priority": (-(2**31), 2**31 - 1),
    "top_logprobs": (0, 20),
}
NUMBERS = {
    "temperature": (0, 2),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "repetition_penalty": (0, 2),
}
NOT_NUMBERS = (True, False, "1", "", [], [1], {}, {"a": 1})
INTEGER_PROBES = (-(2**63) - 1, -2, -1, 0, 1, 9, 21, 1000, 2**31, 2**63, 2**64, 10**31)
NUMBER_PROBES = (-1e308, -2.01, -1, -0.01, 0, 0.5, 1, 1.01, 2, 2.01, 2**31, 2**63, 1e308)


@pytest.mark.parametrize("name", INTEGERS)
@pytest.mark.parametrize("value", [*INTEGER_PROBES, 1.0, 1.5, 1e308, -0.0, *NOT_NUMBERS])
def test_integers_are_integers_within_bounds(name: str, value: Any) -> None:
    low, high = INTEGERS[name]
    body = {"logprobs": True, "max_tokens": 2**31} | {name: value}
    is_good = type(value) is int and low <= value and (high is None or value <= high)
    if is_good:
        chat(**body)
    else:
        assert refusal(chat, **body)[0] == name


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [*NUMBER_PROBES, math.inf, -math.inf, math.nan, *NOT_NUMBERS])
def test_numbers_are_finite_and_within_bounds(name: str, value: Any) -> None:
    low, high = NUMBERS[name]
    is_good = type(value) in (int, float) and low <= value <= high
    if is_good and not (name == "repetition_penalty" and value == 0):
        assert getattr(chat(**{name: value}), name) == value
        assert isinstance(getattr(completion(**{name: value}), name), float)
    else:
        assert refusal(chat, **{name: value})[0] == name
        assert refusal(completion, **{name: value})[0] == name


def test_an_integer_too_large_for_a_double_is_refused_not_raised() -> None:
    assert refusal(chat, temperature=10**400)[0] == "temperature"
    assert refusal(chat, logit_bias={"1": 10**400})[0] == "logit_bias"


@pytest.mark.parametrize("name", ["stream", "ignore_eos", "skip_special_tokens", "logprobs"])
@pytest.mark.parametrize("value", [0, 1, "true", "false", [], {}, 1.0])
def test_flags_are_true_or_false(name: str, value: Any) -> None:
    assert refusal(chat, **{name: value})[0] == name


@pytest.mark.parametrize("ask", [chat, completion])
@pytest.mark.parametrize(
    "body",
    [
        {"user": "u"}, {"metadata": {"a": "b"}}, {"safety_identifier": "s"},
        {"prompt_cache_key": "k"}, {"response_format": {"type": "text"}}, {"store": False},
        {"service_tier": "auto"}, {"best_of": 1}, {"echo": False}, {"store": True},
        {"service_tier": "default"}, {"verbosity": "medium"}, {"metadata": {"a": 1}},
        {"bad_words": []}, {"allowed_token_ids": []},
        {"use_beam_search": False}, {"length_penalty": 1.0}, {"length_penalty": 1},
        {"include_stop_str_in_output": False}, {"spaces_between_special_tokens": True},
        {"return_token_ids": False}, {"mirostat": 0},
        {"typical_p": 1}, {"typical_p": 1.0}, {"dry_multiplier": 0.0}, {"dry_base": 1.75},
        {"xtc_probability": 0}, {"xtc_threshold": 0.1}, {"cache_prompt": True}, {"id_slot": -1},
        {"keep_alive": "5m"}, {"num_ctx": 4096}, {"guided_choice": []}, {"json_schema": {}},
        {"whatever": {"nobody": ["knows"]}},
    ],
)  # fmt: skip
def test_fields_that_change_no_output_are_accepted(ask: Any, body: dict[str, Any]) -> None:
    assert ask(**body) == ask()


@pytest.mark.parametrize(
    "body",
    [{"tools": []}, {"tool_choice": "auto"}, {"parallel_tool_calls": True},
     {"functions": []}, {"function_call": "none"}, {"modalities": ["text"]}, {"documents": []},
     {"add_generation_prompt": True}, {"continue_final_message": False},
     {"add_special_tokens": False}, {"include_reasoning": True}, {"top_logprobs": 0},
     {"logprobs": False, "top_logprobs": 0}],
)  # fmt: skip
def test_asking_a_chat_for_nothing_more_is_accepted(body: dict[str, Any]) -> None:
    assert chat(**body) == chat()


@pytest.mark.parametrize(
    ("ask", "body", "feature"),
    [
        (chat, {"functions": [{"name": "f"}]}, "functions (use tools)"),
        (chat, {"function_call": {"name": "f"}}, "function_call (use tool_choice)"),
        (chat, {"modalities": ["text", "audio"]}, "answers that are no text"),
        (chat, {"use_beam_search": True}, "beam search"),
        (chat, {"length_penalty": 0.8}, "beam search"),
        (chat, {"length_penalty": True}, "beam search"),
        (completion, {"regex": "a+"}, "structured output"),
        (chat, {"chat_template": "x"}, "another chat template"),
        (chat, {"mirostat": 2}, "a sampler"),
        (completion, {"typical_p": 0.9}, "a sampler"),
        (completion, {"lora_path": "x"}, "adapters"),
        (chat, {"echo": True}, "echo"),
    ],
)
def test_features_that_do_not_exist_are_refused_as_such(
    ask: Any, body: dict[str, Any], feature: str
) -> None:
    param, message = refusal(ask, **body)
    assert param == next(iter(body))
    assert message == f"'{param}' asks for {feature}, which this server does not support."


def test_a_chat_has_no_best_of() -> None:
    param, message = refusal(chat, best_of=2)
    assert (param, "chat completions do not have" in message) == ("best_of", True)


@pytest.mark.parametrize("name", UNSUPPORTED)
@pytest.mark.parametrize("ask", [chat, completion])
def test_a_strange_value_of_any_unsupported_field_is_refused_by_name(ask: Any, name: str) -> None:
    for value in ("strange", 12345, ["strange"], {"strange": 1}):
        assert refusal(ask, **{name: value})[0] == name


def test_no_field_is_both_built_and_unsupported_or_without_effect() -> None:
    tables = ((ChatSchema, CHAT_UNSUPPORTED), (CompletionSchema, COMPLETION_UNSUPPORTED))
    for schema, unsupported in tables:
        built = {field.data_key or name for name, field in schema().fields.items()}
        assert not built & unsupported.keys() and not built & WITHOUT_EFFECT
        assert not WITHOUT_EFFECT & (unsupported.keys() | MESSAGE_UNSUPPORTED.keys()) - {"audio"}


@pytest.mark.parametrize("name", ["prompt", "Model", "", "n_prompt", "a.b"])
def test_unknown_fields_are_ignored_and_named_or_refused(name: str) -> None:
    body = {"messages": HELLO, name: 1}
    assert load_request(ChatSchema(), body) == chat()
    assert list(ignored_fields(ChatSchema(), body)) == [name]
    with pytest.raises(BadRequest) as caught:
        refuse_unknown(ChatSchema(), body)
    assert caught.value.param == (name or None)


@pytest.mark.parametrize(
    ("ask", "body", "param"),
    [
        (chat, {"top_logprobs": 3}, "top_logprobs"),
        (chat, {"top_logprobs": 2, "logprobs": False}, "top_logprobs"),
        (chat, {"stream_options": {"include_usage": True}}, "stream_options"),
        (chat, {"stream_options": {}, "stream": False}, "stream_options"),
        (chat, {"stream": True, "stream_options": {"include_usage": 1}},
         "stream_options.include_usage"),
        (chat, {"stream": True, "stream_options": {"continuous_usage_stats": "yes"}},
         "stream_options.continuous_usage_stats"),
        (chat, {"stream": True, "stream_options": []}, "stream_options"),
        (chat, {"min_tokens": 6, "max_tokens": 5}, "min_tokens"),
        (chat, {"chat_template_kwargs": {"enable_thinking": 1}},
         "chat_template_kwargs.enable_thinking"),
        (chat, {"enable_thinking": "no"}, "enable_thinking"),
        (chat, {"reasoning_effort": "most"}, "reasoning_effort"),
        (chat, {"reasoning_effort": 1}, "reasoning_effort"),
        (completion, {"logprobs": True}, "logprobs"),
        (completion, {"logprobs": 21}, "logprobs"),
    ],
)  # fmt: skip
def test_fields_that_contradict_are_refused(ask: Any, body: dict[str, Any], param: str) -> None:
    assert refusal(ask, **body)[0] == param


@pytest.mark.parametrize(
    ("asked", "got"), [({"logprobs": True}, 0), ({"logprobs": False}, None), ({}, None),
                       ({"logprobs": True, "top_logprobs": 3}, 3)],
)  # fmt: skip
def test_logprobs_of_a_chat_become_a_number(asked: dict[str, Any], got: int | None) -> None:
    assert chat(**asked).logprobs == got


@pytest.mark.parametrize(
    ("stop", "got"), [("a", ("a",)), (["a", "b"], ("a", "b")), ([], ()), ("é" * 128, ("é" * 128,))]
)
def test_stops_are_one_or_several(stop: Any, got: tuple[str, ...]) -> None:
    assert chat(stop=stop).stop == got


@pytest.mark.parametrize(
    "stop", ["", [""], ["a", ""], [1], 1, True, {}, [["a"]], ["a"] * (MAX_STOPS + 1), "é" * 129]
)
def test_other_stops_are_refused(stop: Any) -> None:
    assert refusal(chat, stop=stop)[0] == "stop"


@pytest.mark.parametrize("ids", [1, "1", [-1], [2**31], [1.0], [True], ["1"], {}, [1] * 129, [[1]]])
def test_other_stop_token_ids_are_refused(ids: Any) -> None:
    assert refusal(chat, stop_token_ids=ids)[0] == "stop_token_ids"


@pytest.mark.parametrize(
    "bias",
    [[], "1", 1, {"a": 1}, {"-1": 1}, {"01": 1}, {" 1": 1}, {"1": "1"}, {"1": True}, {"1": 101},
     {"1": -100.5}, {"1": None}, {"1": math.nan}, {"1.0": 1}, {"": 1}, {"١": 1}, {"9" * 11: 1},
     {str(i): 1 for i in range(MAX_BIASES + 1)}],
)  # fmt: skip
def test_other_logit_biases_are_refused(bias: Any) -> None:
    assert refusal(chat, logit_bias=bias)[0] == "logit_bias"


@pytest.mark.parametrize(
    ("options", "got"),
    [
        ({"include_usage": True}, (True, False)),
        ({"include_usage": True, "continuous_usage_stats": True}, (True, True)),
        ({"include_usage": True, "continuous_usage_stats": False}, (True, False)),
        ({"continuous_usage_stats": True}, (False, False)),
    ],
)
def test_usage_is_shown_at_the_end_or_all_along(options: Any, got: tuple[bool, bool]) -> None:
    ask = chat(stream=True, stream_options=options)
    assert (ask.include_usage, ask.continuous_usage) == got


@pytest.mark.parametrize(
    ("body", "thinking"),
    [
        ({}, None),
        ({"reasoning_effort": "none"}, False),
        ({"reasoning_effort": "low"}, True),
        ({"reasoning_effort": "medium"}, True),
        ({"enable_thinking": False}, False),
        ({"enable_thinking": True, "reasoning_effort": "none"}, True),
        ({"chat_template_kwargs": {"enable_thinking": True}, "enable_thinking": False}, True),
        ({"chat_template_kwargs": {"enable_thinking": False}, "reasoning_effort": "high"}, False),
        ({"chat_template_kwargs": {"tokenize": True}}, None),
    ],
)
def test_the_most_exact_field_says_whether_to_think(body: Any, thinking: bool | None) -> None:
    assert chat(**body).enable_thinking is thinking


def test_messages_become_what_the_template_takes() -> None:
    request = chat(
        messages=[
            {"role": "developer", "content": "d"},
            {"role": "user", "content": [{"type": "text", "text": "a"},
                                         {"type": "text", "text": "b"}], "name": "Ann"},
            {"role": "assistant", "content": "c", "reasoning_content": "r", "refusal": None,
             "tool_calls": [], "function_call": None, "audio": None, "annotations": []},
            {"role": "user", "content": "", "name": None},
        ]
    )  # fmt: skip
    assert request.messages == (
        {"role": "system", "content": "d"},
        {"role": "user", "content": "a\nb", "name": "Ann"},
        {"role": "assistant", "content": "c", "reasoning_content": "r"},
        {"role": "user", "content": ""},
    )


@pytest.mark.parametrize(
    ("message", "ignored"),
    [
        ({"role": "user", "content": "q", "id": 5}, ["id"]),
        ({"role": "user", "content": "q", "timestamp": 123, "opts": {"visible": False}},
         ["timestamp", "opts"]),
        ({"role": "user", "content": "q", "extra": None, "name": None}, []),
        ({"role": "user", "content": "q", "reasoning_content": "r"}, ["reasoning_content"]),
        ({"role": "user", "cache_control": {}, "content": [{"type": "text", "text": "q",
          "cache_control": {"type": "ephemeral"}, "x": None}]},
         ["cache_control", "content[0].cache_control"]),
        ({"role": "user", "content": "q", "tool_calls": [], "annotations": [], "refusal": ""},
         ["annotations", "refusal"]),
        ({"role": "user", "content": "q", "prefix": False, "partial": False}, []),
    ],
)  # fmt: skip
def test_what_other_software_adds_to_a_message_is_ignored(message: Any, ignored: list[str]) -> None:
    assert chat(messages=[message]).messages == ({"role": "user", "content": "q"},)
    found = ignored_fields(ChatSchema(), {"messages": [message]})
    assert list(found) == [f"messages[0].{place}" for place in ignored]


@pytest.mark.parametrize(
    ("said", "read"),
    [
        ({"reasoning": "why"}, "why"),
        ({"reasoning_content": "why"}, "why"),
        ({"reasoning": "vLLM's", "reasoning_content": "why"}, "why"),
        ({"reasoning": "why", "reasoning_content": None}, "why"),
    ],
)
def test_a_thought_is_read_under_both_its_names(said: dict[str, Any], read: str) -> None:
    message = {"role": "assistant", "content": "a"}
    assert chat(messages=[message | said]).messages == (message | {"reasoning_content": read},)


def test_no_shape_of_messages_breaks_the_search_for_what_is_unknown() -> None:
    part = {"type": "text"}
    for messages in (
        *("x", 1, {}, [1], [None], [{"role": ["user"]}], [{"role": "user", "content": [1]}]),
        *([{"content": {}}], [{"role": "user", "content": [part, [], "x"]}]),
    ):
        assert list(ignored_fields(ChatSchema(), {"messages": messages})) == []


IMAGE = {"type": "image_url", "image_url": {"url": "http://x"}}


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        (None, "messages"), ([], "messages"), ({}, "messages"), ("hi", "messages"),
        (HELLO * (MAX_MESSAGES + 1), "messages"),
        ([1], "messages[0]"), ([None], "messages[0]"),
        ([*HELLO, {"content": "x"}], "messages[1].role"),
        ([{"role": "root", "content": "x"}], "messages[0].role"),
        ([{"role": ["user"], "content": "x"}], "messages[0].role"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "user", "content": None}], "messages[0].content"),
        ([{"role": "user", "content": 1}], "messages[0].content"),
        ([{"role": "user", "content": []}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": "text", "text": "x"}] * (MAX_PARTS + 1)}],
         "messages[0].content"),
        ([{"role": "user", "content": ["x"]}], "messages[0].content[0]"),
        ([{"role": "system", "content": [IMAGE]}], "messages[0].content[0].type"),
        ([{"role": "user", "content": [{"type": "video_url"}]}], "messages[0].content[0].type"),
        ([{"role": "user", "content": [{"type": "input_audio"}]}], "messages[0].content[0].type"),
        ([{"role": "user", "content": [{"type": "image_url"}]}],
         "messages[0].content[0].image_url"),
        ([{"role": "user", "content": [IMAGE | {"detail": "most"}]}],
         "messages[0].content[0].image_url.detail"),
        ([{"role": "user", "content": [IMAGE | {"min_pixels": 0}]}],
         "messages[0].content[0].image_url.min_pixels"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": "http:" + "x" * 9000}]}],
         "messages[0].content[0].image_url"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": "text", "text": 1}]}], "messages[0].content[0]"),
        ([{"role": "assistant", "content": "x", "reasoning": ["r"]}], "messages[0].reasoning"),
        ([{"role": "assistant", "content": "x", "function_call": {"name": "f"}}],
         "messages[0].function_call"),
        ([{"role": "user", "content": "x", "name": 1}], "messages[0].name"),
        ([{"role": "assistant", "content": "x", "tool_calls": [{}]}], "messages[0].tool_calls[0]"),
    ],
)  # fmt: skip
def test_other_messages_are_refused_by_place(messages: Any, param: str) -> None:
    assert refusal(chat, messages=messages)[0] == param


@pytest.mark.parametrize(
    ("prompt", "got"),
    [
        ("a", ("a",)), ("", ("",)), (["a", "b"], ("a", "b")), ([1, 2], ((1, 2),)),
        ([[1], [2, 3]], ((1,), (2, 3))), (["a"] * MAX_PROMPTS, ("a",) * MAX_PROMPTS),
        (list(range(100)), (tuple(range(100)),)),
    ],
)  # fmt: skip
def test_a_prompt_has_four_forms(prompt: Any, got: Any) -> None:
    assert completion(prompt=prompt).prompts == got


@pytest.mark.parametrize(
    "prompt",
    [None, [], [[]], 1, True, {}, [1, "a"], ["a", 1], [-1], [1.0], [True], [2**31], [[1], "a"],
     [[1], []], [["a"]], ["a"] * (MAX_PROMPTS + 1), [[1]] * (MAX_PROMPTS + 1), [None]],
)  # fmt: skip
def test_other_prompts_are_refused(prompt: Any) -> None:
    assert refusal(completion, prompt=prompt)[0] == "prompt"


def test_logprobs_of_a_completion_are_a_number() -> None:
    assert completion(logprobs=0).logprobs == 0 and completion(logprobs=20).logprobs == 20


CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def test_calls_and_their_results_arrive_as_the_template_wants_to_be_told() -> None:
    asked = chat(
        messages=[
            *HELLO,
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "ok"}]},
        ],
        tools=[TOOL],
    )
    assert asked.messages[1]["tool_calls"] == [CALL] and asked.messages[1]["content"] == ""
    assert asked.messages[2] == {"role": "tool", "tool_call_id": "call_1", "content": "ok"}
    assert asked.tools[0].name == "f" and asked.tools[0].source == TOOL


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tools": [TOOL, TOOL]}, "tools[1].function.name"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": "x"}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": "any"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}},
         "tool_choice"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice"),
        ({"guided_choice": [1]}, "guided_choice"),
        ({"continue_final_message": True}, "continue_final_message"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages"),
        ({"chat_template_kwargs": {"enable_thinking": 1}}, "chat_template_kwargs.enable_thinking"),
        ({"chat_template_kwargs": {"x": "x" * 70_000}}, "chat_template_kwargs"),
    ],
)  # fmt: skip
def test_what_agents_send_wrong_is_refused_by_its_place(body: dict[str, Any], param: str) -> None:
    assert refusal(chat, **body)[0] == param


@pytest.mark.parametrize(
    ("body", "thinks"),
    [
        ({"reasoning_effort": "none"}, False), ({"reasoning_effort": "minimal"}, False),
        ({"reasoning_effort": "high"}, True), ({"enable_thinking": False}, False),
        ({"enable_thinking": True, "reasoning_effort": "none"}, True),
        ({"chat_template_kwargs": {"enable_thinking": False}, "enable_thinking": True}, False),
        ({}, None),
    ],
)  # fmt: skip
def test_of_three_switches_of_thinking_the_most_exact_wins(
    body: dict[str, Any], thinks: bool | None
) -> None:
    assert chat(**body).enable_thinking is thinks
