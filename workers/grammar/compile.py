"""From a grammar's text to a matcher by llguidance, within limits, and whether it is fast enough.

Knows llguidance. Refuses to know processes and threads: `trials.py` calls this where a crash or an
endless compilation hurts nobody, `compiler.py` where the engine is.
"""

import random
import time
from typing import TYPE_CHECKING

from workers.grammar.errors import GrammarError, explain

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

# A compiler's recursion follows the grammar's. What is not touched of a stack costs nothing.
STACK_BYTES = 512 * 1024 * 1024
# Its states take 1 to 2 kB each, and stay as long as the grammar does.
_MAX_LEXER_STATES = 50_000
# Masks are computed between steps: a grammar is refused for which one of them, or all of a walk of
# so many tokens, take longer. Of processor time, so that a crowded machine refuses no more.
MAX_MASK_SECONDS = 0.1
MAX_WALK_SECONDS = 0.5
_WALK_TOKENS = 32


def compile_source(tokenizer: "LLTokenizer", source: str) -> "LLMatcher":
    """Return a matcher at a grammar's start; raise GrammarError if there can be none."""
    from llguidance import LLMatcher, LLParserLimits

    limits = LLParserLimits(max_lexer_states=_MAX_LEXER_STATES, verbose_errors=False)
    matcher = LLMatcher(tokenizer, source, log_level=0, limits=limits)
    matcher.compute_bitmask()  # what allows no first token shows only here
    if matcher.is_error():
        raise explain(matcher.get_error())
    return matcher


def walk(matcher: "LLMatcher", seed: int = 0) -> None:
    """Take some of the tokens a grammar allows; raise GrammarError if that is slow or fails."""
    chosen = random.Random(seed)
    total = 0.0
    for number in range(_WALK_TOKENS):
        started = time.thread_time()
        mask = matcher.compute_bitmask()
        seconds = time.thread_time() - started
        total += seconds
        if seconds > MAX_MASK_SECONDS or total > MAX_WALK_SECONDS:
            raise GrammarError(
                "the grammar cannot be used: to find what may follow a token takes"
                f" {1000 * seconds:.0f} ms"
            )
        if matcher.is_stopped():
            break
        matcher.consume_token(_pick(mask, chosen))
        if number == 0 and not (matcher.rollback(1) and matcher.consume_token(_pick(mask, chosen))):
            break
    if matcher.is_error():
        raise explain(matcher.get_error())


def _pick(mask: bytes, chosen: random.Random) -> int:
    """Return one of the mask's tokens, near a random place."""
    start = chosen.randrange(len(mask))
    at = next(i % len(mask) for i in range(start, start + len(mask)) if mask[i % len(mask)])
    return 8 * at + chosen.choice([bit for bit in range(8) if mask[at] >> bit & 1])
