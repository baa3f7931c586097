"""BlockFp8Weight: a weight of 8 bits, e4m3 with a scale for 128 outputs by 128 inputs.

That is what FP8 checkpoints hold. It is multiplied by x in e4m3 with a scale for 128 inputs of a
row, as those checkpoints are meant to be: github.com/deepseek-ai/DeepSeek-V3 (inference/kernel.py).
Knows the layout, and how x is rounded, in plain torch. Refuses to know files, and who multiplies.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.model.layout.fp8_format import E4M3, LARGEST, LEAST

BLOCK = 128
# The first GPUs whose matrix units take e4m3.
_CAPABILITY = (8, 9)


@dataclass(frozen=True, eq=False)
class BlockFp8Weight:
    """A weight [out, in]: `values` e4m3 of that shape, `scales` float32 `[⌈out/128⌉, ⌈in/128⌉]`."""

    values: Tensor
    scales: Tensor

    def __post_init__(self) -> None:
        assert self.values.is_contiguous() and self.scales.is_contiguous(), (
            "kernels know no strides"
        )

    @property
    def shape(self) -> torch.Size:
        return self.values.shape

    def unpack(self, dtype: torch.dtype) -> Tensor:
        """Return the weight [out, in] in plain torch."""
        scales = self.scales.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
        return (self.values.float() * scales[: self.shape[0], : self.shape[1]]).to(dtype)


def can_be_multiplied(device: torch.device) -> bool:
    """Return whether a device multiplies e4m3; a CPU does under Triton's interpreter."""
    return device.type == "cpu" or torch.cuda.get_device_capability(device) >= _CAPABILITY


def concatenate(weights: Sequence[BlockFp8Weight]) -> BlockFp8Weight | None:
    """Return the weights side by side, along outputs; None where a block would lie in two."""
    if any(weight.shape[0] % BLOCK for weight in weights[:-1]):
        return None
    return BlockFp8Weight(
        torch.cat([weight.values for weight in weights]),
        torch.cat([weight.scales for weight in weights]),
    )


def quantize_blocks(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return x `[rows, width]` in e4m3, and its float32 scales `[rows, ⌈width/128⌉]`."""
    num_rows, width = x.shape
    blocks = F.pad(x.float(), (0, -width % BLOCK)).view(num_rows, -1, BLOCK)
    scales = blocks.abs().amax(-1).clamp_(min=LEAST) / LARGEST
    values = (blocks / scales[..., None]).flatten(1)[:, :width]
    return values.to(E4M3).contiguous(), scales
