"""WaitingQueue: the sequences that wait for blocks and a row, in order of priority and arrival.

Knows order only. Refuses to know limits; the scheduler asks them.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator
from operator import attrgetter

from workers.engine.sequence import Sequence

by_order = attrgetter("order")


class WaitingQueue:
    """Sorted by priority, arrival and choice: a preempted sequence finds its old place."""

    def __init__(self) -> None:
        self._sequences: list[Sequence] = []

    def __len__(self) -> int:
        return len(self._sequences)

    def __iter__(self) -> Iterator[Sequence]:
        """Iterate over a copy, so that the visitor may remove what it admits."""
        return iter(self._sequences.copy())

    def add(self, sequence: Sequence) -> None:
        insort(self._sequences, sequence, key=by_order)

    def remove(self, sequence: Sequence) -> None:
        index = bisect_left(self._sequences, sequence.order, key=by_order)
        assert self._sequences[index] is sequence
        del self._sequences[index]
