"""Request bodies of the coder interface: their schema, and the frozen value it makes."""

from dataclasses import dataclass, field

from marshmallow import ValidationError, validates

from qwenapi.http.fields import StrictString
from qwenapi.http.schemas import LenientSchema


@dataclass(frozen=True, kw_only=True)
class CodeRequest:
    """An instruction; `conversation_id` continues a conversation, None begins one."""

    prompt: str = field(repr=False)
    conversation_id: str | None = None


class CodeSchema(LenientSchema):
    """`POST /v1/code/generate` and `/v1/code/chat_stream`; an empty form field is a missing one."""

    value_class = CodeRequest

    prompt = StrictString(None, required=True)
    conversation_id = StrictString(256)

    @validates("prompt")
    def check_prompt(self, value: str, data_key: str) -> None:
        if not value:
            raise ValidationError("is required")
