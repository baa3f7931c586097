"""`python -m tests.bench.prefix_hits`: what a prefix cache saves conversations, hybrid and dense.

Eight conversations of six turns on tiny random models, all at once, the engine alone: each turn
sends again what was said before. Printed is how much of that was not computed again. A hybrid can
go on only from a snapshot of its state, and so computes up to 64 tokens more than a dense model,
which goes on from any full block.
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.engine.conftest import Driver, write_model
from workers.config import EngineConfig
from workers.engine.engine import Engine

CONVERSATIONS, TURNS = 8, 6
# Tokens of a system prompt that all conversations share, of a user's message and of an answer.
SYSTEM, MESSAGE, ANSWER = 400, (40, 160), (60, 200)
GOAL = 0.9


class Hits(NamedTuple):
    """Prompt tokens sent, those that the conversation had sent before, and those found again."""

    sent: int
    sent_again: int
    found: int
    seconds: float

    @property
    def rate(self) -> float:
        return self.found / self.sent_again


def converse(driver: Driver, *, seed: int = 0) -> Hits:
    """Hold the conversations, all on the same turn at a time."""
    chosen = random.Random(seed)
    system = [chosen.randrange(4, 320) for _ in range(SYSTEM)]
    texts = [list(system) for _ in range(CONVERSATIONS)]
    lengths = [0] * CONVERSATIONS
    sent = sent_again = found = 0
    started = time.perf_counter()
    for turn in range(TURNS):
        for number, text in enumerate(texts):
            text += [chosen.randrange(4, 320) for _ in range(chosen.randint(*MESSAGE))]
            driver.add(turn * CONVERSATIONS + number, text, max_tokens=chosen.randint(*ANSWER))
        driver.run()
        for number, text in enumerate(texts):
            key = turn * CONVERSATIONS + number
            sent += len(text)
            sent_again += lengths[number]
            found += min(driver.cached_tokens[key], lengths[number])
            text += driver.tokens(key)
            lengths[number] = len(text)
    return Hits(sent, sent_again, found, time.perf_counter() - started)


def measure(names: list[str], num_blocks: int) -> Iterator[tuple[str, Hits]]:
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            write_model(Path(folder), name)
            config = EngineConfig(
                folder, device="cpu", dtype="float32", num_blocks=num_blocks, threads=1
            )
            yield name, converse(Driver(Engine(config, lambda stage, fraction: None)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["qwen3", "qwen3_5", "qwen3_next"])
    parser.add_argument("--num-blocks", type=int, default=2000, help="of 32 tokens")
    parsed = parser.parse_args()
    print(f"{CONVERSATIONS} conversations of {TURNS} turns")
    met = True
    for name, hits in measure(parsed.models, parsed.num_blocks):
        met = met and hits.rate >= GOAL
        print(
            f"{name:12} {hits.sent:7,} prompt tokens, {hits.sent_again:7,} sent again, of which"
            f" {hits.rate:.1%} not computed again; {hits.seconds:.1f} s"
        )
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
