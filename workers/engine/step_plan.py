"""StepPlan: the rows chosen for a step so far, and what is left of its budgets."""

from workers.engine.sequence import Sequence

# Each token that is scored takes logits of the whole vocabulary.
MAX_SCORED_TOKENS = 256


class StepPlan:
    """The scheduler's notes while it chooses."""

    def __init__(self, budget: int) -> None:
        self.num_left = budget
        self.rows: dict[Sequence, int] = {}
        self._num_scores_left = MAX_SCORED_TOKENS

    def share(self, sequence: Sequence, *, is_scoring: bool) -> int:
        """Return how many of its tokens a sequence may compute in the step."""
        share = min(sequence.num_uncomputed, self.num_left)
        return min(share, self._num_scores_left) if is_scoring else share

    def add(self, sequence: Sequence, num_tokens: int, *, is_scoring: bool = False) -> None:
        self.rows[sequence] = num_tokens
        self.num_left -= num_tokens
        self._num_scores_left -= num_tokens * is_scoring

    def discard(self, sequence: Sequence) -> None:
        self.num_left += self.rows.pop(sequence, 0)
