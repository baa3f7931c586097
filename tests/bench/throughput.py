"""`python -m tests.bench.throughput`: the server's output rate against transformers' generate(), in
one run.

Random bfloat16 weights of Qwen3-0.6B's dimensions with a vocabulary of 8,192. generate() at batch 1
is measured before and after the server, so that a machine that changes its speed shows it.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from qwenapi.commands.bench.load import BenchResult, Load, run
from qwenapi.commands.bench.tables import table
from qwenapi.settings.table import etc_dir
from tests.running_server import RunningServer

DEMO = etc_dir() / "models" / "demo"
PROMPT_TOKENS = 128
NEW_TOKENS = 64
VOCABULARY = 8192
GOALS = {8: 4.0, 32: 5.0}


def make_model(directory: Path, num_layers: int = 28) -> None:
    """Write a random model of Qwen3-0.6B's dimensions, with the demo's tokenizer."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=num_layers,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        dtype="bfloat16",
    )
    directory.mkdir(exist_ok=True)
    shutil.copy(DEMO / "tokenizer_config.json", directory)
    tokenizer = json.loads((DEMO / "tokenizer.json").read_bytes())
    vocabulary = tokenizer["model"]["vocab"]
    # Added tokens that the vocabulary lacks would get the ids behind its last.
    vocabulary.update({token["content"]: token["id"] for token in tokenizer["added_tokens"]})
    first_free = 1 + max(vocabulary.values())
    # Every id needs a text, or a token would leave no trace in the stream.
    vocabulary.update({f"\u0120w{i}": i for i in range(first_free, VOCABULARY)})
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(config).to(torch.bfloat16)
    # Nor is one of the others ever the likeliest: parts of a character are no text at some servers.
    model.lm_head.weight.data[:first_free] *= 0.01
    model.save_pretrained(directory)
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))


def generate_rate(directory: Path, threads: int) -> float:
    """Return output tokens per second of generate() at batch 1, in a process of its own; median of
    3.
    """
    code = f"""
import statistics, sys, time, torch
from transformers import AutoModelForCausalLM
torch.set_num_threads({threads})
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
ids = torch.randint(0, 1000, (1, {PROMPT_TOKENS}), generator=torch.Generator().manual_seed(0))
def once():
    started = time.perf_counter()
    model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens={NEW_TOKENS},
                   min_new_tokens={NEW_TOKENS}, do_sample=False, pad_token_id=0)
    return {NEW_TOKENS} / (time.perf_counter() - started)
once()
print(statistics.median(once() for _ in range(3)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, directory],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        check=True,
    )
    return float(done.stdout.split()[-1])


def server_results(
    directory: Path, parsed: argparse.Namespace, levels: list[int], scratch: Path
) -> list[BenchResult]:
    flags = ["--model", str(directory), "--threads", str(parsed.threads), "--no-log-requests"]
    flags += ["--deterministic"] if parsed.deterministic else []
    server = RunningServer(scratch / "run", *flags).wait_until_ready()
    load = Load(
        server.url, model=directory.name, prompt_tokens=PROMPT_TOKENS, max_tokens=NEW_TOKENS
    )
    run(load, 2, 2, first_seed=10**9)  # warm-up
    results = [
        run(load, level, 2 * level if level > 1 else 3, first_seed=level * 10**6)
        for level in levels
    ]
    server.stop()
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--deterministic", action="store_true", help="with its cost")
    parser.add_argument("--json", default="")
    parsed = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "qwen3-0.6b-random"
        make_model(model)
        before = generate_rate(model, parsed.threads)
        results = server_results(model, parsed, parsed.concurrency, Path(folder))
        after = generate_rate(model, parsed.threads)
    return report(before, after, results, parsed)


def report(
    before: float, after: float, results: list[BenchResult], parsed: argparse.Namespace
) -> int:
    from rich.console import Console

    reference = (before + after) / 2
    print(f"{platform.machine()}, {time.strftime('%Y-%m-%d %H:%M')}")
    mode = ", deterministic" if parsed.deterministic else ""
    print(f"{parsed.threads} threads, through HTTP{mode}")
    print(
        f"{PROMPT_TOKENS} prompt + {NEW_TOKENS} new tokens, bfloat16, greedy, every prompt another"
    )
    print(f"generate() at batch 1: {before:.2f} tokens/s before, {after:.2f} after the server")
    Console(width=120).print(table(results))
    met = True
    for result in results:
        ratio = result.tokens_per_second / reference
        goal = GOALS.get(result.concurrency)
        met = met and not result.num_failed and (goal is None or ratio >= goal)
        print(
            f"{result.concurrency} streams: {ratio:.2f} × generate()"
            + (f" (goal {goal:g})" if goal else "")
        )
    if parsed.json:
        Path(parsed.json).write_text(
            json.dumps(
                {"generate": [before, after], "results": [vars(r) for r in results]}, default=list
            )
        )
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
