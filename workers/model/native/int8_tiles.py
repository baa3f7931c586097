"""Int8Tiles: a weight of 8-bit integers in the layout of int8.c."""

from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.model.native.bfloat16_tiles import PANEL

_OFFSET = 128


@dataclass(frozen=True, eq=False)
class Int8Tiles:
    """A weight [out, in] on a CPU as `panels` `[out / 32, in / 4, 32, 4]`; outputs, their float32
    `scales` and int32 `offsets` are filled up with zeros.
    """

    panels: Tensor
    scales: Tensor
    offsets: Tensor
    shape: torch.Size

    @classmethod
    def of(cls, values: Tensor, scales: Tensor) -> Self:
        """Return int8 `values` [out, in], whose inputs are a multiple of 4, in panels."""
        missing = -len(values) % PANEL
        filled = F.pad(values, (0, 0, 0, missing))
        panels = filled.view(-1, PANEL, values.shape[1] // 4, 4).transpose(1, 2).contiguous()
        offsets = -_OFFSET * filled.sum(1, dtype=torch.int32)
        return cls(panels, F.pad(scales, (0, missing)), offsets, values.shape)

    def pad_bias(self, bias: Tensor) -> Tensor:
        """Return a bias `[out]` in float32, filled up with zeros to whole panels."""
        return F.pad(bias.float(), (0, -len(bias) % PANEL))
