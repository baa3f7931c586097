"""Hybrid models answer as transformers' generate(), however the engine got to compute them."""

import pytest
import torch

from tests.engine.conftest import HYBRIDS, Driver, write_model
from tests.engine.test_parity import Comparison, run_and_check
from tests.engine.test_steps import MODES, load
from workers.config import EngineConfig
from workers.engine.engine import Engine

# transformers differs from itself, a prompt cut and whole, by nearly as much: DECISIONS 52.
NEAR_TIE = 1e-3
NEW_TOKENS = 24
DRAWN = {"temperature": 1.0, "top_p": 0.95, "seed": 11}


@pytest.fixture(params=HYBRIDS)
def name(request):
    return request.param


@pytest.fixture
def comparison(model_of, name):
    compared = Comparison(model_of(name)[1], NEAR_TIE)
    yield compared
    compared.report()


def prompt_of(length, seed=0):
    generator = torch.Generator().manual_seed(1000 * seed + length)
    return torch.randint(4, 320, (length,), generator=generator).tolist()


def test_prompts_of_all_lengths_near_chunks_and_blocks(drive, name, comparison):
    driver = drive(name, block_size=32, num_blocks=100)
    for length in (1, 2, 31, 32, 63, 64, 65, 127, 128, 129):
        driver.add(length, prompt_of(length), max_tokens=NEW_TOKENS)
        driver.run()
        comparison.check(prompt_of(length), driver.tokens(length))


@pytest.mark.parametrize("length", [2000, 5120])
def test_long_prompts(drive, name, comparison, length):
    driver = drive(name, num_blocks=700)
    run_and_check(driver, [prompt_of(length)], comparison)
    driver.add(1, prompt_of(length), max_tokens=NEW_TOKENS)
    assert driver.run().cached_tokens[1] == (length - 1) // 64 * 64
    comparison.check(prompt_of(length), driver.tokens(1))


def test_in_a_mixed_batch(drive, name, prompts, comparison):
    driver = drive(name, num_blocks=700)
    run_and_check(driver, prompts(16, longest=300), comparison)
    assert driver.engine.stats().preemptions == 0


@pytest.mark.parametrize("budget", [1, 63, 64, 65, 500])
def test_with_prompts_in_chunks(drive, name, prompts, comparison, budget):
    driver = drive(name, max_num_batched_tokens=budget, max_num_seqs=min(budget, 16))
    lengths = {1: (70, 3), 500: (130, 3, 1200, 41)}.get(budget, (130, 64, 3, 200, 41))
    run_and_check(driver, [prompt_of(length) for length in lengths], comparison)


@pytest.mark.parametrize("caches", [True, False])
def test_after_preemption(drive, name, prompts, comparison, caches):
    driver = drive(name, num_blocks=40, enable_prefix_caching=caches)
    run_and_check(driver, prompts(8, longest=120), comparison)
    assert driver.engine.stats().preemptions > 0


def test_on_a_prefix_hit(drive, name, prompts, comparison):
    driver = drive(name, max_num_batched_tokens=96)
    prefix = prompt_of(150)
    run_and_check(driver, [prefix + rest for rest in prompts(3, longest=90)], comparison)
    for key, rest in enumerate(prompts(3, longest=90, seed=8), start=10):
        driver.add(key, prefix + rest, max_tokens=NEW_TOKENS)
        driver.run()
        assert driver.cached_tokens[key] >= 128
        comparison.check(prefix + rest, driver.tokens(key))


def test_choices_share_the_prompt_and_equal_single_ones(drive, name, comparison):
    driver, alone = drive(name), drive(name)
    prompt = prompt_of(150)
    driver.add(0, prompt, choices=(0, 1, 2, 3), max_tokens=NEW_TOKENS)
    driver.add(1, prompt, choices=(0, 1, 2, 3), max_tokens=NEW_TOKENS, **DRAWN)
    driver.run()
    for choice in range(4):
        comparison.check(prompt, driver.tokens(0, choice))
    alone.add(1, prompt, max_tokens=NEW_TOKENS, **DRAWN)
    assert alone.run().tokens(1) == driver.tokens(1, 0)
    assert len({tuple(driver.tokens(1, choice)) for choice in range(4)}) == 4


def test_siblings_compute_only_what_lies_behind_the_snapshot(drive, name):
    driver = drive(name, max_num_batched_tokens=64)
    prompt = prompt_of(1030)
    driver.add(0, prompt, choices=(0, 1, 2, 3), max_tokens=5)
    driver.run()
    assert driver.steps < 1030 // 64 + 15  # else 4 times as many


@pytest.mark.parametrize("cut", [0, 1, 7, 30, 69])
def test_a_resumed_answer_is_the_undisturbed_one(drive, name, cut):
    whole, successor = drive(name), drive(name)
    fields = {"max_tokens": 70} | DRAWN
    whole.add(0, prompt_of(100), **fields)
    tokens = whole.run().tokens(0)
    successor.add(1, prompt_of(90), max_tokens=20)
    successor.add(0, prompt_of(100), **fields, resume=(tuple(tokens[:cut]),))
    assert successor.run().tokens(0) == tokens[cut:]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_random_load_is_answered_alike(drive, prompts, name, mode, seed):
    settings = {"num_blocks": 26, "max_num_seqs": 6, "max_num_batched_tokens": 48}
    plain = drive(name, **settings)
    expected = load(plain, prompts, seed)
    assert plain.engine.stats().preemptions > 0
    assert load(drive(name, **settings, **MODES[mode]), prompts, seed) == expected


