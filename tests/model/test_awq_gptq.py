"""AWQ and GPTQ checkpoints equal their unpacked twins, unpacked or kept packed; what cannot be
unpacked is refused by name.
"""

import json
from dataclasses import dataclass, replace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tests.engine.conftest import write_model
from tests.model.packers import PLAIN_ORDER, Packer, pack
from tests.model.twins import change, change_tensors, check_twins, load, logits_of
from workers.checkpoint.checkpoint import Checkpoint
from workers.checkpoint.packings import WordPacking
from workers.errors import ModelError
from workers.model.layout.int4_weight import Int4Weight
from workers.model.quantization import packed_words


@pytest.fixture
def packed(twins):
    return twins("qwen3", Packer())[0]


@pytest.fixture
def packed_gptq(twins):
    return twins("qwen3", Packer("gptq", desc_act=True))[0]


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
        ("qwen3", Packer("gptq", 32, bits=8, sym=True)),
        ("qwen3_5_moe", Packer("gptq", more={"dynamic": {"-:.*shared_expert.*": {}}})),
        ("qwen3_moe", Packer("gptq", version="gptq_v2", desc_act=True, sym=True)),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value.method}-{value.version}",
)
def test_a_packed_checkpoint_equals_its_unpacked_twin(twins, drive, prompts, name, packer):
    check_twins(*twins(name, packer), drive, prompts)


@dataclass(frozen=True)
class SharedOrder(Packer):
    """Orders the inputs of all linears alike, as GPTQ does those that read the same x."""

    def groups(self, num_inputs, rng):
        return super().groups(num_inputs, np.random.default_rng(num_inputs))


@pytest.mark.parametrize(
    ("name", "packer"),
    [
        ("qwen2", Packer(group_size=32)),
        ("qwen3", Packer(group_size=-1)),
        ("qwen3_moe", Packer(group_size=64)),
        ("qwen2", Packer("gptq", 32, sym=True)),
        ("qwen3", SharedOrder("gptq", 32, desc_act=True)),
        ("qwen2", Packer("gptq", 64, "gptq_v2", desc_act=True)),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value.method}-{value.group_size}",
)
def test_a_model_kept_packed_computes_what_the_unpacked_one_does(twins, prompts, name, packer):
    pytest.importorskip("triton", reason="kernels need the package triton")
    packed, plain = twins(name, packer)
    prompt = prompts(1, longest=24)[0]
    found = logits_of(load(packed, kept_by="kernels"), prompt)
    expected = logits_of(load(plain), prompt)
    assert float((found - expected).norm() / expected.norm()) < 1e-5


def test_a_model_kept_packed_holds_about_four_bits_a_weight(twins, tmp_path):
    write_model(tmp_path / "wide", "qwen3", hidden_size=256, intermediate_size=512)
    packed = twins(tmp_path / "wide", Packer(group_size=128))[0]
    linears = [
        part
        for part in load(packed, kept_by="kernels").model.layers.modules()
        if isinstance(part, torch.nn.Linear)
    ]
    assert len(linears) == 14 and all(isinstance(part.weight, Int4Weight) for part in linears)
    num_weights = sum(part.out_features * part.in_features for part in linears)
    num_bytes = sum(part.weight.num_bytes for part in linears)
    # A float16 scale and a byte of zero point for 128 inputs; but o_proj has only those, of 256.
    assert 4 + 24 / 128 <= num_bytes * 8 / num_weights < 4.5


def test_groups_that_no_kernel_reads_are_unpacked(twins, prompts):
    packed, plain = twins("qwen3", Packer(group_size=16))
    prompt = prompts(1, longest=24)[0]
    kept, other = load(packed, kept_by="kernels"), load(plain)
    assert torch.equal(
        kept.model.layers[0].mlp.up_proj.weight, other.model.layers[0].mlp.up_proj.weight
    )
    assert torch.equal(logits_of(kept, prompt), logits_of(other, prompt))


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
    assert Checkpoint.at(plain).quantization is None
    load(plain)


