"""The grammars of calls accept what models write, and nothing else, as llguidance reads them."""

import json

import pytest
from tokenizers import Tokenizer

from qwenapi.text.errors import GrammarShapeError
from qwenapi.text.grammars import ToolShape, forced_calls, structural_tag, triggered_calls
from tests.grammar.conftest import DEMO, DEMO_SIZE, IM_END, compiler, real_tokenizer  # noqa: F401
from workers.grammar.compile import compile_source
from workers.grammar.source import source_of
from workers.grammar.tokenizer_file import TokenizerFile
from workers.wire.grammar import Grammar

WEATHER = ToolShape(
    "get_weather",
    {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "unit": {"enum": ["celsius", "fahrenheit"]},
            "days": {"type": "integer", "minimum": 1, "maximum": 14},
            "tags": {"type": "array", "items": {"type": "string"}},
            "where": {"$ref": "#/$defs/Place"},
            "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        },
        "required": ["city"],
        "additionalProperties": False,
        "$defs": {"Place": {"type": "object", "properties": {"lat": {"type": "number"}}}},
    },
    strict=True,
)
PING = ToolShape("ping")
ODD = ToolShape('a "b"\\c', {"properties": {"x>y": {"not": {"type": "string"}}}})
TOOLS = [WEATHER, PING, ODD]


class Judge:
    """Says whether a grammar accepts a text, with control tokens where the tokenizer has them."""

    def __init__(self, path, vocab_size, eos):
        self.tokenizer = Tokenizer.from_file(str(path))
        self.loaded = TokenizerFile(str(path), vocab_size, eos).load()

    @property
    def token_ids(self):
        return self.loaded.token_ids

    def accepts(self, lark, text):
        source = source_of(Grammar(kind="lark", text=lark), self.token_ids)
        matcher = compile_source(self.loaded.tokenizer, source)
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


@pytest.fixture(scope="module", params=["demo", "real", "tags as text"])
def judge(request):
    if request.param == "real":
        path = request.getfixturevalue("real_tokenizer")
        return Judge(path, 151_936, (151_645,))
    made = Judge(DEMO, DEMO_SIZE, (IM_END,))
    if request.param == "tags as text":  # of a model whose tokenizer has no such tokens
        made.tokenizer = made.loaded.tokenizer
        made.accepts = lambda lark, text: plain(made, lark, text)
        made.loaded = made.loaded._replace(token_ids={})
    return made


def plain(judge, lark, text):
    matcher = compile_source(judge.loaded.tokenizer, source_of(Grammar(kind="lark", text=lark), {}))
    ids = judge.loaded.tokenizer.tokenize_str(text)
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


def hermes(name, arguments):
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return f'<tool_call>\n{{"name": {json.dumps(name)}, "arguments": {arguments}}}\n</tool_call>'


def xml(name, **values):
    parts = "".join(f"<parameter={k}>\n{v}\n</parameter>\n" for k, v in values.items())
    return f"<tool_call>\n<function={name}>\n{parts}</function>\n</tool_call>"


HERMES_RIGHT = [
    hermes("get_weather", {"city": "北京"}),
    hermes("get_weather", {"city": "Bonn", "unit": "celsius", "days": 3, "tags": ["a", "b"]}),
    hermes("get_weather", {"city": "</tool> <b>", "where": {"lat": 1.5}, "note": None}),
    hermes("get_weather", '{\n  "city": "Bonn"\n}'),
    hermes("ping", {}),
    hermes("ping", {"whatever": [1, {"a": None}]}),
    hermes('a "b"\\c', {"x>y": 3}),
]
HERMES_WRONG = [
    hermes("get_wether", {"city": "Bonn"}),
    hermes("get_weather", {}),
    hermes("get_weather", {"city": 3}),
    hermes("get_weather", {"city": "Bonn", "days": 15}),
    hermes("get_weather", {"city": "Bonn", "country": "de"}),
    hermes("ping", []),
    '<tool_call>\n{"name": "ping"}\n</tool_call>',
    '<tool_call>\n{"name": "ping", "arguments": {}}\n',
    "no call",
]
XML_RIGHT = [
    xml("get_weather", city="Bonn"),
    xml("get_weather", city="two\nlines </parameter> <b>&amp;", days="3"),
    xml("get_weather", city="", unit="celsius", tags='["a", "b"]', where='{"lat": 2}', note="n"),
    xml("get_weather", city="北京", note="null"),
    xml("ping"),
    xml("ping", anything="goes\nhere"),
    xml('a "b"\\c', **{"x>y": "3"}),
]
XML_WRONG = [
    xml("get_wether", city="Bonn"),
    xml("get_weather"),
    xml("get_weather", unit="celsius"),
    xml("get_weather", city="Bonn", unit="kelvin"),
    xml("get_weather", city="Bonn", days="three"),
    xml("get_weather", city="Bonn", tags="a, b"),
    xml("get_weather", city="Bonn", country="de"),
    xml("ping").removesuffix("</tool_call>"),
    "<tool_call>\n<function=get_weather>\n<parameter=city>\nBonn\n</function>\n</tool_call>",
]
EXAMPLES = {"hermes": (HERMES_RIGHT, HERMES_WRONG), "xml": (XML_RIGHT, XML_WRONG)}


@pytest.mark.parametrize("call_format", ["hermes", "xml"])
def test_a_forced_call_is_a_call_of_one_of_the_tools(judge, call_format):
    lark = forced_calls(TOOLS, call_format, judge.token_ids, several=False)
    right, wrong = EXAMPLES[call_format]
    for text in right:
        assert judge.accepts(lark, text), text
    for text in wrong:
        assert not judge.accepts(lark, text), text
    assert not judge.accepts(lark, f"{right[0]}\n{right[0]}")
    assert not judge.accepts(lark, f"I say {right[0]}")


