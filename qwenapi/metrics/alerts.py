"""Alerts: rules over the metrics and the engines' statistics, checked once a second.

Every HTTP process checks by itself and writes into its slot since when an alert is up; what is
reported is the union of all slots, so all processes report the same. Each rule's memory lasts as
long as its window and begins with the process.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

from qwenapi.metrics.layout import ALERTS, NANO
from qwenapi.metrics.snapshot import Counts, Record, Snapshot, percentile, take_snapshot
from qwenapi.metrics.store import MetricsStore
from qwenapi.settings.table import Settings
from workers.wire.engine_stats import EngineRow

log = logging.getLogger(__name__)

CHECK_SECONDS = 1.0
WINDOW_SECONDS = 300.0
RESTARTS_SECONDS = 600.0
FULL_SECONDS = 30.0
LEVELS = {
    "error_rate": "critical",
    "queue_near_full": "warning",
    "ttft_p95": "warning",
    "kv_cache_full": "warning",
    "engine_restarts": "critical",
}


class Engines(Protocol):
    """What alerts are told of the engines, as EngineClient tells it."""

    @property
    def num_replays(self) -> int: ...

    def engine_rows(self) -> Sequence[EngineRow]: ...


class Rules:
    """The rules and what they remember; `max_waiting` holds each profile's limit."""

    def __init__(self, settings: Settings, max_waiting: Mapping[str, int]) -> None:
        self._settings = settings
        self._max_waiting = max_waiting
        self._endings: deque[tuple[float, int, int]] = deque()  # when, failed, ended until then
        self._num_restarts: dict[int, int] = {}
        self._restarts: deque[float] = deque()
        self._full_since: float | None = None

    def check(self, snapshot: Snapshot, engines: Sequence[EngineRow], now: float) -> set[str]:
        """Return the names of the alerts whose condition holds; `now` is wall clock seconds."""
        holds = {
            "error_rate": self._fails_often(snapshot.total, now),
            "queue_near_full": self._is_queue_near_full(snapshot.profiles),
            "ttft_p95": self._is_slow(snapshot.records, now),
            "kv_cache_full": self._is_cache_full(engines, now),
            "engine_restarts": self._restarts_often(engines, now),
        }
        return {name for name in ALERTS if holds[name]}

    def _fails_often(self, total: Counts, now: float) -> bool:
        endings = self._endings
        endings.append((now, total["failed"], total.ended))
        while len(endings) > 1 and endings[1][0] <= now - WINDOW_SECONDS:
            endings.popleft()
        failed, ended = (endings[-1][i] - endings[0][i] for i in (1, 2))
        return (
            ended >= self._settings.alerts_min_requests
            and failed > self._settings.alerts_error_rate * ended
        )

    def _is_queue_near_full(self, profiles: Mapping[str, Counts]) -> bool:
        share = self._settings.alerts_queue
        return any(
            counts.waiting >= share * self._max_waiting[name] for name, counts in profiles.items()
        )

    def _is_slow(self, records: Iterable[Record], now: float) -> bool:
        recent = sorted(record.ttft for record in records if record.end > now - WINDOW_SECONDS)
        return (
            len(recent) >= self._settings.alerts_min_requests
            and percentile(recent, 0.95) > self._settings.alerts_ttft_p95
        )

    def _is_cache_full(self, engines: Iterable[EngineRow], now: float) -> bool:
        if not any(row.kv_cache_usage >= self._settings.alerts_kv_cache for row in engines):
            self._full_since = None
            return False
        self._full_since = self._full_since or now
        return now - self._full_since >= FULL_SECONDS

    def _restarts_often(self, engines: Iterable[EngineRow], now: float) -> bool:
        for row in engines:
            before = self._num_restarts.get(row.engine, row.num_restarts)
            self._restarts.extend([now] * (row.num_restarts - before))
            self._num_restarts[row.engine] = row.num_restarts
        while self._restarts and self._restarts[0] <= now - RESTARTS_SECONDS:
            self._restarts.popleft()
        return len(self._restarts) >= self._settings.alerts_engine_restarts


class AlertMonitor:
    """Checks the rules in one process, and keeps its slot of the metrics store up to date."""

    def __init__(
        self,
        metrics_store: MetricsStore,
        rules: Rules,
        engines: Engines,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._metrics_store = metrics_store
        self._rules = rules
        self._engines = engines
        self._clock = clock
        self._replays_before = metrics_store.slot["replays"]
        self._since_ns: dict[str, int] = {}

    def tick(self) -> None:
        """Check once."""
        now = self._clock()
        metrics_store = self._metrics_store
        metrics_store.slot["replays"] = self._replays_before + self._engines.num_replays
        snapshot = take_snapshot(metrics_store.memory, metrics_store.profiles)
        up = self._rules.check(snapshot, self._engines.engine_rows(), now)
        for name in up - self._since_ns.keys():
            log.warning("alert %s is up", name)
        for name in self._since_ns.keys() - up:
            log.info("alert %s is over", name)
        self._since_ns = {name: self._since_ns.get(name, int(now * NANO)) for name in up}
        metrics_store.set_alerts(self._since_ns.get(name, 0) for name in ALERTS)


def alert_bodies(alerts: Mapping[str, float], settings: Settings) -> list[dict[str, Any]]:
    """Return the alerts that are up as the reports show them, the oldest first."""
    messages = _messages(settings)
    return [
        {
            "name": name,
            "level": LEVELS[name],
            "message": messages[name],
            "since": datetime.fromtimestamp(since).isoformat(timespec="microseconds"),
        }
        for name, since in sorted(alerts.items(), key=lambda item: item[1])
    ]


def _messages(settings: Settings) -> dict[str, str]:
    """Return what each alert says, in the language of the document whose report holds them."""
    return {
        "error_rate": f"最近 {WINDOW_SECONDS / 60:g} 分钟内失败的请求超过 "
        f"{settings.alerts_error_rate * 100:g}%",
        "queue_near_full": f"等待队列已达上限的 {settings.alerts_queue * 100:g}%",
        "ttft_p95": f"最近 {WINDOW_SECONDS / 60:g} 分钟内首token延迟 P95 超过 "
        f"{settings.alerts_ttft_p95:g} 秒",
        "kv_cache_full": f"KV 缓存使用率持续 {FULL_SECONDS:g} 秒不低于 "
        f"{settings.alerts_kv_cache * 100:g}%",
        "engine_restarts": f"最近 {RESTARTS_SECONDS / 60:g} 分钟内引擎重启至少 "
        f"{settings.alerts_engine_restarts} 次",
    }
