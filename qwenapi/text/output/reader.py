"""The unread text of an output that is still growing, for parsers written as coroutines.

A parser looks at `text`, takes what it understands, and waits with `yield from reader.more()` when
the rest may go either way. It decides by what it sees only if more text could not change that; so
its result does not depend on the cuts. `text` is a window of bounded size: a whole output pushed at
once costs no more than its pieces.
"""

from collections import deque
from collections.abc import Generator, Sequence
from typing import TypeVar

T = TypeVar("T")
Reading = Generator[None, None, T]

SPACE = " \t\r\n"
MAX_SPACE = 256  # whitespace before a marker that may count as part of it

_WINDOW = 4096


class Reader:
    """Text in, text out, with marks to return to."""

    def __init__(self) -> None:
        self.text = ""
        self.is_cut = False  # the output ended before the model ended it
        self._later: deque[str] = deque()
        self._is_closed = False
        self._taken: list[str] = []

    @property
    def is_at_end(self) -> bool:
        """Whether nothing will follow `text`."""
        return self._is_closed and not self._later

    def push(self, text: str) -> None:
        """Append text that has arrived."""
        if len(text) <= _WINDOW:
            self._later.append(text)
        else:
            self._later.extend(_pieces(text))

    def close(self, *, is_cut: bool = False) -> None:
        """Say that no text will arrive any more."""
        self._is_closed, self.is_cut = True, is_cut

    def more(self) -> Reading[bool]:
        """Wait until `text` has grown; return False if it never will."""
        while not self._later:
            if self._is_closed:
                return False
            yield
        self.text += self._later.popleft()
        return True

    def take(self, size: int) -> str:
        """Return the next characters and count them as read."""
        piece, self.text = self.text[:size], self.text[size:]
        self._taken.append(piece)
        return piece

    def peek(self) -> Reading[str]:
        """Return the first character that is not whitespace, "" if none is near or none follows."""
        while True:
            bare = self.text[: MAX_SPACE + 1].lstrip(SPACE)
            if bare:
                return bare[0]
            if len(self.text) > MAX_SPACE or not (yield from self.more()):
                return ""

    def match(self, markers: Sequence[str], offset: int = 0) -> Reading[str | None]:
        """Return the marker that stands at `offset`, once it cannot become another answer."""
        while True:
            for marker in markers:
                if self.text.startswith(marker, offset):
                    return marker
            seen = self.text[offset:]
            if not any(marker.startswith(seen) for marker in markers):
                return None
            if not (yield from self.more()):
                return None

    def mark(self) -> int:
        """Return a place to return to; good until `forget`."""
        return len(self._taken)

    def since(self, mark: int) -> str:
        """Return the text read since the mark."""
        return "".join(self._taken[mark:])

    def rewind(self, mark: int) -> None:
        """Count the text since the mark as unread again."""
        first, *others = _pieces(self.since(mark) + self.text) or [""]
        self.text = first
        self._later.extendleft(reversed(others))
        del self._taken[mark:]

    def forget(self) -> None:
        """Drop what was read: there will be no return to it."""
        self._taken.clear()


def _pieces(text: str) -> list[str]:
    return [text[i : i + _WINDOW] for i in range(0, len(text), _WINDOW)]
