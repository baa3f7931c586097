"""Keep child processes alive: start, watch, restart with back-off, kill the hung, stop in order.

Knows children by a small protocol, so engines and the HTTP server are kept by the same code. Signal
handlers only note; `tick` decides, is public and never sleeps. Never imports torch.
"""

import enum
import fcntl
import logging
import os
import random
import select
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from workers.errors import ConfigError, ExitCode

log = logging.getLogger(__name__)

TICK_SECONDS = 0.2
FIRST_BACKOFF = 0.1
MAX_BACKOFF = 30.0
# A child that has lived this long starts again with the first back-off.
HEALTHY_SECONDS = 60.0
# Between asking a hung child for its stacks and killing it.
DUMP_SECONDS = 2.0


class Child(Protocol):
    """A process to keep alive."""

    name: str
    failure: str | None

    @property
    def pid(self) -> int | None: ...

    def start(self) -> None: ...

    def poll(self) -> int | None:
        """Return the exit code (negative: a signal), or None while it runs."""

    def is_ready(self) -> bool: ...

    def hang(self) -> str | None:
        """Return why it must be taken for hung, or None."""

    def terminate(self) -> None: ...

    def dump(self) -> None: ...

    def kill(self) -> None: ...


class State(enum.Enum):
    RUNNING = enum.auto()
    BACKOFF = enum.auto()
    STOPPED = enum.auto()


@dataclass
class _Watch:
    """What the supervisor remembers of a child."""

    child: Child
    state: State = State.STOPPED
    started_at: float = 0.0
    restart_at: float = 0.0
    kill_at: float | None = None
    backoff: float = FIRST_BACKOFF


class Supervisor:
    """Runs groups of children: started together, stopped one group after the other, the last group
    first.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[Child]],
        *,
        drain_timeout: float,
        on_ready: Callable[[], None] = lambda: None,
    ) -> None:
        self._groups = [[_Watch(child) for child in group] for group in groups]
        self._drain_timeout = drain_timeout
        self._on_ready = on_ready
        self._was_ready = False
        self._num_signals = 0
        self._has_said_goodbye = False
        self._exit_code: int = ExitCode.OK
        self.failure: str | None = None

    @property
    def is_done(self) -> bool:
        return self._is_stopping and all(w.state is State.STOPPED for w in self._watches)

    def run(self) -> int:
        """Run until told to stop; return the exit code, which `failure` puts in words."""
        wake_fd, note_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(note_fd)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)
        self.start()
        while not self.is_done:
            if select.select([wake_fd], [], [], TICK_SECONDS)[0]:
                os.read(wake_fd, 64)
            self.tick(time.monotonic())
        return self._exit_code

    def start(self) -> None:
        for watch in self._watches:
            self._start(watch, time.monotonic())

    def stop(self) -> None:
        """Begin to stop, or if that has begun, end at once."""
        self._num_signals += 1

    def tick(self, now: float) -> None:
        """Look at every child once and do what its state asks for."""
        if self._is_stopping and not self._has_said_goodbye:
            self._has_said_goodbye = True
            log.info("stopping within %g s; a second signal ends it now", self._drain_timeout)
        for watch in self._watches:
            if watch.state is State.RUNNING:
                self._watch(watch, now)
            elif watch.state is State.BACKOFF:
                self._restart(watch, now)
        if self._is_stopping:
            self._stop_next_group(now)
        elif not self._was_ready and all(w.child.is_ready() for w in self._watches):
            self._was_ready = True
            self._on_ready()

    @property
    def _watches(self) -> list[_Watch]:
        return [watch for group in self._groups for watch in group]

    @property
    def _is_stopping(self) -> bool:
        return self._num_signals > 0

    def _note(self, number: int, frame: object) -> None:
        self.stop()

    def _start(self, watch: _Watch, now: float) -> None:
        watch.child.start()
        watch.state, watch.started_at, watch.kill_at = State.RUNNING, now, None
        log.info("%s started, pid %s", watch.child.name, watch.child.pid)

    def _restart(self, watch: _Watch, now: float) -> None:
        if self._is_stopping:
            watch.state = State.STOPPED
        elif now >= watch.restart_at:
            self._start(watch, now)

    def _watch(self, watch: _Watch, now: float) -> None:
        code = watch.child.poll()
        if code is not None:
            self._on_exit(watch, code, now)
        elif watch.kill_at is not None:
            if now >= watch.kill_at:
                watch.child.kill()
        elif reason := watch.child.hang():
            log.warning("%s hangs (%s): killing it", watch.child.name, reason)
            watch.child.dump()
            watch.kill_at = now + DUMP_SECONDS

    def _on_exit(self, watch: _Watch, code: int, now: float) -> None:
        if self._is_stopping:
            watch.state = State.STOPPED
        elif not self._was_ready:
            watch.state = State.STOPPED
            self._fail(watch.child, code)
        else:
            if now - watch.started_at > HEALTHY_SECONDS:
                watch.backoff = FIRST_BACKOFF
            # Full jitter keeps several copies from loading in step.
            watch.restart_at = now + random.uniform(0, watch.backoff)
            watch.backoff = min(MAX_BACKOFF, 2 * watch.backoff)
            watch.state = State.BACKOFF
            reason = watch.child.failure or describe_exit(code)
            log.warning("%s ended (%s), starting it again", watch.child.name, reason)

    def _fail(self, child: Child, code: int) -> None:
        """Give up, because a child that has never served cannot be helped by starting it again."""
        self.failure = child.failure or f"{child.name} ended ({describe_exit(code)}) while starting"
        self._exit_code = code if code in set(ExitCode) and code else ExitCode.INTERNAL
        self._num_signals = 2

    def _stop_next_group(self, now: float) -> None:
        if self._num_signals > 1:
            for watch in self._watches:
                if watch.state is State.RUNNING:
                    watch.child.kill()
            return
        for group in reversed(self._groups):
            running = [watch for watch in group if watch.state is State.RUNNING]
            for watch in running:
                if watch.kill_at is None:
                    watch.child.terminate()
                    watch.kill_at = now + self._drain_timeout
            if running:
                return


def describe_exit(code: int) -> str:
    """Return an exit code in words: its name, or the signal's."""
    if code < 0:
        return f"signal {signal.Signals(-code).name}"
    names = {int(known): known.name for known in ExitCode}
    return f"exit code {code}" + (f", {names[code]}" if code in names else "")


def lock_run_dir(run_dir: Path) -> int:
    """Make the run directory this process's own until it ends; raise ConfigError naming another
    owner's pid.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True, mode=0o750)
        fd = os.open(run_dir / "supervisor.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    except OSError as error:
        raise ConfigError(
            f"{run_dir}: cannot be used as run directory: {error.strerror}"
        ) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.read(fd, 32).decode().strip() or "unknown"
        os.close(fd)
        raise ConfigError(
            f"{run_dir}: already running, pid {owner}; stop it or choose another --run-dir"
        ) from None
    os.ftruncate(fd, 0)
    os.write(fd, f"{os.getpid()}\n".encode())
    return fd