def test_where_text_repeats_drafts_save_steps(drive, name):
    fields = {"max_tokens": 150, "logit_bias": {7: 50.0, 9: 50.0, 11: 50.0}}  # of these alone
    plain, speculating = drive(name), drive(name, num_speculative_tokens=5)
    for driver in (plain, speculating):
        driver.add(0, prompt_of(50), **fields)
        driver.run()
    assert speculating.tokens(0) == plain.tokens(0)
    stats = speculating.engine.stats()
    assert stats.drafted_tokens > stats.accepted_tokens == plain.steps - speculating.steps > 30


def test_a_state_goes_back_from_wrong_drafts_to_the_bit(drive, name):
    """Drafts are computed as decoded tokens are, one by one, so states are the very same."""
    said = []
    for drafts in (0, 3):
        driver = drive(name, deterministic=True, num_speculative_tokens=drafts)
        fields = {"max_tokens": 60, "logprobs": 2, "logit_bias": {7: 50.0, 9: 50.0, 11: 50.0}}
        driver.add(0, prompt_of(50), **fields)
        said.append([chunk.logprobs for chunk in driver.run().chunks[0]])
    stats = driver.engine.stats()
    assert said[0] == said[1] and 0 < stats.accepted_tokens < stats.drafted_tokens


def test_an_answer_with_drafts_is_found_again(drive, name, comparison):
    driver = drive(name, num_speculative_tokens=5)
    prompt = [7, 8, 9, 10] * 20
    driver.add(0, prompt, max_tokens=200, logit_bias=dict.fromkeys((7, 8, 9), 30.0))
    turn = [*prompt, *driver.run().tokens(0), *prompt_of(20)]
    assert driver.engine.stats().accepted_tokens > 0
    driver.add(1, turn, max_tokens=NEW_TOKENS)
    assert driver.run().cached_tokens[1] >= 256
    comparison.check(turn, driver.tokens(1))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_deterministic_bits_are_those_of_other_chunks_neighbours_and_hits(drive, name, dtype):
    fields = {"max_tokens": 30, "temperature": 1.0, "seed": 3, "logprobs": 3}
    said = []
    for budget, neighbours in ((512, 0), (50, 3)):
        driver = drive(name, dtype=dtype, deterministic=True, max_num_batched_tokens=budget,
                       max_num_seqs=8)  # fmt: skip
        for key in range(neighbours):
            driver.add(key, prompt_of(20 + key), max_tokens=15)
        for key in (10, 11):
            driver.add(key, prompt_of(140), **fields)
            driver.run()
            said.append([(chunk.token_ids, chunk.logprobs) for chunk in driver.chunks[key]])
        assert driver.cached_tokens[11] == 128
    assert all(other == said[0] for other in said)


@torch.no_grad()
def test_bfloat16_is_as_near_to_float32_as_transformers(drive, model_of, name, tmp_path):
    """Each token's log-probability, teacher-forced, of prompts and answers that decode together."""
    path, exact = model_of(name)
    rounded = type(exact).from_pretrained(path, dtype=torch.bfloat16)
    driver = drive(name, dtype="bfloat16")
    lengths = (5, 64, 130, 300)
    for length in lengths:
        driver.add(length, prompt_of(length), max_tokens=NEW_TOKENS, logprobs=1)
    driver.run()
    mine, theirs = [], []
    for length in lengths:
        tokens = driver.tokens(length)
        text = torch.tensor([prompt_of(length) + tokens])
        expected, other = (
            model(text).logits[0, length - 1 : -1].float().log_softmax(-1)
            for model in (exact, rounded)
        )
        for place, (token, chunk) in enumerate(zip(tokens, driver.chunks[length], strict=True)):
            reference = float(expected[place, token])
            mine.append(abs(chunk.logprobs[0].logprob - reference))
            theirs.append(abs(float(other[place, token]) - reference))
    print(f"mean error {sum(mine) / len(mine):.4f}, transformers' {sum(theirs) / len(theirs):.4f}")
    assert sum(mine) < 1.5 * sum(theirs)


def test_long_states_of_the_published_shape(tmp_path):
    """Heads of 128 and of 256, as in every published model, in one group of four layers."""
    changes = {
        "head_dim": 256,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "initializer_range": 0.05,
    }
    model = write_model(tmp_path, "qwen3_5", **changes)
    config = EngineConfig(str(tmp_path), device="cpu", num_blocks=60, threads=2, dtype="float32")
    driver = Driver(Engine(config, lambda stage, fraction: None))
    comparison = Comparison(model, NEAR_TIE)
    run_and_check(driver, [prompt_of(150), prompt_of(64)], comparison)
    comparison.report()
