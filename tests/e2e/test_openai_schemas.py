"""Real answers and stream events are as OpenAI's published schemas say, errors too.

The stub says what it is told to: it repeats the prompt's tokens from the one numbered `seed`.
"""

import json

import pytest
import requests

from tests.e2e.test_messages_on_stub import events
from tests.e2e.test_tools import CALL, OTHER, TIME, TOKENIZER, WEATHER, from_the_end, says
from tests.echoing_engine import echoing_server
from tests.openai_schemas import errors, event_schemas
from tests.pooling_folders import write_folder
from tests.running_server import RunningServer, sse_events, wait_for

THOUGHT = f"<think>\nI call it.\n</think>\n\nLet me see.\n{CALL}\n{OTHER}"
PERSON = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
TOOLS = [{"type": "function", **one["function"]} for one in (WEATHER, TIME)]
CHOSEN = {"type": "function", "name": "get_time"}
EVERYTHING = ["message.output_text.logprobs", "reasoning.encrypted_content"]
PROMPT = {"model": "qwen-demo", "prompt": "a b c", "max_tokens": 4}
JSON = {"Content-Type": "application/json"}
INPUT = {"model": "qwen-demo", "input": "你好 🙂", "max_output_tokens": 8}
CHATS = {
    "plain": {"messages": [{"role": "user", "content": "你好 🙂"}], "max_tokens": 8},
    "until a stop": says("Hello."),
    "several, with logprobs": says("Hello.", n=3, logprobs=True, top_logprobs=2),
    "a thought and two calls": says(THOUGHT, logprobs=True),
    "a call": says(CALL, tool_choice={"type": "function", "function": {"name": "get_weather"}}),
    "an object": says('{"name": "A"}', tools=[], response_format={"type": "json_object"}),
    "a schema": says(
        '{"name": "A"}',
        tools=[],
        response_format={"type": "json_schema", "json_schema": {"name": "p", "schema": PERSON}},
    ),
    "ids and prompt": says("Hello.", return_token_ids=True, service_tier="auto", store=True),
}
COMPLETIONS = {
    "plain": PROMPT,
    "several": PROMPT | {"prompt": ["a b", "c"], "n": 2, "stop": ["b"]},
    "logprobs": PROMPT | {"logprobs": 2},
    "echo": PROMPT | {"echo": True, "logprobs": 1},
    "nothing but the prompt": PROMPT | {"echo": True, "logprobs": 1, "max_tokens": 0},
}


def saying(answer, **fields):
    """Return a request of the Responses interface that the stub answers by this text."""
    asked = {"input": f"Say: {answer}", "seed": from_the_end(answer)}
    return INPUT | asked | {"max_output_tokens": len(TOKENIZER.encode(answer).ids)} | fields


RESPONSES = {
    "plain": INPUT,
    "cut": INPUT | {"max_output_tokens": 3, "truncation": "auto", "top_logprobs": 2},
    "told": INPUT | {"instructions": "Be brief.", "metadata": {"k": "v"}, "user": "me"},
    "a thought and two calls": saying(THOUGHT, tools=TOOLS, include=EVERYTHING),
    "a chosen call": saying(
        CALL, tools=TOOLS, tool_choice={"type": "function", "name": "get_time"}
    ),
    "allowed calls": saying(
        CALL,
        tools=TOOLS,
        tool_choice={
            "type": "allowed_tools",
            "mode": "auto",
            "tools": [{"type": "function", "name": "get_time"}],
        },
    ),
    "an object": saying('{"name": "A"}', text={"format": {"type": "json_object"}}),
    "a schema": saying(
        '{"name": "A"}',
        text={"format": {"type": "json_schema", "name": "person", "schema": PERSON}},
    ),
    "a schema without a name": saying(
        '{"name": "A"}', text={"format": {"type": "json_schema", "schema": PERSON, "strict": True}}
    ),
    "effort": INPUT | {"reasoning": {"effort": "low"}, "service_tier": "auto", "store": False},
}


@pytest.fixture(scope="module")
def embed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("embed")
    write_folder(folder / "model", "embed")
    server = RunningServer(folder / "run", "--stub", "--model", str(folder / "model"))
    try:
        yield server.wait_until_ready()
        assert server.stop() == 0
    finally:
        server.close()


@pytest.fixture
def said(stub_server):
    """Return how to ask by any method and be given a body, held against a schema."""

    def ask(schema, method, path, status=200, **options):
        answer = requests.request(method, stub_server.url + path, timeout=60, **options)
        assert answer.status_code == status, answer.text
        return valid(schema, answer.json())

    return ask


def valid(schema, body):
    assert not errors(schema, body), (errors(schema, body), body)
    return body


def valid_events(raw):
    """Return a response's stream events, each held against the schema of its type."""
    found, schemas = events(raw), event_schemas()
    for payload in found:
        valid(schemas[payload["type"]], payload)
    return found


