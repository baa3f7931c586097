"""Answers keep to their grammar whatever the model would rather say, and are else as without it."""

import gc
import json
import os
import shutil
import weakref
from pathlib import Path

import jsonschema
import pytest
from tokenizers import Tokenizer

from tests.engine.conftest import ATTENTION, DEVICE, write_model
from tests.engine.grammar_driver import GrammarDriver, compiler_of, schema
from tests.grammar.conftest import DEMO, END_THINK, IM_END, THINK
from workers.config import EngineConfig
from workers.engine.engine import Engine
from workers.wire.grammar import Grammar

# As callers send them. Each is so small that a random model finds its end in some 100 tokens.
SCHEMAS = json.loads(Path(__file__).with_name("real_world_schemas.json").read_text("utf-8"))
NUM_SAMPLES = int(os.environ.get("QWENAPI_GRAMMAR_SAMPLES", "1"))  # of each schema
PROMPT = list(range(300, 340))
VOCABULARY = 3100  # larger than the tokenizer's
COLOUR = Grammar(kind="choice", text='["red", "green", "dark blue"]')
PERSON = schema(SCHEMAS["person"])
ORDER = schema(SCHEMAS["nested records"])


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("grammar")
    write_model(path, "qwen3", vocab_size=VOCABULARY, eos_token_id=IM_END)
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [IM_END]}))
    shutil.copy(DEMO, path / "tokenizer.json")
    return path


@pytest.fixture(scope="session")
def tools(model_dir):
    engine = make_engine(model_dir)
    compiler = compiler_of(engine.card)
    yield compiler, Tokenizer.from_file(str(DEMO))
    compiler.close()


def make_engine(model_dir, **settings):
    defaults = {"num_blocks": 1000, "block_size": 8, "threads": 2, "dtype": "float32"}
    if not settings.get("deterministic"):
        defaults["attention_backend"] = ATTENTION
    return Engine(
        EngineConfig(str(model_dir), device=DEVICE, **(defaults | settings)), lambda *_: None
    )


@pytest.fixture
def drive(model_dir, tools):
    return lambda **settings: GrammarDriver(make_engine(model_dir, **settings), *tools)


def validate(value, name):
    # RFC 3339 has leap seconds and a year 0, of which jsonschema knows nothing.
    value = json.loads(json.dumps(value).replace(":60", ":59").replace('"0000-', '"0004-'))
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    jsonschema.validate(value, SCHEMAS[name], format_checker=checker)


@pytest.mark.parametrize("is_thinking", [False, True], ids=["at once", "after a thought"])
def test_answers_at_high_temperature_are_valid(drive, is_thinking):
    driver, seeds = drive(max_num_seqs=64), NUM_SAMPLES
    thought = {"thought_end_ids": (END_THINK,)} if is_thinking else {}
    # A random model closes its thought some time if that is made likelier.
    bias = {"logit_bias": {END_THINK: 6.0}} if is_thinking else {}
    for number, value in enumerate(SCHEMAS.values()):
        for seed in range(seeds):
            key = 1000 * number + seed
            asked = {**bias, "max_tokens": 1500, "queue_timeout": 1e6}
            driver.add(key, PROMPT, schema(value, **thought), **asked)
    driver.run(most_steps=10_000 * seeds)
    assert not driver.failed
    num_whole = 0
    for number, name in enumerate(SCHEMAS):
        for seed in range(seeds):
            key = 1000 * number + seed
            text = driver.text(key)
            if driver.reason(key) == "length":
                continue
            num_whole += 1
            if is_thinking:
                _, end, text = text.partition("</think>")
                assert end
            validate(json.loads(text), name)
    assert num_whole > 0.9 * len(SCHEMAS) * seeds


def test_choices_patterns_and_lark_are_kept_to(drive):
    driver = drive()
    grammars = [
        COLOUR,
        Grammar(kind="regex", text="[A-Z]{2}-[0-9]{3,5}"),
        Grammar(kind="lark", text='start: "<" WORD ">"\nWORD: /[a-z]{1,5}/'),
        Grammar(kind="lark", text='start: <tool_call> "\\nx" </tool_call>'),
    ]
    for key, grammar in enumerate(grammars):
        driver.add(key, PROMPT, grammar)
    driver.run()
    assert driver.text(0) in ("red", "green", "dark blue")
    assert driver.text(1)[2] == "-" and driver.text(1)[:2].isupper()
    assert driver.text(2).strip("<>").isalpha()
    assert driver.text(3) == "<tool_call>\nx</tool_call>"
    assert all(driver.reason(key) == "stop" for key in range(4))


