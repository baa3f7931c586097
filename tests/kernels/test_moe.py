"""Kernels of a mixture of experts against float64. On a CPU they run in Triton's interpreter."""

import random

import pytest
import torch
import torch.nn.functional as F

from tests.kernels.conftest import DEVICE, DTYPES
from tests.kernels.hopper import run

pytest.importorskip("triton", reason="kernels need the package triton")

from workers.model.kernels import moe  # noqa: E402

# The largest error of a token's result, relative to its length.
LIMITS = {torch.float32: 1e-5, torch.float16: 1.5e-3, torch.bfloat16: 1e-2}
SMALL = moe.ExpertTile(pairs=16, columns=16, depth=16, num_warps=4, num_stages=2)


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request):
    return request.param


class Case:
    """Tokens, their experts, and the weights of all experts."""

    def __init__(self, experts, *, num_experts, hidden=48, intermediate=40, dtype=torch.float32):
        tokens, top_k = experts.shape
        self.experts = experts.to(DEVICE)
        self.hidden = torch.randn(tokens, hidden).to(DEVICE, dtype)
        shape = (num_experts, 2 * intermediate, hidden)
        self.gate_up = (torch.randn(shape) * hidden**-0.5).to(DEVICE, dtype)
        shape = (num_experts, hidden, intermediate)
        self.down = (torch.randn(shape) * intermediate**-0.5).to(DEVICE, dtype)
        self.weights = torch.rand(tokens, top_k).softmax(-1).to(DEVICE, dtype)

    def apply(self, tile=SMALL, tokens=slice(None)):
        return moe.apply_experts(
            self.hidden[tokens], self.gate_up, self.down, self.experts[tokens],
            self.weights[tokens], tile,
        )  # fmt: skip

    def check(self, output):
        """Check a result of all tokens against float64, one product a pair."""
        gate_up, down = (weight.double()[self.experts] for weight in (self.gate_up, self.down))
        gate, up = (gate_up @ self.hidden.double()[:, None, :, None]).chunk(2, dim=2)
        parts = (down @ (F.silu(gate) * up)).squeeze(-1)
        expected = (parts * self.weights.double()[..., None]).sum(1)
        error = (output.double() - expected).norm(dim=-1) / expected.norm(dim=-1)
        assert float(error.nan_to_num(nan=torch.inf).max()) < LIMITS[self.hidden.dtype]


def draw(tokens, num_experts, top_k):
    """Return experts `[tokens, top_k]`, no expert twice for a token."""
    return torch.rand(tokens, num_experts).topk(top_k, dim=-1).indices


@pytest.mark.parametrize("seed", range(6))
def test_any_choice_of_experts_equals_the_reference(seed, dtype, poisoned):
    chance = random.Random(seed)
    torch.manual_seed(seed)
    num_experts = chance.choice([1, 5, 8, 12])
    top_k = min(num_experts, chance.choice([1, 2, 8]))
    case = Case(
        draw(chance.choice([1, 2, 17, chance.randint(18, 70)]), num_experts, top_k),
        num_experts=num_experts,
        hidden=chance.choice([32, 56, 72]),
        intermediate=chance.choice([8, 32, 40]),
        dtype=dtype,
    )
    case.check(case.apply())


@pytest.mark.parametrize("is_many", [False, True])
def test_the_tiles_in_use_equal_the_reference(is_many, dtype, poisoned):
    case = Case(draw(34, 3, 2), num_experts=3, hidden=136, intermediate=72, dtype=dtype)
    case.check(case.apply(moe.choose_tile(dtype, is_many=is_many)))


@pytest.mark.parametrize("tokens", [1, 17])
def test_all_tokens_may_choose_one_expert_and_nobody_the_others(tokens, dtype, poisoned):
    case = Case(torch.full((tokens, 1), 3), num_experts=7, dtype=dtype)
    case.gate_up[torch.arange(7) != 3] = torch.nan  # what nobody chose is not read
    case.down[torch.arange(7) != 3] = torch.nan
    output = case.apply()
    case.check(output)


def test_one_token_may_choose_all_experts(dtype, poisoned):
    case = Case(draw(1, 8, 8), num_experts=8, dtype=dtype)
    case.check(case.apply())


