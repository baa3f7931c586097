"""An engine process: the socket thread takes requests, the engine loop runs them.

    HTTP process ── frames ──► socket thread ── admission ── inbox ──► loop: apply, step, publish
                 ◄─────────────────────────── one StepUpdate frame per connection and step ──┘

The loop never waits for a peer and is the only thread that touches the core. It writes the
heartbeat itself, at both ends of every step: a heartbeat from a side thread would only prove that
the interpreter lives.
"""

import faulthandler
import logging
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import fields

from workers import logs
from workers.config import EngineConfig
from workers.engine_core import EngineCore, StepOutput
from workers.errors import ExitCode, WorkerError
from workers.wire.engine_stats import ENGINE_COUNTERS, ENGINE_LAYOUT, EngineStats, Phase
from workers.wire.protocol import Abort, Accepted, Generate, Hello, Message, Ping, Pong, StepUpdate
from workers.wire.shared_memory import SharedMemory, Slot
from workers.worker.admission import Admission
from workers.worker.listener import EngineListener
from workers.worker.report import Report, WorkerSpec

log = logging.getLogger(__name__)

# How long an idle loop sleeps before it shows a sign of life and looks at its signals.
IDLE_SECONDS = 0.5
MIN_STEP_TIMEOUT = {"cuda": 10.0, "cpu": 120.0, "stub": 10.0}
LOADING_TIMEOUT = 900.0
SLOWEST_STEPS = 20
# What a core counts itself, of what the page does.
CORE_COUNTERS = {field.name for field in fields(EngineStats)} & set(ENGINE_COUNTERS)


class Inbox:
    """What the socket thread has for the loop, in order of arrival."""

    def __init__(self) -> None:
        self._items: deque[tuple[int, Message | None]] = deque()
        self._changed = threading.Condition()

    def put(self, connection_id: int, message: Message | None) -> None:
        """Queue a message; None says that the connection has ended."""
        with self._changed:
            self._items.append((connection_id, message))
            self._changed.notify()

    def take(self, timeout: float) -> list[tuple[int, Message | None]]:
        """Return everything queued, after waiting up to `timeout` seconds for the first."""
        with self._changed:
            if not self._items and timeout:
                self._changed.wait(timeout)
            items = list(self._items)
            self._items.clear()
        return items


class Worker:
    """The loop of one engine process, and what the socket thread may ask of it."""

    def __init__(self, core: EngineCore, config: EngineConfig, spec: WorkerSpec, row: Slot) -> None:
        self._core = core
        self._config = config
        self._row = row
        self._inbox = Inbox()
        self._admission = Admission(core.card, config.max_waiting)
        self._live: dict[int, set[int]] = {}
        self._idle_seconds = min(IDLE_SECONDS, (config.step_timeout or 60) / 4)
        self._slowest_step = 0.0
        self._is_draining = False
        self._generation = row["generation"]
        # A core counts from its own start; the page goes on where the last process was lost.
        self._counted_before = {name: row[name] for name in CORE_COUNTERS}
        self._spec = spec
        self._listener = EngineListener(spec.socket_path, self._hello, self)

    def start(self) -> None:
        self._listener.start()

    def drain(self) -> None:
        """Refuse new requests, finish those admitted, then return from `run`; a signal handler may
        call this.
        """
        self._is_draining = self._admission.is_draining = True

    def run(self) -> None:
        """Serve until drained; an exception of the core ends the process, and the supervisor starts
        a new one.
        """
        while not (self._is_draining and not self._admission.num_admitted):
            self.tick()
        self._listener.close()

    def tick(self) -> None:
        """Apply what has arrived and run at most one step."""
        self._beat(Phase.DRAINING if self._is_draining else Phase.IDLE)
        arrived = self._inbox.take(0 if self._core.has_work else self._idle_seconds)
        for connection_id, message in arrived:
            self._apply(connection_id, message)
        if self._core.has_work:
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
                self._core.add((connection_id, message.wid), message)
            case Abort(wid=wid, choices=choices):
                if self._core.abort((connection_id, wid), choices):
                    self._forget(connection_id, wid)
            case Ping(nonce=nonce):
                self._listener.send(connection_id, Pong(nonce))
            case None:
                for wid in list(live):
                    self._core.abort((connection_id, wid))
                    self._forget(connection_id, wid)
                del self._live[connection_id]

    def _forget(self, connection_id: int, wid: int, *, finished: bool = False) -> None:
        self._live.get(connection_id, set()).discard(wid)
        self._admission.release((connection_id, wid), finished=finished)

    def _step(self) -> None:
        self._row["step"] += 1
        self._beat(Phase.DRAINING if self._is_draining else Phase.STEPPING)
        started = time.monotonic()
        output = self._core.step()
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
        stats = self._core.stats()
        self._admission.publish(stats)
        counted = {
            name: before + getattr(stats, name) for name, before in self._counted_before.items()
        }
        self._row.update(**vars(stats) | counted)

    def _beat(self, phase: int) -> None:
        device = self._core.card.device.split(":")[0]
        timeout = self._config.step_timeout or max(
            MIN_STEP_TIMEOUT[device], SLOWEST_STEPS * self._slowest_step
        )
        self._row.update(
            phase=phase, step_timeout_ns=int(timeout * 1e9), beat_ns=time.monotonic_ns()
        )

    def _hello(self, version: int) -> Hello:
        return Hello(
            version,
            self._generation,
            self._spec.index,
            str(self._spec.shared_memory_path),
            self._core.card,
        )


