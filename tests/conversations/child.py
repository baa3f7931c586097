"""Another process on a store: `python -m tests.conversations.child ROLE URL STATE LEASE ID ARG`.

It prints what has happened, one fact a line, in one write each.
"""

import os
import resource
import signal
import sqlite3
import sys
import threading
import time
from pathlib import Path

from qwenapi.conversations import StorageUnavailable, StoreLimits, open_store


def tell(fact):
    os.write(1, f"{fact}\n".encode())


def turn(store, conversation_id, user, **rest):
    return store.begin_turn(
        "", conversation_id, user, owner="child", deadline=time.monotonic() + 30, **rest
    )


def hold(store, conversation_id, argument):
    """Begin a turn and never end it."""
    with turn(store, conversation_id, "held") as held:
        tell(held.conversation_id)
        signal.pause()


def wait(store, conversation_id, name):
    """Tell that this process is in the line, then commit its name."""
    told = []

    def pause(seconds):
        if not told:
            told.append(tell("waiting"))
        time.sleep(seconds)

    with turn(store, conversation_id, name, pause=pause) as waited:
        waited.commit("", "stop")
    tell("done")


def crowd(store, conversation_id, argument):
    """Commit several turns from threads, each answering how many turns it knew of."""
    name, number = argument.split("*")

    def work(user):
        with turn(store, conversation_id, user) as mine:
            mine.commit(str(len(mine.history)), "stop")

    threads = [
        threading.Thread(target=work, args=(f"{name}{index}",)) for index in range(int(number))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tell("done")


def append(store, conversation_id, argument):
    """Commit turns without end, telling of each once it is acknowledged."""
    for number in range(100_000):
        with turn(store, conversation_id, str(number)) as mine:
            mine.commit("x" * 50, "stop")
        tell(number)


def fill(store, conversation_id, argument):
    """Run into a full disk, then find it emptied."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))
    num_kept = 0
    try:
        while True:
            with turn(store, conversation_id, "x" * 100_000) as mine:
                mine.commit("", "stop")
            num_kept += 1
    except StorageUnavailable as error:
        tell(type(error.__cause__).__name__)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    with turn(store, conversation_id, "after") as mine:
        mine.commit("", "stop")
    tell(num_kept + 1)


def block(store, conversation_id, seconds):
    """Hold SQLite's write lock."""
    path = Path(sys.argv[3]) / "conversations.db"
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    tell("blocked")
    time.sleep(float(seconds))
    connection.execute("ROLLBACK")
    connection.close()


if __name__ == "__main__":
    role, url, state_dir, lease, conversation_id, argument = sys.argv[1:]
    limits = StoreLimits(lease_seconds=float(lease))
    globals()[role](open_store(url, Path(state_dir), limits=limits), conversation_id, argument)
