"""The Responses interface through real gunicorn, on the stub engine, which repeats its prompt."""

import contextlib
import json
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import psutil
import pytest
import requests

from tests.e2e.test_http_on_stub import raw_request
from tests.e2e.test_keys import add, bearer
from tests.e2e.test_messages_on_stub import events, kinds
from tests.e2e.test_tools import CALL, OTHER, TOKENIZER, from_the_end
from tests.running_server import RunningServer, wait_for

STUB = ("--stub", "--profile", "openai")
SLOW = (*STUB, "--stub-step-seconds", "0.02")
PATH = "/v1/responses"
WORDS = "one two three four five six seven eight nine ten"
TOOLS = [{"type": "function", "name": name} for name in ("get_weather", "get_time")]
ENDINGS = ("response.completed", "response.incomplete", "response.failed")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("responses")
    server = RunningServer(folder / "run", *STUB, "--stub-step-seconds", "0.003")
    try:
        yield server.wait_until_ready()
        assert server.stop() == 0
    finally:
        server.close()


def ask(server, input=WORDS, **fields):
    return server.post(
        PATH, {"model": "qwen-demo", "input": input, "max_output_tokens": 12} | fields
    )


def said(server, input=WORDS, **fields):
    """Return a response that was answered."""
    answer = ask(server, input, **fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


def kept(server, response_id, **options):
    return requests.get(f"{server.url}{PATH}/{response_id}", timeout=60, **options)


def text_of(response):
    return "".join(
        part["text"]
        for item in response["output"]
        if item["type"] == "message"
        for part in item["content"]
    )


def input_of(server, response_id, **query):
    answer = requests.get(f"{server.url}{PATH}/{response_id}/input_items", query, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def error_of(answer, status):
    assert answer.status_code == status, answer.text
    return answer.json()["error"]


def test_a_whole_response(server):
    response = said(server, instructions="Be brief.", metadata={"a": "值"}, user="me")
    assert (response["object"], response["model"]) == ("response", "qwen-demo")
    assert (response["status"], response["incomplete_details"]) == (
        "incomplete",
        {"reason": "max_output_tokens"},
    )
    (message,) = response["output"]
    assert (message["type"], message["role"], message["status"]) == (
        *("message", "assistant"),
        "incomplete",
    )
    assert text_of(response)
    usage = response["usage"]
    assert usage["output_tokens"] == 12
    assert usage["total_tokens"] == usage["input_tokens"] + 12
    assert response["instructions"] == "Be brief." and response["metadata"] == {"a": "值"}
    assert (response["user"], response["max_output_tokens"], response["store"]) == ("me", 12, True)


def test_the_events_of_a_stream_are_openais_in_their_order(server):
    answer = ask(server, stream=True)
    payloads = events(answer.content)
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    assert kinds(payloads) == [
        *("response.created", "response.in_progress", "response.output_item.added"),
        *("response.content_part.added", "response.output_text.delta"),
        *("response.output_text.done", "response.content_part.done"),
        *("response.output_item.done", "response.incomplete"),
    ]
    assert [payload["sequence_number"] for payload in payloads] == [*range(len(payloads))]
    begun, ended = payloads[0]["response"], payloads[-1]["response"]
    assert (begun["status"], begun["output"], begun["usage"]) == ("in_progress", [], None)
    assert begun["id"] == ended["id"] and ended["usage"]["output_tokens"] == 12
    deltas = [p["delta"] for p in payloads if p["type"] == "response.output_text.delta"]
    assert "".join(deltas) == text_of(ended) and len(deltas) > 2
    assert kept(server, ended["id"]).json() == ended


def comparable(response):
    """Return a response without what differs between two answers of the same tokens."""
    response = json.loads(json.dumps(response))
    for item in response["output"]:
        item["id"] = item["id"][: item["id"].index("_")] + item["id"][-5:]
        item.pop("call_id", None)
    for name in ("id", "created_at", "completed_at"):
        response.pop(name)
    response["usage"].pop("input_tokens_details")
    return response


@pytest.mark.parametrize(
    "text",
    [
        CALL,
        f"Let me see.\n{CALL}",
        f"{CALL}\n{OTHER}",
        f"{OTHER}\n{CALL}\nthat is all",
        f"<think>\nI may {CALL} it\n</think>\n\nNo.",
        f"<think>\nI call it.\n</think>\n\n{CALL}",
        f"<think>\nI call it.\n{CALL}",
        CALL.replace("}}", ""),
        CALL.replace("Paris", '巴黎 \\"🌤\\" </tool_call'),
        "你好 🙂🙃 <tool> 1 < 2",
    ],
)
def test_a_stream_of_any_output_joins_to_the_whole_response(server, text):
    fields = {
        "tools": TOOLS,
        "seed": from_the_end(text),
        "max_output_tokens": len(TOKENIZER.encode(text).ids),
        "include": ["message.output_text.logprobs", "reasoning.encrypted_content"],
    }
    whole = said(server, f"Say: {text}", **fields)
    payloads = events(ask(server, f"Say: {text}", stream=True, **fields).content)
    assert comparable(payloads[-1]["response"]) == comparable(whole)
    done = [p["item"] for p in payloads if p["type"] == "response.output_item.done"]
    assert done == payloads[-1]["response"]["output"]
    for item in done:
        mine = [p for p in payloads if p.get("item_id") == item["id"]]
        deltas = "".join(p["delta"] for p in mine if p["type"].endswith(".delta"))
        calls = item["type"] == "function_call"
        assert deltas == (item["arguments"] if calls else item["content"][0]["text"])
        if item["type"] == "message":
            tokens = item["content"][0]["logprobs"]
            streamed = [entry for p in mine if "delta" in p for entry in p["logprobs"]]
            assert tokens == streamed != []
    asked = {"seed": fields["seed"], "max_tokens": fields["max_output_tokens"]}
    tools = [{"type": "function", "function": {"name": tool["name"]}} for tool in TOOLS]
    chat = server.chat(f"Say: {text}", tools=tools, **asked).json()["choices"][0]["message"]
    assert text_of(whole) == (chat["content"] or "")
    calls = [item for item in done if item["type"] == "function_call"]
    assert [{key: call[key] for key in ("name", "arguments")} for call in calls] == [
        call["function"] for call in chat.get("tool_calls", ())
    ]


def test_what_is_kept_is_read_deleted_and_then_missing(server):
    response = said(server)
    assert kept(server, response["id"]).json() == response
    address = f"{server.url}{PATH}/{response['id']}"
    assert requests.delete(address, timeout=60).json() == {
        "id": response["id"],
        "object": "response",
        "deleted": True,
    }
    for method in ("GET", "DELETE"):
        error = error_of(requests.request(method, address, timeout=60), 404)
        assert error["message"] == f"Response with id '{response['id']}' not found."
    for method, more in (("GET", "/input_items"), ("POST", "/cancel")):
        error_of(requests.request(method, address + more, timeout=60), 404)


def test_what_is_not_to_be_kept_leaves_nothing(server):
    for stream in (False, True):
        answer = ask(server, store=False, stream=stream)
        response = events(answer.content)[-1]["response"] if stream else answer.json()
        assert response["store"] is False
        error_of(kept(server, response["id"]), 404)


def test_a_chain_of_responses_is_one_conversation(server):
    first = said(server, "alpha beta", instructions="Only now.")
    second = said(server, "gamma", previous_response_id=first["id"])
    assert second["previous_response_id"] == first["id"]
    spelled_out = [
        {"role": "user", "content": "alpha beta"},
        *first["output"],
        {"role": "user", "content": "gamma"},
    ]
    assert second["usage"]["input_tokens"] == said(server, spelled_out)["usage"]["input_tokens"]
    assert second["usage"]["input_tokens"] > said(server, "gamma")["usage"]["input_tokens"]
    (item,) = input_of(server, second["id"])["data"]
    assert item["content"] == [{"type": "input_text", "text": "gamma"}]


def test_a_call_and_its_output_go_on_in_the_next_response(server):
    text = f"<think>\nI call it.\n</think>\n\n{CALL}"
    asked = {"tools": TOOLS, "seed": from_the_end(text)}
    called = said(
        server, f"Say: {text}", max_output_tokens=len(TOKENIZER.encode(text).ids), **asked
    )
    thought, call = called["output"]
    assert thought["type"] == "reasoning" and json.loads(call["arguments"]) == {"city": "Paris"}
    error = error_of(ask(server, [], previous_response_id=called["id"]), 400)
    assert error["message"] == f"No tool output found for function call {call['call_id']}."
    output = {"type": "function_call_output", "call_id": call["call_id"], "output": "sunny"}
    more = said(server, [output], previous_response_id=called["id"], tools=TOOLS)
    assert more["usage"]["input_tokens"] > called["usage"]["input_tokens"]


def test_a_previous_response_that_is_missing_is_told_in_openais_words(server):
    for id_ in ("resp_nobody", "resp_" + "0" * 32, "conv_1", "é", "x" * 400):
        error = error_of(ask(server, previous_response_id=id_), 404)
        assert error["code"] == "previous_response_not_found"
        assert error["param"] == "previous_response_id"
        assert error["message"] == f"Previous response with id '{id_[:64]}' not found."
    first = said(server)
    second = said(server, previous_response_id=first["id"])
    requests.delete(f"{server.url}{PATH}/{first['id']}", timeout=60)
    error_of(ask(server, previous_response_id=second["id"]), 404)


def test_items_are_referred_to_by_their_ids(server):
    first = said(server, "alpha beta")
    items = [input_of(server, first["id"])["data"][0], *first["output"]]
    references = [{"type": "item_reference", "id": item["id"]} for item in items]
    asked = [*references, {"role": "user", "content": "gamma"}]
    second = said(server, asked)
    chained = said(server, "gamma", previous_response_id=first["id"])
    assert second["usage"]["input_tokens"] == chained["usage"]["input_tokens"]
    listed = input_of(server, second["id"], order="asc")["data"]
    assert [item["id"] for item in listed[:2]] == [item["id"] for item in items]
    for id_ in ("msg_nobody", items[0]["id"][:-1] + "9", ""):
        error = error_of(ask(server, [{"id": id_}]), 404)
        assert error["param"] == "input" and "not found" in error["message"]


def test_items_of_the_input_are_listed_by_pages(server):
    asked = [{"role": "user", "content": str(number)} for number in range(5)]
    response = said(server, asked)
    everything = input_of(server, response["id"], order="asc")
    texts = [item["content"][0]["text"] for item in everything["data"]]
    assert texts == [str(number) for number in range(5)] and not everything["has_more"]
    page = input_of(server, response["id"], limit=2)
    assert [item["content"][0]["text"] for item in page["data"]] == ["4", "3"]
    rest = input_of(server, response["id"], after=page["last_id"])
    assert [item["content"][0]["text"] for item in rest["data"]] == ["2", "1", "0"]
    address = f"{server.url}{PATH}/{response['id']}/input_items"
    assert error_of(requests.get(address, {"limit": "0"}, timeout=60), 400)["param"] == "limit"


def test_tokens_are_counted_as_a_response_is_charged(server):
    first = said(server)
    fields = {"previous_response_id": first["id"], "instructions": "Be brief.", "tools": TOOLS}
    body = {"model": "qwen-demo", "input": WORDS} | fields
    counted = server.post(f"{PATH}/input_tokens", body)
    charged = said(server, **fields)["usage"]["input_tokens"]
    assert counted.json() == {"object": "response.input_tokens", "input_tokens": charged}


def test_what_does_not_fit_is_refused_or_cut_at_its_oldest_turns(start_server):
    server = start_server(*STUB, "--max-model-len", "160")
    chain = said(server, "the first turn")
    for number in range(8):
        chain = said(server, f"turn {number}", previous_response_id=chain["id"], truncation="auto")
    assert chain["usage"]["input_tokens"] <= 148
    error = error_of(ask(server, previous_response_id=chain["id"]), 400)
    assert error["code"] == "context_length_exceeded"
    error = error_of(ask(server, WORDS * 40, truncation="auto"), 400)
    assert error["code"] == "context_length_exceeded"
    answer = ask(server, max_output_tokens=4000)
    assert answer.headers["X-Clamped"].startswith("max_output_tokens=")


def test_two_who_go_on_from_one_response_both_do(server):
    first = said(server)
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(lambda n: said(server, f"{n}", previous_response_id=first["id"]), range(8))
        )
    for number, answer in enumerate(answers):
        (item,) = input_of(server, answer["id"])["data"]
        assert item["content"][0]["text"] == str(number)
        said(server, previous_response_id=answer["id"])


def test_another_tenants_response_is_missing(tmp_path, start_server):
    path = tmp_path / "keys.json"
    ours, theirs = add(path, "ours"), add(path, "theirs")
    server = start_server(*STUB, "--auth-keys", str(path))
    body = {"input": WORDS, "max_output_tokens": 4}

    def post(key, path=PATH, **fields):
        return requests.post(server.url + path, json=body | fields, headers=bearer(key), timeout=60)

    response = post(ours).json()
    item = response["output"][0]["id"]
    assert kept(server, response["id"], headers=bearer(ours)).json() == response
    error_of(kept(server, response["id"], headers=bearer(theirs)), 404)
    error_of(requests.delete(f"{server.url}{PATH}/{response['id']}", headers=bearer(theirs)), 404)
    error = error_of(post(theirs, previous_response_id=response["id"]), 404)
    assert error["code"] == "previous_response_not_found"
    error_of(post(theirs, input=[{"id": item}]), 404)
    running = post(ours, background=True, max_output_tokens=400).json()
    error_of(post(theirs, path=f"{PATH}/{running['id']}/cancel"), 404)
    begun = post(ours, path="/v1/conversations", items=[]).json()
    error_of(post(theirs, conversation=begun["id"]), 404)
    error_of(kept(server, response["id"]), 401)


def conversation(server, **fields):
    answer = server.post("/v1/conversations", fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


def items_of(server, conversation_id):
    """Return the roles and texts of a conversation's messages, oldest first."""
    address = f"{server.url}/v1/conversations/{conversation_id}/items"
    answer = requests.get(address, {"order": "asc", "limit": 100}, timeout=60)
    assert answer.status_code == 200, answer.text
    return [(item["role"], item["content"][0]["text"]) for item in answer.json()["data"]]


def test_a_conversation_has_what_was_asked_and_answered(server):
    told = {"role": "developer", "content": "Be brief."}
    begun = conversation(server, items=[told], metadata={"topic": "数"})
    assert begun["object"] == "conversation" and begun["metadata"] == {"topic": "数"}
    asked = {"conversation": {"id": begun["id"]}}
    first = said(server, "alpha", conversation=begun["id"])
    assert first["conversation"] == {"id": begun["id"]}
    payloads = events(ask(server, "beta", stream=True, store=False, **asked).content)
    second = payloads[-1]["response"]
    assert items_of(server, begun["id"]) == [
        ("developer", "Be brief."),
        ("user", "alpha"),
        ("assistant", text_of(first)),
        ("user", "beta"),
        ("assistant", text_of(second)),
    ]
    assert kept(server, first["id"]).json() == first
    error_of(kept(server, second["id"]), 404)
    body = {"input": "gamma"} | asked
    counted = server.post(f"{PATH}/input_tokens", body).json()["input_tokens"]
    assert counted == said(server, "gamma", **asked)["usage"]["input_tokens"]
    assert counted > second["usage"]["input_tokens"]


def test_conversations_are_labelled_added_to_and_erased(server):
    begun = conversation(server)
    address = f"/v1/conversations/{begun['id']}"
    assert begun["metadata"] == {}
    with under_way(server, conversation=begun["id"], max_output_tokens=4000):  # not waited for
        labelled = server.post(address, {"metadata": {"a": "b"}}).json()
    assert labelled == begun | {"metadata": {"a": "b"}} == server.get(address).json()
    added = server.post(f"{address}/items", {"items": [{"role": "user", "content": "x"}]}).json()
    (item,) = added["data"]
    assert server.get(f"{address}/items/{item['id']}").json() == item
    assert server.get(address).json() == labelled
    error_of(server.get(f"{address}/items/nobody"), 404)
    erased = requests.delete(server.url + address, timeout=60).json()
    assert erased == {"id": begun["id"], "object": "conversation.deleted", "deleted": True}
    for answer in (server.get(address), ask(server, conversation=begun["id"])):
        error = error_of(answer, 404)
        assert error["message"] == f"Conversation with id '{begun['id']}' not found."
    for id_ in ("conv_nobody", "resp_1", "é", ""):
        error_of(ask(server, conversation=id_), 404)


def test_turns_of_one_conversation_follow_each_other(server):
    begun = conversation(server)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: said(server, str(n), conversation=begun["id"]), range(8)))
    told = {str(number): text_of(answer) for number, answer in enumerate(answers)}
    listed = items_of(server, begun["id"])
    turns = list(zip(listed[::2], listed[1::2], strict=True))
    assert sorted((user, answer) for (_, user), (_, answer) in turns) == sorted(told.items())
    tokens = [answers[int(user)]["usage"]["input_tokens"] for (_, user), _ in turns]
    assert tokens == sorted(set(tokens)), "each saw those before it"


