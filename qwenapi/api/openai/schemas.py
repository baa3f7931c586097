"""Request bodies of OpenAI's interface: fields, schemas, and the frozen values they make.

A field is honoured, or refused by name; the few that change no output are listed as such. None in a
value means that the caller said nothing. Knows no model: what depends on its context or vocabulary
is checked in generation/sampling.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn, cast

from marshmallow import ValidationError, fields, validates_schema

from qwenapi.generation.sampling import SamplingRequest
from qwenapi.http.fields import Neutral, StrictBoolean, StrictFloat, StrictInteger, StrictString
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
MAX_METADATA = 16
INT32 = 2**31 - 1
INT64 = 2**63 - 1

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


class Metadata(fields.Field[dict[str, str]]):
    """OpenAI's labels of a request; they change no output."""

    json_schema = {
        "type": "object",
        "additionalProperties": {"type": "string"},
        "maxProperties": MAX_METADATA,
    }

    def _deserialize(self, value: Any, attr: str | None, data: Any, **_: Any) -> dict[str, str]:
        if not isinstance(value, dict) or len(value) > MAX_METADATA:
            raise ValidationError(f"must be an object of at most {MAX_METADATA} strings")
        if not all(isinstance(item, str) for item in value.values()):
            raise ValidationError("must map names to strings")
        return value


class Messages(fields.Field[tuple[Mapping[str, str], ...]]):
    """A conversation. Text parts are joined by line breaks, as vLLM and llama.cpp join them."""

    OPTIONAL = {"system": ("name",), "user": ("name",), "assistant": ("name", "reasoning_content")}
    # Parts of OpenAI's assistant message that a client echoes back empty.
    EMPTY = ("tool_calls", "function_call", "refusal", "audio", "annotations")
    PART = {
        "type": "object",
        "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
        "required": ["type", "text"],
        "additionalProperties": False,
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
        role = ROLES[message["role"]]
        known = {"role": role, "content": _content(i, message.get("content"))}
        for key, item in message.items():
            if (
                key in ("role", "content")
                or item is None
                and key in (*self.EMPTY, *self.OPTIONAL[role])
            ):
                continue
            if key in self.OPTIONAL[role]:
                known[key] = (
                    item if isinstance(item, str) else _refuse((i, key), "must be a string")
                )
            elif item != [] or key not in self.EMPTY:
                _refuse_key(i, key)
        return known


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
    include_usage = StrictBoolean()
    include_obfuscation = Neutral(False, feature="stream obfuscation")


class TemplateArgumentsSchema(StrictSchema):
    """The arguments of the chat template a caller may set; the others are the server's own."""

    enable_thinking = StrictBoolean()


class SamplingSchema(RequestSchema):
    """Fields of both interfaces: OpenAI's, vLLM's extras, then those that change nothing."""

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

    user = StrictString(512)
    metadata = Metadata()
    safety_identifier = StrictString(512)
    prompt_cache_key = StrictString(512)
    response_format = Neutral({"type": "text"}, feature="structured output")
    service_tier = Neutral("auto", feature="service tiers")
    store = Neutral(False, feature="stored completions")
    best_of = Neutral(1, feature="best_of")
    echo = Neutral(False, feature="echo")

    @validates_schema
    def check_together(self, data: dict[str, Any], **_: Any) -> None:
        """Refuse fields that contradict each other; runs only when each is right by itself."""
        if "stream_options" in data and not data.get("stream"):
            raise ValidationError("needs 'stream' to be true", "stream_options")
        limit = _max_tokens(data)
        if limit is not None and data.get("min_tokens", 0) > limit:
            raise ValidationError(f"must be at most max_tokens, {limit}", "min_tokens")

    def shape(self, data: dict[str, Any]) -> dict[str, Any]:
        return data | {
            "max_tokens": _max_tokens(data),
            "include_usage": data.get("stream_options", {}).get("include_usage", False),
        }


class ChatSchema(SamplingSchema):
    """`POST /v1/chat/completions`."""

    value_class = ChatRequest

    messages = Messages(required=True, error_messages={"required": "is required"})
    max_completion_tokens = StrictInteger(1)
    logprobs = StrictBoolean()
    top_logprobs = StrictInteger(0, MAX_TOP_LOGPROBS)
    chat_template_kwargs = fields.Nested(TemplateArgumentsSchema)

    tools = Neutral([], feature="tools")
    tool_choice = Neutral("none", "auto", feature="tools")
    parallel_tool_calls = StrictBoolean()

    @validates_schema
    def check_logprobs(self, data: dict[str, Any], **_: Any) -> None:
        if "top_logprobs" in data and not data.get("logprobs"):
            raise ValidationError("needs 'logprobs' to be true", "top_logprobs")

    def shape(self, data: dict[str, Any]) -> dict[str, Any]:
        return super().shape(data) | {
            "logprobs": data.get("top_logprobs", 0) if data.get("logprobs") else None,
            "enable_thinking": data.get("chat_template_kwargs", {}).get("enable_thinking"),
        }


class CompletionSchema(SamplingSchema):
    """`POST /v1/completions`."""

    value_class = CompletionRequest

    prompts = Prompts(required=True, data_key="prompt", error_messages={"required": "is required"})
    logprobs = StrictInteger(0, MAX_TOP_LOGPROBS)
    suffix = Neutral(feature="a suffix")


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
    if part.keys() != {"type", "text"} or not isinstance(part["text"], str):
        _refuse(
            (i, "content", j), "must hold a type and a text, which is a string, and nothing else"
        )
    return part["text"]


def _refuse(path: tuple[str | int, ...], claim: str) -> NoReturn:
    errors: Any = [claim]
    for key in reversed(path):
        errors = {key: errors}
    raise ValidationError(errors)


def _refuse_key(i: int, key: str) -> NoReturn:
    if key in ("tool_calls", "function_call"):
        _refuse((i, key), "asks for tools, which this server does not support")
    _refuse((i, key), "is not a field of this message")


def _is_stop(value: Any) -> bool:
    return isinstance(value, str) and 1 <= len(value.encode("utf-8")) <= MAX_STOP_BYTES


def _are_token_ids(values: list[Any]) -> bool:
    return all(type(value) is int and 0 <= value <= INT32 for value in values)


def _is_token_key(key: str) -> bool:
    """Return whether a key is a decimal id in its one spelling, so that no id is named twice."""
    return len(key) <= 10 and key.isascii() and key.isdigit() and str(int(key)) == key
