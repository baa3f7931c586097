"""One engine's ranks on two nodes of a real Ray cluster: the tokens are those of one rank, and what
ends one of them ends all and costs no stream.
"""

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from tests.cluster.test_cluster import engines
from tests.e2e.test_replay import completion
from tests.running_server import wait_for

NUM_STREAMS = 16
FLAGS = ("--dtype", "float32", "--deterministic", "--threads", "1", "--step-timeout", "10")


@pytest.fixture(scope="module")
def ranked(ray_nodes):
    """Return the flags of an engine that has a rank on each of two nodes."""
    size = ("--tensor-parallel-size", "2", "--allow-cross-node-tp")
    return (*FLAGS, *size, "--cluster", ray_nodes.address)


def rank_on(node):
    """Return the process of the one rank on a node, or None."""
    for process in node.processes():
        words = " ".join(process.cmdline())
        if "spawn_main" in words:
            return process
    return None


@pytest.mark.slow
def test_ranks_on_two_nodes_give_the_tokens_of_one(ray_nodes, start_server, ranked):
    asks = [completion(seed, prompt=f"Tell me {seed} things", max_tokens=48) for seed in range(8)]
    asks += [completion(seed, max_tokens=48, temperature=0) for seed in range(8)]
    alone = start_server(*FLAGS)
    server = start_server(*ranked)
    for name in ("a", "b"):
        assert rank_on(ray_nodes.nodes[name]) is not None, server.log
    assert "engine-0 has its ranks on several nodes, a, b, as none has 2 CPU free" in server.log
    assert [ask(server) for ask in asks] == [ask(alone) for ask in asks]
    ranks = [rank_on(ray_nodes.nodes[name]) for name in ("a", "b")]
    assert server.stop() == 0
    psutil.wait_procs(ranks, timeout=20)
    assert not any(rank.is_running() for rank in ranks)
    assert "Traceback" not in server.log, server.log


@pytest.mark.slow
def test_what_ends_a_rank_elsewhere_ends_all_and_costs_no_stream(ray_nodes, start_server, ranked):
    server = start_server(*ranked)
    nodes = ray_nodes.nodes
    (other,) = {"a", "b"} - {engines(server)[0]["node"]}
    asks = [  # a node is missed some seconds after its raylet has gone
        completion(seed, stream=True, max_tokens=400, temperature=0.8, ignore_eos=True)
        for seed in range(NUM_STREAMS)
    ]

    def under_streams(end):
        """Return the answers that were under way when a rank was ended."""
        first = psutil.Process(server.row()["pid"])
        with ThreadPoolExecutor(NUM_STREAMS) as pool:
            running = [pool.submit(ask, server) for ask in asks]
            wait_for(lambda: server.row()["running"] > NUM_STREAMS // 2, 60)
            end()
            psutil.wait_procs([first], timeout=30)
            assert not first.is_running(), server.log
            assert not any(stream.done() for stream in running), "it was ended too late"
            return [stream.result() for stream in running]

    def lose_node():
        lost = nodes[other].kill_raylet()
        _, alive = psutil.wait_procs(lost, timeout=20)
        assert not alive
        ray_nodes.add(other, 21 if other == "a" else 22)

    with ThreadPoolExecutor(NUM_STREAMS) as pool:
        whole = list(pool.map(lambda ask: ask(server), asks))
    assert under_streams(lose_node) == whole, server.log
    assert under_streams(lambda: os.kill(rank_on(nodes[other]).pid, signal.SIGKILL)) == whole
    assert "engine-0.1 ended (signal SIGKILL)" in server.log, server.log
    assert under_streams(lambda: os.kill(rank_on(nodes[other]).pid, signal.SIGSTOP)) == whole
    assert engines(server)[0]["restarts"] == 3
    assert server.stop() == 0
    assert "Traceback" not in server.log, server.log
