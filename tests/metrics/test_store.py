"""One writer a slot, any number of readers, and nothing lost when a writer dies."""

import os
import signal
import subprocess
import sys
import time

import pytest

from qwenapi.metrics.layout import NUM_RECORDS, NUM_SLOTS, fold, metrics_layout
from qwenapi.metrics.snapshot import take_snapshot
from qwenapi.metrics.store import MetricsStore, create_metrics_memory
from qwenapi.settings.profile import Profile
from qwenapi.settings.table import Settings
from workers.wire.shared_memory import SharedMemory

PROFILES = ("news", "openai")


@pytest.fixture
def path(tmp_path):
    profiles = [Profile(name=name, settings=Settings()) for name in PROFILES]
    path = create_metrics_memory(tmp_path, profiles)
    yield str(path)
    path.unlink()


def snapshot(path):
    memory = SharedMemory.open(path, metrics_layout(PROFILES))
    try:
        return take_snapshot(memory, PROFILES)
    finally:
        memory.close()


def give_answer(metrics_store, profile="news", tokens=(3, 2)):
    entry = metrics_store.begin(profile, time.monotonic() - 0.25)
    entry.accept(7)
    entry.start()
    for count in tokens:
        entry.tokens(0, count, time.monotonic())
    entry.succeed("stop", 4)


def test_a_request_is_waiting_then_running_then_successful(path):
    metrics_store = MetricsStore.lease(path, PROFILES)
    entry = metrics_store.begin("news", time.monotonic())
    assert snapshot(path).total["accepted"] == 0
    entry.accept(7)
    assert (snapshot(path).total.waiting, snapshot(path).total.running) == (1, 0)
    entry.start()
    entry.start()
    assert (snapshot(path).total.waiting, snapshot(path).total.running) == (0, 1)
    entry.tokens(0, 3, time.monotonic())
    entry.succeed("stop", 4)
    entry.fail("engine_failed")
    entry.cancel()
    total = snapshot(path).total
    assert (total.waiting, total.running, total.ended) == (0, 0, 1)
    assert total["successful"] == total["finish.stop"] == 1
    assert [total[name] for name in ("prompt_tokens", "cached_tokens", "completion_tokens")] == [
        7,
        4,
        3,
    ]
    assert snapshot(path).profiles["openai"]["accepted"] == 0


def test_a_refusal_for_want_of_room_is_a_failure_that_never_ran(path):
    metrics_store = MetricsStore.lease(path, PROFILES)
    entry = metrics_store.begin("news", time.monotonic())
    entry.fail("queue_full")  # not accepted yet: nothing to count
    entry.accept(0)
    entry.fail("queue_full")
    assert snapshot(path).total.failures == {"queue_full": 1}
    assert snapshot(path).total.waiting == snapshot(path).total.running == 0
    assert snapshot(path).peak_running == 0


def test_an_unknown_reason_is_counted_under_the_last(path):
    metrics_store = MetricsStore.lease(path, PROFILES)
    entry = metrics_store.begin("openai", time.monotonic())
    entry.accept(1)
    entry.fail("something new")
    assert snapshot(path).total.failures == {"internal_error": 1}


def test_records_hold_what_percentiles_need(path):
    give_answer(MetricsStore.lease(path, PROFILES), "openai")
    (record,) = snapshot(path).records
    assert record.profile == "openai" and record.completion_tokens == 5
    assert 0.25 <= record.ttft <= record.latency < 5
    assert abs(record.end - time.time()) < 5
    latency = snapshot(path).total.distribution("latency")
    assert latency.count == 1 and latency.sum == pytest.approx(record.latency)
    assert snapshot(path).total.distribution("inter_token").count == 1


def test_the_ring_keeps_the_last_records_in_order(path):
    metrics_store = MetricsStore.lease(path, PROFILES)
    for number in range(NUM_RECORDS + 10):
        give_answer(metrics_store, tokens=(number + 1,))
    kept = [record.completion_tokens for record in snapshot(path).records]
    # one fewer than the ring: the oldest may be half overwritten at any time
    assert kept == list(range(12, NUM_RECORDS + 11))


