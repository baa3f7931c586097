from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenapi.text.detokenizer import Detokenizer
from qwenapi.text.stop_matcher import StopAutomaton
from qwenapi.text.text_stream import TextDelta, TextStream
from qwenapi.text.tokenizer import Tokenizer

TEXTS = (
    "你好，世界。今天天气很好！",
    "👩‍💻👨‍👩‍👧‍👦🏳️‍🌈 e\u0301 \u200d",
    "def f(x):\n\treturn x  # été\n\n\n",
    "<think>\nhm\n</think>\n\n𝔘𝔫𝔦𝔠𝔬𝔡𝔢",
    "Ġ Ċ é o Ġ",
)


def text_of(tokenizer: Tokenizer, ids: list[int], cuts: list[int], skip: bool) -> str:
    detokenizer = Detokenizer(tokenizer, skip)
    ends = [*sorted(cut for cut in cuts if cut < len(ids)), len(ids)]
    out, start = "", 0
    for end in ends:
        out += detokenizer.push(ids[start:end])
        start = end
    return out + detokenizer.finish()


@pytest.mark.parametrize("text", TEXTS)
def test_token_by_token_the_text_is_whole_and_has_no_replacement(
    small: Tokenizer, text: str
) -> None:
    detokenizer = Detokenizer(small)
    pieces = [detokenizer.push([i]) for i in small.encode(text)]
    assert "".join(pieces) == text and detokenizer.finish() == ""
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_character_waits_for_its_last_byte(small: Tokenizer) -> None:
    ids = bytes_ids(small, "😀".encode())
    detokenizer = Detokenizer(small)
    assert [detokenizer.push([i]) for i in ids] == ["", "", "", "😀"]


def test_a_character_cut_off_by_the_end_becomes_a_replacement(small: Tokenizer) -> None:
    detokenizer = Detokenizer(small)
    assert detokenizer.push(bytes_ids(small, "你".encode()[:2])) == ""
    assert detokenizer.finish() == "\ufffd"


def test_after_invalid_bytes_the_text_goes_on(small: Tokenizer) -> None:
    ids = bytes_ids(small, b"\xff\xe4\xbd" + "好a".encode())
    assert text_of(small, ids, list(range(len(ids))), True) == "\ufffd\ufffd好a"


@given(raw=st.binary(max_size=40), cuts=st.lists(st.integers(0, 40)))
def test_any_bytes_in_any_pieces_decode_as_one(
    small: Tokenizer, raw: bytes, cuts: list[int]
) -> None:
    assert text_of(small, bytes_ids(small, raw), cuts, True) == raw.decode("utf-8", "replace")


@settings(max_examples=200, deadline=None)
@given(
    ids=st.lists(st.integers(0, 151_935) | st.integers(94, 350), max_size=30),
    cuts=st.lists(st.integers(0, 30)),
    skip=st.booleans(),
)
def test_any_split_of_real_ids_gives_the_text_of_all(
    qwen: Callable[[str], Tokenizer], ids: list[int], cuts: list[int], skip: bool
) -> None:
    tokenizer = qwen("Qwen3-0.6B")
    whole = tokenizer._backend.decode(ids, skip_special_tokens=skip)
    assert text_of(tokenizer, ids, cuts, skip) == whole


@settings(max_examples=100, deadline=None)
@given(text=st.text() | st.sampled_from(TEXTS), cuts=st.lists(st.integers(0, 30)))
def test_real_text_survives_the_way_there_and_back(
    qwen: Callable[[str], Tokenizer], text: str, cuts: list[int]
) -> None:
    tokenizer = qwen("Qwen3-0.6B")
    ids = tokenizer.encode(text)
    assert text_of(tokenizer, ids, cuts, False) == tokenizer._backend.decode(
        ids, skip_special_tokens=False
    )


def test_special_tokens_are_text_only_when_asked(small: Tokenizer) -> None:
    ids = small.encode("a<|im_end|>")
    assert Detokenizer(small).push(ids) == "a"
    assert Detokenizer(small, skip_special_tokens=False).push(ids) == "a<|im_end|>"


def test_a_stream_ends_at_its_stop(small: Tokenizer) -> None:
    stream = TextStream(small, StopAutomaton(["User:"]))
    assert stream.push(small.encode("the cat Us")) == TextDelta("the cat ", False)
    assert stream.push(small.encode("er: hi")) == TextDelta("", True)
    assert stream.push(small.encode("more")) == TextDelta("", True)
    assert stream.finish() == TextDelta("", True)


def test_a_stream_releases_what_was_held_when_it_ends(small: Tokenizer) -> None:
    stream = TextStream(small, StopAutomaton(["User:"]))
    assert stream.push([*small.encode("Us"), *bytes_ids(small, b"\xe4")]) == TextDelta("", False)
    assert stream.finish() == TextDelta("Us\ufffd", False)


def test_the_first_min_tokens_cannot_stop(small: Tokenizer) -> None:
    stop = bytes_ids(small, b"x")
    stream = TextStream(small, StopAutomaton(["x"]), min_tokens=3)
    assert stream.push(stop * 2) == TextDelta("xx", False)
    assert stream.push([*stop, *bytes_ids(small, b"ax")]) == TextDelta("xa", True)


def bytes_ids(tokenizer: Tokenizer, raw: bytes) -> list[int]:
    """The ids of single bytes, whatever merges the vocabulary has."""
    by_bytes = {tokenizer.token_bytes[i]: i for i in range(tokenizer.vocab_size)}
    return [by_bytes[raw[i : i + 1]] for i in range(len(raw))]
