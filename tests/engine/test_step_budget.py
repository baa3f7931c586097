"""Steps end in time for those who decode, and are as large as may be where nobody waits."""

import pytest

from workers.engine.step_budget import LEAST, StepBudget
from workers.engine.step_plan import StepPlan


@pytest.fixture
def budget():
    """Return one that knows: 50 ms without prompts, 1 ms more for each of their tokens."""
    made = StepBudget(512, 0.150)
    made.learn(0, 400, 0.4)
    made.learn(8, 0, 0.050)
    return made


def test_a_step_takes_what_the_target_leaves(budget):
    assert budget.tokens(8) == 8 + 100
    assert budget.tokens(30) == 30 + 100


def test_where_nobody_waits_it_is_as_large_as_may_be(budget):
    assert budget.tokens(0) == 512


def test_nothing_is_bounded_before_anything_is_known():
    assert StepBudget(512, 0.150).tokens(8) == 512
    assert not StepBudget(512, 0).is_bounded


def test_a_prompt_always_goes_on(budget):
    for _ in range(50):
        budget.learn(8, 0, 0.4)
    assert budget.tokens(8) == 8 + LEAST
    assert budget.tokens(500) == 512


def test_it_follows_the_machine(budget):
    for _ in range(30):
        budget.learn(8, 100, 0.050 + 0.125)
    assert 8 + 79 <= budget.tokens(8) <= 8 + 81
    for _ in range(60):
        budget.learn(8, 100, 0.050 + 0.025)
    assert 8 + 395 <= budget.tokens(8) <= 8 + 401


def test_one_interruption_says_little(budget):
    budget.learn(8, 100, 60.0)
    assert budget.tokens(8) > 8 + 50


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
