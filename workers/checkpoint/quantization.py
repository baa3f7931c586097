"""Quantization: what config.json says of packed weights, by the rows of METHODS.

A linear is packed where its files have the parts of a packing, and plain elsewhere: so lists of
modules that are left out (`modules_to_not_convert`, GPTQModel's `-:`) are not needed here. Refuses,
by its name, every packing without a row.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from workers.checkpoint.compressed_tensors import METHOD, read_compressed_tensors
from workers.checkpoint.packing_fields import PackingFields
from workers.checkpoint.packings import Packing, Quantization, Rule, ScaledPacking, WordPacking


def read_quantization(raw: Mapping[str, Any], file: Path) -> Quantization | None:
    """Return what config.json says, None of plain weights; raise ModelError if not loadable."""
    fields = raw.get("quantization_config")
    if fields is None:
        return None
    said = PackingFields(file, fields)
    return METHODS[str(said.one_of("quant_method", *METHODS))](said)


def _read_awq(said: PackingFields) -> Quantization:
    said.one_of("bits", 4)
    said.one_of("version", "gemm", "GEMM")
    said.one_of("zero_point", True, otherwise=True)
    return _of_all("awq", WordPacking("awq", said.size("group_size")))


def _read_gptq(said: PackingFields) -> Quantization:
    bits = said.one_of("bits", 4, 8)
    said.one_of("pack_dtype", "int32", otherwise="int32")
    said.one_of("is_marlin_format", False, None, otherwise=False)
    _refuse_overrides(said)
    form = said.one_of("checkpoint_format", "gptq", "gptq_v2", otherwise="gptq")
    is_reordered = said.one_of("desc_act", True, False, otherwise=False)
    size = said.size("group_size")
    return _of_all("gptq", WordPacking("gptq", size, is_reordered, form == "gptq", bits))


def _read_fp8(said: PackingFields) -> Quantization:
    """Read DeepSeek's format, in which Qwen publishes; without blocks, vLLM's and AutoFP8's."""
    said.one_of("fmt", "e4m3", otherwise="e4m3")
    said.one_of("activation_scheme", "dynamic", "static", otherwise="dynamic")
    if said.get("weight_block_size") is not None:
        block = said.block("weight_block_size")
        return _of_all("fp8", ScaledPacking("F8_E4M3", "weight_scale_inv", block))
    one = (-1, -1)
    return _of_all(
        "fp8",
        ScaledPacking("F8_E4M3", "weight_scale_inv", one),
        ScaledPacking("F8_E4M3", "weight_scale", one),
    )


METHODS: Mapping[str, Callable[[PackingFields], Quantization]] = {
    "awq": _read_awq,
    "gptq": _read_gptq,
    "fp8": _read_fp8,
    METHOD: read_compressed_tensors,
}


def _of_all(method: str, *packings: Packing) -> Quantization:
    return Quantization(method, tuple(map(Rule, packings)))


def _refuse_overrides(said: PackingFields) -> None:
    """Refuse GPTQModel's other bits and sizes for some modules; `-:` leaves modules out."""
    dynamic = said.get("dynamic") or {}
    for pattern in dynamic if isinstance(dynamic, dict) else [dynamic]:
        if not str(pattern).startswith("-:"):
            raise said.not_loaded("dynamic", pattern)
