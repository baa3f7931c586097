"""Greedy tokens equal transformers' generate(), however the engine got to compute them."""

import pytest
import torch

NEAR_TIE = 1e-4
NEW_TOKENS = 24


class Comparison:
    """Compares an engine's tokens with a reference model's, and counts near-ties."""

    def __init__(self, model, near_tie: float = NEAR_TIE) -> None:
        self.model = model
        self.near_tie = near_tie
        self.steps = 0
        self.near_ties = 0

    @torch.no_grad()
    def check(self, prompt, tokens: list[int]) -> None:
        """Check tokens against generate(), or after a near-tie against the text's own logits."""
        ids = self.ids(prompt)
        expected = self.model.generate(
            **self.inputs(prompt, ids),
            max_new_tokens=len(tokens),
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        self.steps += len(tokens)
        if tokens == expected[0, len(ids) :].tolist():
            return
        logits = self.model(**self.inputs(prompt, ids + tokens)).logits[0, len(ids) - 1 : -1]
        best = logits.max(-1).values
        for index, token in enumerate(tokens):
            gap = float(best[index] - logits[index, token])
            assert gap < self.near_tie, f"token {index} is {token}, {gap} below the best"
            self.near_ties += gap > 0

    def ids(self, prompt) -> list[int]:
        return prompt

    def inputs(self, prompt, ids: list[int]) -> dict[str, torch.Tensor]:
        """Return what the model computes of a prompt, given its tokens and what goes on behind."""
        ids = torch.tensor([ids])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def report(self) -> None:
        print(f"near-ties: {self.near_ties} of {self.steps}")
        assert self.steps > 0
        assert self.near_ties <= 0.01 * self.steps


@pytest.fixture(params=["qwen2", "qwen3", "qwen3_moe", "qwen2_moe"])
def name(request):
    return request.param


@pytest.fixture
def comparison(model_of, name):
    compared = Comparison(model_of(name)[1])
    yield compared
    compared.report()


def run_and_check(driver, prompts, comparison):
    for key, prompt in enumerate(prompts):
        driver.add(key, prompt, max_tokens=NEW_TOKENS)
    driver.run()
    for key, prompt in enumerate(prompts):
        assert driver.chunks[key][-1].finish_reason == "length"
        comparison.check(prompt, driver.tokens(key))


def test_alone(drive, name, prompts, comparison):
    driver = drive(name)
    for key, prompt in enumerate(prompts(3)):
        driver.add(key, prompt, max_tokens=NEW_TOKENS)
        driver.run()
        comparison.check(prompt, driver.tokens(key))


def test_in_a_mixed_batch(drive, name, prompts, comparison):
    driver = drive(name)
    run_and_check(driver, prompts(16), comparison)
    assert driver.engine.stats().preemptions == 0


def test_with_prompts_in_chunks(drive, name, prompts, comparison):
    driver = drive(name, max_num_batched_tokens=24, max_num_seqs=16)
    run_and_check(driver, prompts(8), comparison)


def test_after_preemption(drive, name, prompts, comparison):
    driver = drive(name, num_blocks=24, enable_prefix_caching=False)
    run_and_check(driver, prompts(8, longest=60), comparison)
    assert driver.engine.stats().preemptions > 0


def test_on_a_prefix_cache_hit(drive, name, prompts, comparison):
    driver = drive(name)
    [prefix] = prompts(1, seed=2)
    run_and_check(driver, [prefix + rest for rest in prompts(2, longest=20)], comparison)
    driver.add(9, prefix + [5, 6, 7], max_tokens=NEW_TOKENS)
    driver.run()
    assert driver.cached_tokens[9] == len(prefix) // 8 * 8 > 0
    comparison.check(prefix + [5, 6, 7], driver.tokens(9))
