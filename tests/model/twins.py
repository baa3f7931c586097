"""Packed checkpoints and their unpacked twins: how both are written, loaded and compared."""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from workers.checkpoint.checkpoint import Checkpoint
from workers.model.attention.attention import AttentionPlan, PrefillSpan
from workers.model.decoder import CacheShape, Decoder
from workers.model.layout.state_plan import SlotCopy, StatePlan, StateSpan
from workers.model.loader import load_config, load_weights

# As the makers of packed checkpoints leave out: routers, narrow projections, what is no linear.
NOT_PACKED = (
    "embed_tokens.weight",
    "lm_head.weight",
    "mlp.gate.weight",
    "shared_expert_gate.weight",
    "in_proj_a.weight",
    "in_proj_b.weight",
    "in_proj_ba.weight",
)


def write_twins(source: Path, folder: Path, packer) -> tuple[Path, Path]:
    """Write the model at `source` as `packer` packs it, and as plain weights of the same values."""
    rng = np.random.default_rng(4)
    packed, plain = folder / "packed", folder / "plain"
    for path in (packed, plain):
        shutil.copytree(source, path)
    whole = load_file(plain / "model.safetensors")
    parts = {}
    for key, tensor in list(whole.items()):
        if tensor.dim() != 2 or key.endswith(NOT_PACKED) or "visual." in key:
            parts[key] = tensor
            continue
        tensors, exact = packer.linear(tensor.numpy(), rng)
        whole[key] = torch.from_numpy(np.ascontiguousarray(exact))
        parts |= {f"{key.removesuffix('weight')}{k}": v for k, v in tensors.items()}
    assert len(parts) > len(whole)
    save_file(whole, plain / "model.safetensors")
    save_file(parts, packed / "model.safetensors")
    change(packed, quantization_config=packer.config | packer.more)
    return packed, plain


def check_twins(packed: Path, plain: Path, drive, prompts) -> None:
    """Compare the weights of both to the bit, and what they answer."""
    for dtype in (torch.bfloat16, torch.float32):
        one, other = load(packed, dtype), load(plain, dtype)
        theirs = other.state_dict()
        assert one.state_dict().keys() == theirs.keys()
        for key, tensor in one.state_dict().items():
            assert tensor.dtype == dtype and torch.equal(tensor, theirs[key]), key
    ids = torch.tensor(prompts(1))
    assert torch.equal(one(ids).logits, other(ids).logits)
    answers = []
    for path in (packed, plain):
        driver = drive(path, threads=1, attention_backend="torch")  # which keeps nothing packed
        for key, prompt in enumerate(prompts(3)):
            driver.add(key, prompt)
        answers.append([driver.run().tokens(key) for key in range(3)])
    assert answers[0] == answers[1] and all(len(answer) == 16 for answer in answers[0])


def change(path, **changes):
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def change_tensors(path, **changes):
    """Replace tensors by name, dots written as two underscores; None takes one away."""
    file = path / "model.safetensors"
    tensors = load_file(file)
    for name, new in changes.items():
        name = name.replace("__", ".")
        old = tensors.pop(name, None)
        if new is not None:
            tensors[name] = new(old).contiguous() if callable(new) else new
    save_file(tensors, file)


def load(path, dtype=torch.float32, progress=lambda stage, fraction: None, **more):
    checkpoint = Checkpoint.at(path)
    config = load_config(checkpoint)
    return load_weights(checkpoint, config, dtype, torch.device("cpu"), progress, **more)


def logits_of(model, token_ids):
    """Return the logits of all tokens of one prompt, computed by a Decoder, which takes the model
    apart.
    """
    decoder, num_tokens = Decoder(model), len(token_ids)
    decoder.allocate_cache(CacheShape.of(model.config, torch.float32), 2, num_tokens, num_slots=2)
    positions = torch.arange(num_tokens)
    slots, block = positions + num_tokens, slice(num_tokens, 2 * num_tokens)
    plan = AttentionPlan(slots, (), (PrefillSpan(0, num_tokens, block, num_tokens),))
    states = StatePlan((SlotCopy(None, 1),), None, (), (), (StateSpan(0, num_tokens, slot=1),))
    return decoder.forward(torch.tensor(token_ids), positions, plan, positions, states)
