"""Choose one token per row in Triton: the best, or one drawn under min_p, top_k and top_p.

    program (row, tile of 4,096 logits)
      greedy and free rows: the tile's best token, for free rows by logit + noise
      restricted rows:      the largest logit of each segment of 128
    program (row)
      greedy and free rows: the best of the tiles
      restricted rows:      list the segments whose largest can be allowed; in those alone find the
                            threshold by bisection, and the best token above it by logit + noise

The k-th largest of the segments' largest is no larger than the k-th largest logit. So k segments,
more if some are equal, hold all that top_k allows, and bisection reads them instead of a row. Where
top_p alone bounds a row, as many segments are listed as it takes to hold the nucleus; a flat row's
nucleus takes all of them, again in every round. A histogram would read the row four times,
whatever it holds, but Triton's counts only, and top_p wants sums.

Two launches, always; all that varies is read on the device. Sums of probabilities are exact, in
multiples of 2**-35, so nothing depends on an order, nor a row on its neighbours. It allows what
top_p_sampling_gpu.py allows, with the noise of gumbel_noise.py; their exponentials and logarithms
round otherwise, so two tokens within some 1e-6 of each other may change places. NaN is not looked
for, but what is returned lies in the vocabulary.

Checked under Triton's interpreter against both, and compiled for sm_90, where nothing spills. Not
checked: any GPU, and so no speed, and no number of warps or segments.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

# Logits whose largest is kept, and how many times that a program reads at once.
_SEGMENT = 128
_TILE = 32
# A thread has 8 logits of a tile: in bfloat16, one load of 16 bytes.
_NUM_WARPS = 16
# The segments listed first where top_p alone bounds a row, then four times as many, and so on.
_FIRST_LISTED = tl.constexpr(64)

# The key of -inf, below which bisections do not look.
_LOWEST = tl.constexpr(-0x7F800000)
_NO_TOKEN = tl.constexpr(0x7FFFFFFF)
_STEPS_OF_ONE = tl.constexpr(2.0**35)
# Added to a smaller float64 and taken away again, it leaves the nearest whole number.
_ROUNDING = tl.constexpr(2.0**52)
# As gumbel_noise.py has it.
_LARGEST_UNIFORM = tl.constexpr(1 - 2.0**-24)
_GOLDEN32 = tl.constexpr(0x9E3779B1)
_MURMUR_A = tl.constexpr(0x85EBCA6B)
_MURMUR_B = tl.constexpr(0xC2B2AE35)
# Slices of one buffer: aligned or not as the number of rows has it, and that recompiles nothing.
_PER_ROW = ["temperatures", "top_k", "top_p", "min_p", "low", "high"]


def choose(
    logits: Tensor,
    temperatures: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    low: Tensor,
    high: Tensor,
) -> Tensor:
    """Return one token per row, int64, of logits `[rows, vocabulary]` in any floating type.

    Per row, float32: `temperatures`, 0 for the best token; `top_p`, `min_p`. Per row, integers:
    `top_k`, 0 for none; `low` and `high`, the int32 noise key. Among equals the first token wins.
    """
    num_rows, vocab_size = logits.shape
    per_row = (temperatures, top_k, top_p, min_p, low, high)
    assert logits.stride(1) == 1 and all(part.is_contiguous() for part in per_row)
    num_segments = triton.cdiv(vocab_size, _SEGMENT)
    num_tiles = triton.cdiv(num_segments, _TILE)
    largest = logits.new_empty((num_rows, num_segments), dtype=torch.float32)
    scores = logits.new_empty((num_rows, num_tiles), dtype=torch.float32)
    winners = logits.new_empty((num_rows, num_tiles), dtype=torch.int32)
    listed = logits.new_empty((num_rows, num_segments), dtype=torch.int32)
    tokens = logits.new_empty(num_rows, dtype=torch.int64)
    _scan_tile[(num_rows, num_tiles)](
        logits, *per_row, largest, scores, winners, logits.stride(0), vocab_size, num_segments,
        SEGMENT=_SEGMENT, TILE=_TILE, num_warps=_NUM_WARPS,
    )  # fmt: skip
    _choose_token[(num_rows,)](
        logits, *per_row, largest, scores, winners, listed, tokens,
        logits.stride(0), vocab_size, num_segments, num_tiles,
        SEGMENT=_SEGMENT, TILE=_TILE, PADDED_SEGMENTS=triton.next_power_of_2(num_segments),
        PADDED_TILES=triton.next_power_of_2(num_tiles), num_warps=_NUM_WARPS,
    )  # fmt: skip
    return tokens


@triton.jit(do_not_specialize=_PER_ROW)
def _scan_tile(
    logits, temperatures, top_k, top_p, min_p, low, high, largest, scores, winners,
    row_stride, vocab_size, num_segments, SEGMENT: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Find what one tile of one row has for `_choose_token`."""
    row, tile = tl.program_id(0), tl.program_id(1)
    logits += row.to(tl.int64) * row_stride
    temperature = tl.load(temperatures + row)
    k, p, m = tl.load(top_k + row), tl.load(top_p + row), tl.load(min_p + row)
    segment = tile * TILE + tl.arange(0, TILE)
    is_real = segment < num_segments
    token, scaled = _load_scaled(logits, segment, is_real, temperature, vocab_size, SEGMENT)
    if _is_restricted(temperature, k, p, m):
        tl.store(largest + row * num_segments + segment, tl.max(scaled, 1), mask=is_real)
    else:
        if temperature > 0:
            scaled += _gumbel(token, tl.load(low + row), tl.load(high + row))
        best, winner = _first_best(scaled, token)
        at = row * tl.num_programs(1) + tile
        tl.store(scores + at, best)
        tl.store(winners + at, winner)


