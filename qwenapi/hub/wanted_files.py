"""Which files of a repository are fetched: what is read, and of the weights safetensors alone.

Two lots: the small files, from which it is told whether the model can be served at all, and then
the weights. Never code, pickles, GGUF or what lies in folders.
"""

import shutil
from collections.abc import Collection
from pathlib import Path

from qwenapi.hub.fetch_progress import size_text
from workers.checkpoint.checkpoint import Checkpoint
from workers.checkpoint.hub_name import HubName
from workers.checkpoint.task import MODULES
from workers.checkpoint.weights import INDEX, SINGLE, named_by_index
from workers.errors import ConfigError, ModelError

SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    MODULES,
    INDEX,
)
# Of a disk, what is left free beside a model.
_SPARE_BYTES = 100_000_000
_OTHER_WEIGHTS = {
    ".gguf": "GGUF files, which llama.cpp reads",
    ".bin": "PyTorch pickles, which may run code",
    ".pth": "PyTorch pickles, which may run code",
}


def refuse_unfit_listing(name: HubName, listed: Collection[str]) -> None:
    """Raise ModelError if a repository's files are no model's that can be served."""
    if "adapter_config.json" in listed:
        raise ModelError(
            f"{name}: an adapter (LoRA), and adapters are not applied; merge it into its base model"
            " (peft: merge_and_unload) and pass the merged directory"
        )
    has_weights = any(_is_top(file, ".safetensors") for file in listed)
    if "config.json" in listed and has_weights:
        return
    missing = "*.safetensors files" if "config.json" in listed else "config.json"
    others = [what for end, what in _OTHER_WEIGHTS.items() if any(f.endswith(end) for f in listed)]
    there = f", but {others[0]}" if others else ""
    raise ModelError(f"{name}: the repository has no {missing}{there}; choose another model")


def weight_files(checkpoint: Checkpoint, listed: Collection[str]) -> list[str]:
    """Return the weights to fetch, by the index if there is one; raise ModelError for a wrong
    config.json, or for files that the index names and the repository lacks.
    """
    _ = checkpoint.config, checkpoint.quantization  # reading is what refuses
    index = checkpoint.directory / INDEX
    if index.exists():
        wanted = sorted(set(named_by_index(index).values()))
    elif SINGLE in listed:
        wanted = [SINGLE]
    else:
        wanted = sorted(file for file in listed if _is_top(file, ".safetensors"))
    if lacking := [file for file in wanted if file not in listed]:
        raise ModelError(f"{index}: names {lacking[0]}, which is not there; choose another model")
    return wanted


def refuse_without_room(name: HubName, folder: Path, num_bytes: int, variable: str) -> None:
    """Raise ConfigError if a disk has no room; `variable` says which folder is meant."""
    place = next(there for there in (folder, *folder.parents) if there.exists())
    free = shutil.disk_usage(place).free
    if free < num_bytes + _SPARE_BYTES:
        raise ConfigError(
            f"{name}: {size_text(num_bytes)} are to be fetched, but {size_text(free)} are free in"
            f" {place}; make room, or set {variable} to a folder on a larger disk"
        )


def _is_top(file: str, end: str) -> bool:
    return "/" not in file and file.endswith(end)
