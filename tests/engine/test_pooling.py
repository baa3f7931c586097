"""Vectors and logits of prompts that are not gone on with, as transformers computes them."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen3ForSequenceClassification

from tests.engine.conftest import ATTENTION, DEVICE, MODELS, Driver, write_model
from tests.model.packers import Fp8Packer, Packer
from tests.model.twins import write_twins
from workers.config import EngineConfig
from workers.engine.engine import Engine
from workers.errors import ConfigError, ModelError
from workers.wire.protocol import Pooling

# Layouts of folders: which model, its config.json beyond that, whether tensors lose `model.`.
LAYOUTS = {
    "embed": ("qwen3", {}, True),
    "embed-untied": ("qwen3", {"tie_word_embeddings": False}, True),
    "embed-named": ("qwen3", {}, False),
    "rerank": ("qwen3", {}, False),
    "rerank-untied": ("qwen3", {"tie_word_embeddings": False}, False),
    "classifier": ("classifier", {"num_labels": 1}, False),
}
MODULES = [
    {"path": "", "type": "sentence_transformers.models.Transformer"},
    {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
]
YES_NO = (17, 250)


def write_layout(path: Path, name: str):
    """Write a model as such a folder has it, and return it."""
    kind, changes, is_bare = LAYOUTS[name]
    model = write_model(path, kind, **changes)
    if name.startswith("embed"):
        file = path / "model.safetensors"
        tensors = {
            key.removeprefix("model.") if is_bare else key: tensor
            for key, tensor in load_file(file).items()
            if key != "lm_head.weight"
        }
        save_file(tensors, file, {"format": "pt"})
        (path / "modules.json").write_text(json.dumps(MODULES))
    if name == "embed-named":
        change_config(path, architectures=["Qwen3Model"])
        (path / "modules.json").unlink()
    if name.startswith("rerank"):
        scores = {"path": "1_LogitScore", "type": "sentence_transformers.cross_encoder.LogitScore"}
        (path / "modules.json").write_text(json.dumps([MODULES[0], scores]))
    return model


def change_config(path: Path, **fields) -> None:
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
    """Return the folder and the model of a layout, made once."""
    patch = pytest.MonkeyPatch()
    classifier = (Qwen3ForSequenceClassification, MODELS["qwen3"][1], {})
    patch.setitem(MODELS, "classifier", classifier)
    made = {}

    def layout(name):
        if name not in made:
            path = tmp_path_factory.mktemp(name)
            made[name] = path, write_layout(path, name)
        return made[name]

    yield layout
    patch.undo()


@pytest.fixture
def drive(layout):
    def drive(name, **settings):
        defaults = {"num_blocks": 1600, "block_size": 8, "threads": 1, "dtype": "float32"}
        if not settings.get("deterministic"):
            defaults["attention_backend"] = ATTENTION
        config = EngineConfig(str(layout(name)[0]), device=DEVICE, **(defaults | settings))
        return Driver(Engine(config, lambda stage, fraction: None))

    return drive


def pooling_of(name, dimensions=0):
    if name.startswith("embed"):
        return Pooling(dimensions=dimensions)
    return Pooling(YES_NO if name.startswith("rerank") else (0,))


def expected(name, model, prompt, dimensions=0):
    with torch.no_grad():
        ids = torch.tensor([prompt])
        if name.startswith("embed"):
            hidden = model.model(ids).last_hidden_state[0, -1]
            return torch.nn.functional.normalize(hidden[: dimensions or None], dim=-1).tolist()
        logits = model(ids).logits[0]
        return logits[-1, list(YES_NO)].tolist() if name.startswith("rerank") else logits.tolist()


def numbers(driver, key):
    pooled = driver.finished[key].pooled
    return list(struct.unpack(f"<{len(pooled) // 4}f", pooled))


def check(driver, name, model, asked, dimensions=0):
    for key, prompt in asked.items():
        found = numbers(driver, key)
        assert found == pytest.approx(expected(name, model, prompt, dimensions), abs=1e-4)
        assert driver.finished[key].prompt_tokens == len(prompt)
        assert driver.finished[key].completion_tokens == 0 and key not in driver.chunks
    assert set(driver.started) == set(driver.finished) and not driver.failed


def ask(driver, name, asked, **fields):
    for key, prompt in asked.items():
        driver.add(key, prompt, pooling=pooling_of(name, **fields), max_tokens=1)
    return driver.run()


@pytest.mark.parametrize("name", LAYOUTS)
def test_each_layout_gives_what_transformers_gives_alone(drive, layout, prompts, name):
    driver, (_, model) = drive(name), layout(name)[0:2]
    task = "embed" if name.startswith("embed") else "rerank"
    sizes = {"embed": 64, "rerank": 320, "classifier": 1}
    assert (driver.engine.card.task, driver.engine.card.output_size) == (
        task,
        sizes[name.split("-")[0]],
    )
    asked = dict(enumerate(prompts(4)))
    for key, prompt in asked.items():
        ask(driver, name, {key: prompt})
    check(driver, name, model, asked)


MODES = {
    "plain": {},
    "chunked": {"max_num_batched_tokens": 64, "max_num_seqs": 64},
    "overlapping": {"async_scheduling": "on", "max_num_batched_tokens": 100, "max_num_seqs": 64},
    "deterministic": {"deterministic": True},
    "crowded": {"num_blocks": 30, "max_num_batched_tokens": 64, "max_num_seqs": 64},
}


@pytest.mark.parametrize(
    ("name", "mode"),
    [*(("embed", mode) for mode in MODES), ("rerank", "chunked"), ("classifier", "overlapping")],
)
def test_64_at_once_in_chunks_and_behind_cached_prefixes_are_the_same(
    drive, layout, prompts, name, mode
):
    driver, (_, model) = drive(name, **MODES[mode]), layout(name)
    asked = dict(enumerate(prompts(64, longest=50)))
    ask(driver, name, asked)
    again = {100 + key: prompt for key, prompt in asked.items()}
    again |= {200 + key: [*prompt, 5, 6, 7] for key, prompt in asked.items()}
    ask(driver, name, again)
    check(driver, name, model, asked | again)
    if mode != "crowded":
        assert all(
            driver.cached_tokens[100 + key] == (len(prompt) - 1) // 8 * 8
            for key, prompt in asked.items()
        )


def test_a_vector_is_cut_before_it_is_brought_to_length_one(drive, layout, prompts):
    driver, (_, model) = drive("embed"), layout("embed")
    asked = dict(enumerate(prompts(3)))
    for key, prompt in asked.items():
        driver.add(key, prompt, pooling=Pooling(dimensions=16 + key), max_tokens=1)
    driver.run()
    for key, prompt in asked.items():
        found = numbers(driver, key)
        assert len(found) == 16 + key and np.linalg.norm(found) == pytest.approx(1, abs=1e-5)
        assert found == pytest.approx(expected("embed", model, prompt, 16 + key), abs=1e-4)


def test_a_prompt_may_fill_the_whole_context(drive, layout):
    driver, (_, model) = drive("embed", max_model_len=48), layout("embed")
    asked = {0: [4 + i % 300 for i in range(48)]}
    ask(driver, "embed", asked)
    check(driver, "embed", model, asked)


@pytest.mark.parametrize("mode", ["off", "on"])
def test_who_leaves_ends_and_nobody_else_does(drive, layout, prompts, mode):
    driver, (_, model) = (
        drive("embed", async_scheduling=mode, max_num_batched_tokens=64),
        layout("embed"),
    )
    asked = dict(enumerate(prompts(12)))
    for key, prompt in asked.items():
        driver.add(key, prompt, pooling=Pooling(), max_tokens=1)
    driver.step()
    gone = [key for key in asked if key not in driver.finished][:5]
    for key in gone:
        assert driver.engine.abort(key)
        del asked[key]
    driver.run()
    assert not set(gone) & set(driver.finished)
    driver.started = [key for key in driver.started if key not in gone]
    check(driver, "embed", model, asked)


@pytest.mark.parametrize("packer", [Packer(group_size=32), Fp8Packer((48, 32))], ids=["awq", "fp8"])
def test_packed_weights_give_what_their_plain_twins_give(tmp_path, layout, prompts, packer):
    found, settings = [], {"num_blocks": 99, "dtype": "float32", "threads": 1}
    settings["attention_backend"] = "torch"  # which keeps nothing packed
    for folder in write_twins(layout("embed-named")[0], tmp_path, packer):
        config = EngineConfig(str(folder), device=DEVICE, **settings)
        driver = Driver(Engine(config, lambda stage, fraction: None))
        ask(driver, "embed", dict(enumerate(prompts(3))))
        found.append([driver.finished[key].pooled for key in range(3)])
    assert found[0] == found[1] and all(found[0])


def test_numbers_that_are_none_are_never_given(tmp_path, layout, prompts):
    write_layout(tmp_path, "embed")
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    tensors["embed_tokens.weight"][99, 5] = float("nan")
    save_file(tensors, file)
    driver = Driver(
        Engine(EngineConfig(str(tmp_path), device=DEVICE, num_blocks=99, dtype="float32"), print)
    )
    good, bad = [4, 5, 6], [4, 99, 6]
    for key, prompt in enumerate([good, bad, good]):
        driver.add(key, prompt, pooling=Pooling(), max_tokens=1)
    driver.run()
    assert set(driver.finished) == {0, 2} and driver.failed[1].reason == "engine_error"


def test_what_a_model_is_not_served_for_fails_there(drive):
    embed, rerank = drive("embed"), drive("rerank", task="generate")
    embed.add(0, [4, 5], max_tokens=2)
    rerank.add(0, [4, 5], pooling=Pooling(YES_NO), max_tokens=1)
    rerank.add(1, [4, 5], max_tokens=2)
    assert set(embed.run().failed) == {0} and set(rerank.run().failed) == {0}
    assert len(rerank.tokens(1)) == 2


@pytest.mark.parametrize(
    ("name", "task", "said"),
    [
        ("embed-untied", "generate", "lm_head.weight is missing"),
        ("embed-named", "generate", "Qwen3Model is served for embed only"),
        ("classifier", "embed", "Qwen3ForSequenceClassification is served for rerank only"),
    ],
)
def test_a_task_that_a_folder_is_not_for_is_refused(drive, name, task, said):
    with pytest.raises((ConfigError, ModelError), match=said):
        drive(name, task=task)
