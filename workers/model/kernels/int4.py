"""Products with a weight kept in 4 bits, in Triton: its numbers become floats only in registers.

    program (rows, outputs, split):
      for every block of inputs of the split: one tile of words, read once
        for every plane of the block: numbers times x, and ones times x, on matrix units
        after every group: (sum of products - zero point * sum of x) * scale, in float32

A number of 16 bits is made by a mask alone: put into the mantissa of 2^7 (bfloat16) or 2^10
(float16) it is that much too large, which the zero point takes back. Converting integers, or taking
zero points off the numbers, would take more instructions than reading them takes time.

With several splits each writes its part in float32, and a second kernel adds them in their order.
Int4Tile and splits of up to 16 rows depend on the shape of the weight alone, so that a row's result
depends on nothing beside it; with `is_batch_invariant` that holds for any number of rows. Many rows
are multiplied by the whole weight, unpacked for the moment.

Scales are applied to sums, where a plain weight is rounded with its scale: in bfloat16 and float16
the result is nearer to the checkpoint's weight than that of a plain product.

Checked under Triton's interpreter in float32 and float16 against plain torch in float64, and
compiled for sm_90. Not checked: any GPU, and so no bfloat16 product, no speed, no tile size.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from workers.model.layout.int4_weight import PER_WORD, PLANES, Int4Weight

_PLANES = tl.constexpr(PLANES)

# Beyond, unpacking costs less than looking at every word once for each tile of rows.
_MOST_ROWS = 256
_PROGRAMS_PER_PROCESSOR = 4
_SHORTEST_SPLIT = 2  # blocks
_MOST_SPLITS = 16
# Where there is no GPU to ask: small, so that tests under Triton's interpreter split as well.
_PROCESSORS_WITHOUT_GPU = 8
_FOLDED_OUTPUTS = 1024


class Int4Tile(NamedTuple):
    """How one program is shaped: outputs, rows, warps, and stages of the pipeline."""

    outputs: int
    rows: int
    num_warps: int
    num_stages: int


_FEW_ROWS = Int4Tile(outputs=64, rows=16, num_warps=4, num_stages=3)
_MORE_ROWS = Int4Tile(outputs=64, rows=64, num_warps=4, num_stages=2)
_UNPACKED_OUTPUTS = 64


def multiply(
    x: Tensor, weight: Int4Weight, bias: Tensor | None, *, is_batch_invariant: bool
) -> Tensor:
    """Return x Wᵀ + b `[rows, out]` for x `[rows, in]`."""
    if weight.order is not None:
        x = x.index_select(1, weight.order)
    if x.shape[0] > _MOST_ROWS and not is_batch_invariant:
        return F.linear(x, unpack(weight, x.dtype), bias)
    num_rows, (num_outputs, num_inputs) = x.shape[0], weight.shape
    assert x.stride(1) == 1 and x.shape[1] == num_inputs
    tile = choose_tile(num_rows, is_batch_invariant=is_batch_invariant)
    num_row_tiles = -(-num_rows // tile.rows)
    num_tiles = -(-num_outputs // tile.outputs)
    num_splits = choose_splits(
        num_tiles if is_batch_invariant else num_tiles * num_row_tiles, len(weight.words), x.device
    )
    y = x.new_empty(num_rows, num_outputs)
    parts = x.new_empty(num_splits if num_splits > 1 else 0, *y.shape, dtype=torch.float32)
    _multiply_tiles[(num_row_tiles, num_tiles, num_splits)](
        x, weight.words, weight.scales, weight.zeros, bias, y, parts,
        num_rows, num_outputs, num_inputs, len(weight.scales), x.stride(0),
        GROUP_SIZE=weight.group_size, GROUP_PLANES=weight.group_planes,
        NUM_WORDS=weight.words.shape[2], IS_WHOLE=_is_whole(weight),
        NUM_OUTPUTS=tile.outputs, NUM_ROWS=tile.rows, NUM_SPLITS=num_splits,
        HAS_BIAS=bias is not None, num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip
    if num_splits > 1:
        _fold_parts[(num_rows, -(-num_outputs // _FOLDED_OUTPUTS))](
            parts, bias, y, num_rows, num_outputs,
            NUM_OUTPUTS=_FOLDED_OUTPUTS, NUM_SPLITS=num_splits, HAS_BIAS=bias is not None,
            num_warps=4,
        )  # fmt: skip
    return y


def unpack(weight: Int4Weight, dtype: torch.dtype) -> Tensor:
    """Return the weight `[out, in]`, its inputs in the order the words have them."""
    num_outputs, num_inputs = weight.shape
    unpacked = weight.scales.new_empty(num_outputs, num_inputs, dtype=dtype)
    _unpack_tiles[(len(weight.words), -(-num_outputs // _UNPACKED_OUTPUTS))](
        weight.words, weight.scales, weight.zeros, unpacked,
        num_outputs, num_inputs, len(weight.scales),
        GROUP_SIZE=weight.group_size, NUM_WORDS=weight.words.shape[2],
        NUM_OUTPUTS=_UNPACKED_OUTPUTS, num_warps=4,
    )  # fmt: skip
    return unpacked


def choose_tile(num_rows: int, *, is_batch_invariant: bool) -> Int4Tile:
    """Return the shape of programs for so many rows."""
    return _FEW_ROWS if is_batch_invariant or num_rows <= _FEW_ROWS.rows else _MORE_ROWS


def choose_splits(num_tiles: int, num_blocks: int, device: torch.device) -> int:
    """Return into how many parts to cut the inputs, a power of two, so that no GPU half idles."""
    processors = (
        torch.cuda.get_device_properties(device).multi_processor_count
        if device.type == "cuda"
        else _PROCESSORS_WITHOUT_GPU
    )
    wanted = processors * _PROGRAMS_PER_PROCESSOR // num_tiles
    useful = min(wanted, num_blocks // _SHORTEST_SPLIT, _MOST_SPLITS)
    return 1 << max(0, useful.bit_length() - 1)


def _is_whole(weight: Int4Weight) -> bool:
    """Return whether blocks end where inputs end, so that nobody need look."""
    return weight.num_inputs == len(weight.words) * weight.words.shape[2] * PER_WORD


@triton.jit(do_not_specialize=["num_rows"])
def _multiply_tiles(
    x, words, scales, zeros, bias, y, parts,
    num_rows, num_outputs, num_inputs, num_groups, x_stride,
    GROUP_SIZE: tl.constexpr, GROUP_PLANES: tl.constexpr, NUM_WORDS: tl.constexpr,
    IS_WHOLE: tl.constexpr, NUM_OUTPUTS: tl.constexpr, NUM_ROWS: tl.constexpr,
    NUM_SPLITS: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """Compute one tile of the product, over one split of the inputs."""
    plane_inputs: tl.constexpr = 2 * NUM_WORDS
    block_inputs: tl.constexpr = _PLANES * plane_inputs
    dtype: tl.constexpr = x.dtype.element_ty
    split = tl.program_id(2)
    row = tl.program_id(0) * NUM_ROWS + tl.arange(0, NUM_ROWS)
    output = tl.program_id(1) * NUM_OUTPUTS + tl.arange(0, NUM_OUTPUTS)
    is_row, is_output = (row < num_rows)[None, :], output < num_outputs
    x_rows = x + row.to(tl.int64)[None, :] * x_stride
    ones = tl.full([NUM_OUTPUTS, plane_inputs], 1.0, dtype)

    num_blocks = tl.cdiv(num_inputs, block_inputs)
    per_split = tl.cdiv(num_blocks, NUM_SPLITS)
    acc = tl.zeros([NUM_OUTPUTS, NUM_ROWS], tl.float32)
    for block in range(split * per_split, tl.minimum((split + 1) * per_split, num_blocks)):
        tile = _load_words(words, block, output, is_output, num_outputs, NUM_WORDS)
        for first in tl.static_range(0, _PLANES, GROUP_PLANES):
            k = block * block_inputs + first * plane_inputs
            group = tl.minimum(k // GROUP_SIZE, num_groups - 1) * num_outputs + output
            scale = tl.load(scales + group, mask=is_output, other=0.0).to(tl.float32)
            excess = tl.load(zeros + group, mask=is_output, other=0).to(tl.float32) + _base(dtype)
            product = tl.zeros([NUM_OUTPUTS, NUM_ROWS], tl.float32)
            total = tl.zeros([NUM_OUTPUTS, NUM_ROWS], tl.float32)
            for plane in tl.static_range(first, first + GROUP_PLANES):
                k = block * block_inputs + plane * plane_inputs + tl.arange(0, plane_inputs)
                is_input = is_row if IS_WHOLE else is_row & (k < num_inputs)[:, None]
                inputs = tl.load(x_rows + k[:, None], mask=is_input, other=0.0)
                numbers = _unpack_plane(tile, plane, dtype)
                product = tl.dot(numbers, inputs, product, input_precision="ieee")
                total = tl.dot(ones, inputs, total, input_precision="ieee")
            acc += (product - excess[:, None] * total) * scale[:, None]

    is_real = is_output[:, None] & is_row
    at = row.to(tl.int64)[None, :] * num_outputs + output[:, None]
    if NUM_SPLITS == 1:
        if HAS_BIAS:
            acc += tl.load(bias + output, mask=is_output, other=0.0).to(tl.float32)[:, None]
        tl.store(y + at, acc.to(y.dtype.element_ty), mask=is_real)
    else:
        tl.store(parts + split.to(tl.int64) * num_rows * num_outputs + at, acc, mask=is_real)


@triton.jit
def _load_words(words, block, output, is_output, num_outputs, NUM_WORDS: tl.constexpr):
    """Return the words `[outputs, words]` of one block of inputs."""
    at = (tl.cast(block, tl.int64) * num_outputs + output) * NUM_WORDS
    lane = tl.arange(0, NUM_WORDS)[None, :]
    return tl.load(words + at[:, None] + lane, mask=is_output[:, None], other=0)


@triton.jit
def _unpack_plane(tile, PLANE: tl.constexpr, dtype: tl.constexpr):
    """Return the numbers `[outputs, 2 words]` of one plane, each `_base(dtype)` too large."""
    if dtype == tl.float32:
        low = ((tile >> (4 * PLANE)) & 15).to(tl.float32)
        high = ((tile >> (4 * PLANE + 16)) & 15).to(tl.float32)
    else:
        # 0x4300 is 2^7 in bfloat16, 0x6400 is 2^10 in float16; the last bit of both is worth 1.
        mantissas = 0x43004300 if dtype == tl.bfloat16 else 0x64006400
        pair = ((tile >> (4 * PLANE)) & 0x000F000F) | mantissas
        low = pair.to(tl.int16).to(dtype, bitcast=True)
        high = (pair >> 16).to(tl.int16).to(dtype, bitcast=True)
    return tl.join(low, high).reshape(tile.shape[0], 2 * tile.shape[1])


@triton.jit
def _base(dtype: tl.constexpr):
    """Return what `_unpack_plane` leaves in its numbers."""
    return 0 if dtype == tl.float32 else 128 if dtype == tl.bfloat16 else 1024


@triton.jit
def _unpack_tiles(
    words, scales, zeros, unpacked, num_outputs, num_inputs, num_groups,
    GROUP_SIZE: tl.constexpr, NUM_WORDS: tl.constexpr, NUM_OUTPUTS: tl.constexpr,
):  # fmt: skip
    """Write the weights of one block of inputs and one tile of outputs."""
    plane_inputs: tl.constexpr = 2 * NUM_WORDS
    dtype: tl.constexpr = unpacked.dtype.element_ty
    block = tl.program_id(0)
    output = tl.program_id(1) * NUM_OUTPUTS + tl.arange(0, NUM_OUTPUTS)
    is_output = output < num_outputs
    tile = _load_words(words, block, output, is_output, num_outputs, NUM_WORDS)
    for plane in tl.static_range(_PLANES):
        first = (block * _PLANES + plane) * plane_inputs
        group = tl.minimum(first // GROUP_SIZE, num_groups - 1) * num_outputs + output
        scale = tl.load(scales + group, mask=is_output, other=0.0).to(tl.float32)
        excess = tl.load(zeros + group, mask=is_output, other=0).to(tl.float32) + _base(dtype)
        numbers = _unpack_plane(tile, plane, dtype).to(tl.float32)
        weights = (numbers - excess[:, None]) * scale[:, None]
        k = first + tl.arange(0, plane_inputs)[None, :]
        tl.store(
            unpacked + output.to(tl.int64)[:, None] * num_inputs + k,
            weights.to(dtype),
            mask=is_output[:, None] & (k < num_inputs),
        )


@triton.jit(do_not_specialize=["num_rows"])
def _fold_parts(
    parts, bias, y, num_rows, num_outputs,
    NUM_OUTPUTS: tl.constexpr, NUM_SPLITS: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """Add the splits of some outputs of one row, the first one first."""
    row = tl.program_id(0).to(tl.int64)
    output = tl.program_id(1) * NUM_OUTPUTS + tl.arange(0, NUM_OUTPUTS)
    is_output = output < num_outputs
    total = tl.zeros([NUM_OUTPUTS], tl.float32)
    for split in tl.static_range(NUM_SPLITS):
        at = (split * num_rows + row) * num_outputs + output
        total += tl.load(parts + at, mask=is_output, other=0.0)
    if HAS_BIAS:
        total += tl.load(bias + output, mask=is_output, other=0.0).to(tl.float32)
    tl.store(y + row * num_outputs + output, total.to(y.dtype.element_ty), mask=is_output)