def test_what_no_schema_allows_is_found():
    model = {"id": "m", "object": "model", "created": 1, "owned_by": "us"}
    assert errors("Model", model) == []
    assert errors("Model", model | {"created": "1"}) and errors("Model", {})
    search = {"type": "web_search_call", "id": "ws_1", "status": "completed"}
    page = {"object": "list", "data": [search], "has_more": False, "first_id": "", "last_id": ""}
    assert errors("ResponseItemList", page)


@pytest.mark.parametrize("name", CHATS)
def test_a_chat_completion(said, stub_server, name):
    body = {"model": "qwen-demo"} | CHATS[name]
    said("CreateChatCompletionResponse", "POST", "/v1/chat/completions", json=body)
    streamed = body | {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, done = sse_events(stub_server.post("/v1/chat/completions", streamed).content)
    assert done == "[DONE]" and chunks[-1]["usage"] and len(chunks) > 3
    for chunk in chunks:
        valid("CreateChatCompletionStreamResponse", chunk)


@pytest.mark.parametrize("name", COMPLETIONS)
def test_a_completion(said, stub_server, name):
    body = COMPLETIONS[name]
    whole = said("CreateCompletionResponse", "POST", "/v1/completions", json=body)
    assert whole["usage"] and all(choice["finish_reason"] for choice in whole["choices"])
    streamed = body | {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, done = sse_events(stub_server.post("/v1/completions", streamed).content)
    assert done == "[DONE]" and chunks[-1]["usage"]
    for chunk in chunks:
        valid("CreateCompletionResponse", chunk)


@pytest.mark.parametrize("name", RESPONSES)
def test_a_response(said, stub_server, name):
    body = RESPONSES[name]
    whole = said("Response", "POST", "/v1/responses", json=body)
    payloads = valid_events(stub_server.post("/v1/responses", body | {"stream": True}).content)
    for response in (whole, payloads[-1]["response"]):
        if body.get("store", True):
            path = f"/v1/responses/{response['id']}"
            assert said("Response", "GET", path) == response
            said("ResponseItemList", "GET", f"{path}/input_items")


def test_every_type_of_event_of_an_answer_is_sent(stub_server, tmp_path):
    body = RESPONSES["a thought and two calls"] | {"stream": True, "max_output_tokens": 300}
    seen = set()
    with echoing_server(tmp_path) as server:
        for one in (server, stub_server):  # whose answers end by themselves, and are cut
            payloads = valid_events(one.post("/v1/responses", body | {"input": THOUGHT}).content)
            seen |= {payload["type"] for payload in payloads}
            response = payloads[-1]["response"]
            found = one.get(f"/v1/responses/{response['id']}").json()
            assert valid("Response", found) == response
    assert event_schemas().keys() - seen == {"error", "response.failed"}


def test_a_stream_that_fails(start_server, tmp_path):
    (tmp_path / "file").write_text("a file, no folder")
    server = start_server("--stub", "--state-dir", str(tmp_path / "file"))
    payloads = valid_events(server.post("/v1/responses", INPUT | {"stream": True}).content)
    assert [payload["type"] for payload in payloads[-2:]] == ["error", "response.failed"]
    valid("ErrorResponse", server.post("/v1/responses", INPUT).json())


def test_a_response_in_the_background(said):
    begun = said("Response", "POST", "/v1/responses", json=INPUT | {"background": True})
    path = f"/v1/responses/{begun['id']}"
    seen = {begun["status"]}

    def has_ended():
        seen.add(said("Response", "GET", path)["status"])
        return "incomplete" in seen

    wait_for(has_ended)
    assert "queued" in seen
    long = INPUT | {"background": True, "max_output_tokens": 4000}
    begun = said("Response", "POST", "/v1/responses", json=long)
    cancelled = said("Response", "POST", f"/v1/responses/{begun['id']}/cancel")
    assert cancelled["status"] == "cancelled"


def test_items_of_every_kind_are_listed_as_they_are_kept(said):
    items = [
        {"role": "user", "content": "hello"},
        {"role": "developer", "content": [{"type": "input_text", "text": "Be brief."}]},
        {"role": "assistant", "content": "Hi."},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "t"}]},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "s"}]},
        {"type": "function_call", "call_id": "c", "name": "get_time", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "noon"},
        {"type": "function_call", "call_id": "d", "name": "get_time", "arguments": "{}"},
        {
            "type": "function_call_output",
            "call_id": "d",
            "output": [{"type": "input_text", "text": "one"}],
        },
        {"role": "user", "content": "go on"},
    ]
    response = said("Response", "POST", "/v1/responses", json=INPUT | {"input": items})
    query = {"limit": 100}
    path = f"/v1/responses/{response['id']}/input_items"
    listed = said("ResponseItemList", "GET", path, params=query)
    assert len(listed["data"]) == len(items)
    begun = said("ConversationResource", "POST", "/v1/conversations", json={"items": items})
    path = f"/v1/conversations/{begun['id']}"
    said("ConversationResource", "GET", path)
    said("ConversationResource", "POST", path, json={"metadata": {"k": "v"}})
    listed = said("ConversationItemList", "GET", f"{path}/items", params=query)
    assert len(listed["data"]) == len(items)
    said("ConversationItem", "GET", f"{path}/items/{listed['data'][0]['id']}")
    said("ConversationItemList", "POST", f"{path}/items", json={"items": items[:1]})
    in_turn = INPUT | {"conversation": begun["id"]}
    said("Response", "POST", "/v1/responses", json=in_turn)
    said("ConversationItemList", "GET", f"{path}/items", params=query)
    said("DeletedConversationResource", "DELETE", path)
    empty = said("ConversationResource", "POST", "/v1/conversations", json={})
    said("ConversationItemList", "GET", f"/v1/conversations/{empty['id']}/items")


