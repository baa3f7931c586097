"""Memory: how that of each process grows, and a process that takes what the machine has left.

Only private memory is judged: pages of files and shared memory come and go with the machine's need.
"""

import mmap
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from tests.chaos.world import World, kind_of
from workers.memory import machine_memory

SAMPLE_SECONDS = 1.0
WARM_UP_SECONDS = 60.0  # or the first third of a shorter life
MIN_SECONDS, MIN_SAMPLES = 20.0, 10
# Of one process after its warm-up: what a run may add by chance, in engines as their cache fills.
MAX_GROWTH_BYTES = 40e6
LONG_SECONDS = 1800.0
MAX_BYTES_PER_HOUR = 30e6  # judged where a process has lived that long
# Left to others under pressure: the kernel must not have to end anybody.
SPARE_BYTES, SPARE_SHARE = 1 << 30, 0.1
MIN_PRESSURE_BYTES = 1 << 28  # less would be felt by nobody

Sample = tuple[float, int]  # seconds, bytes


class Memory:
    """Samples of the private memory of every process, taken in a thread."""

    def __init__(self, world: World) -> None:
        self.samples: dict[int, list[Sample]] = {}
        self.kinds: dict[int, str] = {}
        self._world, self._is_over = world, threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        self._is_over.set()
        self._thread.join(30)

    def growths(self) -> list[dict[str, Any]]:
        """Return of each process that lived long enough how its memory grew after its warm-up."""
        found = ((pid, growth(samples)) for pid, samples in self.samples.items())
        return [{"pid": pid, "kind": self.kinds[pid]} | one for pid, one in found if one]

    def _run(self) -> None:
        while not self._is_over.wait(SAMPLE_SECONDS):
            with suppress(psutil.Error):  # it has just ended
                for process in self._world.server.tree():
                    used = process.memory_info()
                    self.kinds[process.pid] = self.kinds.get(process.pid) or kind_of(process)
                    sample = (time.monotonic(), used.rss - used.shared)
                    self.samples.setdefault(process.pid, []).append(sample)


def growth(samples: Sequence[Sample]) -> dict[str, float] | None:
    """Return how memory grew after the warm-up, or None where it was not seen for long enough."""
    seconds = samples[-1][0] - samples[0][0]
    warm_up = min(WARM_UP_SECONDS, seconds / 3)
    warm = [one for one in samples if one[0] - samples[0][0] >= warm_up]
    if seconds < MIN_SECONDS or len(warm) < MIN_SAMPLES:
        return None
    third = len(warm) // 3
    first, last = (statistics.median(b for _, b in part) for part in (warm[:third], warm[-third:]))
    return {
        "seconds": round(seconds),
        "bytes_per_hour": round(
            3600 * statistics.linear_regression(*zip(*warm, strict=True)).slope
        ),
        "growth_bytes": round(last - first),
        "bytes": samples[-1][1],
    }


def check_growths(growths: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return which processes grow; of a long life the slope is judged, of a short one the sum."""
    wrong = []
    for one in growths:
        is_long = one["seconds"] >= LONG_SECONDS
        if is_long and one["bytes_per_hour"] > MAX_BYTES_PER_HOUR:
            wrong.append(f"memory grows: {one}")
        if not is_long and one["growth_bytes"] > MAX_GROWTH_BYTES:
            wrong.append(f"memory grew: {one}")
    return wrong


def room() -> int:
    """Return the bytes that may be taken: of the machine, or of a control group with a limit.

    A group's own use counts without pages of files, which it gives back.
    """
    total, free = machine_memory()
    return max(0, free - max(SPARE_BYTES, int(SPARE_SHARE * total)))


@contextmanager
def pressure() -> Iterator[int]:
    """Let a process hold what there is room for; yield how many bytes it has.

    It is the first that the kernel would end, and takes no more where others come to need it.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin and process.stdout
    try:
        yield int(process.stdout.readline() or 0)
    finally:
        process.kill()
        process.wait(30)
        process.stdin.close()
        process.stdout.close()


def take(step: int = 1 << 28) -> None:
    """Take memory until there is no more room, say how much, and hold it until told to end."""
    Path("/proc/self/oom_score_adj").write_text("1000")
    held, flags = [], mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
    while room() > step:
        held.append(mmap.mmap(-1, step, flags))
    print(len(held) * step, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    take()
