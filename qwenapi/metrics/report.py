"""The JSON reports as the document of profile `news` has them: its keys, order, rounding. Pure.

Every number is there and is a number, also before the first request. Percentiles, means and
throughput are of the last successful requests, `sample_size` of them; the rest is of all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from qwenapi.metrics.alerts import alert_bodies
from qwenapi.metrics.snapshot import Counts, Record, Snapshot, percentile
from qwenapi.settings.profile import Profile
from qwenapi.settings.table import Settings
from workers.wire.engine_stats import EngineRow

GIB = 1024**3
BUCKETS = {
    "0-100ms": 0.1,
    "100-500ms": 0.5,
    "500-1000ms": 1,
    "1-2s": 2,
    "2-5s": 5,
    "5-10s": 10,
}
LAST_BUCKET = ">10s"


class Gpu(NamedTuple):
    """What its driver says of an engine's device; `utilization`: the share of time it was busy."""

    name: str
    utilization: float


@dataclass(frozen=True)
class MetricsReading:
    """Everything a report is made of, read at one moment; `now` is seconds of the wall clock."""

    settings: Settings
    snapshot: Snapshot
    engines: Sequence[EngineRow]
    now: float
    is_ready: bool
    is_shared: bool = True
    gpus: Mapping[int, Gpu] = field(default_factory=dict)

    @property
    def uptime(self) -> float:
        """Return the seconds since the metrics store began to count."""
        return max(0.0, self.now - self.snapshot.since)


def metrics_body(reading: MetricsReading, profile: Profile) -> dict[str, Any]:
    """Return the body of `/api/v1/metrics`."""
    snapshot = reading.snapshot
    total, records = snapshot.total, snapshot.records
    alerts = alert_bodies(snapshot.alerts, reading.settings)
    return {
        "timestamp": datetime.fromtimestamp(reading.now).isoformat(timespec="microseconds"),
        "service": profile.service,
        "version": profile.version,
        "status": "healthy" if reading.is_ready else "unhealthy",
        "uptime": _uptime(reading.uptime),
        "requests": _requests(reading),
        "tokens": _tokens(total),
        "slo": _slo(records),
        "latency": _latency(records),
        "latency_histogram": _latency_histogram(total),
        "gpu": _gpu(reading),
        "errors": {"total": _failed(total), "by_type": _failures(total)},
        "alerts": alerts,
        "alerts_count": len(alerts),
    }


def stats_body(reading: MetricsReading) -> dict[str, Any]:
    """Return the body of `/stats`: the report's counters and latencies."""
    return {
        "requests": _requests(reading),
        "tokens": _tokens(reading.snapshot.total),
        "latency": _latency(reading.snapshot.records),
    }


def time_to_first_token(records: Sequence[Record]) -> dict[str, Any]:
    values = sorted(record.ttft for record in records)
    return _percentiles(values) | {"unit": "seconds"}


def throughput(records: Sequence[Record]) -> dict[str, Any]:
    """Return tokens per second: after the first token (of all together, and the median request),
    and from a request's arrival to its end.
    """
    tokens = sum(record.completion_tokens for record in records)
    seconds = sum(record.latency for record in records)
    decoding = seconds - sum(record.ttft for record in records)
    rates = sorted(record.decoding_rate for record in records)
    return {
        "decoding_mean": round(_ratio(tokens - len(records), decoding), 2),
        "decoding_p50": round(percentile(rates, 0.50), 2),
        "total": round(_ratio(tokens, seconds), 2),
        "unit": "tokens/sec",
    }


def _uptime(seconds: float) -> dict[str, Any]:
    minutes = int(seconds) // 60
    return {"seconds": round(seconds, 1), "human": f"{minutes // 60}h {minutes % 60}m"}


def _requests(reading: MetricsReading) -> dict[str, Any]:
    total = reading.snapshot.total
    error_rate = 100 * _ratio(_failed(total), total.ended)
    return {
        "waiting": total.waiting,
        "running": total.running,
        "peak_concurrent": reading.snapshot.peak_running,
        "total": total["accepted"],
        "successful": total["successful"],
        "failed": _failed(total),
        "success_rate_percent": round(100.0 - error_rate, 2),
        "error_rate_percent": round(error_rate, 2),
        "requests_per_second": round(_ratio(total["accepted"], reading.uptime), 3),
    }


def _tokens(total: Counts) -> dict[str, Any]:
    return {
        "total_input": total["prompt_tokens"],
        "total_output": total["completion_tokens"],
        "avg_per_request": round(_ratio(total["completion_tokens"], total["successful"]), 1),
    }


def _slo(records: Sequence[Record]) -> dict[str, Any]:
    return {
        "ttft": time_to_first_token(records),
        "throughput": throughput(records),
        "sample_size": len(records),
    }


def _latency(records: Sequence[Record]) -> dict[str, Any]:
    values = sorted(record.latency for record in records)
    ends = {"min": percentile(values, 0.0), "max": percentile(values, 1.0)}
    rounded = {name: round(value, 4) for name, value in ends.items()}
    return _percentiles(values) | rounded | {"unit": "seconds"}


def _latency_histogram(total: Counts) -> dict[str, int]:
    latencies = total.distribution("latency")
    counts, below = {}, 0
    for name, bound in BUCKETS.items():
        up_to = latencies.up_to(bound)
        counts[name], below = up_to - below, up_to
    return counts | {LAST_BUCKET: latencies.count - below}


def _gpu(reading: MetricsReading) -> dict[str, Any]:
    """Return the memory of all engines' devices; the percentage is of memory, as documented."""
    allocated = sum(row.values["device_allocated"] for row in reading.engines)
    total = sum(row.values["device_total"] for row in reading.engines)
    has_gpu = any(row.has_gpu for row in reading.engines)
    names = dict.fromkeys(gpu.name for gpu in reading.gpus.values())
    return {
        "name": (", ".join(names) or "GPU") if has_gpu else "CPU",
        "allocated_gb": round(allocated / GIB, 2),
        "total_gb": round(total / GIB, 2),
        "free_gb": round((total - allocated) / GIB, 2),
        "utilization_percent": round(100 * _ratio(allocated, total), 1),
    }


def _failed(total: Counts) -> int:
    """Return what the document calls failed: a caller who left counts too."""
    return total["failed"] + total["cancelled"]


def _failures(total: Counts) -> dict[str, int]:
    cancelled = {"cancelled": total["cancelled"]} if total["cancelled"] else {}
    return total.failures | cancelled


def _percentiles(values: Sequence[float]) -> dict[str, Any]:
    shares = {"p50": 0.50, "p95": 0.95, "p99": 0.99}
    mean = {"mean": round(_ratio(sum(values), len(values)), 4)}
    return mean | {name: round(percentile(values, share), 4) for name, share in shares.items()}


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0
