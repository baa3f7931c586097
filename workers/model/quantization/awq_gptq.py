"""Quantization: what config.json says of AWQ (gemm) or GPTQ linears, and how one is unpacked.

Knows how eight 4-bit numbers lie in an int32, which tensors make up a linear and their shapes, and
turns them into a whole weight or into the one layout that kernels read. Refuses every other
quantization. Which linears there are, and in which files, is `packed_weights.py`'s business.

Both formats keep a linear of shape [out, in] transposed, as integers q with a zero point z and a
scale s for every `group_size` inputs of an output: weight = (q - z) * s. After
github.com/casper-hansen/AutoAWQ (awq/utils/packing_utils.py) and
github.com/ModelCloud/GPTQModel (gptqmodel/utils/model.py).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from workers.checkpoint import Checkpoint
from workers.errors import ModelError
from workers.model.layout.int4_weight import PER_WORD, Int4Weight, num_words, pack_words

# Bit offsets of eight neighbours. AWQ packs the columns 0 2 4 6 1 3 5 7 into rising bits.
_AWQ_SHIFTS = (0, 16, 4, 20, 8, 24, 12, 28)
_GPTQ_SHIFTS = (0, 4, 8, 12, 16, 20, 24, 28)

# Elements unpacked at once: what is held beside the packed and the finished weight.
_SLAB = 1 << 20

_SUPPORTED = "only AWQ (gemm) and GPTQ of 4 bits are loaded; use such a checkpoint or plain weights"


@dataclass(frozen=True)
class Quantization:
    """How the linears of a checkpoint are packed. `group_size` -1 means one group for all inputs.

    `zeros_less_one`: zero points are stored minus one, in all GPTQ files but those of format
    `gptq_v2`.
    """

    method: Literal["awq", "gptq"]
    group_size: int
    is_reordered: bool = False
    zeros_less_one: bool = False

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> "Quantization | None":
        """Return what config.json says, None of plain weights; raise ModelError if not loadable."""
        fields = checkpoint.config.get("quantization_config")
        if fields is None:
            return None
        said = _Said(checkpoint.directory / "config.json", fields)
        method = said.one_of("quant_method", "awq", "gptq")
        said.one_of("bits", 4)
        group_size = said.group_size()
        if method == "awq":
            said.one_of("version", "gemm", "GEMM")
            said.one_of("zero_point", True, otherwise=True)
            return cls("awq", group_size)
        said.one_of("pack_dtype", "int32", otherwise="int32")
        said.one_of("is_marlin_format", False, None, otherwise=False)
        said.refuse_overrides()
        form = said.one_of("checkpoint_format", "gptq", "gptq_v2", otherwise="gptq")
        is_reordered = said.one_of("desc_act", True, False, otherwise=False)
        return cls("gptq", group_size, bool(is_reordered), form == "gptq")

    def shapes(self, num_outputs: int, num_inputs: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the tensors that make up one linear, by the last part of the name.

        Both numbers must be multiples of eight. `g_idx` may be absent unless `is_reordered`.
        """
        num_groups = -(-num_inputs // self._group_size(num_inputs))
        shapes: dict[str, tuple[int, ...]] = {
            "qweight": (num_inputs, num_outputs // PER_WORD),
            "qzeros": (num_groups, num_outputs // PER_WORD),
            "scales": (num_groups, num_outputs),
        }
        if self.method == "gptq":
            shapes["qweight"] = (num_inputs // PER_WORD, num_outputs)
            shapes["g_idx"] = (num_inputs,)
        return shapes

    def unpack(self, packed: dict[str, Tensor], dtype: torch.dtype) -> Tensor:
        """Return the weight [out, in] of tensors that have the shapes above.

        A product is exact in float32 and rounded once, to `dtype`. Raise ValueError if `g_idx`
        names a group that is not there.
        """
        qweight, scales = packed["qweight"], packed["scales"].float()
        zeros = self._zeros(packed["qzeros"])
        num_inputs, num_outputs = self._num_inputs(qweight), scales.shape[1]
        groups = self._groups(packed.get("g_idx"), num_inputs, len(scales)).to(qweight.device)
        weight = torch.empty(num_outputs, num_inputs, dtype=dtype, device=qweight.device)
        for outputs in _slabs(num_outputs, num_inputs):
            numbers = self._numbers(qweight, outputs)
            numbers.sub_(zeros[:, outputs][groups]).mul_(scales[:, outputs][groups])
            weight[outputs] = numbers.to(dtype).T
        return weight

    def repack(self, packed: dict[str, Tensor]) -> Int4Weight | None:
        """Return the same weight as `unpack` does, in 4 bits; None where no kernel could read it.

        That is where groups are no whole number of planes, or no order of the inputs makes each a
        run of `group_size`. Raise ValueError as `unpack` does.
        """
        qweight, scales = packed["qweight"], packed["scales"]
        num_inputs, num_outputs = self._num_inputs(qweight), scales.shape[1]
        group_size = self._group_size(num_inputs)
        width = num_words(group_size, num_inputs)
        groups = self._groups(packed.get("g_idx"), num_inputs, len(scales)).to(qweight.device)
        runs = torch.arange(num_inputs, device=qweight.device) // group_size
        order = groups.argsort(stable=True)
        if width is None or not torch.equal(groups[order], runs):
            return None
        num_blocks = -(-num_inputs // (PER_WORD * width))
        words = qweight.new_empty(num_blocks, num_outputs, width)
        for outputs in _slabs(num_outputs, num_inputs):
            words[:, outputs] = pack_words(self._numbers(qweight, outputs).int()[order], width)
        is_ordered = torch.equal(groups, runs)
        zeros = self._zeros(packed["qzeros"]).to(torch.uint8)
        return Int4Weight(
            words, scales, zeros, group_size, num_inputs, None if is_ordered else order
        )

    def _num_inputs(self, qweight: Tensor) -> int:
        return qweight.shape[0] * (PER_WORD if self.method == "gptq" else 1)

    def _zeros(self, qzeros: Tensor) -> Tensor:
        """Return the zero points [groups, out] of words [groups, out / 8].

        The one that GPTQ took off each is added to whole words, as it was taken off: a zero point
        of 0 has borrowed from its neighbour.
        """
        if self.zeros_less_one:
            qzeros = qzeros + 0x11111111
        return _split(qzeros, _AWQ_SHIFTS if self.method == "awq" else _GPTQ_SHIFTS).flatten(1)

    def _numbers(self, qweight: Tensor, outputs: slice) -> Tensor:
        """Return the numbers [in, outputs]; AWQ packs along out, GPTQ along in."""
        if self.method == "awq":
            words = qweight[:, outputs.start // PER_WORD : outputs.stop // PER_WORD]
            return _split(words, _AWQ_SHIFTS).flatten(1)
        return _split(qweight[:, outputs], _GPTQ_SHIFTS).transpose(1, 2).flatten(0, 1)

    def _groups(self, g_idx: Tensor | None, num_inputs: int, num_groups: int) -> Tensor:
        """Return each input's group; zeros alone are a `g_idx` that its packer never filled."""
        if g_idx is None or not g_idx.any():
            return torch.arange(num_inputs) // self._group_size(num_inputs)
        if g_idx.min() < 0 or g_idx.max() >= num_groups:
            raise ValueError(f"g_idx names groups outside 0 to {num_groups - 1}")
        return g_idx.long()

    def _group_size(self, num_inputs: int) -> int:
        return num_inputs if self.group_size < 0 else self.group_size


@dataclass(frozen=True)
class _Said:
    """The quantization_config of a file, whose fields are checked as they are read."""

    file: Path
    fields: Any

    def one_of(self, name: str, *values: object, otherwise: object = None) -> object:
        """Return a field that must have one of these values; `otherwise` stands for none."""
        value = self.fields.get(name, otherwise) if isinstance(self.fields, dict) else self.fields
        # True == 1 in Python, not in JSON.
        if any(type(value) is type(known) and value == known for known in values):
            return value
        raise ModelError(f"{self.file}: quantization_config.{name} is {value!r}: {_SUPPORTED}")

    def group_size(self) -> int:
        value = self.fields.get("group_size")
        if type(value) is int and (value == -1 or value > 0):
            return value
        raise ModelError(
            f"{self.file}: quantization_config.group_size must be -1 or positive, not {value!r}"
        )

    def refuse_overrides(self) -> None:
        """Refuse GPTQModel's other bits and sizes for some modules; `-:` leaves modules out."""
        dynamic = self.fields.get("dynamic") or {}
        for pattern in dynamic if isinstance(dynamic, dict) else [dynamic]:
            if not str(pattern).startswith("-:"):
                raise ModelError(
                    f"{self.file}: quantization_config.dynamic has {pattern!r}: {_SUPPORTED}"
                )


def _slabs(num_outputs: int, num_inputs: int) -> Iterator[slice]:
    """Yield slices of outputs, by whole words, that together are unpacked at once."""
    step = max(1, _SLAB // num_inputs // PER_WORD) * PER_WORD
    for start in range(0, num_outputs, step):
        yield slice(start, min(start + step, num_outputs))


def _split(words: Tensor, shifts: tuple[int, ...]) -> Tensor:
    """Return the eight 4-bit numbers of each int32, 0 to 15, in a new last dimension, as floats."""
    offsets = torch.tensor(shifts, dtype=torch.int32, device=words.device)
    return (words.unsqueeze(-1) >> offsets).bitwise_and_(15).float()
