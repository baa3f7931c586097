"""Endpoint: where an engine on another machine listens, and the secret of its start; as a file.

`engine-<i>.tcp` in a run directory, which only its owner may read: who can read it may ask the
engine anything.
"""

import os
import secrets
from pathlib import Path

import msgspec

from workers.errors import ProtocolError

SECRET_BYTES = 32
_MAX_FILE_BYTES = 4096


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """`node` is the machine's name in its cluster; `secret` is drawn anew for each start."""

    host: str
    port: int
    secret: bytes
    node: str
    uses_tls: bool = False

    def write(self, path: Path) -> None:
        """Put it in its place when it is whole, for no other user's eyes."""
        unfinished = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        fd = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(fd, "wb") as file:
                file.write(msgspec.json.encode(self))
            os.replace(unfinished, path)
        except OSError:
            unfinished.unlink(missing_ok=True)
            raise

    @classmethod
    def read(cls, path: Path) -> "Endpoint":
        """Raise OSError where there is none to read, ProtocolError of a file that is none."""
        with open(path, "rb") as file:
            text = file.read(_MAX_FILE_BYTES)
        try:
            return msgspec.json.decode(text, type=cls)
        except (ValueError, RecursionError) as error:
            raise ProtocolError(f"{path}: not an engine's address: {error}") from error


def endpoint_path(run_dir: Path, engine_index: int) -> Path:
    """Return where a run directory has the address of an engine on another machine."""
    return run_dir / f"engine-{engine_index}.tcp"