@pytest.mark.parametrize("place", [0, 20])
def test_a_token_gets_the_same_bits_alone_and_in_a_crowd(place, dtype):
    case = Case(draw(21, 2, 1), num_experts=2, dtype=dtype)
    together = case.apply()
    assert torch.equal(case.apply(tokens=slice(place, place + 1))[0], together[place])
    assert torch.equal(case.apply(tokens=slice(place // 2, place + 1))[-1], together[place])


@pytest.mark.parametrize("seed", range(8))
def test_every_pair_lies_in_one_block_of_its_expert(seed, monkeypatch):
    chance = random.Random(seed)
    torch.manual_seed(seed)
    num_experts = chance.choice([1, 3, 16])
    top_k = min(num_experts, chance.choice([1, 4, 8]))
    experts = draw(chance.randint(1, 60), num_experts, top_k)
    if chance.random() < 0.3:
        experts[:, 0] = num_experts - 1  # a crowd, and a pair of a token alike
    size = chance.choice([1, 2, 16])
    fill_with_rubbish(monkeypatch)
    blocks = moe.align(experts.to(DEVICE), num_experts, size)

    flat = experts.view(-1).tolist()
    expected = []
    for expert in range(num_experts):
        pairs = [pair for pair, own in enumerate(flat) if own == expert]
        for first in range(0, len(pairs), size):
            block = pairs[first : first + size]
            expected.append((expert, block + [len(flat)] * (size - len(block))))
    used = len(expected)
    assert used <= len(blocks.experts)
    assert blocks.experts[used:].eq(num_experts).all()
    found = list(zip(blocks.experts.tolist(), blocks.pairs.tolist(), strict=True))
    assert found[:used] == expected


def fill_with_rubbish(monkeypatch):
    new_empty = torch.Tensor.new_empty
    monkeypatch.setattr(
        torch.Tensor, "new_empty", lambda *args, **more: new_empty(*args, **more).fill_(-77)
    )


def test_the_bound_on_blocks_is_the_least_that_holds():
    for num_pairs, num_experts, size in [(1, 4, 2), (5, 3, 2), (7, 3, 4), (9, 2, 4), (6, 9, 16)]:
        most = max(
            sum(-(-count // size) for count in counts)
            for counts in splits_of(num_pairs, num_experts)
        )
        assert moe.bound_blocks(num_pairs, num_experts, size) == most


def splits_of(total, parts):
    """Yield every way to give a total to some parts."""
    if parts == 1:
        yield (total,)
        return
    for first in range(total + 1):
        for rest in splits_of(total - first, parts - 1):
            yield (first, *rest)


# Compiles for Hopper at Qwen3-30B-A3B's shapes, and prints what the assembler says.
PROGRAM = """
import json
import torch
from tests.kernels.hopper import build
from workers.model.kernels import moe

TYPES = {name: "*bf16" for name in ("hidden", "gate_up", "down", "activated", "weights", "output")}
TYPES |= {"parts": "*fp32", "experts": "*i64", "block_pairs": "*i32", "block_experts": "*i32"}

def compile(name, constants, **options):
    return build(getattr(moe, name), TYPES, constants, **options)

shapes = {"NUM_EXPERTS": 128, "HIDDEN": 2048, "INTERMEDIATE": 768}
for is_many in (False, True):
    tile = moe.choose_tile(torch.bfloat16, is_many=is_many)
    sizes = shapes | {"PAIRS": tile.pairs, "DEPTH": tile.depth}
    options = {"num_warps": tile.num_warps, "num_stages": tile.num_stages}
    products = (
        ("_gate_up", sizes | {"TOP_K": 8, "COLUMNS": tile.columns}),
        ("_down", sizes | {"COLUMNS": 2 * tile.columns}),
    )
    for name, constants in products:
        compiled = compile(name, constants, **options)
        ptx = compiled.asm["ptx"]
        print(json.dumps({
            "name": name, "is_many": is_many, "shared": compiled.metadata.shared,
            "copies": ptx.count("cp.async.cg"), "products": ptx.count("mma"),
        }))
    compile("_align_pairs", {
        "NUM_EXPERTS": 128, "PADDED_EXPERTS": 128, "PAIRS": tile.pairs, "CHUNK": moe._CHUNK,
    })
compile("_sum_parts", {"TOP_K": 8, "HIDDEN": 2048, "COLUMNS": moe._SUM_COLUMNS})
"""


def test_kernels_compile_for_hopper(tmp_path):
    compiled = run(PROGRAM, tmp_path)
    assert len(compiled) == 4
    for one in compiled:
        assert one["products"] > 0 and one["copies"] > 0  # matrix units, and copies ahead of them
        assert one["shared"] < 227 * 1024  # what a program may have of an H200
