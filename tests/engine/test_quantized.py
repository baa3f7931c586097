"""AWQ and GPTQ checkpoints equal their unpacked twins; what cannot be unpacked is refused by name.

The packer here is written from the formats' descriptions, bit by bit, and shares no code with the
server: AWQ's order is the one of its CUDA kernel, GPTQ's zero points are stored minus one in v1.
"""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from workers.checkpoint import Checkpoint
from workers.errors import ModelError
from workers.model import quantized
from workers.model.loader import load_config, load_weights
from workers.model.quantized import Quantization

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
PLAIN_ORDER = tuple(range(8))
NOT_PACKED = ("embed_tokens.weight", "lm_head.weight", "mlp.gate.weight")


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


@pytest.fixture
def model_of(model_of):
    """Let `drive` take the directory of a model too."""
    return lambda name: (name, None) if isinstance(name, Path) else model_of(name)


@pytest.fixture
def twins(model_of, tmp_path):
    """Return a function that writes a packed checkpoint and its unpacked twin."""

    def twins(name: str, packer: Packer) -> tuple[Path, Path]:
        rng = np.random.default_rng(4)
        packed, plain = tmp_path / "packed", tmp_path / "plain"
        for path in (packed, plain):
            shutil.copytree(model_of(name)[0], path)
        whole = load_file(plain / "model.safetensors")
        parts = {}
        for key, tensor in list(whole.items()):
            if tensor.dim() != 2 or key.endswith(NOT_PACKED):
                parts[key] = tensor
                continue
            tensors, exact = packer.linear(tensor.numpy(), rng)
            whole[key] = torch.from_numpy(np.ascontiguousarray(exact))
            parts |= {f"{key.removesuffix('weight')}{k}": v for k, v in tensors.items()}
        save_file(whole, plain / "model.safetensors")
        save_file(parts, packed / "model.safetensors")
        change(packed, quantization_config=packer.config | packer.more)
        return packed, plain

    return twins


@pytest.fixture
def packed(twins):
    return twins("qwen3", Packer())[0]


@pytest.fixture
def packed_gptq(twins):
    return twins("qwen3", Packer("gptq", desc_act=True))[0]


def change(path, **changes):
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def change_tensors(path, **changes):
    """Replace tensors by name, dots written as two underscores; None takes one away."""
    file = path / "model.safetensors"
    tensors = load_file(file)
    for name, new in changes.items():
        name = name.replace("__", ".")
        old = tensors.pop(name, None)
        if new is not None:
            tensors[name] = new(old).contiguous() if callable(new) else new
    save_file(tensors, file)


def load(path, dtype=torch.float32, progress=lambda stage, fraction: None):
    checkpoint = Checkpoint.at(path)
    config = load_config(checkpoint)
    return load_weights(checkpoint, config, dtype, torch.device("cpu"), progress)


@pytest.mark.parametrize(
    ("name", "packer"),
    [
        ("qwen2", Packer()),
        ("qwen3", Packer(group_size=32, more={"version": "GEMM"})),
        ("qwen3_moe", Packer()),
        ("qwen3_moe", Packer(group_size=-1)),
        ("qwen2", Packer("gptq", 32, sym=True)),
        ("qwen3", Packer("gptq", desc_act=True, more={"checkpoint_format": "gptq"})),
        ("qwen3_moe", Packer("gptq", sym=True, more={"dynamic": {"-:.*mlp.gate$": {}}})),
        ("qwen2", Packer("gptq", version="gptq_v2", desc_act=True)),
        ("qwen3", Packer("gptq", -1, version="gptq_v2")),
        ("qwen3_moe", Packer("gptq", version="gptq_v2", desc_act=True, sym=True)),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value.method}-{value.version}",
)
def test_a_packed_checkpoint_equals_its_unpacked_twin(twins, drive, prompts, name, packer):
    packed, plain = twins(name, packer)
    for dtype in (torch.bfloat16, torch.float32):
        one, other = load(packed, dtype), load(plain, dtype)
        theirs = other.state_dict()
        assert one.state_dict().keys() == theirs.keys()
        for key, tensor in one.state_dict().items():
            assert tensor.dtype == dtype and torch.equal(tensor, theirs[key]), key
    ids = torch.tensor(prompts(1))
    assert torch.equal(one(ids).logits, other(ids).logits)
    answers = []
    for path in (packed, plain):
        driver = drive(path, threads=1)
        for key, prompt in enumerate(prompts(3)):
            driver.add(key, prompt)
        answers.append([driver.run().tokens(key) for key in range(3)])
    assert answers[0] == answers[1] and all(len(answer) == 16 for answer in answers[0])


