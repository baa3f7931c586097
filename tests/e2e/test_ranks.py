"""A rank of a tensor-parallel engine dies or hangs under streams: the group starts anew as a whole,
and no stream loses or doubles a token.
"""

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from tests.e2e.test_replay import completion
from tests.running_server import wait_for
from workers.errors import ExitCode

NUM_STREAMS = 32
TOKENS = 160
# Each rank has a thread of its own; the limit is far beyond what a step of the demo model takes.
FLAGS = ("--tensor-parallel-size", "2", "--deterministic", "--threads", "1", "--step-timeout", "6")


@pytest.fixture
def server(start_server):
    return start_server(*FLAGS)


def ranks_of(server):
    """Return the processes of the engine, the first rank first."""
    first = psutil.Process(server.row()["pid"])
    others = [child for child in first.children() if "spawn_main" in " ".join(child.cmdline())]
    return [first, *others]


@pytest.mark.parametrize(
    ("rank", "number"),
    [
        pytest.param(0, signal.SIGKILL, id="first-killed"),
        pytest.param(1, signal.SIGKILL, id="other-killed", marks=pytest.mark.slow),
        pytest.param(0, signal.SIGSTOP, id="first-stopped", marks=pytest.mark.slow),
        pytest.param(1, signal.SIGSTOP, id="other-stopped", marks=pytest.mark.slow),
    ],
)
def test_no_stream_is_lost_to_a_rank_that_ends_or_hangs(server, rank, number):
    asks = [
        completion(seed, stream=True, max_tokens=TOKENS, temperature=0.8, ignore_eos=True)
        for seed in range(NUM_STREAMS)
    ]
    before = ranks_of(server)
    assert len(before) == 2
    with ThreadPoolExecutor(NUM_STREAMS) as pool:
        whole = list(pool.map(lambda ask: ask(server), asks))
        running = [pool.submit(ask, server) for ask in asks]
        # One that does not run yet is refused where the next engine takes long to start.
        wait_for(lambda: server.row()["running"] == NUM_STREAMS)
        os.kill(before[rank].pid, number)
        assert [stream.result() for stream in running] == whole
    wait_for(lambda: not any(process.is_running() for process in before))
    wait_for(lambda: server.get("/readyz").status_code == 200, 60)
    after = ranks_of(server)
    assert len(after) == 2 and not {p.pid for p in after} & {p.pid for p in before}
    assert "Traceback" not in server.log, server.log


@pytest.mark.slow
def test_a_follower_that_hangs_while_nobody_asks_is_found_out(server):
    before = ranks_of(server)
    os.kill(before[1].pid, signal.SIGSTOP)
    wait_for(lambda: not any(process.is_running() for process in before), 30, lambda: server.log)
    wait_for(lambda: server.get("/readyz").status_code == 200, 60)
    assert "no sign of life" in server.log and "while idle" in server.log


def test_ranks_that_cannot_start_say_so_once_and_end(start_server):
    flags = ("--tensor-parallel-size", "2", "--threads", "1", "--attention-backend", "triton")
    server = start_server(*flags, ready=False, environ={"TRITON_INTERPRET": "0"})
    assert server.process.wait(60) == ExitCode.CONFIG
    server.close()
    assert server.log.count("attention_backend = 'triton', but") == 1
    assert "Traceback" not in server.log


def test_all_ranks_end_with_the_service(server):
    ranks = ranks_of(server)
    assert server.stop() == 0
    assert not any(process.is_running() for process in ranks)
