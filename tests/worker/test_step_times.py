"""How long a step may take, from the steps before it."""

import math

import pytest

from workers.engine_core import StepOutput
from workers.wire.protocol import Chunk, Finished, Generate, Image, SamplingParams, Started
from workers.worker.step_times import FACTOR, MIN_SECONDS, NUM_FEW, NUM_RECENT, StepTimes

PATIENCE, BUDGET = 120.0, 512


class Loop:
    """The step times of a loop whose engine this test is."""

    def __init__(self):
        self.times = StepTimes(PATIENCE, BUDGET)
        self.num_added = 0

    @property
    def limit(self):
        return self.times.limit

    def add(self, num_tokens, choices=(0,), resume=()):
        self.num_added += 1
        key = (1, self.num_added)
        params = SamplingParams(max_tokens=1000)
        prompt = (7,) * num_tokens
        asked = {"wid": self.num_added, "request_id": "r", "prompt_ids": prompt, "params": params}
        self.times.add(key, Generate(**asked, choices=choices, resume=resume))
        return key

    def add_picture(self, num_tokens):
        """Add a prompt that is one picture."""
        self.num_added += 1
        image = Image(0, 1, num_tokens, b"", b"")
        params = SamplingParams(max_tokens=1)
        asked = {"wid": self.num_added, "request_id": "r", "prompt_ids": (7,) * num_tokens}
        self.times.add((1, self.num_added), Generate(**asked, params=params, images=(image,)))
        return 1, self.num_added

    def step(self, seconds, *, started=(), tokens=(), cached=0, choice=0, reason=None):
        self.times.note(
            seconds,
            StepOutput(
                started=[(key, Started(key[1], cached)) for key in started],
                chunks=[(key, Chunk(key[1], choice, 0, (7,), reason)) for key in tokens],
            ),
        )

    def decode(self, count=NUM_FEW, seconds=0.05):
        for _ in range(count):
            self.step(seconds)

    def answer(self, num_tokens, *seconds, cached=0):
        """Let a request run from its start to its first token, in steps of so many seconds."""
        key = self.add(num_tokens)
        for number, length in enumerate(seconds):
            is_last = number == len(seconds) - 1
            started = [key] if number == 0 else []
            self.step(length, started=started, tokens=[key] if is_last else [], cached=cached)
        self.times.forget(key)


@pytest.fixture
def loop():
    return Loop()


def test_until_a_few_steps_are_known_the_limit_is_long(loop):
    for _ in range(NUM_FEW):
        assert loop.limit == PATIENCE
        loop.decode(1)
    assert loop.limit == MIN_SECONDS


@pytest.mark.parametrize("seconds", [0.001, 0.6, 3.0, 30.0])
def test_a_step_is_judged_by_the_slowest_of_the_last_ones(loop, seconds):
    loop.decode(seconds=seconds / 2)
    loop.step(seconds)
    assert loop.limit == max(MIN_SECONDS, FACTOR * seconds)


@pytest.mark.parametrize("slow", [7.0, 60.0, 3600.0])
@pytest.mark.parametrize("before", [0, NUM_FEW, 1000])
def test_one_slow_step_is_forgotten_after_some_others(loop, slow, before):
    loop.decode(before)
    loop.step(slow)
    loop.decode(NUM_RECENT - 1)
    assert loop.limit == FACTOR * slow
    loop.decode(1)
    assert loop.limit == MIN_SECONDS


@pytest.mark.parametrize("slow", [7.0, 60.0, 3600.0])
def test_one_slow_prompt_is_forgotten_after_some_others(loop, slow):
    loop.decode()
    loop.answer(100, slow)
    loop.decode(NUM_RECENT)
    for _ in range(NUM_RECENT):
        loop.answer(100, 0.2)
    loop.add(100)
    assert loop.limit == MIN_SECONDS


def test_a_prompt_longer_than_any_before_is_given_time(loop):
    loop.decode()
    loop.answer(300, 2.0)
    loop.decode(NUM_RECENT)
    for length, limit in ((300, FACTOR * 2.0), (10, FACTOR * 2.0), (301, PATIENCE)):
        key = loop.add(length)
        assert loop.limit == limit, length
        loop.times.forget(key)
        assert loop.limit == MIN_SECONDS
    loop.answer(5000, 1.0, 3.0, 2.0)
    loop.decode(NUM_RECENT)
    loop.add(301)
    assert loop.limit == FACTOR * 3.0


