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
        # The token that opens a thought, as long as it may be the next.
        self.opening_id = grammar.thought_start_id if self._end_ids else None

    @property
    def is_finished(self) -> bool:
        """Whether the answer is whole and nothing can follow."""
        return not self.is_thinking and not self.error and self.matcher.is_stopped()

    def consume(self, token_id: int) -> None:
        """Take the answer's next token, which does not stop it."""
        opening_id, self.opening_id = self.opening_id, None
        if self.is_thinking:
            self._newest = (*self._newest, token_id)[-len(self._end_ids) :]
            self.is_thinking = self._newest != self._end_ids
        elif token_id == opening_id:
            self.is_thinking = True
        elif not self.error and not self.matcher.consume_token(token_id):
            self.fail(self.matcher.get_error() or f"token {token_id} is not allowed")

    def fail(self, error: str) -> None:
        """Note why the grammar cannot be followed; the caller ends the request."""
        self.error = error
        self.compiled.is_spoiled = True

    def forced(self, limit: int) -> tuple[int, ...]:
        """Return the next tokens as far as there is no choice, at most `limit`."""
        if limit <= 0 or self.error or self.is_thinking or self.opening_id is not None:
            return ()
        return tuple(self.matcher.compute_ff_tokens()[:limit])

    def allowed(self, drafts: tuple[int, ...]) -> tuple[int, ...]:
        """Return as many of the drafts as may follow; none that ends a thought."""
        if not drafts or self.error or self.opening_id is not None:
            return ()
        if not self.is_thinking:
            return drafts[: self.matcher.validate_tokens(list(drafts))]
        newest = self._newest
        for index, token_id in enumerate(drafts):
            newest = (*newest, token_id)[-len(self._end_ids) :]
            if newest == self._end_ids or token_id in self.compiled.eos_token_ids:
                return drafts[:index]
        return drafts
