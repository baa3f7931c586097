"""Request bodies of the Responses interface: their schemas, and the frozen value they make.

A field is honoured, refused by its name, or ignored and named in the answer. None in a value means
that the caller said nothing.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from marshmallow import ValidationError, fields, validates_schema

from qwenapi.api.responses.items import Input, Item
from qwenapi.api.responses.tool_fields import CallableTools, choice_body, tool_body
from qwenapi.generation.sampling import SamplingRequest
from qwenapi.generation.tools import Tool, ToolChoice
from qwenapi.http.fields import (
    Composite,
    Neutral,
    Path,
    StrictBoolean,
    StrictChoice,
    StrictInteger,
    StrictString,
    refuse,
)
from qwenapi.http.schemas import RequestSchema, StrictSchema
from qwenapi.shared_fields.function_tools import ToolChoiceField, check_choice
from qwenapi.shared_fields.json_schema import read_schema
from qwenapi.shared_fields.labels import Labels
from qwenapi.shared_fields.reasoning import REASONING_EFFORTS, effort_thinks
from qwenapi.shared_fields.sampling_fields import ChoosingSchema
from qwenapi.text.grammars import JSON_OBJECT
from workers.wire.grammar import Grammar

MAX_TOP_LOGPROBS = 20
MAX_LABEL_CHARS = 512

SEALED_THOUGHTS, LOGPROBS = "reasoning.encrypted_content", "message.output_text.logprobs"
# Nothing here has what these ask for.
_INCLUDES_NOTHING = (
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
)


@dataclass(frozen=True, kw_only=True)
class ResponseRequest(SamplingRequest):
    """Items to answer. `told` is what the answer says of its request, by the names it has there."""

    items: tuple[Item, ...] = field(default=(), repr=False)
    instructions: str | None = field(default=None, repr=False)
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = ToolChoice()
    parallel_tool_calls: bool = True
    enable_thinking: bool | None = None
    answer_format: Grammar | None = None
    seals_thoughts: bool = False
    previous_response_id: str | None = None
    conversation: str | None = None
    drops_oldest: bool = False
    store: bool = True
    background: bool = False
    told: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, kw_only=True)
class ConversationRequest:
    """Items that a conversation is to have, and what it is labelled with."""

    items: tuple[Item, ...] = field(default=(), repr=False)
    metadata: Mapping[str, str] = field(default_factory=dict)


class TextFormat(NamedTuple):
    """The grammar of a text, None for any, and the format as answers name it."""

    grammar: Grammar | None
    body: Mapping[str, Any]


class TextFormatField(Composite):
    """`text`, `json_object`, or a `json_schema`, whose fields stand beside its type."""

    KNOWN = ("type", "name", "description", "schema", "strict")
    KINDS = (
        ("name", str, "must be a string"),
        ("description", str, "must be a string"),
        ("strict", bool, "must be true or false"),
    )
    json_schema = {
        "type": "object",
        "properties": {
            "type": {"enum": ["text", "json_object", "json_schema"]},
            "name": {"type": ["string", "null"]},
            "description": {"type": ["string", "null"]},
            "schema": {"type": "object"},
            "strict": {"type": ["boolean", "null"]},
        },
        "required": ["type"],
    }

    def unknown(self, value: Any) -> Iterator[Path]:
        """Yield the keys that mean nothing here."""
        for key in value if isinstance(value, dict) else ():
            if key not in self.KNOWN and value[key] is not None:
                yield (key,)

    def _deserialize(self, value: Any, attr: str | None, data: Any, **_: Any) -> TextFormat:
        kind = value.get("type") if isinstance(value, dict) else None
        if kind == "text":
            return TextFormat(None, {"type": kind})
        if kind == "json_object":
            return TextFormat(Grammar(kind="json_schema", text=JSON_OBJECT), {"type": kind})
        if kind != "json_schema":
            raise ValidationError("must have the type text, json_object or json_schema")
        if not isinstance(value.get("schema"), dict):
            refuse(("schema",), "must be a JSON Schema, which is an object")
        for key, kind, claim in self.KINDS:
            if value.get(key) is not None and not isinstance(value[key], kind):
                refuse((key,), claim)
        told = {key: value[key] for key in self.KNOWN if value.get(key) is not None}
        return TextFormat(read_schema(value["schema"]), {"name": "", "strict": None} | told)


class TextSchema(StrictSchema):
    """Only `format` changes an answer here: how much a model says it was trained to."""

    format = TextFormatField()


class ReasoningSchema(StrictSchema):
    """Whether to think. A thought is given as it is, and has no summary."""

    effort = StrictChoice(*REASONING_EFFORTS)


class Include(Composite):
    """What an answer is to have besides; what nothing here has is named as ignored."""

    json_schema = {
        "type": "array",
        "items": {"enum": [SEALED_THOUGHTS, LOGPROBS, *_INCLUDES_NOTHING]},
    }

    def unknown(self, value: Any) -> Iterator[Path]:
        """Yield the places of what is never there."""
        for i, name in enumerate(value if isinstance(value, list) else ()):
            if name in _INCLUDES_NOTHING:
                yield (i,)

    def _deserialize(self, value: Any, attr: str | None, data: Any, **_: Any) -> tuple[str, ...]:
        known = (SEALED_THOUGHTS, LOGPROBS, *_INCLUDES_NOTHING)
        if not isinstance(value, list):
            raise ValidationError("must be a list of strings")
        for i, name in enumerate(value):
            if name not in known:
                refuse((i,), f"must be one of {', '.join(known)}")
        return tuple(value)


class ConversationField(fields.Field[str]):
    """A conversation's id, or an object that has it."""

    json_schema = {
        "anyOf": [
            {"type": "string"},
            {"type": "object", "properties": {"id": {"type": "string"}}, "required": ["id"]},
        ]
    }

    def _deserialize(self, value: Any, attr: str | None, data: Any, **_: Any) -> str:
        id_ = value.get("id") if isinstance(value, dict) else value
        if not isinstance(id_, str):
            raise ValidationError("must be an id, or an object that has one")
        return id_


