"""A whole engine on the kernels says what it says on torch's attention.

With QWENAPI_TEST_ATTENTION=triton the other tests here run on them too, which takes minutes in
Triton's interpreter.
"""

import os

import pytest
import torch

from workers.errors import ConfigError
from workers.model.attention.backend import uses_kernels

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["qwen2", "qwen3"])
def test_tokens_equal_those_of_torchs_attention(name, drive, prompts):
    pytest.importorskip("triton", reason="kernels need the package triton")
    said = []
    for backend in ("torch", "triton"):
        driver = drive(name, attention_backend=backend, max_num_batched_tokens=24, max_num_seqs=8)
        for key, prompt in enumerate(prompts(4, longest=50)):
            driver.add(key, prompt, max_tokens=6, seed=key, temperature=key * 0.5, logprobs=1)
        driver.run()
        said.append([driver.tokens(key) for key in range(4)])
        assert driver.engine.stats().preemptions == 0
    assert said[0] == said[1]


def test_kernels_are_refused_on_a_cpu_without_the_interpreter(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ConfigError, match="attention_backend = 'triton', but"):
        uses_kernels("triton", CPU)
    assert not uses_kernels("auto", CPU)
    assert not uses_kernels("torch", CPU)


def test_auto_never_interprets(monkeypatch):
    monkeypatch.setitem(os.environ, "TRITON_INTERPRET", "1")
    assert not uses_kernels("auto", CPU)
    assert not uses_kernels("auto", torch.device("cuda"))


def test_without_triton_auto_falls_back_and_says_so(monkeypatch, caplog):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr("workers.model.attention.backend.find_spec", lambda name: None)
    assert not uses_kernels("auto", torch.device("cuda"))
    assert "triton is not installed" in caplog.text
