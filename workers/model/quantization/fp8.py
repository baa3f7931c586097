"""Fp8Weight: a weight of 8 bits, e4m3 with a scale for every output, and products with it.

    y = ((q_x q_Wᵀ) * scale_x * scale_W) + b      q in e4m3, up to 448; scales float32

A plain checkpoint's linears are rounded one by one as their files are read, so that the model is
never held as it was. Embeddings, head, norms, routers and experts keep their dtype. The product is
torch._scaled_mm's, of which `check` tries a small one, so that a device or dtype without it is
refused before memory is spent.

Checked on a CPU, where torch 2.13 has that product in bfloat16 and float32. Not checked: any GPU;
torch's own checks for CUDA want bfloat16 there, and dimensions that are multiples of 16.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.errors import ConfigError
from workers.model.layout.fp8_format import E4M3, LARGEST, LEAST


@dataclass(frozen=True, eq=False)
class Fp8Weight:
    """A weight [out, in]: `values` e4m3 of that shape, `scales` float32 `[1, out]`.

    Triton is imported by the first product on a GPU, not before.
    """

    values: Tensor
    scales: Tensor

    @classmethod
    def of(cls, weight: Tensor) -> "Fp8Weight":
        values, scales = quantize_rows(weight)
        return cls(values, scales.view(1, -1))

    @property
    def shape(self) -> torch.Size:
        return self.values.shape

    def unpack(self, dtype: torch.dtype) -> Tensor:
        """Return the weight [out, in] in plain torch."""
        return (self.values.float() * self.scales.T).to(dtype)

    def multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Return x Wᵀ + b for x of shape [rows, in]."""
        values, scales = _quantize_rows_fast(x)
        y = torch._scaled_mm(
            values, self.values.T, scale_a=scales, scale_b=self.scales, out_dtype=x.dtype
        )
        return y if bias is None else y.add_(bias)


def check(device: torch.device, dtype: torch.dtype) -> None:
    """Raise ConfigError unless torch multiplies FP8 on a device, with a result of a dtype."""
    weight = Fp8Weight.of(torch.eye(32, device=device))
    try:
        weight.multiply(torch.ones(2, 32, dtype=dtype, device=device), None)
    except Exception as error:  # Triton's errors have no common base
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"quantization = 'fp8', but torch {torch.__version__} has no such product on {device}"
            f" in {dtype} ({reason}); it needs a GPU of compute capability 8.9 and bfloat16"
        ) from error


def concatenate(weights: Sequence[Fp8Weight]) -> Fp8Weight:
    """Return the weights side by side, along outputs."""
    return Fp8Weight(
        torch.cat([weight.values for weight in weights]),
        torch.cat([weight.scales for weight in weights], dim=1),
    )


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return x `[rows, width]` in e4m3, and the float32 scales `[rows, 1]` that give it back."""
    x = x.float()
    scales = x.abs().amax(-1, keepdim=True).clamp_(min=LEAST) / LARGEST
    return (x / scales).to(E4M3), scales


def _quantize_rows_fast(x: Tensor) -> tuple[Tensor, Tensor]:
    if x.device.type != "cuda":
        return quantize_rows(x)
    from workers.model.kernels import fp8

    with torch.cuda.device_of(x):
        return fp8.quantize_rows(x)
