"""SamplingRow and SamplingTensors: what is asked of the rows to sample, on host and device."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from workers.engine.gumbel_noise import row_key
from workers.model.layout.device_copy import to_device
from workers.wire.protocol import SamplingParams

MIN_TEMPERATURE = 1e-5

Array = np.ndarray
NO_TOKENS = np.array([], np.int64)


@dataclass(frozen=True, slots=True)
class SamplingRow:
    """What the sampler knows of one row. `position` is the absolute index of the token to be drawn.

    `prompt_set` holds the prompt's distinct tokens as int64, `output_counts` how often each was
    generated; both stay empty for rows without penalties. `last_output` is the output's end, as far
    as bad words look back. A masked row's mask has a say about stops
    already: see workers.grammar.masks.
    """

    params: SamplingParams
    choice: int = 0
    position: int = 0
    num_output: int = 0
    stop_ids: frozenset[int] = frozenset()
    prompt_set: Array = field(default_factory=lambda: NO_TOKENS)
    output_counts: dict[int, int] = field(default_factory=dict)
    is_masked: bool = False
    last_output: tuple[int, ...] = ()

    @property
    def is_greedy(self) -> bool:
        # Smaller ones would overflow float32 logits; the best token has all the probability anyway.
        return self.params.temperature < MIN_TEMPERATURE

    @property
    def is_ranked(self) -> bool:
        """Whether the row's tokens have to be ranked; min_p alone is a threshold."""
        return self.params.top_k > 0 or self.params.top_p < 1.0

    @property
    def forbids_stops(self) -> bool:
        return self.num_output < self.params.min_tokens and not self.is_masked

    @property
    def is_processed(self) -> bool:
        """Whether any processor changes this row."""
        params = self.params
        chooses = params.logit_bias or params.allowed_token_ids or params.bad_words
        return bool(chooses) or self.forbids_stops or params.is_penalized

    @property
    def bad_tokens(self) -> set[int]:
        """The tokens that would complete a bad word."""
        words = self.params.bad_words
        return {word[-1] for word in words if _ends_with(self.last_output, word[:-1])}


class SamplingTensors(NamedTuple):
    """How rows draw: tensors `[rows]`, float32, or int32 for `top_k` and the noise key.

    `temperatures` is 0 for the best token, `top_k` 0 for none.
    """

    temperatures: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, rows: Sequence[SamplingRow], logits: Tensor) -> "SamplingTensors":
        """Return the tensors beside logits `[rows, vocabulary]`, by one copy."""
        params = [row.params for row in rows]
        keys = [row_key(row.params.seed, row.choice, row.position) for row in rows]
        counts = [min(p.top_k, logits.shape[1]) for p in params]
        integers = torch.tensor([counts, *zip(*keys, strict=True)], dtype=torch.int32)
        heats = [0.0 if row.is_greedy else row.params.temperature for row in rows]
        shares = [[p.top_p for p in params], [p.min_p for p in params]]
        floats = torch.tensor([heats, *shares], dtype=torch.float32)
        both = to_device(torch.cat([integers, floats.view(torch.int32)]), logits.device)
        top_k, low, high = both[:3]
        temperatures, top_p, min_p = both[3:].view(torch.float32)
        return cls(temperatures, top_k, top_p, min_p, low, high)

    def at(self, rows: Tensor) -> "SamplingTensors":
        """Return those of some rows."""
        return SamplingTensors(*(part[rows] for part in self))


def _ends_with(tokens: tuple[int, ...], end: tuple[int, ...]) -> bool:
    return not end or tokens[-len(end) :] == end
