"""Writes model folders of zeros, without torch: config.json, tokenizer and weights of tiny models.

They share no code with what reads them but the names of `Architecture.shapes`, which a test
compares with those of transformers.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from qwenapi.settings.table import etc_dir
from workers.checkpoint.architectures import ARCHITECTURES
from workers.checkpoint.checkpoint import Checkpoint

DEMO = etc_dir() / "models" / "demo"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
LFS_POINTER = (
    b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 4902257696\n"
)

DIMENSIONS: dict[str, Any] = {
    "vocab_size": 3000,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "hidden_act": "silu",
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "eos_token_id": 2993,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "qwen2": DIMENSIONS | {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]},
    "qwen3": DIMENSIONS | {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]},
    "qwen3_moe": DIMENSIONS
    | {
        "model_type": "qwen3_moe",
        "architectures": ["Qwen3MoeForCausalLM"],
        "moe_intermediate_size": 16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
    },
}


def write_folder(folder: Path, name: str = "qwen3", **changes: Any) -> Path:
    """Write a folder that can be served; None takes a field of config.json away."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {k: v for k, v in (CONFIGS[name] | changes).items() if v is not None}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 2993}))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / file, folder)
    checkpoint = Checkpoint.at(folder)
    shapes = dict(ARCHITECTURES[checkpoint.architecture].shapes(checkpoint.config))
    if checkpoint.config.tie_word_embeddings:
        del shapes["lm_head.weight"]
    save_file(
        {name: np.zeros(shape, np.float16) for name, shape in shapes.items()}, folder / SINGLE
    )
    return folder


def change(file: Path, **changes: Any) -> None:
    """Change fields of a JSON file; None takes one away."""
    fields = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in fields.items() if v is not None}))


def change_tensors(folder: Path, rename: Any = None, **changes: Any) -> None:
    """Replace tensors by name, dots written as two underscores; None takes one away."""
    tensors = load_file(folder / SINGLE)
    for name, new in changes.items():
        name = name.replace("__", ".")
        tensors.pop(name, None)
        if new is not None:
            tensors[name] = new
    if rename is not None:
        tensors = {rename(name): tensor for name, tensor in tensors.items()}
    save_file(tensors, folder / SINGLE)


def shard(folder: Path, *, keep_single: bool = False) -> None:
    """Cut the single file in two, as an index names them."""
    tensors = load_file(folder / SINGLE)
    if not keep_single:
        (folder / SINGLE).unlink()
    weight_map = {}
    for number in range(2):
        file = f"model-0000{number + 1}-of-00002.safetensors"
        mine = dict(list(tensors.items())[number::2])
        save_file(mine, folder / file)
        weight_map |= dict.fromkeys(mine, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
