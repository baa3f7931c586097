"""What the doctor passes the engine loads, and what one refuses the other does, in the same words.

Folders are of zeros, a sentence each; what a right answer is, tests/engine and tests/model say.
"""

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from qwenapi.doctor.report import refuse_unfit
from qwenapi.settings.table import Settings
from tests.checkpoint.folders import (
    INDEX,
    LFS_POINTER,
    SINGLE,
    change,
    change_tensors,
    shard,
    write_folder,
)
from workers.checkpoint.checkpoint import Checkpoint
from workers.errors import ConfigError
from workers.model.loader import load_config, load_weights

HALF = np.float16
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 16, "version": "gemm", "zero_point": True}
YARN = {"rope_type": "yarn", "factor": 4.0}


def config(**changes):
    return lambda folder: change(folder / "config.json", **changes)


def tensors(**changes):
    return lambda folder: change_tensors(folder, **changes)


def renamed(prefix: str):
    return lambda folder: change_tensors(
        folder, rename=lambda name: prefix + name.removeprefix("model.")
    )


def stray(content: bytes):
    def write(folder: Path) -> None:
        shard(folder, keep_single=True)
        (folder / SINGLE).write_bytes(content)

    return write


def adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


def packed_norm(folder: Path) -> None:
    change(folder / "config.json", quantization_config=AWQ)
    change_tensors(folder, model__norm__qweight=np.zeros((8, 8), np.int32))


