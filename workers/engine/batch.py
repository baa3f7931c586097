"""Batch: what one step computes, in rows of a sequence and some of its tokens."""

from dataclasses import dataclass
from typing import NamedTuple

from workers.engine.sequence import Sequence
from workers.engine.sequence_group import SequenceGroup
from workers.model.layout.state_plan import SlotCopy


class Row(NamedTuple):
    """Tokens `start : start + num_tokens` of a sequence, the last of which may be drafts.

    `num_samples` is 0 before the sequence's end is reached, else one more than there are drafts:
    what follows the last known token and, should it be right, each draft. Drafts are forced where
    a grammar leaves no choice. `scored` are the places of its tokens after which it is to be said
    how likely the prompt's next one was.
    """

    sequence: Sequence
    start: int
    num_tokens: int
    num_samples: int
    drafts: tuple[int, ...] = ()
    is_forced: bool = False
    scored: range = range(0)

    @property
    def stop(self) -> int:
        return self.start + self.num_tokens

    @property
    def token_ids(self) -> list[int]:
        """The row's tokens; 0 for one that a step under way is still to sample."""
        known = self.sequence.token_ids[self.start : self.stop]
        missing = self.num_tokens - len(known) - len(self.drafts)
        return [*known, *[0] * missing, *self.drafts]

    @property
    def is_awaited(self) -> bool:
        """Whether its only token is still to be sampled by the step before this one."""
        return self.start >= len(self.sequence.token_ids)


@dataclass(frozen=True)
class Batch:
    """The rows of one step, the requests that run for the first time in it, and what state slots
    are to be before it.
    """

    rows: tuple[Row, ...]
    started: tuple[SequenceGroup, ...]
    copies: tuple[SlotCopy, ...] = ()

    @property
    def num_tokens(self) -> int:
        return sum(row.num_tokens for row in self.rows)

    @property
    def num_decodes(self) -> int:
        """How many rows compute the newest token of an answer, and perhaps drafts."""
        return sum(row.num_tokens - len(row.drafts) == 1 for row in self.rows)

    @property
    def num_prompt_tokens(self) -> int:
        """How many tokens of prompts are computed."""
        counts = (row.num_tokens - len(row.drafts) for row in self.rows)
        return sum(count for count in counts if count > 1)
