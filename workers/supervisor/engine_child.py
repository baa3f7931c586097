"""EngineChild: an engine process as its supervisor sees it; says whether it is ready or hangs."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import msgspec

from workers.config import EngineConfig
from workers.supervisor.standby import Standby
from workers.wire.engine_stats import Phase
from workers.wire.shared_memory import SharedMemory
from workers.worker import process
from workers.worker.supervisor_pipe import SupervisorPipe
from workers.worker.worker_spec import WorkerSpec


class EngineChild:
    """One engine process as its supervisor sees it; a `supervised_process.Child`."""

    def __init__(
        self,
        config: EngineConfig,
        spec: WorkerSpec,
        memory: SharedMemory,
        on_progress: Callable[[str, str, float], None] = lambda name, what, fraction: None,
        standby: Standby | None = None,
    ) -> None:
        self.name = spec.name
        self.failure: str | None = None
        self.port = 0  # of TCP, when it is ready and has one
        self.rendezvous: str | None = None  # once it waits there for ranks on other machines
        self._config = config
        self._spec = spec
        self._memory = memory
        self._on_progress = on_progress
        self._standby = standby
        self._is_ending = False
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None
        self._is_ready = False
        self._num_tokens, self._has_served = 0, False
        self._silent_beat_ns = 0

    def start(self) -> None:
        """Take the process in waiting, or spawn one: in a forked one neither CUDA nor threads would
        work.
        """
        self.failure, self._is_ready, self._has_served = None, False, False
        self._is_ending = False
        if self._standby and (taken := self._standby.take(self._config, self._spec)):
            self._process, self._pipe = taken
            return
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe(duplex=True)
        self._process = context.Process(
            target=process.main,
            args=(self._config, self._spec, SupervisorPipe(theirs)),
            name=self.name,
        )
        try:
            self._process.start()
        finally:
            theirs.close()

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal, or None while the process runs."""
        self._hear()
        if self._standby and self._is_ready and not self._is_ending:
            self._standby.keep(self._config)
        num_tokens = self._memory.read(self._spec.index)["generated_tokens"]
        # Growth, as the row keeps a lost process's number until the next one has written its own.
        self._has_served = self._has_served or num_tokens > self._num_tokens
        self._num_tokens = num_tokens
        return self._process.exitcode if self._process else None

    def is_ready(self) -> bool:
        return self._is_ready

    def has_served(self) -> bool:
        """Return whether a step has given somebody tokens since the start."""
        return self._has_served

    def hang(self) -> str | None:
        """Return why the engine must be taken for hung, or None.

        It must be found silent twice in a row: whoever has slept with the whole machine looks first
        and finds everybody silent.
        """
        row = self._memory.read(self._spec.index)
        age = time.monotonic_ns() - row["beat_ns"]
        if row["pid"] != self.pid or age <= row["step_timeout_ns"]:
            return None
        known_ns, self._silent_beat_ns = self._silent_beat_ns, row["beat_ns"]
        if known_ns != row["beat_ns"]:
            return None
        where = "while idle" if row["phase"] == Phase.IDLE else f"in step {row['step']}"
        return f"no sign of life for {age / 1e9:.1f} s {where}"

    def discourage(self) -> None:
        """Do nothing: the HTTP half says who is ready."""

    def is_idle(self) -> bool:
        """Return True: it works for the HTTP half, which is asked itself."""
        return True

    def terminate(self) -> None:
        self._end_standby()
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._is_ending = True  # a hung one may be killed, and the next start in the standby
        self._signal(signal.SIGKILL)

    def dump(self) -> None:
        """Ask a hung process for the stacks of its threads; a stopped one cannot answer."""
        self._signal(signal.SIGABRT)

    def _end_standby(self) -> None:
        self._is_ending = True
        if self._standby:
            self._standby.close()

    def _signal(self, number: int) -> None:
        if self._process is not None and self._process.exitcode is None and self.pid:
            os.kill(self.pid, number)

    def _hear(self) -> None:
        try:
            while self._pipe is not None and self._pipe.poll():
                self._on_event(msgspec.json.decode(self._pipe.recv_bytes()))
        except (EOFError, OSError):
            self._pipe = None

    def _on_event(self, event: dict[str, Any]) -> None:
        match event["event"]:
            case "progress":
                self._on_progress(self.name, event["what"], event["fraction"])
            case "ready":
                self._is_ready, self.port = True, event["port"]
            case "rendezvous":
                self.rendezvous = event["url"]
            case "fatal":
                self.failure = event["message"]
