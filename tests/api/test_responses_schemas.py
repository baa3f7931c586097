"""Bodies of the Responses interface: what they become, and what each wrong field is told."""

import pytest

from qwenapi.api.responses.items import (
    item_id,
    messages_of,
    named,
    response_of,
    sealed_thought,
)
from qwenapi.api.responses.schemas import InputTokensSchema, ResponsesSchema
from qwenapi.errors import BadRequest
from qwenapi.generation.tools import ToolChoice
from qwenapi.http.schemas import ignored_fields, load_request, refuse_unknown

BODY = {"model": "qwen-demo", "input": "hi"}
TOOL = {"type": "function", "name": "now", "parameters": {"type": "object"}}
CALL = {"type": "function_call", "call_id": "c1", "name": "now", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "noon"}


def load(**fields):
    return load_request(ResponsesSchema(), BODY | fields)


def messages(*items):
    return messages_of(load(input=list(items)).items)


def ignored(**fields):
    return list(ignored_fields(ResponsesSchema(), BODY | fields))


def refusal(**fields):
    with pytest.raises(BadRequest) as caught:
        load(**fields)
    return caught.value


def test_a_body_becomes_what_is_asked_of_the_engine():
    ask = load(max_output_tokens=8, temperature=0.5, top_p=0.9, stream=True, store=False)
    assert (ask.max_tokens, ask.temperature, ask.top_p) == (8, 0.5, 0.9)
    assert ask.stream and not ask.store and ask.n == 1 and ask.logprobs is None
    assert messages_of(ask.items) == [{"role": "user", "content": "hi"}]


def test_messages_may_be_written_in_several_ways():
    assert messages(
        {"role": "developer", "content": "be brief"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "你"}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "a", "annotations": []}]},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        {"role": "user", "content": [{"type": "input_text", "text": t} for t in "xy"]},
    ) == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "你"},
        {"role": "assistant", "content": "a"},
        {"role": "assistant", "content": "no"},
        {"role": "user", "content": "x\ny"},
    ]


def test_what_an_assistant_thinks_says_and_calls_is_one_message():
    thought = {
        "type": "reasoning",
        "id": "rs_1",
        "summary": [],
        "content": [{"type": "reasoning_text", "text": "hm"}],
    }
    said = {"type": "message", "role": "assistant", "content": "wait"}
    other = CALL | {"call_id": "c2"}
    turn = messages(thought, said, CALL, other, OUTPUT, OUTPUT | {"call_id": "c2"}, thought, CALL)
    calls = [
        {"type": "function", "id": id_, "function": {"name": "now", "arguments": "{}"}}
        for id_ in ("c1", "c2")
    ]
    assert turn == [
        {"role": "assistant", "reasoning_content": "hm", "content": "wait", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c1", "content": "noon"},
        {"role": "tool", "tool_call_id": "c2", "content": "noon"},
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "hm",
            "tool_calls": calls[:1],
        },
    ]


def test_an_output_may_be_text_parts():
    parts = [{"type": "input_text", "text": text} for text in "ab"]
    assert messages(OUTPUT | {"output": parts})[0]["content"] == "a\nb"


def test_a_sealed_thought_is_read_again_and_one_of_another_service_is_named():
    sealed = {"type": "reasoning", "summary": [], "encrypted_content": sealed_thought("你好 🙂")}
    assert messages(sealed) == [
        {"role": "assistant", "content": "", "reasoning_content": "你好 🙂"}
    ]
    assert ignored(input=[sealed]) == []
    foreign = sealed | {"encrypted_content": "gAAAA", "summary": [{"text": "s"}]}
    assert messages(foreign) == []
    assert ignored(input=[foreign]) == ["input[0].summary", "input[0].encrypted_content"]
    assert messages(sealed | {"encrypted_content": "thought.%%"}) == []


def test_items_have_ids_of_their_own_or_of_their_response():
    response = "resp_" + "a" * 32
    items = named(
        load(input=[{"role": "user", "content": "x", "id": "mine"}, CALL]).items, response
    )
    assert [item["id"] for item in items] == ["mine", item_id("function_call", response, 1)]
    assert response_of(items[1]["id"]) == response
    assert response_of("") == "resp_"


