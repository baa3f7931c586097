"""The gated delta rule of prompts by chunks of 64, in two Triton kernels.

    solve   a chunk, a head:              T = (1 + tril(β·decay·k kᵀ, -1))⁻¹,  A = tril(decay·q kᵀ)
    scan    a row, a head, some values:   chunk after chunk, on its state S,
                                          u = T·β·(v − decay·k S),  o = decay·q S + A u,
                                          S ← decay·S + kᵀ·decay·u

Chunks lie on multiples of 64 of a sequence, wherever its row begins: what is missing of the first
and the last forgets nothing and learns nothing. So a prompt cut at such places has the same bits as
in one pass, and a copy of the state that is to be kept there is at hand. Rows of one token are
delta_net.py's. delta_rule.py in layers/ is the torch twin, and says whose rule it is.

Checked under Triton's interpreter against the twin, cut and whole to the bit, and compiled for
sm_90. Not checked: any GPU, and so no speed, and not what is lost where matrix units take a float32
in three parts (tf32x3).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from workers.model.kernels.rows import find_row
from workers.model.layout.slot_plan import CHUNK, SlotPlan

_NORM_EPS = tl.constexpr(1e-6)
_CHUNK = tl.constexpr(CHUNK)
_LEVELS = tl.constexpr(CHUNK.bit_length() - 1)
_PRECISION = tl.constexpr("tf32x3")
# Of a head's keys and values at a time: compiled for sm_90, more do not fit into registers.
_KEYS_TILE = 32
_VALUES_TILE = 32
_SOLVE_WARPS = 8
_SCAN_WARPS = 4


def scan(convolved: Tensor, rates: Tensor, matrices: Tensor, plan: SlotPlan, read: Tensor) -> None:
    """Take the states of rows of several tokens through these, in place; fill in what they read.

    Tensors are those of `step` in delta_net.py.
    """
    assert convolved.is_contiguous() and rates.is_contiguous() and matrices.is_contiguous()
    num_tokens, num_rows = convolved.shape[0], plan.slots.shape[0]
    num_heads, key_dim, value_dim = matrices.shape[1:]
    factors = convolved.new_empty((num_tokens, num_heads, 2))
    weights, solved = (convolved.new_empty((num_tokens, num_heads, CHUNK)) for _ in range(2))
    sizes = {
        "CHANNELS": convolved.shape[1], "NUM_HEADS": num_heads, "KEY_DIM": key_dim,
        "VALUE_DIM": value_dim, "KEYS_TILE": min(_KEYS_TILE, _padded(key_dim)), "num_stages": 1,
    }  # fmt: skip
    tile = min(_VALUES_TILE, _padded(value_dim))
    with torch.cuda.device_of(convolved):
        _solve_chunks[(num_tokens // CHUNK + 2 * num_rows, num_heads)](
            convolved, rates, factors, weights, solved, plan.starts, plan.lengths, num_rows,
            **sizes, num_warps=_SOLVE_WARPS,
        )  # fmt: skip
        _scan_rows[(num_rows, num_heads, triton.cdiv(value_dim, tile))](
            convolved, rates, factors, weights, solved, matrices, read,
            plan.starts, plan.lengths, plan.slots, plan.kept,
            **sizes, TILE=tile, num_warps=_SCAN_WARPS,
        )  # fmt: skip


def _padded(dim: int) -> int:
    # A product on matrix units takes powers of two from 16 on.
    return max(16, triton.next_power_of_2(dim))


# A batch's integers lie anywhere in one buffer: their alignment must not be compiled in.
@triton.jit(do_not_specialize=["num_rows"], do_not_specialize_on_alignment=["starts", "lengths"])
def _solve_chunks(
    convolved, rates, factors, weights, solved, starts, lengths, num_rows,
    CHANNELS: tl.constexpr, NUM_HEADS: tl.constexpr, KEY_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr, KEYS_TILE: tl.constexpr,
):  # fmt: skip
    """Compute T and A of one chunk of one head, `[tokens, heads, CHUNK]` of `solved` and `weights`.

    And by what queries and keys are multiplied for their length, `[tokens, heads, 2]`.
    """
    row, number = find_row(tl.program_id(0), starts, num_rows, _CHUNK, 2)
    head = tl.program_id(1)
    start = tl.load(starts + row).to(tl.int64)
    num_tokens = (tl.load(starts + row + 1) - start).to(tl.int32)
    first = number * _CHUNK - (tl.load(lengths + row) - num_tokens) % _CHUNK
    if (num_tokens < 2) | (first >= num_tokens):
        return
    place = tl.arange(0, _CHUNK)
    index = first + place
    is_token = (index >= 0) & (index < num_tokens)
    token = start + index
    keys: tl.constexpr = (CHANNELS - NUM_HEADS * VALUE_DIM) // 2
    group: tl.constexpr = NUM_HEADS * KEY_DIM // keys
    own = convolved + token * CHANNELS + head // group * KEY_DIM
    scores = tl.zeros([_CHUNK, _CHUNK], tl.float32)
    overlap = tl.zeros([_CHUNK, _CHUNK], tl.float32)
    query_square = tl.zeros([_CHUNK], tl.float32)
    key_square = tl.zeros([_CHUNK], tl.float32)
    for part in range(0, KEY_DIM, KEYS_TILE):
        query = _load_part(own, part, is_token, KEY_DIM, KEYS_TILE)
        key = _load_part(own + keys, part, is_token, KEY_DIM, KEYS_TILE)
        query_square += tl.sum(query * query, 1)
        key_square += tl.sum(key * key, 1)
        scores += tl.dot(query, tl.trans(key), input_precision=_PRECISION)
        overlap += tl.dot(key, tl.trans(key), input_precision=_PRECISION)
    query_factor = tl.rsqrt(query_square + _NORM_EPS) * KEY_DIM**-0.5
    key_factor = tl.rsqrt(key_square + _NORM_EPS)
    beta, decay = _load_rates(rates, token, head, is_token, NUM_HEADS)
    total = tl.cumsum(decay, 0)
    is_known = place[None, :] <= place[:, None]
    since = tl.where(is_known, total[:, None] - total[None, :], float("-inf"))
    between = tl.exp(since) * key_factor[None, :]
    at = token * NUM_HEADS + head
    tl.store(factors + 2 * at, query_factor, mask=is_token)
    tl.store(factors + 2 * at + 1, key_factor, mask=is_token)
    lies = at[:, None] * _CHUNK + place[None, :]
    tl.store(weights + lies, scores * between * query_factor[:, None], mask=is_token[:, None])
    overlap *= between * (key_factor * beta)[:, None]
    tl.store(solved + lies, overlap, mask=is_token[:, None])
    # Numbers go from thread to thread, by way of memory.
    tl.debug_barrier()
    inverse = _invert(solved + lies, is_token[:, None], place)
    tl.debug_barrier()
    tl.store(solved + lies, inverse, mask=is_token[:, None])


@triton.jit(do_not_specialize_on_alignment=["starts", "lengths", "slots", "kept"])
def _scan_rows(
    convolved, rates, factors, weights, solved, matrices, read, starts, lengths, slots, kept,
    CHANNELS: tl.constexpr, NUM_HEADS: tl.constexpr, KEY_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr, KEYS_TILE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Take some values of one head's state through all chunks of one row."""
    row, head = tl.program_id(0), tl.program_id(1)
    start = tl.load(starts + row).to(tl.int64)
    num_tokens = (tl.load(starts + row + 1) - start).to(tl.int32)
    if num_tokens < 2:
        return
    keys: tl.constexpr = (CHANNELS - NUM_HEADS * VALUE_DIM) // 2
    group: tl.constexpr = NUM_HEADS * KEY_DIM // keys
    slot_size: tl.constexpr = NUM_HEADS * KEY_DIM * VALUE_DIM
    of_states = matrices + head * (KEY_DIM * VALUE_DIM)
    state = of_states + tl.load(slots + row).to(tl.int64) * slot_size
    place = tl.arange(0, _CHUNK)
    value = tl.program_id(2) * TILE + tl.arange(0, TILE)
    is_value = (value < VALUE_DIM)[None, :]
    for first in range(-((tl.load(lengths + row) - num_tokens) % _CHUNK), num_tokens, _CHUNK):
        index = first + place
        is_token = (index >= 0) & (index < num_tokens)
        token = start + index
        at = token * NUM_HEADS + head
        own = convolved + token * CHANNELS
        of_head = own + head // group * KEY_DIM
        known, found = _read_state(
            state, of_head, of_head + keys, value, is_token, KEY_DIM, VALUE_DIM, KEYS_TILE, TILE
        )  # fmt: skip
        query_factor = tl.load(factors + 2 * at, mask=is_token, other=0.0)
        key_factor = tl.load(factors + 2 * at + 1, mask=is_token, other=0.0)
        beta, decay = _load_rates(rates, token, head, is_token, NUM_HEADS)
        total, whole = tl.cumsum(decay, 0), tl.sum(decay, 0)
        since_start = tl.exp(total)

        is_real = is_token[:, None] & is_value
        x = (own + 2 * keys + head * VALUE_DIM)[:, None] + value[None, :]
        missing = tl.load(x, mask=is_real, other=0.0)
        missing = (missing - known * (since_start * key_factor)[:, None]) * beta[:, None]
        square = at[:, None] * _CHUNK + place[None, :]
        inverse = tl.load(solved + square, mask=is_token[:, None], other=0.0)
        learned = tl.dot(inverse, missing, input_precision=_PRECISION)
        seen = tl.load(weights + square, mask=is_token[:, None], other=0.0)
        found *= (since_start * query_factor)[:, None]
        found += tl.dot(seen, learned, input_precision=_PRECISION)
        tl.store(read + at[:, None] * VALUE_DIM + value[None, :], found, mask=is_real)

        learned *= (tl.exp(whole - total) * key_factor)[:, None]
        copy = tl.load(kept + start + tl.minimum(first + _CHUNK, num_tokens) - 1).to(tl.int64)
        beside = of_states + copy * slot_size
        # A number of the state goes from thread to thread, by way of memory.
        tl.debug_barrier()
        _update_state(
            state, beside, copy > 0, of_head + keys, learned, tl.exp(whole), value, is_token,
            KEY_DIM, VALUE_DIM, KEYS_TILE,
        )  # fmt: skip
        tl.debug_barrier()


