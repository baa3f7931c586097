"""Step messages: what followers need of a batch, or of drafts, as one list of numbers and back.

    batch:  copies of slots │ rows: place, samples, state, tokens, block table │ …
    drafts: rows: place, token, position, shift, count, block table │ …

A row's tokens come as its drafts, which they are laid out as: so a follower's sequence knows no
tokens, and nothing of the request. Tokens that a step under way samples are zeros.
"""

from collections.abc import Sequence as ManyOf
from itertools import islice

from workers.engine.batch import Batch, Row
from workers.engine.block_manager import BlockTable
from workers.engine.model_runner import DraftRow
from workers.engine.request import Request
from workers.engine.sequence import Sequence
from workers.engine.state_manager import StateTable
from workers.model.layout.state_plan import SlotCopy
from workers.wire.protocol import Generate, SamplingParams

_NOTHING = -1
_NOBODY = Request(
    (0, 0),
    Generate(wid=0, request_id="", prompt_ids=(), params=SamplingParams(max_tokens=1)),
    arrival=0,
    eos_token_ids=(),
    max_model_len=1,
)


def of_batch(batch: Batch) -> list[int]:
    """Return the numbers of a batch."""
    numbers = [len(batch.copies)]
    for source, target in batch.copies:
        numbers += (_NOTHING if source is None else source, target)
    for row in batch.rows:
        table, state = row.sequence.table, row.sequence.table.state
        kept = state.kept_within(row.start, row.stop) if state else []
        token_ids = row.token_ids
        numbers += (row.start, row.num_samples, row.scored.start, row.scored.stop)
        numbers += (state.slot if state else _NOTHING, len(kept), len(token_ids), len(table.ids))
        numbers += [number for pair in kept for number in pair]
        numbers += token_ids
        numbers += table.ids
    return numbers


def to_batch(numbers: ManyOf[int]) -> Batch:
    """Return the batch of such numbers, as far as its computation goes."""
    left = iter(numbers)
    copies = []
    for _ in range(next(left)):
        source, target = islice(left, 2)
        copies.append(SlotCopy(None if source == _NOTHING else source, target))
    rows = []
    for start in left:
        num_samples, first, stop, slot, num_kept, num_tokens, num_blocks = islice(left, 7)
        kept: dict[int, int] = {}
        for _ in range(num_kept):
            position, target = islice(left, 2)
            kept[position] = target
        token_ids = tuple(islice(left, num_tokens))
        state = None if slot == _NOTHING else StateTable(slot=slot, drafted=kept)
        table = BlockTable(list(islice(left, num_blocks)), state=state)
        sequence = Sequence(_NOBODY, 0, [], table=table)
        scored = range(first, stop)
        rows.append(Row(sequence, start, num_tokens, num_samples, token_ids, scored=scored))
    return Batch(tuple(rows), (), tuple(copies))


def of_drafts(rows: ManyOf[DraftRow]) -> list[int]:
    """Return the numbers of rows to be drafted for."""
    numbers: list[int] = []
    for row in rows:
        numbers += (*row[:-1], len(row.block_ids), *row.block_ids)
    return numbers


def to_drafts(numbers: ManyOf[int]) -> list[DraftRow]:
    """Return the rows of such numbers."""
    left = iter(numbers)
    rows = []
    for place in left:
        token_id, position, shift, most, num_blocks = islice(left, 5)
        block_ids = list(islice(left, num_blocks))
        rows.append(DraftRow(place, token_id, position, shift, most, block_ids))
    return rows
