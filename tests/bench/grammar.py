"""`python -m tests.bench.grammar`: what a JSON Schema costs in tokens per second.

The engine alone, on random bfloat16 weights of Qwen3-0.6B's dimensions; with QWEN_ASSETS, a folder
with a real tokenizer.json, also of its vocabulary. Rounds with and without take turns, and what a
grammar forces is shown apart: without steps for it, a schema may well be faster.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import torch

from tests.bench import throughput
from workers.config import EngineConfig
from workers.engine import speculation
from workers.engine.engine import Engine
from workers.grammar.compiled_grammar import CompiledGrammar
from workers.grammar.compiler import GrammarCompiler
from workers.grammar.tokenizer_file import TokenizerFile
from workers.wire.grammar import Grammar
from workers.wire.protocol import Generate, SamplingParams

PROMPT_TOKENS, NEW_TOKENS = 32, 48
RECORD = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}},
        "email": {"type": ["string", "null"]},
    },
    "required": ["name", "age", "tags", "email"],
    "additionalProperties": False,
}
# Nobody's answer is whole before it is cut.
SCHEMA = Grammar(
    kind="json_schema",
    text=json.dumps({"type": "array", "items": RECORD, "minItems": 1000}),
)


def make_model(folder: Path) -> None:
    assets = Path(os.environ.get("QWEN_ASSETS", ""))
    real = assets / "tokenizer.json"
    with patch.object(throughput, "VOCABULARY", 151_936 if real.exists() else 8192):
        throughput.make_model(folder)
    if real.exists():
        (folder / "tokenizer.json").write_bytes(real.read_bytes())


def decode_rate(engine: Engine, rows: int, compiled: CompiledGrammar | None, seed: int) -> float:
    """Return output tokens per second from when every row decodes until the first ends."""
    generator = torch.Generator().manual_seed(seed)
    for row in range(rows):
        prompt = tuple(torch.randint(10, 2000, (PROMPT_TOKENS,), generator=generator).tolist())
        params = SamplingParams(max_tokens=NEW_TOKENS, seed=row, ignore_eos=True)
        grammar = None if compiled is None else SCHEMA
        engine.add(
            (0, row),
            Generate(
                wid=row,
                request_id=str(row),
                prompt_ids=prompt,
                params=params,
                grammar=grammar,
                cache_salt=f"{seed}",
            ),
            compiled,
        )
    begun: set[object] = set()
    while len(begun) < rows:
        begun |= {key for key, _ in engine.step().chunks}
    started, tokens, is_over = time.perf_counter(), 0, False
    while not is_over:
        output = engine.step()
        tokens += len(output.chunks)
        is_over = bool(output.finished)
    rate = tokens / (time.perf_counter() - started)
    while engine.has_work:
        engine.step()
    return rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=3)
    parsed = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder)
        engine = Engine(EngineConfig(name, dtype="bfloat16"), lambda stage, fraction: None)
        card = engine.card
        compiler = GrammarCompiler(
            TokenizerFile(str(folder / "tokenizer.json"), card.vocab_size, (0,))
        )
        compiled = compiler.compile(SCHEMA)
        print(
            f"vocabulary {card.vocab_size}, {card.device}, {torch.get_num_threads()} threads,"
            f" torch {torch.__version__}, load {os.getloadavg()[0]:.1f}; tokens per second"
        )
        for rows in parsed.rows:
            rates: dict[str, list[float]] = {"without": [], "with": [], "nothing forced": []}
            for seed in range(parsed.rounds):
                rates["without"].append(decode_rate(engine, rows, None, seed))
                rates["with"].append(decode_rate(engine, rows, compiled, seed))
                with patch.object(speculation, "MAX_FORCED_TOKENS", 0):
                    rates["nothing forced"].append(decode_rate(engine, rows, compiled, seed))
            medians = {kind: statistics.median(found) for kind, found in rates.items()}
            shown = ", ".join(
                f"{kind} {rate:.1f} ({rate / medians['without']:.2f}x)"
                for kind, rate in medians.items()
            )
            print(f"{rows} streams: {shown}; load {os.getloadavg()[0]:.1f}", flush=True)
        compiler.close()


if __name__ == "__main__":
    main()
