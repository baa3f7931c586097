"""A thought has as many tokens as its caller allows, and what follows is as it would be."""

import json

import pytest

from tests.engine.test_grammar import (
    END_THINK,
    IM_END,
    PROMPT,
    SCHEMAS,
    THINK,
    drive,  # noqa: F401
    model_dir,  # noqa: F401
    schema,
    tools,  # noqa: F401
    validate,
)
from workers.wire.grammar import Grammar

# A random model hardly ends a thought by itself, and hardly an answer.
LONG = {END_THINK: -100.0, IM_END: -100.0}


def limited(limit, **fields):
    return Grammar(
        kind="any", text="", thought_end_ids=(END_THINK,), max_thought_tokens=limit, **fields
    )


@pytest.mark.parametrize("limit", [0, 1, 7])
def test_a_thought_ends_at_its_limit(drive, limit):  # noqa: F811
    driver = drive()
    driver.add(0, PROMPT, limited(limit), logit_bias=LONG, max_tokens=limit + 9)
    tokens = driver.run().tokens(0)
    assert tokens.index(END_THINK) == limit and len(tokens) == limit + 9


def test_a_limit_nobody_reaches_changes_nothing(drive):  # noqa: F811
    driver = drive()
    for key, grammar in enumerate([limited(1000), None]):
        driver.add(key, PROMPT, grammar, seed=5, temperature=1.0, max_tokens=30, ignore_eos=True)
    driver.run()
    assert driver.tokens(0) == driver.tokens(1)


def test_an_end_of_several_tokens_is_finished_where_it_had_begun(drive):  # noqa: F811
    end = (11, 12, 13)
    grammar = Grammar(kind="any", text="", thought_end_ids=end, max_thought_tokens=5)
    driver = drive()
    driver.add(0, PROMPT, grammar, max_tokens=12, resume=((1, 2, 3, 4, 11),), ignore_eos=True)
    driver.add(1, PROMPT, grammar, max_tokens=12, resume=((1, 2, 3, 4, 5),), ignore_eos=True)
    driver.run()
    assert driver.tokens(0)[:2] == [12, 13]
    assert driver.tokens(1)[:3] == [11, 12, 13]


def test_a_schema_begins_behind_a_thought_that_was_cut(drive):  # noqa: F811
    driver = drive()
    grammar = schema(SCHEMAS["person"], thought_end_ids=(END_THINK,), max_thought_tokens=6)
    driver.add(0, PROMPT, grammar, logit_bias={END_THINK: -100.0}, max_tokens=1500)
    thought, _, answer = driver.run().text(0).partition("</think>")
    assert driver.tokens(0).index(END_THINK) == 6
    validate(json.loads(answer), "person")


def test_a_thought_that_is_opened_late_is_limited_too(drive):  # noqa: F811
    driver = drive()
    grammar = limited(4, thought_start_id=THINK)
    driver.add(0, PROMPT, grammar, logit_bias=LONG, max_tokens=12, resume=((THINK,),))
    assert driver.run().tokens(0).index(END_THINK) == 4


def test_drafts_do_not_reach_beyond_the_limit(drive):  # noqa: F811
    def tokens(**settings):
        driver = drive(**settings)
        bias = LONG | {50: 30.0, 51: 30.0}  # it repeats itself, so drafts are right
        driver.add(0, PROMPT, limited(20), logit_bias=bias, max_tokens=40, temperature=0.5)
        return driver.run().tokens(0)

    plain = tokens()
    assert plain.index(END_THINK) == 20
    assert tokens(num_speculative_tokens=4) == plain
