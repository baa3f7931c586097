"""The status page's figures, from readings made by hand."""

import pytest

from qwenapi.metrics.status import history, status_body
from tests.metrics.readings import NOW, counts, engine_row, reading, record, snapshot


def test_the_figures_of_this_moment():
    done = {"accepted": 9, "started": 7, "successful": 3, "failed": 1, "cancelled": 1}
    profiles = {"news": counts(**done, completion_tokens=40), "b": counts(completion_tokens=2)}
    records = [record(3, 9, 5, end=NOW - 61), record(3, 0.2, 5), record(3, 0.4, 5)]
    taken = snapshot(profiles, records, alerts={"ttft_p95": NOW - 1, "error_rate": NOW - 9})
    engines = [
        engine_row(0, total_blocks=10, free_blocks=5, running=2, generated_tokens=7, starts=1),
        engine_row(1, total_blocks=30, free_blocks=30, starts=3),
        engine_row(2, state="down", starts=1),
    ]
    body = status_body(reading(taken, engines, is_ready=False), with_history=False)
    assert body["at"] == NOW and body["ready"] is False and "history" not in body
    assert body["requests"] == {
        "running": 2, "waiting": 2, "accepted": 9, "successful": 3, "failed": 1, "cancelled": 1
    }  # fmt: skip
    assert body["tokens"] == 42
    assert body["ttft"] == {"p50": 0.4, "p95": 0.4}
    assert body["kv_cache_usage"] == 5 / 40
    assert [row["state"] for row in body["engines"]] == ["ready", "ready", "down"]
    assert [row["kv_cache_usage"] for row in body["engines"]] == [0.5, 0, 0]
    assert [row["state_slots"] for row in body["engines"]] == [None, None, None]
    assert [row["restarts"] for row in body["engines"]] == [0, 2, 0]
    assert [(row["name"], row["level"]) for row in body["alerts"]] == [
        ("error_rate", "critical"),
        ("ttft_p95", "warning"),
    ]


def test_an_engine_of_a_hybrid_model_says_what_its_state_slots_hold():
    slots = {"total_state_slots": 20, "free_state_slots": 13}
    hybrid = engine_row(0, **slots, state_snapshots=6, state_snapshot_hits=9)
    body = status_body(reading(snapshot(), [hybrid, engine_row(1)]), with_history=False)
    expected = {"total": 20, "used": 7, "snapshots": 6, "snapshot_hits": 9}
    assert [row["state_slots"] for row in body["engines"]] == [expected, None]


def test_before_the_first_request_nothing_is_made_up():
    body = status_body(reading(snapshot()), with_history=True)
    assert body["history"] == [] and body["engines"] == [] and body["alerts"] == []
    assert body["ttft"] == {"p50": None, "p95": None} and body["kv_cache_usage"] == 0


def test_history_begins_with_the_oldest_record_and_keeps_every_token():
    records = [record(12, 2, 100, end=NOW - 95), record(4, 1, 30, end=NOW - 21)]
    points = history(records, NOW)
    assert [round(NOW - point["at"]) for point in points] == list(range(90, 0, -10))
    rates = [point["tokens_per_second"] for point in points]
    # The first wrote from 105 s to 95 s ago, so half of it lies before 100 s ago, in no point.
    assert rates == [5.0, 0, 0, 0, 0, 0, 0, 3.0, 0]
    assert [point["ttft"]["p50"] for point in points] == [2] * 6 + [None, 1, 1]


@pytest.mark.parametrize("age", [5, 899, 900, 5000])
def test_history_is_fifteen_minutes_at_most(age):
    points = history([record(1, 0.5, 5, end=NOW - age), record(1, 1, 1)], NOW)
    assert len(points) == min(age, 900) // 10
    assert all(point["at"] <= NOW - 10 for point in points)


def test_records_of_one_token_count_once_each():
    points = history([record(1, 1, 1, end=NOW - 40), record(1, 1, 1, end=NOW - 15)], NOW)
    assert sum(point["tokens_per_second"] for point in points) == pytest.approx(2 / 10)
