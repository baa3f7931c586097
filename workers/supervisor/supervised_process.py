"""SupervisedProcess: kills a child process that hangs, and starts again one that has died.

Knows a child by a small protocol, its state, its deaths and its next start. A life that served is
followed by the next at once; the pause before a start grows only over lives that served nothing.
Whether a death ends everything is the supervisor's to say. Never sleeps.
"""

import enum
import logging
import random
from dataclasses import dataclass
from typing import Protocol

from workers.errors import ExitCode, describe_exit
from workers.supervisor.circuit_breaker import CircuitBreaker

log = logging.getLogger(__name__)

FIRST_BACKOFF = 0.1
MAX_BACKOFF = 30.0
# A child that has lived this long without being asked starts again with the first back-off.
HEALTHY_SECONDS = 60.0
# Between asking a hung child for its stacks and killing it.
DUMP_SECONDS = 2.0
# How long a draining service says that it is not ready before it takes no more requests.
LAME_DUCK_SECONDS = 5.0
# Between two trial starts of a child that never gets to serve.
TRIAL_SECONDS = 60.0


class Child(Protocol):
    """A process to keep alive."""

    name: str
    failure: str | None

    @property
    def pid(self) -> int | None: ...

    def start(self) -> None:
        """Start the process; may raise anything, and be called again."""

    def poll(self) -> int | None:
        """Return the exit code (negative: a signal), or None while it runs."""

    def is_ready(self) -> bool: ...

    def has_served(self) -> bool:
        """Return whether it has done its work at least once since its start."""

    def hang(self) -> str | None:
        """Return why it must be taken for hung, or None."""

    def discourage(self) -> None:
        """Let it say that it is not ready, while it serves on; and take no more requests after
        LAME_DUCK_SECONDS, so that it becomes idle.
        """

    def is_idle(self) -> bool:
        """Return whether one that was discouraged has finished what it had."""

    def terminate(self) -> None: ...

    def dump(self) -> None: ...

    def kill(self) -> None: ...


class State(enum.StrEnum):
    STARTING = "starting"
    READY = "ready"
    HANGING = "hanging"
    BACKOFF = "waits to start again"
    BROKEN = "broken"
    RETIRING = "finishes its requests"
    STOPPED = "stopped"


RUNNING = frozenset({State.STARTING, State.READY, State.HANGING, State.RETIRING})


@dataclass(frozen=True)
class ChildStatus:
    """What an operator may know of a child."""

    name: str
    pid: int | None
    state: str
    seconds: float
    restarts: int
    last_failure: str


class SupervisedProcess:
    """A child under supervision.

    `tick` returns its exit code when it has just ended; the caller then says `stopped` or
    `back_off`.
    """

    def __init__(self, child: Child, restarts: int = 0) -> None:
        self.child = child
        self.state = State.STOPPED
        self.restarts = restarts
        self.last_failure = ""
        self.is_replaced = False
        self._since = 0.0
        self._started_at = 0.0
        self._restart_at = 0.0
        self._kill_at: float | None = None
        self._start_error = ""
        self._backoff = FIRST_BACKOFF
        self._breaker = CircuitBreaker()

    @property
    def is_running(self) -> bool:
        return self.state in RUNNING

    def start(self, now: float) -> None:
        """Start the child; one that cannot be started has ended at the next tick."""
        self._started_at, self._kill_at, self._start_error = now, None, ""
        self._enter(State.STARTING, now)
        try:
            self.child.start()
        except Exception as error:  # no process or descriptor is left, or no memory: others serve
            self._start_error = f"{self.child.name} cannot be started: {error}"
            log.exception("%s cannot be started", self.child.name)
            return
        log.info("%s started, pid %s", self.child.name, self.child.pid)

    def tick(self, now: float) -> int | None:
        if self.state in (State.BACKOFF, State.BROKEN):
            if now >= self._restart_at:
                self.restarts += 1
                self.start(now)
        elif self.is_running:
            code = ExitCode.INTERNAL if self._start_error else self.child.poll()
            if code is not None:
                return code
            self._look(now)
        return None

    def retire(self, now: float, within: float) -> None:
        """Ask the child to finish what it has and to end within so many seconds."""
        if self.state is State.RETIRING:
            return
        if not self.is_running or self._start_error:
            self.stopped(now)
            return
        self.child.terminate()
        if self.state is not State.HANGING:
            self._kill_at = now + within
        self._enter(State.RETIRING, now)

    def kill(self) -> None:
        if self.is_running and not self._start_error:
            self.child.kill()

    def stopped(self, now: float) -> None:
        self._enter(State.STOPPED, now)

    def back_off(self, code: int, now: float) -> None:
        """Start the child again: at once if it has served, else later, or seldom in the end."""
        self.last_failure = self.failure(code)
        if self._has_served:
            self._breaker.note_success()
            self._backoff = FIRST_BACKOFF
            self._restart_at = now
            self._enter(State.BACKOFF, now)
            log.warning("%s: %s; starting it again", self.child.name, self.last_failure)
            return
        self._breaker.note_death(now)
        if self._breaker.is_open:
            self._restart_at = now + TRIAL_SECONDS
            self._enter(State.BROKEN, now)
            log.error(
                "%s: %s; it has not served since its last deaths: tried again in %g s",
                self.child.name, self.last_failure, TRIAL_SECONDS,
            )  # fmt: skip
            return
        if now - self._started_at > HEALTHY_SECONDS:
            self._backoff = FIRST_BACKOFF
        # Full jitter keeps several copies from loading in step.
        self._restart_at = now + random.uniform(0, self._backoff)
        self._backoff = min(MAX_BACKOFF, 2 * self._backoff)
        self._enter(State.BACKOFF, now)
        log.warning("%s: %s; starting it again", self.child.name, self.last_failure)

    def failure(self, code: int) -> str:
        """Return why the child ended: its own words, or its exit code's."""
        ended = f"{self.child.name} ended ({describe_exit(code)})"
        return self._start_error or self.child.failure or ended

    def status(self, now: float) -> ChildStatus:
        pid = self.child.pid if self.is_running and not self._start_error else None
        return ChildStatus(
            self.child.name,
            pid,
            self.state.value,
            round(now - self._since, 1),
            self.restarts,
            self.last_failure,
        )

    @property
    def _has_served(self) -> bool:
        """Return whether this life did any work; one that could not start did none."""
        return not self._start_error and self.child.has_served()

    def _look(self, now: float) -> None:
        if self._kill_at is not None:
            if now >= self._kill_at:
                self.child.kill()
        elif reason := self.child.hang():
            log.warning("%s hangs (%s): killing it", self.child.name, reason)
            self.child.dump()
            self._kill_at = now + DUMP_SECONDS
            self._enter(State.HANGING, now)
        elif self.state is State.STARTING and self.child.is_ready():
            self._enter(State.READY, now)

    def _enter(self, state: State, now: float) -> None:
        self.state, self._since = state, now
