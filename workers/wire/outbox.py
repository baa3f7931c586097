"""Outbox: from this process to a peer, the bytes not yet taken; bounded, and never blocks."""

import threading
from collections import deque

from workers.wire.tls import WireSocket

OUTBOX_BYTES = 8 * 1024 * 1024


class Outbox:
    """Bytes on their way to one peer over a non-blocking socket; any thread may send."""

    def __init__(self, sock: WireSocket, limit: int = OUTBOX_BYTES) -> None:
        self._sock = sock
        self._limit = limit
        self._lock = threading.Lock()
        self._waiting: deque[memoryview] = deque()
        self.num_waiting_bytes = 0

    def send(self, frame: bytes) -> bool:
        """Write what the peer takes now, keep the rest; False: it has gone or is too far behind."""
        with self._lock:
            if self.num_waiting_bytes + len(frame) > self._limit:
                return False
            self._waiting.append(memoryview(frame))
            self.num_waiting_bytes += len(frame)
            # When an earlier frame still waits the socket is full, and flush() will be called when
            # it has emptied.
            return len(self._waiting) > 1 or self._write()

    def flush(self) -> bool:
        """Write on, as the socket has become writable; False: the peer has gone."""
        with self._lock:
            return self._write()

    def _write(self) -> bool:
        while self._waiting:
            head = self._waiting[0]
            try:
                sent = self._sock.send(head)
            except (BlockingIOError, InterruptedError):
                return True
            except OSError:
                return False
            self.num_waiting_bytes -= sent
            if sent < len(head):
                self._waiting[0] = head[sent:]
            else:
                self._waiting.popleft()
        return True
