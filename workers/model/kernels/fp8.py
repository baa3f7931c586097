"""Quantize rows to FP8 (e4m3) in one Triton kernel, as `quantize_rows` does in six launches.

Those, of plain torch in quantization/fp8.py, take more time than a small product. Checked under
Triton's interpreter against it for scales, and for numbers that e4m3 holds exactly (the interpreter
carries wrongly when others round up), and compiled for sm_90. Not checked: any GPU.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from workers.model.layout.fp8_format import E4M3, LARGEST, LEAST

_LARGEST = tl.constexpr(LARGEST)
_LEAST = tl.constexpr(LEAST)
_WIDTH = 1024


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return x `[rows, width]` in e4m3, and the float32 scales `[rows, 1]` that give it back."""
    assert x.stride(1) == 1
    num_rows, width = x.shape
    values = x.new_empty(x.shape, dtype=E4M3)
    scales = x.new_empty(num_rows, 1, dtype=torch.float32)
    _quantize_row[(num_rows,)](x, values, scales, width, x.stride(0), WIDTH=_WIDTH, num_warps=4)
    return values, scales


@triton.jit
def _quantize_row(x, values, scales, width, x_stride, WIDTH: tl.constexpr):
    """Find the largest of one row, then divide by it what is by now in the cache."""
    row = tl.program_id(0).to(tl.int64)
    largest = tl.zeros([WIDTH], tl.float32)
    for first in range(0, width, WIDTH):
        at = first + tl.arange(0, WIDTH)
        part = tl.load(x + row * x_stride + at, mask=at < width, other=0.0).to(tl.float32)
        largest = tl.maximum(largest, tl.abs(part))
    scale = tl.div_rn(tl.maximum(tl.max(largest, 0), _LEAST), _LARGEST)
    tl.store(scales + row, scale)
    for first in range(0, width, WIDTH):
        at = first + tl.arange(0, WIDTH)
        part = tl.load(x + row * x_stride + at, mask=at < width, other=0.0).to(tl.float32)
        rounded = tl.div_rn(part, scale).to(values.dtype.element_ty)
        tl.store(values + row * width + at, rounded, mask=at < width)