def test_an_answer_ends_where_nothing_can_follow_though_the_model_has_not_ended_it(drive):
    driver = drive()
    driver.add(0, PROMPT, COLOUR, logit_bias={IM_END: -100.0})
    driver.add(1, PROMPT, COLOUR, ignore_eos=True)
    driver.add(2, PROMPT, COLOUR, min_tokens=50)
    driver.run()
    for key in range(3):
        assert driver.text(key) in ("red", "green", "dark blue")
        assert (driver.reason(key), driver.stop_token(key)) == ("stop", None)


def test_an_answer_that_may_go_on_ends_by_the_models_own_word(drive):
    digits = Grammar(kind="regex", text="[0-9]+")
    driver = drive()
    driver.add(0, PROMPT, digits, logit_bias={IM_END: 100.0})
    driver.add(1, PROMPT, digits, logit_bias={IM_END: 100.0}, min_tokens=7)
    driver.add(2, PROMPT, digits, logit_bias={IM_END: 100.0}, ignore_eos=True, max_tokens=9)
    driver.add(3, PROMPT, digits, logit_bias={290: 100.0}, stop_token_ids=(290,))
    driver.run()
    assert [len(driver.tokens(key)) for key in range(4)] == [2, 8, 9, 2]
    assert [driver.stop_token(key) for key in range(4)] == [IM_END, IM_END, None, 290]
    assert [driver.reason(key) for key in range(4)] == ["stop", "stop", "length", "stop"]
    assert all(driver.text(key).isdigit() for key in range(4))


def test_a_bias_against_all_that_is_allowed_changes_nothing_of_that(drive):
    driver = drive()
    allowed = {token: -100.0 for token in range(2991)}
    driver.add(0, PROMPT, PERSON, logit_bias=allowed)
    driver.add(1, PROMPT, PERSON, logit_bias={END_THINK: 100.0, 3050: 100.0})
    for key in driver.run().finished:
        validate(json.loads(driver.text(key)), "person")
    assert len(driver.finished) == 2


def test_max_tokens_may_cut_an_answer(drive):
    driver = drive()
    driver.add(0, PROMPT, PERSON, max_tokens=5)
    driver.run()
    assert driver.reason(0) == "length" and len(driver.tokens(0)) == 5


@pytest.mark.parametrize("opening", [(THINK,), ()], ids=["thinks", "does not think"])
def test_a_thought_may_be_opened_or_not(drive, opening):
    grammar = schema(SCHEMAS["person"], thought_start_id=THINK, thought_end_ids=(END_THINK,))
    bias = {END_THINK: 6.0, THINK: -100.0}
    driver = drive()
    for key in range(4):
        driver.add(key, PROMPT, grammar, logit_bias=bias, max_tokens=1500, resume=(opening,))
    driver.run()
    for key in range(4):
        text = driver.text(key)
        assert ("</think>" in text) == bool(opening)
        validate(json.loads(text.rpartition("</think>")[2]), "person")


def test_the_first_token_may_open_a_thought(drive):
    driver = drive()
    grammar = schema(SCHEMAS["person"], thought_start_id=THINK, thought_end_ids=(END_THINK,))
    driver.add(0, PROMPT, grammar, logit_bias={THINK: 100.0}, max_tokens=3)
    assert driver.run().tokens(0) == [THINK] * 3


def test_a_thought_does_not_end_the_answer(drive):
    driver = drive()
    driver.add(
        0,
        PROMPT,
        schema({}, thought_end_ids=(END_THINK,)),
        logit_bias={IM_END: 100.0},
        max_tokens=20,
    )
    driver.run()
    assert driver.reason(0) == "length" and IM_END not in driver.tokens(0)


KINDS = {
    "drawn": {},
    "cooler": {"temperature": 0.7, "top_p": 0.9, "top_k": 20},
    "greedy": {"temperature": 0.0},
    "penalized": {"repetition_penalty": 1.2, "presence_penalty": 0.3, "frequency_penalty": 0.3},
    "logprobs": {"logprobs": 3, "min_p": 0.01},
    "late": {"min_tokens": 30},
}


