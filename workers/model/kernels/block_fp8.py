"""Products with weights of 8 bits that have a scale for every block, in Triton.

    program (rows, outputs):  for every 128 inputs, in their order:
                                acc += (x_tile W_tileᵀ) * scale of x's rows * scale of W's block

The sum of 128 products is the matrix unit's; what adds these sums is float32, because Hopper's unit
keeps but 14 bits of a sum of e4m3. A row's result depends on nothing beside it as long as tiles are
the same: with `is_batch_invariant` they are, whatever the number of rows.

Checked under Triton's interpreter against plain torch in float64, and compiled for sm_90. Not
checked: any GPU, and so no speed, no tile size. The interpreter carries wrongly when numbers round
up to e4m3, so on a CPU x is rounded by torch.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from workers.model.layout.block_fp8_weight import BLOCK, BlockFp8Weight
from workers.model.layout.block_fp8_weight import quantize_blocks as quantize_by_torch
from workers.model.layout.fp8_format import E4M3, LARGEST, LEAST

_BLOCK = tl.constexpr(BLOCK)
_LARGEST = tl.constexpr(LARGEST)
_LEAST = tl.constexpr(LEAST)
# Blocks of a row that one program rounds.
_ROUNDED_BLOCKS = 8
# Programs that run together read as many tiles of x, and so share the tiles of W in the L2 cache.
_ROW_TILES_TOGETHER = 8


class BlockFp8Tile(NamedTuple):
    """How one program is shaped: rows, outputs (a divisor of 128), warps, stages."""

    rows: int
    outputs: int
    num_warps: int
    num_stages: int


# 64 rows are the fewest of Hopper's instruction for e4m3; of fewer, numbers would become float16.
_FEW_ROWS = BlockFp8Tile(rows=64, outputs=32, num_warps=4, num_stages=4)
_MORE_ROWS = BlockFp8Tile(rows=64, outputs=128, num_warps=4, num_stages=3)


def multiply(
    x: Tensor, weight: BlockFp8Weight, bias: Tensor | None, *, is_batch_invariant: bool
) -> Tensor:
    """Return x Wᵀ + b `[rows, out]` for x `[rows, in]`, in x's type."""
    values, scales = quantize_blocks(x) if x.device.type == "cuda" else quantize_by_torch(x)
    num_rows, (num_outputs, num_inputs) = x.shape[0], weight.shape
    assert x.shape[1] == num_inputs
    y = x.new_empty(num_rows, num_outputs)
    tile = choose_tile(num_rows, is_batch_invariant=is_batch_invariant)
    grid = (triton.cdiv(num_outputs, tile.outputs), triton.cdiv(num_rows, tile.rows))
    _multiply_tile[grid](
        values, scales, weight.values, weight.scales, y if bias is None else bias, y,
        num_rows, num_outputs, num_inputs, scales.shape[1],
        ROWS=tile.rows, OUTPUTS=tile.outputs, TOGETHER=_ROW_TILES_TOGETHER,
        HAS_BIAS=bias is not None, num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip
    return y


def choose_tile(num_rows: int, *, is_batch_invariant: bool) -> BlockFp8Tile:
    """Return the shape of programs for so many rows."""
    return _FEW_ROWS if is_batch_invariant or num_rows <= _FEW_ROWS.rows else _MORE_ROWS


def quantize_blocks(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return x `[rows, width]` in e4m3, and its float32 scales `[rows, ⌈width/128⌉]`."""
    assert x.stride(1) == 1
    num_rows, width = x.shape
    num_blocks = triton.cdiv(width, BLOCK)
    values = x.new_empty(x.shape, dtype=E4M3)
    scales = x.new_empty(num_rows, num_blocks, dtype=torch.float32)
    _quantize_blocks[(num_rows, triton.cdiv(num_blocks, _ROUNDED_BLOCKS))](
        x, values, scales, width, num_blocks, x.stride(0), BLOCKS=_ROUNDED_BLOCKS, num_warps=4
    )
    return values, scales


@triton.jit
def _quantize_blocks(x, values, scales, width, num_blocks, x_stride, BLOCKS: tl.constexpr):
    """Round some blocks of one row."""
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1) * BLOCKS + tl.arange(0, BLOCKS)
    at = block[:, None] * _BLOCK + tl.arange(0, _BLOCK)[None, :]
    part = tl.load(x + row * x_stride + at, mask=at < width, other=0.0).to(tl.float32)
    scale = tl.div_rn(tl.maximum(tl.max(tl.abs(part), 1), _LEAST), _LARGEST)
    tl.store(scales + row * num_blocks + block, scale, mask=block < num_blocks)
    rounded = tl.div_rn(part, tl.broadcast_to(scale[:, None], [BLOCKS, _BLOCK]))
    tl.store(values + row * width + at, rounded.to(values.dtype.element_ty), mask=at < width)


@triton.jit(do_not_specialize=["num_rows"])
def _multiply_tile(
    x, x_scales, weight, weight_scales, bias, y, num_rows, num_outputs, num_inputs, num_blocks,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, TOGETHER: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """Compute one tile of y, whose outputs are all of one block."""
    row_tile, output_tile = tl.swizzle2d(
        tl.program_id(1), tl.program_id(0), tl.num_programs(1), tl.num_programs(0), TOGETHER
    )
    row = row_tile.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    output = output_tile.to(tl.int64) * OUTPUTS + tl.arange(0, OUTPUTS)
    is_row, is_output = row < num_rows, output < num_outputs
    weight_scales += output_tile * OUTPUTS // _BLOCK * num_blocks
    acc = tl.zeros([ROWS, OUTPUTS], tl.float32)
    for block in range(0, num_blocks):
        at = block * _BLOCK + tl.arange(0, _BLOCK)
        is_input = (at < num_inputs)[None, :]
        x_tile = tl.load(
            x + row[:, None] * num_inputs + at[None, :], mask=is_row[:, None] & is_input, other=0.0
        )
        w_tile = tl.load(
            weight + output[:, None] * num_inputs + at[None, :],
            mask=is_output[:, None] & is_input,
            other=0.0,
        )
        scale = tl.load(x_scales + row * num_blocks + block, mask=is_row, other=0.0)
        scale *= tl.load(weight_scales + block)
        acc += tl.dot(x_tile, tl.trans(w_tile)) * scale[:, None]
    if HAS_BIAS:
        acc += tl.load(bias + output, mask=is_output, other=0.0).to(tl.float32)[None, :]
    at = row[:, None] * num_outputs + output[None, :]
    tl.store(y + at, acc.to(y.dtype.element_ty), mask=is_row[:, None] & is_output[None, :])
