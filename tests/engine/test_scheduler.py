"""Who runs when, and that every request leaves exactly once."""

import random

import pytest

from workers.engine.block_manager import BlockManager
from workers.engine.request import Request
from workers.engine.scheduler import Scheduler
from workers.engine.sequence_group import SequenceGroup
from workers.wire.protocol import Generate, SamplingParams

BLOCK = 4


class Bench:
    """A scheduler, and a pretended model whose next token is always 1."""

    def __init__(self, num_blocks: int = 100, rows: int = 8, budget: int = 16) -> None:
        self.budget = budget
        self.blocks = BlockManager(num_blocks, BLOCK)
        self.scheduler = Scheduler(self.blocks, rows, budget)
        self.now = 0.0
        self.arrivals = 0
        self.groups: dict[int, SequenceGroup] = {}
        self.ended: list[int] = []

    def add(self, key: int, num_tokens: int = 4, max_tokens: int = 3, **fields) -> SequenceGroup:
        self.arrivals += 1
        generate = Generate(
            wid=key,
            request_id=str(key),
            prompt_ids=tuple(fields.pop("prompt", (key,) * num_tokens)),
            params=SamplingParams(max_tokens=max_tokens),
            **fields,
        )
        group = SequenceGroup(Request(key, generate, self.arrivals, (), 10_000))
        self.groups[key] = group
        self.scheduler.add(group, self.now)
        return group

    def step(self) -> list[tuple[int, int]]:
        """Run one step; return (key, tokens) of its rows."""
        batch = self.scheduler.schedule()
        assert batch.num_tokens <= self.budget
        assert all(row.num_tokens > 0 for row in batch.rows)
        for row in batch.rows:
            self.scheduler.update(row, [1] * row.num_samples)
            key = row.sequence.request.key
            if row.sequence.is_finished and self.groups[key].is_finished:
                self.ended.append(key)
        self.scheduler.check_integrity()
        return [(row.sequence.request.key, row.num_tokens) for row in batch.rows]

    def run(self) -> None:
        for _ in range(2000):
            if not self.scheduler.has_work:
                break
            assert self.step(), "nothing runs though there is work"
        assert self.blocks.num_free == self.blocks.num_blocks


def test_decodes_come_before_prompts_and_prompts_are_cut_to_the_budget():
    bench = Bench(budget=8)
    bench.add(1)
    assert bench.step() == [(1, 4)]
    bench.add(2, num_tokens=20)
    assert bench.step() == [(1, 1), (2, 7)]
    assert bench.step() == [(1, 1), (2, 7)]
    assert bench.step() == [(2, 6)]


def test_a_short_prompt_is_computed_beside_long_ones_that_came_before():
    bench = Bench(num_blocks=300, budget=16)
    bench.add(1, num_tokens=200)
    assert bench.step() == [(1, 16)]
    bench.add(2, num_tokens=200)
    assert bench.step() == [(1, 12), (2, 4)], "what nobody else wants is the first one's"
    bench.add(3, num_tokens=4)
    assert bench.step() == [(1, 8), (2, 4), (3, 4)]
    assert (3, 1) in bench.step()
    bench.run()
    assert bench.ended == [3, 1, 2]


def test_a_long_prompt_that_is_alone_takes_whole_steps():
    bench = Bench(budget=16)
    bench.add(1, num_tokens=100)
    assert [bench.step() for _ in range(7)] == [[(1, 16)]] * 6 + [[(1, 4)]]


def test_arrival_decides_within_a_priority_and_lower_numbers_come_first():
    bench = Bench(rows=1)
    bench.add(1, priority=1)
    bench.add(2, priority=0)
    bench.add(3, priority=0)
    bench.run()
    assert bench.ended == [2, 3, 1]


