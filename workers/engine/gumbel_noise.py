"""Gumbel noise that (seed, choice, position, token) alone decide, the same wherever it is drawn.

A row's key is splitmix64 over seed, choice and position, in Python, once per row and step. A
token's bits are two rounds of murmur3's 32-bit finaliser over token and key, in wrapping int32
arithmetic that a uint32 kernel computes alike. The upper 24 bits become a uniform number, and that
a Gumbel number: adding it to log-probabilities and taking the maximum draws from their
distribution (Gumbel, 1954).
"""

import torch
from torch import Tensor

# -log(-log1p(-v)) at the smallest v, half of 2**-24, rounded up: no token gains more than this.
MAX_GUMBEL = 17.33
# The last of the 2**24 numbers would round to 1.0, and its noise be -inf, whatever the logit is.
_LARGEST_UNIFORM = 1 - 2.0**-24

_MASK64 = (1 << 64) - 1
_GOLDEN64 = 0x9E3779B97F4A7C15
_GOLDEN32 = 0x9E3779B1 - (1 << 32)
_MURMUR_A = 0x85EBCA6B - (1 << 32)
_MURMUR_B = 0xC2B2AE35 - (1 << 32)


def row_key(seed: int, choice: int, position: int) -> tuple[int, int]:
    """Return two signed 32-bit words that name one token to be drawn."""
    state = _splitmix64(seed & _MASK64)
    state = _splitmix64(state ^ choice)
    state = _splitmix64(state ^ position)
    return _signed(state & 0xFFFFFFFF), _signed(state >> 32)


def gumbel(token_ids: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return float32 noise for tokens; the int32 key words broadcast against them."""
    bits = token_ids.to(torch.int32) * _GOLDEN32
    bits = _murmur(bits + low)
    bits = _murmur(bits.bitwise_xor_(high))
    uniform = _shift(bits, 8).float().add_(0.5).mul_(2.0**-24).clamp_(max=_LARGEST_UNIFORM)
    return uniform.neg_().log1p_().neg_().log_().neg_()


def _splitmix64(x: int) -> int:
    x = (x + _GOLDEN64) & _MASK64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK64
    return x ^ (x >> 31)


def _signed(word: int) -> int:
    return word - (1 << 32) if word >= 1 << 31 else word


def _murmur(x: Tensor) -> Tensor:
    x.bitwise_xor_(_shift(x, 16)).mul_(_MURMUR_A)
    x.bitwise_xor_(_shift(x, 13)).mul_(_MURMUR_B)
    return x.bitwise_xor_(_shift(x, 16))


def _shift(x: Tensor, bits: int) -> Tensor:
    """Shift right without copying the sign, as uint32 would."""
    return x.bitwise_right_shift(bits).bitwise_and_((1 << (32 - bits)) - 1)
