"""Count the physical CPU cores that this process may compute on."""

import os
from pathlib import Path

CGROUP_FILE = Path("/proc/self/cgroup")
CGROUP_ROOT = Path("/sys/fs/cgroup")


def physical_cores() -> int:
    """Count the cores this process may use; threads beyond them only compete for the same units.

    Of a quota, as containers have one, only whole cores count: threads that wait for one another
    would all stand still while it is used up.
    """
    siblings = set()
    for cpu in os.sched_getaffinity(0):
        file = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        siblings.add(file.read_text() if file.is_file() else str(cpu))
    quota = cpu_quota(CGROUP_FILE, CGROUP_ROOT)
    return len(siblings) if quota is None else max(1, min(len(siblings), int(quota)))


def cpu_quota(cgroup_file: Path, root: Path) -> float | None:
    """Return how many CPUs' time the control groups of this process allow it; None: all there is.

    `cgroup_file` names the groups, as /proc/self/cgroup does, below `root`. In a container the path
    is the host's, whose folders are not there, and the root is the container's own group.
    """
    quotas: list[float] = []
    for line in _read(cgroup_file).splitlines():
        _, controllers, path = (line.split(":", 2) + ["", ""])[:3]
        if not controllers:
            top, read = root, _quota_v2
        elif "cpu" in controllers.split(","):
            top, read = root / controllers, _quota_v1
        else:
            continue
        folder = top / path.strip("/")
        quotas += [
            q for place in (folder, *folder.parents) if _is_in(place, top) and (q := read(place))
        ]
    return min(quotas, default=None)


def _is_in(place: Path, top: Path) -> bool:
    return ".." not in place.parts and (place == top or top in place.parents)


def _quota_v2(folder: Path) -> float | None:
    limit, _, period = _read(folder / "cpu.max").partition(" ")
    return _ratio(limit, period)


def _quota_v1(folder: Path) -> float | None:
    return _ratio(_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us"))


def _ratio(limit: str, period: str) -> float | None:
    """Return a quota; "max" and -1 are none."""
    is_limited = limit.strip().isdecimal() and period.strip().isdecimal() and int(period)
    return int(limit) / int(period) if is_limited else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
