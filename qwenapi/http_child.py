"""The HTTP server as its supervisor sees it: a gunicorn arbiter on a socket that the supervisor
owns.

The socket outlives every arbiter, so a restart refuses nobody: callers wait in its backlog.
Settings travel as one JSON line over the pipe that also ties the server's life to the supervisor's.
"""

import http.client
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import orjson

from qwenapi.profile import Profile
from qwenapi.settings import Settings
from workers.errors import ConfigError

BACKLOG = 2048
PROBE_SECONDS = 1.0


class HttpChild:
    """Implements workers.supervisor.Child."""

    name = "http"
    failure: str | None = None

    def __init__(
        self,
        settings: Settings,
        profiles: Sequence[Profile],
        model_run_dir: Path,
        listener: socket.socket,
    ) -> None:
        self._settings = settings
        self._profiles = profiles
        self._model_run_dir = model_run_dir
        self._listener = listener
        self._process: subprocess.Popen[bytes] | None = None
        self._lifeline: int | None = None
        self._was_ready = False

    def start(self) -> None:
        if self._lifeline is not None:
            os.close(self._lifeline)
        theirs, self._lifeline = os.pipe()
        self._was_ready = False
        descriptors = (self._listener.fileno(), theirs)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "qwenapi.server", *map(str, descriptors)],
            pass_fds=descriptors,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(theirs)
        handover = {
            "settings": asdict(self._settings),
            "profiles": [asdict(profile) for profile in self._profiles],
            "model_run_dir": str(self._model_run_dir),
        }
        os.write(self._lifeline, orjson.dumps(handover) + b"\n")

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def poll(self) -> int | None:
        return self._process.poll() if self._process else None

    def is_ready(self) -> bool:
        """Return whether a request would be served now; once true, it is not asked again for this
        process.
        """
        self._was_ready = self._was_ready or self._probe()
        return self._was_ready

    def hang(self) -> str | None:
        """Return None: gunicorn's arbiter watches its workers."""
        return None

    def terminate(self) -> None:
        if self._process is not None:
            self._process.terminate()

    def dump(self) -> None:
        pass

    def kill(self) -> None:
        """Kill the arbiter and its workers: they share a session of their own."""
        if self._process is not None:
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def _probe(self) -> bool:
        host, port = self._listener.getsockname()[:2]
        loopback = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        connection = http.client.HTTPConnection(loopback, port, timeout=PROBE_SECONDS)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()


def listen(host: str, port: int) -> socket.socket:
    """Return a listening TCP socket; raise ConfigError saying why the address cannot be had."""
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
