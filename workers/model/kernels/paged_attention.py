"""Attention over a paged KV cache in one Triton kernel: prefill, decode, and both mixed.

    program (block, kv head, split):
      block ──► row and first token, found in `starts` by bisection
      M queries = tokens × the heads that share the key head, one tile for the matrix units
      for every N keys of the split that a query may see: online softmax, in float32

Lengths and block tables are read on the device; the grid is bounded by shapes alone, so a CUDA
graph may hold a launch. With several splits each writes its part, and a second kernel folds them.
Queries come scaled.

A batch-invariant plan has one tile and one split for prompts and single tokens alike, and one
compiled program. Keys are folded in tiles that begin at multiples of 64 of the sequence, and those
a query may not see add nothing, so a token's context is the same bits in a prompt, a chunk or
alone. The price: the keys of one long sequence are read by as many programs as there are key heads.

Checked under Triton's interpreter in float32 and float16 against plain torch and float64, batch-
invariant plans to the bit, and compiled for sm_90. Not checked: any GPU, and so no bfloat16 result,
no speed, no tile size, and not that matrix units treat every row of a tile alike.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from workers.model.kernels.rows import find_row
from workers.model.layout.paged_plan import PagedPlan

_LOG2_E = tl.constexpr(1.4426950408889634)


class AttentionTile(NamedTuple):
    """How one program is shaped: queries, keys at a time, warps, and stages of the pipeline."""

    queries: int
    keys: int
    num_warps: int
    num_stages: int


# The look at the block table takes some of the stages: compiled for sm_90, five leave two tiles of
# keys and values in flight, and two to four leave one.
_DECODE = AttentionTile(queries=16, keys=64, num_warps=4, num_stages=5)
_PREFILL = AttentionTile(queries=128, keys=64, num_warps=8, num_stages=5)
# Beside 128 queries of 256 dimensions, as hybrid models have them, two tiles in flight do not fit.
_PREFILL_WIDE = AttentionTile(queries=128, keys=64, num_warps=8, num_stages=3)
# The fewest queries that Hopper's instruction for a group of four warps takes.
_BATCH_INVARIANT = AttentionTile(queries=64, keys=64, num_warps=4, num_stages=5)
# Full float32 has no matrix units, and twice the bytes. It is for checking, not for speed.
_DECODE_FLOAT32 = AttentionTile(queries=16, keys=32, num_warps=4, num_stages=2)
_PREFILL_FLOAT32 = AttentionTile(queries=32, keys=32, num_warps=8, num_stages=2)


def attend(
    query: Tensor, keys: Tensor, values: Tensor, plan: PagedPlan, window: int | None = None
) -> Tensor:
    """Return the context `[tokens, heads, head_dim]` of all rows; padding tokens get anything.

    `keys` and `values` `[blocks, block_size, kv_heads, head_dim]` have the step's tokens already.
    With a `window` a token sees itself and so many less one before it.
    """
    num_tokens, num_heads, head_dim = query.shape
    num_kv_heads, num_rows = keys.shape[2], plan.lengths.shape[0]
    assert query.stride()[1:] == (head_dim, 1) and keys.stride() == values.stride()
    group = num_heads // num_kv_heads
    tile = choose_tile(
        plan.max_query, query.dtype, head_dim, is_batch_invariant=plan.is_batch_invariant
    )
    assert group <= tile.queries, f"{group} heads share a key head: more than a tile holds"
    tokens_per_block = tile.queries // group
    is_single = plan.max_query == 1 and not plan.is_batch_invariant
    # Row r has blocks from starts[r] // tokens_per_block + r on: at least as many as it needs.
    num_blocks = num_rows if is_single else num_tokens // tokens_per_block + num_rows
    context = query.new_empty(query.shape)
    parts = _Parts.empty(query, plan.num_splits)
    _attend_tiles[(num_blocks, num_kv_heads, plan.num_splits)](
        query, keys, values, context, *parts, plan.starts, plan.lengths, plan.tables,
        num_rows, query.stride(0), plan.tables.stride(0), keys.stride(0), keys.stride(1),
        GROUP=group, HEAD_DIM=head_dim, PADDED_DIM=_padded(head_dim), BLOCK_SIZE=keys.shape[1],
        NUM_QUERIES=tile.queries, NUM_KEYS=tile.keys, NUM_SPLITS=plan.num_splits,
        IS_SINGLE=is_single, WINDOW=window or 0,
        num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip
    if plan.num_splits > 1:
        _fold_parts[(num_tokens, num_heads)](
            context, *parts, plan.starts, num_rows,
            HEAD_DIM=head_dim, PADDED_DIM=_padded(head_dim), NUM_SPLITS=plan.num_splits,
            num_warps=4,
        )  # fmt: skip
    return context


def choose_tile(
    max_query: int, dtype: torch.dtype, head_dim: int, *, is_batch_invariant: bool = False
) -> AttentionTile:
    """Return the shape of programs: by the most tokens of a row, or one for all."""
    is_single = max_query == 1 and not is_batch_invariant
    if dtype == torch.float32:
        return _DECODE_FLOAT32 if is_single else _PREFILL_FLOAT32
    if is_batch_invariant:
        return _BATCH_INVARIANT
    if is_single:
        return _DECODE
    return _PREFILL_WIDE if head_dim > 128 else _PREFILL


def _padded(head_dim: int) -> int:
    # A product on matrix units takes powers of two from 16 on.
    return max(16, triton.next_power_of_2(head_dim))


class _Parts(NamedTuple):
    """What splits hand over, float32: a context each, and the logarithms and sums to fold it."""

    context: Tensor
    largest: Tensor
    total: Tensor

    @classmethod
    def empty(cls, query: Tensor, num_splits: int) -> "_Parts":
        num_tokens, num_heads, head_dim = query.shape if num_splits > 1 else (0, 0, 0)
        shape = (num_tokens, num_heads, num_splits)
        context = query.new_empty((*shape, head_dim), dtype=torch.float32)
        return cls(context, context.new_empty(shape), context.new_empty(shape))


# A batch's integers lie anywhere in one buffer: with the alignment of each compiled in, every step
# could meet another program.
@triton.jit(
    do_not_specialize=["num_rows", "table_stride"],
    do_not_specialize_on_alignment=["starts", "lengths", "tables"],
)
def _attend_tiles(
    query, keys, values, context, part_context, part_largest, part_total,
    starts, lengths, tables, num_rows, query_stride, table_stride, place_stride, slot_stride,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, PADDED_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, NUM_QUERIES: tl.constexpr, NUM_KEYS: tl.constexpr,
    NUM_SPLITS: tl.constexpr, IS_SINGLE: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    """Attend with one tile of queries of one row, over one split of the keys they may see."""
    block, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    tokens_per_block: tl.constexpr = NUM_QUERIES // GROUP
    row, number = block, 0
    if not IS_SINGLE:
        row, number = find_row(block, starts, num_rows, tokens_per_block)
    first = number * tokens_per_block
    start = tl.load(starts + row)
    num_tokens = tl.load(starts + row + 1) - start
    if first >= num_tokens:
        return
    num_computed = tl.load(lengths + row) - num_tokens

    member = tl.arange(0, NUM_QUERIES)
    token = first + member // GROUP
    is_real = (member < tokens_per_block * GROUP) & (token < num_tokens)
    head = kv_head * GROUP + member % GROUP
    dim = tl.arange(0, PADDED_DIM)
    is_dim = (dim < HEAD_DIM)[None, :]
    at = (start + token).to(tl.int64) * query_stride + head * HEAD_DIM
    q = tl.load(query + at[:, None] + dim[None, :], mask=is_real[:, None] & is_dim, other=0.0)

    num_visible = num_computed + tl.minimum(first + tokens_per_block, num_tokens)
    begin = _first_tile(num_computed + first, WINDOW, NUM_KEYS)
    per_split = tl.cdiv(tl.cdiv(num_visible - begin, NUM_KEYS), NUM_SPLITS) * NUM_KEYS
    begin += split * per_split
    end = tl.minimum(begin + per_split, num_visible)
    table = tables + row.to(tl.int64) * table_stride
    largest = tl.full([NUM_QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([NUM_QUERIES], tl.float32)
    acc = tl.zeros([NUM_QUERIES, PADDED_DIM], tl.float32)
    for offset in range(begin, end, NUM_KEYS):
        position = offset + tl.arange(0, NUM_KEYS)
        is_key = position < end
        place = _find_place(table, offset, position, is_key, BLOCK_SIZE, NUM_KEYS)
        lies = place.to(tl.int64) * place_stride + position % BLOCK_SIZE * slot_stride
        lies = lies[:, None] + kv_head * HEAD_DIM + dim[None, :]
        key = tl.load(keys + lies, mask=is_key[:, None] & is_dim, other=0.0)
        value = tl.load(values + lies, mask=is_key[:, None] & is_dim, other=0.0)
        is_visible = _is_visible(num_computed + token, position, WINDOW)
        largest, total, acc = _fold_tile(q, key, value, is_visible, largest, total, acc)

    token_head = (start + token).to(tl.int64) * (tl.num_programs(1) * GROUP) + head
    if NUM_SPLITS == 1:
        at = token_head[:, None] * HEAD_DIM + dim[None, :]
        acc = acc / tl.where(is_real, total, 1.0)[:, None]
        tl.store(context + at, acc.to(context.dtype.element_ty), mask=is_real[:, None] & is_dim)
    else:
        at = token_head * NUM_SPLITS + split
        tl.store(part_largest + at, largest, mask=is_real)
        tl.store(part_total + at, total, mask=is_real)
        at = at[:, None] * HEAD_DIM + dim[None, :]
        tl.store(part_context + at, acc, mask=(is_real & (total > 0))[:, None] & is_dim)


@triton.jit
def _first_tile(position, WINDOW: tl.constexpr, NUM_KEYS: tl.constexpr):
    """Return where the first tile of keys begins that a query and those behind it may see."""
    begin = 0
    if WINDOW > 0:
        begin = tl.maximum(position - WINDOW + 1, 0) // NUM_KEYS * NUM_KEYS
    return begin


@triton.jit
def _is_visible(query_position, key_position, WINDOW: tl.constexpr):
    """Return which keys of a tile its queries may see."""
    is_visible = key_position[None, :] <= query_position[:, None]
    if WINDOW > 0:
        is_visible &= key_position[None, :] > query_position[:, None] - WINDOW
    return is_visible


@triton.jit
def _fold_tile(q, key, value, is_visible, largest, total, acc):
    """Fold one tile of keys into the online softmax, whose logarithms are of base 2."""
    scores = tl.dot(q, tl.trans(key), input_precision="ieee") * _LOG2_E
    scores = tl.where(is_visible, scores, float("-inf"))
    larger = tl.maximum(largest, tl.max(scores, 1))
    # A query that sees nothing of this split would subtract infinities.
    finite = tl.where(larger == float("-inf"), 0.0, larger)
    weights = tl.exp2(scores - finite[:, None])
    shrink = tl.exp2(largest - finite)
    part = tl.dot(weights.to(value.dtype), value, input_precision="ieee")
    return larger, total * shrink + tl.sum(weights, 1), acc * shrink[:, None] + part


@triton.jit
def _find_place(
    table, offset, position, is_key, BLOCK_SIZE: tl.constexpr, NUM_KEYS: tl.constexpr
):  # fmt: skip
    """Return the cache's blocks of a tile of keys; one look at the table where one has them all."""
    if BLOCK_SIZE % NUM_KEYS == 0:
        place = tl.load(table + offset // BLOCK_SIZE)
    else:
        place = tl.load(table + position // BLOCK_SIZE, mask=is_key, other=0)
    return place


@triton.jit(do_not_specialize=["num_rows"], do_not_specialize_on_alignment=["starts"])
def _fold_parts(
    context, part_context, part_largest, part_total, starts, num_rows,
    HEAD_DIM: tl.constexpr, PADDED_DIM: tl.constexpr, NUM_SPLITS: tl.constexpr,
):  # fmt: skip
    """Fold the splits of one token and head."""
    token, head = tl.program_id(0), tl.program_id(1)
    if token >= tl.load(starts + num_rows):
        return
    token_head = token.to(tl.int64) * tl.num_programs(1) + head
    dim = tl.arange(0, PADDED_DIM)
    is_dim = dim < HEAD_DIM
    at = token_head * NUM_SPLITS + tl.arange(0, NUM_SPLITS)
    largest = tl.load(part_largest + at)
    total = tl.load(part_total + at)
    weights = tl.exp2(largest - tl.max(largest, 0))
    is_seen = (total > 0)[:, None] & is_dim[None, :]
    parts = tl.load(part_context + at[:, None] * HEAD_DIM + dim[None, :], is_seen, other=0.0)
    folded = tl.sum(parts * weights[:, None], 0) / tl.sum(total * weights, 0)
    at = token_head * HEAD_DIM + dim
    tl.store(context + at, folded.to(context.dtype.element_ty), mask=is_dim)
