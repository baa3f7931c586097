"""A short run of chaos; QWENAPI_TEST_CHAOS_SECONDS makes it longer, on real models too."""

import json
import os
import random
import shutil
import subprocess
import sys
import time

import pytest

from qwenapi.metrics.layout import OFFSETS
from qwenapi.metrics.snapshot import Counts, take_snapshot
from qwenapi.metrics.store import MetricsStore
from tests.chaos.accounts import Account, Range, Told
from tests.chaos.asks import CHAT, Ask, read_chat
from tests.chaos.callers import Crowd
from tests.chaos.checks import check_answers
from tests.chaos.faults import CUTTING
from tests.chaos.memory import MAX_BYTES_PER_HOUR, MAX_GROWTH_BYTES, check_growths, growth

SECONDS = float(os.environ.get("QWENAPI_TEST_CHAOS_SECONDS", "20"))
IS_LONG = "QWENAPI_TEST_CHAOS_SECONDS" in os.environ
SEED = os.environ.get("QWENAPI_TEST_CHAOS_SEED", "1")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "conversations"),
    [("stub", "sqlite"), ("stub", "redis"), ("demo", "sqlite"), ("hybrid", "redis")],
)
def test_a_short_run_of_chaos_loses_and_doubles_nothing(tmp_path, model, conversations):
    if not IS_LONG and (model, conversations) != ("stub", "sqlite"):
        pytest.skip("set QWENAPI_TEST_CHAOS_SECONDS")
    if conversations == "redis" and shutil.which("redis-server") is None:
        pytest.skip("redis-server is missing (sudo apt-get install redis-server)")
    report = tmp_path / "chaos.json"
    options = ("--seconds", str(SECONDS), "--seed", SEED, "--report", str(report))
    kind = ("--model", model, "--conversations", conversations)
    command = [sys.executable, "-m", "tests.chaos", *options, *kind]
    done = subprocess.run(command, text=True, capture_output=True, timeout=SECONDS + 540)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
    figures = json.loads(report.read_text())
    assert figures["whole"] > SECONDS and len(figures["faults"]) >= min(12, SECONDS / 10)


def test_an_answer_that_is_another_or_cut_without_a_cause_is_found():
    ask = Ask("chat", CHAT, {}, read_chat, expected={"0": "one two", "0 end": "length"})
    assert ask.matches({"0": "one two", "0 end": "length"}, is_stub=True)
    for text in ("one", "one two two", "two one", ""):
        assert not ask.matches({"0": text, "0 end": "length"}, is_stub=True)
    crowd = Crowd(None, [ask], 1)
    crowd.record.cut.append((100.0, "chat", "broken"))
    assert check_answers(
        crowd, [(90.0, 101.0, "kill an engine"), (300.0, 301.0, next(iter(CUTTING)))]
    )
    assert not check_answers(crowd, [(95.0, 96.0, next(iter(CUTTING)))])
    crowd.record.wrong.append("other tokens")
    assert check_answers(crowd, [(95.0, 96.0, next(iter(CUTTING)))]) == ["other tokens"]


WHOLE = Told("a", True, Range.exactly(10), Range.exactly(5))
LEFT = Told("a", False, Range(0, 10), Range(0, 20))


def account(*told):
    """Return an account that agrees; who left had two tokens."""
    store = MetricsStore.lease("", ["a"])
    for one in told:
        metrics = store.begin("a", time.monotonic())
        metrics.accept(10)
        metrics.start()
        metrics.tokens(0, 5 if one.is_whole else 2, time.monotonic())
        metrics.succeed("length", 0) if one.is_whole else metrics.cancel()
    return Account(told, take_snapshot(store.memory, ["a"]).profiles["a"])


@pytest.mark.parametrize(
    ("told", "field", "change", "claims"),
    [
        ((WHOLE, LEFT), "accepted", 1, {"accepted", "accepted = ended", "accepted = started"}),
        ((WHOLE, LEFT), "successful", -1, {"accepted = ended", "successful"}),
        ((WHOLE, LEFT), "cancelled", 1, {"accepted = ended", "cancelled"}),
        ((WHOLE, LEFT), "failed", 1, {"accepted = ended", "failed = its reasons"}),
        ((WHOLE, LEFT), "completion_tokens", -3, {"completion_tokens"}),
        ((WHOLE, LEFT), "completion_tokens", 19, {"completion_tokens"}),
        ((WHOLE, LEFT), "prompt_tokens", 1, {"prompt_tokens"}),
        ((WHOLE, LEFT), "completion.sum", -1, {"tokens of successful"}),
        ((WHOLE, WHOLE), "completion_tokens", 1, {"completion_tokens"}),
        ((WHOLE, WHOLE), "completion_tokens", -1, {"completion_tokens"}),
        ((WHOLE, WHOLE), "prompt_tokens", -1, {"prompt_tokens"}),
    ],
)
def test_a_count_that_is_not_what_callers_were_told_is_found(told, field, change, claims):
    right = account(*told)
    assert right.check() == []
    values = list(right.counts.values)
    values[OFFSETS[field]] += change
    assert set(Account(told, Counts(tuple(values))).check()) == claims


def samples(*, seconds, warm_up=0.0, per_hour=0.0):
    """Return those of a process that takes bytes while it warms up, and then so many an hour."""
    dice = random.Random(seconds)
    return [
        (at, int(1e8 + warm_up * min(1, at / 50) + per_hour * at / 3600 + dice.uniform(-1e5, 1e5)))
        for at in range(seconds)
    ]


@pytest.mark.parametrize(
    ("life", "is_wrong"),
    [
        ({"seconds": 7200}, False),
        ({"seconds": 7200, "warm_up": 5e8}, False),
        ({"seconds": 7200, "warm_up": 5e8, "per_hour": 2 * MAX_BYTES_PER_HOUR}, True),
        ({"seconds": 7200, "per_hour": MAX_BYTES_PER_HOUR / 2}, False),
        ({"seconds": 300, "warm_up": 5e8}, False),
        ({"seconds": 300, "per_hour": 30 * MAX_GROWTH_BYTES}, True),
    ],
)
def test_a_process_that_grows_after_its_warm_up_is_found(life, is_wrong):
    grown = growth(samples(**life))
    assert grown and bool(check_growths([grown])) == is_wrong, grown


def test_of_a_short_life_nothing_is_said():
    assert growth(samples(seconds=15, per_hour=1e12)) is None
