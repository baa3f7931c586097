"""FastWorker: gunicorn's gevent worker that streams cheaply, refuses in JSON and ends well.

It waits for nobody for ever (patience.py), and an address has only so many of its connections.
"""

import errno
import ipaddress
import logging
import socket
import time
from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import gevent
import gevent.socket
import orjson
from gunicorn.http import errors
from gunicorn.workers.ggevent import GeventWorker

from qwenapi.greenlets import num_unattended
from qwenapi.serving import fast_chunks
from qwenapi.serving.patience import Patience

log = logging.getLogger(__name__)

LINGER_SECONDS = 0.5
REST_READ_BYTES = 65536
# What still runs so long before the end of the drain is told so: gunicorn's end is a SIGKILL.
FAREWELL_SECONDS = 5.0
UNATTENDED_POLL_SECONDS = 0.2


class FastSocket(gevent.socket.socket):
    """A gevent socket whose sendall first tries one plain send, as a token nearly always fits, and
    whose recv finds the end of the stream once its other end has been waited for long enough.
    """

    __slots__ = ("patience",)

    def __init__(self, taken: gevent.socket.socket, patience: Patience) -> None:
        """Take over another socket's connection."""
        super().__init__(fileno=taken.detach())
        self.patience = patience

    def recv(self, size: int, flags: int = 0) -> bytes:
        if flags:  # a look at what has come (generation/disconnect.py)
            return bytes(super().recv(size, flags))
        left = self.patience.seconds_left
        if left <= 0:
            self.patience.give_up()
            return b""
        kept = self.gettimeout()
        self.settimeout(left)
        try:
            data = bytes(super().recv(size))
        except TimeoutError:
            self.patience.give_up()
            return b""
        finally:
            self.settimeout(kept)
        self.patience.hear(len(data))
        return data

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
        self._num_open: Counter[str] = Counter()
        self._num_requests = 0
        self._farewell_at: float | None = None

    def timeout_ctx(self) -> AbstractContextManager[None]:
        """Leave it to each connection's patience how long a request is waited for."""
        return nullcontext()

    def handle(self, listener: Any, client: Any, addr: Any) -> None:
        sock = FastSocket(client, Patience(self.app.patience_limits))
        origin, limit = _origin(addr), self.app.connections_per_address
        if origin and 0 < limit <= self._num_open[origin]:
            message = "Too many connections are open from this address. Close some, or keep them."
            _refuse(sock, 429, "Too Many Requests", message)
            sock.close()
            return
        self._num_open[origin] += 1
        self._idle.add(sock)
        try:
            super().handle(listener, sock, addr)
        finally:
            self._idle.discard(sock)
            self._num_open[origin] -= 1
            if not self._num_open[origin]:
                del self._num_open[origin]

    def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> None:
        self._idle.discard(sock)
        # gunicorn has no limit of its own for an answer nobody takes.
        sock.settimeout(self.app.patience_limits.silence)
        sock.patience.await_body(self.app.most_body_bytes(req.path))
        fast_chunks.install(req)
        self._num_requests += 1
        try:
            super().handle_request(listener_name, req, sock, addr)
        finally:
            self._num_requests -= 1
            _read_rest(req, sock)
            sock.settimeout(None)
            sock.patience.await_request()
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
        _refuse(client, status, reason, f"{reason}.")

    def handle_exit(self, sig: Any, frame: Any) -> None:
        super().handle_exit(sig, frame)
        for sock in self._idle:
            _stop_reading(sock)

    def handle_winch(self, sig: Any, frame: Any) -> None:
        """Drain: say that this server is not ready, then take no more requests. gunicorn has no
        other use for the signal here, and its arbiter ignores it.
        """
        self.app.discourage()

    def run(self) -> None:
        """Serve until told to stop; then let end what nobody is connected for. gunicorn waits for
        connections alone, and its arbiter ends those who take too long.
        """
        super().run()
        while num_unattended():
            self.notify()
            gevent.sleep(UNATTENDED_POLL_SECONDS)

    def notify(self) -> None:
        """Show a sign of life, once a second; and at the end of a drain say farewell."""
        super().notify()
        is_refusing = self.app.is_refusing
        if is_refusing and not self._num_requests and not num_unattended():
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


def _refuse(sock: Any, status: int, reason: str, message: str) -> None:
    """Answer in OpenAI's words on a connection that is closed afterwards."""
    kinds = {429: "rate_limit_error", 500: "server_error"}
    error = {"message": message, "type": kinds.get(status, "invalid_request_error")}
    body = orjson.dumps({"error": error | {"param": None, "code": None}})
    head = f"HTTP/1.1 {status} {reason}\r\nConnection: close\r\nContent-Type: application/json\r\n"
    try:
        sock.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        _linger(sock)
    except OSError:
        pass


def _origin(addr: Any) -> str:
    """Return whose connections are counted together: an address, of IPv6 a network of 64 bits, as
    one customer has; empty for a Unix socket.
    """
    host = str(addr[0]) if isinstance(addr, tuple) else ""
    if ":" not in host:
        return host
    address = ipaddress.IPv6Address(host.partition("%")[0])
    return str(address.ipv4_mapped or ipaddress.IPv6Network((int(address) >> 64 << 64, 64)))


def _read_rest(req: Any, sock: FastSocket) -> None:
    """Read what is left of a body, for a moment: what cannot be read ends the connection."""
    sock.patience.await_rest()
    try:
        while req.body.read(REST_READ_BYTES):
            pass
    except (errors.ParseException, OSError):
        sock.patience.give_up()


def _linger(sock: Any) -> None:
    """Read what is still coming, for a moment: closing before would reset our own answer away."""
    sock.shutdown(socket.SHUT_WR)
    sock.patience.await_rest(LINGER_SECONDS)
    while sock.recv(REST_READ_BYTES):
        pass


def _stop_reading(sock: Any) -> None:
    """Let the next read find the stream's end; a request that has arrived is still read."""
    try:
        # The plain socket's: gevent's shutdown would make a waiting reader fail with EBADF.
        sock._sock.shutdown(socket.SHUT_RD)
    except OSError:
        pass
