"""Shared pages: an mmapped file of fixed slots, each leased by one process, read by all.

The file is allocated with posix_fallocate, so a full tmpfs is an error at creation and never a
SIGBUS. A slot is leased with an open-file-description lock: the kernel releases it on any death,
and the next owner continues its counters. (`fcntl.lockf` leases would vanish when their owner opens
and closes the file again; multiprocessing.shared_memory unlinks a segment when an unrelated reader
exits, on Python 3.11.) All values are int64, written by their owner only.

    header  magic, layout hash, slots, fields      4 × int64
    slot 0  field 0, field 1, …                    len(fields) × int64
    slot 1  …
"""

import fcntl
import hashlib
import mmap
import os
import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from workers.errors import PageError

MAGIC = 0x71_77_65_6E_61_70_69_31
HEADER_INTS = 4
INT_BYTES = 8

_FLOCK = struct.Struct("hhqqi4x")


@dataclass(frozen=True)
class Layout:
    """A page's name and the fields of each of its slots."""

    name: str
    fields: tuple[str, ...]

    @cached_property
    def index(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.fields)}

    @cached_property
    def hash(self) -> int:
        """Return 63 bits that differ when a field was added, moved or renamed."""
        digest = hashlib.sha256("\n".join(self.fields).encode()).digest()
        return int.from_bytes(digest[:8], "big") >> 1


ENGINE_LAYOUT = Layout(
    "engine",
    (
        "pid",
        "generation",
        "phase",
        "step",
        "beat_ns",  # time.monotonic_ns() of the engine loop's last sign of life
        "step_timeout_ns",
        "running",
        "waiting",
        "free_blocks",
        "total_blocks",
        "prompt_tokens",
        "cached_tokens",
        "generated_tokens",
        "preemptions",
        "device_allocated",  # bytes, as torch counts them; 0 on a CPU
        "device_reserved",
        "device_total",
    ),
)


class Phase:
    """What an engine loop is doing; the values of the field `phase`."""

    NONE, LOADING, IDLE, STEPPING, DRAINING = range(5)


class SharedPage:
    """A mapped page file. Reading needs no lease; `lease` gives the one writable view of a slot."""

    def __init__(self, path: Path, layout: Layout, fd: int) -> None:
        self.path = path
        self.layout = layout
        self._fd = fd
        size = os.fstat(fd).st_size
        if size < INT_BYTES * HEADER_INTS or size % INT_BYTES:
            os.close(fd)
            raise PageError(f"{path}: not a page")
        self._map = mmap.mmap(fd, size)
        self._ints = memoryview(self._map).cast("q")
        self.num_slots = self._check(size)

    @classmethod
    def create(cls, path: Path, layout: Layout, num_slots: int) -> "SharedPage":
        """Open the page, making it if missing; counters of an existing one of this layout go on."""
        size = INT_BYTES * (HEADER_INTS + num_slots * len(layout.fields))
        try:
            # A link somebody planted in /dev/shm is not followed, nor is their file written.
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o660)
        except OSError as error:
            raise PageError(f"{path}: {error.strerror}") from error
        try:
            if os.fstat(fd).st_uid != os.getuid():
                raise PermissionError(0, "the file belongs to somebody else")
            if os.fstat(fd).st_size != size:
                os.ftruncate(fd, 0)
                os.posix_fallocate(fd, 0, size)
                os.pwrite(
                    fd, struct.pack("=4q", MAGIC, layout.hash, num_slots, len(layout.fields)), 0
                )
        except OSError as error:
            os.close(fd)
            raise PageError(f"{path}: cannot allocate {size} bytes: {error.strerror}") from error
        return cls(path, layout, fd)

    @classmethod
    def open(cls, path: Path, layout: Layout) -> "SharedPage":
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise PageError(f"{path}: {error.strerror}") from error
        return cls(path, layout, fd)

    def lease(self, slot: int) -> "Slot":
        """Become the only writer of a slot until this process ends or closes the page."""
        start = INT_BYTES * (HEADER_INTS + slot * len(self.layout.fields))
        lock = _FLOCK.pack(
            fcntl.F_WRLCK, os.SEEK_SET, start, INT_BYTES * len(self.layout.fields), 0
        )
        try:
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, lock)
        except OSError as error:
            raise PageError(f"{self.path}: slot {slot} belongs to another process") from error
        return Slot(self, slot)

    def read(self, slot: int) -> dict[str, int]:
        """Return the fields of a slot. Each value is whole; several need not be of the same
        instant.
        """
        start = HEADER_INTS + slot * len(self.layout.fields)
        values = self._ints[start : start + len(self.layout.fields)].tolist()
        return dict(zip(self.layout.fields, values, strict=True))

    def close(self) -> None:
        self._ints.release()
        self._map.close()
        os.close(self._fd)

    def _check(self, size: int) -> int:
        magic, layout_hash, num_slots, num_fields = self._ints[:HEADER_INTS].tolist()
        if magic != MAGIC or layout_hash != self.layout.hash:
            self.close()
            raise PageError(
                f"{self.path}: not a page of this version's layout {self.layout.name!r}"
            )
        if size != INT_BYTES * (HEADER_INTS + num_slots * num_fields):
            self.close()
            raise PageError(f"{self.path}: truncated")
        return num_slots


class Slot:
    """The writable fields of one leased slot."""

    def __init__(self, page: SharedPage, slot: int) -> None:
        self._page = page
        self._ints = page._ints
        self._start = HEADER_INTS + slot * len(page.layout.fields)
        self._index = page.layout.index

    def __getitem__(self, field: str) -> int:
        return self._ints[self._start + self._index[field]]

    def __setitem__(self, field: str, value: int) -> None:
        self._ints[self._start + self._index[field]] = value

    def update(self, **fields: int) -> None:
        for field, value in fields.items():
            self[field] = value


def page_path(run_dir: Path, layout: Layout) -> Path:
    """Return where the page of a run directory lies: inside it if that is memory, else in /dev/shm.

    The layout's hash is part of the name, so that two versions never meet in one file.
    """
    name = f"{layout.name}-{layout.hash:016x}.page"
    if _is_tmpfs(run_dir) or not os.access("/dev/shm", os.W_OK):
        return run_dir / name
    place = hashlib.sha256(str(run_dir.resolve()).encode()).hexdigest()[:12]
    return Path("/dev/shm") / f"qwenapi-{os.getuid()}-{place}-{name}"


def _is_tmpfs(path: Path) -> bool:
    """Return whether the path's own mount, the longest one in the mount table, is a tmpfs."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    path = path.resolve()
    mount = max(
        (m for m in mounts if path.is_relative_to(m[1])), key=lambda m: len(m[1]), default=None
    )
    return mount is not None and mount[2] in ("tmpfs", "ramfs")
