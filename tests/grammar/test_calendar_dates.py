"""A date that an answer's schema asks for is a day of the calendar."""

import json
from datetime import date, timedelta

import pytest
from llguidance import LLMatcher, LLTokenizer

from tests.grammar.conftest import DEMO
from workers.grammar.errors import GrammarError
from workers.grammar.source import source_of
from workers.wire.grammar import Grammar


@pytest.fixture(scope="module")
def takes():
    tokenizer = LLTokenizer(str(DEMO))

    def taken(schema, value):
        text = json.dumps(schema)
        matcher = LLMatcher(tokenizer, source_of(Grammar(kind="json_schema", text=text), {}))
        assert not matcher.is_error(), matcher.get_error()
        tokens = tokenizer.tokenize_str(json.dumps(value))
        return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()

    return taken


def test_a_date_is_a_day_of_the_calendar(takes):
    day = {"type": "string", "format": "date"}
    first = date(1896, 1, 1)
    days = {str(first + timedelta(days=number)) for number in range(0, 3000, 7)}
    days |= {f"{year}-02-29" for year in (1600, 1996, 2000, 2024, 4680)}
    assert all(takes(day, value) for value in days)
    for year in (1700, 1900, 2023, 2025, 2026, 2100, 4678):
        assert not takes(day, f"{year}-02-29")
    assert not takes(day, "2024-02-30") and not takes(day, "2024-04-31")


def test_the_day_of_a_time_too(takes):
    moment = {"type": ["string", "null"], "format": "date-time"}
    assert takes(moment, "2024-02-29T23:59:60.5+01:00") and takes(moment, None)
    assert not takes(moment, "2023-02-29T10:00:00Z")


@pytest.mark.parametrize(
    ("schema", "wrap"),
    [
        ({"properties": {"format": "DAY"}, "required": ["format"]}, lambda day: {"format": day}),
        ({"type": "array", "items": "DAY"}, lambda day: [day]),
        ({"type": "array", "prefixItems": ["DAY"], "items": False}, lambda day: [day]),
        ({"anyOf": [{"type": "null"}, "DAY"]}, lambda day: day),
        ({"$ref": "#/$defs/day", "$defs": {"day": "DAY"}}, lambda day: day),
        ({"type": "object", "additionalProperties": "DAY"}, lambda day: {"any": day}),
    ],
)
def test_wherever_in_a_schema_it_stands(takes, schema, wrap):
    for own in ({}, {"pattern": "^20"}, {"allOf": [{"pattern": "^20"}]}):
        day = json.dumps({"type": "string", "format": "date"} | own)
        asked = json.loads(json.dumps(schema).replace('"DAY"', day))
        assert takes(asked, wrap("2024-02-29"))
        assert not takes(asked, wrap("2023-02-29"))
        assert takes(asked, wrap("1996-02-29")) == (own == {})


def test_what_is_no_schema_is_left_as_it_is():
    values = {"enum": [{"format": "date"}], "format": ["date"], "default": {"format": "date"}}
    text = json.dumps(values)
    assert text[1:] in source_of(Grammar(kind="json_schema", text=text), {})


def test_one_nested_without_end_is_refused():
    text = '{"items": ' * 900 + '{"format": "date"}' + "}" * 900
    with pytest.raises(GrammarError, match="nested too deeply|must be JSON"):
        for _ in range(60):
            text = f'{{"items": {text}}}'
            source_of(Grammar(kind="json_schema", text=text), {})
        pytest.fail("taken")
