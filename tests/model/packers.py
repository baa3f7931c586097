"""Packs weights as AutoAWQ, AutoGPTQ, DeepSeek and llm-compressor do, bit by bit.

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
    """Quantizes by rounding, and packs as AutoAWQ or AutoGPTQ do; AWQ has 4 bits."""

    method: str = "awq"
    group_size: int = 16
    version: str = "gptq"
    sym: bool = False
    desc_act: bool = False
    bits: int = 4
    more: dict = field(default_factory=dict)

    @property
    def config(self) -> dict:
        own = {"bits": self.bits, "group_size": self.group_size, "quant_method": self.method}
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
        shape, most = (groups.max() + 1, weight.shape[1]), (1 << self.bits) - 1
        zeros, scales = np.zeros(shape, np.int64), np.zeros(shape, np.float16)
        for group in range(shape[0]):
            rows = weight[groups == group]
            low, high = np.minimum(rows.min(0), 0), np.maximum(rows.max(0), 1e-3)
            if self.sym:
                high = np.maximum(high, -low)
                low = -high
            scales[group] = (high - low) / most
            zero = np.clip(np.round(-low / scales[group]), 0, most)
            zeros[group] = (most + 1) // 2 if self.sym else zero
        if self.version == "gptq":
            # A v1 file cannot say 0 without touching its neighbour; that has a test of its own.
            zeros = np.maximum(zeros, 1)
        numbers = np.clip(np.round(weight / scales.astype(float)[groups]) + zeros[groups], 0, most)
        return numbers.astype(np.int64), zeros, scales

    def _tensors(self, numbers, zeros, scales, groups):
        if self.method == "awq":
            qweight, qzeros = pack(numbers, AWQ_ORDER), pack(zeros, AWQ_ORDER)
        else:
            less, order = 1 if self.version == "gptq" else 0, tuple(range(32 // self.bits))
            qweight, qzeros = pack(numbers.T, order).T, pack(zeros - less, order)
        found = {"qweight": qweight, "qzeros": qzeros, "scales": scales}
        if self.method == "gptq":
            found["g_idx"] = groups.astype(np.int32)
        return {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in found.items()}


def pack(numbers: np.ndarray, order: tuple[int, ...]) -> np.ndarray:
    """Return int32 words [rows, columns / len(order)] of numbers [rows, columns]."""
    count = len(order)
    bits = 32 // count
    assert numbers.min() >= 0 and numbers.max() < 1 << bits
    words = np.zeros((numbers.shape[0], numbers.shape[1] // count), np.uint32)
    for word in range(words.shape[1]):
        for place, column in enumerate(order):
            words[:, word] |= numbers[:, count * word + column].astype(np.uint32) << (bits * place)
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


@dataclass(frozen=True)
class CompressedPacker:
    """Rounds and packs as llm-compressor saves: one group of compressed-tensors for all linears.

    Integers q stand for (q - zero) * scale. pack-quantized stores them plus half of their range in
    words along the inputs, and zero points likewise along the outputs; the others store `weight` in
    8 bits. A scale is for a block of outputs by inputs.
    """

    form: str = "pack-quantized"
    bits: int = 4
    strategy: str = "group"
    group_size: int = 32
    block: tuple[int, int] = (48, 24)
    symmetric: bool = True
    actorder: str | None = None
    is_float: bool = False
    scale_dtype: torch.dtype = torch.bfloat16
    more: dict = field(default_factory=dict)

    @property
    def weights(self) -> dict:
        own = {
            "num_bits": self.bits,
            "type": "float" if self.is_float else "int",
            "strategy": self.strategy,
            "symmetric": self.symmetric,
            "dynamic": False,
            "group_size": self.group_size if self.strategy == "group" else None,
            "actorder": self.actorder,
        }
        if self.strategy == "block":
            own["block_structure"] = list(self.block)
        return own

    @property
    def config(self) -> dict:
        activations = {"num_bits": 8, "type": "int", "dynamic": True, "strategy": "token"}
        group = {
            "targets": ["Linear"],
            "weights": self.weights,
            "input_activations": None if self.form == "pack-quantized" else activations,
            "output_activations": None,
        }
        return {
            "quant_method": "compressed-tensors",
            "format": self.form,
            "quantization_status": "compressed",
            "config_groups": {"group_0": group},
            "ignore": ["lm_head", "re:.*mlp.gate$", "re:.*in_proj_[ab]+$", "re:.*visual.*"],
            "kv_cache_scheme": None,
            "sparsity_config": {},
            "transform_config": {},
        }

    def linear(self, weight: np.ndarray, rng: np.random.Generator) -> tuple[dict, np.ndarray]:
        """Return the tensors of a weight [out, in], and what they stand for."""
        rows, columns = self._blocks(weight.shape, rng)
        grid = (rows.max() + 1, columns.max() + 1)
        scales, zeros = np.empty(grid, np.float32), np.zeros(grid, np.int64)
        numbers = np.empty(weight.shape, np.float32)
        for place in np.ndindex(*grid):
            inside = np.ix_(rows == place[0], columns == place[1])
            numbers[inside], scales[place], zeros[place] = self._round(weight[inside])
        one = np.ix_(rows, columns)
        exact = ((numbers - zeros[one]) * scales[one]).astype(np.float32)
        found = (
            self._words(numbers, zeros) if self.form == "pack-quantized" else self._bytes(numbers)
        )
        if not self.symmetric and self.form != "pack-quantized":
            found["weight_zero_point"] = torch.from_numpy(zeros.astype(np.int8))
        found["weight_scale"] = torch.from_numpy(scales).to(self.scale_dtype)
        if self.strategy == "tensor":
            found["weight_scale"] = found["weight_scale"][0]
        if self.actorder == "group":
            found["weight_g_idx"] = torch.from_numpy(columns.astype(np.int32))
        return found, exact

    def _blocks(self, shape, rng):
        """Return the block of each output and of each input."""
        sizes = {
            "tensor": shape,
            "channel": (1, shape[1]),
            "group": (1, self.group_size),
            "block": self.block,
        }[self.strategy]
        rows, columns = (np.arange(shape[axis]) // sizes[axis] for axis in (0, 1))
        return rows, rng.permutation(columns) if self.actorder == "group" else columns

    def _round(self, block):
        """Return numbers, scale and zero point of one block."""
        half = 1 << (self.bits - 1)
        largest = 448 if self.is_float else half - 1
        scale = max(float(np.abs(block).max()), 1e-5) / largest
        if not self.symmetric:
            low, high = min(block.min(), 0), max(block.max(), 1e-5)
            scale = (high - low) / (2 * half - 1)
        scale = float(torch.tensor(scale).to(self.scale_dtype))
        zero = 0 if self.symmetric else int(np.clip(np.round(-half - low / scale), -half, half - 1))
        if self.is_float:
            return torch.from_numpy(block / scale).to(torch.float8_e4m3fn).float().numpy(), scale, 0
        return np.clip(np.round(block / scale) + zero, -half, half - 1), scale, zero

    def _bytes(self, numbers):
        dtype = torch.float8_e4m3fn if self.is_float else torch.int8
        return {"weight": torch.from_numpy(numbers).to(dtype)}

    def _words(self, numbers, zeros):
        half, order = 1 << (self.bits - 1), tuple(range(32 // self.bits))
        found = {"weight_packed": pack(numbers.astype(np.int64) + half, order)}
        if not self.symmetric:
            found["weight_zero_point"] = pack(zeros.T + half, order).T
        tensors = {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in found.items()}
        return tensors | {"weight_shape": torch.tensor(numbers.shape)}
