"""Request bodies of Anthropic's interface: their schemas, and the frozen value they make.

A field is honoured, refused by its name, or ignored and named in the answer. None in a value means
that the caller said nothing.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from marshmallow import ValidationError, fields, validates_schema

from qwenapi.api.anthropic.content import System, Turns
from qwenapi.api.anthropic.tool_fields import ToolChoiceSchema, ToolDefinitions, choice_of
from qwenapi.generation.answer_format import AnswerFormat
from qwenapi.generation.sampling import SamplingRequest
from qwenapi.generation.tools import Tool, ToolChoice
from qwenapi.http.fields import (
    Composite,
    Neutral,
    Path,
    StrictBoolean,
    StrictChoice,
    StrictFloat,
    StrictInteger,
    StrictString,
    refuse,
)
from qwenapi.http.schemas import RequestSchema, StrictSchema
from qwenapi.shared_fields.json_schema import SchemaField

MAX_STOPS = 128
MAX_STOP_BYTES = 256
MAX_USER_ID_CHARS = 1024
INT32 = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class MessagesRequest(SamplingRequest):
    """A conversation to continue: messages as the chat template takes them, never in a repr."""

    messages: tuple[Mapping[str, Any], ...] = field(repr=False)
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = ToolChoice()
    parallel_tool_calls: bool = True
    enable_thinking: bool | None = None
    max_thought_tokens: int | None = None
    shows_thinking: bool = True
    answer_format: AnswerFormat | None = None


class StopSequences(fields.Field[tuple[str, ...]]):
    """Texts that end the answer; Anthropic's service, too, takes none of blanks alone."""

    CLAIM = (
        f"must be a list of at most {MAX_STOPS} strings, each of 1 to {MAX_STOP_BYTES} bytes and"
        " not only of blanks"
    )
    json_schema = {
        "type": "array",
        "items": {"type": "string", "minLength": 1, "maxLength": MAX_STOP_BYTES // 4},
        "maxItems": MAX_STOPS,
    }

    def _deserialize(self, value: Any, attr: str | None, data: Any, **_: Any) -> tuple[str, ...]:
        if not isinstance(value, list) or len(value) > MAX_STOPS:
            raise ValidationError(self.CLAIM)
        for stop in value:
            if not isinstance(stop, str) or not stop.strip():
                raise ValidationError(self.CLAIM)
            if len(stop.encode("utf-8")) > MAX_STOP_BYTES:
                raise ValidationError(self.CLAIM)
        return tuple(value)


class Metadata(Composite):
    """Who asks; it is looked at for its shape, and named as ignored."""

    json_schema = {"type": "object", "properties": {"user_id": {"type": ["string", "null"]}}}

    def unknown(self, value: Any) -> Iterator[Path]:
        """Yield all keys: none changes an answer."""
        for key in value if isinstance(value, dict) else ():
            if value[key] is not None:
                yield (key,)

    def _deserialize(self, value: Any, attr: str | None, data: Any, **_: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise ValidationError("must be an object")
        user = value.get("user_id")
        if user is not None and not (isinstance(user, str) and len(user) <= MAX_USER_ID_CHARS):
            refuse(("user_id",), f"must be a string of at most {MAX_USER_ID_CHARS} characters")
        return value


class ThinkingSchema(StrictSchema):
    """Whether to think, at most how long, and whether the thought is shown."""

    type = StrictChoice("enabled", "disabled", "adaptive", required=True)
    budget_tokens = StrictInteger(1, INT32)
    display = StrictChoice("summarized", "omitted")

    @validates_schema
    def check_budget(self, data: dict[str, Any], **_: Any) -> None:
        if data["type"] == "enabled" and "budget_tokens" not in data:
            raise ValidationError("is required where thinking is enabled", "budget_tokens")
        if data["type"] != "enabled" and "budget_tokens" in data:
            raise ValidationError("is for thinking of type enabled", "budget_tokens")


class OutputFormatSchema(StrictSchema):
    """What the text of the answer must look like."""

    type = StrictChoice("json_schema", required=True)
    schema = SchemaField(required=True, error_messages={"required": "is required"})


class OutputConfigSchema(StrictSchema):
    """Only `format` changes an answer here: how much effort a model makes it was trained to."""

    format = fields.Nested(OutputFormatSchema)


class CountTokensSchema(RequestSchema):
    """`POST /v1/messages/count_tokens`: what becomes part of the prompt."""

    value_class = MessagesRequest
    unsupported = {
        "container": Neutral("", feature="containers"),
        "mcp_servers": Neutral([], feature="MCP servers"),
    }
    without_effect = frozenset(
        """
        x-anthropic-billing-header user_id cache_control citations caller data service_tier
        inference_geo speed effort context_management diagnostics betas defer_loading
        allowed_callers input_examples eager_input_streaming
        max_tokens metadata stop_sequences stream temperature top_k top_p
        """.split()
    )  # the last line of those that count in a message's own schema

    model = StrictString(256, required=True)
    system = System()
    messages = Turns(required=True, error_messages={"required": "is required"})
    tools = ToolDefinitions()
    tool_choice = fields.Nested(ToolChoiceSchema)
    thinking = fields.Nested(ThinkingSchema)
    output_config = fields.Nested(OutputConfigSchema)
    output_format = fields.Nested(OutputFormatSchema)

    @validates_schema
    def check_together(self, data: dict[str, Any], **_: Any) -> None:
        """Refuse fields that contradict each other; runs only when each is right by itself."""
        if fault := choice_of(data.get("tool_choice", {})).fault(data.get("tools", ())):
            raise ValidationError(fault, "tool_choice")
        if "output_format" in data and "format" in data.get("output_config", {}):
            raise ValidationError("and 'output_config.format' exclude each other", "output_format")

    def shape(self, data: dict[str, Any]) -> dict[str, Any]:
        system = [{"role": "system", "content": data["system"]}] if data.get("system") else []
        choice, thinking = data.get("tool_choice", {}), data.get("thinking", {})
        format = data.get("output_format") or data.get("output_config", {}).get("format", {})
        return data | {
            "messages": (*system, *data["messages"]),
            "tool_choice": choice_of(choice),
            "parallel_tool_calls": not choice.get("disable_parallel_tool_use", False),
            "enable_thinking": thinking["type"] != "disabled" if thinking else None,
            "max_thought_tokens": thinking.get("budget_tokens"),
            "shows_thinking": thinking.get("display") != "omitted",
            "answer_format": format.get("schema"),
            "stop": data.get("stop_sequences", ()),
        }


class MessagesSchema(CountTokensSchema):
    """`POST /v1/messages`."""

    max_tokens = StrictInteger(1, required=True)
    metadata = Metadata()
    stop_sequences = StopSequences()
    stream = StrictBoolean()
    temperature = StrictFloat(0, 1)
    top_k = StrictInteger(0, INT32)
    top_p = StrictFloat(0, 1)
