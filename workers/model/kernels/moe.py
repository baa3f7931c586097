"""A mixture of experts in Triton: every chosen expert's weights are read where they lie, once.

A pair is a token and one of its experts, numbered `token * top_k + choice`. Pairs of one expert are
gathered into blocks, each a tile for the matrix units; a block's empty places hold `num_pairs`.

    _align_pairs  one program an expert:        pairs ──► blocks, and whose each block is
    _gate_up      (block, columns of gate, up): a = SiLU(x Gᵀ) · x Uᵀ     [pairs, intermediate]
    _down         (block, columns of hidden):   weight · (a Dᵀ), float32  [pairs, hidden]
    _sum_parts    (token, columns of hidden):   its experts' parts, in their order

Only shapes bound the grids; what the router chose is read on the device, so a CUDA graph may hold
the launches. Nothing is added by atomics. With one and the same tile, a token's result depends on
no other token: its row is multiplied in the same steps wherever it lies in a block.

Checked under Triton's interpreter against float64 in float32 and float16, and against transformers'
module in float32; compiled for sm_90. Not checked: any GPU, so no bfloat16, speed, tile size.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor


class ExpertTile(NamedTuple):
    """How one program of a product is shaped: pairs, columns, depth of a step, warps, stages.

    Of gate and of up it takes `columns` each, of the hidden size twice as many.
    """

    pairs: int
    columns: int
    depth: int
    num_warps: int
    num_stages: int


class Blocks(NamedTuple):
    """The pairs `[blocks, tile.pairs]` and the expert `[blocks]` of each block, int32.

    Blocks beyond the last one used have expert `num_experts`, and pairs nobody has written.
    """

    pairs: Tensor
    experts: Tensor


# Few pairs read weights: small blocks, long steps. Many share them: square tiles.
_FEW = ExpertTile(pairs=16, columns=32, depth=128, num_warps=4, num_stages=4)
_MANY = ExpertTile(pairs=64, columns=64, depth=64, num_warps=4, num_stages=3)
# Full float32 has no matrix units, and twice the bytes. It is for checking, not for speed.
_FLOAT32 = ExpertTile(pairs=16, columns=32, depth=32, num_warps=4, num_stages=2)

_CHUNK = 64  # pairs that an aligning program looks at together
_SUM_COLUMNS = 256


def apply_experts(
    hidden: Tensor,
    gate_up: Tensor,
    down: Tensor,
    experts: Tensor,
    weights: Tensor,
    tile: ExpertTile,
) -> Tensor:
    """Return the weighted sum `[tokens, hidden]` over each token's experts `[tokens, top_k]`.

    Weights lie as in transformers: `gate_up` is `[experts, 2 * intermediate, hidden]`, `down`
    `[experts, hidden, intermediate]`.
    """
    num_tokens, hidden_size = hidden.shape
    num_experts, _, intermediate = down.shape
    top_k, num_pairs = experts.shape[1], experts.numel()
    tensors = (hidden, gate_up, down, experts, weights)
    assert all(tensor.is_contiguous() for tensor in tensors)
    blocks = align(experts, num_experts, tile.pairs)
    num_blocks = len(blocks.experts)
    activated = hidden.new_empty((num_pairs, intermediate))
    parts = hidden.new_empty((num_pairs, hidden_size), dtype=torch.float32)
    output = hidden.new_empty(hidden.shape)
    constants = {
        "NUM_EXPERTS": num_experts, "HIDDEN": hidden_size, "INTERMEDIATE": intermediate,
        "PAIRS": tile.pairs, "DEPTH": tile.depth,
        "num_warps": tile.num_warps, "num_stages": tile.num_stages,
    }  # fmt: skip
    _gate_up[(num_blocks, triton.cdiv(intermediate, tile.columns))](
        hidden, gate_up, activated, *blocks, num_pairs,
        TOP_K=top_k, COLUMNS=tile.columns, **constants,
    )  # fmt: skip
    _down[(num_blocks, triton.cdiv(hidden_size, 2 * tile.columns))](
        activated, down, weights, parts, *blocks, num_pairs,
        COLUMNS=2 * tile.columns, **constants,
    )  # fmt: skip
    _sum_parts[(num_tokens, triton.cdiv(hidden_size, _SUM_COLUMNS))](
        parts, output, TOP_K=top_k, HIDDEN=hidden_size, COLUMNS=_SUM_COLUMNS, num_warps=4
    )
    return output


def choose_tile(dtype: torch.dtype, *, is_many: bool) -> ExpertTile:
    """Return the shape of programs for few or many pairs an expert."""
    if dtype == torch.float32:
        return _FLOAT32
    return _MANY if is_many else _FEW


def align(experts: Tensor, num_experts: int, block_pairs: int) -> Blocks:
    """Return the pairs of experts `[tokens, top_k]` in blocks of one expert each.

    An expert's pairs keep their order. There are as many blocks as any choice could need.
    """
    num_pairs = experts.numel()
    num_blocks = bound_blocks(num_pairs, num_experts, block_pairs)
    blocks = Blocks(
        experts.new_empty((num_blocks, block_pairs), dtype=torch.int32),
        experts.new_empty(num_blocks, dtype=torch.int32),
    )
    _align_pairs[(num_experts,)](
        experts, *blocks, num_pairs, num_blocks,
        NUM_EXPERTS=num_experts, PADDED_EXPERTS=triton.next_power_of_2(num_experts),
        PAIRS=block_pairs, CHUNK=_CHUNK, num_warps=4,
    )  # fmt: skip
    return blocks


def bound_blocks(num_pairs: int, num_experts: int, block_pairs: int) -> int:
    """Return the most blocks that pairs can fill: one an expert, the others full but for one."""
    num_chosen = min(num_pairs, num_experts)
    return num_chosen + (num_pairs - num_chosen) // block_pairs


@triton.jit(do_not_specialize=["num_pairs", "num_blocks"])
def _align_pairs(
    experts, block_pairs, block_experts, num_pairs, num_blocks,
    NUM_EXPERTS: tl.constexpr, PADDED_EXPERTS: tl.constexpr,
    PAIRS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Put one expert's pairs into its blocks, which follow those of the experts before it."""
    own = tl.program_id(0)
    expert = tl.arange(0, PADDED_EXPERTS)
    place = tl.arange(0, CHUNK)
    counts = tl.zeros([PADDED_EXPERTS], tl.int32)
    for first in range(0, num_pairs, CHUNK):
        pair = first + place
        chosen = tl.load(experts + pair, mask=pair < num_pairs, other=-1).to(tl.int32)
        counts += tl.sum((chosen[:, None] == expert[None, :]).to(tl.int32), 0)
    used = (counts + PAIRS - 1) // PAIRS
    begin = tl.sum(tl.where(expert < own, used, 0), 0)
    end = begin + tl.sum(tl.where(expert == own, used, 0), 0)

    filled = begin * PAIRS
    for first in range(0, num_pairs, CHUNK):
        pair = first + place
        chosen = tl.load(experts + pair, mask=pair < num_pairs, other=-1).to(tl.int32)
        is_own = (chosen == own).to(tl.int32)
        at = filled + tl.cumsum(is_own, 0) - 1
        tl.store(block_pairs + at, pair, mask=is_own != 0)
        filled += tl.sum(is_own, 0)
    at = filled + tl.arange(0, PAIRS)
    tl.store(block_pairs + at, tl.zeros_like(at) + num_pairs, mask=at < end * PAIRS)

    # The last expert's program also marks the blocks that nobody uses.
    stop = end
    if own == NUM_EXPERTS - 1:
        stop = num_blocks
    for first in range(begin, stop, CHUNK):
        block = first + place
        owner = tl.where(block < end, own, NUM_EXPERTS)
        tl.store(block_experts + block, owner, mask=block < stop)


