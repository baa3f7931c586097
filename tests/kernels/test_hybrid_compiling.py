"""The kernels of hybrid models compile for Hopper, in a process without the interpreter."""

import pytest

from tests.kernels.hopper import run

pytest.importorskip("triton", reason="kernels need the package triton")

# Compiles for Qwen3.6-27B's dimensions, and prints what a program and a thread need.
PROGRAM = """
import json
import torch
from tests.kernels.hopper import build, stack_bytes
from workers.model.kernels import delta_net, delta_scan, layers, paged_attention

names = ("taps", "rates", "inputs", "convolved", "token_rates", "matrices", "read", "weight")
types = {name: "*fp32" for name in (*names, "factors", "weights", "solved", "head_norm")}
types |= {name: "*fp32" for name in ("cos", "sin", "part_context", "part_largest", "part_total")}
numbers = ("projected", "output", "qkv", "query", "keys", "values", "context")
types |= {name: "*bf16" for name in numbers}
integers = ("columns", "starts", "lengths", "slots", "kept", "tables")
types |= {name: "*i32" for name in integers} | {name: "fp32" for name in ("eps", "scale")}
ALIGNED = {"query_stride", "place_stride", "slot_stride"}

def compile(name, kernel, num_warps, num_stages=3, **constants):
    own = {argument: types[argument] for argument in kernel.arg_names if argument in types}
    compiled = build(
        kernel, own, constants, aligned=ALIGNED, unaligned=set(integers) - {"columns"},
        num_warps=num_warps, num_stages=num_stages,
    )
    ptx = compiled.asm["ptx"]
    print(json.dumps({
        "name": name, "shared": compiled.metadata.shared, "stack": stack_bytes(compiled),
        "products": ptx.count("mma"), "local": ptx.count(".local"),
    }))

heads, keys, dim = 48, 16, 128
channels = (heads + 2 * keys) * dim
columns = channels + heads * dim + 2 * heads
for is_single in (True, False):
    compile(
        "prepare", delta_net._prepare_tokens, 4, COLUMNS=columns, CHANNELS=channels, WIDTH=4,
        NUM_HEADS=heads, PADDED_HEADS=64, TOKENS=delta_net._TOKENS, TILE=delta_net._CHANNELS_TILE,
        IS_SINGLE=is_single,
    )
state = {"CHANNELS": channels, "NUM_HEADS": heads, "KEY_DIM": dim, "VALUE_DIM": dim}
compile("step", delta_net._step_rows, 4, **state, PADDED_KEY=dim, TILE=delta_net._VALUES_TILE)
compile(
    "normalize", delta_net._normalize_heads, 4, COLUMNS=columns, NUM_HEADS=heads, DIM=dim,
    PADDED_DIM=dim, HEADS=16,
)
state["KEYS_TILE"] = delta_scan._KEYS_TILE
compile("solve", delta_scan._solve_chunks, delta_scan._SOLVE_WARPS, 1, **state)
state["TILE"] = delta_scan._VALUES_TILE
compile("scan", delta_scan._scan_rows, delta_scan._SCAN_WARPS, 1, **state)

compile(
    "heads", layers._normalize_rotate_and_write, 4, NUM_HEADS=24, NUM_KV_HEADS=4, HALF=32,
    PADDED_HALF=32, REST=192, PADDED_REST=256, HEADS=4, HAS_NORM=True, IS_GATED=True,
)
compile(
    "gates", layers._gate_heads, 4, QKV_WIDTH=56 * 256, NUM_HEADS=24, DIM=256, PADDED_DIM=256,
    HEADS=8,
)
for max_query, splits in ((1, 1), (1, 8), (9, 1)):
    tile = paged_attention.choose_tile(max_query, torch.bfloat16, 256)
    compile(
        "attend", paged_attention._attend_tiles, tile.num_warps, tile.num_stages, GROUP=6,
        HEAD_DIM=256, PADDED_DIM=256, BLOCK_SIZE=64, NUM_QUERIES=tile.queries, NUM_KEYS=tile.keys,
        NUM_SPLITS=splits, IS_SINGLE=max_query == 1, WINDOW=0,
    )
"""
BY_MATRIX_UNITS = {"solve", "scan", "attend"}


def test_kernels_of_hybrid_models_compile_for_hopper(tmp_path):
    compiled = run(PROGRAM, tmp_path)
    assert len(compiled) == 11
    for one in compiled:
        assert one["stack"] == one["local"] == 0, one  # all fits into registers
        assert one["shared"] < 227 * 1024  # what a program may have of an H200
        assert bool(one["products"]) == (one["name"] in BY_MATRIX_UNITS)
