"""StepPlan: the rows of a step as the scheduler fills it, and what is left of its budgets."""

from collections.abc import Callable

from workers.engine.sequence import Sequence

# Each token that is scored takes logits of the whole vocabulary.
MAX_SCORED_TOKENS = 256


class StepPlan:
    """The rows chosen so far and what is left of the budgets.

    Of a step's `budget` only `num_left` may be used this time. Who `is_scoring` has a
    budget of its own beside, and so have drafts. A prompt not computed whole ends at a multiple of
    `cut`, as long as the budgets reach one.
    """

    def __init__(
        self,
        budget: int,
        cut: int,
        is_scoring: Callable[[Sequence], bool],
        num_drafts: int,
        num_left: int,
    ) -> None:
        self.num_left = num_left
        self.rows: dict[Sequence, int] = {}
        self.long_prompts: list[Sequence] = []  # of those that have or had a row
        self._num_drafts_left = num_drafts
        self._budget = budget
        self._num_scores_left = MAX_SCORED_TOKENS
        self._cut = cut
        self._is_scoring = is_scoring

    def share(self, sequence: Sequence) -> int:
        """Return how many of its tokens a sequence may compute in the step.

        A prompt longer than a step leaves half to those behind it: it would take all of many.
        """
        if sequence.num_uncomputed == 1:  # most rows: nobody scores behind the prompt's last token
            return min(1, self.num_left)
        half = -(-self.num_left // 2)
        is_halved = sequence.num_uncomputed > self._budget and half >= self._cut
        return self._most(sequence, half if is_halved else self.num_left)

    def rest(self, sequence: Sequence) -> int:
        """Return how many more of its tokens a sequence may compute, as nobody else wants more."""
        return self._most(sequence, self.num_left)

    def add(self, sequence: Sequence, num_tokens: int) -> None:
        self.rows[sequence] = self.rows.get(sequence, 0) + num_tokens
        self.num_left -= num_tokens
        if sequence.num_uncomputed > 1:
            self._num_scores_left -= num_tokens * self._is_scoring(sequence)
        if sequence.num_uncomputed > self._budget:
            self.long_prompts.append(sequence)

    @property
    def num_drafts_left(self) -> int:
        return min(self.num_left, self._num_drafts_left)

    def add_drafts(self, num_tokens: int) -> None:
        self.num_left -= num_tokens
        self._num_drafts_left -= num_tokens

    def discard(self, sequence: Sequence) -> None:
        self.num_left += self.rows.pop(sequence, 0)

    def _most(self, sequence: Sequence, budget: int) -> int:
        planned = self.rows.get(sequence, 0)
        start, left = sequence.num_computed + planned, sequence.num_uncomputed - planned
        num_tokens = min(left, budget)
        if self._is_scoring(sequence):
            num_tokens = min(num_tokens, self._num_scores_left)
        end = (start + num_tokens) // self._cut * self._cut
        return end - start if end > start and num_tokens < left else num_tokens
