"""Unpack linears of 4 or 8 bits in words of 32, or turn them into the layout that kernels read.

Knows how the numbers lie in an int32. What a checkpoint says of them, and which tensors make up a
linear, workers/checkpoint/packings.py knows; in which files they lie, packed_weights.py.

A linear of shape [out, in] is kept as integers q with a zero point z and a scale s for every
`group_size` inputs of an output: weight = (q - z) * s. AWQ and GPTQ keep it transposed, after
github.com/casper-hansen/AutoAWQ (awq/utils/packing_utils.py) and github.com/ModelCloud/GPTQModel
(gptqmodel/utils/model.py). compressed-tensors packs as GPTQ does, transposed once more, after
github.com/vllm-project/compressed-tensors (compressors/pack_quantized).
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from workers.checkpoint.packings import WordPacking
from workers.model.layout.int4_weight import PER_WORD, Int4Weight, num_words, pack_words

# Which of eight neighbours lies in each higher place. AWQ packs the columns 0 2 4 6 1 3 5 7.
_AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)

# Elements unpacked at once: what is held beside the packed and the finished weight.
_SLAB = 1 << 20


class WrongPart(ValueError):
    """What a part of a packed linear has that it cannot have; `part` is its name."""

    def __init__(self, part: str, words: str) -> None:
        super().__init__(words)
        self.part = part


def unpack(how: WordPacking, packed: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    """Return the weight [out, in] of tensors that have the shapes of `how.parts`.

    A product is exact in float32, of scales of 16 bits, and rounded once, to `dtype`. Raise
    WrongPart if `g_idx` names a group that is not there, or `weight_shape` is another.
    """
    how, packed = _as_gptq(how, packed)
    qweight, scales = packed["qweight"], packed["scales"].float()
    num_inputs, num_outputs = _num_inputs(how, qweight), scales.shape[1]
    zeros = _zeros(how, packed.get("qzeros"), scales)
    groups = _groups(how, packed.get("g_idx"), num_inputs, len(scales)).to(qweight.device)
    weight = torch.empty(num_outputs, num_inputs, dtype=dtype, device=qweight.device)
    for outputs in _slabs(how, num_outputs, num_inputs):
        numbers = _numbers(how, qweight, outputs)
        numbers.sub_(zeros[:, outputs][groups]).mul_(scales[:, outputs][groups])
        weight[outputs] = numbers.to(dtype).T
    return weight


def repack(how: WordPacking, packed: Mapping[str, Tensor]) -> Int4Weight | None:
    """Return the same weight as `unpack` does, in 4 bits; None where no kernel could read it.

    That is of 8 bits, or where groups are no whole number of planes, or no order of the inputs
    makes each a run of `group_size`. Raise WrongPart as `unpack` does.
    """
    if how.bits != 4:
        return None
    how, packed = _as_gptq(how, packed)
    qweight, scales = packed["qweight"], packed["scales"].contiguous()
    num_inputs, num_outputs = _num_inputs(how, qweight), scales.shape[1]
    group_size = how.inputs_a_group(num_inputs)
    width = num_words(group_size, num_inputs)
    groups = _groups(how, packed.get("g_idx"), num_inputs, len(scales)).to(qweight.device)
    runs = torch.arange(num_inputs, device=qweight.device) // group_size
    order = groups.argsort(stable=True)
    if width is None or not torch.equal(groups[order], runs):
        return None
    num_blocks = -(-num_inputs // (PER_WORD * width))
    words = qweight.new_empty(num_blocks, num_outputs, width)
    for outputs in _slabs(how, num_outputs, num_inputs):
        words[:, outputs] = pack_words(_numbers(how, qweight, outputs).int()[order], width)
    is_ordered = torch.equal(groups, runs)
    zeros = _zeros(how, packed.get("qzeros"), scales).to(torch.uint8).contiguous()
    return Int4Weight(words, scales, zeros, group_size, num_inputs, None if is_ordered else order)


def _as_gptq(
    how: WordPacking, packed: Mapping[str, Tensor]
) -> tuple[WordPacking, Mapping[str, Tensor]]:
    """Return compressed-tensors' parts by GPTQ's names, and others by their own."""
    if how.method != "compressed-tensors":
        return how, _with_own_groups(how, packed)
    words = packed["weight_packed"]
    shape = [len(words), words.shape[1] * how.numbers_a_word]
    if "weight_shape" in packed and packed["weight_shape"].tolist() != shape:
        said = packed["weight_shape"].tolist()
        raise WrongPart("weight_shape", f"says {said}, but the weight is of shape {shape}")
    parts = {"qweight": words.T, "scales": packed["weight_scale"].T}
    if not how.is_symmetric:
        parts["qzeros"] = packed["weight_zero_point"].T
    if "weight_g_idx" in packed:
        parts["g_idx"] = packed["weight_g_idx"]
    return replace(how, method="gptq"), _with_own_groups(how, parts)


def _with_own_groups(how: WordPacking, parts: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return parts without the groups that no input is of, as a rank's share has some."""
    g_idx = parts.get("g_idx")
    if g_idx is None or _is_unfilled(how, g_idx):
        return parts
    used, own = g_idx.unique(return_inverse=True)
    if len(used) == len(parts["scales"]):
        return parts
    num_groups = len(parts["scales"])
    if used[0] < 0 or used[-1] >= num_groups:
        raise WrongPart("g_idx", f"g_idx names groups outside 0 to {num_groups - 1}")
    rows = used.long()
    grouped = {name: parts[name][rows] for name in ("scales", "qzeros") if name in parts}
    return {**parts, **grouped, "g_idx": own.to(g_idx)}


