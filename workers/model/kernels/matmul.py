"""y = x Wᵀ + b in one Triton kernel with one tile and one order of sums, for batch invariance.

    program (64 rows of x, 64 of W):  for every 64 inputs, in their order:  acc += x_tile W_tileᵀ

A library picks its product by the number of rows, and another product adds in another order. Here
each element is one float32 sum over the inputs in one order, by one instruction, wherever its row
lies and whatever lies beside it; missing rows are zeros. Refuses to know layers and weights.

The price: a tile of 64 rows for one row reads no more of W, but keeps matrix units busy with zeros,
and 64 × 64 outputs reuse too little for long prompts, where libraries hold four times as many. No
speed is known.

Checked under Triton's interpreter in float32 and float16: bits between batches, and values against
float64. Compiled for sm_90 in bfloat16. Not checked: any GPU, and so not that its matrix units
treat every row of a tile alike.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor


class MatmulTile(NamedTuple):
    """How one program is shaped: rows, outputs, inputs at a time, warps, stages of the pipeline."""

    rows: int
    outputs: int
    inputs: int
    num_warps: int
    num_stages: int


# 64 rows are the fewest that Hopper's instruction for a group of four warps takes.
_TILE = MatmulTile(rows=64, outputs=64, inputs=64, num_warps=4, num_stages=5)
# Full float32 has no matrix units. It is for checking, not for speed.
_TILE_FLOAT32 = MatmulTile(rows=32, outputs=32, inputs=32, num_warps=4, num_stages=2)
# Programs that run together read as many tiles of x, and so share the tiles of W in the L2 cache.
_ROW_TILES_TOGETHER = 8


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x `[rows, in]` times weight `[out, in]` transposed, plus bias `[out]`, in x's type."""
    assert weight.is_contiguous() and x.dtype == weight.dtype
    x = x.contiguous()
    num_rows, num_inputs = x.shape
    num_outputs = weight.shape[0]
    y = x.new_empty((num_rows, num_outputs))
    tile = choose_tile(x.dtype)
    grid = (triton.cdiv(num_outputs, tile.outputs), triton.cdiv(num_rows, tile.rows))
    _multiply_tile[grid](
        x, weight, weight if bias is None else bias, y, num_rows, num_outputs, num_inputs,
        ROWS=tile.rows, OUTPUTS=tile.outputs, INPUTS=tile.inputs, TOGETHER=_ROW_TILES_TOGETHER,
        HAS_BIAS=bias is not None, num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip
    return y


def choose_tile(dtype: torch.dtype) -> MatmulTile:
    """Return the shape of programs; never by the number of rows."""
    return _TILE_FLOAT32 if dtype == torch.float32 else _TILE


@triton.jit(do_not_specialize=["num_rows"])
def _multiply_tile(
    x, weight, bias, y, num_rows, num_outputs, num_inputs,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr, TOGETHER: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """Compute one tile of y."""
    row_tile, output_tile = tl.swizzle2d(
        tl.program_id(1), tl.program_id(0), tl.num_programs(1), tl.num_programs(0), TOGETHER
    )
    row = row_tile.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    output = output_tile.to(tl.int64) * OUTPUTS + tl.arange(0, OUTPUTS)
    is_row, is_output = (row < num_rows)[:, None], (output < num_outputs)[:, None]
    acc = tl.zeros([ROWS, OUTPUTS], tl.float32)
    for first in range(0, num_inputs, INPUTS):
        at = first + tl.arange(0, INPUTS)
        is_input = (at < num_inputs)[None, :]
        x_tile = tl.load(
            x + row[:, None] * num_inputs + at[None, :], mask=is_row & is_input, other=0.0
        )
        w_tile = tl.load(
            weight + output[:, None] * num_inputs + at[None, :],
            mask=is_output & is_input,
            other=0.0,
        )
        acc = tl.dot(x_tile, tl.trans(w_tile), acc, input_precision="ieee")
    if HAS_BIAS:
        acc += tl.load(bias + output, mask=output < num_outputs, other=0.0).to(tl.float32)[None, :]
    at = row[:, None] * num_outputs + output[None, :]
    is_real = is_row & (output < num_outputs)[None, :]
    tl.store(y + at, acc.to(y.dtype.element_ty), mask=is_real)
