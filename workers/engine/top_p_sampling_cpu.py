"""Draw one token per row under min_p, top_k and top_p on a CPU, without sorting all logits.

A restricted row looks at a window of its largest logits. The window's width depends on the row's
own parameters, and a row whose nucleus does not fit is drawn again from a wider one, so a row's
token never depends on its neighbours. An unrestricted row needs noise only for tokens that could
still win: those within MAX_GUMBEL of the best perturbed logit found so far.
"""

import torch
from torch import Tensor

from workers.engine.gumbel_noise import MAX_GUMBEL, gumbel
from workers.engine.sampling_rows import SamplingTensors

_MAX_WINDOW_K = 1024
_MIN_WINDOW = 32
# Where no top_k bounds the set: narrow first, then wide, then everything.
_RUNGS = (128, 2048)
_FIRST_GUESSES = 64


def draw_free(scaled: Tensor, params: SamplingTensors) -> Tensor:
    """Draw rows without top_k and top_p; exact, though most noise is never computed."""
    if bool((params.min_p > 0).any()):
        floor = scaled.amax(-1, keepdim=True) + params.min_p[:, None].log()
        scaled = scaled.masked_fill(scaled < floor, float("-inf"))
    low, high = params.low[:, None], params.high[:, None]
    guess = scaled.topk(min(_FIRST_GUESSES, scaled.shape[1]))
    best = (guess.values + gumbel(guess.indices, low, high)).amax(-1, keepdim=True)
    rows, tokens = (scaled >= best - MAX_GUMBEL).nonzero(as_tuple=True)
    perturbed = torch.full_like(scaled, float("-inf"))
    noise = gumbel(tokens, params.low[rows], params.high[rows])
    perturbed[rows, tokens] = scaled[rows, tokens] + noise
    return perturbed.argmax(-1)


def draw_restricted(scaled: Tensor, params: SamplingTensors, top_k: list[int]) -> Tensor:
    """Draw rows that have a top_k or a top_p; `top_k` repeats `params.top_k` on the host."""
    tokens = torch.empty(scaled.shape[0], dtype=torch.int64, device=scaled.device)
    pending = list(range(scaled.shape[0]))
    tried = 0
    while pending:
        groups: dict[int, list[int]] = {}
        for row in pending:
            groups.setdefault(_window(top_k[row], tried, scaled.shape[1]), []).append(row)
        pending = []
        for window, members in groups.items():
            rows = torch.tensor(members, device=scaled.device)
            drawn, fits = _draw_window(scaled[rows], params.at(rows), window)
            tokens[rows] = drawn
            if window < scaled.shape[1]:
                pending += [row for row, fit in zip(members, fits.tolist(), strict=True) if not fit]
        tried += 1
    return tokens


def _window(top_k: int, tried: int, vocab_size: int) -> int:
    """Return how many of the largest logits to look at on the given try."""
    if 0 < top_k <= _MAX_WINDOW_K:
        return min(max(_MIN_WINDOW, 1 << (top_k - 1).bit_length()), vocab_size)
    if top_k > 0 or tried >= len(_RUNGS):
        return vocab_size
    return min(_RUNGS[tried], vocab_size)


def _draw_window(scaled: Tensor, params: SamplingTensors, window: int) -> tuple[Tensor, Tensor]:
    """Draw from the largest logits; also return whether no allowed token lies beyond them."""
    values, indices = scaled.topk(window)
    best = values[:, :1]
    floor = best + params.min_p[:, None].log()
    rank = torch.arange(window, device=scaled.device)
    limit = torch.where(params.top_k > 0, params.top_k, scaled.shape[1])[:, None]
    keep = (rank < limit) & (values >= floor)
    weights = (values - best).exp_().mul_(keep)
    total = weights.sum(-1, keepdim=True)
    unbounded = limit > window
    if bool(unbounded.any()):
        # What the window does not show counts too; min_p has already taken its part away.
        whole = (scaled - best).exp_().mul_(scaled >= floor).sum(-1, keepdim=True)
        total = torch.where(unbounded, whole, total)
    before = weights.cumsum(-1) - weights
    keep &= (before < params.top_p[:, None] * total) | (rank == 0)
    noise = gumbel(indices, params.low[:, None], params.high[:, None])
    perturbed = (values + noise).masked_fill_(~keep, float("-inf"))
    drawn = indices.gather(1, perturbed.argmax(-1, keepdim=True))[:, 0]
    return drawn, ~(unbounded[:, 0] & keep[:, -1])
