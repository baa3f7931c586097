"""Int4Tiles: a weight of 4 bits in the layout of int4.c.

With a scale in half precision and a byte of zero point for every 128 inputs that is 4.19 bits a
weight. The products round x to 8 bits, with a scale for the inputs of a group of a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.model.layout.int4_weight import Int4Weight

TILE = 16
_RUN = 8
# Half precision's least number that is not subnormal.
_LEAST_HALF = 2.0**-14


@dataclass(frozen=True, eq=False)
class Int4Tiles:
    """A weight [out, in] on a CPU: see int4.c for `tiles` uint8 `[tiles, inputs / 8, 64]`, and for
    `scales` float16 and `zeros` uint8 `[tiles, groups, 16]`, `factors` float32 `[tiles]`.

    `order` int64 `[in]` says which input of x comes k-th; it is None where they keep their order.
    """

    tiles: Tensor
    scales: Tensor
    zeros: Tensor
    factors: Tensor
    shape: Sequence[int]
    group_size: int
    order: Tensor | None = None

    @classmethod
    def of(cls, weight: Int4Weight) -> Self:
        """Return the same weight; its scales are rounded to half precision."""
        scales, zeros = weight.scales, weight.zeros
        return cls.pack(weight.numbers(), scales, zeros, weight.group_size, weight.order)

    @classmethod
    def pack(
        cls,
        numbers: Tensor,
        scales: Tensor,
        zeros: Tensor,
        group_size: int,
        order: Tensor | None = None,
    ) -> Self:
        """Return a weight of numbers uint8 [out, in], from 0 to 15, with the scales and the zero
        points `[groups, out]` of Int4Weight.
        """
        num_outputs, num_inputs = shape = numbers.shape
        group_size = min(group_size, -(-num_inputs // TILE) * TILE)
        by_tile = (-num_outputs % TILE, -num_inputs % group_size)
        numbers = _without_scale_of_0(numbers, scales, zeros, group_size)
        numbers = F.pad(numbers, (0, by_tile[1], 0, by_tile[0]))
        halves = numbers.view(-1, TILE, numbers.shape[1] // _RUN, 2, _RUN // 2).unbind(3)
        tiles = (halves[0] | (halves[1] << 4)).transpose(1, 2).flatten(2).contiguous()
        scales, zeros = (
            F.pad(part.T, (0, 0, 0, by_tile[0])).unflatten(0, (-1, TILE)).transpose(1, 2)
            for part in (scales.float(), zeros)
        )
        largest = scales.abs().amax((1, 2))
        factors = torch.exp2(largest.log2().ceil())
        factors[largest == 0] = 1.0
        factors[~largest.isfinite()] = torch.nan  # half precision here has no such numbers
        halved = scales / factors[:, None, None]
        # What is smaller counts for nothing beside the tile's largest.
        halved = halved.sign() * halved.abs().clamp(min=_LEAST_HALF)
        zeros, halved = zeros.contiguous(), halved.half().contiguous()
        return cls(tiles, halved, zeros, factors, shape, group_size, order)

    @property
    def num_bytes(self) -> int:
        held = (self.tiles, self.scales, self.zeros, self.factors)
        return sum(tensor.numel() * tensor.itemsize for tensor in held)


def _without_scale_of_0(numbers: Tensor, scales: Tensor, zeros: Tensor, group_size: int) -> Tensor:
    """Return numbers that are 0 where their scale is, which half precision here cannot say."""
    is_none = scales == 0
    if not is_none.any():
        return numbers
    group = torch.arange(numbers.shape[1]) // group_size
    return torch.where(is_none[group].T, zeros[group].T, numbers)


def concatenate(weights: Sequence[Int4Tiles]) -> Int4Tiles | None:
    """Return the weights side by side, along outputs; None where a tile would lie in two, or inputs
    do not agree.
    """
    first = weights[0]
    if any(weight.shape[0] % TILE for weight in weights[:-1]):
        return None
    if not all(_takes_the_same(first, other) for other in weights[1:]):
        return None
    return Int4Tiles(
        torch.cat([weight.tiles for weight in weights]),
        torch.cat([weight.scales for weight in weights]),
        torch.cat([weight.zeros for weight in weights]),
        torch.cat([weight.factors for weight in weights]),
        (sum(weight.shape[0] for weight in weights), first.shape[1]),
        first.group_size,
        first.order,
    )


def _takes_the_same(one: Int4Tiles, other: Int4Tiles) -> bool:
    if (one.group_size, one.shape[1]) != (other.group_size, other.shape[1]):
        return False
    if one.order is None or other.order is None:
        return one.order is other.order
    return torch.equal(one.order, other.order)
