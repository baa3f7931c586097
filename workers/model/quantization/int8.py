"""Int8Weight: a weight of 8-bit integers with a scale for every output, and products with it.

    y = (q_x q_Wᵀ) * scale_x * scale_W + b      q from -127 to 127, scales float32

x is rounded row by row, with one scale a row. Our own function multiplies, or oneDNN on a CPU it is
not for; the numbers of x are moved by 128 to be unsigned. Sums of integers have no order, so a row
is the same bits whatever is beside it. Without VNNI oneDNN adds pairs in 16 bits, where large ones
are cut off: `is_exact` tries it, and where it is not, weights are unpacked.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Self

import torch
from torch import Tensor

from workers.model.native.int8_tiles import Int8Tiles
from workers.model.native.native import Native
from workers.model.native.panels import fill_up

LARGEST = 127
_OFFSET = 128
# The least a scale is computed from, so that rows of zeros divide by something.
_LEAST = 1e-30

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Int8Weight:
    """A weight [out, in] on a CPU: `values` int8 of that shape, `scales` float32 `[out]`. What it
    is multiplied by is of `dtype`.
    """

    values: Tensor
    scales: Tensor
    dtype: torch.dtype

    @classmethod
    def of(cls, weight: Tensor, dtype: torch.dtype) -> Self:
        """Round a plain weight."""
        weight = weight.float()
        scales = weight.abs().amax(1).clamp_(min=_LEAST) / LARGEST
        return cls((weight / scales[:, None]).round_().to(torch.int8), scales, dtype)

    @property
    def shape(self) -> torch.Size:
        return self.values.shape

    def unpack(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return the weight [out, in] in plain torch, of its own dtype if none is said."""
        return (self.values.float() * self.scales[:, None]).to(dtype or self.dtype)

    def product(self, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
        """Return what multiplies x `[rows, in]`; it holds the weight in a layout of its own."""
        native = Native.load(self.dtype)
        if native is not None and native.takes_int8(self.shape[1]):
            tiles = Int8Tiles.of(self.values, self.scales)
            padded = None if bias is None else fill_up(bias.float())
            return lambda x: native.multiply_int8(x.contiguous(), tiles, padded)
        return self._product_of_onednn(bias)

    def _product_of_onednn(self, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
        packed = torch.ops.onednn.qlinear_prepack(self.values, None)
        scales, zeros = self.scales, torch.zeros(len(self.scales), dtype=torch.int32)
        bias = None if bias is None else bias.float()

        def multiply(x: Tensor) -> Tensor:
            values, x_scales = round_rows(x)
            y = torch.ops.onednn.qlinear_pointwise(
                values, 1.0, _OFFSET, packed, scales, zeros, None, 1.0, 0, x.dtype, "none", [], ""
            )
            return scale_rows(y, x_scales, bias)

        return multiply


def concatenate(weights: Sequence[Int8Weight]) -> Int8Weight:
    """Return the weights side by side, along outputs."""
    return Int8Weight(
        torch.cat([weight.values for weight in weights]),
        torch.cat([weight.scales for weight in weights]),
        weights[0].dtype,
    )


def round_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return x `[rows, in]` in 8 bits, plus 128, and the float32 scales `[rows, 1]`."""
    if (native := _native(x)) is not None:
        return native.round_rows(x.contiguous())
    x = x.float()
    scales = x.abs().amax(-1, keepdim=True).clamp_(min=_LEAST) / LARGEST
    return (x / scales).round_().add_(_OFFSET).to(torch.uint8), scales


def scale_rows(y: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    """Multiply y `[rows, out]` in place by the rows' scales, and add a float32 bias; return y."""
    if (native := _native(y)) is not None:
        return native.scale_rows(y, scales, bias)
    y = y.mul_(scales)
    return y if bias is None else y.add_(bias)


def _native(x: Tensor) -> Native | None:
    return Native.load(x.dtype) if Native.takes_width(x.shape[-1]) else None


@cache
def is_exact() -> bool:
    """Return whether this CPU adds products of 8 bits without loss; the log says if not."""
    packed = torch.ops.onednn.qlinear_prepack(torch.full((16, 64), LARGEST, dtype=torch.int8), None)
    x, zeros = torch.full((3, 64), _OFFSET + LARGEST, dtype=torch.uint8), torch.zeros(16).int()
    found = torch.ops.onednn.qlinear_pointwise(
        x, 1.0, _OFFSET, packed, torch.ones(16), zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )
    if torch.equal(found, torch.full((3, 16), 64.0 * LARGEST * LARGEST)):
        return True
    _logger.warning(
        "this CPU has no VNNI: weights of 8 bits are unpacked, and take as much memory and time as"
        " others"
    )
    return False
