"""The seam between layers and the paged KV cache: where keys and values lie, and how rows attend.

A page holds one block of one head, `[block_size, head_dim]`; pages are ordered head-major, so that
gathering a row's pages yields `[kv_heads, rows, length, head_dim]` without a second copy.
Page 0 of each head is trash: padding may read it, nothing reads what was written there.

Two kinds of work in one flat batch: groups of single-token rows, padded to the longest of their
group, and spans of several tokens of one sequence. Heads that share a key head are packed into the
query axis. Refuses to know layers, weights and scheduling.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class DecodeGroup:
    """Rows `first:stop` of the flat batch, one token each, attending over equally many pages.

    `pages` is `[kv_heads * rows * blocks]`; `mask` is float32 `[rows, 1, length]`, 0 or -inf, and None
    for a single row, whose `length` is exact.
    """

    first: int
    stop: int
    pages: Tensor
    length: int
    mask: Tensor | None


@dataclass(frozen=True)
class PrefillSpan:
    """Tokens `first:stop` of the flat batch, the newest of one sequence of `length` tokens."""

    first: int
    stop: int
    pages: Tensor
    length: int

    @property
    def num_computed(self) -> int:
        return self.length - (self.stop - self.first)


@dataclass(frozen=True)
class AttentionPlan:
    """All attention of one step; equal for every layer on one device."""

    slots: Tensor
    decodes: tuple[DecodeGroup, ...]
    prefills: tuple[PrefillSpan, ...]

    def to(self, device: torch.device) -> "AttentionPlan":
        """Return the plan with its tensors on another device."""
        return AttentionPlan(
            self.slots.to(device),
            tuple(
                DecodeGroup(
                    group.first,
                    group.stop,
                    group.pages.to(device),
                    group.length,
                    None if group.mask is None else group.mask.to(device),
                )
                for group in self.decodes
            ),
            tuple(
                PrefillSpan(span.first, span.stop, span.pages.to(device), span.length)
                for span in self.prefills
            ),
        )


class Pages:
    """Keys and values of one layer."""

    def __init__(
        self,
        num_kv_heads: int,
        num_blocks: int,
        block_size: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.device = device
        self.num_kv_heads = num_kv_heads
        self._head_dim = head_dim
        # Zeros, because a masked score still multiplies what lies in an unused slot.
        shape = (num_kv_heads, num_blocks * block_size, head_dim)
        self._keys = torch.zeros(shape, dtype=dtype, device=device)
        self._values = torch.zeros(shape, dtype=dtype, device=device)
        self._key_pages = _as_words(self._keys, num_kv_heads * num_blocks)
        self._value_pages = _as_words(self._values, num_kv_heads * num_blocks)

    def write(self, slots: Tensor, key: Tensor, value: Tensor) -> None:
        """Store `[tokens, kv_heads, head_dim]` at the slots of the tokens."""
        self._keys.index_copy_(1, slots, key.transpose(0, 1))
        self._values.index_copy_(1, slots, value.transpose(0, 1))

    def gather(self, pages: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values of the pages, `[kv_heads, slots of all rows, head_dim]`."""
        shape = (self.num_kv_heads, -1, self._head_dim)
        keys = self._key_pages.index_select(0, pages).view(self._keys.dtype)
        values = self._value_pages.index_select(0, pages).view(self._values.dtype)
        return keys.view(shape), values.view(shape)


def attend(
    query: Tensor, key: Tensor, value: Tensor, pages: Pages, plan: AttentionPlan, scale: float
) -> Tensor:
    """Return the context `[tokens, heads, head_dim]` of all tokens of a step.

    `key` and `value` are those of the step's own tokens, already written to the pages.
    """
    context = torch.empty_like(query, memory_format=torch.contiguous_format)
    for group in plan.decodes:
        rows = slice(group.first, group.stop)
        context[rows] = _attend_group(query[rows], pages, group, scale)
    for span in plan.prefills:
        rows = slice(span.first, span.stop)
        if span.num_computed == 0:
            context[rows] = _attend_start(query[rows], key[rows], value[rows], scale)
        else:
            context[rows] = _attend_span(query[rows], pages, span, scale)
    return context


