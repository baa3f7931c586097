"""Alerts rise and fall by a clock of the test's own."""

import pytest

from qwenapi.metrics.alerts import LEVELS, AlertMonitor, Rules
from qwenapi.metrics.layout import ALERTS
from qwenapi.metrics.snapshot import take_snapshot
from qwenapi.metrics.store import MetricsStore, create_metrics_memory
from qwenapi.settings.profile import Profile
from qwenapi.settings.table import Settings
from tests.metrics.readings import NOW, counts, engine_row, record, snapshot


class Engines:
    """What an EngineClient tells, put there by the test."""

    def __init__(self):
        self.num_replays = 0
        self.rows = []

    def engine_rows(self):
        return self.rows


def rules(**settings):
    return Rules(Settings(**settings), {"news": 10, "openai": 1024})


def ended(successful=0, failed=0, cancelled=0):
    return snapshot({"news": counts(successful=successful, failed=failed, cancelled=cancelled)})


def test_every_alert_has_a_level():
    assert set(LEVELS) == set(ALERTS)


def test_an_idle_service_has_no_alert():
    assert rules().check(snapshot(), [engine_row(starts=1)], NOW) == set()


def test_many_failures_raise_error_rate_until_they_are_five_minutes_old():
    check = rules(alerts_error_rate=0.1, alerts_min_requests=20).check
    assert not check(ended(1000), [], NOW)
    assert not check(ended(1009, failed=10), [], NOW + 1)  # half of them, but only 19 requests
    assert check(ended(1010, failed=10), [], NOW + 2) == {"error_rate"}
    assert check(ended(1010, failed=10), [], NOW + 300) == {"error_rate"}
    assert not check(ended(1010, failed=10), [], NOW + 302)
    assert not check(ended(1110, failed=20), [], NOW + 303)  # 10 of 110


def test_callers_who_leave_are_no_failures():
    check = rules(alerts_min_requests=1).check
    assert not check(ended(0), [], NOW)
    assert not check(ended(5, cancelled=50), [], NOW + 1)


def test_a_queue_is_near_full_by_its_own_profiles_limit():
    def waiting(profile, number):
        return snapshot({profile: counts(accepted=number)})

    check = rules(alerts_queue=0.8).check
    assert not check(waiting("news", 7), [], NOW)
    assert check(waiting("news", 8), [], NOW) == {"queue_near_full"}
    assert not check(waiting("openai", 8), [], NOW)
    assert check(waiting("openai", 820), [], NOW) == {"queue_near_full"}


def test_slow_first_tokens_raise_an_alert_only_when_there_are_enough_of_them():
    check = rules(alerts_ttft_p95=2.0, alerts_min_requests=20).check

    def records(slow, quick, age=0.0):
        made = [record(9.0, 3.0, 5, NOW - age)] * slow + [record(9.0, 0.1, 5, NOW - age)] * quick
        return snapshot(records=made)

    assert not check(records(19, 0), [], NOW)
    assert check(records(20, 0), [], NOW) == {"ttft_p95"}
    assert check(records(2, 18), [], NOW) == {"ttft_p95"}
    assert not check(records(1, 39), [], NOW)
    assert not check(records(20, 0, age=301), [], NOW)


def test_a_full_cache_is_an_alert_after_thirty_seconds_on_end():
    check = rules(alerts_kv_cache=0.95).check
    full = [engine_row(), engine_row(1, total_blocks=100, free_blocks=5)]
    other = [engine_row(), engine_row(1, total_blocks=100, free_blocks=6)]
    assert not check(snapshot(), full, NOW)
    assert not check(snapshot(), full, NOW + 29)
    assert not check(snapshot(), other, NOW + 29.5)
    assert not check(snapshot(), full, NOW + 31)
    assert check(snapshot(), full, NOW + 61) == {"kv_cache_full"}
    assert not check(snapshot(), other, NOW + 62)


def test_restarts_count_for_ten_minutes_from_when_they_were_seen():
    check = rules(alerts_engine_restarts=3).check
    assert not check(snapshot(), [engine_row(starts=9)], NOW)  # before this process began
    assert not check(snapshot(), [engine_row(starts=11)], NOW + 1)
    later = [engine_row(starts=11), engine_row(1, starts=5)]  # an engine just met
    assert not check(snapshot(), later, NOW + 2)
    assert check(snapshot(), [engine_row(starts=11), engine_row(1, starts=6)], NOW + 3)
    assert check(snapshot(), [engine_row(starts=11)], NOW + 600) == {"engine_restarts"}
    assert not check(snapshot(), [engine_row(starts=11)], NOW + 602)
    assert not check(snapshot(), [engine_row(starts=1)], NOW + 603)  # a new model half


@pytest.fixture
def monitored():
    metrics_store = MetricsStore.lease("", ("news", "openai"))
    engines, clock = Engines(), [NOW]
    watch = AlertMonitor(
        metrics_store, rules(alerts_engine_restarts=1), engines, clock=lambda: clock[0]
    )

    def tick(at, starts):
        clock[0], engines.rows = at, [engine_row(starts=starts)]
        watch.tick()
        return take_snapshot(metrics_store.memory, metrics_store.profiles)

    return engines, tick


def test_an_alert_says_since_when_it_is_up_and_goes(monitored, caplog):
    _, tick = monitored
    assert tick(NOW, 1).alerts == {}
    assert tick(NOW + 10, 2).alerts == {"engine_restarts": pytest.approx(NOW + 10)}
    assert tick(NOW + 20, 2).alerts == {"engine_restarts": pytest.approx(NOW + 10)}
    assert tick(NOW + 620, 2).alerts == {}
    lines = [line.getMessage() for line in caplog.records if line.levelname == "WARNING"]
    assert lines == ["alert engine_restarts is up"]


def test_replays_go_on_from_what_the_slots_last_owner_counted(monitored):
    engines, tick = monitored
    engines.num_replays = 2
    assert tick(NOW, 1).replays == 2

    metrics_store = MetricsStore.lease("", ("news", "openai"))
    metrics_store.slot["replays"] = 5
    AlertMonitor(metrics_store, rules(), engines).tick()
    assert metrics_store.slot["replays"] == 7


def test_of_several_processes_the_first_to_see_an_alert_says_since_when(tmp_path):
    path = create_metrics_memory(tmp_path, [Profile(name="news", settings=Settings())])
    try:
        metrics_stores = [MetricsStore.lease(str(path), ["news"]) for _ in range(3)]
        for metrics_store, since_ns in zip(metrics_stores, (0, 3 * 10**9, 2 * 10**9), strict=True):
            metrics_store.set_alerts([since_ns, 0, 0, 0, 0])
        assert take_snapshot(metrics_stores[0].memory, ["news"]).alerts == {ALERTS[0]: 2.0}
    finally:
        path.unlink()
