"""Read what config.json says of compressed-tensors, llm-compressor's formats of packed weights.

Fields and tensors are those of github.com/vllm-project/compressed-tensors (quantization/
quant_config.py, quant_args.py, compressors/). Linears have the packing of the group that means them
most closely: by name, by pattern, by class. Activations stay as wide as the model computes, but for
those that are to be integers of 8 bits, row by row, where a CPU multiplies them.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

from workers.checkpoint.packing_fields import PackingFields
from workers.checkpoint.packings import (
    PATTERN,
    Packing,
    Quantization,
    Rule,
    ScaledPacking,
    WordPacking,
)

METHOD: Final = "compressed-tensors"

# What people know other formats by.
_OTHERS = {
    "marlin-24": "2:4 sparse weights",
    "mxfp4-pack-quantized": "MXFP4",
    "mxfp6-pack-quantized": "MXFP6",
    "mxfp8-quantized": "MXFP8",
    "nvfp4-pack-quantized": "NVFP4",
}


def read_compressed_tensors(said: PackingFields) -> Quantization:
    """Return the groups of a checkpoint; raise ModelError of one that is not loaded."""
    for name in ("sparsity_config", "transform_config"):
        other = said.get(name)
        if other and not (isinstance(other, dict) and other.get("format") == "dense"):
            raise said.not_loaded(name, other)
    groups = said.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        raise said.wrong("config_groups", "an object of groups", groups)
    ignored = _targets(said, "ignore")
    return Quantization(METHOD, tuple(_rules(said, groups, ignored)))


def _rules(
    said: PackingFields, groups: Mapping[str, Any], ignored: tuple[str, ...]
) -> Iterator[Rule]:
    for name, fields in groups.items():
        group = said.inner(f"config_groups.{name}", fields)
        own = group.get("format")
        form = (said if own is None else group).one_of("format", *_FORMATS, known=_OTHERS)
        weights = group.get("weights")
        if weights is not None:  # else only activations or caches are of fewer bits
            packing = _FORMATS[form](group.inner("weights", weights))
            if isinstance(packing, ScaledPacking) and _rounds_inputs(group):
                packing = replace(packing, rounds_inputs=True)
            yield Rule(packing, _targets(group, "targets"), ignored)


def _rounds_inputs(group: PackingFields) -> bool:
    """Return whether a group's inputs are integers of 8 bits, with a scale for each row."""
    inputs = group.get("input_activations")
    said = inputs if isinstance(inputs, dict) else {}
    wanted = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True}
    return all(said.get(name) == value for name, value in wanted.items())


def _read_words(weights: PackingFields) -> Packing:
    """Read pack-quantized: words of 32 bits, one scale for a group of inputs or all of them."""
    weights.one_of("type", "int", otherwise="int")
    bits = weights.one_of("num_bits", 4, 8, otherwise=8)
    strategy = _strategy(weights, "group", "channel")
    size = weights.size("group_size") if strategy == "group" else -1
    is_symmetric = weights.one_of("symmetric", True, False, otherwise=True)
    order = weights.one_of("actorder", None, False, "weight", "static", "group", "dynamic")
    is_reordered = order in ("group", "dynamic")
    return WordPacking(METHOD, size, is_reordered, bits=bits, is_symmetric=is_symmetric)


def _read_integers(weights: PackingFields) -> Packing:
    """Read int-quantized: int8."""
    weights.one_of("type", "int", otherwise="int")
    has_zero_point = not weights.one_of("symmetric", True, False, otherwise=True)
    return ScaledPacking("I8", "weight_scale", _block(weights), has_zero_point)


def _read_floats(weights: PackingFields) -> Packing:
    """Read float-quantized: e4m3."""
    weights.one_of("type", "float")
    weights.one_of("symmetric", True, otherwise=True)
    return ScaledPacking("F8_E4M3", "weight_scale", _block(weights))


def _read_either(weights: PackingFields) -> Packing:
    """Read naive-quantized, which is either of both by its type."""
    kind = weights.one_of("type", "int", "float", otherwise="int")
    return _read_floats(weights) if kind == "float" else _read_integers(weights)


_FORMATS: Mapping[str, Callable[[PackingFields], Packing]] = {
    "pack-quantized": _read_words,
    "int-quantized": _read_integers,
    "float-quantized": _read_floats,
    "naive-quantized": _read_either,
}


def _block(weights: PackingFields) -> tuple[int, int]:
    """Return the outputs and inputs that have a scale of 8 bits."""
    weights.one_of("num_bits", 8, otherwise=8)
    strategy = _strategy(weights, "tensor", "channel", "group", "block")
    if strategy == "block":
        return weights.block("block_structure")
    if strategy == "group":
        return 1, weights.size("group_size")
    return (1, -1) if strategy == "channel" else (-1, -1)


def _strategy(weights: PackingFields, *known: str) -> str:
    """Return what has a scale of its own; where nothing is said, it follows from the group."""
    size = weights.get("group_size")
    otherwise = "tensor" if size is None else "channel" if size == -1 else "group"
    if weights.get("strategy") is None:
        return str(weights.one_of("strategy", *known, otherwise=otherwise))
    return str(weights.one_of("strategy", *known))


def _targets(said: PackingFields, name: str) -> tuple[str, ...]:
    """Return names and patterns; a list that is missing is empty."""
    found = said.get(name)
    targets = [] if found is None else found
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise said.wrong(name, "a list of names", targets)
    for target in targets:
        try:
            re.compile(target.removeprefix(PATTERN))
        except re.error as error:
            raise said.wrong(name, f"names or patterns ({error})", target) from error
    return tuple(targets)
