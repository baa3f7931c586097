"""Which batch a process takes up next, on a real store."""

import gevent
import pytest

from qwenapi.batches.runner import MAX_BATCHES, BatchRunner
from tests.batches.test_job import add_batch, asking, echo, store

__all__ = ["store"]


@pytest.fixture
def over():
    """Anything in it stops the jobs that a test has begun, as its end does."""
    over = []
    yield over
    over.append(True)
    gevent.sleep(0.6)


def test_a_tenant_of_many_long_batches_does_not_keep_others_from_theirs(store, over):
    def slow(key_id, line):
        gevent.sleep(0.3)
        return echo(key_id, line)

    runner = BatchRunner(store, asking(slow, is_stopping=lambda: bool(over), concurrency=1))
    long_ones = [add_batch(store, 1000) for _ in range(MAX_BATCHES + 2)]
    runner.tick()
    assert runner._running.keys() == {batch.id for batch in long_ones[:MAX_BATCHES]}
    late = [add_batch(store, 2, tenant="b") for _ in range(2)]
    runner.tick()
    assert late[0].id in runner._running and late[1].id not in runner._running
    gevent.sleep(2)
    assert store.batch("b", late[0].id).status == "completed"
    runner.tick()
    assert late[1].id in runner._running and len(runner._running) == MAX_BATCHES + 1


def test_tenants_that_run_fewer_come_first_and_then_the_older(store, over):
    runner = BatchRunner(store, asking(may_begin=lambda: False, is_stopping=lambda: bool(over)))
    first = [add_batch(store, 1) for _ in range(4)]
    other = [add_batch(store, 1, tenant="b") for _ in range(2)]
    runner.tick()
    assert runner._running.keys() == {first[0].id, other[0].id, first[1].id, other[1].id}
