"""Unpack linears of 8 bits: e4m3 or integers, each times the scale of its block.

Knows no files and no config.json: which blocks there are, and in which tensors, says
workers/checkpoint/packings.py. Blocks of 128 by 128 are those of
github.com/deepseek-ai/DeepSeek-V3 (inference/kernel.py: weight_dequant), in which Qwen publishes;
scales a tensor, output or group are those of github.com/vllm-project/compressed-tensors
(compressors/naive_quantized).
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from workers.checkpoint.packings import ScaledPacking

# Elements unpacked at once: what is held in float32 beside the packed and the finished weight.
_SLAB = 1 << 20


def unpack(how: ScaledPacking, packed: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    """Return the weight [out, in] of tensors that have the shapes of `how.parts`.

    A product is of two float32 numbers, and rounded to `dtype`.
    """
    numbers = packed["weight"]
    num_outputs, num_inputs = numbers.shape
    outputs = _blocks(num_outputs, how.block[0]).to(numbers.device)
    inputs = _blocks(num_inputs, how.block[1]).to(numbers.device)
    grid = how.grid((num_outputs, num_inputs))
    scales = packed[how.scale].float().reshape(grid)
    zeros = packed["weight_zero_point"].float().reshape(grid) if how.has_zero_point else None
    weight = torch.empty(num_outputs, num_inputs, dtype=dtype, device=numbers.device)
    step = max(1, _SLAB // num_inputs)
    for start in range(0, num_outputs, step):
        slab = slice(start, start + step)
        place = outputs[slab, None], inputs[None]
        values = numbers[slab].float()
        if zeros is not None:
            values -= zeros[place]
        weight[slab] = values.mul_(scales[place]).to(dtype)
    return weight


def _blocks(count: int, size: int) -> Tensor:
    """Return the block of each of `count` outputs or inputs."""
    return torch.arange(count) // (count if size < 0 else size)
