"""Request bodies of files and batches: their schemas, and the frozen values they make."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from marshmallow import fields

from qwenapi.http.fields import MISSING, StrictChoice, StrictString
from qwenapi.http.schemas import RequestSchema
from qwenapi.shared_fields.labels import Labels

MAX_ID_CHARS = 128


@dataclass(frozen=True, kw_only=True)
class FileRequest:
    """What a file is for; the file itself is beside it."""

    purpose: str


@dataclass(frozen=True, kw_only=True)
class BatchRequest:
    """What batch to begin."""

    input_file_id: str
    endpoint: str
    metadata: Mapping[str, str] | None = None


class FileContent(fields.Field[Any]):
    """A file in a form of parts."""

    json_schema: ClassVar[dict[str, Any]] = {"type": "string", "format": "binary"}


class FileSchema(RequestSchema):
    value_class = FileRequest

    file = FileContent(required=True, error_messages={"required": MISSING})
    purpose = StrictChoice("batch", required=True)


class BatchSchema(RequestSchema):
    value_class = BatchRequest

    input_file_id = StrictString(MAX_ID_CHARS, required=True)
    endpoint = StrictString(MAX_ID_CHARS, required=True)
    completion_window = StrictChoice("24h", required=True)
    metadata = Labels()
