"""Find the control groups of this process that may limit what it uses, of either version."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

FILE = Path("/proc/self/cgroup")
ROOT = Path("/sys/fs/cgroup")


class ControlGroup(NamedTuple):
    """A folder of files that say what a group may use and does; their names depend on `version`."""

    folder: Path
    version: int

    def read(self, name: str) -> str:
        """Return the text of a file, empty where there is none."""
        try:
            return (self.folder / name).read_text(encoding="utf-8")
        except OSError:
            return ""


def control_groups(
    controller: str, file: Path | None = None, root: Path | None = None
) -> Iterator[ControlGroup]:
    """Yield the groups for `cpu` or `memory`, from this process's own up to the root.

    `file` names them, as /proc/self/cgroup does, below `root`. In a container the path is the
    host's, whose folders are not there, and the root is the container's own group.
    """
    root = root or ROOT
    try:
        lines = (file or FILE).read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = (line.split(":", 2) + ["", ""])[:3]
        if controllers and controller not in controllers.split(","):
            continue
        top = root / controllers if controllers else root
        folder = top / path.strip("/")
        for place in (folder, *folder.parents):
            if ".." not in place.parts and place.is_relative_to(top):
                yield ControlGroup(place, 1 if controllers else 2)
