"""Request bodies of OpenAI's interface: fields, schemas, and the frozen values they make.

A field is honoured, refused by name (foreign_fields.py), or ignored and named in the answer. None
in a value means that the caller said nothing. Knows no model: what depends on its context or
vocabulary is checked in generation/sampling.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import orjson
from marshmallow import ValidationError, fields, validates_schema

from qwenapi.api.openai.foreign_fields import (
    CHAT_UNSUPPORTED,
    COMPLETION_UNSUPPORTED,
    WITHOUT_EFFECT,
)
from qwenapi.api.openai.messages import Messages
from qwenapi.api.openai.structured_output import (
    GUIDED,
    Guided,
    ResponseFormat,
    StructuredOutputs,
)
from qwenapi.api.openai.token_fields import (
    MAX_ALLOWED_TOKENS,
    MAX_STOP_TOKENS,
    BadWords,
    LogitBias,
    Prompt,
    Prompts,
    RequestId,
    Salt,
    Stops,
    TokenIds,
)
from qwenapi.api.openai.tool_fields import Tools
from qwenapi.generation.answer_format import AnswerFormat
from qwenapi.generation.sampling import SamplingRequest
from qwenapi.generation.tools import Tool, ToolChoice
from qwenapi.http.fields import (
    StrictBoolean,
    StrictChoice,
    StrictInteger,
    StrictString,
)
from qwenapi.http.schemas import StrictSchema
from qwenapi.shared_fields.function_tools import ToolChoiceField, check_choice
from qwenapi.shared_fields.reasoning import REASONING_EFFORTS, effort_thinks
from qwenapi.shared_fields.sampling_fields import INT32, ChoosingSchema
from workers.wire.protocol import MAX_CHOICES

MAX_TOP_LOGPROBS = 20
MAX_SUFFIX_CHARS = 1024 * 1024
MAX_TEMPLATE_BYTES = 64 * 1024

# Fields that say what an answer must look like; at most one of them.
FORMATS = ("response_format", "structured_outputs", *GUIDED)

_CONTINUE = "continue_final_message"


@dataclass(frozen=True, kw_only=True)
class ChatRequest(SamplingRequest):
    """A conversation to continue: messages as the chat template takes them, never in a repr."""

    messages: tuple[Mapping[str, Any], ...] = field(repr=False)
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = ToolChoice()
    parallel_tool_calls: bool = True
    enable_thinking: bool | None = None
    template_arguments: Mapping[str, Any] = field(default_factory=dict)
    include_reasoning: bool = True
    max_thought_tokens: int | None = None
    continue_final_message: bool = False
    add_generation_prompt: bool = True
    answer_format: AnswerFormat | None = None


@dataclass(frozen=True, kw_only=True)
class CompletionRequest(SamplingRequest):
    """Raw prompts to continue, as text or as token ids."""

    prompts: tuple[Prompt, ...] = field(repr=False)
    suffix: str | None = field(default=None, repr=False)
    echo: bool = False
    best_of: int = 1
    add_special_tokens: bool = True
    answer_format: AnswerFormat | None = None


class StreamOptionsSchema(StrictSchema):
    """`continuous_usage_stats` is vLLM's: the counts so far on every event."""

    include_usage = StrictBoolean()
    continuous_usage_stats = StrictBoolean()


