"""ModelRunner: compute a batch on the device, from its rows to their sampled tokens.

Knows sequences' tokens and block ids, and turns them into a few tensors per step. Refuses to know
who runs next and what becomes of a token. Where kernels attend, batch_layout.py lays the rows out.

    flat batch:  one token of each decoding row, shortest context first │ the spans of prompts
"""

from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from workers.engine.batch import Batch, Row
from workers.engine.batch_layout import flatten_rows, tokens_with_logits
from workers.engine.block_manager import TRASH
from workers.engine.image_encoder import ImageEncoder
from workers.engine.pooling import PooledRows, pool
from workers.engine.running_step import RunningStep
from workers.engine.sampler import TokenChoice, choose, score
from workers.engine.sampling_rows import SamplingRow
from workers.engine.sequence import Sequence
from workers.engine.state_layout import plan_states
from workers.engine.token_masks import TokenMasks
from workers.model.attention.attention import (
    AttentionPlan,
    BlockSpan,
    DecodeGroup,
    PrefillSpan,
    TokenRows,
)
from workers.model.decoder import Decoder
from workers.model.graphs import Graphs
from workers.model.layout.device_copy import to_device

Rows = list[Row]


class DraftRow(NamedTuple):
    """A sequence that the model's own layer drafts up to `most` tokens for, behind its last one.

    The hidden state before that lies at `place` among the decoder's newest; it is token `position`
    of a sequence with the blocks `block_ids`, and is rotated as one `shift` further.
    """

    place: int
    token_id: int
    position: int
    shift: int
    most: int
    block_ids: list[int]


# A group's rows are padded to its longest. Up to this many blocks, one group beats two.
_SMALL_BLOCKS = 8
# Gathered keys and values of one group stay within this many tokens.
_MAX_GROUP_TOKENS = 1 << 18


