"""`qwenapi top`: what a running start is doing, read from its shared memory.

No request is made. Rates are differences of two readings. Percentiles come from histograms over
the memory's whole life, so each is the upper bound of the bucket it lies in. Knows where a start
keeps its shared memory; refuses to know how it is written.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwenapi.metrics.layout import metrics_layout
from qwenapi.metrics.snapshot import Counts, Distribution, Snapshot, take_snapshot
from qwenapi.metrics.status import state_slots
from qwenapi.settings.run_dir import run_dir
from qwenapi.settings.sources import load, load_profiles
from qwenapi.settings.table import Settings, etc_dir
from workers.errors import ConfigError, ExitCode, ProtocolError, SharedMemoryError
from workers.wire.endpoint import Endpoint, endpoint_path
from workers.wire.engine_stats import ENGINE_COUNTERS, ENGINE_LAYOUT, EngineRow, Phase
from workers.wire.shared_memory import SharedMemory
from workers.wire.shared_memory_files import shared_memory_path

if TYPE_CHECKING:
    from rich.console import RenderableType

INTERVAL_SECONDS = 1.0
FILE_COLUMNS = 160
SYSTEM_RUN_DIR = Path("/run/qwenapi")
PHASES = {
    Phase.NONE: "none",
    Phase.LOADING: "loading",
    Phase.IDLE: "idle",
    Phase.STEPPING: "stepping",
    Phase.DRAINING: "draining",
}
DOWN = "down"
DURATIONS = ("ttft", "inter_token", "latency")
PERCENTILES = (0.5, 0.95)


@dataclass(frozen=True)
class EngineReading:
    """One slot of the model half's memory; `beat_age` is in seconds."""

    row: EngineRow
    beat_age: float


@dataclass(frozen=True)
class TopReading:
    """Both halves at one moment, `at` a time.monotonic(); None or empty without shared memory."""

    at: float
    metrics_store: Snapshot | None
    engines: Sequence[EngineReading]

    @property
    def is_alive(self) -> bool:
        """Return whether any process writes; those killed with their supervisor leave theirs."""
        num_processes = self.metrics_store.num_processes if self.metrics_store else 0
        return num_processes > 0 or any(engine.row.state != DOWN for engine in self.engines)


class StatsSources:
    """The memory of one start, opened anew for each reading: a reload may have made other."""

    def __init__(self, folder: Path, model_folders: Sequence[Path], profiles: "Profiles") -> None:
        self.folder = folder
        self._model_folders = model_folders
        self._profiles = profiles

    def read(self) -> TopReading:
        return TopReading(time.monotonic(), self._metrics_store(), list(self._engines()))

    def _metrics_store(self) -> Snapshot | None:
        for names in self._profiles:
            layout = metrics_layout(names)
            with suppress(SharedMemoryError):
                memory = SharedMemory.open(shared_memory_path(self.folder, layout), layout)
                try:
                    return take_snapshot(memory, names)
                finally:
                    memory.close()
        return None

    def _engines(self) -> Iterator[EngineReading]:
        for folder in self._model_folders:
            with suppress(SharedMemoryError):
                memory = SharedMemory.open(shared_memory_path(folder, ENGINE_LAYOUT), ENGINE_LAYOUT)
                try:
                    yield from [_engine(folder, memory, slot) for slot in range(memory.num_slots)]
                finally:
                    memory.close()
                return


Profiles = Sequence[tuple[str, ...]]


def main(parsed: argparse.Namespace) -> int:
    """Show the start that the flags mean, until interrupted."""
    sources = find(vars(parsed))
    before = sources.read()
    if not before.is_alive:
        raise ConfigError(_nothing_at(sources.folder))
    if before.metrics_store is None and _has_shared_memory(sources.folder, "http"):
        raise ConfigError(f"{sources.folder}: serves profiles that are not shipped; give --profile")
    if parsed.as_json or parsed.once or not sys.stdout.isatty():
        time.sleep(INTERVAL_SECONDS)
        _show_once(report(before, sources.read()), as_json=parsed.as_json)
        return ExitCode.OK
    with suppress(KeyboardInterrupt):
        _show_live(sources, before)
    return ExitCode.OK


