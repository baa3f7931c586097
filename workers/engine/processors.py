"""What is done to logits before a temperature: bias, minimum length, penalties.

Each processor collects its (row, token, value) triples over the whole batch and applies them at once,
so that its cost is a few tensors per step and nothing for rows that do not use it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from workers.protocol import SamplingParams


@dataclass(frozen=True, slots=True)
class SamplingRow:
    """What the sampler knows of one row. `position` is the absolute index of the token to be drawn.

    `prompt_set` holds the prompt's distinct tokens, `output_counts` how often each was generated; both
    stay empty for rows without penalties.
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
        return self.params.temperature == 0.0

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


Touched = list[tuple[int, SamplingRow]]


def _add_bias(logits: Tensor, touched: Touched) -> None:
    triples = [
        (index, token, bias)
        for index, row in touched
        for token, bias in row.params.logit_bias.items()
    ]
    if triples:
        rows, tokens, values = _tensors(triples, logits)
        logits[rows, tokens] += values


def _forbid_stops(logits: Tensor, touched: Touched) -> None:
    triples = [
        (index, token, 0.0)
        for index, row in touched
        if row.num_output < row.params.min_tokens
        for token in row.stop_ids
    ]
    if triples:
        rows, tokens, _ = _tensors(triples, logits)
        logits[rows, tokens] = float("-inf")


def _penalize_repetition(logits: Tensor, touched: Touched) -> None:
    """Divide positive and multiply negative logits of tokens seen in prompt or output."""
    triples = [
        (index, token, row.params.repetition_penalty)
        for index, row in touched
        if row.params.repetition_penalty != 1.0
        for token in {*row.prompt_set, *row.output_counts}
    ]
    if triples:
        rows, tokens, penalty = _tensors(triples, logits)
        old = logits[rows, tokens]
        logits[rows, tokens] = torch.where(old < 0, old * penalty, old / penalty)


def _penalize_output(logits: Tensor, touched: Touched) -> None:
    """Subtract presence once and frequency per occurrence in the output."""
    triples = [
        (index, token, row.params.presence_penalty + row.params.frequency_penalty * count)
        for index, row in touched
        if row.params.presence_penalty or row.params.frequency_penalty
        for token, count in row.output_counts.items()
    ]
    if triples:
        rows, tokens, values = _tensors(triples, logits)
        logits[rows, tokens] -= values


def _tensors(
    triples: Iterable[tuple[int, int, float]], like: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    rows, tokens, values = zip(*triples, strict=True)
    device = like.device
    return (
        torch.tensor(rows, device=device),
        torch.tensor(tokens, device=device),
        torch.tensor(values, dtype=like.dtype, device=device),
    )
