"""MetricsStore: the slot of the metrics that this process writes; RequestMetrics: one request.

No locks: each slot has one writer. A process that dies leaves its counters to the next owner of
its slot; what it had in flight counts as failed. Where no memory can be shared, the same numbers
are kept for this process alone, and `is_shared` says so. Knows nothing of Flask or of engines.
"""

import fcntl
import logging
import os
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from qwenapi.metrics.layout import (
    ALERTS,
    ENDINGS,
    FAILURES,
    FINISH_REASONS,
    HISTOGRAMS,
    NANO,
    NUM_SLOTS,
    OFFSETS,
    SLOT,
    fold,
    metrics_layout,
    starts,
)
from workers.errors import SharedMemoryError
from workers.wire.shared_memory import SharedMemory, Slot
from workers.wire.shared_memory_files import shared_memory_path

log = logging.getLogger(__name__)

_BOUNDS = {histogram.name: histogram.stored_bounds for histogram in HISTOGRAMS}
_AT = {histogram.name: OFFSETS[f"{histogram.name}.0"] for histogram in HISTOGRAMS}
_GAP_AT, _GAP_BOUNDS = _AT["inter_token"], _BOUNDS["inter_token"]
_GAP_SUM = OFFSETS["inter_token.sum"]
_COMPLETION = OFFSETS["completion_tokens"]

# Failures that callers are told under another name.
_NAMES = {"storage_full": "storage_unavailable"}


class Named(Protocol):
    """What has a name, such as a profile."""

    @property
    def name(self) -> str: ...


def create_metrics_memory(run_dir: Path, profiles: Sequence[Named]) -> Path | None:
    """Make the memory of an HTTP half, or find what its last processes left; None: no room."""
    layout = metrics_layout(tuple(profile.name for profile in profiles))
    try:
        path = shared_memory_path(run_dir, layout)
        SharedMemory.create(path, layout, NUM_SLOTS).close()
    except SharedMemoryError as failure:
        log.warning("each HTTP process keeps its own numbers: %s", failure)
        return None
    return path


class MetricsStore:
    """The shared memory of one HTTP half, and the slot this process writes."""

    def __init__(self, memory: SharedMemory, slot: Slot, profiles: Sequence[str]) -> None:
        self.memory = memory
        self.slot = slot
        self.profiles = tuple(profiles)
        self.is_shared = memory.path != Path("private")
        layout = memory.layout
        self._starts = dict(
            zip(profiles, (slot.start + at for at in starts(len(profiles))), strict=True)
        )
        self._running = [layout.start(i) + SLOT.index("running") for i in range(memory.num_slots)]

    @classmethod
    def lease(cls, path: str, profiles: Sequence[str]) -> "MetricsStore":
        """Take a free slot of the memory; slots whose owners have died are put in order first."""
        layout = metrics_layout(tuple(profiles))
        try:
            memory = SharedMemory.open(Path(path), layout) if path else SharedMemory.private(layout)
            with _one_at_a_time(path):
                slot = _lease_any(memory, len(profiles))
        except SharedMemoryError as failure:
            log.warning("this HTTP process keeps its own numbers: %s", failure)
            memory = SharedMemory.private(layout)
            slot = _lease_any(memory, len(profiles))
        slot["pid"] = os.getpid()
        slot["since_ns"] = slot["since_ns"] or time.time_ns()
        return cls(memory, slot, profiles)

    def begin(self, profile: str, arrival: float) -> "RequestMetrics":
        """Return the metrics of a request that arrived at `arrival`, a time.monotonic()."""
        return RequestMetrics(self, self._starts[profile], self.profiles.index(profile), arrival)

    def note_running(self, change: int) -> None:
        """Count what runs here, and keep the most that ever ran in all processes at once."""
        ints, slot, memory = self.slot.ints, self.slot, self.memory
        slot["running"] += change
        if change > 0:
            # A slot whose owner has died still says what it had.
            running = sum(
                ints[place]
                for number, place in enumerate(self._running)
                if ints[place] and memory.is_leased(number)
            )
            slot["peak_running"] = max(slot["peak_running"], running)

    def set_alerts(self, since_ns: Iterable[int]) -> None:
        """Note since when each of ALERTS is up (wall clock), 0 for those that are not."""
        for name, value in zip(ALERTS, since_ns, strict=True):
            self.slot[f"alert.{name}"] = value