def test_a_linear_may_lie_in_several_files(twins):
    packed, plain = twins("qwen3_moe", Packer("gptq"))
    tensors = load_file(packed / "model.safetensors")
    (packed / "model.safetensors").unlink()
    weight_map = {}
    for number, part in enumerate(("qweight", "scales", "")):
        file = f"model-{number}.safetensors"
        mine = {k: tensors.pop(k) for k in list(tensors) if k.endswith(part)}
        save_file(mine, packed / file)
        weight_map |= dict.fromkeys(mine, file)
    index = packed / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    theirs = load(plain).state_dict()
    assert all(
        torch.equal(tensor, theirs[key]) for key, tensor in load(packed).state_dict().items()
    )


def test_progress_is_reported(packed):
    progress = []
    load(packed, progress=lambda stage, fraction: progress.append((stage, fraction)))
    assert progress[0] == ("loading weights", 0.0) and progress[-1] == ("loading weights", 1.0)


def test_biases_of_zeros_that_autogptq_adds_are_left_out(packed_gptq):
    name = "model__layers__0__mlp__down_proj__bias"
    change_tensors(packed_gptq, **{name: torch.zeros(64, dtype=torch.float16)})
    load(packed_gptq)
    change_tensors(packed_gptq, **{name: torch.ones(64, dtype=torch.float16)})
    with pytest.raises(ModelError, match=r"model\.safetensors: .*down_proj\.bias is not zero"):
        load(packed_gptq)


def test_g_idx_is_not_needed_where_inputs_keep_their_order(twins):
    packed, plain = twins("qwen2", Packer("gptq"))
    tensors = load_file(packed / "model.safetensors")
    rest = {name: tensor for name, tensor in tensors.items() if not name.endswith("g_idx")}
    unset = {name: tensor.zero_() for name, tensor in tensors.items() if name.endswith("g_idx")}
    theirs = load(plain).state_dict()
    for found in (rest, rest | unset):
        save_file(found, packed / "model.safetensors")
        ours = load(packed).state_dict()
        assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items())


def test_no_quantization_config_means_plain_weights(twins):
    plain = twins("qwen3", Packer())[1]
    change(plain, quantization_config=None)
    assert Quantization.of(Checkpoint.at(plain)) is None
    load(plain)


AWQ, GPTQ = Packer().config, Packer("gptq").config


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "quant_method is 'fp8'"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "quant_method is 'bitsandbytes'"),
        ({"quant_method": "compressed-tensors"}, "quant_method is 'compressed-tensors'"),
        ({}, "quant_method is None"),
        ([], r"quant_method is \[\]"),
        (AWQ | {"bits": 8}, "bits is 8"),
        (AWQ | {"bits": True}, "bits is True"),
        (AWQ | {"version": "gemv"}, "version is 'gemv'"),
        (AWQ | {"zero_point": False}, "zero_point is False"),
        (AWQ | {"group_size": 0}, "group_size must be"),
        (AWQ | {"group_size": "128"}, "group_size must be"),
        (GPTQ | {"bits": 3}, "bits is 3"),
        (GPTQ | {"checkpoint_format": "marlin"}, "checkpoint_format is 'marlin'"),
        (GPTQ | {"is_marlin_format": True}, "is_marlin_format is True"),
        (GPTQ | {"pack_dtype": "int16"}, "pack_dtype is 'int16'"),
        (GPTQ | {"desc_act": "yes"}, "desc_act is 'yes'"),
        (GPTQ | {"dynamic": {"+:.*down.*": {"bits": 8}}}, "dynamic has"),
        (GPTQ | {"dynamic": 7}, "dynamic has 7"),
    ],
)
def test_other_quantizations_are_refused(packed, said, words):
    change(packed, quantization_config=said)
    with pytest.raises(ModelError, match=rf"config\.json: quantization_config\.{words}"):
        load(packed)


UP, DOWN = "model__layers__0__mlp__up_proj", "model__layers__1__mlp__down_proj"


