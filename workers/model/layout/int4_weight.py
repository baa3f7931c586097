"""Int4Weight: a linear's weight in 4 bits, in one layout for kernels, whatever the checkpoint's.

    block b of 8 W inputs, output n: W words, 32 or 16 by the size of a group
    word w:  high half   plane 3 │ 2 │ 1 │ 0     plane p is input 8 W b + 2 W p + 2 w + 1
             low half    plane 3 │ 2 │ 1 │ 0     plane p is input 8 W b + 2 W p + 2 w

A plane of all words is 2 W neighbouring inputs, and each word has two neighbours in the halves of
a register: so one mask makes a pair of floats of 16 bits, and no number moves between threads. The
words of neighbouring outputs follow each other in memory. With a float16 scale and a byte of zero
point for every 128 inputs that is 4.19 bits a weight.

Knows the layout. Refuses to know checkpoints, which are in awq_gptq.py, and who multiplies.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd

import torch
import torch.nn.functional as F
from torch import Tensor

PLANES = 4
PER_WORD = 8
# Bit 4 p + 16 h of a word begins the number of plane p in half h.
_HALF_BITS = 16
_MANY_WORDS, _FEW_WORDS = 32, 16


@dataclass(frozen=True, eq=False)
class Int4Weight:
    """weight[n, order[k]] = (number[k, n] - zero[g, n]) * scale[g, n], of group g = k / group_size.

    `words` int32 `[ceil(in / 8 W), out, W]`, `scales` of any floats and `zeros` uint8
    `[groups, out]`. `order` int64 `[in]` is None where inputs keep their order; it says which
    input of x comes k-th.
    """

    words: Tensor
    scales: Tensor
    zeros: Tensor
    group_size: int
    num_inputs: int
    order: Tensor | None = None

    def __post_init__(self) -> None:
        for tensor in (self.words, self.scales, self.zeros):
            assert tensor.is_contiguous(), "kernels know no strides"

    @property
    def shape(self) -> tuple[int, int]:
        """Return (out, in), as that of a plain weight."""
        return self.words.shape[1], self.num_inputs

    @property
    def device(self) -> torch.device:
        return self.words.device

    @property
    def num_bytes(self) -> int:
        held = (self.words, self.scales, self.zeros, *(() if self.order is None else (self.order,)))
        return sum(tensor.numel() * tensor.itemsize for tensor in held)

    @property
    def group_planes(self) -> int:
        """Return how many planes in a row always have one scale, a divisor of PLANES."""
        plane_inputs = 2 * self.words.shape[2]
        return (
            PLANES
            if self.group_size >= self.num_inputs
            else gcd(self.group_size // plane_inputs, PLANES)
        )

    def numbers(self) -> Tensor:
        """Return the numbers uint8 [out, in], inputs in the order of groups."""
        bits = torch.arange(0, 32, 4, dtype=torch.int32, device=self.device)
        numbers = ((self.words.unsqueeze(-1) >> bits) & 15).to(torch.uint8)
        # [blocks, out, words, halves, planes] to [out, blocks, planes, words, halves]
        numbers = numbers.unflatten(-1, (2, PLANES)).permute(1, 0, 4, 2, 3)
        return numbers.flatten(1)[:, : self.num_inputs]

    def unpack(self, dtype: torch.dtype) -> Tensor:
        """Return the weight [out, in] in plain torch, exact in float32 and then rounded once."""
        numbers = self.numbers().float()
        group = torch.arange(self.num_inputs, device=self.device) // self.group_size
        weight = (numbers - self.zeros.float()[group].T) * self.scales.float()[group].T
        if self.order is not None:
            weight = torch.empty_like(weight).index_copy_(1, self.order, weight)
        return weight.to(dtype)


def concatenate(weights: Sequence[Int4Weight]) -> Int4Weight | None:
    """Return the weights side by side, along outputs; None where their inputs do not agree."""
    first = weights[0]
    if not all(_takes_the_same(first, other) for other in weights[1:]):
        return None
    return Int4Weight(
        torch.cat([weight.words for weight in weights], dim=1),
        torch.cat([weight.scales for weight in weights], dim=1),
        torch.cat([weight.zeros for weight in weights], dim=1),
        first.group_size,
        first.num_inputs,
        first.order,
    )


def num_words(group_size: int, num_inputs: int) -> int | None:
    """Return W of a weight; None where groups are no whole number of planes in any layout."""
    for words in (_MANY_WORDS, _FEW_WORDS):
        if group_size >= num_inputs or group_size % (2 * words) == 0:
            return words
    return None


def pack_words(numbers: Tensor, width: int) -> Tensor:
    """Return words `[blocks, out, width]` of int32 numbers `[in, out]`, each from 0 to 15."""
    padded = F.pad(numbers, (0, 0, 0, -numbers.shape[0] % (PER_WORD * width)))
    pairs = padded.view(-1, PLANES, width, 2, numbers.shape[1])
    words = torch.zeros_like(pairs[:, 0, :, 0])
    for plane in range(PLANES):
        for half in range(2):
            words |= pairs[:, plane, :, half] << (4 * plane + _HALF_BITS * half)
    return words.transpose(1, 2)


def _takes_the_same(one: Int4Weight, other: Int4Weight) -> bool:
    if (one.group_size, one.num_inputs) != (other.group_size, other.num_inputs):
        return False
    if one.order is None or other.order is None:
        return one.order is other.order
    return torch.equal(one.order, other.order)
