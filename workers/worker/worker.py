"""Worker: the engine loop, which applies requests, runs steps and publishes what they gave.

    HTTP process ── frames ──► socket thread ── admission ── inbox ──► loop: apply, step, publish
                 ◄─────────────────────────── one StepUpdate frame per connection and step ──┘

The loop never waits for a peer and is the only thread that touches the engine. It writes the
heartbeat itself, before each step and while it is idle: a heartbeat from a side thread would only
prove that the interpreter lives. With each goes how long it may be until the next, which of an idle
loop is short: see StepTimes.
"""

import logging
import time
from dataclasses import fields
from pathlib import Path

from workers.config import EngineConfig
from workers.engine_core import EngineCore, StepOutput
from workers.grammar.compiler import GrammarCompiler
from workers.grammar.tokenizer_file import TokenizerFile
from workers.wire.engine_stats import ENGINE_COUNTERS, ENGINE_LAYOUT, EngineStats, Phase
from workers.wire.protocol import (
    Abort,
    Accepted,
    Generate,
    Hello,
    Message,
    Ping,
    Pong,
    SlotUpdate,
    StepUpdate,
)
from workers.wire.shared_memory import Slot
from workers.worker.admission import Admission
from workers.worker.grammar_gate import GrammarGate
from workers.worker.inbox import Inbox
from workers.worker.listener import EngineListener
from workers.worker.step_times import StepTimes
from workers.worker.tcp_door import TcpDoor
from workers.worker.worker_spec import WorkerSpec

log = logging.getLogger(__name__)

# How long an idle loop sleeps before it shows a sign of life and looks at its signals.
IDLE_SECONDS = 0.5
# An idle loop without a sign of life for so long is taken for hung; and the least that a step may
# take of which nothing comparable is known.
IDLE_TIMEOUT = 5.0
PATIENCE = {"cuda": 10.0, "cpu": 120.0, "stub": 10.0}
# The counters of a slot that an engine counts itself, from its own start.
OWN_COUNTERS = {field.name for field in fields(EngineStats)} & set(ENGINE_COUNTERS)


