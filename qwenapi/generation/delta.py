"""Delta: the new text of one choice, and joining deltas into whole choices."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from workers.wire.protocol import TokenLogprob


@dataclass(frozen=True)
class Delta:
    """What is new in one choice; `finish_reason` is set on its last delta.

    `num_tokens` counts those of the text. `token_ids` has the one that stopped it besides, and
    `stop_logprobs` its log-probability. `stop` is the stop string that ended the choice, if one
    did.
    """

    index: int
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: str | None = None
    num_tokens: int = 0
    token_ids: tuple[int, ...] = ()
    stop_logprobs: tuple[TokenLogprob, ...] = ()
    stop: str | None = None


def gather(batches: Iterable[Sequence[Delta]]) -> list[Delta]:
    """Return each choice whole, in the order of their indexes, once all have ended."""
    parts: dict[int, list[Delta]] = {}
    for delta in itertools.chain.from_iterable(batches):
        parts.setdefault(delta.index, []).append(delta)
    return [
        Delta(
            index,
            "".join(delta.text for delta in deltas),
            tuple(itertools.chain.from_iterable(delta.logprobs for delta in deltas)),
            deltas[-1].finish_reason,
            stop_logprobs=deltas[-1].stop_logprobs,
            stop=deltas[-1].stop,
            token_ids=tuple(itertools.chain.from_iterable(delta.token_ids for delta in deltas)),
        )
        for index, deltas in sorted(parts.items())
    ]
