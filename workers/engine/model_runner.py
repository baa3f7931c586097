"""From a batch to its sampled tokens: lays rows out flat, plans their attention, runs the model.

Knows sequences' tokens and block ids, and turns them into a few tensors per step. Refuses to know
who runs next and what becomes of a token. Where kernels attend, packing.py lays the rows out.

    flat batch:  one token of each decoding row, shortest context first │ the spans of prompts
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from workers.engine.batch import Batch, Row
from workers.engine.block_manager import TRASH
from workers.engine.packing import pack
from workers.engine.processors import SamplingRow
from workers.engine.sampler import Sample, sample
from workers.engine.sequence import Sequence
from workers.model.attention import AttentionPlan, DecodeGroup, Plan, PrefillSpan
from workers.model.decoder import Decoder

# A group's rows are padded to its longest. Up to this many blocks, one group beats two.
_SMALL_BLOCKS = 8
# Gathered keys and values of one group stay within this many tokens.
_MAX_GROUP_TOKENS = 1 << 18


class _FlatBatch(NamedTuple):
    """Rows in the order of their logits, and what the decoder takes."""

    rows: list[Row]
    token_ids: Tensor
    positions: Tensor
    plan: Plan
    last_tokens: Tensor


class ModelRunner:
    """The device half of a step."""

    def __init__(
        self,
        decoder: Decoder,
        num_kv_heads: int,
        num_blocks: int,
        block_size: int,
        *,
        for_kernels: bool = False,
    ) -> None:
        self._decoder = decoder
        self._num_kv_heads = num_kv_heads
        self._for_kernels = for_kernels
        self._block_size = block_size
        device = decoder.device
        # Pages are ordered head-major: block b of head h is page h * num_blocks + b.
        self._head_offsets = torch.arange(num_kv_heads, device=device)[:, None] * num_blocks

    def device_memory(self) -> dict[str, int]:
        """Return the bytes torch holds on the device, by the names of Gauges; none on a CPU."""
        device = self._decoder.device
        if device.type != "cuda":
            return {}
        return {
            "device_allocated": torch.cuda.memory_allocated(device),
            "device_reserved": torch.cuda.memory_reserved(device),
            "device_total": torch.cuda.get_device_properties(device).total_memory,
        }

    def execute(self, batch: Batch) -> list[tuple[Row, Sample | None]]:
        """Compute a batch; return its rows, each with its next token if the row is complete."""
        flat = self._pack(batch) if self._for_kernels else self._gather(batch)
        logits = self._decoder.forward(flat.token_ids, flat.positions, flat.plan, flat.last_tokens)
        sampled = [_sampling_row(row.sequence) for row in flat.rows if row.is_sampled]
        samples = iter(sample(logits, sampled) if sampled else ())
        return [(row, next(samples) if row.is_sampled else None) for row in flat.rows]

    def _pack(self, batch: Batch) -> _FlatBatch:
        packed = pack(batch.rows, self._num_kv_heads, self._block_size, self._decoder.device)
        return _FlatBatch(list(batch.rows), *packed)

    def _gather(self, batch: Batch) -> _FlatBatch:
        is_exact = self._decoder.is_exact  # then there are no groups, only spans
        decodes = [row for row in batch.rows if row.num_tokens == 1 and not is_exact]
        decodes.sort(key=lambda row: row.sequence.num_computed)
        prefills = [row for row in batch.rows if row.num_tokens > 1 or is_exact]
        rows = decodes + prefills
        token_ids, positions, slots, ends = self._flatten(rows)
        plan = AttentionPlan(
            slots=self._tensor(slots),
            decodes=tuple(self._decode_groups(decodes)),
            prefills=tuple(self._prefill_spans(prefills, len(decodes))),
            is_exact=is_exact,
        )
        last_tokens = [end for row, end in zip(rows, ends, strict=True) if row.is_sampled]
        return _FlatBatch(
            rows,
            self._tensor(token_ids),
            self._tensor(positions),
            plan,
            self._tensor(last_tokens),
        )

    def _flatten(self, rows: list[Row]) -> tuple[list[int], list[int], list[int], list[int]]:
        """Return the flat batch's token ids, positions and slots, and each row's last index."""
        token_ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        ends: list[int] = []
        size = self._block_size
        for sequence, num_tokens in rows:
            start, blocks = sequence.num_computed, sequence.table.ids
            token_ids += sequence.token_ids[start : start + num_tokens]
            positions += range(start, start + num_tokens)
            slots += [
                blocks[position // size] * size + position % size
                for position in range(start, start + num_tokens)
            ]
            ends.append(len(token_ids) - 1)
        return token_ids, positions, slots, ends

    def _decode_groups(self, rows: list[Row]) -> Iterator[DecodeGroup]:
        """Cut sorted rows into groups whose longest is at most twice as long as their shortest."""
        lengths = [row.sequence.num_computed + 1 for row in rows]
        stop = len(rows)
        while stop > 0:
            num_blocks = -(-lengths[stop - 1] // self._block_size)
            shortest = 0 if num_blocks <= _SMALL_BLOCKS else num_blocks // 2 * self._block_size
            most_rows = max(1, _MAX_GROUP_TOKENS // (num_blocks * self._block_size))
            first = stop - 1
            while first > 0 and lengths[first - 1] > shortest and stop - first < most_rows:
                first -= 1
            yield self._decode_group(rows, first, stop, lengths, num_blocks)
            stop = first

    def _decode_group(
        self, rows: list[Row], first: int, stop: int, lengths: list[int], num_blocks: int
    ) -> DecodeGroup:
        if stop - first == 1:
            sequence = rows[first].sequence
            pages = self._consecutive(sequence) or self._pages([sequence.table.ids])
            return DecodeGroup(first, stop, pages, lengths[first], None)
        tables = [_padded(row.sequence.table.ids, num_blocks) for row in rows[first:stop]]
        width = num_blocks * self._block_size
        length = self._tensor(lengths[first:stop])
        hidden = torch.arange(width, device=length.device) >= length[:, None]
        mask = torch.zeros(hidden.shape, dtype=self._decoder.dtype, device=length.device)
        mask.masked_fill_(hidden, float("-inf"))
        return DecodeGroup(first, stop, self._pages(tables), width, mask[:, None])

    def _prefill_spans(self, rows: list[Row], first: int) -> Iterator[PrefillSpan]:
        for sequence, num_tokens in rows:
            length = sequence.num_computed + num_tokens
            pages = self._consecutive(sequence) or self._pages([sequence.table.ids])
            yield PrefillSpan(first, first + num_tokens, pages, length)
            first += num_tokens

    def _pages(self, tables: list[list[int]]) -> Tensor:
        """Return the page numbers of equally long block tables for every head, head-major."""
        return (self._head_offsets + self._tensor(tables).view(1, -1)).view(-1)

    def _consecutive(self, sequence: Sequence) -> slice | None:
        """Return a sequence's slots if its blocks follow each other: nothing to gather then."""
        ids = sequence.table.ids
        if ids[-1] - ids[0] != len(ids) - 1 or ids != list(range(ids[0], ids[-1] + 1)):
            return None
        return slice(ids[0] * self._block_size, (ids[-1] + 1) * self._block_size)

    def _tensor(self, values: list[int] | list[list[int]]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._head_offsets.device)


def _padded(ids: list[int], num_blocks: int) -> list[int]:
    # A table may already have blocks for later tokens of its prompt; they are not attended.
    return ids[:num_blocks] + [TRASH] * (num_blocks - len(ids))


def _sampling_row(sequence: Sequence) -> SamplingRow:
    request = sequence.request
    return SamplingRow(
        params=request.params,
        choice=sequence.choice,
        position=len(sequence.token_ids),
        num_output=sequence.num_output_tokens,
        stop_ids=request.stop_ids,
        prompt_set=request.prompt_set,
        output_counts=sequence.output_counts or {},
    )
