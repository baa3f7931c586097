"""Unpack AWQ (gemm) and GPTQ linears of 4 bits, or turn them into the layout that kernels read.

Knows how eight 4-bit numbers lie in an int32. What a checkpoint says of them, and which tensors
make up a linear, workers/checkpoint/packings.py knows; in which files they lie,
packed_weights.py.

Both formats keep a linear of shape [out, in] transposed, as integers q with a zero point z and a
scale s for every `group_size` inputs of an output: weight = (q - z) * s. After
github.com/casper-hansen/AutoAWQ (awq/utils/packing_utils.py) and
github.com/ModelCloud/GPTQModel (gptqmodel/utils/model.py).
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from workers.checkpoint.packings import WordPacking
from workers.model.layout.int4_weight import PER_WORD, Int4Weight, num_words, pack_words

# Bit offsets of eight neighbours. AWQ packs the columns 0 2 4 6 1 3 5 7 into rising bits.
_AWQ_SHIFTS = (0, 16, 4, 20, 8, 24, 12, 28)
_GPTQ_SHIFTS = (0, 4, 8, 12, 16, 20, 24, 28)

# Elements unpacked at once: what is held beside the packed and the finished weight.
_SLAB = 1 << 20


class WrongPart(ValueError):
    """What a part of a packed linear has that it cannot have; `part` is its name."""

    def __init__(self, part: str, words: str) -> None:
        super().__init__(words)
        self.part = part


def unpack(how: WordPacking, packed: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    """Return the weight [out, in] of tensors that have the shapes of `how.parts`.

    A product is exact in float32 and rounded once, to `dtype`. Raise WrongPart if `g_idx`
    names a group that is not there.
    """
    qweight, scales = packed["qweight"], packed["scales"].float()
    zeros = _zeros(how, packed["qzeros"])
    num_inputs, num_outputs = _num_inputs(how, qweight), scales.shape[1]
    groups = _groups(how, packed.get("g_idx"), num_inputs, len(scales)).to(qweight.device)
    weight = torch.empty(num_outputs, num_inputs, dtype=dtype, device=qweight.device)
    for outputs in _slabs(num_outputs, num_inputs):
        numbers = _numbers(how, qweight, outputs)
        numbers.sub_(zeros[:, outputs][groups]).mul_(scales[:, outputs][groups])
        weight[outputs] = numbers.to(dtype).T
    return weight


def repack(how: WordPacking, packed: Mapping[str, Tensor]) -> Int4Weight | None:
    """Return the same weight as `unpack` does, in 4 bits; None where no kernel could read it.

    That is where groups are no whole number of planes, or no order of the inputs makes each a
    run of `group_size`. Raise WrongPart as `unpack` does.
    """
    qweight, scales = packed["qweight"], packed["scales"]
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
    for outputs in _slabs(num_outputs, num_inputs):
        words[:, outputs] = pack_words(_numbers(how, qweight, outputs).int()[order], width)
    is_ordered = torch.equal(groups, runs)
    zeros = _zeros(how, packed["qzeros"]).to(torch.uint8)
    return Int4Weight(words, scales, zeros, group_size, num_inputs, None if is_ordered else order)


def _num_inputs(how: WordPacking, qweight: Tensor) -> int:
    return qweight.shape[0] * (PER_WORD if how.method == "gptq" else 1)


def _zeros(how: WordPacking, qzeros: Tensor) -> Tensor:
    """Return the zero points [groups, out] of words [groups, out / 8].

    The one that GPTQ took off each is added to whole words, as it was taken off: a zero point
    of 0 has borrowed from its neighbour.
    """
    if how.zeros_less_one:
        qzeros = qzeros + 0x11111111
    return _split(qzeros, _AWQ_SHIFTS if how.method == "awq" else _GPTQ_SHIFTS).flatten(1)


def _numbers(how: WordPacking, qweight: Tensor, outputs: slice) -> Tensor:
    """Return the numbers [in, outputs]; AWQ packs along out, GPTQ along in."""
    if how.method == "awq":
        words = qweight[:, outputs.start // PER_WORD : outputs.stop // PER_WORD]
        return _split(words, _AWQ_SHIFTS).flatten(1)
    return _split(qweight[:, outputs], _GPTQ_SHIFTS).transpose(1, 2).flatten(0, 1)


def _groups(how: WordPacking, g_idx: Tensor | None, num_inputs: int, num_groups: int) -> Tensor:
    """Return each input's group; zeros alone are a `g_idx` that its packer never filled."""
    if g_idx is None or not g_idx.any():
        return torch.arange(num_inputs) // how.inputs_a_group(num_inputs)
    if g_idx.min() < 0 or g_idx.max() >= num_groups:
        raise WrongPart("g_idx", f"g_idx names groups outside 0 to {num_groups - 1}")
    return g_idx.long()


def _slabs(num_outputs: int, num_inputs: int) -> Iterator[slice]:
    """Yield slices of outputs, by whole words, that together are unpacked at once."""
    step = max(1, _SLAB // num_inputs // PER_WORD) * PER_WORD
    for start in range(0, num_outputs, step):
        yield slice(start, min(start + step, num_outputs))


def _split(words: Tensor, shifts: tuple[int, ...]) -> Tensor:
    """Return the eight 4-bit numbers of each int32, 0 to 15, in a new last dimension, as floats."""
    offsets = torch.tensor(shifts, dtype=torch.int32, device=words.device)
    return (words.unsqueeze(-1) >> offsets).bitwise_and_(15).float()
