"""Request bodies of OpenAI's interface: fields, schemas, and the frozen values they make.

A field is honoured, refused by name (foreign_fields.py), or ignored and named in the answer. None
in a value means that the caller said nothing. Knows no model: what depends on its context or
vocabulary is checked in generation/sampling.py.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn, cast

from marshmallow import ValidationError, fields, validates_schema

from qwenapi.api.openai.foreign_fields import (
    CHAT_UNSUPPORTED,
    COMPLETION_UNSUPPORTED,
    MESSAGE_UNSUPPORTED,
    WITHOUT_EFFECT,
)
from qwenapi.generation.sampling import SamplingRequest
from qwenapi.http.fields import (
    Composite,
    Path,
    StrictBoolean,
    StrictChoice,
    StrictFloat,
    StrictInteger,
    StrictString,
)
from qwenapi.http.schemas import RequestSchema, StrictSchema

MAX_MESSAGES = 1024
MAX_PARTS = 256
MAX_PROMPTS = 16
MAX_CHOICES = 8
MAX_STOPS = 16
MAX_STOP_BYTES = 256
MAX_STOP_TOKENS = 128
MAX_BIASES = 300
MAX_TOP_LOGPROBS = 20
INT32 = 2**31 - 1
INT64 = 2**63 - 1

REASONING_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh")
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
TOKEN_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": INT32}}
TOKEN_IDS_CLAIM = f"must be a list of token ids, integers from 0 to {INT32}"

Prompt = str | tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class ChatRequest(SamplingRequest):
    """A conversation to continue: messages as the chat template takes them, never in a repr."""

    messages: tuple[Mapping[str, str], ...] = field(repr=False)
    enable_thinking: bool | None = None


@dataclass(frozen=True, kw_only=True)
class CompletionRequest(SamplingRequest):
    """Raw prompts to continue, as text or as token ids."""

    prompts: tuple[Prompt, ...] = field(repr=False)
    add_special_tokens: bool = True


class Stops(fields.Field[tuple[str, ...]]):
    """One stop string or several."""

    CLAIM = f"must be a string or up to {MAX_STOPS} strings, each of 1 to {MAX_STOP_BYTES} bytes"
    # In characters, which take up to four bytes each.
    ONE = {"type": "string", "minLength": 1, "maxLength": MAX_STOP_BYTES // 4}
    json_schema = {"anyOf": [ONE, {"type": "array", "items": ONE, "maxItems": MAX_STOPS}]}

    def _deserialize(self, value: Any, attr: str | None, data: Any, **_: Any) -> tuple[str, ...]:
        stops = [value] if isinstance(value, str) else value
        if not isinstance(stops, list) or len(stops) > MAX_STOPS or not all(map(_is_stop, stops)):
            raise ValidationError(self.CLAIM)
        return tuple(stops)


class TokenIds(fields.Field[tuple[int, ...]]):
    """A short list of token ids."""

    json_schema = TOKEN_IDS | {"maxItems": MAX_STOP_TOKENS}

    def _deserialize(self, value: Any, attr: str | None, data: Any, **_: Any) -> tuple[int, ...]:
        if not isinstance(value, list) or len(value) > MAX_STOP_TOKENS or not _are_token_ids(value):
            raise ValidationError(f"{TOKEN_IDS_CLAIM}, at most {MAX_STOP_TOKENS} of them")
        return tuple(value)


class LogitBias(fields.Field[Mapping[int, float]]):
    """Token id, a decimal string as JSON has no other keys, to a number added to its logit."""

    CLAIM = f"must map at most {MAX_BIASES} token ids to numbers from -100 to 100"
    json_schema = {
        "type": "object",
        "propertyNames": {"pattern": "^(0|[1-9][0-9]{0,8})$"},
        "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
        "maxProperties": MAX_BIASES,
    }

    def _deserialize(self, value: Any, attr: str | None, data: Any, **_: Any) -> dict[int, float]:
        if not isinstance(value, dict) or len(value) > MAX_BIASES:
            raise ValidationError(self.CLAIM)
        for key, bias in value.items():
            if not _is_token_key(key) or type(bias) not in (int, float) or not -100 <= bias <= 100:
                raise ValidationError(self.CLAIM)
        return {int(key): float(bias) for key, bias in value.items()}


class Messages(Composite):
    """A conversation. Text parts are joined by line breaks, as vLLM and llama.cpp join them."""

    # What the chat template may read, by role; vLLM and its clients say `reasoning`.
    OPTIONAL = {
        "system": ("name",),
        "user": ("name",),
        "assistant": ("name", "reasoning", "reasoning_content"),
    }
    PART = {
        "type": "object",
        "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
        "required": ["type", "text"],
    }
    PARTS = {"type": "array", "items": PART, "minItems": 1, "maxItems": MAX_PARTS}
    MESSAGE = {
        "type": "object",
        "properties": {
            "role": {"enum": list(ROLES)},
            "content": {"anyOf": [{"type": "string"}, PARTS]},
            "name": {"type": ["string", "null"]},
        },
        "required": ["role", "content"],
    }
    json_schema = {"type": "array", "items": MESSAGE, "minItems": 1, "maxItems": MAX_MESSAGES}

    def unknown(self, value: Any) -> Iterator[Path]:
        """Yield the keys of messages and of their parts that no template is given."""
        for i, message in enumerate(value if isinstance(value, list) else ()):
            if not isinstance(message, dict):
                continue
            known = {"role", "content", *self._optional(message), *MESSAGE_UNSUPPORTED}
            yield from (
                (i, key) for key in message if key not in known and message[key] is not None
            )
            content = message.get("content")
            for j, part in enumerate(content if isinstance(content, list) else ()):
                for key in part if isinstance(part, dict) else ():
                    if key not in ("type", "text") and part[key] is not None:
                        yield i, "content", j, key

    def _deserialize(
        self, value: Any, attr: str | None, data: Any, **_: Any
    ) -> tuple[Mapping[str, str], ...]:
        if not isinstance(value, list) or not 1 <= len(value) <= MAX_MESSAGES:
            raise ValidationError(f"must be a list of 1 to {MAX_MESSAGES} messages")
        return tuple(self._message(i, message) for i, message in enumerate(value))

    def _message(self, i: int, message: Any) -> Mapping[str, str]:
        if not isinstance(message, dict):
            _refuse((i,), "must be an object with a role and content")
        if message.get("role") in ("tool", "function"):
            _refuse((i, "role"), "asks for tools, which this server does not support")
        if not isinstance(message.get("role"), str) or message["role"] not in ROLES:
            _refuse((i, "role"), f"must be one of {', '.join(ROLES)}")
        for key in MESSAGE_UNSUPPORTED.keys() & message.keys():
            _check_neutral(i, key, message[key])
        known = {
            "role": ROLES[message["role"]],
            "content": _content(i, message.get("content")),
            **self._further(i, message),
        }
        if thought := known.pop("reasoning", ""):
            known.setdefault("reasoning_content", thought)
        return known

    def _further(self, i: int, message: dict[str, Any]) -> dict[str, str]:
        """Return the optional texts of a message that its template may read."""
        given = {
            key: message[key] for key in self._optional(message) if message.get(key) is not None
        }
        for key, item in given.items():
            if not isinstance(item, str):
                _refuse((i, key), "must be a string")
        return given

    def _optional(self, message: dict[str, Any]) -> tuple[str, ...]:
        role = message.get("role")
        return self.OPTIONAL.get(ROLES.get(role, ""), ()) if isinstance(role, str) else ()


class Prompts(fields.Field[tuple[Prompt, ...]]):
    """A text, texts, token ids, or lists of token ids."""

    CLAIM = f"must be a string, a list of token ids, or a list of 1 to {MAX_PROMPTS} of either"
    SOME_IDS = TOKEN_IDS | {"minItems": 1}
    SEVERAL = {"type": "array", "minItems": 1, "maxItems": MAX_PROMPTS}
    json_schema = {
        "anyOf": [
            {"type": "string"},
            SOME_IDS,
            SEVERAL | {"items": {"type": "string"}},
            SEVERAL | {"items": SOME_IDS},
        ]
    }

    def _deserialize(self, value: Any, attr: str | None, data: Any, **_: Any) -> tuple[Prompt, ...]:
        if isinstance(value, str):
            return (value,)
        if not isinstance(value, list) or not value:
            raise ValidationError(self.CLAIM)
        if _are_token_ids(value):
            return (tuple(value),)
        if len(value) > MAX_PROMPTS:
            raise ValidationError(self.CLAIM)
        if all(isinstance(item, str) for item in value):
            return tuple(value)
        if all(isinstance(item, list) and item and _are_token_ids(item) for item in value):
            return tuple(map(tuple, value))
        raise ValidationError(self.CLAIM)


class StreamOptionsSchema(StrictSchema):
    """`continuous_usage_stats` is vLLM's: the counts so far on every event."""

    include_usage = StrictBoolean()
    continuous_usage_stats = StrictBoolean()


