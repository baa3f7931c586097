"""What is done to logits before a temperature: bias, minimum length, penalties.

Each processor collects the cells it changes over the whole batch and applies them at
once, so that its cost is a few tensors per step and nothing for rows that do not use it.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import repeat

import torch
from torch import Tensor

from workers.model.transfer import to_device
from workers.protocol import SamplingParams

MIN_TEMPERATURE = 1e-5


@dataclass(frozen=True, slots=True)
class SamplingRow:
    """What the sampler knows of one row. `position` is the absolute index of the token to be drawn.

    `prompt_set` holds the prompt's distinct tokens, `output_counts` how often each was generated;
    both stay empty for rows without penalties.
    """

    params: SamplingParams
    choice: int = 0
    position: int = 0
    num_output: int = 0
    stop_ids: frozenset[int] = frozenset()
    prompt_set: Sequence[int] = ()
    output_counts: dict[int, int] = field(default_factory=dict)

    @property
    def is_greedy(self) -> bool:
        # Smaller ones would overflow float32 logits; the best token has all the probability anyway.
        return self.params.temperature < MIN_TEMPERATURE

    @property
    def is_processed(self) -> bool:
        """Whether any processor changes this row."""
        params = self.params
        return bool(
            params.logit_bias
            or self.num_output < params.min_tokens
            or params.repetition_penalty != 1.0
            or params.presence_penalty
            or params.frequency_penalty
        )


def process(logits: Tensor, rows: Sequence[SamplingRow]) -> None:
    """Apply all processors to float32 logits `[rows, vocabulary]` in place."""
    touched = [(index, row) for index, row in enumerate(rows) if row.is_processed]
    if touched:
        _add_bias(logits, touched)
        _forbid_stops(logits, touched)
        _penalize_repetition(logits, touched)
        _penalize_output(logits, touched)


class _Cells:
    """Cells of a logits tensor, collected row by row: their tokens, and one value for each."""

    def __init__(self) -> None:
        self._rows: list[int] = []
        self._counts: list[int] = []
        self._tokens: list[int] = []
        self._values: list[float] = []

    def add(self, row: int, tokens: Collection[int], values: Iterable[float]) -> None:
        self._rows.append(row)
        self._counts.append(len(tokens))
        self._tokens += tokens
        self._values += values

    def tensors(self, like: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor] | None:
        """Return an index into logits and the values there, or None without any cell."""
        if not self._tokens:
            return None
        rows = torch.tensor(self._rows).repeat_interleave(torch.tensor(self._counts))
        tokens, values = torch.tensor(self._tokens), torch.tensor(self._values, dtype=like.dtype)
        index = to_device(rows, like.device), to_device(tokens, like.device)
        return index, to_device(values, like.device)


Touched = list[tuple[int, SamplingRow]]


def _add_bias(logits: Tensor, touched: Touched) -> None:
    cells = _Cells()
    for index, row in touched:
        if row.params.logit_bias:
            cells.add(index, row.params.logit_bias.keys(), row.params.logit_bias.values())
    if found := cells.tensors(logits):
        where, bias = found
        logits[where] += bias


def _forbid_stops(logits: Tensor, touched: Touched) -> None:
    cells = _Cells()
    for index, row in touched:
        if row.num_output < row.params.min_tokens:
            cells.add(index, row.stop_ids, repeat(float("-inf"), len(row.stop_ids)))
    if found := cells.tensors(logits):
        where, forbidden = found
        logits[where] = forbidden


def _penalize_repetition(logits: Tensor, touched: Touched) -> None:
    """Divide positive and multiply negative logits of tokens seen in prompt or output."""
    cells = _Cells()
    for index, row in touched:
        if row.params.repetition_penalty != 1.0:
            seen = {*row.prompt_set, *row.output_counts}
            cells.add(index, seen, repeat(row.params.repetition_penalty, len(seen)))
    if found := cells.tensors(logits):
        where, penalty = found
        old = logits[where]
        logits[where] = torch.where(old < 0, old * penalty, old / penalty)


def _penalize_output(logits: Tensor, touched: Touched) -> None:
    """Subtract presence once and frequency per occurrence in the output."""
    cells = _Cells()
    for index, row in touched:
        presence, frequency = row.params.presence_penalty, row.params.frequency_penalty
        if presence or frequency:
            counts = row.output_counts
            cells.add(index, counts.keys(), (presence + frequency * n for n in counts.values()))
    if found := cells.tensors(logits):
        where, penalty = found
        logits[where] -= penalty
