import ast
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenapi.text.output.python_literal import to_json

leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(),
)
values = st.recursive(
    leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=12
)


@settings(max_examples=200, deadline=None)
@given(values)
def test_what_python_prints_is_read_back(value: object) -> None:
    text = to_json(repr(value))
    assert text is not None
    assert json.loads(text) == value == ast.literal_eval(repr(value))


@settings(max_examples=200, deadline=None)
@given(values)
def test_json_stays_the_same_value(value: object) -> None:
    assert json.loads(to_json(json.dumps(value)) or "?") == value


@pytest.mark.parametrize(
    ("literal", "value"),
    [
        (r"'\x41\u00e9\U0001f600\\\t\q'", "Aé😀\\\t\\q"),
        ("'a\\\nb'", "ab"),
        (r"'\Uffffffff'", "\\Uffffffff"),
        ("[1, ]", [1]),
        ("{'a': 1,\n}", {"a": 1}),
    ],
)
def test_spellings_of_python(literal: str, value: object) -> None:
    assert json.loads(to_json(literal) or "?") == value


@pytest.mark.parametrize(
    "text", ["f()", "(1, 2)", "a", "'open", "1 + 1", "b'x'", "{1, 'a'} | x", "nan"]
)
def test_nothing_else_is_a_literal(text: str) -> None:
    assert to_json(text) is None
