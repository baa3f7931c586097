"""The feed-forward part of a layer: SwiGLU with one projection for gate and up.

Also the expert that every token of some mixtures has beside those chosen for it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.model.linear import batch_invariant
from workers.model.linear.linear import merge
from workers.model.native.native import Native


class MLP:
    """SwiGLU with one projection for gate and up."""

    def __init__(
        self,
        module: Any,
        *,
        is_batch_invariant: bool,
        for_kernels: bool = False,
        native: Native | None = None,
    ) -> None:
        parts = [module.gate_proj, module.up_proj]
        width = sum(part.weight.shape[0] for part in parts) // 2
        self._gate_up = merge(parts, is_batch_invariant=is_batch_invariant)
        self._down = merge([module.down_proj], is_batch_invariant=is_batch_invariant)
        self._silu_mul: Callable[[Tensor], Tensor] = partial(
            silu_mul, silu=batch_invariant.silu if is_batch_invariant else F.silu
        )
        if for_kernels:
            self._silu_mul = _kernels().silu_mul
        elif native is not None and native.takes_width(width):
            self._silu_mul = native.silu_mul

    def __call__(self, normed: Tensor) -> Tensor:
        return self._down(self._silu_mul(self._gate_up(normed)))


def silu_mul(gate_up: Tensor, silu: Callable[[Tensor], Tensor] = F.silu) -> Tensor:
    """Return the SiLU of the first half of `[tokens, 2 * width]`, times the second."""
    gate, up = gate_up.chunk(2, dim=-1)
    return silu(gate).mul_(up)


class SharedExpert:
    """An MLP for all tokens, weighted by how much each wants of it: `sigmoid(x · w) · mlp(x)`."""

    def __init__(
        self,
        module: Any,
        *,
        is_batch_invariant: bool,
        for_kernels: bool = False,
        native: Native | None = None,
    ) -> None:
        """Take the weights of a block of transformers that has a shared expert."""
        self._mlp = MLP(
            module.shared_expert,
            is_batch_invariant=is_batch_invariant,
            for_kernels=for_kernels,
            native=native,
        )
        self._gate = merge([module.shared_expert_gate], is_batch_invariant=is_batch_invariant)
        self._sigmoid = batch_invariant.sigmoid if is_batch_invariant else torch.sigmoid

    def __call__(self, normed: Tensor) -> Tensor:
        """Return the weighted output of all tokens, `[tokens, hidden]`."""
        return self._mlp(normed).mul_(self._sigmoid(self._gate(normed)))


def _kernels() -> Any:
    # Triton is imported where kernels are used, and nowhere else.
    from workers.model.kernels import layers

    return layers
