"""The layers of a Qwen decoder, computed from the weights of transformers' modules.

Knows the arithmetic of a layer: residual additions, norms, merged projections, rotary embedding,
MLP. Modules of transformers are Any here: which attributes they have is what the parity tests
guard. Refuses to know where keys and values are kept; that is behind LayerKVCache.

What lies between two matrix products is computed by the Means; heads are by kernels wherever the
cache is a BlockKVCache.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from workers.model.attention.attention import AttentionPlan, LayerKVCache, Plan, attend
from workers.model.attention.block_kv_cache import BlockKVCache
from workers.model.attention.kv_cache import KVCache
from workers.model.layers.experts import Experts
from workers.model.layers.gated_delta_net import GatedDeltaNet
from workers.model.layers.means import TORCH, Means, kernels, normalize
from workers.model.layers.mlp import MLP
from workers.model.layers.state_cache import StateCache, StateShape
from workers.model.layout.paged_plan import PagedPlan
from workers.model.layout.slot_plan import States
from workers.model.linear.linear import merge

LayerCache = LayerKVCache | StateCache


class Hidden(NamedTuple):
    """What goes from layer to layer, `[tokens, width]`: a sum, and what is still to be added to it.

    A layer owns the sum it is given, and adds to it in place.
    """

    residual: Tensor
    delta: Tensor | None = None

    def to(self, device: torch.device) -> "Hidden":
        delta = None if self.delta is None else self.delta.to(device)
        return Hidden(self.residual.to(device), delta)

    def at(self, rows: Tensor) -> "Hidden":
        """Return a copy of some tokens."""
        return Hidden(self.residual[rows], None if self.delta is None else self.delta[rows])


class Rope(NamedTuple):
    """Cosines and signed sines of a step's tokens, float32 `[tokens, 1, rotated]`.

    The first half of `sin` is negated, so that rotating is `x * cos + roll(x) * sin`. Of a head's
    dimensions the first `rotated` are, which in hybrid models is not all.
    """

    cos: Tensor
    sin: Tensor

    @classmethod
    def compute(cls, rotary: Any, positions: Tensor) -> "Rope":
        """Return the angles transformers' rotary module gives for these positions."""
        like = torch.empty(0, dtype=torch.float32, device=positions.device)
        cos, sin = rotary(like, positions[None])
        half = sin.shape[-1] // 2
        sin = torch.cat((-sin[..., :half], sin[..., half:]), dim=-1)
        return cls(cos[0].unsqueeze(1), sin[0].unsqueeze(1))

    def to(self, device: torch.device) -> "Rope":
        return Rope(self.cos.to(device), self.sin.to(device))

    def rotate(self, x: Tensor) -> Tensor:
        """Rotate float32 heads `[tokens, heads, head_dim]` in place."""
        num_rotated = self.cos.shape[-1]
        part = x if num_rotated == x.shape[-1] else x[..., :num_rotated]
        rolled = part.roll(part.shape[-1] // 2, -1)
        part.mul_(self.cos).addcmul_(rolled, self.sin)
        return x


class RMSNorm:
    """Root mean square norm over the last dimension of the whole sum, computed in float32."""

    def __init__(self, module: Any, means: Means = TORCH) -> None:
        self._weight, self._eps = norm_of(module)
        self.device: torch.device = self._weight.device
        self._add_rms_norm = means.add_rms_norm(len(self._weight))

    def __call__(self, hidden: Hidden) -> tuple[Tensor, Tensor]:
        """Return the norm, and the sum with nothing left to add."""
        return self._add_rms_norm(hidden.delta, hidden.residual, self._weight, self._eps)


def norm_of(module: Any) -> tuple[Tensor, float]:
    """Return a norm's float32 weight and epsilon; hybrid models store the weight less 1."""
    weight: Tensor = module.weight.detach().float()
    if hasattr(module, "variance_epsilon"):
        return weight, float(module.variance_epsilon)
    return 1.0 + weight, float(module.eps)


class Attention:
    """Self-attention with one projection for queries, keys and values.

    Qwen2 has a bias and no head norms, Qwen3 the reverse; hybrid models have a gate for each
    query, whose projection follows the query's. All is told from the module itself.
    """

    def __init__(self, module: Any, means: Means) -> None:
        is_batch_invariant = means.is_batch_invariant
        self._head_dim = int(module.head_dim)
        self._scale = float(module.scaling)
        self._num_heads = module.o_proj.weight.shape[1] // self._head_dim
        self._is_gated = module.q_proj.weight.shape[0] > self._num_heads * self._head_dim
        self._num_kv_heads = module.k_proj.weight.shape[0] // self._head_dim
        self.window: int | None = getattr(module, "sliding_window", None) or None
        self._head_norm = self._merge_head_norms(module)
        self._eps = 0.0 if self._head_norm is None else norm_of(module.q_norm)[1]
        self._sigmoid = means.sigmoid
        self._qkv = merge(
            [module.q_proj, module.k_proj, module.v_proj], is_batch_invariant=is_batch_invariant
        )
        self._out = means.sum_ranks(merge([module.o_proj], is_batch_invariant=is_batch_invariant))

    def __call__(self, normed: Tensor, rope: Rope, cache: LayerKVCache, plan: Plan) -> Tensor:
        qkv = self._qkv(normed)
        if isinstance(cache, BlockKVCache):
            context = self._attend_by_kernels(qkv, rope, cache, plan)
        else:
            context = self._attend_by_torch(qkv, rope, cache, plan)
        return self._out(context.view(qkv.shape[0], -1))

    def _attend_by_kernels(
        self, qkv: Tensor, rope: Rope, cache: BlockKVCache, plan: Plan
    ) -> Tensor:
        assert isinstance(plan, PagedPlan)
        scale = self._scale if self._head_norm is None else 1.0
        query = cache.rotate_and_write(
            qkv, self._head_norm, self._eps, scale, rope.cos, rope.sin, plan.slots,
            is_gated=self._is_gated,
        )  # fmt: skip
        context = cache.attend(query, plan, self.window)
        return kernels().gate_heads(context, qkv) if self._is_gated else context

    def remember(self, normed: Tensor, rope: Rope, cache: KVCache, slots: Tensor) -> None:
        """Store keys and values of tokens of whose own attention nothing is asked."""
        heads, _ = self._split_gate(self._qkv(normed))
        self._rotate_and_write(heads, rope, cache, slots)

    def _attend_by_torch(self, qkv: Tensor, rope: Rope, cache: KVCache, plan: Plan) -> Tensor:
        heads, gate = self._split_gate(qkv)
        assert isinstance(plan, AttentionPlan)
        query = self._rotate_and_write(heads, rope, cache, plan.slots)
        context = attend(query, cache, plan, self.window)
        return context if gate is None else context.mul_(self._sigmoid(gate))

    def _split_gate(self, qkv: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return queries, keys and values `[tokens, heads, head_dim]`, and the queries' gates."""
        heads = qkv.view(qkv.shape[0], -1, self._head_dim)
        if not self._is_gated:
            return heads, None
        pairs = heads[:, : 2 * self._num_heads].unflatten(1, (self._num_heads, 2))
        ungated = torch.cat((pairs[:, :, 0], heads[:, 2 * self._num_heads :]), 1)
        return ungated, pairs[:, :, 1]

    def _rotate_and_write(self, heads: Tensor, rope: Rope, cache: KVCache, slots: Tensor) -> Tensor:
        """Store keys and values at the slots of the tokens; return the queries, as they attend."""
        if cache.is_compiled:
            scale = self._scale if self._head_norm is None else 1.0
            return cache.rotate_and_write(
                heads, self._head_norm, self._eps, scale, rope.cos, rope.sin, slots
            )
        num_rotated = self._num_heads + self._num_kv_heads
        rotated = self._normalize_and_rotate(heads[:, :num_rotated], rope).to(heads.dtype)
        cache.write(slots, rotated[:, self._num_heads :], heads[:, num_rotated:])
        return rotated[:, : self._num_heads]

    def _normalize_and_rotate(self, heads: Tensor, rope: Rope) -> Tensor:
        """Return float32 queries and keys; the queries are scaled for the softmax."""
        if self._head_norm is None:
            heads = heads.to(torch.float32, copy=True)
            heads[:, : self._num_heads].mul_(self._scale)
        else:
            heads = normalize(heads, self._head_norm, self._eps)
        return rope.rotate(heads)

    def _merge_head_norms(self, module: Any) -> Tensor | None:
        """Return one float32 weight `[heads + kv_heads, head_dim]`, with the queries' scale."""
        if not hasattr(module, "q_norm"):
            return None
        query = norm_of(module.q_norm)[0].expand(self._num_heads, -1)
        key = norm_of(module.k_norm)[0].expand(self._num_kv_heads, -1)
        return torch.cat((query * self._scale, key))


class DecoderLayer:
    """Attention or Gated DeltaNet, and an MLP, with their norms and residual additions."""

    def __init__(self, module: Any, means: Means = TORCH) -> None:
        self._input_norm = RMSNorm(module.input_layernorm, means)
        self.device = self._input_norm.device
        self._post_norm = RMSNorm(module.post_attention_layernorm, means)
        self._mixer: Attention | GatedDeltaNet
        if hasattr(module, "linear_attn"):
            self._mixer = GatedDeltaNet(module.linear_attn, means)
        else:
            self._mixer = Attention(module.self_attn, means)
        feed_forward = MLP if hasattr(module.mlp, "gate_proj") else Experts
        self._mlp = means.sum_ranks(feed_forward(module.mlp, means))

    @property
    def state_shape(self) -> StateShape | None:
        """The dimensions of its state, where it has one in the place of keys and values."""
        return self._mixer.state_shape if isinstance(self._mixer, GatedDeltaNet) else None

    @property
    def window(self) -> int | None:
        """How many tokens a token sees, itself among them; None: all before it."""
        return None if isinstance(self._mixer, GatedDeltaNet) else self._mixer.window

    def __call__(
        self, hidden: Hidden, rope: Rope, cache: LayerCache, plan: Plan, states: States | None
    ) -> Hidden:
        """Return the sum with attention added, and the MLP's outputs for the next norm to add."""
        normed, residual = self._input_norm(hidden)
        if isinstance(self._mixer, GatedDeltaNet):
            assert isinstance(cache, StateCache) and states is not None
            delta = self._mixer(normed, cache, states)
        else:
            assert not isinstance(cache, StateCache)
            delta = self._mixer(normed, rope, cache, plan)
        normed, residual = self._post_norm(Hidden(residual, delta))
        return Hidden(residual, self._mlp(normed))

    def remember(self, hidden: Hidden, rope: Rope, cache: KVCache, slots: Tensor) -> None:
        """Store keys and values of tokens of which nothing else is asked."""
        assert isinstance(self._mixer, Attention)
        normed, _ = self._input_norm(hidden)
        self._mixer.remember(normed, rope, cache, slots)
