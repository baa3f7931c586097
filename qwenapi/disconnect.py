"""Notice a caller who has gone, at once: while queued, between tokens, and before anything was
written.

A WSGI application learns of a closed connection only at its next write. A greenlet that waits for
the socket to become readable learns of it within a millisecond, also through nginx.
"""

import socket
from collections.abc import Callable, Mapping
from typing import Any

import gevent
from gevent.socket import wait_read


class ClientWatcher:
    """Calls `on_gone` once when the other end of a socket closes; `stop` ends the watch."""

    def __init__(self, environ: Mapping[str, Any], on_gone: Callable[[], None]) -> None:
        self._on_gone = on_gone
        sock = environ.get("gunicorn.socket")
        self._greenlet = None if sock is None else gevent.spawn(self._watch, sock)

    def stop(self) -> None:
        if self._greenlet is not None:
            self._greenlet.kill(block=False)

    def _watch(self, sock: socket.socket) -> None:
        wait_read(sock.fileno())
        try:
            data = sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except OSError:
            data = b""
        # Bytes mean that the caller has already sent its next request: it is there, and nothing
        # more can be seen.
        if not data:
            self._on_gone()
