"""GatedDeltaNet: a short convolution and a matrix state in the place of attention.

    x → in_proj → q k v → convolution of width 4, SiLU → delta rule ─┐
                  b a   → rate of learning, decay ──────────────────┘→ RMSNorm · SiLU(z) → out_proj
                  z     ────────────────────────────────────────────────────────────┘

After transformers' `Qwen3NextGatedDeltaNet` and `Qwen3_5GatedDeltaNet`, whose modules give the
weights; between the projections everything is float32. By torch, prompts are computed by chunks of
64 tokens, decoding rows together, drafts one by one as if they were decoded. Where batch invariance
is asked for, every token is computed alone, by the recurrent rule: so it has the same bits in a
prompt, in a part of one, and as a decoded token. By kernels, see kernels/delta_net.py. Refuses to
know who owns a slot.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.model.layers import delta_rule
from workers.model.layers.delta_rule import RuleInputs
from workers.model.layers.means import TORCH, Means
from workers.model.layers.state_cache import StateCache, StateShape
from workers.model.layout.slot_plan import SlotPlan, States
from workers.model.layout.state_plan import SlotCopy, StatePlan
from workers.model.linear import batch_invariant
from workers.model.linear.linear import merge


class Projected(NamedTuple):
    """The projections of some tokens: `mixed` `[tokens, channels]` is q, k and v before their
    convolution, `gate` `[tokens, heads, value_dim]`, `beta` and `alpha` `[tokens, heads]`.
    """

    mixed: Tensor
    gate: Tensor
    beta: Tensor
    alpha: Tensor


class Inputs(NamedTuple):
    """What becomes of states by some tokens, float32: `mixed` as above, and the rates of decay and
    of learning, `[tokens, heads]`; see delta_rule.py.
    """

    mixed: Tensor
    decay: Tensor
    beta: Tensor

    def at(self, rows: slice | Tensor) -> Self:
        return self._replace(mixed=self.mixed[rows], decay=self.decay[rows], beta=self.beta[rows])


class GatedDeltaNet:
    """One layer's weights; its states lie in a StateCache."""

    def __init__(self, module: Any, means: Means = TORCH) -> None:
        is_batch_invariant = means.is_batch_invariant
        assert not (is_batch_invariant and means.for_kernels), "no kernel is batch-invariant"
        self.state_shape = state_shape_of(module)
        self._num_key_heads = int(module.num_k_heads)
        self._is_batch_invariant = is_batch_invariant
        self._is_interleaved = hasattr(module, "in_proj_qkvz")
        names = ("qkvz", "ba") if self._is_interleaved else ("qkv", "z", "b", "a")
        parts = [getattr(module, f"in_proj_{name}") for name in names]
        self._in = merge(parts, is_batch_invariant=is_batch_invariant)
        self._out = means.sum_ranks(merge([module.out_proj], is_batch_invariant=is_batch_invariant))
        # The newest input's weight is the last: `[width, channels]`.
        self._taps = module.conv1d.weight.detach().float().squeeze(1).t().contiguous()
        self._rate = -module.A_log.detach().float().exp()
        self._rate_bias = module.dt_bias.detach().float()
        self._norm = module.norm.weight.detach().float()
        self._eps = float(module.norm.variance_epsilon)
        if means.for_kernels:
            self._kernel_rates = torch.stack((self._rate, self._rate_bias))
            self._columns = self._find_columns().to(self._rate.device)

    def __call__(self, normed: Tensor, cache: StateCache, plan: States) -> Tensor:
        """Return `[tokens, hidden]`; the states of all rows are then one step further."""
        projected = self._in(normed)
        if isinstance(plan, SlotPlan):
            return self._out(self._compute_by_kernels(projected, cache, plan))
        return self._out(self._compute_by_torch(projected, cache, plan).to(normed.dtype))

    def _compute_by_kernels(self, projected: Tensor, cache: StateCache, plan: SlotPlan) -> Tensor:
        """Return what the rule reads of all tokens, normalized, `[tokens, heads * value_dim]`."""
        from workers.model.kernels import delta_net, delta_scan

        convolved, rates = delta_net.prepare(
            projected, self._columns, self._taps, self._kernel_rates, cache.inputs, plan
        )
        read = delta_net.step(convolved, rates, cache.matrices, plan)
        if plan.max_query > 1:
            delta_scan.scan(convolved, rates, cache.matrices, plan, read)
        gates = self._columns[self.state_shape.channels :]
        return delta_net.normalize(read, projected, gates, self._norm, self._eps)

    def _compute_by_torch(self, projected: Tensor, cache: StateCache, plan: StatePlan) -> Tensor:
        """Return the same, float32."""
        cache.copy(plan.before)
        x = self._split_any(projected)
        beta, decay = self._by_token(self._rates, x.beta, x.alpha).unbind(1)
        tokens = Inputs(x.mixed.float(), decay, beta)
        read = torch.empty(x.gate.shape, dtype=torch.float32, device=projected.device)
        self._decode(tokens, cache, plan, read)
        for span in plan.spans:
            rows = slice(span.first, span.stop)
            is_single = span.stop - span.first == 1  # a draft, computed as when it is decoded
            compute = self._recur if is_single or self._is_batch_invariant else self._scan
            read[rows] = compute(tokens.at(rows), cache, span.slot)
            if span.kept is not None:
                cache.copy([SlotCopy(span.slot, span.kept)])
        return self._by_token(self._normalize, read, x.gate).flatten(1)

    def _decode(self, tokens: Inputs, cache: StateCache, plan: StatePlan, read: Tensor) -> None:
        """Compute the decoding rows, which come first in the flat batch, into `read`."""
        if not plan.runs:
            return
        rows = slice(plan.runs[-1].stop) if plan.order is None else plan.order
        ordered = tokens.at(rows)
        parts = [
            self._step(ordered.at(slice(run.first, run.stop)), cache, run.slots)
            for run in plan.runs
        ]
        read[rows] = torch.cat(parts)
        cache.copy(plan.after)

    def _step(self, tokens: Inputs, cache: StateCache, slots: slice) -> Tensor:
        """Compute one token of each of several rows."""
        matrices, inputs = cache.views(slots)
        seen = torch.cat((inputs, tokens.mixed.unsqueeze(1)), 1)
        inputs.copy_(seen[:, 1:])
        convolved = self._convolve([seen[:, tap] for tap in range(len(self._taps))])
        return delta_rule.step(self._heads(convolved, tokens), matrices)

    def _scan(self, tokens: Inputs, cache: StateCache, slot: int) -> Tensor:
        """Compute consecutive tokens of one sequence."""
        num_tokens = len(tokens.mixed)
        inputs = cache.inputs[slot]
        seen = torch.cat((inputs, tokens.mixed))
        inputs.copy_(seen[num_tokens:])
        taps = [seen[tap : tap + num_tokens] for tap in range(len(self._taps))]
        return delta_rule.scan(self._heads(self._convolve(taps), tokens), cache.matrices[slot])

    def _recur(self, tokens: Inputs, cache: StateCache, slot: int) -> Tensor:
        """Compute consecutive tokens of one sequence, each as if it were decoded alone."""
        slots = slice(slot, slot + 1)
        each = range(len(tokens.mixed))
        return torch.cat([self._step(tokens.at(slice(i, i + 1)), cache, slots) for i in each])

    def _convolve(self, inputs: list[Tensor]) -> Tensor:
        """Return the SiLU of the weighted sum of inputs `[tokens, channels]`, oldest first."""
        total = inputs[0] * self._taps[0]
        for x, tap in zip(inputs[1:], self._taps[1:], strict=True):
            total.addcmul_(x, tap)
        return F.silu(total, inplace=True)

    def _heads(self, convolved: Tensor, tokens: Inputs) -> RuleInputs:
        shape, num_tokens = self.state_shape, len(convolved)
        keys = self._num_key_heads * shape.key_dim
        query, key, value = convolved.split((keys, keys, shape.num_heads * shape.value_dim), -1)
        return RuleInputs.of(
            query.view(num_tokens, -1, shape.key_dim),
            key.view(num_tokens, -1, shape.key_dim),
            value.view(num_tokens, -1, shape.value_dim),
            tokens.decay,
            tokens.beta,
        )

    def _rates(self, beta: Tensor, alpha: Tensor) -> Tensor:
        """Return the rates of learning and the logarithms of decay, `[tokens, 2, heads]`."""
        decay = self._rate * F.softplus(alpha.float() + self._rate_bias)
        return torch.stack((beta.float().sigmoid(), decay), 1)

    def _normalize(self, read: Tensor, gate: Tensor) -> Tensor:
        mean = read.square().mean(-1, keepdim=True)
        normed = read * mean.add_(self._eps).rsqrt_() * self._norm
        return normed.mul_(F.silu(gate.float()))

    def _by_token(self, compute: Callable[..., Tensor], *parts: Tensor) -> Tensor:
        return (
            batch_invariant.by_row(compute, *parts) if self._is_batch_invariant else compute(*parts)
        )

    def _find_columns(self) -> Tensor:
        """Return where in a row of projections `mixed`, `gate`, `beta` and `alpha` lie, int32."""
        shape = self.state_shape
        num_columns = shape.channels + shape.num_heads * (shape.value_dim + 2)
        parts = self._split_any(torch.arange(num_columns, dtype=torch.int32)[None])
        return torch.cat([part.flatten() for part in parts])

    def _split_any(self, projected: Tensor) -> Projected:
        split = self._split_interleaved if self._is_interleaved else self._split
        return split(projected)

    def _split(self, projected: Tensor) -> Projected:
        """Take apart what follows each other: q, k, v │ z │ b │ a."""
        shape = self.state_shape
        heads, width = shape.num_heads, shape.num_heads * shape.value_dim
        mixed, gate, beta, alpha = projected.split((shape.channels, width, heads, heads), -1)
        return Projected(mixed, gate.reshape(len(gate), heads, -1), beta, alpha)

    def _split_interleaved(self, projected: Tensor) -> Projected:
        """Take apart Qwen3-Next's order: q, k, v, z of each head of keys │ b, a of each."""
        shape, keys, tokens = self.state_shape, self._num_key_heads, projected.shape[0]
        group = shape.num_heads // keys
        sizes = (shape.key_dim, shape.key_dim, group * shape.value_dim, group * shape.value_dim)
        wide, narrow = projected.split((keys * sum(sizes), 2 * shape.num_heads), -1)
        *mixed, gate = wide.view(tokens, keys, -1).split(sizes, -1)
        beta, alpha = narrow.reshape(tokens, keys, -1).split(group, -1)
        return Projected(
            torch.cat([part.flatten(1) for part in mixed], -1),
            gate.reshape(tokens, shape.num_heads, -1),
            beta.flatten(1),
            alpha.flatten(1),
        )


def state_shape_of(module: Any) -> StateShape:
    """Return the dimensions of one sequence's state in a module of transformers."""
    return StateShape(
        num_heads=int(module.num_v_heads),
        key_dim=int(module.head_k_dim),
        value_dim=int(module.head_v_dim),
        channels=int(module.conv_dim),
        width=int(module.conv_kernel_size),
    )
