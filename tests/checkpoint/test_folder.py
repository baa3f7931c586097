"""What a path is that --model names, and the name its model is served under."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from qwenapi.doctor.report import refuse_unfit
from qwenapi.settings.table import Settings
from tests.checkpoint.folders import INDEX, SINGLE, write_folder
from workers.checkpoint.checkpoint import Checkpoint
from workers.checkpoint.hub_name import HubName
from workers.errors import ConfigError, ModelError


def refusal(path: str | Path) -> str:
    """Return the words of the doctor and of the engine's reading, which are the same."""
    with pytest.raises(ModelError) as caught:
        Checkpoint.at(path).check()
    with pytest.raises(ConfigError) as doctors:
        refuse_unfit(replace(Settings(), model=str(path)))
    assert str(caught.value) == str(doctors.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["Qwen/Qwen3-0.6B", "Qwen/Qwen2.5-7B-Instruct-AWQ", "me/my_model"])
@pytest.mark.parametrize("revision", ["", "v1.0", "refs/pr/3"])
def test_a_name_of_a_hub_is_told_from_a_path(tmp_path, monkeypatch, name, revision):
    monkeypatch.chdir(tmp_path)
    asked = f"{name}@{revision}" if revision else name
    assert HubName.of(asked) == HubName(name, revision)
    with pytest.raises(ModelError, match="no such folder, and not fetched yet"):
        Checkpoint.at(asked)
    settings = replace(Settings(), model=asked)
    assert settings.served_names == (name,)
    assert settings.model_name == name.split("/")[1]
    assert HubName.of(name + "/") is HubName.of("./" + name) is HubName.of(f"/{name}") is None


def test_a_folder_of_a_hubs_name_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "Qwen" / "Qwen3-0.6B")
    Checkpoint.at("Qwen/Qwen3-0.6B").check()
    settings = replace(Settings(), model="Qwen/Qwen3-0.6B")
    assert settings.engine_config().model == str(tmp_path / "Qwen" / "Qwen3-0.6B")
    refuse_unfit(settings)


@pytest.mark.parametrize("name", ["model.gguf", "qwen3-0.6b-q8_0.gguf", "Qwen3.GGUF", "odd"])
def test_a_gguf_file_is_told_from_a_folder(tmp_path, name):
    (tmp_path / name).write_bytes(b"GGUF\x03\x00\x00\x00")
    assert "a GGUF file, which llama.cpp reads" in refusal(tmp_path / name)


def test_another_file_is_told_from_its_folder(tmp_path):
    write_folder(tmp_path)
    for name in (SINGLE, "config.json"):
        assert "pass the directory it lies in" in refusal(tmp_path / name)


def in_a_cache(folder: Path) -> str:
    snapshot = folder / "snapshots" / "c1899de289a0"
    write_folder(snapshot)
    return f"pass {snapshot}"


def one_level_below(folder: Path) -> str:
    write_folder(folder / "inner")
    return f"pass {folder / 'inner'}"


def of_gguf(folder: Path) -> str:
    (folder / "q8.gguf").write_bytes(b"GGUF")
    return "q8.gguf, a GGUF file"


def of_pictures(folder: Path) -> str:
    (folder / "model_index.json").write_text("{}")
    return "makes pictures"


def of_nothing(folder: Path) -> str:
    return "--model takes a directory with config.json"


@pytest.mark.parametrize("fill", [in_a_cache, one_level_below, of_gguf, of_pictures, of_nothing])
def test_a_folder_without_config_json_says_what_it_is(tmp_path, fill):
    expected = fill(tmp_path)
    words = refusal(tmp_path)
    assert words.startswith(f"{tmp_path / 'config.json'}: ") and expected in words


def test_a_path_that_is_not_there_is_named(tmp_path):
    assert f"{tmp_path / 'none'}: no such model directory" in refusal(tmp_path / "none")


@pytest.mark.parametrize("base", ["Qwen/Qwen3-0.6B", None, 7])
@pytest.mark.parametrize("has_model", [False, True])
def test_an_adapter_is_refused_by_what_it_is(tmp_path, base, has_model):
    if has_model:
        write_folder(tmp_path)
    fields = {"peft_type": "LORA", "base_model_name_or_path": base}
    (tmp_path / "adapter_config.json").write_text(json.dumps(fields))
    words = refusal(tmp_path)
    assert words.startswith(f"{tmp_path / 'adapter_config.json'}: an adapter (LoRA)")
    assert "merge it into its base model" in words
    assert ("of Qwen/Qwen3-0.6B" in words) == (base == "Qwen/Qwen3-0.6B")


CACHE = "models--Qwen--Qwen3-0.6B/snapshots/c1899de289a0"


@pytest.mark.parametrize(
    ("model", "cwd", "expected"),
    [
        ("", "", "qwen-demo"),
        (".", "my-model", "my-model"),
        ("./", "my-model", "my-model"),
        ("./.", "my-model", "my-model"),
        ("..", "my-model/inner", "my-model"),
        ("../", "my-model/inner", "my-model"),
        ("my-model", "", "my-model"),
        ("my-model/", "", "my-model"),
        ("my-model/inner/..", "", "my-model"),
        (CACHE, "", "Qwen3-0.6B"),
        (f"{CACHE}/", "", "Qwen3-0.6B"),
        (".", CACHE, "Qwen3-0.6B"),
        ("models--gpt2/snapshots/607a30d783df", "", "gpt2"),
        ("other/snapshots/607a30d783df", "", "607a30d783df"),
        ("Qwen/Qwen3-0.6B", "", "Qwen3-0.6B"),
        ("/", "", "model"),
    ],
)
def test_a_model_has_the_name_of_its_folder(tmp_path, monkeypatch, model, cwd, expected):
    (tmp_path / cwd).mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(tmp_path / cwd)
    settings = replace(Settings(), model=model)
    assert settings.model_name == expected
    assert settings.served_names == (model if model == "Qwen/Qwen3-0.6B" else expected,)


def test_a_link_has_its_own_name(tmp_path):
    (tmp_path / "real").mkdir()
    os.symlink(tmp_path / "real", tmp_path / "link")
    assert replace(Settings(), model=str(tmp_path / "link")).model_name == "link"


def test_a_folder_of_links_into_a_cache_is_read(tmp_path):
    """As the hub's client lays a snapshot out."""
    whole, snapshot = write_folder(tmp_path / "whole"), tmp_path / CACHE
    blobs = snapshot.parent.parent / "blobs"
    snapshot.mkdir(parents=True), blobs.mkdir()
    for number, file in enumerate(whole.iterdir()):
        shutil.copy(file, blobs / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    Checkpoint.at(snapshot).check()
    (snapshot / SINGLE).unlink()
    (snapshot / SINGLE).symlink_to("../../blobs/gone")
    assert refusal(snapshot).startswith(f"{snapshot / SINGLE}: No such file")
    assert not (snapshot / INDEX).exists()
