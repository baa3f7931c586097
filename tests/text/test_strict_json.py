import contextlib
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenapi.text.errors import JsonError
from qwenapi.text.strict_json import (
    MAX_DEPTH,
    MAX_NODES,
    MAX_STRING_BYTES,
    parse_object,
)

REFUSED = {
    "200k nested arrays": b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    "90k nested arrays": b'{"a":' + b"[" * 90_000 + b"]" * 90_000 + b"}",
    "50k nested objects": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "one level too deep": b'{"a":' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}",
    "5000-digit int": b'{"a":' + b"1" * 5000 + b"}",
    "33-digit int": b'{"a":' + b"1" * 33 + b"}",
    "33-digit negative int": b'{"a":-' + b"1" * 33 + b"}",
    "33-digit float": b'{"a":0.' + b"1" * 33 + b"}",
    "4 MiB of digits": b'{"a":0.' + b"1" * 4_000_000 + b"}",
    "NaN": b'{"a":NaN}',
    "Infinity": b'{"a":Infinity}',
    "-Infinity": b'{"a":-Infinity}',
    "1e999": b'{"a":1e999}',
    "-1e999": b'{"a":-1e999}',
    "duplicate key": b'{"a":1,"a":1}',
    "duplicate key, escaped": b'{"a":1,"\\u0061":1}',
    "duplicate key, nested": b'{"a":[{"b":1,"b":2}]}',
    "lone high surrogate": b'{"a":"\\ud800"}',
    "lone low surrogate": b'{"a":"\\udc00"}',
    "lone surrogate in a key": b'{"\\ud800":1}',
    "surrogate in UTF-8": b'{"a":"\xed\xa0\x80"}',
    "NUL in a key": b'{"a\\u0000":1}',
    "bare NUL": b'{"a":"\x00"}',
    "bare control character": b'{"a":"\n"}',
    "invalid UTF-8": b'{"a":"\xff"}',
    "overlong UTF-8": b'{"a":"\xc0\xaf"}',
    "UTF-16": '{"a":1}'.encode("utf-16"),
    "UTF-16 without mark": '{"a":1}'.encode("utf-16-le"),
    "UTF-32": '{"a":1}'.encode("utf-32-be"),
    "byte order mark": b'\xef\xbb\xbf{"a":1}',
    "top-level array": b"[]",
    "top-level string": b'"a"',
    "top-level null": b"null",
    "top-level number": b"1",
    "trailing bytes": b'{"a":1} x',
    "two objects": b"{}{}",
    "trailing comma": b'{"a":1,}',
    "comment": b'{"a":1/**/}',
    "single quotes": b"{'a':1}",
    "hex": b'{"a":0x10}',
    "leading zero": b'{"a":01}',
    "plus sign": b'{"a":+1}',
    "empty": b"",
    "blank": b"  ",
    "cut off": b'{"a":"b',
    "too many values": b'{"a":[' + b"1," * MAX_NODES + b"1]}",
    "too many empty arrays": b'{"a":[' + b"[]," * 1_300_000 + b"1]}",
    "string too long": b'{"a":"' + b"x" * (MAX_STRING_BYTES + 1) + b'"}',
    "string too long in bytes": json.dumps(
        {"a": "你" * (MAX_STRING_BYTES // 3 + 1)}, ensure_ascii=False
    ).encode(),
    "unclosed string of escapes": b'{"a":"' + b'\\"' * 2_000_000,
    "4 MB of quotes": b'"' * 4_000_000,
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_strict_json_is_refused_fast(name: str) -> None:
    started = time.process_time()
    with pytest.raises(JsonError) as caught:
        parse_object(REFUSED[name])
    assert time.process_time() - started < 0.05
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (b"{}", {}),
        (b' {"a" : -0 }\n', {"a": 0}),
        (b'{"a":1e5,"b":-0.0,"c":1E-400}', {"a": 1e5, "b": 0.0, "c": 0.0}),
        (b'{"a":"\\ud83d\\ude00","b":"\xf0\x9f\x98\x80"}', {"a": "😀", "b": "😀"}),
        (b'{"a":"x\\u0000y","":[null,true,false]}', {"a": "x\0y", "": [None, True, False]}),
        (b'{"a":' + b"9" * 32 + b"}", {"a": int("9" * 32)}),
        (b'{"a":18446744073709551616}', {"a": 2**64}),
    ],
)
def test_strict_json_keeps_its_values(raw: bytes, value: dict[str, object]) -> None:
    assert parse_object(raw) == value


def test_the_deepest_nesting_allowed_is_read() -> None:
    depth = MAX_DEPTH - 1
    assert parse_object(b'{"a":' + b"[" * depth + b"1" + b"]" * depth + b"}")


def test_commas_inside_strings_are_not_values() -> None:
    text = ',[{"\\' * 300_000
    assert parse_object(json.dumps({"a": text, "b": [1]}).encode()) == {"a": text, "b": [1]}


def test_a_body_at_the_limit_of_values_is_read() -> None:
    raw = b'{"a":[' + b"1," * (MAX_NODES - 3) + b"1]}"
    assert len(parse_object(raw)["a"]) == MAX_NODES - 2


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False,
    allow_infinity=False) | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(
        st.characters(exclude_categories=["Cs"], exclude_characters="\0")), inner, max_size=5),
    max_leaves=20,
)  # fmt: skip


@given(json_values, st.booleans())
def test_what_python_writes_is_read_back(value: object, ascii_only: bool) -> None:
    assert parse_object(json.dumps({"v": value}, ensure_ascii=ascii_only).encode()) == {"v": value}


@given(st.binary(max_size=60))
def test_any_bytes_end_in_an_object_or_a_refusal(raw: bytes) -> None:
    with contextlib.suppress(JsonError):
        assert isinstance(parse_object(raw), dict)
