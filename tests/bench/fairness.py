"""`python -m tests.bench.fairness`: what a tenant that floods costs another, on the demo model.

One key has 8 requests running at a time and 24 callers behind it; another asks now and then. Prints
the second's time to first token alone and beside the flood, and their ratio.
"""

import platform
import statistics
import tempfile
import time
from pathlib import Path

from tests.e2e.test_fairness import time_to_first_token, under_flood
from tests.e2e.test_keys import add
from tests.running_server import RunningServer

NUM_ASKED = 30


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        keys = Path(folder) / "keys.json"
        flooding = add(keys, "flood", "--concurrent", "8", "--queued", "64")
        quiet = add(keys, "quiet")
        server = RunningServer(Path(folder) / "run", "--auth-keys", str(keys))
        server.wait_until_ready()

        def measure() -> list[float]:
            return sorted(time_to_first_token(server, quiet) for _ in range(NUM_ASKED))

        measure()  # warm-up
        alone = measure()
        beside = under_flood(server, flooding, quiet, 24, measure)
        server.stop()
    print(f"{platform.machine()}, {time.strftime('%Y-%m-%d %H:%M')}, demo model, {NUM_ASKED} asked")
    for name, times in (("alone", alone), ("beside a flood", beside)):
        median, worst = statistics.median(times) * 1000, times[-1] * 1000
        print(f"{name}: median {median:.1f} ms, worst {worst:.1f} ms")
    medians = statistics.median(beside) / statistics.median(alone)
    print(f"ratio of medians {medians:.2f}, of worst {beside[-1] / alone[-1]:.2f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
