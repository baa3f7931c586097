"""Files of shared memory: where a run directory keeps them, how one is made and removed."""

import hashlib
import os
from pathlib import Path

from workers.wire.layout import Layout


def shared_memory_path(run_dir: Path, layout: Layout) -> Path:
    """Return where a run directory has a layout: inside it if that is memory, else in /dev/shm.

    The layout's hash is part of the name, so that two versions never meet in one file.
    """
    folder, prefix = _place(run_dir)
    return folder / f"{prefix}{layout.name}-{layout.hash:016x}.shm"


def remove_shared_memory(run_dir: Path) -> None:
    """Remove every file of a run directory, whatever its layout."""
    folder, prefix = _place(run_dir)
    for path in folder.glob(f"{prefix}*.shm"):
        path.unlink(missing_ok=True)


def is_ours(path: Path, size: int) -> bool:
    """Return whether a file of this size is there already; raise OSError if it is not ours."""
    # A link somebody planted in /dev/shm is not followed, nor is their file used.
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        if os.fstat(fd).st_uid != os.getuid():
            raise PermissionError(0, "the file belongs to somebody else")
        return os.fstat(fd).st_size == size
    finally:
        os.close(fd)


def make(path: Path, size: int, header: bytes) -> None:
    """Write a file of zeros beside the path, and put it in its place when it is whole."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(unfinished, flags, 0o660)
    try:
        os.posix_fallocate(fd, 0, size)
        os.pwrite(fd, header, 0)
        os.replace(unfinished, path)
    except OSError:
        unfinished.unlink()
        raise
    finally:
        os.close(fd)


def _place(run_dir: Path) -> tuple[Path, str]:
    """Return the folder of a run directory's files, and how their names begin there."""
    if _is_tmpfs(run_dir) or not os.access("/dev/shm", os.W_OK):
        return run_dir, ""
    digest = hashlib.sha256(str(run_dir.resolve()).encode()).hexdigest()[:12]
    return Path("/dev/shm"), f"qwenapi-{os.getuid()}-{digest}-"


def _is_tmpfs(path: Path) -> bool:
    """Return whether the path's own mount, the longest one in the mount table, is a tmpfs."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    path = path.resolve()
    mount = max(
        (m for m in mounts if path.is_relative_to(m[1])), key=lambda m: len(m[1]), default=None
    )
    return mount is not None and mount[2] in ("tmpfs", "ramfs")
