"""Linears of 8 bits: what is rounded, what is not, and what is refused."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.engine.conftest import write_model
from workers.checkpoint.checkpoint import Checkpoint
from workers.errors import ConfigError, ModelError
from workers.model.attention.attention import AttentionPlan, PrefillSpan
from workers.model.decoder import CacheShape, Decoder
from workers.model.linear.linear import Linear, merge
from workers.model.loader import load_config, load_weights
from workers.model.quantization import fp8
from workers.model.quantization.fp8 import Fp8Weight

CPU = torch.device("cpu")
NOT_ROUNDED = ("embed_tokens", "lm_head", "norm", "mlp.gate.weight", "mlp.experts")


def load(path, **more):
    checkpoint = Checkpoint.at(path)
    config = load_config(checkpoint)
    return load_weights(checkpoint, config, torch.float32, CPU, lambda *_: None, **more)


def logits_of(model, num_tokens=20):
    """Return the logits of all tokens of one prompt, computed by a Decoder, which takes the model
    apart.
    """
    decoder, positions = Decoder(model), torch.arange(num_tokens)
    decoder.allocate_cache(CacheShape.of(model.config, torch.float32), 2, num_tokens)
    slots, block = positions + num_tokens, slice(num_tokens, 2 * num_tokens)
    plan = AttentionPlan(slots, (), (PrefillSpan(0, num_tokens, block, num_tokens),))
    return decoder.forward(positions * 7 % 300, positions, plan, positions)


@pytest.fixture
def rows():
    torch.manual_seed(3)
    return torch.randn(300, 64) * torch.logspace(-6, 3, 300)[:, None]


@pytest.fixture
def weight():
    torch.manual_seed(4)
    return torch.randn(48, 64) * 0.1


def test_rows_are_rounded_to_the_nearest_number_of_their_scale(rows):
    rows[5] = 0
    values, scales = fp8.quantize_rows(rows)
    assert values.dtype == torch.float8_e4m3fn and scales.shape == (300, 1)
    assert values.float().abs().amax(-1)[6:].eq(fp8.LARGEST).all()
    # Three bits of mantissa; below 2^-6, steps of 2^-9.
    step = torch.maximum(rows.abs() * 2**-3, scales * 2**-9)
    assert ((values.float() * scales - rows).abs() <= step / 2 * 1.00001).all()
    assert values[5].float().eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_rows", [1, 3, 17, 300])
def test_a_product_is_that_of_the_rounded_operands(rows, weight, num_rows, dtype):
    x, bias = rows[:num_rows].to(dtype), torch.randn(48).to(dtype)
    packed = Fp8Weight.of(weight)
    values, scales = fp8.quantize_rows(x)
    expected = (values.double() * scales) @ packed.unpack(torch.float32).double().T + bias.double()
    found = Linear(packed, bias)(x)
    error = (found.double() - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert found.dtype == dtype and float(error.max()) < (1e-6 if dtype == torch.float32 else 5e-3)


def test_a_weight_is_as_near_as_eight_bits_allow(weight):
    error = Fp8Weight.of(weight).unpack(torch.float32) - weight
    assert 0.01 < error.norm() / weight.norm() < 0.03


def test_exact_rows_depend_on_nothing_beside_them(rows, weight):
    linear = Linear(Fp8Weight.of(weight), is_batch_invariant=True)
    together = linear(rows)
    for first, stop in ((0, 1), (5, 30), (16, 300)):
        assert torch.equal(linear(rows[first:stop]), together[first:stop])


def test_parts_are_merged_along_outputs(rows, weight):
    parts = [torch.nn.Linear(64, size, bias=False) for size in (16, 32)]
    for part, own in zip(parts, weight.split([16, 32]), strict=True):
        del part.weight
        part.weight = Fp8Weight.of(own)
    assert torch.equal(
        merge(parts, is_batch_invariant=False)(rows), Linear(Fp8Weight.of(weight))(rows)
    )
    assert all(part.weight is None for part in parts)


@pytest.mark.parametrize("name", ["qwen2", "qwen3", "qwen3_moe"])
def test_only_linears_of_decoder_layers_are_rounded(model_of, name, caplog):
    path = model_of(name)[0]
    rounded, plain = load(path, rounding="fp8"), load(path)
    assert not caplog.records
    kept = rounded.state_dict()
    for key, tensor in plain.state_dict().items():
        if key in kept:
            assert torch.equal(kept[key], tensor)
            assert key.endswith("bias") or any(part in key for part in NOT_ROUNDED)
            continue
        packed = rounded.get_submodule(key.removesuffix(".weight")).weight
        assert torch.equal(packed.unpack(torch.float32), Fp8Weight.of(tensor).unpack(torch.float32))
    assert len(kept) < len(plain.state_dict())
    expected, found = logits_of(plain), logits_of(rounded)
    assert 1e-3 < float((found - expected).norm() / expected.norm()) < 0.2


def test_weights_may_lie_in_several_files_and_a_missing_one_is_named(tmp_path):
    write_model(tmp_path, "qwen2")
    tensors = load_file(tmp_path / "model.safetensors")
    expected = logits_of(load(tmp_path, rounding="fp8"))
    (tmp_path / "model.safetensors").unlink()
    weight_map = {}
    for number in range(2):
        mine = dict(list(tensors.items())[number::2])
        save_file(mine, tmp_path / f"model-{number}.safetensors")
        weight_map |= dict.fromkeys(mine, f"model-{number}.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert torch.equal(logits_of(load(tmp_path, rounding="fp8")), expected)
    name = "model.layers.1.mlp.up_proj.weight"
    file = tmp_path / weight_map[name]
    save_file({k: v for k, v in load_file(file).items() if k != name}, file)
    with pytest.raises(ModelError, match=r"model\.layers\.1\.mlp\.up_proj\.weight is missing"):
        load(tmp_path, rounding="fp8")


def test_a_linear_that_sixteens_do_not_divide_is_refused(tmp_path):
    write_model(tmp_path, "qwen3", intermediate_size=120)
    with pytest.raises(ConfigError, match=r"layers\.0\.mlp\.gate_proj of shape \[120, 64\] is no"):
        load(tmp_path, rounding="fp8")


def test_a_device_without_such_products_is_refused(monkeypatch):
    fp8.check(CPU, torch.float32)

    def refuse(*args, **kwargs):
        raise RuntimeError("only on compute capability 8.9\nmore")

    monkeypatch.setattr(torch, "_scaled_mm", refuse)
    words = r"quantization = 'fp8', but torch .* on cpu in torch\.float16 \(only on .* 8\.9\); it"
    with pytest.raises(ConfigError, match=words):
        fp8.check(CPU, torch.float16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_kernel_rounds_as_torch_does(dtype):
    """With numbers that e4m3 holds: of others that round up, the interpreter loses the carry."""
    pytest.importorskip("triton", reason="kernels need the package triton")
    from workers.model.kernels import fp8 as kernels

    torch.manual_seed(5)
    exact = (torch.randn(7, 2 * 1024 + 40) * 20).to(fp8.E4M3).float()
    exact[:, 1300] = -fp8.LARGEST
    exact[4] = 0
    whole = torch.full((7, exact.shape[1] + 9), torch.nan, dtype=dtype)
    x = whole[:, : exact.shape[1]]
    x[:] = exact * 2.0 ** torch.arange(-4, 3)[:, None]
    values, scales = kernels.quantize_rows(x)
    expected, expected_scales = fp8.quantize_rows(x)
    assert torch.equal(scales, expected_scales)
    assert torch.equal(values.float(), expected.float()) and torch.equal(values.float(), exact)


PROGRAM = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from workers.model.kernels.fp8 import _quantize_row

types = {"x": "*bf16", "values": "*fp8e4nv", "scales": "*fp32", "WIDTH": "constexpr"}
signature = {name: types.get(name, "i32") for name in _quantize_row.arg_names}
attributes = {(index,): [["tt.divisibility", 16]] for index in range(5)}
source = ASTSource(_quantize_row, signature, {"WIDTH": 1024}, attributes)
ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]
assert ptx.count("e4m3x2") >= 4, ptx
"""


def test_the_kernel_compiles_for_hopper(tmp_path):
    pytest.importorskip("triton", reason="kernels need the package triton")
    environ = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environ |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.getcwd()}
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environ, capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
