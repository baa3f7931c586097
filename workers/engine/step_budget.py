"""StepBudget: how many tokens a step may compute, so that those who decode get theirs in time.

    step   ├ a token of each that decodes ┤ tokens of prompts, as long as the target leaves time ┤

What a step without prompts takes, and a prompt's token beside it, is learned from the steps done.
Where nobody decodes nobody waits, and a step is as large as it may be.
"""

# A prompt gets at least so many tokens of a step, so that it ends whatever the target is; and a
# hybrid's are cut at multiples of that.
LEAST = 64
# The part of a new step in what is known: a machine that becomes slower shows within some ten.
_NEW = 0.2
# A step that took so many times what was expected was interrupted, and says nothing more.
_MOST_SURPRISE = 4.0


class StepBudget:
    """The token budget of the next step. Durations are seconds."""

    def __init__(self, most: int, target: float) -> None:
        """A `target` of 0 is none."""
        self._most, self._target = most, target
        self._decode_seconds = 0.0  # of a step without prompts
        self._token_seconds = 0.0  # of a prompt's token in a step

    @property
    def is_bounded(self) -> bool:
        """Whether there is a target to learn for."""
        return self._target > 0

    def tokens(self, num_decodes: int) -> int:
        """Return how many tokens a step may have in which so many sequences decode."""
        if not (num_decodes and self._token_seconds):
            return self._most
        left = (self._target - self._decode_seconds) / self._token_seconds
        return min(self._most, num_decodes + max(LEAST, round(left)))

    def learn(self, num_decodes: int, num_prompt_tokens: int, seconds: float) -> None:
        """Take note of what a step has taken."""
        if num_prompt_tokens == 0:
            self._decode_seconds = _mixed(self._decode_seconds, seconds)
        elif num_decodes == 0 or self._decode_seconds:
            rest = max(0.0, seconds - (self._decode_seconds if num_decodes else 0.0))
            self._token_seconds = _mixed(self._token_seconds, rest / num_prompt_tokens)


def _mixed(known: float, new: float) -> float:
    if not known:
        return new
    return known + _NEW * (min(new, _MOST_SURPRISE * known) - known)