def test_a_turn_whose_caller_leaves_is_no_turn(server):
    begun = conversation(server)
    body = {"input": WORDS, "max_output_tokens": 4000, "stream": True, "conversation": begun["id"]}
    with raw_request(server, body, path=PATH):
        wait_for(lambda: server.row()["running"] == 1)
    server.wait_until_idle(10)
    said(server, "after", conversation=begun["id"])
    assert [text for role, text in items_of(server, begun["id"]) if role == "user"] == ["after"]
    error_of(ask(server, conversation=begun["id"], input=[{"id": "msg_nobody"}]), 404)
    assert said(server, [], conversation=begun["id"])


def test_a_caller_who_leaves_waits_for_no_turn(start_server):
    server = start_server(*SLOW)
    begun = conversation(server)
    waiting = {"input": "never", "conversation": begun["id"]}

    def num_waiting():
        path = server.run_dir / "state/conversations.db"
        with contextlib.closing(sqlite3.connect(path)) as database:
            return database.execute("SELECT count(*) FROM tickets").fetchone()[0]

    with under_way(server, conversation=begun["id"], max_output_tokens=4000):
        for path, body in (
            (PATH, waiting),
            (f"/v1/conversations/{begun['id']}/items", {"items": "never"}),
        ):
            with raw_request(server, body, path=path):
                wait_for(lambda: num_waiting() == 1)
            wait_for(lambda: num_waiting() == 0, 5)
    server.wait_until_idle(10)
    assert items_of(server, begun["id"]) == []


