"""Log-probabilities in OpenAI's words, of chats and of completions. Pure."""

import codecs
from collections.abc import Container, Sequence
from typing import Any

from qwenapi.shared_fields.token_logprobs import TokenBytesOf, finite, token_logprobs
from workers.wire.protocol import TokenLogprob

_Utf8Decoder = codecs.getincrementaldecoder("utf-8")


def chat_logprobs(
    entries: Sequence[TokenLogprob], bytes_of: TokenBytesOf, *, has_refusal: bool = False
) -> dict[str, Any]:
    """Return log-probabilities in the chat format."""
    content = token_logprobs(entries, bytes_of)
    return {"content": content} | ({"refusal": None} if has_refusal else {})


class TextOffsets:
    """Where each token of one choice begins in its text, in characters.

    A character cut between two tokens begins with the first. Ids of `skipped` are not in the text,
    but for the first `num_echoed` tokens, all of which are.
    """

    def __init__(
        self, bytes_of: TokenBytesOf, skipped: Container[int] = frozenset(), num_echoed: int = 0
    ) -> None:
        self._bytes_of = bytes_of
        self._skipped = skipped
        self._num_echoed = num_echoed
        self._utf8 = _Utf8Decoder("replace")
        self._num_characters = 0

    def next(self, token_id: int) -> int:
        """Return the offset of one more token."""
        offset = self._num_characters + bool(self._utf8.getstate()[0])
        self._num_echoed -= 1
        if self._num_echoed >= 0 or token_id not in self._skipped:
            self._num_characters += len(self._utf8.decode(self._bytes_of(token_id)))
        return offset


def completion_logprobs(
    entries: Sequence[TokenLogprob],
    bytes_of: TokenBytesOf,
    offsets: TextOffsets,
    prompt_ids: Sequence[int] = (),
) -> dict[str, Any]:
    """Return log-probabilities in the older format; `offsets` know the tokens before these.

    Where the prompt comes first, the entries begin with those of its tokens; the first has none.
    """
    ids = [*prompt_ids[:1], *(entry.token_id for entry in entries)]
    tokens = list(zip(ids, [*(None for _ in prompt_ids[:1]), *entries], strict=True))
    return {
        "tokens": [_key(token_id, bytes_of) for token_id, _ in tokens],
        "token_logprobs": [None if entry is None else finite(entry.logprob) for _, entry in tokens],
        "top_logprobs": [
            None if entry is None else _alternatives(entry, bytes_of) for _, entry in tokens
        ],
        "text_offset": [offsets.next(token_id) for token_id, _ in tokens],
    }


def prompt_logprobs(
    prompt_ids: Sequence[int],
    entries: Sequence[TokenLogprob],
    num_top: int,
    bytes_of: TokenBytesOf,
) -> list[dict[str, Any] | None]:
    """Return vLLM's form of a prompt's log-probabilities: ids to what is known of each."""
    found: list[dict[str, Any] | None] = [None for _ in prompt_ids[:1]]
    for entry in entries:
        best = zip(entry.top_ids[:num_top], entry.top_logprobs, strict=False)
        ranked: dict[str, tuple[float, int | None]] = {
            str(id_): (logprob, rank) for rank, (id_, logprob) in enumerate(best, 1)
        }
        ranked.setdefault(str(entry.token_id), (entry.logprob, None))
        found.append(
            {
                id_: {
                    "logprob": finite(logprob),
                    "rank": rank,
                    "decoded_token": bytes_of(int(id_)).decode("utf-8", "replace"),
                }
                for id_, (logprob, rank) in ranked.items()
            }
        )
    return found


def _alternatives(entry: TokenLogprob, bytes_of: TokenBytesOf) -> dict[str, float]:
    """Return the best tokens and, as OpenAI does, the chosen one even if it is none of them."""
    pairs = [*zip(entry.top_ids, entry.top_logprobs, strict=True), (entry.token_id, entry.logprob)]
    return {_key(id_, bytes_of): finite(logprob) for id_, logprob in pairs}


def _key(token_id: int, bytes_of: TokenBytesOf) -> str:
    """Return a token's text; part of a character in hex, as keys that read U+FFFD would collide."""
    piece = bytes_of(token_id)
    try:
        return piece.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)
