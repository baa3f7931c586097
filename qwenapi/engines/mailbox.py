"""Mailbox: from the engines to the greenlet that serves a caller, all that has come at once.

Wakes that greenlet once for all that has come; tells it, too, that its caller has gone.
"""

from gevent import Greenlet, get_hub, getcurrent

from qwenapi.engines.generation import Event, Generation
from workers.wire.protocol import Accepted, Failed, Rejected


class Cancelled(Exception):
    """The caller has gone; the engine has been told."""


class Mailbox:
    """Events for the one greenlet that serves a caller, from all the generations it asked for."""

    def __init__(self) -> None:
        self._events: list[tuple[Generation, Event]] = []
        self._waiter: Greenlet | None = None
        self._hub = get_hub()
        self._is_cancelled = False

    def put(self, generation: Generation, event: Event) -> None:
        """Add an event and wake the greenlet that waits for one."""
        self._events.append((generation, event))
        self._wake()

    def cancel(self) -> None:
        """Let every `take`, now and later, raise Cancelled."""
        self._is_cancelled = True
        self._wake()

    def check(self) -> None:
        """Raise Cancelled if the caller has gone."""
        if self._is_cancelled:
            raise Cancelled

    def take(self) -> list[tuple[Generation, Event]]:
        """Wait for an event and return all there are; raise Cancelled when the caller has gone."""
        while not self._events and not self._is_cancelled:
            self._waiter = getcurrent()
            try:
                self._hub.switch()
            finally:
                self._waiter = None
        if self._is_cancelled:
            raise Cancelled
        events, self._events = self._events, []
        return events

    def take_reply(self, generation: Generation) -> Accepted | Rejected | Failed:
        """Wait for the engine's reply to a request; everything else stays for `take`."""
        others: list[tuple[Generation, Event]] = []
        while True:
            events = self.take()
            for index, (sender, event) in enumerate(events):
                if sender is generation and isinstance(event, Accepted | Rejected | Failed):
                    self._events[:0] = others + events[index + 1 :]
                    return event
                others.append((sender, event))

    def _wake(self) -> None:
        if self._waiter is not None:
            waiter, self._waiter = self._waiter, None
            # Not switched to at once: whatever else the reader has for this caller then arrives in
            # the same batch.
            self._hub.loop.run_callback(waiter.switch)