def test_a_reference_may_leave_out_its_type():
    for reference in ({"id": "msg_1"}, {"type": "item_reference", "id": "msg_1"}):
        assert load(input=[reference]).items == ({"type": "item_reference", "id": "msg_1"},)


def test_a_tool_is_given_to_the_template_in_the_shape_of_chats():
    (tool,) = load(tools=[TOOL | {"strict": True, "description": "d"}]).tools
    function = {"name": "now", "description": "d", "parameters": {"type": "object"}}
    assert tool.source == {"type": "function", "function": function} and tool.strict
    (bare,) = load(tools=[{"type": "function", "name": "now"}]).tools
    assert bare.source["function"] == {"name": "now"} and not bare.strict


@pytest.mark.parametrize(
    ("asked", "choice"),
    [
        ("none", ToolChoice("none")),
        ("required", ToolChoice("required")),
        ({"type": "function", "name": "now"}, ToolChoice("required", ("now",))),
        (
            {
                "type": "allowed_tools",
                "mode": "auto",
                "tools": [{"type": "function", "name": "now"}],
            },
            ToolChoice("auto", ("now",)),
        ),
    ],
)
def test_a_choice_of_tools_is_told_as_it_was_made(asked, choice):
    ask = load(tools=[TOOL], tool_choice=asked)
    assert ask.tool_choice == choice and ask.told["tool_choice"] == asked


def test_efforts_say_whether_to_think():
    assert load().enable_thinking is None
    assert load(reasoning={"effort": "none"}).enable_thinking is False
    assert load(reasoning={"effort": "high"}).enable_thinking is True
    assert ignored(reasoning={"effort": "low", "summary": "auto"}) == ["reasoning.summary"]


def test_formats_of_the_text():
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    named_schema = {"type": "json_schema", "name": "n", "schema": schema, "strict": True}
    ask = load(text={"format": named_schema, "verbosity": "low"})
    assert ask.answer_format is not None and ask.answer_format.kind == "json_schema"
    assert ask.told["text"]["format"] == named_schema
    bare = {"type": "json_schema", "schema": schema}
    told = load(text={"format": bare}).told["text"]["format"]
    assert told == bare | {"name": "", "strict": None}
    assert ignored(text={"format": named_schema, "verbosity": "low"}) == ["text.verbosity"]
    assert load(text={"format": {"type": "text"}}).answer_format is None
    assert load(text={"format": {"type": "json_object"}}).answer_format is not None


def test_log_probabilities_are_asked_for_in_either_way():
    assert load(include=["message.output_text.logprobs"]).logprobs == 0
    assert load(include=["message.output_text.logprobs"], top_logprobs=3).logprobs == 3
    assert load(top_logprobs=2).logprobs == 2
    assert ignored(include=["file_search_call.results"]) == ["include[0]"]