class TemplateArgumentsSchema(StrictSchema):
    """The arguments of the chat template a caller may set; the others are the server's own."""

    enable_thinking = StrictBoolean()


class SamplingSchema(RequestSchema):
    """Fields of both interfaces: OpenAI's, then vLLM's extras."""

    without_effect = WITHOUT_EFFECT

    model = StrictString(256)
    max_tokens = StrictInteger(1)
    temperature = StrictFloat(0, 2)
    top_p = StrictFloat(0, 1)
    presence_penalty = StrictFloat(-2, 2)
    frequency_penalty = StrictFloat(-2, 2)
    logit_bias = LogitBias()
    seed = StrictInteger(-INT64 - 1, INT64)
    n = StrictInteger(1, MAX_CHOICES)
    stop = Stops()
    stream = StrictBoolean()
    stream_options = fields.Nested(StreamOptionsSchema)

    top_k = StrictInteger(-1, INT32)
    min_p = StrictFloat(0, 1)
    repetition_penalty = StrictFloat(0.01, 2)
    min_tokens = StrictInteger(0, INT32)
    stop_token_ids = TokenIds()
    ignore_eos = StrictBoolean()
    skip_special_tokens = StrictBoolean()
    priority = StrictInteger(-INT32 - 1, INT32)

    best_of = StrictInteger(1, INT32)

    @validates_schema
    def check_together(self, data: dict[str, Any], **_: Any) -> None:
        """Refuse fields that contradict each other; runs only when each is right by itself."""
        if "stream_options" in data and not data.get("stream"):
            raise ValidationError("needs 'stream' to be true", "stream_options")
        limit = _max_tokens(data)
        if limit is not None and data.get("min_tokens", 0) > limit:
            raise ValidationError(f"must be at most max_tokens, {limit}", "min_tokens")
        if data.get("best_of", 1) > data.get("n", 1):
            claim = "asks for best_of, which this server does not support"
            raise ValidationError(claim, "best_of")

    def shape(self, data: dict[str, Any]) -> dict[str, Any]:
        options = data.get("stream_options", {})
        include_usage = options.get("include_usage", False)
        return data | {
            "max_tokens": _max_tokens(data),
            "include_usage": include_usage,
            "continuous_usage": include_usage and options.get("continuous_usage_stats", False),
        }


