"""Steps overlap on a GPU only if nothing in a launch waits for it; and then say the same."""

import pytest
import torch

from tests.engine.conftest import DEVICE, drive, model_of, prompts  # noqa: F401
from workers.engine.model_runner import ModelRunner

pytestmark = pytest.mark.skipif(DEVICE != "cuda", reason="QWENAPI_TEST_DEVICE is not cuda")

MIX = (
    {},
    {"temperature": 1.0, "top_p": 0.9, "top_k": 40},
    {"temperature": 1.0, "logit_bias": {7: 3.0}},
    {"logprobs": 3},
    {"temperature": 1.0, "repetition_penalty": 1.2},
)


def answers(drive, prompts, **settings):  # noqa: F811
    driver = drive(**settings)
    for key, prompt in enumerate(prompts(len(MIX))):
        driver.add(key, prompt, max_tokens=32, seed=key, **MIX[key])
    driver.run()
    return [driver.tokens(key) for key in range(len(MIX))]


def test_overlapping_steps_answer_as_steps_one_by_one(drive, prompts):  # noqa: F811
    one_by_one = answers(drive, prompts, async_scheduling="off")
    assert answers(drive, prompts, async_scheduling="on") == one_by_one
    assert answers(drive, prompts, async_scheduling="on", enforce_eager=True) == one_by_one


def test_no_launch_waits_for_the_device(drive, prompts, monkeypatch):  # noqa: F811
    answers(drive, prompts)  # what is compiled and recorded may wait
    launch = ModelRunner.launch

    def watched(*args, **kwargs):
        torch.cuda.set_sync_debug_mode("error")
        try:
            return launch(*args, **kwargs)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(ModelRunner, "launch", watched)
    answers(drive, prompts, enforce_eager=True)
