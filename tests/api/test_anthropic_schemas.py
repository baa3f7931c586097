"""Bodies of Anthropic's interface: what they become, and what each wrong field is told."""

import json

import orjson
import pytest

from qwenapi.api.anthropic.schemas import CountTokensSchema, MessagesSchema
from qwenapi.errors import BadRequest
from qwenapi.http.schemas import ignored_fields, load_request, refuse_unknown
from qwenapi.keys import KeyRing
from tests.api import claude_code
from tests.api.claude_code import text
from tests.request_context.test_auth import app_of
from workers.wire.grammar import MAX_GRAMMAR_BYTES

HELLO = {"role": "user", "content": "hi"}
BODY = {"model": "qwen-demo", "max_tokens": 8, "messages": [HELLO]}
USE = {"type": "tool_use", "id": "toolu_1", "name": "now", "input": {}}
TOOL = {"name": "now", "input_schema": {"type": "object"}}


def load(**fields):
    return load_request(MessagesSchema(), BODY | fields)


def turns(*content, role="user"):
    return load(messages=[{"role": role, "content": list(content)}, HELLO]).messages[:-1]


def test_a_body_becomes_what_is_asked_of_the_engine():
    ask = load(temperature=0.5, top_p=0.9, top_k=5, stop_sequences=["END"], stream=True)
    assert (ask.max_tokens, ask.temperature, ask.top_p, ask.top_k) == (8, 0.5, 0.9, 5)
    assert ask.stop == ("END",) and ask.stream and ask.n == 1
    assert ask.messages == ({"role": "user", "content": "hi"},)
    assert ask.enable_thinking is None and ask.max_thought_tokens is None


def test_the_system_prompt_is_the_first_message():
    for system in ("a\nb", [text("a"), text("b", cache_control={"type": "ephemeral"})]):
        assert load(system=system).messages[0] == {"role": "system", "content": "a\nb"}
    assert len(load(system="").messages) == len(load(system=[]).messages) == 1


def test_results_of_tools_become_messages_of_their_own_in_their_order():
    results = [
        {"type": "tool_result", "tool_use_id": "1", "content": "one"},
        {"type": "tool_result", "tool_use_id": "2", "content": [text("a"), text("b")]},
        {"type": "tool_result", "tool_use_id": "3", "content": "bad", "is_error": True},
        {"type": "tool_result", "tool_use_id": "4"},
    ]
    assert turns(text("before"), *results, text("x"), text("y")) == (
        {"role": "user", "content": "before"},
        {"role": "tool", "tool_call_id": "1", "content": "one"},
        {"role": "tool", "tool_call_id": "2", "content": "a\nb"},
        {"role": "tool", "tool_call_id": "3", "content": "Error: bad"},
        {"role": "tool", "tool_call_id": "4", "content": ""},
        {"role": "user", "content": "x\ny"},
    )


def test_an_assistants_blocks_are_one_message():
    thought = {"type": "thinking", "thinking": "hm", "signature": "s"}
    said = turns(thought, text("a"), text("b"), USE, role="assistant")
    call = {"type": "function", "id": "toolu_1", "function": {"name": "now", "arguments": {}}}
    assert said == (
        {"role": "assistant", "content": "ab", "reasoning_content": "hm", "tool_calls": [call]},
    )
    assert turns(role="assistant") == ({"role": "assistant", "content": ""},)


def test_a_tool_is_given_to_the_template_in_openais_shape():
    (tool,) = load(tools=[TOOL | {"description": "the time", "strict": True}]).tools
    assert (tool.name, tool.parameters, tool.strict) == ("now", {"type": "object"}, True)
    assert tool.source == {
        "type": "function",
        "function": {
            "name": "now",
            "description": "the time",
            "parameters": {"type": "object"},
        },
    }


@pytest.mark.parametrize(
    ("choice", "mode", "names", "several"),
    [
        ({"type": "auto"}, "auto", (), True),
        ({"type": "any", "disable_parallel_tool_use": True}, "required", (), False),
        ({"type": "tool", "name": "now"}, "required", ("now",), True),
        ({"type": "none"}, "none", (), True),
    ],
)
def test_the_choice_of_a_tool(choice, mode, names, several):
    ask = load(tools=[TOOL], tool_choice=choice)
    assert (ask.tool_choice.mode, ask.tool_choice.names) == (mode, names)
    assert ask.parallel_tool_calls is several