def test_prompts_that_wait_together_are_judged_by_a_step_as_full(loop):
    loop.decode()
    loop.answer(100, 1.0)
    loop.add(100)
    assert loop.limit == FACTOR * 1.0
    loop.add(100)
    assert loop.limit == PATIENCE
    loop.answer(BUDGET, 2.0)
    for _ in range(20):
        loop.add(100)
    assert loop.limit == FACTOR * 2.0, "no step is fuller than the budget"


def test_what_a_cache_had_tells_of_no_long_prompt(loop):
    loop.decode()
    loop.answer(5000, 0.1, cached=4990)
    loop.add(5000)
    assert loop.limit == PATIENCE
    loop = Loop()
    loop.decode()
    loop.answer(300, 0.1)
    key = loop.add(5000)
    loop.step(0.1, started=[key], cached=4800)
    assert loop.limit == MIN_SECONDS


def test_steps_past_a_prompt_that_waits_tell_nothing_of_it(loop):
    """Many decode while a long prompt is in the queue; then its turn comes."""
    loop.decode()
    key = loop.add(5000)
    loop.decode(1000)
    assert loop.limit == PATIENCE
    loop.step(9.0, started=[key])
    loop.step(1.0, tokens=[key])
    loop.decode(NUM_RECENT)
    assert loop.limit == MIN_SECONDS
    loop.add(5000)
    assert loop.limit == FACTOR * 9.0


def test_a_replayed_answer_is_as_long_as_all_it_has_computed_anew(loop):
    loop.decode()
    loop.answer(100, 0.1)
    loop.add(100, resume=((),))
    assert loop.limit == MIN_SECONDS
    loop.add(60, resume=((7,) * 400,))
    assert loop.limit == PATIENCE


def test_after_a_preemption_every_answer_may_be_computed_anew(loop):
    loop.decode()
    one, two = loop.add(10, choices=(0, 1)), loop.add(20)
    loop.step(0.1, started=[one, two], tokens=[one, two])
    loop.step(0.1, tokens=[one], choice=1)
    loop.times.note_preemptions(0)
    assert loop.limit == MIN_SECONDS
    loop.times.note_preemptions(1)
    assert loop.limit == PATIENCE
    loop.step(0.1, tokens=[one, two])
    assert loop.limit == PATIENCE, "the second choice of one is still to come"
    loop.step(0.1, tokens=[one], choice=1)
    assert loop.limit == MIN_SECONDS
    assert math.inf not in [num for num, _ in loop.times._recent_prompts]


def test_a_choice_that_has_ended_is_not_computed_anew(loop):
    loop.decode()
    one = loop.add(10, choices=(0, 1))
    loop.step(0.1, started=[one], tokens=[one])
    loop.step(0.1, tokens=[one], choice=1, reason="stop")
    loop.times.note_preemptions(1)
    loop.step(0.1, tokens=[one])
    assert loop.limit == MIN_SECONDS


def test_nothing_is_kept_of_requests_that_are_over(loop):
    for number in range(5 * NUM_RECENT):
        key = loop.add(10 + number)
        if number % 3:
            loop.step(0.1, started=[key], tokens=[key] if number % 2 else [])
        loop.times.note_preemptions(number)
        loop.times.forget(key)
        loop.times.forget(key)
    assert not loop.times._prompts and not loop.times._open
    assert len(loop.times._recent_prompts) <= NUM_RECENT


def test_a_prompt_that_is_pooled_tells_of_the_next_as_an_answers_does():
    loop = Loop()
    loop.decode()
    key = loop.add(300)
    loop.times.note(
        2.0,
        StepOutput(
            started=[(key, Started(key[1], 0))],
            finished=[(key, Finished(key[1], 300, 0, b"\0\0\0\0"))],
        ),
    )
    loop.times.forget(key)
    loop.add(300)
    assert loop.limit == FACTOR * 2.0 < PATIENCE


def test_what_a_picture_takes_no_text_tells_and_it_tells_of_no_text(loop):
    for _ in range(NUM_FEW):
        text = loop.add(1500)
        loop.step(0.3, started=[text], tokens=[text], reason="stop")
        loop.times.forget(text)
    picture = loop.add_picture(1000)
    assert loop.limit == 2 * PATIENCE
    loop.step(40.0, started=[picture], tokens=[picture], reason="stop")
    loop.times.forget(picture)
    for _ in range(NUM_RECENT):
        loop.step(0.1)
    loop.add(1500)
    assert loop.limit == MIN_SECONDS
