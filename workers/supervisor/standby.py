"""Standby: a process that has imported the engine and waits; the next engine starts in it.

Most of what a small model's engine takes to start is the import of torch and transformers. One
process is kept for all engines of a half, and another is made some time after it was taken, when
the engine that took it is up.
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

    def __init__(self) -> None:
        self._threads = 0
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None
        self._next_at = 0.0
        # Before multiprocessing waits for all that it has started, at the end of the interpreter.
        multiprocessing.util.Finalize(None, self.close, exitpriority=10)

    def keep(self, threads: int) -> None:
        """Make one if there is none; `threads` are those of the engines, which it must know."""
        is_there = self._process is not None and self._process.is_alive()
        if is_there and self._threads == threads or time.monotonic() < self._next_at:
            return
        if self._process is not None and not is_there:
            log.warning("the process in waiting has ended with %s", self._process.exitcode)
        self.close()
        self._next_at = time.monotonic() + PAUSE_SECONDS
        try:
            self._make(threads)
        except OSError as error:  # the engines have to do without
            log.warning("no process in waiting: %s", error)
            self.close()

    def _make(self, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe(duplex=True)
        self._threads = threads
        try:
            process = context.Process(
                target=standby.main, args=(threads, theirs), name="engine-standby"
            )
            process.start()
            self._process = process
        finally:
            theirs.close()

    def take(self, config: EngineConfig, spec: WorkerSpec) -> tuple[BaseProcess, Connection] | None:
        """Return the process in waiting, which becomes that engine, and the pipe to it."""
        process, pipe = self._process, self._pipe
        self._next_at = time.monotonic() + PAUSE_SECONDS
        if process is None or pipe is None or self._threads != config.threads:
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
