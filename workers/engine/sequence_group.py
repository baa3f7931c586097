"""SequenceGroup: the sequences of one request's choices, which end together.

The leader computes the prompt; its siblings are held until they can share the prompt's blocks.
"""

from workers.engine.request import Request
from workers.engine.sequence import Sequence, SequenceStatus
from workers.wire.protocol import Finished


class SequenceGroup:
    """A request between `add` and its Finished."""

    def __init__(self, request: Request) -> None:
        self.request = request
        # How many of the prompt's tokens need not be computed; None before it has started.
        self.cached_tokens: int | None = None
        # The prompt's tokens of which it was said how likely they are; of the first nothing is.
        self.num_scored = 1
        generate = request.generate
        resume = generate.resume or ((),) * len(generate.choices)
        self.sequences = [
            Sequence(request, choice, [*request.prompt_ids, *ids])
            for choice, ids in zip(generate.choices, resume, strict=True)
        ]
        for sequence in self.sequences:
            sequence.finish_reason = sequence.end
            if sequence.finish_reason is not None:
                sequence.status = SequenceStatus.FINISHED
        self.leader: Sequence | None = None
        self.choose_leader()

    @property
    def has_started(self) -> bool:
        return self.cached_tokens is not None

    @property
    def is_finished(self) -> bool:
        return all(sequence.is_finished for sequence in self.sequences)

    @property
    def num_unfinished(self) -> int:
        return sum(not sequence.is_finished for sequence in self.sequences)

    @property
    def held(self) -> list[Sequence]:
        """The siblings that wait for the leader to have computed the prompt."""
        return [s for s in self.sequences if s.status is SequenceStatus.HELD]

    def is_scoring(self, sequence: Sequence) -> bool:
        """Whether a sequence is still to say how likely the prompt's tokens are."""
        if self.request.params.prompt_logprobs is None or sequence is not self.leader:
            return False
        last = sequence.num_prompt_tokens - 1
        return self.num_scored <= last and sequence.num_computed < last

    def scored_by(self, sequence: Sequence, start: int, num_tokens: int) -> range:
        """Return the places, among these tokens, after which the prompt's next one is scored."""
        if not self.is_scoring(sequence):
            return range(0)
        last = sequence.num_prompt_tokens - 1
        return range(max(start, self.num_scored - 1), min(start + num_tokens, last))

    def choose_leader(self) -> None:
        """Let the first unfinished sequence compute the prompt; hold the others until then."""
        unfinished = [sequence for sequence in self.sequences if not sequence.is_finished]
        self.leader = unfinished[0] if unfinished else None
        for sequence in unfinished:
            leads = sequence is self.leader
            sequence.status = SequenceStatus.WAITING if leads else SequenceStatus.HELD

    def finished(self) -> Finished:
        """Return the message that ends the request."""
        return Finished(
            self.request.generate.wid,
            prompt_tokens=len(self.request.prompt_ids),
            completion_tokens=sum(sequence.num_output_tokens for sequence in self.sequences),
        )
