"""Rebuild the demo model from nothing: `python etc/models/demo/train.py`.

Writes tokenizer, configuration and weights beside this file, or to --out, and prints the held-out
score. Seeded. Takes under an hour on 2 cores, minutes on a GPU.
"""

import argparse
import math
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random
from typing import NamedTuple

import torch
from rich.progress import Progress
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

sys.path.insert(0, str(Path(__file__).parent))

from data.mixture import examples  # noqa: E402
from data.overlap import heldout_grams  # noqa: E402
from evaluate import print_scores  # noqa: E402
from tokens import CONTEXT, END, PAD, Encoded, Encoder, write_tokenizer  # noqa: E402

HERE = Path(__file__).parent
SEED = 20250101
STEPS = 4500
BATCH_TOKENS = 4096
_TOKENIZER_EXAMPLES = 30_000
_SORTED_EXAMPLES = 640
_SHARE_ROUGH = 0.3
_LEARNING_RATE = 3e-3
_WARMUP, _DECAY = 0.02, 0.55


class Batch(NamedTuple):
    """Rows padded at the end; weights are zero where nothing is learned."""

    ids: torch.Tensor
    weights: torch.Tensor


def main() -> None:
    options = _options()
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    torch.set_num_threads(options.threads)
    heldout = heldout_grams(HERE / "heldout")
    texts = islice(examples(SEED, heldout), _TOKENIZER_EXAMPLES)
    write_tokenizer(("".join(p.text for p in example.pieces) for example in texts), out)
    model = Qwen3ForCausalLM(write_config(out)).to(options.device)
    train(model, batches(out), options.steps, options.minutes, out)
    write_weights(model, out)
    print_scores(out, HERE / "heldout")


def batches(directory: Path) -> Iterator[Batch]:
    """Yield batches of about BATCH_TOKENS tokens whose rows are of similar length."""
    encoder, rng = Encoder(directory), Random(SEED)
    stream = examples(SEED + 1, heldout_grams(HERE / "heldout"))
    while True:
        rows = [
            encoder.encode(example.pieces, rng.random() < _SHARE_ROUGH)
            for example in islice(stream, _SORTED_EXAMPLES)
        ]
        groups = list(_groups(sorted(rows, key=len)))
        rng.shuffle(groups)
        yield from map(_padded, groups)


def train(
    model: Qwen3ForCausalLM, stream: Iterator[Batch], steps: int, minutes: float, out: Path
) -> None:
    """Learn for some steps, or for some minutes if given; save on the way now and then."""
    optimizers = _optimizers(model)
    started, share, step = time.monotonic(), 0.0, 0
    with Progress() as progress:
        task = progress.add_task("training", total=1.0)
        while share < 1.0:
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = _LEARNING_RATE * _pace(share)
            loss = _step(model, next(stream), optimizers)
            step += 1
            elapsed = time.monotonic() - started
            share = elapsed / (60 * minutes) if minutes else step / steps
            progress.update(task, completed=share, description=f"loss {loss:.3f}")
            if step % 50 == 0:
                print(f"step {step} loss {loss:.4f} {elapsed:.0f} s {share:.3f}", flush=True)
            if step % 300 == 0:
                write_weights(model, out)
    print(f"{step} steps in {time.monotonic() - started:.0f} s", flush=True)


def write_config(directory: Path) -> Qwen3Config:
    """Write config.json and generation_config.json."""
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    end, pad = tokenizer.token_to_id(END), tokenizer.token_to_id(PAD)
    config = Qwen3Config(
        architectures=["Qwen3ForCausalLM"],
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        eos_token_id=end,
        pad_token_id=pad,
        dtype="bfloat16",
    )
    config.save_pretrained(directory)
    GenerationConfig(
        eos_token_id=[end, pad],
        pad_token_id=pad,
        do_sample=True,
        temperature=0.7,
        top_k=20,
        top_p=0.8,
    ).save_pretrained(directory)
    config.dtype = torch.float32
    config._attn_implementation = "eager"  # its backward is the faster one on a CPU
    return config


def write_weights(model: Qwen3ForCausalLM, directory: Path) -> None:
    """Write the weights as bfloat16; the output layer is the embedding and is left out."""
    weights = {
        name: parameter.detach().to("cpu", torch.bfloat16).contiguous()
        for name, parameter in sorted(model.named_parameters())
        if name != "lm_head.weight"
    }
    file = directory / "model.safetensors"
    save_file(weights, file, metadata={"format": "pt"})
    file.chmod(0o644)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE, help="where to write (default: here)")
    parser.add_argument("--steps", type=int, default=STEPS, help="training steps")
    parser.add_argument("--minutes", type=float, default=0.0, help="train so long instead")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=device, help="cpu or cuda")
    return parser.parse_args()


def _groups(rows: list[Encoded]) -> Iterator[list[Encoded]]:
    group: list[Encoded] = []
    for row in rows:
        if group and len(row) * (len(group) + 1) > BATCH_TOKENS:
            yield group
            group = []
        group.append(row)
    yield group


def _padded(rows: list[Encoded]) -> Batch:
    width = max(map(len, rows))
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    weights = torch.zeros(len(rows), width)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row.ids)
        weights[index, : len(row)] = torch.tensor(row.weights)
    return Batch(ids, weights)


def _optimizers(model: Qwen3ForCausalLM) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices of the layers and AdamW for the rest."""
    matrices = [p for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n]
    chosen = set(map(id, matrices))
    others = [p for p in model.parameters() if id(p) not in chosen]
    muon = torch.optim.Muon(
        matrices, lr=_LEARNING_RATE, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"
    )
    adam = torch.optim.AdamW(others, lr=_LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.0)
    return [muon, adam]


def _pace(share: float) -> float:
    """Return the part of the learning rate: a short rise, a plateau, a long fall to zero."""
    if share < _WARMUP:
        return max(share / _WARMUP, 0.01)
    if share < _DECAY:
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * min((share - _DECAY) / (1 - _DECAY), 1.0)))


def _step(model: Qwen3ForCausalLM, batch: Batch, optimizers: list[torch.optim.Optimizer]) -> float:
    """Learn from one batch: the logits are computed only where something is learned."""
    device = model.device
    ids, weights = batch.ids.to(device), batch.weights.to(device)
    learned = weights[:, 1:] > 0
    with torch.autocast(device.type, torch.bfloat16):
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
        logits = model.lm_head(hidden[:, :-1][learned])
    losses = torch.nn.functional.cross_entropy(
        logits.float(), ids[:, 1:][learned], reduction="none"
    )
    scale = weights[:, 1:][learned]
    loss = (losses * scale).sum() / scale.sum()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return loss.item()


if __name__ == "__main__":
    main()
