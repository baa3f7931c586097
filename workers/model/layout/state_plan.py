"""StatePlan: how the tokens of a step pass through the state slots of a hybrid model.

    flat batch:  one token of each decoding row │ spans: tokens of one sequence, cut where a copy
                 (runs: rows of neighbouring    │ of its state is to be kept
                 slots, updated in one piece)   │

Knows slots by their numbers; refuses to know whose they are. Slot 0 is trash, as block 0 is.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import torch
from torch import Tensor


class SlotCopy(NamedTuple):
    """Slot `target` becomes what slot `source` is, or empty where that is None."""

    source: int | None
    target: int


class StateRun(NamedTuple):
    """Decoding rows `first:stop`, counted in the plan's order, with slots from `slot` on."""

    first: int
    stop: int
    slot: int

    @property
    def slots(self) -> slice:
        return slice(self.slot, self.slot + self.stop - self.first)


class StateSpan(NamedTuple):
    """Tokens `first:stop` of the flat batch, which take one slot's state further.

    Slot `kept`, if any, is then given a copy.
    """

    first: int
    stop: int
    slot: int
    kept: int | None = None


@dataclass(frozen=True)
class StatePlan:
    """All state of one step; equal for every layer on one device.

    `before` happens before any token, in its order, and `after` when the decoding rows are done.
    `order` `[rows]` sorts those by their slots; None where they are sorted already.
    """

    before: tuple[SlotCopy, ...]
    order: Tensor | None
    runs: tuple[StateRun, ...]
    after: tuple[SlotCopy, ...]
    spans: tuple[StateSpan, ...]

    def to(self, device: torch.device) -> Self:
        """Return the plan with its tensor on another device."""
        return self if self.order is None else replace(self, order=self.order.to(device))
