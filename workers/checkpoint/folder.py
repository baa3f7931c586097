"""Find a model folder, or say what else the path is that --model names.

Each refusal is one sentence that says what it is and what to do.
"""

import os
from pathlib import Path

from workers.checkpoint.files import read_json
from workers.checkpoint.hub_name import HubName
from workers.errors import ModelError

_SNAPSHOTS = "snapshots"
_CACHED = "models--"


def model_name(path: str | Path) -> str:
    """Return a model's short name: its folder's own, of a Hugging Face cache or a hub the
    repository's (`models--Qwen--Qwen3-0.6B/snapshots/<hash>` is `Qwen3-0.6B`).
    """
    name = HubName.of(str(path))
    if name is not None:
        return name.repo.split("/")[1]
    folder = Path(os.path.abspath(path))
    cached = folder.parent.parent.name
    if folder.parent.name == _SNAPSHOTS and cached.startswith(_CACHED):
        return cached.split("--")[-1]
    return folder.name or "model"


def find_folder(path: str | Path) -> Path:
    """Return the absolute path of a model folder; raise ModelError saying what it is instead."""
    if HubName.of(str(path)) is not None:
        raise ModelError(f"{path}: no such folder, and not fetched yet; a start fetches it")
    folder = Path(os.path.abspath(path))
    if folder.is_file():
        raise ModelError(f"{folder}: {_file_kind(folder)}")
    if not folder.is_dir():
        raise ModelError(
            f"{folder}: no such model directory; --model takes a directory with config.json"
        )
    adapter = folder / "adapter_config.json"
    if adapter.exists():
        raise ModelError(f"{adapter}: {_adapter_kind(adapter)}")
    config = folder / "config.json"
    if not os.path.lexists(config):
        raise ModelError(f"{config}: {_without_config(folder)}")
    return folder


def _file_kind(file: Path) -> str:
    with file.open("rb") as stream:
        is_gguf = stream.read(4) == b"GGUF" or file.suffix == ".gguf"
    if is_gguf:
        return "a GGUF file, which llama.cpp reads; pass a directory of *.safetensors instead"
    return "a file, not a model directory; pass the directory it lies in"


def _adapter_kind(adapter: Path) -> str:
    base = read_json(adapter).get("base_model_name_or_path")
    of = f" of {base}" if isinstance(base, str) and base else ""
    return (
        f"an adapter (LoRA){of}, and adapters are not applied; merge it into its base model (peft:"
        " merge_and_unload) and pass the merged directory"
    )


def _without_config(folder: Path) -> str:
    """Return what a folder without config.json seems to be, and what to do."""
    snapshots = sorted((folder / _SNAPSHOTS).glob("*/config.json"))
    if snapshots:
        return f"not there, this is a folder of a hub's cache; pass {snapshots[-1].parent}"
    if inner := sorted(folder.glob("*/config.json")):
        return f"not there, but one level below; pass {inner[0].parent}"
    if found := sorted(folder.glob("*.gguf")):
        return (
            f"not there, but {found[0].name}, a GGUF file, which llama.cpp reads; pass a directory"
            " of *.safetensors instead"
        )
    if (folder / "model_index.json").exists():
        return "not there: a pipeline that makes pictures, not text; pass a language model"
    return "No such file or directory; --model takes a directory with config.json"
