"""Inbox: from the socket thread to the engine loop, a queue of messages."""

import threading
from collections import deque

from workers.wire.protocol import Message


class Inbox:
    """What the socket thread has for the loop, in order of arrival."""

    def __init__(self) -> None:
        self._items: deque[tuple[int, Message | None]] = deque()
        self._changed = threading.Condition()

    def put(self, connection_id: int, message: Message | None) -> None:
        """Queue a message; None says that the connection has ended."""
        with self._changed:
            self._items.append((connection_id, message))
            self._changed.notify()

    def take(self, timeout: float) -> list[tuple[int, Message | None]]:
        """Return everything queued, after waiting up to `timeout` seconds for the first."""
        with self._changed:
            if not self._items and timeout:
                self._changed.wait(timeout)
            items = list(self._items)
            self._items.clear()
        return items
