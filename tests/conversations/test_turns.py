import threading
import time
import uuid
from functools import partial
from itertools import chain

import pytest

from qwenapi.conversations import (
    ConversationBusy,
    ConversationNotFound,
    LeaseLost,
    StoreFull,
)
from qwenapi.conversations.values import TURNS_PER_PAGE
from tests.conversations.conftest import turns_of
from tests.running_server import wait_for


def test_a_conversation_remembers_its_turns_in_order(store, begin, say):
    first = say(store, user="你好 🙂", assistant="nul \0 and\nlines")
    assert uuid.UUID(first).version == 4
    say(store, first, "second", "", tenant="")
    with begin(store, first) as turn:
        assert [(past.user, past.assistant) for past in turn.history] == [
            ("你好 🙂", "nul \0 and\nlines"),
            ("second", ""),
        ]
        assert turn.history[0].messages[1] == {
            "role": "assistant",
            "content": "nul \0 and\nlines",
        }
        assert turn.history[0].finish_reason == "stop"
        assert abs(turn.history[0].created_at - time.time()) < 60
    assert "你好" not in repr(turn.history)


def test_a_conversation_outlives_the_store_that_wrote_it(make_store, begin, say):
    store = make_store()
    conversation_id = say(store)
    store.close()
    with begin(make_store(), conversation_id) as turn:
        assert len(turn.history) == 1


def test_a_turn_rolled_back_leaves_no_trace(store, begin, say):
    conversation_id = say(store)
    before = turns_of(store, conversation_id)
    with pytest.raises(ZeroDivisionError), begin(store, conversation_id, "lost"):
        raise ZeroDivisionError
    assert turns_of(store, conversation_id) == before
    with begin(store, conversation_id, seconds=0) as turn:
        assert turn.history == before


def test_a_new_conversation_whose_first_turn_failed_does_not_exist(store, begin):
    with begin(store) as turn:
        pass
    with pytest.raises(ConversationNotFound):
        begin(store, turn.conversation_id)


def test_unknown_expired_and_foreign_ids_are_answered_alike(make_store, begin, say):
    forgetful, store = make_store(ttl_seconds=0.5), make_store()
    expired = say(forgetful, tenant="a")
    wait_for(lambda: is_unknown(lambda: forgetful.find("a", expired)), 10)
    foreign = say(store, tenant="b")
    running = begin(store, tenant="b")
    answers = set()
    ids = (str(uuid.uuid4()), "", "\ud800", "x" * 10**6, foreign, running.conversation_id)
    for asked, name in [(forgetful, expired), *((store, name) for name in ids)]:
        for call in (
            partial(asked.find, "a", name),
            partial(asked.delete, "a", name),
            partial(begin, asked, name, tenant="a"),
        ):
            with pytest.raises(ConversationNotFound) as caught:
                call()
            answers.add(str(caught.value))
    assert len(answers) == 1
    running.commit("still there", "stop")
    assert len(turns_of(store, foreign, "b")) == 1


def is_unknown(call):
    try:
        call()
    except ConversationNotFound:
        return True
    return False


def test_a_turn_waits_for_the_one_before_it_and_sees_it(store, begin):
    first = begin(store)
    seen = []

    def second():
        with begin(store, first.conversation_id, "second") as turn:
            seen.extend(turn.history)

    thread = threading.Thread(target=second)
    thread.start()
    first.commit("first answer", "stop")
    thread.join(10)
    assert [past.assistant for past in seen] == ["first answer"]


def test_who_waits_for_a_first_turn_that_fails_is_told_there_is_nothing(store, begin):
    first = begin(store)
    with pytest.raises(ConversationNotFound):
        begin(store, first.conversation_id, pause=lambda seconds: first.rollback())


def test_who_cannot_wait_longer_is_told_so_and_leaves_the_queue(store, begin, say):
    conversation_id = say(store)
    with begin(store, conversation_id):
        started = time.monotonic()
        with pytest.raises(ConversationBusy):
            begin(store, conversation_id, seconds=0.3)
        assert 0.3 <= time.monotonic() - started < 2
    begin(store, conversation_id, seconds=0).rollback()


def test_a_caller_who_goes_leaves_the_queue(store, begin, say):
    def go(seconds):
        raise EOFError

    conversation_id = say(store)
    with begin(store, conversation_id), pytest.raises(EOFError):
        begin(store, conversation_id, pause=go)
    begin(store, conversation_id, seconds=0).rollback()


