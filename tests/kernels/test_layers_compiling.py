"""A layer's element-wise kernels compile for Hopper, in a process without the interpreter."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="kernels need the package triton")

# Compiles for sizes of Qwen3-8B and Qwen2.5-0.5B, and prints how memory is read, results rounded.
PROGRAM = """
import json
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from workers.model.kernels import layers

number, number32, integer = "*bf16", "*fp32", "*i32"
types = {name: number32 for name in ("weight", "head_norm", "cos", "sin")}
types |= {name: "fp32" for name in ("eps", "scale")}
types |= {"slots": integer}

def compile(name, num_warps, **constants):
    kernel = getattr(layers, name)
    signature, attributes = {}, {}
    for index, argument in enumerate(kernel.arg_names):
        default = "constexpr" if argument in constants else number
        signature[argument] = types.get(argument, default)
        if signature[argument][0] == "*" and argument != "slots":
            attributes[index,] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    options = {"num_warps": num_warps}
    ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]
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
        HALF=half, PADDED_HALF=half, HEADS=heads, HAS_NORM=bool(has_norm),
    )
for width in (12288, 4864):
    compile("_silu_and_multiply", 4, WIDTH=width, TILE=1024)
"""


def test_element_wise_kernels_compile_for_hopper(tmp_path):
    environ = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environ |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.getcwd()}
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environ, capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    compiled = [json.loads(line) for line in ran.stdout.splitlines()]
    assert len(compiled) == 8
    for one in compiled:
        assert one["wide"] > 0 and one["local"] == 0  # 16 bytes a thread at once, none on a stack
        assert one["rounded"] > 0 and one["cut"] == 0
