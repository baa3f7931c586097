"""The fields `system` and `messages`: content blocks, checked, and as chat templates take them.

A tool_result becomes a message of role `tool`, a thought `reasoning_content`; texts of an assistant
follow each other as they are, others are lines. Documents are refused.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from marshmallow import ValidationError

from qwenapi.http.fields import Composite, Path, refuse
from qwenapi.shared_fields.images import image_block, joined

MAX_MESSAGES = 100_000

ROLES = ("user", "assistant", "system")
# The keys that count, and who may say such a block.
_KEYS = {
    "text": {"type", "text"},
    "tool_use": {"type", "id", "name", "input"},
    "tool_result": {"type", "tool_use_id", "content", "is_error"},
    "thinking": {"type", "thinking", "signature"},
    "redacted_thinking": {"type"},
    "image": {"type", "source"},
}
_BLOCKS_OF = {
    "user": ("text", "image", "tool_result"),
    "assistant": ("text", "tool_use", "thinking", "redacted_thinking"),
    "system": ("text",),
}
# Claude Code's first system block is for Anthropic's accounting. It differs in every request, and
# so would keep the whole prompt out of the prefix cache.
_BILLING = "x-anthropic-billing-header"

_TEXT = {"type": "string"}
_TEXT_BLOCK = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": _TEXT},
    "required": ["type", "text"],
}


class System(Composite):
    """The system prompt: a string, or text blocks, which become its lines."""

    json_schema = {"anyOf": [_TEXT, {"type": "array", "items": _TEXT_BLOCK}]}

    def unknown(self, value: Any) -> Iterator[Path]:
        """Yield the keys of blocks that no template is given, and blocks that are not for one."""
        for i, block in enumerate(value if isinstance(value, list) else ()):
            if _is_billing(block):
                yield i, _BILLING
            else:
                yield from ((i, *path) for path in _unknown_keys(block))

    def _deserialize(self, value: Any, attr: str | None, data: Any, **_: Any) -> str:
        if isinstance(value, list):
            value = [block for block in value if not _is_billing(block)]
        return _text((), value)


class Turns(Composite):
    """A conversation. The last message may be an assistant's: the answer begins with it."""

    json_schema = {
        "type": "array",
        "minItems": 1,
        "maxItems": MAX_MESSAGES,
        "items": {
            "type": "object",
            "properties": {
                "role": {"enum": list(ROLES)},
                "content": {
                    "anyOf": [
                        _TEXT,
                        {
                            "type": "array",
                            "items": {
                                "type": "object",
                                "properties": {"type": {"enum": list(_KEYS)}},
                                "required": ["type"],
                            },
                        },
                    ]
                },
            },
            "required": ["role", "content"],
        },
    }

    def unknown(self, value: Any) -> Iterator[Path]:
        """Yield the keys of messages and blocks that no template is given."""
        for i, message in enumerate(value if isinstance(value, list) else ()):
            if not isinstance(message, dict):
                continue
            known = ("role", "content")
            yield from ((i, key) for key in message if key not in known)
            content = message.get("content")
            for j, block in enumerate(content if isinstance(content, list) else ()):
                yield from ((i, "content", j, *path) for path in _unknown_keys(block))

    def _deserialize(
        self, value: Any, attr: str | None, data: Any, **_: Any
    ) -> tuple[Mapping[str, Any], ...]:
        if not isinstance(value, list) or not 1 <= len(value) <= MAX_MESSAGES:
            raise ValidationError(f"must be a list of 1 to {MAX_MESSAGES} messages")
        turns = [turn for i, message in enumerate(value) for turn in _turns(i, message)]
        if turns[-1].get("tool_calls"):
            refuse((len(value) - 1, "content"), "ends with tool_use: send its tool_result as well")
        return tuple(turns)


def _is_billing(block: Any) -> bool:
    text = block.get("text") if isinstance(block, dict) else None
    return isinstance(text, str) and text.startswith(f"{_BILLING}:") and "\n" not in text.strip()


def _unknown_keys(block: Any) -> Iterator[Path]:
    """Yield the keys of a block that mean nothing here, those of blocks inside it as well."""
    if not isinstance(block, dict):
        return
    kind = block.get("type")
    known = _KEYS.get(kind, set()) if isinstance(kind, str) else set()
    yield from ((key,) for key in block if key not in known and block[key] is not None)
    if kind == "tool_result" and isinstance(content := block.get("content"), list):
        for i, inner in enumerate(content):
            yield from (("content", i, *path) for path in _unknown_keys(inner))


