"""Strict marshmallow fields: integers, floats, booleans and strings that coerce nothing.

A number in quotes is a string, `true` is no number.
"""

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, NoReturn

from marshmallow import ValidationError, fields, validate

MISSING = "is required"

# A place in a body: ("messages", 0, "content").
Path = tuple[str | int, ...]


class StrictInteger(fields.Integer):
    """A whole number within inclusive bounds. No string, boolean or float, not even 1.0."""

    def __init__(self, low: int | None = None, high: int | None = None, **kwargs: Any) -> None:
        claim = _claim("an integer", low, high)
        if (low, high) != (None, None):
            kwargs["validate"] = validate.Range(low, high, error=claim)
        super().__init__(
            strict=True, error_messages={"invalid": claim, "required": MISSING}, **kwargs
        )


class StrictFloat(fields.Float):
    """A finite number within bounds: `low` and `high` inclusive, `above` exclusive."""

    def __init__(
        self,
        low: float | None = None,
        high: float | None = None,
        *,
        above: float | None = None,
        **kwargs: Any,
    ) -> None:
        claim = (
            _claim("a number", low, high)
            if above is None
            else f"must be a number above {above} and up to {high}"
        )
        bottom = low if above is None else above
        kwargs["validate"] = validate.Range(bottom, high, min_inclusive=above is None, error=claim)
        super().__init__(
            error_messages={"invalid": claim, "special": claim, "too_large": claim}, **kwargs
        )

    def _validated(self, value: Any) -> float:
        if type(value) not in (int, float):
            raise self.make_error("invalid", input=value)
        return super()._validated(value)


class StrictBoolean(fields.Boolean):
    """`true` or `false` and nothing that resembles them."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> bool:
        if value is True or value is False:
            return bool(value)
        raise ValidationError("must be true or false")


class StrictString(fields.String):
    """A string of at most `max_chars` characters; None: as many as the body may have."""

    def __init__(self, max_chars: int | None, **kwargs: Any) -> None:
        claim = "must be a string"
        if max_chars is not None:
            claim += f" of at most {max_chars} characters"
            kwargs["validate"] = validate.Length(max=max_chars, error=claim)
        super().__init__(error_messages={"invalid": claim, "required": MISSING}, **kwargs)


class StrictChoice(fields.String):
    """One of a few words."""

    def __init__(self, *words: str, **kwargs: Any) -> None:
        claim = f"must be one of {', '.join(words)}"
        super().__init__(
            validate=validate.OneOf(words, error=claim),
            error_messages={"invalid": claim, "required": MISSING},
            **kwargs,
        )


class Composite(fields.Field[Any]):
    """A field with objects inside that no schema describes: it says itself what it leaves out."""

    @abstractmethod
    def unknown(self, value: Any) -> Iterator[Path]:
        """Yield the places inside `value`, whatever that is, of fields that are not known."""


class Neutral:
    """A field whose feature does not exist yet; only values that ask for nothing pass, and null."""

    def __init__(self, *values: Any, feature: str) -> None:
        self._values = values
        self.json_schema: dict[str, Any] = {"enum": list(values)} if values else {"not": {}}
        self.claim = f"asks for {feature}, which this server does not support"

    def accepts(self, value: Any) -> bool:
        return any(_is_same(value, known) for known in self._values)


def refuse(path: Path, claim: str) -> NoReturn:
    """Raise marshmallow's error of a value inside a field."""
    errors: Any = [claim]
    for key in reversed(path):
        errors = {key: errors}
    raise ValidationError(errors)


def _is_same(value: Any, known: Any) -> bool:
    """Return whether two values are the same in JSON: 1 and 1.0 are, 1 and true are not."""
    kinds = {type(value), type(known)}
    return value == known and (len(kinds) == 1 or kinds == {int, float})


def _claim(kind: str, low: float | None, high: float | None) -> str:
    if low is not None and high is not None:
        return f"must be {kind} from {low} to {high}"
    return f"must be {kind}" if low is None else f"must be {kind} of at least {low}"
