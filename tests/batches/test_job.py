"""Batches from where they stopped to their end, on a real store; what answers is a function."""

import json
import os
import random
import threading
import time
from dataclasses import replace

import gevent
import pytest

from qwenapi import greenlets
from qwenapi.batches import store as store_module
from qwenapi.batches.errors import (
    BatchesUnavailable,
    FileInUse,
    NoRoom,
    TooManyBatches,
    UnknownObject,
)
from qwenapi.batches.job import EXPIRED, Answer, Asking, BatchJob
from qwenapi.batches.line import render_line
from qwenapi.batches.runner import BatchRunner
from qwenapi.batches.store import ORPHAN_SECONDS, TTL_SECONDS, BatchStore
from qwenapi.batches.values import WINDOW_SECONDS, RequestBatch, StoredFile, new_id

URL = "/v1/chat/completions"


@pytest.fixture
def store(tmp_path):
    return BatchStore(tmp_path / "batches")


def add_file(store, content, **facts):
    source = store.uploads / new_id("part")
    source.write_bytes(content)
    facts = {"tenant": "a", "created_at": int(time.time()), **facts}
    file = StoredFile(
        id=new_id("file-"), filename="f", purpose="batch", num_bytes=len(content), **facts
    )
    store.add_file(file, str(source))
    source.unlink()
    return file


def add_batch(store, num_lines, **facts):
    lines = [
        {"custom_id": f"c{i}", "method": "POST", "url": URL, "body": {"n": i}}
        for i in range(num_lines)
    ]
    facts = {"tenant": "a", "created_at": int(time.time()), **facts}
    content = "".join(json.dumps(one) + "\n" for one in lines).encode()
    file = add_file(store, content, tenant=facts["tenant"])
    batch = RequestBatch(
        id=new_id("batch_"),
        key_id="k",
        endpoint=URL,
        input_file_id=file.id,
        output_file_id=new_id("file-"),
        error_file_id=new_id("file-"),
        **facts,
    )
    store.create(batch)
    return batch


def echo(key_id, line):
    gevent.sleep(0.001)
    status = 400 if line.body["n"] % 10 == 9 else 200
    return Answer(status, "r", json.dumps(line.body).encode())


def asking(ask=echo, may_begin=lambda: True, is_stopping=lambda: False, concurrency=4):
    return Asking(ask, may_begin, is_stopping, concurrency, max_line_bytes=1_000_000)


def outputs(store, batch):
    """Return the ids in both outputs; a line that stands twice fails."""
    found = []
    for file_id in (batch.output_file_id, batch.error_file_id):
        if store.path(file_id).exists():
            raw = store.path(file_id).read_bytes()
            found += [json.loads(one)["custom_id"] for one in raw.splitlines()]
    assert len(found) == len(set(found))
    return set(found)


def test_a_batch_that_stops_again_and_again_answers_every_line_once(store):
    batch = add_batch(store, 200)
    chance = random.Random(1)
    stops = 0

    def stopping(key_id, line):
        gevent.sleep(0.001)
        if chance.random() < 0.05:
            raise InterruptedError
        return echo(key_id, line)

    while store.batch("a", batch.id).is_open:
        try:
            BatchJob.lease(store, store.batch("a", batch.id), asking(stopping)).run()
        except InterruptedError:
            stops += 1
            with store.path(batch.output_file_id).open("ab") as torn:  # as a kill leaves it
                torn.write(b'{"id": "batch_req_0", "cus'[: chance.randrange(27)])
    assert stops > 3
    done = store.batch("a", batch.id)
    assert (done.status, done.total, done.completed, done.failed) == ("completed", 200, 180, 20)
    assert outputs(store, batch) == {f"c{i}" for i in range(200)}
    assert {file.id for file in store.files("a")} >= {batch.output_file_id, batch.error_file_id}
    assert store.file("a", batch.output_file_id).num_bytes == os.path.getsize(
        store.path(batch.output_file_id)
    )


def test_one_process_has_the_lease_and_a_stale_list_gives_none(store):
    batch = add_batch(store, 5)
    first = BatchJob.lease(store, batch, asking())
    assert first and BatchJob.lease(store, batch, asking()) is None
    first.run()
    assert BatchJob.lease(store, batch, asking()) is None  # `batch` still says validating


def test_what_is_left_when_its_time_is_over_stands_among_the_errors(store):
    created = int(time.time()) - WINDOW_SECONDS + 3
    batch = add_batch(store, 50, created_at=created)

    def slow(key_id, line):
        if line.custom_id != "c0":
            gevent.sleep(4)
        return echo(key_id, line)

    BatchJob.lease(store, batch, asking(slow)).run()
    done = store.batch("a", batch.id)
    assert done.status == "expired" and {"finalizing", "expired"} <= done.times.keys()
    assert 0 < done.completed < 50 and done.completed + done.failed == 50
    assert outputs(store, batch) == {f"c{i}" for i in range(50)}
    errors = store.path(batch.error_file_id).read_text().splitlines()
    assert json.loads(errors[-1])["error"]["code"] == "batch_expired"


