"""Generation: one request under way on an engine, below any text: its state and its token ids.

All that a replay needs is here. Refuses to know connections and callers: it speaks to its engine
through a Link, and to its caller through an EventSink.
"""

import time
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

import msgspec
from gevent import spawn

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
    PromptLogprobs,
    Rejected,
    Started,
    TokenLogprob,
    wire_id,
)

# So many tokens after a loss, a request has shown that it is not what ended the engine.
ACQUITTAL_TOKENS = 16


@dataclass(frozen=True)
class Beat:
    """Nothing has come for a while: time for a sign of life to the caller."""


Event = Accepted | Rejected | Started | Chunk | Finished | Failed | Beat


class Link(Protocol):
    """What a generation needs of the connection to its engine."""

    def send(self, message: Abort) -> None: ...

    def withdraw(self, generation: "Generation") -> None: ...


class EventSink(Protocol):
    """Where a generation's events go, on the way to its caller."""

    def put(self, generation: "Generation", event: Event) -> None: ...


class GenerationState(Enum):
    """Where a request is; only the methods of Generation change it.

    ASKED ─► QUEUED ─► RUNNING ─► ENDED       the usual way; from each state it may also just end
    QUEUED ─► LOST ─► QUEUED                  its engine was lost before it ran,
    RUNNING ─► LOST ─► RESUMING ─► RUNNING    or while it ran
    """

    ASKED = auto()  # an engine is asked, and has not replied
    QUEUED = auto()  # an engine has it, none has begun to compute it yet
    RUNNING = auto()  # an engine computes it
    LOST = auto()  # no engine has it: the one that had is gone, or it had to step back
    RESUMING = auto()  # it was running when it was lost; another engine has it, still to begin
    ENDED = auto()


