"""Request bodies of vLLM's token addresses: their schemas, and the frozen values they make."""

from dataclasses import dataclass, field
from typing import Any

from marshmallow import ValidationError, validates_schema

from qwenapi.api.openai.foreign_fields import CHAT_UNSUPPORTED, WITHOUT_EFFECT
from qwenapi.api.openai.messages import Messages
from qwenapi.api.openai.schemas import (
    ChatRequest,
    TemplateArguments,
    check_prefill,
    other_arguments,
    thinking_switch,
)
from qwenapi.api.openai.token_fields import TokenIds
from qwenapi.api.openai.tool_fields import Tools
from qwenapi.http.fields import Neutral, StrictBoolean, StrictString
from qwenapi.http.schemas import RequestSchema

# About as many as a body has room for.
MAX_TOKENS = 1024 * 1024

# Fields that are a conversation's alone.
_OF_CHAT = ("tools", "chat_template_kwargs", "add_generation_prompt", "continue_final_message")


@dataclass(frozen=True, kw_only=True)
class TokenizeRequest:
    """A text, or else a conversation, whose tokens are asked for."""

    prompt: str | None = field(default=None, repr=False)
    chat: ChatRequest | None = None
    add_special_tokens: bool = True
    return_token_strs: bool = False


@dataclass(frozen=True, kw_only=True)
class DetokenizeRequest:
    """Tokens whose text is asked for."""

    tokens: tuple[int, ...] = field(repr=False)


class TokenizeSchema(RequestSchema):
    """`POST /tokenize`: vLLM's two bodies in one, told apart by `prompt` and `messages`."""

    value_class = TokenizeRequest
    without_effect = WITHOUT_EFFECT
    unsupported = {
        "chat_template": CHAT_UNSUPPORTED["chat_template"],
        "mm_processor_kwargs": Neutral({}, feature="images"),
        "media_io_kwargs": Neutral({}, feature="images"),
    }

    model = StrictString(256)
    prompt = StrictString(None)
    messages = Messages()
    tools = Tools()
    chat_template_kwargs = TemplateArguments()
    add_generation_prompt = StrictBoolean()
    continue_final_message = StrictBoolean()
    add_special_tokens = StrictBoolean()
    return_token_strs = StrictBoolean()

    @validates_schema
    def check_kind(self, data: dict[str, Any], **_: Any) -> None:
        """Refuse what is neither a text nor a conversation, or half of each."""
        if "messages" in data and "prompt" in data:
            raise ValidationError("and 'messages' exclude each other", "prompt")
        if "messages" in data:
            check_prefill(data)
            return
        if "prompt" not in data:
            raise ValidationError("is required, or 'messages'", "prompt")
        for name in _OF_CHAT:
            if data.get(name):
                raise ValidationError("needs 'messages'", name)

    def shape(self, data: dict[str, Any]) -> dict[str, Any]:
        if "messages" not in data:
            return data
        chat = ChatRequest(
            messages=data["messages"],
            tools=data.get("tools", ()),
            enable_thinking=thinking_switch(data),
            template_arguments=other_arguments(data),
            continue_final_message=data.get("continue_final_message", False),
            add_generation_prompt=data.get("add_generation_prompt", True),
        )
        return {"add_special_tokens": False} | data | {"chat": chat}


class DetokenizeSchema(RequestSchema):
    """`POST /detokenize`."""

    value_class = DetokenizeRequest
    without_effect = WITHOUT_EFFECT

    model = StrictString(256)
    tokens = TokenIds(MAX_TOKENS, required=True, error_messages={"required": "is required"})
