"""Grammar: what an answer must look like, as text that llguidance understands.

Knows kinds and where the grammar begins. Refuses to know llguidance: the engine process has it.
"""

from typing import Literal

import msgspec

MAX_GRAMMAR_BYTES = 1024 * 1024

# json_schema: the schema as JSON. regex: what the whole answer matches. choice: a JSON array of
# strings, one of which is the answer. lark: llguidance's dialect of Lark, with %json and <token>.
# any: free text, for who limits the thought alone.
GrammarKind = Literal["json_schema", "regex", "choice", "lark", "any"]


class Grammar(msgspec.Struct, frozen=True, array_like=True, gc=False, kw_only=True):
    """A grammar that every token of an answer keeps to.

    With `thought_end_ids` (the tokens of `</think>`) the answer begins inside a thought, which is
    free text, and the grammar begins after these tokens; up to two line breaks may stand between.
    With `thought_start_id` (the token `<think>`) besides, the prompt has not opened the thought:
    the answer's first token opens one or begins the grammar. Never both absent in a thinking model.
    A thought longer than `max_thought_tokens` is ended by these tokens.
    """

    kind: GrammarKind
    text: str
    thought_start_id: int | None = None
    thought_end_ids: tuple[int, ...] = ()
    max_thought_tokens: int | None = None
