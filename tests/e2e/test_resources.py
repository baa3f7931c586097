"""What a server holds comes back, and what it cannot have makes it refuse, not fall."""

import resource
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import psutil
import pytest
import requests

from tests.running_server import sse_events, wait_for

BODY = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4000, "stream": True}
NUM_ABORTED = 1000


def abort_one(server):
    with server.post("/v1/chat/completions", BODY, stream=True) as answer:
        assert answer.status_code == 200
        next(answer.iter_content(1))


def held(server):
    """Return what the processes hold that could be left behind: descriptors and threads."""
    everyone = [psutil.Process(server.process.pid), *server.tree()]
    return {process.pid: (process.num_fds(), process.num_threads()) for process in everyone}


def memory(server):
    return sum(process.memory_info().rss for process in server.tree())


@pytest.mark.slow
def test_a_thousand_aborted_requests_leave_descriptors_threads_and_memory_as_they_were(
    start_server,
):
    server = start_server("--stub", "--stub-step-seconds", "0.002")
    with ThreadPoolExecutor(20) as pool:
        list(pool.map(lambda _: abort_one(server), range(300)))
        server.wait_until_idle()
        before, bytes_before = held(server), memory(server)
        list(pool.map(lambda _: abort_one(server), range(NUM_ABORTED)))
    server.wait_until_idle()
    wait_for(lambda: held(server) == before, 30, lambda: f"{before} became {held(server)}")
    assert memory(server) - bytes_before < 20e6


def test_a_process_without_descriptors_serves_what_it_has_and_then_again_what_comes(start_server):
    server = start_server("--stub", "--stub-step-seconds", "0.01")
    (worker,) = server.http_workers()
    host, port = server.url.removeprefix("http://").split(":")
    body = BODY | {"max_tokens": 300, "ignore_eos": True}
    with server.post("/v1/chat/completions", body, stream=True) as stream, ExitStack() as crowd:
        lines = stream.iter_lines()
        received = [next(lines)]
        limit = resource.prlimit(worker.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(worker.pid, resource.RLIMIT_NOFILE, (worker.num_fds() + 5, limit[1]))
        for _ in range(50):
            crowd.enter_context(socket.create_connection((host, int(port)), timeout=10))
        received += lines
        assert sse_events(b"\n".join(received).rstrip() + b"\n\n")[-1] == "[DONE]"
        resource.prlimit(worker.pid, resource.RLIMIT_NOFILE, limit)
    wait_for(lambda: answers(server), 30, lambda: server.log)
    assert worker.is_running(), "it was replaced, which costs the answers of others"


def answers(server):
    try:
        return server.chat("hello", max_tokens=3).status_code == 200
    except requests.ConnectionError:
        return False
