"""What is read of engines that come, go and are replaced."""

import time

import pytest

from qwenapi.engines.engine_stats_reader import EngineStatsReader
from qwenapi.settings.table import Settings
from workers.wire.engine_stats import ENGINE_LAYOUT, Phase
from workers.wire.protocol import Hello
from workers.wire.shared_memory import SharedMemory
from workers.worker.stub import StubEngine

BUSY = {"running": 3, "total_blocks": 100, "free_blocks": 25, "generated_tokens": 70, "starts": 2}


@pytest.fixture(scope="module")
def card():
    return StubEngine(Settings(stub=True).engine_config()).card


@pytest.fixture
def meet(card):
    memories = EngineStatsReader()

    def meet(path, engine=0):
        memories.meet(Hello(1, 1, engine, str(path), card))
        return memories

    return meet


def lease(path, engine=0, **fields):
    slot = SharedMemory.create(path, ENGINE_LAYOUT, 2).lease(engine)
    now = {"beat_ns": time.monotonic_ns(), "step_timeout_ns": 10**9, "phase": Phase.IDLE}
    slot.update(**now | BUSY | fields)
    return slot


def test_an_engine_is_described_by_what_it_publishes(meet, tmp_path):
    slot = lease(tmp_path / "engines.shm")
    (row,) = meet(tmp_path / "engines.shm").rows({0})
    assert (row.engine, row.device, row.state, row.is_up) == (0, "stub", "ready", True)
    assert (row.kv_cache_usage, row.num_restarts, row.values["running"]) == (0.75, 1, 3)
    assert slot["running"] == 3


@pytest.mark.parametrize(
    ("fields", "state"),
    [
        ({"phase": Phase.LOADING}, "loading"),
        ({"phase": Phase.DRAINING}, "draining"),
        ({"beat_ns": 0}, "silent for"),
        ({}, "not connected"),
    ],
)
def test_one_that_takes_no_requests_has_a_reason(meet, tmp_path, fields, state):
    slot = lease(tmp_path / "engines.shm", **fields)
    (row,) = meet(tmp_path / "engines.shm").rows(set())
    assert row.state.startswith(state) and not row.is_up
    assert slot["running"] == 3


def test_of_a_process_that_is_gone_only_counters_are_left(meet, tmp_path):
    memory = SharedMemory.create(tmp_path / "engines.shm", ENGINE_LAYOUT, 2)
    memory.lease(0).update(**BUSY)
    memory.close()
    (row,) = meet(tmp_path / "engines.shm").rows(set())
    assert row.state == "down"
    assert (row.kv_cache_usage, row.values["running"]) == (0.0, 0)
    assert (row.values["generated_tokens"], row.num_restarts) == (70, 1)


def test_an_engine_met_again_elsewhere_is_read_there(meet, tmp_path):
    old, new = lease(tmp_path / "old"), lease(tmp_path / "new", running=1)
    other = lease(tmp_path / "other", engine=1)
    for path, engine in (("old", 0), ("other", 1), ("new", 0)):
        memories = meet(tmp_path / path, engine)
    assert [(row.engine, row.values["running"]) for row in memories.rows({0, 1})] == [
        (0, 1),
        (1, 3),
    ]
    assert (old["running"], new["running"], other["running"]) == (3, 1, 3)


def test_an_engine_without_shared_memory_has_no_row(meet, tmp_path):
    assert meet(tmp_path / "nowhere").rows({0}) == []
