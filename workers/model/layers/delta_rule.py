"""The gated delta rule: linear attention whose state is one matrix per head, in torch.

    S ← e^g·S + k·(β·(v − kᵀ·e^g·S)),   o = qᵀ·S      for each token, with |k| = 1 and |q| = 1/√dim

After Yang, Kautz and Hatamizadeh, "Gated Delta Networks" (2025), arXiv 2412.06464, section 3; by
chunks as transformers' `torch_chunk_gated_delta_rule` does it. Everything is float32; heads of
values share heads of keys in consecutive groups. Refuses to know slots and projections.
"""

from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.model.layout.slot_plan import CHUNK

_NORM_EPS = 1e-6


class RuleInputs(NamedTuple):
    """What the rule takes of some tokens, float32.

    `query` and `key` `[tokens, key_heads, key_dim]`, normalized by `of`; `value` `[tokens, heads,
    value_dim]`; `decay`, the logarithm of what is left of the state, and `beta`, the rate of
    learning, `[tokens, heads]`.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    decay: Tensor
    beta: Tensor

    @classmethod
    def of(cls, query: Tensor, key: Tensor, value: Tensor, decay: Tensor, beta: Tensor) -> Self:
        """Return the inputs with keys of length 1, and queries of length `key_dim ** -0.5`."""
        scale: float = query.shape[-1] ** -0.5
        return cls(_normalize(query).mul_(scale), _normalize(key), value, decay, beta)


def step(x: RuleInputs, states: Tensor) -> Tensor:
    """Take states `[tokens, heads, key_dim, value_dim]` in place each one token further.

    Return what is read from them, `[tokens, heads, value_dim]`. Before its update a state is read
    once, for key and query together: o = e^g·qᵀS + (q·k)·β·(…).
    """
    tokens, heads, key_dim, value_dim = states.shape
    query, key = _for_values(x.query, heads), _for_values(x.key, heads)
    left = x.decay.exp()[..., None, None]
    known, read = (torch.stack((key, query), 2) @ states).mul_(left).unbind(2)
    learned = (x.value - known).mul_(x.beta[..., None])
    matrices = states.mul_(left).view(-1, key_dim, value_dim)
    matrices.baddbmm_(key.reshape(-1, key_dim, 1), learned.view(-1, 1, value_dim))
    return torch.addcmul(read, (query * key).sum(-1, keepdim=True), learned)


def scan(x: RuleInputs, state: Tensor) -> Tensor:
    """Take one state `[heads, key_dim, value_dim]` in place through all tokens, by chunks.

    Return what each token reads from it, `[tokens, heads, value_dim]`. Within a chunk the updates
    are the solution of one triangular system a head, all chunks at once; then the state goes from
    chunk to chunk.
    """
    num_tokens, heads, value_dim = x.value.shape
    key, query = _chunks(x.key), _chunks(x.query)  # [chunks, key_heads, CHUNK, key_dim]
    value = _chunks(x.value)
    beta, decay = (_chunks(part.unsqueeze(-1)).squeeze(-1) for part in (x.beta, x.decay))
    total = decay.cumsum(-1)  # [chunks, heads, CHUNK]
    later = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=key.device).triu_(1)
    between = (total.unsqueeze(-1) - total.unsqueeze(-2)).masked_fill_(later, -torch.inf).exp_()
    overlap = _for_values(key @ key.mT, heads) * between
    attention = _for_values(query @ key.mT, heads) * between
    key, query = _for_values(key, heads), _for_values(query, heads)
    since_start = total.exp().unsqueeze(-1)
    known = torch.cat((value, key * since_start), -1).mul_(beta.unsqueeze(-1))
    solved = torch.linalg.solve_triangular(
        overlap.mul_(beta.unsqueeze(-1)), known, upper=False, unitriangular=True
    )
    value, read = solved[..., :value_dim], solved[..., value_dim:]
    query = query * since_start
    key = key * (total[..., -1:] - total).exp_().unsqueeze(-1)
    left = since_start[..., -1:, :]  # of the state, by a chunk's end
    output = torch.empty_like(value, memory_format=torch.contiguous_format)
    for chunk in range(len(output)):
        learned = torch.baddbmm(value[chunk], read[chunk], state, alpha=-1)
        output[chunk] = torch.baddbmm(attention[chunk] @ learned, query[chunk], state)
        state.mul_(left[chunk]).baddbmm_(key[chunk].mT, learned)
    return output.transpose(1, 2).reshape(-1, heads, value_dim)[:num_tokens]


def _normalize(x: Tensor) -> Tensor:
    return x * (x * x).sum(-1, keepdim=True).add_(_NORM_EPS).rsqrt_()


def _for_values(x: Tensor, heads: int) -> Tensor:
    """Repeat `[n, key_heads, ...]` for the `heads` of values that share a head of keys."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)


def _chunks(x: Tensor) -> Tensor:
    """Return `[tokens, heads, dim]` as `[chunks, heads, CHUNK, dim]`, filled up with zeros.

    Such tokens forget nothing and learn nothing.
    """
    filled = F.pad(x, (0, 0, 0, 0, 0, -x.shape[0] % CHUNK))
    return filled.view(-1, CHUNK, *x.shape[1:]).transpose(1, 2).contiguous()
