"""What an engine can do beyond greedy tokens, done by two ranks as by one."""

import json
import shutil

import pytest
from tokenizers import Tokenizer

from tests.engine.conftest import write_model
from tests.engine.grammar_driver import GrammarDriver, compiler_of
from tests.engine.mtp_models import write_predictable, write_random
from tests.engine.ranks import ranked
from tests.engine.test_mtp import DEMO, IM_END, VOCABULARY, answers, mtp
from tests.engine.test_prompt_logprobs import check as check_prompt
from tests.engine.test_steps import load
from tests.model.packers import CompressedPacker, Fp8Packer, Packer
from tests.model.twins import write_twins

BOTH = {"async_scheduling": "on", "num_speculative_tokens": 5}
DRAWN = {"temperature": 1.0, "top_p": 0.95, "seed": 11, "logprobs": 2}


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("qwen3", {"async_scheduling": "on"}),
        pytest.param("qwen3_moe", BOTH, marks=pytest.mark.slow),
    ],
    ids=["overlapping", "both"],
)
def test_a_random_load_is_answered_alike(drive, model_of, prompts, tmp_path, name, settings):
    expected = load(drive(name), prompts, 5)
    with ranked(model_of(name)[0], 2, tmp_path, **settings) as driver:
        assert load(driver, prompts, 5) == expected
        prompt = prompts(1, seed=3)[0]
        driver.add(100, prompt, prompt_logprobs=2, max_tokens=4)
        driver.run()
        check_prompt(driver, model_of(name)[1], 100, prompt)


@pytest.mark.parametrize("name", ["qwen3", "qwen3_5"])
def test_a_deterministic_answer_has_the_same_bits_whatever_is_beside_it(
    model_of, prompts, tmp_path, name
):
    mine, *others = prompts(12)
    settings = {"deterministic": True, "max_num_batched_tokens": 128}
    with ranked(model_of(name)[0], 2, tmp_path, **settings) as driver:
        for key in (0, 1):
            driver.add(key, [*mine, 7 + key][:-1], cache_salt=str(key), **DRAWN)
            for number, other in enumerate(others if key else ()):
                driver.add(10 + number, other, temperature=0.9, seed=number)
            driver.run()
        bits = [[chunk.logprobs for chunk in driver.chunks[key]] for key in (0, 1)]
        assert bits[0] == bits[1] and len(bits[0]) == 16


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("qwen3_5", {}),
        pytest.param("qwen3_next", {}, marks=pytest.mark.slow),
        pytest.param("qwen3_5_moe", {"enable_expert_parallel": True}, marks=pytest.mark.slow),
    ],
    ids=["qwen3_5", "qwen3_next", "whole experts"],
)
def test_the_models_own_layer_drafts_on_all_ranks(tmp_path, prompts, name, changes):
    path = tmp_path / "model"
    write_predictable(path, name)
    said = []
    for size in (1, 2):
        settings = {"speculative_config": mtp(2), "num_blocks": 700}
        settings |= changes if size > 1 else {}
        with ranked(path, size, tmp_path, **settings) as driver:
            for key, prompt in enumerate(prompts(4)):
                driver.add(key, prompt, max_tokens=40)
            driver.run()
            stats = driver.engine.stats()
            said.append([driver.tokens(key) for key in range(4)])
            assert stats.accepted_tokens > 0.5 * stats.drafted_tokens > 0
    assert said[0] == said[1]


def test_answers_of_a_given_form_are_the_same(tmp_path):
    path = tmp_path / "model"
    write_random(path, "qwen3_5", vocab_size=VOCABULARY, eos_token_id=IM_END)
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [IM_END]}))
    shutil.copy(DEMO, path / "tokenizer.json")
    tokenizer, found = Tokenizer.from_file(str(DEMO)), []
    for size in (1, 2):
        settings = {"num_speculative_tokens": 2, "num_blocks": 700}
        with ranked(path, size, tmp_path, **settings) as driver:
            compiler = compiler_of(driver.engine.card)
            found.append(answers(GrammarDriver(driver.engine, compiler, tokenizer), "greedy"))
            compiler.close()
    assert found[0] == found[1]


def scores_of(path, size, folder, prompts, **settings):
    """Return the log-probabilities of some prompts' tokens."""
    with ranked(path, size, folder, **settings) as driver:
        for key, prompt in enumerate(prompts(3)):
            driver.add(key, prompt, prompt_logprobs=0, max_tokens=1)
        driver.run()
        return [score.logprob for key in range(3) for score in driver.prompt_logprobs[key]]


def mean_gap(one, other):
    gaps = [abs(mine - theirs) for mine, theirs in zip(one, other, strict=True)]
    assert max(one) - min(one) > 3
    return sum(gaps) / len(gaps)


@pytest.mark.parametrize(
    ("name", "packer"),
    [
        ("qwen2", Packer(group_size=32)),
        ("qwen3", Packer("gptq", 32, desc_act=True)),
        ("qwen3_moe", Fp8Packer((16, 16))),
        ("qwen3", CompressedPacker("int-quantized", 8, "channel")),
    ],
    ids=["awq", "gptq", "fp8", "int8"],
)
def test_packed_weights_say_what_one_rank_says(tmp_path, prompts, name, packer):
    """Where a product rounds what it is given to 8 bits, a rank rounds its part by itself."""
    write_model(tmp_path / "model", name)
    packed, _ = write_twins(tmp_path / "model", tmp_path, packer)
    one, two = (scores_of(packed, size, tmp_path, prompts) for size in (1, 2))
    print(f"mean gap {mean_gap(one, two):.5f}")
    rounds = isinstance(packer, CompressedPacker) or packer == Packer("gptq", 32, desc_act=True)
    assert mean_gap(one, two) < (0.05 if rounds else 1e-3)


@pytest.mark.parametrize(
    ("name", "form"), [("qwen3_moe", "int8"), ("qwen3_5", "int4")], ids=["int8", "int4"]
)
def test_weights_rounded_at_load_lose_no_more_on_two_ranks(tmp_path, model_of, prompts, name, form):
    path = model_of(name)[0]
    plain = scores_of(path, 1, tmp_path, prompts)
    one, two = (scores_of(path, size, tmp_path, prompts, quantization=form) for size in (1, 2))
    print(f"mean gap to plain: {mean_gap(plain, one):.4f} and {mean_gap(plain, two):.4f}")
    assert 0 < mean_gap(plain, two) < 1.5 * mean_gap(plain, one)
