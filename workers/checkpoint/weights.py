"""Weights: the tensors of safetensors files, compared with what config.json asks for.

Only headers are read, so a whole folder takes a moment and next to no memory. Every tensor that a
model needs must be there in its shape and type, and every other one that is known to be left out:
what nobody reads would make the answer another than its maker meant.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from workers.checkpoint.architectures import (
    DRAFTER,
    EMBEDDING,
    HEAD,
    Architecture,
    Shape,
    Tensors,
)
from workers.checkpoint.files import read_json
from workers.checkpoint.model_config import ModelConfig
from workers.checkpoint.packings import (
    FLOATS,
    Multiplier,
    Packing,
    Quantization,
    Rule,
    ScaledPacking,
)
from workers.checkpoint.safetensors_header import StoredTensor, not_zero, read_header
from workers.checkpoint.vision import tower_of
from workers.errors import ConfigError, ModelError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

# What no text model needs: vision and audio towers, tables of old files that are computed anew.
_LEFT_OUT = re.compile(
    r"^(model\.)?(visual|vision_tower|vision_model|audio_tower)\.|\.rotary_emb\.inv_freq$"
)
_LORA = re.compile(r"\b(lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector|base_layer)\b")
_FUSED_EXPERTS = re.compile(r"(model|mtp)\.layers\.\d+\.mlp\.experts\.gate_up_proj$")
_PACKED_PARTS = (
    *("qweight", "qzeros", "scales"),
    *("weight_packed", "weight_scale", "weight_scale_inv"),
)
# No weights: what was measured of activations and caches, which stay as wide as the model computes.
_STATIC_SCALES = re.compile(
    r"\.(activation_scale|(input|output)_(scale|zero_point)|([qkv]|kv|prob)_scale|[kv]_zero_point)$"
)

Stored = dict[str, StoredTensor]


@dataclass(frozen=True)
class Weights:
    """The tensors of a model, by their names in memory, those of a drafter that is asked for too.

    `shapes` are those of the unpacked model, `packed` how a module's weight is packed, if it is.
    `unused` are scales of activations and caches. `has_head` says whether logits are computed, by
    the embeddings where they are the head. `tower` are those of what sees, by the names it has.
    """

    tensors: Mapping[str, StoredTensor]
    shapes: Mapping[str, Shape]
    packed: Mapping[str, Packing]
    files: tuple[Path, ...]
    unused: tuple[str, ...] = ()
    has_head: bool = True
    tower: Mapping[str, StoredTensor] = field(default_factory=dict)

    @property
    def disk_bytes(self) -> int:
        return sum(file.stat().st_size for file in self.files)

    @property
    def num_parameters(self) -> int:
        """Return how many numbers the loaded model has once all are unpacked."""
        return sum(map(math.prod, self.shapes.values()))

    def kept_bytes(self, item_bytes: int, by: Multiplier) -> int:
        """Return what is held where linears of layers stay packed if they may, and all others have
        so many bytes a number.
        """
        total = self.num_parameters * item_bytes
        for module in self.decoder_linears:
            packing, shape = self.packed.get(module), self.shapes[f"{module}.weight"]
            if packing is not None and packing.is_kept(by):
                names = [f"{module}.{part}" for part in packing.parts(shape)]
                parts = [self.tensors[name] for name in names if name in self.tensors]
                total += sum(part.num_bytes for part in parts) - math.prod(shape) * item_bytes
        return total

    @property
    def has_drafter(self) -> bool:
        """Whether the layer for multi-token prediction is one of them."""
        return any(name.startswith(DRAFTER) for name in self.shapes)

    @property
    def dtypes(self) -> str:
        return ", ".join(sorted({tensor.dtype for tensor in self.tensors.values()}))

    @property
    def decoder_linears(self) -> tuple[str, ...]:
        """Return the modules of the model's layers' linears; routers and experts are none."""
        modules = [name.removesuffix(".weight") for name in self.shapes if name.endswith(".weight")]
        return tuple(
            module
            for module in modules
            if "proj" in module.rpartition(".")[2]
            and ".experts." not in module
            and not module.startswith(DRAFTER)
        )


def find_files(directory: Path) -> tuple[Path, ...]:
    """Return the files that hold the weights, sorted: those an index names, which must all be
    there, or the single file, or all there are.
    """
    index = directory / INDEX
    if index.exists():
        files = [directory / name for name in set(named_by_index(index).values())]
    elif (directory / SINGLE).exists():
        files = [directory / SINGLE]
    else:
        files = list(directory.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{directory}: {_what_is_there(directory)}")
    for file in files:
        if not file.exists() and not file.is_symlink():
            raise ModelError(f"{file}: named by {index.name}, but missing; complete the download")
    return tuple(sorted(files))


def read_weights(
    directory: Path,
    architecture: Architecture,
    config: ModelConfig,
    quantization: Quantization | None,
    *,
    with_drafter: bool = False,
    has_head: bool = True,
) -> Weights:
    """Return what the headers say; raise ModelError naming the file and tensor that is wrong, or
    ConfigError of a drafting layer that is asked for and not there.
    """
    files = find_files(directory)
    place = files[0] if len(files) == 1 else directory
    stored = _named_as_in_memory(_read_headers(files, directory), architecture.prefixes)
    _refuse_lora(stored)
    if not with_drafter:
        stored = {name: stored[name] for name in stored if not name.startswith(DRAFTER)}
    tensors: Stored = {}
    shapes: dict[str, Shape] = {}
    packed: dict[str, Packing] = {}
    has_fused_experts = _has_fused_experts("model.", stored)
    if not has_head and EMBEDDING in stored:
        stored.pop(HEAD, None)
    wanted = architecture.shapes(config, has_fused_experts=has_fused_experts, has_head=has_head)
    if with_drafter:
        wanted = chain(wanted, _drafter_shapes(architecture, config, stored, directory))
    for name, shape in wanted:
        module = name.removesuffix(".weight")
        packing = _packing_of(module, stored, quantization)
        if packing is not None:
            tensors.update(_take_parts(module, shape, packing, stored))
            packed[module] = packing
        elif name in stored:
            _refuse_lonely(stored[name], module, quantization)
            tensors[name] = _checked(stored.pop(name), shape, FLOATS, architecture.turns(shape))
        elif _has_twin(name, config, stored.keys() | tensors.keys()):
            continue
        else:
            raise ModelError(f"{place}: {_why_missing(name, stored, quantization)}")
        shapes[name] = shape
    _take_empty_biases(packed, stored)
    unused = _take_static_scales(stored) if packed else ()
    _refuse_unknown(stored)
    return Weights(tensors, shapes, packed, files, unused, has_head, tower_of(stored))


def _drafter_shapes(
    architecture: Architecture, config: ModelConfig, stored: Stored, directory: Path
) -> Tensors:
    if not architecture.is_hybrid or not any(name.startswith(DRAFTER) for name in stored):
        raise ConfigError(
            f"speculative_config: method mtp takes the {DRAFTER}* tensors of a hybrid model, and"
            f" {directory} has none; choose method ngram, or leave it out"
        )
    fused = _has_fused_experts(DRAFTER, stored)
    return architecture.drafter_shapes(config, has_fused_experts=fused)


def _has_fused_experts(prefix: str, stored: Stored) -> bool:
    return any(name.startswith(prefix) and _FUSED_EXPERTS.match(name) for name in stored)


def named_by_index(index: Path) -> dict[str, str]:
    """Return the file of each tensor that an index names."""
    found = read_json(index).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise ModelError(f"{index}: weight_map names no files; download the file again")
    for name in found.values():
        if not isinstance(name, str) or Path(name).name != name:
            raise ModelError(f"{index}: {name!r} is no file of the folder; download it again")
    return found


def _what_is_there(directory: Path) -> str:
    """Return why a folder has no weights, and what to do."""
    for pattern, what in (
        ("*.gguf", "GGUF, which llama.cpp reads"),
        ("*.bin", "PyTorch pickles, which may run code"),
        ("*.pt*", "PyTorch pickles, which may run code"),
    ):
        if found := sorted(directory.glob(pattern)):
            return (
                f"no *.safetensors files, but {found[0].name}: {what}; take the model's"
                " *.safetensors files"
            )
    return "no *.safetensors files, the only weights that are loaded; complete the download"


def _read_headers(files: tuple[Path, ...], directory: Path) -> Stored:
    """Return the tensors of all files; of two that have the same, the one the index names."""
    index = directory / INDEX
    places = named_by_index(index) if index.exists() else {}
    tensors: Stored = {}
    for file in files:
        for name, tensor in read_header(file).items():
            if name not in tensors or places.get(name) == file.name:
                tensors[name] = tensor
    return tensors


def _named_as_in_memory(stored: Stored, prefixes: tuple[str, ...]) -> Stored:
    """Return tensors by the names they have in memory, in whichever way the files spell them."""
    stems = EMBEDDING.removeprefix("model."), "norm.weight"
    spelt = (prefix for prefix in prefixes if any(f"{prefix}{stem}" in stored for stem in stems))
    base = next(spelt, "model.")
    if base == "model.":
        return stored
    return {_in_memory(name, base): tensor for name, tensor in stored.items()}


def _in_memory(name: str, base: str) -> str:
    own = (f"{base}layers.", f"{base}embed_tokens.", f"{base}norm.")
    return f"model.{name.removeprefix(base)}" if name.startswith(own) else name


def _refuse_lora(stored: Stored) -> None:
    for name, tensor in stored.items():
        if _LORA.search(name):
            raise ModelError(
                f"{tensor.file}: {tensor.name} belongs to a LoRA adapter, which is not applied;"
                " merge it into its base model (peft: merge_and_unload) and pass the merged folder"
            )


def _packing_of(module: str, stored: Stored, quantization: Quantization | None) -> Packing | None:
    """Return how a linear is packed, by the rule that means it most closely; None if it is not."""
    found: list[tuple[int, Rule]] = []
    for rule in quantization.rules if quantization else ():
        suffix = f".{rule.packing.marker}"
        marker = stored.get(module + suffix)
        rank = rule.rank(module, marker.name.removesuffix(suffix)) if marker else None
        found += [] if rank is None else [(rank, rule)]
    return min(found, key=lambda pair: pair[0])[1].packing if found else None


def _take_parts(
    module: str, shape: Shape, packing: Packing, stored: Stored
) -> Iterator[tuple[str, StoredTensor]]:
    """Take the tensors of one packed linear [out, in] out of `stored`."""
    marker = stored[f"{module}.{packing.marker}"]
    if len(shape) != 2:
        raise ModelError(
            f"{marker.file}: {marker.name} is of no linear of the model; take config.json and"
            " weights from the same model"
        )
    try:
        parts = packing.parts(shape)
    except ValueError as error:
        raise ModelError(
            f"{marker.file}: {module} of shape {list(shape)} {error}; take config.json and weights"
            " from the same model"
        ) from error
    if "weight" not in parts and f"{module}.weight" in stored:
        raise ModelError(
            f"{marker.file}: {marker.name} and {module}.weight exclude each other; take the file"
            " of the published model"
        )
    for name, part in parts.items():
        tensor = stored.pop(f"{module}.{name}", None)
        if tensor is not None:
            yield f"{module}.{name}", _checked(tensor, part.shape, part.dtypes, part.same_shapes)
        elif part.is_required:
            raise ModelError(
                f"{marker.file}: {module}.{name} is missing beside {packing.marker}; complete the"
                " download"
            )


def _checked(
    tensor: StoredTensor,
    shape: Shape,
    dtypes: tuple[str, ...],
    same_shapes: tuple[Shape, ...] = (),
) -> StoredTensor:
    if tensor.dtype not in dtypes:
        raise ModelError(
            f"{tensor.file}: {tensor.name} is of type {tensor.dtype}, by config.json it is"
            f" {' or '.join(dtypes)}; take both from the same model"
        )
    if tensor.shape not in (shape, *same_shapes):
        raise ModelError(
            f"{tensor.file}: {tensor.name} has the shape {list(tensor.shape)}, config.json makes it"
            f" {list(shape)}; take both from the same model"
        )
    return tensor


def _has_twin(name: str, config: ModelConfig, names: set[str]) -> bool:
    """Whether a tensor is one of two that are tied, and the other is there."""
    twins = {EMBEDDING: HEAD, HEAD: EMBEDDING}
    return config.tie_word_embeddings and twins.get(name) in names


def _refuse_lonely(tensor: StoredTensor, module: str, quantization: Quantization | None) -> None:
    """Refuse a weight of 8 bits whose scales are not there, as that which is missing."""
    for rule in quantization.rules if quantization else ():
        packing = rule.packing
        if isinstance(packing, ScaledPacking) and tensor.dtype == packing.dtype:
            raise ModelError(
                f"{tensor.file}: {module}.{packing.scale} is missing beside a weight of type"
                f" {tensor.dtype}; complete the download"
            )


def _why_missing(name: str, stored: Stored, quantization: Quantization | None) -> str:
    module = name.removesuffix(".weight")
    part = next((part for part in _PACKED_PARTS if f"{module}.{part}" in stored), None)
    if part and quantization is None:
        return (
            f"{module}.{part} is of packed weights, but config.json has no quantization_config;"
            " take config.json of the same model"
        )
    for rule in quantization.rules if part and quantization else ():
        marker = f"{module}.{rule.packing.marker}"
        if marker in stored:
            return (
                f"{marker} is there, but quantization_config leaves {module} plain; take both from"
                " the same model"
            )
        name = marker
    if name == HEAD:
        return (
            f"{name} is missing, and config.json does not tie it to the embeddings: an embedding"
            " or reward model, which writes no text; choose one that does, or say --task embed"
        )
    stem = name.removeprefix("model.")
    if like := next((other for other in stored if other.endswith(f".{stem}")), None):
        return (
            f"{name} is missing, {like} is there instead; save the model anew by transformers, or"
            " take the published one"
        )
    return f"{name} is missing, which config.json asks for; complete the download"


def _take_empty_biases(packed: Iterable[str], stored: Stored) -> None:
    """Take out the biases of zeros that AutoGPTQ gives to every linear; the model has none."""
    names = [f"{module}.bias" for module in packed]
    biases = [stored.pop(name) for name in names if name in stored]
    for bias in not_zero(biases):
        raise ModelError(
            f"{bias.file}: {bias.name} is not zero, but the model has no such bias; take"
            " config.json and weights from the same model"
        )


def _take_static_scales(stored: Stored) -> tuple[str, ...]:
    """Take out the scales that were measured of activations and caches, and return their names."""
    names = tuple(name for name in stored if _STATIC_SCALES.search(name))
    for name in names:
        del stored[name]
    return names


def _refuse_unknown(stored: Stored) -> None:
    unknown = [tensor for name, tensor in stored.items() if not _LEFT_OUT.search(name)]
    if unknown:
        first, others = min(unknown, key=lambda tensor: tensor.name), len(unknown) - 1
        more = f" and {others} more" if others else ""
        raise ModelError(
            f"{first.file}: the model has no place for {first.name}{more}; take config.json and"
            " weights from the same model"
        )
