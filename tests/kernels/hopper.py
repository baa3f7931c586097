"""Compile kernels for Hopper: it needs no GPU, but a process without Triton's interpreter.

A test hands `run` a program, which compiles with `build` and prints what it found, a line of JSON
for each.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any


def run(program: str, cache: Path) -> list[dict[str, Any]]:
    """Return what a program printed, in a process that compiles anew."""
    environ = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environ |= {"TRITON_CACHE_DIR": str(cache), "PYTHONPATH": os.getcwd()}
    command = [sys.executable, "-c", program]
    ran = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return [json.loads(line) for line in ran.stdout.splitlines()]


def build(
    kernel: Any,
    types: Mapping[str, str],
    constants: Mapping[str, Any],
    *,
    otherwise: str = "i32",
    aligned: Collection[str] = (),
    unaligned: Collection[str] = (),
    **options: int,
) -> Any:
    """Compile a kernel; arguments that are neither in `types` nor constants are `otherwise`.

    Pointers are multiples of 16 but for the `unaligned`, and so are the `aligned` numbers.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, attributes = {}, {}
    for index, argument in enumerate(kernel.arg_names):
        kind = types.get(argument, "constexpr" if argument in constants else otherwise)
        signature[argument] = kind
        if (kind[0] == "*" and argument not in unaligned) or argument in aligned:
            attributes[index,] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)


def stack_bytes(compiled: Any) -> int:
    """Return what a thread keeps on its stack: what did not fit into registers."""
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        said = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True)
    found = re.search(r"STACK:(\d+)", said.stdout)
    assert found is not None, said.stdout + said.stderr
    return int(found[1])