class ChatSchema(SamplingSchema):
    """`POST /v1/chat/completions`."""

    value_class = ChatRequest
    unsupported = CHAT_UNSUPPORTED

    messages = Messages(required=True, error_messages={"required": "is required"})
    max_completion_tokens = StrictInteger(1)
    logprobs = StrictBoolean()
    top_logprobs = StrictInteger(0, MAX_TOP_LOGPROBS)
    chat_template_kwargs = fields.Nested(TemplateArgumentsSchema)
    enable_thinking = StrictBoolean()  # DashScope's and SiliconFlow's
    reasoning_effort = StrictChoice(*REASONING_EFFORTS)
    parallel_tool_calls = StrictBoolean()

    @validates_schema
    def check_logprobs(self, data: dict[str, Any], **_: Any) -> None:
        if data.get("top_logprobs") and not data.get("logprobs"):
            raise ValidationError("needs 'logprobs' to be true", "top_logprobs")

    def shape(self, data: dict[str, Any]) -> dict[str, Any]:
        return super().shape(data) | {
            "logprobs": data.get("top_logprobs", 0) if data.get("logprobs") else None,
            "enable_thinking": _enable_thinking(data),
        }


class CompletionSchema(SamplingSchema):
    """`POST /v1/completions`."""

    value_class = CompletionRequest
    unsupported = COMPLETION_UNSUPPORTED

    prompts = Prompts(required=True, data_key="prompt", error_messages={"required": "is required"})
    logprobs = StrictInteger(0, MAX_TOP_LOGPROBS)
    add_special_tokens = StrictBoolean()


def _enable_thinking(data: dict[str, Any]) -> bool | None:
    """Return whether to think, as the most exact of the three fields that say it has it."""
    chosen = data.get("chat_template_kwargs", {}).get("enable_thinking")
    if chosen is None:
        chosen = data.get("enable_thinking")
    if chosen is None and "reasoning_effort" in data:
        chosen = data["reasoning_effort"] != "none"
    return cast("bool | None", chosen)


def _max_tokens(data: dict[str, Any]) -> int | None:
    """Return the caller's limit: of OpenAI's two names the newer wins."""
    return cast("int | None", data.get("max_completion_tokens", data.get("max_tokens")))


def _content(i: int, content: Any) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not 1 <= len(content) <= MAX_PARTS:
        _refuse((i, "content"), f"must be a string or a list of 1 to {MAX_PARTS} text parts")
    return "\n".join(_part(i, j, part) for j, part in enumerate(content))


def _part(i: int, j: int, part: Any) -> str:
    if not isinstance(part, dict):
        _refuse((i, "content", j), "must be an object with a type and text")
    if part.get("type") != "text":
        _refuse(
            (i, "content", j, "type"), "must be text; this server takes no images, audio or files"
        )
    if not isinstance(part.get("text"), str):
        _refuse((i, "content", j), "must hold a type and a text, which is a string")
    return cast("str", part["text"])


def _refuse(path: tuple[str | int, ...], claim: str) -> NoReturn:
    errors: Any = [claim]
    for key in reversed(path):
        errors = {key: errors}
    raise ValidationError(errors)


def _check_neutral(i: int, key: str, value: Any) -> None:
    """Refuse a key of a message that asks for what is not built."""
    neutral = MESSAGE_UNSUPPORTED[key]
    if value is not None and not neutral.accepts(value):
        _refuse((i, key), neutral.claim)


def _is_stop(value: Any) -> bool:
    return isinstance(value, str) and 1 <= len(value.encode("utf-8")) <= MAX_STOP_BYTES


def _are_token_ids(values: list[Any]) -> bool:
    """Return whether all are; of a million this takes a few milliseconds, looking at each 60."""
    return not values or (
        set(map(type, values)) == {int} and min(values) >= 0 and max(values) <= INT32
    )


def _is_token_key(key: str) -> bool:
    """Return whether a key is a decimal id in its one spelling, so that no id is named twice."""
    return len(key) <= 10 and key.isascii() and key.isdigit() and str(int(key)) == key
