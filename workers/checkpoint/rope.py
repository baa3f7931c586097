"""RopeParameters: how positions turn queries and keys, and how far they stretch.

Knows both spellings (`rope_scaling` with `type`, `rope_parameters` with `rope_type`), what each
kind needs, and how far it lengthens the context. Refuses the kinds whose frequencies depend on a
batch's longest sequence, since rows would then depend on each other, and those it does not know.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workers.errors import ModelError

# What each kind needs, and what it may have besides.
_KINDS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "default": ((), ()),
    "linear": (("factor",), ()),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor"), ()),
    "yarn": (
        ("factor",),
        ("attention_factor", "attn_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"),
    ),
}
_LENGTHENING = ("linear", "yarn")
_WITH_ORIGINAL = ("llama3", "yarn")
_ORIGINAL = "original_max_position_embeddings"
_DEFAULT_THETA = 10_000.0


@dataclass(frozen=True)
class RopeParameters:
    """`values` are rope_parameters as transformers takes them, and nothing it would not use."""

    values: Mapping[str, Any]
    original_length: int

    @classmethod
    def read(
        cls, raw: Mapping[str, Any], num_positions: int, file: Path, part: float = 1.0
    ) -> "RopeParameters":
        """Return what config.json says; raise ModelError if it would be computed wrongly.

        `part` of a head is rotated if it says nothing; where that is all, it may say nothing else.
        """
        name = "rope_scaling" if raw.get("rope_scaling") else "rope_parameters"
        said = _RopeFields(file, name, raw.get(name) or {})
        kind = said.kind()
        required, optional = _KINDS[kind]
        original = raw.get(_ORIGINAL) or said.fields.get(_ORIGINAL) or num_positions
        if type(original) is not int or original < 1:
            raise said.wrong(_ORIGINAL, original, "a positive integer")
        values: dict[str, Any] = {"rope_type": kind, "rope_theta": said.theta(raw)}
        if kind == "yarn" and said.fields.get("factor") is None and original < num_positions:
            values["factor"] = num_positions / original
        for field in required:
            if field not in values:
                values[field] = said.number(field)
        for field in optional:
            if said.fields.get(field) is not None:
                values[field] = said.number(field)
        if values.get("factor", 1) < 1:
            raise said.wrong("factor", values["factor"], "1 or more")
        if kind in _WITH_ORIGINAL:
            values[_ORIGINAL] = original
        if kind == "yarn":
            _fold_attn_factor(values)
            if said.fields.get("truncate") is not None:
                values["truncate"] = bool(said.fields["truncate"])
        if part == 1.0:
            said.refuse_partial(raw)
        else:
            values["partial_rotary_factor"] = said.part(raw, part)
        return cls(values, original)

    def context_length(self, num_positions: int) -> int:
        """Return how many positions there are once they are stretched."""
        if self.values["rope_type"] not in _LENGTHENING:
            return num_positions
        return max(num_positions, int(self.original_length * self.values["factor"]))


def _fold_attn_factor(values: dict[str, Any]) -> None:
    """Put yarn's `attn_factor`, of which transformers knows nothing, into its `attention_factor`.

    A model published with it was trained with the product, as vLLM and SGLang compute it.
    """
    own = values.pop("attn_factor", None)
    if own is not None and "attention_factor" not in values:
        stretch = math.log(values["factor"])
        above, below = values.get("mscale"), values.get("mscale_all_dim")
        scale = 0.1 * stretch + 1
        if above and below:
            scale = (0.1 * above * stretch + 1) / (0.1 * below * stretch + 1)
        values["attention_factor"] = scale * own


@dataclass(frozen=True)
class _RopeFields:
    """The object of config.json that speaks of rope, whose fields are checked as they are read."""

    file: Path
    name: str
    fields: Any

    def kind(self) -> str:
        if not isinstance(self.fields, dict):
            raise ModelError(
                f"{self.file}: {self.name} is {self.fields!r}, not an object; take the file of the"
                " published model"
            )
        for name, value in self.fields.items():
            if isinstance(value, dict):
                raise ModelError(
                    f"{self.file}: {self.name} has its own values for {name!r}, but all layers must"
                    " be alike; choose another model"
                )
        kind = self.fields.get("rope_type", self.fields.get("type", "default"))
        if kind == "mrope" and "mrope_section" in self.fields:  # see vision.py
            return "default"
        if not isinstance(kind, str) or kind not in _KINDS:
            raise ModelError(
                f"{self.file}: rope_type {kind!r} is not supported; use 'yarn' for long contexts"
            )
        return kind

    def theta(self, raw: Mapping[str, Any]) -> float:
        theta = self.fields.get("rope_theta")
        if theta is None:
            theta = raw.get("rope_theta")
        theta = _DEFAULT_THETA if theta is None else theta
        if not _is_positive(theta) or theta <= 1:
            raise self.wrong("rope_theta", theta, "a number above 1")
        return float(theta)

    def number(self, field: str) -> float:
        value = self.fields.get(field)
        if not _is_positive(value):
            raise self.wrong(field, value, "a positive number")
        return float(value)

    def refuse_partial(self, raw: Mapping[str, Any]) -> None:
        part = self.fields.get("partial_rotary_factor", raw.get("partial_rotary_factor"))
        if part not in (None, 1, 1.0):
            raise self.wrong("partial_rotary_factor", part, "1, all that is supported")

    def part(self, raw: Mapping[str, Any], default: float) -> float:
        part = self.fields.get("partial_rotary_factor", raw.get("partial_rotary_factor"))
        part = default if part is None else part
        if not _is_positive(part) or part > 1:
            raise self.wrong("partial_rotary_factor", part, "a number up to 1")
        return float(part)

    def wrong(self, field: str, value: object, expected: str) -> ModelError:
        return ModelError(
            f"{self.file}: {self.name}.{field} is {value!r}, not {expected}; take the file of the"
            " published model"
        )


def _is_positive(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < math.inf