def answers(driver, kind, **fields):
    for key, grammar in enumerate([PERSON, ORDER, COLOUR, None]):
        driver.add(key, PROMPT, grammar, **KINDS[kind], **fields, max_tokens=120)
    driver.run()
    assert not driver.failed
    return [(driver.tokens(key), driver.reason(key)) for key in range(4)]


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_is_the_same_alone_and_in_company(drive, kind):
    whole = answers(drive(), kind)
    for key, grammar in enumerate([PERSON, ORDER, COLOUR, None]):
        alone = drive()
        alone.add(key, PROMPT, grammar, **KINDS[kind], max_tokens=120)
        alone.run()
        assert (alone.tokens(key), alone.reason(key)) == whole[key]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "settings",
    [
        {"num_speculative_tokens": 5},
        {"async_scheduling": "on"},
        {"async_scheduling": "on", "num_speculative_tokens": 3},
        {"max_num_batched_tokens": 16, "max_num_seqs": 8},
        {"num_blocks": 24, "max_num_seqs": 4},
        {"num_blocks": 24, "max_num_seqs": 4, "async_scheduling": "on"},
    ],
    ids=["drafts", "overlapping", "both", "in pieces", "preempted", "preempted overlapping"],
)
def test_an_answer_is_the_same_however_it_is_computed(drive, kind, settings):
    driver = drive(**settings)
    assert answers(driver, kind) == answers(drive(), kind)
    if "num_blocks" in settings and kind == "drawn":
        assert driver.engine.stats().preemptions


def test_a_deterministic_engine_gives_the_same_bits(drive):
    once = answers(drive(deterministic=True), "drawn")
    assert once == answers(drive(deterministic=True, num_speculative_tokens=4), "drawn")


def test_forced_tokens_take_no_steps_of_their_own(drive):
    driver = drive()
    name, value = "a_very_long_name_of_a_property", "with a long value as well"
    forced = {
        "x-guidance": {"whitespace_flexible": False},
        "type": "object",
        "properties": {name: {"const": value}},
        "required": [name],
        "additionalProperties": False,
    }
    driver.add(0, PROMPT, schema(forced))
    driver.run()
    assert json.loads(driver.text(0)) == {name: value}
    assert driver.steps < len(driver.tokens(0)) / 2
    assert driver.engine.stats().drafted_tokens == 0


def test_log_probabilities_are_of_the_models_own_distribution(drive):
    free, bound = drive(), drive()
    free.add(0, PROMPT, None, logprobs=20, max_tokens=1, temperature=0.0)
    bound.add(0, PROMPT, COLOUR, logprobs=20, max_tokens=1, temperature=0.0)
    [here], [there] = free.run().chunks[0], bound.run().chunks[0]
    assert here.logprobs[0].top_ids == there.logprobs[0].top_ids
    assert here.logprobs[0].token_id != there.logprobs[0].token_id


def test_choices_differ_and_each_is_valid(drive):
    driver = drive()
    driver.add(0, PROMPT, ORDER, choices=(0, 1, 2, 3))
    driver.add(1, PROMPT, ORDER, seed=0)
    driver.run()
    texts = [driver.text(0, choice) for choice in range(4)]
    assert len(set(texts)) == 4
    for text in texts:
        validate(json.loads(text), "nested records")
    assert driver.tokens(0, 0) == driver.tokens(1), "the first choice is the only one of n = 1"


@pytest.mark.parametrize(
    "thought", [{}, {"thought_end_ids": (END_THINK,)}], ids=["plain", "thinking"]
)
def test_an_answer_cut_at_any_token_goes_on_as_if_nothing_had_happened(drive, thought):
    grammar = schema(SCHEMAS["nested records"], **thought)
    bias = {"logit_bias": {END_THINK: 7.0}, "seed": 5} if thought else {"seed": 3}
    whole = drive()
    whole.add(0, PROMPT, grammar, **bias)
    tokens = whole.run().tokens(0)
    assert whole.reason(0) == "stop" and 20 < len(tokens) < 400
    successor = drive(max_num_seqs=64)
    cuts = range(0, len(tokens), 1 if len(tokens) < 120 else 3)
    for cut in cuts:
        successor.add(cut, PROMPT, grammar, **bias, resume=(tuple(tokens[:cut]),))
    successor.run()
    for cut in cuts:
        assert successor.tokens(cut) == tokens[cut:], cut
        assert successor.reason(cut) == "stop"


