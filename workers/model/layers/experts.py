"""Experts: a mixture-of-experts block, whose router picks experts for each token.

Their weighted sum is the result. Knows three ways to multiply by the chosen experts' weights, all
of which transformers' module defines: one expert after the other (CPU), the Triton kernels (few
pairs of token and expert), and `grouped_mm` (many). The router is transformers' own. On a device,
shapes alone decide the way and nothing waits for the host, so a CUDA graph may hold a step. Checked
on a CPU, the kernels under Triton's interpreter. Not checked: any GPU.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.model.layers.means import TORCH, Means
from workers.model.layers.mlp import SharedExpert
from workers.model.linear.batch_invariant import blocks_of_rows
from workers.model.linear.linear import Linear, join

# More pairs an expert than this are many: they share its weights, and larger tiles pay. A guess.
_MANY_PAIRS = 4


class Experts:
    """The router and the experts of one layer."""

    def __init__(self, module: Any, means: Means = TORCH) -> None:
        count = int(module.experts.num_experts)
        self._router = means.own_experts(module.gate, count)
        self._is_batch_invariant = is_batch_invariant = means.is_batch_invariant
        self._for_kernels = means.for_kernels
        self._multiply = module.experts
        if means.for_kernels:
            self._multiply = KernelExperts(
                module.experts,
                is_batch_invariant=is_batch_invariant,
                are_all=count == int(module.gate.num_experts),
            )
        elif means.group or LoopedExperts.takes(
            module.experts, is_batch_invariant=is_batch_invariant
        ):
            # For ranks too, as transformers' own know no experts that are another's.
            self._multiply = LoopedExperts(module.experts, means)
        self._shared = SharedExpert(module, means) if hasattr(module, "shared_expert") else None

    def __call__(self, hidden: Tensor) -> Tensor:
        """Return the weighted sum over each token's experts, `[tokens, hidden]`."""
        routed = self._apply(hidden)
        return routed if self._shared is None else routed.add_(self._shared(hidden))

    def _apply(self, hidden: Tensor) -> Tensor:
        """Return the sum over the experts that were chosen."""
        if not self._is_batch_invariant:
            return self._multiply(hidden, *self._route(hidden))
        if not self._for_kernels:  # an expert's product has as many rows as chose it
            return torch.cat([self._multiply(row, *self._route(row)) for row in hidden.split(1)])
        routed = zip(*map(self._route, blocks_of_rows(hidden)), strict=True)
        return self._multiply(hidden, *(torch.cat(parts)[: len(hidden)] for parts in routed))

    def _route(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return each token's experts, best first, and their weights, `[tokens, top_k]`."""
        _, weights, experts = self._router(hidden)
        return experts, weights


class LoopedExperts:
    """One chosen expert after the other, each two Linears, which pack what a CPU wants packed.

    One thread's time in bfloat16, 32 experts of 512 × 256 and 4 for a token, on a busy machine:
    0.7 to 0.9 of what transformers' `grouped_mm` takes for 1 to 256 tokens. In float32 they are
    equal.
    """

    def __init__(self, module: Any, means: Means = TORCH) -> None:
        """Take the weights of transformers' experts, or those of fewer bits that it holds as its
        `weight`; the module keeps none.
        """
        fewer = getattr(module, "weight", None)
        gate_up = fewer.gate_up if fewer else [[one] for one in module.gate_up_proj.detach()]
        down = fewer.down if fewer else module.down_proj.detach()
        self._silu_mul = means.silu_mul(down[0].shape[1])
        self._gate_up = [join(parts) for parts in gate_up]
        self._down = [Linear(one) for one in down]
        module.weight = None
        module.register_parameter("gate_up_proj", None)
        module.register_parameter("down_proj", None)

    @staticmethod
    def takes(module: Any, *, is_batch_invariant: bool) -> bool:
        """Whether experts are multiplied so: on a CPU, but exact ones only if of fewer bits."""
        if getattr(module, "weight", None) is not None:
            return True
        return not is_batch_invariant and module.down_proj.device.type == "cpu"

    def __call__(self, hidden: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
        # One number more than there are experts is that of those another rank has.
        order = experts.view(-1).argsort(stable=True)
        counts = torch.bincount(experts.view(-1), minlength=len(self._down) + 1).tolist()
        rows = hidden[order // experts.shape[1]].split(counts)
        parts = [self._apply(expert, x) for expert, x in enumerate(rows) if len(x)]
        return sum_parts(torch.cat(parts), order, weights)

    def _apply(self, expert: int, x: Tensor) -> Tensor:
        if expert == len(self._down):
            return torch.zeros_like(x)
        return self._down[expert](self._silu_mul(self._gate_up[expert](x)))


class KernelExperts:
    """The Triton kernels, or `grouped_mm` for many tokens where it does not wait for the host."""

    def __init__(self, module: Any, *, is_batch_invariant: bool, are_all: bool = True) -> None:
        """`are_all`: no expert is another rank's."""
        from workers.model.kernels import moe

        self._kernels = moe
        self._are_all = are_all
        self._gate_up: Tensor = module.gate_up_proj.detach()
        self._down: Tensor = module.down_proj.detach()
        self._is_batch_invariant = is_batch_invariant
        self._is_groupable = is_groupable(self._down)

    def __call__(self, hidden: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
        num_pairs = experts.numel()
        if not self._are_all:  # another rank's are computed by the last one here, with weight 0
            experts = experts.clamp(max=len(self._down) - 1)
        is_many = not self._is_batch_invariant and num_pairs > _MANY_PAIRS * len(self._down)
        if is_many and self._is_groupable:
            return multiply_grouped(hidden, self._gate_up, self._down, experts, weights)
        tile = self._kernels.choose_tile(hidden.dtype, is_many=is_many)
        with torch.cuda.device_of(hidden):
            return self._kernels.apply_experts(
                hidden.contiguous(), self._gate_up, self._down, experts, weights, tile
            )


def is_groupable(weight: Tensor) -> bool:
    """Return whether `grouped_mm` has a kernel for a weight's device, dtype and alignment.

    Elsewhere on CUDA it copies the groups' ends to the host, and multiplies one by one: see
    _grouped_mm_cuda in PyTorch's GroupedBlas.cpp.
    """
    return (
        weight.device.type == "cuda"
        and torch.cuda.get_device_capability(weight.device)[0] in (9, 10)
        and weight.dtype == torch.bfloat16
        and all(size * weight.element_size() % 16 == 0 for size in weight.shape[1:])
    )


def multiply_grouped(
    hidden: Tensor, gate_up: Tensor, down: Tensor, experts: Tensor, weights: Tensor
) -> Tensor:
    """Return the weighted sum over each token's experts, by two products of groups of rows.

    Shapes are as in kernels/moe.py.
    """
    chosen, order = experts.view(-1).sort(stable=True)
    numbers = torch.arange(len(down), device=chosen.device)
    ends = torch.searchsorted(chosen, numbers, right=True, out_int32=True)
    rows = hidden[order // experts.shape[1]]
    gate, up = F.grouped_mm(rows, gate_up.transpose(1, 2), offs=ends).chunk(2, dim=-1)
    parts = F.grouped_mm(F.silu(gate).mul_(up), down.transpose(1, 2), offs=ends)
    return sum_parts(parts, order, weights)


def sum_parts(parts: Tensor, order: Tensor, weights: Tensor) -> Tensor:
    """Return each token's sum of its parts, which lie in `order`, by weights `[tokens, top_k]`."""
    restored = torch.empty_like(parts)
    restored[order] = parts
    return (restored.view(*weights.shape, -1) * weights[..., None]).sum(1)
