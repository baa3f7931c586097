"""ClientWatcher: notices at once a caller who has gone, also while nothing is sent or computed.

A WSGI application learns of a closed connection only at its next write. A greenlet that waits for
the socket to become readable learns of it within a millisecond, also through nginx.
"""

import select
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import gevent
from gevent.event import Event
from gevent.monkey import get_original
from gevent.socket import wait_read

from qwenapi.engines.mailbox import Cancelled

# How often a socket is looked at on which bytes wait: they hide the end of the stream behind them.
POLL_SECONDS = 0.05


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
        if data:  # the caller's next request, or a stray line end
            self._wait_for_hangup(sock.fileno())
        self._on_gone()

    def _wait_for_hangup(self, fd: int) -> None:
        # gevent's own poll would wait for readability, and the socket is readable all the time.
        poll = get_original("select", "poll")()
        poll.register(fd, select.POLLRDHUP)
        while not poll.poll(0):
            gevent.sleep(POLL_SECONDS)


@contextmanager
def watched_pause(environ: Mapping[str, Any]) -> Iterator[Callable[[float], None]]:
    """Give a sleep of so many seconds that raises Cancelled as soon as the caller has gone."""
    is_gone = Event()

    def pause(seconds: float) -> None:
        if is_gone.wait(seconds):
            raise Cancelled

    watcher = ClientWatcher(environ, is_gone.set)
    try:
        yield pause
    finally:
        watcher.stop()
