"""Means: what computes what lies between a layer's products: torch, Triton, or functions in C.

The functions in torch are here; kernels/layers.py and native/layers.c round where these do.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.model.linear import batch_invariant
from workers.model.native.native import Native
from workers.model.parallel.group import Group
from workers.model.parallel.own_experts import Route, own_experts

Product = Callable[[Tensor], Tensor]
AddRMSNorm = Callable[[Tensor | None, Tensor, Tensor, float], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Means:
    """Torch's, unless it is `for_kernels` of Triton or there are `native` functions for the width.

    With `is_batch_invariant`, a token's result depends on nothing beside it. Of a model that ranks
    share, `group` are these.
    """

    is_batch_invariant: bool = False
    for_kernels: bool = False
    native: Native | None = None
    group: Group | None = None

    def sum_ranks(self, product: Product) -> Product:
        """Return what computes a whole output, of a product of which each rank has a part."""
        group = self.group
        return product if group is None else lambda x: group.sum(product(x))

    def own_experts(self, router: Any, count: int) -> Route:
        """Return a router to the experts that are held here, of which there are `count`."""
        if self.group is None or router.num_experts == count:
            route: Route = router
            return route
        return own_experts(router, self.group.rank * count, count)

    @property
    def sigmoid(self) -> Callable[[Tensor], Tensor]:
        return batch_invariant.sigmoid if self.is_batch_invariant else torch.sigmoid

    def add_rms_norm(self, width: int) -> AddRMSNorm:
        """Return what adds to rows of a width and normalizes them, as the function below."""
        if self.for_kernels:
            return kernels().add_rms_norm
        native = self._native_of(width)
        return native.add_rms_norm if native else add_rms_norm

    def silu_mul(self, width: int) -> Callable[[Tensor], Tensor]:
        """Return what makes rows of a width of twice as wide ones, as the function below."""
        if self.for_kernels:
            return kernels().silu_mul
        if native := self._native_of(width):
            return native.silu_mul
        return partial(silu_mul, silu=batch_invariant.silu) if self.is_batch_invariant else silu_mul

    def _native_of(self, width: int) -> Native | None:
        return self.native if self.native and self.native.takes_width(width) else None


TORCH = Means()


def kernels() -> Any:
    """Return the module of Triton's kernels, imported where they are used and nowhere else."""
    from workers.model.kernels import layers

    return layers


def add_rms_norm(
    delta: Tensor | None, residual: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Add delta to residual in place; return its norm in its dtype, and it."""
    if delta is not None:
        residual.add_(delta)
    return normalize(residual, weight, eps).to(residual.dtype), residual


def normalize(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return x over its root mean square, times weight, in float32.

    On a CPU in place on one copy: the intermediate tensors of `F.rms_norm` cost more than the sums.
    """
    if x.device.type != "cpu":
        return F.rms_norm(x.float(), (x.shape[-1],), None, eps).mul_(weight)
    x = x.to(torch.float32, copy=True)
    mean = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1])
    return x.mul_(mean.add_(eps).rsqrt_()).mul_(weight)


def silu_mul(gate_up: Tensor, silu: Callable[[Tensor], Tensor] = F.silu) -> Tensor:
    """Return the SiLU of the first half of `[tokens, 2 * width]`, times the second."""
    gate, up = gate_up.chunk(2, dim=-1)
    return silu(gate).mul_(up)
