"""Which numbers the metrics store holds: a slot's counters, its histograms, its ring of records.

One slot a process, in memory that all HTTP processes share. Counters and histograms are of each
profile, records of the last successful requests; durations are nanoseconds. Of a request only five
things are counted; total, waiting and running follow from them:

    accepted ── the engines took it, or refused it for want of room
    started  ── it left the queue, to run or to end
    successful + failed + cancelled ── it ended, each request in exactly one of the three
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from workers.wire.layout import Layout

NANO = 1_000_000_000
NUM_SLOTS = 64
NUM_RECORDS = 1024

ENDINGS = ("successful", "failed", "cancelled")
REQUESTS = ("accepted", "started", *ENDINGS)
TOKENS = ("prompt_tokens", "cached_tokens", "completion_tokens")
FINISH_REASONS = ("stop", "length")
# Why requests fail; anything else counts as the last one.
FAILURES = (
    "queue_full",
    "queue_timeout",
    "engine_unavailable",
    "engine_failed",
    "engine_crash",
    "model_changed",
    "server_shutdown",
    "storage_unavailable",
    "worker_lost",
    "internal_error",
)
ALERTS = ("error_rate", "queue_near_full", "ttft_p95", "kv_cache_full", "engine_restarts")

SLOT = (
    "pid",
    "since_ns",  # wall clock: when this slot began to count
    "running",
    "peak_running",  # of all slots together, as this one's owner saw it
    "replays",
    "num_records",  # written ever; record n lies at n modulo the ring's length
    *(f"alert.{name}" for name in ALERTS),  # wall clock: since when it is up, 0 for not
)
RECORD = ("end_ns", "latency_ns", "ttft_ns", "prompt", "cached", "completion", "profile")


@dataclass(frozen=True)
class Histogram:
    """A distribution with fixed upper bounds, in seconds or tokens; the last bucket has none."""

    name: str
    bounds: tuple[float, ...]
    is_duration: bool = True

    @property
    def fields(self) -> list[str]:
        return [f"{self.name}.{i}" for i in range(len(self.bounds) + 1)] + [f"{self.name}.sum"]

    @property
    def stored_bounds(self) -> list[int]:
        """Return the bounds in the unit the store holds."""
        return [round(bound * (NANO if self.is_duration else 1)) for bound in self.bounds]


_FIRST = (0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160)
_BETWEEN = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2.5, 5, 10, 40)
_WHOLE = (0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 60, 120, 240, 480, 960)
_COUNTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)

# Of successful requests, but for the gaps between tokens and the first tokens: of all.
HISTOGRAMS = (
    Histogram("ttft", _FIRST),
    Histogram("inter_token", _BETWEEN),
    Histogram("latency", _WHOLE),
    Histogram("queue", _WHOLE),
    Histogram("prefill", _WHOLE),
    Histogram("decode", _WHOLE),
    Histogram("prompt", _COUNTS, is_duration=False),
    Histogram("completion", _COUNTS, is_duration=False),
)
PROFILE = (
    *REQUESTS,
    *TOKENS,
    *(f"finish.{reason}" for reason in FINISH_REASONS),
    *(f"failed.{failure}" for failure in FAILURES),
    *(field for histogram in HISTOGRAMS for field in histogram.fields),
)
OFFSETS = {field: i for i, field in enumerate(PROFILE)}


@cache
def metrics_layout(profiles: tuple[str, ...]) -> Layout:
    """Return the layout for these profiles; others make other memory, and count from 0."""
    fields = (f"{profile}.{field}" for profile in profiles for field in PROFILE)
    return Layout("http", (*SLOT, *fields), RECORD, NUM_RECORDS)


def starts(num_profiles: int) -> Iterator[int]:
    """Yield where the fields of each profile begin within a slot."""
    return (len(SLOT) + i * len(PROFILE) for i in range(num_profiles))


def fold(values: "list[int] | memoryview[int]", num_profiles: int) -> None:
    """Let what an owner that has died had in flight count as failed, in a slot's values."""
    for start in starts(num_profiles):
        accepted = values[start + OFFSETS["accepted"]]
        lost = accepted - sum(values[start + OFFSETS[ending]] for ending in ENDINGS)
        values[start + OFFSETS["started"]] = accepted
        values[start + OFFSETS["failed"]] += lost
        values[start + OFFSETS["failed.worker_lost"]] += lost
    for field in ("running", *(f"alert.{name}" for name in ALERTS)):
        values[SLOT.index(field)] = 0


def in_order(
    records: Sequence[Sequence[int]], written_before: int, written_after: int
) -> list[int]:
    """Return where whole records lie, oldest first; `written_*`: before and after the reading."""
    # The record after the last counted one may have been half written.
    oldest = max(0, written_after + 1 - len(records))
    return [number % len(records) for number in range(oldest, written_before)]
