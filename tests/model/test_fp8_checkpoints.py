"""FP8 checkpoints as they are published equal their unpacked twins; what is wrong is named.

The layout is that of Qwen's `-FP8` repositories: config.json says `quant_method: fp8`, and beside a
`weight` of e4m3 lies `weight_scale_inv`, a scale for 128 by 128 of its numbers.
"""

import logging
import warnings

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.engine.conftest import write_model
from tests.model.packers import Fp8Packer
from tests.model.twins import change, change_tensors, check_twins, load, write_twins
from workers.checkpoint.checkpoint import Checkpoint
from workers.errors import ModelError

# Of which blocks of 128 are no divisor.
WIDE = {"hidden_size": 192, "intermediate_size": 320}
UP = "model__layers__0__mlp__up_proj"


@pytest.fixture
def packed(twins):
    return twins("qwen3", Fp8Packer((48, 32)))[0]


@pytest.mark.parametrize(
    ("name", "packer", "sizes"),
    [
        ("qwen2", Fp8Packer(), WIDE),
        ("qwen3", Fp8Packer(scale_dtype=torch.bfloat16), WIDE),
        ("qwen3", Fp8Packer(None), {}),
        ("qwen2", Fp8Packer(None, scale="weight_scale"), {}),
        ("qwen3_moe", Fp8Packer(), {"hidden_size": 192, "moe_intermediate_size": 144}),
        ("qwen2_moe", Fp8Packer((16, 48), torch.bfloat16), {}),
        ("qwen3_5", Fp8Packer((24, 48), torch.bfloat16), {}),
        ("qwen3_5_moe", Fp8Packer((48, 24), torch.float16), {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_fp8_checkpoint_equals_its_unpacked_twin(tmp_path, drive, prompts, name, packer, sizes):
    write_model(tmp_path / "model", name, **sizes)
    check_twins(*write_twins(tmp_path / "model", tmp_path, packer), drive, prompts)


@pytest.mark.parametrize("name", ["qwen3", "qwen3_moe"])
def test_transformers_computes_the_same_from_an_fp8_checkpoint(tmp_path, prompts, name):
    """It wants blocks that divide a weight, and a list of modules that are plain."""
    write_model(tmp_path / "model", name, hidden_size=256, moe_intermediate_size=128)
    packed, _ = write_twins(tmp_path / "model", tmp_path, Fp8Packer(scale_dtype=torch.bfloat16))
    change(
        packed,
        quantization_config=Fp8Packer().config
        | {
            "modules_to_not_convert": [
                "lm_head",
                "model.layers.0.mlp.gate",
                "model.layers.1.mlp.gate",
            ]
        },
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = AutoModelForCausalLM.from_pretrained(packed, dtype=torch.float32).eval()
    ours = load(packed)
    expected = theirs.state_dict()
    for key, tensor in ours.state_dict().items():
        assert torch.equal(tensor, expected[key]), key
    ids = torch.tensor(prompts(1))
    with torch.no_grad():
        assert torch.equal(ours(ids).logits, theirs(ids).logits)


def test_fp8_may_be_asked_for_of_what_is_fp8(packed, drive, prompts):
    driver = drive(packed, quantization="fp8")
    driver.add(0, prompts(1)[0])
    assert len(driver.run().tokens(0)) == 16
    with pytest.raises(ModelError, match="--quantization awq, but the weights are packed as 'fp8'"):
        Checkpoint.at(packed).check("awq")


def test_scales_of_activations_and_cache_are_left_out_with_one_note(packed, caplog):
    before = load(packed).state_dict()
    names = (f"{UP}__input_scale", *(f"model__layers__0__self_attn__{x}_scale" for x in "kv"))
    change_tensors(packed, **{name: torch.ones(1) for name in names})
    with caplog.at_level(logging.INFO):
        after = load(packed).state_dict()
    notes = [record.getMessage() for record in caplog.records if "not used" in record.getMessage()]
    assert len(notes) == 1 and "3 scales of activations and cache" in notes[0]
    assert all(torch.equal(tensor, before[key]) for key, tensor in after.items())


def test_a_drafting_layer_of_fused_experts_leaves_the_others_one_by_one(twins):
    packed, plain = twins("qwen3_moe", Fp8Packer((48, 32)))
    change_tensors(packed, mtp__layers__0__mlp__experts__gate_up_proj=torch.zeros(2, 4, 4))
    theirs = load(plain).state_dict()
    ours = load(packed).state_dict()
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items())


@pytest.mark.parametrize(
    ("name", "new", "words"),
    [
        (f"{UP}__weight_scale_inv", None, "up_proj.weight_scale_inv is missing beside a weight"),
        (f"{UP}__weight", None, "up_proj.weight is missing beside weight_scale_inv"),
        (f"{UP}__weight", lambda old: old[1:], "up_proj.weight has the shape [127, 64]"),
        (f"{UP}__weight", lambda old: old.float(), "up_proj.weight is of type F32"),
        (f"{UP}__weight_scale_inv", lambda old: old[1:], "scale_inv has the shape [2, 2]"),
        (f"{UP}__weight_scale_inv", lambda old: old.int(), "scale_inv is of type I32"),
        (f"{UP}__weight_scale", torch.ones(1), "no place for model.layers.0.mlp.up_proj.weight_s"),
        (
            "model__norm__weight_scale_inv",
            torch.ones(1, 1),
            "norm.weight_scale_inv is of no linear",
        ),
    ],
)
def test_missing_and_misshapen_tensors_are_named(packed, name, new, words):
    change_tensors(packed, **{name: new})
    with pytest.raises(ModelError) as caught:
        load(packed)
    assert words in str(caught.value) and "model.safetensors: " in str(caught.value)


def test_scales_that_are_exponents_alone_are_refused(packed):
    name = "model.layers.0.mlp.up_proj.weight_scale_inv"
    change_tensors(packed, **{name: lambda old: old.to(torch.float8_e8m0fnu)})
    assert load_file(packed / "model.safetensors")[name].dtype == torch.float8_e8m0fnu
    with pytest.raises(ModelError, match="weight_scale_inv is of type F8_E8M0"):
        load(packed)


FP8 = Fp8Packer().config


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (FP8 | {"fmt": "e5m2"}, "fmt is 'e5m2': loaded are FP8"),
        (FP8 | {"activation_scheme": "block"}, "activation_scheme is 'block': loaded are"),
        (FP8 | {"weight_block_size": [128]}, "weight_block_size must be two positive numbers, not"),
        (FP8 | {"weight_block_size": [128, 0]}, "weight_block_size must be two positive numbers"),
        (FP8 | {"weight_block_size": [True, 128]}, "weight_block_size must be two positive"),
        (FP8 | {"weight_block_size": 128}, "weight_block_size must be two positive numbers"),
    ],
)
def test_other_kinds_of_fp8_are_refused(packed, said, words):
    change(packed, quantization_config=said)
    with pytest.raises(ModelError, match=rf"config\.json: quantization_config\.{words}"):
        load(packed)


def test_another_type_of_eight_bits_is_refused(packed):
    change_tensors(packed, **{f"{UP}__weight": lambda old: old.float().to(torch.float8_e5m2)})
    with pytest.raises(ModelError, match=r"up_proj\.weight is of type F8_E5M2"):
        load(packed)
