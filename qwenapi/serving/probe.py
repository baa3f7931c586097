"""Probe: asks a server whether it is ready, without ever waiting for it."""

import select
import socket
import time

from qwenapi.serving.listener import HttpListener

QUESTION = b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
# A server that has not answered for so long does not answer.
PATIENCE_SECONDS = 10.0


class Probe:
    """One request after the other, `pause` seconds apart, on connections of their own."""

    def __init__(self, listener: HttpListener, pause: float) -> None:
        self.is_ready = False
        self._listener = listener
        self._pause = pause
        self._sock: socket.socket | None = None
        self._give_up_at = 0.0
        self._next_at = 0.0
        self._answer = b""

    def tick(self, now: float | None = None) -> None:
        """Go on with the request under way, or begin the next one when it is time."""
        now = time.monotonic() if now is None else now
        if self._sock is None:
            if now >= self._next_at:
                self._ask(now)
        elif select.select([self._sock], [], [], 0)[0]:
            self._read(self._sock, now)
        elif now >= self._give_up_at:
            self._end(now, b"")

    def stop(self) -> None:
        """Ask no more."""
        if self._sock is not None:
            self._sock.close()
        self._sock, self._next_at = None, float("inf")

    def _ask(self, now: float) -> None:
        sock = self._sock = socket.socket(self._listener.family, socket.SOCK_STREAM)
        self._give_up_at, self._answer = now + PATIENCE_SECONDS, b""
        sock.setblocking(False)
        try:
            # The other end is a backlog on this machine: it takes us at once, or is full.
            try:
                sock.connect(self._listener.local_address)
            except BlockingIOError:
                select.select([], [sock], [], 0.05)
            sock.sendall(QUESTION)
        except OSError:
            # A full backlog says that many call, not that nobody answers.
            self._wait(now)

    def _read(self, sock: socket.socket, now: float) -> None:
        try:
            piece = sock.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            piece = b""
        self._answer += piece
        if not piece or b"\r\n" in self._answer:
            self._end(now, self._answer)

    def _end(self, now: float, answer: bytes) -> None:
        self._wait(now)
        self.is_ready = answer.split(b" ", 2)[1:2] == [b"200"]

    def _wait(self, now: float) -> None:
        assert self._sock is not None
        self._sock.close()
        self._sock, self._next_at = None, now + self._pause
