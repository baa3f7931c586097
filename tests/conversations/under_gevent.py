"""A gevent process on a store whose file another process has locked, run by test_gevent.

Prints the longest time its hub did nothing (ms), while the lock was held.
"""

from gevent import monkey

monkey.patch_all()

import subprocess  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from pathlib import Path  # noqa: E402

import gevent  # noqa: E402
from gevent.threadpool import ThreadPool  # noqa: E402

from qwenapi.conversations import ConversationNotFound, open_store  # noqa: E402


def main(state_dir):
    store = open_store("sqlite", state_dir, run=ThreadPool(4).apply)
    store.start()
    conversation_id = turn(store, None)
    blocker = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tests.conversations.child",
            "block",
            "sqlite",
            state_dir,
            "15",
            "",
            "1.5",
        ],
        stdout=subprocess.PIPE,
    )
    blocker.stdout.readline()
    started = time.monotonic()
    writers = [gevent.spawn(turn, store, name) for name in (conversation_id, None, None)]
    longest = 0.0
    while not all(writer.ready() for writer in writers):
        before = time.monotonic()
        gevent.sleep(0.001)
        longest = max(longest, time.monotonic() - before)
    assert time.monotonic() - started > 1, "nothing was blocked"
    for writer in writers:
        writer.get()
    blocker.wait()
    try:
        store.find("", "unknown")
    except ConversationNotFound:
        print(round(longest * 1000))
    store.close()


def turn(store, conversation_id):
    deadline = time.monotonic() + 10
    with store.begin_turn("", conversation_id, "q", owner="g", deadline=deadline) as mine:
        mine.commit("a", "stop")
    return mine.conversation_id


if __name__ == "__main__":
    main(Path(sys.argv[1]))
