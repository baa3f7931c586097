"""Attention on a CPU by batched products, which oneDNN computes faster than SDPA's own kernel.

In bfloat16 SDPA takes 1.3 times as long for single-token rows and twice as long for spans. Softmax
computes in float32 whatever the dtype of the scores. Queries come scaled, key heads come first.
"""

from functools import cache

import torch
from torch import Tensor

# Queries of a span attended at once: their scores stay in the cache, and no tile looks far beyond
# its own last position.
_TILE = 128


def attend_rows(grouped: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Attend `[kv_heads, rows, queries, head_dim]` over `[kv_heads, rows, length, head_dim]`."""
    num_kv_heads, rows, queries, head_dim = grouped.shape
    batch = num_kv_heads * rows
    query = grouped.reshape(batch, queries, head_dim)
    scores = torch.bmm(query, keys.view(batch, -1, head_dim).transpose(1, 2))
    weights = scores.view(num_kv_heads, rows, queries, -1).add_(mask).softmax(-1)
    context = torch.bmm(weights.view(batch, queries, -1), values.view(batch, -1, head_dim))
    return context.view(grouped.shape)


def attend_span(grouped: Tensor, keys: Tensor, values: Tensor, window: int | None = None) -> Tensor:
    """Attend `[kv_heads, queries, tokens, head_dim]` over `[kv_heads, length, head_dim]`.

    With a `window` a token sees itself and so many less one before it.
    """
    num_kv_heads, queries, tokens, head_dim = grouped.shape
    before = keys.shape[1] - tokens
    context = grouped.new_empty(grouped.shape)
    for first in range(0, tokens, _TILE):
        tile = grouped[:, :, first : first + _TILE]
        size = tile.shape[2]
        length = before + first + size
        seen = slice(max(0, length - size - window + 1) if window else 0, length)
        query = tile.reshape(num_kv_heads, queries * size, head_dim)
        scores = torch.bmm(query, keys[:, seen].transpose(1, 2))
        scores = scores.view(num_kv_heads, queries, size, -1)
        scores[..., -size:] += _future(grouped.dtype)[:size, :size]
        if window and scores.shape[-1] > window:
            scores.masked_fill_(_past(size, scores.shape[-1], window), float("-inf"))
        weights = scores.softmax(-1).view(num_kv_heads, queries * size, -1)
        part = torch.bmm(weights, values[:, seen])
        context[:, :, first : first + size] = part.view(tile.shape)
    return context


@cache
def _future(dtype: torch.dtype) -> Tensor:
    """Return what hides later positions from earlier ones: -inf above the diagonal."""
    return torch.full((_TILE, _TILE), float("-inf"), dtype=dtype).triu_(1)


def _past(size: int, length: int, window: int) -> Tensor:
    """Return which of `length` keys lie before the windows of the last `size` positions."""
    return torch.ones(size, length, dtype=torch.bool).tril_(length - size - window)
