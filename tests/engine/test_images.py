"""Prompts with pictures are answered as by transformers' generate(), however they are computed."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.engine.conftest import DEVICE, Driver
from tests.engine.mtp_models import Reference
from tests.engine.seeing_models import SEEING, Picture, Prompt, SeeingComparison, write_seeing
from workers.config import EngineConfig
from workers.engine.engine import Engine

NEW_TOKENS = 12


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    made = {}

    def model_of(name):
        if name not in made:
            path = tmp_path_factory.mktemp(name)
            made[name] = path, write_seeing(path, name)
        return made[name]

    return model_of


# The others say little beside these, and take as long again.
OFTEN = ("qwen3_vl", "qwen3_5")


@pytest.fixture(
    params=[n if n in OFTEN else pytest.param(n, marks=pytest.mark.slow) for n in SEEING]
)
def name(request):
    return request.param


@pytest.fixture
def drive(models):
    def drive(name, **settings):
        defaults = {"num_blocks": 400, "block_size": 8, "threads": 1, "dtype": "float32"}
        config = EngineConfig(str(models(name)[0]), device=DEVICE, **(defaults | settings))
        return Driver(Engine(config, lambda stage, fraction: None))

    return drive


@pytest.fixture
def comparison(models, name):
    compared = SeeingComparison(models(name)[1], 1e-3 if "qwen3_5" in name else 1e-4)
    yield compared
    compared.report()


def text(length, seed=0):
    generator = torch.Generator().manual_seed(1000 * seed + length)
    return torch.randint(4, 300, (length,), generator=generator).tolist()


SMALL, WIDE, TALL, LARGE = Picture(1, 2, 3), Picture(2, 1, 7), Picture(3, 5, 2), Picture(4, 9, 11)
ONE = Prompt(text(5), LARGE, text(9))
THREE = Prompt(text(3), SMALL, text(4), TALL, WIDE, text(6))
MIXED = [ONE, Prompt(text(40)), THREE, Prompt(text(7)), Prompt(SMALL), Prompt(text(90), WIDE)]


def add(driver, key, prompt, **fields):
    fields = {"max_tokens": NEW_TOKENS, "images": prompt.images} | fields
    driver.add(key, prompt.ids, **fields)


def run_and_check(driver, prompts, comparison):
    for key, prompt in enumerate(prompts):
        add(driver, key, prompt)
    driver.run()
    for key, prompt in enumerate(prompts):
        comparison.check(prompt, driver.tokens(key))


def test_alone(drive, name, comparison):
    driver = drive(name)
    for key, prompt in enumerate((ONE, THREE)):
        add(driver, key, prompt)
        driver.run()
        comparison.check(prompt, driver.tokens(key))
    assert driver.finished[0].prompt_tokens == 5 + 1 + 99 + 1 + 9


def test_answers_depend_on_what_is_shown(drive, name):
    driver = drive(name)
    for key in range(3):
        add(driver, key, Prompt(text(5), Picture(40 + key, 3, 3), text(9)))
    add(driver, 3, Prompt(text(5), Picture(40, 3, 3), text(9)))
    driver.run()
    answers = [tuple(driver.tokens(key)) for key in range(4)]
    assert len(set(answers)) == 3 and answers[3] == answers[0]


def test_in_a_mixed_batch(drive, name, comparison):
    run_and_check(drive(name), MIXED, comparison)


def test_with_prompts_cut_inside_pictures(drive, name, comparison):
    driver = drive(name, max_num_batched_tokens=70, max_num_seqs=6)
    run_and_check(driver, MIXED, comparison)


def test_after_preemption(drive, name, comparison):
    driver = drive(name, num_blocks=36, enable_prefix_caching=False, block_size=16)
    prompts = [Prompt(text(20, seed), LARGE, SMALL, text(9, seed)) for seed in range(6)]
    for key, prompt in enumerate(prompts):
        add(driver, key, prompt, max_tokens=40)
    driver.run()
    for key, prompt in enumerate(prompts):
        comparison.check(prompt, driver.tokens(key))
    assert driver.engine.stats().preemptions > 0


def test_prefix_hits_with_the_same_picture_and_with_another(drive, name, comparison):
    driver = drive(name)
    before, behind = text(66), text(70)
    prompts = [
        Prompt(before, LARGE, behind, text(3)),
        Prompt(before, LARGE, behind, text(4)),
        Prompt(before, Picture(5, 9, 11), behind, text(3)),  # as large, but shows something else
        Prompt(before, Picture(4, 11, 9), behind, text(3)),  # the same bytes, in another shape
    ]
    for key, prompt in enumerate(prompts):
        add(driver, key, prompt)
        driver.run()
        comparison.check(prompt, driver.tokens(key))
    # Of a hybrid model a prefix is found up to a snapshot.
    assert driver.cached_tokens[1] >= (128 if "qwen3_5" in name else 232)
    assert driver.cached_tokens[2] <= 67 and driver.cached_tokens[3] <= 67


def test_choices_share_the_prompt(drive, name, comparison):
    driver = drive(name)
    add(driver, 0, THREE, choices=(0, 1, 2))
    driver.run()
    for choice in range(3):
        comparison.check(THREE, driver.tokens(0, choice))


def test_replay_goes_on_where_it_was(drive, name, comparison):
    driver = drive(name)
    add(driver, 0, THREE)
    driver.run()
    known = driver.tokens(0)
    other = drive(name)
    add(other, 0, THREE, resume=(tuple(known[:5]),))
    other.run()
    comparison.check(THREE, known[:5] + other.tokens(0))


def test_a_picture_is_encoded_once_and_again_if_it_was_dropped(drive, name, comparison):
    driver = drive(name, enable_prefix_caching=False)
    images = driver.engine._runner.images
    for key in range(2):
        add(driver, key, ONE)
        driver.run()
    assert (images.num_encoded, images.num_found) == (1, 1)
    images._max_bytes = 0
    for key in range(2, 4):
        add(driver, key, THREE)
        driver.run()
        comparison.check(THREE, driver.tokens(key))
    assert images.num_encoded == 1 + 3  # those of the newest step stay, whatever the bound


def test_with_guessed_drafts(drive, name, comparison):
    driver = drive(name, num_speculative_tokens=3)
    run_and_check(driver, [ONE, THREE, Prompt(text(8) * 4)], comparison)
    assert driver.engine.stats().drafted_tokens > 0


@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_5_moe"])
def test_with_the_models_own_drafts(models, tmp_path, name, comparison):
    path, model = models(name)
    shutil.copytree(path, tmp_path / "model")
    text_model = SimpleNamespace(config=model.config.text_config)
    state = {f"mtp.{key}": part for key, part in Reference(text_model, name).state_dict().items()}
    file = tmp_path / "model" / "model.safetensors"
    save_file(load_file(file) | state, file, {"format": "pt"})
    config = EngineConfig(
        str(tmp_path / "model"),
        device=DEVICE,
        dtype="float32",
        threads=1,
        num_blocks=60,
        speculative_config='{"method": "mtp", "num_speculative_tokens": 2}',
    )
    driver = Driver(Engine(config, lambda stage, fraction: None))
    run_and_check(driver, [ONE, THREE, Prompt(text(30))], comparison)
    assert driver.engine.stats().drafted_tokens > 0


def test_exact_answers_do_not_depend_on_what_runs_beside(drive, name):
    driver = drive(name, deterministic=True)
    for key, prompt in enumerate(MIXED):
        add(driver, key, prompt, max_tokens=4, logprobs=0)
    driver.run()
    for key, prompt in enumerate(MIXED[:3]):
        alone = drive(name, deterministic=True)
        add(alone, 0, prompt, max_tokens=4, logprobs=0)
        alone.run()
        found = [chunk.logprobs for chunk in driver.chunks[key]]
        assert found == [chunk.logprobs for chunk in alone.chunks[0]]