def find(flags: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> StatsSources:
    """Return the sources of the first folder where something runs that the flags can mean."""
    settings = load(flags, environ)
    folders = list(
        dict.fromkeys(run_dir(settings, kind, environ) for kind in ("serve", "http", "model"))
    )
    folder = next((place for place in folders if _has_shared_memory(place)), None)
    if folder is None:
        raise ConfigError(_nothing_at(*folders))
    halves = [folder, folder.parent / f"model-{settings.model_name}"]
    if settings.model_run_dir:
        halves.insert(1, Path(settings.model_run_dir).expanduser().absolute())
    return StatsSources(folder, halves, _possible_profiles(settings, flags, environ))


def report(before: TopReading, after: TopReading) -> dict[str, Any]:
    """Return everything that is shown, as JSON has it; rates are per second between the two."""
    seconds = after.at - before.at
    metrics_store = after.metrics_store
    earlier = before.metrics_store.profiles if before.metrics_store else {}
    return {
        "uptime": round(time.time() - metrics_store.since, 1)
        if metrics_store and metrics_store.since
        else None,
        "http_processes": metrics_store.num_processes if metrics_store else 0,
        "alerts": sorted(metrics_store.alerts) if metrics_store else [],
        "percentiles": "upper bound of the histogram's bucket, null beyond the last one",
        "profiles": {
            name: _profile(counts, earlier.get(name), seconds)
            for name, counts in (metrics_store.profiles if metrics_store else {}).items()
        },
        "engines": [
            _engine_report(engine, before.engines[i : i + 1], seconds)
            for i, engine in enumerate(after.engines)
        ],
    }


def upper_bound(distribution: Distribution, share: float) -> float | None:
    """Return the bound of the bucket a percentile lies in: None of no values, inf in the last."""
    if not distribution.count:
        return None
    rank = min(int(distribution.count * share), distribution.count - 1)
    seen = 0
    bounds = (*distribution.histogram.bounds, math.inf)
    for bound, count in zip(bounds, distribution.counts, strict=True):
        seen += count
        if seen > rank:
            return bound
    raise AssertionError("a rank lies within its counts")


def _has_shared_memory(folder: Path, *kinds: str) -> bool:
    """Return whether a supervisor has made any for this folder, wherever it lies."""
    if not folder.is_dir():
        return False
    path = shared_memory_path(folder, ENGINE_LAYOUT)
    prefix = path.name[: path.name.rindex("engine-")]
    kinds = kinds or ("http", "engine")
    return any(any(path.parent.glob(f"{prefix}{kind}-*.shm")) for kind in kinds)


def _possible_profiles(
    settings: Settings, flags: Mapping[str, Any], environ: Mapping[str, str] | None
) -> Profiles:
    """Return the lists of profiles metrics may be of, the one of the flags first."""
    shipped = sorted(file.stem for file in (etc_dir() / "profiles").glob("*.toml"))
    lists = [tuple(p.name for p in load_profiles(settings, flags, environ))]
    for name in shipped:
        chosen = {**flags, "profile": name}
        own = load_profiles(load(chosen, environ), chosen, environ)
        lists.append(tuple(profile.name for profile in own))
    return list(dict.fromkeys(lists))


def _nothing_at(*folders: Path) -> str:
    """Say where nothing runs, and where something does."""
    places = {folder.parent for folder in folders} | {SYSTEM_RUN_DIR}
    beside = sorted(
        place for parent in places for place in parent.glob("*/") if _has_shared_memory(place)
    )
    running = f"name one that runs with --run-dir: {', '.join(map(str, beside))}"
    remedy = running if beside else "start one with qwenapi serve, or name its --run-dir or --port"
    return f"no qwenapi runs at {', '.join(map(str, folders))}; {remedy}"


def _engine(folder: Path, memory: SharedMemory, slot: int) -> EngineReading:
    values = memory.read(slot)
    age = (time.monotonic_ns() - values["beat_ns"]) / 1e9
    state = PHASES.get(values["phase"], "none")
    if not memory.is_leased(slot):
        state = DOWN
        values = {name: values[name] if name in ENGINE_COUNTERS else 0 for name in values}
    return EngineReading(EngineRow(slot, "", state, values, _node(folder, slot)), age)


def _node(folder: Path, slot: int) -> str:
    """Return the node of a cluster that an engine is on; empty: this machine, or nowhere now."""
    try:
        return Endpoint.read(endpoint_path(folder, slot)).node
    except (OSError, ProtocolError):
        return ""


def _profile(counts: Counts, earlier: Counts | None, seconds: float) -> dict[str, Any]:
    shown = ("accepted", "successful", "failed", "cancelled")
    tokens = counts["completion_tokens"] - (earlier["completion_tokens"] if earlier else 0)
    return {
        "running": counts.running,
        "waiting": counts.waiting,
        **{name: counts[name] for name in shown},
        "tokens_per_second": _rate(tokens if earlier else None, seconds),
        **{name: _percentiles(counts.distribution(name)) for name in DURATIONS},
    }


def _percentiles(distribution: Distribution) -> dict[str, float | None]:
    bounds = {f"p{share * 100:g}": upper_bound(distribution, share) for share in PERCENTILES}
    return {
        name: None if bound is None or math.isinf(bound) else bound
        for name, bound in bounds.items()
    } | {"count": distribution.count}


def _engine_report(
    engine: EngineReading, before: Sequence[EngineReading], seconds: float
) -> dict[str, Any]:
    row, values = engine.row, engine.row.values
    key = "generated_tokens"
    grown = values[key] - before[0].row.values[key] if before else None
    return {
        "engine": row.engine,
        "node": row.node or None,
        "phase": row.state,
        "running": values["running"],
        "waiting": values["waiting"],
        "kv_cache_usage": round(row.kv_cache_usage, 6),
        "state_slots": state_slots(row),
        "generated_tokens": values[key],
        "tokens_per_second": _rate(grown, seconds),
        "drafted_tokens": values["drafted_tokens"],
        "accepted_tokens": values["accepted_tokens"],
        "restarts": row.num_restarts,
        "last_sign_of_life": round(engine.beat_age, 3),
    }


def _rate(difference: int | None, seconds: float) -> float | None:
    """Return a rate; None of a counter that began anew between the readings."""
    if difference is None or difference < 0 or seconds <= 0:
        return None
    return round(difference / seconds, 1)


def _show_once(shown: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(shown))
        return
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else FILE_COLUMNS).print(_screen(shown))


