"""The weights in memory are those the files are said to hold, whatever lies beside them."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from workers.checkpoint.checkpoint import Checkpoint
from workers.model.loader import load_config, load_weights

SINGLE = "model.safetensors"


@pytest.fixture
def copy(model_of, tmp_path, request):
    path = tmp_path / "model"
    shutil.copytree(model_of(request.param)[0], path)
    return path


each = pytest.mark.parametrize("copy", ["qwen2", "qwen3", "qwen3_moe"], indirect=True)


def load(path):
    checkpoint = Checkpoint.at(path)
    config = load_config(checkpoint)
    cpu = torch.device("cpu")
    model = load_weights(checkpoint, config, torch.float32, cpu, lambda *_: None)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


@each
@pytest.mark.parametrize("is_whole", [True, False])
def test_a_stray_file_beside_an_index_is_not_read(copy, is_whole):
    """transformers itself would read it, and no shard."""
    expected = load(copy)
    tensors = load_file(copy / SINGLE)
    weight_map = {}
    for number in range(3):
        mine = dict(list(tensors.items())[number::3])
        save_file(mine, copy / f"model-{number}.safetensors")
        weight_map |= dict.fromkeys(mine, f"model-{number}.safetensors")
    (copy / f"{SINGLE}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    if is_whole:
        save_file({name: tensor + 1 for name, tensor in tensors.items()}, copy / SINGLE)
    else:
        (copy / SINGLE).write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    save_file({"left.over": torch.zeros(3)}, copy / "model-3.safetensors")
    same(load(copy), expected)


@each
def test_a_file_that_config_json_names_is_not_read_instead(copy):
    expected = load(copy)
    tensors = load_file(copy / SINGLE)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, copy / "other.safetensors")
    file = copy / "config.json"
    fields = json.loads(file.read_text()) | {"transformers_weights": "other.safetensors"}
    file.write_text(json.dumps(fields))
    same(load(copy), expected)


@each
def test_names_without_their_prefix_load_the_same_weights(copy):
    expected = load(copy)
    tensors = load_file(copy / SINGLE)
    save_file({k.removeprefix("model."): v for k, v in tensors.items()}, copy / SINGLE)
    same(load(copy), expected)


@each
def test_what_is_left_out_changes_nothing(copy):
    expected = load(copy)
    tensors = load_file(copy / SINGLE)
    more = {f"mtp.{name}": tensor.clone() for name, tensor in tensors.items()}
    save_file(tensors | more | {"visual.merger.mlp.0.weight": torch.ones(3)}, copy / SINGLE)
    same(load(copy), expected)
