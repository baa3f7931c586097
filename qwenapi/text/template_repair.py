"""Repair of conversations that strict chat templates refuse.

Qwen3.5's template and its successors raise at a system message that is not the first. Others raise
at two users in a row. Here all system messages become one in front, and equal neighbours become one
message; results of tools stay apart. For messages as `tool_messages` gives them.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

Message = Mapping[str, Any]

_SYSTEM_ROLES = {"system", "developer"}
_BLANK_LINE = "\n\n"


def repair(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return the messages with one system message at most, the first, and no equal neighbours."""
    system = [{**m, "role": "system"} for m in messages if m["role"] in _SYSTEM_ROLES]
    others = [m for m in messages if m["role"] not in _SYSTEM_ROLES]
    repaired: list[dict[str, Any]] = []
    for role, group in groupby([*system, *others], lambda message: message["role"]):
        neighbours = [dict(message) for message in group]
        repaired += neighbours if role == "tool" else [_join(neighbours)]
    return repaired


def _join(messages: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return one message with the contents, thoughts and calls of all, other keys of the last."""
    if len(messages) == 1:
        return messages[0]
    joined = {key: value for message in messages for key, value in message.items()}
    joined["content"] = _join_contents([message.get("content") for message in messages])
    thoughts = [m["reasoning_content"] for m in messages if m.get("reasoning_content")]
    if thoughts:
        joined["reasoning_content"] = _BLANK_LINE.join(thoughts)
    calls = [call for message in messages for call in message.get("tool_calls") or ()]
    if calls:
        joined["tool_calls"] = calls
    return joined


def _join_contents(contents: Sequence[Any]) -> Any:
    """Join strings by a blank line; where there are parts, join parts, with one as that line."""
    contents = [content for content in contents if content]
    if all(isinstance(content, str) for content in contents):
        return _BLANK_LINE.join(contents)
    parts: list[Any] = []
    for content in contents:
        if parts:
            parts.append({"type": "text", "text": _BLANK_LINE})
        parts += [{"type": "text", "text": content}] if isinstance(content, str) else content
    return parts
