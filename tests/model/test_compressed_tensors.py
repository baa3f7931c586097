"""Checkpoints of compressed-tensors equal their unpacked twins; other formats are refused by name.

The layouts are those that llm-compressor writes, in the library's compressors/pack_quantized and
compressors/naive_quantized.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.engine.conftest import write_model
from tests.model.packers import CompressedPacker, Fp8Packer
from tests.model.twins import change, change_tensors, check_twins, load, logits_of, write_twins
from workers.checkpoint.checkpoint import Checkpoint
from workers.errors import ModelError
from workers.model.layout.int4_weight import Int4Weight

UP, DOWN = "model__layers__0__mlp__up_proj", "model__layers__1__mlp__down_proj"
INT8 = CompressedPacker("int-quantized", 8, "channel")
FP8 = CompressedPacker("float-quantized", 8, "channel", is_float=True)
PACKERS = {
    "int8 by channel": INT8,
    "int8 by tensor": replace(INT8, strategy="tensor", scale_dtype=torch.float32),
    "int8 with zero points": replace(INT8, symmetric=False),
    "int8 by group": replace(INT8, strategy="group", form="naive-quantized"),
    "fp8 by channel": FP8,
    "fp8 by tensor": replace(FP8, strategy="tensor"),
    "fp8 by block": replace(FP8, strategy="block"),
    "fp8 by group": replace(FP8, strategy="group", form="naive-quantized"),
    "int4 by group": CompressedPacker(),
    "int4 with zero points": CompressedPacker(symmetric=False, group_size=16),
    "int4 by channel": CompressedPacker(strategy="channel", scale_dtype=torch.float16),
    "int4 with g_idx": CompressedPacker(actorder="group"),
    "int8 in words": CompressedPacker(bits=8, symmetric=False),
    "int8 in words by channel": CompressedPacker(bits=8, strategy="channel"),
}


@pytest.fixture
def packed(twins):
    return twins("qwen3", CompressedPacker(symmetric=False, actorder="group"))[0]


@pytest.mark.parametrize("packer", PACKERS.values(), ids=PACKERS)
def test_a_packed_checkpoint_equals_its_unpacked_twin(twins, drive, prompts, packer):
    check_twins(*twins("qwen2", packer), drive, prompts)


@pytest.mark.parametrize("packer", PACKERS.values(), ids=PACKERS)
def test_the_library_itself_unpacks_the_same(packer):
    """It multiplies in the scales' dtype: so of scales in float32, to the bit."""
    library = pytest.importorskip("compressed_tensors", reason="pip install compressed-tensors")
    if packer.actorder:
        pytest.skip("the library no longer reads g_idx")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    assert library
    packer = replace(packer, scale_dtype=torch.float32)
    rng = np.random.default_rng(5)
    tensors, exact = packer.linear(rng.normal(size=(96, 64)).astype(np.float32), rng)
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**packer.weights))
    compressor = BaseCompressor.get_value_from_registry(packer.form)
    found = compressor.decompress(tensors, scheme)["weight"]
    assert np.array_equal(found.float().numpy(), exact)


