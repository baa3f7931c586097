"""Rounder: plain weights in fewer bits as they are read, and what that loses.

fp8     e4m3, a scale for each output; for GPUs
int8    integers, a scale for each output; for CPUs
int4    integers from -8 to 7, a scale for each output and 128 inputs; for CPUs
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.checkpoint.rounding import Rounding
from workers.model.native.int4_tiles import Int4Tiles
from workers.model.quantization import int8
from workers.model.quantization.fp8 import Fp8Weight
from workers.model.quantization.int8 import Int8Weight

Rounded = Fp8Weight | Int8Weight | Int4Tiles

GROUP = 128
_ZERO = 8
# A group's largest number may be cut off a little, if the others gain more: parts of its scale.
_SHRINKS = (1.0, 0.9, 0.8)


class Rounder:
    """Rounds weights one by one, and knows the error of all so far."""

    def __init__(self, to: Rounding, dtype: torch.dtype) -> None:
        """`dtype` is the model's: of what is multiplied, and of what cannot be in fewer bits."""
        ways: dict[Rounding, Callable[[Tensor], tuple[Rounded, Tensor]]] = {
            "fp8": _to_fp8,
            "int8": lambda weight: _to_int8(weight, dtype),
            "int4": _to_int4,
        }
        self._round = ways[to]
        self._squares = self._errors = 0.0

    def __call__(self, weight: Tensor) -> Rounded | Tensor:
        """Return a weight [out, in] in fewer bits."""
        rounded, found = self._round(weight)
        self._squares += float(weight.float().square().sum())
        self._errors += float((found - weight.float()).square().sum())
        if isinstance(rounded, Int8Weight) and not int8.is_exact():
            return rounded.unpack()
        return rounded

    @property
    def loss(self) -> float:
        """The root of the sum of squared errors, as a part of that of the weights."""
        return math.sqrt(self._errors / self._squares) if self._squares else 0.0


def _to_fp8(weight: Tensor) -> tuple[Rounded, Tensor]:
    rounded = Fp8Weight.of(weight)
    return rounded, rounded.unpack(torch.float32)


def _to_int8(weight: Tensor, dtype: torch.dtype) -> tuple[Rounded, Tensor]:
    rounded = Int8Weight.of(weight, dtype)
    return rounded, rounded.unpack(torch.float32)


def _to_int4(weight: Tensor) -> tuple[Rounded, Tensor]:
    """Round to the nearest of 16 numbers, of which -8 is the largest of a group by its absolute
    value, as in llama.cpp's q4_0 (ggml-quants.c: quantize_row_q4_0_ref).
    """
    num_outputs, num_inputs = weight.shape
    groups = F.pad(weight.float(), (0, -num_inputs % GROUP)).view(num_outputs, -1, GROUP)
    where = groups.abs().argmax(-1, keepdim=True)
    widest = groups.gather(-1, where) / -_ZERO
    widest = torch.where(widest == 0, torch.ones_like(widest), widest)
    best = torch.full_like(widest, torch.inf)
    numbers, scales = torch.zeros_like(groups), widest
    for shrink in _SHRINKS:
        scale = widest * shrink
        tried = (groups / scale).round_().clamp_(-_ZERO, _ZERO - 1)
        error = (tried * scale - groups).square_().sum(-1, keepdim=True)
        is_better = error < best
        best = torch.where(is_better, error, best)
        numbers, scales = (
            torch.where(is_better, tried, numbers),
            torch.where(is_better, scale, scales),
        )
    found = (numbers * scales).flatten(1)[:, :num_inputs]
    unsigned = (numbers + _ZERO).to(torch.uint8).flatten(1)[:, :num_inputs]
    scales = scales.squeeze(-1).T
    zeros = torch.full(scales.shape, _ZERO, dtype=torch.uint8)
    return Int4Tiles.pack(unsigned, scales, zeros, GROUP), found
