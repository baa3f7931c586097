"""The body of `/ui/status.json`: how the service is now and, if asked for, was lately. Pure.

What lies behind comes from the store's ring of successful requests alone, so it begins with the
oldest of them; what is under way, or failed, is not in it. Times are seconds, the clock the wall's.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from qwenapi.metrics.alerts import LEVELS
from qwenapi.metrics.report import MetricsReading
from qwenapi.metrics.snapshot import Record, percentile
from workers.wire.engine_stats import EngineRow

HISTORY_SECONDS = 900
POINT_SECONDS = 10
# First tokens are of requests that ended in so many seconds before.
WINDOW_SECONDS = 60


def status_body(reading: MetricsReading, *, with_history: bool) -> dict[str, Any]:
    """Return the figures of this moment; tokens count up, so that two readings make a rate."""
    snapshot, total = reading.snapshot, reading.snapshot.total
    counters = ("accepted", "successful", "failed", "cancelled")
    body = {
        "at": round(reading.now, 3),
        "ready": reading.is_ready,
        "uptime": round(reading.uptime, 1),
        "http_processes": snapshot.num_processes,
        "requests": {
            "running": total.running,
            "waiting": total.waiting,
            **{name: total[name] for name in counters},
        },
        "tokens": total["completion_tokens"],
        "ttft": _ttft(snapshot.records, reading.now),
        "kv_cache_usage": _cache_usage(reading.engines),
        "engines": [_engine(row) for row in reading.engines],
        "alerts": [
            {"name": name, "level": LEVELS[name], "since": round(since, 3)}
            for name, since in sorted(snapshot.alerts.items(), key=lambda item: item[1])
        ],
    }
    return body | ({"history": history(snapshot.records, reading.now)} if with_history else {})


def history(records: Sequence[Record], now: float) -> list[dict[str, Any]]:
    """Return one point for every ten seconds since the oldest record, at most fifteen minutes."""
    if not records:
        return []
    ago = min(now - records[0].end, HISTORY_SECONDS)
    times = [now - age for age in range(POINT_SECONDS, int(ago) + 1, POINT_SECONDS)]
    return [
        {
            "at": round(at, 3),
            "tokens_per_second": round(_tokens(records, at) / POINT_SECONDS, 2),
            "ttft": _ttft(records, at),
        }
        for at in reversed(times)
    ]


def _tokens(records: Iterable[Record], at: float) -> float:
    """Return the tokens of the ten seconds before, each record's spread evenly over its writing."""
    tokens = 0.0
    for record in records:
        begin = record.end - max(record.latency - record.ttft, 0.001)
        shared = min(record.end, at) - max(begin, at - POINT_SECONDS)
        if shared > 0:
            tokens += record.completion_tokens * shared / (record.end - begin)
    return tokens


def _ttft(records: Iterable[Record], at: float) -> dict[str, float | None]:
    """Return the percentiles of the minute before; None where nothing ended."""
    found = sorted(record.ttft for record in records if at - WINDOW_SECONDS < record.end <= at)
    shares = {"p50": 0.50, "p95": 0.95}
    return {
        name: round(percentile(found, share), 4) if found else None
        for name, share in shares.items()
    }


def _cache_usage(engines: Sequence[EngineRow]) -> float:
    """Return the used share of all engines' blocks together."""
    free, total = (
        sum(row.values[name] for row in engines) for name in ("free_blocks", "total_blocks")
    )
    return round(1 - free / total, 4) if total else 0.0


def _engine(row: EngineRow) -> dict[str, Any]:
    return {
        "engine": row.engine,
        "device": row.device,
        "node": row.node or None,
        "state": row.state,
        "running": row.values["running"],
        "waiting": row.values["waiting"],
        "kv_cache_usage": round(row.kv_cache_usage, 4),
        "state_slots": state_slots(row),
        "tokens": row.values["generated_tokens"],
        "restarts": row.num_restarts,
    }


def state_slots(row: EngineRow) -> dict[str, int] | None:
    """Return what an engine has of state slots; None where its model has no state."""
    if not row.has_state:
        return None
    return {
        "total": row.values["total_state_slots"],
        "used": row.used_state_slots,
        "snapshots": row.values["state_snapshots"],
        "snapshot_hits": row.values["state_snapshot_hits"],
    }