def stop_hard(server):
    processes = [*server.tree(), psutil.Process(server.process.pid)]
    for process in processes:
        process.kill()
    psutil.wait_procs(processes, timeout=10)


@contextlib.contextmanager
def under_way(server, **fields):
    """Begin a response that will not end by itself; give its id and stream once text has come."""
    body = {"input": WORDS, "stream": True} | fields
    with requests.post(server.url + PATH, json=body, stream=True, timeout=60) as answer:
        pieces = answer.iter_content(chunk_size=None)
        begun = next(pieces)
        while b"output_text.delta" not in begun:
            begun += next(pieces)
        data = begun.decode().split("\n\n")[0].partition("data: ")[2]
        yield json.loads(data)["response"]["id"], pieces


def test_a_killed_server_knows_every_ended_response_and_none_by_half(tmp_path, start_server):
    state = ("--state-dir", str(tmp_path / "kept"))
    server = start_server(*SLOW, *state)
    first = said(server)
    begun = conversation(server)
    turn = said(server, "told", conversation=begun["id"])
    running = said(server, background=True, max_output_tokens=2000)
    never = under_way(server, conversation=begun["id"])
    with under_way(server, previous_response_id=first["id"]) as (id_, _), never:
        wait_for(lambda: kept(server, running["id"]).json()["status"] == "in_progress")
        stop_hard(server)
    server = start_server(*SLOW, *state)
    assert kept(server, first["id"]).json() == first
    error_of(kept(server, id_), 404)
    lost = kept(server, running["id"]).json()
    assert (lost["status"], lost["output"]) == ("failed", [])
    assert lost["error"]["code"] == "server_error" and "has ended" in lost["error"]["message"]
    second = said(server, previous_response_id=first["id"])
    assert second["usage"]["input_tokens"] > first["usage"]["input_tokens"]
    assert items_of(server, begun["id"]) == [("user", "told"), ("assistant", text_of(turn))]
    assert said(server, conversation=begun["id"])


