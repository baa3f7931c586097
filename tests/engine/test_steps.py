"""Steps that overlap, and steps that verify drafts, say exactly what plain steps say."""

import random

import pytest

DRAWN = {"temperature": 1.0, "top_p": 0.95}
KINDS = (
    {},
    {},
    DRAWN | {"top_k": 40, "min_p": 0.01},
    DRAWN | {"repetition_penalty": 1.3, "frequency_penalty": 0.7},
    DRAWN | {"logit_bias": {7: 3.0, 9: -100.0}, "logprobs": 3},
    DRAWN | {"min_tokens": 9, "stop_token_ids": tuple(range(4, 300, 3))},
    {"min_tokens": 3, "ignore_eos": False, "logit_bias": {2: 4.0}},
)
MODES = {
    "overlapping": {"async_scheduling": "on"},
    "speculating": {"num_speculative_tokens": 5},
    "both": {"async_scheduling": "on", "num_speculative_tokens": 5},
}


@pytest.fixture(params=["qwen2", "qwen3", "qwen3_moe"])
def name(request):
    return request.param


def said(driver, key):
    """Return what was said of a request: tokens, log-probabilities and ends of each choice."""
    chunks = sorted(driver.chunks.get(key, []), key=lambda chunk: (chunk.choice, chunk.position))
    return [
        (c.choice, c.position, c.token_ids, c.finish_reason, c.stop_token_id,
         [(p.token_id, p.top_ids) for p in c.logprobs])
        for c in chunks
    ]  # fmt: skip


def load(driver, prompts, seed):
    """Run requests of all kinds that come and go at random; return what was said of those that
    nobody aborted.
    """
    chosen = random.Random(seed)
    asked = prompts(16, longest=60, seed=seed)
    doomed = {key: chosen.randrange(1, 12) for key in chosen.sample(range(16), 3)}
    for key, prompt in enumerate(asked):
        choices = tuple(range(chosen.choice((1, 1, 1, 3))))
        fields = {"max_tokens": chosen.randrange(1, 40), "seed": key} | KINDS[key % len(KINDS)]
        prompt = prompt[:9] * 3 if key % 4 == 0 else prompt
        driver.add(key, prompt, choices=choices, **fields)
        for _ in range(chosen.randrange(3)):
            driver.step()
        for other, delay in list(doomed.items()):
            if other + delay == key:
                driver.engine.abort(other)
    driver.run()
    assert driver.engine.stats().free_blocks == driver.engine.stats().total_blocks
    return {key: said(driver, key) for key in range(16) if key not in doomed}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", range(2))
def test_a_random_load_is_answered_alike(drive, prompts, name, mode, seed):
    settings = {"num_blocks": 26, "max_num_seqs": 6, "max_num_batched_tokens": 48}
    plain = drive(name, **settings)
    expected = load(plain, prompts, seed)
    assert plain.engine.stats().preemptions > 0
    assert load(drive(name, **settings, **MODES[mode]), prompts, seed) == expected


def test_where_text_repeats_drafts_save_steps(drive, prompts, name):
    [prompt] = prompts(1)
    fields = {"max_tokens": 100, "logit_bias": {7: 50.0, 9: 50.0, 11: 50.0}}  # of these alone
    plain, speculating = drive(name), drive(name, num_speculative_tokens=5)
    for driver in (plain, speculating):
        driver.add(0, prompt, **fields)
        driver.run()
    assert said(speculating, 0) == said(plain, 0)
    stats = speculating.engine.stats()
    assert stats.drafted_tokens >= stats.accepted_tokens == plain.steps - speculating.steps
    assert speculating.steps < 0.7 * plain.steps


def test_deterministic_bits_are_the_same_with_drafts(drive, prompts, name):
    [prompt] = prompts(1)
    logprobs = []
    for drafts in (0, 5):
        driver = drive(name, dtype="bfloat16", deterministic=True, num_speculative_tokens=drafts)
        driver.add(0, prompt, max_tokens=60, logprobs=2, logit_bias={7: 50.0, 9: 50.0})
        driver.run()
        logprobs.append([chunk.logprobs for chunk in driver.chunks[0]])
    assert driver.engine.stats().accepted_tokens > 0, "nothing was drafted"
    assert logprobs[0] == logprobs[1]


def test_an_overlapped_step_ends_a_request_one_step_late_and_frees_all(drive, prompts):
    driver = drive(async_scheduling="on")
    [prompt] = prompts(1)
    driver.add(0, prompt, max_tokens=5)
    driver.step()
    assert 0 not in driver.chunks, "the host waited for the first step"
    driver.run()
    assert len(driver.tokens(0)) == 5 and driver.finished[0].completion_tokens == 5
    assert driver.steps == 6


def test_a_request_aborted_while_its_step_is_under_way_says_no_more(drive, prompts):
    driver = drive(async_scheduling="on")
    first, second = prompts(2)
    driver.add(0, first)
    driver.step()
    driver.step()
    assert driver.engine.abort(0)
    driver.chunks.clear()
    driver.add(0, second)  # the same key again
    alone = drive()
    alone.add(0, second)
    assert driver.run().tokens(0) == alone.run().tokens(0)
