"""Say how much memory this process may use: the machine's, or that of its control groups."""

from typing import NamedTuple

import psutil

from workers.cgroups import ControlGroup, control_groups


class Memory(NamedTuple):
    """Bytes. Of what is used, pages of files that nobody needs count as free."""

    total: int
    free: int


def machine_memory() -> Memory:
    """Return the least that the machine and the limits of all control groups leave."""
    machine = psutil.virtual_memory()
    total, free = machine.total, machine.available
    for group in control_groups("memory"):
        if (memory := _memory_of(group)) is not None:
            total, free = min(total, memory.total), min(free, memory.free)
    return Memory(total, max(0, free))


def _memory_of(group: ControlGroup) -> Memory | None:
    """Return what a group may use; None where it has no limit."""
    names = ("max", "current") if group.version == 2 else ("limit_in_bytes", "usage_in_bytes")
    try:
        limit, used = (int(group.read(f"memory.{name}")) for name in names)
    except ValueError:  # "max", or no file
        return None
    stat = dict(line.split() for line in group.read("memory.stat").splitlines())
    given_back = int(stat.get("inactive_file" if group.version == 2 else "total_inactive_file", 0))
    return Memory(limit, limit - used + given_back)