def test_openais_client_goes_on_from_a_response_after_a_restart(tmp_path, start_server):
    ids = []
    for number in range(2):
        server = start_server(*STUB, "--state-dir", str(tmp_path / "kept"))
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any") as client:
            previous = {"previous_response_id": ids[-1]} if ids else {}
            response = client.responses.create(input=f"turn {number}", **previous)
            ids.append(response.id)
            assert client.responses.retrieve(ids[0]).output_text
        assert server.stop() == 0
    assert response.previous_response_id == ids[0]


def test_a_killed_http_worker_leaves_its_background_responses_failed(start_server):
    server = start_server(*SLOW)
    running = said(server, background=True, max_output_tokens=2000)
    assert running["status"] == "queued" and running["background"]
    wait_for(lambda: kept(server, running["id"]).json()["status"] == "in_progress")
    (worker,) = server.http_workers()
    worker.kill()
    wait_for(lambda: {found.pid for found in server.http_workers()} - {worker.pid})
    assert kept(server, running["id"]).json()["status"] == "failed"
    error_of(ask(server, previous_response_id=running["id"]), 400)
    server.wait_until_idle()


def test_a_response_in_the_background_runs_on_without_its_caller(server):
    begun = said(server, background=True, max_output_tokens=60)
    assert (begun["status"], begun["output"], begun["usage"]) == ("queued", [], None)

    def ended():
        found = kept(server, begun["id"]).json()
        assert found["status"] in ("queued", "in_progress", "incomplete")
        return found["status"] == "incomplete" and found

    response = wait_for(ended)
    assert response["usage"]["output_tokens"] == 60 and text_of(response)
    cancelled = requests.post(f"{server.url}{PATH}/{begun['id']}/cancel", timeout=60)
    assert cancelled.json() == response
    assert said(server, previous_response_id=begun["id"])
    server.wait_until_idle()


