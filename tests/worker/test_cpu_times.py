"""What threads waited for cores, read from the real /proc beside a real neighbour."""

import json
import subprocess
import sys
import time

from workers.cpu_times import read_cpu_times

# Computes for so many seconds on one core, and prints how long its threads waited for it.
BUSY = """
import json, os, sys, time
from workers.cpu_times import read_cpu_times
os.sched_setaffinity(0, {int(sys.argv[1])})
before, end = read_cpu_times(), time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    pass
print(json.dumps(sum(read_cpu_times().waits.values()) - sum(before.waits.values())))
"""


def compute(core, seconds):
    return subprocess.Popen(
        [sys.executable, "-c", BUSY, str(core), str(seconds)], stdout=subprocess.PIPE
    )


def test_two_on_one_core_wait_for_each_other():
    first, second = [compute(0, 2.0) for _ in range(2)]
    waits = [json.loads(process.communicate()[0]) for process in (first, second)]
    assert min(waits) > 0.3  # they began almost together


def test_cores_are_idle_for_no_longer_than_there_is_time():
    before, began = read_cpu_times(), time.monotonic()
    time.sleep(0.3)
    idle = read_cpu_times().idle - before.idle
    assert 0 <= idle <= (time.monotonic() - began + 0.05) * 1024


def test_a_machine_that_counts_nothing_says_nothing(tmp_path):
    stat = tmp_path / "stat"
    assert read_cpu_times(tasks=tmp_path / "none", stat=stat) is None
    (tmp_path / "task" / "1").mkdir(parents=True)  # a kernel without CONFIG_SCHED_INFO
    stat.write_text("cpu0 1 2 3 400 5 6 7 0 0 0\n")
    assert read_cpu_times(tasks=tmp_path / "task", stat=stat) is None


def test_what_the_kernel_writes_is_read(tmp_path, monkeypatch):
    for number, wait in ((1, 1_500_000_000), (7, 250_000_000)):
        (tmp_path / "task" / str(number)).mkdir(parents=True)
        (tmp_path / "task" / str(number) / "schedstat").write_text(f"99 {wait} 3\n")
    (tmp_path / "task" / "8").mkdir()  # it has just ended
    stat = tmp_path / "stat"
    stat.write_text("cpu 9 9 9 9 9\ncpu0 1 2 3 100 20 6\ncpu1 1 2 3 40 40 6\ncpu10 0 0 0 5 5 0\n")
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 10})
    monkeypatch.setattr("os.sysconf", lambda name: 100)
    assert read_cpu_times(tasks=tmp_path / "task", stat=stat) == ({1: 1.5, 7: 0.25}, 1.3)