def test_a_lease_is_renewed_while_the_turn_runs(make_store, begin):
    store, other = make_store(lease_seconds=0.8), make_store(lease_seconds=0.8)
    turn = begin(store)
    with pytest.raises(ConversationBusy):
        begin(other, turn.conversation_id, seconds=1.7)
    assert not turn.is_lost
    turn.commit("late", "stop")
    assert len(turns_of(other, turn.conversation_id)) == 1


def test_a_turn_whose_lease_was_lost_cannot_commit(make_store, begin, say):
    store, other = make_store(lease_seconds=0.5), make_store(lease_seconds=0.5)
    conversation_id = say(store)
    turn = begin(store, conversation_id, "slow")
    store._keeper.stop()  # as if the process stood still
    with begin(other, conversation_id, "quick") as quick:
        with pytest.raises(LeaseLost):
            turn.commit("too late", "stop")
        turn.rollback()  # takes nothing from the one that runs
        quick.commit("in time", "stop")
    store._keeper.tick()
    assert [past.user for past in turns_of(other, conversation_id)] == ["question", "quick"]


def test_a_turn_learns_that_it_is_lost(make_store, begin):
    store = make_store(lease_seconds=0.6)
    turn = begin(store)
    store.delete("", turn.conversation_id)
    wait_for(lambda: turn.is_lost, 10)
    turn.rollback()
    assert not turn.is_lost


def test_what_is_deleted_is_gone_and_a_running_turn_does_not_bring_it_back(store, begin, say):
    conversation_id = say(store)
    turn = begin(store, conversation_id)
    with pytest.raises(ConversationNotFound):
        begin(store, conversation_id, pause=lambda seconds: store.delete("", conversation_id))
    with pytest.raises(LeaseLost):
        turn.commit("ghost", "stop")
    turn.rollback()
    for call in (store.find, store.delete):
        with pytest.raises(ConversationNotFound):
            call("", conversation_id)


def test_a_conversation_is_read_by_pages_from_either_end(store, begin, say):
    conversation_id = say(store, user="one")
    for number in range(2 * TURNS_PER_PAGE + 3):
        say(store, conversation_id, f"more {number}")
    with begin(store, conversation_id, "not yet") as turn:
        conversation = store.find("", conversation_id)
        assert turns_of(store, conversation_id) == turn.history
    assert conversation.id == conversation_id and conversation.num_turns == len(turn.history)
    assert conversation.created_at <= conversation.used_at and conversation.labels == ""
    for newest_first in (False, True):
        pages = list(store.pages("", conversation, newest_first=newest_first))
        assert len(pages) == 3 and max(map(len, pages)) == TURNS_PER_PAGE
        turns = tuple(chain.from_iterable(pages))
        assert turns == (turn.history[::-1] if newest_first else turn.history)


def test_pages_that_follow_an_erasure_are_not_found(store, say):
    conversation_id = say(store)
    for _ in range(TURNS_PER_PAGE):
        say(store, conversation_id)
    pages = store.pages("", store.find("", conversation_id))
    assert len(next(pages)) == TURNS_PER_PAGE
    store.delete("", conversation_id)
    with pytest.raises(ConversationNotFound):
        next(pages)


def test_labels_stand_beside_the_turns_and_do_not_wait_for_one(make_store, begin):
    store = make_store(max_tenant_bytes=200)
    with begin(store, new_id="conv_1", user="x" * 50) as turn:
        with pytest.raises(ConversationNotFound):
            store.label("", "conv_1", "early")
        turn.commit("", "stop", labels="first")
    assert store.find("", "conv_1").labels == "first"
    with begin(store, "conv_1"):
        for number in range(20):
            store.label("", "conv_1", f"{'值' * 20}{number:02}")
    found = store.find("", "conv_1")
    assert found.labels == f"{'值' * 20}19" and found.num_turns == 1
    with pytest.raises(StoreFull):
        store.label("", "conv_1", "x" * 160)
    store.label("", "conv_1", "x" * 150)
    with pytest.raises(StoreFull):
        begin(store)
    store.delete("", "conv_1")
    with begin(store, user="x" * 190) as turn:
        turn.commit("", "stop")
    for tenant, name in (("other", turn.conversation_id), ("", "conv_1"), ("", "resp_1")):
        with pytest.raises(ConversationNotFound):
            store.label(tenant, name, "none")


def test_a_commit_is_ended_once(store, begin):
    turn = begin(store)
    turn.commit("answer", "stop")
    turn.rollback()
    with pytest.raises(AssertionError):
        turn.commit("again", "stop")
    assert len(turns_of(store, turn.conversation_id)) == 1
