"""The engine loop and its heartbeat, ticked by the test, on an engine that does as it is told."""

import threading
import time

import pytest

from tests.wire.test_protocol import CARD
from workers.config import EngineConfig
from workers.engine_core import StepOutput
from workers.wire.engine_stats import ENGINE_LAYOUT, EngineStats, Phase
from workers.wire.protocol import (
    Abort,
    Accepted,
    Chunk,
    Finished,
    Generate,
    Ping,
    Pong,
    SamplingParams,
    Started,
)
from workers.wire.shared_memory import SharedMemory
from workers.worker import worker as worker_module
from workers.worker.step_times import MIN_SECONDS
from workers.worker.worker import IDLE_TIMEOUT, Worker
from workers.worker.worker_spec import WorkerSpec

PEER = 3


class FakeEngine:
    """Answers each request with one token a step until it has been given `length`."""

    def __init__(self):
        self.card = CARD
        self.keys, self.num_given, self.during = {}, {}, lambda: None
        self.check_ranks = lambda: None

    @property
    def has_work(self):
        return bool(self.keys)

    def add(self, key, request, grammar=None):
        self.keys[key], self.num_given[key] = request, 0

    def abort(self, key, choices=()):
        self.keys.pop(key, None)
        return True

    def step(self):
        self.during()
        output = StepOutput()
        for key, request in list(self.keys.items()):
            count = self.num_given[key]
            if count == 0:
                output.started.append((key, Started(request.wid, 0)))
            output.chunks.append((key, Chunk(request.wid, 0, count, (7,), None)))
            self.num_given[key] += 1
            if count + 1 == request.params.max_tokens:
                del self.keys[key]
                output.finished.append((key, Finished(request.wid, 1, count + 1)))
        return output

    def stats(self):
        return EngineStats(running=len(self.keys))


class Loop:
    """A worker, what it publishes and what it sends."""

    def __init__(self, tmp_path, **config):
        self.memory = SharedMemory.create(tmp_path / "engines.shm", ENGINE_LAYOUT, 1)
        self.engine = FakeEngine()
        spec = WorkerSpec(0, tmp_path, self.memory.path)
        config = EngineConfig("model", **config)
        self.worker = Worker(self.engine, config, spec, self.memory.lease(0))
        self.sent = []
        self.worker._listener.send = lambda connection_id, message: self.sent.append(message)

    @property
    def row(self):
        return self.memory.read(0)

    @property
    def limit(self):
        return self.row["step_timeout_ns"] / 1e9

    def ask(self, wid, num_tokens=5, max_tokens=20):
        prompt, params = (7,) * num_tokens, SamplingParams(max_tokens=max_tokens)
        asked = Generate(wid=wid, request_id="r", prompt_ids=prompt, params=params)
        self.worker.on_message(PEER, asked)


@pytest.fixture
def make_loop(tmp_path, monkeypatch):
    monkeypatch.setattr(worker_module, "IDLE_SECONDS", 0.01)
    loops = []

    def make(**config):
        loops.append(Loop(tmp_path, **config))
        return loops[-1]

    yield make
    for loop in loops:
        loop.worker._listener._sock.close()
        loop.memory.close()


@pytest.fixture
def loop(make_loop):
    return make_loop()


def test_an_idle_loop_beats_often_and_its_limit_is_short(loop):
    for _ in range(3):
        before = time.monotonic_ns()
        loop.worker.tick()
        assert loop.row["beat_ns"] >= before
        assert (loop.row["phase"], loop.limit) == (Phase.IDLE, IDLE_TIMEOUT)


def test_only_an_idle_loop_asks_its_ranks_whether_they_are_there_and_under_its_limit(loop):
    checks = []
    loop.engine.check_ranks = lambda: checks.append((loop.row["phase"], loop.limit))
    loop.worker.tick()
    loop.ask(1, max_tokens=2)
    loop.worker.tick()
    loop.worker.tick()
    assert checks == [(Phase.IDLE, IDLE_TIMEOUT)]


@pytest.mark.parametrize("configured", [0.4, 2.0, 60.0])
def test_a_limit_that_is_set_holds_for_steps_and_idleness_at_most(make_loop, configured):
    loop = make_loop(step_timeout=configured)
    loop.worker.tick()
    assert loop.limit == min(configured, IDLE_TIMEOUT)
    limits = []
    loop.engine.during = lambda: limits.append(loop.limit)
    loop.ask(1, max_tokens=2)
    loop.worker.tick()
    assert limits == [configured]


def test_a_step_is_given_time_until_steps_are_known_then_judged_by_them(loop):
    limits = []
    loop.engine.during = lambda: limits.append((loop.row["phase"], loop.limit))
    loop.ask(1)
    for _ in range(20):
        loop.worker.tick()
    assert limits[0] == (Phase.STEPPING, 120)
    assert limits[-1] == (Phase.STEPPING, MIN_SECONDS)
    loop.ask(2, num_tokens=6, max_tokens=2)
    loop.worker.tick()
    assert limits[-1][1] == 120, "a prompt longer than any before"
    loop.worker.tick()
    assert limits[-1][1] == MIN_SECONDS
    loop.worker.tick()
    assert (loop.row["phase"], loop.limit) == (Phase.IDLE, IDLE_TIMEOUT)


def test_a_ping_is_answered_before_the_loop_calls_itself_idle_after_a_step(loop):
    loop.engine.during = lambda: loop.worker.on_message(PEER, Ping(5))
    loop.ask(1, max_tokens=1)
    loop.worker.tick()
    assert loop.row["phase"] == Phase.STEPPING and Pong(5) not in loop.sent
    loop.worker.tick()
    assert loop.row["phase"] == Phase.STEPPING and Pong(5) in loop.sent
    loop.worker.tick()
    assert loop.row["phase"] == Phase.IDLE


def test_a_reader_never_finds_an_old_beat_under_a_short_limit(loop):
    loop.ask(1, max_tokens=3000)
    found, is_over = [], threading.Event()

    def read():
        while not is_over.is_set():
            row = loop.memory.values(0)
            index = ENGINE_LAYOUT.index
            beat, limit = row[index["beat_ns"]], row[index["step_timeout_ns"]]
            if limit and time.monotonic_ns() - beat > limit:
                found.append((beat, limit))

    loop.worker.tick()
    loop.worker._row["beat_ns"] -= int(20e9)  # as after a step of 20 s
    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(300):
        loop.worker._beat(Phase.STEPPING, 120)
        loop.worker._row["beat_ns"] -= int(20e9)
        loop.worker._beat(Phase.IDLE, IDLE_TIMEOUT)
    is_over.set()
    reader.join()
    assert not found


def test_what_ends_in_any_way_is_forgotten(loop):
    for wid in range(1, 7):
        loop.ask(wid, max_tokens=4)
    loop.worker.tick()
    loop.worker.on_message(PEER, Abort(1))
    loop.worker.on_closed(PEER)
    loop.worker.tick()
    loop.ask(9, max_tokens=1)
    loop.worker.tick()
    assert not loop.worker._step_times._prompts and not loop.worker._step_times._open
    assert Accepted(9) in loop.sent and loop.worker._admission.num_admitted == 0
