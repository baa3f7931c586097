"""Panels: what panels.h multiplies by, 32 outputs at once."""

import torch.nn.functional as F
from torch import Tensor

PANEL = 32


def panels_of(values: Tensor, at_once: int) -> Tensor:
    """Return values [out, in] as `[out / 32, in / at_once, 32, at_once]`, outputs filled up with
    zeros; inputs are a multiple of `at_once`.
    """
    filled = F.pad(values, (0, 0, 0, -len(values) % PANEL))
    panels = filled.view(-1, PANEL, values.shape[1] // at_once, at_once)
    return panels.transpose(1, 2).contiguous()


def fill_up(of_outputs: Tensor) -> Tensor:
    """Return what each output has `[out]`, filled up with zeros to whole panels."""
    return F.pad(of_outputs, (0, -len(of_outputs) % PANEL))
