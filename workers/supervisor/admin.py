"""AdminServer: the operator's Unix socket of a supervisor, one JSON line in and one out.

Mode 0600, and only the supervisor's own user and root are heard. What a command does is the
handler's; it may take as many ticks as it likes to answer.
"""

import json
import logging
import os
import selectors
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workers.errors import ConfigError
from workers.wire.connection import peer_uid

log = logging.getLogger(__name__)

NAME = "admin.sock"
MAX_LINE_BYTES = 4096
MAX_CALLERS = 16
# How long a caller may take to say what it wants.
PATIENCE_SECONDS = 10.0

Reply = dict[str, Any]
# Asked at each tick until it has a reply.
Pending = Callable[[], Reply | None]
Handler = Callable[[dict[str, Any]], Pending]


@dataclass
class _Caller:
    sock: socket.socket
    give_up_at: float
    line: bytearray = field(default_factory=bytearray)
    pending: Pending | None = None


class AdminServer:
    """Listens at `run_dir/admin.sock`. The run directory is locked, so an old file is dead."""

    def __init__(self, run_dir: Path, handler: Handler) -> None:
        self._path = run_dir / NAME
        self._handler = handler
        self._callers: list[_Caller] = []
        self._path.unlink(missing_ok=True)
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        mask = os.umask(0o177)
        try:
            self._sock.bind(str(self._path))
        except OSError as error:
            raise ConfigError(f"{self._path}: {error.strerror}; set --run-dir") from error
        finally:
            os.umask(mask)
        self._sock.listen(MAX_CALLERS)
        self._sock.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._sock, selectors.EVENT_READ)

    def fileno(self) -> int:
        """Return a descriptor that is readable when `tick` has something to do."""
        return self._selector.fileno()

    def tick(self) -> None:
        """Take what has arrived and answer what can be answered."""
        for key, _ in self._selector.select(0):
            if key.data is None:
                self._accept()
            else:
                self._read(key.data)
        now = time.monotonic()
        for caller in list(self._callers):
            if caller.pending is not None:
                if (reply := caller.pending()) is not None:
                    self._answer(caller, reply)
            elif now >= caller.give_up_at:
                self._drop(caller)

    def close(self) -> None:
        """End; a caller without an answer finds the end of the stream. Twice does no harm."""
        if self._sock.fileno() < 0:
            return
        for caller in list(self._callers):
            self._drop(caller)
        self._selector.close()
        self._sock.close()
        self._path.unlink(missing_ok=True)

    def _accept(self) -> None:
        try:
            sock, _ = self._sock.accept()
        except OSError:
            return  # it has gone again, or there are no descriptors left
        if peer_uid(sock) not in (os.getuid(), 0) or len(self._callers) >= MAX_CALLERS:
            log.warning("refused an operator with uid %d", peer_uid(sock))
            self._refuse(sock)
            return
        sock.setblocking(False)
        caller = _Caller(sock, time.monotonic() + PATIENCE_SECONDS)
        self._callers.append(caller)
        self._selector.register(sock, selectors.EVENT_READ, caller)

    def _refuse(self, sock: socket.socket) -> None:
        try:
            sock.send(b'{"error": "refused: another user, or too many operators at once"}\n')
        except OSError:
            pass
        sock.close()

    def _read(self, caller: _Caller) -> None:
        try:
            data = caller.sock.recv(MAX_LINE_BYTES)
        except OSError:
            data = b""
        caller.line += data
        if not data or len(caller.line) > MAX_LINE_BYTES:
            self._drop(caller)  # what it has asked for goes on
        elif caller.pending is None and caller.line.endswith(b"\n"):
            caller.pending = self._parsed(bytes(caller.line))

    def _parsed(self, line: bytes) -> Pending:
        try:
            request = json.loads(line)
        except (ValueError, RecursionError):
            request = None
        if isinstance(request, dict):
            return self._handler(request)
        return lambda: {"error": "one JSON object on one line is expected"}

    def _answer(self, caller: _Caller, reply: Reply) -> None:
        try:
            caller.sock.sendall(json.dumps(reply).encode() + b"\n")
        except OSError:
            pass  # it has gone, or does not read
        self._drop(caller)

    def _drop(self, caller: _Caller) -> None:
        self._callers.remove(caller)
        self._selector.unregister(caller.sock)
        caller.sock.close()
