"""The weights of an AWQ or GPTQ checkpoint as a state dict: packed on disk, whole when read.

Knows which tensors the files must hold, and says which one is missing or misshapen before memory
is spent. A linear is unpacked when transformers asks for it, which then places it, stacks experts
and drops it, as with a plain file; so no more than a few linears exist twice. Those that are to
stay packed are taken out of the state before transformers sees it.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from workers.checkpoint import Checkpoint
from workers.errors import ModelError
from workers.model.layout.int4_weight import PER_WORD, Int4Weight
from workers.model.quantization.awq_gptq import Quantization

_FLOATS = ("F16", "BF16", "F32")
_DTYPES = {"qweight": ("I32",), "qzeros": ("I32",), "g_idx": ("I32",), "scales": _FLOATS}

Shape = tuple[int, ...]


class Stored(NamedTuple):
    """A tensor of a safetensors file, of which only the header has been read."""

    name: str
    file: Path
    data: Any

    def checked(self, shape: Shape, dtypes: tuple[str, ...]) -> "Stored":
        """Return itself; raise ModelError if the header says another shape or dtype."""
        found, dtype = tuple(self.data.get_shape()), self.data.get_dtype()
        if found != shape or dtype not in dtypes:
            raise ModelError(
                f"{self.file}: {self.name} is {dtype} {list(found)}; config.json makes it"
                f" {' or '.join(dtypes)} {list(shape)}"
            )
        return self


@dataclass(frozen=True)
class PackedWeight:
    """A linear's weight [out, in]. Reading it as transformers reads a stored one unpacks it."""

    quantization: Quantization
    parts: dict[str, Stored]
    dtype: torch.dtype
    device: torch.device

    def __getitem__(self, index: Any) -> Tensor:
        with self._naming_g_idx():
            return self.quantization.unpack(self._read(), self.dtype)[index]

    def repack(self) -> Int4Weight | Tensor:
        """Return the weight in 4 bits for kernels, whole where they could not read it."""
        with self._naming_g_idx():
            packed = self._read()
            repacked = self.quantization.repack(packed)
            return self.quantization.unpack(packed, self.dtype) if repacked is None else repacked

    def _read(self) -> dict[str, Tensor]:
        return {part: stored.data[...].to(self.device) for part, stored in self.parts.items()}

    @contextmanager
    def _naming_g_idx(self) -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            stored = self.parts["g_idx"]
            raise ModelError(f"{stored.file}: {stored.name}: {error}") from error


@contextmanager
def open_packed(
    checkpoint: Checkpoint,
    quantization: Quantization,
    skeleton: PreTrainedModel,
    dtype: torch.dtype,
    device: torch.device,
) -> Iterator[dict[str, Any]]:
    """Yield what a checkpoint holds for a model, whose skeleton is on the meta device, by name.

    The files stay open until the context ends. Linears are unpacked on `device`.
    """
    with ExitStack() as files:
        stored = _read_headers(checkpoint.weight_files, files)
        shapes = shapes_on_disk(skeleton)
        state: dict[str, Any] = {}
        for module in _packed_modules(stored, shapes):
            parts = _take_parts(module, quantization, shapes[f"{module}.weight"], stored)
            state[f"{module}.weight"] = PackedWeight(quantization, parts, dtype, device)
            _drop_empty_bias(stored, f"{module}.bias", shapes)
        for name, tensor in stored.items():
            if name in shapes:
                tensor.checked(shapes[name], _FLOATS)
            state[name] = tensor.data
        _refuse_missing(checkpoint, shapes.keys() - state.keys(), skeleton)
        yield state


@contextmanager
def open_linears(checkpoint: Checkpoint, skeleton: PreTrainedModel) -> Iterator[dict[str, Stored]]:
    """Yield the weights of a plain checkpoint's linears in decoder layers, by their modules' names.

    The files stay open until the context ends.
    """
    with ExitStack() as files:
        stored = _read_headers(checkpoint.weight_files, files)
        shapes = {name: tuple(linear.weight.shape) for name, linear in _linears(skeleton)}
        _refuse_missing(checkpoint, {f"{name}.weight" for name in shapes} - stored.keys(), skeleton)
        yield {
            name: stored[f"{name}.weight"].checked(shape, _FLOATS) for name, shape in shapes.items()
        }


