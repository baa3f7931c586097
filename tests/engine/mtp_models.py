"""Tiny hybrid checkpoints with a layer for multi-token prediction, and what it should draft.

The reference is made of transformers' own modules, wired as vLLM wires them, a whole text at a
time and without a cache. It shares no code with the server.
"""

import json
from copy import copy
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5DecoderLayer, Qwen3_5RMSNorm
from transformers.models.qwen3_5_moe.modeling_qwen3_5_moe import (
    Qwen3_5MoeDecoderLayer,
    Qwen3_5MoeRMSNorm,
)
from transformers.models.qwen3_next.modeling_qwen3_next import (
    Qwen3NextDecoderLayer,
    Qwen3NextRMSNorm,
)

from tests.engine.conftest import write_model

CLASSES = {
    "qwen3_next": (Qwen3NextDecoderLayer, Qwen3NextRMSNorm),
    "qwen3_5": (Qwen3_5DecoderLayer, Qwen3_5RMSNorm),
    "qwen3_5_moe": (Qwen3_5MoeDecoderLayer, Qwen3_5MoeRMSNorm),
}
SINGLE, OWN, INDEX = "model.safetensors", "mtp.safetensors", "model.safetensors.index.json"


class Reference(torch.nn.Module):
    """The layer's modules, by their names in checkpoints, beside the model they belong to."""

    def __init__(self, model: PreTrainedModel, name: str) -> None:
        super().__init__()
        layer_class, norm_class = CLASSES[name]
        config = copy(model.config)
        config.num_hidden_layers, config.layer_types = 1, ["full_attention"]
        width = config.hidden_size
        self.fc = torch.nn.Linear(2 * width, width, bias=False)
        self.pre_fc_norm_embedding = norm_class(width, config.rms_norm_eps)
        self.pre_fc_norm_hidden = norm_class(width, config.rms_norm_eps)
        self.layers = torch.nn.ModuleList([layer_class(config, 0)])
        self.norm = norm_class(width, config.rms_norm_eps)
        self._models = [model]  # in a list, so that its weights are not this module's
        for parameter in self.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def logits(self, tokens: list[int], drafts: tuple[int, ...]) -> list[torch.Tensor]:
        """Return what each draft behind a text is chosen by, given those before it."""
        [model] = self._models
        hidden = model.model(torch.tensor([tokens])).last_hidden_state[:, :-1]
        shifted, found = tokens[1:], []
        for draft in drafts:
            output = self._layer(torch.tensor([shifted]), hidden)
            found.append(model.lm_head(output[0, -1]))
            hidden = torch.cat((hidden, output[:, -1:]), 1)
            shifted = [*shifted, draft]
        return found

    def _layer(self, ids: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Return the output for each token, given the hidden state before it."""
        [model] = self._models
        embedded = self.pre_fc_norm_embedding(model.model.embed_tokens(ids))
        x = self.fc(torch.cat((embedded, self.pre_fc_norm_hidden(hidden)), -1))
        places = torch.arange(ids.shape[1])[None]
        future = torch.full((1, 1, ids.shape[1], ids.shape[1]), float("-inf")).triu(1)
        angles = model.model.rotary_emb(x, places)
        x = self.layers[0](x, position_embeddings=angles, attention_mask=future)
        return self.norm(x[0] if isinstance(x, tuple) else x)


class MtpModel(NamedTuple):
    path: Path
    reference: Reference


def write_random(path: Path, name: str, **changes: object) -> MtpModel:
    """Write a model whose drafting layer knows nothing of it."""
    model = write_model(path, name, **changes)
    return _write(path, name, Reference(model, name))


def write_predictable(path: Path, name: str, **changes: object) -> MtpModel:
    """Write a model that mostly counts upwards, as its drafting layer does by the embedding."""
    model = write_model(path, name, tie_word_embeddings=False, **changes)
    with torch.no_grad():
        model.lm_head.weight.copy_(model.model.embed_tokens.weight.roll(1, 0))
        reference = Reference(model, name)
        _weaken(model.model)
        _weaken(reference)
        for part, parameter in reference.named_parameters():
            if "norm" in part:
                parameter.zero_()
        width = model.config.hidden_size
        reference.fc.weight.copy_(torch.cat((torch.eye(width), torch.zeros(width, width)), 1))
    model.save_pretrained(path)
    return _write(path, name, reference)


def published(reference: Reference, *, fused: bool = False) -> dict[str, torch.Tensor]:
    """Return the layer's tensors by their published names, experts one by one unless `fused`."""
    tensors = {}
    for name, tensor in reference.state_dict().items():
        stem, _, kind = f"mtp.{name}".rpartition(".")
        if fused or kind not in ("gate_up_proj", "down_proj"):
            tensors[f"mtp.{name}"] = tensor.clone()
            continue
        for expert, weight in enumerate(tensor):
            parts = {"down_proj": weight}
            if kind == "gate_up_proj":
                gate, up = weight.chunk(2)
                parts = {"gate_proj": gate, "up_proj": up}
            for part, one in parts.items():
                tensors[f"{stem}.{expert}.{part}.weight"] = one.clone()
    return tensors


def write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Put tensors beside a model's in a shard of their own."""
    save_file(tensors, path / OWN)
    places = dict.fromkeys(load_file(path / SINGLE), SINGLE) | dict.fromkeys(tensors, OWN)
    (path / INDEX).write_text(json.dumps({"weight_map": places}))


def _write(path: Path, name: str, reference: Reference) -> MtpModel:
    write_tensors(path, published(reference, fused=name == "qwen3_5_moe"))
    return MtpModel(path, reference)


def _weaken(module: torch.nn.Module) -> None:
    """Let what layers add be little beside what they are given."""
    for name, parameter in module.named_parameters():
        if name.endswith(("o_proj.weight", "out_proj.weight", "down_proj", "down_proj.weight")):
            parameter.mul_(0.1)
