"""Run directories: where a start keeps its sockets and shared memory.

Knows the order of the candidates and that a socket path has a limit.

    --run-dir  >  $RUNTIME_DIRECTORY  >  <user folder>/<command>-<port, socket's or model's name>
    <user folder> = ($XDG_RUNTIME_DIR or the temp folder)/qwenapi-<uid>
"""

import os
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from qwenapi.settings.table import Settings
from workers.errors import ConfigError

Command = Literal["serve", "http", "model"]

MAX_SOCKET_PATH_BYTES = 107
_LONGEST_SOCKET_NAME = "engine-000.sock"


def run_dir(settings: Settings, command: Command, environ: Mapping[str, str] | None = None) -> Path:
    """Return the absolute run folder of a command.

    With port 0 its name holds the caller's process id, so ask once and pass it on.
    """
    environ = os.environ if environ is None else environ
    port = Path(settings.uds).stem or settings.port or f"pid{os.getpid()}"
    instance = settings.model_name if command == "model" else port
    if settings.run_dir:
        return _checked(_absolute(settings.run_dir))
    if environ.get("RUNTIME_DIRECTORY"):
        return _checked(_unit_folder(environ))
    return _checked(user_folder(environ) / f"{command}-{instance}")


def model_run_dir(settings: Settings, environ: Mapping[str, str] | None = None) -> Path:
    """Return the run folder of the model half `qwenapi http` talks to, found by its model."""
    environ = os.environ if environ is None else environ
    if settings.model_run_dir:
        return _checked(_absolute(settings.model_run_dir))
    under_systemd = environ.get("RUNTIME_DIRECTORY")
    parent = _unit_folder(environ).parent if under_systemd else user_folder(environ)
    return _checked(parent / f"model-{settings.model_name}")


def state_dir(settings: Settings, environ: Mapping[str, str] | None = None) -> Path:
    """Return the folder of what outlives a restart: --state-dir > $STATE_DIRECTORY > the user's."""
    environ = os.environ if environ is None else environ
    if settings.state_dir:
        return _absolute(settings.state_dir)
    if environ.get("STATE_DIRECTORY"):
        return Path(environ["STATE_DIRECTORY"].split(":")[0])
    return Path(os.path.expanduser("~/.local/state/qwenapi"))


def make_run_dir(path: Path) -> None:
    """Create a run folder that only its owner may enter; refuse one that is somebody else's."""
    try:
        for folder in (path.parent, path):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"run folder {path}: {error.strerror}; set --run-dir") from error
    own = [path, path.parent] if path.parent.name == f"qwenapi-{os.getuid()}" else [path]
    for folder in own:
        status = folder.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
            raise ConfigError(f"run folder {folder} belongs to somebody else; set --run-dir")


def _unit_folder(environ: Mapping[str, str]) -> Path:
    return Path(environ["RUNTIME_DIRECTORY"].split(":")[0])


def user_folder(environ: Mapping[str, str]) -> Path:
    parent = environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    return Path(parent) / f"qwenapi-{os.getuid()}"


def _absolute(path: str) -> Path:
    return Path(os.path.abspath(os.path.expanduser(path)))


def _checked(folder: Path) -> Path:
    size = len(os.fsencode(folder / _LONGEST_SOCKET_NAME))
    if size > MAX_SOCKET_PATH_BYTES:
        raise ConfigError(
            f"run folder {folder}: its socket paths take {size} bytes, the system allows"
            f" {MAX_SOCKET_PATH_BYTES}; set a shorter --run-dir"
        )
    return folder
