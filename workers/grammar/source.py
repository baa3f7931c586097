"""Write the text that llguidance compiles for a Grammar of the wire.

Knows the kinds, and that a gap may follow a thought. Refuses to know tokens and what compiles.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from workers.grammar.calendar_dates import keep_to_calendar
from workers.grammar.errors import GrammarError
from workers.wire.grammar import MAX_GRAMMAR_BYTES, Grammar

# Between two parts of JSON: a space, or a line break and what indents the next line. Without an
# upper bound a model can lose itself in blanks.
_WHITESPACE = r"[ ]|\n[ \t]{0,40}"
_JSON_OPTIONS = json.dumps({"whitespace_pattern": _WHITESPACE})
# Templates put an empty line behind </think>.
_AFTER_THOUGHT = json.dumps("start: @answer | GAP @answer\nGAP: /\\n{1,2}/\n")


# What is quoted in Lark, between slashes or behind a comment's sign, and else a token's name.
_QUOTED_OR_NAME = re.compile(
    r"""("(?:\\.|[^"\\\n])*"|//[^\n]*|\#[^\n]*|/(?:\\.|[^/\\\n])+/)|<[^\s<>\[\]]+>"""
)


def source_of(grammar: Grammar, token_ids: Mapping[str, int]) -> str:
    """Return the text to compile; raise GrammarError for what is no grammar of its kind.

    `token_ids` has the tokens that Lark may name, `<tool_call>` for example.
    """
    if len(grammar.text) > MAX_GRAMMAR_BYTES or len(_utf8(grammar.text)) > MAX_GRAMMAR_BYTES:
        raise GrammarError(f"the grammar is longer than {MAX_GRAMMAR_BYTES} bytes")
    body = (
        _json_schema(grammar.text) if grammar.kind == "json_schema" else _lark(grammar, token_ids)
    )
    if not grammar.thought_end_ids:
        return f'{{"grammars": [{{{body}}}]}}'
    return f'{{"grammars": [{{"lark_grammar": {_AFTER_THOUGHT}}}, {{"name": "answer", {body}}}]}}'


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise GrammarError("the grammar cannot be used: it holds half a character") from error


def _json_schema(text: str) -> str:
    schema = _decoded(text, "a JSON Schema")
    if schema is True:
        schema, text = {}, "{}"
    if not isinstance(schema, dict):
        raise GrammarError("the grammar cannot be used: a JSON Schema must be an object")
    if keep_to_calendar(schema):
        text = _encoded(schema)
    if "x-guidance" in schema:
        return f'"json_schema": {text}'
    rest = text.strip()[1:]
    comma = "," if schema else ""
    return f'"json_schema": {{"x-guidance": {_JSON_OPTIONS}{comma}{rest}'


def _lark(grammar: Grammar, token_ids: Mapping[str, int]) -> str:
    match grammar.kind:
        case "regex":
            lark = _regex(grammar.text)
        case "choice":
            lark = _choice(grammar.text)
        case "any":
            lark = "start: /(.|\\n)*/"
        case _:
            lark = _by_number(grammar.text, token_ids)
            if not lark.strip():
                raise GrammarError("the grammar cannot be used: it is empty")
    return f'"lark_grammar": {json.dumps(lark)}'


def _by_number(lark: str, token_ids: Mapping[str, int]) -> str:
    """Name tokens by their numbers: see TokenizerFile."""

    def number(found: re.Match[str]) -> str:
        token_id = None if found[1] else token_ids.get(found[0])
        return found[0] if token_id is None else f"<[{token_id}]>"

    return _QUOTED_OR_NAME.sub(number, lark)


def _regex(text: str) -> str:
    from llguidance import regex_to_lark

    return f"start: /{regex_to_lark(text)}/"


def _choice(text: str) -> str:
    choices = _decoded(text, "a list of choices")
    if not isinstance(choices, list) or not choices or not all(isinstance(c, str) for c in choices):
        raise GrammarError("the grammar cannot be used: choices must be strings, at least one")
    return "start: " + " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices)


def _decoded(text: str, what: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (ValueError, RecursionError) as error:
        raise GrammarError(f"the grammar cannot be used: {what} must be JSON: {error}") from error


def _encoded(schema: dict[str, Any]) -> str:
    try:
        return json.dumps(schema)
    except RecursionError as error:
        raise GrammarError("the grammar cannot be used: it is nested too deeply") from error
