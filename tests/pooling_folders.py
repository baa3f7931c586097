"""Folders of tiny random models as Qwen3-Embedding and Qwen3-Reranker are published.

Their tokenizer is the demo model's with a `yes` and a `no`; of embeddings it ends every text.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3ForSequenceClassification

from qwenapi.settings.table import etc_dir

DEMO = etc_dir() / "models" / "demo"
END = "<|endoftext|>"
MODULES = {
    "embed": ["models.Transformer", "models.Pooling", "models.Normalize"],
    "rerank": ["base.modules.Transformer", "cross_encoder.modules.LogitScore"],
}
HIDDEN = 64
VOCABULARY = 3000


def write_folder(path: Path, kind: str) -> torch.nn.Module:
    """Write a model that is for `embed`, `rerank`, or `classifier`, and return it."""
    model_class = Qwen3ForSequenceClassification if kind == "classifier" else Qwen3ForCausalLM
    config = Qwen3Config(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=8, num_key_value_heads=4, head_dim=16, max_position_embeddings=2048,
        tie_word_embeddings=kind != "embed", eos_token_id=0, bos_token_id=0, pad_token_id=0,
        num_labels=1,
    )  # fmt: skip
    torch.manual_seed(3)
    model = model_class(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    model.save_pretrained(path)
    write_tokenizer(path, ends_texts=kind == "embed")
    if kind == "embed":  # untied, without a head, as the largest of them
        file = path / "model.safetensors"
        tensors = load_file(file)
        del tensors["lm_head.weight"]
        bare = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
        save_file(bare, file, {"format": "pt"})
    if kind in MODULES:
        modules = [
            {
                "idx": i,
                "name": str(i),
                "path": f"{i}_" * (i > 0),
                "type": f"sentence_transformers.{m}",
            }
            for i, m in enumerate(MODULES[kind])
        ]
        (path / "modules.json").write_text(json.dumps(modules))
    return model


def write_tokenizer(path: Path, *, ends_texts: bool) -> None:
    said = json.loads((DEMO / "tokenizer.json").read_text(encoding="utf-8"))
    model = said["model"]
    # In the places of the last two, which no others are made of.
    ids = [model["vocab"].pop("".join(model["merges"].pop())) for _ in range(2)]
    model["merges"] += [["y", "es"], ["n", "o"]]
    model["vocab"] |= dict(zip(("yes", "no"), ids, strict=True))
    if ends_texts:
        end = next(token["id"] for token in said["added_tokens"] if token["content"] == END)
        single = [
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": END, "type_id": 0}},
        ]
        pair = [*single[:1], {"Sequence": {"id": "B", "type_id": 1}}]
        special = {END: {"id": END, "ids": [end], "tokens": [END]}}
        template = {"type": "TemplateProcessing", "single": single, "pair": pair}
        processors = [said["post_processor"], template | {"special_tokens": special}]
        said["post_processor"] = {"type": "Sequence", "processors": processors}
    (path / "tokenizer.json").write_text(json.dumps(said), encoding="utf-8")
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        (path / name).write_bytes((DEMO / name).read_bytes())
