"""The experts of a layer equal transformers' module, whichever way they are multiplied."""

import copy
from importlib.util import find_spec

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from transformers import Qwen2MoeConfig, Qwen3MoeConfig
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeSparseMoeBlock
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

from tests.engine.conftest import DEVICE
from workers.model.layers import experts as ways
from workers.model.layers.experts import Experts, multiply_grouped
from workers.model.layers.means import Means

needs_triton = pytest.mark.skipif(
    find_spec("triton") is None, reason="kernels need the package triton"
)
WAYS = ["torch", pytest.param("kernels", marks=needs_triton)]


def make_module(dtype=torch.float32, **changes):
    """Return a block of random weights, on which a router decides clearly."""
    fields = {
        "hidden_size": 64,
        "moe_intermediate_size": 48,
        "num_experts": 16,
        "num_experts_per_tok": 4,
        "norm_topk_prob": True,
    }
    config = Qwen3MoeConfig(**(fields | changes))
    config._experts_implementation = "eager"
    module = Qwen3MoeSparseMoeBlock(config).to(DEVICE, dtype).eval().requires_grad_(False)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return module


def make_hidden(tokens, module):
    return torch.randn(tokens, module.gate.hidden_dim).to(DEVICE, module.gate.weight.dtype)


def make_experts(module, way="torch", is_batch_invariant=False):
    means = Means(is_batch_invariant, for_kernels=way == "kernels")
    return Experts(copy.deepcopy(module), means)


@pytest.fixture(autouse=True)
def same_weights():
    torch.manual_seed(13)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("is_normed", [True, False])
@pytest.mark.parametrize("top_k", [1, 4, 8])
def test_any_number_of_tokens_equals_the_module(top_k, is_normed, way):
    module = make_module(num_experts_per_tok=top_k, norm_topk_prob=is_normed)
    experts = make_experts(module, way)
    for tokens in (1, 19, 70) if way == "torch" else (1, 13):
        hidden = make_hidden(tokens, module)
        torch.testing.assert_close(experts(hidden), module(hidden[None])[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("is_batch_invariant", [False, True])
def test_a_shared_expert_is_added_by_its_gate(way, is_batch_invariant):
    config = Qwen2MoeConfig(
        hidden_size=64,
        moe_intermediate_size=48,
        shared_expert_intermediate_size=80,
        num_experts=8,
        num_experts_per_tok=2,
    )
    config._experts_implementation = "eager"
    module = Qwen2MoeSparseMoeBlock(config).to(DEVICE).eval().requires_grad_(False)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    experts = make_experts(module, way, is_batch_invariant)
    for tokens in (1, 19):
        hidden = make_hidden(tokens, module)
        together = experts(hidden)
        torch.testing.assert_close(together, module(hidden[None])[0], atol=1e-5, rtol=1e-5)
        if is_batch_invariant:
            assert torch.equal(experts(hidden[-1:])[0], together[-1])


@pytest.mark.parametrize("way", WAYS)
def test_all_tokens_alike_choose_the_same_experts(way):
    module = make_module()
    hidden = make_hidden(1, module).expand(37, -1)
    expected = module(hidden[None])[0]
    torch.testing.assert_close(make_experts(module, way)(hidden), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("top_k", [1, 8])
@pytest.mark.parametrize("tokens", [1, 3, 40])
def test_bfloat16_is_as_near_to_float32_as_the_module(tokens, top_k):
    module = make_module(torch.bfloat16, num_experts_per_tok=top_k)
    hidden = make_hidden(tokens, module)
    module.gate.float()  # a router that rounds could choose other experts
    expected, choice = (module.experts(hidden, *routed(module, hidden)), routed(module, hidden))
    precise = copy.deepcopy(module).float().experts(hidden.float(), *choice)
    found = ways.LoopedExperts(copy.deepcopy(module.experts))(hidden, *choice)
    limit = 1.5 * (expected.float() - precise).norm() + 1e-6
    assert (found.float() - precise).norm() < limit


def routed(module, hidden):
    _, weights, experts = module.gate(hidden.to(module.gate.weight.dtype))
    return experts, weights.to(hidden.dtype)


@pytest.mark.parametrize("top_k", [1, 8])
def test_groups_equal_the_module(top_k):
    module = make_module(num_experts_per_tok=top_k)
    for tokens in (1, 5, 70):
        hidden = make_hidden(tokens, module)
        choice = routed(module, hidden)
        weights = module.experts.gate_up_proj, module.experts.down_proj
        torch.testing.assert_close(
            multiply_grouped(hidden, *weights, *choice),
            module.experts(hidden, *choice),
            atol=1e-5,
            rtol=1e-5,
        )


def test_groups_never_wait_for_the_host():
    """On tensors without values, whatever asks for one raises."""
    with FakeTensorMode():
        hidden = torch.empty(700, 2048, dtype=torch.bfloat16)
        gate_up, down = (hidden.new_empty(128, 1536, 2048), hidden.new_empty(128, 2048, 768))
        choice = torch.empty(700, 8, dtype=torch.int64), hidden.new_empty(700, 8)
        output = multiply_grouped(hidden, gate_up, down, *choice)
        assert output.shape == hidden.shape and output.dtype == torch.bfloat16
        with pytest.raises(DataDependentOutputException):
            choice[0].sum().item()


@needs_triton
def test_few_pairs_go_to_the_kernels_and_many_to_groups(monkeypatch):
    module = make_module(num_experts=8, num_experts_per_tok=2)
    calls = []

    def grouped(hidden, *rest):
        calls.append(len(hidden))
        return multiply_grouped(hidden, *rest)

    monkeypatch.setattr(ways, "multiply_grouped", grouped)
    monkeypatch.setattr(ways, "is_groupable", lambda weight: True)
    experts = make_experts(module, "kernels")
    for tokens in (1, 16, 17, 30):
        hidden = make_hidden(tokens, module)
        torch.testing.assert_close(experts(hidden), module(hidden[None])[0], atol=1e-5, rtol=1e-5)
    assert calls == [17, 30]  # more than 4 pairs an expert

    exact = make_experts(module, "kernels", is_batch_invariant=True)
    exact(make_hidden(30, module))
    assert calls == [17, 30]


def test_groups_are_not_for_what_would_wait_for_the_host():
    assert not ways.is_groupable(torch.empty(2, 64, 64, dtype=torch.bfloat16))


@pytest.mark.parametrize("way", WAYS)
def test_exact_experts_depend_on_no_neighbour(way):
    module = make_module(num_experts=6, num_experts_per_tok=2)
    experts = make_experts(module, way, is_batch_invariant=True)
    hidden = make_hidden(45, module)
    together = experts(hidden)
    torch.testing.assert_close(together, module(hidden[None])[0], atol=1e-5, rtol=1e-5)
    for place in (0, 15, 16, 44):
        alone = experts(hidden[place : place + 1])
        assert torch.equal(alone[0], together[place])
        assert torch.equal(experts(hidden[place // 2 : place + 1])[-1], together[place])


@pytest.mark.skipif(DEVICE != "cpu", reason="only a CPU repacks weights")
def test_the_module_keeps_no_weights_that_were_repacked():
    module = make_module(torch.bfloat16)
    Experts(module, Means(is_batch_invariant=False))
    assert not list(module.experts.parameters())
    assert module.gate.weight is not None
