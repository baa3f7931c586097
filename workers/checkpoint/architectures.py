"""ARCHITECTURES: for each that is served, the fields of its config.json and all its tensors.

A new one is a row of ARCHITECTURES. Its generators yield a layer's tensors in the order of the
model, by the names in transformers' own files, experts one by one.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from workers.checkpoint.model_config import (
    FIELDS,
    FULL_ATTENTION,
    LINEAR_ATTENTION,
    SLIDING_ATTENTION,
    Field,
    ModelConfig,
    exactly,
    flag,
    flatten,
    layer_numbers,
    positive,
)
from workers.checkpoint.vision import Tower
from workers.errors import ModelError

Shape = tuple[int, ...]
Tensors = Iterator[tuple[str, Shape]]

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
CLASSIFIER = "score.weight"
# What the names of the layer for multi-token prediction begin with, in files and in memory.
DRAFTER = "mtp."


@dataclass(frozen=True)
class Architecture:
    """`attention` and `feed_forward` yield the tensors of a layer, by its number.

    `prefixes` are what stands in files before the names that begin with `model.` in memory.
    `text_model_type` is another where the text model is a part of one that sees by a `tower`.
    `fused` is `feed_forward` where all experts of a layer are two tensors, perhaps `turned`: inputs
    before outputs. A classifier has one score in the place of a vocabulary of logits.
    """

    model_type: str
    fields: Mapping[str, Field]
    attention: Callable[[ModelConfig, int], Tensors]
    feed_forward: Callable[[ModelConfig, int], Tensors]
    layer_types: tuple[str, ...] = (FULL_ATTENTION, SLIDING_ATTENTION)
    prefixes: tuple[str, ...] = ("model.", "")
    text_model_type: str = ""
    tower: Tower | None = None
    fused: Callable[[ModelConfig, int], Tensors] | None = None
    turned: bool = False
    is_classifier: bool = False

    @property
    def is_hybrid(self) -> bool:
        return LINEAR_ATTENTION in self.layer_types

    def read_config(self, raw: Mapping[str, Any], file: Path) -> ModelConfig:
        return ModelConfig.read(flatten(raw, file), self.fields, self.layer_types, file)

    def shapes(
        self, config: ModelConfig, *, has_fused_experts: bool = False, has_head: bool = True
    ) -> Tensors:
        """Yield every tensor that a plain checkpoint has, in the order of the model.

        Of a layer's experts, some have them one by one and some all in two tensors. Embeddings are
        computed without a head.
        """
        feed_forward = self.fused or fused_and_shared if has_fused_experts else self.feed_forward
        hidden = config.hidden_size
        yield EMBEDDING, (config.vocab_size, hidden)
        for i in range(config.num_hidden_layers):
            parts = self.attention(config, i), feed_forward(config, i)
            yield from decoder_layer(f"model.layers.{i}", hidden, *parts)
        yield "model.norm.weight", (hidden,)
        if self.is_classifier:
            yield CLASSIFIER, (1, hidden)
        elif has_head:
            yield HEAD, (config.vocab_size, hidden)

    def drafter_shapes(self, config: ModelConfig, *, has_fused_experts: bool = False) -> Tensors:
        """Yield every tensor of a hybrid's layer for multi-token prediction, which has attention
        whatever the model's first layer has. Embeddings and head are the model's.
        """
        feed_forward = fused_and_shared if has_fused_experts else self.feed_forward
        hidden = config.hidden_size
        yield from linear(f"{DRAFTER}fc", hidden, 2 * hidden)
        yield f"{DRAFTER}pre_fc_norm_embedding.weight", (hidden,)
        yield f"{DRAFTER}pre_fc_norm_hidden.weight", (hidden,)
        parts = gated_attention(config), feed_forward(config, 0)
        yield from decoder_layer(f"{DRAFTER}layers.0", hidden, *parts)
        yield f"{DRAFTER}norm.weight", (hidden,)

    def turns(self, shape: Shape) -> tuple[Shape, ...]:
        """Return how files may have a tensor besides, which is then turned as it is read."""
        return ((shape[0], shape[2], shape[1]),) if self.turned and len(shape) == 3 else ()


def decoder_layer(name: str, hidden: int, attention: Tensors, feed_forward: Tensors) -> Tensors:
    yield f"{name}.input_layernorm.weight", (hidden,)
    for part, shape in attention:
        yield f"{name}.{part}", shape
    yield f"{name}.post_attention_layernorm.weight", (hidden,)
    for part, shape in feed_forward:
        yield f"{name}.{part}", shape


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
    yield from experts(config) if _is_mixture(config, layer) else mlp(config, layer)


def experts(config: ModelConfig) -> Tensors:
    values = config.values
    yield "mlp.gate.weight", (values["num_experts"], config.hidden_size)
    for number in range(values["num_experts"]):
        name = f"mlp.experts.{number}"
        yield from swiglu(name, config.hidden_size, values["moe_intermediate_size"])


def experts_and_shared_or_mlp(config: ModelConfig, layer: int) -> Tensors:
    yield from experts_or_mlp(config, layer)
    if _is_mixture(config, layer):
        yield from shared_expert(config)


def experts_and_shared(config: ModelConfig, layer: int) -> Tensors:
    yield from experts(config)
    yield from shared_expert(config)


def fused_and_shared(config: ModelConfig, layer: int) -> Tensors:
    """Yield what Qwen3.5 was published with; transformers saves its experts one by one."""
    yield from fused_experts(config)
    yield from shared_expert(config)


def fused_experts_or_mlp(config: ModelConfig, layer: int) -> Tensors:
    yield from fused_experts(config) if _is_mixture(config, layer) else mlp(config, layer)


def fused_experts(config: ModelConfig) -> Tensors:
    values, hidden = config.values, config.hidden_size
    count, width = values["num_experts"], values["moe_intermediate_size"]
    yield "mlp.gate.weight", (count, hidden)
    yield "mlp.experts.gate_up_proj", (count, 2 * width, hidden)
    yield "mlp.experts.down_proj", (count, hidden, width)


def shared_expert(config: ModelConfig) -> Tensors:
    width = config.values["shared_expert_intermediate_size"]
    yield from swiglu("mlp.shared_expert", config.hidden_size, width)
    yield "mlp.shared_expert_gate.weight", (1, config.hidden_size)


def interleaved_hybrid(config: ModelConfig, layer: int) -> Tensors:
    """Yield Qwen3-Next's: two projections into all that a Gated DeltaNet takes."""
    if config.layer_types[layer] == FULL_ATTENTION:
        yield from gated_attention(config)
        return
    heads, keys, values = _delta_net_widths(config)
    yield from linear("linear_attn.in_proj_qkvz", 2 * keys + 2 * values, config.hidden_size)
    yield from linear("linear_attn.in_proj_ba", 2 * heads, config.hidden_size)
    yield from delta_net(config)


