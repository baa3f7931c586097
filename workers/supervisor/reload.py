"""Reload: leads a reload from its first step to its third, new processes in place of the old.

A child that never gets ready replaces nobody. Where both can run at once the new one is ready
before the old one goes; engines, whose memory there is only once, go one after the other, and where
one fails it and all before it are put back. So a reload that fails changes nothing, whatever it
fails of. Ticked by the supervisor; never sleeps.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from workers.errors import WorkerError
from workers.supervisor.supervised_process import Child, State, SupervisedProcess

log = logging.getLogger(__name__)

Group = list[SupervisedProcess]

# How long a new child that runs beside the old one may take to get ready.
READY_SECONDS = 120.0
# How long an engine may finish before it is ended; its requests are replayed by their HTTP process.
FINISH_SECONDS = 10.0


class ReloadPlan(Protocol):
    """Settings being read anew."""

    def poll(self) -> Sequence[Child] | None:
        """Return the new children, None while it goes on; raise ConfigError of what is wrong."""


@dataclass(frozen=True)
class Reloader:
    """How a group is reloaded: `begin` reads its settings; `overlaps`: old and new may both run."""

    group: int
    begin: Callable[[], ReloadPlan]
    overlaps: bool


class Reload:
    """`result` is None while it goes on, then empty, or the reason why nothing was replaced."""

    def __init__(self, group: Group, reloader: Reloader, drain_timeout: float) -> None:
        self.result: str | None = None
        self._group = group
        self._reloader = reloader
        self._drain_timeout = drain_timeout
        self._plan: ReloadPlan | None = None
        self._has_read = False
        self._replacements: list[_Overlap | _InPlace] = []
        self._replaced: list[_InPlace] = []
        self._failure = ""

    def tick(self, now: float) -> None:
        """Go one step further."""
        if self.result is None and not self._has_read:
            self._read()
        if self.result is None and self._has_read:
            self._replace(now)

    def cancel(self, reason: str, now: float) -> None:
        """Give up; a child that was being started ends at once."""
        if self.result is None:
            self.result = reason
            if self._replacements:
                self._replacements[0].cancel(now)

    def _read(self) -> None:
        try:
            self._plan = self._plan or self._reloader.begin()
            children = self._plan.poll()
        except WorkerError as error:
            self._end(str(error))
            return
        except Exception as error:  # of other code than this process runs: it may say anything
            log.exception("the settings were not read anew")
            self._end(f"the settings were not read anew: {type(error).__name__}: {error}")
            return
        if children is None:
            return
        self._has_read = True
        kind = _Overlap if self._reloader.overlaps else _InPlace
        current = [process for process in self._group if not process.is_replaced]
        if len(children) != len(current):
            self._end("the number of engines cannot change at a reload: restart")
            return
        self._replacements = [
            kind(self._group, process, child, self._drain_timeout)
            for process, child in zip(current, children, strict=True)
        ]

    def _replace(self, now: float) -> None:
        while self._replacements:
            replacement = self._replacements[0]
            failure = replacement.tick(now)
            if failure is None:
                return
            del self._replacements[0]
            if isinstance(replacement, _InPlace):
                self._replaced.append(replacement)
            if failure and not self._failure:
                self._failure = failure
                self._replacements = [*reversed(self._replaced)]
                for done in self._replaced:
                    done.undo()
        self._end(self._failure)

    def _end(self, reason: str) -> None:
        self.result = reason
        if reason:
            log.error("reload refused: %s", reason)
        else:
            log.info("reloaded")


class _Overlap:
    """Starts a new child beside the old one, and retires the old one when the new one is ready."""

    def __init__(
        self, group: Group, old: SupervisedProcess, child: Child, drain_timeout: float
    ) -> None:
        self._group = group
        self._old = old
        self._new = SupervisedProcess(child, old.restarts)
        self._drain_timeout = drain_timeout
        self._give_up_at: float | None = None

    def tick(self, now: float) -> str | None:
        """Return None while it goes on, then empty, or why the old child stays."""
        if self._give_up_at is None:
            self._give_up_at = now + READY_SECONDS
            self._new.start(now)
            return None
        code = self._new.tick(now)
        if code is not None:
            self._new.stopped(now)
            return self._new.failure(code)
        if self._new.child.failure or now >= self._give_up_at:
            self.cancel(now)
            return self._new.child.failure or f"not ready within {READY_SECONDS:g} s"
        if self._new.state is not State.READY:
            return None
        self._group.insert(self._group.index(self._old), self._new)
        self._old.is_replaced = True
        self._old.retire(now, self._drain_timeout)
        return ""

    def cancel(self, now: float) -> None:
        """End the new child; as one of the group it is waited for, as it may have callers."""
        self._new.retire(now, self._drain_timeout)
        self._new.is_replaced = True
        self._group.append(self._new)


class _InPlace:
    """Ends the old child, then starts the new one; the other way round once it is undone."""

    def __init__(
        self, group: Group, old: SupervisedProcess, child: Child, drain_timeout: float
    ) -> None:
        self._process = old
        self._old, self._wanted = old.child, child
        self._finish = min(FINISH_SECONDS, drain_timeout)
        self._is_retired = False

    def tick(self, now: float) -> str | None:
        """Return None while it goes on, then empty, or why the wanted child does not run. It is
        started again like any other that has died, until the replacement is undone.
        """
        process = self._process
        if not self._is_retired:
            self._is_retired = True
            process.retire(now, self._finish)
        if process.state is State.STOPPED:
            process.child = self._wanted
            process.start(now)
        if process.child is not self._wanted:
            return None
        if process.state is State.READY:
            return ""
        return None if process.is_running else process.last_failure

    def undo(self) -> None:
        """Want the old child back from now on."""
        self._wanted, self._is_retired = self._old, False

    def cancel(self, now: float) -> None:
        """Nothing: what runs is stopped with its group."""
