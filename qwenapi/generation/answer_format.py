"""AnswerFormat: the grammar of an answer's content, or what becomes one with a model's tokens."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qwenapi.text.grammars import structural_tag
from qwenapi.text.tokenizer import Tokenizer
from workers.wire.grammar import Grammar


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
