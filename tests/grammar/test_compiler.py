"""Grammars are compiled once, off the caller's thread, and nothing a caller writes can hurt."""

import json
import queue
import threading
import time
from contextlib import suppress

import pytest

from tests.grammar.conftest import DEMO, DEMO_SIZE, IM_END
from workers.grammar import compiler as compiler_module
from workers.grammar.compiler import GrammarCompiler
from workers.grammar.errors import GrammarError
from workers.grammar.tokenizer_file import TokenizerFile
from workers.wire.grammar import MAX_GRAMMAR_BYTES, Grammar


def schema(value, **fields):
    return Grammar(kind="json_schema", text=json.dumps(value), **fields)


def lark(text):
    return Grammar(kind="lark", text=text)


def nested(depth, inner='{"type": "null"}'):
    return '{"type": "array", "items": ' * depth + inner + "}" * depth


def chain(length, link):
    """Return a schema whose definitions refer to each other in one long line."""
    definitions = {f"d{i}": link(f"#/$defs/d{i + 1}") for i in range(length)}
    return {"$defs": definitions | {f"d{length}": {"type": "object"}}, "$ref": "#/$defs/d0"}


def doubling(depth):
    rules = "".join(f"R{i}: R{i + 1} R{i + 1}\n" for i in range(depth))
    return f'start: R0\n{rules}R{depth}: "a"\n'


def test_equal_grammars_are_compiled_once(compiler):
    first = compiler.compile(schema({"type": "object", "title": "once"}))
    assert compiler.known(schema({"type": "object", "title": "once"})) is first
    assert compiler.compile(schema({"type": "object", "title": "once"})) is first
    assert compiler.known(schema({"type": "object", "title": "never"})) is None


def test_a_grammar_asked_for_many_times_at_once_is_compiled_once(compiler):
    answers = queue.Queue()
    for _ in range(20):
        compiler.submit(schema({"type": "array", "title": "at once"}), answers.put)
    found = {id(answers.get(timeout=60)) for _ in range(20)}
    assert len(found) == 1


def test_what_cannot_be_done_is_known_as_well(compiler):
    bad = schema({"not": {"type": "string"}, "title": "known"})
    with pytest.raises(GrammarError, match="not, which cannot be enforced"):
        compiler.compile(bad)
    assert isinstance(compiler.known(bad), GrammarError)


def test_the_cache_is_bounded_in_number_and_size(compiler, monkeypatch):
    monkeypatch.setattr(compiler_module, "MAX_CACHED", 5)
    for number in range(8):
        compiler.compile(schema({"const": number}))
    assert len(compiler._known) == 5
    assert compiler.known(schema({"const": 0})) is None
    monkeypatch.setattr(compiler_module, "MAX_CACHED_BYTES", 110)
    compiler.compile(schema({"const": "x" * 90}))
    assert len(compiler._known) == 1
    assert compiler._num_bytes == sum(len(key.text) for key in compiler._known)


def test_a_spoiled_grammar_is_compiled_anew(compiler):
    spoiled = compiler.compile(schema({"const": "spoiled"}))
    spoiled.is_spoiled = True
    assert compiler.known(schema({"const": "spoiled"})) is None
    assert compiler.compile(schema({"const": "spoiled"})) is not spoiled


def test_a_tokenizer_that_cannot_be_read_refuses_grammars_and_nothing_else(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "WordLevel"}}')
    refusing = GrammarCompiler(TokenizerFile(str(tmp_path / "tokenizer.json"), 100, (1,)))
    with pytest.raises(GrammarError, match="cannot be used with this tokenizer"):
        refusing.compile(schema({}))
    with pytest.raises(GrammarError, match="names no end-of-text token"):
        TokenizerFile(str(DEMO), DEMO_SIZE, ()).load()


def test_a_lost_process_of_trials_is_replaced(compiler):
    compiler.compile(schema({"const": "before"}))
    compiler._trials._process.kill()
    compiler._trials._process.wait()
    assert compiler.compile(schema({"const": "after"}))


