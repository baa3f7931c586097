"""Count the physical CPU cores that this process may compute on."""

import os
from pathlib import Path

from workers.cgroups import ControlGroup, control_groups


def physical_cores() -> int:
    """Count the cores this process may use; threads beyond them only compete for the same units.

    Of a quota, as containers have one, only whole cores count: threads that wait for one another
    would all stand still while it is used up.
    """
    siblings = set()
    for cpu in os.sched_getaffinity(0):
        file = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        siblings.add(file.read_text() if file.is_file() else str(cpu))
    quota = cpu_quota()
    return len(siblings) if quota is None else max(1, min(len(siblings), int(quota)))


def cpu_quota() -> float | None:
    """Return how many CPUs' time the control groups of this process allow; None: all there is."""
    quotas = (_quota(group) for group in control_groups("cpu"))
    return min((quota for quota in quotas if quota), default=None)


def _quota(group: ControlGroup) -> float | None:
    """Return a group's own; "max" and -1 are none."""
    if group.version == 2:
        limit, _, period = group.read("cpu.max").partition(" ")
    else:
        limit, period = (group.read(f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    is_limited = limit.strip().isdecimal() and period.strip().isdecimal() and int(period)
    return int(limit) / int(period) if is_limited else None
