"""Log-probabilities of tokens, each with its text, its bytes and its alternatives. Pure."""

from collections.abc import Callable, Sequence
from typing import Any

from workers.wire.protocol import TokenLogprob

LOWEST_LOGPROB = -9999.0  # JSON has no infinity; OpenAI's own stand-in

TokenBytesOf = Callable[[int], bytes]


def token_logprobs(entries: Sequence[TokenLogprob], bytes_of: TokenBytesOf) -> list[dict[str, Any]]:
    """Return the tokens in the form that chats and responses have in common."""
    return [
        _token(entry.token_id, entry.logprob, bytes_of)
        | {
            "top_logprobs": [
                _token(id_, logprob, bytes_of)
                for id_, logprob in zip(entry.top_ids, entry.top_logprobs, strict=True)
            ]
        }
        for entry in entries
    ]


def finite(logprob: float) -> float:
    """Return a log-probability as JSON can have it."""
    return max(logprob, LOWEST_LOGPROB)


def _token(token_id: int, logprob: float, bytes_of: TokenBytesOf) -> dict[str, Any]:
    piece = bytes_of(token_id)
    return {
        "token": piece.decode("utf-8", "replace"),
        "logprob": finite(logprob),
        "bytes": list(piece),
    }
