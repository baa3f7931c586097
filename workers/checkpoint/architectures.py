"""ARCHITECTURES: for each that is served, the fields of its config.json and all its tensors.

A new one is a row of ARCHITECTURES. Its generators yield a layer's tensors in the order of the
model, by the names in transformers' own files, experts one by one.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workers.checkpoint.model_config import (
    FIELDS,
    FULL_ATTENTION,
    Field,
    ModelConfig,
    flag,
    flatten,
    layer_numbers,
    positive,
)
from workers.errors import ModelError

Shape = tuple[int, ...]
Tensors = Iterator[tuple[str, Shape]]

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@dataclass(frozen=True)
class Architecture:
    """`attention` and `feed_forward` yield the tensors of a layer, by its number.

    `prefixes` are what stands in files before the names that begin with `model.` in memory.
    """

    model_type: str
    fields: Mapping[str, Field]
    attention: Callable[[ModelConfig, int], Tensors]
    feed_forward: Callable[[ModelConfig, int], Tensors]
    layer_types: tuple[str, ...] = (FULL_ATTENTION,)
    prefixes: tuple[str, ...] = ("model.", "")

    def read_config(self, raw: Mapping[str, Any], file: Path) -> ModelConfig:
        return ModelConfig.read(flatten(raw, file), self.fields, self.layer_types, file)

    def shapes(self, config: ModelConfig) -> Tensors:
        """Yield every tensor that a plain checkpoint has, in the order of the model."""
        hidden = config.hidden_size
        yield EMBEDDING, (config.vocab_size, hidden)
        for i in range(config.num_hidden_layers):
            layer = f"model.layers.{i}"
            yield f"{layer}.input_layernorm.weight", (hidden,)
            for name, shape in self.attention(config, i):
                yield f"{layer}.{name}", shape
            yield f"{layer}.post_attention_layernorm.weight", (hidden,)
            for name, shape in self.feed_forward(config, i):
                yield f"{layer}.{name}", shape
        yield "model.norm.weight", (hidden,)
        yield HEAD, (config.vocab_size, hidden)


def linear(name: str, num_outputs: int, num_inputs: int, *, bias: bool = False) -> Tensors:
    yield f"{name}.weight", (num_outputs, num_inputs)
    if bias:
        yield f"{name}.bias", (num_outputs,)


def attention(config: ModelConfig, layer: int, *, qkv_bias: bool, out_bias: bool) -> Tensors:
    hidden, size = config.hidden_size, config.head_dim
    queries, keys = config.num_attention_heads * size, config.num_key_value_heads * size
    yield from linear("self_attn.q_proj", queries, hidden, bias=qkv_bias)
    yield from linear("self_attn.k_proj", keys, hidden, bias=qkv_bias)
    yield from linear("self_attn.v_proj", keys, hidden, bias=qkv_bias)
    yield from linear("self_attn.o_proj", hidden, queries, bias=out_bias)


def attention_with_bias(config: ModelConfig, layer: int) -> Tensors:
    return attention(config, layer, qkv_bias=True, out_bias=False)


def attention_with_head_norms(config: ModelConfig, layer: int) -> Tensors:
    bias = config.values["attention_bias"]
    yield from attention(config, layer, qkv_bias=bias, out_bias=bias)
    yield "self_attn.q_norm.weight", (config.head_dim,)
    yield "self_attn.k_norm.weight", (config.head_dim,)


def mlp(config: ModelConfig, layer: int) -> Tensors:
    return swiglu("mlp", config.hidden_size, config.intermediate_size)


def experts_or_mlp(config: ModelConfig, layer: int) -> Tensors:
    values = config.values
    if layer in values["mlp_only_layers"] or (layer + 1) % values["decoder_sparse_step"]:
        yield from mlp(config, layer)
        return
    yield "mlp.gate.weight", (values["num_experts"], config.hidden_size)
    for number in range(values["num_experts"]):
        name = f"mlp.experts.{number}"
        yield from swiglu(name, config.hidden_size, values["moe_intermediate_size"])


def swiglu(name: str, hidden: int, width: int) -> Tensors:
    yield from linear(f"{name}.gate_proj", width, hidden)
    yield from linear(f"{name}.up_proj", width, hidden)
    yield from linear(f"{name}.down_proj", hidden, width)


_QWEN3 = {**FIELDS, "attention_bias": flag(False)}
_DENSE = {**_QWEN3, "head_dim": positive(128)}
_MOE = {
    **_QWEN3,
    "moe_intermediate_size": positive(),
    "num_experts": positive(),
    "num_experts_per_tok": positive(),
    "norm_topk_prob": flag(False),
    "decoder_sparse_step": positive(1),
    "mlp_only_layers": layer_numbers(),
}

ARCHITECTURES: Mapping[str, Architecture] = {
    "Qwen2ForCausalLM": Architecture("qwen2", FIELDS, attention_with_bias, mlp),
    "Qwen3ForCausalLM": Architecture("qwen3", _DENSE, attention_with_head_norms, mlp),
    "Qwen3MoeForCausalLM": Architecture(
        "qwen3_moe", _MOE, attention_with_head_norms, experts_or_mlp
    ),
}

# What people know the others by; `model_type` is all that is the same in every copy.
_OTHERS = {
    "qwen2_5_omni": "Qwen2.5-Omni",
    "qwen2_5_vl": "Qwen2.5-VL",
    "qwen2_audio": "Qwen2-Audio",
    "qwen2_moe": "Qwen1.5-MoE or Qwen2-57B-A14B",
    "qwen2_vl": "Qwen2-VL",
    "qwen3_5": "Qwen3.5, 3.6 or 3.8",
    "qwen3_5_moe": "Qwen3.5, 3.6 or 3.8 with experts",
    "qwen3_asr": "Qwen3-ASR",
    "qwen3_next": "Qwen3-Next",
    "qwen3_omni_moe": "Qwen3-Omni",
    "qwen3_tts": "Qwen3-TTS",
    "qwen3_vl": "Qwen3-VL",
    "qwen3_vl_moe": "Qwen3-VL with experts",
    "qwen4_exp": "Qwen3.8-Flash-Next",
}


def architecture_name(raw: Mapping[str, Any]) -> str:
    """Return the first of config.json's `architectures`, or what is there instead."""
    architectures = raw.get("architectures")
    if isinstance(architectures, list) and architectures:
        return str(architectures[0])
    return repr(architectures)


def architecture_of(raw: Mapping[str, Any], file: Path) -> Architecture:
    """Return the row of a model; raise ModelError, by the model's own name, if there is none."""
    name, model_type = architecture_name(raw), raw.get("model_type")
    found = ARCHITECTURES.get(name)
    if found is not None and found.model_type == model_type:
        return found
    known = ", ".join(ARCHITECTURES)
    other = _OTHERS.get(str(model_type).removesuffix("_text"))
    if other is not None:
        raise ModelError(f"{file}: {other} ({model_type}) is not supported; choose one of {known}")
    if found is None:
        raise ModelError(
            f"{file}: architecture {name} (model_type {model_type!r}) is not supported; choose one"
            f" of {known}"
        )
    raise ModelError(
        f"{file}: model_type is {model_type!r}, but {name} is {found.model_type!r}; take the file"
        " of the published model"
    )
