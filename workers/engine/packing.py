"""The rows of a batch as one buffer of integers: one copy to the device, where the rest is derived.

token ids │ starts │ lengths │ last tokens of sampled rows │ block tables, one row after another
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from workers.engine.batch import Row
from workers.model.paged_plan import PagedPlan, choose_splits, locate


class PackedBatch(NamedTuple):
    """What the decoder takes."""

    token_ids: Tensor
    positions: Tensor
    plan: PagedPlan
    last_tokens: Tensor


def pack(
    rows: Sequence[Row], num_kv_heads: int, block_size: int, device: torch.device
) -> PackedBatch:
    """Lay rows out flat on a device, in their order."""
    counts = np.array([row.num_tokens for row in rows])
    starts = np.concatenate(([0], counts.cumsum()))
    is_sampled = np.array([row.is_sampled for row in rows])
    lengths = np.array([row.sequence.num_computed for row in rows]) + counts
    tables = _tables(rows, -(-lengths // block_size))
    parts = [_token_ids(rows, starts), starts, lengths, starts[1:][is_sampled] - 1, tables.ravel()]
    token_ids, on_device, lengths_there, last_tokens, flat = _upload(parts, device)
    table = flat.view(tables.shape)
    positions, slots = locate(on_device, lengths_there, table, token_ids.shape[0], block_size)
    longest = tables.shape[1] * block_size
    max_query = int(counts.max())
    splits = choose_splits(len(rows), num_kv_heads, longest, device) if max_query == 1 else 1
    plan = PagedPlan(slots, on_device, lengths_there, table, max_query, splits)
    return PackedBatch(token_ids, positions, plan, last_tokens)


def _token_ids(rows: Sequence[Row], starts: np.ndarray) -> np.ndarray:
    token_ids = np.empty(starts[-1], np.int32)
    for (sequence, num_tokens), start in zip(rows, starts, strict=False):
        first = sequence.num_computed
        token_ids[start : start + num_tokens] = sequence.token_ids[first : first + num_tokens]
    return token_ids


def _tables(rows: Sequence[Row], num_blocks: np.ndarray) -> np.ndarray:
    # A table may already have blocks for later tokens of its prompt; they are not attended.
    tables = np.zeros((len(rows), num_blocks.max()), np.int32)
    for row, table, count in zip(rows, tables, num_blocks.tolist(), strict=True):
        table[:count] = row.sequence.table.ids[:count]
    return tables


def _upload(parts: list[np.ndarray], device: torch.device) -> tuple[Tensor, ...]:
    """Return int32 copies of the parts on a device, by one transfer."""
    packed = torch.from_numpy(np.concatenate(parts, dtype=np.int32, casting="unsafe"))
    if device.type == "cuda":
        packed = packed.pin_memory()
    return packed.to(device, non_blocking=True).split([part.size for part in parts])
