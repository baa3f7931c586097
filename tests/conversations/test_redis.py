import sys

import pytest

from qwenapi.conversations import (
    LeaseLost,
    PastTurn,
    StorageUnavailable,
    StoreLimits,
    open_store,
)
from qwenapi.conversations.values import Claim
from workers.errors import ConfigError


def test_a_missing_package_is_named_with_its_remedy(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(ConfigError, match=r"pip install qwenapi\[redis\]"):
        open_store("redis://localhost", tmp_path)


@pytest.mark.parametrize("url", ["postgres://user:secret@host", "redis", "/var/lib"])
def test_another_kind_of_url_is_refused_without_repeating_it(url, tmp_path):
    with pytest.raises(ConfigError) as caught:
        open_store(url, tmp_path)
    assert "secret" not in str(caught.value)


@pytest.fixture
def url(redis_url):
    return redis_url


def test_a_redis_that_cannot_be_reached_is_unavailable(url, tmp_path, say, caplog):
    store = open_store(f"unix://{tmp_path}/nothing.sock", tmp_path)
    store.start()
    assert "unavailable until the storage is" in caplog.text
    with pytest.raises(StorageUnavailable):
        say(store)
    store.close()


def test_a_commit_whose_answer_was_lost_may_be_sent_again(make_store):
    backend = make_store()._backend
    claim = Claim("", "again", "test")
    backend.create(claim)
    for _ in range(2):
        backend.commit(claim, PastTurn("question", "answer", "stop", 0.0))
    assert backend.find("", "again").num_turns == 1
    with pytest.raises(LeaseLost):
        backend.commit(Claim("", "again", "test"), PastTurn("other", "", "stop", 0.0))


def test_nothing_is_left_of_what_is_erased(url, make_store, say):
    import redis

    with redis.Redis.from_url(url) as client:
        client.flushall()
        store = make_store()
        conversation_id = say(store, user="canary", tenant="t")
        assert client.pttl(f"qwenapi:conversations:turns:{conversation_id}") > 0
        store.delete("t", conversation_id)
        store._backend.purge()
        assert client.keys() == [b"qwenapi:conversations:total:t"]
        assert client.get("qwenapi:conversations:total:t") == b"0"


def test_a_redis_without_a_log_is_warned_of(url, tmp_path, caplog):
    import redis

    with redis.Redis.from_url(url) as client:
        client.config_set("appendonly", "no")
        store = open_store(url, tmp_path, limits=StoreLimits())
        store.start()
        store.close()
        client.config_set("appendonly", "yes")
    assert "appendonly" in caplog.text
