"""The field `messages`: a conversation as OpenAI's clients write it, checked.

Tool calls and their results, thoughts under either of their names, content as a string or as parts,
texts and pictures. Keys that ask for nothing are left out.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import orjson
from marshmallow import ValidationError

from qwenapi.api.openai.foreign_fields import MESSAGE_UNSUPPORTED
from qwenapi.http.fields import Composite, Path, refuse
from qwenapi.shared_fields.images import IMAGE_PART, image_part, joined, unknown_keys

MAX_MESSAGES = 1024
MAX_PARTS = 256
MAX_CALLS = 128

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
# What a client may say of a message besides its content.
STRINGS = {
    "system": ("name",),
    "user": ("name",),
    "assistant": ("name", "reasoning_content", "reasoning"),
    "tool": ("name", "tool_call_id"),
}
# Keys that ask to go on with the last message; vLLM's and SGLang's clients send either.
PREFILL = ("prefix", "partial")

_TEXT = {"type": "string"}
_PART = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": _TEXT},
    "required": ["type", "text"],
}
_CALL = {
    "type": "object",
    "properties": {
        "id": _TEXT,
        "type": {"const": "function"},
        "function": {
            "type": "object",
            "properties": {"name": _TEXT, "arguments": _TEXT},
            "required": ["name"],
        },
    },
    "required": ["function"],
}


class Messages(Composite):
    """A conversation; of an assistant's message that only calls tools the content may be absent."""

    MESSAGE = {
        "type": "object",
        "properties": {
            "role": {"enum": list(ROLES)},
            "content": {
                "anyOf": [
                    _TEXT,
                    {
                        "type": "array",
                        "items": {"anyOf": [_PART, IMAGE_PART]},
                        "maxItems": MAX_PARTS,
                    },
                    {"type": "null"},
                ]
            },
            "name": {"type": ["string", "null"]},
            "tool_calls": {"type": ["array", "null"], "items": _CALL, "maxItems": MAX_CALLS},
            "tool_call_id": {"type": ["string", "null"]},
            "reasoning_content": {"type": ["string", "null"]},
            "reasoning": {"type": ["string", "null"]},
        },
        "required": ["role"],
    }
    json_schema = {"type": "array", "items": MESSAGE, "minItems": 1, "maxItems": MAX_MESSAGES}

    def unknown(self, value: Any) -> Iterator[Path]:
        """Yield the keys of messages and of their parts that no template is given."""
        for i, message in enumerate(value if isinstance(value, list) else ()):
            if not isinstance(message, dict):
                continue
            known = _known_keys(message.get("role"))
            yield from ((i, key) for key in message if key not in known and asks(key, message[key]))
            content = message.get("content")
            for j, part in enumerate(content if isinstance(content, list) else ()):
                if isinstance(part, dict):
                    yield from ((i, "content", j, *path) for path in unknown_keys(part))

    def _deserialize(
        self, value: Any, attr: str | None, data: Any, **_: Any
    ) -> tuple[Mapping[str, Any], ...]:
        if not isinstance(value, list) or not 1 <= len(value) <= MAX_MESSAGES:
            raise ValidationError(f"must be a list of 1 to {MAX_MESSAGES} messages")
        return tuple(_message(i, message) for i, message in enumerate(value))


def asks(key: str, value: Any) -> bool:
    """Return whether a key that means nothing in its place was sent on purpose."""
    return bool(value) if key in ("tool_calls", *PREFILL) else value is not None


def _known_keys(role: Any) -> set[str]:
    """Return what counts of a message of this role, and what is refused by its name."""
    known = {"role", "content", *MESSAGE_UNSUPPORTED}
    role = ROLES.get(role, "") if isinstance(role, str) else ""
    known.update(STRINGS.get(role, ()))
    return known | {"tool_calls", *PREFILL} if role == "assistant" else known


def _message(i: int, message: Any) -> Mapping[str, Any]:
    if not isinstance(message, dict):
        refuse((i,), "must be an object with a role and content")
    role = message.get("role")
    if role == "function":
        refuse((i, "role"), "is function, which OpenAI has replaced: send role tool")
    if not isinstance(role, str) or role not in ROLES:
        refuse((i, "role"), f"must be one of {', '.join(ROLES)}")
    role = ROLES[role]
    known: dict[str, Any] = {"role": role}
    for key in STRINGS[role]:
        if (item := message.get(key)) is not None:
            known[key] = item if isinstance(item, str) else refuse((i, key), "must be a string")
    if thought := known.pop("reasoning", ""):  # vLLM's name of it
        known.setdefault("reasoning_content", thought)
    calls = message.get("tool_calls") if role == "assistant" else None
    if calls:
        known["tool_calls"] = _calls(i, calls)
    for key in MESSAGE_UNSUPPORTED.keys() & message.keys():
        neutral = MESSAGE_UNSUPPORTED[key]
        if message[key] is not None and not neutral.accepts(message[key]):
            refuse((i, key), neutral.claim)
    for key in PREFILL:
        if message.get(key) is True and role == "assistant":
            known["prefix"] = True
    content = message.get("content")
    if not content and role in ("assistant", "tool"):
        content = ""
    return known | {"content": _content(i, content, role)}


def _content(i: int, content: Any, role: str) -> Any:
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not 1 <= len(content) <= MAX_PARTS:
        refuse((i, "content"), f"must be a string or a list of 1 to {MAX_PARTS} parts")
    return joined([_part(i, j, part, role) for j, part in enumerate(content)])


def _part(i: int, j: int, part: Any, role: str) -> str | dict[str, Any]:
    if not isinstance(part, dict):
        refuse((i, "content", j), "must be an object with a type and text")
    kind = part.get("type")
    if kind == "refusal" and isinstance(part.get("refusal"), str):
        return str(part["refusal"])
    if kind not in ("text", "input_text", "output_text"):
        picture = image_part((i, "content", j), part, place="messages")
        if picture is None:
            refuse(
                (i, "content", j, "type"),
                "must be text or image_url; this server takes no audio or files",
            )
        if role not in ("user", "tool"):
            refuse((i, "content", j, "type"), f"is a picture, which no {role} message has")
        return picture
    if not isinstance(part.get("text"), str):
        refuse((i, "content", j), "must hold a type and a text, which is a string")
    return str(part["text"])


def _calls(i: int, calls: Any) -> list[dict[str, Any]]:
    if not isinstance(calls, list) or len(calls) > MAX_CALLS:
        refuse((i, "tool_calls"), f"must be a list of at most {MAX_CALLS} calls")
    return [_call((i, "tool_calls", j), call) for j, call in enumerate(calls)]


def _call(path: tuple[str | int, ...], call: Any) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        refuse(path, "must be an object with a function, which has a name")
    arguments = function.get("arguments")
    if isinstance(arguments, dict):  # as Ollama's clients send them
        arguments = orjson.dumps(arguments).decode()
    if arguments is not None and not isinstance(arguments, str):
        refuse((*path, "function", "arguments"), "must be a string of JSON")
    known = {"name": function["name"], "arguments": arguments or "{}"}
    id_ = call.get("id")
    return {"type": "function", "function": known} | ({"id": id_} if isinstance(id_, str) else {})
