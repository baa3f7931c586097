"""What is read of config.json, and which tensors follow, is what transformers makes of the file."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.core_model_loading import revert_weight_conversion

from tests.checkpoint.folders import CONFIGS, write_folder
from workers.checkpoint.architectures import ARCHITECTURES
from workers.checkpoint.checkpoint import Checkpoint
from workers.model.loader import load_config

VARIATIONS = [
    ("qwen2", {}),
    ("qwen2", {"head_dim": None}),
    ("qwen2", {"num_key_value_heads": 4, "tie_word_embeddings": True}),
    ("qwen2", {"attention_bias": False, "sliding_window": 64, "max_window_layers": 1}),
    ("qwen3", {}),
    ("qwen3", {"attention_bias": True}),
    ("qwen3", {"head_dim": None}),
    ("qwen3", {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 2}),
    ("qwen3", {"layer_types": ["full_attention"] * 2, "rms_norm_eps": 1e-5}),
    ("qwen3_moe", {}),
    ("qwen3_moe", {"head_dim": None, "attention_bias": True, "norm_topk_prob": True}),
    ("qwen3_moe", {"decoder_sparse_step": 2}),
    ("qwen3_moe", {"mlp_only_layers": [0]}),
    ("qwen3_moe", {"num_experts": None, "num_local_experts": 6}),
    ("qwen3_moe", {"use_sliding_window": False, "sliding_window": 4096}),
    ("qwen3_moe", {"use_sliding_window": True, "sliding_window": 64}),
    ("qwen2", {"use_sliding_window": True, "max_window_layers": 1}),
    ("qwen3", {"use_sliding_window": True, "layer_types": ["sliding_attention"] * 2}),
]
ROPES = [
    {},
    {"rope_theta": 1e6},
    {"rope_scaling": {"type": "linear", "factor": 4.0}},
    {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
    {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}},
    {"rope_parameters": {"rope_type": "yarn", "rope_theta": 5e5, "factor": 2.0, "beta_fast": 16}},
    {"rope_scaling": {"rope_type": "yarn", "factor": 8, "attention_factor": 1.25}},
    {"rope_scaling": {"rope_type": "yarn", "factor": 8, "mscale": 1.0, "mscale_all_dim": 0.5}},
    {"rope_scaling": {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 64}},
    {
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 256,
        }
    },
]


@pytest.mark.parametrize(("name", "changes"), VARIATIONS)
def test_names_and_shapes_are_those_that_transformers_saves(tmp_path, name, changes):
    folder = write_folder(tmp_path, name, **changes)
    checkpoint = Checkpoint.at(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    theirs = revert_weight_conversion(model, model.state_dict())
    architecture = ARCHITECTURES[checkpoint.architecture]
    ours = dict(architecture.shapes(checkpoint.config))
    assert ours == {name: tuple(tensor.shape) for name, tensor in theirs.items()}
    assert set(checkpoint.weights.decoder_linears) == {
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }


@pytest.mark.parametrize(("name", "changes"), VARIATIONS)
def test_the_configuration_is_the_one_that_transformers_reads(tmp_path, name, changes):
    same_as_transformers(write_folder(tmp_path, name, **changes))


@pytest.mark.parametrize("rope", ROPES)
def test_rope_is_the_one_that_transformers_reads(tmp_path, rope):
    folder = write_folder(tmp_path, "qwen3", **{"rope_theta": None} | rope)
    mine, theirs = (
        AutoModelForCausalLM.from_config(config).model.rotary_emb
        for config in (load_config(Checkpoint.at(folder)), AutoConfig.from_pretrained(folder))
    )
    assert torch.equal(mine.inv_freq, theirs.inv_freq)
    assert mine.attention_scaling == theirs.attention_scaling


def same_as_transformers(folder):
    """Compare every field that a model of this folder is computed from."""
    mine = load_config(Checkpoint.at(folder)).to_dict()
    theirs = AutoConfig.from_pretrained(folder).to_dict()
    of_computing = {*CONFIGS["qwen3_moe"], "num_local_experts", "attention_bias", "norm_topk_prob"}
    of_computing |= {"decoder_sparse_step", "mlp_only_layers"}
    of_computing -= {"eos_token_id", "num_experts", "rope_theta"}
    for field in of_computing & theirs.keys():
        # Qwen2 has no such setting, whatever config.json says of it.
        if field != "attention_bias" or mine["model_type"] != "qwen2":
            assert mine[field] == theirs[field], field
    for field in ("rope_theta", "rope_type"):
        assert mine["rope_parameters"][field] == theirs["rope_parameters"][field], field


def test_a_text_model_inside_a_larger_one_is_read(tmp_path):
    folder = write_folder(tmp_path, "qwen3")
    flat = Checkpoint.at(folder).config
    outer = ("architectures", "model_type", "tie_word_embeddings")
    fields = json.loads((folder / "config.json").read_text())
    inner = {k: fields.pop(k) for k in list(fields) if k not in outer}
    (folder / "config.json").write_text(json.dumps(fields | {"text_config": inner}))
    nested = Checkpoint.at(folder)
    assert nested.config == flat
    assert nested.eos_token_ids == (2993,)
    assert nested.weights.num_parameters > 0