@triton.jit
def _read_state(
    state, of_query, of_key, value, is_token,
    KEY_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, KEYS_TILE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Return what the keys and the queries of a chunk read of some values of a head's state."""
    known = tl.zeros([_CHUNK, TILE], tl.float32)
    found = tl.zeros([_CHUNK, TILE], tl.float32)
    for part in range(0, KEY_DIM, KEYS_TILE):
        lies, is_state = _locate_part(part, value, KEY_DIM, VALUE_DIM, KEYS_TILE)
        old = tl.load(state + lies, mask=is_state, other=0.0)
        query = _load_part(of_query, part, is_token, KEY_DIM, KEYS_TILE)
        key = _load_part(of_key, part, is_token, KEY_DIM, KEYS_TILE)
        known += tl.dot(key, old, input_precision=_PRECISION)
        found += tl.dot(query, old, input_precision=_PRECISION)
    return known, found


@triton.jit
def _update_state(
    state, beside, is_kept, of_key, learned, left, value, is_token,
    KEY_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, KEYS_TILE: tl.constexpr,
):  # fmt: skip
    """Let some values of a head's state learn a chunk, and copy them if they are to be kept."""
    for part in range(0, KEY_DIM, KEYS_TILE):
        lies, is_state = _locate_part(part, value, KEY_DIM, VALUE_DIM, KEYS_TILE)
        new = tl.load(state + lies, mask=is_state, other=0.0) * left
        key = _load_part(of_key, part, is_token, KEY_DIM, KEYS_TILE)
        new += tl.dot(tl.trans(key), learned, input_precision=_PRECISION)
        tl.store(state + lies, new, mask=is_state)
        tl.store(beside + lies, new, mask=is_state & is_kept)


@triton.jit
def _invert(overlap, is_real, place):
    """Return the inverse of 1 + L, where `overlap` points to L below the diagonal.

    From blocks X of `width` on the diagonal to twice as large ones, between which -X₂·L·X₁ lies.
    """
    row, column = place[:, None], place[None, :]
    inverse = (row == column).to(tl.float32)
    for level in range(_LEVELS):
        width = 1 << level
        is_below = (row // width == column // width + 1) & (row // width % 2 == 1)
        below = tl.load(overlap, mask=is_below & is_real, other=0.0)
        below = tl.dot(below, inverse, input_precision=_PRECISION)
        inverse -= tl.dot(inverse, below, input_precision=_PRECISION)
    return inverse


@triton.jit
def _load_part(rows, part, is_token, DIM: tl.constexpr, TILE: tl.constexpr):
    """Load a part of a head of each token of a chunk."""
    dim = part + tl.arange(0, TILE)
    is_real = is_token[:, None] & (dim < DIM)[None, :]
    return tl.load(rows[:, None] + dim[None, :], mask=is_real, other=0.0)


@triton.jit
def _locate_part(
    part, value, KEY_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, TILE: tl.constexpr
):  # fmt: skip
    """Return where some keys and values of a head's state lie, and which of them there are."""
    dim = (part + tl.arange(0, TILE))[:, None]
    return dim * VALUE_DIM + value[None, :], (dim < KEY_DIM) & (value < VALUE_DIM)[None, :]


@triton.jit
def _load_rates(rates, token, head, is_token, NUM_HEADS: tl.constexpr):
    """Load the rates of learning and the logarithms of decay of a chunk's tokens."""
    at = rates + token * (2 * NUM_HEADS) + head
    beta = tl.load(at, mask=is_token, other=0.0)
    return beta, tl.load(at + NUM_HEADS, mask=is_token, other=0.0)