def test_a_cancelled_response_frees_the_engine(start_server):
    server = start_server(*SLOW, "--api-server-count", "2")
    begun = said(server, background=True, max_output_tokens=4000)
    wait_for(lambda: kept(server, begun["id"]).json()["status"] == "in_progress")
    error_of(ask(server, previous_response_id=begun["id"]), 400)
    started = time.monotonic()
    address = f"{server.url}{PATH}/{begun['id']}"
    assert requests.post(f"{address}/cancel", timeout=60).json()["status"] == "cancelled"
    assert kept(server, begun["id"]).json()["status"] == "cancelled"
    server.wait_until_idle(12)  # another process hears of it when it renews its leases
    assert time.monotonic() - started < 12
    other = said(server, background=True, max_output_tokens=4000)
    assert requests.delete(f"{server.url}{PATH}/{other['id']}", timeout=60).status_code == 200
    server.wait_until_idle(12)
    error = error_of(requests.post(f"{server.url}{PATH}/{said(server)['id']}/cancel"), 400)
    assert error["message"] == "Cannot cancel a synchronous response."


def test_a_server_that_stops_lets_a_background_response_end(tmp_path, start_server):
    state = ("--state-dir", str(tmp_path / "kept"))
    server = start_server(*SLOW, *state)
    begun = said(server, background=True, max_output_tokens=100)
    assert server.stop() == 0
    server = start_server(*SLOW, *state)
    response = kept(server, begun["id"]).json()
    assert (response["status"], response["usage"]["output_tokens"]) == ("incomplete", 100)