LAYER = "model__layers__1"
EXPERT, SQUARE = f"{LAYER}__mlp__experts__2", np.zeros((4, 4), HALF)
CASES = {
    # What both take.
    "whole": ("qwen3", lambda folder: None),
    "whole qwen2": ("qwen2", lambda folder: None),
    "whole experts": ("qwen3_moe", lambda folder: None),
    "shards": ("qwen3", shard),
    "shards beside a pointer": ("qwen3", stray(LFS_POINTER)),
    "shards beside nothing": ("qwen2", stray(b"")),
    "names without prefix": ("qwen3", renamed("")),
    "experts without prefix": ("qwen3_moe", renamed("")),
    "drafting layers": ("qwen3", tensors(mtp__fc__weight=np.zeros((4, 4), HALF))),
    "a tower": ("qwen3", tensors(visual__patch_embed__proj__weight=np.zeros((4, 4), HALF))),
    "old tables": ("qwen2", tensors(**{f"{LAYER}__self_attn__rotary_emb__inv_freq": np.ones(8)})),
    "no head_dim": ("qwen3_moe", config(head_dim=16)),
    "null kv heads": ("qwen2", config(num_key_value_heads=2, head_dim=16)),
    "windows that are off": ("qwen3", config(use_sliding_window=False, sliding_window=64)),
    "windows beyond the layers": ("qwen2", config(use_sliding_window=True, max_window_layers=9)),
    "windows": ("qwen3", config(use_sliding_window=True, sliding_window=64, max_window_layers=1)),
    "windows of experts": ("qwen3_moe", config(use_sliding_window=True)),
    "yarn": ("qwen3", config(rope_scaling=YARN | {"attn_factor": 0.9, "finetuned": True})),
    "linear": ("qwen3", config(rope_scaling={"type": "linear", "factor": 2})),
    "all plain though packed": ("qwen3", config(quantization_config=AWQ)),
    "odd fields": (
        "qwen3",
        config(id2label="x", pad_token_id=-7, use_cache="yes", initializer_range=None, auto_map={}),
    ),
    # What both refuse.
    "windows that are nothing": ("qwen3", config(use_sliding_window=True, sliding_window=0,
        max_window_layers=1)),
    "windows of some experts": ("qwen3_moe", config(use_sliding_window=True,
        layer_types=["full_attention", "sliding_attention"])),
    "windows by layer": ("qwen2", config(layer_types=["full_attention", "sliding_attention"])),
    "dynamic rope": ("qwen3", config(rope_scaling={"type": "dynamic", "factor": 2.0})),
    "rope without a factor": ("qwen3", config(rope_scaling={"rope_type": "linear"})),
    "rope by layer": ("qwen3", config(rope_parameters={"full_attention": {"rope_type": "yarn"}})),
    "GPTQ of 3 bits": ("qwen3", config(quantization_config={"quant_method": "gptq", "bits": 3})),
    "FP8 of another type": (
        "qwen3_moe",
        config(quantization_config={"quant_method": "fp8", "fmt": "e5m2"}),
    ),
    "NVFP4": ("qwen2", config(quantization_config={"quant_method": "modelopt"})),
    "a packed norm": ("qwen3", packed_norm),
    "an unknown model_type": ("qwen3", config(model_type="qwen9")),
    "another model_type": ("qwen3", config(model_type="qwen2")),
    "another activation": ("qwen3", config(hidden_act="gelu")),
    "q_norm missing": ("qwen3", tensors(**{f"{LAYER}__self_attn__q_norm__weight": None})),
    "q_norm misshapen": (
        "qwen3",
        tensors(**{f"{LAYER}__self_attn__q_norm__weight": np.zeros(8, HALF)}),
    ),
    "bias missing": ("qwen2", tensors(**{f"{LAYER}__self_attn__v_proj__bias": None})),
    "bias too many": ("qwen3", tensors(**{f"{LAYER}__self_attn__v_proj__bias": np.ones(32, HALF)})),
    "expert missing": ("qwen3_moe", tensors(**{f"{EXPERT}__up_proj__weight": None})),
    "router missing": ("qwen3_moe", tensors(**{f"{LAYER}__mlp__gate__weight": None})),
    "experts too many": ("qwen3_moe", config(num_experts=3)),
    "layers too many": ("qwen3", config(num_hidden_layers=1)),
    "of another type": ("qwen3", tensors(model__norm__weight=np.zeros(32, np.int32))),
    "LoRA": ("qwen3", tensors(**{f"{LAYER}__mlp__up_proj__lora_A__weight": SQUARE})),
    "an adapter beside": ("qwen3", adapter),
    "a strange name": ("qwen2", tensors(v_head__weight=np.zeros((1, 32), HALF))),
    "another spelling": ("qwen2", renamed("transformer.")),
    "no embeddings": ("qwen3", tensors(model__embed_tokens__weight=None)),
    "no head": ("qwen3", tensors(lm_head__weight=None)),
    "a pointer": ("qwen3", lambda folder: (folder / SINGLE).write_bytes(LFS_POINTER)),
    "a shard too few": ("qwen3", lambda folder: (folder / INDEX).write_text(
        json.dumps({"weight_map": {"a": "model-7.safetensors"}}))),
    "an end that is no token": ("qwen3", config(eos_token_id=9999)),
    "a penalty of 0": ("qwen3", lambda folder: (folder / "generation_config.json").write_text(
        '{"repetition_penalty": 0}')),
}  # fmt: skip
REFUSED_FROM = list(CASES).index("windows that are nothing")
MUST_REFUSE_WITHIN = 2.0


def load(folder: Path):
    checkpoint = Checkpoint.at(folder)
    checkpoint.check()
    config = load_config(checkpoint)
    return load_weights(checkpoint, config, torch.float32, torch.device("cpu"), lambda *_: None)


@pytest.mark.parametrize("case", CASES)
def test_doctor_and_engine_agree(tmp_path, monkeypatch, case):
    name, damage = CASES[case]
    folder = write_folder(tmp_path / "model", name)
    damage(folder)
    settings = replace(Settings(), model=str(folder), num_blocks=20)
    if list(CASES).index(case) < REFUSED_FROM:
        refuse_unfit(settings)
        assert sum(p.numel() for p in load(folder).parameters()) > 0
        return
    started = time.process_time()
    with pytest.raises(ConfigError) as doctors:
        refuse_unfit(settings)
    assert time.process_time() - started < MUST_REFUSE_WITHIN
    monkeypatch.setattr("workers.model.loader.open_source", None)  # nothing is read to refuse it
    with pytest.raises(ConfigError) as engines:
        load(folder)
    assert str(doctors.value) == str(engines.value) and "; " in str(engines.value)
    assert doctors.value.exit_code == engines.value.exit_code == 78
