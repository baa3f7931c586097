"""Speculation: which rows of a step are given drafts, how many, and what became of them.

Knows sequences, the step's budgets and the block manager. Refuses to know where drafts come from
(`propose`) and what is sampled in their place.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from workers.checkpoint.speculative_config import MAX_SPECULATING_ROWS
from workers.engine.batch import Row
from workers.engine.block_manager import BlockManager
from workers.engine.ngram import NgramDrafter
from workers.engine.sequence import Sequence, SequenceStatus
from workers.engine.step_plan import StepPlan

# Of the tokens a grammar forces, as many go through the model in one row.
MAX_FORCED_TOKENS = 8

# Given sequences, each with the most drafts there is room for, return the drafts of each in turn.
Propose = Callable[[Mapping[Sequence, int]], list[tuple[int, ...]]]


class Drafts(NamedTuple):
    """The drafts of one row, and whether they are forced by a grammar rather than guessed."""

    token_ids: tuple[int, ...] = ()
    is_forced: bool = False


NO_DRAFTS = Drafts()


class Speculation:
    """The drafts of all sequences; at most `num_tokens` guesses a row."""

    def __init__(self, blocks: BlockManager, num_tokens: int, propose: Propose) -> None:
        self.num_drafted = self.num_accepted = 0
        self._blocks = blocks
        self._num_tokens = num_tokens
        self._propose = propose

    def is_worth_it(self, num_running: int) -> bool:
        """Return whether few enough run that guesses are worth their tokens."""
        return self._num_tokens > 0 and num_running <= MAX_SPECULATING_ROWS

    def draft(self, plan: StepPlan, *, may_guess: bool) -> dict[Sequence, Drafts]:
        """Return drafts for rows of a plan that reach their sequence's end, and have them find room
        in the budgets, the cache and the sequence's length.
        """
        drafts: dict[Sequence, Drafts] = {}
        asked: dict[Sequence, int] = {}
        for sequence, num_tokens in plan.rows.items():
            if not may_guess and sequence.grammar is None:  # most rows
                continue
            room = self._room(sequence, plan) if num_tokens == sequence.num_uncomputed else 0
            if room <= 0:
                continue
            grammar = sequence.grammar
            if forced := grammar.forced(min(room, MAX_FORCED_TOKENS)) if grammar else ():
                if self._reserve(sequence, len(forced), plan):
                    drafts[sequence] = Drafts(forced, True)
            elif may_guess and self._reserve(sequence, min(room, self._num_tokens), plan):
                asked[sequence] = min(room, self._num_tokens)
        for sequence, guess in zip(asked, self._propose(asked) if asked else (), strict=True):
            grammar = sequence.grammar
            if allowed := guess if grammar is None else grammar.allowed(guess):
                drafts[sequence] = Drafts(allowed)
        return drafts

    def judge(self, row: Row, num_right: int) -> None:
        """Take back what was computed for wrong drafts, and learn from those that were guesses."""
        sequence, num_wrong = row.sequence, len(row.drafts) - num_right
        if sequence.status is SequenceStatus.RUNNING:  # not preempted while the step was under way
            sequence.num_computed -= num_wrong
            self._blocks.settle_drafts(
                sequence.table, sequence.num_computed, goes_back=num_wrong > 0
            )
        if not row.is_forced:
            self.num_drafted += len(row.drafts)
            self.num_accepted += num_right
            if sequence.drafter is not None:
                sequence.drafter.learn(num_right)

    def _room(self, sequence: Sequence, plan: StepPlan) -> int:
        """Return how many drafts a row may have; none where penalties follow from what is sampled
        in their places, or a token before them is not known.
        """
        if sequence.num_awaited or sequence.request.params.is_penalized:
            return 0
        left = sequence.request.max_len - len(sequence.token_ids) - 1
        return min(plan.num_drafts_left, left)

    def _reserve(self, sequence: Sequence, num_drafts: int, plan: StepPlan) -> bool:
        """Give a sequence blocks for its drafts; return whether there were enough."""
        if not self._blocks.extend(sequence.table, len(sequence.token_ids) + num_drafts):
            return False
        plan.add_drafts(num_drafts)
        return True


def propose_by_ngrams(asked: Mapping[Sequence, int]) -> list[tuple[int, ...]]:
    """Return what followed each sequence's newest tokens before, in its own text."""
    drafts = []
    for sequence, limit in asked.items():
        if sequence.drafter is None:
            sequence.drafter = NgramDrafter()
        drafts.append(sequence.drafter.propose(sequence.token_ids, limit))
    return drafts
