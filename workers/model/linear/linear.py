"""Linear: a product with one fixed weight, in the fastest form its device and dtype offer.

On a CPU in bfloat16 the weight is kept in the layout of what multiplies: our own function, where
the CPU has the instructions it is written for, else oneDNN. `F.linear` would repack it at every
call, which costs 1.5 times the whole product at 1 to 32 rows. Weights of 4 bits and of FP8 stay
what they are. A batch-invariant product always has the same number of rows, or has one order of
sums whatever the number of rows: a kernel's, or our own function's.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.model.layout import block_fp8_weight, int4_weight
from workers.model.layout.block_fp8_weight import BlockFp8Weight
from workers.model.layout.int4_weight import Int4Weight
from workers.model.linear import batch_invariant
from workers.model.native import int4_tiles
from workers.model.native.bfloat16_tiles import Bfloat16Tiles
from workers.model.native.int4_tiles import Int4Tiles
from workers.model.native.native import Native
from workers.model.native.panels import fill_up
from workers.model.quantization import fp8, int8
from workers.model.quantization.fp8 import Fp8Weight
from workers.model.quantization.int8 import Int8Weight

Weight = Tensor | Int4Weight | Fp8Weight | BlockFp8Weight | Int4Tiles | Int8Weight
Product = Callable[[Tensor], Tensor]

# How weights of a kind are put side by side, along outputs; None where they cannot be.
_CONCATENATE: Mapping[type, Callable[[Any], Weight | None]] = {
    Tensor: lambda parts: torch.cat(list(parts)),
    Int4Weight: int4_weight.concatenate,
    Fp8Weight: fp8.concatenate,
    BlockFp8Weight: block_fp8_weight.concatenate,
    Int4Tiles: int4_tiles.concatenate,
    Int8Weight: int8.concatenate,
}


class Linear:
    """y = x Wᵀ + b for x of shape [rows, in].

    `tiles` hold the weight where it is bfloat16 and multiplied by our own function; None elsewhere.
    """

    def __init__(
        self, weight: Weight, bias: Tensor | None = None, *, is_batch_invariant: bool = False
    ) -> None:
        self.tiles = _tiles_of(weight)
        self._multiply = (
            _choose_product(weight, bias, is_batch_invariant)
            if self.tiles is None
            else _product_of_tiles(self.tiles, bias)
        )

    def __call__(self, x: Tensor) -> Tensor:
        return self._multiply(x)


def merge(parts: list[torch.nn.Linear], *, is_batch_invariant: bool) -> Product:
    """Return what computes all parts side by side; the parts keep no weights.

    That is one Linear, but for packed parts that group or order their inputs differently. Of one
    part alone it takes the weight as it is.
    """
    weights: list[Weight] = [_weight_of(part) for part in parts]
    biases = [part.bias.detach() for part in parts if part.bias is not None]
    release(parts)
    return join(weights, biases, is_batch_invariant=is_batch_invariant)


def join(
    weights: Sequence[Weight], biases: Sequence[Tensor] = (), *, is_batch_invariant: bool = False
) -> Product:
    """Return what multiplies by all weights side by side; `biases` are of all of them, or none."""
    whole = _concatenate(weights)
    if whole is not None:
        weights, biases = [whole], [torch.cat(list(biases))] if biases else []
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
    if len(weights) == 1:
        return weights[0]
    kinds = {Tensor if isinstance(weight, Tensor) else type(weight) for weight in weights}
    return _CONCATENATE[kinds.pop()](weights) if len(kinds) == 1 else None


def _choose_product(weight: Weight, bias: Tensor | None, is_batch_invariant: bool) -> Product:
    """Return what multiplies by a weight; Triton is imported for packed ones, not before."""
    if isinstance(weight, Int4Tiles):
        return _product_by_native(weight, bias)
    if isinstance(weight, Int8Weight):
        return weight.product(bias)
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


def _tiles_of(weight: Weight) -> Bfloat16Tiles | None:
    """Return a weight as our own function takes it; None where that does not."""
    if not isinstance(weight, Tensor) or weight.device.type != "cpu":
        return None
    native = Native.load(weight.dtype) if weight.dtype == torch.bfloat16 else None
    takes = native is not None and native.takes_plain(weight.shape[1])
    return Bfloat16Tiles.of(weight) if takes else None


def _product_of_tiles(weight: Bfloat16Tiles, bias: Tensor | None) -> Product:
    native, padded = Native.load(weight.dtype), None if bias is None else fill_up(bias.float())
    assert native is not None, "tiles are made only where the functions are"
    return lambda x: native.multiply_bfloat16(x.contiguous(), weight, padded)


def _product_by_native(weight: Int4Tiles, bias: Tensor | None) -> Product:
    wide = None if bias is None else bias.float()

    def multiply(x: Tensor) -> Tensor:
        native = Native.load(x.dtype)
        assert native is not None, "weights stay packed only where the functions are"
        return native.multiply_int4(x.contiguous(), weight, wide)

    return multiply


def _is_blockable(weight: Tensor) -> bool:
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.bfloat16
        and torch.backends.mkldnn.is_available()
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
