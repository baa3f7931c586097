"""`python -m tests.bench.cluster`: two engines on a Ray cluster of this machine, and two without.

Both servers have one HTTP half and two engines of one thread each, of the same random model. A's
engines are on two nodes of a cluster and reached over TCP on loopback, B's are reached by Unix
sockets. `qwenapi bench --compare` gives them the same load in turns; what is not known here it gets
(`--rounds 12 --max-tokens 128`). Exits with 1 where the cluster's tokens/s are surely less than
GOAL of the others'.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.bench.throughput import make_model
from tests.cluster.ray_nodes import RayNodes
from tests.running_server import RunningServer

GOAL = 0.95
NODES = (("a", 31), ("b", 32))
ENGINES = ("--data-parallel-size", "2", "--threads", "1", "--no-log-requests")


@contextmanager
def ray_cluster(folder: Path) -> Iterator[str]:
    """Let a head and two nodes run; give the cluster's address."""
    nodes = RayNodes(folder)
    try:
        nodes.nodes["head"].wait_until_up()
        for name, number in NODES:
            nodes.add(name, number).wait_until_up()
        yield nodes.address
    finally:
        nodes.stop()


@contextmanager
def running(run_dir: Path, *flags: str) -> Iterator[RunningServer]:
    server = RunningServer(run_dir, *flags)
    try:
        yield server.wait_until_ready(300)
        server.stop()
    finally:
        server.close()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tests.bench.cluster", description=__doc__)
    parser.add_argument("--layers", type=int, default=4, help="of the model, of 0.6B's 28")
    parser.add_argument("--concurrency", nargs="+", default=["2", "16"], help="(default: 2 16)")
    asked, others = parser.parse_known_args(arguments)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        model, report = folder / "qwen3-random", folder / "report.json"
        make_model(model, asked.layers)
        address = stack.enter_context(ray_cluster(folder))
        flags = ("--model", str(model), *ENGINES)
        a = stack.enter_context(running(folder / "cluster", *flags, "--cluster", address))
        b = stack.enter_context(running(folder / "local", *flags))
        print(f"{platform.machine()}, {time.strftime('%Y-%m-%d %H:%M')}, {asked.layers} layers")
        print("A: two engines on two nodes of a Ray cluster, TCP; B: two engines, Unix sockets")
        sys.stdout.flush()
        command = [sys.executable, "-m", "qwenapi", "bench", "--url", a.url, "--compare", b.url]
        command += ["--json", str(report), *others, "--concurrency", *asked.concurrency]
        subprocess.run(command, check=True)
        return verdict(json.loads(report.read_text()))


def verdict(report: dict) -> int:  # type: ignore[type-arg]
    """Say for each number of streams whether the cluster gives GOAL of what the others do."""
    is_met = True
    for result in report["results"]:
        ratio = result["figures"]["tokens/s"]["ratio"]
        is_met = is_met and ratio["high"] >= GOAL
        words = "yes" if ratio["low"] >= GOAL else "no" if ratio["high"] < GOAL else "not sure"
        print(
            f"{result['concurrency']} streams: {ratio['value']:.3f} × B"
            f" ({ratio['low']:.3f} to {ratio['high']:.3f}); at least {GOAL}: {words}"
        )
    return 0 if is_met else 1


if __name__ == "__main__":
    sys.exit(main())
