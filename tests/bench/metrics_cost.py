"""`python -m tests.bench.metrics_cost`: what writing the metrics store costs, and reading it.

Each figure is the least of many rounds: what the code takes when nobody else takes the core.
"""

import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest

from qwenapi.metrics.layout import NUM_RECORDS
from qwenapi.metrics.prometheus import MetricsCollector
from qwenapi.metrics.report import MetricsReading, metrics_body
from qwenapi.metrics.snapshot import take_snapshot
from qwenapi.metrics.store import MetricsStore, create_metrics_memory
from qwenapi.settings.sources import load, load_profiles

GOAL_TOKEN_US, GOAL_REQUEST_US = 2.0, 20.0
NUM_TOKENS, NUM_REQUESTS = 1000, 1000


def microseconds(
    action: Callable[[], object], per: int = 1, rounds: int = 50
) -> tuple[float, float]:
    """Return the least and the median time of a round, for one of the `per` things it does."""
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        action()
        times.append(1e6 * (time.perf_counter() - started) / per)
    return min(times), statistics.median(times)


def main() -> int:
    profiles = load_profiles(load({}, {}), {}, {})
    names = [profile.name for profile in profiles]
    with tempfile.TemporaryDirectory() as folder:
        path = create_metrics_memory(Path(folder), profiles)
        metrics_store = MetricsStore.lease(str(path), names)
        try:
            return measure(metrics_store, names)
        finally:
            if path:
                path.unlink()


def measure(metrics_store: MetricsStore, names: list[str]) -> int:
    entry = metrics_store.begin(names[0], time.monotonic())
    entry.accept(100)
    entry.start()

    def tokens() -> None:
        for _ in range(NUM_TOKENS):
            entry.tokens(0, 1, time.monotonic())

    def requests() -> None:
        for _ in range(NUM_REQUESTS):
            each = metrics_store.begin(names[0], time.monotonic())
            each.accept(100)
            each.start()
            each.tokens(0, 1, time.monotonic())
            each.succeed("stop", 0)

    token, request = microseconds(tokens, NUM_TOKENS), microseconds(requests, NUM_REQUESTS)
    snapshot = take_snapshot(metrics_store.memory, names)
    assert len(snapshot.records) == NUM_RECORDS - 1
    reading = MetricsReading(load({}, {}), snapshot, (), now=time.time(), is_ready=True)
    registry = CollectorRegistry()
    registry.register(MetricsCollector(lambda: reading))
    profile = load_profiles(load({}, {}), {}, {})[0]
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    shared = "shared" if metrics_store.is_shared else "private"
    print(f"Python {platform.python_version()}, memory {shared}")
    print(f"{len(names)} profiles, {NUM_RECORDS} records; least / median of 50 rounds, µs")
    for what, goal, (least, median) in (
        ("a token written", GOAL_TOKEN_US, token),
        ("a request written, its first token included", GOAL_REQUEST_US, request),
        ("a snapshot", None, microseconds(lambda: take_snapshot(metrics_store.memory, names))),
        ("the JSON report of it", None, microseconds(lambda: metrics_body(reading, profile))),
        ("the Prometheus text of it", None, microseconds(lambda: generate_latest(registry))),
    ):
        print(f"{what}: {least:,.2f} / {median:,.2f}" + (f" (goal {goal:g})" if goal else ""))
    return 0 if token[0] < GOAL_TOKEN_US and request[0] < GOAL_REQUEST_US else 1


if __name__ == "__main__":
    sys.exit(main())