@pytest.mark.parametrize(
    ("thinking", "expected"),
    [
        ({"type": "enabled", "budget_tokens": 1024}, (True, 1024, True)),
        ({"type": "adaptive"}, (True, None, True)),
        ({"type": "adaptive", "display": "omitted"}, (True, None, False)),
        ({"type": "disabled"}, (False, None, True)),
    ],
)
def test_thinking(thinking, expected):
    ask = load(thinking=thinking)
    assert (ask.enable_thinking, ask.max_thought_tokens, ask.shows_thinking) == expected


def test_a_schema_of_the_answer_becomes_its_grammar():
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    format = {"type": "json_schema", "schema": schema}
    for fields in ({"output_config": {"format": format}}, {"output_format": format}):
        grammar = load(**fields).answer_format
        assert grammar.kind == "json_schema" and orjson.loads(grammar.text) == schema
    assert load(output_config={"effort": "low"}).answer_format is None


def test_a_request_of_claude_code_is_read_whole():
    body = claude_code.request()
    ask = load_request(MessagesSchema(), body)
    assert [turn["role"] for turn in ask.messages] == [
        *("system", "user", "user", "assistant", "tool", "tool", "user")
    ]
    assert ask.messages[0]["content"] == "You help with code.\nThe folder is /tmp/x."
    assert ask.messages[3]["reasoning_content"] == "Let me see."
    assert ask.messages[5]["content"] == "Error: No such file.\nLook again."
    assert len(ask.tools) == 12 and ask.max_thought_tokens == 31999
    assert load_request(MessagesSchema(), claude_code.request("other")) == ask
    assert list(ignored_fields(MessagesSchema(), body)) == [
        "metadata.user_id",
        "system[0].x-anthropic-billing-header",
        "system[1].cache_control",
        "system[2].cache_control",
        "context_management",
        "messages[1].content[0].cache_control",
        "messages[2].content[1].data",
        "messages[3].content[1].cache_control",
        "messages[3].content[2].cache_control",
    ]


def test_tokens_are_counted_of_the_same_body_or_of_less():
    body = claude_code.request()
    whole = load_request(MessagesSchema(), body)
    counted = load_request(CountTokensSchema(), body)
    assert (counted.messages, counted.tools) == (whole.messages, whole.tools)
    assert load_request(CountTokensSchema(), {"model": "x", "messages": [HELLO]}).messages


@pytest.mark.parametrize("schema", [MessagesSchema(), CountTokensSchema()])
def test_nothing_claude_code_sends_is_refused_where_unknown_fields_are(schema):
    body = claude_code.request()
    refuse_unknown(schema, body)
    with pytest.raises(BadRequest, match="'whatever' is not a field of this request"):
        refuse_unknown(schema, body | {"whatever": 1})


def content(*blocks, role="user"):
    return {"messages": [HELLO, {"role": role, "content": list(blocks)}]}


