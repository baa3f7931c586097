"""The file of keys: JSON that only its owner can read, replaced whole, edited under a lock.

{"keys": [{"id": …, "sha256": …, "tenant": …, "scopes": […], "limits": {…}, …}]}
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from qwenapi.keys.key import Key
from workers.errors import ConfigError

# The memory of usage.py has room for twice as many.
MAX_KEYS = 512
MAX_FILE_BYTES = 1024 * 1024
OTHERS_MAY_WRITE = 0o022


class _Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    keys: tuple[Key, ...]


def read_keys(path: Path) -> tuple[Key, ...]:
    """Return the file's keys; raise ConfigError saying what is wrong with it."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & OTHERS_MAY_WRITE:
                raise ConfigError(f"{path}: others may write keys of their own; chmod 600 it")
            text = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"{path}: {error.strerror}; make it with: qwenapi keys add --file {path}"
        ) from error
    if len(text) > MAX_FILE_BYTES:
        raise ConfigError(f"{path}: larger than {MAX_FILE_BYTES} bytes")
    try:
        keys = msgspec.json.decode(text, type=_Document).keys
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: no file of keys: {error}") from error
    if len({key.id for key in keys}) < len(keys):
        raise ConfigError(f"{path}: two keys have the same id")
    if len(keys) > MAX_KEYS:
        raise ConfigError(f"{path}: {len(keys)} keys, more than {MAX_KEYS}")
    return keys


@contextmanager
def edited(path: Path) -> Iterator[list[Key]]:
    """Give the keys to be changed, and write them when all went well; one editor at a time."""
    with _locked(path):
        keys = list(read_keys(path)) if path.exists() else []
        yield keys
        if len(keys) > MAX_KEYS:
            raise ConfigError(f"{path}: it holds no more than {MAX_KEYS} keys")
        _replace(path, msgspec.json.format(msgspec.json.encode(_Document(tuple(keys)))) + b"\n")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    # Beside the file, which each edit replaces by another.
    lock = path.with_name(path.name + ".lock")
    try:
        fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise ConfigError(f"{lock}: {error.strerror}; name another --file") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _replace(path: Path, text: bytes) -> None:
    """Let the file hold `text`, whole or not at all, whoever reads it or pulls the plug."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            if path.exists() and os.geteuid() == 0:
                owner = path.stat()  # root edits for the service, which must still read it
                os.fchown(fd, owner.st_uid, owner.st_gid)
            os.write(fd, text)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(fresh, path)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise ConfigError(f"{path}: {error.strerror}") from error