def _frames(output: StepOutput) -> dict[int, StepUpdate]:
    """Sort a step's output by connection: one frame each."""
    frames: dict[int, StepUpdate] = {}

    def frame(connection_id: int) -> StepUpdate:
        return frames.setdefault(connection_id, StepUpdate())

    for (connection_id, _), started in output.started:
        frame(connection_id).started.append(started)
    for (connection_id, _), chunk in output.chunks:
        frame(connection_id).chunks.append(chunk)
    for (connection_id, _), finished in output.finished:
        frame(connection_id).finished.append(finished)
    for (connection_id, _), failed in output.failed:
        frame(connection_id).failed.append(failed)
    return frames


def load_core(config: EngineConfig, progress: Callable[[str, float], None]) -> EngineCore:
    """Return the engine, or its stub; torch is imported only here."""
    if config.stub:
        from workers.worker.stub import StubEngine

        return StubEngine(config)
    from workers.engine.engine import Engine

    return Engine(config, progress)


def main(config: EngineConfig, spec: WorkerSpec, report: Report) -> None:
    """Run an engine process from its spawn to its end; the exit code says why it ended."""
    os.setsid()
    report.end_with_supervisor()
    # Also on SIGABRT, the supervisor's way of asking a hung engine where it hangs.
    faulthandler.enable()
    logs.configure(spec.name, config.log_level, config.log_format)
    try:
        worker = _start(config, spec, report)
    except WorkerError as error:
        report.fatal(str(error))
        sys.exit(error.exit_code)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        report.fatal(f"out of memory while loading {config.model}; see --max-num-seqs and --dtype")
        sys.exit(ExitCode.OUT_OF_MEMORY)
    signal.signal(signal.SIGTERM, lambda *_: worker.drain())
    worker.start()
    report.ready()
    worker.run()
    sys.exit(ExitCode.OK)


def _start(config: EngineConfig, spec: WorkerSpec, report: Report) -> Worker:
    # OpenMP reads this once, when torch is imported: more threads than cores fight for them.
    os.environ["OMP_NUM_THREADS"] = str(config.threads or os.cpu_count() or 1)
    row = SharedMemory.open(spec.shared_memory_path, ENGINE_LAYOUT).lease(spec.index)
    row.update(
        pid=os.getpid(),
        starts=row["starts"] + 1,
        generation=time.time_ns(),
        phase=Phase.LOADING,
        beat_ns=time.monotonic_ns(),
        step_timeout_ns=int(LOADING_TIMEOUT * 1e9),
        running=0,
        waiting=0,
        free_blocks=0,
        total_blocks=0,
    )

    def progress(what: str, fraction: float) -> None:
        row["beat_ns"] = time.monotonic_ns()
        report.progress(what, fraction)

    return Worker(load_core(config, progress), config, spec, row)


def is_out_of_memory(error: Exception) -> bool:
    """Tell memory that ran out, by name where it is torch's: this module never imports torch."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
