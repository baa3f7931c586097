"""Int8Tiles: a weight of 8-bit integers in the layout of int8.c."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from workers.model.native.panels import fill_up, panels_of

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
        offsets = -_OFFSET * values.sum(1, dtype=torch.int32)
        return cls(panels_of(values, 4), fill_up(scales), fill_up(offsets), values.shape)
