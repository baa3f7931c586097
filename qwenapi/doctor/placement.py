"""Placement: on which nodes of a cluster an engine's ranks would be.

A node of its own first, the one with the fewest engines; else, if it may, as few nodes as can be.
Knows numbers alone, so that a launcher and the doctor come to the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass

Resources = Mapping[str, float]


@dataclass(frozen=True)
class Share:
    """So many ranks of an engine on a node."""

    node: str
    num_ranks: int


class Placement:
    """What nodes have left, and how many engines each has been given."""

    def __init__(self, takes: Resources, free: Mapping[str, Resources]) -> None:
        """`takes` is what a rank takes of a node; `free` what each node has."""
        self.rooms = {
            node: min(int(has.get(what, 0) // amount) for what, amount in takes.items())
            for node, has in free.items()
        }
        self._num_engines = dict.fromkeys(self.rooms, 0)

    def place(self, num_ranks: int, *, may_cross: bool = False) -> tuple[Share, ...]:
        """Return where an engine goes, and take the room for it; empty: there is none."""
        shares = self._within_one(num_ranks)
        if not shares and may_cross:
            shares = self._across(num_ranks)
        self.take(shares)
        return shares

    def take(self, shares: tuple[Share, ...], *, is_taken: bool = False) -> None:
        """Count an engine as where it is to be; `is_taken`: what is free is so without its room."""
        for share in shares:
            if share.node in self.rooms:
                self.rooms[share.node] -= 0 if is_taken else share.num_ranks
                self._num_engines[share.node] += 1

    def _within_one(self, num_ranks: int) -> tuple[Share, ...]:
        fit = [node for node, room in self.rooms.items() if room >= num_ranks]
        if not fit:
            return ()
        return (Share(min(fit, key=lambda node: self._num_engines[node]), num_ranks),)

    def _across(self, num_ranks: int) -> tuple[Share, ...]:
        """Take the nodes with most room, and for the last ranks the one with just enough."""
        rooms, shares = dict(self.rooms), []
        while num_ranks and max(rooms.values(), default=0) > 0:
            enough = {node: room for node, room in rooms.items() if room >= num_ranks}
            node = (
                min(enough, key=enough.__getitem__) if enough else max(rooms, key=rooms.__getitem__)
            )
            shares.append(Share(node, min(num_ranks, rooms.pop(node))))
            num_ranks -= shares[-1].num_ranks
        return () if num_ranks else tuple(shares)
