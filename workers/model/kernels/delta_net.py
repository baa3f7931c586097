"""Gated DeltaNet in Triton kernels: what lies between its products, but for prompts.

    prepare     16 tokens of a row, a tile of channels:   convolution and SiLU; rates of all heads
    step        a row of one token, a head, some values:  its state takes one step of the delta rule
    normalize   a token, a tile of heads:                 RMSNorm · SiLU(gate)

Prompts are delta_scan.py's. States are found by the slots of a plan and changed where they lie; a
copy that is to be kept is written beside. A row without tokens, as padding is, touches none. Where
in a row of projections a channel, gate or rate lies, `columns` says: `[channels │ heads * value_dim
│ heads │ heads]`, as GatedDeltaNet takes them apart. Everything between projections is float32.
delta_rule.py and gated_delta_net.py in layers/ are the torch twins. Refuses to know weights and
layers.

Checked under Triton's interpreter in float32 and float16 against the twins, and compiled for sm_90.
Not checked: any GPU, and so no speed and no tile size.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from workers.model.kernels.rows import find_row
from workers.model.layout.slot_plan import SlotPlan

_NORM_EPS = tl.constexpr(1e-6)
# Tokens of a row that one program convolves; at least as many as a convolution looks back.
_TOKENS = 16
_CHANNELS_TILE = 256
# Values of a state's head: 4,096 numbers of it where keys have 128.
_VALUES_TILE = 32
# Elements of one program: 16 heads of 128.
_HEADS_TILE = 2048
_NUM_WARPS = 4


def prepare(
    projected: Tensor, columns: Tensor, taps: Tensor, rates: Tensor, inputs: Tensor, plan: SlotPlan
) -> tuple[Tensor, Tensor]:
    """Return what the rule takes of all tokens, float32: queries, keys and values convolved
    `[tokens, channels]`, and rates of learning and logarithms of decay `[tokens, 2, heads]`.

    `inputs` `[slots, width - 1, channels]` are then those of the rows' last tokens. `taps` is
    `[width, channels]`, and `rates` `[2, heads]` what decay is multiplied by and its bias.
    """
    assert projected.is_contiguous() and inputs.is_contiguous() and taps.is_contiguous()
    width, channels = taps.shape
    num_tokens, num_heads, num_rows = projected.shape[0], rates.shape[1], plan.slots.shape[0]
    assert inputs.shape[1:] == (width - 1, channels) and width - 1 <= _TOKENS
    convolved = projected.new_empty((num_tokens, channels), dtype=torch.float32)
    token_rates = projected.new_empty((num_tokens, 2, num_heads), dtype=torch.float32)
    is_single = plan.max_query == 1
    num_blocks = num_rows if is_single else num_tokens // _TOKENS + num_rows
    with torch.cuda.device_of(projected):
        _prepare_tokens[(num_blocks, triton.cdiv(channels, _CHANNELS_TILE))](
            projected, columns, taps, rates, inputs, convolved, token_rates,
            plan.starts, plan.slots, plan.kept, num_rows,
            COLUMNS=projected.shape[1], CHANNELS=channels, WIDTH=width, NUM_HEADS=num_heads,
            PADDED_HEADS=triton.next_power_of_2(num_heads), TOKENS=_TOKENS, TILE=_CHANNELS_TILE,
            IS_SINGLE=is_single, num_warps=_NUM_WARPS,
        )  # fmt: skip
    return convolved, token_rates


def step(convolved: Tensor, rates: Tensor, matrices: Tensor, plan: SlotPlan) -> Tensor:
    """Take the states of rows of one token a step further, in place.

    `matrices` are `[slots, heads, key_dim, value_dim]`. Return what such tokens read,
    `[tokens, heads, value_dim]`; other tokens' places are left for delta_scan.py.
    """
    assert convolved.is_contiguous() and rates.is_contiguous() and matrices.is_contiguous()
    num_heads, key_dim, value_dim = matrices.shape[1:]
    read = convolved.new_empty((convolved.shape[0], num_heads, value_dim))
    tile = min(_VALUES_TILE, triton.next_power_of_2(value_dim))
    with torch.cuda.device_of(convolved):
        _step_rows[(plan.slots.shape[0], num_heads, triton.cdiv(value_dim, tile))](
            convolved, rates, matrices, read, plan.starts, plan.slots, plan.kept,
            CHANNELS=convolved.shape[1], NUM_HEADS=num_heads, KEY_DIM=key_dim, VALUE_DIM=value_dim,
            PADDED_KEY=triton.next_power_of_2(key_dim), TILE=tile, num_warps=_NUM_WARPS,
        )  # fmt: skip
    return read


def normalize(
    read: Tensor, projected: Tensor, columns: Tensor, weight: Tensor, eps: float
) -> Tensor:
    """Return the norm of what was read times SiLU of its gate, `[tokens, heads * value_dim]`.

    `weight` is float32 `[value_dim]`; `columns` as above, from the gates' on.
    """
    assert read.is_contiguous() and projected.is_contiguous()
    num_tokens, num_heads, value_dim = read.shape
    output = projected.new_empty((num_tokens, num_heads * value_dim))
    padded = triton.next_power_of_2(value_dim)
    heads = min(max(1, _HEADS_TILE // padded), triton.next_power_of_2(num_heads))
    with torch.cuda.device_of(projected):
        _normalize_heads[(num_tokens, triton.cdiv(num_heads, heads))](
            read, projected, columns, weight, output, eps,
            COLUMNS=projected.shape[1], NUM_HEADS=num_heads, DIM=value_dim, PADDED_DIM=padded,
            HEADS=heads, num_warps=_NUM_WARPS,
        )  # fmt: skip
    return output


# A batch's integers lie anywhere in one buffer: their alignment must not be compiled in.
@triton.jit(
    do_not_specialize=["num_rows"], do_not_specialize_on_alignment=["starts", "slots", "kept"]
)
def _prepare_tokens(
    projected, columns, taps, rates, inputs, convolved, token_rates,
    starts, slots, kept, num_rows,
    COLUMNS: tl.constexpr, CHANNELS: tl.constexpr, WIDTH: tl.constexpr, NUM_HEADS: tl.constexpr,
    PADDED_HEADS: tl.constexpr, TOKENS: tl.constexpr, TILE: tl.constexpr, IS_SINGLE: tl.constexpr,
):  # fmt: skip
    """Prepare some tokens of one row; the first such program is all that touches its inputs."""
    row, number = tl.program_id(0), 0
    if not IS_SINGLE:
        row, number = find_row(row, starts, num_rows, TOKENS)
    start = tl.load(starts + row).to(tl.int64)
    num_tokens = (tl.load(starts + row + 1) - start).to(tl.int32)
    first = number * TOKENS
    if first >= num_tokens:
        return
    channel = tl.program_id(1) * TILE + tl.arange(0, TILE)
    is_real = channel < CHANNELS
    own = projected + tl.load(columns + channel, mask=is_real, other=0)
    slot_size: tl.constexpr = (WIDTH - 1) * CHANNELS
    before = inputs + tl.load(slots + row).to(tl.int64) * slot_size + channel
    for index in range(first, tl.minimum(first + TOKENS, num_tokens)):
        total = tl.zeros([TILE], tl.float32)
        for tap in tl.static_range(WIDTH):
            x = _input_at(
                start, index - (WIDTH - 1) + tap, own, before, is_real, COLUMNS, CHANNELS, WIDTH
            )  # fmt: skip
            total += x * tl.load(taps + tap * CHANNELS + channel, mask=is_real, other=0.0)
        where = convolved + (start + index) * CHANNELS + channel
        tl.store(where, _silu(total), mask=is_real)
        copy = tl.load(kept + start + index).to(tl.int64)
        if copy > 0:
            for place in tl.static_range(WIDTH - 1):
                seen = index - (WIDTH - 2) + place
                x = _input_at(start, seen, own, before, is_real, COLUMNS, CHANNELS, WIDTH)
                where = inputs + copy * slot_size + place * CHANNELS + channel
                tl.store(where, x, mask=is_real)
        if tl.program_id(1) == 0:
            _store_rates(
                projected + (start + index) * COLUMNS, columns + CHANNELS, rates,
                token_rates + (start + index) * (2 * NUM_HEADS), COLUMNS - CHANNELS - 2 * NUM_HEADS,
                NUM_HEADS, PADDED_HEADS,
            )  # fmt: skip
    if first == 0:
        # All threads have read what was there. An input moves to an earlier place, and places are
        # filled from the earliest on.
        tl.debug_barrier()
        for place in tl.static_range(WIDTH - 1):
            seen = num_tokens - (WIDTH - 1) + place
            x = _input_at(start, seen, own, before, is_real, COLUMNS, CHANNELS, WIDTH)
            tl.store(before + place * CHANNELS, x, mask=is_real)


@triton.jit
def _input_at(
    start, index, own, before, is_real,
    COLUMNS: tl.constexpr, CHANNELS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Return the inputs of a row's token, or if `index` is negative of one before the row."""
    is_new = index >= 0
    new = tl.load(own + (start + index) * COLUMNS, mask=is_real & is_new, other=0.0)
    place = before + (WIDTH - 1 + index) * CHANNELS
    old = tl.load(place, mask=is_real & (index < 0), other=0.0)
    return tl.where(is_new, new.to(tl.float32), old)


