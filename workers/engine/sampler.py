"""Sample one token per row from its logits, greedy or seeded, with log-probabilities.

The order is fixed: raw logprobs → logit_bias → min_tokens → repetition → presence and frequency →
allowed tokens → bad words → temperature → min_p → top_k → top_p → Gumbel noise. A row's result
depends only on its own logits and parameters. Refuses to know sequences, schedules and when a
generation ends.

    sampling_rows        what is asked of each row, on the host and on the device
    logits_processors    all before the temperature
    top_p_sampling_cpu   all after it on a CPU, by looking at the largest logits
    top_p_sampling_gpu   the same in plain torch on a GPU without Triton
    kernels/sampling     the same in Triton; choose_on_gpu picks one of the two
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from workers.engine.logits_processors import process
from workers.engine.sampling_rows import SamplingRow, SamplingTensors
from workers.engine.token_masks import MaskedRows
from workers.engine.top_p_sampling_cpu import draw_free, draw_restricted
from workers.engine.top_p_sampling_gpu import draw
from workers.model.layout.device_copy import HostCopy, to_device
from workers.wire.protocol import MAX_LOGPROBS, TokenLogprob


class Sample(NamedTuple):
    """One chosen token, with log-probabilities if its row asked for them.

    Where logits are not finite the token means nothing.
    """

    token_id: int
    logprob: TokenLogprob | None = None
    is_finite: bool = True


class TokenChoice:
    """Tokens chosen on a device, `tokens` `[rows]`, which the host can wait for and read later."""

    def __init__(
        self,
        tokens: Tensor,
        peaks: Tensor,
        asking: dict[int, int],
        logprobs: tuple[Tensor, ...] = (),
    ) -> None:
        """`peaks` are the rows' largest logits, NaN where any is; `asking` says who wants how many
        of the `logprobs`.
        """
        self.tokens = tokens
        self._asking = asking
        self._copy = HostCopy((tokens, peaks.isfinite(), *logprobs))

    def read(self) -> list[Sample]:
        """Return one sample per row, once they are there."""
        tokens, are_finite, *logprobs = (part.tolist() for part in self._copy.read())
        samples = [Sample(token) for token in tokens]
        for (row, count), chosen, ids, values in zip(self._asking.items(), *logprobs, strict=True):
            logprob = TokenLogprob(tokens[row], chosen, tuple(ids[:count]), tuple(values[:count]))
            samples[row] = Sample(tokens[row], logprob)
        for row, is_finite in enumerate(are_finite):
            if not is_finite:
                samples[row] = Sample(tokens[row], is_finite=False)
        return samples


def sample(
    logits: Tensor, rows: Sequence[SamplingRow], *, by_kernels: bool = False
) -> list[Sample]:
    """Return one sample per row of logits `[rows, vocabulary]`, which may be overwritten."""
    return choose(logits, rows, by_kernels=by_kernels).read()


@torch.inference_mode()
def choose(
    logits: Tensor,
    rows: Sequence[SamplingRow],
    masks: MaskedRows | None = None,
    *,
    by_kernels: bool = False,
) -> TokenChoice:
    """Choose one token per row of logits `[rows, vocabulary]`, which may be overwritten.

    Masks leave the log-probabilities that rows ask for as they are. Where kernels compute on a GPU,
    they choose as well.
    """
    asking = {
        index: min(row.params.logprobs, MAX_LOGPROBS)
        for index, row in enumerate(rows)
        if row.params.logprobs is not None
    }
    if not asking and all(row.is_greedy and not row.is_processed for row in rows):
        return _choose_best(logits, masks)
    if logits.device.type == "cpu" or any(row.is_processed for row in rows):
        logits = logits.float()
    raw = None
    if asking:
        where = to_device(torch.tensor(list(asking)), logits.device)
        raw = logits[where].float().log_softmax(-1)
    peaks = logits.amax(-1)  # before masks and processors, which may hide what is wrong
    if masks is not None:
        masks.apply(logits)
    process(logits, rows)
    if logits.device.type == "cpu":
        tokens = choose_on_cpu(logits, rows)
    else:
        tokens = choose_on_gpu(logits, rows, by_kernels=by_kernels)
    logprobs = () if raw is None else _logprobs(raw, tokens[where])
    return TokenChoice(tokens, peaks, asking, logprobs)


@torch.inference_mode()
def score(logits: Tensor, token_ids: Tensor, counts: Sequence[int]) -> TokenChoice:
    """Say of given tokens, one a row of the logits, what `choose` says of those it chooses.

    `counts` are of the likeliest tokens beside them.
    """
    raw = logits.float().log_softmax(-1)
    asking = {row: min(count, MAX_LOGPROBS) for row, count in enumerate(counts)}
    return TokenChoice(token_ids, raw.amax(-1), asking, _logprobs(raw, token_ids))


def _choose_best(logits: Tensor, masks: MaskedRows | None) -> TokenChoice:
    """Return the largest of each row, in the logits' own type."""
    if masks is None:
        best = logits.max(-1)
        return TokenChoice(best.indices, best.values, {})
    peaks = logits.amax(-1)
    masks.apply(logits)
    return TokenChoice(_best(logits), peaks, {})


def choose_on_cpu(logits: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """Return one token per row of processed float32 logits, drawn where few candidates are."""
    greedy = [index for index, row in enumerate(rows) if row.is_greedy]
    free = [i for i, row in enumerate(rows) if not row.is_greedy and not row.is_ranked]
    bound = [i for i, row in enumerate(rows) if not row.is_greedy and row.is_ranked]
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
    """Return one token per row of processed logits of any type; the host waits for none."""
    params = SamplingTensors.of(rows, logits)
    if by_kernels:
        from workers.model.kernels import sampling

        with torch.cuda.device_of(logits):
            return sampling.choose(logits, *params)
    is_drawn = params.temperatures > 0
    scaled = logits / torch.where(is_drawn, params.temperatures, 1.0)[:, None]
    has_top_k = any(row.params.top_k > 0 for row in rows)
    has_top_p = any(row.params.top_p < 1.0 for row in rows)
    tokens = draw(scaled, params, has_top_k=has_top_k, has_top_p=has_top_p)
    return torch.where(is_drawn, tokens, _best(logits))


def _best(logits: Tensor) -> Tensor:
    # The first of the largest, as argmax gives it, but on a CPU four times as fast in bfloat16.
    return logits.max(-1).indices


def _take(logits: Tensor, members: list[int]) -> Tensor:
    return logits if len(members) == logits.shape[0] else logits[members]


def _tempered(
    logits: Tensor, rows: Sequence[SamplingRow], members: list[int]
) -> tuple[Tensor, SamplingTensors]:
    """Return the members' logits divided by their temperatures, and how they draw."""
    params = SamplingTensors.of([rows[index] for index in members], logits)
    return _take(logits, members) / params.temperatures[:, None], params


def _logprobs(raw: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the chosen tokens' log-probabilities, and ids and values of the likeliest tokens."""
    chosen = raw.gather(1, tokens[:, None])[:, 0]
    # Always as many, so that a row's order among equals does not depend on what others ask for.
    best = raw.topk(min(MAX_LOGPROBS, raw.shape[1]))
    return chosen, best.indices, best.values
