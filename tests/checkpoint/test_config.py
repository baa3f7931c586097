"""What of config.json is refused, by its name and with what to do, and what is made of the rest."""

import json
import math
import re

import pytest

from tests.checkpoint.folders import change, write_folder
from workers.checkpoint.checkpoint import Checkpoint
from workers.errors import ModelError


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path)


def refusal(folder) -> str:
    with pytest.raises(ModelError) as caught:
        Checkpoint.at(folder).check()
    words = str(caught.value)
    assert words.startswith(str(folder)) and "Traceback" not in words
    return words


YARN = {"rope_type": "yarn", "factor": 4.0}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_size": None}, "hidden_size is None"),
        ({"hidden_size": "32"}, "hidden_size is '32'"),
        ({"vocab_size": True}, "vocab_size is True"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
        ({"num_hidden_layers": 2.0}, "num_hidden_layers is 2.0"),
        ({"num_attention_heads": 3, "num_key_value_heads": 2}, "no multiple"),
        ({"head_dim": 15}, "head_dim is 15"),
        ({"head_dim": 0}, "head_dim is 0"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps is 'small'"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"per_layer_config": [{}]}, "per_layer_config"),
        ({"text_config": []}, r"text_config is \[\]"),
        ({"use_sliding_window": True, "max_window_layers": 0, "sliding_window": 0}, "window is 0"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "use_sliding_window is None"),
        ({"layer_types": ["full_attention", "chunked_attention"]}, "names 'chunked_attention'"),
        ({"layer_types": ["full_attention"]}, "layer_types has 1 entries"),
        ({"layer_types": "full_attention"}, "layer_types"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type 'dynamic'"),
        ({"rope_scaling": {"type": "longrope"}}, "rope_type 'longrope'"),
        ({"rope_parameters": {"rope_type": "mrope"}}, "rope_type 'mrope'"),
        ({"rope_parameters": {"rope_type": ["yarn"]}}, r"rope_type \['yarn'\]"),
        ({"rope_parameters": []}, None),
        ({"rope_scaling": "yarn"}, "rope_scaling is 'yarn'"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope_scaling.factor is None"),
        ({"rope_scaling": {"rope_type": "linear", "factor": "2"}}, "factor is '2'"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0.5}}, "factor is 0.5"),
        ({"rope_scaling": YARN | {"attn_factor": -1}}, "attn_factor is -1"),
        ({"rope_scaling": YARN | {"beta_fast": "x"}}, "beta_fast is 'x'"),
        ({"rope_scaling": YARN | {"original_max_position_embeddings": 1.5}}, "original_max"),
        ({"rope_theta": 0}, "rope_theta is 0"),
        ({"quantization_config": {"quant_method": "hqq"}}, "quant_method is 'hqq'"),
        ({"quantization_config": []}, r"quantization_config must be an object, not \[\]"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 3}}, "bits is 3"),
        ({"model_type": "qwen2"}, "model_type is 'qwen2'"),
        ({"model_type": None}, "model_type is None"),
        ({"architectures": None}, "architecture None"),
        ({"architectures": []}, r"architecture \[\]"),
        ({"architectures": "Qwen3ForCausalLM"}, "architecture 'Qwen3ForCausalLM'"),
        ({"architectures": ["LlamaForCausalLM"]}, "architecture LlamaForCausalLM"),
        ({"architectures": ["Qwen3ForTokenClassification"]}, "ForTokenClassification"),
        ({"eos_token_id": 3000}, "eos_token_id 3000"),
        ({"eos_token_id": "2"}, "eos_token_id '2'"),
        ({"eos_token_id": [2, None, 2.5]}, "eos_token_id 2.5"),
    ],
)
def test_what_would_be_computed_wrongly_is_refused_by_its_name(folder, changes, words):
    change(folder / "config.json", **changes)
    if words is None:
        Checkpoint.at(folder).check()
    else:
        found = refusal(folder)
        assert found.startswith(f"{folder / 'config.json'}: ")
        assert re.search(words, found), found


@pytest.mark.parametrize(
    ("model_type", "architecture", "words"),
    [
        ("qwen4_exp", "Qwen4ExpForConditionalGeneration", "Qwen3.8-Flash-Next (qwen4_exp)"),
        ("qwen2_vl", "Qwen2VLForConditionalGeneration", "Qwen2-VL (qwen2_vl)"),
        ("qwen3_omni_moe", "Qwen3OmniMoeForConditionalGeneration", "Qwen3-Omni"),
        ("qwen3_asr", "Qwen3ASRForConditionalGeneration", "Qwen3-ASR"),
        ("mamba", "MambaForCausalLM", "architecture MambaForCausalLM (model_type 'mamba')"),
    ],
)
def test_a_model_that_is_not_served_is_called_by_its_name(folder, model_type, architecture, words):
    """Whatever else its config.json has: those of larger models have no vocab_size of their own."""
    fields = {"model_type": model_type, "architectures": [architecture], "text_config": {"x": 1}}
    (folder / "config.json").write_text(json.dumps(fields))
    found = refusal(folder)
    assert words in found and "is not supported; choose one of Qwen2ForCausalLM" in found


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not valid JSON"),
        (b"[]", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html>", "page of HTML"),
    ],
)
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json"])
def test_a_file_of_settings_that_is_something_else_is_named(folder, name, content, words):
    (folder / name).write_bytes(content)
    found = refusal(folder)
    assert found.startswith(f"{folder / name}: ") and words in found


@pytest.mark.parametrize(
    ("rope", "length"),
    [
        ({}, 512),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, 2048),
        ({"rope_parameters": {"rope_type": "linear", "factor": 1.5}}, 768),
        ({"rope_scaling": YARN}, 2048),
        ({"rope_scaling": YARN | {"original_max_position_embeddings": 256}}, 1024),
        ({"rope_scaling": YARN | {"original_max_position_embeddings": 64}}, 512),
        ({"rope_scaling": {"type": "linear", "factor": 2, "original_max_position_embeddings": 512}},
         1024),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                           "high_freq_factor": 4.0}}, 512),
    ],
)  # fmt: skip
def test_the_context_is_stretched_by_rope(folder, rope, length):
    change(folder / "config.json", **rope)
    assert Checkpoint.at(folder).config.context_length == length


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, None),
        ({"attn_factor": 0.8782488562869419}, 1.0),
        ({"attn_factor": 1.0}, 0.1 * math.log(4) + 1),
        ({"attn_factor": 2}, 2 * (0.1 * math.log(4) + 1)),
        ({"attn_factor": 2, "attention_factor": 1.5}, 1.5),
    ],
)
@pytest.mark.parametrize("spelling", ["rope_scaling", "rope_parameters"])
def test_attn_factor_becomes_the_attention_factor(folder, more, expected, spelling):
    change(folder / "config.json", **{spelling: YARN | more})
    found = Checkpoint.at(folder).config.rope.values
    assert "attn_factor" not in found
    assert found.get("attention_factor") == (expected and pytest.approx(expected))