@triton.jit
def _store_rates(
    projected, columns, rates, token_rates, skipped: tl.constexpr,
    NUM_HEADS: tl.constexpr, PADDED_HEADS: tl.constexpr,
):  # fmt: skip
    """Compute the rate of learning and the logarithm of decay of each head of one token."""
    head = tl.arange(0, PADDED_HEADS)
    is_head = head < NUM_HEADS
    column = columns + skipped + head
    beta = tl.load(projected + tl.load(column, mask=is_head, other=0)).to(tl.float32)
    alpha = tl.load(projected + tl.load(column + NUM_HEADS, mask=is_head, other=0)).to(tl.float32)
    x = alpha + tl.load(rates + NUM_HEADS + head, mask=is_head, other=0.0)
    decay = tl.load(rates + head, mask=is_head, other=0.0) * _softplus(x)
    tl.store(token_rates + head, 1.0 / (1.0 + tl.exp(-beta)), mask=is_head)
    tl.store(token_rates + NUM_HEADS + head, decay, mask=is_head)


@triton.jit
def _softplus(x):
    """Return log(1 + e^x), exact where e^x is small too, as `log1p` is: a state forgets by it."""
    power = tl.exp(-tl.abs(x))
    sum_ = 1.0 + power
    rounded = sum_ - 1.0
    small = tl.log(sum_) * (power / tl.where(rounded == 0.0, 1.0, rounded))
    return tl.maximum(x, 0.0) + tl.where(rounded == 0.0, power, small)


