"""StepPlan: the rows of a step as the scheduler fills it, and what is left of its token budget."""

from workers.engine.sequence import Sequence


class StepPlan:
    """The rows chosen so far and what is left of the budget."""

    def __init__(self, budget: int) -> None:
        self.num_left = budget
        self.rows: dict[Sequence, int] = {}

    def add(self, sequence: Sequence, num_tokens: int) -> None:
        self.rows[sequence] = num_tokens
        self.num_left -= num_tokens

    def discard(self, sequence: Sequence) -> None:
        self.num_left += self.rows.pop(sequence, 0)
