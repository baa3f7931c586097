"""The limits of a key: exact in one process, among several, and after one of them was killed."""

import multiprocessing
import os
import signal
import threading
import time
from collections import Counter

import pytest

from qwenapi.errors import RateLimited
from qwenapi.keys import KeyUsage, RateLimit
from qwenapi.keys.key import Key, KeyLimits
from qwenapi.keys.usage import LAYOUT, NUM_COLUMNS, create_usage_memory
from workers.wire.shared_memory_files import remove_shared_memory

SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def memory(tmp_path):
    yield str(create_usage_memory(tmp_path))
    remove_shared_memory(tmp_path)


def key_of(key_id="aaaaaaaa", **limits):
    limits = {"concurrent": 0, "queued": 0, **limits}
    return Key(key_id, "0" * 64, "acme", limits=KeyLimits(**limits))


def never():
    """Be the caller that stays."""


def admitted(action, times):
    """Return how many of several attempts were not refused."""
    count = 0
    for _ in range(times):
        try:
            action()
        except RateLimited:
            continue
        count += 1
    return count


def count_in_process(path, key, times, results):
    rate_limit = RateLimit(KeyUsage.lease(path), key, {})
    results.put(admitted(rate_limit.count_request, times))


def hold_in_process(path, key, times, ready):
    usage = KeyUsage.lease(path)
    held = [RateLimit(usage, key, {}) for _ in range(times)]
    ready.put(sum(admitted(lambda one=one: one.enter(1, 0, never), 1) for one in held))
    signal.pause()


def test_a_minutes_requests_may_come_at_once_and_come_back_evenly(memory):
    key = key_of(requests_per_minute=600)
    rate_limit = RateLimit(KeyUsage.lease(memory), key, {})
    started = time.monotonic()
    count = admitted(rate_limit.count_request, 1000)
    grown = (time.monotonic() - started) * 10
    assert 600 <= count <= 601 + grown
    with pytest.raises(RateLimited) as refused:
        while True:
            rate_limit.count_request()
    assert 0 < refused.value.retry_after <= 0.1
    time.sleep(refused.value.retry_after)
    rate_limit.count_request()


def test_one_limit_holds_for_processes_together(memory):
    key = key_of(requests_per_minute=60)
    results = SPAWN.Queue()
    processes = [
        SPAWN.Process(target=count_in_process, args=(memory, key, 40, results)) for _ in range(3)
    ]
    started = time.monotonic()
    for process in processes:
        process.start()
    counts = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(30)
    assert 60 <= sum(counts) <= 61 + (time.monotonic() - started)


def test_places_are_exact_among_processes_and_those_of_a_killed_one_are_free(memory):
    key = key_of(concurrent=7)
    ready = SPAWN.Queue()
    processes = [
        SPAWN.Process(target=hold_in_process, args=(memory, key, 5, ready), daemon=True)
        for _ in range(3)
    ]
    for process in processes:
        process.start()
    counts = [ready.get(timeout=60) for _ in processes]
    assert sum(counts) == 7
    mine = KeyUsage.lease(memory)
    with pytest.raises(RateLimited):
        RateLimit(mine, key, {}).enter(1, 0, never)
    with mine.locked():
        before = sum(mine.in_all(mine.column(key.id), "running"))
    for killed in processes[:2]:  # whatever the shares: two of three hold at least two of seven
        os.kill(killed.pid, signal.SIGKILL)
        killed.join(30)
    with mine.locked():
        after = sum(mine.in_all(mine.column(key.id), "running"))
    assert before == 7 and after < 7
    held = [RateLimit(mine, key, {}) for _ in range(7)]
    assert sum(admitted(lambda one=one: one.enter(1, 0, never), 1) for one in held) == 7 - after
    # Its slot is another's now, and begins with nothing.
    again = KeyUsage.lease(memory)
    with again.locked():
        assert sum(again.in_all(again.column(key.id), "running")) == 7
    for process in processes[2:]:
        process.kill()
        process.join(30)


def test_a_place_is_free_again_once_and_an_end_without_a_beginning_frees_none():
    usage = KeyUsage(None)
    key = key_of(concurrent=1)
    first, second = (RateLimit(usage, key, {}) for _ in range(2))
    first.enter(1, 0, never)
    second.leave(0)
    with pytest.raises(RateLimited):
        second.enter(1, 0, never)
    first.leave(0)
    first.leave(0)
    second.enter(1, 0, never)
    with pytest.raises(RateLimited):
        first.enter(1, 0, never)


def test_who_waits_for_a_place_gets_it_in_the_order_of_arrival():
    usage, lines, order = KeyUsage(None), {}, []
    key = key_of(concurrent=1, queued=3)
    running = RateLimit(usage, key, lines)
    running.enter(1, 0, never)
    waiting = [RateLimit(usage, key, lines) for _ in range(3)]

    def ask(number):
        waiting[number].enter(1, 30, never)
        order.append(number)
        waiting[number].leave(0)

    threads = []
    for number in range(3):
        threads.append(threading.Thread(target=ask, args=(number,)))
        threads[-1].start()
        deadline = time.monotonic() + 10
        while len(lines.get(key.id, ())) <= number:
            assert time.monotonic() < deadline
            time.sleep(0.001)
    with pytest.raises(RateLimited):  # the line is full
        RateLimit(usage, key, lines).enter(1, 30, never)
    running.leave(0)
    for thread in threads:
        thread.join(10)
    assert order == [0, 1, 2]
    assert lines == {}
    running.enter(1, 0, never)


