"""`python -m tests.bench.speculation`: what drafts gain where text repeats, and cost where it does
not. The engine alone, on random bfloat16 weights of Qwen3-0.6B's dimensions; medians of rounds in
which every number of drafts has its turn.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from tests.bench.throughput import VOCABULARY, make_model
from workers.config import EngineConfig
from workers.engine.engine import Engine
from workers.wire.protocol import Generate, SamplingParams

# Two tokens alone make every 3-gram come again; drawn from all, hardly one does.
TEXTS = {
    "two words": {"logit_bias": {7: 90.0, 9: 90.0}, "temperature": 0.0},
    "greedy": {"temperature": 0.0},
    "drawn": {"temperature": 1.0},
}


def decode_rate(engine: Engine, rows: int, fields: dict[str, object], seed: int) -> float:
    """Return output tokens per second once every row decodes."""
    generator = torch.Generator().manual_seed(seed)
    for row in range(rows):
        prompt = tuple(torch.randint(10, VOCABULARY, (64,), generator=generator).tolist())
        params = SamplingParams(max_tokens=48, seed=row, ignore_eos=True, **fields)
        engine.add(
            (0, row), Generate(wid=row, request_id=str(row), prompt_ids=prompt, params=params)
        )
    begun: set[object] = set()
    while len(begun) < rows:
        begun |= {key for key, _ in engine.step().chunks}
    started, tokens = time.perf_counter(), 0
    while engine.has_work:
        tokens += len(engine.step().chunks)
    return tokens / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--drafts", type=int, nargs="+", default=[0, 3, 5, 7])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--rounds", type=int, default=3)
    parsed = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder))
        engines = {
            count: Engine(
                EngineConfig(folder, dtype="bfloat16", num_speculative_tokens=count),
                lambda stage, fraction: None,
            )
            for count in parsed.drafts
        }
        print(f"{torch.get_num_threads()} threads, torch {torch.__version__}; tokens per second")
        for text, fields in TEXTS.items():
            for rows in parsed.rows:
                rates = [
                    [decode_rate(engine, rows, fields, round) for engine in engines.values()]
                    for round in range(parsed.rounds)
                ]
                medians = map(statistics.median, zip(*rates, strict=True))
                figures = zip(engines, medians, strict=True)
                shown = ", ".join(f"{count} drafts {rate:.1f}" for count, rate in figures)
                print(f"{text}, {rows} rows: {shown}", flush=True)


if __name__ == "__main__":
    main()