class RequestMetrics:
    """What becomes of one request. Of its methods only `accept` and `end` must be called; `end`
    counts once, and nothing if the request was never accepted. `ending` is then one of ENDINGS.
    """

    __slots__ = (
        "_metrics_store", "_ints", "_at", "_profile", "_arrival", "_accepted", "_started", "_first",
        "_last", "_is_over", "_prompt", "_cached", "_completion", "ending", "failure",
    )  # fmt: skip

    def __init__(self, metrics_store: MetricsStore, at: int, profile: int, arrival: float) -> None:
        self._metrics_store = metrics_store
        self._ints = metrics_store.slot.ints
        self._at = at
        self._profile = profile
        self._arrival = arrival
        self._accepted = self._started = self._first = 0.0
        self._last: dict[int, float] = {}
        self._is_over = False
        self._prompt = self._cached = self._completion = 0
        self.ending = self.failure = ""

    @property
    def completion_tokens(self) -> int:
        return self._completion

    @property
    def facts(self) -> dict[str, Any]:
        """Return what a log line says of the request: tokens, and seconds as far as it came."""
        facts: dict[str, Any] = {
            "prompt_tokens": self._prompt,
            "cached_tokens": self._cached if self.ending == ENDINGS[0] else None,
            "completion_tokens": self._completion,
            "queue": round(self._started - self._accepted, 4) if self._started else None,
            "ttft": round(self._first - self._arrival, 4) if self._first else None,
            "ending": self.ending or None,
        }
        return facts | ({"code": self.failure} if self.failure else {})

    def accept(self, prompt_tokens: int) -> None:
        """Note that the engines took a prompt of the request, or refused it for want of room."""
        if not self._accepted:
            self._accepted = time.monotonic()
            self._add("accepted")
        self._prompt += prompt_tokens
        self._add("prompt_tokens", prompt_tokens)

    def start(self) -> None:
        """Note that an engine began to compute; what follows is counted once."""
        if not self._started and self._accepted and not self._is_over:
            self._started = time.monotonic()
            self._add("started")
            self._metrics_store.note_running(1)

    def tokens(self, choice: int, count: int, now: float) -> None:
        """Note tokens of a choice that came at `now`, a time.monotonic()."""
        ints, at, last = self._ints, self._at, self._last
        self._completion += count
        ints[at + _COMPLETION] += count
        if choice in last:
            gap = int((now - last[choice]) * NANO)
            ints[at + _GAP_AT + bisect_left(_GAP_BOUNDS, gap)] += 1
            ints[at + _GAP_SUM] += gap
        elif not last:
            self._first = now
            self._observe("ttft", int((now - self._arrival) * NANO))
        last[choice] = now

    def succeed(self, finish_reason: str, cached_tokens: int) -> None:
        """Note that all of it was sent, and how much of the prompt a cache had."""
        if self._end("successful"):
            self._cached = cached_tokens
            self._add("cached_tokens", cached_tokens)
            if finish_reason in FINISH_REASONS:
                self._add(f"finish.{finish_reason}")
            self._measure(time.monotonic())

    def fail(self, failure: str) -> None:
        """Note why nothing, or not all of it, could be sent."""
        if self._end("failed"):
            self.failure = failure
            failure = _NAMES.get(failure, failure)
            self._add(f"failed.{failure if failure in FAILURES else FAILURES[-1]}")

    def cancel(self) -> None:
        """Note that the caller left first."""
        self._end("cancelled")

    def _end(self, ending: str) -> bool:
        if self._is_over or not self._accepted:
            return False
        self._is_over = True
        self.ending = ending
        if self._started:
            self._metrics_store.note_running(-1)
        else:
            self._add("started")
        self._add(ending)
        return True

    def _measure(self, now: float) -> None:
        first = self._first or now
        started = min(self._started or now, first)  # both may have come in one batch
        latency, ttft = (int((t - self._arrival) * NANO) for t in (now, first))
        self._observe("latency", latency)
        self._observe("queue", int((started - self._accepted) * NANO))
        self._observe("prefill", int((first - started) * NANO))
        self._observe("decode", int((now - first) * NANO))
        self._observe("prompt", self._prompt)
        self._observe("completion", self._completion)
        slot = self._metrics_store.slot
        number = slot["num_records"]
        counts = (self._prompt, self._cached, self._completion, self._profile)
        slot.write_record(number, (time.time_ns(), latency, ttft, *counts))
        slot["num_records"] = number + 1

    def _add(self, field: str, amount: int = 1) -> None:
        self._ints[self._at + OFFSETS[field]] += amount

    def _observe(self, name: str, value: int) -> None:
        ints, at = self._ints, self._at
        ints[at + _AT[name] + bisect_left(_BOUNDS[name], value)] += 1
        ints[at + OFFSETS[f"{name}.sum"]] += value


@contextmanager
def _one_at_a_time(path: str) -> Iterator[None]:
    """Keep others from leasing slots meanwhile."""
    if not path:
        yield
        return
    with open(path, "rb") as memory:
        fcntl.flock(memory, fcntl.LOCK_EX)
        yield


def _lease_any(memory: SharedMemory, num_profiles: int) -> Slot:
    """Fold what the dead left in any slot, and lease the first of theirs.

    Folded first: readers fold a free slot themselves and take a leased one as it is, so that no
    number of theirs goes back. Nobody else writes a free slot while leases are made one at a time.
    """
    free = [number for number in range(memory.num_slots) if not memory.is_leased(number)]
    for number in free:
        slot = Slot(memory, number)
        if slot["pid"]:
            fold(slot.ints[slot.start : slot.start + len(memory.layout.fields)], num_profiles)
    if not free:
        raise SharedMemoryError(f"{memory.path}: all {memory.num_slots} slots are taken")
    return memory.lease(free[0])
