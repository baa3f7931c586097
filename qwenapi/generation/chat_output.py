"""ChatOutput: deltas of all choices of a chat, read as content, reasoning and tool calls."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from qwenapi.generation.delta import Delta
from qwenapi.text.output.events import Event, Reasoning
from qwenapi.text.output.output_parser import OutputParser
from workers.wire.protocol import TokenLogprob


@dataclass(frozen=True)
class ChatDelta:
    """What is new in one choice; `finish_reason` is set on its last delta, and `stop` is the stop
    string that ended it, if one did.
    """

    index: int
    events: tuple[Event, ...]
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: str | None = None
    token_ids: tuple[int, ...] = ()
    stop: str | None = None


class ChatOutput:
    """Parses every choice by a parser of its own."""

    def __init__(self, new_parser: Callable[[], OutputParser]) -> None:
        self._new_parser = new_parser
        self._parsers: dict[int, OutputParser] = {}
        self._reasoning: Counter[int] = Counter()

    @property
    def reasoning_tokens(self) -> int:
        """Return how many tokens of all choices were thoughts; needs deltas of one token each."""
        return self._reasoning.total()

    def read(self, batches: Iterable[list[Delta]]) -> Iterator[list[ChatDelta]]:
        """Yield the deltas, parsed, batch by batch."""
        for batch in batches:
            yield [self._parsed(delta) for delta in batch]

    def _parsed(self, delta: Delta) -> ChatDelta:
        parser = self._parsers.get(delta.index)
        if parser is None:
            parser = self._parsers[delta.index] = self._new_parser()
        was_reasoning = parser.in_reasoning
        events = parser.push(delta.text) if delta.text else []
        if was_reasoning or parser.in_reasoning:
            self._reasoning[delta.index] += delta.num_tokens
        reason = delta.finish_reason
        if reason is not None:
            events += parser.finish(is_cut=reason == "length")
            if reason == "stop" and parser.num_calls:
                reason = "tool_calls"
        events_ = tuple(events)
        return ChatDelta(delta.index, events_, delta.logprobs, reason, delta.token_ids, delta.stop)


def without_reasoning(events: Iterable[Event]) -> list[Event]:
    """Return the events for a caller who does not want to see thoughts."""
    return [event for event in events if not isinstance(event, Reasoning)]
