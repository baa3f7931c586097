"""Cut a conversation's history to what the model's context has room for. Pure."""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

# Two characters in a token are few, so a history of twice as many is a first guess that seldom
# overflows, and short histories are counted once.
CHARS_PER_TOKEN = 2


class OfLength(Protocol):
    """What a history is made of."""

    @property
    def num_chars(self) -> int: ...


Part = TypeVar("Part", bound=OfLength)


def fit(
    history: Sequence[Part], count_tokens: Callable[[Sequence[Part]], int], room: int
) -> Sequence[Part]:
    """Return the longest run of newest turns with which the prompt takes at most `room` tokens.

    `count_tokens` renders and counts the prompt with the turns it is given and the new question.
    Turns are dropped whole, the oldest first; with none left the prompt may still be too long.
    """
    fits, tried = 0, _first_guess(history, room)
    while tried < len(history) and count_tokens(_newest(history, tried)) <= room:
        fits, tried = tried, min(2 * tried, len(history))
    if fits < tried == len(history) and count_tokens(history) <= room:
        return history
    while tried - fits > 1:
        middle = (fits + tried) // 2
        if count_tokens(_newest(history, middle)) <= room:
            fits = middle
        else:
            tried = middle
    return _newest(history, fits)


def _first_guess(history: Sequence[OfLength], room: int) -> int:
    num_chars = 0
    for number, turn in enumerate(reversed(history)):
        num_chars += turn.num_chars
        if num_chars > room * CHARS_PER_TOKEN:
            return max(1, number)
    return len(history)


def _newest(history: Sequence[Part], number: int) -> Sequence[Part]:
    return history[len(history) - number :]
