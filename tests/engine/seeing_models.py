"""Tiny random models that see, pictures for them, and their comparison with transformers."""

import hashlib
import json
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer, models
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5MoeConfig,
    Qwen3_5MoeForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tests.engine.conftest import DIMENSIONS, EOS, HYBRID, MIXTURE, disturb_norms, enlarge_weights
from tests.engine.test_parity import Comparison
from workers.wire.protocol import Image

START, PAD, END, VIDEO = 300, 301, 302, 303
PATCH, SIDE = 4, 8
PROCESSOR = {
    "patch_size": PATCH,
    "merge_size": 2,
    "temporal_patch_size": 2,
    "size": {"shortest_edge": SIDE * SIDE, "longest_edge": 400 * SIDE * SIDE},
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.5, 0.6, 0.7],
}
TOWER = {
    "depth": 3,
    "hidden_size": 32,
    "num_heads": 2,
    "intermediate_size": 48,
    "out_hidden_size": 64,
    "patch_size": PATCH,
    "num_position_embeddings": 16,
}
QWEN3_TOWER = TOWER | {"deepstack_visual_indexes": [0, 1]}
QWEN2_TOWER = {k: v for k, v in TOWER.items() if k != "num_position_embeddings"} | {
    "window_size": 16,
    "fullatt_block_indexes": [1],
}
SECTIONS = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]}
SEEING = {
    "qwen3_vl": (Qwen3VLForConditionalGeneration, Qwen3VLConfig, {}, QWEN3_TOWER, SECTIONS),
    "qwen3_vl_moe": (
        Qwen3VLMoeForConditionalGeneration,
        Qwen3VLMoeConfig,
        {"moe_intermediate_size": 48, "num_experts": 8, "num_experts_per_tok": 2},
        QWEN3_TOWER,
        SECTIONS,
    ),
    "qwen2_5_vl": (
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLConfig,
        {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": None},
        QWEN2_TOWER,
        SECTIONS,
    ),
    "qwen3_5": (
        Qwen3_5ForConditionalGeneration,
        Qwen3_5Config,
        HYBRID,
        TOWER,
        SECTIONS | {"partial_rotary_factor": 0.5, "mrope_section": [4, 2, 2]},
    ),
    "qwen3_5_moe": (
        Qwen3_5MoeForConditionalGeneration,
        Qwen3_5MoeConfig,
        HYBRID | MIXTURE | {"intermediate_size": None},
        TOWER,
        SECTIONS | {"partial_rotary_factor": 0.5, "mrope_section": [4, 2, 2]},
    ),
}


def write_seeing(path, name, tokens=(START, PAD, END, VIDEO), **changes):
    """Write a model that sees, whose tower is strong enough that answers depend on it."""
    start, pad, end, video = tokens
    model_class, config_class, own, tower, rope = SEEING[name]
    fields = DIMENSIONS | own | {"rope_parameters": rope} | changes
    torch.manual_seed(21)
    config = config_class(
        text_config={k: v for k, v in fields.items() if v is not None},
        vision_config=tower,
        image_token_id=pad,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    model = model_class(config).eval()
    if "qwen3_5" in name:
        disturb_norms(model)
    else:
        model.config.hidden_size = 64
        enlarge_weights(model)
    for parameter in model.model.visual.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(path)
    (path / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [EOS, 3]}))
    Tokenizer(models.BPE()).save(str(path / "tokenizer.json"))
    return model


@dataclass(frozen=True)
class Picture:
    """Random pixels of so many tokens high and wide."""

    seed: int
    rows: int
    columns: int

    @property
    def array(self) -> np.ndarray:
        shape = (self.rows * SIDE, self.columns * SIDE, 3)
        return np.random.default_rng(self.seed).integers(0, 256, shape, dtype=np.uint8)

    def at(self, position: int) -> Image:
        pixels = self.array.tobytes()
        name = f"{self.rows} {self.columns} ".encode() + pixels
        digest = hashlib.sha256(name).digest()
        return Image(position, self.rows, self.columns, digest, pixels)


class Prompt:
    """Token ids with pictures among them."""

    def __init__(self, *parts) -> None:
        self.ids: list[int] = []
        images: list[Image] = []
        self.pictures = [part for part in parts if isinstance(part, Picture)]
        for part in parts:
            if isinstance(part, Picture):
                self.ids.append(START)
                images.append(part.at(len(self.ids)))
                self.ids += [PAD] * part.rows * part.columns
                self.ids.append(END)
            else:
                self.ids += part
        self.images = tuple(images)

    def inputs(self, model, ids) -> dict[str, torch.Tensor]:
        """Return what transformers computes of this, given tokens that may go on behind it."""
        inputs = {"input_ids": torch.tensor([ids])}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        if self.pictures:
            arrays = [picture.array for picture in self.pictures]
            seen = Qwen2VLImageProcessorPil(**PROCESSOR)(arrays, return_tensors="pt")
            inputs |= {name: seen[name] for name in ("pixel_values", "image_grid_thw")}
            inputs["mm_token_type_ids"] = (inputs["input_ids"] == PAD).int()
        return inputs


class SeeingComparison(Comparison):
    """Of prompts with pictures."""

    def ids(self, prompt: Prompt) -> list[int]:
        return prompt.ids

    def inputs(self, prompt: Prompt, ids: list[int]) -> dict[str, torch.Tensor]:
        self.model.model.rope_deltas = None
        return prompt.inputs(self.model, ids)
