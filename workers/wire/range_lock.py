"""Range locks: bytes of a file that one open file holds, until its process ends however it ends.

Open-file-description locks: the kernel releases them on any death, and closing another descriptor
of the same file leaves them alone, as plain `lockf` locks would not. The bytes need not exist.
"""

import fcntl
import os
import struct

_FLOCK = struct.Struct("hhqqi4x")


def hold_range(fd: int, start: int, length: int) -> None:
    """Take a range without waiting; raise OSError if another open file holds any of it."""
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _range(fcntl.F_WRLCK, start, length))


def release_range(fd: int, start: int, length: int) -> None:
    """Give a range back."""
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _range(fcntl.F_UNLCK, start, length))


def is_range_held(fd: int, start: int, length: int) -> bool:
    """Return whether another open file holds any of a range; `fd`'s own locks do not count."""
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _range(fcntl.F_WRLCK, start, length))
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)


def _range(kind: int, start: int, length: int) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, start, length, 0)