@triton.jit(do_not_specialize=_PER_ROW)
def _choose_token(
    logits, temperatures, top_k, top_p, min_p, low, high, largest, scores, winners, listed, tokens,
    row_stride, vocab_size, num_segments, num_tiles, SEGMENT: tl.constexpr, TILE: tl.constexpr,
    PADDED_SEGMENTS: tl.constexpr, PADDED_TILES: tl.constexpr,
):  # fmt: skip
    """Choose the token of one row."""
    row = tl.program_id(0)
    logits += row.to(tl.int64) * row_stride
    temperature = tl.load(temperatures + row)
    k, p, m = tl.load(top_k + row), tl.load(top_p + row), tl.load(min_p + row)
    if _is_restricted(temperature, k, p, m):
        token = _draw(
            logits, temperature, k, p, m, tl.load(low + row), tl.load(high + row),
            largest + row * num_segments, listed + row * num_segments,
            vocab_size, num_segments, SEGMENT, TILE, PADDED_SEGMENTS,
        )  # fmt: skip
    else:
        tile = tl.arange(0, PADDED_TILES)
        is_real = tile < num_tiles
        at = row * num_tiles + tile
        score = tl.load(scores + at, mask=is_real, other=float("-inf"))
        token = _first_best(score, tl.load(winners + at, mask=is_real, other=_NO_TOKEN))[1]
    # Were they NaN, none would be the best.
    tl.store(tokens + row, tl.minimum(token, vocab_size - 1).to(tl.int64))


@triton.jit
def _is_restricted(temperature, k, p, m):
    return (temperature > 0) & ((k > 0) | (p < 1.0) | (m > 0.0))


@triton.jit
def _draw(
    logits, temperature, k, p, m, low, high, largest, listed, vocab_size, num_segments,
    SEGMENT: tl.constexpr, TILE: tl.constexpr, PADDED_SEGMENTS: tl.constexpr,
):  # fmt: skip
    """Return the token of a restricted row."""
    segment = tl.arange(0, PADDED_SEGMENTS)
    peaks = tl.load(largest + segment, mask=segment < num_segments, other=float("-inf"))
    threshold = _find_threshold(
        logits, temperature, peaks, listed, k, p, m, vocab_size, SEGMENT, TILE
    )
    num_listed = _list(listed, peaks, threshold)
    best = tl.full([TILE, SEGMENT], float("-inf"), tl.float32)
    winner = tl.zeros([TILE, SEGMENT], tl.int32)
    for first in range(0, num_listed, TILE):
        token, scaled = _load_listed(
            logits, temperature, listed, first, num_listed, vocab_size, SEGMENT, TILE
        )
        score = tl.where(scaled >= threshold, scaled + _gumbel(token, low, high), float("-inf"))
        # Segments are listed in their order: an equal score later on is of a later token.
        winner = tl.where(score > best, token, winner)
        best = tl.maximum(score, best)
    return _first_best(best, winner)[1]


