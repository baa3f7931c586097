"""Several processes on one store, and what is left of them after kill -9."""

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.conversations.conftest import turns_of
from tests.running_server import wait_for

ROOT = Path(__file__).resolve().parents[2]


class Child:
    """One `tests.conversations.child`, and the lines it printed."""

    def __init__(self, *arguments):
        self.lines = []
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.conversations.child", *map(str, arguments)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self):
        for line in self._process.stdout:
            self.lines.append(line.strip())

    def wait_for_lines(self, number):
        wait_for(lambda: len(self.lines) >= number or self._process.poll() is not None, 30)
        assert len(self.lines) >= number
        return self

    def end(self, kill=False):
        if kill:
            self._process.send_signal(signal.SIGKILL)
        code = self._process.wait(40)
        self._reader.join()
        self._process.stdout.close()
        return code


@pytest.fixture
def child(url, tmp_path):
    children = []

    def child(role, conversation_id="", argument="", *, lease=15.0):
        children.append(Child(role, url, tmp_path, lease, conversation_id, argument))
        return children[-1]

    yield child
    for started in children:
        started.end(kill=True)


def test_fifty_turns_at_once_make_one_serial_history(store, say, child):
    conversation_id = say(store)
    crowds = [child("crowd", conversation_id, f"{name}*25") for name in "ab"]
    assert [crowd.end() for crowd in crowds] == [0, 0]
    turns = turns_of(store, conversation_id)[1:]
    assert {turn.user for turn in turns} == {f"{name}{n}" for name in "ab" for n in range(25)}
    assert [turn.assistant for turn in turns] == [str(number) for number in range(1, 51)]


def test_processes_take_their_turns_in_the_order_they_came(store, begin, say, child):
    conversation_id = say(store)
    names = ["first", "second", "third"]
    with begin(store, conversation_id):
        waiters = [child("wait", conversation_id, name).wait_for_lines(1) for name in names]
    assert [waiter.end() for waiter in waiters] == [0, 0, 0]
    users = [turn.user for turn in turns_of(store, conversation_id)]
    assert users == ["question", *names]


def test_a_killed_turn_leaves_what_was_acknowledged(make_store, begin, say, child):
    store = make_store(lease_seconds=1.5)
    conversation_id = say(store)
    say(store, conversation_id, "second")
    child("hold", conversation_id, lease=1.5).wait_for_lines(1).end(kill=True)
    with begin(store, conversation_id, "next", seconds=10) as turn:
        assert [past.user for past in turn.history] == ["question", "second"]
        turn.commit("answer", "stop")
    assert len(turns_of(store, conversation_id)) == 3


def test_a_killed_waiter_blocks_the_queue_no_longer_than_a_lease(make_store, begin, say, child):
    store = make_store(lease_seconds=1.5)
    conversation_id = say(store)
    with begin(store, conversation_id):
        child("wait", conversation_id, lease=1.5).wait_for_lines(1).end(kill=True)
    begin(store, conversation_id, seconds=10).rollback()


def test_kill_during_hundreds_of_commits_loses_and_doubles_nothing(
    make_store, say, child, tmp_path
):
    store = make_store()
    conversations = [say(store) for _ in range(2)]
    writers = [child("append", conversation_id) for conversation_id in conversations]
    wait_for(lambda: sum(len(writer.lines) for writer in writers) >= 520, 30)
    for writer in writers:
        writer.end(kill=True)
    store = make_store()
    store.start()
    for conversation_id, writer in zip(conversations, writers, strict=True):
        stored = [turn.user for turn in turns_of(store, conversation_id)[1:]]
        assert stored[: len(writer.lines)] == writer.lines
        # The last commit may have been done and its acknowledgement not printed.
        assert stored[len(writer.lines) :] in ([], [str(len(writer.lines))])
    assert not list(tmp_path.glob("*.damaged-*"))
