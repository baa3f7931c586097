"""Worker: the engine loop, which applies requests, runs steps and publishes what they gave.

    HTTP process ── frames ──► socket thread ── admission ── inbox ──► loop: apply, step, publish
                 ◄─────────────────────────── one StepUpdate frame per connection and step ──┘

The loop never waits for a peer and is the only thread that touches the engine. It writes the
heartbeat itself, at both ends of every step: a heartbeat from a side thread would only prove that
the interpreter lives.
"""

import logging
import time
from dataclasses import fields

from workers.config import EngineConfig
from workers.engine_core import EngineCore, StepOutput
from workers.wire.engine_stats import ENGINE_COUNTERS, EngineStats, Phase
from workers.wire.protocol import Abort, Accepted, Generate, Hello, Message, Ping, Pong, StepUpdate
from workers.wire.shared_memory import Slot
from workers.worker.admission import Admission
from workers.worker.inbox import Inbox
from workers.worker.listener import EngineListener
from workers.worker.worker_spec import WorkerSpec

log = logging.getLogger(__name__)

# How long an idle loop sleeps before it shows a sign of life and looks at its signals.
IDLE_SECONDS = 0.5
MIN_STEP_TIMEOUT = {"cuda": 10.0, "cpu": 120.0, "stub": 10.0}
SLOWEST_STEPS = 20
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
        self._slowest_step = 0.0
        self._is_draining = False
        self._generation = row["generation"]
        # The slot goes on where the last process was lost.
        self._counted_before = {name: row[name] for name in OWN_COUNTERS}
        self._spec = spec
        self._listener = EngineListener(spec.socket_path, self._hello, self)

    def start(self) -> None:
        self._listener.start()

    def drain(self) -> None:
        """Refuse new requests and let `run` finish those admitted; for a signal handler."""
        self._is_draining = self._admission.is_draining = True

    def run(self) -> None:
        """Serve until drained; an exception of the engine ends the process, to be started anew."""
        while not (self._is_draining and not self._admission.num_admitted):
            self.tick()
        self._listener.close()

    def tick(self) -> None:
        """Apply what has arrived and run at most one step."""
        self._beat(Phase.DRAINING if self._is_draining else Phase.IDLE)
        arrived = self._inbox.take(0 if self._engine.has_work else self._idle_seconds)
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
            # Accepted goes out before the loop can see the request, so it always precedes the first
            # StepUpdate.
            self._listener.send(connection_id, answer or Accepted(message.wid))
            if answer is not None:
                log.info("request %s rejected: %s", message.request_id, answer.reason)
                return
        self._inbox.put(connection_id, message)

    def on_closed(self, connection_id: int) -> None:
        self._inbox.put(connection_id, None)

    def _apply(self, connection_id: int, message: Message | None) -> None:
        live = self._live.setdefault(connection_id, set())
        match message:
            case Generate():
                live.add(message.wid)
                self._engine.add((connection_id, message.wid), message)
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
        self._admission.release((connection_id, wid), finished=finished)

    def _step(self) -> None:
        self._row["step"] += 1
        self._beat(Phase.DRAINING if self._is_draining else Phase.STEPPING)
        started = time.monotonic()
        output = self._engine.step()
        self._slowest_step = max(self._slowest_step, time.monotonic() - started)
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
        self._admission.publish(stats)
        counted = {
            name: before + getattr(stats, name) for name, before in self._counted_before.items()
        }
        self._row.update(**vars(stats) | counted)

    def _beat(self, phase: int) -> None:
        device = self._engine.card.device.split(":")[0]
        timeout = self._config.step_timeout or max(
            MIN_STEP_TIMEOUT[device], SLOWEST_STEPS * self._slowest_step
        )
        self._row.update(
            phase=phase, step_timeout_ns=int(timeout * 1e9), beat_ns=time.monotonic_ns()
        )

    def _hello(self, version: int) -> Hello:
        path = str(self._spec.shared_memory_path)
        return Hello(version, self._generation, self._spec.index, path, self._engine.card)


def _frames(output: StepOutput) -> dict[int, StepUpdate]:
    """Sort a step's output by connection: one frame each."""
    frames: dict[int, StepUpdate] = {}
    for field in fields(output):
        for (connection_id, _), item in getattr(output, field.name):
            frame = frames.setdefault(connection_id, StepUpdate())
            getattr(frame, field.name).append(item)
    return frames
