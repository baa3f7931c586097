"""What one step computes: which sequences, and how many tokens of each."""

from dataclasses import dataclass
from typing import NamedTuple

from workers.engine.request import Request
from workers.engine.sequence import Sequence


class Row(NamedTuple):
    """The next `num_tokens` tokens of a sequence."""

    sequence: Sequence
    num_tokens: int

    @property
    def is_sampled(self) -> bool:
        """Whether the step reaches the sequence's end, so that its next token can be chosen."""
        return self.num_tokens == self.sequence.num_uncomputed


@dataclass(frozen=True)
class Batch:
    """The rows of one step, and the requests that run for the first time in it."""

    rows: tuple[Row, ...]
    started: tuple[Request, ...]

    @property
    def num_tokens(self) -> int:
        return sum(row.num_tokens for row in self.rows)
