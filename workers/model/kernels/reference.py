"""What the kernels compute, in plain torch, row by row: slow, and obvious enough to be believed.

Its functions have the signatures of those in paged_attention.py and layers.py. Keys and values are
`[blocks, block_size, kv_heads, head_dim]`, queries come scaled to attend.
"""

import torch
from torch import Tensor

from workers.model.layout.paged_plan import PagedPlan


def attend(
    query: Tensor, keys: Tensor, values: Tensor, plan: PagedPlan, window: int | None = None
) -> Tensor:
    """Return the context `[tokens, heads, head_dim]` of all rows; padding tokens get zeros."""
    context = torch.zeros_like(query, memory_format=torch.contiguous_format)
    starts, lengths = plan.starts.tolist(), plan.lengths.tolist()
    for row, length in enumerate(lengths):
        tokens = slice(starts[row], starts[row + 1])
        if tokens.start < tokens.stop:
            table = plan.tables[row, : -(-length // keys.shape[1])].long()
            row_keys, row_values = (
                part[table].flatten(0, 1)[:length].transpose(0, 1) for part in (keys, values)
            )
            context[tokens] = attend_row(query[tokens], row_keys, row_values, window)
    return context


def attend_row(query: Tensor, keys: Tensor, values: Tensor, window: int | None = None) -> Tensor:
    """Attend causally with the last tokens of `[kv_heads, length, head_dim]`, each over its last
    `window` keys.
    """
    tokens, num_heads, head_dim = query.shape
    num_kv_heads, length = keys.shape[:2]
    grouped = query.reshape(tokens, num_kv_heads, -1, head_dim).permute(1, 2, 0, 3)
    scores = grouped @ keys.transpose(1, 2)[:, None]
    last = torch.arange(length - tokens, length, device=query.device)
    position = torch.arange(length, device=query.device)
    is_hidden = position > last[:, None]
    if window is not None:
        is_hidden |= position <= last[:, None] - window
    weights = scores.masked_fill(is_hidden, float("-inf")).softmax(-1)
    context = weights @ values[:, None]
    return context.permute(2, 0, 1, 3).reshape(tokens, num_heads, head_dim)


def write(slots: Tensor, key: Tensor, value: Tensor, keys: Tensor, values: Tensor) -> None:
    """Store `[tokens, kv_heads, head_dim]` at the slots of the tokens."""
    keys.flatten(0, 1)[slots.long()] = key
    values.flatten(0, 1)[slots.long()] = value


def norm_rope_write(
    qkv: Tensor, head_norm: Tensor | None, eps: float, scale: float, cos: Tensor, sin: Tensor,
    slots: Tensor, keys: Tensor, values: Tensor, *, is_gated: bool = False,
) -> Tensor:  # fmt: skip
    """Write keys and values to their slots and return queries, computed in float64."""
    num_kv_heads, head_dim = keys.shape[2:]
    heads = qkv.view(len(qkv), -1, head_dim)
    if is_gated:
        queries, others = heads[:, : -2 * num_kv_heads : 2], heads[:, -2 * num_kv_heads :]
        heads = torch.cat((queries, others), 1)
    rotated, value = heads[:, :-num_kv_heads].double(), heads[:, -num_kv_heads:]
    if head_norm is not None:
        mean = rotated.square().mean(-1, keepdim=True)
        rotated = rotated / (mean + eps).sqrt() * head_norm
    turned, rest = rotated.split((cos.shape[-1], head_dim - cos.shape[-1]), -1)
    low, high = turned.chunk(2, -1)
    rotated = torch.cat((turned * cos + torch.cat((high, low), -1) * sin, rest), -1)
    write(slots, rotated[:, -num_kv_heads:].to(qkv.dtype), value, keys, values)
    return (rotated[:, :-num_kv_heads] * scale).to(qkv.dtype)
