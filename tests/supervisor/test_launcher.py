"""When an engine process is taken for hung, on a row this test writes and no process."""

import os
import time
from types import SimpleNamespace

import pytest
from workers.supervisor.launcher import EngineChild

from workers.config import EngineConfig
from workers.supervisor import launcher
from workers.wire.engine_stats import ENGINE_LAYOUT, Phase
from workers.wire.shared_memory import SharedMemory
from workers.worker.worker_spec import WorkerSpec


@pytest.fixture
def memory(tmp_path):
    memory = SharedMemory.create(tmp_path / "engines.shm", ENGINE_LAYOUT, 1)
    yield memory
    memory.close()


@pytest.fixture
def child(memory, tmp_path):
    child = EngineChild(EngineConfig("model"), WorkerSpec(0, tmp_path, memory.path), memory)
    child._process = SimpleNamespace(pid=4711, exitcode=None)
    return child


@pytest.fixture
def row(memory):
    return memory.lease(0)


def beat(row, phase, limit, silent, pid=4711):
    row.update(pid=pid, phase=phase, step_timeout_ns=int(limit * 1e9))
    row["beat_ns"] = time.monotonic_ns() - int(silent * 1e9)


@pytest.mark.parametrize(
    ("phase", "limit", "silent", "why"),
    [
        (Phase.IDLE, 5, 4.5, None),
        (Phase.IDLE, 5, 5.5, "while idle"),
        (Phase.STEPPING, 120, 100, None),
        (Phase.STEPPING, 10, 11, "in step"),
        (Phase.LOADING, 900, 800, None),
    ],
)
def test_a_loop_that_is_silent_beyond_its_own_limit_hangs(child, row, phase, limit, silent, why):
    beat(row, phase, limit, silent)
    assert child.hang() is None, "it is found silent once"
    assert why in child.hang() if why else child.hang() is None


def test_who_was_asleep_with_the_whole_machine_is_not_taken_for_hung(child, row):
    for silent in (9, 3600):
        beat(row, Phase.IDLE, 5, silent)
        assert child.hang() is None
        beat(row, Phase.IDLE, 5, 0.1)
        assert child.hang() is None
    beat(row, Phase.IDLE, 5, 9, pid=1)  # the last process's row
    assert child.hang() is None and child.hang() is None


@pytest.mark.parametrize(
    "error", [OSError(11, "Resource temporarily unavailable"), OSError(12, "no memory"), EOFError()]
)
def test_a_start_that_fails_leaves_no_descriptor_and_can_be_tried_again(child, monkeypatch, error):
    class Process:
        pid = exitcode = None

        def __init__(self, **options):
            pass

        def start(self):
            raise error

    real = launcher.multiprocessing.get_context("spawn")
    fake = SimpleNamespace(Pipe=real.Pipe, Process=Process)
    monkeypatch.setattr(launcher.multiprocessing, "get_context", lambda name: fake)
    for attempt in range(3):
        with pytest.raises(type(error)):
            child.start()
        child.kill()
        child.terminate()
        num_open = len(os.listdir("/proc/self/fd"))
        if attempt == 0:
            first = num_open
    assert num_open == first
    assert child.poll() is None and not child.has_served()