def test_what_codex_sends_besides_is_ignored_and_named():
    item = {
        "role": "user",
        "content": [{"type": "input_text", "text": "x", "mark": 1}],
        "phase": "p",
    }
    assert ignored(
        input=[item], client_metadata={}, stream_options={"include_obfuscation": False}
    ) == [
        "input[0].phase",
        "input[0].content[0].mark",
        "client_metadata",
        "stream_options",
    ]
    refuse_unknown(ResponsesSchema(), BODY | {"stream_options": {}, "max_tool_calls": 3})


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"input": 5}, "input", "string or a list"),
        ({"input": [5]}, "input[0]", "object"),
        ({"input": [{"type": "web_search_call"}]}, "input[0].type", "web_search_call"),
        ({"input": [{"type": 5}]}, "input[0].type", "no string"),
        ({"input": [{"role": "tool", "content": ""}]}, "input[0].role", "user"),
        ({"input": [{"role": "user"}]}, "input[0].content", "text parts"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file"}]}]},
            "input[0].content[0].type",
            "input_image",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input[0].content[0].image_url",
            "URL",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
            "input[0].content[0].file_id",
            "none are kept",
        ),
        ({"input": [{"role": "user", "content": [5]}]}, "input[0].content[0].type", "input_text"),
        ({"input": [{"role": [], "content": ""}]}, "input[0].role", "one of"),
        ({"input": [CALL | {"arguments": {}}]}, "input[0].arguments", "string"),
        ({"input": [CALL | {"status": "done"}]}, "input[0].status", "completed"),
        ({"input": [CALL | {"status": []}]}, "input[0].status", "completed"),
        ({"input": [OUTPUT | {"output": None}]}, "input[0].output", "text parts"),
        ({"input": [{"type": "reasoning", "content": "x"}]}, "input[0].content", "reasoning_text"),
        ({"input": [{"type": "item_reference"}]}, "input[0].id", "string"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "web_search"),
        ({"tools": [{"type": "custom", "name": "x"}]}, "tools[0].type", "custom"),
        ({"tools": [TOOL, TOOL]}, "tools[1].name", "another tool"),
        ({"tools": [TOOL | {"name": "a b"}]}, "tools[0].name", "blank"),
        ({"tools": [TOOL | {"parameters": {"maximum": 10**20}}]}, "tools[0].parameters", "64 bits"),
        ({"tool_choice": "required"}, "tool_choice", "no 'tools'"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice", "allowed_tools"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format", "json_object"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema", "object"),
        (
            {"text": {"format": {"type": "json_schema", "schema": {"const": 10**20}}}},
            "text.format",
            "64 bits",
        ),
        (
            {"text": {"format": {"type": "json_schema", "schema": {}, "name": 10**20}}},
            "text.format.name",
            "string",
        ),
        ({"include": ["everything"]}, "include[0]", "one of"),
        ({"include": [[]]}, "include[0]", "one of"),
        ({"metadata": {"a": 5}}, "metadata", "strings"),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata", "16"),
        ({"truncation": "middle"}, "truncation", "auto"),
        ({"background": True, "store": False}, "background", "'store'"),
        ({"background": True, "stream": True}, "background", "'stream'"),
        ({"conversation": 5}, "conversation", "id"),
        ({"conversation": {}}, "conversation", "id"),
        ({"conversation": "conv_1", "background": True}, "background", "'conversation'"),
        (
            {"conversation": "conv_1", "previous_response_id": "resp_1"},
            "conversation",
            "'previous_response_id'",
        ),
        ({"prompt": {"id": "p"}}, "prompt", "stored prompts"),
        ({"reasoning": {"effort": "much"}}, "reasoning.effort", "none"),
        ({"top_logprobs": 21}, "top_logprobs", "20"),
        ({"max_output_tokens": 0}, "max_output_tokens", "1"),
        ({"previous_response_id": 5}, "previous_response_id", "string"),
    ],
)
def test_a_wrong_field_is_named(fields, param, words):
    error = refusal(**fields)
    assert error.param == param and words in error.message, error.message


def test_there_must_be_something_to_answer():
    with pytest.raises(BadRequest) as caught:
        load_request(ResponsesSchema(), {"model": "qwen-demo"})
    assert caught.value.param == "input"
    assert load_request(ResponsesSchema(), {"previous_response_id": "resp_1"}).items == ()
    for said in ("conv_1", {"id": "conv_1"}):
        ask = load_request(ResponsesSchema(), {"conversation": said})
        assert ask.conversation == "conv_1" and ask.told["conversation"] == {"id": "conv_1"}


def test_counting_takes_what_an_answer_takes_and_names_what_does_not_count():
    body = BODY | {"temperature": 0, "max_output_tokens": 5, "instructions": "x"}
    ask = load_request(InputTokensSchema(), body)
    assert ask.instructions == "x"
    assert list(ignored_fields(InputTokensSchema(), body)) == ["temperature", "max_output_tokens"]
    refuse_unknown(InputTokensSchema(), body)
