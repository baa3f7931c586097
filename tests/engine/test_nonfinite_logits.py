"""A request whose logits are NaN or infinite fails, with a line and a count; no other one does."""

import logging

import pytest
from safetensors.torch import load_file, save_file

from tests.engine.conftest import write_model
from workers.wire.protocol import Failed

POISON = 99
MODES = {
    "plain": {},
    "overlapping": {"async_scheduling": "on"},
    "speculating": {"num_speculative_tokens": 5},
    "both": {"async_scheduling": "on", "num_speculative_tokens": 5},
    "deterministic": {"deterministic": True},
    "8 bits": {"quantization": "int8"},
    "4 bits": {"quantization": "int4"},
}
KINDS = [
    {},
    {"temperature": 1.0},
    {"temperature": 1.0, "top_k": 5, "logprobs": 3},
    {"repetition_penalty": 1.2},
    {"logit_bias": {7: 3.0}, "choices": (0, 1, 2)},
]


@pytest.fixture
def damaged(tmp_path, monkeypatch, model_of, drive):
    """Return a function that drives a model with a number in one place of its weights."""

    def damaged(name, tensor, index, number, **settings):
        write_model(tmp_path, name)
        file = tmp_path / "model.safetensors"
        tensors = load_file(file)
        tensors[tensor][index] = number
        save_file(tensors, file)
        monkeypatch.setattr("tests.engine.conftest.write_model", None)
        return drive(tmp_path, **settings)

    return damaged


@pytest.fixture
def model_of(model_of):
    """Let `drive` take the directory of a model too."""
    return lambda name: (name, None) if not isinstance(name, str) else model_of(name)


@pytest.mark.parametrize("name", ["qwen2", "qwen3_next"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_only_requests_that_meet_the_damage_fail(damaged, prompts, caplog, name, mode, number):
    """One token's embedding is damaged: whoever says it, or is given it, cannot go on."""
    settings = {"num_blocks": 60, "max_num_batched_tokens": 32} | MODES[mode]
    place = "model.embed_tokens.weight", (POISON, 5)
    driver = damaged(name, *place, number, **settings)
    good = [[i for i in prompt if i != POISON] for prompt in prompts(6, longest=50)]
    for key, prompt in enumerate(good):
        driver.add(key, prompt, logit_bias={POISON: -100.0}, max_tokens=12)
    for key, kind in enumerate(KINDS, start=10):
        driver.add(key, [*good[key % 6][:20], POISON, 5, 6], **kind)
    with caplog.at_level(logging.ERROR):
        driver.run()
    bad = range(10, 10 + len(KINDS))
    assert driver.failed == {key: Failed(key, "engine_error") for key in bad}
    assert sorted(driver.finished) == list(range(6))
    assert not any(driver.tokens(key) for key in bad)
    stats = driver.engine.stats()
    assert stats.nonfinite_logits == len(KINDS)
    assert stats.free_blocks == stats.total_blocks
    lines = [r.getMessage() for r in caplog.records if "logits are not finite" in r.getMessage()]
    assert len(lines) == len(KINDS)
    assert {line.partition(":")[0] for line in lines} == {f"request {key}" for key in bad}
    alone = damaged(name, *place, 0.0, **settings)
    for key, prompt in enumerate(good):
        alone.add(key, prompt, logit_bias={POISON: -100.0}, max_tokens=12)
    alone.run()
    assert [driver.tokens(key) for key in range(6)] == [alone.tokens(key) for key in range(6)]


@pytest.mark.parametrize("name", ["qwen2", "qwen3", "qwen3_moe"])
@pytest.mark.parametrize("part", ["model.norm.weight", "model.layers.1.input_layernorm.weight"])
def test_weights_that_are_no_numbers_fail_every_request(damaged, prompts, name, part):
    driver = damaged(name, part, 3, float("nan"))
    for key, prompt in enumerate(prompts(3)):
        driver.add(key, prompt, choices=(0, 1))
    driver.run()
    assert sorted(driver.failed) == [0, 1, 2] and not driver.finished and not driver.chunks


def test_a_request_may_fail_in_the_middle_of_its_answer(damaged, prompts):
    driver = damaged("qwen2", "model.embed_tokens.weight", (POISON, 0), float("nan"))
    driver.add(0, [5, 6, 7], logit_bias={POISON: 100.0})
    driver.run()
    assert driver.tokens(0) == [POISON] and list(driver.failed) == [0]


@pytest.mark.parametrize("name", ["qwen2", "qwen3_next"])
def test_what_a_failed_step_wrote_is_offered_to_nobody(damaged, name):
    driver = damaged(name, "model.embed_tokens.weight", (POISON, 0), float("nan"))
    prompt = [*range(10, 90), *range(100, 200), POISON]
    for key in (0, 1):
        driver.add(key, prompt)
        driver.run()
    assert sorted(driver.failed) == [0, 1] and driver.cached_tokens[1] == 0
