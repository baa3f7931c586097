"""HeldFiles: files kept in memory, so that whoever reads them waits for no disk."""

import ctypes
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from workers.memory import machine_memory

# Of the memory that is free, at most so much is taken.
_MOST_OF_FREE = 0.5

log = logging.getLogger(__name__)


class HeldFiles:
    """Pages of files that the kernel may not drop, until `release` or the end of the process."""

    def __init__(self) -> None:
        self._maps: list[np.memmap[Any, Any]] = []
        self._libc = ctypes.CDLL(None, use_errno=True)

    def hold(self, files: Iterable[Path]) -> bool:
        """Read files into memory and keep them there; return False and say why if not all are.

        Where memory may not be locked (RLIMIT_MEMLOCK) they are read all the same, and stay for as
        long as nothing else wants the room. Raises OSError where a file cannot be read.
        """
        sizes = {file: file.stat().st_size for file in files}
        size, free = sum(sizes.values()), machine_memory().free
        if size > _MOST_OF_FREE * free:
            log.warning(
                "%.1f GB of weights are not held in memory, of which %.1f GB are free",
                size / 1e9,
                free / 1e9,
            )
            return False
        failed = [self._hold(file) for file, num_bytes in sizes.items() if num_bytes]
        reason = next((why for why in failed if why), None)
        if reason:
            log.warning(
                "%.1f GB of weights are read ahead, but may leave memory again: mlock: %s; raise"
                " LimitMEMLOCK or ulimit -l",
                size / 1e9,
                reason,
            )
        return reason is None

    def release(self) -> None:
        """Let the kernel drop them when it needs the room."""
        self._maps.clear()

    def _hold(self, file: Path) -> str | None:
        """Return why the pages of a file could not be locked; they are read in any case."""
        pages = np.memmap(file, np.uint8, mode="r")
        address = ctypes.c_void_p(pages.ctypes.data)
        if self._libc.mlock(address, ctypes.c_size_t(pages.nbytes)) == 0:
            self._maps.append(pages)
            return None
        reason = os.strerror(ctypes.get_errno())
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
        return reason
