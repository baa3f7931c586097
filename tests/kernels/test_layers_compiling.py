"""A layer's element-wise kernels compile for Hopper, in a process without the interpreter."""

import pytest

from tests.kernels.hopper import run

pytest.importorskip("triton", reason="kernels need the package triton")

# Compiles for sizes of Qwen3-8B and Qwen2.5-0.5B, and prints how memory is read, results rounded.
PROGRAM = """
import json
import triton
from tests.kernels.hopper import build
from workers.model.kernels import layers

types = {name: "*fp32" for name in ("weight", "head_norm", "cos", "sin")}
types |= {name: "fp32" for name in ("eps", "scale")}
types |= {"slots": "*i32"}

def compile(name, num_warps, **constants):
    options = {"otherwise": "*bf16", "unaligned": {"slots"}, "num_warps": num_warps}
    ptx = build(getattr(layers, name), types, constants, **options).asm["ptx"]
    print(json.dumps({
        "wide": ptx.count("v4.b32"), "local": ptx.count(".local"),
        "rounded": ptx.count("cvt.rn.bf16"), "cut": ptx.count("cvt.rz"),
    }))

for width, num_warps in ((4096, 16), (896, 4)):
    for has_delta in (True, False):
        constants = {"WIDTH": width, "HAS_DELTA": has_delta}
        padded = triton.next_power_of_2(width)
        compile("_add_and_normalize", num_warps, PADDED=padded, **constants)
for num_heads, num_kv_heads, half, heads, has_norm in ((32, 8, 64, 16, 1), (14, 2, 32, 32, 0)):
    compile(
        "_normalize_rotate_and_write", 4, NUM_HEADS=num_heads, NUM_KV_HEADS=num_kv_heads,
        HALF=half, PADDED_HALF=half, REST=0, PADDED_REST=0, HEADS=heads, HAS_NORM=bool(has_norm),
        IS_GATED=False,
    )
for width in (12288, 4864):
    compile("_silu_and_multiply", 4, WIDTH=width, TILE=1024)
"""


def test_element_wise_kernels_compile_for_hopper(tmp_path):
    compiled = run(PROGRAM, tmp_path)
    assert len(compiled) == 8
    for one in compiled:
        assert one["wide"] > 0 and one["local"] == 0  # 16 bytes a thread at once, none on a stack
        assert one["rounded"] > 0 and one["cut"] == 0