class Worker:
    """The loop of one engine process, and what the socket thread may ask of it."""

    def __init__(
        self, engine: EngineCore, config: EngineConfig, spec: WorkerSpec, row: Slot
    ) -> None:
        self._engine = engine
        self._config = config
        self._row = row
        self._inbox = Inbox()
        self._admission = Admission(engine.card, config.max_waiting)
        self._live: dict[int, set[int]] = {}
        self._idle_seconds = min(IDLE_SECONDS, (config.step_timeout or 60) / 4)
        self._step_times = StepTimes(
            PATIENCE[engine.card.device.split(":")[0]], engine.card.max_num_batched_tokens
        )
        self._is_draining = False
        self._generation = row["generation"]
        # The slot goes on where the last process was lost.
        self._counted_before = {name: row[name] for name in OWN_COUNTERS}
        self._spec = spec
        door = self._door = None if spec.door is None else TcpDoor(spec.door)
        self._listener = EngineListener(spec.socket_path, self._hello, self, door, self._slot)
        card = engine.card
        tokenizer = Path(card.model_dir) / "tokenizer.json"
        self._compiler = GrammarCompiler(
            TokenizerFile(str(tokenizer), card.vocab_size, card.eos_token_ids)
        )
        send, forward = self._listener.send, self._inbox.put
        self._gate = GrammarGate(self._compiler, self._admission, send, forward)

    @property
    def port(self) -> int:
        """Return the TCP port that other machines find it at; 0: it has none."""
        return 0 if self._door is None else self._door.port

    def start(self) -> None:
        self._listener.start()

    def drain(self) -> None:
        """Refuse new requests and let `run` finish those admitted; for a signal handler."""
        self._is_draining = self._admission.is_draining = True

    def run(self) -> None:
        """Serve until drained; an exception of the engine ends the process, to be started anew."""
        while not (self._is_draining and not self._admission.num_admitted):
            self.tick()
        self._beat_busy()
        self._listener.close()
        self._compiler.close()

    def tick(self) -> None:
        """Apply what has arrived and run at most one step."""
        arrived = self._inbox.take(0)
        if not arrived and not self._engine.has_work:
            self._beat(Phase.IDLE, min(IDLE_TIMEOUT, self._config.step_timeout or IDLE_TIMEOUT))
            self._engine.check_ranks()
            arrived = self._inbox.take(self._idle_seconds)
        if arrived:
            self._beat_busy()
        for connection_id, message in arrived:
            self._apply(connection_id, message)
        if self._engine.has_work:
            self._step()
        elif arrived:
            self._publish_stats()

    # The socket thread calls these two.

    def on_message(self, connection_id: int, message: Message) -> None:
        if isinstance(message, Generate):
            answer = self._admission.decide((connection_id, message.wid), message)
            if answer is None and message.grammar is not None:
                self._gate.enter(connection_id, message)
                return
            # Accepted goes out before the loop can see the request, so it always precedes the first
            # StepUpdate.
            self._listener.send(connection_id, answer or Accepted(message.wid))
            if answer is not None:
                log.info("request %s rejected: %s", message.request_id, answer.reason)
                return
        if isinstance(message, Abort) and self._gate.abort(connection_id, message):
            return
        self._inbox.put(connection_id, message)

    def on_closed(self, connection_id: int) -> None:
        self._gate.close(connection_id)
        self._inbox.put(connection_id, None)

    def _apply(self, connection_id: int, message: Message | None) -> None:
        live = self._live.setdefault(connection_id, set())
        match message:
            case Generate():
                live.add(message.wid)
                key = (connection_id, message.wid)
                self._step_times.add(key, message)
                self._engine.add(key, message, self._gate.take(key))
            case Abort(wid=wid, choices=choices):
                if self._engine.abort((connection_id, wid), choices):
                    self._forget(connection_id, wid)
            case Ping(nonce=nonce):
                self._listener.send(connection_id, Pong(nonce))
            case None:
                for wid in list(live):
                    self._engine.abort((connection_id, wid))
                    self._forget(connection_id, wid)
                del self._live[connection_id]

    def _forget(self, connection_id: int, wid: int, *, finished: bool = False) -> None:
        self._live.get(connection_id, set()).discard(wid)
        self._step_times.forget((connection_id, wid))
        self._admission.release((connection_id, wid), finished=finished)

    def _step(self) -> None:
        self._row["step"] += 1
        self._beat_busy()
        started = time.monotonic()
        output = self._engine.step()
        self._step_times.note(time.monotonic() - started, output)
        self._publish(output)

    def _publish(self, output: StepOutput) -> None:
        for connection_id, step in _frames(output).items():
            self._listener.send(connection_id, step)
        for (connection_id, wid), _ in output.finished:
            self._forget(connection_id, wid, finished=True)
        for (connection_id, wid), _ in output.failed:
            self._forget(connection_id, wid)
        self._publish_stats()

    def _publish_stats(self) -> None:
        stats = self._engine.stats()
        self._step_times.note_preemptions(stats.preemptions)
        self._admission.publish(stats)
        counted = {
            name: before + getattr(stats, name) for name, before in self._counted_before.items()
        }
        self._row.update(**vars(stats) | counted)

    def _beat_busy(self) -> None:
        self._beat(Phase.STEPPING, self._config.step_timeout or self._step_times.limit)

    def _beat(self, phase: int, timeout: float) -> None:
        # The limit before the beat, as a reader may come between: the old beat is too old for a
        # short limit, but not for a long one.
        beat_ns, timeout_ns = time.monotonic_ns(), int(timeout * 1e9)
        if timeout_ns < self._row["step_timeout_ns"]:
            self._row.update(beat_ns=beat_ns, step_timeout_ns=timeout_ns)
        else:
            self._row.update(step_timeout_ns=timeout_ns, beat_ns=beat_ns)
        self._row["phase"] = Phase.DRAINING if self._is_draining else phase

    def _hello(self, version: int) -> Hello:
        path = str(self._spec.shared_memory_path)
        index, node = self._spec.index, self._spec.node
        return Hello(version, self._generation, index, path, self._engine.card, node)

    def _slot(self) -> SlotUpdate:
        age_ns = time.monotonic_ns() - self._row["beat_ns"]
        return SlotUpdate(ENGINE_LAYOUT.hash, age_ns, tuple(self._row.values()))


def _frames(output: StepOutput) -> dict[int, StepUpdate]:
    """Sort a step's output by connection: one frame each."""
    frames: dict[int, StepUpdate] = {}
    for field in fields(output):
        for (connection_id, _), item in getattr(output, field.name):
            frame = frames.setdefault(connection_id, StepUpdate())
            getattr(frame, field.name).append(item)
    return frames
