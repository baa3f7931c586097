import json

import pytest

from tests.text.output.outputs import TOOLS, Output, parse, xml

PARIS = {"city": "Paris"}
HEAD = "<tool_call>\n<function=get_weather>\n"
CITY = "<parameter=city>\nParis\n</parameter>\n"
TAIL = "</function>\n</tool_call>"

GOOD = {
    "as taught": (HEAD + CITY + TAIL, PARIS),
    "no markers around": (HEAD[12:] + CITY + TAIL[:11], PARIS),
    "only the closing marker": (HEAD[12:] + CITY + TAIL, PARIS),
    "no end of the parameter": (HEAD + "<parameter=city>\nParis\n" + TAIL, PARIS),
    "no end of a parameter before the next": (
        HEAD + "<parameter=city>\nParis\n<parameter=days>\n3\n</parameter>\n" + TAIL,
        {"city": "Paris", "days": 3},
    ),
    "no end of the function": (HEAD + CITY + "</tool_call>", PARIS),
    "no end of anything but the call": (HEAD + "<parameter=city>\nParis\n</tool_call>", PARIS),
    "an end without the rest": (HEAD + CITY, PARIS),
    "without line breaks": (
        "<tool_call><function=get_weather><parameter=city>Paris</parameter></function></tool_call>",
        PARIS,
    ),
    "no parameters": (HEAD + TAIL, {}),
    "no parameters and no end of the function": (HEAD + "</tool_call>", {}),
    "spaces in the tags": (
        "<tool_call>\n<function= get_weather >\n<parameter= city >\nParis\n</parameter>" + TAIL,
        PARIS,
    ),
    "a parameter nobody knows": (
        HEAD + "<parameter=land>\n5\n</parameter>\n" + TAIL,
        {"land": "5"},
    ),
    "the next parameter's name, given already": (
        HEAD + CITY + "<parameter=days>\n1\n<parameter=city>\n</parameter>\n" + TAIL,
        {"city": "Paris", "days": "1\n<parameter=city>"},
    ),
    "line breaks": (HEAD + "<parameter=city>\n\n\nA\n\n</parameter>\n" + TAIL, {"city": "\n\nA\n"}),
    "tags in a value": (
        HEAD + "<parameter=city>\n</parameter>. </function>\n</tool_call>.\n</parameter>\n" + TAIL,
        {"city": "</parameter>. </function>\n</tool_call>."},
    ),
    "a value that does not fit": (
        HEAD + "<parameter=days>\n three\n</parameter>\n" + TAIL,
        {"days": " three"},
    ),
    "half a tag in a value": (
        HEAD + "<parameter=city>\n<parameter=\n</parameter\n</parameter>\n" + TAIL,
        {"city": "<parameter=\n</parameter"},
    ),
}

NO_CALL = {
    "cut in the name": "<tool_call>\n<function=get_wea",
    "cut behind the name": "<tool_call>\n<function=get_weather>\n",
    "cut in a parameter's name": HEAD + "<parameter=ci",
    "text for parameters": HEAD + "Paris\n" + TAIL,
    "the Hermes format": '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',
    "in the middle of a line": "call <function=now></function>",
    "in a fence": f"~~~\n{HEAD}{CITY}{TAIL}\n~~~",
}


@pytest.mark.parametrize("kind", GOOD)
def test_calls_are_read(kind: str) -> None:
    text, arguments = GOOD[kind]
    output = Output(text, "xml", calls=(("get_weather", json.dumps(arguments)),))
    assert parse(output) == parse(output, list(text)) == output.message


@pytest.mark.parametrize("kind", NO_CALL)
def test_what_never_was_a_call_is_content(kind: str) -> None:
    output = Output(NO_CALL[kind], "xml", NO_CALL[kind])
    assert parse(output) == parse(output, list(output.text)) == output.message


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        (HEAD + "<parameter=city>", '{"city": "'),
        (HEAD + "<parameter=city>\nPa\n", '{"city": "Pa\\n'),
        (HEAD + "<parameter=city>\nPa\n</param", '{"city": "Pa\\n</param'),
        (HEAD + "<parameter=days>\n1", '{"days": 1'),
        (HEAD + CITY, '{"city": "Paris"'),
        (HEAD + CITY + "<parameter=da", '{"city": "Paris"'),
    ],
)
def test_a_call_that_a_limit_cuts_is_unfinished(text: str, arguments: str) -> None:
    call = ("get_weather", arguments)
    output = Output(text, "xml", calls=(call,), unfinished=(0,), is_cut=True)
    assert parse(output) == parse(output, list(text)) == output.message


def test_one_marker_may_hold_several_functions() -> None:
    function = HEAD[12:] + CITY + "</function>"
    text = f"<tool_call>\n{function}{function}\n{function}\n</tool_call>\n{function}\nend"
    output = Output(text, "xml", "end", calls=(("get_weather", json.dumps(PARIS)),) * 4)
    assert parse(output) == parse(output, list(text)) == output.message


def test_a_function_without_end_ends_at_the_next() -> None:
    text = HEAD + CITY + HEAD[12:] + CITY + TAIL
    output = Output(text, "xml", calls=(("get_weather", json.dumps(PARIS)),) * 2)
    assert parse(output) == parse(output, list(text)) == output.message


def test_a_whole_file_survives_as_a_value() -> None:
    files = [
        "<!doctype html>\n<a href='?a=1&b=2'>\"x\" &amp; y</a>\n\n",
        '{"tool": "<tool_call>", "n": [1, 2]}\n',
        "# Title\n\n```python\nif a < b:\n\tprint('</parameter>')\n",
        "字\r\n\x7f\u2028😀\\n\\",
    ]
    for content in files:
        call = ("write_file", json.dumps({"path": "a", "content": content}, ensure_ascii=False))
        output = Output(xml("write_file", path="a", content=content), "xml", calls=(call,))
        assert parse(output) == parse(output, list(output.text)) == output.message


@pytest.mark.parametrize("is_cut", [True, False])
def test_half_a_closing_marker_at_the_end_is_no_content(is_cut: bool) -> None:
    text = (HEAD + CITY + TAIL)[:-5]
    call = ("get_weather", json.dumps(PARIS))
    output = Output(text, "xml", calls=(call,), is_cut=is_cut)
    assert parse(output) == parse(output, list(text)) == output.message


def test_tools_may_have_no_schema() -> None:
    output = Output(xml("now", a="5"), "xml", calls=(("now", '{"a": "5"}'),))
    assert "properties" not in TOOLS["now"]
    assert parse(output) == output.message
