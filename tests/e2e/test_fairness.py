"""One tenant floods; another, who asks now and then, hardly notices."""

import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from tests.e2e.test_keys import add, bearer
from tests.running_server import RunningServer, wait_for

STEP_SECONDS = 0.02


def time_to_first_token(server, key):
    """Return the seconds until the first text of a short streamed answer."""
    started = time.monotonic()
    body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 3, "stream": True}
    with requests.post(
        server.url + "/v1/chat/completions",
        json=body,
        headers=bearer(key),
        stream=True,
        timeout=60,
    ) as answer:
        assert answer.status_code == 200, answer.text
        for line in answer.iter_lines():
            if b'"content":"' in line and b'"content":""' not in line:
                return time.monotonic() - started
    raise AssertionError("no text came")


def flood(server, key, stop):
    body = {"messages": [{"role": "user", "content": "flood"}], "max_tokens": 40}
    while not stop:
        requests.post(
            server.url + "/v1/chat/completions", json=body, headers=bearer(key), timeout=120
        )


def under_flood(server, flooding, key, num_flooders, measure):
    stop = []
    with ThreadPoolExecutor(num_flooders) as pool:
        for _ in range(num_flooders):
            pool.submit(flood, server, flooding, stop)
        try:
            wait_for(lambda: server.row()["running"] + server.row()["waiting"] >= 8)
            return measure()
        finally:
            stop.append(True)


@pytest.fixture
def start(tmp_path):
    path = tmp_path / "keys.json"
    servers = []

    def start(*flags, concurrent):
        flooding = add(path, "flood", "--concurrent", str(concurrent), "--queued", "64")
        quiet = add(path, "quiet")
        server = RunningServer(
            tmp_path / "run",
            *("--stub", "--stub-step-seconds", str(STEP_SECONDS), "--auth-keys", str(path)),
            *flags,
        )
        servers.append(server)
        return server.wait_until_ready(), flooding, quiet

    yield start
    for server in servers:
        server.close()


@pytest.mark.timing
def test_beside_a_tenant_with_eight_running_the_first_token_comes_as_soon(start):
    server, flooding, quiet = start(concurrent=8)

    def measure():
        return sorted(time_to_first_token(server, quiet) for _ in range(40))

    alone = measure()
    beside = under_flood(server, flooding, quiet, 24, measure)
    p99 = [times[-1] for times in (alone, beside)]
    medians = [statistics.median(times) for times in (alone, beside)]
    print(f"time to first token alone and beside a flood: p99 {p99}, median {medians}")
    # The worst of 40 on a machine that others use is theirs; the typical one is ours.
    assert medians[1] < 2 * medians[0] + STEP_SECONDS
    assert beside[int(0.9 * len(beside))] < 2 * alone[-1] + 2 * STEP_SECONDS


@pytest.mark.timing
def test_where_all_rows_are_taken_the_quiet_tenant_is_next(start):
    server, flooding, quiet = start("--max-num-seqs", "4", concurrent=0)
    answer_seconds = 40 * STEP_SECONDS  # of each of the 32 that flood, four at a time
    waits = under_flood(
        server,
        flooding,
        quiet,
        32,
        lambda: [time_to_first_token(server, quiet) for _ in range(5)],
    )
    print(f"waited {waits} s; a place in the line would have been {8 * answer_seconds:.1f} s away")
    assert statistics.median(waits) < 2 * answer_seconds
