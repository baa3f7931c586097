import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenapi.text.output.json_scanner import JsonScanner

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)


def scan(text: str, pieces: list[str] | None = None) -> tuple[str, int, bool, bool]:
    scanner = JsonScanner()
    num_read = sum(scanner.feed(piece) for piece in pieces or [text])
    return scanner.give_up(), num_read, scanner.is_complete, scanner.is_broken


@settings(max_examples=200, deadline=None)
@given(json_values, st.booleans(), st.sampled_from([None, 1]))
def test_json_passes_unchanged(value: object, ensure_ascii: bool, indent: int | None) -> None:
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)
    assert scan(text + ",") == (text, len(text), True, False)
    assert scan(text, list(text + ",")) == (text, len(text), True, False)


@settings(max_examples=200, deadline=None)
@given(st.text('{}[]",:\\u0123e-.tn \n\x01'))
def test_what_is_complete_always_parses(text: str) -> None:
    output, num_read, is_complete, _ = scan(text)
    assert scan(text, list(text)) == scan(text)
    if is_complete:
        json.loads(output)


@pytest.mark.parametrize(
    ("text", "num_read"),
    [
        ("{]", 1),
        ("[1 2", 3),
        ('{"a" 1', 5),
        ('{"a":1,}', 7),
        ("[1,]", 3),
        ("tru ", 3),
        ("01 ", 2),
        ("}", 0),
    ],
)
def test_it_breaks_at_the_exact_character(text: str, num_read: int) -> None:
    output, read, is_complete, is_broken = scan(text)
    assert (output, read, is_complete, is_broken) == (text[:num_read], num_read, False, True)


@pytest.mark.parametrize(
    ("text", "closed"),
    [
        ('{"a": [1', '{"a": [1]}'),
        ("[{", "[{}]"),
        ("[", "[]"),
        ('{"a": "b', None),
        ('{"a":', None),
        ('{"a"', None),
        ("[1,", None),
        ("[tru", None),
    ],
)
def test_only_brackets_are_closed(text: str, closed: str | None) -> None:
    scanner = JsonScanner()
    scanner.feed(text)
    assert scanner.close() is (closed is not None)
    assert closed is None or scanner.drain() == closed
