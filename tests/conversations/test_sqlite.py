"""What SQLite's file goes through: damage, full disks, locks, other versions."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qwenapi.conversations import (
    ConversationBusy,
    ConversationNotFound,
    StorageUnavailable,
    StoreLimits,
    open_store,
)
from qwenapi.conversations.database import Database
from qwenapi.conversations.migrations import MIGRATIONS, create_labels, migrate
from qwenapi.conversations.sqlite import SqliteBackend
from qwenapi.conversations.store import ConversationStore
from tests.conversations.conftest import turns_of

NEVER = 10.0**10
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def url():
    return "sqlite"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "conversations.db"


def child(role, folder, conversation_id, argument="", lease="15"):
    return subprocess.Popen(
        [sys.executable, "-m", "tests.conversations.child", role, "sqlite", folder, lease]
        + [conversation_id, argument],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_only_the_owner_of_the_service_may_read_the_file(store, say, tmp_path):
    state_dir = tmp_path / "new" / "state"
    store = open_store("sqlite", state_dir)
    say(store)
    assert state_dir.stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in state_dir.iterdir()} == {0o600}
    # the file, its log, its index, the lock, the living processes
    assert len(list(state_dir.iterdir())) == 5
    store.close()


def told(process, number=1):
    """Wait for so many lines of a child, then kill it."""
    for _ in range(number):
        assert process.stdout.readline()
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.mark.parametrize("role", ["hold", "wait"])
@pytest.mark.parametrize("num_dead", [1, 3])
def test_a_turn_of_a_killed_process_holds_up_nobody(store, begin, say, tmp_path, role, num_dead):
    """Its lease, or its place in the queue, would live for 15 s more."""
    conversation_id = say(store)
    if role == "hold":
        told(child("hold", tmp_path, conversation_id))
    else:
        with begin(store, conversation_id):
            for name in range(num_dead):
                told(child("wait", tmp_path, conversation_id, str(name)))
    started = time.monotonic()
    with begin(store, conversation_id, seconds=10) as turn:
        turn.commit("answer", "stop")
    assert time.monotonic() - started < 5
    assert len(turns_of(store, conversation_id)) == 2


def test_a_conversation_whose_first_turn_was_killed_does_not_exist(store, begin, tmp_path):
    process = child("hold", tmp_path, "")
    conversation_id = process.stdout.readline().strip()
    process.kill()
    process.wait()
    process.stdout.close()
    with pytest.raises(ConversationNotFound):
        begin(store, conversation_id, seconds=1)


def test_a_turn_of_a_living_process_is_waited_for_and_its_own_time_is_up_when_it_stops(
    make_store, begin, say, tmp_path
):
    store = make_store(lease_seconds=1.5)
    conversation_id = say(store)
    process = child("hold", tmp_path, conversation_id, lease="1.5")
    assert process.stdout.readline()
    with pytest.raises(ConversationBusy):
        begin(store, conversation_id, seconds=3)
    process.send_signal(signal.SIGSTOP)
    begin(store, conversation_id, seconds=8).rollback()
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.mark.parametrize("obstacle", ["folder", "link"])
def test_where_no_process_can_be_marked_time_alone_decides(tmp_path, begin, say, obstacle):
    place = tmp_path / "conversations.processes"
    if obstacle == "folder":
        place.mkdir()
    else:
        place.symlink_to(tmp_path / "victim")
    limits = StoreLimits(lease_seconds=1)
    one, two = (open_store("sqlite", tmp_path, limits=limits) for _ in range(2))
    conversation_id = say(one)
    held = begin(one, conversation_id)
    with pytest.raises(ConversationBusy):
        begin(two, conversation_id, seconds=0.2)
    held.rollback()
    begin(two, conversation_id, seconds=5).rollback()
    assert not (tmp_path / "victim").exists()
    one.close()
    two.close()


def test_rows_of_the_release_before_name_no_process_and_run_out(make_store, begin, say, path):
    store = make_store(lease_seconds=2)
    conversation_id = say(store)
    with sqlite3.connect(path) as connection:
        row = (conversation_id, "", "0123456789abcdef", "old", time.monotonic() + 1.5)
        connection.execute("INSERT INTO leases VALUES (?, ?, ?, ?, ?)", row)
    connection.close()
    with pytest.raises(ConversationBusy):
        begin(store, conversation_id, seconds=0.3)
    begin(store, conversation_id, seconds=8).rollback()


def test_what_is_erased_is_nowhere_on_disk(make_store, begin, say, tmp_path):
    store = make_store()
    canaries = "canary-in-a-question", "canary-in-an-answer" * 1000
    for _ in range(3):
        conversation_id = say(store, None, *canaries)
    say(store, conversation_id, *canaries)
    assert holds(tmp_path, b"canary")
    store.delete("", conversation_id)
    make_store(ttl_seconds=0)._backend.purge()
    assert not holds(tmp_path, b"canary")


def holds(folder, word):
    return any(word in file.read_bytes() for file in folder.iterdir())


def test_an_erasing_that_found_the_log_in_use_is_finished_by_the_next_purge(
    store, say, path, tmp_path
):
    backend = SqliteBackend(tmp_path, StoreLimits(), busy_seconds=0.05)
    impatient = ConversationStore(backend)
    conversation_id = say(impatient, user="canary")
    reader = sqlite3.connect(path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM turns").fetchall()
    impatient.delete("", conversation_id)
    assert holds(tmp_path, b"canary")
    reader.close()
    backend.purge()
    assert not holds(tmp_path, b"canary")
    impatient.close()


def test_what_is_written_is_seen_by_others_who_come_and_go(tmp_path):
    """A second connection must not cost the process its locks: whoever closed the file next would
    take it for unused, and delete the log that goes on being written.
    """
    path = tmp_path / "x.db"
    database = Database(path, lambda db: db.execute("CREATE TABLE IF NOT EXISTS t (n)"))
    look = (
        f"import sqlite3; db = sqlite3.connect({str(path)!r});"
        " print(*db.execute('SELECT count(*) FROM t')); db.close()"
    )
    for number in range(1, 4):
        database.write(lambda db: db.execute("INSERT INTO t VALUES (1)"))
        database.read(lambda db: database.read(lambda other: None))
        assert subprocess.check_output([sys.executable, "-c", look], text=True) == f"({number},)\n"
    database.close()


def scramble(path):
    pages = bytearray(path.read_bytes())
    picked = random.Random(1)
    for place in range(4096, len(pages)):
        pages[place] = picked.randrange(256)
    path.write_bytes(pages)


def cut(path):
    os.truncate(path, path.stat().st_size // 2 // 4096 * 4096)


def not_a_database(path):
    path.write_bytes(b"\0" * 8192)


@pytest.mark.parametrize("harm", [scramble, cut, not_a_database])
def test_a_damaged_file_is_moved_aside_at_the_start(make_store, begin, say, path, harm, caplog):
    store = make_store()
    conversation_id = say(store)
    for number in range(20):
        say(store, conversation_id, f"{number}" * 2000)
    store.close()
    assert not path.with_name("conversations.db-wal").exists()
    harm(path)
    store = make_store()
    store.start()
    with pytest.raises(ConversationNotFound):
        begin(store, conversation_id)
    say(store)
    assert "moved aside" in caplog.text
    assert "canary" not in caplog.text
    assert len(list(path.parent.glob("conversations.db.damaged-*"))) == 1


def test_damage_under_way_is_noticed_and_other_processes_follow(make_store, begin, say, path):
    store, other = make_store(), make_store()
    conversation_id = say(store, user="x" * 50_000)
    say(other)
    assert store._backend._database.empty_log()
    inode = path.stat().st_ino
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (path.stat().st_size - 4096))
    with pytest.raises(StorageUnavailable):
        begin(store, conversation_id)
    with pytest.raises(ConversationNotFound):
        begin(store, conversation_id)
    assert path.stat().st_ino != inode
    fresh = say(other)
    assert len(turns_of(store, fresh)) == 1


def test_a_full_disk_is_survived_without_a_restart(store, say, tmp_path):
    conversation_id = say(store)
    output, _ = child("fill", tmp_path, conversation_id).communicate(timeout=30)
    reason, num_kept = output.split()
    assert reason == "OperationalError"
    turns = turns_of(store, conversation_id)
    assert len(turns) == 1 + int(num_kept) > 3
    assert turns[-1].user == "after"


def test_a_lock_held_too_long_makes_the_storage_unavailable_until_it_is_released(
    store, say, tmp_path
):
    conversation_id = say(store)
    backend = SqliteBackend(tmp_path, StoreLimits(), busy_seconds=0.1)
    impatient = ConversationStore(backend)
    assert len(turns_of(impatient, conversation_id)) == 1
    blocker = child("block", tmp_path, conversation_id, "1")
    assert blocker.stdout.readline() == "blocked\n"
    with pytest.raises(StorageUnavailable):
        say(impatient, conversation_id)
    assert len(turns_of(impatient, conversation_id)) == 1  # readers are not in the way
    blocker.communicate(timeout=10)
    say(impatient, conversation_id)
    impatient.close()


def test_a_store_starts_without_its_storage_and_finds_it_later(tmp_path, say, caplog):
    obstacle = tmp_path / "state"
    obstacle.write_text("a file where a folder should be")
    store = open_store("sqlite", obstacle / "deeper")
    store.start()
    assert "unavailable until the storage is" in caplog.text
    with pytest.raises(StorageUnavailable):
        say(store)
    obstacle.unlink()
    say(store)
    store.close()


def test_a_file_of_a_newer_version_is_left_alone(make_store, say, path):
    say(make_store())
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StorageUnavailable) as caught:
        say(make_store())
    assert "newer" in str(caught.value.__cause__)
    assert not list(path.parent.glob("*.damaged-*"))


def test_labels_that_were_turns_stand_beside_them_after_the_migration(path, make_store):
    with sqlite3.connect(path) as connection:
        migrate(connection, MIGRATIONS[: MIGRATIONS.index(create_labels)])
        for id_, first in (("conv_1", '{"a": "b"}'), ("plain", '{"a": "text"}')):
            connection.execute(
                "INSERT INTO conversations VALUES (?, 't', 0, ?, 3, 99)", (id_, NEVER)
            )
            for number, assistant in enumerate((first, "[1]", '{"a": "c"}'), 1):
                turn = (id_, number, "[]", assistant, "", 0)
                connection.execute("INSERT INTO turns VALUES (?, ?, ?, ?, ?, ?)", turn)
    connection.close()
    store = make_store()
    assert store.find("t", "conv_1").labels == '{"a": "c"}'
    assert [turn.assistant for turn in turns_of(store, "conv_1", "t")] == ["[]", "[1]", "[]"]
    assert store.find("t", "plain").labels == ""
    assert turns_of(store, "plain", "t")[0].assistant == '{"a": "text"}'
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT num_bytes FROM tenants").fetchone() == (99 + 13 + 10,)
    connection.close()


def test_a_lease_of_an_earlier_boot_is_dead(make_store, begin, say, path):
    store = make_store()
    conversation_id = say(store)
    with begin(store, conversation_id):
        with sqlite3.connect(path) as connection:
            connection.execute("UPDATE leases SET expires_at = expires_at + 1000000")
        connection.close()
        begin(make_store(), conversation_id, seconds=1).rollback()


def test_the_bytes_of_tenants_are_those_of_their_turns(make_store, begin, say, path):
    store = make_store()
    for tenant in ("a", "b", "b"):
        conversation_id = say(store, user="问题", tenant=tenant)
        say(store, conversation_id, tenant=tenant)
    store.delete("b", conversation_id)
    with sqlite3.connect(path) as connection:
        counted = connection.execute("SELECT * FROM tenants ORDER BY tenant").fetchall()
        stored = connection.execute(
            "SELECT tenant, sum(length(CAST(user || assistant AS BLOB))) FROM conversations"
            " JOIN turns ON conversation_id = id GROUP BY tenant ORDER BY tenant"
        ).fetchall()
    connection.close()
    assert counted == stored
    assert len(stored) == 2
