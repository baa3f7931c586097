"""Checks of a model directory before it is loaded: config, tokenizer, headers of weights.

What is refused here would fail once the weights are read, or be computed wrongly. Of the weights
only headers are read, so a whole directory takes a moment. The device side looks again, closer.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from qwenapi.doctor.check import Check, gib, ok, warning
from qwenapi.generation.tokenizers import load_tokenizer
from qwenapi.text.errors import TemplateError
from qwenapi.text.tokenizer import Tokenizer
from workers.checkpoint import Checkpoint
from workers.errors import ModelError

MIXTURES = ("Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM")
# The tensors of these are compared with config.json by the engine alone.
HYBRIDS = (
    "Qwen3NextForCausalLM",
    "Qwen3_5ForCausalLM",
    "Qwen3_5ForConditionalGeneration",
    "Qwen3_5MoeForCausalLM",
    "Qwen3_5MoeForConditionalGeneration",
)
ARCHITECTURES = ("Qwen2ForCausalLM", "Qwen3ForCausalLM", *MIXTURES, *HYBRIDS)
PLAIN_DTYPES = ("F32", "BF16", "F16")
PACKED_DTYPES = (*PLAIN_DTYPES, "I32")
NUMBERS_A_WORD = 8  # of 4 bits in an int32
PROBE = [{"role": "user", "content": "?"}]

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Tensor:
    """What a header says of one tensor."""

    file: Path
    dtype: str
    shape: Shape


@dataclass(frozen=True)
class Weights:
    """All tensors of a checkpoint, by name."""

    tensors: Mapping[str, Tensor]
    num_files: int
    disk_bytes: int

    @property
    def num_parameters(self) -> int:
        """Return how many numbers the loaded model has: packed ones are unpacked while loading."""
        return sum(_num_unpacked(name, tensor.shape) for name, tensor in self.tensors.items())

    @property
    def is_packed(self) -> bool:
        """Whether linears are packed in 4 bits."""
        return any(name.endswith(".qweight") for name in self.tensors)

    @property
    def dtypes(self) -> str:
        return ", ".join(sorted({tensor.dtype for tensor in self.tensors.values()}))


@dataclass(frozen=True)
class Dimensions:
    """The numbers of config.json that decide over shapes and memory.

    Of a hybrid model, `num_layers` counts those with keys and values.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    context: int

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> "Dimensions":
        config = checkpoint.text_config

        def number(field: str, otherwise: int | None = None) -> int:
            value = config.get(field)
            value = otherwise if value is None else value
            if not isinstance(value, int) or value < 1:
                raise ModelError(
                    f"{checkpoint.directory / 'config.json'}: {field} is {value!r},"
                    " not a positive integer; take the file of the published model"
                )
            return value

        heads, hidden = number("num_attention_heads"), number("hidden_size")
        is_hybrid = checkpoint.architecture in HYBRIDS
        interval = number("full_attention_interval", 4) if is_hybrid else 1
        return cls(
            vocab_size=checkpoint.vocab_size,
            hidden_size=hidden,
            num_layers=number("num_hidden_layers") // interval,
            num_heads=heads,
            num_kv_heads=number("num_key_value_heads", heads),
            head_dim=number("head_dim", hidden // heads),
            intermediate_size=number("intermediate_size", config.get("moe_intermediate_size")),
            context=_context(config, checkpoint.max_position_embeddings),
        )


def check_config(checkpoint: Checkpoint) -> Check:
    """Say what the model is; raise ModelError if its config.json cannot be used."""
    checkpoint.check_config()
    return ok("config", f"{checkpoint.directory}: {checkpoint.architecture}")


def check_tokenizer(checkpoint: Checkpoint) -> Iterator[Check]:
    """Load tokenizer and chat template; raise ModelError naming the file that is wrong."""
    file = checkpoint.directory / "tokenizer.json"
    file.open("rb").close()  # its OSError says more than the library's
    tokenizer = load_tokenizer(checkpoint.directory)
    if tokenizer.vocab_size > checkpoint.vocab_size:
        raise ModelError(
            f"{file}: has {tokenizer.vocab_size} tokens, but config.json says vocab_size ="
            f" {checkpoint.vocab_size}; take both files from the same model"
        )
    beyond = [id_ for id_ in checkpoint.eos_token_ids if id_ >= checkpoint.vocab_size]
    if beyond:
        raise ModelError(
            f"{checkpoint.directory / 'generation_config.json'}: eos_token_id {beyond[0]} is no"
            " token of the model; take the file of the published model"
        )
    yield ok("tokenizer", f"{file}: {tokenizer.vocab_size} tokens")
    yield _check_template(checkpoint, tokenizer)


def check_architecture(checkpoint: Checkpoint) -> None:
    """Raise ModelError for a model that the engine would refuse once it is started."""
    file = checkpoint.directory / "config.json"
    if checkpoint.architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ModelError(
            f"{file}: architecture {checkpoint.architecture} is not one of {known};"
            " choose a model of these"
        )
    packed = checkpoint.config.get("quantization_config")
    method = packed.get("quant_method") if isinstance(packed, dict) else packed
    if method not in (None, "awq", "gptq"):
        raise ModelError(
            f"{file}: weights packed as {method!r} are not loaded;"
            " use an AWQ or GPTQ checkpoint of 4 bits, or plain weights"
        )


def read_weights(checkpoint: Checkpoint) -> Weights:
    """Read the headers of all weight files; raise ModelError naming the file that is damaged."""
    tensors: dict[str, Tensor] = {}
    for file in checkpoint.weight_files:
        file.open("rb").close()  # its OSError says more than the library's
        try:
            with safe_open(file, framework="np") as opened:
                for name in opened.keys():  # noqa: SIM118, it is no dict
                    part = opened.get_slice(name)
                    tensors[name] = Tensor(file, part.get_dtype(), tuple(part.get_shape()))
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{file}: damaged, {error}; complete the download") from error
    disk_bytes = sum(file.stat().st_size for file in checkpoint.weight_files)
    return Weights(tensors, len(checkpoint.weight_files), disk_bytes)


def check_weights(checkpoint: Checkpoint, weights: Weights, dimensions: Dimensions) -> Check:
    """Compare the headers with config.json; raise ModelError naming file and tensor."""
    is_packed = checkpoint.config.get("quantization_config") is not None
    tied = bool(checkpoint.config.get("tie_word_embeddings"))
    is_moe = checkpoint.architecture in MIXTURES
    is_hybrid = checkpoint.architecture in HYBRIDS
    for name, tensor in weights.tensors.items():
        _check_dtype(name, tensor, is_packed)
    expected = {} if is_hybrid else expected_shapes(dimensions, is_moe=is_moe)
    for name, shape in expected.items():
        if is_packed and name.endswith("_proj.weight"):
            name = name.removesuffix("weight") + "qweight"
        elif name in weights.tensors:
            _check_shape(name, weights.tensors[name], shape)
        if name not in weights.tensors and not (name == "lm_head.weight" and tied):
            raise ModelError(
                f"{_place(checkpoint)}: {name} is missing, which config.json asks for;"
                " complete the download"
            )
    files = f"{weights.num_files} file" + ("s" if weights.num_files > 1 else "")
    return ok("weights", f"{gib(weights.disk_bytes)} of {weights.dtypes} in {files}")


def expected_shapes(of: Dimensions, *, is_moe: bool) -> dict[str, Shape]:
    """Return the tensors every checkpoint of these dimensions has; experts are left out."""
    queries, keys = of.num_heads * of.head_dim, of.num_kv_heads * of.head_dim
    hidden = of.hidden_size
    shapes: dict[str, Shape] = {
        "model.embed_tokens.weight": (of.vocab_size, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (of.vocab_size, hidden),
    }
    layer: dict[str, Shape] = {
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
    }
    if not is_moe:
        layer |= {
            "mlp.gate_proj": (of.intermediate_size, hidden),
            "mlp.up_proj": (of.intermediate_size, hidden),
            "mlp.down_proj": (hidden, of.intermediate_size),
        }
    for i in range(of.num_layers):
        shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
    return shapes


def _check_template(checkpoint: Checkpoint, tokenizer: Tokenizer) -> Check:
    try:
        num_tokens = len(tokenizer.encode_chat(PROBE))
    except TemplateError as error:
        return warning(
            "chat template",
            f"{checkpoint.directory}: no conversation can be put to the model",
            str(error).rstrip("."),
            "take chat_template.jinja from the published model, or use /v1/completions alone",
        )
    return ok("chat template", f"a message of one character makes {num_tokens} tokens")


def _check_dtype(name: str, tensor: Tensor, is_packed: bool) -> None:
    known = PACKED_DTYPES if is_packed else PLAIN_DTYPES
    if tensor.dtype not in known:
        raise ModelError(
            f"{tensor.file}: {name} is of type {tensor.dtype}, not one of {', '.join(known)};"
            " use a checkpoint of plain weights, or AWQ or GPTQ of 4 bits"
        )


def _check_shape(name: str, tensor: Tensor, shape: Shape) -> None:
    if tensor.shape != shape:
        raise ModelError(
            f"{tensor.file}: {name} has the shape {list(tensor.shape)}, config.json makes it"
            f" {list(shape)}; take both from the same model"
        )


def _place(checkpoint: Checkpoint) -> Path:
    files = checkpoint.weight_files
    return files[0] if len(files) == 1 else checkpoint.directory


def _num_unpacked(name: str, shape: Shape) -> int:
    if name.endswith((".qzeros", ".scales", ".g_idx")):
        return 0
    return math.prod(shape) * (NUMBERS_A_WORD if name.endswith(".qweight") else 1)


def _context(config: Mapping[str, Any], positions: int) -> int:
    """Return the longest sequence the model's positions allow, stretched by yarn."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type")) != "yarn":
        return positions
    original = rope.get("original_max_position_embeddings") or positions
    return max(positions, int(original * rope.get("factor", 1.0)))
