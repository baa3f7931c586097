"""Standby: a process that has imported the engine and waits; the next engine starts in it.

Most of what a small model's engine takes to start is the import of torch and transformers. One
process is kept for all engines of a half, and another is made some time after it was taken, when
the engine that took it is up. Of a large model it is the reading of weights, which that process can
hold in memory.
"""

import logging
import multiprocessing.util
import time
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from workers.config import EngineConfig
from workers.worker import standby
from workers.worker.worker_spec import WorkerSpec

log = logging.getLogger(__name__)

# After one was taken: whoever took it needs the machine. After one was made: it may have died.
PAUSE_SECONDS = 5.0


class Standby:
    """At most one process in waiting."""

    def __init__(self, *, holds_weights: bool = False) -> None:
        self._holds_weights = holds_weights
        self._made_as = (0, "")
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None
        self._next_at = 0.0
        # Before multiprocessing waits for all that it has started, at the end of the interpreter.
        multiprocessing.util.Finalize(None, self.close, exitpriority=10)

    def keep(self, config: EngineConfig) -> None:
        """Make one if there is none for engines like this."""
        is_there = self._process is not None and self._process.is_alive()
        is_fit = self._kind(config) == self._made_as
        if is_there and is_fit or time.monotonic() < self._next_at:
            return
        if self._process is not None and not is_there:
            log.warning("the process in waiting has ended with %s", self._process.exitcode)
        self.close()
        self._next_at = time.monotonic() + PAUSE_SECONDS
        try:
            self._make(config)
        except OSError as error:  # the engines have to do without
            log.warning("no process in waiting: %s", error)
            self.close()

    def _kind(self, config: EngineConfig) -> tuple[int, str]:
        """Return what it must know early: OpenMP's threads, and whose weights it is to hold."""
        return config.threads, config.model if self._holds_weights else ""

    def _make(self, config: EngineConfig) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe(duplex=True)
        self._made_as = self._kind(config)
        try:
            process = context.Process(
                target=standby.main, args=(config, self._holds_weights, theirs), name=standby.NAME
            )
            process.start()
            self._process = process
        finally:
            theirs.close()

    def take(self, config: EngineConfig, spec: WorkerSpec) -> tuple[BaseProcess, Connection] | None:
        """Return the process in waiting, which becomes that engine, and the pipe to it."""
        process, pipe = self._process, self._pipe
        self._next_at = time.monotonic() + PAUSE_SECONDS
        if process is None or pipe is None or self._made_as[0] != config.threads:
            return None
        try:
            pipe.send((config, spec))
        except OSError:
            self.close()  # it has died while it waited
            return None
        self._process = self._pipe = None
        return process, pipe

    def close(self) -> None:
        """End the process in waiting, if there is one."""
        if self._process is not None and self._process.pid is not None:
            self._process.kill()
            self._process.join()
        if self._pipe is not None:
            self._pipe.close()
        self._process = self._pipe = None
