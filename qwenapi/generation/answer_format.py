"""AnswerFormat: what a request's `response_format` asks for, as a grammar for the engine."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from qwenapi.text.errors import GrammarShapeError
from qwenapi.text.grammars import structural_tag
from qwenapi.text.tokenizer import Tokenizer
from workers.wire.grammar import MAX_GRAMMAR_BYTES, Grammar


@dataclass(frozen=True)
class StructuralTag:
    """Free text with tagged parts, of a shape that was checked."""

    value: Mapping[str, Any]


AnswerFormat = Grammar | StructuralTag


def grammar_for(format: AnswerFormat | None, tokenizer: Tokenizer) -> Grammar | None:
    """Return the grammar to send to an engine that has this tokenizer."""
    if isinstance(format, StructuralTag):
        text = structural_tag(format.value, tokenizer.added_tokens)
        return Grammar(kind="lark", text=text)
    return format


def schema_grammar(schema: Mapping[str, Any] | bool) -> Grammar:
    """Return the grammar of a JSON Schema; raise GrammarShapeError for one that is too large."""
    return sized(Grammar(kind="json_schema", text=orjson.dumps(schema).decode()))


def sized(grammar: Grammar) -> Grammar:
    """Return a grammar that an engine takes; raise GrammarShapeError for one that is too large."""
    if len(grammar.text.encode("utf-8", "surrogatepass")) > MAX_GRAMMAR_BYTES:
        raise GrammarShapeError(f"must take at most {MAX_GRAMMAR_BYTES} bytes")
    return grammar
