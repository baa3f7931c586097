"""Bfloat16Tiles: a weight in bfloat16 in the layout of bfloat16.c."""

from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

PANEL = 32


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
        filled = F.pad(weight, (0, 0, 0, -len(weight) % PANEL))
        panels = filled.view(-1, PANEL, weight.shape[1] // 2, 2).transpose(1, 2).contiguous()
        return cls(panels, weight.shape)

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

    def pad_bias(self, bias: Tensor) -> Tensor:
        """Return a bias `[out]` in float32, filled up with zeros to whole panels."""
        return F.pad(bias.float(), (0, -len(bias) % PANEL))
