"""Detokenizer: token ids of one choice to text, as they arrive.

Exact for byte-level BPE: the bytes of the ids go through an incremental UTF-8 decoder, so a
character cut between two tokens waits for its rest, and U+FFFD appears only where the model's bytes
are invalid. Whatever the split of the ids, the text is that of decoding all at once.
"""

import codecs
from collections.abc import Iterable

from qwenapi.text.tokenizer import Tokenizer

_Utf8Decoder = codecs.getincrementaldecoder("utf-8")


class Detokenizer:
    """Decodes one choice. `finish` flushes a character that never became whole."""

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True) -> None:
        self._token_bytes = tokenizer.token_bytes
        self._skipped = tokenizer.special_ids if skip_special_tokens else frozenset()
        self._utf8 = _Utf8Decoder("replace")

    def push(self, ids: Iterable[int]) -> str:
        """Return the text that these ids complete."""
        token_bytes, skipped = self._token_bytes, self._skipped
        return self._utf8.decode(b"".join([token_bytes[i] for i in ids if i not in skipped]))

    def finish(self) -> str:
        """Return what the end of the ids leaves: nothing, or U+FFFD for a character cut off."""
        return self._utf8.decode(b"", final=True)
