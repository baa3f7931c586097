"""Which engine a request goes to: by what its cache may hold, as long as loads allow it."""

from collections import Counter
from types import SimpleNamespace

import pytest

from qwenapi.engines import routing
from qwenapi.engines.capacity import Capacity
from qwenapi.engines.routing import AFFINITY_SLACK_TOKENS, Router
from workers.wire.protocol import Generate, SamplingParams


def candidates(engines, asked):
    """Return what one who knows of no earlier requests chooses."""
    return Router().candidates(engines, asked)


def links(count, loads=None):
    return [
        SimpleNamespace(
            hello=SimpleNamespace(engine_index=i), num_tokens_in_flight=load, capacity=Capacity()
        )
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


def test_what_is_beyond_an_engines_capacity_weighs_more_the_slower_it_is():
    engines = links(5, [1000, 999, 998, 997, 996])
    engines[1].capacity = Capacity(900.0)
    engines[2].capacity = Capacity(900.0, slowness=4.0)
    engines[3].capacity = Capacity(1000.0, slowness=4.0)
    engines[4].capacity = Capacity(900.0, slowness=0.25)
    least = [link.hello.engine_index for link in candidates(engines, request(5))]
    first = favourite(links(5), 5)
    assert least == [first, *(i for i in (3, 0, 4, 1, 2) if i != first)]


def test_figures_that_stay_the_same_send_nobody_all_there_is():
    """Between two looks at the engines each decision counts: there is no rush to the roomy one."""
    engines, router = links(4), Router()
    for link, tokens, slowness in zip(engines, (0, 100_000, 0, 0), (1, 1, 3, 1), strict=True):
        link.capacity = Capacity(tokens, slowness)
    for number in range(2000):
        chosen = router.candidates(engines, request(*[number] * 600))[0]
        chosen.num_tokens_in_flight += 601
    loads = [
        link.num_tokens_in_flight
        + max(0, link.num_tokens_in_flight - link.capacity.tokens) * link.capacity.slowness
        for link in engines
    ]
    assert max(loads) - min(loads) < 2 * AFFINITY_SLACK_TOKENS
    roomy, slow = engines[1].num_tokens_in_flight, engines[2].num_tokens_in_flight
    assert roomy > engines[0].num_tokens_in_flight > slow > 0.4 * engines[0].num_tokens_in_flight


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


def conversation(system, number, length):
    return request(*[system] * 1200, *[1000 + number] * length)


def test_a_conversation_stays_where_its_last_turn_went():
    engines, router = links(8), Router()
    first = {}
    for number in range(40):
        engines[number % 8].num_tokens_in_flight = 0
        for link in engines:  # so that the favourite of the system prompt is not all there is
            link.num_tokens_in_flight = 0 if link is engines[number % 8] else 10_000
        first[number] = router.candidates(engines, conversation(7, number, 300))[0]
    for link in engines:
        link.num_tokens_in_flight = 5_000
    assert len({link.hello.engine_index for link in first.values()}) == 8
    for turn in (900, 2000, 9000):
        for number, link in first.items():
            assert router.candidates(engines, conversation(7, number, turn))[0] is link


def test_a_conversation_whose_engine_is_gone_or_busy_goes_elsewhere_and_stays_there():
    engines, router = links(8), Router()
    home = router.candidates(engines, conversation(7, 1, 300))[0]
    left = [link for link in engines if link is not home]
    second = router.candidates(left, conversation(7, 1, 900))[0]
    assert second is not home
    assert router.candidates(engines, conversation(7, 1, 1500))[0] is second
    second.num_tokens_in_flight = AFFINITY_SLACK_TOKENS + 1
    third = router.candidates(engines, conversation(7, 1, 2500))[0]
    assert third is not second
    second.num_tokens_in_flight = 0
    assert router.candidates(engines, conversation(7, 1, 3500))[0] is third


def test_salts_have_places_of_their_own():
    engines, router = links(64), Router()
    found = set()
    for salt in ("one", "two"):
        for link in engines:
            link.num_tokens_in_flight = 0 if len(found) == link.hello.engine_index else 10_000
        asked = request(*[5] * 1200, cache_salt=salt)
        found.add(router.candidates(engines, asked)[0].hello.engine_index)
    assert found == {0, 1}


def test_no_more_is_remembered_than_is_set(monkeypatch):
    monkeypatch.setattr(routing, "_MOST_REMEMBERED", 10)
    router = Router()
    for number in range(50):
        router.candidates(links(2), conversation(number, number, 10))
    assert len(router._places) == 10
