"""A full queue refuses at once, costs nothing, and those who wait are served in their order."""

import statistics
import time
from concurrent.futures import ThreadPoolExecutor

from tests.running_server import RunningServer, wait_for

NUM_RUNNING, NUM_WAITING, NUM_REFUSED = 3, 10, 1000
GROWTH_BYTES = 20 << 20


def test_a_thousand_more_than_fit_are_refused_at_once_and_the_queue_drains_in_order(tmp_path):
    limits = ("--max-num-seqs", str(NUM_RUNNING), "--max-waiting", str(NUM_WAITING))
    server = RunningServer(tmp_path / "run", "--stub", "--stub-step-seconds", "0.05", *limits)
    ended = []

    def wait_in_line(number):
        # The first three hold their rows until the refused have been; the others are quick.
        num_tokens = 800 if number < NUM_RUNNING else 2
        answer = server.chat("hold", max_tokens=num_tokens, ignore_eos=True)
        ended.append(number)
        return answer.status_code

    def be_refused(number):
        started = time.monotonic()
        answer = server.chat("too many", max_tokens=1)
        return answer, time.monotonic() - started

    try:
        server.wait_until_ready()
        (worker,) = server.http_workers()
        with ThreadPoolExecutor(NUM_RUNNING + NUM_WAITING) as line, ThreadPoolExecutor(4) as crowd:
            held = []
            for number in range(NUM_RUNNING + NUM_WAITING):
                held.append(line.submit(wait_in_line, number))
                wait_for(lambda: sum(map(server.row().get, ("running", "waiting"))) > len(held) - 1)
            list(crowd.map(be_refused, range(100)))  # what is loaded once is loaded now
            resident = worker.memory_info().rss
            refused = list(crowd.map(be_refused, range(NUM_REFUSED)))
            assert worker.memory_info().rss - resident < GROWTH_BYTES
            assert all(future.result() == 200 for future in held)
        assert {answer.status_code for answer, _ in refused} == {503}
        assert all(1 <= int(answer.headers["Retry-After"]) <= 120 for answer, _ in refused)
        assert statistics.median(seconds for _, seconds in refused) < 0.5
        queued = [number for number in ended if number >= NUM_RUNNING]
        # Three rows become free at a time, so neighbours may end in any order.
        assert all(abs(place - (number - NUM_RUNNING)) <= 3 for place, number in enumerate(queued))
        assert server.stop() == 0
    finally:
        server.close()
