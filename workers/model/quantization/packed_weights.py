"""A quantized checkpoint's weights as a state dict that unpacks each linear when it is read.

Which tensors there must be has been checked: `checkpoint.weights` says what the files hold. A
packed linear is unpacked when transformers asks for it, which then places it, stacks experts and
drops it, as with a plain one; so no more than a few linears exist twice. Those that are to stay as
they are on disk are taken out of the state before transformers sees it.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from workers.checkpoint.architectures import Shape
from workers.checkpoint.checkpoint import Checkpoint
from workers.checkpoint.packings import Multiplier, Packing, ScaledPacking, WordPacking
from workers.checkpoint.shard_plan import ShardPlan
from workers.checkpoint.weights import Weights
from workers.errors import ModelError
from workers.model.layout.block_fp8_weight import BlockFp8Weight
from workers.model.layout.int4_weight import Int4Weight
from workers.model.native.int4_tiles import Int4Tiles
from workers.model.parallel.sharded_tensor import shard
from workers.model.quantization import int8, packed_words, scaled_numbers
from workers.model.quantization.int8 import Int8Weight

State = dict[str, Any]
Kept = Int4Weight | BlockFp8Weight | Int4Tiles | Int8Weight


class OpenTensor(NamedTuple):
    """A tensor of an open file, not read yet."""

    name: str
    file: Path
    data: Any


@dataclass(frozen=True)
class PackedWeight:
    """A linear's weight [out, in]. Reading it as transformers reads a stored one unpacks it."""

    packing: Packing
    parts: dict[str, OpenTensor]
    dtype: torch.dtype
    device: torch.device

    def __getitem__(self, index: Any) -> Tensor:
        with self._naming_the_part():
            return self._unpack(self._read())[index]

    def keep(self, by: Multiplier) -> Kept | Tensor:
        """Return the weight in as many bits, whole where what multiplies could not read it."""
        with self._naming_the_part():
            packed = self._read()
            kept = self._repack(packed, by)
            return self._unpack(packed) if kept is None else kept

    def _repack(self, packed: dict[str, Tensor], by: Multiplier) -> Kept | None:
        if isinstance(self.packing, ScaledPacking):
            kept = scaled_numbers.repack(self.packing, packed, by, self.dtype)
            return None if isinstance(kept, Int8Weight) and not int8.is_exact() else kept
        assert isinstance(self.packing, WordPacking)
        words = packed_words.repack(self.packing, packed)
        return words if words is None or by == "kernels" else Int4Tiles.of(words)

    def _unpack(self, packed: dict[str, Tensor]) -> Tensor:
        if isinstance(self.packing, ScaledPacking):
            return scaled_numbers.unpack(self.packing, packed, self.dtype)
        assert isinstance(self.packing, WordPacking)
        return packed_words.unpack(self.packing, packed, self.dtype)

    def _read(self) -> dict[str, Tensor]:
        return {part: opened.data[...].to(self.device) for part, opened in self.parts.items()}

    @contextmanager
    def _naming_the_part(self) -> Iterator[None]:
        try:
            yield
        except packed_words.WrongPart as error:
            opened = self.parts.get(error.part) or self.parts[f"weight_{error.part}"]
            raise ModelError(
                f"{opened.file}: {opened.name}: {error}; take the file of the published model"
            ) from error


@dataclass(frozen=True)
class TurnedTensor:
    """A layer's experts in an open file, inputs before outputs, read the other way round."""

    data: Any

    def get_shape(self) -> list[int]:
        experts, inputs, outputs = self.data.get_shape()
        return [experts, outputs, inputs]

    def get_dtype(self) -> str:
        return str(self.data.get_dtype())

    def __getitem__(self, index: Any) -> Tensor:
        if type(index) is int:
            one: Tensor = self.data[index]
            return one.T.contiguous()
        whole: Tensor = self.data[...].transpose(1, 2).contiguous()
        return whole[index]


@contextmanager
def open_weights(
    checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device
) -> Iterator[State]:
    """Yield what a model's tensors are read from, by name: of each, the rank's part.

    The files stay open until the context ends. Linears are unpacked on `device`.
    """
    weights, plan = checkpoint.weights, checkpoint.shard_plan
    with ExitStack() as files:
        opened = {
            file: files.enter_context(safe_open(file, framework="pt")) for file in weights.files
        }
        found = {
            name: OpenTensor(tensor.name, tensor.file, opened[tensor.file].get_slice(tensor.name))
            for name, tensor in weights.tensors.items()
        }
        state: State = {}
        for module, packing in weights.packed.items():
            shape = weights.shapes[f"{module}.weight"]
            names = {part: f"{module}.{part}" for part in packing.parts(shape)}
            parts = {part: found.pop(name) for part, name in names.items() if name in found}
            if plan is not None:
                parts = _shard_parts(plan, f"{module}.weight", packing, parts, shape)
            state[f"{module}.weight"] = PackedWeight(packing, parts, dtype, device)
        for name, tensor in found.items():
            is_turned = weights.tensors[name].shape != weights.shapes[name]
            state[name] = TurnedTensor(tensor.data) if is_turned else tensor.data
        yield state if plan is None else _shard_plain(plan, state, weights)


def _shard_plain(plan: ShardPlan, state: State, weights: Weights) -> State:
    """Return a rank's weights by their names in its model, of which plain ones are now cut."""
    found: State = {}
    for name, data in state.items():
        if (local := plan.local_name(name)) is not None:
            is_packed = isinstance(data, PackedWeight)
            cut = None if is_packed else plan.cut(name, weights.shapes[name])
            found[local] = shard(data, cut)
    return found


def _shard_parts(
    plan: ShardPlan, name: str, packing: Packing, parts: dict[str, OpenTensor], shape: Shape
) -> dict[str, OpenTensor]:
    """Return the parts of a rank's share of a packed weight; by inputs, without a `g_idx` that was
    never filled, which would say something of a share.
    """
    if (cut := plan.cut(name, shape)) is None:
        return parts
    parts = {
        part: opened
        for part, opened in parts.items()
        if not (cut.axis == 1 and part.endswith("g_idx") and not opened.data[...].any())
    }
    is_ordered = any(part.endswith("g_idx") for part in parts)
    return {
        part: opened._replace(
            data=shard(opened.data, plan.cut_part(packing, part, cut, shape, is_ordered=is_ordered))
        )
        for part, opened in parts.items()
        if part != "weight_shape"  # which is the whole one's
    }


def take_packed(state: State, linears: tuple[str, ...], by: Multiplier) -> dict[str, PackedWeight]:
    """Take the weights that can stay packed out of a state, by the names of their modules.

    Those are of linears in decoder layers: experts are stacked, the head is read by others.
    """
    taken = {name: state.get(f"{name}.weight") for name in linears}
    packed = {
        name: weight
        for name, weight in taken.items()
        if isinstance(weight, PackedWeight) and weight.packing.is_kept(by)
    }
    for name in packed:
        del state[f"{name}.weight"]
    return packed