def test_a_death_between_its_last_line_and_its_end_ends_as_it_had_to(store):
    batch = add_batch(store, 8)
    store.update(
        "a", batch.id, lambda b: replace(b, status="finalizing", ending="expired", total=8)
    )
    BatchJob.lease(store, batch, asking()).run()
    done = store.batch("a", batch.id)
    assert (done.status, done.completed, done.failed) == ("expired", 0, 8)
    assert outputs(store, batch) == {f"c{i}" for i in range(8)} and not done.has_output


def test_who_finds_no_room_is_asked_again_and_who_answers_no_json_fails(store):
    batch = add_batch(store, 3)
    asked = []

    def busy(key_id, line):
        assert key_id == "k"
        asked.append(line.custom_id)
        if asked.count("c0") == 1 and line.custom_id == "c0":
            return Answer(503, "r", b"{}", retry_after=0.1)
        return Answer(200, "r", b"data: x\n\n" if line.custom_id == "c1" else b"{}")

    BatchJob.lease(store, batch, asking(busy, concurrency=1)).run()
    done = store.batch("a", batch.id)
    assert asked.count("c0") == 2 and (done.completed, done.failed) == (2, 1)
    assert "not_json" in store.path(batch.error_file_id).read_text()


def test_a_process_that_stops_leaves_it_to_the_next(store):
    batch = add_batch(store, 100)
    is_stopping = False

    def stop_soon(key_id, line):
        nonlocal is_stopping
        is_stopping = line.body["n"] >= 20
        return echo(key_id, line)

    BatchJob.lease(store, batch, asking(stop_soon, is_stopping=lambda: is_stopping)).run()
    left = store.batch("a", batch.id)
    assert left.status == "in_progress" and 20 <= left.completed + left.failed < 30
    BatchJob.lease(store, left, asking()).run()
    assert store.batch("a", batch.id).status == "completed"
    assert len(outputs(store, batch)) == 100


def test_an_error_of_one_line_ends_the_job_and_its_lease_at_once(store):
    batch = add_batch(store, 50)

    def broken(key_id, line):
        if line.body["n"] == 10:
            raise RuntimeError("broken")
        return echo(key_id, line)

    job = BatchJob.lease(store, batch, asking(broken))
    with pytest.raises(RuntimeError):
        job.run()
    assert len(outputs(store, batch)) < 50
    BatchJob.lease(store, batch, asking()).run()
    assert store.batch("a", batch.id).status == "completed" and len(outputs(store, batch)) == 50


def test_nothing_begins_while_others_wait(store):
    batch = add_batch(store, 5)
    others_wait = True
    running = gevent.spawn(
        BatchJob.lease(store, batch, asking(may_begin=lambda: not others_wait)).run
    )
    gevent.sleep(0.7)
    assert outputs(store, batch) == set()
    others_wait = False
    running.get()
    assert len(outputs(store, batch)) == 5


def test_lines_that_wait_for_no_engine_let_other_greenlets_run(store):
    batch = add_batch(store, 100)
    turns, turns_at = 0, []

    def others():
        nonlocal turns
        while True:
            turns += 1
            gevent.sleep(0)

    def at_once(key_id, line):
        turns_at.append(turns)
        return Answer(404, "r", b"{}")

    beside = gevent.spawn(others)
    BatchJob.lease(store, batch, asking(at_once, concurrency=1)).run()
    beside.kill()
    assert len(turns_at) == len(set(turns_at)) == 100


def test_a_key_that_is_in_force_no_more_fails_the_batch_once_and_keeps_its_answers(store):
    batch = add_batch(store, 100)

    def ask(key_id, line):
        return Answer(401, "r", b"{}") if line.body["n"] >= 20 else Answer(200, "r", b"{}")

    BatchJob.lease(store, batch, asking(ask)).run()
    done = store.batch("a", batch.id)
    assert (done.status, done.completed, done.failed) == ("failed", 20, 0)
    assert [fault["code"] for fault in done.errors] == ["key_not_in_force"]
    assert done.has_output and not done.has_errors
    assert outputs(store, batch) == {f"c{i}" for i in range(20)}


def longest_pause(work):
    """Return the seconds that other greenlets stood still for while it was done."""
    pauses = [0.0]

    def watch():
        last = time.monotonic()
        while True:
            gevent.sleep(0.01)
            pauses.append(time.monotonic() - last)
            last = time.monotonic()

    watching = gevent.spawn(watch)
    gevent.sleep(0)
    work()
    gevent.sleep(0.02)
    watching.kill()
    return max(pauses)


def test_many_lines_that_are_passed_over_or_expire_hold_up_nobody(store):
    batch = add_batch(store, 60_000)
    now = int(time.time())
    done = b"".join(render_line(f"c{i}", None, EXPIRED) for i in range(59_999))
    store.path(batch.error_file_id).write_bytes(done)
    job = BatchJob.lease(store, batch, asking())
    assert longest_pause(job.run) < 0.5
    assert outputs(store, batch) == {f"c{i}" for i in range(60_000)}
    late = add_batch(store, 60_000, created_at=now - WINDOW_SECONDS)
    job = BatchJob.lease(store, late, asking())
    assert longest_pause(job.run) < 0.5
    assert outputs(store, late) == {f"c{i}" for i in range(60_000)}