def test_the_last_of_the_lowest_priority_is_preempted_and_nobody_is_admitted_then():
    bench = Bench(num_blocks=9, budget=32)
    bench.add(1, num_tokens=12, max_tokens=8)
    bench.add(2, num_tokens=12, max_tokens=8, priority=-1)
    assert dict(bench.step()) == {1: 12, 2: 12}
    bench.add(3, num_tokens=1)
    preempted = False
    while bench.scheduler.has_work:
        before = bench.scheduler.num_preemptions
        rows = dict(bench.step())
        if bench.scheduler.num_preemptions > before and not preempted:
            preempted = True
            assert 1 not in rows and 2 in rows
    assert preempted
    assert bench.ended.index(2) < bench.ended.index(1)


def test_a_group_runs_only_as_many_requests_as_it_may():
    bench = Bench()
    for key in range(5):
        bench.add(key, group="news", max_running=2)
    bench.add(9)
    assert {key for key, _ in bench.step()} == {0, 1, 9}
    bench.run()
    assert sorted(bench.ended) == [0, 1, 2, 3, 4, 9]


@pytest.mark.parametrize("ending", ["finished", "aborted", "started"])
def test_deadlines_of_those_who_need_none_any_more_are_not_kept(ending):
    bench = Bench(num_blocks=10_000, rows=16)
    for key in range(1000):
        group = bench.add(key, queue_timeout=300.0, max_tokens=1 if ending == "finished" else 500)
        if ending == "aborted":
            bench.scheduler.abort(group, (0,))
        else:
            bench.step()
        if ending == "started" and key % 8 == 7:
            for started in list(bench.groups.values())[-8:]:
                bench.scheduler.abort(started, (0,))
        assert len(bench.scheduler._deadlines._heap) < 100
    late = bench.add(5000, queue_timeout=5.0)
    assert bench.scheduler.expire(6.0) == [late], "one that waits is dropped with them"


def test_waiting_too_long_ends_a_request_but_not_one_that_ran():
    bench = Bench(rows=1)
    running = bench.add(1, queue_timeout=5.0, max_tokens=20)
    waiting = bench.add(2, queue_timeout=5.0)
    bench.step()
    bench.now = 5.0
    assert bench.scheduler.expire(4.9) == []
    assert bench.scheduler.expire(5.0) == [waiting]
    assert running.has_started
    bench.run()
    assert bench.ended == [1]


def test_choices_are_admitted_together_and_find_the_prompt_in_the_cache():
    bench = Bench(rows=4, budget=32)
    bench.add(1, num_tokens=16, choices=(0, 1, 2))
    bench.add(2, choices=(0, 1))
    assert bench.step() == [(1, 16)]
    # Siblings compute the last block only, and 2 has to wait until both of its rows are free.
    assert bench.step() == [(1, 1), (1, 4), (1, 4)]
    bench.run()
    assert bench.ended == [1, 2]


def test_more_choices_than_rows_run_one_after_another():
    bench = Bench(rows=2)
    bench.add(1, choices=(0, 1, 2, 3))
    bench.run()
    assert bench.ended == [1]


def test_an_aborted_leader_hands_over_to_a_sibling():
    bench = Bench(budget=8)
    group = bench.add(1, num_tokens=20, choices=(0, 1, 2))
    bench.step()
    bench.scheduler.abort(group, (0,))
    bench.scheduler.check_integrity()
    bench.run()
    assert bench.ended == [1]
    assert [sequence.num_output_tokens for sequence in group.sequences] == [0, 3, 3]


