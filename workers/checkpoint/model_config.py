"""ModelConfig: the fields of config.json that a model is computed from, each checked.

Knows text models inside larger ones: fields of a nested `text_config` count before those around it.
Which fields an architecture has is said in architectures.py. What is left out here never reaches
transformers, so no other field can change a model or end its start.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workers.checkpoint.rope import RopeParameters
from workers.errors import ModelError

FULL_ATTENTION, LINEAR_ATTENTION = "full_attention", "linear_attention"
SLIDING_ATTENTION = "sliding_attention"
# Of a hybrid's head, what is rotated where nothing is said.
_HYBRID_ROTARY_FACTOR = 0.25

_PUBLISHED = "take the file of the published model"
_REQUIRED = object()
_MOST_LAYERS = 1000
# What transformers takes where a file is silent.
_USUAL_WINDOW, _USUAL_FIRST_WINDOWED = 4096, 28
_ALIKE = "qwen3_moe"


@dataclass(frozen=True)
class Field:
    """One row of an architecture's table: what a value must be, and what stands for none."""

    is_right: Callable[[Any], bool]
    expected: str
    default: Any = _REQUIRED

    def read(self, name: str, value: Any, file: Path) -> Any:
        if value is None and self.default is not _REQUIRED:
            return self.default
        if not self.is_right(value):
            raise ModelError(f"{file}: {name} is {value!r}, not {self.expected}; {_PUBLISHED}")
        return value


def positive(default: Any = _REQUIRED) -> Field:
    return Field(lambda value: type(value) is int and value > 0, "a positive integer", default)


def up_to(most: int) -> Field:
    return Field(lambda value: type(value) is int and 0 < value <= most, f"one of 1 to {most}")


def number(default: Any = _REQUIRED) -> Field:
    return Field(
        lambda value: type(value) in (int, float) and 0 < value < float("inf"),
        "a positive number",
        default,
    )


def flag(default: Any = _REQUIRED) -> Field:
    return Field(lambda value: type(value) is bool, "true or false", default)


def exactly(value: Any) -> Field:
    """Return a row of which any other value would be computed wrongly."""
    return Field(lambda found: found == value, f"{value!r}, all that is supported", value)


def layer_numbers() -> Field:
    return Field(
        lambda value: isinstance(value, list) and all(type(i) is int and i >= 0 for i in value),
        "a list of layers' numbers",
        [],
    )


# Rows of every architecture. `head_dim` and `num_key_value_heads` follow from others if absent.
FIELDS: Mapping[str, Field] = {
    "vocab_size": positive(),
    "hidden_size": positive(),
    "intermediate_size": positive(),
    "num_hidden_layers": up_to(_MOST_LAYERS),
    "num_attention_heads": positive(),
    "num_key_value_heads": positive(None),
    "head_dim": positive(None),
    "max_position_embeddings": positive(),
    "rms_norm_eps": number(1e-6),
    "hidden_act": exactly("silu"),
    "partial_rotary_factor": exactly(1.0),
    "tie_word_embeddings": flag(False),
}


@dataclass(frozen=True)
class ModelConfig:
    """`values` are all fields by their names; the properties, those that everybody asks for.

    In layers of sliding attention a token sees itself and the `sliding_window - 1` before it.
    """

    values: Mapping[str, Any]
    rope: RopeParameters
    layer_types: tuple[str, ...]
    sliding_window: int | None = None

    @classmethod
    def read(
        cls,
        raw: Mapping[str, Any],
        fields: Mapping[str, Field],
        layer_types: Collection[str],
        file: Path,
    ) -> "ModelConfig":
        """Return the checked fields of config.json, given flat; raise ModelError naming one.

        `fields` and `layer_types` are what an architecture has.
        """
        values = {name: field.read(name, raw.get(name), file) for name, field in fields.items()}
        heads = values["num_attention_heads"]
        if values["head_dim"] is None:
            values["head_dim"] = values["hidden_size"] // heads
        if values["num_key_value_heads"] is None:
            values["num_key_value_heads"] = heads
        is_hybrid = LINEAR_ATTENTION in layer_types
        types = _layer_types(raw, values["num_hidden_layers"], file, is_hybrid=is_hybrid)
        if others := sorted(set(types) - set(layer_types)):
            raise ModelError(
                f"{file}: layer_types names {others[0]!r}, which is not supported for this"
                f" architecture, only {' and '.join(layer_types)}; choose another model"
            )
        part = _HYBRID_ROTARY_FACTOR if is_hybrid else 1.0
        rope = RopeParameters.read(raw, values["max_position_embeddings"], file, part)
        config = cls(values, rope, types, _sliding_window(raw, types, file))
        config._refuse_inconsistent(file)
        return config

    @property
    def vocab_size(self) -> int:
        return int(self.values["vocab_size"])

    @property
    def hidden_size(self) -> int:
        return int(self.values["hidden_size"])

    @property
    def intermediate_size(self) -> int:
        """Return the width of an MLP, of an expert's where a model has no other."""
        values = self.values
        return int(values.get("intermediate_size") or values["moe_intermediate_size"])

    @property
    def num_hidden_layers(self) -> int:
        return int(self.values["num_hidden_layers"])

    @property
    def num_attention_layers(self) -> int:
        """Return how many layers keep keys and values."""
        return len(self.layer_types) - self.layer_types.count(LINEAR_ATTENTION)

    @property
    def state_bytes(self) -> int:
        """Return what the states of one sequence take in all layers of linear attention, float32:
        a matrix a head, and the inputs that the convolution still sees.
        """
        num_layers = self.layer_types.count(LINEAR_ATTENTION)
        if num_layers == 0:
            return 0
        kept = int(self.values["linear_conv_kernel_dim"]) - 1
        heads, key_heads = (self.values[f"linear_num_{of}_heads"] for of in ("value", "key"))
        key_dim, value_dim = (self.values[f"linear_{of}_head_dim"] for of in ("key", "value"))
        channels = 2 * key_heads * key_dim + heads * value_dim
        return int(4 * num_layers * (heads * key_dim * value_dim + kept * channels))

    @property
    def num_attention_heads(self) -> int:
        return int(self.values["num_attention_heads"])

    @property
    def num_key_value_heads(self) -> int:
        return int(self.values["num_key_value_heads"])

    @property
    def head_dim(self) -> int:
        return int(self.values["head_dim"])

    @property
    def tie_word_embeddings(self) -> bool:
        return bool(self.values["tie_word_embeddings"])

    @property
    def context_length(self) -> int:
        """Return the longest sequence the model's positions allow, stretched by rope."""
        return self.rope.context_length(int(self.values["max_position_embeddings"]))

    def _refuse_inconsistent(self, file: Path) -> None:
        """Refuse numbers that are right each alone."""
        heads, kv_heads = self.num_attention_heads, self.num_key_value_heads
        if heads % kv_heads:
            raise ModelError(
                f"{file}: num_attention_heads is {heads}, no multiple of num_key_value_heads ="
                f" {kv_heads}; {_PUBLISHED}"
            )
        if self.head_dim < 2 or self.head_dim % 2:
            raise ModelError(f"{file}: head_dim is {self.head_dim}, not even; {_PUBLISHED}")
        experts, chosen = self.values.get("num_experts", 0), self.values.get("num_experts_per_tok")
        if chosen is not None and chosen > experts:
            raise ModelError(
                f"{file}: num_experts_per_tok is {chosen}, of {experts} experts; {_PUBLISHED}"
            )


