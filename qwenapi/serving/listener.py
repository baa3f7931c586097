"""HttpListener: the socket callers connect to, from systemd, a Unix path, or host and port.

The supervisor owns it for its whole life and gives a duplicate to each gunicorn it starts. Knows
how systemd passes sockets on (LISTEN_FDS, LISTEN_PID; they start at descriptor 3).
"""

import os
import socket
import stat
from collections.abc import MutableMapping
from dataclasses import dataclass
from pathlib import Path

from qwenapi.settings.run_dir import MAX_SOCKET_PATH_BYTES
from qwenapi.settings.table import Settings
from workers.errors import ConfigError

FIRST_LISTEN_FD = 3
BACKLOG = 2048
# Read and write for owner and group: nginx is in the group.
UNIX_SOCKET_MASK = 0o117


@dataclass(frozen=True)
class HttpListener:
    """A listening socket; `path` is the Unix socket file that this process made and removes."""

    sock: socket.socket
    path: Path | None = None

    @property
    def host(self) -> str:
        """Return the address listened on, empty for a Unix socket."""
        return "" if self._is_unix else str(self.sock.getsockname()[0])

    @property
    def port(self) -> int:
        """Return the port listened on, 0 for a Unix socket."""
        return 0 if self._is_unix else int(self.sock.getsockname()[1])

    @property
    def url(self) -> str:
        """Return where callers reach it: http://host:port, or unix:/path."""
        if self._is_unix:
            return f"unix:{self.sock.getsockname()}"
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    @property
    def family(self) -> int:
        return self.sock.family

    @property
    def local_address(self) -> str | tuple[str, int]:
        """Return the address a process of this machine connects to."""
        if self._is_unix:
            return str(self.sock.getsockname())
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host), self.port

    def close(self) -> None:
        """Listen no more, as far as this process goes; calling it twice does no harm."""
        if self.sock.fileno() >= 0:
            self.sock.close()
            if self.path is not None:
                self.path.unlink(missing_ok=True)

    @property
    def _is_unix(self) -> bool:
        return self.sock.family == socket.AF_UNIX


def listen(settings: Settings, environ: MutableMapping[str, str] | None = None) -> HttpListener:
    """Return the socket of this start; raise ConfigError saying why it cannot be had.

    A socket of systemd wins over the settings; its variables are taken out of `environ`, so that
    no child takes them for its own.
    """
    environ = os.environ if environ is None else environ
    is_mine = environ.pop("LISTEN_PID", "") == str(os.getpid())
    num_given = environ.pop("LISTEN_FDS", "")
    environ.pop("LISTEN_FDNAMES", None)
    if is_mine and num_given not in ("", "0"):
        return HttpListener(_take_over(num_given))
    if settings.uds:
        path = Path(os.path.abspath(os.path.expanduser(settings.uds)))
        return HttpListener(_listen_unix(path), path)
    return HttpListener(_listen_tcp(settings.host, settings.port))


def _take_over(num_given: str) -> socket.socket:
    if num_given != "1":
        raise ConfigError(f"{num_given} sockets were handed over; the .socket unit must have one")
    try:
        sock = socket.socket(fileno=FIRST_LISTEN_FD)
        is_listening = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise ConfigError(f"LISTEN_FDS=1, but descriptor 3 is no socket: {error}") from error
    if not is_listening or sock.type != socket.SOCK_STREAM:
        raise ConfigError("the socket handed over does not listen; use ListenStream=, Accept=no")
    sock.set_inheritable(False)
    return sock


def _listen_unix(path: Path) -> socket.socket:
    """Bind the path, replacing a socket file nobody listens on."""
    if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
        raise ConfigError(
            f"--uds {path}: longer than the {MAX_SOCKET_PATH_BYTES} bytes the system allows"
        )
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        mask = os.umask(UNIX_SOCKET_MASK)
        try:
            sock.bind(str(path))
        finally:
            os.umask(mask)
    except OSError as error:
        sock.close()
        raise ConfigError(
            f"cannot listen on {path}: {error.strerror}; choose another --uds"
        ) from error
    sock.listen(BACKLOG)
    return sock


def _remove_stale(path: Path) -> None:
    if not path.exists():
        return
    if not stat.S_ISSOCK(path.lstat().st_mode):
        raise ConfigError(f"cannot listen on {path}: it is no socket; choose another --uds")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        if probe.connect_ex(str(path)) == 0:
            raise ConfigError(f"cannot listen on {path}: another server does; stop it")
    path.unlink()


def _listen_tcp(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )[0]
        sock = socket.socket(family, kind, protocol)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another --host or --port"
        ) from error
    sock.listen(BACKLOG)
    return sock
