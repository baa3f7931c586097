"""From logits to tokens: raw log-probabilities, processors, then greedy or seeded choice per row.

The order is fixed: raw logprobs → logit_bias → min_tokens → repetition → presence and frequency →
temperature → min_p → top_k → top_p → Gumbel noise. A row's result depends only on its own logits
and parameters. Refuses to know sequences, schedules and when a generation ends.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from workers.engine.gumbel_noise import row_key
from workers.engine.logits_processors import SamplingRow, process
from workers.engine.top_p_sampling_cpu import DrawParams, draw_free, draw_restricted
from workers.engine.top_p_sampling_gpu import draw
from workers.model.layout.device_copy import to_device
from workers.wire.protocol import MAX_LOGPROBS, TokenLogprob


class Sample(NamedTuple):
    """One chosen token, with log-probabilities if its row asked for them."""

    token_id: int
    logprob: TokenLogprob | None = None


class TokenChoice:
    """Tokens chosen on a device, `tokens` `[rows]`, which the host can wait for and read later."""

    def __init__(self, tokens: Tensor, asking: dict[int, int], logprobs: tuple[Tensor, ...]):
        self.tokens = tokens
        self._asking = asking
        self._parts = [part.to("cpu", non_blocking=True) for part in (tokens, *logprobs)]
        self._copied = None
        if tokens.device.type == "cuda":
            self._copied = torch.cuda.Event()
            self._copied.record(torch.cuda.current_stream(tokens.device))

    def read(self) -> list[Sample]:
        """Return one sample per row, once they are there."""
        if self._copied is not None:
            self._copied.synchronize()
        tokens, *logprobs = (part.tolist() for part in self._parts)
        samples = [Sample(token) for token in tokens]
        for (row, count), chosen, ids, values in zip(self._asking.items(), *logprobs, strict=True):
            logprob = TokenLogprob(tokens[row], chosen, tuple(ids[:count]), tuple(values[:count]))
            samples[row] = Sample(tokens[row], logprob)
        return samples


def sample(
    logits: Tensor, rows: Sequence[SamplingRow], *, by_kernels: bool = False
) -> list[Sample]:
    """Return one sample per row of logits `[rows, vocabulary]`, which may be overwritten."""
    return choose(logits, rows, by_kernels=by_kernels).read()


@torch.inference_mode()
def choose(logits: Tensor, rows: Sequence[SamplingRow], *, by_kernels: bool = False) -> TokenChoice:
    """Choose one token per row of logits `[rows, vocabulary]`, which may be overwritten.

    Where kernels compute on a GPU, they choose as well.
    """
    asking = {
        index: min(row.params.logprobs, MAX_LOGPROBS)
        for index, row in enumerate(rows)
        if row.params.logprobs is not None
    }
    if not asking and all(row.is_greedy and not row.is_processed for row in rows):
        return TokenChoice(_best(logits), {}, ())
    if logits.device.type == "cpu" or any(row.is_processed for row in rows):
        logits = logits.float()
    raw = None
    if asking:
        where = to_device(torch.tensor(list(asking)), logits.device)
        raw = logits[where].float().log_softmax(-1)
    process(logits, rows)
    if logits.device.type == "cpu":
        tokens = choose_on_cpu(logits, rows)
    else:
        tokens = choose_on_gpu(logits, rows, by_kernels=by_kernels)
    logprobs = () if raw is None else _logprobs(raw, tokens[where])
    return TokenChoice(tokens, asking, logprobs)


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


def choose_on_gpu(logits: Tensor, rows: Sequence[SamplingRow], *, by_kernels: bool) -> Tensor:
    """Return the same tokens by the same few kernels for all rows, which the host waits for none
    of; logits may be of any floating type.
    """
    temperatures, params = _parameters(logits, rows)
    if by_kernels:
        from workers.model.kernels import sampling

        shares = params.top_k, params.top_p, params.min_p
        with torch.cuda.device_of(logits):
            return sampling.choose(logits, temperatures, *shares, params.low, params.high)
    is_drawn = temperatures > 0
    scaled = logits / torch.where(is_drawn, temperatures, 1.0)[:, None]
    has_top_k = any(row.params.top_k > 0 for row in rows)
    has_top_p = any(row.params.top_p < 1.0 for row in rows)
    tokens = draw(scaled, params, has_top_k=has_top_k, has_top_p=has_top_p)
    return torch.where(is_drawn, tokens, _best(logits))


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
    """Return the members' logits divided by their temperatures, and their parameters."""
    temperatures, params = _parameters(logits, [rows[index] for index in members])
    return _take(logits, members) / temperatures[:, None], params


def _parameters(logits: Tensor, rows: Sequence[SamplingRow]) -> tuple[Tensor, DrawParams]:
    """Return temperatures, 0 where a row is greedy, and the rest, beside the logits by one copy."""
    params = [row.params for row in rows]
    keys = [row_key(row.params.seed, row.choice, row.position) for row in rows]
    counts = [min(p.top_k, logits.shape[1]) for p in params]
    integers = torch.tensor([counts, *zip(*keys, strict=True)], dtype=torch.int32)
    heats = [0.0 if row.is_greedy else row.params.temperature for row in rows]
    shares = [[p.top_p for p in params], [p.min_p for p in params]]
    floats = torch.tensor([heats, *shares], dtype=torch.float32)
    packed = to_device(torch.cat([integers, floats.view(torch.int32)]), logits.device)
    top_k, low, high = packed[:3]
    temperatures, top_p, min_p = packed[3:].view(torch.float32)
    return temperatures, DrawParams(top_k, top_p, min_p, low, high)


def _logprobs(raw: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the chosen tokens' log-probabilities, and ids and values of the likeliest tokens."""
    chosen = raw.gather(1, tokens[:, None])[:, 0]
    # Always as many, so that a row's order among equals does not depend on what others ask for.
    best = raw.topk(min(MAX_LOGPROBS, raw.shape[1]))
    return chosen, best.indices, best.values