def test_a_whole_answer_gone_on_with_ends_at_once(drive):
    whole = drive()
    whole.add(0, PROMPT, COLOUR, ignore_eos=True)
    tokens = whole.run().tokens(0)
    successor = drive()
    successor.add(0, PROMPT, COLOUR, ignore_eos=True, resume=(tuple(tokens),))
    successor.run()
    assert successor.tokens(0) == [] and successor.reason(0) == "stop"


def test_a_request_whose_grammar_fails_ends_alone_and_says_so(drive, caplog):
    driver = drive()
    driver.add(0, PROMPT, PERSON, choices=(0, 1))
    driver.add(1, PROMPT, PERSON)
    for _ in range(3):
        driver.step()
    [broken, *_] = driver.engine._groups[0].sequences
    compiled = broken.grammar.compiled
    broken.grammar.matcher.consume_token(IM_END)  # into its state of error
    driver.run()
    assert driver.failed[0].reason == "engine_error" and 0 not in driver.finished
    validate(json.loads(driver.text(1)), "person")
    assert "request 0 failed: its grammar" in caplog.text
    assert compiled.is_spoiled and driver.compiler.known(PERSON) is None


def test_a_request_that_ends_lets_go_of_its_matcher(drive):
    driver = drive()
    for key in range(3):
        driver.add(key, PROMPT, PERSON, max_tokens=4 if key else 100)
    driver.step()
    groups = list(driver.engine._groups.values())
    states = [sequence.grammar for group in groups for sequence in group.sequences]
    matchers = [weakref.ref(state) for state in states]
    del groups, states
    driver.engine.abort(0)
    driver.run()
    gc.collect()
    assert [matcher() for matcher in matchers] == [None] * 3


def doubling(depth):
    rules = "".join(f"R{i}: R{i + 1} R{i + 1}\n" for i in range(depth))
    return f'{rules}R{depth}: "a"\n'


@pytest.mark.parametrize(
    "grammar",
    [
        Grammar(kind="lark", text="start: /x{40}/ /[0-9]/? R0\n" + doubling(20)),
        Grammar(kind="lark", text='start: e\ne: e e | "a" | "b" | ""'),
        Grammar(kind="regex", text="(.*a){30}"),
        Grammar(kind="regex", text="[01]*1[01]{30}"),
        schema({"type": "array", "minItems": 100_000}),
        schema({"type": "string", "pattern": "^(a|a)*(a|aa)*(a|aaa)*b$"}),
        schema({"$defs": {"t": {"items": {"$ref": "#/$defs/t"}}}, "$ref": "#/$defs/t"}),
    ],
    ids=["slow later", "ambiguous", "states", "2^30", "items", "evil", "recursive"],
)
def test_a_hostile_grammar_hurts_only_its_own_request(drive, grammar):
    driver = drive()
    driver.add(0, PROMPT, grammar, max_tokens=100)
    driver.add(1, PROMPT, PERSON)
    driver.run()
    assert 0 in driver.finished or driver.failed[0].reason == "engine_error"
    validate(json.loads(driver.text(1)), "person")


def test_rows_without_a_grammar_are_as_ever(drive):
    mixed, plain = drive(), drive()
    for key in range(4):
        plain.add(key, PROMPT, None, max_tokens=30)
        mixed.add(key, PROMPT, None, max_tokens=30)
    mixed.add(9, PROMPT, ORDER)
    plain.run(), mixed.run()
    assert all(plain.tokens(key) == mixed.tokens(key) for key in range(4))


def test_a_record_of_many_optional_keys_is_served(drive):
    driver = drive()
    keys = {f"key_{number}": {"type": "boolean"} for number in range(200)}
    many = {"type": "object", "properties": keys, "additionalProperties": False}
    driver.add(0, PROMPT, schema(many), max_tokens=2500)
    driver.run()
    if driver.reason(0) == "stop":
        jsonschema.validate(json.loads(driver.text(0)), many)
