"""Weights of 8 and 4 bits on a CPU: what is rounded, how far, and what the engine makes of it."""

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.engine.conftest import MODELS, write_model
from tests.model.packers import CompressedPacker, Packer
from tests.model.twins import change, load, write_twins
from workers.checkpoint.rounding import ROUNDED_BITS
from workers.errors import ConfigError, ModelError
from workers.model.linear.linear import Linear, merge
from workers.model.native.int4_tiles import Int4Tiles
from workers.model.native.native import Native
from workers.model.quantization import int8
from workers.model.quantization.int8 import Int8Weight
from workers.model.quantization.rounding import Rounder

W8A8 = CompressedPacker("int-quantized", 8, "channel")
FORMS = {"int8": Int8Weight, "int4": Int4Tiles}


@pytest.fixture
def weight():
    torch.manual_seed(4)
    return torch.randn(48, 256) * 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_rows", [1, 3, 17, 300])
def test_a_product_of_8_bits_is_that_of_the_rounded_operands(weight, num_rows, dtype):
    torch.manual_seed(3)
    x = (torch.randn(num_rows, 256) * torch.logspace(-6, 3, num_rows)[:, None]).to(dtype)
    bias = torch.randn(48).to(dtype)
    packed = Int8Weight.of(weight, dtype)
    values, scales = int8.round_rows(x)
    assert values.min() >= 1 and values.dtype == torch.uint8
    seen = (values.double() - 128) * scales
    assert bool(((seen - x.double()).abs() <= scales * 0.5001).all())
    expected = seen @ packed.unpack(torch.float32).double().T + bias.double()
    error = (Linear(packed, bias)(x).double() - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert float(error.max()) < (1e-6 if dtype == torch.float32 else 8e-3)


@pytest.mark.parametrize(
    "shape", [(33, 64), (96, 1024), (32, 80)], ids=["ragged", "panels", "short"]
)
@pytest.mark.parametrize("num_rows", [1, 12, 13, 40])
def test_our_own_product_of_8_bits_is_onednns(monkeypatch, shape, num_rows):
    if not Native.load(torch.float32).takes_int8(shape[1]):
        pytest.skip("this CPU's products of 8 bits are oneDNN's")
    torch.manual_seed(5)
    packed, bias = Int8Weight.of(torch.randn(shape), torch.float32), torch.randn(shape[0])
    x = torch.randn(num_rows, shape[1])
    ours = packed.product(bias)(x)
    monkeypatch.setattr(Native, "takes_int8", lambda *of: False)
    torch.testing.assert_close(ours, packed.product(bias)(x), rtol=1e-6, atol=1e-5)


def test_rows_are_rounded_alike_with_and_without_compiled_functions(monkeypatch):
    x = torch.randn(40, 96)
    x[3] = 0
    compiled = int8.round_rows(x)
    monkeypatch.setattr(int8.Native, "load", lambda dtype: None)
    values, scales = int8.round_rows(x)
    assert torch.equal(scales, compiled[1])
    assert (values.int() - compiled[0].int()).abs().max() <= 1  # a tie may go either way


@pytest.mark.parametrize("form", FORMS)
def test_it_takes_the_bits_a_number_that_the_doctor_counts(form):
    weight = torch.randn(1024, 3072)
    held = Rounder(form, torch.bfloat16)(weight)
    if isinstance(held, Int4Tiles):
        num_bytes = held.num_bytes
    else:
        num_bytes = held.values.nbytes + held.scales.nbytes
    assert 8 * num_bytes / weight.numel() == pytest.approx(ROUNDED_BITS[form], rel=0.005)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_depend_on_nothing_beside_them(weight, form, dtype):
    rounded = Rounder(form, dtype)(weight)
    for bias in (None, torch.randn(48).to(dtype)):
        linear = Linear(rounded, bias, is_batch_invariant=True)
        x = torch.randn(70, 256).to(dtype)
        together = linear(x)
        for stop in (1, 2, 3, 5, 8, 11, 12, 13, 25, 70):
            for first in {0, stop - 1, stop // 2}:
                assert torch.equal(linear(x[first:stop]), together[first:stop])


def test_a_rounder_says_how_far_its_weights_are_off(weight):
    bounds = {"fp8": (0.01, 0.03), "int8": (0.004, 0.01), "int4": (0.08, 0.13)}
    for form, (least, most) in bounds.items():
        rounder = Rounder(form, torch.float32)
        assert rounder.loss == 0
        rounded = rounder(weight)
        assert least < rounder.loss < most
        identity = torch.eye(256) * 127  # whose numbers 8 bits hold
        if form != "fp8":
            found = Linear(rounded)(identity).T / 127
            assert abs(float((found - weight).norm() / weight.norm()) - rounder.loss) < 1e-3


def test_what_cannot_be_rounded_well_still_can(weight):
    weight[3], weight[5, :128], weight[7, 0] = 0, 0, 1e6
    for form in FORMS:
        found = Linear(Rounder(form, torch.float32)(weight))(torch.eye(256))
        assert found.isfinite().all() and found[:, 3].eq(0).all()


@pytest.mark.parametrize("form", FORMS)
def test_parts_are_merged_along_outputs(weight, form):
    parts = [torch.nn.Linear(256, size) for size in (16, 32)]
    for part, own in zip(parts, weight.split([16, 32]), strict=True):
        del part.weight
        part.weight = Rounder(form, torch.float32)(own)
    bias = torch.cat([part.bias for part in parts]).detach()
    whole = Linear(Rounder(form, torch.float32)(weight), bias)
    x = torch.randn(5, 256)
    assert torch.equal(merge(parts, is_batch_invariant=False)(x), whole(x))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", MODELS)
def test_linears_and_experts_of_layers_are_rounded(tiny_model_of, name, form):
    path = tiny_model_of(name)[0]
    rounded, plain = load(path, rounding=form), load(path)
    kept = rounded.state_dict()
    others = {key: value for key, value in plain.state_dict().items() if key not in kept}
    assert all(torch.equal(value, plain.state_dict()[key]) for key, value in kept.items())
    assert others and all("proj" in key for key in others)
    layer = rounded.model.layers[-1]
    assert isinstance(layer.self_attn.o_proj.weight, FORMS[form])
    if hasattr(layer.mlp, "experts"):
        experts = layer.mlp.experts.weight
        assert len(experts.down) == 8 and isinstance(experts.down[3], FORMS[form])
        assert layer.mlp.experts.down_proj is None


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["qwen2", "qwen3_moe", "qwen3_next"])
@pytest.mark.parametrize("deterministic", [False, True])
def test_an_engine_answers_the_same_alone_and_in_a_crowd(drive, prompts, name, form, deterministic):
    settings = {"quantization": form, "deterministic": deterministic}
    alone, crowd = (drive(name, **settings) for _ in range(2))
    [mine, *others] = prompts(6)
    for driver in (alone, crowd):
        driver.add(0, mine, logprobs=2)
    for key, prompt in enumerate(others, start=1):
        crowd.add(key, prompt)
    alone.run()
    crowd.run()
    assert alone.tokens(0) == crowd.tokens(0)
    if deterministic:
        assert logprobs_of(alone) == logprobs_of(crowd)


def logprobs_of(driver):
    return [token for chunk in driver.chunks[0] for token in chunk.logprobs]


@pytest.mark.parametrize("packer", [W8A8, Packer(group_size=32), Packer("gptq", 64, sym=True)])
@pytest.mark.parametrize("name", ["qwen2", "qwen3_moe"])
def test_packed_checkpoints_stay_packed(tiny_model_of, drive, prompts, tmp_path, name, packer):
    packed, plain = write_twins(tiny_model_of(name)[0], tmp_path, packer)
    kept = load(packed, kept_by="native")
    kind = Int8Weight if packer is W8A8 else Int4Tiles
    assert isinstance(kept.model.layers[-1].self_attn.q_proj.weight, kind)
    if "moe" in name:
        assert isinstance(kept.model.layers[-1].mlp.experts.weight.down[0], kind)
    answers = []
    for path in (packed, plain):
        driver = drive(path)
        for key, prompt in enumerate(prompts(4)):
            driver.add(key, prompt, max_tokens=1, logprobs=5)
        driver.run()
        answers.append([driver.chunks[key][0].logprobs[0] for key in range(4)])
    for ours, theirs in zip(*answers, strict=True):
        near = dict(zip(theirs.top_ids, theirs.top_logprobs, strict=True))
        shared = near.keys() & set(ours.top_ids)
        mine = dict(zip(ours.top_ids, ours.top_logprobs, strict=True))
        assert len(shared) >= 3 and max(abs(near[i] - mine[i]) for i in shared) < 0.2


def test_weights_of_8_bits_without_rounded_inputs_are_unpacked(tiny_model_of, tmp_path):
    packed, _ = write_twins(tiny_model_of("qwen3")[0], tmp_path, W8A8)
    said = W8A8.config
    said["config_groups"]["group_0"]["input_activations"] = None
    change(packed, quantization_config=said)
    kept = load(packed, kept_by="native")
    assert isinstance(kept.model.layers[0].self_attn.q_proj.weight, torch.Tensor)


def test_experts_may_lie_in_two_tensors(tmp_path):
    write_model(tmp_path, "qwen3_5_moe")
    tensors = load_file(tmp_path / "model.safetensors")
    expected = load(tmp_path, rounding="int8")
    stacked = {}
    for key, tensor in tensors.items():
        before, found, after = key.partition(".mlp.experts.")
        if found:
            expert, part, _ = after.split(".")
            stacked.setdefault(before, {})[int(expert), part] = tensor
    tensors = {key: value for key, value in tensors.items() if ".mlp.experts." not in key}
    for layer, parts in stacked.items():
        gates_ups = [torch.cat((parts[i, "gate_proj"], parts[i, "up_proj"])) for i in range(8)]
        tensors[f"{layer}.mlp.experts.gate_up_proj"] = torch.stack(gates_ups)
        tensors[f"{layer}.mlp.experts.down_proj"] = torch.stack(
            [parts[i, "down_proj"] for i in range(8)]
        )
    save_file(tensors, tmp_path / "model.safetensors")
    found = load(tmp_path, rounding="int8")
    for ours, theirs in zip(found.model.layers, expected.model.layers, strict=True):
        for one, other in zip(
            ours.mlp.experts.weight.down, theirs.mlp.experts.weight.down, strict=True
        ):
            assert torch.equal(one.values, other.values)
        one, other = (of.mlp.experts.weight.gate_up[2] for of in (ours, theirs))
        assert torch.equal(one[0].values, torch.cat([part.values for part in other]))


def test_a_form_that_nothing_multiplies_is_refused(drive, tmp_path, tmp_path_factory):
    with pytest.raises(ConfigError, match="'int4' is multiplied by compiled functions"):
        drive(quantization="int4", attention_backend="torch")
    write_model(tmp_path, "qwen2")
    packed, _ = write_twins(tmp_path, tmp_path_factory.mktemp("twins"), Packer())
    with pytest.raises(
        ModelError, match="--quantization int4, but the weights are packed as 'awq'"
    ):
        drive(packed, quantization="int4")


PROGRAM = """
import logging, sys
import torch
from workers.model.quantization import int8
from workers.model.quantization.rounding import Rounder
logging.basicConfig(level=logging.WARNING, stream=sys.stdout)
weight = torch.full((16, 64), 0.5)
rounded = Rounder("int8", torch.bfloat16)(weight)
print(type(rounded).__name__, rounded.dtype if isinstance(rounded, torch.Tensor) else "")
"""


@pytest.mark.parametrize("isa", ["AVX2", "DEFAULT"])
def test_a_cpu_without_vnni_unpacks_and_says_so(isa):
    environ = os.environ | {"ONEDNN_MAX_CPU_ISA": isa, "PYTHONPATH": os.getcwd()}
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environ, capture_output=True, text=True, check=True
    )
    if isa == "AVX2":
        assert "this CPU has no VNNI" in ran.stdout and "Tensor torch.bfloat16" in ran.stdout
    else:
        assert "Int8Weight" in ran.stdout