@pytest.mark.parametrize(
    "packer",
    [
        CompressedPacker(),
        CompressedPacker(symmetric=False, group_size=64),
        CompressedPacker(strategy="channel"),
    ],
    ids=["group", "zero points", "channel"],
)
def test_a_model_kept_packed_computes_what_the_unpacked_one_does(twins, prompts, packer):
    pytest.importorskip("triton", reason="kernels need the package triton")
    packed, plain = twins("qwen3", packer)
    prompt = prompts(1, longest=24)[0]
    kept, other = load(packed, kept_by="kernels"), load(plain)
    linears = [part for part in kept.model.layers.modules() if isinstance(part, torch.nn.Linear)]
    assert len(linears) == 14 and all(isinstance(part.weight, Int4Weight) for part in linears)
    found, expected = logits_of(kept, prompt), logits_of(other, prompt)
    assert float((found - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.parametrize("packer", [INT8, FP8, CompressedPacker(bits=8)])
def test_numbers_of_8_bits_are_unpacked_where_kernels_run(twins, packer):
    packed, plain = twins("qwen3", packer)
    theirs = load(plain).state_dict()
    ours = load(packed, kept_by="kernels").state_dict()
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items())


def test_each_linear_has_the_packing_of_the_group_that_means_it_most_closely(tmp_path):
    """As llm-compressor saves what it calls mixed-precision."""
    write_model(tmp_path / "model", "qwen3")
    four, eight = CompressedPacker(group_size=16), replace(FP8, strategy="channel")
    rng = np.random.default_rng(4)
    packed, plain = write_twins(tmp_path / "model", tmp_path, four)
    tensors, whole = load_file(packed / "model.safetensors"), load_file(plain / "model.safetensors")
    names = ("model.layers.1.mlp.down_proj", "model.layers.0.self_attn.q_proj")
    for name in names:
        tensors = {k: v for k, v in tensors.items() if not k.startswith(f"{name}.")}
        parts, exact = eight.linear(whole[f"{name}.weight"].numpy(), rng)
        tensors |= {f"{name}.{part}": tensor for part, tensor in parts.items()}
        whole[f"{name}.weight"] = torch.from_numpy(exact)
    save_file(tensors, packed / "model.safetensors")
    save_file(whole, plain / "model.safetensors")
    groups = {
        "group_0": four.config["config_groups"]["group_0"] | {"format": "pack-quantized"},
        "group_1": eight.config["config_groups"]["group_0"]
        | {"format": "float-quantized", "targets": [names[0], "re:.*layers[.]0[.].*q_proj$"]},
    }
    said = four.config | {"format": "mixed-precision", "config_groups": groups}
    change(packed, quantization_config=said)
    theirs = load(plain).state_dict()
    assert all(
        torch.equal(tensor, theirs[key]) for key, tensor in load(packed).state_dict().items()
    )


def test_what_is_ignored_is_plain(packed):
    said = CompressedPacker(symmetric=False, actorder="group").config
    for name in ("model.layers.0.mlp.up_proj", "re:.*0.mlp.up"):
        change(packed, quantization_config=said | {"ignore": [name]})
        with pytest.raises(ModelError, match=r"quantization_config leaves model\.layers\.0\.mlp\."):
            load(packed)


SAID = CompressedPacker().config
GROUP = SAID["config_groups"]["group_0"]


def with_weights(**changes):
    group = GROUP | {"weights": GROUP["weights"] | changes}
    return SAID | {"config_groups": {"group_0": group}}


PLACE = r"config_groups\.group_0"


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (
            SAID | {"format": "nvfp4-pack-quantized"},
            r"format is 'nvfp4-pack-quantized' \(NVFP4\): lo",
        ),
        (SAID | {"format": "mixed-precision"}, "format is 'mixed-precision': loaded are"),
        (SAID | {"format": None}, "format is None: loaded are"),
        (SAID | {"config_groups": {}}, "config_groups must be an object of groups, not {}"),
        (SAID | {"config_groups": {"group_0": []}}, rf"{PLACE} must be an object"),
        (SAID | {"ignore": "lm_head"}, "ignore must be a list of names, not 'lm_head'"),
        (SAID | {"ignore": ["re:("]}, r"ignore must be names or patterns \(missing"),
        (SAID | {"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity_config is"),
        (SAID | {"transform_config": {"config_groups": {"u": {}}}}, "transform_config is"),
        (with_weights(num_bits=3), rf"{PLACE}\.weights\.num_bits is 3: loaded are"),
        (with_weights(type="float"), rf"{PLACE}\.weights\.type is 'float'"),
        (with_weights(strategy="tensor"), rf"{PLACE}\.weights\.strategy is 'tensor'"),
        (with_weights(strategy="tensor_group"), rf"{PLACE}\.weights\.strategy is 'tensor_group'"),
        (with_weights(group_size=0), rf"{PLACE}\.weights\.group_size must be -1 or positive"),
        (with_weights(symmetric="yes"), rf"{PLACE}\.weights\.symmetric is 'yes'"),
        (with_weights(actorder=True), rf"{PLACE}\.weights\.actorder is True"),
        (FP8.config | {"format": "int-quantized"}, rf"{PLACE}\.weights\.type is 'float'"),
    ],
)
def test_other_formats_are_refused(packed, said, words):
    change(packed, quantization_config=said)
    with pytest.raises(ModelError, match=rf"config\.json: quantization_config\.{words}"):
        load(packed)


@pytest.mark.parametrize(
    ("name", "new", "words"),
    [
        (f"{UP}__weight_packed", None, "mlp.up_proj.weight_packed is missing"),
        (f"{UP}__weight_scale", None, "up_proj.weight_scale is missing beside weight_packed"),
        (f"{UP}__weight_zero_point", None, "up_proj.weight_zero_point is missing"),
        (f"{DOWN}__weight_g_idx", None, "down_proj.weight_g_idx is missing"),
        (f"{UP}__weight_packed", lambda old: old[1:], "weight_packed has the shape [127, 8]"),
        (f"{UP}__weight_packed", lambda old: old.float(), "weight_packed is of type F32"),
        (f"{UP}__weight_scale", lambda old: old[:, 1:], "weight_scale has the shape [128, 1]"),
        (f"{UP}__weight_zero_point", lambda old: old[1:], "zero_point has the shape [15, 2]"),
        (f"{UP}__weight_g_idx", lambda old: old + 1, "g_idx: g_idx names groups outside 0 to 1"),
        (
            f"{UP}__weight_shape",
            lambda old: old + 1,
            "weight_shape: says [129, 65], but the weight",
        ),
        (f"{UP}__weight", torch.zeros(128, 64), "up_proj.weight exclude each other"),
    ],
)
def test_missing_and_misshapen_tensors_are_named(packed, name, new, words):
    change_tensors(packed, **{name: new})
    with pytest.raises(ModelError) as caught:
        load(packed)
    assert words in str(caught.value) and "model.safetensors: " in str(caught.value)


def test_a_setting_may_name_what_the_weights_are(packed):
    Checkpoint.at(packed).check("compressed-tensors")
    with pytest.raises(ModelError, match="packed as 'compressed-tensors'; leave the flag out"):
        Checkpoint.at(packed).check("fp8")
    assert Fp8Packer().config["quant_method"] == "fp8"
