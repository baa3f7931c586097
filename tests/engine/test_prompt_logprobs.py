"""How likely a prompt was, as the model says it of all its tokens at once."""

import pytest
import torch

from tests.engine.conftest import HYBRIDS
from workers.engine import step_plan

SCORED = {"prompt_logprobs": 2, "max_tokens": 4}


def expected(model, prompt: list[int]) -> list[float]:
    with torch.no_grad():
        logprobs = model(torch.tensor([prompt])).logits[0].log_softmax(-1)
    return [logprobs[i, token].item() for i, token in enumerate(prompt[1:])]


def check(driver, model, key: int, prompt: list[int], tolerance: float = 2e-4) -> None:
    scores = driver.prompt_logprobs[key]
    assert [score.token_id for score in scores] == prompt[1:]
    assert [score.logprob for score in scores] == pytest.approx(
        expected(model, prompt), abs=tolerance
    )
    for score in scores:
        assert len(score.top_ids) == 2 and score.top_logprobs[0] >= score.top_logprobs[1]
        assert score.top_logprobs[0] >= score.logprob or score.token_id == score.top_ids[0]


@pytest.mark.parametrize("name", ["qwen2", "qwen3", "qwen3_next"])
def test_every_token_but_the_first_has_its_logprob(drive, prompts, model_of, name):
    driver, (_, model) = drive(name), model_of(name)
    for key, prompt in enumerate(prompts(5)):
        driver.add(key, prompt, **SCORED)
        driver.add(100 + key, prompt, max_tokens=4)
    driver.run()
    for key, prompt in enumerate(prompts(5)):
        check(driver, model, key, prompt, 1e-3 if name in HYBRIDS else 2e-4)
        assert driver.tokens(key) == driver.tokens(100 + key)
        assert 100 + key not in driver.prompt_logprobs


@pytest.mark.parametrize(
    "settings",
    [
        {"max_num_batched_tokens": 16},
        {"async_scheduling": "on", "max_num_batched_tokens": 32},
        {"num_speculative_tokens": 4},
        {"deterministic": True},
        {"num_blocks": 48, "max_num_batched_tokens": 24},  # too few for all: some are preempted
    ],
)
def test_chunks_overlapping_steps_drafts_and_preemption_change_nothing(
    drive, prompts, model_of, settings, monkeypatch
):
    monkeypatch.setattr(step_plan, "MAX_SCORED_TOKENS", 10)
    driver, (_, model) = drive(**settings), model_of("qwen3")
    asked = prompts(6, longest=90)
    for key, prompt in enumerate(asked):
        driver.add(key, prompt, **SCORED | {"max_tokens": 40}, choices=(0, 1))
        driver.add(100 + key, prompt, max_tokens=40)
    driver.run()
    if "num_blocks" in settings:
        assert driver.engine.stats().preemptions > 0
    for key, prompt in enumerate(asked):
        check(driver, model, key, prompt)
        assert driver.tokens(key, 0) == driver.tokens(100 + key)


def test_what_is_in_the_cache_is_computed_again_and_found_by_others(drive, prompts, model_of):
    driver, (_, model) = drive(), model_of("qwen3")
    prompt = prompts(1)[0] * 2
    for key in range(3):
        driver.add(key, prompt, **SCORED if key < 2 else {})
        driver.run()
    assert driver.cached_tokens[1] == 0 < driver.cached_tokens[2]
    check(driver, model, 0, prompt)
    check(driver, model, 1, prompt)


def test_the_next_choice_scores_on_where_the_first_is_given_up(drive, prompts, model_of):
    driver, (_, model) = drive(max_num_batched_tokens=16), model_of("qwen3")
    prompt = prompts(1)[0] * 2
    driver.add(0, prompt, **SCORED, choices=(0, 1))
    driver.step()
    driver.engine.abort(0, (0,))
    driver.run()
    check(driver, model, 0, prompt)


def test_a_prompt_of_one_token_has_nothing_to_score(drive):
    driver = drive()
    driver.add(0, [9], **SCORED)
    assert len(driver.run().tokens(0)) == 4
    assert driver.prompt_logprobs == {}