def take_packed(state: dict[str, Any], skeleton: PreTrainedModel) -> dict[str, PackedWeight]:
    """Take the weights that can stay packed out of a state, by the names of their modules.

    Those are of linears in decoder layers: experts are stacked, the head is read by others.
    """
    weights = ((name, state.get(f"{name}.weight")) for name, _ in _linears(skeleton))
    taken = {name: weight for name, weight in weights if isinstance(weight, PackedWeight)}
    for name in taken:
        del state[f"{name}.weight"]
    return taken


def _linears(skeleton: PreTrainedModel) -> Iterator[tuple[str, torch.nn.Linear]]:
    """Yield the linears of the decoder layers; those of experts are none here."""
    for name, module in skeleton.get_submodule("model.layers").named_modules(prefix="model.layers"):
        if isinstance(module, torch.nn.Linear):
            yield name, module


def shapes_on_disk(skeleton: PreTrainedModel) -> dict[str, Shape]:
    """Return the names and shapes that a plain checkpoint of a model has: experts one by one."""
    state = revert_weight_conversion(skeleton, skeleton.state_dict())
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _read_headers(paths: tuple[Path, ...], files: ExitStack) -> dict[str, Stored]:
    stored = {}
    for path in paths:
        file = files.enter_context(safe_open(path, framework="pt"))
        for name in file.keys():  # noqa: SIM118, it is no dict
            stored[name] = Stored(name, path, file.get_slice(name))
    return stored


def _packed_modules(stored: dict[str, Stored], shapes: dict[str, Shape]) -> list[str]:
    """Return the linears that are packed, all of which the model must have."""
    packed = [tensor for name, tensor in stored.items() if name.endswith(".qweight")]
    for tensor in packed:
        weight = f"{tensor.name.removesuffix('.qweight')}.weight"
        if len(shapes.get(weight, ())) != 2:
            raise ModelError(f"{tensor.file}: {tensor.name}: config.json has no such linear")
        if weight in stored:
            raise ModelError(f"{tensor.file}: {tensor.name} and {weight} exclude each other")
    return [tensor.name.removesuffix(".qweight") for tensor in packed]


def _take_parts(
    module: str, quantization: Quantization, shape: Shape, stored: dict[str, Stored]
) -> dict[str, Stored]:
    """Take the tensors of one linear [out, in] out of `stored`."""
    file = stored[f"{module}.qweight"].file
    if shape[0] % PER_WORD or shape[1] % PER_WORD:
        raise ModelError(f"{file}: {module} of shape {list(shape)} cannot be packed by eights")
    parts = {}
    for part, expected in quantization.shapes(*shape).items():
        tensor = stored.pop(f"{module}.{part}", None)
        if tensor is not None:
            parts[part] = tensor.checked(expected, _DTYPES[part])
        elif part != "g_idx" or quantization.is_reordered:
            raise ModelError(f"{file}: {module}.{part} is missing; complete the download")
    return parts


def _drop_empty_bias(stored: dict[str, Stored], name: str, shapes: dict[str, Shape]) -> None:
    """Drop the bias of zeros that AutoGPTQ gives to every linear; the model has none."""
    if name in stored and name not in shapes:
        bias = stored.pop(name)
        if bias.data[...].any():
            raise ModelError(f"{bias.file}: {name} is not zero, but the model has no such bias")


def _refuse_missing(checkpoint: Checkpoint, names: set[str], skeleton: PreTrainedModel) -> None:
    if skeleton.config.tie_word_embeddings:
        names = names - {"lm_head.weight"}
    if names:
        files = checkpoint.weight_files
        where = files[0] if len(files) == 1 else checkpoint.directory
        raise ModelError(f"{where}: {len(names)} weights are missing, the first is {min(names)}")
