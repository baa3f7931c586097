"""Norms, rotation and gates in four Triton kernels: what lies between a layer's products.

    add_rms_norm      one program a token:          residual += delta; norm(residual)
    norm_rope_write   a token, a tile of heads:     norm, scale, rotate; write keys and values
    gate_heads        a token, a tile of heads:     context * sigmoid(gate)
    silu_mul          a token, a tile of outputs:   silu(gate) * up

Heads of hybrid models have 256 dimensions, of which 64 are rotated, and each head of queries is
followed by its gate.

Sums are float32 and results are rounded where torch rounds them in qwen_layers.py: its functions,
and reference.py, say what is computed. Refuses to know weights and layers; triton launches on the
current device, so every function makes that the one of its tensors.

A program's shape follows from the model alone, never from the number of tokens, so a token's
result depends on nothing beside it. No launch reads a value on the host, and none is compiled for a
number that varies: a CUDA graph may hold it.

Checked under Triton's interpreter in float32 and float16 against torch, and compiled for sm_90 in
bfloat16, which the interpreter cuts off where a GPU rounds. Not checked: any GPU, and so no
bfloat16 result, no speed and no tile size.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

# Elements of one program: 16 heads of 128, and 8 elements for each thread.
_HEADS_TILE = 2048
_SILU_TILE = 1024
_NUM_WARPS = 4
# Elements that a warp loads at once, in 16 bytes a thread, and the most warps that share a row.
_WARP_ELEMENTS = 256
_MOST_WARPS = 16


def add_rms_norm(
    delta: Tensor | None, residual: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Add delta to residual `[tokens, width]` in place; return its norm, and it."""
    assert residual.is_contiguous() and (delta is None or delta.is_contiguous())
    assert delta is None or (delta.shape == residual.shape and delta.dtype == residual.dtype)
    num_tokens, width = residual.shape
    normed = residual.new_empty(residual.shape)
    padded = triton.next_power_of_2(width)
    with torch.cuda.device_of(residual):
        _add_and_normalize[(num_tokens,)](
            residual if delta is None else delta, residual, weight, normed, eps,
            WIDTH=width, PADDED=padded, HAS_DELTA=delta is not None,
            num_warps=min(_MOST_WARPS, max(1, padded // _WARP_ELEMENTS)),
        )  # fmt: skip
    return normed, residual


def norm_rope_write(
    qkv: Tensor, head_norm: Tensor | None, eps: float, scale: float, cos: Tensor, sin: Tensor,
    slots: Tensor, keys: Tensor, values: Tensor, *, is_gated: bool = False,
) -> Tensor:  # fmt: skip
    """Rotate the heads of `qkv` `[tokens, (heads + 2 kv_heads) * head_dim]`, write keys and values
    to the slots of `[blocks, block_size, kv_heads, head_dim]`; return queries, scaled.

    With `is_gated`, what follows each head of queries, its gate, is left where it is. `head_norm`
    is float32 `[heads + kv_heads, head_dim]`, `cos` and signed `sin` are those of Rope, for the
    first dimensions of a head.
    """
    num_kv_heads, head_dim = keys.shape[2:]
    num_tokens, rotated = qkv.shape[0], cos.shape[-1]
    num_heads = (qkv.shape[1] // head_dim - 2 * num_kv_heads) // (1 + is_gated)
    num_all = num_heads + 2 * num_kv_heads
    assert qkv.is_contiguous() and keys.is_contiguous() and values.is_contiguous()
    assert cos.is_contiguous() and sin.is_contiguous() and rotated <= head_dim
    query = qkv.new_empty((num_tokens, num_heads, head_dim))
    padded_half = triton.next_power_of_2(rotated // 2)
    rest = head_dim - rotated
    padded_rest = triton.next_power_of_2(rest) if rest else 0
    widest = triton.next_power_of_2(2 * padded_half + padded_rest)
    heads = min(max(1, _HEADS_TILE // widest), triton.next_power_of_2(num_all))
    with torch.cuda.device_of(qkv):
        _normalize_rotate_and_write[(num_tokens, triton.cdiv(num_all, heads))](
            qkv, cos if head_norm is None else head_norm, eps, scale, cos, sin, slots,
            query, keys, values,
            NUM_HEADS=num_heads, NUM_KV_HEADS=num_kv_heads, HALF=rotated // 2,
            PADDED_HALF=padded_half, REST=rest, PADDED_REST=padded_rest, HEADS=heads,
            HAS_NORM=head_norm is not None, IS_GATED=is_gated, num_warps=_NUM_WARPS,
        )  # fmt: skip
    return query


def gate_heads(context: Tensor, qkv: Tensor) -> Tensor:
    """Multiply a context `[tokens, heads, head_dim]` in place by the sigmoid of its heads' gates,
    which follow the queries in `qkv`; return it.
    """
    assert context.is_contiguous() and qkv.is_contiguous() and context.dtype == qkv.dtype
    num_tokens, num_heads, head_dim = context.shape
    padded = triton.next_power_of_2(head_dim)
    heads = min(max(1, _HEADS_TILE // padded), triton.next_power_of_2(num_heads))
    with torch.cuda.device_of(qkv):
        _gate_heads[(num_tokens, triton.cdiv(num_heads, heads))](
            context, qkv, QKV_WIDTH=qkv.shape[1], NUM_HEADS=num_heads, DIM=head_dim,
            PADDED_DIM=padded, HEADS=heads, num_warps=_NUM_WARPS,
        )  # fmt: skip
    return context


def silu_mul(gate_up: Tensor) -> Tensor:
    """Return the SiLU of the first half of `[tokens, 2 * width]`, times the second."""
    assert gate_up.is_contiguous()
    num_tokens, width = gate_up.shape[0], gate_up.shape[1] // 2
    product = gate_up.new_empty((num_tokens, width))
    with torch.cuda.device_of(gate_up):
        _silu_and_multiply[(num_tokens, triton.cdiv(width, _SILU_TILE))](
            gate_up, product, WIDTH=width, TILE=_SILU_TILE, num_warps=_NUM_WARPS
        )
    return product


@triton.jit
def _add_and_normalize(
    delta, residual, weight, normed, eps,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, HAS_DELTA: tl.constexpr,
):  # fmt: skip
    """Add delta to the residual of one token, and normalize it."""
    column = tl.arange(0, PADDED)
    is_real = column < WIDTH
    at = tl.program_id(0).to(tl.int64) * WIDTH + column
    x = tl.load(residual + at, mask=is_real, other=0.0)
    if HAS_DELTA:
        added = tl.load(delta + at, mask=is_real, other=0.0).to(tl.float32)
        x = (x.to(tl.float32) + added).to(residual.dtype.element_ty)
        tl.store(residual + at, x, mask=is_real)
    x = x.to(tl.float32)
    factor = tl.rsqrt(tl.sum(x * x, 0) / WIDTH + eps)
    w = tl.load(weight + column, mask=is_real, other=0.0)
    tl.store(normed + at, (x * factor * w).to(normed.dtype.element_ty), mask=is_real)


# A batch's integers lie anywhere in one buffer: their alignment must not be compiled in.
@triton.jit(do_not_specialize_on_alignment=["slots"])
def _normalize_rotate_and_write(
    qkv, head_norm, eps, scale, cos, sin, slots, query, keys, values,
    NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HALF: tl.constexpr,
    PADDED_HALF: tl.constexpr, REST: tl.constexpr, PADDED_REST: tl.constexpr,
    HEADS: tl.constexpr, HAS_NORM: tl.constexpr, IS_GATED: tl.constexpr,
):  # fmt: skip
    """Turn some heads of one token into queries, keys in their slot, or values in theirs.

    The two halves of what is rotated of heads are separate tiles, because each rotates into the
    other; a third is the rest.
    """
    head_dim: tl.constexpr = 2 * HALF + REST
    num_rotated: tl.constexpr = NUM_HEADS + NUM_KV_HEADS
    num_all: tl.constexpr = num_rotated + NUM_KV_HEADS
    num_gates: tl.constexpr = NUM_HEADS if IS_GATED else 0
    token = tl.program_id(0).to(tl.int64)
    head = (tl.program_id(1) * HEADS + tl.arange(0, HEADS))[:, None]
    dim = tl.arange(0, PADDED_HALF)[None, :]
    is_dim = dim < HALF
    at = head * head_dim + dim
    row = qkv + (token * (num_all + num_gates) + tl.minimum(head, num_gates)) * head_dim
    is_head = head < num_all
    is_real = is_head & is_dim
    value_low = tl.load(row + at, mask=is_real, other=0.0)
    value_high = tl.load(row + at + HALF, mask=is_real, other=0.0)
    low, high = value_low.to(tl.float32), value_high.to(tl.float32)
    if REST > 0:
        rest_dim = 2 * HALF + tl.arange(0, PADDED_REST)[None, :]
        is_rest = rest_dim < head_dim
        rest_at = head * head_dim + rest_dim
        value_rest = tl.load(row + rest_at, mask=is_head & is_rest, other=0.0)
        rest = value_rest.to(tl.float32)
    is_rotated = head < num_rotated
    if HAS_NORM:
        weight_low = tl.load(head_norm + at, mask=is_rotated & is_dim, other=0.0)
        weight_high = tl.load(head_norm + at + HALF, mask=is_rotated & is_dim, other=0.0)
        total = tl.sum(low * low, 1) + tl.sum(high * high, 1)
        if REST > 0:
            total += tl.sum(rest * rest, 1)
        factor = tl.rsqrt(total / head_dim + eps)[:, None]
        low, high = low * factor * weight_low, high * factor * weight_high
        if REST > 0:
            rest *= factor * tl.load(head_norm + rest_at, mask=is_rotated & is_rest, other=0.0)
    factor = tl.where(head < NUM_HEADS, scale, 1.0)
    low, high = low * factor, high * factor
    angle = token * (2 * HALF) + dim
    low, high = _rotate(low, high, cos + angle, sin + angle, is_dim, HALF)
    rotated_low, rotated_high = low.to(value_low.dtype), high.to(value_low.dtype)

    slot = tl.load(slots + token).to(tl.int64) * (NUM_KV_HEADS * head_dim)
    queries = query + token * (NUM_HEADS * head_dim)
    own_keys = keys + slot - NUM_HEADS * head_dim
    own_values = values + slot - num_rotated * head_dim
    own = queries, own_keys, own_values
    _store_part(rotated_low, value_low, at, is_real, head, own, NUM_HEADS, num_rotated)
    _store_part(rotated_high, value_high, at + HALF, is_real, head, own, NUM_HEADS, num_rotated)
    if REST > 0:
        rotated = (rest * factor).to(value_low.dtype)
        is_real = is_head & is_rest
        _store_part(rotated, value_rest, rest_at, is_real, head, own, NUM_HEADS, num_rotated)


@triton.jit
def _rotate(low, high, cos, sin, is_dim, HALF: tl.constexpr):
    """Rotate the halves of heads into each other; the angles' second half lies HALF behind."""
    cos_low = tl.load(cos, mask=is_dim, other=0.0)
    cos_high = tl.load(cos + HALF, mask=is_dim, other=0.0)
    sin_low = tl.load(sin, mask=is_dim, other=0.0)
    sin_high = tl.load(sin + HALF, mask=is_dim, other=0.0)
    return low * cos_low + high * sin_low, high * cos_high + low * sin_high


@triton.jit
def _store_part(
    rotated, value, at, is_stored, head, own, NUM_HEADS: tl.constexpr, NUM_ROTATED: tl.constexpr
):  # fmt: skip
    """Store some dimensions of heads where queries, keys or values lie."""
    is_query, is_value = head < NUM_HEADS, head >= NUM_ROTATED
    tl.store(own[0] + at, rotated, mask=is_stored & is_query)
    tl.store(own[1] + at, rotated, mask=is_stored & ~is_query & ~is_value)
    tl.store(own[2] + at, value, mask=is_stored & is_value)


@triton.jit
def _gate_heads(
    context, qkv, QKV_WIDTH: tl.constexpr, NUM_HEADS: tl.constexpr, DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """Gate some heads of one token; the sigmoid is rounded before it is multiplied."""
    token = tl.program_id(0).to(tl.int64)
    head = (tl.program_id(1) * HEADS + tl.arange(0, HEADS))[:, None]
    dim = tl.arange(0, PADDED_DIM)[None, :]
    is_real = (head < NUM_HEADS) & (dim < DIM)
    at = qkv + token * QKV_WIDTH + (2 * head + 1) * DIM + dim
    gate = tl.load(at, mask=is_real, other=0.0)
    sigmoid = 1.0 / (1.0 + tl.exp(-gate.to(tl.float32)))
    own = context + token * (NUM_HEADS * DIM) + head * DIM + dim
    x = tl.load(own, mask=is_real, other=0.0).to(tl.float32)
    x *= sigmoid.to(gate.dtype).to(tl.float32)
    tl.store(own, x.to(gate.dtype), mask=is_real)


@triton.jit
def _silu_and_multiply(gate_up, product, WIDTH: tl.constexpr, TILE: tl.constexpr):
    """Compute some outputs of one token; the SiLU is rounded before it is multiplied."""
    column = tl.program_id(1) * TILE + tl.arange(0, TILE)
    is_real = column < WIDTH
    token = tl.program_id(0).to(tl.int64)
    at = gate_up + token * (2 * WIDTH) + column
    gate = tl.load(at, mask=is_real, other=0.0)
    up = tl.load(at + WIDTH, mask=is_real, other=0.0).to(tl.float32)
    x = gate.to(tl.float32)
    silu = (x / (1.0 + tl.exp(-x))).to(gate.dtype).to(tl.float32)
    out = (silu * up).to(product.dtype.element_ty)
    tl.store(product + token * WIDTH + column, out, mask=is_real)
