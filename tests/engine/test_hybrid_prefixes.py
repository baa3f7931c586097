"""Prefixes of hybrid models are found again, and a snapshot changes nothing that follows it."""

import pytest

from tests.bench.prefix_hits import GOAL, converse
from tests.engine.conftest import HYBRIDS
from tests.engine.test_hybrid import prompt_of


@pytest.fixture(params=HYBRIDS)
def name(request):
    return request.param


def said(driver, key):
    return [(chunk.token_ids, chunk.logprobs) for chunk in driver.chunks[key]]


@pytest.mark.parametrize("length", [65, 128, 129, 200, 1000])
def test_an_identical_prompt_hits(drive, name, length):
    driver = drive(name)
    for key in (0, 1):
        driver.add(key, prompt_of(length))
        driver.run()
    assert driver.cached_tokens == {0: 0, 1: (length - 1) // 64 * 64}
    assert driver.tokens(1) == driver.tokens(0)


def test_a_hit_equals_the_miss_that_was_cut_there_to_the_bit(drive, name):
    driver = drive(name, max_num_batched_tokens=192)
    for key in (0, 1):
        driver.add(key, prompt_of(210), logprobs=5, max_tokens=30)
        driver.run()
    assert driver.cached_tokens[1] == 192
    assert said(driver, 1) == said(driver, 0)


def test_a_second_turn_computes_only_what_is_new(drive, name):
    driver, fresh = drive(name), drive(name)
    first = prompt_of(150)
    driver.add(0, first, max_tokens=100)
    driver.run()
    second = first + driver.tokens(0) + prompt_of(30)
    for each in (driver, fresh):
        each.add(1, second)
        each.run()
    assert driver.cached_tokens[1] == (150 + 99) // 64 * 64
    assert driver.tokens(1) == fresh.tokens(1)


def test_a_state_of_another_tenant_is_not_found(drive, name):
    driver = drive(name)
    for key, salt in enumerate(("a", "b", "a")):
        driver.add(key, prompt_of(200), cache_salt=salt)
        driver.run()
    assert driver.cached_tokens == {0: 0, 1: 0, 2: 192}


def test_a_preempted_sequence_goes_on_from_its_last_snapshot(drive, name):
    """Else what had been computed before would be computed again, and the budget says when."""
    driver = drive(name, num_blocks=62, block_size=8, max_num_batched_tokens=64, max_num_seqs=2)
    driver.add(0, prompt_of(200), max_tokens=90)
    driver.add(1, prompt_of(190), max_tokens=90)
    driver.run()
    assert driver.engine.stats().preemptions > 0
    alone = drive(name, max_num_batched_tokens=64)
    alone.add(1, prompt_of(190), max_tokens=90)
    assert alone.run().tokens(1) == driver.tokens(1)


def test_without_prefix_caching_nothing_is_found(drive, name):
    driver = drive(name, enable_prefix_caching=False)
    for key in (0, 1):
        driver.add(key, prompt_of(200))
        driver.run()
    assert driver.cached_tokens == {0: 0, 1: 0}
    assert driver.tokens(1) == driver.tokens(0)


@pytest.mark.parametrize("fraction", [0.0, pytest.param(0.5, marks=pytest.mark.slow)])
def test_nine_of_ten_tokens_sent_again_are_not_computed_again(drive, fraction):
    driver = drive("qwen3_5", num_blocks=2000, block_size=32, state_memory_fraction=fraction)
    assert converse(driver).rate > GOAL


def test_its_stats_say_what_sequences_hold_of_the_states_and_what_is_kept(drive, name):
    driver = drive(name, max_num_seqs=4)
    for key in range(3):
        driver.add(key, prompt_of(200, seed=key), max_tokens=8)
    driver.step()
    stats = driver.engine.stats()
    assert stats.running == 3 and stats.total_state_slots > 4
    assert stats.total_state_slots - stats.free_state_slots >= 3
    assert stats.state_snapshot_hits == 0
    stats = driver.run().engine.stats()
    assert stats.free_state_slots == stats.total_state_slots
    assert stats.state_snapshots == 3
    driver.add(3, prompt_of(200, seed=1))
    driver.add(4, prompt_of(200, seed=5))
    assert driver.run().engine.stats().state_snapshot_hits == 1


def test_a_dense_models_stats_have_no_states(drive):
    driver = drive("qwen3")
    driver.add(0, prompt_of(70))
    stats = driver.run().engine.stats()
    assert (stats.total_state_slots, stats.state_snapshots, stats.state_snapshot_hits) == (0, 0, 0)