@pytest.mark.parametrize("call_format", ["hermes", "xml"])
def test_several_calls_follow_each_other(judge, call_format):
    lark = forced_calls(TOOLS, call_format, judge.token_ids, several=True)
    right, _ = EXAMPLES[call_format]
    assert judge.accepts(lark, "\n".join(right))
    assert not judge.accepts(lark, right[0] + right[1] + "and text")


@pytest.mark.parametrize("call_format", ["hermes", "xml"])
def test_free_text_stays_free_until_a_call_begins(judge, call_format):
    right, wrong = EXAMPLES[call_format]
    lark = triggered_calls(TOOLS, call_format, judge.token_ids, several=True)
    for text in ("", "Hello,\nworld <b> {", f"Let me see.\n{right[0]}", "\n".join(right)):
        assert judge.accepts(lark, text), text
    for text in wrong[:-1]:
        assert not judge.accepts(lark, f"Let me see.\n{text}"), text
    once = triggered_calls(TOOLS, call_format, judge.token_ids, several=False)
    assert judge.accepts(once, "only text") and judge.accepts(once, f"text\n{right[0]}")
    assert not judge.accepts(once, f"{right[0]}\n{right[0]}")


def test_the_name_of_the_only_tool_is_forced(judge):
    lark = forced_calls([PING], "hermes", judge.token_ids, several=False)
    matcher = compile_source(
        judge.loaded.tokenizer, source_of(Grammar(kind="lark", text=lark), judge.token_ids)
    )
    forced = judge.loaded.tokenizer.decode_bytes(matcher.compute_ff_tokens())
    assert b'"name": "ping", "arg' in forced


TAG = {"begin": "<fn=f>", "schema": {"type": "object"}, "end": "</fn>"}
NEW_TAG = {
    "begin": "<fn=f>",
    "content": {"type": "json_schema", "json_schema": {"type": "object"}},
    "end": "</fn>",
}


@pytest.mark.parametrize(
    "value",
    [
        {"structures": [TAG], "triggers": ["<fn="]},
        {
            "type": "structural_tag",
            "format": {"type": "triggered_tags", "triggers": ["<fn="], "tags": [NEW_TAG]},
        },
    ],
)
def test_structural_tags_constrain_what_stands_in_them(judge, value):
    lark = structural_tag(value, judge.token_ids)
    assert judge.accepts(lark, "text") and judge.accepts(lark, 'a <fn=f>{"x": 1}</fn> b')
    assert not judge.accepts(lark, "a <fn=g>{}</fn>") and not judge.accepts(lark, "a <fn=f>3</fn>")


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"structures": [], "triggers": ["<"]},
        {"structures": [TAG], "triggers": ["<g"]},
        {"structures": [{"begin": "<"}], "triggers": ["<"]},
        {"structures": 3, "triggers": []},
        {"type": "structural_tag", "format": {"type": "sequence"}},
        {"structures": [{**TAG, "schema": 3}], "triggers": ["<fn"]},
    ],
)
def test_a_structural_tag_of_no_known_shape_is_refused(value):
    with pytest.raises(GrammarShapeError):
        structural_tag(value, {})


STRINGS = {
    "code": ({"pattern": "^[A-Z]{2}/[0-9]+$"}, ["AB/12"], ["AB12", "xAB/12", "AB/12x", ""]),
    "found": ({"pattern": "b+"}, ["abbc", "b", "a\nb"], ["ac", ""]),
    "either": ({"pattern": "(ab|c)$"}, ["xab", "c"], ["abx", "b"]),
    "short": ({"minLength": 2, "maxLength": 4}, ["北京", "a\nb", "😀😀😀😀"], ["a", "abcde"]),
    "long": ({"minLength": 3}, ["abc", "abc\n\n"], ["ab"]),
    "both": ({"maxLength": 3, "pattern": "^a"}, ["a", "abc"], ["abcd", "b"]),
    "day": (
        {"format": "date"},
        ["2026-11-30", "2024-02-29", "2000-02-29"],
        ["2026-13-01", "2026-02-31", "2026-11-31", "2026-02-29", "1900-02-29", "today"],
    ),
    "moment": ({"format": "date-time"}, ["2026-11-30T08:15:00.25+08:00"], ["2026-11-30 08:15"]),
    "mail": ({"format": "email"}, ["a.b@c.example"], ["a@b", "a b@c.example"]),
    "id": ({"format": "uuid"}, ["123e4567-e89b-12d3-a456-426614174000"], ["123e4567"]),
    "other": ({"format": "color"}, ["red"], []),
    "escaped": ({"pattern": r"^\$[0-9]+\\$"}, ["$5\\"], ["$5"]),
}


@pytest.mark.parametrize("name", STRINGS)
def test_a_strict_string_of_xml_keeps_to_its_schema(judge, name):
    schema, right, wrong = STRINGS[name]
    properties = {name: {"type": "string", **schema}}
    for strict in (True, False):
        tool = ToolShape("f", {"properties": properties, "required": [name]}, strict)
        lark = forced_calls([tool], "xml", judge.token_ids, several=False)
        for value in [*right, *wrong]:
            parameter = f"<parameter={name}>\n{value}\n</parameter>\n"
            call = f"<tool_call>\n<function=f>\n{parameter}</function>\n</tool_call>"
            assert judge.accepts(lark, call) == (value in right or not strict), (value, strict)
