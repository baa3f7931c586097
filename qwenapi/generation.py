"""One request under way on an engine, and the mailbox of the greenlet that serves its caller.

A Generation keeps every id it was given and has received, so that a replay needs nothing but the
Generation. Refuses to know connections: it speaks to its engine through a Link.
"""

import time
from dataclasses import dataclass
from typing import Protocol

from gevent import Greenlet, get_hub, getcurrent

from workers.errors import ProtocolError
from workers.protocol import Abort, Accepted, Chunk, Failed, Finished, Generate, Rejected


class Cancelled(Exception):
    """The caller has gone; the engine has been told."""


@dataclass(frozen=True)
class Beat:
    """Nothing has come for a while: time for a sign of life to the caller."""


Event = Accepted | Rejected | Chunk | Finished | Failed | Beat


class Link(Protocol):
    """What a generation needs of the connection to its engine."""

    def send(self, message: Abort) -> None: ...

    def forget(self, generation: "Generation") -> None: ...


class Mailbox:
    """Events for the one greenlet that serves a caller, from all the generations it asked for."""

    def __init__(self) -> None:
        self._events: list[tuple[Generation, Event]] = []
        self._waiter: Greenlet | None = None
        self._hub = get_hub()
        self._is_cancelled = False

    def put(self, generation: "Generation", event: Event) -> None:
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

    def take(self) -> list[tuple["Generation", Event]]:
        """Wait for at least one event and return all there are; raise Cancelled when the caller has
        gone.
        """
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

    def take_answer(self, generation: "Generation") -> Accepted | Rejected | Failed:
        """Wait for the engine's answer to a request; everything else stays for `take`."""
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


class Generation:
    """One request under way: what was asked and what has come so far."""

    def __init__(self, request: Generate, mailbox: Mailbox) -> None:
        self.request = request
        self.num_cached_tokens = 0
        self.token_ids: dict[int, list[int]] = {choice: [] for choice in request.choices}
        self.open_choices = set(request.choices)
        self.is_over = False
        self.last_sign = time.monotonic()
        self.link: Link | None = None
        self._mailbox = mailbox

    def put(self, event: Event) -> None:
        self._mailbox.put(self, event)

    def touch(self) -> None:
        """Note that the caller was sent something."""
        self.last_sign = time.monotonic()

    def receive(self, chunk: Chunk) -> None:
        """Keep a chunk's ids; raise ProtocolError if any went missing before it."""
        ids = self.token_ids[chunk.choice]
        if chunk.position != len(ids):
            raise ProtocolError(f"choice {chunk.choice}: token {chunk.position} after {len(ids)}")
        ids.extend(chunk.token_ids)
        self.put(chunk)

    def close_choice(self, choice: int) -> None:
        """Ask for no more tokens of a choice: its text has reached a stop string."""
        self.open_choices.discard(choice)
        if not self.open_choices:
            self.close()
        elif self.link is not None and not self.is_over:
            self.link.send(Abort(self.request.wid, (choice,)))

    def close(self) -> None:
        """Be done with the request, whatever its state; tell the engine if it does not know yet."""
        if self.link is not None:
            self.link.forget(self)

    @property
    def weight(self) -> int:
        """Return the tokens this request may occupy."""
        return (
            len(self.request.prompt_ids)
            + len(self.request.choices) * self.request.params.max_tokens
        )
