"""Count the physical CPU cores that this process may compute on."""

import os
from pathlib import Path


def physical_cores() -> int:
    """Count the cores this process may use; threads beyond them only compete for the same units."""
    siblings = set()
    for cpu in os.sched_getaffinity(0):
        file = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        siblings.add(file.read_text() if file.is_file() else str(cpu))
    return len(siblings)
