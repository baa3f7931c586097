"""The kernels of Gated DeltaNet against their torch twins, over slots of NaN in any order.

On a CPU they run in Triton's interpreter, and so tiny.
"""

import copy
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from tests.kernels.conftest import DEVICE, DTYPES
from tests.model.test_gated_delta_net import MODULES, NEAR
from workers.model.layers import delta_rule
from workers.model.layers.delta_rule import RuleInputs
from workers.model.layers.gated_delta_net import GatedDeltaNet
from workers.model.layers.means import Means
from workers.model.layers.state_cache import StateCache
from workers.model.layout.slot_plan import CHUNK, SlotPlan
from workers.model.layout.state_plan import SlotCopy, StatePlan, StateSpan

pytest.importorskip("triton", reason="kernels need the package triton")

from workers.model.kernels import delta_net, delta_scan  # noqa: E402

SLOTS = 12
HEADS, KEY_HEADS, KEY_DIM, VALUE_DIM, WIDTH = 2, 1, 16, 24, 4
CHANNELS = 2 * KEY_HEADS * KEY_DIM + HEADS * VALUE_DIM
COLUMNS = CHANNELS + HEADS * (VALUE_DIM + 2)


@dataclass
class Step:
    """Rows of (tokens, length) with their slots, and copies to be kept behind tokens of rows."""

    rows: list[tuple[int, int]]
    slots: list[int]
    copies: dict[tuple[int, int], int] = field(default_factory=dict)
    padding: int = 0

    @property
    def starts(self) -> list[int]:
        return torch.tensor([0, *(tokens for tokens, _ in self.rows)]).cumsum(0).tolist()

    @property
    def num_tokens(self) -> int:
        return self.starts[-1] + self.padding

    def plan(self) -> SlotPlan:
        """Return the plan, with a row of padding if tokens are padding."""
        kept = torch.zeros(self.num_tokens)
        kept[self.starts[-1] :] = SLOTS - 1  # of an earlier step: nobody may read it
        for (row, token), slot in self.copies.items():
            kept[self.starts[row] + token] = slot
        more = bool(self.padding)
        parts = (
            torch.tensor(self.starts + self.starts[-1:] * more),
            torch.tensor([length for _, length in self.rows] + [77] * more),
            torch.tensor(self.slots + [SLOTS - 2] * more),
            kept,
        )
        most = max(tokens for tokens, _ in self.rows)
        return SlotPlan(*(part.int().to(DEVICE) for part in parts), most)

    def tokens(self, row: int) -> slice:
        return slice(self.starts[row], self.starts[row + 1])

    @property
    def untouched(self) -> list[int]:
        used = {*self.slots, *self.copies.values()}
        return [slot for slot in range(SLOTS) if slot not in used]


def randn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape).to(dtype).to(DEVICE)


def slots_of(shape: tuple[int, ...], own: list[int]) -> Tensor:
    """Return slots of NaN, but for those that somebody owns."""
    slots = torch.full((SLOTS, *shape), torch.nan, device=DEVICE)
    slots[own] = randn(len(own), *shape)
    return slots


