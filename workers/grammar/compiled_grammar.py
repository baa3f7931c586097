"""CompiledGrammar: what the compiler hands out, and every choice of a request starts from."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llguidance import LLMatcher


@dataclass(eq=False)
class CompiledGrammar:
    """A matcher at the grammar's start, to be copied for each choice.

    Copies share what they learn of the lexer. Should that reach its limit, all of them fail: the
    grammar is spoiled, and its next user has a new one.
    """

    matcher: "LLMatcher"
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    is_spoiled: bool = False
