"""Packs weights as AutoAWQ or AutoGPTQ do, written from the formats' descriptions, bit by bit.

It shares no code with the server: AWQ's order is the one of its CUDA kernel, GPTQ's zero points are
stored minus one in v1.
"""

from dataclasses import dataclass, field

import numpy as np
import torch

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
PLAIN_ORDER = tuple(range(8))


@dataclass(frozen=True)
class Packer:
    """Quantizes by rounding, and packs as AutoAWQ or AutoGPTQ do."""

    method: str = "awq"
    group_size: int = 16
    version: str = "gptq"
    sym: bool = False
    desc_act: bool = False
    more: dict = field(default_factory=dict)

    @property
    def config(self) -> dict:
        own = {"bits": 4, "group_size": self.group_size, "quant_method": self.method}
        if self.method == "awq":
            return own | {"version": "gemm", "zero_point": True, "modules_to_not_convert": None}
        form = {} if self.version == "gptq" else {"checkpoint_format": self.version}
        return own | form | {"desc_act": self.desc_act, "sym": self.sym, "static_groups": False}

    def groups(self, num_inputs: int, rng: np.random.Generator) -> np.ndarray:
        size = num_inputs if self.group_size < 0 else self.group_size
        groups = np.arange(num_inputs) // size
        return rng.permutation(groups) if self.desc_act else groups

    def linear(self, weight: np.ndarray, rng: np.random.Generator) -> tuple[dict, np.ndarray]:
        """Return the tensors of a weight [out, in], and what they stand for."""
        groups = self.groups(weight.shape[1], rng)
        numbers, zeros, scales = self._round(weight.T, groups)
        exact = (numbers - zeros[groups]) * scales.astype(np.float64)[groups]
        return self._tensors(numbers, zeros, scales, groups), exact.T.astype(np.float32)

    def _round(self, weight, groups):
        """Return numbers [in, out], zeros and float16 scales [groups, out]."""
        shape = (groups.max() + 1, weight.shape[1])
        zeros, scales = np.zeros(shape, np.int64), np.zeros(shape, np.float16)
        for group in range(shape[0]):
            rows = weight[groups == group]
            low, high = np.minimum(rows.min(0), 0), np.maximum(rows.max(0), 1e-3)
            if self.sym:
                high = np.maximum(high, -low)
                low = -high
            scales[group] = (high - low) / 15
            zeros[group] = 8 if self.sym else np.clip(np.round(-low / scales[group]), 0, 15)
        if self.version == "gptq":
            # A v1 file cannot say 0 without touching its neighbour; that has a test of its own.
            zeros = np.maximum(zeros, 1)
        numbers = np.clip(np.round(weight / scales.astype(float)[groups]) + zeros[groups], 0, 15)
        return numbers.astype(np.int64), zeros, scales

    def _tensors(self, numbers, zeros, scales, groups):
        if self.method == "awq":
            qweight, qzeros = pack(numbers, AWQ_ORDER), pack(zeros, AWQ_ORDER)
        else:
            less = 1 if self.version == "gptq" else 0
            qweight, qzeros = pack(numbers.T, PLAIN_ORDER).T, pack(zeros - less, PLAIN_ORDER)
        found = {"qweight": qweight, "qzeros": qzeros, "scales": scales}
        if self.method == "gptq":
            found["g_idx"] = groups.astype(np.int32)
        return {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in found.items()}


def pack(numbers: np.ndarray, order: tuple[int, ...]) -> np.ndarray:
    """Return int32 words [rows, columns / 8] of numbers [rows, columns]."""
    assert numbers.min() >= 0 and numbers.max() <= 15
    words = np.zeros((numbers.shape[0], numbers.shape[1] // 8), np.uint32)
    for word in range(words.shape[1]):
        for place, column in enumerate(order):
            words[:, word] |= numbers[:, 8 * word + column].astype(np.uint32) << (4 * place)
    return words.view(np.int32)


@dataclass(frozen=True)
class Fp8Packer:
    """Rounds to e4m3 by blocks, as DeepSeek-V3's inference/fp8_cast_bf16.py reads it and Qwen
    publishes.

    A block is `weight_block_size` outputs by inputs; without one there is one scale for all, as in
    vLLM's own FP8 and AutoFP8.
    """

    block: tuple[int, int] | None = (128, 128)
    scale_dtype: torch.dtype = torch.float32
    scale: str = "weight_scale_inv"
    more: dict = field(default_factory=dict)

    @property
    def config(self) -> dict:
        own = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"}
        left_out = {"modules_to_not_convert": ["lm_head", "model.layers.0.mlp.gate"]}
        return own | left_out | {"weight_block_size": self.block and list(self.block)}

    def linear(self, weight: np.ndarray, rng: np.random.Generator) -> tuple[dict, np.ndarray]:
        """Return the tensors of a weight [out, in], and what they stand for."""
        outputs, inputs = self.block or weight.shape
        grid = (-(-weight.shape[0] // outputs), -(-weight.shape[1] // inputs))
        scales = torch.empty(grid, dtype=self.scale_dtype)
        values = torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
        exact = np.empty(weight.shape, np.float32)
        for i, j in np.ndindex(*grid):
            rows, columns = (
                slice(i * outputs, (i + 1) * outputs),
                slice(j * inputs, (j + 1) * inputs),
            )
            block = torch.from_numpy(weight[rows, columns])
            scales[i, j] = block.abs().max().clamp(min=1e-6) / 448
            values[rows, columns] = (block / scales[i, j].float()).to(torch.float8_e4m3fn)
            exact[rows, columns] = values[rows, columns].float() * scales[i, j].float()
        scales = scales if self.block else scales[0, 0].clone()
        return {"weight": values, self.scale: scales}, exact