class TestPrepare:
    """The convolution and the rates of all tokens, and the inputs that slots keep."""

    def check(self, step: Step, dtype: torch.dtype = torch.float32) -> None:
        torch.manual_seed(3)
        columns = torch.randperm(COLUMNS)
        projected = randn(step.num_tokens, COLUMNS, dtype=dtype) * 3
        taps, rates = randn(WIDTH, CHANNELS), randn(2, HEADS)
        inputs = slots_of((WIDTH - 1, CHANNELS), step.slots)
        expected = inputs.clone()
        convolved, found = delta_net.prepare(
            projected, columns.int().to(DEVICE), taps, rates, inputs, step.plan()
        )
        x = projected[:, columns.to(DEVICE)].float()
        for row, slot in enumerate(step.slots):
            tokens = step.tokens(row)
            seen = torch.cat((expected[slot], x[tokens, :CHANNELS]))
            windows = seen.unfold(0, WIDTH, 1)
            exact = torch.nn.functional.silu((windows.double() * taps.t()).sum(-1))
            torch.testing.assert_close(convolved[tokens].double(), exact, rtol=1e-5, atol=2e-5)
            expected[slot] = seen[len(seen) - WIDTH + 1 :]
            for (of, token), kept in step.copies.items():
                if of == row:
                    expected[kept] = seen[token + 1 : token + WIDTH]
            beta, alpha = x[tokens, -2 * HEADS :].double().split(HEADS, -1)
            decay = rates[0] * torch.nn.functional.softplus(alpha + rates[1])
            exact = torch.stack((beta.sigmoid(), decay), 1)
            torch.testing.assert_close(found[tokens].double(), exact, rtol=2e-6, atol=1e-12)
        assert torch.equal(inputs[step.slots], expected[step.slots])
        kept = list(step.copies.values())
        assert torch.equal(inputs[kept], expected[kept])
        assert inputs[step.untouched].isnan().all()

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_decoding_rows(self, dtype, poisoned):
        step = Step([(1, 1), (1, 64), (1, 9)], [7, 2, 5], {(1, 0): 3})
        self.check(step, dtype)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_rows_of_all_lengths_beside_each_other(self, dtype, poisoned):
        step = Step([(3, 3), (1, 8), (17, 30), (2, 2), (48, 48)], [4, 1, 9, 3, 6], {(2, 16): 8})
        self.check(step, dtype)

    def test_padding_changes_nothing(self, poisoned):
        self.check(Step([(1, 5), (20, 20)], [4, 1], padding=5))

    def test_small_rates_of_decay_are_exact(self):
        alpha = torch.tensor([-40.0, -17.0, -9.0, -1.0, 0.0, 30.0, 200.0])
        columns = torch.arange(COLUMNS, dtype=torch.int32, device=DEVICE)
        projected = torch.zeros(7, COLUMNS, device=DEVICE)
        projected[:, -HEADS:] = alpha[:, None]
        step, rates = Step([(7, 7)], [1]), torch.zeros(2, HEADS, device=DEVICE)
        rates[0] = 1.0
        _, found = delta_net.prepare(
            projected, columns, randn(WIDTH, CHANNELS), rates,
            slots_of((WIDTH - 1, CHANNELS), [1]), step.plan(),
        )  # fmt: skip
        exact = torch.nn.functional.softplus(alpha.double(), threshold=1e9)
        torch.testing.assert_close(found[:, 1, 0].double().cpu(), exact, rtol=3e-7, atol=0)


class Rule:
    """What the rule takes of the tokens of a step, and its states before and after."""

    def __init__(self, step: Step, seed: int = 5) -> None:
        torch.manual_seed(seed)
        self.step = step
        self.convolved = randn(step.num_tokens, CHANNELS)
        decay = -torch.rand(step.num_tokens, HEADS) * torch.tensor([0.02, 3.0])
        self.rates = torch.stack((torch.rand(step.num_tokens, HEADS), decay), 1).to(DEVICE)
        self.matrices = slots_of((HEADS, KEY_DIM, VALUE_DIM), step.slots)

    def of(self, tokens: slice) -> RuleInputs:
        wide, keys = self.convolved[tokens], KEY_HEADS * KEY_DIM
        query, key, value = wide.split((keys, keys, HEADS * VALUE_DIM), -1)
        heads = (x.view(len(wide), -1, KEY_DIM) for x in (query, key))
        beta, decay = self.rates[tokens].unbind(1)
        return RuleInputs.of(*heads, value.view(len(wide), HEADS, VALUE_DIM), decay, beta)

    def run(self) -> Tensor:
        plan = self.step.plan()
        read = delta_net.step(self.convolved, self.rates, self.matrices, plan)
        if plan.max_query > 1:
            delta_scan.scan(self.convolved, self.rates, self.matrices, plan, read)
        return read

    def check(self) -> None:
        step, expected = self.step, self.matrices.clone()
        found = self.run()
        for row, (tokens, length) in enumerate(step.rows):
            own, state = step.tokens(row), expected[step.slots[row]]
            if tokens == 1:
                read = delta_rule.step(self.of(own), state[None])
            else:
                begin = length - tokens
                cuts = [at for at in range(0, length, CHUNK) if at > begin]
                parts = []
                for first, stop in zip((begin, *cuts), (*cuts, length), strict=True):
                    part = slice(own.start + first - begin, own.start + stop - begin)
                    parts.append(delta_rule.scan(self.of(part), state))
                    if (slot := step.copies.get((row, stop - begin - 1))) is not None:
                        expected[slot] = state
                read = torch.cat(parts)
            if tokens == 1 and (row, 0) in step.copies:
                expected[step.copies[row, 0]] = state
            torch.testing.assert_close(found[own], read, rtol=1e-4, atol=2e-6)
        used = [slot for slot in range(SLOTS) if slot not in step.untouched]
        torch.testing.assert_close(self.matrices[used], expected[used], rtol=1e-4, atol=1e-5)
        assert self.matrices[step.untouched].isnan().all()


