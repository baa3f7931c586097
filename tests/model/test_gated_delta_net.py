"""A Gated DeltaNet layer over state slots equals transformers' modules over whole sequences."""

import copy

import pytest
import torch
from transformers import Qwen3_5TextConfig, Qwen3NextConfig
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5GatedDeltaNet
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

from workers.model.layers.gated_delta_net import GatedDeltaNet
from workers.model.layers.means import Means
from workers.model.layers.state_cache import StateCache, StateShape
from workers.model.layout.state_plan import SlotCopy, StatePlan, StateRun, StateSpan

MODULES = {
    "qwen3_next": (Qwen3NextGatedDeltaNet, Qwen3NextConfig),
    "qwen3_5": (Qwen3_5GatedDeltaNet, Qwen3_5TextConfig),
}
# A head that read next to nothing is scaled up by its norm, and its rounding with it.
NEAR = {"atol": 1e-3, "rtol": 1e-4}
SLOTS = 8


@pytest.fixture(params=MODULES)
def module(request):
    torch.manual_seed(9)
    module_class, config_class = MODULES[request.param]
    config = config_class(
        hidden_size=64,
        num_hidden_layers=4,
        linear_key_head_dim=16,
        linear_value_head_dim=24,
        linear_num_key_heads=2,
        linear_num_value_heads=6,
    )
    made = module_class(config, 0).eval().requires_grad_(False)
    for name, parameter in made.named_parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
        elif "norm" in name:
            torch.nn.init.normal_(parameter, mean=1.0, std=0.2)
    return made


class Layer:
    """A layer over a cache of its own, filled with what nobody may ever read."""

    def __init__(self, module, *, is_batch_invariant=False):
        self.net = GatedDeltaNet(copy.deepcopy(module), Means(is_batch_invariant))
        self.cache = StateCache(self.net.state_shape, SLOTS, torch.device("cpu"))
        self.cache.matrices.fill_(torch.nan)
        self.cache.inputs.fill_(torch.nan)

    def prefill(self, x, *spans, before=()):
        return self.net(x, self.cache, StatePlan(tuple(before), None, (), (), spans))

    def decode(self, x, slots, after=()):
        """Compute one token of each slot, in whatever order these are."""
        order = sorted(range(len(slots)), key=slots.__getitem__)
        runs = tuple(StateRun(i, i + 1, slots[row]) for i, row in enumerate(order))
        plan = StatePlan((), torch.tensor(order), runs, tuple(after), ())
        return self.net(x, self.cache, plan)


def empty(slot):
    return SlotCopy(None, slot)


@pytest.mark.parametrize("length", [1, 3, 63, 64, 65, 127, 128, 129, 500])
@torch.inference_mode()
def test_a_whole_prompt_equals_the_module(module, length):
    x = torch.randn(length, 64)
    found = Layer(module).prefill(x, StateSpan(0, length, 3), before=[empty(3)])
    torch.testing.assert_close(found, module(x[None])[0], **NEAR)


@pytest.mark.parametrize("cuts", [(1,), (2, 3), (64,), (37, 100), (128, 129)])
@torch.inference_mode()
def test_a_prompt_in_parts_equals_the_module(module, cuts):
    x = torch.randn(140, 64)
    layer = Layer(module)
    parts = []
    for first, stop in zip((0, *cuts), (*cuts, 140), strict=True):
        before = [empty(5)] if first == 0 else ()
        part = x[first:stop]
        parts.append(layer.prefill(part, StateSpan(0, len(part), 5), before=before))
    torch.testing.assert_close(torch.cat(parts), module(x[None])[0], **NEAR)


@torch.inference_mode()
def test_rows_decode_together_in_any_order_of_slots(module):
    texts = [torch.randn(length, 64) for length in (70, 12, 64, 5)]
    slots = [4, 2, 7, 3]
    layer = Layer(module)
    for x, slot in zip(texts, slots, strict=True):
        layer.prefill(x[:-3], StateSpan(0, len(x) - 3, slot), before=[empty(slot)])
    for place in (-3, -2, -1):
        found = layer.decode(torch.stack([x[place] for x in texts]), slots)
        for row, x in enumerate(texts):
            torch.testing.assert_close(found[row], module(x[None])[0, place], **NEAR)