BAD = {
    "no JSON": (Grammar(kind="json_schema", text="{"), "must be JSON"),
    "no object": (schema([1]), "must be an object"),
    "half a character": (Grammar(kind="json_schema", text='{"const": "\ud800"}'), "JSON|half"),
    "too long": (Grammar(kind="regex", text="a" * (MAX_GRAMMAR_BYTES + 1)), "longer than"),
    "ten megabytes": (schema({"enum": ["x" * 100] * 100_000}), "longer than"),
    "not": (schema({"not": {}}), "uses not"),
    "if": (schema({"if": {}, "then": {}}), "uses if"),
    "dependentRequired": (schema({"dependentRequired": {"a": ["b"]}}), "uses dependentRequired"),
    "propertyNames": (schema({"propertyNames": {"pattern": "a"}}), "uses propertyNames"),
    "uniqueItems": (schema({"type": "array", "uniqueItems": True}), "uses uniqueItems"),
    "contains": (schema({"type": "array", "contains": {}}), "uses contains"),
    "unknown format": (schema({"type": "string", "format": "iri"}), "iri|format"),
    "oneOf": (schema({"oneOf": [{"type": "object"}, {"minProperties": 1}]}), "oneOf"),
    "remote reference": (schema({"$ref": "http://example.com/s.json"}), r"\$ref"),
    "unsatisfiable": (schema({"type": "string", "minLength": 3, "maxLength": 1}), "can(not)?"),
    "itself": (schema({"$ref": "#"}), "no text can match"),
    "circle": (
        schema({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}
               | {"$ref": "#/$defs/a"}),
        "no text can match",
    ),
    "circle with siblings": (
        schema({"$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}], "type": "object"}}}
               | {"$ref": "#/$defs/a"}),
        "circular",
    ),
    "no regular expression": (Grammar(kind="regex", text="("), "unclosed group"),
    "look-ahead": (schema({"type": "string", "pattern": "(?=a)b"}), "look-around"),
    "look-behind": (Grammar(kind="regex", text="(?<!a)b"), "look-around"),
    "back reference": (Grammar(kind="regex", text=r"(a)\1"), "backreference"),
    "no choice": (Grammar(kind="choice", text="[]"), "at least one"),
    "numbers as choices": (Grammar(kind="choice", text="[1]"), "must be strings"),
    "no Lark": (lark('start: "a'), "lexer error"),
    "no start": (lark('a: "b"'), "start"),
    "empty": (lark(" \n"), "empty"),
    "unknown token": (lark("start: <nope>"), "unknown special token"),
    "max_tokens": (lark('start: a "x"\na[max_tokens=5]: /[a-z]+/'), "max_tokens"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_done_is_refused_in_words(compiler, name):
    grammar, words = BAD[name]
    with pytest.raises(GrammarError, match=words) as raised:
        compiler.compile(grammar)
    assert len(str(raised.value)) < 500 and "\n" not in str(raised.value)


HOSTILE = {
    "nested arrays": Grammar(kind="json_schema", text=nested(100)),
    "nested deeply": Grammar(kind="json_schema", text=nested(20_000)),
    "nested parentheses": lark("start: " + "(" * 50_000 + '"a"' + ")" * 50_000),
    "nested terminals": lark("start: A\nA: " + "(" * 50_000 + '"a"' + ")" * 50_000),
    "nested groups": Grammar(kind="regex", text="(" * 50_000 + "a" + ")" * 50_000),
    "nested classes": Grammar(kind="regex", text="[" * 50_000 + "a" + "]" * 50_000),
    "nested stars": Grammar(kind="regex", text="(" * 200 + "a" + "*)" * 200),
    "recursive list": schema(
        {"$defs": {"n": {"type": "object", "properties": {"next": {"$ref": "#/$defs/n"}}}}}
        | {"$ref": "#/$defs/n"}
    ),
    "long chain of references": schema(chain(9_000, lambda to: {"allOf": [{"$ref": to}]})),
    "long chain of objects": schema(
        chain(9_000, lambda to: {"type": "object", "properties": {"x": {"$ref": to}}})
    ),
    "evil pattern": schema({"type": "string", "pattern": "^(a+)+$"}),
    "evil alternatives": schema({"type": "string", "pattern": "^(a|a)*(a|aa)*(a|aaa)*b$"}),
    "states without end": Grammar(kind="regex", text="(.*a){30}"),
    "2^30 states": Grammar(kind="regex", text="[01]*1[01]{30}"),
    "nested counts": Grammar(kind="regex", text="((a{1,100}){1,100}){1,100}"),
    "counted far": Grammar(kind="regex", text="(a{0,1000}b){0,1000}"),
    "many items": schema({"type": "array", "minItems": 100_000}),
    "many items at most": schema({"type": "array", "maxItems": 100_000}),
    "long string": schema({"type": "string", "minLength": 1_000_000}),
    "many keys": schema({"type": "object", "properties": {f"k{i}": {} for i in range(5_000)}}),
    "many choices": Grammar(kind="choice", text=json.dumps([f"c {i}" for i in range(30_000)])),
    "big enum": schema({"enum": [f"value {i}" for i in range(50_000)]}),
    "long constant": schema({"const": "a" * 500_000}),
    "product of branches": schema(
        {"allOf": [{"anyOf": [{"required": [f"k{i}{j}"]} for j in range(10)]} for i in range(8)]}
    ),
    "many branches": schema(
        {"anyOf": [{"properties": {f"k{i}": {"type": "string"}}} for i in range(500)]}
    ),
    "doubling terminals": lark(doubling(40)),
    "doubling rules": lark(doubling(5_000).lower().replace('"a"', '"a"')),
    "rules in one line": lark(
        "start: r0\n" + "".join(f"r{i}: r{i + 1}\n" for i in range(9_000)) + 'r9000: "a"\n'
    ),
    "ambiguous": lark('start: e\ne: e e | "a" | ""\n'),
    "recursive rule": lark("start: start\n"),
    "recursive terminal": lark("start: A\nA: A\n"),
    "forced without end": lark('start: "a"{1000000}'),
    "intersections": lark(
        "start: A\nA: " + " & ".join(f"/(.*a){{{i}}}.*/" for i in range(1, 30))
    ),
    "negations": lark("start: A\nA: ~(~(~/(a|b)*abb/ & /.*/) & ~/.*c.*/)"),
    "whole documents as names": lark("start: " + "a" * 1_000_000),
    "zero bytes": lark("start: \0\0\0"),
    "options": lark('%llguidance {"no_forcing": 7}\nstart: "a"'),
}  # fmt: skip


# Of those that cost the parser most, as the others do less.
SLOWEST = ("intersections", "many keys")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in SLOWEST else ()) for name in HOSTILE],
)
def test_hostile_grammars_are_refused_or_served_in_bounded_time(compiler, name):
    started = time.monotonic()
    with suppress(GrammarError):
        compiler.compile(HOSTILE[name])
    # A trial has five seconds of processor time, behind others', and a minute in all.
    assert time.monotonic() - started < 90
    assert compiler.compile(schema({"type": "null"})), "the compiler lives"


def test_a_slow_grammar_keeps_nobody_else_waiting(compiler):
    slow = threading.Event()
    compiler.submit(lark(doubling(23)), lambda outcome: slow.set())
    assert compiler.compile(schema({"const": "meanwhile"}))
    assert not slow.is_set()
    assert slow.wait(60)


def test_real_tokenizers_know_their_special_tokens(real_tokenizer):
    made = GrammarCompiler(TokenizerFile(str(real_tokenizer), 151_936, (151_645, IM_END)))
    try:
        compiled = made.compile(lark('start: <tool_call> "<tool_call>"'))
        matcher = compiled.matcher.deep_copy()
        forced = matcher.compute_ff_tokens()
        assert forced[0] == 151_657 and 151_657 not in forced[1:]
        assert matcher.consume_tokens(forced) and matcher.is_stopped()
    finally:
        made.close()
