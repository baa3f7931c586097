"""EngineCore: the interface that a worker drives, of the real engine and of its stub.

It is driven by one thread, the engine loop. It knows keys, never connections; it is told of a
request only after admission, and answers for each exactly once: with a Finished, a Failed, or
nothing after `abort`.
"""

from dataclasses import dataclass, field
from typing import Protocol

from workers.grammar.compiled_grammar import CompiledGrammar
from workers.wire.engine_stats import EngineStats
from workers.wire.protocol import (
    Chunk,
    Failed,
    Finished,
    Generate,
    ModelCard,
    PromptLogprobs,
    Started,
)

# A connection's number and a wire id on it; to an engine it is only a name.
Key = tuple[int, int]


@dataclass
class StepOutput:
    """What one step has to say, by the names of StepUpdate's fields."""

    started: list[tuple[Key, Started]] = field(default_factory=list)
    chunks: list[tuple[Key, Chunk]] = field(default_factory=list)
    finished: list[tuple[Key, Finished]] = field(default_factory=list)
    failed: list[tuple[Key, Failed]] = field(default_factory=list)
    prompt_logprobs: list[tuple[Key, PromptLogprobs]] = field(default_factory=list)


class EngineCore(Protocol):
    """An engine or its stub."""

    card: ModelCard

    @property
    def has_work(self) -> bool:
        """Return whether a step would do anything."""

    def add(self, key: Key, request: Generate, grammar: CompiledGrammar | None = None) -> None:
        """Queue an admitted request under a key no other live request has.

        `grammar` is what the request's own was compiled to.
        """

    def abort(self, key: Key, choices: tuple[int, ...] = ()) -> bool:
        """Forget these choices of a request (none named: all) and free what they hold.

        Unknown ones are ignored. Returns whether nothing is left of the request: it then ends
        without a Finished.
        """

    def step(self) -> StepOutput:
        """Compute one batch; return what is known by then, which is less where steps overlap."""

    def check_ranks(self) -> None:
        """Wait for a sign of life of every other process of the engine; called while it is idle."""

    def stats(self) -> EngineStats:
        """Return the numbers to publish after a step."""

    def check_integrity(self) -> None:
        """Raise AssertionError if bookkeeping is inconsistent; called in tests."""