@triton.jit
def _silu(x):
    return x / (1.0 + tl.exp(-x))


@triton.jit(do_not_specialize_on_alignment=["starts", "slots", "kept"])
def _step_rows(
    convolved, rates, matrices, read, starts, slots, kept,
    CHANNELS: tl.constexpr, NUM_HEADS: tl.constexpr, KEY_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr, PADDED_KEY: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Take some values of one head's state through the token of one row."""
    row, head = tl.program_id(0), tl.program_id(1)
    token = tl.load(starts + row).to(tl.int64)
    if tl.load(starts + row + 1) != token + 1:
        return
    keys: tl.constexpr = (CHANNELS - NUM_HEADS * VALUE_DIM) // 2
    group: tl.constexpr = NUM_HEADS * KEY_DIM // keys
    key = tl.arange(0, PADDED_KEY)
    value = tl.program_id(2) * TILE + tl.arange(0, TILE)
    is_key, is_value = key < KEY_DIM, value < VALUE_DIM
    own = convolved + token * CHANNELS
    at = own + head // group * KEY_DIM + key
    query = tl.load(at, mask=is_key, other=0.0)
    learnt = tl.load(at + keys, mask=is_key, other=0.0)
    query *= tl.rsqrt(tl.sum(query * query, 0) + _NORM_EPS) * KEY_DIM**-0.5
    learnt *= tl.rsqrt(tl.sum(learnt * learnt, 0) + _NORM_EPS)
    x = tl.load(own + 2 * keys + head * VALUE_DIM + value, mask=is_value, other=0.0)
    beta = tl.load(rates + token * (2 * NUM_HEADS) + head)
    left = tl.exp(tl.load(rates + token * (2 * NUM_HEADS) + NUM_HEADS + head))

    at = head * (KEY_DIM * VALUE_DIM) + key[:, None] * VALUE_DIM + value[None, :]
    is_real = is_key[:, None] & is_value[None, :]
    slot_size: tl.constexpr = NUM_HEADS * KEY_DIM * VALUE_DIM
    place = matrices + tl.load(slots + row).to(tl.int64) * slot_size + at
    state = tl.load(place, mask=is_real, other=0.0) * left
    missing = (x - tl.sum(learnt[:, None] * state, 0)) * beta
    state += learnt[:, None] * missing[None, :]
    found = tl.sum(query[:, None] * state, 0)
    tl.store(read + (token * NUM_HEADS + head) * VALUE_DIM + value, found, mask=is_value)
    tl.store(place, state, mask=is_real)
    copy = tl.load(kept + token).to(tl.int64)
    if copy > 0:
        tl.store(matrices + copy * slot_size + at, state, mask=is_real)


@triton.jit
def _normalize_heads(
    read, projected, columns, weight, output, eps,
    COLUMNS: tl.constexpr, NUM_HEADS: tl.constexpr, DIM: tl.constexpr, PADDED_DIM: tl.constexpr,
    HEADS: tl.constexpr,
):  # fmt: skip
    """Normalize some heads of one token, and weigh them by their gates."""
    token = tl.program_id(0).to(tl.int64)
    head = (tl.program_id(1) * HEADS + tl.arange(0, HEADS))[:, None]
    dim = tl.arange(0, PADDED_DIM)[None, :]
    is_real = (head < NUM_HEADS) & (dim < DIM)
    at = head * DIM + dim
    x = tl.load(read + token * (NUM_HEADS * DIM) + at, mask=is_real, other=0.0)
    column = tl.load(columns + at, mask=is_real, other=0)
    gate = tl.load(projected + token * COLUMNS + column, mask=is_real, other=0.0).to(tl.float32)
    factor = tl.rsqrt(tl.sum(x * x, 1) / DIM + eps)[:, None]
    w = tl.load(weight + dim, mask=dim < DIM, other=0.0)
    y = (x * factor * w * _silu(gate)).to(output.dtype.element_ty)
    tl.store(output + token * (NUM_HEADS * DIM) + at, y, mask=is_real)