def _attend_group(query: Tensor, pages: Pages, group: DecodeGroup, scale: float) -> Tensor:
    rows, num_heads, head_dim = query.shape
    keys, values = pages.gather(group.pages)
    packed = query.view(rows, pages.num_kv_heads, -1, head_dim)
    if group.mask is None or query.device.type != "cpu":
        keys = keys.view(pages.num_kv_heads, rows, -1, head_dim).transpose(0, 1)[
            :, :, : group.length
        ]
        values = values.view(pages.num_kv_heads, rows, -1, head_dim).transpose(0, 1)[
            :, :, : group.length
        ]
        mask = None if group.mask is None else group.mask.unsqueeze(1).to(query.dtype)
        return F.scaled_dot_product_attention(packed, keys, values, mask, scale=scale).reshape(
            rows, num_heads, head_dim
        )
    return _attend_by_bmm(packed, keys, values, group.mask, scale).reshape(
        rows, num_heads, head_dim
    )


def _attend_by_bmm(
    packed: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float
) -> Tensor:
    """Attend with two batched products: on a CPU 1.3 to 1.4 times as fast as SDPA for several rows."""
    rows, num_kv_heads, queries, head_dim = packed.shape
    batch = num_kv_heads * rows
    query = packed.transpose(0, 1).reshape(batch, queries, head_dim)
    scores = torch.bmm(query, keys.view(batch, -1, head_dim).transpose(1, 2))
    scores = scores.view(num_kv_heads, rows, queries, -1).float().mul_(scale).add_(mask)
    weights = scores.softmax(-1).to(query.dtype).view(batch, queries, -1)
    context = torch.bmm(weights, values.view(batch, -1, head_dim))
    return context.view(num_kv_heads, rows, queries, head_dim).transpose(0, 1)


def _attend_start(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Attend within the first tokens of a sequence: nothing lies in the pages before them."""
    tokens, num_heads, head_dim = query.shape
    packed, keys, values = _pack_span(query, key.transpose(0, 1), value.transpose(0, 1))
    context = F.scaled_dot_product_attention(packed, keys, values, is_causal=True, scale=scale)
    return context.permute(2, 0, 1, 3).reshape(tokens, num_heads, head_dim)


def _attend_span(query: Tensor, pages: Pages, span: PrefillSpan, scale: float) -> Tensor:
    tokens, num_heads, head_dim = query.shape
    keys, values = pages.gather(span.pages)
    packed, keys, values = _pack_span(query, keys[:, : span.length], values[:, : span.length])
    position = torch.arange(span.num_computed, span.length, device=query.device)
    visible = torch.arange(span.length, device=query.device) <= position[:, None]
    context = F.scaled_dot_product_attention(packed, keys, values, visible, scale=scale)
    return context.permute(2, 0, 1, 3).reshape(tokens, num_heads, head_dim)


def _pack_span(query: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return query `[kv_heads, queries, tokens, head_dim]` and key heads repeated without a copy."""
    tokens, _, head_dim = query.shape
    packed = query.view(tokens, keys.shape[0], -1, head_dim).permute(1, 2, 0, 3)
    repeat = (-1, packed.shape[1], -1, -1)
    return packed, keys.unsqueeze(1).expand(repeat), values.unsqueeze(1).expand(repeat)


def _as_words(tensor: Tensor, num_pages: int) -> Tensor:
    """View pages as rows of 64-bit words, which gather 1.3 times as fast as 16-bit numbers."""
    rows = tensor.view(num_pages, -1)
    return rows.view(torch.float64) if rows.shape[1] * rows.element_size() % 8 == 0 else rows
