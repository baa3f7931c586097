"""The gated delta rule, by chunks and token by token, is transformers' own."""

import pytest
import torch
from transformers.models.qwen3_next.modeling_qwen3_next import (
    torch_chunk_gated_delta_rule,
    torch_recurrent_gated_delta_rule,
)

from workers.model.layers import delta_rule
from workers.model.layers.delta_rule import RuleInputs

LENGTHS = [1, 63, 64, 65, 127, 128, 129, 500]
# Heads of keys, heads of values, and their dimensions.
SHAPES = [(4, 4, 16, 16), (2, 6, 16, 32), (2, 8, 128, 128)]


@pytest.fixture(autouse=True)
def same_numbers():
    torch.manual_seed(5)


def make_inputs(tokens, shape):
    """Return query, key, value, decay and rate of learning; a few heads remember for long."""
    key_heads, heads, key_dim, value_dim = shape
    query, key = torch.randn(2, tokens, key_heads, key_dim)
    value = torch.randn(tokens, heads, value_dim)
    decay = -torch.rand(tokens, heads) * torch.logspace(-3, 1, heads)
    return query, key, value, decay, torch.rand(tokens, heads)


def make_state(shape):
    _, heads, key_dim, value_dim = shape
    return torch.randn(heads, key_dim, value_dim)


def of_transformers(rule, inputs, state):
    query, key, value, decay, beta = (part[None] for part in inputs)
    output, after = rule(
        query,
        key,
        value,
        g=decay,
        beta=beta,
        initial_state=state[None].clone(),
        output_final_state=True,
        use_qk_l2norm_in_kernel=True,
    )
    return output[0], after[0]


def part_of(x, tokens):
    return RuleInputs(*(part[tokens] for part in x))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("length", LENGTHS)
def test_chunks_equal_transformers_chunks(length, shape):
    inputs, state = make_inputs(length, shape), make_state(shape)
    expected, after = of_transformers(torch_chunk_gated_delta_rule, inputs, state)
    found = delta_rule.scan(RuleInputs.of(*inputs), state)
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(state, after, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_steps_of_several_rows_equal_transformers_steps(shape):
    rows = [(make_inputs(5, shape), make_state(shape)) for _ in range(3)]
    states = torch.stack([state for _, state in rows])
    found = [
        delta_rule.step(
            RuleInputs.of(*(torch.stack(part) for part in zip(*tokens, strict=True))), states
        )
        for tokens in zip(
            *([part_at(inputs, t) for t in range(5)] for inputs, _ in rows), strict=True
        )
    ]
    for row, (inputs, state) in enumerate(rows):
        expected, after = of_transformers(torch_recurrent_gated_delta_rule, inputs, state)
        together = torch.stack([step[row] for step in found])
        torch.testing.assert_close(together, expected, atol=2e-6, rtol=1e-5)
        torch.testing.assert_close(states[row], after, atol=2e-6, rtol=1e-5)


def part_at(inputs, token):
    return [part[token] for part in inputs]


@pytest.mark.parametrize("shape", SHAPES)
def test_chunks_and_steps_agree(shape):
    x = RuleInputs.of(*make_inputs(130, shape))
    by_chunks, by_steps = torch.zeros(2, *make_state(shape).shape)
    expected = delta_rule.scan(x, by_chunks)
    steps = [delta_rule.step(part_of(x, [token]), by_steps[None]) for token in range(130)]
    torch.testing.assert_close(torch.cat(steps), expected, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(by_steps, by_chunks, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_cut_at_a_multiple_of_64_changes_no_bit(shape, threads):
    x = RuleInputs.of(*make_inputs(500, shape))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        whole = torch.zeros_like(make_state(shape))
        expected = delta_rule.scan(x, whole)
        for cuts in [(64,), (128,), (448,), (64, 192, 256)]:
            state = torch.zeros_like(whole)
            ends = zip((0, *cuts), (*cuts, None), strict=True)
            parts = [delta_rule.scan(part_of(x, slice(*pair)), state) for pair in ends]
            assert torch.equal(torch.cat(parts), expected), cuts
            assert torch.equal(state, whole), cuts
    finally:
        torch.set_num_threads(before)


def test_a_cut_elsewhere_does():
    """Otherwise the test above could not fail."""
    x = RuleInputs.of(*make_inputs(200, SHAPES[2]))
    whole, state = torch.zeros(2, *make_state(SHAPES[2]).shape)
    expected = delta_rule.scan(x, whole)
    parts = [delta_rule.scan(part_of(x, slice(*pair)), state) for pair in ((0, 37), (37, None))]
    assert not torch.equal(torch.cat(parts), expected)


def test_what_fills_a_chunk_up_leaves_the_state_alone():
    x = RuleInputs.of(*make_inputs(70, SHAPES[0]))
    state = make_state(SHAPES[0])
    nothing = RuleInputs(*(part.new_zeros(30, *part.shape[1:]) for part in x))
    before = state.clone()
    assert not delta_rule.scan(nothing, state).isnan().any()
    assert torch.equal(state, before)
