"""Bodies of the coder interface: a stream's preface, an exported conversation. Pure."""

from typing import Any

from qwenapi.conversations import Conversation


def preface(conversation_id: str) -> bytes:
    """Return what begins the first turn's stream; clients cut it off at its last line."""
    return f"conversation_id:{conversation_id}\n---\n".encode()


def conversation_body(conversation: Conversation) -> dict[str, Any]:
    """Return a whole conversation; times in seconds since 1970."""
    return {
        "conversation_id": conversation.id,
        "created_at": conversation.created_at,
        "used_at": conversation.used_at,
        "messages": list(conversation.messages),
    }
