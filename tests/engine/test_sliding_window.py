"""Layers with a window give transformers' tokens, however the engine got to compute them.

Windows of 16 to 40 tokens, and prompts far longer; some layers see everything.
"""

import json
from pathlib import Path

import pytest

from tests.engine.conftest import write_model
from tests.engine.test_parity import NEW_TOKENS, Comparison, run_and_check

# Which layers have one: the second, by number or by list; all of them; the first.
WINDOWS = {
    "qwen2": {"sliding_window": 16, "max_window_layers": 1},
    "qwen3": {
        "sliding_window": 40,
        "num_hidden_layers": 3,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "qwen3_moe": {"sliding_window": 24},
    "qwen2_moe": {"sliding_window": 17, "max_window_layers": 2},
}
BLOCK = 8


@pytest.fixture(scope="module")
def windowed(tmp_path_factory):
    """Return the folder of a tiny model with windows and the model itself, made once."""
    made = {}

    def windowed(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(f"windowed-{name}")
            made[name] = folder, write_model(folder, name, use_sliding_window=True, **WINDOWS[name])
        return made[name]

    return windowed


@pytest.fixture
def model_of(windowed):
    """Let `drive` take the directory of a model too."""
    return lambda name: (name, None) if isinstance(name, Path) else windowed(name)


@pytest.fixture(params=WINDOWS)
def name(request):
    return request.param


@pytest.fixture
def comparison(windowed, name):
    compared = Comparison(windowed(name)[1])
    yield compared
    compared.report()


def test_alone(drive, name, prompts, comparison):
    driver = drive(name)
    for key, prompt in enumerate(prompts(2, longest=200)):
        driver.add(key, prompt, max_tokens=NEW_TOKENS)
        driver.run()
        comparison.check(prompt, driver.tokens(key))


def test_in_a_mixed_batch(drive, name, prompts, comparison):
    run_and_check(drive(name), prompts(8, longest=160), comparison)


@pytest.mark.parametrize("budget", [8, 24, 63])
def test_with_prompts_in_chunks(drive, name, prompts, comparison, budget):
    driver = drive(name, max_num_batched_tokens=budget, max_num_seqs=8)
    run_and_check(driver, prompts(4, longest=200, seed=budget), comparison)


def test_prompts_of_several_tiles(drive, name, prompts, comparison):
    """Of 128 queries each on a CPU."""
    [prompt] = [prompt for prompt in prompts(8, longest=600) if len(prompt) > 300][:1]
    run_and_check(drive(name), [prompt], comparison)


def test_on_a_prefix_cache_hit(drive, name, prompts, comparison):
    driver = drive(name)
    [prefix] = prompts(1, longest=200, seed=2)
    assert len(prefix) > 64
    run_and_check(driver, [prefix + rest for rest in prompts(2, longest=20)], comparison)
    driver.add(9, prefix + [5, 6, 7], max_tokens=NEW_TOKENS)
    driver.run()
    assert driver.cached_tokens[9] == len(prefix) // BLOCK * BLOCK > 0
    comparison.check(prefix + [5, 6, 7], driver.tokens(9))


def test_after_preemption(drive, name, prompts, comparison):
    driver = drive(name, num_blocks=24, enable_prefix_caching=False)
    run_and_check(driver, prompts(8, longest=60), comparison)
    assert driver.engine.stats().preemptions > 0


def test_deterministic_answers_are_equal_in_chunks_and_at_once(drive, name, prompts, comparison):
    asked = prompts(3, longest=160)
    answers = []
    for budget in (512, 24):
        driver = drive(name, deterministic=True, max_num_batched_tokens=budget, max_num_seqs=8)
        run_and_check(driver, asked, comparison)
        answers.append([driver.tokens(key) for key in range(len(asked))])
    assert answers[0] == answers[1]


def test_drafts_are_checked_within_the_window(drive, name, prompts, comparison):
    [piece] = prompts(1, longest=30, seed=4)
    run_and_check(drive(name, num_speculative_tokens=3), [piece * 4], comparison)


@pytest.mark.parametrize("width", [15, 16, 17])
def test_a_window_changes_tokens_and_has_its_own_edge(drive, tmp_path, prompts, width):
    """Else the comparisons above would prove nothing."""
    folder = tmp_path / "model"
    model = write_model(
        folder, "qwen2", use_sliding_window=True, sliding_window=16, max_window_layers=0
    )
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"sliding_window": width}))
    # The reference stays at 16.
    driver, asked = drive(folder), prompts(2, longest=200)
    for key, prompt in enumerate(asked):
        driver.add(key, prompt, max_tokens=NEW_TOKENS)
    driver.run()
    comparison = Comparison(model)
    is_equal = True
    for key, prompt in enumerate(asked):
        try:
            comparison.check(prompt, driver.tokens(key))
        except AssertionError:
            is_equal = False
    assert is_equal == (width == 16)
