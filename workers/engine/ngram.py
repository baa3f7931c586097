"""NgramDrafter: drafts for speculative decoding, from what followed the newest tokens before.

After Saxena, "Prompt Lookup Decoding" (2023), github.com/apoorvumang/prompt-lookup-decoding. Knows
one sequence's tokens and how its drafts fared. Refuses to know models and whether a draft is right.
"""

from array import array

# Longer n-grams first: what follows them is likelier to follow again.
NGRAM_SIZES = (5, 4, 3)
# A draft without one right token is followed by a pause, twice as long each time.
_LONGEST_PAUSE = 64
_ID = array("i").itemsize


class NgramDrafter:
    """The drafts of one sequence."""

    def __init__(self) -> None:
        self._ids = bytearray()
        self._pause = 0
        self._next_pause = 1

    def propose(self, token_ids: list[int], limit: int) -> tuple[int, ...]:
        """Return at most `limit` tokens that may follow `token_ids`, which only ever grow."""
        self._ids += array("i", token_ids[len(self._ids) // _ID :]).tobytes()
        if self._pause > 0:
            self._pause -= 1
            return ()
        for size in NGRAM_SIZES:
            start = self._find(size)
            if start is not None:
                period = len(token_ids) - start
                return tuple(token_ids[start + i % period] for i in range(limit))
        return ()

    def learn(self, num_right: int) -> None:
        """Take how many tokens of the last draft were right."""
        self._pause = 0 if num_right else self._next_pause
        self._next_pause = 1 if num_right else min(2 * self._next_pause, _LONGEST_PAUSE)

    def _find(self, size: int) -> int | None:
        """Return the index behind the last earlier occurrence of the newest `size` tokens."""
        if len(self._ids) <= size * _ID:
            return None
        ngram = self._ids[-size * _ID :]
        end = len(self._ids) - _ID
        while (at := self._ids.rfind(ngram, 0, end)) >= 0:
            if at % _ID == 0:
                return at // _ID + size
            end = at + len(ngram) - 1
        return None