class TemplateArguments(fields.Field[Mapping[str, Any]]):
    """Arguments for the chat template, which says what they mean; some are the server's own."""

    RESERVED = ("messages", "tools", "add_generation_prompt", "documents")
    json_schema = {"type": "object", "properties": {"enable_thinking": {"type": "boolean"}}}

    def _deserialize(self, value: Any, attr: str | None, data: Any, **_: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise ValidationError("must be an object")
        for name in self.RESERVED:
            if name in value:
                raise ValidationError({name: ["is set by the server, not by template arguments"]})
        thinking = value.get("enable_thinking")
        if thinking is not None and not isinstance(thinking, bool):
            raise ValidationError({"enable_thinking": ["must be true or false"]})
        if len(orjson.dumps(value)) > MAX_TEMPLATE_BYTES:
            raise ValidationError(f"must take at most {MAX_TEMPLATE_BYTES} bytes")
        return {name: item for name, item in value.items() if item is not None}


class SamplingSchema(ChoosingSchema):
    """Fields of both interfaces: OpenAI's, then vLLM's extras."""

    without_effect = WITHOUT_EFFECT

    model = StrictString(256)
    max_tokens = StrictInteger(1)
    logit_bias = LogitBias()
    n = StrictInteger(1, MAX_CHOICES)
    stop = Stops()
    stream_options = fields.Nested(StreamOptionsSchema)

    stop_token_ids = TokenIds(MAX_STOP_TOKENS)
    include_stop_str_in_output = StrictBoolean()
    skip_special_tokens = StrictBoolean()
    allowed_token_ids = TokenIds(MAX_ALLOWED_TOKENS)
    bad_words = BadWords()
    truncate_prompt_tokens = StrictInteger(-1, INT32)
    prompt_logprobs = StrictInteger(0, MAX_TOP_LOGPROBS)
    return_token_ids = StrictBoolean()
    cache_salt = Salt()
    request_id = RequestId()

    response_format = ResponseFormat()
    structured_outputs = StructuredOutputs()
    guided_json = Guided("json")
    guided_regex = Guided("regex")
    guided_choice = Guided("choice")
    guided_grammar = Guided("grammar")

    @validates_schema
    def check_together(self, data: dict[str, Any], **_: Any) -> None:
        """Refuse fields that contradict each other; runs only when each is right by itself."""
        if "stream_options" in data and not data.get("stream"):
            raise ValidationError("needs 'stream' to be true", "stream_options")
        if len(formats := [name for name in FORMATS if data.get(name)]) > 1:
            raise ValidationError(f"and '{formats[0]}' exclude each other", formats[1])
        limit = _max_tokens(data)
        if limit is not None and data.get("min_tokens", 0) > limit:
            raise ValidationError(f"must be at most max_tokens, {limit}", "min_tokens")
        if data.get("truncate_prompt_tokens") == 0:
            raise ValidationError("must be -1 or at least 1", "truncate_prompt_tokens")
        if data.get("stream") and "prompt_logprobs" in data:
            raise ValidationError("and 'stream' exclude each other", "prompt_logprobs")

    def shape(self, data: dict[str, Any]) -> dict[str, Any]:
        options = data.get("stream_options", {})
        include_usage = options.get("include_usage", False)
        return data | {
            "max_tokens": _max_tokens(data),
            "include_usage": include_usage,
            "answer_format": next((data[name] for name in FORMATS if data.get(name)), None),
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
    chat_template_kwargs = TemplateArguments()
    enable_thinking = StrictBoolean()  # DashScope's and SiliconFlow's
    reasoning_effort = StrictChoice(*REASONING_EFFORTS)
    include_reasoning = StrictBoolean()
    thinking_token_budget = StrictInteger(-1, INT32)
    thinking_budget = StrictInteger(-1, INT32)  # DashScope's name of it

    tools = Tools()
    tool_choice = ToolChoiceField()
    parallel_tool_calls = StrictBoolean()
    continue_final_message = StrictBoolean()
    add_generation_prompt = StrictBoolean()

    best_of = StrictInteger(1, INT32)

    @validates_schema
    def check_best_of(self, data: dict[str, Any], **_: Any) -> None:
        """OpenAI's chats have no such field; some clients send it with a value of no effect."""
        if data.get("best_of", 1) > data.get("n", 1):
            claim = "asks for best_of, which chat completions do not have"
            raise ValidationError(claim, "best_of")

    @validates_schema
    def check_logprobs(self, data: dict[str, Any], **_: Any) -> None:
        if data.get("top_logprobs") and not data.get("logprobs"):
            raise ValidationError("needs 'logprobs' to be true", "top_logprobs")

    @validates_schema
    def check_tools(self, data: dict[str, Any], **_: Any) -> None:
        check_choice(data.get("tools", ()), data.get("tool_choice", ToolChoice()))

    @validates_schema
    def check_prefill(self, data: dict[str, Any], **_: Any) -> None:
        check_prefill(data)

    def shape(self, data: dict[str, Any]) -> dict[str, Any]:
        return super().shape(data) | {
            "logprobs": data.get("top_logprobs", 0) if data.get("logprobs") else None,
            "enable_thinking": thinking_switch(data),
            "max_thought_tokens": _thought_limit(data),
            "template_arguments": other_arguments(data),
            "continue_final_message": data.get("continue_final_message", False)
            or bool(data["messages"][-1].get("prefix")),
        }


class CompletionSchema(SamplingSchema):
    """`POST /v1/completions`."""

    value_class = CompletionRequest
    unsupported = COMPLETION_UNSUPPORTED

    prompts = Prompts(required=True, data_key="prompt", error_messages={"required": "is required"})
    max_tokens = StrictInteger(0)
    logprobs = StrictInteger(0, MAX_TOP_LOGPROBS)
    add_special_tokens = StrictBoolean()
    suffix = StrictString(MAX_SUFFIX_CHARS)
    echo = StrictBoolean()
    best_of = StrictInteger(1, MAX_CHOICES)

    @validates_schema
    def check_completion(self, data: dict[str, Any], **_: Any) -> None:
        for name in ("echo", "truncate_prompt_tokens"):
            if data.get(name) and "suffix" in data:
                raise ValidationError(f"and '{name}' exclude each other", "suffix")
        if data.get("stream") and data.get("best_of", 1) > data.get("n", 1):
            raise ValidationError("and 'stream' exclude each other", "best_of")

    def shape(self, data: dict[str, Any]) -> dict[str, Any]:
        return super().shape(data) | {"best_of": max(data.get("best_of", 1), data.get("n", 1))}


def check_prefill(data: dict[str, Any]) -> None:
    """Refuse a prefill that is no assistant's message, or is not to be gone on with."""
    if not data.get(_CONTINUE):
        return
    if data["messages"][-1]["role"] != "assistant":
        raise ValidationError("needs the last message to be an assistant's", _CONTINUE)
    if data.get("add_generation_prompt"):
        raise ValidationError("and 'add_generation_prompt' exclude each other", _CONTINUE)


def thinking_switch(data: dict[str, Any]) -> bool | None:
    """Return whether to think, as the most exact of the three fields that say it has it."""
    chosen = data.get("chat_template_kwargs", {}).get("enable_thinking")
    if chosen is None:
        chosen = data.get("enable_thinking")
    if chosen is None and "reasoning_effort" in data:
        chosen = effort_thinks(data["reasoning_effort"])
    return cast("bool | None", chosen)


def other_arguments(data: dict[str, Any]) -> dict[str, Any]:
    """Return the template's arguments but for the one that `thinking_switch` reads."""
    given = data.get("chat_template_kwargs", {})
    return {name: value for name, value in given.items() if name != "enable_thinking"}


def _thought_limit(data: dict[str, Any]) -> int | None:
    """Return the most tokens of a thought; -1 asks for none, as vLLM has it."""
    limit = data.get("thinking_token_budget", data.get("thinking_budget", -1))
    return None if limit < 0 else int(limit)


def _max_tokens(data: dict[str, Any]) -> int | None:
    """Return the caller's limit: of OpenAI's two names the newer wins."""
    return cast("int | None", data.get("max_completion_tokens", data.get("max_tokens")))
