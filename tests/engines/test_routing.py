"""Which engine a request goes to: by what its cache may hold, as long as loads allow it."""

from collections import Counter
from types import SimpleNamespace

import pytest

from qwenapi.engines.routing import AFFINITY_SLACK_TOKENS, candidates
from workers.wire.protocol import Generate, SamplingParams


def links(count, loads=None):
    return [
        SimpleNamespace(hello=SimpleNamespace(engine_index=i), num_tokens_in_flight=load)
        for i, load in enumerate(loads or [0] * count)
    ]


def request(*ids, **fields):
    return Generate(
        wid=1, request_id="", prompt_ids=ids, params=SamplingParams(max_tokens=1), **fields
    )


def favourite(engines, *ids):
    return candidates(engines, request(*ids))[0].hello.engine_index


@pytest.mark.parametrize("count", [2, 3, 8, 64])
def test_prefixes_are_spread_evenly(count):
    engines = links(count)
    found = Counter(favourite(engines, number, number * 7) for number in range(400 * count))
    assert set(found) == set(range(count))
    assert min(found.values()) > 0.75 * 400 and max(found.values()) < 1.25 * 400


def test_only_the_prefixes_of_an_engine_that_leaves_move():
    engines = links(8)
    before = {number: favourite(engines, number) for number in range(400)}
    left = [link for link in engines if link.hello.engine_index != 3]
    for number, engine in before.items():
        assert (favourite(left, number) == engine) is (engine != 3)


def test_what_lies_beyond_the_prefix_changes_nothing():
    engines = links(8)
    assert favourite(engines, *range(256), 1, 2) == favourite(engines, *range(256), 9)


def test_a_favourite_that_has_much_more_to_do_is_left_for_the_least_loaded():
    first = favourite(links(4), 5)
    loads = [100, 100, 100, 100]
    loads[first] += AFFINITY_SLACK_TOKENS
    assert favourite(links(4, loads), 5) == first
    loads[first] += 1
    order = [link.num_tokens_in_flight for link in candidates(links(4, loads), request(5))]
    assert order == sorted(loads)


def test_every_engine_is_tried_once():
    loads = [7, 3, 5, 1, 4]
    tried = [link.hello.engine_index for link in candidates(links(5, loads), request(5))]
    assert sorted(tried) == [0, 1, 2, 3, 4]
    rest = [loads[i] for i in tried[1:]]
    assert rest == sorted(rest)


def test_a_limited_group_has_one_engine_whatever_it_asks():
    engines = links(8)
    found = {
        candidates(engines, request(number, group="news", max_running=3))[0].hello.engine_index
        for number in range(20)
    }
    assert len(found) == 1
