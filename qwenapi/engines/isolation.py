"""IsolationLock: an engine for one HTTP process alone, to test a request suspected of crashes.

What makes a request a suspect is in replay.py. A lock on the model half's run directory itself: the
kernel releases it on any death, and no right to write there is needed. Knows processes alone.
"""

import fcntl
import os
from pathlib import Path


class IsolationLock:
    """The right to have an engine to oneself."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._fd: int | None = None

    @property
    def is_mine(self) -> bool:
        return self._fd is not None

    def acquire(self) -> bool:
        """Take the lock, or keep it; return whether this process has it."""
        if self._fd is None:
            try:
                self._fd = self._locked(fcntl.LOCK_EX)
            except OSError:
                return False  # held by another, or without a run directory there is no engine
        return self.is_mine

    def release(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def is_elsewhere(self) -> bool:
        """Return whether another process has the lock."""
        if self.is_mine:
            return False
        try:
            os.close(self._locked(fcntl.LOCK_SH))
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def _locked(self, kind: int) -> int:
        fd = os.open(self._run_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
        except BaseException:
            os.close(fd)
            raise
        return fd