def hybrid(config: ModelConfig, layer: int) -> Tensors:
    """Yield Qwen3.5's, whose Gated DeltaNet has four projections."""
    if config.layer_types[layer] == FULL_ATTENTION:
        yield from gated_attention(config)
        return
    heads, keys, values = _delta_net_widths(config)
    outputs = {"qkv": 2 * keys + values, "z": values, "b": heads, "a": heads}
    for name, num_outputs in outputs.items():
        yield from linear(f"linear_attn.in_proj_{name}", num_outputs, config.hidden_size)
    yield from delta_net(config)


def gated_attention(config: ModelConfig) -> Tensors:
    """Yield attention with head norms and a gate beside each query."""
    bias, hidden, size = config.values["attention_bias"], config.hidden_size, config.head_dim
    queries, keys = config.num_attention_heads * size, config.num_key_value_heads * size
    yield from linear("self_attn.q_proj", 2 * queries, hidden, bias=bias)
    yield from linear("self_attn.k_proj", keys, hidden, bias=bias)
    yield from linear("self_attn.v_proj", keys, hidden, bias=bias)
    yield from linear("self_attn.o_proj", hidden, queries, bias=bias)
    yield "self_attn.q_norm.weight", (size,)
    yield "self_attn.k_norm.weight", (size,)


def delta_net(config: ModelConfig) -> Tensors:
    """Yield what all Gated DeltaNets have besides their projections inwards."""
    heads, keys, values = _delta_net_widths(config)
    yield (
        "linear_attn.conv1d.weight",
        (2 * keys + values, 1, config.values["linear_conv_kernel_dim"]),
    )
    yield "linear_attn.dt_bias", (heads,)
    yield "linear_attn.A_log", (heads,)
    yield "linear_attn.norm.weight", (config.values["linear_value_head_dim"],)
    yield from linear("linear_attn.out_proj", config.hidden_size, values)


def _is_mixture(config: ModelConfig, layer: int) -> bool:
    is_dense = layer in config.values["mlp_only_layers"]
    return not is_dense and (layer + 1) % config.values["decoder_sparse_step"] == 0


