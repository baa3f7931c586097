"""`python -m tests.bench.http_half`: what a streamed token costs the HTTP half, on the stub engine.

The server's HTTP processes are timed by the operating system (user + system CPU), not by the
client. Paced: the stub takes a fixed time for a step, as a GPU would. Saturated: it takes none, and
what waits goes out as one write, so the cost falls by what is coalesced.
"""

import argparse
import platform
import sys
import tempfile
import time
from pathlib import Path

from qwenapi.commands.bench.load import Load, run
from tests.running_server import RunningServer

GOAL_PACED_US = 35.0


def measure(streams: int, tokens: int, step_seconds: float, scratch: Path) -> tuple[float, float]:
    """Return CPU microseconds of the HTTP half per token, and tokens per second."""
    server = RunningServer(
        scratch / f"run-{streams}-{step_seconds}",
        "--stub",
        "--stub-step-seconds",
        str(step_seconds),
    ).wait_until_ready()
    load = Load(server.url, model="qwen-demo", prompt_tokens=16, max_tokens=tokens)
    run(load, streams, streams, first_seed=10**9)  # warm-up
    workers = server.http_workers()
    before = sum(sum(worker.cpu_times()[:2]) for worker in workers)
    result = run(load, streams, streams)
    used = sum(sum(worker.cpu_times()[:2]) for worker in workers) - before
    assert not result.num_failed, result.errors
    server.stop()
    return 1e6 * used / result.output_tokens, result.tokens_per_second


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument(
        "--rate", type=float, default=50.0, help="tokens per second and stream, paced"
    )
    parser.add_argument("--tokens", type=int, default=1000)
    parsed = parser.parse_args()
    print(f"{platform.machine()}, {time.strftime('%Y-%m-%d %H:%M')}")
    print(f"{parsed.streams} streams of {parsed.tokens} tokens")
    with tempfile.TemporaryDirectory() as folder:
        paced, rate = measure(parsed.streams, parsed.tokens, 1 / parsed.rate, Path(folder))
        print(f"paced at {parsed.rate:g}/s a stream: {paced:.1f} µs CPU a token", end=" ")
        print(f"(goal {GOAL_PACED_US:g}), {rate:,.0f} tokens/s")
        behind, rate = measure(parsed.streams, 4 * parsed.tokens, 0.0, Path(folder))
        print(f"saturated: {behind:.1f} µs CPU a token, {rate:,.0f} tokens/s")
    return 0 if paced <= GOAL_PACED_US and behind < paced else 1


if __name__ == "__main__":
    sys.exit(main())
