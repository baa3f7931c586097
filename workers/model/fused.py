"""The layers of a Qwen decoder, computed from the weights of transformers' modules.

Knows the arithmetic between two residual additions: merged projections, norms, rotary embedding,
MLP. Modules of transformers are Any here: which attributes they have is what the parity tests
guard. Refuses to know where keys and values are kept; that is behind LayerPages.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.model import exact
from workers.model.attention import LayerPages, Plan, attend
from workers.model.linear import merge, take


class Rope(NamedTuple):
    """Cosines and signed sines of a step's tokens, float32 `[tokens, 1, head_dim]`.

    The first half of `sin` is negated, so that rotating is `x * cos + roll(x) * sin`.
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
        rolled = x.roll(x.shape[-1] // 2, -1)
        return x.mul_(self.cos).addcmul_(rolled, self.sin)


class RMSNorm:
    """Root mean square norm over the last dimension, computed in float32."""

    def __init__(self, module: Any) -> None:
        self._weight = module.weight.detach().float()
        self._eps = float(module.variance_epsilon)
        self.device: torch.device = self._weight.device

    def __call__(self, x: Tensor) -> Tensor:
        return normalize(x, self._weight, self._eps).to(x.dtype)


def normalize(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return x over its root mean square, times weight, in float32.

    On a CPU in place on one copy: the intermediate tensors of `F.rms_norm` cost more than the sums.
    """
    if x.device.type != "cpu":
        return F.rms_norm(x.float(), (x.shape[-1],), None, eps).mul_(weight)
    x = x.to(torch.float32, copy=True)
    mean = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1])
    return x.mul_(mean.add_(eps).rsqrt_()).mul_(weight)


class FusedAttention:
    """Self-attention with one projection for queries, keys and values.

    Qwen2 has a bias and no head norms, Qwen3 the reverse; both are told from the module itself.
    """

    def __init__(self, module: Any, *, is_exact: bool) -> None:
        self._head_dim = int(module.head_dim)
        self._scale = float(module.scaling)
        self._num_heads = module.q_proj.weight.shape[0] // self._head_dim
        self._num_kv_heads = module.k_proj.weight.shape[0] // self._head_dim
        self._head_norm = self._merge_head_norms(module)
        self._eps = 0.0 if self._head_norm is None else float(module.q_norm.variance_epsilon)
        self._qkv = merge([module.q_proj, module.k_proj, module.v_proj], is_exact=is_exact)
        self._out = take(module.o_proj, is_exact=is_exact)

    def __call__(self, hidden: Tensor, rope: Rope, pages: LayerPages, plan: Plan) -> Tensor:
        tokens = hidden.shape[0]
        heads = self._qkv(hidden).view(tokens, -1, self._head_dim)
        num_rotated = self._num_heads + self._num_kv_heads
        rotated = self._normalize_and_rotate(heads[:, :num_rotated], rope).to(heads.dtype)
        query, key = rotated[:, : self._num_heads], rotated[:, self._num_heads :]
        value = heads[:, num_rotated:]
        pages.write(plan.slots, key, value)
        context = attend(query, key, value, pages, plan)
        return self._out(context.view(tokens, -1))

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
        query = module.q_norm.weight.detach().float().expand(self._num_heads, -1)
        key = module.k_norm.weight.detach().float().expand(self._num_kv_heads, -1)
        return torch.cat((query * self._scale, key))


class FusedMLP:
    """SwiGLU with one projection for gate and up."""

    def __init__(self, module: Any, *, is_exact: bool) -> None:
        self._gate_up = merge([module.gate_proj, module.up_proj], is_exact=is_exact)
        self._down = take(module.down_proj, is_exact=is_exact)
        self._silu = exact.silu if is_exact else F.silu

    def __call__(self, hidden: Tensor) -> Tensor:
        gate, up = self._gate_up(hidden).chunk(2, dim=-1)
        return self._down(self._silu(gate).mul_(up))


class Experts:
    """A mixture-of-experts block, as transformers computes it."""

    def __init__(self, module: Any, *, is_exact: bool) -> None:
        self._module = module
        self._is_exact = is_exact

    def __call__(self, hidden: Tensor) -> Tensor:
        if self._is_exact:  # an expert's product has as many rows as chose it
            return torch.cat([self._module(token[None, None])[0] for token in hidden])
        return self._module(hidden[None])[0]


class DecoderLayer:
    """Attention and MLP with their norms and residual additions."""

    def __init__(self, module: Any, *, is_exact: bool = False) -> None:
        self._input_norm = RMSNorm(module.input_layernorm)
        self.device = self._input_norm.device
        self._post_norm = RMSNorm(module.post_attention_layernorm)
        self._attention = FusedAttention(module.self_attn, is_exact=is_exact)
        feed_forward = FusedMLP if hasattr(module.mlp, "gate_proj") else Experts
        self._mlp = feed_forward(module.mlp, is_exact=is_exact)

    def __call__(self, hidden: Tensor, rope: Rope, pages: LayerPages, plan: Plan) -> Tensor:
        hidden = hidden + self._attention(self._input_norm(hidden), rope, pages, plan)
        return hidden.add_(self._mlp(self._post_norm(hidden)))
