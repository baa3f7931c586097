"""LivingProcesses: which of the processes that share a state directory still live.

Each holds one byte of a file that is never written, at a place drawn by chance; the kernel lets go
of it when the process ends, however it ends. Knows numbers, no claims.
"""

import logging
import os
import secrets
import threading
from pathlib import Path

from workers.wire.range_lock import hold_range, is_range_held

log = logging.getLogger(__name__)

MAX_NUMBER = 2**62
UNKNOWN = 0


class LivingProcesses:
    """The processes that have the file open, each by its number."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None
        self._number = UNKNOWN
        self._lock = threading.Lock()

    @property
    def number(self) -> int:
        """Return this process's number, for as long as it lives; UNKNOWN without a file."""
        with self._lock:
            if self._fd is None:
                self._open()
        return self._number

    def lives(self, number: int) -> bool:
        """Return whether a process lives, as far as is known."""
        if UNKNOWN in (number, self.number) or self._fd is None:
            return True
        return number == self._number or is_range_held(self._fd, number, 1)

    def close(self) -> None:
        """Count as dead from now on."""
        with self._lock:
            if self._fd is not None and self._fd >= 0:
                os.close(self._fd)
            self._fd, self._number = None, UNKNOWN

    def _open(self) -> None:
        self._fd = -1  # not tried again: a process keeps its number, also that it has none
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            log.warning("%s: %s; dead turns are known by time alone", self._path, error.strerror)
            return
        number = 1 + secrets.randbelow(MAX_NUMBER)
        try:
            hold_range(fd, number, 1)
        except OSError as error:
            os.close(fd)
            log.warning("%s: %s; dead turns are known by time alone", self._path, error.strerror)
            return
        self._fd, self._number = fd, number
