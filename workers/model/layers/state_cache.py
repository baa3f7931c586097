"""StateCache: the states of one Gated DeltaNet layer, in slots that sequences own one by one.

Nothing of a slot is ever gathered: rows whose slots follow each other are computed in place, as one
view. Refuses to know whose a slot is.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.model.layout.state_plan import SlotCopy


@dataclass(frozen=True)
class StateShape:
    """The dimensions of one sequence's state in one layer, float32 whatever the model's dtype.

    In bfloat16 a prefix taken from the cache would differ from one that is computed.
    """

    num_heads: int
    key_dim: int
    value_dim: int
    channels: int
    width: int

    @property
    def slot_bytes(self) -> int:
        recurrent = self.num_heads * self.key_dim * self.value_dim
        return 4 * (recurrent + (self.width - 1) * self.channels)


class StateCache:
    """`matrices` `[slots, heads, key_dim, value_dim]` and `inputs` `[slots, width - 1, channels]`:
    what the convolution last saw, the oldest first.

    Not filled: a slot is emptied before its first token.
    """

    def __init__(self, shape: StateShape, num_slots: int, device: torch.device) -> None:
        size = (num_slots, shape.num_heads, shape.key_dim, shape.value_dim)
        self.matrices = torch.empty(size, device=device)
        self.inputs = torch.empty((num_slots, shape.width - 1, shape.channels), device=device)

    def copy(self, copies: Iterable[SlotCopy]) -> None:
        """Copy or empty slots, one after the other."""
        copy_slots(copies, self.matrices, self.inputs)

    def views(self, slots: slice) -> tuple[Tensor, Tensor]:
        """Return matrices and inputs of neighbouring slots, to be changed in place."""
        return self.matrices[slots], self.inputs[slots]


def copy_slots(copies: Iterable[SlotCopy], *caches: Tensor) -> None:
    """Copy or empty slots of all caches, one slot after the other."""
    for source, target in copies:
        for slots in caches:
            if source is None:
                slots[target].zero_()
            else:
                slots[target].copy_(slots[source])