def _num_inputs(how: WordPacking, qweight: Tensor) -> int:
    return qweight.shape[0] * (how.numbers_a_word if how.method == "gptq" else 1)


def _zeros(how: WordPacking, qzeros: Tensor | None, scales: Tensor) -> Tensor:
    """Return the zero points [groups, out] of words [groups, out / numbers a word].

    The one that GPTQ took off each is added to whole words, as it was taken off: a zero point
    of 0 has borrowed from its neighbour.
    """
    if qzeros is None:
        return torch.full_like(scales, 1 << (how.bits - 1), dtype=torch.float32)
    if how.zeros_less_one:
        qzeros = qzeros + sum(1 << place for place in range(0, 32, how.bits))
    return _split(how, qzeros).flatten(1)[:, : scales.shape[1]]


def _numbers(how: WordPacking, qweight: Tensor, outputs: slice) -> Tensor:
    """Return the numbers [in, outputs]; AWQ packs along out, GPTQ along in."""
    if how.method == "awq":
        words = qweight[:, outputs.start // PER_WORD : outputs.stop // PER_WORD]
        return _split(how, words).flatten(1)
    return _split(how, qweight[:, outputs]).transpose(1, 2).flatten(0, 1)


def _groups(how: WordPacking, g_idx: Tensor | None, num_inputs: int, num_groups: int) -> Tensor:
    """Return each input's group."""
    if g_idx is None or _is_unfilled(how, g_idx):
        return torch.arange(num_inputs) // how.inputs_a_group(num_inputs)
    if g_idx.min() < 0 or g_idx.max() >= num_groups:
        raise WrongPart("g_idx", f"g_idx names groups outside 0 to {num_groups - 1}")
    return g_idx.long()


def _is_unfilled(how: WordPacking, g_idx: Tensor) -> bool:
    """Return whether a `g_idx` is zeros because its packer never filled it."""
    return len(g_idx) > how.inputs_a_group(len(g_idx)) and not g_idx.any()


def _slabs(how: WordPacking, num_outputs: int, num_inputs: int) -> Iterator[slice]:
    """Yield slices of outputs, by whole words, that together are unpacked at once."""
    step = max(1, _SLAB // num_inputs // how.numbers_a_word) * how.numbers_a_word
    for start in range(0, num_outputs, step):
        yield slice(start, min(start + step, num_outputs))


def _split(how: WordPacking, words: Tensor) -> Tensor:
    """Return the numbers of each int32 in a new last dimension, in their order, as floats."""
    places = _AWQ_PLACES if how.method == "awq" else range(how.numbers_a_word)
    offsets = torch.tensor(places, dtype=torch.int32, device=words.device) * how.bits
    return (words.unsqueeze(-1) >> offsets).bitwise_and_((1 << how.bits) - 1).float()
