"""Single answers on both storages: kept by their ids, in a tree, running and ended."""

import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import pytest

from qwenapi.conversations import (
    ConversationFull,
    ConversationNotFound,
    LeaseLost,
    PastTurn,
    StoredResponse,
    StoreFull,
)
from tests.conversations.conftest import turns_of

numbers = count()


def response(user="question", assistant="answer", previous="", body="{}", **fields):
    id_ = fields.get("id", f"resp_{next(numbers):032x}")
    return StoredResponse(id_, previous, PastTurn(user, assistant, "completed", time.time()), body)


def said(turns):
    return [(turn.user, turn.assistant) for turn in turns]


def test_an_answer_is_found_as_it_was_kept_also_by_another_process(make_store):
    kept = response("你好 🙂", "答", body='{"a": "值"}')
    make_store().responses.keep("", kept)
    assert make_store().responses.find("", kept.id) == kept


def test_an_answer_of_another_tenant_is_as_missing_as_none(store):
    kept = response()
    store.responses.keep("ours", kept)
    for tenant, id_ in (("theirs", kept.id), ("ours", "resp_0"), ("ours", "é" * 9), ("ours", "")):
        for ask in (store.responses.find, store.responses.history, store.responses.delete):
            with pytest.raises(ConversationNotFound):
                ask(tenant, id_)
    assert store.responses.find("ours", kept.id) == kept


def test_answers_that_follow_one_are_a_tree(store):
    root = response("1", "a")
    store.responses.keep("", root)
    left, right = response("2", "b", root.id), response("3", "c", root.id)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda one: store.responses.keep("", one), (left, right)))
    assert said(store.responses.history("", left.id)) == [("1", "a"), ("2", "b")]
    assert said(store.responses.history("", right.id)) == [("1", "a"), ("3", "c")]
    assert said(store.responses.history("", root.id)) == [("1", "a")]


def test_what_follows_a_deleted_answer_has_no_history(store):
    root = response()
    child = response(previous=root.id)
    for one in (root, child):
        store.responses.keep("", one)
    store.responses.delete("", root.id)
    with pytest.raises(ConversationNotFound):
        store.responses.history("", child.id)
    assert store.responses.find("", child.id) == child
    with pytest.raises(ConversationNotFound):
        store.responses.delete("", root.id)


def test_an_answer_that_is_followed_lives_as_long_as_what_follows_it(make_store):
    store = make_store(ttl_seconds=1.5)
    root, alone = response(), response()
    for one in (root, alone):
        store.responses.keep("", one)
    time.sleep(1)
    child = response(previous=root.id)
    store.responses.keep("", child)
    time.sleep(1)
    assert len(store.responses.history("", child.id)) == 2
    with pytest.raises(ConversationNotFound):
        store.responses.find("", alone.id)


def test_a_history_that_no_prompt_could_hold_is_refused(make_store):
    store = make_store(max_history_bytes=1000)
    root = response("x" * 600)
    child = response("x" * 600, previous=root.id)
    for one in (root, child):
        store.responses.keep("", one)
    with pytest.raises(ConversationFull):
        store.responses.history("", child.id)


def test_a_running_answer_runs_until_it_ends(store):
    begun = response(assistant="", body="queued")
    running = store.responses.begin("", begun, owner="test")
    assert store.responses.find("", begun.id).is_running and not running.is_lost
    running.update(response(assistant="", body="in_progress", id=begun.id))
    found = store.responses.find("", begun.id)
    assert found.is_running and found.body == "in_progress"
    ended = response(body="completed", id=begun.id)
    running.end(ended)
    assert store.responses.find("", begun.id).body == "completed"
    assert not store.responses.find("", begun.id).is_running
    assert not store.responses.cancel("", ended)


