"""Products with 4 bits against the unpacked weight in float64. On a CPU Triton interprets them."""

import random

import pytest
import torch
from torch import Tensor

from tests.kernels.conftest import DEVICE, DTYPES
from tests.kernels.hopper import run
from workers.model.layout.int4_weight import Int4Weight, concatenate, num_words, pack_words

pytest.importorskip("triton", reason="kernels need the package triton")

from workers.model.kernels import int4  # noqa: E402

# The largest error of any row, relative to its length; rounding y alone makes 2.1e-4 in float16
# and 1.7e-3 in bfloat16.
LIMITS = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
MARGIN = 3000


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request):
    return request.param


@pytest.fixture
def amid_nan(monkeypatch) -> list[Tensor]:
    """Let every new_empty of floats be NaN and lie amid NaN; list these, with their margins."""
    new_empty, made = torch.Tensor.new_empty, []

    def new_amid_nan(self: Tensor, *shape: object, **kwargs: object) -> Tensor:
        like = new_empty(self, *shape, **kwargs)
        if not like.is_floating_point():
            return like
        whole = new_empty(self, like.numel() + 2 * MARGIN, **kwargs).fill_(torch.nan)
        made.append(whole)
        return whole[MARGIN : MARGIN + like.numel()].view(like.shape)

    monkeypatch.setattr(torch.Tensor, "new_empty", new_amid_nan)
    return made