def flatten(raw: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """Return config.json's fields, with those of a nested text model in front."""
    inner = raw.get("text_config")
    if inner is None:
        inner = {}
    elif not isinstance(inner, dict):
        raise ModelError(f"{file}: text_config is {inner!r}, not an object; {_PUBLISHED}")
    flat = {**raw, **{name: value for name, value in inner.items() if value is not None}}
    # Published in either place.
    flat["tie_word_embeddings"] = raw.get("tie_word_embeddings") or flat.get("tie_word_embeddings")
    # Saved under either name.
    flat.setdefault("num_experts", flat.get("num_local_experts"))
    return flat


def _layer_types(
    raw: Mapping[str, Any], num_layers: int, file: Path, *, is_hybrid: bool
) -> tuple[str, ...]:
    """Return what each layer attends to, by the rules of transformers' configurations."""
    if per_layer := raw.get("per_layer_config"):
        raise ModelError(
            f"{file}: per_layer_config is {per_layer!r}, but all layers must be alike; {_PUBLISHED}"
        )
    types = raw.get("layer_types")
    if types is None:
        return _usual_layer_types(raw, num_layers, file, is_hybrid=is_hybrid)
    if not isinstance(types, list) or len(types) != num_layers:
        count = len(types) if isinstance(types, list) else repr(types)
        raise ModelError(
            f"{file}: layer_types has {count} entries, num_hidden_layers is {num_layers};"
            f" {_PUBLISHED}"
        )
    # Of these transformers makes all layers alike, whatever the list says.
    if raw.get("model_type") == _ALIKE and types != list(
        usual := _usual_layer_types(raw, num_layers, file, is_hybrid=is_hybrid)
    ):
        raise ModelError(
            f"{file}: layer_types is not {usual[0]!r} throughout, as use_sliding_window makes it;"
            f" {_PUBLISHED}"
        )
    return tuple(map(str, types))


def _usual_layer_types(
    raw: Mapping[str, Any], num_layers: int, file: Path, *, is_hybrid: bool
) -> tuple[str, ...]:
    """Return what each layer attends to where no list says it."""
    layers = range(num_layers)
    if is_hybrid:
        every = positive(4).read(
            "full_attention_interval", raw.get("full_attention_interval"), file
        )
        return tuple(LINEAR_ATTENTION if (i + 1) % every else FULL_ATTENTION for i in layers)
    windowed: set[int] = set()
    if raw.get("use_sliding_window") and raw.get("sliding_window", _USUAL_WINDOW) is not None:
        first = raw.get("max_window_layers", _USUAL_FIRST_WINDOWED)
        first = first if type(first) is int else 0
        windowed = {
            "qwen2_moe": {i for i in layers if i % 2 == 0 and i < first},
            _ALIKE: set(layers),
        }.get(str(raw.get("model_type")), {i for i in layers if i >= first})
    return tuple(SLIDING_ATTENTION if i in windowed else FULL_ATTENTION for i in layers)


def _sliding_window(raw: Mapping[str, Any], types: Collection[str], file: Path) -> int | None:
    """Return how many tokens a token sees in layers of sliding attention, if there are any."""
    if SLIDING_ATTENTION not in types:
        return None
    if raw.get("use_sliding_window") is not True:
        raise ModelError(
            f"{file}: layer_types names {SLIDING_ATTENTION!r}, but use_sliding_window is"
            f" {raw.get('use_sliding_window')!r}; {_PUBLISHED}"
        )
    window = raw.get("sliding_window", _USUAL_WINDOW)
    return int(positive().read("sliding_window", window, file))