@triton.jit
def _find_threshold(
    logits, temperature, peaks, listed, k, p, m, vocab_size,
    SEGMENT: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Return the least logit that a restricted row allows."""
    best = tl.max(peaks, 0)
    floor = best + tl.log(tl.where(m > 0.0, m, 1.0))
    threshold = tl.where(m > 0.0, floor, float("-inf"))
    if k > 0:
        bottom = tl.maximum(threshold, _kth_largest(peaks, best, k))
        num_listed = _list(listed, peaks, bottom)
        threshold = _bisect(
            logits, temperature, listed, num_listed, bottom, best, k.to(tl.float64),
            vocab_size, False, SEGMENT, TILE,
        )  # fmt: skip
    if p < 1.0:
        bottom = threshold
        num_listed = _list(listed, peaks, bottom)
        total, _, _ = _look(
            logits, temperature, listed, num_listed, _just_below(bottom), best,
            vocab_size, True, SEGMENT, TILE,
        )  # fmt: skip
        limit = p.to(tl.float64) * total
        wanted = _FIRST_LISTED
        found = tl.where(num_listed > wanted, -1.0, total)
        while found < limit:
            bottom = tl.maximum(threshold, _kth_largest(peaks, best, wanted))
            num_listed = _list(listed, peaks, bottom)
            found, _, _ = _look(
                logits, temperature, listed, num_listed, _just_below(bottom), best,
                vocab_size, True, SEGMENT, TILE,
            )  # fmt: skip
            wanted *= 4
        threshold = _bisect(
            logits, temperature, listed, num_listed, bottom, best, limit,
            vocab_size, True, SEGMENT, TILE,
        )  # fmt: skip
    return threshold


@triton.jit
def _kth_largest(peaks, best, wanted):
    """Return the least peak with fewer than `wanted` above it; less than all, if that is all."""
    low, high = tl.full([], _LOWEST, tl.int64), _key(best)
    while low + 1 < high:
        middle = (low + high) >> 1
        is_above = peaks > _value(middle)
        least_above = tl.min(tl.where(is_above, peaks, float("inf")), 0)
        most_below = tl.max(tl.where(is_above, float("-inf"), peaks), 0)
        is_allowed = tl.sum(is_above.to(tl.int32), 0) < wanted
        low, high = _narrow(low, high, is_allowed, least_above, most_below)
    return _value(high)


@triton.jit
def _list(listed, peaks, bottom):
    """Write the numbers of the segments whose peaks reach `bottom`, and return how many they are.

    Not of those with nothing but -inf, as are the peaks behind the last. All threads wait before,
    for those that still read another list, and after.
    """
    is_in = (peaks >= bottom) & (peaks > float("-inf"))
    place = tl.cumsum(is_in.to(tl.int32), 0) - 1
    tl.debug_barrier()
    tl.store(listed + place, tl.arange(0, peaks.shape[0]), mask=is_in)
    tl.debug_barrier()
    return tl.sum(is_in.to(tl.int32), 0)


@triton.jit
def _bisect(
    logits, temperature, listed, num_listed, bottom, best, limit, vocab_size,
    OF_WEIGHTS: tl.constexpr, SEGMENT: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Return the least logit from `bottom` to `best` with less than `limit` above it.

    Each round ends at a logit that is there, so there are far fewer of them than bits.
    """
    low, high = _key(_just_below(bottom)), _key(best)
    while low + 1 < high:
        middle = (low + high) >> 1
        amount, least_above, most_below = _look(
            logits, temperature, listed, num_listed, _value(middle), best,
            vocab_size, OF_WEIGHTS, SEGMENT, TILE,
        )  # fmt: skip
        low, high = _narrow(low, high, amount < limit, least_above, most_below)
    return _value(high)


@triton.jit
def _narrow(low, high, is_allowed, least_above, most_below):
    """Return what is left of the keys from `low`, too low, to `high`, which is allowed.

    `is_allowed` is of some key between, and no value lies between it and those two.
    """
    lower = tl.maximum(_key(most_below), low + 1)
    return tl.where(is_allowed, low, _key(least_above) - 1), tl.where(is_allowed, lower, high)


@triton.jit
def _look(
    logits, temperature, listed, num_listed, middle, best, vocab_size,
    OF_WEIGHTS: tl.constexpr, SEGMENT: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Look at the listed segments' logits on both sides of `middle`.

    Return how many lie above, or the sum of their weights; the least of them; and the largest of
    the others. A weight is a probability in steps of 2**-35 of the best token's.
    """
    finite = tl.where(best == float("-inf"), 0.0, best)
    amounts = tl.zeros([TILE, SEGMENT], tl.float64)
    above = tl.full([TILE, SEGMENT], float("inf"), tl.float32)
    below = tl.full([TILE, SEGMENT], float("-inf"), tl.float32)
    for first in range(0, num_listed, TILE):
        _, scaled = _load_listed(
            logits, temperature, listed, first, num_listed, vocab_size, SEGMENT, TILE
        )
        is_above = scaled > middle
        if OF_WEIGHTS:
            weight = tl.exp(scaled - finite).to(tl.float64) * _STEPS_OF_ONE
            amounts += tl.where(is_above, (weight + _ROUNDING) - _ROUNDING, 0.0)
        else:
            amounts += is_above.to(tl.float64)
        above = tl.minimum(above, tl.where(is_above, scaled, float("inf")))
        below = tl.maximum(below, tl.where(is_above, float("-inf"), scaled))
    return tl.sum(amounts), tl.min(above), tl.max(below)


@triton.jit
def _load_listed(
    logits, temperature, listed, first, num_listed, vocab_size,
    SEGMENT: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    place = first + tl.arange(0, TILE)
    is_real = place < num_listed
    segment = tl.load(listed + place, mask=is_real, other=0)
    return _load_scaled(logits, segment, is_real, temperature, vocab_size, SEGMENT)


@triton.jit
def _load_scaled(logits, segment, is_real, temperature, vocab_size, SEGMENT: tl.constexpr):
    """Return a tile's tokens and their logits divided by the temperature, if there is one."""
    token = segment[:, None] * SEGMENT + tl.arange(0, SEGMENT)[None, :]
    mask = is_real[:, None] & (token < vocab_size)
    logit = tl.load(logits + token, mask=mask, other=float("-inf")).to(tl.float32)
    divisor = tl.where(temperature > 0, temperature, 1.0)
    return token, tl.div_rn(logit, tl.full(logit.shape, 1.0, tl.float32) * divisor)


@triton.jit
def _first_best(score, token):
    """Return the largest of all scores, and of the tokens that have it the first."""
    best = tl.max(score)
    return best, tl.min(tl.where(score == best, token, _NO_TOKEN))


@triton.jit
def _gumbel(token, low, high):
    """Return noise.gumbel(token, low, high)."""
    bits = token.to(tl.uint32) * _GOLDEN32
    bits = _murmur(bits + low.to(tl.uint32, bitcast=True))
    bits = _murmur(bits ^ high.to(tl.uint32, bitcast=True))
    uniform = ((bits >> 8).to(tl.float32) + 0.5) * (1.0 / (1 << 24))
    uniform = tl.minimum(uniform, _LARGEST_UNIFORM)
    # Triton has no log1p: with 1 - uniform rounded, log(rest) / (rest - 1) is still right.
    rest = 1.0 - uniform
    is_one = rest == 1.0
    log1p = tl.log(rest) * (uniform / tl.where(is_one, 1.0, 1.0 - rest))
    return -tl.log(tl.where(is_one, uniform, -log1p))


@triton.jit
def _murmur(x):
    x = (x ^ (x >> 16)) * _MURMUR_A
    x = (x ^ (x >> 13)) * _MURMUR_B
    return x ^ (x >> 16)


@triton.jit
def _just_below(value):
    """Return the float32 before a value, or -inf."""
    return _value(tl.maximum(_key(value) - 1, _LOWEST))


@triton.jit
def _key(value):
    """Return an int64 that is ordered as float32 values are; both zeros give 0."""
    size = tl.abs(value).to(tl.int32, bitcast=True).to(tl.int64)
    return tl.where(value < 0.0, -size, size)


@triton.jit
def _value(key):
    """Return the float32 of a key."""
    size = tl.abs(key).to(tl.int32).to(tl.float32, bitcast=True)
    return tl.where(key < 0, -size, size)
