"""Whether an engine takes requests, by what it publishes and by its answers to pings."""

import time

import pytest

from qwenapi.engines.link import SILENCE_SECONDS, EngineLink
from tests.wire.test_protocol import CARD
from workers.wire.engine_stats import ENGINE_LAYOUT, Phase
from workers.wire.protocol import Hello, Ping
from workers.wire.shared_memory import SharedMemory

IDLE_NS, LONG_NS = 5 * 10**9, 120 * 10**9


class Wire:
    def __init__(self):
        self.sent = []

    def send(self, message):
        self.sent.append(message)


@pytest.fixture
def row(tmp_path):
    memory = SharedMemory.create(tmp_path / "engines.shm", ENGINE_LAYOUT, 1)
    row = memory.lease(0)
    row.update(generation=1, phase=Phase.IDLE, step_timeout_ns=IDLE_NS)
    row["beat_ns"] = time.monotonic_ns()
    yield row
    memory.close()


@pytest.fixture
def link(row, tmp_path):
    return EngineLink(Wire(), Hello(1, 1, 0, str(tmp_path / "engines.shm"), CARD), None)


def be(row, phase, *, limit_ns, silent):
    row.update(phase=phase, step_timeout_ns=limit_ns)
    row["beat_ns"] = time.monotonic_ns() - int(silent * 1e9)


@pytest.mark.parametrize(
    ("phase", "limit_ns", "beat", "pong", "is_alive"),
    [
        (Phase.IDLE, IDLE_NS, 0.5, 2.1, True),
        (Phase.IDLE, IDLE_NS, 5.1, 2.1, False),  # stopped
        (Phase.IDLE, IDLE_NS, 0.5, SILENCE_SECONDS + 0.1, False),  # the loop beats, nobody answers
        (Phase.IDLE, LONG_NS, 0.5, SILENCE_SECONDS + 0.1, False),  # of the release before
        (Phase.STEPPING, LONG_NS, 100.0, 100.0, True),
        (Phase.STEPPING, LONG_NS, 121.0, 2.0, False),
        (Phase.STEPPING, 10 * 10**9, 11.0, 11.0, False),
        (Phase.DRAINING, LONG_NS, 0.0, 0.0, False),
    ],
)
def test_an_idle_engine_must_answer_and_one_in_a_step_must_end_it(
    row, link, phase, limit_ns, beat, pong, is_alive
):
    be(row, phase, limit_ns=limit_ns, silent=beat)
    link.last_pong -= pong
    assert link.is_alive() is is_alive


def test_the_end_of_a_long_step_is_no_silence(row, link):
    link.last_pong -= 60
    be(row, Phase.STEPPING, limit_ns=LONG_NS, silent=60)
    link.ping(4)
    assert link._connection.sent == [Ping(4)]
    be(row, Phase.IDLE, limit_ns=IDLE_NS, silent=0)
    assert link.is_alive()
    link.last_pong -= SILENCE_SECONDS + 0.1
    link.ping(6)
    assert not link.is_alive(), "a question is no answer"


@pytest.mark.parametrize(("pong", "is_alive"), [(4.0, True), (SILENCE_SECONDS + 0.1, False)])
def test_without_memory_pings_alone_tell(pong, is_alive):
    link = EngineLink(Wire(), Hello(1, 1, 0, "", CARD), None)
    link.last_pong -= pong
    assert link.is_alive() is is_alive
