"""Quantization: how linears are packed, and which tensors take the place of one.

Knows names, shapes and types of the parts. Refuses to know how they are unpacked, and every packing
without a row in METHODS.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from workers.checkpoint.architectures import Shape
from workers.errors import ModelError

FLOATS = ("F16", "BF16", "F32")
NUMBERS_A_WORD = 8  # of 4 bits in an int32

_SUPPORTED = "only AWQ (gemm) and GPTQ of 4 bits are loaded; use such a checkpoint or plain weights"


class Part(NamedTuple):
    """A tensor of a packed linear."""

    shape: Shape
    dtypes: tuple[str, ...]
    is_required: bool = True


class Quantization(Protocol):
    """A packing. A linear is packed where the part named `marker` is there, plain elsewhere."""

    @property
    def method(self) -> str: ...

    @property
    def marker(self) -> str: ...

    def parts(self, shape: Shape) -> Mapping[str, Part]:
        """Return the tensors of a linear [out, in], by the last part of their names; raise
        ValueError of a shape that cannot be packed so.
        """


@dataclass(frozen=True)
class Int4Quantization:
    """AWQ (gemm) or GPTQ. `group_size` -1 means one group for all inputs.

    `zeros_less_one`: zero points are stored minus one, in all GPTQ files but those of format
    `gptq_v2`.
    """

    method: Literal["awq", "gptq"]
    group_size: int
    is_reordered: bool = False
    zeros_less_one: bool = False

    @property
    def marker(self) -> str:
        return "qweight"

    def parts(self, shape: Shape) -> dict[str, Part]:
        num_outputs, num_inputs = shape
        if num_outputs % NUMBERS_A_WORD or num_inputs % NUMBERS_A_WORD:
            raise ValueError("cannot be packed by eights")
        num_groups = -(-num_inputs // self.inputs_a_group(num_inputs))
        by_outputs = num_outputs // NUMBERS_A_WORD
        parts = {
            "qweight": Part((num_inputs, by_outputs), ("I32",)),
            "qzeros": Part((num_groups, by_outputs), ("I32",)),
            "scales": Part((num_groups, num_outputs), FLOATS),
        }
        if self.method == "gptq":
            parts["qweight"] = Part((num_inputs // NUMBERS_A_WORD, num_outputs), ("I32",))
            parts["g_idx"] = Part((num_inputs,), ("I32",), self.is_reordered)
        return parts

    def inputs_a_group(self, num_inputs: int) -> int:
        return num_inputs if self.group_size < 0 else self.group_size


def read_quantization(raw: Mapping[str, Any], file: Path) -> Quantization | None:
    """Return what config.json says, None of plain weights; raise ModelError if not loadable."""
    fields = raw.get("quantization_config")
    if fields is None:
        return None
    said = _PackingFields(file, fields)
    return METHODS[str(said.one_of("quant_method", *METHODS))](said)


def _read_awq(said: "_PackingFields") -> Quantization:
    said.one_of("bits", 4)
    said.one_of("version", "gemm", "GEMM")
    said.one_of("zero_point", True, otherwise=True)
    return Int4Quantization("awq", said.group_size())


def _read_gptq(said: "_PackingFields") -> Quantization:
    said.one_of("bits", 4)
    said.one_of("pack_dtype", "int32", otherwise="int32")
    said.one_of("is_marlin_format", False, None, otherwise=False)
    said.refuse_overrides()
    form = said.one_of("checkpoint_format", "gptq", "gptq_v2", otherwise="gptq")
    is_reordered = said.one_of("desc_act", True, False, otherwise=False)
    return Int4Quantization("gptq", said.group_size(), bool(is_reordered), form == "gptq")


METHODS: Mapping[str, Callable[["_PackingFields"], Quantization]] = {
    "awq": _read_awq,
    "gptq": _read_gptq,
}


@dataclass(frozen=True)
class _PackingFields:
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
            f"{self.file}: quantization_config.group_size must be -1 or positive, not {value!r};"
            " take the file of the published model"
        )

    def refuse_overrides(self) -> None:
        """Refuse GPTQModel's other bits and sizes for some modules; `-:` leaves modules out."""
        dynamic = self.fields.get("dynamic") or {}
        for pattern in dynamic if isinstance(dynamic, dict) else [dynamic]:
            if not str(pattern).startswith("-:"):
                raise ModelError(
                    f"{self.file}: quantization_config.dynamic has {pattern!r}: {_SUPPORTED}"
                )
