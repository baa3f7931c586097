"""SharedMemory: a mapped file of int64 slots, each written by the one process that leases it.

The file is allocated with posix_fallocate, so a full tmpfs is an error at creation and never a
SIGBUS. A slot is leased with a range lock: the kernel releases it on any death, and the next owner
continues its counters. (multiprocessing.shared_memory would not do: it unlinks a segment when an
unrelated reader exits, on Python 3.11.) Anybody may read at any time. A slot may end in a ring of
records.

    header  magic, layout hash, slots, int64s a slot               4 × int64
    slot 0  field 0, field 1, …, record 0, record 1, …             slot_ints × int64
    slot 1  …
"""

import mmap
import os
import struct
from array import array
from collections.abc import Sequence
from pathlib import Path

from workers.errors import SharedMemoryError
from workers.wire.layout import HEADER_INTS, INT_BYTES, Layout
from workers.wire.range_lock import hold_range, is_range_held, release_range
from workers.wire.shared_memory_files import is_ours, make

MAGIC = 0x71_77_65_6E_61_70_69_31


class SharedMemory:
    """A mapped file. Reading needs no lease; `lease` gives the one writable view of a slot."""

    def __init__(self, path: Path, layout: Layout, fd: int) -> None:
        self.path = path
        self.layout = layout
        self._fd = fd
        self._own: set[int] = set()
        size = os.fstat(fd).st_size
        if size < INT_BYTES * HEADER_INTS or size % INT_BYTES:
            os.close(fd)
            raise SharedMemoryError(f"{path}: not a file of shared memory")
        self._map = mmap.mmap(fd, size)
        self._ints = memoryview(self._map).cast("q")
        self.num_slots = self._check(size)

    @classmethod
    def create(cls, path: Path, layout: Layout, num_slots: int) -> "SharedMemory":
        """Open the file, making it if missing; counters of an existing one of this layout go on.

        One of another size is replaced as a file: who has mapped it must not lose the ground.
        """
        size = INT_BYTES * layout.start(num_slots)
        try:
            if not is_ours(path, size):
                make(path, size, _header(layout, num_slots))
        except OSError as error:
            raise SharedMemoryError(
                f"{path}: cannot allocate {size} bytes: {error.strerror}"
            ) from error
        return cls.open(path, layout)

    @classmethod
    def open(cls, path: Path, layout: Layout) -> "SharedMemory":
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise SharedMemoryError(f"{path}: {error.strerror}") from error
        return cls(path, layout, fd)

    @classmethod
    def private(cls, layout: Layout, num_slots: int = 1) -> "SharedMemory":
        """Return memory that only this process sees, for where none can be shared."""
        fd = os.memfd_create(layout.name, os.MFD_CLOEXEC)
        os.ftruncate(fd, INT_BYTES * layout.start(num_slots))
        os.pwrite(fd, _header(layout, num_slots), 0)
        return cls(Path("private"), layout, fd)

    def lease(self, slot: int) -> "Slot":
        """Become the only writer of a slot until this process ends or closes the file."""
        try:
            hold_range(self._fd, *self._range(slot))
        except OSError as error:
            raise SharedMemoryError(
                f"{self.path}: slot {slot} belongs to another process"
            ) from error
        self._own.add(slot)
        return Slot(self, slot)

    def release(self, slot: int) -> None:
        """Give a leased slot back; its Slot must not be used any more."""
        release_range(self._fd, *self._range(slot))
        self._own.discard(slot)

    def is_leased(self, slot: int) -> bool:
        """Return whether a slot has a living owner, this process or another."""
        return slot in self._own or is_range_held(self._fd, *self._range(slot))

    def read(self, slot: int) -> dict[str, int]:
        """Return a slot's fields. Each value is whole; several need not be of one instant."""
        return dict(zip(self.layout.fields, self.values(slot), strict=True))

    def value(self, slot: int, place: int) -> int:
        """Return one field of a slot, by its place in the layout's order."""
        return self._ints[self.layout.start(slot) + place]

    def values(self, slot: int) -> list[int]:
        """Return the values of a slot's fields, in the layout's order."""
        start = self.layout.start(slot)
        return self._ints[start : start + len(self.layout.fields)].tolist()

    def records(self, slot: int) -> list[list[int]]:
        """Return a slot's records as they lie; one being written may be half new."""
        start = self.layout.start(slot) + len(self.layout.fields)
        flat = self._ints[start : self.layout.start(slot + 1)].tolist()
        width = len(self.layout.record)
        return [flat[i : i + width] for i in range(0, len(flat), width)]

    def close(self) -> None:
        self._ints.release()
        self._map.close()
        os.close(self._fd)

    def _range(self, slot: int) -> tuple[int, int]:
        start, stop = (INT_BYTES * self.layout.start(s) for s in (slot, slot + 1))
        return start, stop - start

    def _check(self, size: int) -> int:
        magic, layout_hash, num_slots, slot_ints = self._ints[:HEADER_INTS].tolist()
        if magic != MAGIC or layout_hash != self.layout.hash:
            self.close()
            raise SharedMemoryError(
                f"{self.path}: not of this version's layout {self.layout.name!r}"
            )
        if size != INT_BYTES * (HEADER_INTS + num_slots * slot_ints):
            self.close()
            raise SharedMemoryError(f"{self.path}: truncated")
        return num_slots


def _header(layout: Layout, num_slots: int) -> bytes:
    return struct.pack("=4q", MAGIC, layout.hash, num_slots, layout.slot_ints)


class Slot:
    """The writable fields of one leased slot.

    `ints[start + i]` is field i, for those who write too often for a name.
    """

    def __init__(self, memory: SharedMemory, slot: int) -> None:
        self.ints = memory._ints
        self.start = memory.layout.start(slot)
        self._layout = memory.layout
        self._index = memory.layout.index

    def __getitem__(self, field: str) -> int:
        return self.ints[self.start + self._index[field]]

    def __setitem__(self, field: str, value: int) -> None:
        self.ints[self.start + self._index[field]] = value

    def update(self, **fields: int) -> None:
        for field, value in fields.items():
            self[field] = value

    def values(self) -> list[int]:
        """Return the values of the fields, in the layout's order."""
        return self.ints[self.start : self.start + len(self._layout.fields)].tolist()

    def write(self, values: Sequence[int]) -> None:
        """Write all fields, given in the layout's order."""
        self.ints[self.start : self.start + len(self._layout.fields)] = memoryview(
            array("q", values)
        )

    def write_record(self, number: int, values: Sequence[int]) -> None:
        """Write record `number`, counted from 0 for ever, over the one a ring's length before."""
        layout = self._layout
        width = len(layout.record)
        start = self.start + len(layout.fields) + number % layout.num_records * width
        self.ints[start : start + width] = memoryview(array("q", values))
