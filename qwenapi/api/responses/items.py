"""The field `input`: items, checked and as they are kept, and the messages that they make.

An item is kept in one form, whichever its caller wrote it in: messages with texts and pictures,
calls, their outputs, thoughts. Those without an id are given one once the response has its own.
Files are refused, and so are items of tools that this server does not run.
"""

import base64
import binascii
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from marshmallow import ValidationError

from qwenapi.http.fields import Composite, Path, refuse
from qwenapi.shared_fields.images import PART_KEYS, image_part, joined, kept_image

MAX_ITEMS = 100_000

Item = dict[str, Any]

ROLES = ("user", "assistant", "system", "developer")
STATUSES = ("in_progress", "completed", "incomplete")
REFERENCE = "item_reference"
# What a thought is called where the caller may not read it: it can, and it is our own.
THOUGHT_PREFIX = "thought."

_KNOWN = {
    "message": {"type", "id", "status", "role", "content"},
    "function_call": {"type", "id", "status", "call_id", "name", "arguments"},
    "function_call_output": {"type", "id", "status", "call_id", "output"},
    "reasoning": {"type", "id", "status", "summary", "content", "encrypted_content"},
    REFERENCE: {"type", "id"},
}
_PREFIXES = {
    "message": "msg",
    "function_call": "fc",
    "function_call_output": "fco",
    "reasoning": "rs",
}
_TEXT = {"type": "string"}
# What is kept of a picture.
_KEPT = ("image_url", "detail", "min_pixels", "max_pixels")


class Input(Composite):
    """A text, which is a user's message, or a list of items."""

    json_schema = {
        "anyOf": [
            _TEXT,
            {
                "type": "array",
                "maxItems": MAX_ITEMS,
                "items": {
                    "type": "object",
                    "properties": {"type": {"enum": [*_KNOWN, None]}},
                },
            },
        ]
    }

    def unknown(self, value: Any) -> Iterator[Path]:
        """Yield the keys of items and of their parts that mean nothing here."""
        for i, item in enumerate(value if isinstance(value, list) else ()):
            if not isinstance(item, dict):
                continue
            known = _KNOWN.get(_type(item), set())
            yield from ((i, key) for key in item if key not in known and item[key] is not None)
            if item.get("summary"):
                yield i, "summary"
            if _is_foreign(item.get("encrypted_content")):
                yield i, "encrypted_content"
            for key in ("content", "output"):
                parts = item.get(key)
                for j, part in enumerate(parts if isinstance(parts, list) else ()):
                    for name in part if isinstance(part, dict) else ():
                        if name not in _known_keys(part) and part[name]:
                            yield i, key, j, name

    def _deserialize(self, value: Any, attr: str | None, data: Any, **_: Any) -> tuple[Item, ...]:
        if isinstance(value, str):
            return (_message((), {"role": "user", "content": value}),)
        if not isinstance(value, list) or len(value) > MAX_ITEMS:
            raise ValidationError(f"must be a string or a list of at most {MAX_ITEMS} items")
        return tuple(_item((i,), item) for i, item in enumerate(value))


def item_id(kind: str, response: str, number: int) -> str:
    """Return the id of an item of a response, by which the response is found again."""
    return f"{_PREFIXES[kind]}_{response.removeprefix('resp_')}{number:05x}"


def response_of(id_: str) -> str:
    """Return the id of the response that an item's id would be of."""
    return f"resp_{id_.partition('_')[2][:-5]}"


def named(items: Iterable[Item], response: str) -> list[Item]:
    """Return items that all have ids, a caller's own or those of this response."""
    return [
        item if item["id"] else item | {"id": item_id(item["type"], response, number)}
        for number, item in enumerate(items)
    ]


def sealed_thought(text: str) -> str:
    """Return a thought for clients that hand it back without reading it."""
    return THOUGHT_PREFIX + base64.b64encode(text.encode("utf-8", "surrogatepass")).decode()


def messages_of(items: Iterable[Item]) -> list[Mapping[str, Any]]:
    """Return the messages that items make: what an assistant thinks, says and calls without
    another in between is one.
    """
    messages: list[dict[str, Any]] = []
    for item in items:
        match item["type"]:
            case "message" if item["role"] != "assistant":
                messages.append({"role": _role(item), "content": _content_of(item["content"])})
            case "message":
                said = _assistant(messages, "content", "tool_calls")
                said["content"] = _text_of(item["content"])
            case "reasoning":
                if thought := _thought(item):
                    said = _assistant(messages, "reasoning_content", "content", "tool_calls")
                    said["reasoning_content"] = thought
            case "function_call":
                function = {"name": item["name"], "arguments": item["arguments"]}
                call = {"type": "function", "id": item["call_id"], "function": function}
                _assistant(messages).setdefault("tool_calls", []).append(call)
            case "function_call_output":
                output = item["output"]
                told = output if isinstance(output, str) else _content_of(output)
                messages.append({"role": "tool", "tool_call_id": item["call_id"], "content": told})
    return [{"content": "", **message} for message in messages]


def _assistant(messages: list[dict[str, Any]], *closing: str) -> dict[str, Any]:
    """Return the assistant's message to go on with: the last one, unless it has a closing key."""
    last = messages[-1] if messages else {}
    if last.get("role") != "assistant" or any(key in last for key in closing):
        messages.append({"role": "assistant"})
    return messages[-1]


