"""Steps end in time for those who decode, and are as large as may be where nobody waits."""

import pytest

from workers.engine.step_budget import LEAST, StepBound, StepBudget
from workers.engine.step_plan import StepPlan


@pytest.fixture
def budget():
    """Return one that knows: 50 ms without prompts, 1 ms more for each of their tokens."""
    made = StepBudget(512, 0.150)
    made.learn(0, 400, 0.4)
    made.learn(8, 0, 0.050)
    return made


def beside_one(budget, num_decodes):
    """Return the tokens of a step in which one prompt of 1,000 is under way."""
    bound = budget.bound(num_decodes, 0, [1000])
    assert not bound.is_turn
    return bound.num_tokens


def test_a_step_takes_what_the_target_leaves(budget):
    assert beside_one(budget, 8) == 8 + 100
    assert beside_one(budget, 30) == 30 + 100


def test_where_nobody_waits_it_is_as_large_as_may_be(budget):
    assert budget.bound(0, 5, [1000, 1000]) == StepBound(512)


def test_nothing_is_bounded_before_anything_is_known():
    assert StepBudget(512, 0.150).bound(8, 0, [1000]) == StepBound(512)
    assert not StepBudget(512, 0).is_bounded


def test_a_prompt_always_goes_on(budget):
    for _ in range(50):
        budget.learn(8, 0, 0.4)
    assert beside_one(budget, 8) == 8 + LEAST
    assert beside_one(budget, 500) == 512


def test_it_follows_the_machine(budget):
    for _ in range(30):
        budget.learn(8, 100, 0.050 + 0.125)
    assert 8 + 79 <= beside_one(budget, 8) <= 8 + 81
    for _ in range(60):
        budget.learn(8, 100, 0.050 + 0.025)
    assert 8 + 395 <= beside_one(budget, 8) <= 8 + 401


def test_one_interruption_says_little(budget):
    budget.learn(8, 100, 60.0)
    assert beside_one(budget, 8) > 8 + 50


def test_a_crowd_gets_a_turn_and_then_those_who_decode_a_step(budget):
    """A turn is 16 targets long: 2,400 tokens of 1 ms here."""
    turn = [StepBound(512, is_turn=True)] * 4 + [StepBound(2400 - 4 * 512, is_turn=True)]
    for _ in range(3):
        assert [budget.bound(8, 2, []) for _ in range(6)] == [*turn, StepBound(8)]


def test_a_turn_ends_with_its_prompts(budget):
    assert budget.bound(16, 2, []).is_turn
    assert budget.bound(16, 0, [100]).is_turn  # what began is ended
    assert budget.bound(18, 0, []) == StepBound(18 + 100)


@pytest.mark.parametrize(
    ("num_decodes", "num_new", "num_left"),
    [(4, 1, []), (40, 2, []), (8, 0, [2401, 2401, 2401]), (8, 1, [2401])],
    ids=["one", "few beside those who decode", "long ones", "one beside a long one"],
)
def test_what_is_no_crowd_gets_no_turn(budget, num_decodes, num_new, num_left):
    for _ in range(3):
        assert budget.bound(num_decodes, num_new, num_left) == StepBound(num_decodes + 100)


def steps_with(driver, keys):
    """Step until all these answers have begun; return how many steps, and how many of them gave
    a token to those who had begun before.
    """
    before, steps = driver.steps, 0
    while not all(key in driver.chunks for key in keys):
        num_chunks = len(driver.chunks[0])
        driver.step()
        steps += len(driver.chunks[0]) > num_chunks
    return driver.steps - before, steps


@pytest.fixture
def busy(drive, prompts):
    """Return a way to make an engine at which one decodes, and whose target leaves little."""

    def make(name="qwen3", **settings):
        driver = drive(name, **settings)
        driver.add(0, prompts(1)[0], max_tokens=60)
        for _ in range(3):
            driver.step()
        driver.engine._budget.learn(1, 0, 1.0)
        driver.engine._budget.learn(0, 10, 0.01)
        return driver

    return make


@pytest.mark.parametrize("name", ["qwen3", "qwen3_5"])
def test_a_crowd_begins_together_while_others_wait_once(busy, name):
    driver, unbounded = (
        busy(name, target_step_ms=target, max_num_batched_tokens=64) for target in (1000, 0)
    )
    unbounded.engine._budget._target = 0
    for each in (driver, unbounded):
        for key in range(1, 7):
            each.add(key, [5 + (key * 31 + number) % 300 for number in range(64)], max_tokens=4)
    assert steps_with(driver, range(1, 7)) == (6, 0)
    assert steps_with(unbounded, range(1, 7))[1] > 0
    driver.run()
    unbounded.run()
    assert all(driver.tokens(key) == unbounded.tokens(key) for key in range(7))


def test_where_a_crowd_finds_no_room_those_who_decode_go_on(busy, prompts):
    """Two want four rows each, of which two are free: every step is of the one who decodes."""
    driver = busy(target_step_ms=1000, max_num_batched_tokens=64, max_num_seqs=3)
    for key in (1, 2):
        driver.add(key, prompts(3)[key], max_tokens=4, choices=(0, 1, 2, 3))
    for _ in range(12):
        num_chunks = len(driver.chunks[0])
        driver.step()
        assert len(driver.chunks[0]) == num_chunks + 1
    driver.run()
    assert len(driver.tokens(0)) == 60 and len(driver.chunks[1]) == len(driver.chunks[2]) == 16


def test_a_long_prompt_lets_others_go_on(drive, prompts):
    """With a target that no step reaches, a prompt gets the least, and is computed all the same."""
    short, *_ = prompts(1)
    long = [5 + number % 300 for number in range(1000)]
    answers = []
    for target in (1, 3_600_000):
        driver = drive(target_step_ms=target, max_num_batched_tokens=256)
        driver.add(0, short, max_tokens=60)
        for _ in range(3):
            driver.step()
        driver.engine._budget.learn(1, 0, 1.0)
        driver.engine._budget.learn(0, 10, 10.0)
        driver.add(1, long, max_tokens=4)
        before = driver.steps
        while 1 not in driver.chunks:
            driver.step()
        answers.append((driver.steps - before, driver.run().tokens(0), driver.tokens(1)))
    assert answers[0][0] >= 1000 // LEAST > 5 > answers[1][0] - 1
    assert answers[0][1:] == answers[1][1:]


class Prompt:
    """What a plan knows of a sequence whose prompt is not computed yet."""

    def __init__(self, length):
        self.num_uncomputed, self.num_computed = length, 0


@pytest.mark.parametrize(("cut", "shares"), [(64, [64, 0]), (1, [32, 16])])
def test_two_long_prompts_share_the_least_but_are_cut_where_a_state_can_be_kept(cut, shares):
    plan = StepPlan(512, cut, lambda sequence: False, num_drafts=0, num_left=LEAST)
    for share in shares:
        prompt = Prompt(2000)
        assert plan.share(prompt) == share
        plan.add(prompt, share)
