import pytest

from qwenapi.conversations import (
    ConversationFull,
    ConversationNotFound,
    ItemTooLarge,
    StoreFull,
)
from tests.conversations.conftest import turns_of
from tests.running_server import wait_for


def test_an_item_too_large_is_refused_before_the_turn_and_at_its_end(make_store, begin):
    store = make_store(max_item_bytes=30)
    with pytest.raises(ItemTooLarge):
        begin(store, user="问" * 11)
    with begin(store, user="问" * 10) as turn:
        with pytest.raises(ItemTooLarge):
            turn.commit("x" * 31, "stop")
        turn.commit("x" * 30, "stop")


def test_a_conversation_takes_so_many_items_and_no_more(make_store, begin, say):
    store = make_store(max_items=4)
    conversation_id = say(store)
    say(store, conversation_id)
    with pytest.raises(ConversationFull):
        begin(store, conversation_id)
    assert len(turns_of(store, conversation_id)) == 2
    say(store)


def test_a_tenant_has_room_of_its_own_and_gets_it_back(make_store, begin, say):
    store = make_store(max_tenant_bytes=100)
    first = say(store, user="x" * 60, tenant="a")
    with begin(store, tenant="a") as turn, pytest.raises(StoreFull):
        turn.commit("x" * 60, "stop")
    say(store, first, user="x" * 20, assistant="x" * 14, tenant="a")
    for conversation_id in (None, first):
        with pytest.raises(StoreFull):
            begin(store, conversation_id, tenant="a")
    say(store, user="x" * 60, tenant="b")
    store.delete("a", first)
    say(store, user="x" * 60, tenant="a")


def test_a_turn_loads_the_newest_turns_that_the_limit_allows(make_store, begin, say):
    store = make_store(max_history_bytes=1000)
    conversation_id = say(store)
    for number in range(200):
        say(store, conversation_id, f"{number:05}", "12345")
    with begin(store, conversation_id) as turn:
        assert [past.user for past in turn.history] == [
            f"{number:05}" for number in range(100, 200)
        ]


def test_conversations_expire_and_are_purged_with_their_bytes(make_store, begin, say):
    store = make_store(ttl_seconds=0.7, max_tenant_bytes=100)
    conversations = [say(store, user="x" * 30) for _ in range(2)]
    num_left = [2]
    wait_for(lambda: num_left.append(num_left[-1] - store._backend.purge()) or not num_left[-1], 10)
    for conversation_id in conversations:
        with pytest.raises(ConversationNotFound):
            store.find("", conversation_id)
    say(store, user="x" * 90)


def test_a_turn_counts_as_use_and_is_not_purged_under_way(make_store, begin, say):
    store = make_store(ttl_seconds=1.5)
    conversation_id = say(store)
    used_at = store.find("", conversation_id).used_at
    for _ in range(2):
        say(store, conversation_id)
        assert store._backend.purge() == 0
    assert store.find("", conversation_id).used_at > used_at


def test_the_store_purges_by_itself(make_store, say):
    store = make_store(ttl_seconds=0.3, lease_seconds=0.6)
    purged = []
    purge = store._backend.purge
    store._backend.purge = lambda: purged.append(purge())
    say(store)
    wait_for(lambda: 1 in purged, 10)