def make_weight(
    num_outputs: int,
    num_inputs: int,
    group_size: int,
    *,
    is_reordered: bool = False,
    scales: torch.dtype = torch.float16,
    seed: int = 0,
) -> Int4Weight:
    torch.manual_seed(seed)
    group_size = num_inputs if group_size < 0 else group_size
    width = num_words(group_size, num_inputs)
    num_groups = -(-num_inputs // group_size)
    numbers = torch.randint(0, 16, (num_inputs, num_outputs), dtype=torch.int32)
    order = torch.randperm(num_inputs).to(DEVICE) if is_reordered else None
    return Int4Weight(
        pack_words(numbers, width).contiguous().to(DEVICE),
        (torch.rand(num_groups, num_outputs) * 0.02 + 0.002).to(scales).to(DEVICE),
        torch.randint(0, 16, (num_groups, num_outputs)).to(torch.uint8).to(DEVICE),
        group_size,
        num_inputs,
        order,
    )


def make_rows(num_rows: int, num_inputs: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Return rows amid NaN, which they are far enough apart for."""
    torch.manual_seed(seed)
    whole = torch.full((num_rows, num_inputs + 80), torch.nan, dtype=dtype)
    whole[:, 16 : 16 + num_inputs] = torch.randn(num_rows, num_inputs)
    return whole.to(DEVICE)[:, 16 : 16 + num_inputs]


def check(y: Tensor, x: Tensor, weight: Int4Weight, bias: Tensor | None = None) -> None:
    expected = x.double() @ weight.unpack(torch.float32).double().T
    expected = expected if bias is None else expected + bias.double()
    error = (y.double() - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert y.shape == expected.shape and y.dtype == x.dtype
    assert float(error.nan_to_num(nan=torch.inf).max()) < LIMITS[x.dtype]


@pytest.mark.parametrize("seed", range(14))
def test_any_product_equals_that_with_the_unpacked_weight(seed, dtype, amid_nan):
    chance = random.Random(seed)
    weight = make_weight(
        8 * chance.randint(1, 25),
        8 * chance.choice([1, chance.randint(2, 40), 32, 64, chance.randint(41, 120)]),
        [32, 64, 128, -1, 96, 256][seed % 6],
        is_reordered=chance.random() < 0.3,
        scales=chance.choice([torch.float16, torch.bfloat16, torch.float32]),
        seed=seed,
    )
    num_outputs, num_inputs = weight.shape
    x = make_rows(chance.choice([1, 2, 7, 16, 17, 65]), num_inputs, dtype, seed)
    bias = torch.randn(num_outputs).to(x) if chance.random() < 0.5 else None
    y = int4.multiply(x, weight, bias, is_batch_invariant=chance.random() < 0.3)
    check(y, x, weight, bias)
    assert amid_nan
    for whole in amid_nan:
        assert whole[:MARGIN].isnan().all() and whole[-MARGIN:].isnan().all()


@pytest.mark.parametrize("num_inputs", [1024, 1160])
def test_splits_of_the_inputs_are_added(num_inputs, dtype, poisoned):
    weight = make_weight(40, num_inputs, 128)
    assert int4.choose_splits(1, len(weight.words), torch.device("cpu")) == 2
    x, bias = make_rows(5, num_inputs, dtype), torch.randn(40).to(DEVICE, dtype)
    check(int4.multiply(x, weight, bias, is_batch_invariant=False), x, weight, bias)
    assert {tuple(made.shape) for made in poisoned} >= {(5, 40), (2, 5, 40)}


def test_many_rows_are_multiplied_by_the_whole_weight(dtype, poisoned):
    weight = make_weight(24, 72, 32, is_reordered=True)
    x, bias = make_rows(300, 72, dtype), torch.randn(24).to(DEVICE, dtype)
    check(int4.multiply(x, weight, bias, is_batch_invariant=False), x, weight, bias)
    assert weight.shape in {tuple(made.shape) for made in poisoned}


def test_a_row_depends_on_nothing_beside_it(dtype):
    weight, x = make_weight(72, 1024, 128), make_rows(16, 1024, dtype)
    together = int4.multiply(x, weight, None, is_batch_invariant=False)
    for row in (0, 3, 15):
        alone = int4.multiply(x[row : row + 1], weight, None, is_batch_invariant=False)
        assert torch.equal(alone[0], together[row])


def test_an_exact_row_depends_on_nothing_beside_it_in_any_number(dtype):
    weight, x = make_weight(24, 512, 32), make_rows(270, 512, dtype)
    together = int4.multiply(x, weight, None, is_batch_invariant=True)
    check(together, x, weight)
    for first, stop in ((0, 1), (7, 40), (200, 270)):
        some = int4.multiply(x[first:stop], weight, None, is_batch_invariant=True)
        assert torch.equal(some, together[first:stop])


@pytest.mark.parametrize("group_size", [32, 64, -1])
def test_weights_side_by_side_are_one(group_size, dtype):
    parts = [make_weight(size, 136, group_size, seed=size) for size in (24, 8, 72)]
    merged, x = concatenate(parts), make_rows(3, 136, dtype)
    assert merged is not None and merged.shape == (104, 136)
    y = int4.multiply(x, merged, None, is_batch_invariant=False)
    for part, own in zip(parts, y.split([24, 8, 72], dim=1), strict=True):
        check(own, x, part)


def test_weights_that_take_their_inputs_differently_stay_apart():
    one = make_weight(8, 64, 32)
    for other in (make_weight(8, 64, 64), make_weight(8, 64, 32, is_reordered=True)):
        assert concatenate([one, other]) is None and concatenate([other, one]) is None
    first, second = (make_weight(8, 64, 32, is_reordered=True, seed=seed) for seed in (1, 2))
    assert concatenate([first, second]) is None and concatenate([first, first]) is not None


@pytest.mark.parametrize("seed", range(12))
def test_the_unpacking_kernel_equals_its_torch_twin(seed):
    chance = random.Random(seed)
    shape = 8 * chance.randint(1, 20), 8 * chance.randint(1, 70)
    weight = make_weight(*shape, [32, 64, 128, -1][seed % 4], seed=seed)
    for dtype in (torch.float32, torch.float16):
        assert torch.equal(int4.unpack(weight, dtype), weight.unpack(dtype))
    # The interpreter cuts what does not fit into bfloat16, where it should round.
    exact, found = weight.unpack(torch.float32), int4.unpack(weight, torch.bfloat16).float()
    assert ((found - exact).abs() <= exact.abs() * 2**-7).all()


def test_a_layout_is_chosen_by_the_size_of_groups():
    assert [num_words(size, 4096) for size in (4096, 128, 64, 192, 32, 96)] == [32] * 4 + [16] * 2
    assert [num_words(size, 4096) for size in (16, 8, 24, 48)] == [None] * 4
    assert [num_words(size, 16) for size in (16, 128)] == [32, 32]


def test_a_weight_takes_little_more_than_four_bits():
    weight = make_weight(64, 1024, 128)
    assert weight.num_bytes * 8 == 64 * 1024 * (4 + (16 + 8) / 128)


# Compiles products with a Qwen3-8B gate_up_proj, and prints what the assembler says of each.
PROGRAM = """
import json
import torch
from tests.kernels.hopper import build
from workers.model.kernels import int4

def compile(name, constants, **options):
    aligned = ("num_outputs", "num_inputs", "x_stride")
    return build(getattr(int4, name), TYPES, constants, aligned=aligned, **options)

TYPES = {"words": "*i32", "scales": "*fp16", "zeros": "*u8", "parts": "*fp32"}
TYPES |= {name: "*bf16" for name in ("x", "bias", "y", "unpacked")}
group = {"GROUP_SIZE": 128, "NUM_WORDS": 32}
for rows, splits in ((1, 1), (1, 8), (64, 1), (64, 8)):
    tile = int4.choose_tile(rows, is_batch_invariant=False)
    constants = group | {
        "GROUP_PLANES": 2, "IS_WHOLE": True, "NUM_OUTPUTS": tile.outputs,
        "NUM_ROWS": tile.rows, "NUM_SPLITS": splits, "HAS_BIAS": False,
    }
    compiled = compile(
        "_multiply_tiles", constants, num_warps=tile.num_warps, num_stages=tile.num_stages
    )
    ptx = compiled.asm["ptx"]
    print(json.dumps({
        "shared": compiled.metadata.shared, "copies": ptx.count("cp.async.cg"),
        "products": ptx.count("wgmma.mma_async"), "spilled": ptx.count(".local"),
        "layouts": compiled.asm["ttgir"].count("convert_layout"),
        "halves": ptx.count("cvt.rn.bf16"),
    }))
compile("_unpack_tiles", group | {"NUM_OUTPUTS": 64})
compile("_fold_parts", {"NUM_OUTPUTS": 1024, "NUM_SPLITS": 8, "HAS_BIAS": True})
"""


def test_kernels_compile_for_hopper(tmp_path):
    compiled = run(PROGRAM, tmp_path)
    assert len(compiled) == 4
    for one in compiled:
        assert one["products"] > 0 and one["copies"] > 0  # matrix units, and copies ahead of them
        assert one["shared"] < 227 * 1024 / 2  # two programs at once on a multiprocessor
        # Numbers are made where they are multiplied: nothing moves but the result, once.
        assert one["layouts"] <= 1 and one["spilled"] == 0
