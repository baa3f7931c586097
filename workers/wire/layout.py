"""Layout: how named fields lie in a shared-memory file, in slots and in records behind them."""

import hashlib
from dataclasses import dataclass
from functools import cached_property

HEADER_INTS = 4
INT_BYTES = 8


@dataclass(frozen=True)
class Layout:
    """A file's name, the fields of each of its slots, and the fields of each record behind them."""

    name: str
    fields: tuple[str, ...]
    record: tuple[str, ...] = ()
    num_records: int = 0

    @cached_property
    def index(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.fields)}

    @cached_property
    def hash(self) -> int:
        """Return 63 bits that differ when a field was added, moved or renamed."""
        words = "\n".join((*self.fields, *self.record, str(self.num_records)))
        return int.from_bytes(hashlib.sha256(words.encode()).digest()[:8], "big") >> 1

    @property
    def slot_ints(self) -> int:
        """Return how many int64s a slot takes."""
        return len(self.fields) + self.num_records * len(self.record)

    def start(self, slot: int) -> int:
        """Return where a slot begins, counted in int64s."""
        return HEADER_INTS + slot * self.slot_ints
