"""Hybrid models by kernels answer as by torch: prompts in chunks, mixed batches, prefixes found.

On a CPU the kernels run in Triton's interpreter, and so the models are of two layers.
"""

import pytest

from tests.engine.conftest import DEVICE, HYBRIDS, MIXTURE, Driver, write_model
from tests.engine.test_hybrid import prompt_of
from tests.engine.test_hybrid_prefixes import said
from tests.model.packers import Packer
from tests.model.twins import write_twins
from workers.config import EngineConfig
from workers.engine.engine import Engine

pytest.importorskip("triton", reason="kernels need the package triton")
pytestmark = pytest.mark.slow  # each kernel has a test of its own

# A state and attention, each with groups of heads; half of a head is rotated.
TINY = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "layer_types": ["linear_attention", "full_attention"],
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "linear_num_key_heads": 1,
    "linear_num_value_heads": 2,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5,
    },
}
SMALL_MIXTURE = {name: size // 2 for name, size in MIXTURE.items()}
# As between torch and transformers: DECISIONS 52.
NEAR_TIE = 1e-3
NEW_TOKENS = 2


@pytest.fixture(scope="module", params=HYBRIDS)
def path(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    mixture = {} if request.param == "qwen3_5" else SMALL_MIXTURE
    write_model(folder, request.param, **(TINY | mixture))
    return folder


def engine_over(path, backend, **changes):
    settings = {
        "dtype": "float32",
        "device": DEVICE,
        "threads": 1,
        "num_blocks": 60,
        "block_size": 32,
        "max_num_batched_tokens": 96,
        "max_num_seqs": 4,
    }
    settings |= changes
    return Driver(Engine(EngineConfig(str(path), attention_backend=backend, **settings), ignore))


def ignore(stage, fraction):
    """Nobody asks how far loading has come."""


def conversation(driver):
    """Run a prompt of several chunks beside one that decodes, then one that begins like it."""
    driver.add(1, prompt_of(5), max_tokens=5, logprobs=1)
    driver.step()
    driver.add(2, prompt_of(150), max_tokens=NEW_TOKENS, logprobs=1)
    driver.run()
    assert driver.steps >= 4  # 5; 64 or more of 150 beside a decoding row; the rest; decoding
    driver.add(3, prompt_of(150)[:140] + prompt_of(9), max_tokens=NEW_TOKENS, logprobs=1)
    driver.add(4, prompt_of(66, seed=2), max_tokens=NEW_TOKENS, logprobs=1)
    driver.run()
    return driver


def logprobs(driver, key):
    """Return the logarithms of the probabilities of all tokens of an answer."""
    return [scored.logprob for chunk in driver.chunks[key] for scored in chunk.logprobs]


def test_answers_are_those_of_torch(path):
    by_kernels, by_torch = (conversation(engine_over(path, kind)) for kind in ("triton", "torch"))
    assert by_kernels.cached_tokens == by_torch.cached_tokens == {1: 0, 2: 0, 3: 128, 4: 0}
    for key in by_torch.chunks:
        assert by_kernels.tokens(key) == by_torch.tokens(key)
        found, expected = logprobs(by_kernels, key), logprobs(by_torch, key)
        assert len(found) == len(expected) >= NEW_TOKENS
        assert found == pytest.approx(expected, abs=NEAR_TIE)


@pytest.mark.parametrize("path", ["qwen3_next"], indirect=True)
def test_a_hit_equals_the_miss_that_was_cut_there_to_the_bit(path):
    driver = engine_over(path, "triton", max_num_batched_tokens=128)
    for key in (0, 1):
        driver.add(key, prompt_of(140), max_tokens=NEW_TOKENS, logprobs=5)
        driver.run()
    assert driver.cached_tokens == {0: 0, 1: 128}
    assert said(driver, 1) == said(driver, 0)


def test_packed_linears_stay_packed_and_answer_as_unpacked_ones(tmp_path):
    write_model(tmp_path / "plain", "qwen3_5", **TINY)
    packed, _ = write_twins(tmp_path / "plain", tmp_path / "twins", Packer(group_size=32))
    answers = []
    for backend in ("triton", "torch"):
        driver = engine_over(packed, backend)
        driver.add(0, prompt_of(9), max_tokens=NEW_TOKENS)
        answers.append(driver.run().tokens(0))
    assert answers[0] == answers[1] and len(answers[0]) == NEW_TOKENS
