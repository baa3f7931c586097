"""The GPU's sampler gives the CPU's tokens, and allows what a sort would. Here on CPU tensors."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.engine.conftest import DEVICE
from tests.engine.test_sampler import RESTRICTIONS, ROWS, allowed, gumbel_argmax, logits_of, row
from workers.engine.logits_processors import process
from workers.engine.sampler import choose_on_cpu, choose_on_gpu


def choose(logits: torch.Tensor, rows) -> list[int]:
    return choose_on_gpu(logits.to(DEVICE), rows, by_kernels=DEVICE == "cuda").tolist()


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.lists(ROWS, min_size=1, max_size=12), st.integers(0, 1000), st.sampled_from([0.1, 3.0]))
def test_tokens_equal_the_cpu_samplers(rows, seed, spread):
    logits = logits_of(len(rows), seed, vocab=2500, spread=spread)
    process(logits, rows)
    assert choose(logits, rows) == choose_on_cpu(logits, rows).tolist()


@pytest.mark.parametrize("params", RESTRICTIONS)
@pytest.mark.parametrize("spread", [0.1, 3.0])
def test_restrictions_equal_a_full_sort(params, spread):
    logits = logits_of(1, seed=3, spread=spread, vocab=2000)[0]
    tokens = allowed(logits, **params)
    rows = [row(position, seed=5, **params) for position in range(60)]
    expected = [gumbel_argmax(logits, tokens, 5, position) for position in range(60)]
    assert choose(logits.expand(60, -1), rows) == expected


def test_a_real_vocabulary_draws_as_the_cpu_does():
    logits = logits_of(32, seed=8, vocab=151_936)
    rows = [
        row(position, seed=9, **RESTRICTIONS[position % len(RESTRICTIONS)])
        for position in range(32)
    ]
    assert choose(logits, rows) == choose_on_cpu(logits, rows).tolist()


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.lists(ROWS, min_size=2, max_size=12), st.integers(0, 1000))
def test_a_row_is_independent_of_the_others(rows, seed):
    logits = logits_of(len(rows), seed, vocab=2500).bfloat16().float()  # many equal values
    together = choose(logits, rows)
    for index, one in enumerate(rows):
        assert choose(logits[index : index + 1], [one]) == together[index : index + 1]


def test_logits_equal_to_the_last_one_allowed_are_allowed_too():
    logits = torch.tensor([[0.0, 2.0, 1.0, -0.0, 1.0, 1.0, -5.0, 0.0]])
    for params, expected in (
        ({"top_k": 2}, {1, 2, 4, 5}),
        ({"top_k": 5}, {0, 1, 2, 3, 4, 5, 7}),
        ({"top_p": 0.5}, {1, 2, 4, 5}),
    ):
        rows = [row(position, seed=1, temperature=9.0, **params) for position in range(300)]
        assert set(choose(logits.expand(300, -1), rows)) == expected


def test_forbidden_logits_are_never_drawn():
    logits = torch.full((1, 50), float("-inf"))
    logits[0, 7] = logits[0, 9] = -3.0
    rows = [row(position, seed=2, top_k=10, top_p=0.99) for position in range(100)]
    assert set(choose(logits.expand(100, -1), rows)) == {7, 9}


def test_logits_of_bfloat16_draw_as_in_float32():
    logits = logits_of(len(RESTRICTIONS), seed=4, vocab=2500).bfloat16()
    rows = [row(seed=position, **params) for position, params in enumerate(RESTRICTIONS)]
    rows[0] = row(temperature=0.0)
    assert choose(logits, rows) == choose(logits.float(), rows)