@torch.inference_mode()
def test_neighbouring_slots_in_one_run_equal_slots_one_by_one(module):
    layers = [Layer(module), Layer(module)]
    x = torch.randn(3, 64)
    for layer in layers:
        layer.prefill(
            x, *(StateSpan(i, i + 1, 2 + i) for i in range(3)), before=map(empty, (2, 3, 4))
        )
    one_run = StatePlan((), None, (StateRun(0, 3, 2),), (), ())
    together = layers[0].net(x, layers[0].cache, one_run)
    torch.testing.assert_close(together, layers[1].decode(x, [2, 3, 4]), atol=1e-6, rtol=1e-5)


@torch.inference_mode()
def test_a_state_kept_on_the_way_goes_on_in_another_slot(module):
    x = torch.randn(150, 64)
    layer = Layer(module)
    spans = (StateSpan(0, 64, 1, 6), StateSpan(64, 150, 1))
    whole = layer.prefill(x, *spans, before=[empty(1)])
    again = layer.prefill(x[64:], StateSpan(0, 86, 2), before=[SlotCopy(6, 2)])
    assert torch.equal(again, whole[64:])  # cut where it was cut before: to the bit
    one_pass = Layer(module).prefill(x, StateSpan(0, 150, 1), before=[empty(1)])
    torch.testing.assert_close(whole, one_pass, atol=1e-6, rtol=1e-5)


@torch.inference_mode()
def test_a_state_kept_behind_a_decoded_token_goes_on_in_another_slot(module):
    x = torch.randn(10, 64)
    layer = Layer(module)
    layer.prefill(x[:8], StateSpan(0, 8, 1), before=[empty(1)])
    layer.decode(x[8:9], [1], after=[SlotCopy(1, 6)])
    expected = layer.decode(x[9:], [1])
    layer.prefill(x[:1], StateSpan(0, 1, 3), before=[SlotCopy(6, 2), empty(3)])
    assert torch.equal(layer.decode(x[9:], [2]), expected)


@torch.inference_mode()
def test_other_slots_are_left_alone(module):
    layer = Layer(module)
    layer.cache.matrices.zero_()
    layer.cache.inputs.zero_()
    layer.prefill(torch.randn(9, 64), StateSpan(0, 9, 3), before=[empty(3)])
    layer.decode(torch.randn(1, 64), [3])
    for slots in (layer.cache.matrices, layer.cache.inputs):
        used = [slot for slot in range(SLOTS) if slots[slot].any()]
        assert used == [3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@torch.inference_mode()
def test_batch_invariant_tokens_have_the_same_bits_in_a_prompt_in_parts_and_decoded(module, dtype):
    module = module.to(dtype)
    x = torch.randn(140, 64).to(dtype)
    whole = Layer(module, is_batch_invariant=True)
    expected = whole.prefill(x, StateSpan(0, 140, 3), before=[empty(3)])
    parts = Layer(module, is_batch_invariant=True)
    neighbour = torch.randn(30, 64).to(dtype)
    found = [
        parts.prefill(
            torch.cat((neighbour, x[first:stop])),
            StateSpan(0, 30, 6),
            StateSpan(30, 30 + stop - first, 2),
            before=[empty(6)] + ([empty(2)] if first == 0 else []),
        )[30:]
        for first, stop in [(0, 17), (17, 81), *((i, i + 1) for i in range(81, 140))]
    ]
    assert torch.equal(torch.cat(found), expected)
    if dtype is torch.float32:
        torch.testing.assert_close(expected, module(x[None])[0], **NEAR)


@torch.inference_mode()
def test_bfloat16_is_as_near_to_float32_as_the_module(module):
    x = torch.randn(150, 64)
    exact = module(x[None])[0]
    rounded = copy.deepcopy(module).bfloat16()
    layer = Layer(rounded)
    found = layer.prefill(x[:-1].bfloat16(), StateSpan(0, 149, 3), before=[empty(3)])
    last = layer.decode(x[-1:].bfloat16(), [3])
    expected = rounded(x[None].bfloat16())[0]
    error = (torch.cat((found, last)).float() - exact).norm()
    assert error < 1.2 * (expected.float() - exact).norm()
    assert layer.cache.matrices.dtype == torch.float32


def test_the_modules_give_up_their_weights(module):
    GatedDeltaNet(module)
    assert module.out_proj.weight is None
    assert not [name for name, _ in module.named_parameters() if "proj" in name]


def test_a_state_of_the_27b_takes_three_megabytes_a_layer():
    shape = StateShape(num_heads=48, key_dim=128, value_dim=128, channels=10_240, width=4)
    assert shape.slot_bytes == 4 * (48 * 128 * 128 + 3 * 10_240)
