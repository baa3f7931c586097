"""The kernels compile to machine code for Hopper, in a process without the interpreter."""

import pytest

from tests.kernels.hopper import run

pytest.importorskip("triton", reason="kernels need the package triton")

# Prints what the assembler says of each.
PROGRAM = """
import json
import torch
from tests.kernels.hopper import build
from workers.model.kernels import matmul, paged_attention

def compile(kernel, types, constants, **options):
    return build(kernel, types, constants, aligned=ALIGNED, unaligned=UNALIGNED, **options)

def report(compiled):
    ptx = compiled.asm["ptx"]
    print(json.dumps({
        "shared": compiled.metadata.shared, "copies": ptx.count("cp.async.cg"),
        "products": ptx.count("mma"), "group_products": ptx.count("wgmma.mma_async"),
    }))

ALIGNED = {"query_stride", "place_stride", "slot_stride", "key_stride", "value_stride"}
ALIGNED |= {"num_inputs", "num_outputs"}
UNALIGNED = {"starts", "lengths", "tables", "slots"}
number, number32, integer = "*bf16", "*fp32", "*i32"
types = {name: number for name in ("query", "keys", "values", "context", "key", "value")}
types |= {name: number32 for name in ("part_context", "part_largest", "part_total")}
types |= {name: integer for name in ("starts", "lengths", "tables", "slots")}
CASES = ((1, 1, 64, False, 0), (1, 8, 16, False, 0), (9, 1, 64, False, 0), (9, 1, 16, False, 0),
         (1, 8, 64, False, 4096), (9, 1, 64, False, 4096), (1, 1, 64, True, 0), (9, 1, 16, True, 0))
for max_query, splits, block_size, is_batch_invariant, window in CASES:
    tile = paged_attention.choose_tile(
        max_query, torch.bfloat16, 128, is_batch_invariant=is_batch_invariant
    )
    constants = {
        "GROUP": 4, "HEAD_DIM": 128, "PADDED_DIM": 128, "BLOCK_SIZE": block_size,
        "NUM_QUERIES": tile.queries, "NUM_KEYS": tile.keys, "NUM_SPLITS": splits,
        "IS_SINGLE": max_query == 1 and not is_batch_invariant, "WINDOW": window,
    }
    options = {"num_warps": tile.num_warps, "num_stages": tile.num_stages}
    report(compile(paged_attention._attend_tiles, types, constants, **options))
tile = matmul.choose_tile(torch.bfloat16)
constants = {"ROWS": tile.rows, "OUTPUTS": tile.outputs, "INPUTS": tile.inputs, "TOGETHER": 8}
types |= {name: number for name in ("x", "weight", "bias", "y")}
options = {"num_warps": tile.num_warps, "num_stages": tile.num_stages}
for has_bias in (False, True):
    constants["HAS_BIAS"] = has_bias
    report(compile(matmul._multiply_tile, types, constants, **options))
compile(
    paged_attention._fold_parts, types, {"HEAD_DIM": 128, "PADDED_DIM": 128, "NUM_SPLITS": 8}
)
"""


def test_kernels_compile_for_hopper(tmp_path):
    compiled = run(PROGRAM, tmp_path)
    assert len(compiled) == 10
    for one in compiled[6:]:  # the exact ones, whose tiles are as large as this instruction's
        assert one["group_products"] > 0
    for one in compiled:
        assert one["products"] > 0 and one["copies"] > 0  # matrix units, and copies ahead of them
        assert one["shared"] < 227 * 1024  # what a program may have of an H200
