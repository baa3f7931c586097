"""Overrides: what a start says of a model in the place of its config.json, in vLLM's two flags.

    --rope-scaling '{"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}'
    --hf-overrides '{"max_position_embeddings": 65536, "text_config": {…}}'

A field replaces config.json's. Of rope's object what an override leaves out of the base (theta, the
rotated part) stays, since it is the model's. Where config.json has a `text_config`, that is meant.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from workers.errors import ConfigError

_ROPE = ("rope_scaling", "rope_parameters")
# What scaling leaves as it is: `mrope_…` belong to the vision tower's positions.
_KEPT = ("rope_theta", "partial_rotary_factor", "mrope_section", "mrope_interleaved")
# Fields that are read besides those of an architecture's table.
_BESIDE = {
    *_ROPE,
    "architectures",
    "eos_token_id",
    "full_attention_interval",
    "layer_types",
    "max_window_layers",
    "model_type",
    "original_max_position_embeddings",
    "quantization_config",
    "rope_theta",
    "sliding_window",
    "text_config",
    "use_sliding_window",
}


@dataclass(frozen=True)
class Overrides:
    """`fields` are laid over config.json; none leave it as it is."""

    fields: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, rope_scaling: str, hf_overrides: str) -> "Overrides":
        """Return what two settings say, each a JSON object or empty; raise ConfigError."""
        fields = json_object("hf_overrides", hf_overrides)
        if rope := json_object("rope_scaling", rope_scaling):
            if any(name in fields for name in _ROPE):
                raise ConfigError(
                    "rope_scaling and hf_overrides both speak of rope; leave one of them out"
                )
            fields["rope_scaling"] = rope
        for name in _ROPE:
            if not isinstance(fields.get(name, {}), dict):
                raise ConfigError(f"hf_overrides: {name} must be a JSON object")
        return cls(fields)

    def check_names(self, known: Collection[str]) -> None:
        """Raise ConfigError naming a field that no model here is computed from."""
        inner = self.fields.get("text_config")
        for name in (*self.fields, *(inner if isinstance(inner, dict) else ())):
            if name not in _BESIDE and name not in known:
                raise ConfigError(
                    f"hf_overrides: nothing is computed from a field {name!r} here; leave it out"
                )

    def apply(self, raw: dict[str, Any]) -> dict[str, Any]:
        """Return config.json with the fields in place; `raw` itself stays as it is."""
        if not self.fields:
            return raw
        fields = dict(self.fields)
        inner, inner_fields = raw.get("text_config"), fields.pop("text_config", {})
        if not isinstance(inner_fields, dict):
            raise ConfigError("hf_overrides: text_config must be a JSON object")
        if not isinstance(inner, dict):
            return _lay_over(raw, fields | inner_fields)
        outer: dict[str, Any] = {
            name: fields.pop(name) for name in ("architectures", "model_type") if name in fields
        }
        return {**raw, **outer, "text_config": _lay_over(inner, fields | inner_fields)}


def json_object(name: str, text: str) -> dict[str, Any]:
    """Return the object that a setting gives as JSON, or an empty one; raise ConfigError."""
    if not text:
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{name} = {text!r}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{name} = {text!r}: must be a JSON object")
    return value


def _lay_over(raw: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    changed = {**raw, **fields}
    spoken = next((name for name in _ROPE if name in fields), None)
    if spoken is not None:
        base: dict[str, Any] = {}
        for name in _ROPE:
            before = raw.get(name)
            base |= before if isinstance(before, dict) else {}
            changed.pop(name, None)
        kept = {name: value for name, value in base.items() if name in _KEPT}
        changed[spoken] = kept | fields[spoken]
    return changed
