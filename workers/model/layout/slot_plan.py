"""SlotPlan: the state slots of one step for the kernels, as a few tensors on the device.

    row 0      row 1         row 2
    ┌──────────┬─┬───────────┐
    │ a prompt │1│ a chunk   │   flat batch; starts = [0, 10, 11, 22], slots = [4, 9, 2]
    └──────────┴─┴───────────┘
              k                  kept: a copy of the state behind this token, in slot k

Rows are those of paged_plan.py. StatePlan is the same for torch. Refuses to know whose a slot is.
"""

from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from workers.model.layout.state_plan import StatePlan

# Tokens of a chunk of the delta rule. A prompt cut at multiples of it gives the same bits as in one
# pass.
CHUNK = 64


@dataclass(frozen=True)
class SlotPlan:
    """All state of one step; equal for every layer on one device. Tensors are int32.

    Row r is tokens `starts[r] : starts[r + 1]`, the newest of `lengths[r]`, and takes the state in
    `slots[r]` further. Slot `kept[t]`, if it is not 0, is given a copy of the state behind token t,
    which ends a row or lies below a multiple of CHUNK. `max_query` bounds the tokens of any row.
    """

    starts: Tensor
    lengths: Tensor
    slots: Tensor
    kept: Tensor
    max_query: int

    def to(self, device: torch.device) -> Self:
        """Return the plan with its tensors on another device."""
        parts = vars(self).items()
        moved: Any = {name: part.to(device) for name, part in parts if isinstance(part, Tensor)}
        return replace(self, **moved)


States = StatePlan | SlotPlan
