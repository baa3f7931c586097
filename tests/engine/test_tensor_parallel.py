"""Ranks that share a model give the tokens of one that has it whole, however they get to them."""

import os
import queue
from dataclasses import replace

import pytest
import torch.distributed as dist

from tests.engine.conftest import HYBRIDS, MODELS, write_model
from tests.engine.ranks import ranked
from tests.engine.test_parity import NEW_TOKENS, Comparison
from workers.config import EngineConfig
from workers.engine.engine import Engine
from workers.errors import ConfigError, ExitCode
from workers.worker.followers import Followers
from workers.worker.rendezvous import by_tcp

# Four ranks want four heads of each kind; of keys and values there may be fewer.
FOR_FOUR = {"linear_num_key_heads": 4, "linear_num_value_heads": 8}
# An odd vocabulary leaves the last rank's share padded.
ODD = {"vocab_size": 321}


@pytest.fixture
def compare(tmp_path, model_of, prompts):
    """Return what runs prompts on so many ranks, and compares them with transformers' answers."""

    def compare(name, size=2, changes=None, **settings):
        path, model = model_of(name)
        if changes:
            path = tmp_path / "model"
            model = write_model(path, name, **changes)
        near_tie = 1e-3 if name in HYBRIDS else 1e-4
        compared = Comparison(model, near_tie)
        with ranked(path, size, tmp_path, **settings) as driver:
            [prefix] = prompts(1, seed=2)
            texts = [*prompts(8), prefix * 4, prefix * 4 + [5, 6, 7]]
            for key, prompt in enumerate(texts[:-1]):
                driver.add(key, prompt, max_tokens=NEW_TOKENS)
            driver.run()
            driver.add(len(texts) - 1, texts[-1], max_tokens=NEW_TOKENS)
            driver.run()
            for key, prompt in enumerate(texts):
                compared.check(prompt, driver.tokens(key))
            assert driver.cached_tokens[len(texts) - 1] >= 64
            compared.report()
            return driver.engine.stats()

    return compare


@pytest.mark.parametrize("name", MODELS)
def test_two_ranks_answer_as_one_in_mixed_batches_and_behind_cached_prefixes(compare, name):
    assert compare(name, max_num_batched_tokens=100, max_num_seqs=16).preemptions == 0


def test_two_ranks_that_meet_at_an_address_answer_as_one(compare):
    compare("qwen3", host="127.0.0.77")


def test_ranks_that_would_compute_with_different_types_are_refused(tmp_path, model_of):
    path, _ = model_of("qwen3")
    config = EngineConfig(str(path), device="cpu", dtype="float32", tensor_parallel_size=2)
    config = by_tcp(replace(config, interface="lo", num_local_ranks=2, threads=1), "127.0.0.77")
    ends = queue.Queue()
    followers = Followers(replace(config, dtype="bfloat16"), "engine")
    followers.start(lambda why, code: ends.put((why, code)))
    try:
        with pytest.raises(ConfigError, match="set --dtype"):
            Engine(config, lambda stage, fraction: None)
        why, code = ends.get(timeout=60)
        assert "set --dtype" in why and code == ExitCode.CONFIG
    finally:
        followers.stop()
        dist.destroy_process_group()


@pytest.mark.parametrize("name", ["qwen3", "qwen3_5"])
def test_two_ranks_go_on_after_preemption_and_with_drafts(compare, name):
    settings = {"num_blocks": 60, "num_speculative_tokens": 3}
    stats = compare(name, **settings)
    assert stats.preemptions > 0 and stats.drafted_tokens > 0


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.slow
def test_four_ranks_of_which_several_hold_the_same_heads_of_keys(compare, name):
    compare(name, 4, (FOR_FOUR if name in HYBRIDS else {}) | {"num_key_value_heads": 2} | ODD)


@pytest.mark.parametrize("name", ["qwen3_moe", pytest.param("qwen3_next", marks=pytest.mark.slow)])
def test_ranks_that_have_experts_whole(compare, name):
    compare(name, enable_expert_parallel=True)


@pytest.mark.parametrize("by_expert", [False, True], ids=["by-width", "by-expert"])
def test_exact_experts_of_ranks(compare, by_expert):
    compare("qwen3_moe", deterministic=True, enable_expert_parallel=by_expert)


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="kernels run on a CPU so")
@pytest.mark.parametrize("name", ["qwen3", "qwen3_moe", "qwen3_5_moe"])
@pytest.mark.parametrize("by_expert", [False, True], ids=["by-width", "by-expert"])
def test_ranks_compute_by_kernels(compare, name, by_expert):
    pytest.importorskip("triton", reason="kernels need the package triton")
    if by_expert and "moe" not in name:
        pytest.skip("no experts")
    compare(name, attention_backend="triton", enable_expert_parallel=by_expert)