class MetadataSchema(RequestSchema):
    """`POST /v1/conversations/ID`: other labels."""

    value_class = ConversationRequest

    metadata = Labels(required=True, error_messages={"required": "is required"})


class ItemsSchema(RequestSchema):
    """`POST /v1/conversations/ID/items`: more items."""

    value_class = ConversationRequest

    items = Input(required=True, error_messages={"required": "is required"})


class ConversationSchema(RequestSchema):
    """`POST /v1/conversations`."""

    value_class = ConversationRequest

    items = Input()
    metadata = Labels()


class InputTokensSchema(RequestSchema):
    """`POST /v1/responses/input_tokens`: what becomes part of the prompt."""

    value_class = ResponseRequest
    unsupported = {
        "prompt": Neutral(feature="stored prompts"),
        "context_management": Neutral([], feature="compaction of the context"),
        "moderation": Neutral(feature="moderation"),
    }
    without_effect = frozenset(
        """
        summary generate_summary verbosity max_tool_calls stream_options phase annotations logprobs
        prompt_cache_options access_programs image personality client_metadata
        background include max_output_tokens metadata prompt_cache_key prompt_cache_retention
        safety_identifier service_tier store stream temperature top_logprobs top_p user
        presence_penalty frequency_penalty seed top_k min_p repetition_penalty min_tokens
        ignore_eos priority
        """.split()
    )  # the last four lines of those that count in a response's own schema

    model = StrictString(256)
    items = Input(data_key="input")
    instructions = StrictString(None)
    tools = CallableTools()
    tool_choice = ToolChoiceField()
    parallel_tool_calls = StrictBoolean()
    previous_response_id = StrictString(MAX_LABEL_CHARS)
    conversation = ConversationField()
    reasoning = fields.Nested(ReasoningSchema)
    text = fields.Nested(TextSchema)
    truncation = StrictChoice("auto", "disabled")

    @validates_schema
    def check_together(self, data: dict[str, Any], **_: Any) -> None:
        """Refuse fields that contradict each other; runs only when each is right by itself."""
        check_choice(data.get("tools", ()), data.get("tool_choice", ToolChoice()))
        goes_on_from = data.keys() & {"previous_response_id", "conversation"}
        if len(goes_on_from) == 2:
            raise ValidationError("and 'previous_response_id' exclude each other", "conversation")
        if "items" not in data and not goes_on_from:
            raise ValidationError("is required", "input")

    def shape(self, data: dict[str, Any]) -> dict[str, Any]:
        effort = data.get("reasoning", {}).get("effort")
        format = data.get("text", {}).get("format", TextFormat(None, {"type": "text"}))
        include = data.get("include", ())
        wants_logprobs = LOGPROBS in include or data.get("top_logprobs")
        return data | {
            "enable_thinking": None if effort is None else effort_thinks(effort),
            "answer_format": format.grammar,
            "max_tokens": data.get("max_output_tokens"),
            "logprobs": data.get("top_logprobs", 0) if wants_logprobs else None,
            "seals_thoughts": SEALED_THOUGHTS in include,
            "drops_oldest": data.get("truncation") == "auto",
            "told": _told(data, effort, format),
        }


class ResponsesSchema(InputTokensSchema, ChoosingSchema):
    """`POST /v1/responses`."""

    background = StrictBoolean()
    include = Include()
    max_output_tokens = StrictInteger(1)
    metadata = Labels()
    prompt_cache_key = StrictString(MAX_LABEL_CHARS)
    prompt_cache_retention = StrictString(MAX_LABEL_CHARS)
    safety_identifier = StrictString(MAX_LABEL_CHARS)
    service_tier = StrictString(MAX_LABEL_CHARS)
    store = StrictBoolean()
    top_logprobs = StrictInteger(0, MAX_TOP_LOGPROBS)
    user = StrictString(MAX_LABEL_CHARS)

    @validates_schema
    def check_background(self, data: dict[str, Any], **_: Any) -> None:
        if data.get("background") and not data.get("store", True):
            raise ValidationError("needs 'store' to be true", "background")
        for name in ("stream", "conversation"):
            if data.get("background") and data.get(name):
                raise ValidationError(f"and '{name}' exclude each other", "background")


def _told(data: dict[str, Any], effort: str | None, format: TextFormat) -> dict[str, Any]:
    """Return what an answer says of its request; of what has no effect here the usual value."""
    conversation = data.get("conversation")
    same = (
        *("instructions", "max_output_tokens", "previous_response_id", "prompt_cache_key"),
        *("prompt_cache_retention", "safety_identifier", "user"),
    )
    return {name: data.get(name) for name in same} | {
        "background": data.get("background", False),
        "conversation": None if conversation is None else {"id": conversation},
        "max_tool_calls": None,
        "metadata": data.get("metadata", {}),
        "parallel_tool_calls": data.get("parallel_tool_calls", True),
        "prompt": None,
        "reasoning": {"effort": effort, "summary": None},
        "service_tier": "default",
        "store": data.get("store", True),
        "text": {"format": format.body, "verbosity": "medium"},
        "tool_choice": choice_body(data.get("tool_choice", ToolChoice())),
        "tools": [tool_body(tool) for tool in data.get("tools", ())],
        "top_logprobs": data.get("top_logprobs", 0),
        "truncation": data.get("truncation", "disabled"),
    }
