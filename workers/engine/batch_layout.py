"""Place a batch's rows on the device as one FlatBatch, by a single copy of integers.

token ids │ starts │ lengths │ block tables, one row after another │ last tokens of sampled rows │
state slots of rows │ of tokens behind which a copy is kept, where the model has states
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from workers.engine.batch import Row
from workers.engine.state_layout import slots_of_rows, slots_of_tokens
from workers.model.layout.flat_batch import FlatBatch

# In elements of four bytes.
_ALIGNMENT = 4


def flatten_rows(rows: Sequence[Row], block_size: int, device: torch.device) -> FlatBatch:
    """Lay rows out flat on a device, in their order."""
    has_states = rows[0].sequence.table.state is not None
    counts = np.array([row.num_tokens for row in rows])
    starts = np.concatenate(([0], counts.cumsum()))
    lengths = np.array([row.stop for row in rows])
    tables = _tables(rows, -(-lengths // block_size))
    samples = np.array(tokens_with_logits(rows))
    slots = slots_of_rows(rows) if has_states else np.empty(0)
    kept = slots_of_tokens(rows, starts) if has_states else np.empty(0)
    parts = [_token_ids(rows, starts), starts, lengths, tables.ravel(), samples, slots, kept]
    there = _upload(parts, device)
    token_ids, starts_there, lengths_there, flat, last_tokens, slots_there, kept_there = there
    rows_there = starts_there, lengths_there, flat.view(tables.shape)
    of_states = slots_there, kept_there
    return FlatBatch(token_ids, *rows_there, last_tokens, *of_states, int(counts.max()))


def tokens_with_logits(rows: Sequence[Row]) -> list[int]:
    """Return the indexes in the flat batch behind which rows sample: drafts, and tokens before.

    After all of these follow the indexes behind which rows score their prompts.
    """
    sampled: list[int] = []
    scored: list[int] = []
    end = 0
    for row in rows:
        first = end - row.start
        end += row.num_tokens
        sampled += range(end - row.num_samples, end)
        if row.scored:
            scored += range(first + row.scored.start, first + row.scored.stop)
    return sampled + scored


def _token_ids(rows: Sequence[Row], starts: np.ndarray) -> np.ndarray:
    token_ids = np.empty(starts[-1], np.int32)
    for row, start in zip(rows, starts, strict=False):
        token_ids[start : start + row.num_tokens] = row.token_ids
    return token_ids


def _tables(rows: Sequence[Row], num_blocks: np.ndarray) -> np.ndarray:
    # A table may already have blocks for later tokens of its prompt; they are not attended.
    tables = np.zeros((len(rows), num_blocks.max()), np.int32)
    for row, table, count in zip(rows, tables, num_blocks.tolist(), strict=True):
        table[:count] = row.sequence.table.ids[:count]
    return tables


def _upload(parts: list[np.ndarray], device: torch.device) -> list[Tensor]:
    """Return int32 copies of the parts on a device, by one copy.

    Each begins where 16 bytes do: of a kernel whose pointers do and do not, Triton makes two.
    """
    sizes = [-(-part.size // _ALIGNMENT) * _ALIGNMENT for part in parts]
    packed = torch.empty(sum(sizes), dtype=torch.int32, pin_memory=device.type == "cuda")
    for here, part in zip(packed.split(sizes), parts, strict=True):
        here.numpy()[: part.size] = part
    there = packed.to(device, non_blocking=True).split(sizes)
    return [whole[: part.size] for whole, part in zip(there, parts, strict=True)]
