"""One matrix multiplication with a fixed weight, in the fastest form its device and dtype offer.

On a CPU in bfloat16 the weight is kept in oneDNN's own blocked layout: `F.linear` would repack it
at every call, which costs 1.5 times the whole product at 1 to 32 rows. Where exactness is asked
for, every product has the same number of rows.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.model.exact import blocks_of_rows


class Linear:
    """y = x Wᵀ + b for x of shape [rows, in]."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None = None, *, is_exact: bool = False
    ) -> None:
        self._bias = bias
        self._is_exact = is_exact
        self._is_packed = _is_packable(weight)
        self._weight = (
            torch.ops.mkldnn._reorder_linear_weight(weight) if self._is_packed else weight
        )

    def __call__(self, x: Tensor) -> Tensor:
        if self._is_exact:
            return torch.cat([self._multiply(block) for block in blocks_of_rows(x)])[: x.shape[0]]
        return self._multiply(x)

    def _multiply(self, x: Tensor) -> Tensor:
        if self._is_packed:
            return torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
        return F.linear(x, self._weight, self._bias)


def merge(parts: list[torch.nn.Linear], *, is_exact: bool) -> Linear:
    """Return one Linear computing all parts side by side; the parts keep no weights."""
    weight = torch.cat([part.weight.detach() for part in parts])
    biased = parts[0].bias is not None
    bias = torch.cat([part.bias.detach() for part in parts]) if biased else None
    release(parts)
    return Linear(weight, bias, is_exact=is_exact)


def take(part: torch.nn.Linear, *, is_exact: bool) -> Linear:
    """Return a Linear with a module's weight; the module keeps none."""
    return merge([part], is_exact=is_exact)


def release(parts: list[torch.nn.Linear]) -> None:
    """Drop the weights of modules, so that memory never holds a layer twice."""
    for part in parts:
        part.register_parameter("weight", None)
        part.register_parameter("bias", None)


def _is_packable(weight: Tensor) -> bool:
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.bfloat16
        and torch.backends.mkldnn.is_available()
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