def _delta_net_widths(config: ModelConfig) -> tuple[int, int, int]:
    """Return the heads of values, and the widths of all heads of keys and of values."""
    values = config.values
    heads = values["linear_num_value_heads"]
    keys = values["linear_num_key_heads"] * values["linear_key_head_dim"]
    return heads, keys, heads * values["linear_value_head_dim"]


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
_SHARED = {"shared_expert_intermediate_size": positive()}
_QWEN2_MOE = {name: row for name, row in (_MOE | _SHARED).items() if name != "attention_bias"}
_HYBRID_ROWS = {
    "head_dim": positive(256),
    "linear_conv_kernel_dim": positive(4),
    "linear_key_head_dim": positive(128),
    "linear_value_head_dim": positive(128),
    "linear_num_key_heads": positive(16),
    "linear_num_value_heads": positive(32),
}
# A hybrid's head is rotated in part, which rope_parameters say.
_HYBRID = {
    name: row for name, row in (_QWEN3 | _HYBRID_ROWS).items() if name != "partial_rotary_factor"
}
_NEXT = (
    _HYBRID
    | {name: row for name, row in (_MOE | _SHARED).items() if name not in _QWEN3}
    | {"norm_topk_prob": flag(True)}
)
_NOT_QWEN3_5_MOE = ("intermediate_size", "norm_topk_prob", "decoder_sparse_step", "mlp_only_layers")
_QWEN3_5_MOE = {name: row for name, row in _NEXT.items() if name not in _NOT_QWEN3_5_MOE}
_HYBRID_TYPES = (FULL_ATTENTION, LINEAR_ATTENTION)
_SEEING = ("model.language_model.", "language_model.", "model.", "")


_HYBRID_SECTIONS, _SECTIONS = (11, 11, 10), (24, 20, 20)
_QWEN3_5 = Architecture(
    "qwen3_5_text", _HYBRID, hybrid, mlp, _HYBRID_TYPES, _SEEING, "qwen3_5_text"
)
_QWEN3_5_WITH_EXPERTS = replace(
    _QWEN3_5,
    model_type="qwen3_5_moe_text",
    fields=_QWEN3_5_MOE,
    feed_forward=experts_and_shared,
    text_model_type="qwen3_5_moe_text",
)


def _seeing(text: Architecture, model_type: str, own_text: str, tower: Tower) -> Architecture:
    """Return the architecture of a model whose text part is another's."""
    row = replace(text, model_type=model_type, text_model_type=own_text)
    return replace(row, prefixes=_SEEING, tower=tower)


_QWEN2 = Architecture("qwen2", FIELDS, attention_with_bias, mlp)
_QWEN3_DENSE = Architecture("qwen3", _DENSE, attention_with_head_norms, mlp)
_QWEN3_MOE = Architecture("qwen3_moe", _MOE, attention_with_head_norms, experts_or_mlp)

ARCHITECTURES: Mapping[str, Architecture] = {
    "Qwen2ForCausalLM": _QWEN2,
    "Qwen3ForCausalLM": _QWEN3_DENSE,
    "Qwen3Model": _QWEN3_DENSE,
    "Qwen3ForSequenceClassification": replace(_QWEN3_DENSE, is_classifier=True),
    "Qwen3MoeForCausalLM": _QWEN3_MOE,
    "Qwen2MoeForCausalLM": Architecture(
        "qwen2_moe", _QWEN2_MOE, attention_with_bias, experts_and_shared_or_mlp
    ),
    "Qwen3NextForCausalLM": Architecture(
        "qwen3_next", _NEXT, interleaved_hybrid, experts_and_shared_or_mlp, _HYBRID_TYPES
    ),
    "Qwen3_5ForCausalLM": _QWEN3_5,
    "Qwen3_5ForConditionalGeneration": _seeing(
        _QWEN3_5, "qwen3_5", "qwen3_5_text", Tower("qwen3_5_vision", _HYBRID_SECTIONS)
    ),
    "Qwen3_5MoeForCausalLM": _QWEN3_5_WITH_EXPERTS,
    "Qwen3_5MoeForConditionalGeneration": _seeing(
        _QWEN3_5_WITH_EXPERTS,
        "qwen3_5_moe",
        "qwen3_5_moe_text",
        Tower("qwen3_5_moe_vision", _HYBRID_SECTIONS),
    ),
    "Qwen3VLForConditionalGeneration": _seeing(
        _QWEN3_DENSE, "qwen3_vl", "qwen3", Tower("qwen3_vl_vision", _SECTIONS)
    ),
    "Qwen3VLMoeForConditionalGeneration": replace(
        _seeing(_QWEN3_MOE, "qwen3_vl_moe", "qwen3_moe", Tower("qwen3_vl_moe_vision", _SECTIONS)),
        fields=_MOE | {"norm_topk_prob": exactly(True)},
        fused=fused_experts_or_mlp,
        turned=True,
    ),
    "Qwen2_5_VLForConditionalGeneration": _seeing(
        _QWEN2,
        "qwen2_5_vl",
        "qwen2",
        Tower("qwen2_5_vl_vision", (16, 24, 24), takes_turns=False),
    ),
}

# What people know the others by; `model_type` is all that is the same in every copy.
_OTHERS = {
    "qwen2_5_omni": "Qwen2.5-Omni",
    "qwen2_audio": "Qwen2-Audio",
    "qwen2_vl": "Qwen2-VL",
    "qwen3_asr": "Qwen3-ASR",
    "qwen3_omni_moe": "Qwen3-Omni",
    "qwen3_tts": "Qwen3-TTS",
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
