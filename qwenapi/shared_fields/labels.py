"""The field `metadata`: a caller's own names and values, which are kept and given back."""

from collections.abc import Mapping
from typing import Any

from marshmallow import ValidationError, fields

MAX_LABELS, MAX_NAME_CHARS, MAX_VALUE_CHARS = 16, 64, 512


class Labels(fields.Field[Mapping[str, str]]):
    """An object of a few short texts."""

    CLAIM = (
        f"must be an object of at most {MAX_LABELS} strings, of {MAX_VALUE_CHARS} characters"
        f" at most, their names of {MAX_NAME_CHARS}"
    )
    json_schema = {
        "type": "object",
        "maxProperties": MAX_LABELS,
        "propertyNames": {"maxLength": MAX_NAME_CHARS},
        "additionalProperties": {"type": "string", "maxLength": MAX_VALUE_CHARS},
    }

    def _deserialize(self, value: Any, attr: str | None, data: Any, **_: Any) -> Mapping[str, str]:
        if not isinstance(value, dict) or len(value) > MAX_LABELS:
            raise ValidationError(self.CLAIM)
        for name, text in value.items():
            fits = isinstance(text, str) and len(text) <= MAX_VALUE_CHARS
            if not fits or len(name) > MAX_NAME_CHARS:
                raise ValidationError(self.CLAIM)
        return value
