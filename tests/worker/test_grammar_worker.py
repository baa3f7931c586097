"""Grammars as a caller at the wire sees them: compiled, refused, and nobody else's delay."""

import json
import socket
import threading
import time

import pytest

from qwenapi.settings.table import Settings
from workers.wire.engine_stats import ENGINE_LAYOUT
from workers.wire.framing import FrameReader, encode
from workers.wire.grammar import Grammar
from workers.wire.protocol import (
    PROTOCOL_VERSION,
    Abort,
    Accepted,
    Attach,
    Generate,
    Hello,
    Rejected,
    SamplingParams,
    StepUpdate,
    wire_id,
)
from workers.wire.shared_memory import SharedMemory
from workers.worker.stub import StubEngine
from workers.worker.worker import Worker
from workers.worker.worker_spec import WorkerSpec

STEP_SECONDS = 0.005


class Caller:
    """One end of the wire, and every message with the time it came."""

    def __init__(self, path):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(path))
        self.reader = FrameReader("http")
        self.messages = []
        self.serial = 0
        self.send(Attach(PROTOCOL_VERSION, PROTOCOL_VERSION, "test"))
        self.wait_for(lambda message: isinstance(message, Hello))

    def send(self, message):
        self.sock.sendall(encode(message))

    def ask(self, grammar=None, max_tokens=4):
        self.serial += 1
        wid = wire_id(self.serial, 0)
        params = SamplingParams(max_tokens=max_tokens)
        self.send(
            Generate(
                wid=wid, request_id=str(wid), prompt_ids=(5, 6), params=params, grammar=grammar
            )
        )
        return wid

    def answer_to(self, wid, seconds=60):
        return self.wait_for(lambda m: isinstance(m, Accepted | Rejected) and m.wid == wid, seconds)

    def end_of(self, wid):
        return self.wait_for(
            lambda m: isinstance(m, StepUpdate) and any(f.wid == wid for f in m.finished)
        )

    def wait_for(self, is_it, seconds=60):
        deadline = time.monotonic() + seconds
        seen = 0
        while True:
            for _, message in self.messages[seen:]:
                if is_it(message):
                    return message
            seen = len(self.messages)
            self.read(deadline)

    def read(self, deadline):
        self.sock.settimeout(max(0.001, deadline - time.monotonic()))
        now_read = self.reader.feed(self.sock.recv(1 << 20))
        self.messages += [(time.monotonic(), message) for message in now_read]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("worker")
    config = Settings(stub=True, stub_step_seconds=STEP_SECONDS).engine_config()
    memory = SharedMemory.create(folder / "memory", ENGINE_LAYOUT, 1)
    spec = WorkerSpec(0, folder, folder / "memory")
    worker = Worker(StubEngine(config), config, spec, memory.lease(0))
    worker.start()
    loop = threading.Thread(target=worker.run)
    loop.start()
    yield spec.socket_path
    worker.drain()
    loop.join(timeout=30)
    assert not loop.is_alive()


@pytest.fixture
def caller(path):
    made = Caller(path)
    yield made
    made.sock.close()


def schema(value):
    return Grammar(kind="json_schema", text=json.dumps(value))


def test_a_request_with_a_grammar_is_accepted_and_answered(caller):
    wid = caller.ask(schema({"type": "object"}))
    assert isinstance(caller.answer_to(wid), Accepted)
    caller.end_of(wid)


def test_a_grammar_that_cannot_be_done_is_refused_by_name(caller):
    for _ in range(2):
        answer = caller.answer_to(caller.ask(schema({"not": {}})))
        assert answer.reason == "invalid" and "uses not" in answer.message
    wid = caller.ask()
    assert isinstance(caller.answer_to(wid), Accepted), "the engine lives"


def test_others_are_answered_and_go_on_while_a_large_schema_compiles(caller):
    caller.answer_to(caller.ask(schema({"const": "wake the process of trials"})))
    names = [f"property_{number}" for number in range(2_000)]
    large = {"type": "object", "properties": dict.fromkeys(names, {"type": "string"})}
    streaming = caller.ask(max_tokens=10_000)
    caller.answer_to(streaming)
    slow = caller.ask(schema(large | {"required": names}))
    quick = caller.ask()
    assert isinstance(caller.answer_to(quick), Accepted)
    order = [m.wid for _, m in caller.messages if isinstance(m, Accepted)]
    assert slow not in order
    assert isinstance(caller.answer_to(slow), Accepted)
    caller.send(Abort(streaming))


def test_a_request_aborted_while_its_grammar_compiles_ends_without_a_word(caller):
    slow = caller.ask(schema({"enum": [f"value {number}" for number in range(9_000)]}))
    caller.send(Abort(slow))
    other = caller.ask(schema({"enum": [f"value {number}" for number in range(9_000)]}))
    caller.answer_to(other)
    caller.end_of(other)
    spoken_of = {m.wid for _, m in caller.messages if isinstance(m, Accepted | Rejected)}
    assert slow not in spoken_of


@pytest.mark.timing
def test_a_large_schema_that_compiles_delays_no_steps(caller):
    caller.answer_to(caller.ask(schema({"const": "wake the process of trials"})))

    def gaps(grammars):
        wid = caller.ask(max_tokens=10_000)
        caller.answer_to(wid)
        caller.messages.clear()
        started = time.monotonic()
        while time.monotonic() < started + 2:
            if grammars:
                caller.ask(grammars.pop())
            caller.read(started + 5)
        caller.send(Abort(wid))
        times = [at for at, m in caller.messages if isinstance(m, StepUpdate)]
        found = sorted(b - a for a, b in zip(times, times[1:], strict=False))
        return found[int(0.99 * len(found))]

    names = [f"property_{number}" for number in range(2_000)]
    large = [
        schema({"type": "object", "required": names, "title": str(number)}) for number in range(3)
    ]
    quiet, busy = gaps([]), gaps(large)
    print(f"p99 of the gaps: {1000 * quiet:.1f} ms quiet, {1000 * busy:.1f} ms compiling")
    assert busy < 1.5 * quiet + 0.002
