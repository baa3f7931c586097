import json
import random
import time
from collections.abc import Callable, Iterator
from itertools import chain, islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenapi.text.detokenizer import Detokenizer
from qwenapi.text.output.call_format import CallFormat
from qwenapi.text.output.events import Arguments, CallFinished, CallStarted, Reasoning, Text
from qwenapi.text.output.output_parser import OutputParser, thinking_of
from qwenapi.text.tokenizer import Tokenizer
from tests.text.output.outputs import (
    CALLS,
    FORMATS,
    MARKERS,
    NO_CALLS,
    TOOLS,
    Output,
    composed,
    cut,
    hermes,
    parse,
    refused,
    xml,
)

CALL = {
    "hermes": hermes("get_weather", '{"city": "Paris"}'),
    "xml": xml("get_weather", city="Paris"),
}
FOUND = ("get_weather", '{"city": "Paris"}')
formats = pytest.mark.parametrize("call_format", FORMATS)


@formats
def test_composed_outputs_come_out_as_composed(call_format: CallFormat) -> None:
    for output in composed(call_format):
        assert parse(output) == output.message, output.text
        assert not any(marker in output.content for marker in MARKERS)


@formats
def test_what_is_no_call_is_content_or_thought(call_format: CallFormat) -> None:
    for output in refused(call_format):
        assert parse(output) == output.message, output.text


@formats
def test_streamed_equals_whole_character_by_character(call_format: CallFormat) -> None:
    for output in chain(composed(call_format), refused(call_format), cut(call_format)):
        assert parse(output, list(output.text)) == parse(output), output.text


@formats
def test_streamed_equals_whole_at_every_split(call_format: CallFormat) -> None:
    outputs = chain(islice(composed(call_format), 0, None, 23), refused(call_format))
    for output in outputs:
        whole = parse(output)
        for at in range(1, len(output.text)):
            assert parse(output, [output.text[:at], output.text[at:]]) == whole, output.text[at:]


@formats
def test_streamed_equals_whole_at_random_splits(call_format: CallFormat) -> None:
    dice = random.Random(5)
    for output in chain(composed(call_format), refused(call_format), cut(call_format)):
        pieces = list(random_pieces(dice, output.text))
        assert parse(output, pieces) == parse(output), pieces


@formats
def test_streamed_equals_whole_token_by_token(
    qwen: Callable[[str], Tokenizer], call_format: CallFormat
) -> None:
    tokenizer = qwen("Qwen3-0.6B")
    for output in chain(islice(composed(call_format), 0, None, 5), refused(call_format)):
        detokenizer = Detokenizer(tokenizer)
        pieces = [detokenizer.push([id_]) for id_ in tokenizer.encode(output.text)]
        assert "".join(pieces) == output.text
        assert parse(output, pieces) == output.message, output.text


def random_pieces(dice: random.Random, text: str) -> Iterator[str]:
    at = 0
    while at < len(text):
        size = dice.choice((1, 1, 2, 3, 5, 8, 40))
        yield text[at : at + size]
        at += size


PIECES = [
    *(text for call_format in FORMATS for text, _ in CALLS[call_format][:3]),
    *(text for call_format in FORMATS for text in NO_CALLS[call_format]),
    *("<think>", "</think>", "<tool_call>", "</tool_call>", "<function=now>", "</function>"),
    *("<parameter=city>", "</parameter>", "<function=get_weather>\n<parameter=days>\n"),
    *('{"name": "now"', '"arguments": {', "}", "{", '"', "\\", '\\u00e9"', "\n", "  ", ",", ": [1"),
    *("```", "\n```\n", "~~~", "<", "</", "a < b", "字", "👀", "\r\n", "x" * 50, " " * 300),
]
texts = st.lists(st.sampled_from(PIECES), max_size=14).map("".join)
thinkings = st.sampled_from(["off", "possible", "open"])


@settings(max_examples=200, deadline=None)
@given(texts, st.sampled_from(FORMATS), thinkings, st.booleans(), st.randoms())
def test_the_result_depends_on_the_text_alone(
    text: str, call_format: CallFormat, thinking: str, is_cut: bool, dice: random.Random
) -> None:
    output = Output(text, call_format, thinking=thinking, is_cut=is_cut)
    whole = parse(output)
    assert parse(output, list(text)) == whole
    assert parse(output, list(random_pieces(dice, text))) == whole


@settings(max_examples=200, deadline=None)
@given(texts, st.sampled_from(FORMATS), thinkings, st.booleans())
def test_finished_calls_have_json_objects(
    text: str, call_format: CallFormat, thinking: str, is_cut: bool
) -> None:
    for call in parse(Output(text, call_format, thinking=thinking, is_cut=is_cut)).calls:
        assert call.name in TOOLS
        if call.is_finished:
            assert isinstance(json.loads(call.arguments), dict)


