"""LeadingRunner and FollowingRunner: one step on all ranks that share a model.

The first rank schedules and samples. It says what it is about to compute, and all compute it in
step, since their layers wait for each other. Tokens that only its device knows yet follow on the
devices' own channel.

    first rank   say batch │ forward ──────────────────┐ logits │ sample
    others      hear batch │ forward, with their parts ┘        │ hear the next
"""

from enum import IntEnum

from torch import Tensor

from workers.engine import step_message
from workers.engine.batch import Batch
from workers.engine.model_runner import DraftRow, ModelRunner, Rows
from workers.engine.running_step import RunningStep
from workers.model.decoder import Decoder
from workers.model.graphs import Graphs
from workers.model.parallel.group import Group
from workers.model.parallel.number_channel import NumberChannel


class _Kind(IntEnum):
    """What a message is about; of a batch, whether its tokens follow on the devices."""

    BATCH, BATCH_WITHOUT_TOKENS, DRAFTS, CLEAR, MEET = range(5)


class LeadingRunner(ModelRunner):
    """The first rank's, which an Engine drives as it drives one alone."""

    def __init__(self, decoder: Decoder, graphs: Graphs | None, group: Group) -> None:
        super().__init__(decoder, graphs)
        self._group, self._channel = group, NumberChannel(group)

    def clear(self, blocks: list[int]) -> None:
        """Make the cache's blocks as they were before anything was written, on all ranks."""
        self._channel.say([_Kind.CLEAR, *blocks])
        super().clear(blocks)

    def meet(self) -> None:
        """Wait until all ranks have said that they are there."""
        self._channel.say([_Kind.MEET])
        self._group.meet()

    def _forward(self, batch: Batch, previous: RunningStep | None) -> tuple[Rows, Tensor]:
        self._awaits = any(row.is_awaited for row in batch.rows)
        kind = _Kind.BATCH_WITHOUT_TOKENS if self._awaits else _Kind.BATCH
        self._channel.say([kind, *step_message.of_batch(batch)])
        return super()._forward(batch, previous)

    def _fill_awaited(self, token_ids: Tensor, rows: Rows, previous: RunningStep | None) -> None:
        super()._fill_awaited(token_ids, rows, previous)
        if self._awaits:
            self._group.share(token_ids)

    def _draft(self, drafted: list[DraftRow]) -> list[tuple[int, ...]]:
        self._channel.say([_Kind.DRAFTS, *step_message.of_drafts(drafted)])
        return super()._draft(drafted)


class FollowingRunner(ModelRunner):
    """Another rank's, which does as the first one says until its process is ended."""

    def __init__(self, decoder: Decoder, graphs: Graphs | None, group: Group) -> None:
        super().__init__(decoder, graphs)
        self._group, self._channel = group, NumberChannel(group)

    def follow(self) -> None:
        while True:
            self._do(*self._channel.hear())

    def _do(self, kind: int, *numbers: int) -> None:
        match kind:
            case _Kind.BATCH | _Kind.BATCH_WITHOUT_TOKENS:
                self._awaits = kind == _Kind.BATCH_WITHOUT_TOKENS
                self._forward(step_message.to_batch(numbers), None)
            case _Kind.DRAFTS:
                self._draft(step_message.to_drafts(numbers))
            case _Kind.CLEAR:
                self.clear(list(numbers))
            case _Kind.MEET:
                self._group.meet()

    def _fill_awaited(self, token_ids: Tensor, rows: Rows, previous: RunningStep | None) -> None:
        if self._awaits:
            self._group.share(token_ids)
