"""Tables of what weights take rounded to 8 and 4 bits, for the pages, by the doctor's arithmetic.

Qwen3's published dimensions, on a CPU that multiplies bfloat16 and int8, whichever this one is; no
file of weights is needed, as the doctor counts shapes.
"""

from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

from qwenapi.doctor import memory
from qwenapi.doctor.check import GIB
from qwenapi.doctor.memory import Room
from qwenapi.settings.table import Settings
from workers.checkpoint.architectures import architecture_of
from workers.checkpoint.weights import Weights

# Layers, hidden size, heads, width of the MLP, and whether the head is the embeddings' matrix.
PUBLISHED = {
    "Qwen3-0.6B": (28, 1024, 16, 3072, True),
    "Qwen3-4B": (36, 2560, 32, 9728, True),
    "Qwen3-8B": (36, 4096, 32, 12288, False),
}
ROUNDED = ("int8", "int4")
CPU = {"avx512bw", "avx512_vnni", "avx512_bf16"}
ROOM = Room("memory", False, 64 * GIB, 64 * GIB)


def table() -> str:
    return _table("model")


def table_zh() -> str:
    return _table("模型")


def weight_bytes(name: str, quantization: str) -> int:
    """Return the bytes of weights that the doctor foretells on a CPU with all it needs."""
    layers, hidden, heads, width, is_tied = PUBLISHED[name]
    raw = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": width,
        "vocab_size": 151_936,
        "max_position_embeddings": 40_960,
        "rope_theta": 1_000_000,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "attention_bias": False,
        "tie_word_embeddings": is_tied,
    }
    architecture = architecture_of(raw, Path("config.json"))
    config = architecture.read_config(raw, Path("config.json"))
    weights = Weights({}, dict(architecture.shapes(config, has_head=not is_tied)), {}, ())
    settings = replace(Settings(), dtype="bfloat16", device="cpu", quantization=quantization)
    with patch.object(memory, "_cpu_flags", lambda: CPU):
        return memory.make_plan(settings, weights, config, ROOM).weights


def _table(model: str) -> str:
    lines = [f"| {model} | bfloat16 | `int8` | `int4` |", "|---|---|---|---|"]
    for name in PUBLISHED:
        plain = weight_bytes(name, "auto")
        cells = [f"{plain / GIB:.2f} GiB"]
        for rounded in ROUNDED:
            taken = weight_bytes(name, rounded)
            cells.append(f"{taken / GIB:.2f} GiB ({taken / plain:.0%})".replace("%", " %"))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