words = st.lists(
    st.one_of(st.sampled_from(PIECES), st.just("{word}")), min_size=1, max_size=20
).map("".join)


@settings(max_examples=200, deadline=None)
@given(words, st.sampled_from(FORMATS), thinkings, st.booleans())
def test_no_word_is_lost_or_doubled(
    text: str, call_format: CallFormat, thinking: str, is_cut: bool
) -> None:
    num_words = text.count("{word}")
    for number in range(num_words):
        text = text.replace("{word}", f"w{number}w", 1)
    message = parse(Output(text, call_format, thinking=thinking, is_cut=is_cut))
    arguments = [call.arguments for call in message.calls]
    said = "".join([message.content, message.reasoning, *arguments])
    missing = [n for n in range(num_words) if said.count(f"w{n}w") != 1]
    assert not missing, (missing, message)


@settings(max_examples=200, deadline=None)
@given(texts, thinkings)
def test_without_tools_all_is_prose(text: str, thinking: str) -> None:
    message = parse(Output(text, "hermes", thinking=thinking, tools={}))
    assert not message.calls
    if thinking == "off":
        assert message.content == text


@formats
@pytest.mark.parametrize(
    ("thinking", "text", "content", "reasoning", "num_calls"),
    [
        ("possible", "<think>\nhm\n</think>\n\nhi", "hi", "hm", 0),
        ("possible", "\n<think>\n\n</think>\n\nhi", "hi", "", 0),
        ("possible", "hi <think> </think>", "hi <think> </think>", "", 0),
        ("possible", "<thin", "<thin", "", 0),
        ("possible", "<think>hm  \n", "", "hm  \n", 0),
        ("open", "hm\n\nno </think>hi", "hi", "hm\n\nno", 0),
        ("open", "<think>\nhm</think>\n\n\n  hi\n", "  hi\n", "hm", 0),
        ("open", "hm </thin", "", "hm </thin", 0),
        ("open", "\n</think>\n\n", "", "", 0),
        ("open", "a < b <b></b>\n</think>1 < 2", "1 < 2", "a < b <b></b>", 0),
        ("open", "hm</think>{call}", "", "hm", 1),
        ("open", "hm\n</think>\n\nok\n{call}\n", "ok", "hm", 1),
        ("off", "<think>\nhm\n</think>\n\nhi", "<think>\nhm\n</think>\n\nhi", "", 0),
        ("off", "<think>\nhm\n</think>\n\n{call}", "<think>\nhm\n</think>", "", 1),
        # A call the model forgot to leave the thought for …
        ("open", "hm\n{call}", "", "hm", 1),
        ("open", "hm {call}\n{call}\n", "", "hm", 2),
        ("open", "{call}\n</think>\n", "", "", 1),
        # … and drafts of calls.
        ("open", "hm\n{call}\nyes\n</think>\n\nhi", "hi", "hm\n{call}\nyes", 0),
        ("open", "hm\n{call}\n</think>\n\nhi", "hi", "hm\n{call}", 0),
        ("open", "hm\n{call}\n</think>\n\n{call}", "", "hm\n{call}", 1),
        ("open", "```\n{call}\n```\n</think>\n\n{call}", "", "```\n{call}\n```", 1),
        ("open", "{call} or {call}", "", "{call} or", 1),
        ("open", "say <tool_call>\n</think>\n\n{call}", "", "say <tool_call>", 1),
    ],
)
def test_thoughts_are_told_from_content(
    call_format: CallFormat, thinking: str, text: str, content: str, reasoning: str, num_calls: int
) -> None:
    text, content, reasoning = (
        piece.replace("{call}", CALL[call_format]) for piece in (text, content, reasoning)
    )
    output = Output(text, call_format, content, reasoning, (FOUND,) * num_calls, thinking=thinking)
    assert parse(output) == parse(output, list(text)) == output.message


@formats
def test_a_call_in_a_thought_that_a_limit_cut_stays_thought(call_format: CallFormat) -> None:
    text = f"hm\n{CALL[call_format]}"
    output = Output(text, call_format, reasoning=text, thinking="open", is_cut=True)
    assert parse(output) == parse(output, list(text)) == output.message


@formats
def test_a_draft_that_never_ends_stops_at_the_end_of_the_thought(call_format: CallFormat) -> None:
    draft = CALL[call_format][:-30]
    text = f"say {draft}\n</think>\n\n{CALL[call_format]}"
    output = Output(text, call_format, "", f"say {draft}", (FOUND,), thinking="open")
    assert parse(output) == parse(output, list(text)) == output.message


