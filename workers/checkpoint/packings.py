"""Packings: which tensors take the place of a linear's weight, their names, shapes and types.

Knows every packing that is loaded. Refuses to know how they are unpacked, and what config.json says
of them.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from workers.checkpoint.architectures import EMBEDDING, Shape

FLOATS = ("F16", "BF16", "F32")

# What may multiply by weights that stay in as many bits as on disk: Triton's kernels, or a CPU by
# functions in C and oneDNN.
Multiplier = Literal["kernels", "native"]
WORD_BITS = 32

PATTERN = "re:"
# Of outputs and inputs, in workers/model/layout/block_fp8_weight.py.
_KERNEL_BLOCK = (128, 128)
_EMBEDDING_MODULE = EMBEDDING.removesuffix(".weight")


class Part(NamedTuple):
    """A tensor of a packed linear. `same_shapes` hold the same numbers in the same order."""

    shape: Shape
    dtypes: tuple[str, ...]
    is_required: bool = True
    same_shapes: tuple[Shape, ...] = ()


class Place(NamedTuple):
    """Where a linear's outputs, or its inputs, lie in a part: the axis, and how many of them one
    element is for. `is_group`: they share a scale.
    """

    axis: int
    unit: int = 1
    is_group: bool = False


# Of outputs and of inputs; None where all of them share what a part has.
Places = tuple[Place | None, Place | None]


class Packing(Protocol):
    """How linears are packed. One is packed where the part named `marker` is there."""

    @property
    def marker(self) -> str: ...

    def is_kept(self, by: Multiplier) -> bool:
        """Return whether a weight may stay in as many bits as on disk."""

    def parts(self, shape: Shape) -> Mapping[str, Part]:
        """Return the tensors of a linear [out, in], by the last part of their names; raise
        ValueError of a shape that cannot be packed so.
        """

    def places(self, part: str, shape: Shape) -> Places:
        """Return where outputs and inputs of a linear [out, in] lie in one of its parts."""


@dataclass(frozen=True)
class WordPacking:
    """Integers in words of 32 bits: AWQ (gemm), GPTQ, and compressed-tensors' pack-quantized.

    `group_size` -1 means one group for all inputs. `zeros_less_one`: zero points are stored minus
    one, in all GPTQ files but those of format `gptq_v2`. `is_symmetric`: there are no zero points,
    as half of the range is every one's; GPTQ stores them nevertheless.
    """

    method: Literal["awq", "gptq", "compressed-tensors"]
    group_size: int
    is_reordered: bool = False
    zeros_less_one: bool = False
    bits: int = 4
    is_symmetric: bool = False

    @property
    def marker(self) -> str:
        return "weight_packed" if self.method == "compressed-tensors" else "qweight"

    def is_kept(self, by: Multiplier) -> bool:
        return self.bits == 4

    @property
    def numbers_a_word(self) -> int:
        return WORD_BITS // self.bits

    def parts(self, shape: Shape) -> dict[str, Part]:
        num_outputs, num_inputs = shape
        if num_inputs % self.numbers_a_word:
            raise ValueError(f"cannot be packed by words of {self.numbers_a_word}")
        num_groups = -(-num_inputs // self.inputs_a_group(num_inputs))
        if self.method == "compressed-tensors":
            return self._parts_by_output(num_outputs, num_inputs, num_groups)
        if num_outputs % self.numbers_a_word:
            raise ValueError(f"cannot be packed by words of {self.numbers_a_word}")
        by_outputs = num_outputs // self.numbers_a_word
        parts = {
            "qweight": Part((num_inputs, by_outputs), ("I32",)),
            "qzeros": Part((num_groups, by_outputs), ("I32",)),
            "scales": Part((num_groups, num_outputs), FLOATS),
        }
        if self.method == "gptq":
            parts["qweight"] = Part((num_inputs // self.numbers_a_word, num_outputs), ("I32",))
            parts["g_idx"] = Part((num_inputs,), ("I32",), self.is_reordered)
        return parts

    def _parts_by_output(
        self, num_outputs: int, num_inputs: int, num_groups: int
    ) -> dict[str, Part]:
        parts = {
            "weight_packed": Part((num_outputs, num_inputs // self.numbers_a_word), ("I32",)),
            "weight_scale": Part((num_outputs, num_groups), FLOATS),
            "weight_shape": Part((2,), ("I64", "I32"), is_required=False),
            "weight_g_idx": Part((num_inputs,), ("I32",), self.is_reordered),
        }
        if not self.is_symmetric:
            num_words = -(-num_outputs // self.numbers_a_word)
            parts["weight_zero_point"] = Part((num_words, num_groups), ("I32",))
        return parts

    def places(self, part: str, shape: Shape) -> Places:
        """Return where outputs and inputs of a linear [out, in] lie in one of its parts."""
        many, group = self.numbers_a_word, self.inputs_a_group(shape[1])
        by_output = int(self.method == "compressed-tensors")  # which has outputs first
        outputs, inputs = 1 - by_output, by_output
        groups = Place(inputs, group, True) if group < shape[1] else None
        match part.removeprefix("weight_"):
            case "qweight" if self.method == "awq":
                return Place(outputs, many), Place(inputs)
            case "qweight" | "packed":
                return Place(outputs), Place(inputs, many)
            case "scales" | "scale":
                return Place(outputs), groups
            case "qzeros" | "zero_point":
                return Place(outputs, many), groups
            case "g_idx":
                return None, Place(0)
        return None, None

    def inputs_a_group(self, num_inputs: int) -> int:
        return num_inputs if self.group_size < 0 else self.group_size


@dataclass(frozen=True)
class ScaledPacking:
    """Numbers of 8 bits, a tensor of the weight's own shape: e4m3 or integers, times scales.

    `scale` is the name of the scales, of which each is for a `block` of outputs by inputs; -1 is
    all of them. A zero point, where there is one, is as wide as a scale. `rounds_inputs`: what is
    multiplied is meant to be rounded to 8 bits too, row by row.
    """

    dtype: Literal["F8_E4M3", "I8"]
    scale: Literal["weight_scale", "weight_scale_inv"]
    block: tuple[int, int]
    has_zero_point: bool = False
    rounds_inputs: bool = False

    @property
    def marker(self) -> str:
        return self.scale

    def is_kept(self, by: Multiplier) -> bool:
        if by == "kernels":
            return (self.dtype, self.block) == ("F8_E4M3", _KERNEL_BLOCK)
        is_plain = self.rounds_inputs and not self.has_zero_point
        return (self.dtype, self.block) == ("I8", (1, -1)) and is_plain

    def parts(self, shape: Shape) -> dict[str, Part]:
        rows, columns = grid = self.grid(shape)
        flat = ((rows,),) if columns == 1 else ()
        same = (*flat, ()) if grid == (1, 1) else flat
        parts = {
            "weight": Part(shape, (self.dtype,)),
            self.scale: Part(grid, FLOATS, same_shapes=same),
        }
        if self.has_zero_point:
            parts["weight_zero_point"] = Part(grid, ("I8",), same_shapes=same)
        return parts

    def places(self, part: str, shape: Shape) -> Places:
        """Return where outputs and inputs of a linear [out, in] lie in one of its parts."""
        if part == "weight":
            return Place(0), Place(1)
        (num_outputs, num_inputs), (outputs, inputs) = shape, self.block
        return (
            Place(0, outputs, True) if 0 < outputs < num_outputs else None,
            Place(1, inputs, True) if 0 < inputs < num_inputs else None,
        )

    def grid(self, shape: Shape) -> tuple[int, int]:
        """Return how many scales there are both ways; the last block may be ragged."""
        (num_outputs, num_inputs), (outputs, inputs) = shape, self.block
        return (
            1 if outputs < 0 else -(-num_outputs // outputs),
            1 if inputs < 0 else -(-num_inputs // inputs),
        )


@dataclass(frozen=True)
class Rule:
    """A packing, and which linears have it: those of `targets` that are not of `ignored`.

    Both are names of modules, patterns behind `re:`, or the classes `Linear` and `Embedding`.
    """

    packing: Packing
    targets: tuple[str, ...] = ("Linear", "Embedding")
    ignored: tuple[str, ...] = ()

    def rank(self, module: str, file_name: str) -> int | None:
        """Return how closely a module is meant, least of all by its class; None if it is not.

        It is known by its name in memory and by the one in its file.
        """
        names = (module, file_name)
        if _ranks(self.ignored, names):
            return None
        return min(_ranks(self.targets, names), default=None)


@dataclass(frozen=True)
class Quantization:
    """How the linears of a checkpoint are packed. One without a packing's marker is plain."""

    method: str
    rules: tuple[Rule, ...]


def _ranks(targets: Iterable[str], names: tuple[str, str]) -> list[int]:
    """Return 0 for each target that is a name, 1 for a matching pattern, 2 for the class."""
    class_name = "Embedding" if names[0] == _EMBEDDING_MODULE else "Linear"
    ranks = []
    for target in targets:
        if target in names:
            ranks.append(0)
        elif target.startswith(PATTERN):
            pattern = target.removeprefix(PATTERN)
            ranks += [1] if any(re.match(pattern, name) for name in names) else []
        elif target == class_name:
            ranks.append(2)
    return ranks
