"""Attention in plain torch over a paged KV cache, and the plan of it for one step.

Two kinds of work in one batch: groups of single-token rows, padded to the longest of their group,
and spans of several tokens of one sequence. Where workers/model/native could be compiled, single
tokens are attended by it instead, without padding, and where the CPU has the instructions spans
are too. Heads that share a key head lie together on the
query axis. Queries come scaled. Where kernels do all that, their plan is in paged_plan.py. Refuses
to know layers, weights and scheduling.
"""

from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.model.attention import cpu_attention
from workers.model.attention.block_kv_cache import BlockKVCache
from workers.model.attention.kv_cache import KVCache
from workers.model.layout.paged_plan import PagedPlan
from workers.model.linear import batch_invariant

Moved = TypeVar("Moved")


@dataclass(frozen=True)
class DecodeGroup:
    """Rows `first:stop` of the flat batch, one token each, attending over equally many blocks.

    `blocks` is `[kv_heads * rows * blocks]`, or for one row whose blocks follow each other a slice;
    `mask` is `[rows, 1, length]`, 0 or -inf, and None for a single row, whose `length` is exact.
    `window_mask` hides what lies before a window too, where a model has layers with one.
    """

    first: int
    stop: int
    blocks: Tensor | slice
    length: int
    mask: Tensor | None
    window_mask: Tensor | None = None


@dataclass(frozen=True)
class PrefillSpan:
    """Tokens `first:stop` of the flat batch, the newest of one sequence of `length` tokens."""

    first: int
    stop: int
    blocks: Tensor | slice
    length: int

    @property
    def num_computed(self) -> int:
        return self.length - (self.stop - self.first)


@dataclass(frozen=True)
class TokenRows:
    """The first tokens of the flat batch, each attended alone by compiled functions.

    Token t sees the first `lengths[t]` keys, at most `longest`, of the blocks in row `rows[t]` of
    `tables` `[sequences, blocks]`; all three are int32.
    """

    tables: Tensor
    rows: Tensor
    lengths: Tensor
    longest: int


@dataclass(frozen=True)
class BlockSpan:
    """A PrefillSpan for compiled functions; `table` has the blocks of its sequence, int32."""

    first: int
    stop: int
    table: Tensor
    length: int


@dataclass(frozen=True)
class AttentionPlan:
    """All attention of one step; equal for every layer on one device.

    Where functions are compiled, `tokens` stands for the groups, and in a batch-invariant plan for
    everything. Else such a plan has only spans, whose tokens are computed as if each were alone.
    Where compiled functions attend spans, `spans` stand for `prefills`.
    """

    slots: Tensor
    decodes: tuple[DecodeGroup, ...]
    prefills: tuple[PrefillSpan, ...]
    is_batch_invariant: bool = False
    tokens: TokenRows | None = None
    spans: tuple[BlockSpan, ...] = ()

    def to(self, device: torch.device) -> "AttentionPlan":
        """Return the plan with its tensors on another device."""
        return AttentionPlan(
            self.slots.to(device),
            tuple(
                replace(
                    group,
                    blocks=_move(group.blocks, device),
                    mask=_move(group.mask, device),
                    window_mask=_move(group.window_mask, device),
                )
                for group in self.decodes
            ),
            tuple(replace(span, blocks=_move(span.blocks, device)) for span in self.prefills),
            self.is_batch_invariant,
            self.tokens,  # as spans, only where everything is on one device, the CPU
            self.spans,
        )


Plan = AttentionPlan | PagedPlan
LayerKVCache = KVCache | BlockKVCache


def attend(query: Tensor, cache: KVCache, plan: AttentionPlan, window: int | None = None) -> Tensor:
    """Return the context `[tokens, heads, head_dim]` of all tokens of a step.

    Keys and values of the step's own tokens are in the cache. With a `window` a token sees itself
    and so many less one before it.
    """
    context = torch.empty_like(query, memory_format=torch.contiguous_format)
    if plan.tokens is not None:
        context[: len(plan.tokens.rows)] = _attend_tokens(query, cache, plan.tokens, window)
    for group in plan.decodes:
        rows = slice(group.first, group.stop)
        context[rows] = _attend_group(query[rows], cache, group, window)
    for one in plan.spans:
        rows = slice(one.first, one.stop)
        context[rows] = cache.attend_span(query[rows], one.table, one.length, window)
    for span in plan.prefills:
        rows = slice(span.first, span.stop)
        keys, values = cache.gather(span.blocks)
        if plan.is_batch_invariant:
            context[rows] = batch_invariant.attend_span(
                query[rows], keys[:, : span.length], values[:, : span.length], window
            )
            continue
        seen = slice(max(0, span.num_computed - window + 1) if window else 0, span.length)
        context[rows] = _attend_span(query[rows], keys[:, seen], values[:, seen], window)
    return context


def _attend_tokens(query: Tensor, cache: KVCache, plan: TokenRows, window: int | None) -> Tensor:
    query = query[: len(plan.rows)]
    return cache.attend(query, plan.tables, plan.rows, plan.lengths, plan.longest, window)


def _attend_group(query: Tensor, cache: KVCache, group: DecodeGroup, window: int | None) -> Tensor:
    rows, num_heads, head_dim = query.shape
    keys, values = (
        part.unflatten(1, (rows, -1))[:, :, : group.length] for part in cache.gather(group.blocks)
    )
    grouped = query.view(rows, cache.num_kv_heads, -1, head_dim).transpose(0, 1)
    mask = group.mask
    if window is not None:
        mask = group.window_mask
        if mask is None:
            keys, values = keys[:, :, -window:], values[:, :, -window:]
    if mask is not None and query.device.type == "cpu":
        context = cpu_attention.attend_rows(grouped, keys, values, mask)
    else:
        context = F.scaled_dot_product_attention(grouped, keys, values, mask, scale=1.0)
    return context.transpose(0, 1).reshape(rows, num_heads, head_dim)


def _attend_span(query: Tensor, keys: Tensor, values: Tensor, window: int | None) -> Tensor:
    """Attend causally; queries are of the last tokens of `[kv_heads, length, head_dim]`."""
    tokens, num_heads, head_dim = query.shape
    grouped = query.view(tokens, keys.shape[0], -1, head_dim).permute(1, 2, 0, 3)
    if query.device.type == "cpu":
        context = cpu_attention.attend_span(grouped, keys, values, window)
    else:
        context = _attend_span_by_sdpa(grouped, keys, values, window)
    return context.permute(2, 0, 1, 3).reshape(tokens, num_heads, head_dim)


def _attend_span_by_sdpa(
    grouped: Tensor, keys: Tensor, values: Tensor, window: int | None
) -> Tensor:
    tokens, length = grouped.shape[2], keys.shape[1]
    repeat = (-1, grouped.shape[1], -1, -1)
    keys, values = keys.unsqueeze(1).expand(repeat), values.unsqueeze(1).expand(repeat)
    if tokens == length and window is None:
        return F.scaled_dot_product_attention(grouped, keys, values, is_causal=True, scale=1.0)
    position = torch.arange(length - tokens, length, device=grouped.device)
    key_position = torch.arange(length, device=grouped.device)
    visible = key_position <= position[:, None]
    if window is not None:
        visible &= key_position > position[:, None] - window
    return F.scaled_dot_product_attention(grouped, keys, values, visible, scale=1.0)


def _move(value: Moved, device: torch.device) -> Moved:
    moved: Any = value.to(device) if isinstance(value, Tensor) else value
    return moved
