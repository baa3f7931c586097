"""What is kept of responses, as history and as items that others refer to."""

import time
from types import SimpleNamespace

import orjson
import pytest

from qwenapi.api.responses import state
from qwenapi.conversations import PastTurn, StoredResponse, StoreLimits
from qwenapi.conversations.sqlite import SqliteBackend
from qwenapi.conversations.store import ConversationStore
from qwenapi.errors import BadRequest, NotFound

ID = "resp_" + "0" * 32


@pytest.fixture
def store(tmp_path, monkeypatch):
    limits = StoreLimits(max_history_bytes=4000)
    store = ConversationStore(SqliteBackend(tmp_path, limits), limits=limits)
    monkeypatch.setattr(state, "conversations", lambda: store)
    monkeypatch.setattr(state, "caller", lambda: SimpleNamespace(tenant=""))
    yield store
    store.close()


def kept(store, *texts, id_=ID, status="completed"):
    """Keep a response to messages of these texts and return their ids."""
    ids = [f"msg_{id_.removeprefix('resp_')}{number:05x}" for number in range(len(texts))]
    items = [
        {"type": "message", "id": item_id, "content": text}
        for item_id, text in zip(ids, texts, strict=True)
    ]
    turn = PastTurn(orjson.dumps(items).decode(), "[]", status, time.time())
    body = orjson.dumps({"id": id_, "status": status, "background": True}).decode()
    store.responses.keep("", StoredResponse(id_, "", turn, body))
    return ids


def references(*ids):
    return [{"type": "item_reference", "id": id_} for id_ in ids]


def test_a_response_is_read_once_for_all_references_to_it(store, monkeypatch):
    one, two = kept(store, "a", "b")
    asked, find = [], store.responses.find
    monkeypatch.setattr(store.responses, "find", lambda *of: asked.append(of) or find(*of))
    found = state.resolved(references(two, one, one))
    assert [item["content"] for item in found] == ["b", "a", "a"]
    assert asked == [("", ID)]


@pytest.mark.parametrize("texts, number", [(["x" * 1000], 5), (["x" * 2000, "y" * 3000], 1)])
def test_references_bring_in_no_more_than_a_history(store, texts, number):
    ids = kept(store, *texts)
    with pytest.raises(BadRequest, match="more than a prompt can be"):
        state.resolved(references(*ids[:1] * number))


def test_references_are_so_many_at_the_most(store):
    (id_,) = kept(store, "")
    with pytest.raises(BadRequest, match="more than 1000 items"):
        state.resolved(references(*[id_] * 1001))


@pytest.mark.parametrize("id_", ["msg_", "x", "msg_" + "0" * 32 + "00009"])
def test_what_is_referred_to_and_missing_is_named(store, id_):
    (known,) = kept(store, "a")
    with pytest.raises(NotFound, match=f"Item with id '{id_}' not found"):
        state.resolved(references(known, id_))


@pytest.mark.parametrize("status", state.RUNNING)
def test_a_response_that_nobody_runs_any_more_is_not_waited_for(store, status):
    kept(store, "a", status=status)
    assert state.body_of(state.find(ID))["status"] == "failed"
    with pytest.raises(BadRequest, match="failed"):
        state.history_of(ID)


def test_a_response_that_runs_has_no_next_one_yet(store):
    kept(store, "a", status="in_progress")
    running = store.responses.begin("", store.responses.find("", ID), owner="test")
    with pytest.raises(BadRequest, match="has not ended"):
        state.history_of(ID)
    running.abandon()


def test_logprobs_are_told_and_are_no_part_of_the_history(store):
    part = {"type": "output_text", "text": "a", "logprobs": [{"token": "a" * 3000}]}
    output = [{"type": "message", "id": "msg_1", "content": [part]}]
    fields = {"previous_response_id": None, "created_at": 1, "status": "completed"}
    body = {"id": ID, **fields, "output": output}
    store.responses.keep("", state.stored(body, []))
    assert state.body_of(state.find(ID)) == body
    (item,) = state.history_of(ID)
    assert item == output[0] | {"content": [part | {"logprobs": []}]}
