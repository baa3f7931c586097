"""GrammarState: where one choice stands in its grammar, or in the thought before it.

Knows the tokens of the answer so far. Refuses to know tensors and schedules. It is moved on by
tokens that are certain; drafts are only asked about.

    ── output begins ──► thought (free text) ── </think> ──► grammar ──► finished
           └──────────────── no thought, or none opened ───────┘
"""

from typing import TYPE_CHECKING

from workers.grammar.compiled_grammar import CompiledGrammar
from workers.wire.grammar import Grammar

if TYPE_CHECKING:
    from llguidance import LLMatcher


class GrammarState:
    """The state of one choice; `error` says why its grammar cannot be followed any more."""

    def __init__(self, compiled: CompiledGrammar, grammar: Grammar) -> None:
        self.compiled = compiled
        self.matcher: LLMatcher = compiled.matcher.deep_copy()
        self.error = ""
        self._end_ids = grammar.thought_end_ids
        self._newest: tuple[int, ...] = ()  # of a thought, as many as its end has
        self.is_thinking = bool(self._end_ids) and grammar.thought_start_id is None
        self.is_free = grammar.kind == "any"  # behind the thought
        self._num_left = grammar.max_thought_tokens
        # The token that opens a thought, as long as it may be the next.
        self.opening_id = grammar.thought_start_id if self._end_ids else None

    @property
    def is_finished(self) -> bool:
        """Whether the answer is whole and nothing can follow."""
        return not self.is_free and self.constrains and self.matcher.is_stopped()

    @property
    def constrains(self) -> bool:
        """Whether the matcher says what may come next."""
        return not self.is_thinking and not self.error

    @property
    def is_over(self) -> bool:
        """Whether nothing is asked of the tokens to come."""
        return self.is_free and not self.is_thinking and self.opening_id is None

    @property
    def due(self) -> tuple[int, ...]:
        """The tokens that must end the thought now, as it is as long as it may be."""
        if not self.is_thinking or self._num_left is None or self._num_left > 0:
            return ()
        known = next(
            size
            for size in range(min(len(self._newest), len(self._end_ids)), -1, -1)
            if self._newest[len(self._newest) - size :] == self._end_ids[:size]
        )
        return self._end_ids[known:]

    def consume(self, token_id: int) -> None:
        """Take the answer's next token, which does not stop it."""
        opening_id, self.opening_id = self.opening_id, None
        if self.is_thinking:
            self._newest = (*self._newest, token_id)[-len(self._end_ids) :]
            self.is_thinking = self._newest != self._end_ids
            if self._num_left:
                self._num_left -= 1
        elif token_id == opening_id:
            self.is_thinking = True
        elif not self.is_free and not self.error and not self.matcher.consume_token(token_id):
            self.fail(self.matcher.get_error() or f"token {token_id} is not allowed")

    def fail(self, error: str) -> None:
        """Note why the grammar cannot be followed; the caller ends the request."""
        self.error = error
        self.compiled.is_spoiled = True

    def forced(self, limit: int) -> tuple[int, ...]:
        """Return the next tokens as far as there is no choice, at most `limit`."""
        if due := self.due:
            return due[:-1][:limit]  # the last is sampled, by a mask that allows nothing else
        if limit <= 0 or not self.constrains or self.is_free or self.opening_id is not None:
            return ()
        return tuple(self.matcher.compute_ff_tokens()[:limit])

    def allowed(self, drafts: tuple[int, ...]) -> tuple[int, ...]:
        """Return as many of the drafts as may follow; none that ends a thought."""
        if not drafts or self.error or self.opening_id is not None or self.due:
            return ()
        if self.is_thinking and self._num_left is not None:
            drafts = drafts[: max(0, self._num_left - 1)]
        if not self.is_thinking:
            return drafts[: self.matcher.validate_tokens(list(drafts))]
        newest = self._newest
        for index, token_id in enumerate(drafts):
            newest = (*newest, token_id)[-len(self._end_ids) :]
            if newest == self._end_ids or token_id in self.compiled.eos_token_ids:
                return drafts[:index]
        return drafts
