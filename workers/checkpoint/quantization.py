"""Quantization: what config.json says of packed weights, by the rows of METHODS.

A linear is packed where its files have the parts of a packing, and plain elsewhere: so lists of
modules that are left out (`modules_to_not_convert`, GPTQModel's `-:`) are not needed here. Refuses,
by its name, every packing without a row.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from workers.checkpoint.compressed_tensors import METHOD, read_compressed_tensors
from workers.checkpoint.files import read_json
from workers.checkpoint.packing_fields import PackingFields
from workers.checkpoint.packings import Packing, Quantization, Rule, ScaledPacking, WordPacking

# What people know other packings by, and which numbers they are.
_MLX = "MLX, for Apple's chips"
_MODELOPT = "NVIDIA ModelOpt"
_OTHERS: Mapping[str, str] = {
    "aqlm": "AQLM, codebooks",
    "auto-round": "AutoRound's own format",
    "bitnet": "BitNet, ternary numbers",
    "bitsandbytes": "bitsandbytes, NF4 or int8",
    "eetq": "EETQ, int8",
    "exl2": "ExLlamaV2",
    "exl3": "ExLlamaV3",
    "fbgemm_fp8": "FBGEMM's FP8",
    "gguf": "GGUF, for llama.cpp",
    "higgs": "HIGGS, codebooks",
    "hqq": "HQQ",
    "modelopt": _MODELOPT,
    "modelopt_fp4": _MODELOPT,
    "modelopt_mixed": _MODELOPT,
    "mxfp4": "floats of 4 bits with an exponent for 32 of them",
    "mxfp8": "floats of 8 bits with an exponent for 32 of them",
    "nvfp4": "floats of 4 bits with an FP8 scale for 16 of them",
    "quanto": "Quanto",
    "quark": "AMD Quark",
    "spqr": "SpQR",
    "torchao": "torchao",
    "vptq": "VPTQ, codebooks",
}


def read_quantization(raw: Mapping[str, Any], file: Path) -> Quantization | None:
    """Return what config.json says, None of plain weights; raise ModelError if not loadable."""
    fields = raw.get("quantization_config")
    if fields is None:
        _refuse_what_stands_elsewhere(raw, file)
        return None
    said = PackingFields(file, {}, "").inner("quantization_config", fields)
    method = said.one_of("quant_method", *METHODS, known={**_OTHERS, **_more_of(said)})
    return METHODS[method](said)


def _more_of(said: PackingFields) -> dict[str, str]:
    """Return what other fields tell of a packing that is not loaded, by its method."""
    method, algorithm = said.get("quant_method"), said.get("quant_algo")
    if method is None and said.get("bits") and said.get("group_size"):
        return {"None": _MLX}
    return {str(method): f"{_MODELOPT}, {algorithm}"} if algorithm else {}


def _refuse_what_stands_elsewhere(raw: Mapping[str, Any], file: Path) -> None:
    """Refuse packings whose makers say so in another place than quantization_config."""
    if raw.get("quantization"):
        raise PackingFields(file, raw, "").not_loaded("quantization", raw["quantization"], _MLX)
    beside = file.with_name("hf_quant_config.json")
    said = read_json(beside, optional=True).get("quantization") or {}
    if isinstance(said, dict) and said.get("quant_algo"):
        fields = PackingFields(beside, said, "quantization")
        raise fields.not_loaded("quant_algo", said["quant_algo"], _MODELOPT)


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
