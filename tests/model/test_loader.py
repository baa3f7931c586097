"""What is refused at start, with the file's name, and what the card says of the rest."""

import json
import shutil

import pytest
import torch

from workers.config import EngineConfig
from workers.engine.engine import Engine
from workers.errors import ConfigError, ModelError
from workers.model.loader import choose_device


@pytest.fixture
def copy(model_of, tmp_path):
    path = tmp_path / "model"
    shutil.copytree(model_of("qwen3")[0], path)
    return path


def start(path, progress=lambda stage, fraction: None, **settings):
    settings = {"num_blocks": 20, "dtype": "float32", "device": "cpu", "threads": 2} | settings
    return Engine(EngineConfig(str(path), **settings), progress)


def change(path, **changes):
    file = path / "config.json"
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_missing_file_is_named(copy, name):
    (copy / name).unlink()
    with pytest.raises(ModelError, match=name):
        start(copy)


def test_a_directory_without_weights_is_refused(copy):
    (copy / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="safetensors"):
        start(copy)


def test_a_missing_shard_is_named(copy):
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"model-00002\.safetensors"):
        start(copy)


def test_a_truncated_shard_is_named(copy):
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        start(copy)


def test_missing_weights_are_named(copy):
    change(copy, num_hidden_layers=3, layer_types=None)
    with pytest.raises(ModelError, match=r"model\.layers\.2\."):
        start(copy)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, "LlamaForCausalLM"),
        ({"architectures": None}, "architecture"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "quantization_config"),
        (
            {"use_sliding_window": True, "sliding_window": -1, "max_window_layers": 0}
            | {"layer_types": None},
            "sliding_window",
        ),
        ({"hidden_act": "gelu"}, "hidden_act"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "rope_type",
        ),
    ],
)
def test_what_would_be_computed_wrongly_is_refused(copy, changes, words):
    change(copy, **changes)
    with pytest.raises(ModelError, match=rf"config\.json.*{words}"):
        start(copy)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"dtype": "int8"}, "dtype"),
        ({"max_model_len": 1 << 20}, "max_model_len"),
        ({"max_model_len": 4096, "num_blocks": 10}, "num_blocks"),
    ],
)
def test_settings_that_cannot_be_met_are_refused(copy, settings, words):
    with pytest.raises(ConfigError, match=words):
        start(copy, **settings)


def test_a_device_that_is_not_there_is_refused(copy):
    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    with pytest.raises(ModelError, match="cuda"):
        start(copy, device="cuda")


def test_the_card_describes_the_model(copy):
    progress = []
    card = start(copy, lambda stage, fraction: progress.append((stage, fraction))).card
    assert card.architecture == "Qwen3ForCausalLM"
    assert card.vocab_size == 320
    assert card.max_model_len == 19 * 32
    assert (card.dtype, card.device, card.block_size) == ("float32", "cpu", 32)
    assert card == start(copy).card
    assert progress[-1] == ("ready", 1.0)
    assert ("loading weights", 1.0) in progress


def test_the_cache_fits_the_machine_when_no_size_is_given(copy):
    card = start(copy, num_blocks=0, max_num_seqs=4, max_model_len=256).card
    assert card.num_blocks == 4 * 256 // 32 + 1
    small = start(copy, num_blocks=0, kv_cache_gb=0.001).card
    assert small.max_model_len == (small.num_blocks - 1) * 32


def test_yarn_stretches_the_context(copy):
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}
    yarn["original_max_position_embeddings"] = 512
    change(copy, max_position_embeddings=512, rope_parameters=yarn)
    assert start(copy, num_blocks=200).card.max_model_len == 2048


def test_no_weight_is_kept_twice(copy, monkeypatch):
    from workers.model import decoder

    kept = []

    class Watched(decoder.Decoder):
        def __init__(self, model, **options):
            super().__init__(model, **options)
            kept.extend(model.model.layers.parameters())

    monkeypatch.setattr("workers.engine.start.Decoder", Watched)
    start(copy)
    # Only norms stay in transformers' modules.
    assert kept and all(parameter.dim() == 1 for parameter in kept)


def test_engines_beside_each_other_take_turns_on_the_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [str(choose_device("auto", i)) for i in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert str(choose_device("cuda")) == "cuda", "alone, it may spread over all"
    assert str(choose_device("cpu", 1)) == "cpu"
    assert [str(choose_device("cuda", -1, i, 2)) for i in range(2)] == ["cuda:0", "cuda:1"]
    assert str(choose_device("cuda", -1, 0, 1)) == "cuda:0", "a rank that is alone on its machine"
    with pytest.raises(ConfigError, match="4 ranks are on this machine, but torch sees 2 GPUs"):
        choose_device("cuda", -1, 0, 4)
