"""Models of Qwen3's published dimensions, and a small hybrid, with random weights, made where they
are used.

Knows configurations, a tokenizer in which every id is a word, and how weights get into an engine
without a hub: made on the device as the engine loads (the largest fit no small disk), or written as
a checkpoint for those who read one. Refuses to know what is measured.
"""

import gc
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

from qwenapi.commands.bench.load import WORDS
from tests.gpu.roofline import Dimensions
from workers.config import EngineConfig
from workers.engine import start
from workers.engine.engine import Engine

QWEN3 = {
    "Qwen3-0.6B": Dimensions(28, 1024, 16, 8, 3072, is_tied=True),
    "Qwen3-8B": Dimensions(36, 4096, 32, 8, 12288),
    "Qwen3-32B": Dimensions(64, 5120, 64, 8, 25600),
    "Qwen3-30B-A3B": Dimensions(48, 2048, 32, 4, 768, experts=128, chosen=8),
}
# What `configure` adds for each model: nothing ends an answer.
_ENDLESS = {"max_position_embeddings": 40_960, "bos_token_id": None, "eos_token_id": None}
TEMPLATE = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
_PLACEHOLDER = "placeholder.safetensors"


def tiny(dimensions: Dimensions) -> Dimensions:
    """Return a model of the same kind that a rehearsal can afford."""
    small = replace(dimensions, layers=2, hidden=64, heads=4, kv_heads=2, head_dim=16)
    small = replace(small, intermediate=64, vocabulary=640)
    return replace(small, experts=8, chosen=2) if dimensions.experts else small


def hybrid(layers: int, heads: int, dim: int) -> PretrainedConfig:
    """Return Qwen3.5 of few layers, the last with attention, and as many heads of keys as `heads`
    of queries. 128 is the published `dim` of a state; attention's heads have twice as much.
    """
    return Qwen3_5TextConfig(
        num_hidden_layers=layers,
        layer_types=["linear_attention"] * (layers - 1) + ["full_attention"],
        hidden_size=2 * dim,
        intermediate_size=2 * dim,
        num_attention_heads=2 * heads,
        num_key_value_heads=heads,
        head_dim=2 * dim,
        linear_num_key_heads=heads,
        linear_num_value_heads=2 * heads,
        linear_key_head_dim=dim,
        linear_value_head_dim=dim,
        vocab_size=640,
        architectures=["Qwen3_5ForCausalLM"],
        **_ENDLESS,
    )


def configure(dimensions: Dimensions | PretrainedConfig) -> PretrainedConfig:
    """Return transformers' configuration; nothing ends an answer."""
    if isinstance(dimensions, PretrainedConfig):
        return dimensions
    fields = _ENDLESS | {
        "num_hidden_layers": dimensions.layers,
        "hidden_size": dimensions.hidden,
        "num_attention_heads": dimensions.heads,
        "num_key_value_heads": dimensions.kv_heads,
        "head_dim": dimensions.head_dim,
        "vocab_size": dimensions.vocabulary,
        "tie_word_embeddings": dimensions.is_tied,
    }
    if not dimensions.experts:
        return Qwen3Config(
            intermediate_size=dimensions.intermediate,
            architectures=["Qwen3ForCausalLM"],
            **fields,
        )
    return Qwen3MoeConfig(
        moe_intermediate_size=dimensions.intermediate,
        num_experts=dimensions.experts,
        num_experts_per_tok=dimensions.chosen,
        norm_topk_prob=True,
        architectures=["Qwen3MoeForCausalLM"],
        **fields,
    )


def write(directory: Path, dimensions: Dimensions | PretrainedConfig) -> Path:
    """Write all but the weights, in whose place one number stands."""
    directory.mkdir(parents=True)
    config = configure(dimensions)
    config.save_pretrained(directory)
    save_file({"nothing": torch.zeros(1)}, directory / _PLACEHOLDER)
    words = {word: number for number, word in enumerate(WORDS)}
    words |= {f"w{number}": number for number in range(len(words), config.vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=WORDS[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(directory / "tokenizer.json"))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TEMPLATE}
    (directory / "tokenizer_config.json").write_text(json.dumps(about))
    return directory


def write_weights(directory: Path, dimensions: Dimensions, dtype: str, device: str) -> None:
    """Make the directory a whole checkpoint, as large as its model."""
    make(configure(dimensions), dtype, device).save_pretrained(directory)
    (directory / _PLACEHOLDER).unlink()
    free_memory(device)


def make(config: PretrainedConfig, dtype: str, device: str) -> PreTrainedModel:
    """Return a model whose weights have never been anywhere but on the device."""
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    return model.eval().requires_grad_(False)


@contextmanager
def random_weights(dtype: str, device: str) -> Iterator[None]:
    """Let engines that start meanwhile make their weights instead of loading them."""

    def load_weights(checkpoint: object, config: PretrainedConfig, *_: object, **__: object):  # type: ignore[no-untyped-def]
        return make(config, dtype, device)

    loading, start.load_weights = start.load_weights, load_weights
    try:
        yield
    finally:
        start.load_weights = loading


@contextmanager
def engine_over(
    name: str,
    dimensions: Dimensions | PretrainedConfig,
    dtype: str,
    device: str,
    **settings: object,
) -> Iterator[Engine]:
    """Yield an engine over random weights. Use it in a function of its own: what the last one held
    is freed here, once nothing names it any more.
    """
    free_memory(device)
    with tempfile.TemporaryDirectory() as folder:
        directory = write(Path(folder) / name, dimensions)
        with random_weights(dtype, device):
            config = EngineConfig(model=str(directory), dtype=dtype, device=device, **settings)
            yield Engine(config, lambda *_: None)


def free_memory(device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
