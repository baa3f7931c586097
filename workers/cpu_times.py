"""Read how long this process's threads waited for a core, and cores for something to do."""

import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

TASKS = Path("/proc/self/task")
STAT = Path("/proc/stat")

# Of a line "cpuN" in /proc/stat (see proc_stat(5)), after its name: idle and waiting for a disk.
_IDLE_FIELDS = (4, 5)


class CpuTimes(NamedTuple):
    """What has added up so far. Seconds."""

    waits: dict[int, float]  # thread id → how long it was ready to run and did not
    idle: float  # of all cores this process may run on, together


def read_cpu_times(tasks: Path = TASKS, stat: Path = STAT) -> CpuTimes | None:
    """Return what Linux has counted; None where it does not say."""
    waits = {}
    try:
        for task in tasks.iterdir():
            with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
                # Time on a core and time ready for one, both nanoseconds, and turns on a core.
                waits[int(task.name)] = int((task / "schedstat").read_text().split()[1]) / 1e9
        lines = stat.read_text().splitlines()
    except OSError:
        return None
    if not waits:
        return None
    cores = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    ticks = sum(
        int(fields[place])
        for line in lines
        if (fields := line.split()) and fields[0] in cores
        for place in _IDLE_FIELDS
    )
    return CpuTimes(waits, ticks / os.sysconf("SC_CLK_TCK"))