def test_events_come_as_soon_as_they_are_certain() -> None:
    parser = OutputParser("hermes", TOOLS, "open")
    assert parser.push("hm\n") == [Reasoning("hm")]
    assert parser.push("so\n</thi") == [Reasoning("\nso")]
    assert parser.push("nk>\n\nOk.\n<tool") == [Text("Ok.")]
    assert parser.push('_call>\n{"name": "get_weather", ') == []
    assert parser.push('"arguments": {"ci') == [
        CallStarted(0, "get_weather"),
        Arguments(0, '{"ci'),
    ]
    assert parser.push('ty": "Par') == [Arguments(0, 'ty": "Par')]
    assert parser.push('is"}') == [Arguments(0, 'is"}'), CallFinished(0)]
    assert parser.push("}\n</tool_call>") == []
    assert parser.finish() == []


def test_a_string_of_an_xml_call_streams_and_other_values_come_whole() -> None:
    parser = OutputParser("xml", TOOLS)
    assert parser.push("<tool_call>\n<function=write_file>\n<parameter=content>\nab") == [
        CallStarted(0, "write_file"),
        Arguments(0, '{"content": "ab'),
    ]
    assert parser.push('"c\nd</para') == [Arguments(0, '\\"c\\nd')]
    assert parser.push("graph>\n") == [Arguments(0, "</paragraph>")]
    assert parser.push("</parameter>\n<parameter=tags>\n[1, ") == [Arguments(0, '", "tags": ')]
    assert parser.push("2]\n</parameter>\n") == []
    assert parser.push("</function>") == [Arguments(0, "[1, 2]}"), CallFinished(0)]


def test_text_without_tools_is_never_held_back() -> None:
    parser = OutputParser()
    for piece in ("a ", "\n", "<", "tool_call>", " "):
        assert parser.push(piece) == [Text(piece)]
    assert parser.finish() == []


def test_the_parser_tells_tokens_of_a_thought() -> None:
    parser = OutputParser("hermes", TOOLS, "possible")
    inside = []
    for piece in ("<think>", "\n", "hm", "\n", "</think>", "\n\n", "hi"):
        parser.push(piece)
        inside.append(parser.in_reasoning)
    assert inside == [True, True, True, True, False, False, False]
    assert OutputParser(thinking="open").in_reasoning


@pytest.mark.parametrize(
    ("prompt", "thinking"),
    [
        ("<|im_start|>user\n<think>?<|im_end|>\n<|im_start|>assistant\n", "possible"),
        ("<|im_start|>assistant\n<think>\n", "open"),
        ("<|im_start|>assistant\n<think>\nSo far", "open"),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", "off"),
        ("", "possible"),
    ],
)
def test_the_prompt_says_whether_a_thought_is_open(prompt: str, thinking: str) -> None:
    assert thinking_of(prompt) == thinking


LONG: dict[str, tuple[CallFormat, Callable[[int], str]]] = {
    "a string": (
        "hermes",
        lambda n: hermes("write_file", json.dumps({"content": "a <b>\n" * (n // 7)})),
    ),
    "a value": ("xml", lambda n: xml("write_file", content="a <b>\n" * (n // 6))),
    "an array": ("xml", lambda n: xml("write_file", tags=f"[{'1, ' * (n // 3)}1]")),
    "no array": ("xml", lambda n: xml("write_file", tags="['" + "\\" * n)),
    "arguments before the name": (
        "hermes",
        lambda n: '<tool_call>{"arguments": {"content": "' + "x" * n + '"}, "name": "now"}',
    ),
    "whitespace": ("hermes", lambda n: "a" + " " * n + "b"),
    "angles": ("xml", lambda n: "<" * n),
    "backticks": ("xml", lambda n: "`" * n),
    "markers": ("hermes", lambda n: "<tool_call>\n" * (n // 12)),
    "markers of functions": ("xml", lambda n: "<tool_call>\n<function=now>" * (n // 26)),
    "broken calls": ("hermes", lambda n: '<tool_call>{"name": "now", "' * (n // 28)),
    "nested calls": ("hermes", lambda n: '<tool_call>{"a": "' * (n // 18)),
    "open calls": ("xml", lambda n: "<function=write_file>\n<parameter=content>\n" * (n // 41)),
    "ends that are none": (
        "xml",
        lambda n: "<function=write_file>\n<parameter=content>\n" + "</parameter>\n" * (n // 13),
    ),
    "a number": ("hermes", lambda n: '<tool_call>{"name": "now", "arguments": {"a": ' + "1" * n),
    "brackets": ("hermes", lambda n: '<tool_call>{"name": "now", "arguments": {"a": ' + "[" * n),
}


@pytest.mark.timing
@pytest.mark.parametrize("thinking", ["off", "open"])
@pytest.mark.parametrize("kind", LONG)
def test_time_is_linear(kind: str, thinking: str) -> None:
    call_format, make = LONG[kind]
    text = make(100_000)
    for pieces in ([text], list(text)):
        started = time.process_time()
        parse(Output(text, call_format, thinking=thinking), pieces)
        assert time.process_time() - started < 2