@pytest.mark.parametrize("seed", range(8))
def test_every_request_leaves_exactly_once(seed):
    generator = random.Random(seed)
    bench = Bench(num_blocks=generator.choice([30, 60, 200]), budget=generator.choice([8, 32]))
    aborted = set()
    requests = {}
    for key in range(60):
        requests[key] = bench.add(
            key,
            prompt=[generator.randrange(2) for _ in range(generator.randrange(1, 60))],
            max_tokens=generator.randrange(1, 20),
            priority=generator.randrange(2),
            choices=tuple(range(generator.randrange(1, 4))),
            group=generator.choice(["", "a"]),
            max_running=generator.choice([0, 2]),
        )
        for _ in range(generator.randrange(3)):
            bench.step()
        victim = generator.randrange(key + 1)
        if generator.random() < 0.1 and not requests[victim].is_finished:
            bench.scheduler.abort(requests[victim], (0, 1, 2))
            bench.scheduler.check_integrity()
            aborted.add(victim)
    bench.run()
    assert sorted(bench.ended) == sorted(set(requests) - aborted)


def test_a_started_request_is_never_kept_from_the_rows_it_was_promised(drive):
    driver = drive(max_num_seqs=4, max_num_batched_tokens=8, num_blocks=200)
    driver.add(1, range(10, 60), choices=(0, 1, 2, 3), priority=1, max_tokens=4)
    driver.step()  # the long prompt has begun; its siblings are held back
    driver.add(2, range(10, 20), choices=(0, 1, 2, 3), priority=0, max_tokens=4)
    driver.run()
    assert driver.finished.keys() == {1, 2}


def test_groups_and_preemption_together_end_every_request(drive):
    driver = drive(max_num_seqs=4, max_num_batched_tokens=16, num_blocks=24)
    for key in range(24):
        driver.add(
            key,
            range(5, 25 + key % 30),
            choices=tuple(range(1 + key % 4)),
            priority=key % 3,
            group="ab"[key % 2],
            max_running=key % 2,
            max_waiting=100,
            max_tokens=12,
        )
    driver.run()
    assert len(driver.finished) == 24


def test_a_request_that_may_not_wait_runs_if_it_can_start_at_once(drive):
    driver = drive()
    driver.add(1, range(10, 20), queue_timeout=0.0, max_tokens=2)
    assert driver.run().finished.keys() == {1}


def test_an_abort_of_the_last_choice_takes_back_what_was_still_to_be_said(drive):
    driver = drive()
    driver.add(1, range(10, 20), resume=((7,) * 16,), max_tokens=16)  # full from the start
    assert driver.engine.abort(1, (0,))
    assert not driver.engine.has_work
    driver.add(1, range(10, 20), max_tokens=2)
    assert driver.run().finished.keys() == {1}


def test_a_tenant_that_floods_does_not_keep_another_waiting():
    bench = Bench(rows=2, budget=64)
    for key in range(1, 21):
        bench.add(key, tenant="flood")
    for _ in range(3):
        bench.step()
    bench.add(99, tenant="other")
    waited = len(bench.ended)
    while 99 not in bench.ended:
        bench.step()
    # those that ran when it came, and at most one more beside it
    assert len(bench.ended) - waited <= 4
    bench.run()
    assert sorted(bench.ended) == [*range(1, 21), 99]


def test_an_answer_under_way_goes_before_anybody_new():
    bench = Bench(rows=2, budget=64)
    for key in (1, 2):
        bench.add(key, max_tokens=5)
    bench.step()
    for key in (3, 4):
        bench.add(key, tenant="new")
    bench.add(5, tenant="old", resume=((1,),))
    bench.run()
    assert bench.ended.index(5) < min(bench.ended.index(3), bench.ended.index(4))


def test_siblings_go_on_when_their_leader_ends_in_a_step_under_way_after_its_preemption():
    bench = Bench(num_blocks=6, budget=32)
    bench.add(1, num_tokens=8, max_tokens=9)
    family = bench.add(2, num_tokens=11, max_tokens=1, choices=(0, 1))
    under_way, later = bench.scheduler.schedule(), bench.scheduler.schedule()
    assert bench.scheduler.num_preemptions == 1
    for row in (*under_way.rows, *later.rows):
        bench.scheduler.update(row, [1] * row.num_samples)
    assert family.sequences[0].is_finished
    bench.run()