def _turns(i: int, message: Any) -> Iterable[Mapping[str, Any]]:
    if not isinstance(message, dict):
        refuse((i,), "must be an object with a role and content")
    role, content = message.get("role"), message.get("content")
    if role not in ROLES or not isinstance(role, str):
        refuse((i, "role"), f"must be one of {', '.join(ROLES)}")
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    # An answer may have been empty, and comes back as it was.
    if not isinstance(content, list) or not (content or role == "assistant"):
        refuse((i, "content"), "must be a string or a list of content blocks")
    blocks = [_block((i, "content", j), block, role) for j, block in enumerate(content)]
    return [_assistant(i, blocks)] if role == "assistant" else _others(i, role, blocks)


def _block(path: Path, block: Any, role: str) -> dict[str, Any]:
    kind = block.get("type") if isinstance(block, dict) else None
    if not isinstance(block, dict) or not isinstance(kind, str):
        refuse(path, "must be an object with a type")
    if kind not in _KEYS:
        refuse(
            (*path, "type"), f"is {kind[:64]}, which this server cannot read: send text or image"
        )
    if kind not in _BLOCKS_OF[role]:
        refuse((*path, "type"), f"is {kind}, which no message of role {role} has")
    return block


def _assistant(i: int, blocks: list[dict[str, Any]]) -> Mapping[str, Any]:
    """Return an assistant's message; what Anthropic has encrypted nobody here can read."""
    said: dict[str, list[Any]] = {"text": [], "thinking": [], "tool_use": []}
    for j, block in enumerate(blocks):
        path: Path = (i, "content", j)
        match block["type"]:
            case "text" | "thinking" as kind:
                said[kind].append(_string(path, block, kind))
            case "tool_use":
                said["tool_use"].append(_call(path, block))
    message: dict[str, Any] = {"role": "assistant", "content": "".join(said["text"])}
    if thought := "\n".join(filter(None, said["thinking"])):
        message["reasoning_content"] = thought
    return message | ({"tool_calls": said["tool_use"]} if said["tool_use"] else {})


def _call(path: Path, block: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(block.get("input"), dict):
        refuse((*path, "input"), "must be an object")
    function = {"name": _string(path, block, "name"), "arguments": block["input"]}
    return {"type": "function", "id": _string(path, block, "id"), "function": function}


def _others(i: int, role: str, blocks: list[dict[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Yield a message for each run of texts and pictures, and one for each result of a tool."""
    parts: list[str | dict[str, Any]] = []
    for j, block in enumerate(blocks):
        path: Path = (i, "content", j)
        if block["type"] != "tool_result":
            parts.append(_part(path, block))
            continue
        if parts:
            yield {"role": role, "content": joined(parts)}
            parts = []
        yield _result(path, block)
    if parts:
        yield {"role": role, "content": joined(parts)}


def _result(path: Path, block: dict[str, Any]) -> Mapping[str, Any]:
    id_, failed = _string(path, block, "tool_use_id"), block.get("is_error")
    if failed is not None and not isinstance(failed, bool):
        refuse((*path, "is_error"), "must be true or false")
    content = block.get("content")
    said: str | list[str | dict[str, Any]] = "" if content is None else content
    if isinstance(content, list):
        inner = ((*path, "content", k) for k in range(len(content)))
        said = [_part(p, _block(p, b, "user")) for p, b in zip(inner, content, strict=True)]
    elif not isinstance(said, str):
        refuse((*path, "content"), "must be a string or a list of text and image blocks")
    parts = [said] if isinstance(said, str) else said
    if failed:
        first = parts[0] if parts and isinstance(parts[0], str) else None
        parts = [f"Error: {first or ''}", *parts[first is not None :]]
    return {"role": "tool", "tool_call_id": id_, "content": joined(parts)}


def _part(path: Path, block: dict[str, Any]) -> str | dict[str, Any]:
    if block["type"] == "image":
        return image_block(path, block, place="messages")
    if block["type"] != "text":
        refuse((*path, "type"), f"is {block['type']}, which no result of a tool has")
    return _string(path, block, "text")


def _text(path: Path, content: Any) -> str:
    """Return a string, or the lines that text blocks make."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        refuse(path, "must be a string or a list of text blocks")
    blocks = [_block((*path, j), block, "system") for j, block in enumerate(content)]
    return "\n".join(_string((*path, j), block, "text") for j, block in enumerate(blocks))


def _string(path: Path, block: dict[str, Any], key: str) -> str:
    value = block.get(key)
    return value if isinstance(value, str) else refuse((*path, key), "must be a string")
