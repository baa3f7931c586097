"""Triton's interpreter for tests: rows multiplied alike anywhere, and one patch a launch."""

from typing import Any

import numpy as np


def mend() -> None:
    """Mend the interpreter for the rest of this process, if Triton is here."""
    try:
        import triton.language as tl
        from triton.runtime import interpreter
    except ImportError:
        return
    patch, modules = interpreter._patch_lang, (tl, tl.core)
    dot = interpreter.InterpreterBuilder.create_dot

    def floats(operand: Any) -> Any:
        if operand.dtype.is_floating() and operand.dtype.primitive_bitwidth == 8:
            halves = interpreter._convert_float(operand.data, operand.dtype, tl.float16, None)
            return halves.view(np.float16)
        return operand.data

    def exact_dot(builder: Any, a: Any, b: Any, d: Any, *options: Any) -> Any:
        """Multiply as a tensor core does: a row's sum is the same wherever it lies in its tile.

        BLAS, which numpy calls, sums the rows at a tile's edge in another order on some CPUs; after
        sums in float64 that is seen in one of some 10^8 results.
        """
        if not d.dtype.is_floating():
            return dot(builder, a, b, d, *options)
        product = np.matmul(floats(a), floats(b), dtype=np.float64).astype(d.data.dtype)
        return interpreter.TensorHandle(product + d.data, d.dtype.scalar)

    def patch_if_needed(function: Any) -> Any:
        """Patch the language once a launch, not at every call in a kernel."""
        own = [m for m in modules if any(m is value for value in function.__globals__.values())]
        if any(tl.core.is_builtin(module.arange) for module in own):
            return patch(function)
        return interpreter._LangPatchScope()

    interpreter.InterpreterBuilder.create_dot = exact_dot
    interpreter._patch_lang = patch_if_needed