class TestRule:
    def test_decoding_rows_in_any_order_of_slots(self, poisoned):
        Rule(Step([(1, 9), (1, 64), (1, 2)], [7, 2, 5], {(1, 0): 3})).check()

    @pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 130])
    def test_a_prompt_of_any_length(self, length, poisoned):
        Rule(Step([(length, length)], [3])).check()

    def test_several_sequences_with_copies_on_the_way(self, poisoned):
        rows, slots = [(65, 65), (1, 40), (2, 66), (70, 128), (130, 130)], [4, 1, 9, 2, 7]
        copies = {(0, 63): 10, (1, 0): 8, (3, 69): 5, (4, 127): 6, (3, 5): 3}
        Rule(Step(rows, slots, copies, padding=3)).check()

    def test_a_chunk_that_begins_and_ends_anywhere(self, poisoned):
        Rule(Step([(3, 40), (30, 90), (100, 137)], [4, 1, 9])).check()

    def test_cut_at_multiples_of_64_equals_one_pass_to_the_bit(self):
        whole = Rule(Step([(130, 130)], [3], {(0, 63): 8}))
        begun = whole.matrices[3].clone()
        read = whole.run()
        first = copy.copy(whole)
        first.step, first.matrices = (
            Step([(64, 64)], [5]),
            slots_of((HEADS, KEY_DIM, VALUE_DIM), []),
        )
        first.matrices[5] = begun
        first.convolved, first.rates = whole.convolved[:64], whole.rates[:64]
        assert torch.equal(first.run(), read[:64])
        assert torch.equal(first.matrices[5], whole.matrices[8])
        rest = copy.copy(first)
        rest.step = Step([(1, 9), (66, 130)], [2, 5])  # beside another row
        rest.matrices[2] = begun
        rest.convolved = torch.cat((randn(1, CHANNELS), whole.convolved[64:]))
        rest.rates = torch.cat((whole.rates[:1], whole.rates[64:]))
        assert torch.equal(rest.run()[1:], read[64:])
        assert torch.equal(rest.matrices[5], whole.matrices[3])

    def test_equal_keys_that_are_never_forgotten(self):
        """Powers of such a chunk's matrix are as large as 2⁶⁰, its inverse is 1 and -1."""
        rule = Rule(Step([(64, 64)], [3]))
        rule.convolved[:, KEY_DIM : 2 * KEY_DIM] = rule.convolved[0, KEY_DIM : 2 * KEY_DIM]
        rule.rates[:, 0], rule.rates[:, 1] = 1.0, 0.0
        rule.check()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("heads", "dim"), [(1, 16), (5, 24), (33, 128)])
def test_the_gated_norm_equals_its_twin(heads, dim, dtype, poisoned):
    torch.manual_seed(heads)
    read, weight = randn(3, heads, dim), randn(dim)
    projected = randn(3, heads * dim + 7, dtype=dtype) * 3
    columns = torch.randperm(heads * dim + 7)[: heads * dim]
    output = delta_net.normalize(read, projected, columns.int().to(DEVICE), weight, 1e-6)
    gate = projected[:, columns.to(DEVICE)].view(3, heads, dim).double()
    exact = read.double()
    exact = exact / (exact.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight
    exact = (exact * torch.nn.functional.silu(gate)).flatten(1).to(dtype)
    assert output.dtype == dtype
    torch.testing.assert_close(
        output, exact, rtol=1e-5 if dtype == torch.float32 else 2**-8, atol=2e-6
    )


@pytest.mark.parametrize("name", MODULES)
@torch.inference_mode()
def test_a_layer_by_kernels_equals_the_layer_by_torch(name, poisoned):
    """Both orders of projections, of groups of three heads."""
    torch.manual_seed(9)
    module_class, config_class = MODULES[name]
    config = config_class(
        hidden_size=32,
        num_hidden_layers=4,
        linear_key_head_dim=16,
        linear_value_head_dim=16,
        linear_num_key_heads=2,
        linear_num_value_heads=6,
    )
    module = module_class(config, 0).eval().requires_grad_(False).to(DEVICE)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, mean=0.5 * (parameter.dim() == 1), std=0.2)
    layers = [
        GatedDeltaNet(copy.deepcopy(module), Means(for_kernels=kind)) for kind in (False, True)
    ]
    caches = [StateCache(layer.state_shape, SLOTS, torch.device(DEVICE)) for layer in layers]
    x, begun = randn(72, 32), SlotCopy(None, 3)
    spans = (StateSpan(0, 64, 3, 6), StateSpan(64, 70, 3))
    expected = layers[0](x[:70], caches[0], StatePlan((begun,), None, (), (), spans))
    caches[1].copy([begun])
    found = layers[1](x[:70], caches[1], Step([(70, 70)], [3], {(0, 63): 6}).plan())
    torch.testing.assert_close(found, expected, **NEAR)
    for slot, at in ((3, 70), (6, 71)):
        plan = StatePlan((), None, (), (), (StateSpan(0, 1, slot),))
        expected = layers[0](x[at : at + 1], caches[0], plan)
        found = layers[1](x[at : at + 1], caches[1], Step([(1, at + 1)], [slot]).plan())
        torch.testing.assert_close(found, expected, **NEAR)
