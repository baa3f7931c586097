"""What engines publish, as the router sees it: what they run at once, and how fast queues move."""

import math
from types import SimpleNamespace

import pytest

from qwenapi.engines.capacity import Capacity, QueueClock, measure

CARD = SimpleNamespace(max_num_seqs=16, block_size=32)


class Engine:
    """Publishes so many who run and wait, and tokens at a rate."""

    def __init__(self, rate=100, running=4, waiting=4, free_blocks=0, in_flight=8000):
        self.hello = SimpleNamespace(card=CARD)
        self.capacity, self.queue_clock = Capacity(), QueueClock()
        self.num_tokens_in_flight = in_flight
        self.rate = rate
        self.row = {
            "running": running, "waiting": waiting,
            "free_blocks": free_blocks, "total_blocks": 2000,
            "prompt_tokens": 0, "cached_tokens": 0, "generated_tokens": 0,
        }  # fmt: skip

    def figures(self):
        return self.row


class Clock:
    """Seconds, in which engines compute, and after each of which they are looked at."""

    def __init__(self, *engines):
        self.engines, self.now = engines, 0.0
        measure(engines, self.now)

    def pass_by(self, seconds):
        for _ in range(seconds):
            self.now += 1
            for engine in self.engines:
                engine.row["prompt_tokens"] += 5 * engine.rate
                engine.row["cached_tokens"] += 5 * engine.rate
                engine.row["generated_tokens"] += engine.rate
            measure(self.engines, self.now)


def slowness(*rates):
    engines = [Engine(rate) for rate in rates]
    Clock(*engines).pass_by(5)
    return [engine.capacity.slowness for engine in engines]


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ((100,), [1]),
        ((100, 50), [1, 2]),
        ((100, 50, 50, 100), [1, 2, 2, 1]),
        ((100, 50, 50, 50), [0.5, 1, 1, 1]),
        ((100, 1), [1, 4]),
    ],
)
def test_queues_are_compared_with_the_usual_one(rates, expected):
    assert slowness(*rates) == pytest.approx(expected)


def test_an_engine_that_nobody_waits_for_is_not_slow_for_having_little_to_do():
    engines = [Engine(100), Engine(5, waiting=0)]
    clock = Clock(*engines)
    clock.pass_by(5)
    assert [engine.capacity.slowness for engine in engines] == [1, 1]
    engines[1].row["waiting"], engines[1].rate = 1, 100
    clock.pass_by(1)
    assert engines[1].capacity.slowness == 1, "the second before had no queue"
    clock.pass_by(1)
    assert engines[1].capacity.slowness == pytest.approx(1)


def test_an_engine_that_has_recovered_is_found_to_be_within_seconds():
    engines = [Engine(100), Engine(25)]
    clock = Clock(*engines)
    clock.pass_by(30)
    assert engines[1].capacity.slowness == pytest.approx(4)
    engines[1].rate = 100
    clock.pass_by(15)
    assert engines[1].capacity.slowness < 1.4


def test_counters_that_begin_anew_are_no_steps_back():
    engines = [Engine(), Engine()]
    clock = Clock(*engines)
    clock.pass_by(5)
    engines[1].row["generated_tokens"] = 0
    clock.pass_by(5)
    assert engines[1].capacity.slowness == pytest.approx(1)


def test_of_what_is_not_known_nothing_is_thought():
    silent = SimpleNamespace(capacity=Capacity(), queue_clock=QueueClock(), figures=lambda: None)
    blank = Engine(running=0, waiting=0)
    measure([silent, blank], 1.0)
    assert silent.capacity == blank.capacity == Capacity()


@pytest.mark.parametrize(
    ("published", "tokens"),
    [
        ({"running": 4, "waiting": 4}, 4000),
        ({"running": 4, "waiting": 4, "free_blocks": 300}, 4000),
        ({"running": 16, "waiting": 4, "free_blocks": 1900}, 6400),
        # Of a limited group, as there is room for others.
        ({"running": 4, "waiting": 4, "free_blocks": 1900}, 8000 + 12 * 1000),
        ({"running": 4, "waiting": 0, "free_blocks": 1000}, 8000 + 12 * 2000),
        ({"running": 4, "waiting": 0, "free_blocks": 100}, 8000 + 3200),
        ({"running": 4, "waiting": 0, "free_blocks": 0}, 8000),
        ({"running": 16, "waiting": 0, "free_blocks": 1000}, 8000),
        ({"running": 4, "waiting": 4, "in_flight": 0}, math.inf),
    ],
)
def test_an_engine_runs_what_has_a_place_and_blocks(published, tokens):
    engine = Engine(**published)
    measure([engine], 0.0)
    assert engine.capacity.tokens == tokens
