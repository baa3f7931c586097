"""Draw one token per row under min_p, top_k and top_p in plain torch, as a GPU does it best.

No sort, no window, and no value looked at by the host, so that a CUDA graph may hold it. What a row
may draw from is everything from some logit on, and that logit is found by bisection over the bits
of float32: 32 counts for top_k, 32 sums for top_p. Probabilities are summed in multiples of 2**-35,
exactly, so a sum does not depend on its order and a row not on its neighbours. Logits
equal to the last one allowed are all allowed, where top_p_sampling_cpu.py keeps as many as fit.

kernels/sampling.py does the same in two launches. This is for a GPU without Triton, and says in
plain torch what that computes. Checked on a CPU in float32, against top_p_sampling_cpu.py and
against sorting. Not checked: any GPU.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from workers.engine.gumbel_noise import gumbel
from workers.engine.sampling_rows import SamplingTensors

# The key of -inf.
_LOWEST = ~0x7F800000
_BITS = 32
_STEPS_OF_ONE = 2.0**35


def draw(scaled: Tensor, params: SamplingTensors, *, has_top_k: bool, has_top_p: bool) -> Tensor:
    """Draw one token per row of float32 logits `[rows, vocabulary]`.

    `has_top_k` and `has_top_p` say whether any row has one; they change no row's token.
    """
    is_allowed = allow(scaled, params, has_top_k=has_top_k, has_top_p=has_top_p)
    token_ids = torch.arange(scaled.shape[1], device=scaled.device)
    noise = gumbel(token_ids, params.low[:, None], params.high[:, None])
    return noise.add_(scaled).masked_fill_(~is_allowed, float("-inf")).argmax(-1)


def allow(scaled: Tensor, params: SamplingTensors, *, has_top_k: bool, has_top_p: bool) -> Tensor:
    """Return whether a row may draw a token, `[rows, vocabulary]`."""
    best = scaled.amax(-1, keepdim=True)
    keep = scaled >= best + params.min_p[:, None].log()
    if has_top_k or has_top_p:
        keys = _ordered(scaled)
        if has_top_k:
            keep &= keys >= _top_k_threshold(keys, params.top_k)
        if has_top_p:
            keep &= keys >= _top_p_threshold(keys, _weights(scaled, best, keep), params.top_p)
    return keep


def _weights(scaled: Tensor, best: Tensor, keep: Tensor) -> Tensor:
    """Return unnormalized probabilities of what is kept, in multiples of 2**-35.

    Of up to 2**18 of them, float64 holds every sum exactly.
    """
    weights = (scaled - best).exp_().mul_(keep)
    return weights.mul_(_STEPS_OF_ONE).round_().mul_(1 / _STEPS_OF_ONE)


def _top_k_threshold(keys: Tensor, top_k: Tensor) -> Tensor:
    """Return the k-th largest key of each row `[rows, 1]`, or -inf's where there is no k."""
    wanted = top_k.clamp(max=keys.shape[1])[:, None]

    def is_too_high(threshold: Tensor) -> Tensor:
        return (keys >= threshold).sum(-1, keepdim=True) < wanted

    return torch.where(wanted > 0, _bisect(keys, is_too_high), _LOWEST)


def _top_p_threshold(keys: Tensor, weights: Tensor, top_p: Tensor) -> Tensor:
    """Return the least key that has less than top_p of the sum above it, the largest at most."""
    limit = top_p.double()[:, None] * weights.sum(-1, keepdim=True, dtype=torch.float64)

    def is_high_enough(threshold: Tensor) -> Tensor:
        above = (weights * (keys > threshold)).sum(-1, keepdim=True, dtype=torch.float64)
        return above < limit

    # One above the largest key that has too much above it.
    threshold = (_bisect(keys, is_high_enough) + 1).minimum(keys.amax(-1, keepdim=True))
    return torch.where(top_p[:, None] < 1.0, threshold, _LOWEST)


def _bisect(keys: Tensor, is_above: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the last int32 `[rows, 1]` before `is_above` holds, up to each row's largest key."""
    high = keys.amax(-1, keepdim=True).long() + 1
    low = torch.full_like(high, _LOWEST)
    for _ in range(_BITS):
        middle = (low + high) // 2
        found = is_above(middle.int())
        high = torch.where(found, middle, high)
        low = torch.where(found, low, middle)
    return low.int()


def _ordered(values: Tensor) -> Tensor:
    """Return int32 in the order of float32 values; equal values, zeros too, give equal keys."""
    bits = (values + 0.0).view(torch.int32)
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
