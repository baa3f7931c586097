"""Bodies of the coder interface: a stream's preface, an exported conversation. Pure."""

from collections.abc import Iterator, Sequence

import orjson

from qwenapi.conversations import Conversation, PastTurn


def preface(conversation_id: str) -> bytes:
    """Return what begins the first turn's stream; clients cut it off at its last line."""
    return f"conversation_id:{conversation_id}\n---\n".encode()


def conversation_pieces(
    conversation: Conversation, pages: Iterator[Sequence[PastTurn]]
) -> Iterator[bytes]:
    """Yield the JSON of a whole conversation, a page at a time; times in seconds since 1970."""
    about = {
        "conversation_id": conversation.id,
        "created_at": conversation.created_at,
        "used_at": conversation.used_at,
    }
    before = orjson.dumps(about)[:-1] + b',"messages":['
    for turns in pages:
        messages = [message for turn in turns for message in turn.messages]
        yield before + orjson.dumps(messages)[1:-1]
        before = b","
    yield b"]}"
