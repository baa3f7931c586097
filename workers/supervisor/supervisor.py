"""Supervisor: starts groups of processes, restarts those that die, reloads and stops them.

Knows children by a small protocol, so engines and the HTTP server are kept by the same code. When a
child hangs, and when it starts again, is for its SupervisedProcess to say. Signal handlers only
note; `tick` decides, is public and never sleeps. Never imports torch.

    drain             not ready; after LAME_DUCK_SECONDS no new requests; when none is left, stop
    SIGTERM, SIGINT   stop: the last group drains, then the one before it; a second one ends at once
    SIGHUP            reload, as `qwenapi reload`
"""

import fcntl
import logging
import os
import select
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from workers.errors import ConfigError, ExitCode
from workers.supervisor.admin import AdminServer, Pending, Reply
from workers.supervisor.notify import Notifier
from workers.supervisor.reload import Reload, Reloader
from workers.supervisor.supervised_process import (
    LAME_DUCK_SECONDS,
    Child,
    State,
    SupervisedProcess,
)

log = logging.getLogger(__name__)

TICK_SECONDS = 0.2


class Supervisor:
    """Runs groups of children, started together, stopped one after the other, the last first."""

    def __init__(
        self,
        groups: Sequence[Sequence[Child]],
        *,
        drain_timeout: float,
        on_ready: Callable[[], None] = lambda: None,
        on_stop: Callable[[], None] = lambda: None,
        reloaders: Mapping[str, Reloader] | None = None,
        notifier: Notifier | None = None,
    ) -> None:
        """`reloaders`: how each half is reloaded, by its name; the first is meant where none is
        named. `on_stop` is called once, when a stop begins.
        """
        self._groups = [[SupervisedProcess(child) for child in group] for group in groups]
        self._drain_timeout = drain_timeout
        self._on_ready = on_ready
        self._on_stop = on_stop
        self._reloaders = dict(reloaders or {})
        self._notifier = notifier or Notifier({})
        self._since = time.monotonic()
        self._was_ready = False
        self._num_signals = 0
        self._is_reload_due = False
        self._refuse_at: float | None = None
        self._has_said_goodbye = False
        self._reload: Reload | None = None
        self._exit_code: int = ExitCode.OK
        self.failure: str | None = None

    @property
    def is_done(self) -> bool:
        return self._is_stopping and not any(process.is_running for process in self._processes)

    @property
    def state(self) -> str:
        """Return what the whole is doing, in one word."""
        if self._is_stopping:
            return "stopping"
        if self._refuse_at is not None:
            return "draining"
        if self._is_reloading:
            return "reloading"
        if any(process.state is State.BROKEN for process in self._processes):
            return "broken"
        return "ready" if self._is_ready else "starting"

    def run(self, run_dir: Path | None = None) -> int:
        """Run until told to stop; return the exit code, which `failure` puts in words. Operators
        are heard at the admin socket of `run_dir`.
        """
        wake_fd, note_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(note_fd)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._note)
        admin = None if run_dir is None else AdminServer(run_dir, self.command)
        try:
            self.start()
            self._run(wake_fd, admin)
        except Exception:
            # Children without a supervisor would serve on, and nobody could stop them.
            log.critical("the supervisor failed", exc_info=True)
            self._exit_code = ExitCode.INTERNAL
            for process in self._processes:
                process.kill()
        if admin is not None:
            admin.close()
        return self._exit_code

    def _run(self, wake_fd: int, admin: AdminServer | None) -> None:
        while not self.is_done:
            heard = [wake_fd] if admin is None else [wake_fd, admin.fileno()]
            if wake_fd in select.select(heard, [], [], TICK_SECONDS)[0]:
                os.read(wake_fd, 64)
            self.tick(time.monotonic())
            if admin is not None:
                admin.tick()

    def start(self) -> None:
        for process in self._processes:
            process.start(time.monotonic())

    def stop(self) -> None:
        """Begin to stop, or if that has begun, end at once."""
        self._num_signals += 1

    def drain(self, now: float) -> None:
        """Say for a while that the service is not ready, serving on; then refuse what is new, and
        stop when nothing is left to do.
        """
        if self._refuse_at is None:
            log.info("draining: not ready from now on, no requests in %g s", LAME_DUCK_SECONDS)
            self._refuse_at = now + LAME_DUCK_SECONDS
            for process in self._processes:
                process.child.discourage()

    def command(self, request: dict[str, Any]) -> Pending:
        """Begin what an operator asks for; the reply comes when it is done."""
        now = time.monotonic()
        match request:
            case {"command": "status"}:
                reply = self.status(now)
                return lambda: reply
            case {"command": "reload", **rest}:
                return self._begin_reload(str(rest.get("half") or ""))
            case {"command": "drain"}:
                self.drain(now)
                return lambda: None  # the end of the stream is the reply
        return lambda: {"error": "unknown command; there are status, reload, drain"}

    def status(self, now: float) -> Reply:
        """Return what an operator may know."""
        return {
            "pid": os.getpid(),
            "state": self.state,
            "seconds": round(now - self._since, 1),
            "children": [asdict(process.status(now)) for process in self._processes],
        }

    def tick(self, now: float) -> None:
        """Look at every child once and do what its state asks for."""
        if self._is_drained(now) and not self._is_stopping:
            self.stop()
        if self._is_stopping and not self._has_said_goodbye:
            self._say_goodbye(now)
        for process in self._processes:
            code = process.tick(now)
            if code is not None:
                self._on_exit(process, code, now)
        for group in self._groups:
            group[:] = [one for one in group if one.is_running or not one.is_replaced]
        if not any(process.state is State.HANGING for process in self._processes):
            self._notifier.pat_watchdog(now)
        if self._is_stopping:
            self._stop_next_group(now)
            return
        self._go_on_reloading(now)
        if not self._was_ready and self._is_ready:
            self._was_ready = True
            self._on_ready()
            self._notifier.send(READY=1, STATUS="ready")

    @property
    def _processes(self) -> list[SupervisedProcess]:
        return [process for group in self._groups for process in group]

    @property
    def _is_ready(self) -> bool:
        return all(one.state is State.READY for one in self._processes if not one.is_replaced)

    @property
    def _is_stopping(self) -> bool:
        return self._num_signals > 0

    def _is_drained(self, now: float) -> bool:
        if self._refuse_at is None or now < self._refuse_at:
            return False
        # Those that do not run, or finish for a successor, keep nobody from stopping.
        serving = (p for p in self._processes if p.is_running and not p.is_replaced)
        is_late = now >= self._refuse_at + self._drain_timeout
        return is_late or all(process.child.is_idle() for process in serving)

    @property
    def _is_reloading(self) -> bool:
        return self._reload is not None and self._reload.result is None

    def _note(self, number: int, frame: object) -> None:
        if number == signal.SIGHUP:
            self._is_reload_due = True
        else:
            self.stop()

    def _begin_reload(self, half: str) -> Pending:
        """Begin a reload and return what knows its result."""
        refusal = ""
        if half and half not in self._reloaders:
            refusal = f"there is no {half} half here to reload"
        elif self._is_reloading:
            refusal = "a reload is under way"
        elif self._is_stopping or self._refuse_at is not None:
            refusal = "the service is about to stop"
        elif not self._was_ready:
            refusal = "the service is still starting"
        if refusal or not self._reloaders:
            return lambda: {"error": refusal or "nothing here can be reloaded"}
        reloader = self._reloaders[half or next(iter(self._reloaders))]
        self._notifier.reloading()
        reload = self._reload = Reload(self._groups[reloader.group], reloader, self._drain_timeout)

        def reply() -> Reply | None:
            if reload.result is None:
                return None
            return {"error": reload.result} if reload.result else self.status(time.monotonic())

        return reply

    def _go_on_reloading(self, now: float) -> None:
        if self._is_reload_due:
            self._is_reload_due = False
            if refused := self._begin_reload("")():
                log.error("reload refused: %s", refused.get("error"))
        if self._reload is not None and self._reload.result is None:
            self._reload.tick(now)
            if self._reload.result is not None:
                self._notifier.send(READY=1, STATUS=self._reload.result or "ready")

    def _say_goodbye(self, now: float) -> None:
        self._has_said_goodbye = True
        log.info("stopping within %g s; a second signal ends it now", self._drain_timeout)
        self._notifier.send(STOPPING=1, STATUS="stopping")
        if self._reload is not None:
            self._reload.cancel("the service is about to stop", now)
        for process in self._processes:
            if not process.is_running:
                process.stopped(now)  # nothing is started any more
        self._on_stop()

    def _on_exit(self, process: SupervisedProcess, code: int, now: float) -> None:
        if self._is_stopping or process.state is State.RETIRING:
            process.stopped(now)
        elif not self._was_ready:
            process.stopped(now)
            self._fail(process, code)
        else:
            process.back_off(code, now)

    def _fail(self, process: SupervisedProcess, code: int) -> None:
        """Give up, because a child that has never served cannot be helped by starting it again."""
        self.failure = process.failure(code)
        self._exit_code = code if code in set(ExitCode) and code else ExitCode.INTERNAL
        self._num_signals = 2

    def _stop_next_group(self, now: float) -> None:
        if self._num_signals > 1:
            for process in self._processes:
                process.kill()
            return
        for group in reversed(self._groups):
            for process in group:
                process.retire(now, self._drain_timeout)
            if any(process.is_running for process in group):
                return


def lock_run_dir(run_dir: Path) -> int:
    """Make the run directory this process's own; raise ConfigError naming another owner's pid."""
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
