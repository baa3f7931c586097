"""Conversations of items: what is read of them, and what a response is asked with."""

import threading
import time
from itertools import islice
from types import SimpleNamespace

import orjson
import pytest

from qwenapi.api.responses import conversation
from qwenapi.conversations import StoreLimits
from qwenapi.conversations.sqlite import SqliteBackend
from qwenapi.conversations.store import ConversationStore
from qwenapi.conversations.values import TURNS_PER_PAGE
from qwenapi.errors import ContextLengthExceeded


@pytest.fixture
def store(tmp_path, monkeypatch):
    limits = StoreLimits(max_history_bytes=4000, max_items=80)
    store = ConversationStore(SqliteBackend(tmp_path, limits), limits=limits)
    profile = SimpleNamespace(settings=SimpleNamespace(limits_queue_timeout=10))
    monkeypatch.setattr(conversation, "conversations", lambda: store)
    monkeypatch.setattr(conversation, "caller", lambda: SimpleNamespace(tenant=""))
    monkeypatch.setattr(conversation, "current_profile", lambda: profile)
    monkeypatch.setattr(conversation, "g", SimpleNamespace(request_id="test"))
    monkeypatch.setattr(conversation, "request", SimpleNamespace(environ={}))
    yield store
    store.close()


def items(*texts):
    return [{"type": "message", "id": f"msg_{text[:9]}", "content": text} for text in texts]


def history(id_, **options):
    with conversation.begin(id_, items("new")) as turn:
        return conversation.history_of(turn, **options)


def test_a_history_above_the_bound_is_cut_only_for_those_who_ask_for_it(store):
    id_ = conversation.create(items("first"), {})
    assert history(id_, drops_oldest=False) == items("first")
    for text in ("a" * 3000, "b" * 3000):
        conversation.add(id_, items(text))
    conversation.label(id_, {"label": "new"})
    with pytest.raises(ContextLengthExceeded):
        history(id_, drops_oldest=False)
    assert history(id_, drops_oldest=True) == items("b" * 3000)
    with pytest.raises(ContextLengthExceeded):
        conversation.prompt_items(id_, drops_oldest=False)
    assert conversation.prompt_items(id_, drops_oldest=True) == items("b" * 3000)


def test_the_items_of_a_conversation_are_parsed_beside_the_hub(store, monkeypatch):
    id_ = conversation.create(items("first", "second"), {"a": "b"})
    threads, loads = set(), orjson.loads

    def parsed(text):
        threads.add(threading.get_ident())
        return loads(text)

    monkeypatch.setattr(conversation, "orjson", SimpleNamespace(loads=parsed, dumps=orjson.dumps))
    assert list(conversation.items_in(id_)) == items("first", "second")
    assert conversation.prompt_items(id_, drops_oldest=False) == items("first", "second")
    assert threads and threading.get_ident() not in threads


def test_what_is_told_of_a_conversation_is_read_without_its_items(store, monkeypatch):
    id_ = conversation.create(items("first"), {"a": "b"})
    conversation.add(id_, items("second"))
    monkeypatch.setattr(store._backend, "turns", None)
    texts, loads = [], orjson.loads
    fake = SimpleNamespace(loads=lambda text: texts.append(text) or loads(text), dumps=orjson.dumps)
    monkeypatch.setattr(conversation, "orjson", fake)
    body = conversation.body_of(id_)
    assert body["id"] == id_ and body["created_at"] <= time.time()
    assert body["metadata"] == {"a": "b"} and len(texts) == 1


def test_only_the_pages_that_are_asked_for_are_read(store, monkeypatch):
    id_ = conversation.create(items("first"), {})
    for number in range(2 * TURNS_PER_PAGE):
        conversation.add(id_, items(f"{number}", f"{number}b"))
    asked, turns = [], store._backend.turns

    def fetch(tenant, id_, numbers):
        asked.append(numbers)
        return turns(tenant, id_, numbers)

    monkeypatch.setattr(store._backend, "turns", fetch)
    newest = conversation.items_in(id_, newest_first=True)
    assert [item["content"] for item in islice(newest, 3)] == ["31b", "31", "30b"]
    assert asked == [range(33, 34), range(17, 33)]
    assert len([*newest]) == 65 - 3 and len(asked) == 3
    oldest = conversation.items_in(id_)
    assert [item["content"] for item in islice(oldest, 3)] == ["first", "0", "0b"]


def test_labels_are_told_anew_and_fill_nothing(store):
    id_ = conversation.create(items("first"), {"a": "b"})
    for number in range(50):
        conversation.label(id_, {"a": str(number)})
    assert conversation.body_of(id_)["metadata"] == {"a": "49"}
    conversation.add(id_, items("second"))
    assert list(conversation.items_in(id_)) == items("first", "second")