WRONG = {
    "model": [(3, "'model' must be a string of at most 256 characters.")],
    "max_tokens": [
        (0, "'max_tokens' must be an integer of at least 1."),
        ("8", "'max_tokens' must be an integer of at least 1."),
        (True, "'max_tokens' must be an integer of at least 1."),
    ],
    "messages": [
        ([], "'messages' must be a list of 1 to 100000 messages."),
        ("hi", "'messages' must be a list of 1 to 100000 messages."),
        (["hi"], "'messages[0]' must be an object with a role and content."),
        ([HELLO | {"role": "tool"}], "'messages[0].role' must be one of user, assistant, system."),
        ([HELLO | {"role": []}], "'messages[0].role' must be one of user, assistant, system."),
        ([{"role": "user"}], "'messages[0].content' must be a string or a list of content blocks."),
        (
            [HELLO | {"content": []}],
            "'messages[0].content' must be a string or a list of content blocks.",
        ),
    ],
    "system": [
        (3, "'system' must be a string or a list of text blocks."),
        (["a"], "'system[0]' must be an object with a type."),
        ([{"type": "text"}], "'system[0].text' must be a string."),
        (
            [{"type": "image"}],
            "'system[0].type' is image, which no message of role system has.",
        ),
    ],
    "tools": [
        ({}, "'tools' must be a list of at most 512 tools."),
        (["now"], "'tools[0]' must be an object with a name and an input_schema."),
        (
            [{"type": "web_search_20250305", "name": "web_search"}],
            "'tools[0].type' is web_search_20250305; this server has no tools but the caller's"
            " own.",
        ),
        (
            [TOOL | {"name": "a b"}],
            "'tools[0].name' must be 1 to 128 characters, none of <>\"'=&\\ or a blank.",
        ),
        ([TOOL, TOOL], "'tools[1].name' is the name of another tool as well."),
        ([TOOL | {"description": 3}], "'tools[0].description' must be a string."),
        (
            [{"name": "now"}],
            "'tools[0].input_schema' must be a JSON Schema, which is an object.",
        ),
        (
            [TOOL | {"input_schema": {"x": "y" * 300_000}}],
            "'tools[0].input_schema' must take at most 262144 bytes.",
        ),
        ([TOOL | {"strict": 1}], "'tools[0].strict' must be true or false."),
    ],
    "tool_choice": [
        ("auto", "'tool_choice' must be an object."),
        ({"type": "some"}, "'tool_choice.type' must be one of auto, any, tool, none."),
        ({"type": "tool"}, "'tool_choice.name' is required."),
        ({"type": "tool", "name": "x"}, "'tool_choice' names 'x', which is none of 'tools'."),
        ({"type": "any"}, "'tool_choice' asks for a call, but there are no 'tools'."),
        (
            {"type": "auto", "disable_parallel_tool_use": 1},
            "'tool_choice.disable_parallel_tool_use' must be true or false.",
        ),
    ],
    "thinking": [
        (True, "'thinking' must be an object."),
        ({"type": "on"}, "'thinking.type' must be one of enabled, disabled, adaptive."),
        (
            {"type": "enabled"},
            "'thinking.budget_tokens' is required where thinking is enabled.",
        ),
        (
            {"type": "enabled", "budget_tokens": 0},
            "'thinking.budget_tokens' must be an integer from 1 to 2147483647.",
        ),
        (
            {"type": "disabled", "budget_tokens": 9},
            "'thinking.budget_tokens' is for thinking of type enabled.",
        ),
        (
            {"type": "adaptive", "display": "all"},
            "'thinking.display' must be one of summarized, omitted.",
        ),
    ],
    "output_config": [
        (3, "'output_config' must be an object."),
        ({"format": {"type": "xml"}}, "'output_config.format.type' must be one of json_schema."),
        ({"format": {"type": "json_schema"}}, "'output_config.format.schema' is required."),
    ],
    "output_format": [
        (
            {"type": "json_schema", "schema": "x"},
            "'output_format.schema' must be a JSON Schema, which is an object.",
        ),
        (
            {"type": "json_schema", "schema": {"x": "y" * MAX_GRAMMAR_BYTES}},
            f"'output_format.schema' must take at most {MAX_GRAMMAR_BYTES} bytes.",
        ),
    ],
    "metadata": [
        ("me", "'metadata' must be an object."),
        ({"user_id": 3}, "'metadata.user_id' must be a string of at most 1024 characters."),
    ],
    "stop_sequences": [
        ("END", "'stop_sequences' must be a list of at most 128 strings, each of 1 to 256 bytes"),
        ([" \n"], "'stop_sequences' must be a list of at most 128 strings, each of 1 to 256 bytes"),
        (["x" * 257], "'stop_sequences' must be a list of at most 128 strings"),
        (["x"] * 129, "'stop_sequences' must be a list of at most 128 strings"),
    ],
    "stream": [("yes", "'stream' must be true or false.")],
    "temperature": [(1.5, "'temperature' must be a number from 0 to 1.")],
    "top_k": [(-1, "'top_k' must be an integer from 0 to 2147483647.")],
    "top_p": [("1", "'top_p' must be a number from 0 to 1.")],
    "container": [("c", "'container' asks for containers, which this server does not support.")],
    "mcp_servers": [
        ([{}], "'mcp_servers' asks for MCP servers, which this server does not support.")
    ],
}
WRONG_BLOCKS = [
    (content("hi"), "'messages[1].content[0]' must be an object with a type."),
    (content({"text": "x"}), "'messages[1].content[0]' must be an object with a type."),
    *(
        (
            content({"type": kind, "source": {}}),
            f"'messages[1].content[0].type' is {kind}, which this server cannot read: send text or"
            " image.",
        )
        for kind in ("document", "search_result", "server_tool_use")
    ),
    (
        content({"type": "tool_result", "tool_use_id": "1", "content": [{"type": "image"}]}),
        "'messages[1].content[0].content[0].source' must be an object of type base64 or url.",
    ),
    (
        content({"type": "image", "source": {"type": "base64", "data": "aa"}}),
        "'messages[1].content[0].source' must have a media_type and data, which are strings.",
    ),
    (
        content({"type": "image", "source": {"type": "url", "url": 5}}),
        "'messages[1].content[0].source.url' must be a string.",
    ),
    (
        content({"type": "tool_result", "tool_use_id": "1", "content": 3}),
        "'messages[1].content[0].content' must be a string or a list of text and image blocks.",
    ),
    (
        content({"type": "tool_result"}),
        "'messages[1].content[0].tool_use_id' must be a string.",
    ),
    (
        content({"type": "tool_result", "tool_use_id": "1", "is_error": "no"}),
        "'messages[1].content[0].is_error' must be true or false.",
    ),
    (
        content(USE),
        "'messages[1].content[0].type' is tool_use, which no message of role user has.",
    ),
    (
        content({"type": "tool_result", "tool_use_id": "1"}, role="assistant"),
        "'messages[1].content[0].type' is tool_result, which no message of role assistant has.",
    ),
    (content({"type": "text"}), "'messages[1].content[0].text' must be a string."),
    (
        content({"type": "thinking"}, role="assistant"),
        "'messages[1].content[0].thinking' must be a string.",
    ),
    (
        content(USE | {"input": "{}"}, role="assistant"),
        "'messages[1].content[0].input' must be an object.",
    ),
    (
        content(USE | {"id": None}, role="assistant"),
        "'messages[1].content[0].id' must be a string.",
    ),
    (
        content(USE, role="assistant"),
        "'messages[1].content' ends with tool_use: send its tool_result as well.",
    ),
]
CASES = [
    *(({name: value}, told) for name, cases in WRONG.items() for value, told in cases),
    *WRONG_BLOCKS,
    (
        {
            "output_format": {"type": "json_schema", "schema": {}},
            "output_config": {"format": {"type": "json_schema", "schema": {}}},
        },
        "'output_format' and 'output_config.format' exclude each other.",
    ),
]


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    return app_of("anthropic", tmp_path_factory.mktemp("app"), KeyRing()).test_client()


