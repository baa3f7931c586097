"""Unpack 8-bit linears (FP8 or int8 times scales), or hold them packed for the GPU kernels.

Knows no files and no config.json: which blocks there are, and in which tensors, says
workers/checkpoint/packings.py. Blocks of 128 by 128 are those of
github.com/deepseek-ai/DeepSeek-V3 (inference/kernel.py: weight_dequant), in which Qwen publishes;
scales a tensor, output or group are those of github.com/vllm-project/compressed-tensors
(compressors/naive_quantized).
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from workers.checkpoint.packings import Multiplier, ScaledPacking
from workers.model.layout.block_fp8_weight import BlockFp8Weight, can_be_multiplied
from workers.model.quantization.int8 import Int8Weight

# Elements unpacked at once: what is held in float32 beside the packed and the finished weight.
_SLAB = 1 << 20


def unpack(how: ScaledPacking, packed: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    """Return the weight [out, in] of tensors that have the shapes of `how.parts`.

    A product is of two float32 numbers, and rounded to `dtype`.
    """
    numbers = packed["weight"]
    num_outputs, num_inputs = numbers.shape
    grid = how.grid((num_outputs, num_inputs))
    scales = packed[how.scale].float().reshape(grid)
    zeros = packed["weight_zero_point"].float().reshape(grid) if how.has_zero_point else None
    weight = torch.empty(num_outputs, num_inputs, dtype=dtype, device=numbers.device)
    step = max(1, _SLAB // num_inputs)
    for start in range(0, num_outputs, step):
        slab = slice(start, min(start + step, num_outputs))
        values = numbers[slab].float()
        if zeros is not None:
            values.sub_(_spread(how, zeros, slab, num_inputs))
        weight[slab] = values.mul_(_spread(how, scales, slab, num_inputs)).to(dtype)
    return weight


def repack(
    how: ScaledPacking, packed: Mapping[str, Tensor], by: Multiplier, dtype: torch.dtype
) -> BlockFp8Weight | Int8Weight | None:
    """Return the same weight as `unpack` does, in 8 bits; None where nothing multiplies by it."""
    numbers = packed["weight"]
    if not how.is_kept(by):
        return None
    if by == "native":
        return Int8Weight(numbers, packed[how.scale].float().reshape(-1), dtype)
    if not can_be_multiplied(numbers.device):
        return None
    num_outputs, num_inputs = numbers.shape
    scales = packed[how.scale].float().reshape(how.grid((num_outputs, num_inputs)))
    return BlockFp8Weight(numbers, scales)


def _spread(how: ScaledPacking, grid: Tensor, outputs: slice, num_inputs: int) -> Tensor:
    """Return what a grid has for each of some outputs, and for each input where they differ."""
    if how.block[0] > 0:
        grid = grid[torch.arange(outputs.start, outputs.stop, device=grid.device) // how.block[0]]
    return grid.repeat_interleave(how.block[1], 1)[:, :num_inputs] if how.block[1] > 0 else grid
