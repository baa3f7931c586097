"""Tables and lines for a terminal: what was measured, and under which conditions."""

import os
import platform
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from qwenapi.commands.bench.comparison import MEASURES, Comparison, Measure, Ratio
from qwenapi.commands.bench.load import BenchResult, Load

if TYPE_CHECKING:
    from rich.table import Table

    from workers.worker.bench import EngineBenchResult


def table(results: Sequence[BenchResult]) -> "Table":
    """Return what a server gave."""
    from rich.table import Table

    shown = Table(box=None, title="tokens/s are of output; TTFT and gaps between tokens in ms")
    for name in (
        "streams",
        "sent",
        "failed",
        "tokens/s",
        "TTFT p50",
        "p95",
        "p99",
        "gap p50",
        "p95",
        "p99",
    ):
        shown.add_column(name, justify="right", no_wrap=True)
    for result in results:
        ttft, gap = result.ttft_ms, result.gap_ms
        row = (result.concurrency, result.num_requests, result.num_failed, result.tokens_per_second)
        times = (round(value, 1) for value in (*ttft.values(), *gap.values()))
        shown.add_row(*(f"{value:g}" for value in (*row, *times)))
    return shown


def engine_table(results: "Sequence[EngineBenchResult]") -> "Table":
    """Return what an engine gave."""
    from rich.table import Table

    title = "median (least–greatest): prefill and decode in tokens/s, first token in ms"
    shown = Table(box=None, title=title)
    for name in ("streams", "prefill", "first token", "decode", "GPU busy", "GiB"):
        shown.add_column(name, justify="right", no_wrap=True)
    for result in results:
        busy = "–" if result.gpu_busy is None else f"{result.gpu_busy:.1%}"
        peak = "–" if result.peak_bytes is None else f"{result.peak_bytes / 2**30:.1f}"
        spreads = map(_spread, (result.prefill, result.ttft_ms, result.decode))
        shown.add_row(str(result.workload.streams), *spreads, busy, peak)
    return shown


def comparison_table(comparisons: Sequence[Comparison]) -> "Table":
    """Return both servers' figures and their ratios; which is better, where the interval says."""
    from rich.table import Table

    shown = Table(box=None, title="geometric means over the rounds; tokens/s are of output")
    for name in ("streams", "measure", "A", "B", "A/B", "95 % interval", "better"):
        shown.add_column(name, justify="left" if name == "measure" else "right", no_wrap=True)
    for comparison in comparisons:
        for i, measure in enumerate(MEASURES):
            means = map(_figure, comparison.means(measure.of))
            streams = "" if i else str(comparison.concurrency)
            ratio = comparison.ratio(measure.of)
            shown.add_row(streams, measure.name, *means, *_verdict(measure, ratio))
    return shown


def conditions(load: Load) -> str:
    """Return what must be known of a load to read the numbers."""
    return (
        f"{load.endpoint}, {load.prompt_tokens} prompt tokens, {load.max_tokens} new tokens, "
        f"temperature {load.temperature:g}, every prompt another"
    )


def client() -> str:
    """Return what must be known of this machine, where the load comes from."""
    return (
        f"client: Python {platform.python_version()} on {platform.machine()}, "
        f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}"
    )


def _verdict(measure: Measure, ratio: Ratio | None) -> tuple[str, str, str]:
    if ratio is None:
        return "–", "–", "–"
    better = "–"
    if ratio.low > 1 or ratio.high < 1:
        better = "A" if (ratio.low > 1) is measure.more_is_better else "B"
    return f"{ratio.value:.3f}", f"{ratio.low:.3f}–{ratio.high:.3f}", better


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}"


def _spread(values: Sequence[float]) -> str:
    middle, least, greatest = statistics.median(values), min(values), max(values)
    digits = 0 if greatest >= 100 else 1
    return f"{middle:,.{digits}f} ({least:,.{digits}f}–{greatest:,.{digits}f})"
