"""Fields of tokens and their texts: prompts, stops, biases, lists of ids."""

import re
from collections.abc import Mapping
from typing import Any

from marshmallow import ValidationError, fields

from qwenapi.shared_fields.sampling_fields import INT32

MAX_PROMPTS = 2048
MAX_STOPS = 16
MAX_STOP_BYTES = 256
MAX_STOP_TOKENS = 128
MAX_BIASES = 300
MAX_ALLOWED_TOKENS = 8192
MAX_BAD_WORDS = 128

TOKEN_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": INT32}}
TOKEN_IDS_CLAIM = f"must be a list of token ids, integers from 0 to {INT32}"

Prompt = str | tuple[int, ...]


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
    """A list of at most so many token ids."""

    def __init__(self, most: int, **kwargs: Any) -> None:
        self._most = most
        self.json_schema = TOKEN_IDS | {"maxItems": most}
        super().__init__(**kwargs)

    def _deserialize(self, value: Any, attr: str | None, data: Any, **_: Any) -> tuple[int, ...]:
        if not isinstance(value, list) or len(value) > self._most or not _are_token_ids(value):
            raise ValidationError(f"{TOKEN_IDS_CLAIM}, at most {self._most} of them")
        return tuple(value)


class BadWords(fields.Field[tuple[str, ...]]):
    """Words that may not occur."""

    CLAIM = (
        f"must be a list of at most {MAX_BAD_WORDS} words, each of 1 to {MAX_STOP_BYTES} bytes and"
        " not only of spaces"
    )
    json_schema = {
        "type": "array",
        "items": {"type": "string", "minLength": 1, "maxLength": MAX_STOP_BYTES // 4},
        "maxItems": MAX_BAD_WORDS,
    }

    def _deserialize(self, value: Any, attr: str | None, data: Any, **_: Any) -> tuple[str, ...]:
        if not isinstance(value, list) or len(value) > MAX_BAD_WORDS:
            raise ValidationError(self.CLAIM)
        if not all(_is_stop(word) and word.strip() for word in value):
            raise ValidationError(self.CLAIM)
        return tuple(value)


class Salt(fields.Field[str]):
    """A secret that parts a prompt's cache from all others."""

    json_schema = {"type": "string", "minLength": 1, "maxLength": MAX_STOP_BYTES}

    def _deserialize(self, value: Any, attr: str | None, data: Any, **_: Any) -> str:
        if not isinstance(value, str) or not 1 <= len(value) <= MAX_STOP_BYTES:
            raise ValidationError(f"must be a string of 1 to {MAX_STOP_BYTES} characters")
        return value


class RequestId(fields.Field[str]):
    """An id of the caller's own, as it may stand in a log and in an address."""

    PATTERN = re.compile(r"[A-Za-z0-9._:-]{1,128}")
    json_schema = {"type": "string", "pattern": f"^{PATTERN.pattern}$"}

    def _deserialize(self, value: Any, attr: str | None, data: Any, **_: Any) -> str:
        if not isinstance(value, str) or not self.PATTERN.fullmatch(value):
            raise ValidationError("must be 1 to 128 letters, digits and any of . _ : -")
        return value


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
