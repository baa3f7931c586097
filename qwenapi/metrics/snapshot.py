"""Snapshot: the metrics of all HTTP processes, added up at one moment.

A slot whose owner has died is read as its next owner will find it: nothing in flight.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import add
from typing import NamedTuple

from qwenapi.metrics.layout import (
    ALERTS,
    FAILURES,
    HISTOGRAMS,
    NANO,
    NUM_RECORDS,
    OFFSETS,
    PROFILE,
    SLOT,
    Histogram,
    fold,
    in_order,
    starts,
)
from workers.wire.shared_memory import SharedMemory


class Record(NamedTuple):
    """One successful request; `end` is seconds of the wall clock, durations are seconds."""

    end: float
    latency: float
    ttft: float
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    profile: str

    @property
    def decoding_rate(self) -> float:
        """Return tokens per second after the first token; 0 for a single token."""
        seconds = self.latency - self.ttft
        return (self.completion_tokens - 1) / seconds if seconds > 0 else 0.0


@dataclass(frozen=True)
class Distribution:
    """A histogram's counts (one more than its bounds) and the sum, in its unit."""

    histogram: Histogram
    counts: tuple[int, ...]
    sum: float

    @property
    def count(self) -> int:
        return sum(self.counts)

    def up_to(self, bound: float) -> int:
        """Return how many were at most `bound`, which must be one of the histogram's."""
        return sum(self.counts[: self.histogram.bounds.index(bound) + 1])


@dataclass(frozen=True)
class Counts:
    """The counters of one profile, or of several added up."""

    values: tuple[int, ...]

    @classmethod
    def total(cls, parts: Iterable["Counts"]) -> "Counts":
        values = [0] * len(PROFILE)
        for part in parts:
            values = list(map(add, values, part.values))
        return cls(tuple(values))

    def __getitem__(self, field: str) -> int:
        return self.values[OFFSETS[field]]

    @property
    def ended(self) -> int:
        return self["successful"] + self["failed"] + self["cancelled"]

    @property
    def waiting(self) -> int:
        return max(0, self["accepted"] - self["started"])

    @property
    def running(self) -> int:
        return max(0, self["started"] - self.ended)

    @property
    def failures(self) -> dict[str, int]:
        """Return the failures that happened, by type."""
        counts = {name: self[f"failed.{name}"] for name in FAILURES}
        return {name: count for name, count in counts.items() if count}

    def distribution(self, name: str) -> Distribution:
        histogram = next(histogram for histogram in HISTOGRAMS if histogram.name == name)
        *counts, total = (self[field] for field in histogram.fields)
        unit = NANO if histogram.is_duration else 1
        return Distribution(histogram, tuple(counts), total / unit)


@dataclass(frozen=True)
class Snapshot:
    """All numbers of an HTTP half. `since` and the alerts' are seconds of the wall clock; `records`
    are the last successful requests, oldest first.
    """

    profiles: Mapping[str, Counts]
    records: Sequence[Record]
    alerts: Mapping[str, float]
    since: float
    peak_running: int
    replays: int
    num_processes: int

    @cached_property
    def total(self) -> Counts:
        return Counts.total(self.profiles.values())


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that this share of the sorted values lies below; 0 of none."""
    return values[min(int(len(values) * share), len(values) - 1)] if values else 0.0


def take_snapshot(memory: SharedMemory, profiles: Sequence[str]) -> Snapshot:
    """Add up the slots; one nobody ever used costs nothing."""
    sums = [[0] * len(PROFILE) for _ in profiles]
    slots: list[dict[str, int]] = []
    records: list[Record] = []
    num_processes = 0
    for number in range(memory.num_slots):
        if not memory.value(number, SLOT.index("pid")):
            continue
        # First this, then the values: what an owner ends before it dies must not count as lost.
        is_alive = memory.is_leased(number)
        values = memory.values(number)
        records += _records(memory, number, values[SLOT.index("num_records")], profiles)
        num_processes += is_alive
        if not is_alive:
            fold(values, len(profiles))
        slots.append(dict(zip(SLOT, values, strict=False)))
        for i, start in enumerate(starts(len(profiles))):
            sums[i] = list(map(add, sums[i], values[start : start + len(PROFILE)]))
    return Snapshot(
        profiles={name: Counts(tuple(values)) for name, values in zip(profiles, sums, strict=True)},
        records=sorted(records)[-NUM_RECORDS:],
        alerts=_alerts(slots),
        since=min((slot["since_ns"] for slot in slots), default=0) / NANO,
        peak_running=max((slot["peak_running"] for slot in slots), default=0),
        replays=sum(slot["replays"] for slot in slots),
        num_processes=num_processes,
    )


def _alerts(slots: Sequence[Mapping[str, int]]) -> dict[str, float]:
    """Return since when each alert is up, as the process that saw it first says."""
    up = {
        name: [slot[f"alert.{name}"] for slot in slots if slot[f"alert.{name}"]] for name in ALERTS
    }
    return {name: min(since) / NANO for name, since in up.items() if since}


def _records(
    memory: SharedMemory, slot: int, written: int, profiles: Sequence[str]
) -> list[Record]:
    if not written:
        return []
    raw = memory.records(slot)
    written_after = memory.values(slot)[SLOT.index("num_records")]
    return [
        Record(
            end / NANO, latency / NANO, ttft / NANO, prompt, cached, completion, profiles[profile]
        )
        for end, latency, ttft, prompt, cached, completion, profile in (
            raw[place] for place in in_order(raw, written, written_after)
        )
    ]
