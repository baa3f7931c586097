"""One request under way on an engine, and the mailbox of the greenlet that serves its caller.

A Generation keeps every id it was given and has received, so that a replay needs nothing but the
Generation. Refuses to know connections: it speaks to its engine through a Link.
"""

import time
from dataclasses import dataclass
from typing import Protocol

import msgspec
from gevent import Greenlet, get_hub, getcurrent, spawn

from workers.errors import ProtocolError
from workers.wire.protocol import (
    EPOCH_BITS,
    Abort,
    Accepted,
    Chunk,
    Failed,
    FailReason,
    Finished,
    Generate,
    Rejected,
    Started,
    wire_id,
)


class Cancelled(Exception):
    """The caller has gone; the engine has been told."""


@dataclass(frozen=True)
class Beat:
    """Nothing has come for a while: time for a sign of life to the caller."""


Event = Accepted | Rejected | Started | Chunk | Finished | Failed | Beat


class Link(Protocol):
    """What a generation needs of the connection to its engine."""

    def send(self, message: Abort) -> None: ...

    def withdraw(self, generation: "Generation") -> None: ...


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
    """One request under way: what was asked and what has come so far.

    `request` is what was asked, `attempt` what is on the wire for it now: after a loss the next
    epoch, for the choices still open, each with the ids it has. Whoever replays it keeps its
    `num_losses`, its `crash count` (losses it may be to blame for) and how long it waited.
    """

    def __init__(self, request: Generate, mailbox: Mailbox) -> None:
        self.request = self.attempt = request
        self.num_cached_tokens = 0
        self.token_ids: dict[int, list[int]] = {choice: [] for choice in request.choices}
        self.open_choices = set(request.choices)
        self.is_accepted = self.has_started = self.is_over = False
        self.last_sign = time.monotonic()
        self.link: Link | None = None
        self.model_hash = ""
        self.num_losses = self.crash_count = 0
        self._seconds_waited = 0.0
        self._waiting_since: float | None = None
        self._mailbox = mailbox

    @property
    def wid(self) -> int:
        return self.attempt.wid

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.token_ids.values()))

    @property
    def weight(self) -> int:
        """Return the tokens this request may occupy."""
        return (
            len(self.request.prompt_ids)
            + len(self.request.choices) * self.request.params.max_tokens
        )

    def put(self, event: Event) -> None:
        self._mailbox.put(self, event)

    def touch(self) -> None:
        """Note that the caller was sent something."""
        self.last_sign = time.monotonic()

    def start(self, started: Started) -> None:
        """Note that an engine computes; only the first time is news to the caller."""
        self.stop_waiting()
        if not self.has_started:
            self.has_started = True
            self.num_cached_tokens = started.cached_tokens
            self.put(started)

    def receive(self, chunk: Chunk) -> None:
        """Keep a chunk's ids; raise ProtocolError if any went missing before it."""
        ids = self.token_ids[chunk.choice]
        if chunk.position != len(ids):
            raise ProtocolError(f"choice {chunk.choice}: token {chunk.position} after {len(ids)}")
        ids.extend(chunk.token_ids)
        if chunk.finish_reason is not None:
            self.open_choices.discard(chunk.choice)
        self.put(chunk)

    def end(self, ending: Finished | Failed) -> None:
        """Take the last event of all."""
        self.is_over = True
        if self.has_started and isinstance(ending, Failed) and ending.reason == "queue_timeout":
            # It had its turn, and lost it: to its caller no queue is to blame.
            ending = Failed(ending.wid, "engine_unavailable")
        self.put(ending)

    def fail(self, reason: FailReason) -> None:
        """End here, whatever an engine would say; it frees the request within one step. The caller
        is told first, and does not wait for an engine that does not read.
        """
        self.is_over = True
        self.put(Failed(self.wid, reason))
        if self.link is not None:
            spawn(self.close)

    def close_choice(self, choice: int) -> None:
        """Ask for no more tokens of a choice: its text has reached its end."""
        if choice in self.open_choices:
            self.open_choices.discard(choice)
            if self.open_choices and self.link is not None and not self.is_over:
                self.link.send(Abort(self.wid, (choice,)))
        if not self.open_choices:
            self.close()

    def close(self) -> None:
        """Be done with the request, whatever its state; tell the engine if it does not know yet."""
        self.is_over = True
        if self.link is not None:
            self.link.withdraw(self)

    def lose(self) -> None:
        """Note that the engine is gone; what it still owed has to be asked for again."""
        self.link = None
        self.num_losses += 1
        self.wait()

    def wait(self) -> None:
        """Note that no engine has this request from now on, or not yet its turn again."""
        if self._waiting_since is None:
            self._waiting_since = time.monotonic()

    def stop_waiting(self) -> None:
        """Note that an engine computes again, or has the request in the queue it was in before."""
        self._seconds_waited, self._waiting_since = self.seconds_waited, None

    @property
    def is_waiting(self) -> bool:
        return self._waiting_since is not None

    @property
    def seconds_waited(self) -> float:
        """Return how long it has waited for engines to come back, all in all."""
        since = self._waiting_since
        return self._seconds_waited + (0.0 if since is None else time.monotonic() - since)

    def prepare_attempt(self, queue_timeout: float) -> None:
        """Ask anew for what is still open, behind the tokens that have come."""
        choices = tuple(sorted(self.open_choices))
        self.attempt = msgspec.structs.replace(
            self.request,
            wid=wire_id(self.wid >> EPOCH_BITS, self.attempt.epoch + 1),
            choices=choices,
            resume=tuple(tuple(self.token_ids[choice]) for choice in choices),
            queue_timeout=queue_timeout,
        )