def _show_live(sources: StatsSources, before: TopReading) -> None:
    from rich.live import Live

    with Live(_screen(report(before, before)), screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(INTERVAL_SECONDS)
            after = sources.read()
            live.update(_screen(report(before, after)), refresh=True)
            before = after


def _screen(shown: Mapping[str, Any]) -> "RenderableType":
    from rich.console import Group
    from rich.text import Text

    uptime = "not yet" if shown["uptime"] is None else f"{shown['uptime']:.0f} s"
    alerts = ", ".join(shown["alerts"]) or "none"
    head = f"counting for {uptime}, {shown['http_processes']} HTTP processes, alerts: {alerts}"
    profiles = [
        [name, *(str(row[key]) for key in ("running", "waiting", "accepted", "successful"))]
        + [str(row["failed"]), str(row["cancelled"]), _number(row["tokens_per_second"])]
        + [_pair(row[key]) for key in DURATIONS]
        for name, row in shown["profiles"].items()
    ]
    has_state = any(row["state_slots"] for row in shown["engines"])
    has_nodes = any(row["node"] for row in shown["engines"])
    engines = [
        [str(row["engine"]), *[row["node"] or "-"][:has_nodes], row["phase"]]
        + [str(row["running"]), str(row["waiting"])]
        + [f"{row['kv_cache_usage']:.1%}", *_states(row["state_slots"])[: 3 * has_state]]
        + [_number(row["tokens_per_second"])]
        + [_share(row["accepted_tokens"], row["drafted_tokens"])]
        + [str(row["restarts"]), f"{row['last_sign_of_life']:.1f} s ago"]
        for row in shown["engines"]
    ]
    titles = ("profile", "runs", "waits", "accepted", "done", "failed", "cancelled", "tokens/s")
    times = ("first\ntoken", "between\ntokens", "whole\nanswer")
    about = ["engine", *["node"] * has_nodes, "phase", "runs", "waits", "cache used"]
    about += ["states used", "snapshots", "hits"] if has_state else []
    return Group(
        Text(head, style="bold red" if shown["alerts"] else "bold"),
        _table([*titles, *times], profiles),
        Text("Times are p50 / p95 in seconds, each the upper bound of its histogram's bucket."),
        _table([*about, "tokens/s", "drafts right", "restarts", "last sign"], engines),
    )


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> "RenderableType":
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for i, title in enumerate(titles):
        table.add_column(title, justify="left" if i == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:g}"


def _states(slots: Mapping[str, int] | None) -> Sequence[str]:
    """Return the cells of an engine's state slots: used of all, snapshots, and their hits."""
    if slots is None:
        return ["–"] * 3
    return [
        f"{slots['used']} of {slots['total']}",
        str(slots["snapshots"]),
        str(slots["snapshot_hits"]),
    ]


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "–"


def _pair(percentiles: Mapping[str, float | None]) -> str:
    if not percentiles["count"]:
        return "–"
    words = (percentiles[f"p{share * 100:g}"] for share in PERCENTILES)
    return " / ".join("beyond" if word is None else f"{word:g}" for word in words)
