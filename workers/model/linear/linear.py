"""Linear: a product with one fixed weight, in the fastest form its device and dtype offer.

On a CPU in bfloat16 the weight is kept in oneDNN's own blocked layout: `F.linear` would repack it
at every call, which costs 1.5 times the whole product at 1 to 32 rows. Weights of 4 bits and of
FP8 stay what they are. A batch-invariant product always has the same number of rows, or is a
kernel's that has one tile and one order of sums whatever the number of rows.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.model.layout import block_fp8_weight, int4_weight
from workers.model.layout.block_fp8_weight import BlockFp8Weight
from workers.model.layout.int4_weight import Int4Weight
from workers.model.linear import batch_invariant
from workers.model.quantization import fp8
from workers.model.quantization.fp8 import Fp8Weight

Weight = Tensor | Int4Weight | Fp8Weight | BlockFp8Weight
Product = Callable[[Tensor], Tensor]


class Linear:
    """y = x Wᵀ + b for x of shape [rows, in]."""

    def __init__(
        self, weight: Weight, bias: Tensor | None = None, *, is_batch_invariant: bool = False
    ) -> None:
        self._multiply = _choose_product(weight, bias, is_batch_invariant)

    def __call__(self, x: Tensor) -> Tensor:
        return self._multiply(x)


def merge(parts: list[torch.nn.Linear], *, is_batch_invariant: bool) -> Product:
    """Return what computes all parts side by side; the parts keep no weights.

    That is one Linear, but for packed parts that group or order their inputs differently. Of one
    part alone it takes the weight as it is.
    """
    weights: list[Weight] = [_weight_of(part) for part in parts]
    biases = [part.bias.detach() for part in parts if part.bias is not None]
    whole = _concatenate(weights)
    release(parts)
    if whole is not None:
        weights, biases = [whole], [torch.cat(biases)] if biases else []
    pairs = zip(weights, biases, strict=True) if biases else ((one, None) for one in weights)
    each = [Linear(*pair, is_batch_invariant=is_batch_invariant) for pair in pairs]
    return each[0] if len(each) == 1 else lambda x: torch.cat([one(x) for one in each], dim=-1)


def release(parts: list[torch.nn.Linear]) -> None:
    """Drop the weights of modules, so that memory never holds a layer twice."""
    for part in parts:
        part.weight = part.bias = None  # type: ignore[assignment]


def _weight_of(part: torch.nn.Linear) -> Weight:
    weight: Weight = part.weight
    return weight.detach() if isinstance(weight, Tensor) else weight


def _concatenate(weights: Sequence[Weight]) -> Weight | None:
    """Return one weight with the outputs of all, None where they are no more alike than that."""
    packed = [weight for weight in weights if isinstance(weight, Int4Weight)]
    eights = [weight for weight in weights if isinstance(weight, Fp8Weight)]
    blocks = [weight for weight in weights if isinstance(weight, BlockFp8Weight)]
    plain = [weight for weight in weights if isinstance(weight, Tensor)]
    if len(weights) == 1:
        return weights[0]
    if len(packed) == len(weights):
        return int4_weight.concatenate(packed)
    if len(eights) == len(weights):
        return fp8.concatenate(eights)
    if len(blocks) == len(weights):
        return block_fp8_weight.concatenate(blocks)
    return torch.cat(plain) if len(plain) == len(weights) else None


def _choose_product(weight: Weight, bias: Tensor | None, is_batch_invariant: bool) -> Product:
    """Return what multiplies by a weight; Triton is imported for packed ones, not before."""
    if isinstance(weight, Int4Weight | BlockFp8Weight):
        return _product_by_kernel(weight, bias, is_batch_invariant)
    if not is_batch_invariant:
        return _choose_fastest(weight, bias)
    if isinstance(weight, Tensor) and batch_invariant.multiplies_by_kernel(weight.device):
        return partial(batch_invariant.multiply, weight=weight, bias=bias)
    return partial(batch_invariant.in_blocks, _choose_fastest(weight, bias))


def _choose_fastest(weight: Tensor | Fp8Weight, bias: Tensor | None) -> Product:
    if isinstance(weight, Fp8Weight):
        return partial(weight.multiply, bias=bias)
    if _is_blockable(weight):
        blocked = torch.ops.mkldnn._reorder_linear_weight(weight)
        return lambda x: torch.ops.mkldnn._linear_pointwise(x, blocked, bias, "none", [], "")
    return partial(F.linear, weight=weight, bias=bias)


def _product_by_kernel(
    weight: Int4Weight | BlockFp8Weight, bias: Tensor | None, is_invariant: bool
) -> Product:
    from workers.model.kernels import block_fp8, int4

    def multiply(x: Tensor) -> Tensor:
        with torch.cuda.device_of(x):
            if isinstance(weight, BlockFp8Weight):
                return block_fp8.multiply(x, weight, bias, is_batch_invariant=is_invariant)
            return int4.multiply(x, weight, bias, is_batch_invariant=is_invariant)

    return multiply


def _is_blockable(weight: Tensor) -> bool:
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.bfloat16
        and torch.backends.mkldnn.is_available()
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
