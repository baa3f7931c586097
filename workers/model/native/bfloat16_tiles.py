"""Bfloat16Tiles: a weight in bfloat16 in the layout of bfloat16.c."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from workers.model.native.panels import PANEL, panels_of


@dataclass(frozen=True, eq=False)
class Bfloat16Tiles:
    """A weight [out, in] on a CPU as `panels` `[out / 32, in / 2, 32, 2]`, outputs filled up with
    zeros.
    """

    panels: Tensor
    shape: torch.Size

    @classmethod
    def of(cls, weight: Tensor) -> Self:
        """Return a weight, whose inputs are even in number, in panels."""
        return cls(panels_of(weight, 2), weight.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Return some rows `[rows, in]`, as of a plain weight."""
        return self.panels[rows // PANEL, :, rows % PANEL].flatten(1)

    @property
    def dtype(self) -> torch.dtype:
        return self.panels.dtype

    @property
    def device(self) -> torch.device:
        return self.panels.device
