"""One request inside an engine: what was asked, and the sequences of its choices.

Knows the wire's Generate and what follows from it once. Refuses to know blocks, batches and time.
"""

import numpy as np

from workers.engine.logits_processors import NO_TOKENS
from workers.engine.sequence import Sequence, SequenceStatus
from workers.engine_core import Key
from workers.wire.protocol import Finished, Generate


class Request:
    """A request between `add` and its Finished."""

    def __init__(
        self,
        key: Key,
        generate: Generate,
        arrival: int,
        eos_token_ids: tuple[int, ...],
        max_model_len: int,
    ) -> None:
        params = generate.params
        self.key = key
        self.generate = generate
        self.params = params
        self.arrival = arrival
        self.priority = generate.priority
        self.prompt_ids = list(generate.prompt_ids)
        self.stop_ids = frozenset(
            params.stop_token_ids + (() if params.ignore_eos else eos_token_ids)
        )
        self.is_penalized = (
            params.repetition_penalty != 1.0
            or params.presence_penalty != 0.0
            or params.frequency_penalty != 0.0
        )
        is_repetition_penalized = params.repetition_penalty != 1.0
        self.prompt_set = np.unique(self.prompt_ids) if is_repetition_penalized else NO_TOKENS
        self.cached_tokens: int | None = None
        max_len = min(len(self.prompt_ids) + params.max_tokens, max_model_len)
        resume = generate.resume or ((),) * len(generate.choices)
        self.sequences = [
            Sequence(self, choice, self.prompt_ids + list(ids), max_len)
            for choice, ids in zip(generate.choices, resume, strict=True)
        ]
        for sequence in self.sequences:
            if sequence.is_full:
                sequence.finish_reason = "length"
                sequence.status = SequenceStatus.FINISHED
        self.leader: Sequence | None = None
        self.choose_leader()

    @property
    def has_started(self) -> bool:
        return self.cached_tokens is not None

    @property
    def is_resumed(self) -> bool:
        """Whether it goes on with an answer that an engine before this one had begun."""
        return any(self.generate.resume)

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

    def choose_leader(self) -> None:
        """Let the first unfinished sequence compute the prompt; hold the others until then."""
        unfinished = [sequence for sequence in self.sequences if not sequence.is_finished]
        self.leader = unfinished[0] if unfinished else None
        for sequence in unfinished:
            leads = sequence is self.leader
            sequence.status = SequenceStatus.WAITING if leads else SequenceStatus.HELD

    def finished(self) -> Finished:
        """Return the message that ends this request."""
        return Finished(
            self.generate.wid,
            prompt_tokens=len(self.prompt_ids),
            completion_tokens=sum(sequence.num_output_tokens for sequence in self.sequences),
        )