AWQ, GPTQ = Packer().config, Packer("gptq").config


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (AWQ | {"bits": 8}, "bits is 8"),
        (AWQ | {"bits": True}, "bits is True"),
        (AWQ | {"version": "gemv"}, "version is 'gemv'"),
        (AWQ | {"zero_point": False}, "zero_point is False"),
        (AWQ | {"group_size": 0}, "group_size must be"),
        (AWQ | {"group_size": "128"}, "group_size must be"),
        (GPTQ | {"bits": 3}, "bits is 3"),
        (GPTQ | {"bits": 8.0}, "bits is 8.0"),
        (GPTQ | {"checkpoint_format": "marlin"}, "checkpoint_format is 'marlin'"),
        (GPTQ | {"is_marlin_format": True}, "is_marlin_format is True"),
        (GPTQ | {"pack_dtype": "int16"}, "pack_dtype is 'int16'"),
        (GPTQ | {"desc_act": "yes"}, "desc_act is 'yes'"),
        (GPTQ | {"dynamic": {"+:.*down.*": {"bits": 8}}}, "dynamic is"),
        (GPTQ | {"dynamic": 7}, "dynamic is 7"),
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
        (f"{UP}__qweight", None, r"model\.layers\.0\.mlp\.up_proj\.qweight is missing"),
        (f"{UP}__qzeros", None, r"up_proj\.qzeros is missing"),
        (f"{DOWN}__scales", None, r"down_proj\.scales is missing"),
        (f"{DOWN}__g_idx", None, r"down_proj\.g_idx is missing"),
        ("model__norm__weight", None, r"model\.norm\.weight is missing"),
        (f"{UP}__qweight", lambda old: old[1:], r"up_proj\.qweight has the shape \[7, 128\]"),
        (f"{UP}__qweight", lambda old: old.float(), r"up_proj\.qweight is of type F32"),
        (f"{UP}__qzeros", lambda old: old[:, 1:], r"up_proj\.qzeros has the shape \[4, 15\]"),
        (f"{UP}__scales", lambda old: old[1:], r"up_proj\.scales has the shape \[3, 128\]"),
        (f"{UP}__scales", lambda old: old.int(), r"up_proj\.scales is of type I32"),
        (f"{UP}__g_idx", lambda old: old + 1, r"up_proj\.g_idx: g_idx names groups outside 0 to 3"),
        (f"{UP}__g_idx", lambda old: old - 1, r"up_proj\.g_idx: g_idx names groups outside 0 to 3"),
        (f"{UP}__weight", torch.zeros(128, 64), r"up_proj\.weight exclude each other"),
        ("model__other__qweight", torch.zeros(8, 8), r"no place for model\.other\.qweight"),
        ("model__norm__weight", torch.ones(63), r"model\.norm\.weight has the shape \[63\]"),
        ("model__norm__weight", torch.ones(64).int(), r"model\.norm\.weight is of type I32"),
    ],
)
def test_missing_and_misshapen_tensors_are_named(packed_gptq, name, new, words):
    change_tensors(packed_gptq, **{name: new})
    with pytest.raises(ModelError, match=rf"model\.safetensors: .*{words}"):
        load(packed_gptq)


def test_a_missing_expert_is_named(twins):
    packed = twins("qwen3_moe", Packer())[0]
    change_tensors(packed, model__layers__1__mlp__experts__5__gate_proj__qweight=None)
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.experts\.5\.gate_proj\.qweight"):
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
    bits = data.draw(st.sampled_from((4, 8))) if packer.method == "gptq" else 4
    packer = replace(packer, desc_act=reorder, bits=bits)
    rng = np.random.default_rng(data.draw(st.integers(0, 1 << 32)))
    shape = [8 * data.draw(st.integers(1, 12)) for _ in range(2)]
    tensors, exact = packer.linear(rng.normal(size=shape), rng)
    how = WordPacking(
        packer.method,
        packer.group_size,
        packer.desc_act,
        packer.method == "gptq" and packer.version == "gptq",
        packer.bits,
    )
    assert {k: tuple(v.shape) for k, v in tensors.items()} == {
        name: part.shape for name, part in how.parts((shape[0], shape[1])).items()
    }
    with patch.object(packed_words, "_SLAB", data.draw(st.sampled_from((1, 1000, 1 << 20)))):
        found = packed_words.unpack(how, tensors, torch.float32)
        kept = packed_words.repack(how, tensors)
    assert np.array_equal(found.numpy(), exact)
    is_keepable = bits == 4 and (packer.group_size in (-1, 128) or packer.group_size >= shape[1])
    assert (kept is not None) == is_keepable
    assert kept is None or np.array_equal(kept.unpack(torch.float32).numpy(), exact)


def test_a_v1_zero_point_of_zero_gives_its_neighbour_back_what_it_borrowed():
    """GPTQModel subtracts ones from whole words: 0 becomes 15 and the next one up loses one."""
    zeros = np.array([[0, 8, 15, 0, 0, 1, 3, 0]])
    word = (int(pack(zeros, PLAIN_ORDER).view(np.uint32)[0, 0]) - 0x11111111) % (1 << 32)
    tensors = {
        "qweight": torch.zeros(1, 8, dtype=torch.int32),
        "qzeros": torch.from_numpy(np.array([[word]], np.uint32).view(np.int32)),
        "scales": torch.ones(1, 8, dtype=torch.float16),
    }
    how = WordPacking("gptq", 8, zeros_less_one=True)
    weight = packed_words.unpack(how, tensors, torch.float32)
    assert np.array_equal(weight.numpy(), -zeros.T.repeat(8, 1))
