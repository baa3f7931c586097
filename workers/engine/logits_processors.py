"""Logits processors: bias, minimum length, penalties, tokens allowed and forbidden.

Each collects the cells it changes over the whole batch and applies them at once, so that its cost
is a few tensors per step and nothing for rows that do not use it.
"""

from collections.abc import Collection, Sequence

import numpy as np
import torch
from torch import Tensor

from workers.engine.sampling_rows import Array, SamplingRow
from workers.model.layout.device_copy import to_device

# Added to a forbidden token's logit: less than any other's, and still a number. Where a grammar, or
# the rest of the request, leaves no other token, the forbidden one is chosen rather than nonsense.
FORBIDDEN = -1e6


def process(logits: Tensor, rows: Sequence[SamplingRow]) -> None:
    """Apply all processors to float32 logits `[rows, vocabulary]` in place."""
    touched = [(index, row) for index, row in enumerate(rows) if row.is_processed]
    if touched:
        _add_bias(logits, touched)
        _forbid_stops(logits, touched)
        _penalize_repetition(logits, touched)
        _penalize_output(logits, touched)
        _keep_allowed(logits, touched)
        _forbid_bad_words(logits, touched)


class _Cells:
    """Cells of a logits tensor, collected row by row: their tokens, and one value for each."""

    def __init__(self) -> None:
        self._rows: list[int] = []
        self._tokens: list[Array] = []
        self._values: list[Array] = []

    def add(self, row: int, tokens: Array, values: Array) -> None:
        self._rows.append(row)
        self._tokens.append(tokens)
        self._values.append(values)

    def tensors(self, like: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor] | None:
        """Return an index into logits and the values there, or None without any cell."""
        counts = [len(tokens) for tokens in self._tokens]
        if not sum(counts):
            return None
        rows = torch.from_numpy(np.repeat(self._rows, counts))
        tokens = torch.from_numpy(np.concatenate(self._tokens))
        values = torch.from_numpy(np.concatenate(self._values)).to(like.dtype)
        index = to_device(rows, like.device), to_device(tokens, like.device)
        return index, to_device(values, like.device)


def _array(items: Collection[float], dtype: type) -> Array:
    return np.fromiter(items, dtype, len(items))


Touched = list[tuple[int, SamplingRow]]


def _add_bias(logits: Tensor, touched: Touched) -> None:
    cells = _Cells()
    for index, row in touched:
        if row.params.logit_bias:
            biases = row.params.logit_bias
            cells.add(index, _array(biases, np.int64), _array(biases.values(), np.float64))
    if found := cells.tensors(logits):
        where, bias = found
        logits[where] += bias


def _forbid_stops(logits: Tensor, touched: Touched) -> None:
    cells = _Cells()
    for index, row in touched:
        if row.forbids_stops:
            stops = _array(row.stop_ids, np.int64)
            cells.add(index, stops, np.full(len(stops), -np.inf))
    if found := cells.tensors(logits):
        where, forbidden = found
        logits[where] = forbidden


def _penalize_repetition(logits: Tensor, touched: Touched) -> None:
    """Divide positive and multiply negative logits of tokens seen in prompt or output."""
    cells = _Cells()
    for index, row in touched:
        if row.params.repetition_penalty != 1.0:
            output = _array(row.output_counts, np.int64)
            # What is in both is penalized once: both cells compute the same from the old value.
            seen = np.concatenate([row.prompt_set, output])
            cells.add(index, seen, np.full(len(seen), row.params.repetition_penalty))
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
            counts = _array(row.output_counts.values(), np.float64)
            cells.add(index, _array(row.output_counts, np.int64), presence + frequency * counts)
    if found := cells.tensors(logits):
        where, penalty = found
        logits[where] -= penalty


def _keep_allowed(logits: Tensor, touched: Touched) -> None:
    """Forbid all tokens but those that a row allows, if it names any."""
    cells = _Cells()
    rows = [index for index, row in touched if row.params.allowed_token_ids]
    for index, row in touched:
        allowed = _array(row.params.allowed_token_ids, np.int64)
        cells.add(index, allowed, np.zeros(len(allowed)))
    if found := cells.tensors(logits):
        where, _ = found
        kept = logits[where]
        logits[to_device(torch.tensor(rows), logits.device)] += FORBIDDEN
        logits[where] = kept


def _forbid_bad_words(logits: Tensor, touched: Touched) -> None:
    cells = _Cells()
    for index, row in touched:
        if row.params.bad_words:
            bad = _array(row.bad_tokens, np.int64)
            cells.add(index, bad, np.full(len(bad), FORBIDDEN))
    if found := cells.tensors(logits):
        where, forbidden = found
        logits[where] += forbidden
