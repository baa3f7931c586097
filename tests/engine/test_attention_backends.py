"""Attention by compiled functions and by torch: the same answers, the former where it can be."""

import pytest
import torch

from tests.engine.conftest import ATTENTION, DEVICE
from workers.model.native.native import Native

pytestmark = pytest.mark.skipif(
    DEVICE != "cpu" or ATTENTION != "auto", reason="the functions are for CPUs"
)
SAMPLED = {"temperature": 1.0, "seed": 3, "max_tokens": 30}


@pytest.fixture
def calls(monkeypatch):
    made = []
    attend = Native.attend

    def counted(self, query, *cached):
        made.append(len(query))
        return attend(self, query, *cached)

    monkeypatch.setattr(Native, "attend", counted)
    return made


@pytest.mark.parametrize("name", ["qwen2", "qwen3", "qwen3_moe", "qwen3_next"])
def test_they_give_the_same_answers(drive, prompts, calls, name):
    answers = []
    for backend in ("auto", "torch"):
        driver = drive(name, attention_backend=backend, max_num_batched_tokens=64)
        for key, prompt in enumerate(prompts(12)):
            driver.add(key, prompt, **(SAMPLED if key % 2 else {}))
        driver.run()
        answers.append([driver.tokens(key) for key in range(12)])
        assert bool(calls) == (backend == "auto")
        calls.clear()
    assert answers[0] == answers[1]


def test_an_exact_engine_attends_every_token_alone(drive, prompts, calls):
    driver = drive(deterministic=True)
    for key, prompt in enumerate(prompts(3)):
        driver.add(key, prompt)
    driver.run()
    num_layers = len(driver.engine._runner._decoder.layer_devices)
    computed = sum(map(len, prompts(3))) + 3 * (16 - 1)
    assert sum(calls) == num_layers * computed


@pytest.mark.parametrize("deterministic", [False, True])
def test_without_a_compiler_torch_attends(drive, prompts, calls, monkeypatch, deterministic):
    monkeypatch.setattr(Native, "load", lambda dtype: None)
    driver = drive(deterministic=deterministic)
    driver.add(0, prompts(1)[0])
    driver.run()
    assert not calls and len(driver.tokens(0)) == 16


def test_numbers_of_another_kind_are_torchs(drive, prompts, calls):
    driver = drive(dtype="float16")
    driver.add(0, prompts(1)[0])
    driver.run()
    assert not calls and driver.engine.card.dtype == str(torch.float16).removeprefix("torch.")