class Generation:
    """One request under way: what was asked and what has come so far.

    `request` is what was asked, `attempt` what is on the wire for it now: after a loss the next
    epoch, for the choices still open, each with the ids it has. `num_losses` are those since it was
    acquitted last, `crash_count` how many of them it may be to blame for, `num_lonely_losses` those
    at which it had the engine to itself; `total_losses` are all there were.
    """

    def __init__(self, request: Generate, events: EventSink) -> None:
        self.request = self.attempt = request
        self.num_cached_tokens = 0
        self.token_ids: dict[int, list[int]] = {choice: [] for choice in request.choices}
        self.prompt_logprobs: list[TokenLogprob] = []  # from the prompt's token 1 on
        self.pooled = b""  # what a pooling asked for, once it has ended
        self.open_choices = set(request.choices)
        self.last_sign = time.monotonic()
        self.state = GenerationState.ASKED
        self.has_started = False  # on any engine
        self.link: Link | None = None
        self.model_hash = ""
        self.num_losses = self.crash_count = self.num_lonely_losses = self.total_losses = 0
        self._tokens_since_loss = 0
        self._state_since = self.last_sign
        self._seconds_waited = 0.0
        self._events = events

    @property
    def wid(self) -> int:
        return self.attempt.wid

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.token_ids.values()))

    @property
    def weight(self) -> int:
        """Return the tokens this request may occupy."""
        return self.request.weight

    @property
    def is_accepted(self) -> bool:
        return self.state is not GenerationState.ASKED

    @property
    def is_over(self) -> bool:
        return self.state is GenerationState.ENDED

    @property
    def is_waiting(self) -> bool:
        """Return whether it waits for engines to come back, or to get as far as they were."""
        return self.state in (GenerationState.LOST, GenerationState.RESUMING)

    @property
    def seconds_waited(self) -> float:
        """Return how long it has waited so, all in all since it was acquitted last."""
        return self._seconds_waited + self.is_waiting * (time.monotonic() - self._state_since)

    def put(self, event: Event) -> None:
        self._events.put(self, event)

    def touch(self) -> None:
        """Note that the caller was sent something."""
        self.last_sign = time.monotonic()

    def assign(self, link: Link, model_hash: str) -> None:
        """Note which engine has the current attempt, and the model it serves."""
        self.link, self.model_hash = link, model_hash

    def accept(self, accepted: Accepted) -> None:
        """Note that an engine has taken it; only the first time is news to the caller."""
        if not self.is_accepted:
            self._enter(GenerationState.QUEUED)
            self.put(accepted)

    def refuse(self, rejected: Rejected) -> None:
        """End here: the first engine that was asked does not take it."""
        self._enter(GenerationState.ENDED)
        self.put(rejected)

    def start(self, started: Started) -> None:
        """Note that an engine computes; only the first time is news to the caller."""
        self._enter(GenerationState.RUNNING)
        if not self.has_started:
            self.has_started = True
            self.num_cached_tokens = started.cached_tokens
            self.put(started)

    def score(self, scores: PromptLogprobs) -> None:
        """Keep what is new of how likely the prompt was: a replay says all of it again."""
        known = 1 + len(self.prompt_logprobs)
        if scores.position > known:
            raise ProtocolError(f"prompt token {scores.position} after {known}")
        self.prompt_logprobs += scores.logprobs[known - scores.position :]

    def receive(self, chunk: Chunk) -> None:
        """Keep a chunk's ids; raise ProtocolError if any went missing before it."""
        ids = self.token_ids[chunk.choice]
        if chunk.position != len(ids):
            raise ProtocolError(f"choice {chunk.choice}: token {chunk.position} after {len(ids)}")
        ids.extend(chunk.token_ids)
        if chunk.finish_reason is not None:
            self.open_choices.discard(chunk.choice)
        if self.num_losses:
            self._tokens_since_loss += len(chunk.token_ids)
            if self._tokens_since_loss >= ACQUITTAL_TOKENS:
                self.acquit()
        self.put(chunk)

    def end(self, ending: Finished | Failed) -> None:
        """Take the last event of all."""
        self._enter(GenerationState.ENDED)
        if isinstance(ending, Finished):
            self.pooled = ending.pooled
        if self.has_started and isinstance(ending, Failed) and ending.reason == "queue_timeout":
            # It had its turn, and lost it: to its caller no queue is to blame.
            ending = Failed(ending.wid, "engine_unavailable")
        self.put(ending)

    def fail(self, reason: FailReason) -> None:
        """End here, whatever an engine would say; it frees the request within one step. The caller
        is told first, and does not wait for an engine that does not read.
        """
        self._enter(GenerationState.ENDED)
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
        self._enter(GenerationState.ENDED)
        if self.link is not None:
            self.link.withdraw(self)

    def lose(self, *, is_planned: bool) -> None:
        """Note that the engine is gone, by its own plan or it may be by this request's doing; what
        it still owed has to be asked for again.
        """
        self.num_losses += 1
        self.total_losses += 1
        self.crash_count += not is_planned
        self._tokens_since_loss = 0
        self.wait()

    def wait(self) -> None:
        """Note that no engine has this request from now on."""
        self.link = None
        self._enter(GenerationState.LOST)

    def excuse(self, seconds: float) -> None:
        """Let the last seconds of the present wait not count."""
        self._state_since = min(time.monotonic(), self._state_since + seconds)

    def step_back(self) -> None:
        """Leave the engine to others, and wait."""
        assert self.link is not None
        self.link.withdraw(self)
        self.wait()

    def acquit(self) -> None:
        """Blame it for none of its losses, and let none count any more."""
        self.num_losses = self.crash_count = self.num_lonely_losses = 0
        self._seconds_waited = 0.0

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
        # What never ran waits in an engine's queue as before, which does not count as waiting.
        self._enter(GenerationState.RESUMING if self.has_started else GenerationState.QUEUED)

    def _enter(self, state: GenerationState) -> None:
        if not self.is_over:
            self._seconds_waited = self.seconds_waited
            self.state, self._state_since = state, time.monotonic()
