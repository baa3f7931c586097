"""The product of one tile: its values against float64, its rows' bits between batches."""

import math
import random

import pytest
import torch
import torch.nn.functional as F

from tests.kernels.conftest import DEVICE, DTYPES

pytest.importorskip("triton", reason="kernels need the package triton")

from workers.model.kernels import matmul  # noqa: E402

# The largest error of any row, relative to its length. Rounding results makes 2.8e-4 in float16 and
# 2.3e-3 in bfloat16.
LIMITS = {torch.float32: 2e-6, torch.float16: 5e-4, torch.bfloat16: 4e-3}
SIZES = [1, 2, 15, 16, 31, 32, 33, 63, 64, 65, 100, 128, 130]


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request):
    return request.param


def random_operands(rows, inputs, outputs, dtype, *, biased=True):
    x, weight = torch.randn(rows, inputs), torch.randn(outputs, inputs) * inputs**-0.5
    bias = torch.randn(outputs).to(DEVICE, dtype) if biased else None
    return x.to(DEVICE, dtype), weight.to(DEVICE, dtype), bias


@pytest.mark.parametrize("seed", range(12))
def test_any_shape_equals_float64(seed, dtype, poisoned):
    torch.manual_seed(seed)
    chance = random.Random(seed)
    rows, inputs, outputs = (chance.choice([*SIZES, chance.randint(1, 200)]) for _ in range(3))
    x, weight, bias = random_operands(rows, inputs, outputs, dtype, biased=seed % 2 == 0)
    y = matmul.multiply(x, weight, bias)
    assert y.shape == (rows, outputs) and y.dtype == dtype
    expected = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    # What terms cancel to is no measure of their rounding, so no row counts as shorter than 1.
    error = (y.double() - expected).norm(dim=-1) / expected.norm(dim=-1).clamp(min=1.0)
    assert float(error.nan_to_num(nan=torch.inf).max()) < LIMITS[dtype]


@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 64, 64), (70, 40, 65), (3, 130, 1)])
def test_nothing_is_read_or_written_beside_the_operands(rows, inputs, outputs, dtype, monkeypatch):
    whole, new_empty = [], torch.Tensor.new_empty

    def amid_nan(like, shape, **options):
        if options:  # the interpreter's own
            return new_empty(like, shape, **options)
        whole.append(new_empty(like, (64 + math.prod(shape) + 64,)).fill_(torch.nan))
        return whole[-1][64:-64].view(shape)

    torch.manual_seed(1)
    operands = random_operands(rows, inputs, outputs, dtype)
    surrounded = [amid_nan(operand, operand.shape).copy_(operand) for operand in operands]
    expected = matmul.multiply(*operands)
    monkeypatch.setattr(torch.Tensor, "new_empty", amid_nan)
    y = matmul.multiply(*surrounded)
    assert torch.equal(y, expected) and not y.isnan().any()
    assert whole[-1][:64].isnan().all() and whole[-1][-64:].isnan().all()


@pytest.mark.parametrize(("inputs", "outputs"), [(96, 70), (200, 33)])
def test_a_row_is_the_same_bits_wherever_it_lies(inputs, outputs, dtype):
    torch.manual_seed(2)
    row, weight, bias = random_operands(1, inputs, outputs, dtype)
    alone = matmul.multiply(row, weight, bias)
    for rows in (2, 7, 16, 31, 33, 65, 129):
        for place in {0, rows // 2, rows - 1}:
            x = torch.randn(rows, inputs, device=DEVICE).to(dtype)
            x[place] = row[0]
            assert torch.equal(matmul.multiply(x, weight, bias)[place], alone[0]), (
                rows,
                place,
            )


def test_a_prompt_in_pieces_is_the_prompt(dtype):
    torch.manual_seed(3)
    x, weight, bias = random_operands(150, 72, 80, dtype)
    whole = matmul.multiply(x, weight, bias)
    for sizes in ([1] * 8 + [142], [33, 1, 66, 50], [149, 1]):
        pieces = [matmul.multiply(piece, weight, bias) for piece in x.split(sizes)]
        assert torch.equal(torch.cat(pieces), whole)


def test_what_is_wrong_with_a_neighbour_stays_with_it(dtype):
    torch.manual_seed(4)
    x, weight, bias = random_operands(40, 64, 64, dtype)
    expected = matmul.multiply(x, weight, bias)
    x[7] = torch.nan
    y = matmul.multiply(x, weight, bias)
    others = [row for row in range(40) if row != 7]
    assert torch.equal(y[others], expected[others])
    assert y[7].isnan().all()


def test_rows_may_be_cut_from_a_wider_tensor(dtype):
    torch.manual_seed(5)
    x, weight, bias = random_operands(9, 48, 40, dtype)
    wide = torch.full((9, 100), torch.nan, dtype=dtype, device=DEVICE)
    wide[:, 20:68] = x
    assert torch.equal(
        matmul.multiply(wide[:, 20:68], weight, bias), matmul.multiply(x, weight, bias)
    )


def test_every_tile_of_a_large_grid_is_computed_once():
    """More row tiles than run together, and a last group of fewer."""
    rows, outputs = 32 * 11 + 5, 32 * 3 + 1
    x, weight, bias = random_operands(rows, 8, outputs, torch.float32)
    y = matmul.multiply(x, weight, bias)
    torch.testing.assert_close(y, F.linear(x, weight, bias), rtol=1e-5, atol=1e-5)
