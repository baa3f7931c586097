"""FastWorker: gunicorn's gevent worker that streams cheaply, refuses in JSON and ends well."""

import errno
import logging
import socket
import time
from typing import Any

import gevent.socket
import orjson
from gunicorn.http import errors
from gunicorn.workers.ggevent import GeventWorker

log = logging.getLogger(__name__)

LINGER_SECONDS, LINGER_READS = 0.5, 64
# What still runs so long before the end of the drain is told so: gunicorn's end is a SIGKILL.
FAREWELL_SECONDS = 5.0


class FastSocket(gevent.socket.socket):
    """A gevent socket whose sendall first tries one plain send, as a token nearly always fits."""

    __slots__ = ()

    def sendall(self, data: bytes, flags: int = 0) -> None:
        try:
            sent = self._sock.send(data, flags)
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            try:
                super().sendall(memoryview(data)[sent:], flags)
            except TimeoutError as error:
                raise BrokenPipeError(errno.EPIPE, "the caller takes nothing") from error


class FastWorker(GeventWorker):
    """gunicorn's gevent worker: its connections are FastSockets, and idle ones do not hold up its
    end.

    A kept-alive connection between two requests would otherwise make a stopping worker wait for the
    whole keepalive.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._idle: set[Any] = set()
        self._num_requests = 0
        self._farewell_at: float | None = None

    def handle(self, listener: Any, client: Any, addr: Any) -> None:
        if type(client) is gevent.socket.socket:
            client.__class__ = FastSocket
        self._idle.add(client)
        try:
            super().handle(listener, client, addr)
        finally:
            self._idle.discard(client)

    def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> None:
        self._idle.discard(sock)
        # gunicorn has no limit of its own for a body that does not come or an answer nobody takes.
        sock.settimeout(self.app.socket_timeout)
        self._num_requests += 1
        try:
            super().handle_request(listener_name, req, sock, addr)
        finally:
            self._num_requests -= 1
            sock.settimeout(None)
            self._idle.add(sock)
            if not self.alive:
                _stop_reading(sock)

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Answer what is no HTTP we accept as JSON; gunicorn's own answer is HTML and echoes it."""
        status, reason = _protocol_status(exc)
        if status == 500:
            log.error("a connection failed", exc_info=exc)
        else:
            log.info("refused bytes that are no request: %s", type(exc).__name__)
        error = {
            "message": f"{reason}.",
            "type": "server_error" if status == 500 else "invalid_request_error",
            "param": None,
            "code": None,
        }
        body = orjson.dumps({"error": error})
        head = (
            f"HTTP/1.1 {status} {reason}\r\nConnection: close\r\nContent-Type: application/json\r\n"
        )
        try:
            client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            _linger(client)
        except OSError:
            pass

    def handle_exit(self, sig: Any, frame: Any) -> None:
        super().handle_exit(sig, frame)
        for sock in self._idle:
            _stop_reading(sock)

    def handle_winch(self, sig: Any, frame: Any) -> None:
        """Drain: say that this server is not ready, then take no more requests. gunicorn has no
        other use for the signal here, and its arbiter ignores it.
        """
        self.app.discourage()

    def notify(self) -> None:
        """Show a sign of life, once a second; and at the end of a drain say farewell."""
        super().notify()
        is_refusing = self.app.is_refusing
        if is_refusing and not self._num_requests:
            self.app.report_idle()
        if (is_refusing or not self.alive) and self._farewell_at is None:
            limit = self.cfg.graceful_timeout
            self._farewell_at = time.monotonic() + limit - min(FAREWELL_SECONDS, limit / 2)
        elif self._farewell_at is not None and time.monotonic() >= self._farewell_at:
            self.app.say_farewell()


def _protocol_status(exc: BaseException) -> tuple[int, str]:
    """Return the answer to bytes that gunicorn's parser refuses, or to a failure of our own."""
    if isinstance(exc, errors.LimitRequestLine):
        return 414, "URI Too Long"
    if isinstance(exc, errors.LimitRequestHeaders):
        return 431, "Request Header Fields Too Large"
    return (
        (400, "Bad Request") if isinstance(exc, errors.ParseException) else (500, "Internal Error")
    )


def _linger(sock: Any) -> None:
    """Read what is still coming, for a moment: closing before would reset our own answer away."""
    sock.shutdown(socket.SHUT_WR)
    sock.settimeout(LINGER_SECONDS)
    for _ in range(LINGER_READS):
        if not sock.recv(65536):
            return


def _stop_reading(sock: Any) -> None:
    """Let the next read find the stream's end; a request that has arrived is still read."""
    try:
        # The plain socket's: gevent's shutdown would make a waiting reader fail with EBADF.
        sock._sock.shutdown(socket.SHUT_RD)
    except OSError:
        pass