def test_tokens_of_an_input_are_counted(said):
    body = {"model": "qwen-demo", "input": "hello"}
    said("TokenCountsResource", "POST", "/v1/responses/input_tokens", json=body)


@pytest.mark.parametrize("fields", [{}, {"dimensions": 4}, {"input": ["a", "b"]}])
def test_embeddings(embed, fields):
    body = {"model": "model", "input": "hello"} | fields
    answer = embed.post("/v1/embeddings", body)
    assert answer.status_code == 200, answer.text
    valid("CreateEmbeddingResponse", answer.json())


def test_models(said):
    models = said("ListModelsResponse", "GET", "/v1/models")
    said("Model", "GET", f"/v1/models/{models['data'][0]['id']}")


def test_files_and_a_batch(said):
    line = {"custom_id": "c", "method": "POST", "url": "/v1/completions", "body": PROMPT}
    wrong = line | {"custom_id": "d", "body": {"prompt": 1}}
    text = "".join(json.dumps(one) + "\n" for one in (line, wrong))
    upload = {"files": {"file": ("in.jsonl", text)}, "data": {"purpose": "batch"}}
    file = said("OpenAIFile", "POST", "/v1/files", **upload)
    asked = {
        "input_file_id": file["id"],
        "endpoint": "/v1/completions",
        "completion_window": "24h",
        "metadata": {"k": "v"},
    }
    batch = said("Batch", "POST", "/v1/batches", json=asked)
    path = f"/v1/batches/{batch['id']}"
    wait_for(lambda: said("Batch", "GET", path)["status"] == "completed")
    said("ListBatchesResponse", "GET", "/v1/batches")
    said("ListFilesResponse", "GET", "/v1/files")
    done = said("Batch", "GET", path)
    said("OpenAIFile", "GET", f"/v1/files/{done['output_file_id']}")
    said("DeleteFileResponse", "DELETE", f"/v1/files/{file['id']}")
    bad = {"files": {"file": ("in.jsonl", "{}\n")}, "data": {"purpose": "batch"}}
    file = said("OpenAIFile", "POST", "/v1/files", **bad)
    batch = said("Batch", "POST", "/v1/batches", json=asked | {"input_file_id": file["id"]})
    path = f"/v1/batches/{batch['id']}"
    wait_for(lambda: said("Batch", "GET", path)["status"] == "failed")
    assert said("Batch", "GET", path)["errors"]["data"][0]["line"] == 1


@pytest.mark.parametrize(
    ("method", "path", "status", "options"),
    [
        ("POST", "/v1/chat/completions", 400, {"json": {"messages": []}}),
        ("POST", "/v1/chat/completions", 400, {"data": "{", "headers": JSON}),
        ("POST", "/v1/chat/completions", 415, {"data": "{"}),
        ("POST", "/v1/chat/completions", 404, {"json": CHATS["plain"] | {"model": "nobody"}}),
        ("POST", "/v1/completions", 400, {"json": PROMPT | {"n": 0}}),
        ("POST", "/v1/responses", 400, {"json": INPUT | {"tools": [{"type": "web_search"}]}}),
        ("POST", "/v1/embeddings", 400, {"json": {"input": "a"}}),
        ("GET", "/v1/responses/resp_nobody", 404, {}),
        ("GET", "/v1/conversations/conv_nobody", 404, {}),
        ("GET", "/v1/models/nobody", 404, {}),
        ("GET", "/v1/files/nobody", 404, {}),
        ("GET", "/v1/batches/nobody", 404, {}),
        ("DELETE", "/v1/chat/completions", 405, {}),
        ("GET", "/v1/nothing", 404, {}),
    ],
)
def test_an_error(said, method, path, status, options):
    said("ErrorResponse", method, path, status, **options)
