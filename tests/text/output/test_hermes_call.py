import pytest

from tests.text.output.outputs import Output, parse

PARIS = '{"city": "Paris"}'


def call(body: str) -> str:
    return f"<tool_call>\n{body}\n</tool_call>"


GOOD = {
    "as taught": (call(f'{{"name": "get_weather", "arguments": {PARIS}}}'), PARIS),
    "on one line": (f'<tool_call>{{"name":"get_weather","arguments":{PARIS}}}</tool_call>', PARIS),
    "never closed": (f'<tool_call>\n{{"name": "get_weather", "arguments": {PARIS}}}', PARIS),
    "cut behind the arguments": (
        f'<tool_call>{{"name": "get_weather", "arguments": {PARIS}',
        PARIS,
    ),
    "a brace too few": (call(f'{{"name": "get_weather", "arguments": {PARIS}'), PARIS),
    "a brace too many": (call(f'{{"name": "get_weather", "arguments": {PARIS}}}}}'), PARIS),
    "brackets missing": (
        call('{"name": "get_weather", "arguments": {"city": "Paris", "a": [{"b": 1'),
        '{"city": "Paris", "a": [{"b": 1}]}',
    ),
    "brackets missing at a bare marker": (
        '<tool_call>{"name": "get_weather", "arguments": {"a": {}</tool_call>',
        '{"a": {}}',
    ),
    "no arguments": (call('{"name": "get_weather"}'), "{}"),
    "null for arguments": (call('{"name": "get_weather", "arguments": null}'), "{}"),
    "empty text for arguments": (call('{"name": "get_weather", "arguments": ""}'), "{}"),
    "arguments as text": (
        call('{"name": "get_weather", "arguments": "{\\"city\\": \\"Paris\\"}"}'),
        PARIS,
    ),
    "arguments first": (call(f'{{"arguments": {PARIS}, "name": "get_weather"}}'), PARIS),
    "other keys": (
        call(f'{{"id": 1, "name": "get_weather", "x": [{{}}], "arguments": {PARIS}, "y": null}}'),
        PARIS,
    ),
    "a trailing comma": (call(f'{{"name": "get_weather", "arguments": {PARIS},}}'), PARIS),
    "its own markers inside a string": (
        call('{"name": "get_weather", "arguments": {"city": "</tool_call>\\n</tool_call>"}}'),
        '{"city": "</tool_call>\\n</tool_call>"}',
    ),
    "raw line breaks in a string": (
        call('{"name": "get_weather", "arguments": {"city": "a\n\tb"}}'),
        '{"city": "a\\n\\tb"}',
    ),
    "needless backslashes": (
        call(r'{"name": "get_weather", "arguments": {"city": "it\'s \d+ \u12"}}'),
        r'{"city": "it' + r"'s \\d+ \\u12" + r'"}',
    ),
    "words of Python": (
        call('{"name": "get_weather", "arguments": {"a": [True, False, None]}}'),
        '{"a": [true, false, null]}',
    ),
    "escapes": (
        call(r'{"name": "get_weather", "arguments": {"\u57ce": "\ud83d\ude00\"\\\/"}}'),
        r'{"\u57ce": "\ud83d\ude00\"\\\/"}',
    ),
    "numbers": (
        call('{"name": "get_weather", "arguments": {"a": -0.5e+10, "b": [0, 1]}}'),
        '{"a": -0.5e+10, "b": [0, 1]}',
    ),
}

# Text, arguments as far as they came, content.
BROKEN = {
    "a quote inside a string": (
        call('{"name": "get_weather", "arguments": {"city": "a "b" c"}}') + "\nwell",
        '{"city": "a "b" c"}}\n',
        "well",
    ),
    "no closing quote": (
        call('{"name": "get_weather", "arguments": {"city": "Paris}}') + "\nwell",
        '{"city": "Paris}}\n',
        "well",
    ),
    "a word that is none": (
        call('{"name": "get_weather", "arguments": {"city": Paris}}'),
        '{"city": Paris}}\n',
        "",
    ),
    "no value": (call('{"name": "get_weather", "arguments": {"city": '), '{"city": \n', ""),
    "cut in a string": (
        '<tool_call>{"name": "get_weather", "arguments": {"city": "P',
        '{"city": "P',
        "",
    ),
    "cut in an escape": (
        '<tool_call>{"name": "get_weather", "arguments": {"a": "\\u1',
        '{"a": "\\u1',
        "",
    ),
    "cut in a number": ('<tool_call>{"name": "get_weather", "arguments": {"a": 1', '{"a": 1', ""),
    "cut before a marker": (
        '<tool_call>{"name": "get_weather", "arguments": {"a": "\n</tool_c',
        '{"a": "\n</tool_c',
        "",
    ),
}

NO_CALL = {
    "cut in the name": '<tool_call>\n{"name": "get_wea',
    "cut before the arguments": '<tool_call>\n{"name": "get_weather", "arguments": ',
    "no object": "<tool_call>\nget_weather\n</tool_call>",
    "a list of calls": call(f'[{{"name": "get_weather", "arguments": {PARIS}}}]'),
    "arguments that are a number": call('{"name": "get_weather", "arguments": 5}'),
    "arguments that are other text": call('{"name": "get_weather", "arguments": "Paris"}'),
    "arguments that are NaN": call('{"name": "get_weather", "arguments": "{\\"a\\": NaN}"}'),
    "a name that is no text": call('{"name": ["get_weather"], "arguments": {}}'),
    "the XML format": "<tool_call>\n<function=now>\n</function>\n</tool_call>",
}


@pytest.mark.parametrize("kind", GOOD)
def test_calls_are_read(kind: str) -> None:
    text, arguments = GOOD[kind]
    output = Output(text, "hermes", calls=(("get_weather", arguments),))
    assert parse(output) == parse(output, list(text)) == output.message


@pytest.mark.parametrize("kind", BROKEN)
def test_a_call_that_breaks_is_unfinished_and_keeps_its_text(kind: str) -> None:
    text, arguments, content = BROKEN[kind]
    call = ("get_weather", arguments)
    output = Output(text, "hermes", content, calls=(call,), unfinished=(0,))
    assert parse(output) == parse(output, list(text)) == output.message


@pytest.mark.parametrize("kind", NO_CALL)
def test_what_never_was_a_call_is_content(kind: str) -> None:
    output = Output(NO_CALL[kind], "hermes", NO_CALL[kind])
    assert parse(output) == parse(output, list(output.text)) == output.message


def test_one_marker_may_hold_several_calls() -> None:
    body = f'{{"name": "get_weather", "arguments": {PARIS}}}'
    text = f"a\n{call(body + body)}\n{call(body + chr(10) + body + ' rest')}"
    output = Output(text, "hermes", "a rest", calls=(("get_weather", PARIS),) * 4)
    assert parse(output) == parse(output, list(text)) == output.message


def test_calls_go_on_after_a_broken_one() -> None:
    broken = '<tool_call>\n{"name": "get_weather", "arguments": {"a": oops}}\n'
    good = call(f'{{"name": "get_weather", "arguments": {PARIS}}}')
    calls = (("get_weather", '{"a": oops}}\n'), ("get_weather", PARIS))
    output = Output(broken + good, "hermes", calls=calls, unfinished=(0,))
    assert parse(output) == parse(output, list(output.text)) == output.message


def test_deep_nesting_and_endless_numbers_never_finish_a_call() -> None:
    for value in ("[" * 200 + "]" * 200, "1" * 600):
        text = call(f'{{"name": "now", "arguments": {{"a": {value}}}}}')
        assert [c.is_finished for c in parse(Output(text, "hermes")).calls] == [False]