def test_a_cancelled_answer_stays_so(make_store):
    store, other = make_store(), make_store()
    begun = response(assistant="")
    running = store.responses.begin("", begun, owner="test")
    assert not other.responses.cancel("theirs", begun)
    assert other.responses.cancel("", response(body="cancelled", id=begun.id))
    with pytest.raises(LeaseLost):
        running.end(response(body="completed", id=begun.id))
    found = other.responses.find("", begun.id)
    assert found.body == "cancelled" and not found.is_running


def test_the_owner_hears_of_it_when_its_leases_are_renewed(make_store):
    store = make_store(lease_seconds=0.3)
    begun = response()
    running = store.responses.begin("", begun, owner="test")
    make_store(lease_seconds=0.3).responses.delete("", begun.id)
    deadline = time.monotonic() + 10
    while not running.is_lost:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_an_abandoned_answer_runs_no_longer(store):
    begun = response(body="queued")
    store.responses.begin("", begun, owner="test").abandon()
    found = store.responses.find("", begun.id)
    assert not found.is_running and found.body == "queued"


def test_what_a_tenant_has_no_room_for_drives_out_its_oldest(make_store, say):
    store = make_store(max_tenant_bytes=10_000)
    conversation_id = say(store, user="x" * 1000, tenant="t")
    first, second, third = (response("x" * 2500) for _ in range(3))
    for one in (first, second, third):
        store.responses.keep("t", one)
        time.sleep(0.005)  # Redis counts in milliseconds
    store.responses.keep("t", response("x" * 2000, previous=first.id))
    with pytest.raises(ConversationNotFound):
        store.responses.find("t", second.id)
    assert store.responses.find("t", first.id) and store.responses.find("t", third.id)
    store.responses.keep("other", response("x" * 9000))
    with pytest.raises(StoreFull):
        store.responses.keep("t", response("x" * 9500))
    assert store.responses.find("t", first.id), "nothing was erased in vain"
    say(store, conversation_id, user="x" * 7000, tenant="t")
    assert len(turns_of(store, conversation_id, "t")) == 2


def test_a_turn_is_kept_with_its_answer_or_not_at_all(make_store, begin):
    store = make_store(max_tenant_bytes=2000)
    kept, large = response(), response("x" * 3000)
    with begin(store, None, "[]") as turn:
        turn.commit("[]", "stop", kept)
    assert store.responses.find("", kept.id) == kept
    with begin(store, turn.conversation_id, "[]") as other, pytest.raises(StoreFull):
        other.commit("[]", "stop", large)
    assert len(turns_of(store, turn.conversation_id)) == 1
    with pytest.raises(ConversationNotFound):
        store.responses.find("", large.id)


def test_a_new_conversation_may_be_given_its_id(store, begin):
    with begin(store, None, "[]", new_id="conv_1") as turn:
        turn.commit("[]", "stop")
    assert store.find("", "conv_1").id == "conv_1" == turn.conversation_id


def test_a_response_is_no_conversation(store, begin):
    begun = response()
    with pytest.raises(ConversationNotFound):
        begin(store, begun.id)
    store.responses.begin("", begun, owner="test")
    for ask in (begin, lambda store, id_: store.find("", id_)):
        with pytest.raises(ConversationNotFound):
            ask(store, begun.id)


def test_expired_answers_are_erased(make_store):
    store = make_store(ttl_seconds=0.2, lease_seconds=0.3, max_tenant_bytes=2000)
    for _ in range(3):
        store.responses.keep("", response("x" * 1000))
        time.sleep(0.3)
    store.start()
    time.sleep(0.5)
    store.responses.keep("", response("x" * 1900))


def test_a_running_answer_needs_room_for_itself_but_once(make_store):
    store = make_store(max_tenant_bytes=1000)
    begun = response("x" * 600, "", body="")
    running = store.responses.begin("", begun, owner="test")
    running.update(response("x" * 600, "", body="", id=begun.id))
    running.end(response("x" * 600, "y" * 300, body="", id=begun.id))
    assert store.responses.find("", begun.id).turn.assistant == "y" * 300