@pytest.mark.parametrize(("fields", "told"), CASES)
def test_what_is_wrong_is_told_in_a_sentence_in_anthropics_form(client, fields, told):
    answer = client.post("/v1/messages", json=BODY | fields, headers={"X-Request-Id": "r1"})
    assert answer.status_code == 400
    body = answer.get_json()
    message = body["error"].pop("message")
    assert message.startswith(told) and message.endswith(".")
    assert body == {
        "type": "error",
        "error": {"type": "invalid_request_error"},
        "request_id": "r1",
    }
    assert answer.headers["request-id"] == "r1"


def test_every_field_has_a_wrong_value_here():
    fields = {*MessagesSchema().fields, *MessagesSchema.unsupported}
    assert fields == set(WRONG)


@pytest.mark.parametrize("name", ["model", "max_tokens", "messages"])
def test_what_is_missing_is_told(client, name):
    body = {key: value for key, value in BODY.items() if key != name}
    answer = client.post("/v1/messages", json=body)
    assert answer.status_code == 400
    assert answer.get_json()["error"]["message"] == f"'{name}' is required."


def test_what_is_no_json_is_told_in_anthropics_form(client):
    answer = client.post("/v1/messages", data="{", content_type="application/json")
    assert answer.status_code == 400
    assert answer.get_json()["error"]["type"] == "invalid_request_error"


def test_unknown_fields_are_named_and_the_request_goes_on(client):
    answer = client.post("/v1/messages", json=BODY | {"whatever": 1, "service_tier": "auto"})
    assert answer.status_code == 503  # read, and no engine is up
    assert answer.headers["X-Ignored"] == "service_tier, whatever"
    assert answer.get_json()["error"]["type"] == "api_error"


def test_a_key_is_taken_from_its_header_and_its_absence_told(tmp_path):
    client = app_of("all", tmp_path, KeyRing(static="k")).test_client()
    refused = client.post("/v1/messages", json=BODY)
    assert refused.status_code == 401
    assert json.loads(refused.data)["error"]["type"] == "authentication_error"
    assert client.post("/v1/messages", json=BODY, headers={"x-api-key": "k"}).status_code == 503


def test_a_body_that_is_too_large_is_request_too_large(client):
    answer = client.post(
        "/v1/messages",
        content_type="application/json",
        environ_overrides={"CONTENT_LENGTH": str(2**40)},
    )
    assert answer.status_code == 413
    assert answer.get_json()["error"]["type"] == "request_too_large"
