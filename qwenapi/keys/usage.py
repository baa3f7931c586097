"""KeyUsage: what each key uses, in memory that all processes of one HTTP half share.

    slot 0   per key: its id, and until when its minute's requests and tokens are used up
    slot 1…  one per process, per key: requests that run, that wait, and since when the first waits

Slot 0 belongs to nobody for long: its lease is the lock under which something is looked up and
changed, held for microseconds and never while waiting. The kernel takes both kinds of lease from a
process that dies, so that what it ran and queued counts no more. A key may use a whole minute's
amount at once, and gets it back evenly. Times are of time.monotonic_ns().
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from qwenapi.keys.key_file import MAX_KEYS
from workers.errors import SharedMemoryError
from workers.wire.layout import Layout
from workers.wire.shared_memory import SharedMemory
from workers.wire.shared_memory_files import shared_memory_path

log = logging.getLogger(__name__)

NANO = 1_000_000_000
MINUTE_NS = 60 * NANO
NUM_PROCESSES = 128
# Those of keys that are gone are taken again when there is no other.
NUM_COLUMNS = 2 * MAX_KEYS
SHARED = ("key", "requests_ns", "tokens_ns")  # a column of slot 0
OWN = ("running", "queued", "first_ns")  # a column of a process's slot
WIDTH = len(SHARED)
LOCK_SECONDS = 0.0005
LAYOUT = Layout(
    "keys",
    tuple(f"{i}.{a}/{b}" for i in range(NUM_COLUMNS) for a, b in zip(SHARED, OWN, strict=True)),
)

Rate = Literal["requests_ns", "tokens_ns"]
Load = Literal["running", "queued", "first_ns"]


def create_usage_memory(run_dir: Path) -> Path | None:
    """Make the shared memory, or find what its last processes left; None: no room."""
    path = shared_memory_path(run_dir, LAYOUT)
    try:
        SharedMemory.create(path, LAYOUT, 1 + NUM_PROCESSES).close()
    except SharedMemoryError as failure:
        log.warning("the limits of keys hold in each HTTP process by itself: %s", failure)
        return None
    return path


class KeyUsage:
    """The memory and this process's slot; a column is what `column` returns, under the lock."""

    def __init__(self, memory: SharedMemory | None) -> None:
        """Without shared memory it is this process's own."""
        self._memory = memory
        if memory is None:
            self._ints, self._mine = memoryview(bytearray(8 * LAYOUT.start(2))).cast("q"), 1
            self._others: range | list[int] = []
        else:
            self._mine, self._ints = _lease_any(memory)
            self._others = [i for i in range(1, memory.num_slots) if i != self._mine]
        with self.locked():
            start, stop = (LAYOUT.start(self._mine + i) for i in (0, 1))
            for place in range(start, stop):
                self._ints[place] = 0

    @classmethod
    def lease(cls, path: str) -> "KeyUsage":
        """Take a free slot; where there is none, this process counts by itself."""
        try:
            return cls(SharedMemory.open(Path(path), LAYOUT) if path else None)
        except SharedMemoryError as failure:
            log.warning("the limits of keys hold in this HTTP process by itself: %s", failure)
            return cls(None)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other process out; nothing inside may wait, or let another greenlet run."""
        if self._memory is None:
            yield
            return
        while True:
            try:
                self._memory.lease(0)
                break
            except SharedMemoryError:
                time.sleep(LOCK_SECONDS)
        try:
            yield
        finally:
            self._memory.release(0)

    def column(self, key_id: str) -> int:
        """Return where a key is counted, making room for a new one."""
        number = int.from_bytes(key_id.encode(), "big")
        start = LAYOUT.start(0)
        ids = self._ints[start : LAYOUT.start(1) : WIDTH].tolist()
        if number in ids:
            return int(ids.index(number))
        column = ids.index(0) if 0 in ids else self._idle_column()
        place = start + WIDTH * column
        self._ints[place + 1] = self._ints[place + 2] = 0
        self._ints[place] = number
        return column

    def take(self, column: int, rate: Rate, amount: int, limit: int) -> float:
        """Use an amount of what a key has in a minute, or return in how many seconds it could."""
        now, cost = time.monotonic_ns(), amount * MINUTE_NS // limit
        place = LAYOUT.start(0) + WIDTH * column + SHARED.index(rate)
        used_until = max(self._ints[place], now) + cost
        if used_until > now + MINUTE_NS:
            return (used_until - now - MINUTE_NS) / NANO
        self._ints[place] = used_until
        return 0.0

    def charge(self, column: int, rate: Rate, amount: int, limit: int) -> None:
        """Use an amount whatever is left, or give it back if negative: later requests wait."""
        place = LAYOUT.start(0) + WIDTH * column + SHARED.index(rate)
        base = max(self._ints[place], time.monotonic_ns())
        self._ints[place] = base + amount * MINUTE_NS // limit

    def left(self, column: int, rate: Rate, limit: int) -> tuple[int, float]:
        """Return how much of its minute a key has left, and in how many seconds it has all."""
        place = LAYOUT.start(0) + WIDTH * column + SHARED.index(rate)
        used_ns = max(0, self._ints[place] - time.monotonic_ns())
        return max(0, (MINUTE_NS - used_ns) * limit // MINUTE_NS), used_ns / NANO

    def add(self, column: int, load: Load, change: int) -> None:
        """Change what this process counts of a key; no lock is needed for less."""
        self._ints[self._place(self._mine, column, load)] += change

    def set_first(self, column: int, first_ns: int) -> None:
        """Note since when this process's first request of a key waits, 0 for none."""
        self._ints[self._place(self._mine, column, "first_ns")] = first_ns

    def in_all(self, column: int, load: Load) -> list[int]:
        """Return what the living processes count, this one first, zeros left out."""
        values = [self._ints[self._place(self._mine, column, load)]]
        for slot in self._others:
            value = self._ints[self._place(slot, column, load)]
            if value and self._memory is not None and self._memory.is_leased(slot):
                values.append(value)
        return [value for value in values if value]

    def _place(self, slot: int, column: int, load: Load) -> int:
        return LAYOUT.start(slot) + WIDTH * column + OWN.index(load)

    def _idle_column(self) -> int:
        """Return the column whose key has used nothing for longest, and has nothing under way."""
        places = range(LAYOUT.start(0), LAYOUT.start(1), WIDTH)
        by_use = sorted(
            range(NUM_COLUMNS),
            key=lambda i: max(self._ints[places[i] + 1], self._ints[places[i] + 2]),
        )
        return next(
            i for i in by_use if not self.in_all(i, "running") and not self.in_all(i, "queued")
        )


def _lease_any(memory: SharedMemory) -> tuple[int, "memoryview[int]"]:
    for number in range(1, memory.num_slots):
        try:
            return number, memory.lease(number).ints
        except SharedMemoryError:
            continue
    raise SharedMemoryError(f"{memory.path}: all {memory.num_slots - 1} slots are taken")
