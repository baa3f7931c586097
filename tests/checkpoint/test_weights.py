"""Which files are read; that all a model needs is in them, and nothing that it does not know."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.checkpoint.folders import (
    INDEX,
    LFS_POINTER,
    SINGLE,
    change,
    change_tensors,
    shard,
    write_folder,
)
from workers.checkpoint.checkpoint import Checkpoint
from workers.errors import ConfigError, ModelError

LAYER = "model.layers.1"
QUICK_SECONDS = 2.0


@pytest.fixture(params=["qwen2", "qwen3", "qwen3_moe"])
def folder(tmp_path, request):
    return write_folder(tmp_path / "model", request.param)


def refusal(folder: Path, **settings: str) -> str:
    started = time.process_time()
    with pytest.raises(ConfigError) as caught:
        Checkpoint.at(folder).check(**settings)
    assert time.process_time() - started < QUICK_SECONDS
    return str(caught.value)


def test_a_whole_folder_is_read(folder):
    checkpoint = Checkpoint.at(folder)
    checkpoint.check()
    weights = checkpoint.weights
    stored = load_file(folder / SINGLE)
    assert weights.tensors.keys() == stored.keys()
    assert weights.num_parameters == sum(tensor.size for tensor in stored.values())
    assert weights.files == (folder / SINGLE,) and not weights.packed


def test_every_tensor_is_asked_for_by_name_and_shape(folder):
    """One after the other is taken away, misshapen and of another type."""
    stored = load_file(folder / SINGLE)
    for name, tensor in stored.items():
        for new in (None, np.zeros((*tensor.shape, 2), np.float16), tensor.astype(np.int8)):
            changed = {k: v for k, v in stored.items() if k != name}
            if new is not None:
                changed[name] = new
            save_file(changed, folder / SINGLE)
            words = refusal(folder)
            assert words.startswith(f"{folder / SINGLE}: {name} ") and "; " in words, words


def test_a_tensor_without_a_place_is_named(folder):
    change_tensors(folder, model__layers__2__mlp__up_proj__weight=np.zeros((4, 4), np.float16))
    words = refusal(folder)
    assert f"{folder / SINGLE}: the model has no place for model.layers.2.mlp.up_proj" in words
    change_tensors(folder, score__weight=np.zeros((1, 32), np.float16))
    assert "and 1 more" in refusal(folder)


@pytest.mark.parametrize(
    "name",
    [
        "mtp.layers.0.mlp.up_proj.weight",
        "visual.blocks.0.attn.qkv.weight",
        "model.visual.patch_embed.proj.weight",
        "model.layers.0.self_attn.rotary_emb.inv_freq",
    ],
)
def test_what_no_text_model_needs_is_left_out(folder, name):
    before = Checkpoint.at(folder).weights
    change_tensors(folder, **{name: np.zeros(4, np.float32)})
    after = Checkpoint.at(folder).weights
    assert after.tensors.keys() == before.tensors.keys()
    assert after.num_parameters == before.num_parameters


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.q_proj.lora_A.weight",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_B.default.weight",
        "model.layers.0.self_attn.q_proj.base_layer.weight",
        "model.embed_tokens.lora_embedding_A",
    ],
)
def test_tensors_of_an_adapter_are_refused(folder, name):
    change_tensors(folder, **{name: np.zeros((4, 4), np.float16)})
    words = refusal(folder)
    assert f"{name} belongs to a LoRA adapter" in words and "merge it" in words


def test_names_without_their_prefix_are_read_as_those_with_it(folder):
    """As Qwen3-Embedding is published."""
    expected = Checkpoint.at(folder).weights
    change_tensors(folder, rename=lambda name: name.removeprefix("model."))
    found = Checkpoint.at(folder).weights
    assert found.shapes == expected.shapes and found.tensors.keys() == expected.tensors.keys()
    assert found.tensors["model.norm.weight"].name == "norm.weight"
    change_tensors(folder, layers__0__input_layernorm__weight=None)
    assert "model.layers.0.input_layernorm.weight is missing" in refusal(folder)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "base_model.model.", "llm."])
def test_names_of_another_spelling_are_shown(folder, prefix):
    change_tensors(folder, rename=lambda name: prefix + name)
    words = refusal(folder)
    assert "model.embed_tokens.weight is missing" in words
    assert f"{prefix}model.embed_tokens.weight is there instead" in words


def test_a_model_that_writes_no_text_is_told_from_a_broken_download(tmp_path):
    """As Qwen3-Embedding-8B is published: no head, and not tied."""
    folder = write_folder(tmp_path)
    change_tensors(folder, rename=lambda name: name.removeprefix("model."), lm_head__weight=None)
    assert "embedding or reward model" in refusal(folder)


@pytest.mark.parametrize("missing", ["lm_head.weight", "model.embed_tokens.weight"])
def test_of_tied_weights_one_is_enough(tmp_path, missing):
    folder = write_folder(tmp_path, tie_word_embeddings=True)
    both = load_file(folder / SINGLE)
    both["lm_head.weight"] = both["model.embed_tokens.weight"]
    count = Checkpoint.at(folder).weights.num_parameters
    save_file({k: v for k, v in both.items() if k != missing}, folder / SINGLE)
    assert Checkpoint.at(folder).weights.num_parameters == count
    both.pop("lm_head.weight"), both.pop("model.embed_tokens.weight")
    save_file(both, folder / SINGLE)
    assert "model.embed_tokens.weight is missing" in refusal(folder)


def test_what_the_index_names_is_what_counts(folder):
    """A file beside it that it does not name may hold anything."""
    shard(folder, keep_single=True)
    expected = Checkpoint.at(folder)
    shards = expected.weights.files
    assert [file.name for file in shards] == [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for content in (LFS_POINTER, b"", b"GGUF" + bytes(60)):
        (folder / SINGLE).write_bytes(content)
        found = Checkpoint.at(folder)
        found.check()
        assert found.weights == expected.weights and found.model_hash == expected.model_hash


def test_of_two_files_with_a_tensor_the_index_says_which_one_counts(tmp_path):
    folder = write_folder(tmp_path)
    shard(folder)
    one, two = sorted(folder.glob("model-*.safetensors"))
    name = next(iter(load_file(two)))
    save_file({**load_file(one), name: np.zeros(7, np.float16)}, one)
    Checkpoint.at(folder).check()
    index = folder / INDEX
    fields = json.loads(index.read_text())
    fields["weight_map"][name] = one.name
    index.write_text(json.dumps(fields))
    assert refusal(folder).startswith(f"{one}: {name} has the shape [7]")


def test_without_an_index_the_single_file_counts_or_else_all(tmp_path):
    folder = write_folder(tmp_path)
    save_file({"x": np.zeros(3)}, folder / "other.safetensors")
    assert Checkpoint.at(folder).weights.files == (folder / SINGLE,)
    (folder / "other.safetensors").unlink()
    shard(folder)
    (folder / INDEX).unlink()
    assert len(Checkpoint.at(folder).weights.files) == 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (LFS_POINTER, "a Git LFS pointer, not the file itself; run `git lfs pull`"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "a page of HTML"),
        (b"GGUF\x03\x00\x00\x00" + bytes(100), "a GGUF file"),
        (b"PK\x03\x04" + bytes(100), "a PyTorch pickle"),
        (bytes(100), "damaged"),
        (b"", "damaged"),
    ],
)
@pytest.mark.parametrize("is_sharded", [False, True])
def test_a_file_that_is_something_else_is_named_for_what_it_is(
    tmp_path, content, words, is_sharded
):
    folder = write_folder(tmp_path)
    if is_sharded:
        shard(folder)
    file = sorted(folder.glob("*.safetensors"))[-1]
    file.write_bytes(content)
    assert refusal(folder).startswith(f"{file}: {words}")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "weight_map names no files"),
        ({"weight_map": {}}, "weight_map names no files"),
        ({"weight_map": []}, "weight_map names no files"),
        ({"weight_map": {"a": 5}}, "5 is no file"),
        ({"weight_map": {"a": "../model.safetensors"}}, "is no file of the folder"),
        ({"weight_map": {"a": "/etc/passwd"}}, "is no file of the folder"),
        ({"weight_map": {"a": "model-7.safetensors"}}, "but missing; complete the download"),
    ],
)
def test_an_index_that_names_no_files_is_refused(tmp_path, fields, words):
    folder = write_folder(tmp_path)
    (folder / INDEX).write_text(json.dumps(fields))
    assert words in refusal(folder)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model.gguf", "GGUF, which llama.cpp reads"),
        ("pytorch_model.bin", "PyTorch pickles"),
        ("consolidated.00.pth", "PyTorch pickles"),
        (None, "no *.safetensors files"),
    ],
)
def test_a_folder_with_other_weights_says_which(tmp_path, name, words):
    folder = write_folder(tmp_path)
    (folder / SINGLE).unlink()
    if name:
        (folder / name).write_bytes(b"x")
    assert words in refusal(folder)


def packed_linear(num_inputs: int, num_outputs: int, group: int = 16) -> dict[str, np.ndarray]:
    return {
        "qweight": np.zeros((num_inputs, num_outputs // 8), np.int32),
        "qzeros": np.zeros((num_inputs // group, num_outputs // 8), np.int32),
        "scales": np.zeros((num_inputs // group, num_outputs), np.float16),
    }


AWQ = {"quant_method": "awq", "bits": 4, "group_size": 16, "version": "gemm", "zero_point": True}


@pytest.fixture
def awq(tmp_path):
    """A model of packed linears, of which those of layer 0 are left plain."""
    folder = write_folder(
        tmp_path / "awq", quantization_config=AWQ | {"modules_to_not_convert": []}
    )
    tensors = load_file(folder / SINGLE)
    for name in [n for n in tensors if n.startswith(f"{LAYER}.") and n.endswith("proj.weight")]:
        outputs, inputs = tensors.pop(name).shape
        module = name.removesuffix(".weight")
        tensors |= {f"{module}.{part}": v for part, v in packed_linear(inputs, outputs).items()}
    save_file(tensors, folder / SINGLE)
    return folder


def test_linears_may_be_packed_or_plain_each_by_itself(awq, tmp_path):
    weights = Checkpoint.at(awq).weights
    plain = Checkpoint.at(write_folder(tmp_path / "plain")).weights
    assert len(weights.packed) == 7
    assert all(name.startswith(LAYER) for name in weights.packed)
    assert weights.shapes == plain.shapes


@pytest.mark.parametrize(
    ("part", "new", "words"),
    [
        ("qweight", None, "up_proj.qweight is missing"),
        ("scales", None, "up_proj.scales is missing beside qweight"),
        ("qzeros", np.zeros((2, 5), np.int32), "up_proj.qzeros has the shape [2, 5]"),
        ("qweight", np.zeros((32, 6), np.float16), "up_proj.qweight is of type F16"),
        ("weight", np.zeros((48, 32), np.float16), "up_proj.weight exclude each other"),
        ("bias", np.ones(48, np.float16), "up_proj.bias is not zero"),
        ("bias", np.zeros(48, np.float16), None),
    ],
)
def test_each_part_of_a_packed_linear_is_asked_for(awq, part, new, words):
    change_tensors(awq, **{f"{LAYER}.mlp.up_proj.{part}": new})
    if words is None:
        Checkpoint.at(awq).check()
    else:
        assert words in refusal(awq)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "I8", "U8"])
def test_packed_weights_that_config_json_does_not_name_are_refused(awq, tmp_path, dtype):
    change(awq / "config.json", quantization_config=None)
    words = refusal(awq)
    assert "qweight is of packed weights, but config.json has no quantization_config" in words
    eight_bits = write_folder(tmp_path / "eight")
    as_type(eight_bits / SINGLE, "model.layers.0.mlp.up_proj.weight", dtype)
    assert f"up_proj.weight is of type {dtype}, by config.json it is F16" in refusal(eight_bits)


def test_scales_of_packed_weights_are_not_left_unread(folder):
    name = "model.layers.0.self_attn.q_proj.weight_scale_inv"
    change_tensors(folder, **{name: np.ones((1, 1), np.float32)})
    assert f"no place for {name}" in refusal(folder)


def as_type(file: Path, name: str, dtype: str) -> None:
    """Say in a header that a tensor's bytes are of another type, of one byte each."""
    tensors = load_file(file)
    shape = tensors[name].shape
    save_file(tensors | {name: np.zeros(shape, np.uint8)}, file)
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    header[name]["dtype"] = dtype
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("awq", "--quantization awq, but the weights are packed as 'none'"),
        ("gptq", "--quantization gptq, but the weights are packed as 'none'"),
        ("fp8", None),
    ],
)
def test_a_setting_must_agree_with_the_weights(tmp_path, asked, words):
    folder = write_folder(tmp_path)
    if words is None:
        Checkpoint.at(folder).check(asked)
    else:
        assert words in refusal(folder, quantization=asked)


def test_linears_that_eight_bits_cannot_multiply_are_refused(tmp_path):
    folder = write_folder(tmp_path, intermediate_size=40)
    Checkpoint.at(folder).check()
    assert re.search(r"gate_proj of shape \[40, 32\] is no", refusal(folder, quantization="fp8"))


def test_a_large_model_is_read_in_a_moment(tmp_path):
    """The headers of 48 layers of 128 experts, in 19,000 tensors."""
    folder = write_folder(tmp_path, "qwen3_moe", num_hidden_layers=48, num_experts=128)
    started = time.process_time()
    Checkpoint.at(folder).check()
    assert time.process_time() - started < QUICK_SECONDS


def test_nothing_imports_torch():
    code = "import sys, workers.checkpoint.checkpoint; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_a_refusal_is_an_error_of_configuration(tmp_path):
    with pytest.raises(ModelError) as caught:
        Checkpoint.at(tmp_path)
    assert caught.value.exit_code == 78
