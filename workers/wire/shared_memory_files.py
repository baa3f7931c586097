"""Files of shared memory: where a run directory keeps them, how one is made and removed."""

import hashlib
import os
import secrets
import time
from pathlib import Path

from workers.wire.layout import Layout

# A file that is still unfinished after so long was left by a process that was killed at it.
STALE_SECONDS = 60.0


def shared_memory_path(run_dir: Path, layout: Layout) -> Path:
    """Return where a run directory has a layout: inside it if that is memory, else in /dev/shm.

    The layout's hash is part of the name, so that two versions never meet in one file.
    """
    folder, prefix = _place(run_dir)
    return folder / f"{prefix}{layout.name}-{layout.hash:016x}.shm"


def remove_shared_memory(run_dir: Path) -> None:
    """Remove every file of a run directory, whatever its layout."""
    folder, prefix = _place(run_dir)
    for pattern in (f"{prefix}*.shm", f"{prefix}*.shm.*"):
        for path in folder.glob(pattern):
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
    """Write a file of zeros beside the path, and put it in its place when it is whole.

    Its name is drawn by chance: process ids repeat, in containers from the first one on.
    """
    _remove_stale(path)
    unfinished = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(unfinished, flags, 0o660)
    try:
        os.posix_fallocate(fd, 0, size)
        os.pwrite(fd, header, 0)
        os.replace(unfinished, path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)


def _remove_stale(path: Path) -> None:
    """Remove what processes that were killed have left beside the path."""
    for unfinished in path.parent.glob(f"{path.name}.*"):
        try:
            status = unfinished.lstat()
            if status.st_uid == os.getuid() and time.time() - status.st_mtime > STALE_SECONDS:
                unfinished.unlink()
        except OSError:
            pass  # another process was quicker, or the folder is not ours to clean


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
