"""The JSON-Schema-Test-Suite's cases of draft 2020-12 that can be enforced, each checked both ways.

json_schema_suite.json has those of the suite in jsonschema 4.26.0's source that compile; the rest,
of keywords such as `not` and `if`, is refused by name (test_compiler.py).
"""

import json
from pathlib import Path

import pytest

from tests.grammar.conftest import DEMO, DEMO_SIZE, IM_END
from workers.grammar.compile import compile_source
from workers.grammar.source import source_of
from workers.grammar.tokenizer_file import TokenizerFile
from workers.wire.grammar import Grammar

CASES = json.loads(Path(__file__).with_name("json_schema_suite.json").read_text("utf-8"))
# Valid values that a model is not given to write: nothing it can write is invalid.
NARROWER = {
    ("allOf", "allOf"): "properties come in the schema's order",
    ("allOf", "valid"): "properties come in the schema's order",
    ("const", "same object with different property order is valid"): "the constant's order",
    ("const", "float zero is valid"): "numbers of const and enum are written as there",
    ("const", "float one is valid"): "numbers of const and enum are written as there",
    ("const", "float -2.0 is valid"): "numbers of const and enum are written as there",
    ("const", "float is valid"): "numbers of const and enum are written as there",
    ("enum", "float zero is valid"): "numbers of const and enum are written as there",
    ("enum", "[0.0] is valid"): "numbers of const and enum are written as there",
    ("enum", "float one is valid"): "numbers of const and enum are written as there",
    ("enum", "[1.0] is valid"): "numbers of const and enum are written as there",
    ("type", "a float with zero fractional part is an integer"): "integers have no fraction",
    ("ref", "valid on both fields"): "properties come in the schema's order",
}


@pytest.fixture(scope="module")
def loaded():
    return TokenizerFile(str(DEMO), DEMO_SIZE, (IM_END,)).load()


def accepts(loaded, matcher, value):
    text = json.dumps(value, ensure_ascii=False)
    ids = loaded.tokenizer.tokenize_str(text)
    asked = matcher.deep_copy()
    return asked.try_consume_tokens(ids) == len(ids) and asked.is_accepting()


def is_narrower(keyword, description):
    is_format = keyword == "format" and "only an annotation" in description  # we enforce them
    return is_format or (keyword, description) in NARROWER


@pytest.mark.parametrize("keyword", sorted({case["keyword"] for case in CASES}))
def test_what_is_valid_is_allowed_and_what_is_not_is_not(loaded, keyword):
    wrong = []
    for case in CASES:
        if case["keyword"] != keyword:
            continue
        grammar = Grammar(kind="json_schema", text=json.dumps(case["schema"]))
        matcher = compile_source(loaded.tokenizer, source_of(grammar, loaded.token_ids))
        for test in case["tests"]:
            is_allowed = accepts(loaded, matcher, test["data"])
            expected = test["valid"] and not is_narrower(keyword, test["description"])
            if is_allowed and not test["valid"] or expected and not is_allowed:
                wrong.append((case["description"], test["description"], is_allowed))
    assert not wrong


def test_enough_is_checked():
    assert sum(len(case["tests"]) for case in CASES) > 500