def _role(item: Item) -> str:
    return "system" if item["role"] == "developer" else str(item["role"])


def _text_of(parts: Iterable[Mapping[str, Any]]) -> str:
    return "\n".join(part["refusal" if part["type"] == "refusal" else "text"] for part in parts)


def _content_of(parts: Iterable[Mapping[str, Any]]) -> Any:
    return joined(
        [kept_image(part) if part["type"] == "input_image" else _text_of([part]) for part in parts]
    )


def _known_keys(part: Mapping[str, Any]) -> tuple[str, ...]:
    is_picture = part.get("type") == "input_image"
    return (*PART_KEYS, "file_id") if is_picture else ("type", "text", "refusal")


def _thought(item: Item) -> str:
    if item["content"]:
        return _text_of(item["content"])
    return _unsealed(item["encrypted_content"] or "")


def _unsealed(sealed: str) -> str:
    """Return a thought of ours; what another service has encrypted nobody here can read."""
    if _is_foreign(sealed):
        return ""
    try:
        raw = base64.b64decode(sealed.removeprefix(THOUGHT_PREFIX), validate=True)
        return raw.decode("utf-8", "surrogatepass")
    except (binascii.Error, UnicodeDecodeError):
        return ""


def _is_foreign(sealed: Any) -> bool:
    return bool(sealed) and not (isinstance(sealed, str) and sealed.startswith(THOUGHT_PREFIX))


def _type(item: Mapping[str, Any]) -> str:
    """Return an item's type, which messages and references may leave out."""
    kind = item.get("type")
    if kind is None:
        return "message" if "role" in item or "id" not in item else REFERENCE
    return kind if isinstance(kind, str) else ""


def _item(path: Path, item: Any) -> Item:
    if not isinstance(item, dict):
        refuse(path, "must be an object with a type")
    kind = _type(item)
    id_, status = item.get("id"), item.get("status")
    if id_ is not None and not isinstance(id_, str):
        refuse((*path, "id"), "must be a string")
    if status is not None and status not in STATUSES:
        refuse((*path, "status"), f"must be one of {', '.join(STATUSES)}")
    read: Item
    match kind:
        case "message":
            return _message(path, item)
        case "function_call":
            read = {key: _string(path, item, key) for key in ("call_id", "name", "arguments")}
        case "function_call_output":
            read = {"call_id": _string(path, item, "call_id"), "output": _output(path, item)}
        case "reasoning":
            read = _reasoning(path, item)
        case "item_reference":
            return {"type": REFERENCE, "id": _string(path, item, "id")}
        case _:
            known = ", ".join(_KNOWN)
            refuse((*path, "type"), f"is {kind[:64] or 'no string'}; this server reads {known}")
    return {"id": id_, "type": kind, "status": status or "completed"} | read


def _message(path: Path, item: Mapping[str, Any]) -> Item:
    role = item.get("role")
    if not isinstance(role, str) or role not in ROLES:
        refuse((*path, "role"), f"must be one of {', '.join(ROLES)}")
    content = item.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list):
        refuse((*path, "content"), "must be a string or a list of text parts")
    read = [_part((*path, "content", j), part, role) for j, part in enumerate(parts)]
    status = item.get("status") or "completed"
    return {"id": item.get("id"), "type": "message", "status": status, "role": role,
            "content": read}  # fmt: skip


def _part(path: Path, part: Any, role: str) -> Item:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "refusal":
        return {"type": "refusal", "refusal": _string(path, part, "refusal")}
    if kind == "input_image":
        if role not in ("user", "tool"):
            refuse((*path, "type"), f"is a picture, which no {role} message has")
        image_part(path, part, place="input")
        return {"type": kind} | {key: part[key] for key in _KEPT if part.get(key) is not None}
    if kind not in ("input_text", "output_text", "text"):
        refuse((*path, "type"), "must be input_text or input_image; no audio or files are taken")
    text = _string(path, part, "text")
    if role == "assistant":
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {"type": "input_text", "text": text}


def _output(path: Path, item: Mapping[str, Any]) -> str | list[Item]:
    output = item.get("output")
    if isinstance(output, str):
        return output
    if not isinstance(output, list):
        refuse((*path, "output"), "must be a string or a list of text parts")
    return [_part((*path, "output", j), part, "tool") for j, part in enumerate(output)]


def _reasoning(path: Path, item: Mapping[str, Any]) -> Item:
    """Return a thought's fields; its summary is another's, and no template has a place for it."""
    read: dict[str, list[Item]] = {}
    for key, kind in (("summary", "summary_text"), ("content", "reasoning_text")):
        parts = item.get(key) or []
        if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
            refuse((*path, key), f"must be a list of parts of type {kind}")
        texts = [_string((*path, key, j), part, "text") for j, part in enumerate(parts)]
        read[key] = [{"type": kind, "text": text} for text in texts]
    sealed = item.get("encrypted_content")
    if sealed is not None and not isinstance(sealed, str):
        refuse((*path, "encrypted_content"), "must be a string")
    return {**read, "encrypted_content": sealed}


def _string(path: Path, item: Mapping[str, Any], key: str) -> str:
    value = item.get(key)
    return value if isinstance(value, str) else refuse((*path, key), "must be a string")
