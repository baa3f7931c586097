"""StepBudget: how many tokens a step may compute, so that those who decode get theirs in time.

    a few prompts   ├ a token of each that decodes ┤ tokens of prompts, as the target leaves time ┤
    a crowd         ├ prompts ┤├ prompts ┤├ a token of each that decodes ┤├ prompts ┤ …

What a step without prompts takes, and a prompt's token beside it, is learned from the steps done.
Where nobody decodes nobody waits, and a step is as large as it may be. Many prompts at once would
take many steps of that time, each of them late: so they get steps of their own, for as long as a
turn may be, and those who decode wait once for all of them.
"""

from typing import NamedTuple

# A prompt gets at least so many tokens of a step, so that it ends whatever the target is; and a
# hybrid's are cut at multiples of that.
LEAST = 64
# Prompts are a crowd where so many wait, and so many for each that decodes.
_CROWD = 2
_CROWD_SHARE = 1 / 16
# How long a crowd's turn may be, as a multiple of the target.
_TURN = 16
# The part of a new step in what is known: a machine that becomes slower shows within some ten.
_NEW = 0.2
# A step that took so many times what was expected was interrupted, and says nothing more.
_MOST_SURPRISE = 4.0


class StepBound(NamedTuple):
    """What a step may compute: so many tokens, and whether they are of prompts alone."""

    num_tokens: int
    is_turn: bool = False


class StepBudget:
    """The bound of the next step. Durations are seconds."""

    def __init__(self, most: int, target: float) -> None:
        """A `target` of 0 is none."""
        self._most, self._target = most, target
        self._decode_seconds = 0.0  # of a step without prompts
        self._token_seconds = 0.0  # of a prompt's token in a step
        self._turn_left = 0  # tokens of the turn under way
        self._is_turn_over = False  # and nobody has decoded since

    @property
    def is_bounded(self) -> bool:
        """Whether there is a target to learn for."""
        return self._target > 0

    def bound(self, num_decodes: int, num_new: int, num_left: list[int]) -> StepBound:
        """Return what a step may compute in which so many sequences decode, `num_new` prompts might
        begin, and prompts under way have so many tokens left.
        """
        if not (num_decodes and self._token_seconds):
            self._turn_left, self._is_turn_over = 0, False
            return StepBound(self._most)
        turn = round(_TURN * self._target / self._token_seconds)
        num_prompts = num_new + sum(left <= turn for left in num_left)
        is_crowd = num_prompts >= max(_CROWD, _CROWD_SHARE * num_decodes)
        if is_crowd and not self._turn_left and not self._is_turn_over:
            self._turn_left = turn
        if self._turn_left and (num_new or num_left):
            num_tokens = min(self._most, max(LEAST, self._turn_left))
            self._turn_left = max(0, self._turn_left - num_tokens)
            self._is_turn_over = self._turn_left == 0
            return StepBound(num_tokens, is_turn=True)
        self._turn_left, self._is_turn_over = 0, False
        if is_crowd:
            return StepBound(min(self._most, num_decodes))
        rest = round((self._target - self._decode_seconds) / self._token_seconds)
        return StepBound(min(self._most, num_decodes + max(LEAST, rest)))

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
