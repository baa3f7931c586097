import contextlib
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenapi.text.errors import JsonError
from qwenapi.text.strict_json import (
    MAX_DEPTH,
    MAX_VALUES,
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
    "4 MiB of opened arrays": b'{"a":' + b"[" * 4_194_000,
    "4 MiB of opened objects": b'{"a":' * 838_000,
    "too many strings": b'{"a":[' + b'"",' * MAX_VALUES + b"1]}",
    "too many floats": b'{"a":[' + b"0.5," * MAX_VALUES + b"1]}",
    "too many floats without a point": b'{"a":[' + b"1E5," * MAX_VALUES + b"1]}",
    "too many nulls": b'{"a":[' + b"null," * MAX_VALUES + b"1]}",
    "too many booleans": b'{"a":[' + b"true,false," * (MAX_VALUES // 2) + b"1]}",
    "too many fields": b"{" + b",".join(b'"%d":1' % i for i in range(400_000)) + b"}",
    "too many empty arrays": b'{"a":[' + b"[]," * 1_300_000 + b"1]}",
    "an integer too long among token ids": b'{"a":[' + b"1," * 1000 + b"1" * 33 + b"]}",
    "unclosed string of escapes": b'{"a":"' + b'\\"' * 2_000_000,
    "4 MB of quotes": b'"' * 4_000_000,
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_strict_json_is_refused_fast(name: str) -> None:
    started = time.process_time()
    with pytest.raises(JsonError) as caught:
        parse_object(REFUSED[name])
    assert time.process_time() - started < 0.2
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
    raw = b'{"a":[' + b'"",' * (MAX_VALUES - 4) + b"1]}"
    assert len(parse_object(raw)["a"]) == MAX_VALUES - 3


@pytest.mark.parametrize(
    ("raw", "size"),
    [
        (b'{"prompt":[' + b"9707," * 100_500 + b"1]}", 100_501),
        (b'{"prompt":[' + b"1," * 2_000_000 + b"1]}", 2_000_001),
        (b'{"prompt":[[' + b"151643," * 300_000 + b"1],[" + b"-1," * 300_000 + b"1]]}", 2),
        (b'{"prompt":"' + b"x" * 4_000_000 + b'"}', 4_000_000),
        (('{"prompt":"' + "你" * 1_300_000 + '"}').encode(), 1_300_000),
        (b'{"prompt":"' + b"\\u4f60" * 600_000 + b'"}', 600_000),
        (b'{"prompt":"' + b"{[,1.e" * 600_000 + b'"}', 3_600_000),
    ],
    ids=["ids", "digits", "lists of ids", "text", "Chinese", "escapes", "marks in a text"],
)
def test_token_ids_and_texts_are_as_long_as_the_body_may_be(raw: bytes, size: int) -> None:
    started = time.process_time()
    assert len(parse_object(raw)["prompt"]) == size
    assert time.process_time() - started < 0.5


def test_a_larger_body_may_hold_more_values() -> None:
    one = b'{"type":"text","text":"a longer sentence"}'
    raw = b'{"a":[' + b",".join([one] * 30_000) + b"]}"
    with pytest.raises(JsonError):
        parse_object(raw)
    assert len(parse_object(raw + b" " * 6_000_000)["a"]) == 30_000


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
