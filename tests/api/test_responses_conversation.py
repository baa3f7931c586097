"""Conversations of items: what is read of them, and what a response is asked with."""

import threading
import time
from types import SimpleNamespace

import orjson
import pytest

from qwenapi.api.responses import conversation
from qwenapi.conversations import StoreLimits
from qwenapi.conversations.sqlite import SqliteBackend
from qwenapi.conversations.store import ConversationStore
from qwenapi.errors import ContextLengthExceeded


@pytest.fixture
def store(tmp_path, monkeypatch):
    limits = StoreLimits(max_history_bytes=4000)
    store = ConversationStore(SqliteBackend(tmp_path, limits), limits=limits)
    profile = SimpleNamespace(settings=SimpleNamespace(limits_queue_timeout=10))
    monkeypatch.setattr(conversation, "conversations", lambda: store)
    monkeypatch.setattr(conversation, "caller", lambda: SimpleNamespace(tenant=""))
    monkeypatch.setattr(conversation, "current_profile", lambda: profile)
    monkeypatch.setattr(conversation, "g", SimpleNamespace(request_id="test"))
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
    conversation.add(id_, [], {"label": "new"})
    with pytest.raises(ContextLengthExceeded):
        history(id_, drops_oldest=False)
    assert history(id_, drops_oldest=True) == items("b" * 3000)


def test_the_items_of_a_conversation_are_parsed_beside_the_hub(store, monkeypatch):
    id_ = conversation.create(items("first", "second"), {"a": "b"})
    threads, loads = set(), orjson.loads

    def parsed(text):
        threads.add(threading.get_ident())
        return loads(text)

    monkeypatch.setattr(conversation, "orjson", SimpleNamespace(loads=parsed, dumps=orjson.dumps))
    assert conversation.all_items(id_) == items("first", "second")
    assert threads and threading.get_ident() not in threads


def test_what_is_told_of_a_conversation_is_read_without_its_items(store, monkeypatch):
    id_ = conversation.create(items("first"), {"a": "b"})
    conversation.add(id_, items("second"))
    texts, loads = [], orjson.loads
    fake = SimpleNamespace(loads=lambda text: texts.append(text) or loads(text), dumps=orjson.dumps)
    monkeypatch.setattr(conversation, "orjson", fake)
    body = conversation.body_of(id_)
    assert body["id"] == id_ and body["created_at"] <= time.time()
    assert body["metadata"] == {"a": "b"} and len(texts) == 1
