"""From logits to tokens: raw log-probabilities, processors, then greedy or seeded choice per row.

The order is fixed: raw logprobs → logit_bias → min_tokens → repetition → presence and frequency →
temperature → min_p → top_k → top_p → Gumbel noise. A row's result depends only on its own logits
and parameters. Refuses to know sequences, schedules and when a generation ends.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from workers.engine.drawing import DrawParams, draw_free, draw_restricted
from workers.engine.noise import row_key
from workers.engine.processors import SamplingRow, process
from workers.engine.threshold_drawing import draw
from workers.protocol import MAX_LOGPROBS, TokenLogprob


class Sample(NamedTuple):
    """One chosen token, with log-probabilities if its row asked for them."""

    token_id: int
    logprob: TokenLogprob | None = None


@torch.inference_mode()
def sample(logits: Tensor, rows: Sequence[SamplingRow]) -> list[Sample]:
    """Return one sample per row of logits `[rows, vocabulary]`, which may be overwritten."""
    asking = [index for index, row in enumerate(rows) if row.params.logprobs is not None]
    if not asking and all(row.is_greedy and not row.is_processed for row in rows):
        return [Sample(token) for token in _best(logits).tolist()]
    logits = logits.float()
    raw = logits[asking].log_softmax(-1) if asking else None
    process(logits, rows)
    tokens = (choose_on_cpu if logits.device.type == "cpu" else choose_on_gpu)(logits, rows)
    samples = [Sample(token) for token in tokens.tolist()]
    if raw is not None:
        for index, logprob in zip(
            asking, _logprobs(raw, tokens[asking], rows, asking), strict=True
        ):
            samples[index] = Sample(samples[index].token_id, logprob)
    return samples


def choose_on_cpu(logits: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """Return one token per row of processed float32 logits, drawn where few candidates are."""
    greedy = [index for index, row in enumerate(rows) if row.is_greedy]
    free = [
        index for index, row in enumerate(rows) if not row.is_greedy and not _is_restricted(row)
    ]
    bound = [index for index, row in enumerate(rows) if not row.is_greedy and _is_restricted(row)]
    tokens = torch.empty(len(rows), dtype=torch.int64, device=logits.device)
    if greedy:
        tokens[greedy] = _best(_take(logits, greedy))
    if free:
        tokens[free] = draw_free(*_tempered(logits, rows, free))
    if bound:
        top_k = [rows[index].params.top_k for index in bound]
        tokens[bound] = draw_restricted(*_tempered(logits, rows, bound), top_k)
    return tokens


def choose_on_gpu(logits: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """Return the same tokens by the same few kernels for all rows, which the host waits for none
    of.
    """
    scaled, params = _tempered(logits, rows, list(range(len(rows))))
    has_top_k = any(row.params.top_k > 0 for row in rows)
    has_top_p = any(row.params.top_p < 1.0 for row in rows)
    tokens = draw(scaled, params, has_top_k=has_top_k, has_top_p=has_top_p)
    is_greedy = torch.tensor([row.is_greedy for row in rows], device=logits.device)
    return torch.where(is_greedy, _best(logits), tokens)


def _best(logits: Tensor) -> Tensor:
    # The first of the largest, as argmax gives it, but on a CPU four times as fast in bfloat16.
    return logits.max(-1).indices


def _is_restricted(row: SamplingRow) -> bool:
    """Whether the row's tokens have to be ranked; min_p alone is a threshold."""
    return row.params.top_k > 0 or row.params.top_p < 1.0


def _take(logits: Tensor, members: list[int]) -> Tensor:
    return logits if len(members) == logits.shape[0] else logits[members]


def _tempered(
    logits: Tensor, rows: Sequence[SamplingRow], members: list[int]
) -> tuple[Tensor, DrawParams]:
    """Return the members' logits divided by their temperatures, and their parameters as tensors."""
    chosen = [rows[index] for index in members]
    params = [row.params for row in chosen]
    keys = [row_key(row.params.seed, row.choice, row.position) for row in chosen]
    integers = torch.tensor(
        [[p.top_k, low, high] for p, (low, high) in zip(params, keys, strict=True)]
    )
    temperatures = [1.0 if row.is_greedy else row.params.temperature for row in chosen]
    floats = torch.tensor(
        [[t, p.top_p, p.min_p] for t, p in zip(temperatures, params, strict=True)],
        dtype=torch.float32,
    )
    integers, floats = integers.to(logits.device), floats.to(logits.device)
    words = integers[:, 1:].to(torch.int32)
    draw = DrawParams(integers[:, 0], floats[:, 1], floats[:, 2], words[:, 0], words[:, 1])
    return _take(logits, members) / floats[:, :1], draw


def _logprobs(
    raw: Tensor, tokens: Tensor, rows: Sequence[SamplingRow], asking: list[int]
) -> list[TokenLogprob]:
    """Return the chosen tokens' log-probabilities and the likeliest alternatives."""
    chosen = raw.gather(1, tokens[:, None])[:, 0].tolist()
    # Always as many, so that a row's order among equals does not depend on what others ask for.
    best = raw.topk(min(MAX_LOGPROBS, raw.shape[1]))
    values, indices = best.values.tolist(), best.indices.tolist()
    result = []
    for place, index in enumerate(asking):
        count = min(rows[index].params.logprobs or 0, MAX_LOGPROBS)
        top_ids, top_values = tuple(indices[place][:count]), tuple(values[place][:count])
        result.append(TokenLogprob(int(tokens[place]), chosen[place], top_ids, top_values))
    return result
