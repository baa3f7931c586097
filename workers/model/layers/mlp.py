"""The feed-forward part of a layer: SwiGLU with one projection for gate and up.

Also the expert that every token of some mixtures has beside those chosen for it.
"""

from typing import Any

from torch import Tensor

from workers.model.layers.means import TORCH, Means
from workers.model.linear.linear import merge


class MLP:
    """SwiGLU with one projection for gate and up."""

    def __init__(self, module: Any, means: Means = TORCH) -> None:
        parts = [module.gate_proj, module.up_proj]
        self._silu_mul = means.silu_mul(sum(part.weight.shape[0] for part in parts) // 2)
        self._gate_up = merge(parts, is_batch_invariant=means.is_batch_invariant)
        self._down = merge([module.down_proj], is_batch_invariant=means.is_batch_invariant)

    def __call__(self, normed: Tensor) -> Tensor:
        return self._down(self._silu_mul(self._gate_up(normed)))


class SharedExpert:
    """An MLP for all tokens, weighted by how much each wants of it: `sigmoid(x · w) · mlp(x)`."""

    def __init__(self, module: Any, means: Means = TORCH) -> None:
        """Take the weights of a block of transformers that has a shared expert."""
        self._mlp = MLP(module.shared_expert, means)
        self._gate = merge([module.shared_expert_gate], is_batch_invariant=means.is_batch_invariant)
        self._sigmoid = means.sigmoid

    def __call__(self, normed: Tensor) -> Tensor:
        """Return the weighted output of all tokens, `[tokens, hidden]`."""
        return self._mlp(normed).mul_(self._sigmoid(self._gate(normed)))
