"""Followers: the other processes of a tensor-parallel engine, which live and end with its first.

Started by spawn, before the first rank imports torch, so that all load at the same time. A follower
is killed by the kernel when its parent ends, however that ended; and the parent is told when a
follower ends, which is then to end too: so a group lives or dies as one, and its supervisor sees
one process. The parent is the first rank, or where that is on another machine, whoever keeps the
ranks of this one. What a rank may compute is its own part of the machine's cores.
"""

import faulthandler
import multiprocessing
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import msgspec

from workers import logs
from workers.config import EngineConfig
from workers.errors import ExitCode, RankLost, describe_exit
from workers.worker.openmp import prepare_openmp
from workers.worker.supervisor_pipe import SupervisorPipe

OnEnd = Callable[[str, int], None]

# A process that ends closes its sockets before its parent can know.
_GRACE_SECONDS = 1.0
# A follower whose group is gone is killed by then, and its own end would be taken for the cause.
_LAST_SECONDS = 5.0


class Followers:
    """All ranks on this machine but the engine's first, from `start` to `stop`."""

    def __init__(self, config: EngineConfig, name: str) -> None:
        """`name` is the engine's; `config` that of the first rank here, which is the engine's first
        or a follower as all others.
        """
        self._config = config
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
        why, and the exit code that the engine is to have of it.
        """
        first = self._config.rank
        stop = first + self._config.num_local_ranks
        for rank in range(max(1, first), stop):
            self._spawn(replace(self._config, rank=rank, local_rank=rank - first))
        if self._processes:
            self._watcher = threading.Thread(target=self._watch, args=(on_end,), daemon=True)
            self._watcher.start()

    def let_watcher_end_us(self) -> None:
        """Wait a moment for the end of a follower, which would be why a collective failed here, and
        then for `on_end`; who hears of those on other machines ends this process itself.
        """
        sentinels = [process.sentinel for process in self._processes]
        if not sentinels and not self._config.interface:
            return
        if connection.wait(sentinels, _GRACE_SECONDS) and self._watcher is not None:
            self._watcher.join()

    def stop(self) -> None:
        """End all, without telling anybody."""
        self._is_over = True
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.kill()
            process.join()

    def _spawn(self, config: EngineConfig) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe(duplex=True)
        name = f"{self._name}.{config.rank}"
        process = context.Process(
            target=main, args=(config, name, SupervisorPipe(theirs)), name=name, daemon=True
        )
        try:
            process.start()
        finally:
            theirs.close()
        self._processes.append(process)
        self._pipes.append(ours)

    def _watch(self, on_end: OnEnd) -> None:
        sentinels = {process.sentinel: number for number, process in enumerate(self._processes)}
        number = sentinels[connection.wait(list(sentinels))[0]]  # type: ignore[index]
        if self._is_over:
            return
        process, pipe = self._processes[number], self._pipes[number]
        process.join()
        code = process.exitcode or 0
        on_end(_last_words(pipe) or f"{process.name} ended ({describe_exit(code)})", _known(code))


def main(config: EngineConfig, name: str, pipe: SupervisorPipe) -> None:
    """Run a follower from its spawn until it is killed."""
    pipe.end_with_supervisor()
    for number in (signal.SIGINT, signal.SIGTERM):  # meant for all of a service; the first decides
        signal.signal(number, signal.SIG_IGN)
    faulthandler.enable()
    logs.configure(name, config.log_level, config.log_format)
    prepare_openmp(config.threads)
    try:
        with pipe.fatal_errors(f"with {config.model}"):
            from workers.engine.start import follow

            follow(config)
    except RankLost as error:
        time.sleep(_LAST_SECONDS)
        pipe.fatal(str(error))
        sys.exit(error.exit_code)


def _known(code: int) -> int:
    """Return the exit code that an engine has of one of its ranks'."""
    known = code in (ExitCode.CONFIG, ExitCode.OUT_OF_MEMORY)
    return code if known else int(ExitCode.INTERNAL)


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