@pytest.mark.parametrize(
    ("name", "new", "words"),
    [
        (f"{UP}__qweight", None, r"first is model\.layers\.0\.mlp\.up_proj\.weight"),
        (f"{UP}__qzeros", None, r"up_proj\.qzeros is missing"),
        (f"{DOWN}__scales", None, r"down_proj\.scales is missing"),
        (f"{DOWN}__g_idx", None, r"down_proj\.g_idx is missing"),
        ("model__norm__weight", None, r"first is model\.norm\.weight"),
        (f"{UP}__qweight", lambda old: old[1:], r"up_proj\.qweight is I32 \[7, 128\]"),
        (f"{UP}__qweight", lambda old: old.float(), r"up_proj\.qweight is F32"),
        (f"{UP}__qzeros", lambda old: old[:, 1:], r"up_proj\.qzeros is I32 \[4, 15\]"),
        (f"{UP}__scales", lambda old: old[1:], r"up_proj\.scales is F16 \[3, 128\]"),
        (f"{UP}__scales", lambda old: old.int(), r"up_proj\.scales is I32"),
        (f"{UP}__g_idx", lambda old: old + 1, r"up_proj\.g_idx: g_idx names groups outside 0 to 3"),
        (f"{UP}__g_idx", lambda old: old - 1, r"up_proj\.g_idx: g_idx names groups outside 0 to 3"),
        (f"{UP}__weight", torch.zeros(128, 64), r"up_proj\.weight exclude each other"),
        ("model__other__qweight", torch.zeros(8, 8), r"model\.other\.qweight: .* no such linear"),
        ("model__norm__weight", torch.ones(63), r"model\.norm\.weight is F32 \[63\]"),
        ("model__norm__weight", torch.ones(64).int(), r"model\.norm\.weight is I32"),
    ],
)
def test_missing_and_misshapen_tensors_are_named(packed_gptq, name, new, words):
    change_tensors(packed_gptq, **{name: new})
    with pytest.raises(ModelError, match=rf"model\.safetensors: .*{words}"):
        load(packed_gptq)


def test_a_missing_expert_is_named(twins):
    packed = twins("qwen3_moe", Packer())[0]
    change_tensors(packed, model__layers__1__mlp__experts__5__gate_proj__qweight=None)
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.experts\.5\.gate_proj\.weight"):
        load(packed)


def test_a_truncated_file_is_named(packed):
    file = packed / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"model\.safetensors: damaged"):
        load(packed)


def test_a_linear_that_eights_do_not_divide_is_refused(packed):
    change(packed, intermediate_size=124)
    with pytest.raises(ModelError, match=r"model\.safetensors: .*\[\d+, \d+\] cannot be packed"):
        load(packed)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_whatever_is_packed_comes_out_again(data):
    packer = Packer(
        data.draw(st.sampled_from(("awq", "gptq"))),
        data.draw(st.sampled_from((-1, 8, 16, 24, 128))),
        data.draw(st.sampled_from(("gptq", "gptq_v2"))),
        data.draw(st.booleans()),
    )
    reorder = packer.method == "gptq" and data.draw(st.booleans())
    packer = Packer(packer.method, packer.group_size, packer.version, packer.sym, reorder)
    rng = np.random.default_rng(data.draw(st.integers(0, 1 << 32)))
    shape = [8 * data.draw(st.integers(1, 12)) for _ in range(2)]
    tensors, exact = packer.linear(rng.normal(size=shape), rng)
    how = Quantization(
        packer.method,
        packer.group_size,
        packer.desc_act,
        packer.method == "gptq" and packer.version == "gptq",
    )
    assert {k: tuple(v.shape) for k, v in tensors.items()} == how.shapes(*shape)
    with patch.object(quantized, "_SLAB", data.draw(st.sampled_from((1, 1000, 1 << 20)))):
        found = how.unpack(tensors, torch.float32)
    assert np.array_equal(found.numpy(), exact)


def test_a_v1_zero_point_of_zero_gives_its_neighbour_back_what_it_borrowed():
    """GPTQModel subtracts ones from whole words: 0 becomes 15 and the next one up loses one."""
    zeros = np.array([[0, 8, 15, 0, 0, 1, 3, 0]])
    word = (int(pack(zeros, PLAIN_ORDER).view(np.uint32)[0, 0]) - 0x11111111) % (1 << 32)
    tensors = {
        "qweight": torch.zeros(1, 8, dtype=torch.int32),
        "qzeros": torch.from_numpy(np.array([[word]], np.uint32).view(np.int32)),
        "scales": torch.ones(1, 8, dtype=torch.float16),
    }
    weight = Quantization("gptq", 8, zeros_less_one=True).unpack(tensors, torch.float32)
    assert np.array_equal(weight.numpy(), -zeros.T.repeat(8, 1))
