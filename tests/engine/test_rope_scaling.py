"""Stretched positions give the tokens of transformers' generate(), of every kind that is served.

Of `attn_factor` transformers knows nothing: there the reference is given the product by hand.
"""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.engine.test_parity import NEW_TOKENS, Comparison

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
# As DeepSeek-R1-0528-Qwen3-8B is published: the product is 1.
PUBLISHED = 0.8782488562869419
KINDS = {
    "linear": ({"rope_type": "linear", "factor": 4.0}, None),
    "llama3": (
        {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 128}
        | {"low_freq_factor": 1.0, "high_freq_factor": 4.0},
        None,
    ),
    "yarn": (YARN, None),
    "yarn of another slope": (YARN | {"beta_fast": 16, "beta_slow": 2, "truncate": False}, None),
    "yarn with mscale": (YARN | {"mscale": 1.0, "mscale_all_dim": 0.3}, None),
    "yarn as published": (YARN | {"attn_factor": PUBLISHED}, 1.0),
    "yarn with a large factor": (
        YARN | {"attn_factor": 1.5},
        1.5 * (0.1 * math.log(4) + 1),
    ),
    "yarn with mscale and a factor": (
        YARN | {"attn_factor": 0.5, "mscale": 1.0, "mscale_all_dim": 0.3},
        0.5 * (0.1 * math.log(4) + 1) / (0.03 * math.log(4) + 1),
    ),
    "yarn with both factors": (YARN | {"attn_factor": 3.0, "attention_factor": 0.7}, 0.7),
}


@pytest.fixture
def model_of(model_of):
    """Let `drive` take the directory of a model too."""
    return lambda name: (name, None) if isinstance(name, Path) else model_of(name)


@pytest.fixture
def scaled(model_of, tmp_path):
    """Return a function that writes a tiny model with other rope parameters, in either spelling."""

    def scaled(label: str, name: str, rope: dict, *, is_old: bool = False) -> Path:
        folder = tmp_path / label
        shutil.copytree(model_of(name)[0], folder)
        file = folder / "config.json"
        fields = json.loads(file.read_text())
        theta = {"rope_theta": fields.pop("rope_parameters")["rope_theta"]}
        if is_old:
            old = {"type" if key == "rope_type" else key: value for key, value in rope.items()}
            fields |= theta | {"rope_scaling": old}
        else:
            fields["rope_parameters"] = theta | rope
        file.write_text(json.dumps(fields))
        return folder

    return scaled


def answers(driver, asked):
    for key, prompt in enumerate(asked):
        driver.add(key, prompt, max_tokens=NEW_TOKENS)
    driver.run()
    return [driver.tokens(key) for key in range(len(asked))]


@pytest.mark.parametrize("is_old", [False, True])
@pytest.mark.parametrize("name", ["qwen2", "qwen3"])
@pytest.mark.parametrize("kind", KINDS)
def test_tokens_equal_those_of_transformers(scaled, drive, prompts, name, kind, is_old):
    rope, attention_factor = KINDS[kind]
    by_hand = {key: value for key, value in rope.items() if key != "attn_factor"}
    if attention_factor is not None:
        by_hand["attention_factor"] = attention_factor
    reference = scaled("reference", name, by_hand)
    model = AutoModelForCausalLM.from_pretrained(reference, dtype=torch.float32)
    comparison, asked = Comparison(model.eval()), prompts(3, longest=200)
    driver = drive(scaled("ours", name, rope, is_old=is_old))
    for prompt, tokens in zip(asked, answers(driver, asked), strict=True):
        comparison.check(prompt, tokens)
    comparison.report()


OVERRIDES = {
    "rope_scaling": ("yarn", YARN),
    "hf_overrides": ("linear", {"rope_parameters": KINDS["linear"][0]}),
    "hf_overrides of another theta": (
        "other theta",
        {"rope_parameters": YARN | {"rope_theta": 5e4}, "max_position_embeddings": 512},
    ),
}


@pytest.mark.parametrize("kind", OVERRIDES)
def test_what_a_flag_says_of_rope_is_as_if_the_file_did(scaled, drive, prompts, model_of, kind):
    label, said = OVERRIDES[kind]
    rope = {"rope_theta": 1e4} | said.get("rope_parameters", said)
    model = AutoModelForCausalLM.from_pretrained(scaled(label, "qwen3", rope), dtype=torch.float32)
    comparison, asked = Comparison(model.eval()), prompts(3, longest=200)
    driver = drive("qwen3", **{kind.partition(" ")[0]: json.dumps(said)})
    for prompt, tokens in zip(asked, answers(driver, asked), strict=True):
        comparison.check(prompt, tokens)
    comparison.report()


def test_the_factor_of_the_published_model_changes_tokens(scaled, drive, prompts):
    """Else the comparison above would prove nothing."""
    asked = prompts(3, longest=200)
    without = answers(drive(scaled("without", "qwen3", YARN)), asked)
    published = scaled("published", "qwen3", YARN | {"attn_factor": PUBLISHED})
    assert answers(drive(published), asked) != without


@pytest.mark.parametrize("factor", [2.0, 4.0])
def test_linear_positions_lengthen_what_the_engine_serves(scaled, drive, factor):
    folder = scaled("linear", "qwen3", {"rope_type": "linear", "factor": factor})
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"max_position_embeddings": 512}))
    assert drive(folder).engine.card.max_model_len == 512 * factor
