"""Products with a weight of FP8 by blocks are those of plain torch, for x rounded by blocks."""

import pytest
import torch

from tests.kernels.conftest import DEVICE
from tests.kernels.hopper import run
from workers.model.layout.block_fp8_weight import (
    BLOCK,
    BlockFp8Weight,
    concatenate,
    quantize_blocks,
)
from workers.model.layout.fp8_format import E4M3, LARGEST

pytest.importorskip("triton", reason="kernels need the package triton")
from workers.model.kernels import block_fp8  # noqa: E402

DTYPES = [torch.float32, torch.float16, *([] if DEVICE == "cpu" else [torch.bfloat16])]
# Hopper's matrix units keep 14 bits of a sum of 128 products.
ROUNDED_SUMS = 0.0 if DEVICE == "cpu" else 1e-3
LIMITS = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 6e-3}


def weight_of(num_outputs, num_inputs, seed=3):
    torch.manual_seed(seed)
    values = (torch.randn(num_outputs, num_inputs) * 40).to(E4M3)
    grid = (-(-num_outputs // BLOCK), -(-num_inputs // BLOCK))
    return BlockFp8Weight(values.to(DEVICE), (torch.rand(grid) * 1e-3 + 1e-4).to(DEVICE))


def rows_of(num_rows, width, dtype=torch.float32):
    torch.manual_seed(4)
    x = torch.randn(num_rows, width) * torch.logspace(-3, 1, width)
    return x.to(dtype).to(DEVICE)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("num_rows", "num_outputs", "num_inputs"),
    [(1, 64, 64), (3, 128, 256), (16, 200, 144), (17, 128, 128), (70, 272, 400)],
)
def test_a_product_is_that_of_the_rounded_operands(num_rows, num_outputs, num_inputs, dtype):
    weight, x = weight_of(num_outputs, num_inputs), rows_of(num_rows, num_inputs, dtype)
    bias = torch.randn(num_outputs, dtype=dtype, device=DEVICE)
    values, scales = quantize_blocks(x)
    rounded = values.double() * scales.double().repeat_interleave(BLOCK, 1)[:, :num_inputs]
    for added in (None, bias):
        expected = rounded @ weight.unpack(torch.float64).T
        expected += 0 if added is None else added.double()
        found = block_fp8.multiply(x, weight, added, is_batch_invariant=False)
        error = (found.double() - expected).norm(dim=-1) / expected.norm(dim=-1)
        assert found.dtype == dtype and float(error.max()) < LIMITS[dtype] + ROUNDED_SUMS


def test_what_lies_beside_a_row_changes_nothing():
    weight, x = weight_of(160, 200), rows_of(40, 200)
    together = block_fp8.multiply(x, weight, None, is_batch_invariant=True)
    for first, stop in ((0, 1), (5, 30), (16, 40)):
        alone = block_fp8.multiply(x[first:stop], weight, None, is_batch_invariant=True)
        assert torch.equal(alone, together[first:stop])


def test_rows_are_rounded_by_blocks_to_the_nearest_number():
    x = rows_of(9, 300)
    x[2] = 0
    values, scales = quantize_blocks(x)
    assert values.dtype == E4M3 and scales.shape == (9, 3)
    blocks = values.float().abs().split(BLOCK, 1)
    assert all((block.amax(1) == LARGEST)[[0, 1, 3]].all() for block in blocks)
    wide = scales.repeat_interleave(BLOCK, 1)[:, :300]
    step = torch.maximum(x.abs() * 2**-3, wide * 2**-9)
    assert ((values.float() * wide - x).abs() <= step / 2 * 1.00001).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_kernel_rounds_as_torch_does(dtype):
    """With numbers that e4m3 holds: of others that round up, the interpreter loses the carry."""
    torch.manual_seed(5)
    width = 9 * BLOCK + 40
    exact = (torch.randn(5, width) * 20).to(E4M3).float()
    exact[:, ::BLOCK] = -LARGEST
    exact[4] = 0
    whole = torch.full((5, width + 9), torch.nan, dtype=dtype)
    x = whole[:, :width]
    x[:] = exact * 2.0 ** torch.arange(-4, 1)[:, None]
    values, scales = block_fp8.quantize_blocks(x.to(DEVICE))
    expected, expected_scales = quantize_blocks(x.to(DEVICE))
    assert torch.equal(scales, expected_scales)
    assert torch.equal(values.float(), expected.float())
    assert torch.equal(values.float().cpu(), exact)


def test_weights_are_side_by_side_where_no_block_lies_in_two():
    parts = [weight_of(256, 144), weight_of(128, 144, 5), weight_of(72, 144, 6)]
    whole = concatenate(parts)
    expected = torch.cat([part.unpack(torch.float32) for part in parts])
    assert torch.equal(whole.unpack(torch.float32), expected)
    assert concatenate([parts[2], parts[0]]) is None


# Prints what the assembler says of each.
PROGRAM = """
import json
from tests.kernels.hopper import build
from workers.model.kernels import block_fp8

types = {name: "*fp8e4nv" for name in ("x", "weight", "values")}
types |= {name: "*fp32" for name in ("x_scales", "weight_scales", "scales")}
types |= {"bias": "*bf16", "y": "*bf16"}
aligned = {"num_inputs", "num_outputs", "width", "x_stride"}
for num_rows in (1, 65):
    tile = block_fp8.choose_tile(num_rows, is_batch_invariant=False)
    constants = {"ROWS": tile.rows, "OUTPUTS": tile.outputs, "TOGETHER": 8, "HAS_BIAS": True}
    compiled = build(block_fp8._multiply_tile, types, constants, aligned=aligned,
                     num_warps=tile.num_warps, num_stages=tile.num_stages)
    ptx = compiled.asm["ptx"]
    print(json.dumps({"shared": compiled.metadata.shared, "copies": ptx.count("cp.async.cg"),
                      "products": ptx.count("wgmma.mma_async"), "eights": ptx.count("e4m3.e4m3")}))
compiled = build(block_fp8._quantize_blocks, types | {"x": "*bf16"}, {"BLOCKS": 8}, aligned=aligned)
print(json.dumps({"rounded": compiled.asm["ptx"].count("e4m3x2")}))
"""


def test_the_kernels_compile_for_hopper(tmp_path):
    *products, rounding = run(PROGRAM, tmp_path)
    assert len(products) == 2 and rounding["rounded"] >= 4
    for one in products:
        assert one["products"] > 0 and one["eights"] > 0  # matrix units, which take e4m3
        assert one["copies"] > 0 and one["shared"] < 227 * 1024
