"""RunningStep: a step that the device may still be at, and what is read of it when it has ended."""

from collections.abc import Iterable
from itertools import islice

import torch
from torch import Tensor

from workers.engine.batch import Row
from workers.engine.pooling import PooledRows
from workers.engine.sampler import Sample, TokenChoice
from workers.engine.sequence import Sequence
from workers.model.layout.device_copy import to_device


class RunningStep:
    """A step under way: its rows and, once they are there, what they sampled."""

    def __init__(
        self,
        rows: list[Row],
        choice: TokenChoice | None,
        scores: TokenChoice | None = None,
        pooled: PooledRows | None = None,
    ) -> None:
        self._rows = rows
        self._choice = choice
        self._scores = scores
        self._pooled = pooled

    def read(self) -> list[tuple[Row, list[Sample]]]:
        """Wait for the step's end; return its rows, each with its samples."""
        samples = iter(self._choice.read() if self._choice else ())
        return [(row, list(islice(samples, row.num_samples))) for row in self._rows]

    def read_scores(self) -> list[tuple[Row, list[Sample]]]:
        """Wait for the step's end; return the rows that score their prompts, each with its own."""
        if self._scores is None:
            return []
        scores = iter(self._scores.read())
        return [(row, list(islice(scores, len(row.scored)))) for row in self._rows if row.scored]

    def read_pooled(self) -> list[tuple[Row, bytes | None]]:
        """Wait for the step's end; return the rows whose prompts it pooled, each with its numbers,
        None where they are damaged.
        """
        if self._pooled is None:
            return []
        rows = [row for row in self._rows if row.num_samples]
        return list(zip(rows, self._pooled.read(), strict=True))

    def tokens_of(self, sequences: Iterable[Sequence]) -> Tensor:
        """Return the tokens that these sequences' rows sample, on the device."""
        places: dict[Sequence, int] = {}
        place = 0
        for row in self._rows:
            if row.num_samples:
                places[row.sequence] = place
                place += row.num_samples
        assert self._choice is not None
        tokens = self._choice.tokens
        chosen = torch.tensor([places[sequence] for sequence in sequences])
        return tokens[to_device(chosen, tokens.device)]
