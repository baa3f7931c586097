"""Quarantine: requests that were found to crash engines, refused for a while.

Knows fingerprints, never content: a keyed hash of the prompt and of what was asked for, the seed
left out, as a caller that names none gets another each time. The HTTP processes of a half share
theirs by a small file that only its owner may read; without one each has its own. Times are of
time.monotonic_ns(), which the processes of a machine share.

    key          16 bytes, made with the file
    fingerprint  16 bytes, until 8 bytes, of the newest MAX_REQUESTS whose time is not over
"""

import fcntl
import hashlib
import logging
import os
import secrets
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from workers.wire.protocol import Generate

log = logging.getLogger(__name__)

QUARANTINE_SECONDS = 600
MAX_REQUESTS = 256
NAME = "quarantine"
KEY_BYTES = 16
ENTRY = struct.Struct("=16sq")

# Of a file: its number, its last change, its size.
Version = tuple[int, int, int]
NONE: Version = (0, 0, 0)


class Quarantine:
    """The fingerprints of guilty requests, each until its time is over."""

    def __init__(self, folder: Path | None = None) -> None:
        """`folder`: the run directory of the processes that share it."""
        self._path = None if folder is None else folder / NAME
        self._key = secrets.token_bytes(KEY_BYTES)
        self._until_ns: dict[bytes, int] = {}
        self._version = NONE

    def add(self, request: Generate) -> None:
        until_ns = time.monotonic_ns() + QUARANTINE_SECONDS * 1_000_000_000
        if self._path is None:
            self._until_ns[self._fingerprint(request)] = until_ns
            self._drop_old()
            return
        try:
            with _locked(self._path) as fd:
                self._load(fd)
                self._until_ns[self._fingerprint(request)] = until_ns
                self._drop_old()
                self._store(fd)
        except OSError as error:
            log.warning("%s: %s; this process alone refuses it", self._path, error.strerror)
            self._until_ns[self._fingerprint(request)] = until_ns
            self._drop_old()

    def __contains__(self, request: Generate) -> bool:
        if self._path is not None and _version(self._path) != self._version:
            self._read(self._path)
        if not self._until_ns:
            return False
        self._drop_old()
        return self._fingerprint(request) in self._until_ns

    def _read(self, path: Path) -> None:
        try:
            with _locked(path, is_new=False) as fd:
                self._load(fd)
        except OSError as error:
            log.debug("%s: %s", path, error.strerror)

    def _load(self, fd: int) -> None:
        """Take the file's key and entries; one just made is given this process's."""
        size = KEY_BYTES + MAX_REQUESTS * ENTRY.size
        content = os.pread(fd, size, 0)
        self._version = _identity(os.fstat(fd))
        if len(content) < KEY_BYTES:
            return
        entries = content[KEY_BYTES:]
        whole = len(entries) - len(entries) % ENTRY.size
        if content[:KEY_BYTES] != self._key:
            self._key = content[:KEY_BYTES]
            self._until_ns.clear()  # of another key: they cannot be compared
        self._until_ns |= dict(ENTRY.iter_unpack(entries[:whole]))
        self._drop_old()

    def _store(self, fd: int) -> None:
        content = self._key + b"".join(ENTRY.pack(*entry) for entry in self._until_ns.items())
        os.pwrite(fd, content, 0)
        os.ftruncate(fd, len(content))
        self._version = _identity(os.fstat(fd))

    def _drop_old(self) -> None:
        """Forget what is over, or of an earlier boot, and the oldest of too many."""
        now = time.monotonic_ns()
        latest = now + QUARANTINE_SECONDS * 1_000_000_000
        kept = [(print_, ns) for print_, ns in self._until_ns.items() if now < ns <= latest]
        kept.sort(key=lambda entry: entry[1])
        self._until_ns = dict(kept[-MAX_REQUESTS:])

    def _fingerprint(self, request: Generate) -> bytes:
        params = msgspec.structs.replace(request.params, seed=0)
        shown = [image.digest for image in request.images]
        asked = msgspec.msgpack.encode((request.prompt_ids, params, request.choices, shown))
        return hashlib.blake2b(asked, key=self._key, digest_size=16).digest()


@contextmanager
def _locked(path: Path, *, is_new: bool = True) -> Iterator[int]:
    """Open the file and keep other processes out of it meanwhile."""
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if is_new else 0)
    fd = os.open(path, flags, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield fd
    finally:
        os.close(fd)


def _version(path: Path) -> Version:
    """Return what differs when the file has changed, at little cost."""
    try:
        return _identity(path.stat())
    except OSError:
        return NONE


def _identity(status: os.stat_result) -> Version:
    return (status.st_ino, status.st_mtime_ns, status.st_size)