def test_the_peak_is_of_all_processes_together(path):
    metrics_stores = [MetricsStore.lease(path, PROFILES) for _ in range(3)]
    for metrics_store in metrics_stores:
        for _ in range(2):
            entry = metrics_store.begin("news", time.monotonic())
            entry.accept(1)
            entry.start()
    assert snapshot(path).peak_running == 6
    assert snapshot(path).num_processes == 3


@pytest.mark.parametrize("num_dead", [1, 3])
def test_what_a_killed_process_ran_is_no_part_of_a_later_peak(path, num_dead):
    code = (
        "import os, sys, time; from qwenapi.metrics.store import MetricsStore\n"
        "lease = lambda: MetricsStore.lease(sys.argv[1], ('news', 'openai'))\n"
        "for store in [lease() for _ in range(int(sys.argv[2]))]:\n"
        "    metrics = store.begin('openai', time.monotonic())\n"
        "    metrics.accept(5); metrics.start()\n"
        "os._exit(9)\n"
    )
    mine = MetricsStore.lease(path, PROFILES)
    subprocess.run([sys.executable, "-c", code, path, str(num_dead)])
    before = snapshot(path).peak_running
    for _ in range(before + 1):
        entry = mine.begin("news", time.monotonic())
        entry.accept(1)
        entry.start()
    assert snapshot(path).peak_running == before + 1


def test_what_a_killed_process_had_in_flight_is_failed_at_once_and_for_good(path):
    code = (
        "import os, signal, sys, time\n"
        "from qwenapi.metrics.store import MetricsStore\n"
        "store = MetricsStore.lease(sys.argv[1], ('news', 'openai'))\n"
        "for started in (True, False):\n"
        "    metrics = store.begin('openai', time.monotonic())\n"
        "    metrics.accept(5)\n"
        "    started and metrics.start()\n"
        "store.set_alerts([1, 2, 3, 4, 5])\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, path])
    assert done.returncode == -signal.SIGKILL
    for _ in range(2):
        lost = snapshot(path)
        assert lost.total.failures == {"worker_lost": 2}
        assert (lost.total.waiting, lost.total.running) == (0, 0)
        assert not lost.alerts
        give_answer(MetricsStore.lease(path, PROFILES))  # the next owner goes on counting
    assert snapshot(path).total["accepted"] == 4


def test_twenty_deaths_leave_the_memory_as_large_as_it_was(path):
    size = os.stat(path).st_size
    code = (
        "import os, sys, time; from qwenapi.metrics.store import MetricsStore\n"
        "store = MetricsStore.lease(sys.argv[1], ('news', 'openai'))\n"
        "store.begin('news', time.monotonic()).accept(1); os._exit(9)\n"
    )
    for _ in range(20):
        subprocess.run([sys.executable, "-c", code, path])
    memory = SharedMemory.open(path, metrics_layout(PROFILES))
    used = [slot for slot in range(memory.num_slots) if memory.values(slot)[0]]
    memory.close()
    assert used == [0]
    assert os.stat(path).st_size == size
    assert snapshot(path).total.failures == {"worker_lost": 20}


def test_with_every_slot_taken_a_process_counts_for_itself(path):
    held = [MetricsStore.lease(path, PROFILES) for _ in range(NUM_SLOTS)]
    extra = MetricsStore.lease(path, PROFILES)
    assert all(metrics_store.is_shared for metrics_store in held) and not extra.is_shared
    give_answer(extra)
    assert take_snapshot(extra.memory, PROFILES).total["successful"] == 1
    assert snapshot(path).total["successful"] == 0


def test_without_shared_memory_a_process_counts_for_itself():
    metrics_store = MetricsStore.lease("", PROFILES)
    give_answer(metrics_store)
    assert not metrics_store.is_shared
    assert take_snapshot(metrics_store.memory, PROFILES).total["successful"] == 1


def test_folding_twice_changes_nothing():
    layout = metrics_layout(PROFILES)
    values = [0] * len(layout.fields)
    values[layout.index["news.accepted"]] = 5
    values[layout.index["news.successful"]] = 2
    fold(values, len(PROFILES))
    once = values.copy()
    fold(values, len(PROFILES))
    assert values == once and values[layout.index["news.failed.worker_lost"]] == 3
