"""Log-probabilities in OpenAI's words, of chats and of completions. Pure."""

import codecs
from collections.abc import Callable, Container, Sequence
from typing import Any

from workers.wire.protocol import TokenLogprob

LOWEST_LOGPROB = -9999.0  # JSON has no infinity; OpenAI's own stand-in

TokenBytesOf = Callable[[int], bytes]
_Utf8Decoder = codecs.getincrementaldecoder("utf-8")


def chat_logprobs(
    entries: Sequence[TokenLogprob], bytes_of: TokenBytesOf, *, has_refusal: bool = False
) -> dict[str, Any]:
    """Return log-probabilities in the chat format."""
    content = [
        _token(entry.token_id, entry.logprob, bytes_of)
        | {
            "top_logprobs": [
                _token(id_, logprob, bytes_of)
                for id_, logprob in zip(entry.top_ids, entry.top_logprobs, strict=True)
            ]
        }
        for entry in entries
    ]
    return {"content": content} | ({"refusal": None} if has_refusal else {})


class TextOffsets:
    """Where each token of one choice begins in its text, in characters.

    A character cut between two tokens begins with the first. Ids of `skipped` are not in the text.
    """

    def __init__(self, bytes_of: TokenBytesOf, skipped: Container[int] = frozenset()) -> None:
        self._bytes_of = bytes_of
        self._skipped = skipped
        self._utf8 = _Utf8Decoder("replace")
        self._num_characters = 0

    def next(self, token_id: int) -> int:
        """Return the offset of one more token."""
        offset = self._num_characters + bool(self._utf8.getstate()[0])
        if token_id not in self._skipped:
            self._num_characters += len(self._utf8.decode(self._bytes_of(token_id)))
        return offset


def completion_logprobs(
    entries: Sequence[TokenLogprob], bytes_of: TokenBytesOf, offsets: TextOffsets
) -> dict[str, Any]:
    """Return log-probabilities in the older format; `offsets` know the tokens before these."""
    return {
        "tokens": [_key(entry.token_id, bytes_of) for entry in entries],
        "token_logprobs": [_finite(entry.logprob) for entry in entries],
        "top_logprobs": [_alternatives(entry, bytes_of) for entry in entries],
        "text_offset": [offsets.next(entry.token_id) for entry in entries],
    }


def _token(token_id: int, logprob: float, bytes_of: TokenBytesOf) -> dict[str, Any]:
    piece = bytes_of(token_id)
    return {
        "token": piece.decode("utf-8", "replace"),
        "logprob": _finite(logprob),
        "bytes": list(piece),
    }


def _alternatives(entry: TokenLogprob, bytes_of: TokenBytesOf) -> dict[str, float]:
    """Return the best tokens and, as OpenAI does, the chosen one even if it is none of them."""
    pairs = [*zip(entry.top_ids, entry.top_logprobs, strict=True), (entry.token_id, entry.logprob)]
    return {_key(id_, bytes_of): _finite(logprob) for id_, logprob in pairs}


def _key(token_id: int, bytes_of: TokenBytesOf) -> str:
    """Return a token's text; part of a character in hex, as keys that read U+FFFD would collide."""
    piece = bytes_of(token_id)
    try:
        return piece.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def _finite(logprob: float) -> float:
    return max(logprob, LOWEST_LOGPROB)
