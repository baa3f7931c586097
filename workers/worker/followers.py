"""Followers: the other processes of a tensor-parallel engine, which live and end with its first.

Started by spawn, before the first rank imports torch, so that all load at the same time. A follower
is killed by the kernel when the first rank ends, however that ended; and the first rank is told
when a follower ends, which is then to end too: so a group lives or dies as one, and its supervisor
sees one process. What a rank may compute is its own part of the machine's cores.
"""

import faulthandler
import multiprocessing
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import msgspec

from workers import logs
from workers.config import EngineConfig
from workers.errors import describe_exit
from workers.worker.openmp import prepare_openmp
from workers.worker.supervisor_pipe import SupervisorPipe

OnEnd = Callable[[str, int], None]

# A process that ends closes its sockets before its parent can know.
_GRACE_SECONDS = 1.0


class Followers:
    """All ranks but the first, from `start` to `stop`."""

    def __init__(self, config: EngineConfig, name: str, folder: Path) -> None:
        """`name` is the engine's; all ranks find each other by a file of that name in `folder`."""
        rendezvous = folder / f"{name}.rendezvous"
        rendezvous.unlink(missing_ok=True)  # a lost group's
        # What the first rank is to start with.
        self.config = replace(config, rendezvous=str(rendezvous))
        self._name = name
        self._processes: list[BaseProcess] = []
        self._watcher: threading.Thread | None = None
        self._pipes: list[Connection] = []
        self._is_over = False

    @property
    def pids(self) -> list[int]:
        """Return their process ids, in the order of ranks."""
        return [process.pid or 0 for process in self._processes]

    def start(self, on_end: OnEnd) -> None:
        """Spawn all; `on_end` is told, on another thread, of the first that ends before `stop`:
        why, and with what exit code.
        """
        if self.config.tensor_parallel_size == 1:
            return
        context = multiprocessing.get_context("spawn")
        for rank in range(1, self.config.tensor_parallel_size):
            ours, theirs = context.Pipe(duplex=True)
            name = f"{self._name}.{rank}"
            process = context.Process(
                target=main,
                args=(replace(self.config, rank=rank), name, SupervisorPipe(theirs)),
                name=name,
                daemon=True,
            )
            try:
                process.start()
            finally:
                theirs.close()
            self._processes.append(process)
            self._pipes.append(ours)
        self._watcher = threading.Thread(target=self._watch, args=(on_end,), daemon=True)
        self._watcher.start()

    def let_watcher_end_us(self) -> None:
        """Wait a moment for the end of a follower, which would be why a collective failed here, and
        then for `on_end`.
        """
        sentinels = [process.sentinel for process in self._processes]
        if self._watcher is not None and connection.wait(sentinels, _GRACE_SECONDS):
            self._watcher.join()

    def stop(self) -> None:
        """End all, without telling anybody."""
        self._is_over = True
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.kill()
            process.join()

    def _watch(self, on_end: OnEnd) -> None:
        sentinels = {process.sentinel: number for number, process in enumerate(self._processes)}
        number = sentinels[connection.wait(list(sentinels))[0]]  # type: ignore[index]
        if self._is_over:
            return
        process, pipe = self._processes[number], self._pipes[number]
        process.join()
        code = process.exitcode or 0
        on_end(_last_words(pipe) or f"{process.name} ended ({describe_exit(code)})", code)


def main(config: EngineConfig, name: str, pipe: SupervisorPipe) -> None:
    """Run a follower from its spawn until it is killed."""
    pipe.end_with_supervisor()
    for number in (signal.SIGINT, signal.SIGTERM):  # meant for all of a service; the first decides
        signal.signal(number, signal.SIG_IGN)
    faulthandler.enable()
    logs.configure(name, config.log_level, config.log_format)
    prepare_openmp(config.threads)
    with pipe.fatal_errors(f"with {config.model}"):
        from workers.engine.start import follow

        follow(config)


def _last_words(pipe: Connection) -> str:
    """Return what a follower said of its end, if it did."""
    try:
        while pipe.poll():
            event = msgspec.json.decode(pipe.recv_bytes())
            if event["event"] == "fatal":
                return str(event["message"])
    except (EOFError, OSError):
        pass  # it said nothing
    return ""