@triton.jit(do_not_specialize=["num_pairs"])
def _gate_up(
    hidden, gate_up, activated, block_pairs, block_experts, num_pairs,
    TOP_K: tl.constexpr, NUM_EXPERTS: tl.constexpr, HIDDEN: tl.constexpr,
    INTERMEDIATE: tl.constexpr, PAIRS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Compute SiLU(gate) · up of one block of pairs, in some columns."""
    block = tl.program_id(0)
    expert = tl.load(block_experts + block)
    if expert == NUM_EXPERTS:
        return
    pair = tl.load(block_pairs + block * PAIRS + tl.arange(0, PAIRS))
    is_pair = (pair < num_pairs)[:, None]
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    is_column = (column < INTERMEDIATE)[None, :]
    depth = tl.arange(0, DEPTH)
    rows = hidden + (pair // TOP_K).to(tl.int64)[:, None] * HIDDEN + depth[None, :]
    own = gate_up + expert.to(tl.int64) * (2 * INTERMEDIATE * HIDDEN)
    own += column[None, :] * HIDDEN + depth[:, None]
    gate = tl.zeros([PAIRS, COLUMNS], tl.float32)
    up = tl.zeros([PAIRS, COLUMNS], tl.float32)
    for offset in range(0, HIDDEN, DEPTH):
        is_depth = offset + depth < HIDDEN
        x = tl.load(rows + offset, mask=is_pair & is_depth[None, :], other=0.0)
        is_weight = is_column & is_depth[:, None]
        gate_weight = tl.load(own + offset, mask=is_weight, other=0.0)
        up_weight = tl.load(own + INTERMEDIATE * HIDDEN + offset, mask=is_weight, other=0.0)
        gate = tl.dot(x, gate_weight, gate, input_precision="ieee")
        up = tl.dot(x, up_weight, up, input_precision="ieee")
    product = gate * tl.sigmoid(gate) * up
    at = activated + pair.to(tl.int64)[:, None] * INTERMEDIATE + column[None, :]
    tl.store(at, product.to(activated.dtype.element_ty), mask=is_pair & is_column)


@triton.jit(do_not_specialize=["num_pairs"])
def _down(
    activated, down, weights, parts, block_pairs, block_experts, num_pairs,
    NUM_EXPERTS: tl.constexpr, HIDDEN: tl.constexpr, INTERMEDIATE: tl.constexpr,
    PAIRS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Compute what one block of pairs adds to its tokens, in some columns."""
    block = tl.program_id(0)
    expert = tl.load(block_experts + block)
    if expert == NUM_EXPERTS:
        return
    pair = tl.load(block_pairs + block * PAIRS + tl.arange(0, PAIRS))
    is_pair = (pair < num_pairs)[:, None]
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    is_column = (column < HIDDEN)[None, :]
    depth = tl.arange(0, DEPTH)
    rows = activated + pair.to(tl.int64)[:, None] * INTERMEDIATE + depth[None, :]
    own = down + expert.to(tl.int64) * (HIDDEN * INTERMEDIATE)
    own += column[None, :] * INTERMEDIATE + depth[:, None]
    part = tl.zeros([PAIRS, COLUMNS], tl.float32)
    for offset in range(0, INTERMEDIATE, DEPTH):
        is_depth = offset + depth < INTERMEDIATE
        x = tl.load(rows + offset, mask=is_pair & is_depth[None, :], other=0.0)
        weight = tl.load(own + offset, mask=is_column & is_depth[:, None], other=0.0)
        part = tl.dot(x, weight, part, input_precision="ieee")
    share = tl.load(weights + pair, mask=pair < num_pairs, other=0.0).to(tl.float32)
    at = parts + pair.to(tl.int64)[:, None] * HIDDEN + column[None, :]
    tl.store(at, part * share[:, None], mask=is_pair & is_column)


@triton.jit
def _sum_parts(parts, output, TOP_K: tl.constexpr, HIDDEN: tl.constexpr, COLUMNS: tl.constexpr):
    """Add up the parts of one token, first choice first."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    is_column = column < HIDDEN
    total = tl.zeros([COLUMNS], tl.float32)
    for choice in range(TOP_K):
        at = parts + (token * TOP_K + choice) * HIDDEN + column
        total += tl.load(at, mask=is_column, other=0.0)
    at = output + token * HIDDEN + column
    tl.store(at, total.to(output.dtype.element_ty), mask=is_column)