def test_what_gives_way_takes_no_place_that_another_waits_for_nor_the_last():
    usage, key, lines = KeyUsage(None), key_of(concurrent=2, queued=1), {}

    def line():
        return RateLimit(usage, key, lines, gives_way=True)

    first = line()
    first.enter(1, 0, never)
    with pytest.raises(RateLimited):
        line().enter(1, 0, never)
    live, other = (RateLimit(usage, key, lines) for _ in range(2))
    live.enter(1, 0, never)  # a place was left for it
    waiting = line()
    threads = [threading.Thread(target=waiting.enter, args=(1, 30, never))]
    threads[0].start()
    time.sleep(0.05)
    threads.append(threading.Thread(target=other.enter, args=(1, 30, never)))
    threads[1].start()  # the queue has room: no line stands in it
    time.sleep(0.05)
    first.leave(0)
    threads[1].join(5)
    assert not threads[1].is_alive() and threads[0].is_alive()  # though it came later
    live.leave(0)
    time.sleep(0.3)
    assert threads[0].is_alive()  # one runs, and one place is not for lines
    other.leave(0)
    threads[0].join(5)
    assert not threads[0].is_alive()
    waiting.leave(0)


def test_what_gives_way_has_the_only_place_and_pays_only_where_it_runs():
    usage, key, lines = KeyUsage(None), key_of(concurrent=1, tokens_per_minute=100), {}
    live, line = RateLimit(usage, key, lines), RateLimit(usage, key, lines, gives_way=True)
    live.enter(1, 0, never)
    with pytest.raises(RateLimited):
        line.enter(99, 0.05, never)
    assert int(live.headers["x-ratelimit-remaining-tokens"]) == 99
    live.leave(0)
    line.enter(99, 0, never)
    line.leave(0)


def test_who_waits_too_long_or_leaves_is_out_of_the_line_and_pays_nothing():
    usage, lines = KeyUsage(None), {}
    key = key_of(concurrent=1, queued=5, tokens_per_minute=100)
    RateLimit(usage, key, lines).enter(10, 0, never)

    def gone():
        raise ConnectionError

    with pytest.raises(RateLimited):
        RateLimit(usage, key, lines).enter(50, 0.05, never)
    with pytest.raises(ConnectionError):
        RateLimit(usage, key, lines).enter(50, 30, gone)
    column = usage.column(key.id)
    assert usage.in_all(column, "queued") == usage.in_all(column, "first_ns") == []
    assert usage.left(column, "tokens_ns", 100)[0] in (90, 91)


def test_tokens_are_charged_for_the_prompt_before_and_for_the_answer_after():
    usage = KeyUsage(None)
    key = key_of(tokens_per_minute=6000)

    def left():
        return int(rate_limit.headers["x-ratelimit-remaining-tokens"])

    rate_limit = RateLimit(usage, key, {})
    rate_limit.enter(1000, 0, never)
    assert 5000 <= left() <= 5100
    rate_limit.leave(4500)
    assert 500 <= left() <= 700
    with pytest.raises(RateLimited) as refused:
        rate_limit.enter(3000, 0, never)
    assert 20 < refused.value.retry_after < 25  # 100 tokens a second
    rate_limit.enter(400, 0, never)
    rate_limit.leave(
        12000
    )  # an answer may be longer than what was left: later requests wait for it
    with pytest.raises(RateLimited) as refused:
        rate_limit.enter(1, 0, never)
    assert 110 < refused.value.retry_after < 121
    assert left() == 0


def test_a_prompt_above_the_whole_limit_is_not_to_be_sent_again():
    rate_limit = RateLimit(KeyUsage(None), key_of(tokens_per_minute=100), {})
    with pytest.raises(RateLimited) as refused:
        rate_limit.enter(101, 0, never)
    assert refused.value.headers == {"x-should-retry": "false"}
    assert "101 tokens" in refused.value.message
    rate_limit.enter(100, 0, never)


def test_keys_do_not_touch_each_other_and_columns_are_taken_again(memory):
    usage = KeyUsage.lease(memory)
    busy = RateLimit(usage, key_of("busybusy", concurrent=1), {})
    busy.enter(1, 0, never)
    for number in range(NUM_COLUMNS + 50):
        key = key_of(f"{number:08d}", requests_per_minute=1)
        RateLimit(usage, key, {}).count_request()
    ids = usage._ints[LAYOUT.start(0) : LAYOUT.start(1) : 3].tolist()
    assert max(Counter(ids).values()) == 1
    with pytest.raises(RateLimited):
        RateLimit(usage, busy.key, {}).enter(1, 0, never)
    with pytest.raises(RateLimited):  # the last one's own
        RateLimit(usage, key, {}).count_request()


def test_a_key_without_limits_never_touches_the_page():
    class Untouchable(KeyUsage):
        def locked(self):
            raise AssertionError("it was locked")

    usage = Untouchable.__new__(Untouchable)
    rate_limit = RateLimit(usage, key_of(), {})
    rate_limit.count_request()
    rate_limit.enter(10**6, 0, never)
    rate_limit.leave(10**6)
    assert rate_limit.headers == {}