def test_a_background_response_that_cannot_end_in_time_says_so(tmp_path, start_server):
    state = ("--state-dir", str(tmp_path / "kept"))
    server = start_server(*SLOW, *state, "--drain-timeout", "3")
    begun = said(server, background=True, max_output_tokens=4000)
    assert server.stop() == 0
    server = start_server(*SLOW, *state)
    response = kept(server, begun["id"]).json()
    assert response["status"] == "failed" and response["error"]["message"]


def test_a_stream_that_cannot_end_says_so_in_its_last_events(start_server):
    server = start_server(*SLOW, "--drain-timeout", "3")
    with ThreadPoolExecutor(1) as pool:
        stream = pool.submit(ask, server, stream=True, max_output_tokens=1000)
        wait_for(lambda: server.row()["generated_tokens"] > 5)
        server.process.terminate()
        payloads = events(stream.result().content)
    error, failed = payloads[-2:]
    assert (error["type"], failed["type"]) == ("error", "response.failed")
    assert error["code"] == "server_shutdown"
    assert failed["response"]["error"] == {"code": "server_error", "message": error["message"]}
    assert [p["sequence_number"] for p in payloads] == [*range(len(payloads))]
    assert server.process.wait(20) == 0


@pytest.mark.parametrize("stream", [True, False])
def test_a_caller_who_leaves_frees_the_engine(server, stream):
    body = {"input": WORDS, "max_output_tokens": 4000, "stream": stream}
    with raw_request(server, body, path=PATH):
        wait_for(lambda: server.row()["running"] == 1)
    server.wait_until_idle(10)