def test_a_runner_takes_up_what_there_is_and_goes_on_after_a_failure(store, monkeypatch):
    monkeypatch.setattr("qwenapi.batches.runner.FAILED_SECONDS", 0.05)
    runner = BatchRunner(store, asking())
    runner.tick()
    assert not (store.path("x").parent.parent / "batches.db").exists()  # nothing asked, none made
    batches = [add_batch(store, 20) for _ in range(6)]
    # What is no output stands in the way of two.
    store.path(batches[0].error_file_id).write_text("no output\n")
    store.path(batches[1].output_file_id).write_text("no output\n")
    for _ in range(100):
        runner.tick()
        gevent.sleep(0.05)
        if all(not store.batch("a", batch.id).is_open for batch in batches[2:]):
            break
    assert all(store.batch("a", batch.id).status == "completed" for batch in batches[2:])
    assert all(store.batch("a", batch.id).is_open for batch in batches[:2])
    store.path(batches[0].error_file_id).unlink()
    store.path(batches[1].output_file_id).unlink()
    for _ in range(100):
        runner.tick()
        gevent.sleep(0.05)
    assert all(store.batch("a", batch.id).status == "completed" for batch in batches)


def test_tenants_have_their_own_files_batches_and_room(store, monkeypatch):
    file, batch = add_file(store, b"x" * 100), add_batch(store, 1)
    assert store.files("b") == store.batches("b") == []
    for ask in (
        lambda: store.file("b", file.id),
        lambda: store.delete_file("b", file.id),
        lambda: store.batch("b", batch.id),
        lambda: store.update("b", batch.id, lambda b: b),
        lambda: store.create(replace(batch, id="other", tenant="b")),
    ):
        with pytest.raises(UnknownObject):
            ask()
    with pytest.raises(FileInUse):
        store.delete_file("a", batch.input_file_id)
    monkeypatch.setattr(store_module, "MAX_TENANT_BYTES", 1000)
    with pytest.raises(NoRoom):
        add_file(store, b"x" * 1000)
    add_file(store, b"x" * 1000, tenant="b")


def test_what_is_a_month_old_is_erased_and_what_is_in_use_stays(store):
    old = int(time.time()) - TTL_SECONDS - 1
    forgotten, fresh = add_file(store, b"x", created_at=old), add_file(store, b"y")
    in_use = add_batch(store, 1)
    orphan, coming = store.path("file-orphan"), store.path("tmp1.part")
    orphan.write_bytes(b"z")
    coming.write_bytes(b"z")
    long_ago = time.time() - ORPHAN_SECONDS - 1
    for path in (orphan, store.path(forgotten.id), store.path(in_use.input_file_id)):
        os.utime(path, (long_ago, long_ago))
    store.purge()
    assert coming.exists() and not orphan.exists() and not store.path(forgotten.id).exists()
    assert [file.id for file in store.files("a")] == [fresh.id, in_use.input_file_id]
    assert store.path(in_use.input_file_id).exists()


def test_a_folder_that_cannot_be_written_is_told_as_that(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BatchesUnavailable):
        _ = BatchStore(tmp_path / "file" / "batches").uploads


def test_a_file_stays_until_its_row_is_gone_for_good(store, monkeypatch):
    file = add_file(store, b"x")
    write = store._database.write

    def fail_at_the_end(work, **how):
        def work_and_fail(db):
            work(db)
            raise OSError("disk full")

        return write(work_and_fail, **how)

    with monkeypatch.context() as patch, pytest.raises(BatchesUnavailable):
        patch.setattr(store._database, "write", fail_at_the_end)
        store.delete_file("a", file.id)
    assert store.file("a", file.id) and store.path(file.id).read_bytes() == b"x"
    store.delete_file("a", file.id)
    assert not store.path(file.id).exists()


def test_a_sweep_goes_on_past_what_vanishes_and_stays_in_its_thread(store, monkeypatch):
    add_file(store, b"x")
    store.path("tmp1.part").symlink_to("gone")  # is listed, and then not there
    callers = []

    def in_thread(work):
        callers.append(threading.get_ident())
        return greenlets.in_thread(work)

    monkeypatch.setattr(store_module, "in_thread", in_thread)
    store.purge()
    assert callers == [threading.get_ident()]


def test_a_tenant_has_so_many_files_and_batches_that_are_not_over(store, monkeypatch):
    monkeypatch.setattr(store_module, "MAX_TENANT_FILES", 3)
    monkeypatch.setattr(store_module, "MAX_TENANT_OPEN", 2)
    first, second = add_batch(store, 1), add_batch(store, 1)
    with pytest.raises(TooManyBatches):
        store.create(replace(first, id="third"))
    store.update("a", second.id, lambda batch: replace(batch, status="completed"))
    store.create(replace(first, id="third"))
    add_file(store, b"x")
    with pytest.raises(NoRoom):
        add_file(store, b"x")
    add_file(store, b"x", tenant="b")