class ModelRunner:
    """The device half of a step."""

    def __init__(
        self, decoder: Decoder, graphs: Graphs | None = None, images: ImageEncoder | None = None
    ) -> None:
        """`decoder` has its cache; `graphs` are for kernels alone, `images` of models that see."""
        self._decoder, self._graphs, self.images = decoder, graphs, images
        self._block_size = decoder.block_size
        self._device_total = 0
        self._for_kernels = decoder.cache_shape.for_kernels
        native = decoder.cache_shape.native
        self._is_compiled = native is not None
        head_dim = decoder.cache_shape.head_dim
        self._compiles_spans = native is not None and native.takes_spans(head_dim)
        # As KVCache orders them: block b of head h is h * num_blocks + b.
        heads = torch.arange(decoder.cache_shape.num_kv_heads, device=decoder.device)
        self._head_offsets = heads[:, None] * decoder.num_blocks
        self._masks = TokenMasks(torch.get_num_threads())
        # Where the newest hidden states of each sequence lie among the decoder's; see _places.
        self._places: dict[Sequence, int] = {}

    def device_memory(self) -> dict[str, int]:
        """Return the bytes torch holds on the device, named as in EngineStats; none on a CPU."""
        device = self._decoder.device
        if device.type != "cuda":
            return {}
        if not self._device_total:
            self._device_total = torch.cuda.get_device_properties(device).total_memory
        # Once a step: memory_allocated and memory_reserved each read all of this.
        held = torch.cuda.memory_stats_as_nested_dict(device)
        return {
            "device_allocated": held["allocated_bytes"]["all"]["current"],
            "device_reserved": held["reserved_bytes"]["all"]["current"],
            "device_total": self._device_total,
        }

    def meet(self) -> None:
        """Find out whether all ranks are there; one alone is."""

    def clear(self, blocks: list[int]) -> None:
        """Make the cache's blocks as they were before anything was written."""
        self._decoder.clear_cache(blocks)

    def launch(self, batch: Batch, previous: RunningStep | None = None) -> RunningStep:
        """Begin a step; `previous`, if still under way, samples what some rows begin with."""
        rows, logits = self._forward(batch, previous)
        if self._decoder.drafter is not None:
            self._places = _places(rows)
        if rows[0].sequence.request.generate.pooling:  # then all have one: a model has one task
            return RunningStep(rows, None, pooled=_pool(rows, logits))
        sampling = [_sampling_row(row, index) for row in rows for index in range(row.num_samples)]
        scores = self._score(rows, logits[len(sampling) :])
        if not sampling:
            return RunningStep(rows, None, scores)
        logits = logits[: len(sampling)]
        masks = self._masks.of(rows, logits)  # while a GPU computes these
        choice = choose(logits, sampling, masks, by_kernels=self._for_kernels)
        return RunningStep(rows, choice, scores)

    def propose(self, asked: Mapping[Sequence, int]) -> list[tuple[int, ...]]:
        """Return drafts by the model's own layer: none for a sequence of which the newest step has
        not computed all but the last token, as behind a prompt not computed yet.
        """
        rows = {
            s: DraftRow(
                self._places[s] + len(s.token_ids) - 2,
                s.token_ids[-1],
                len(s.token_ids) - 1,
                s.request.images.shift if s.request.images else 0,
                asked[s],
                s.table.ids,
            )
            for s in asked
            if s.num_uncomputed == 1 and s in self._places
        }
        found = dict(zip(rows, self._draft(list(rows.values())), strict=True)) if rows else {}
        return [found.get(sequence, ()) for sequence in asked]

    def _draft(self, drafted: list[DraftRow]) -> list[tuple[int, ...]]:
        """Return the drafts of each row."""
        drafter, drafts = self._decoder.drafter, [list[int]() for _ in drafted]
        assert drafter is not None
        hidden = self._decoder.newest[[row.place for row in drafted]]
        token_ids = self._tensor([row.token_id for row in drafted])
        numbers = list(range(len(drafted)))
        for depth in range(max(row.most for row in drafted)):
            kept = [i for i, number in enumerate(numbers) if depth < drafted[number].most]
            numbers = [numbers[i] for i in kept]
            rows = [drafted[number] for number in numbers]
            positions = [row.position + depth for row in rows]
            token_ids, hidden = drafter.draft(
                token_ids[kept],
                hidden[kept],
                self._tensor([row.position + row.shift + depth for row in rows]),
                self._plan_drafts(rows, positions),
            )
            for number, token_id in zip(numbers, token_ids.tolist(), strict=True):
                drafts[number].append(token_id)
        return [tuple(found) for found in drafts]

    def _plan_drafts(self, rows: list[DraftRow], positions: list[int]) -> AttentionPlan:
        """Plan attention of one token a sequence to all before it but the first: see mtp.py."""
        size, groups, slots = self._block_size, [], []
        for i, (row, position) in enumerate(zip(rows, positions, strict=True)):
            ids = row.block_ids
            blocks = self._consecutive(ids) or self._head_blocks([ids])
            is_first = torch.arange(position + 1, device=self._head_offsets.device)[None] == 0
            groups.append(DecodeGroup(i, i + 1, blocks, position + 1, self._mask(is_first)))
            slots.append(ids[position // size] * size + position % size)
        return AttentionPlan(self._tensor(slots), tuple(groups), ())

    def _score(self, rows: Rows, logits: Tensor) -> TokenChoice | None:
        """Say how likely tokens of prompts were, from the logits before each, in rows' order."""
        scoring = [row for row in rows if row.scored]
        if not scoring:
            return None
        token_ids: list[int] = []
        counts: list[int] = []
        for row in scoring:
            token_ids += row.sequence.token_ids[row.scored.start + 1 : row.scored.stop + 1]
            counts += [row.sequence.request.params.prompt_logprobs or 0] * len(row.scored)
        return score(logits, self._tensor(token_ids), counts)

    def _forward(self, batch: Batch, previous: RunningStep | None) -> tuple[Rows, Tensor]:
        """Compute a batch; return the rows in the order of their logits, and these."""
        forward = self._forward_by_kernels if self._for_kernels else self._forward_by_torch
        return forward(batch, previous)

    def _fill_awaited(self, token_ids: Tensor, rows: Rows, previous: RunningStep | None) -> None:
        """Put in place, on the device, tokens of a flat batch that the host does not know yet."""
        awaited: dict[int, Sequence] = {}
        index = 0
        for row in rows:
            if row.is_awaited:
                awaited[index] = row.sequence
            index += row.num_tokens
        if awaited:
            assert previous is not None
            tokens = previous.tokens_of(awaited.values())
            where = to_device(torch.tensor(list(awaited)), token_ids.device)
            token_ids[where] = tokens.to(token_ids)

    def _forward_by_kernels(
        self, batch: Batch, previous: RunningStep | None
    ) -> tuple[Rows, Tensor]:
        """Compute by kernels; return the rows in the order of their logits, and these."""
        rows = list(batch.rows)
        flat = flatten_rows(rows, self._block_size, self._decoder.device)
        self._fill_awaited(flat.token_ids, rows, previous)
        self._decoder.copy_states(batch.copies)
        sight = self.images.sight(rows) if self.images else None
        # Positions in pictures are none of what a graph has recorded.
        logits = self._graphs.forward(flat) if self._graphs and sight is None else None
        if logits is None:
            logits = self._decoder.forward_flat(flat, flat.last_tokens, sight)
        return rows, logits

    def _forward_by_torch(self, batch: Batch, previous: RunningStep | None) -> tuple[Rows, Tensor]:
        """Compute by torch; return the rows in the order of their logits, and these."""
        # Then there are no groups, only spans.
        is_batch_invariant = self._decoder.is_batch_invariant
        decodes = [row for row in batch.rows if row.num_tokens == 1 and not is_batch_invariant]
        decodes.sort(key=lambda row: row.start)
        prefills = [row for row in batch.rows if row.num_tokens > 1 or is_batch_invariant]
        rows = decodes + prefills
        token_ids, positions, slots = map(self._tensor, self._flatten(rows))
        self._fill_awaited(token_ids, rows, previous)
        alone = rows if is_batch_invariant else decodes
        if self._is_compiled:
            groups, spans = [], [] if is_batch_invariant else prefills
        else:
            groups, spans = decodes, prefills
        first = len(decodes)
        plan = AttentionPlan(
            slots=slots,
            decodes=tuple(self._decode_groups(groups)),
            prefills=() if self._compiles_spans else tuple(self._prefill_spans(spans, first)),
            spans=tuple(self._block_spans(spans, first)) if self._compiles_spans else (),
            is_batch_invariant=is_batch_invariant,
            tokens=self._token_rows(alone) if self._is_compiled and alone else None,
        )
        states = None
        if self._decoder.slot_bytes:
            states = plan_states(decodes, prefills, batch.copies, self._decoder.device)
        last_tokens = self._tensor(tokens_with_logits(rows))
        sight = self.images.sight(rows) if self.images else None
        return rows, self._decoder.forward(token_ids, positions, plan, last_tokens, states, sight)

    def _flatten(self, rows: Rows) -> tuple[list[int], list[int], list[int]]:
        """Return the flat batch's token ids, positions and slots."""
        token_ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        size = self._block_size
        for row in rows:
            blocks = row.sequence.table.ids
            token_ids += row.token_ids
            positions += range(row.start, row.stop)
            slots += [
                blocks[position // size] * size + position % size
                for position in range(row.start, row.stop)
            ]
        return token_ids, positions, slots

    def _token_rows(self, rows: Rows) -> TokenRows:
        """Return the tokens of rows, each to be attended alone."""
        longest = max(row.stop for row in rows)
        num_blocks = -(-longest // self._block_size)
        tables = [_padded(row.sequence.table.ids, num_blocks) for row in rows]
        numbers = [number for number, row in enumerate(rows) for _ in range(row.num_tokens)]
        lengths = [length for row in rows for length in range(row.start + 1, row.stop + 1)]
        return TokenRows(
            torch.tensor(tables, dtype=torch.int32),
            torch.tensor(numbers, dtype=torch.int32),
            torch.tensor(lengths, dtype=torch.int32),
            longest,
        )

    def _decode_groups(self, rows: list[Row]) -> Iterator[DecodeGroup]:
        """Cut sorted rows into groups whose longest is at most twice as long as their shortest."""
        lengths = [row.stop for row in rows]
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
            ids = rows[first].sequence.table.ids
            blocks = self._consecutive(ids) or self._head_blocks([ids])
            return DecodeGroup(first, stop, blocks, lengths[first], None)
        tables = [_padded(row.sequence.table.ids, num_blocks) for row in rows[first:stop]]
        width = num_blocks * self._block_size
        length = self._tensor(lengths[first:stop])
        hidden = torch.arange(width, device=length.device) >= length[:, None]
        window_mask = None
        if (window := self._decoder.window) is not None:
            past = torch.arange(width, device=length.device) < length[:, None] - window
            window_mask = self._mask(hidden | past)
        blocks = self._head_blocks(tables)
        return DecodeGroup(first, stop, blocks, width, self._mask(hidden), window_mask)

    def _mask(self, hidden: Tensor) -> Tensor:
        """Return `[rows, 1, width]` to add to scores."""
        mask = torch.zeros(hidden.shape, dtype=self._decoder.dtype, device=hidden.device)
        return mask.masked_fill_(hidden, float("-inf"))[:, None]

    def _prefill_spans(self, rows: list[Row], first: int) -> Iterator[PrefillSpan]:
        for row in rows:
            ids = row.sequence.table.ids
            blocks = self._consecutive(ids) or self._head_blocks([ids])
            yield PrefillSpan(first, first + row.num_tokens, blocks, row.stop)
            first += row.num_tokens

    def _block_spans(self, rows: list[Row], first: int) -> Iterator[BlockSpan]:
        for row in rows:
            ids = row.sequence.table.ids[: -(-row.stop // self._block_size)]
            table = torch.tensor(ids, dtype=torch.int32)
            yield BlockSpan(first, first + row.num_tokens, table, row.stop)
            first += row.num_tokens

    def _head_blocks(self, tables: list[list[int]]) -> Tensor:
        """Return the blocks of equally long tables for every head, head-major."""
        return (self._head_offsets + self._tensor(tables).view(1, -1)).view(-1)

    def _consecutive(self, ids: list[int]) -> slice | None:
        """Return the slots of blocks that follow each other: nothing to gather then."""
        if ids[-1] - ids[0] != len(ids) - 1 or ids != list(range(ids[0], ids[-1] + 1)):
            return None
        return slice(ids[0] * self._block_size, (ids[-1] + 1) * self._block_size)

    def _tensor(self, values: list[int] | list[list[int]]) -> Tensor:
        return to_device(torch.tensor(values, dtype=torch.int64), self._head_offsets.device)


def _pool(rows: Rows, outputs: Tensor) -> PooledRows | None:
    """Return what is asked of the prompts that end in a step; None where none does."""
    poolings = [row.sequence.request.generate.pooling for row in rows if row.num_samples]
    asked = [pooling for pooling in poolings if pooling]
    return pool(outputs, asked) if asked else None


def _places(rows: Rows) -> dict[Sequence, int]:
    """Return where each sequence's token 0 would be among the tokens that are sampled behind."""
    ends = accumulate(row.num_samples for row in rows)
    return {
        row.sequence: end - row.stop for row, end in zip(rows, ends, strict=True) if row.num_samples
    }


def _padded(ids: list[int], num_blocks: int) -> list[int]:
    # A table may already have blocks for later tokens of its prompt; they are not attended.
    return ids[:num_blocks] + [TRASH] * (num_blocks - len(ids))


def _sampling_row(row: Row, index: int) -> SamplingRow:
    """Return what to sample behind the row's drafts up to `index`."""
    request = row.sequence.request
    position = row.stop - row.num_samples + index + 1
    return SamplingRow(
        params=request.params,
        choice=row.sequence.choice,
        position=position,
        num_output=position - len(request.prompt_ids),
        stop_ids=request.stop_ids,
        prompt_set=request.prompt_set,
        output_counts=row.sequence.output_counts or {},
        is_masked=row.sequence.grammar is not None,
        last_output=row.sequence.last_output,
    )
