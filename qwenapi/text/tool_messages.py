"""Messages of a conversation with tools and thoughts, as Qwen's chat templates take them.

Clients send what OpenAI's interface says: arguments as JSON text; content that may be null, parts
or absent; thoughts under one of two names. The templates read arguments as an object, content as a
string, and thoughts as `reasoning_content`. Takes messages that were checked already, changes
nothing in place, and passes on every other key.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from qwenapi.text.output.call_format import CallFormat

Message = Mapping[str, Any]

_REWRITTEN = {"content", "reasoning", "reasoning_content", "tool_calls"}


def to_template(
    messages: Sequence[Message], call_format: CallFormat | None = None
) -> list[dict[str, Any]]:
    """Return the messages as the template of a model with this format of calls takes them."""
    return [_convert(message, call_format) for message in messages]


def join_text_parts(content: Any) -> Any:
    """Return parts that are all text as one string; other content, images too, as it is."""
    if not isinstance(content, list | tuple):
        return content
    parts = [part.get("text") if isinstance(part, Mapping) else None for part in content]
    texts = [text for text in parts if isinstance(text, str)]
    return "\n".join(texts) if len(texts) == len(parts) else content


def _convert(message: Message, call_format: CallFormat | None) -> dict[str, Any]:
    converted = {key: value for key, value in message.items() if key not in _REWRITTEN}
    content = join_text_parts(message.get("content"))
    converted["content"] = "" if content is None else content
    reasoning = message.get("reasoning_content")
    reasoning = message.get("reasoning") if reasoning is None else reasoning
    if reasoning is not None:
        converted["reasoning_content"] = reasoning
    if message.get("tool_calls"):
        converted["tool_calls"] = [_convert_call(c, call_format) for c in message["tool_calls"]]
    return converted


def _convert_call(call: Mapping[str, Any], call_format: CallFormat | None) -> dict[str, Any]:
    function = call["function"]
    arguments = _read_arguments(function.get("arguments"))
    if call_format == "xml" and not isinstance(arguments, Mapping):
        # These templates write arguments one by one. The model is to see what it wrote, and a
        # conversation with one broken call to go on.
        arguments = {"arguments": arguments}
    return {**call, "function": {**function, "arguments": arguments}}


def _read_arguments(arguments: Any) -> Any:
    """Return the value of a JSON text, or the text itself where it is no JSON object."""
    if not isinstance(arguments, str):
        return {} if arguments is None else arguments
    try:
        value = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        return arguments
    return value if isinstance(value, dict) else arguments