def test_a_stream_is_not_gone_on_with(server):
    response = said(server)
    error = error_of(kept(server, response["id"], params={"stream": "true"}), 400)
    assert error["param"] == "stream"
    assert kept(server, response["id"], params={"stream": "false"}).status_code == 200


def test_where_nothing_can_be_kept_an_answer_is_none(tmp_path, start_server):
    state_dir = tmp_path / "state"
    state_dir.write_text("a file, no folder")
    server = start_server(*STUB, "--state-dir", str(state_dir))
    error_of(ask(server), 503)
    payloads = events(ask(server, stream=True).content)
    assert [p["type"] for p in payloads[-2:]] == ["error", "response.failed"]
    error_of(ask(server, background=True), 503)
    assert said(server, store=False)["status"] in ("completed", "incomplete")
    server.wait_until_idle()


def test_an_unknown_model_is_told_with_those_that_are(server):
    error = error_of(ask(server, model="nobody"), 404)
    assert error["code"] == "model_not_found" and "Served: 'qwen-demo'." in error["message"]


def test_a_profile_that_cuts_what_is_above_its_ranges_cuts_it_here_too(start_server):
    server = start_server("--stub", "--profile", "news", "--stub-step-seconds", "0")
    answer = ask(server, model="qwen-news-classifier", max_output_tokens=4000, temperature=1.5)
    assert answer.status_code == 200, answer.text
    assert answer.headers["X-Clamped"] == "temperature=1.0, max_output_tokens=512"
    assert answer.json()["temperature"] == 1.0
    assert "error" in ask(server, model="qwen-news-classifier", tools=5).json()


def test_a_silent_stream_says_again_that_it_goes_on(start_server):
    server = start_server("--stub", "--stub-step-seconds", "17", "--step-timeout", "60")
    payloads = events(ask(server, max_output_tokens=2, stream=True).content)
    silent = [payload["type"] for payload in payloads].count("response.in_progress")
    assert silent > 1, "no beat in 17 seconds of silence"
    assert [p["sequence_number"] for p in payloads] == [*range(len(payloads))]
