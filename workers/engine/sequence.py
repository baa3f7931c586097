"""Sequence: one choice of a request, its tokens so far and its blocks of KV cache.

Knows how far it is computed and when it has to stop. Refuses to know other sequences and blocks'
owners.
"""

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum

from workers.engine.block_manager import BlockTable
from workers.engine.ngram import NgramDrafter
from workers.engine.request import Request
from workers.grammar.state import GrammarState
from workers.wire.protocol import FinishReason


class SequenceStatus(Enum):
    HELD = "held"  # a sibling waiting for choice 0's prompt
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(slots=True, eq=False)
class Sequence:
    """One choice of a request. `token_ids` is the prompt followed by the output.

    `num_computed` of its tokens have keys and values in the cache, or will have when the steps
    under way end. `content_ids` are what tells them apart in the prefix cache: the tokens
    themselves, but in place of a picture's what it shows.
    """

    request: Request
    choice: int
    token_ids: list[int]
    num_computed: int = 0
    # Steps under way that sample this sequence.
    num_awaited: int = 0
    table: BlockTable = field(default_factory=BlockTable)
    status: SequenceStatus = SequenceStatus.WAITING
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    output_counts: Counter[int] | None = None
    drafter: NgramDrafter | None = None
    grammar: GrammarState | None = None
    content_ids: list[int] = field(init=False)

    def __post_init__(self) -> None:
        request = self.request
        images = request.images
        self.content_ids = images.content_ids(self.token_ids) if images else self.token_ids
        if request.grammar is not None and request.generate.grammar is not None:
            self.grammar = GrammarState(request.grammar, request.generate.grammar)
            for token_id in self.token_ids[self.num_prompt_tokens :]:
                self.grammar.consume(token_id)
            self._drop_grammar()
        if self.request.params.is_penalized:
            self.output_counts = Counter(self.token_ids[self.num_prompt_tokens :])

    @property
    def order(self) -> tuple[int, int, int]:
        """Who comes first: by priority, then by arrival, then by choice."""
        return (self.request.generate.priority, self.request.arrival, self.choice)

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.request.prompt_ids)

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def last_output(self) -> tuple[int, ...]:
        """The output's end, as far as the request's bad words look back."""
        longest = self.request.longest_bad_word
        start = max(self.num_prompt_tokens, len(self.token_ids) - longest + 1)
        return tuple(self.token_ids[start:]) if longest > 1 else ()

    @property
    def num_uncomputed(self) -> int:
        return len(self.token_ids) + self.num_awaited - self.num_computed

    @property
    def is_blocked(self) -> bool:
        """Whether a token under way has to be known before the next can be sampled."""
        if self.num_awaited == 0:
            return False
        is_last = len(self.token_ids) + self.num_awaited >= self.request.max_len
        return is_last or self.request.params.is_penalized or self.grammar is not None

    @property
    def is_finished(self) -> bool:
        return self.status is SequenceStatus.FINISHED

    def append(self, token_id: int) -> None:
        """Take a sampled token; it or a limit may give a reason to finish."""
        self.token_ids.append(token_id)
        if self.content_ids is not self.token_ids:
            self.content_ids.append(token_id)
        if self.output_counts is not None:
            self.output_counts[token_id] += 1
        if token_id in self.request.stop_ids:
            self.stop_token_id = token_id
            self.finish_reason = "stop"
            return
        if self.grammar is not None:
            self.grammar.consume(token_id)
            self._drop_grammar()
        self.finish_reason = self.end

    def _drop_grammar(self) -> None:
        if self.grammar is not None and self.grammar.is_over:
            self.grammar = None

    @property
    def end(self) -> FinishReason | None:
        """Why no token may follow those there are, if none may."""
        if self.grammar is not None and self.grammar.is_finished:
            return "stop"
        return "length" if len(self.token_ids) >= self.request.max_len else None

    @property
    def has_failed(self) -> bool:
        """Whether no token can be found that its grammar allows."""
        return self.grammar is not None and bool(self.grammar.error)
