"""EngineLink: the connection to one engine, and the generations under way on it.

Knows how what arrives reaches its generation. Refuses to know other engines, and what becomes of
generations whose engine is lost, or refuses to go on with them: that a ReplayHandler decides.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import gevent

from qwenapi.engines.capacity import Capacity, QueueClock
from qwenapi.engines.engine_stats_reader import open_shared_memory
from qwenapi.engines.generation import Generation
from workers.errors import ProtocolError
from workers.wire.connection import Connection, ConnectionEnded
from workers.wire.engine_stats import Phase
from workers.wire.protocol import (
    Abort,
    Accepted,
    Failed,
    Finished,
    FromEngine,
    Generate,
    Hello,
    Ping,
    Pong,
    Rejected,
    SlotUpdate,
    StepUpdate,
)
from workers.wire.slot_mirror import SlotMirror

PING_SECONDS = 2.0
# An engine that has nothing to do and answers no ping for so long is not ready.
SILENCE_SECONDS = 5.0


class DeviceMemory(NamedTuple):
    """Bytes of one engine's device; all 0 on a CPU."""

    allocated: int
    reserved: int
    total: int


class ReplayHandler(Protocol):
    """Who takes over what an engine owed."""

    def on_lost(self, generations: Sequence[Generation], *, is_planned: bool) -> None: ...

    def on_refused(self, generation: Generation, rejected: Rejected) -> None: ...


class EngineLink:
    """A connection to one engine and the generations under way on it.

    The memory of an engine on another machine is a mirror of this connection's updates.
    """

    def __init__(
        self,
        connection: Connection,
        hello: Hello,
        replay_handler: ReplayHandler,
        mirror: SlotMirror | None = None,
    ) -> None:
        self.hello = hello
        self.num_tokens_in_flight = 0
        self.capacity, self.queue_clock = Capacity(), QueueClock()
        self.last_pong = time.monotonic()
        self._connection = connection
        self._replay_handler = replay_handler
        self._is_ended = self._is_pinging = False
        self._generations: dict[int, Generation] = {}
        self._mirror = mirror
        self._memory = open_shared_memory(hello) if mirror is None else mirror.memory

    def submit(self, generation: Generation) -> None:
        """Ask for a generation's current attempt."""
        if self._register(generation):
            self.send(generation.attempt)

    def adopt(self, generation: Generation) -> None:
        """Ask for it without waiting for an engine that does not read."""
        if self._register(generation):
            gevent.spawn(self._ask_if_wanted, generation)

    def withdraw(self, generation: Generation) -> None:
        """Give up a generation's attempt; unless it has ended, its engine frees it in one step."""
        if self._drop(generation):
            self.send(Abort(generation.wid))

    def send(self, message: Generate | Abort | Ping | Pong) -> None:
        try:
            self._connection.send(message)
        except ConnectionEnded:
            pass  # the reader greenlet sees the same end and answers for every generation

    def ping(self, nonce: int) -> None:
        """Ask for a sign of life, unless the last question has not gone out yet."""
        if self._is_in(Phase.STEPPING):
            # The loop answers between steps: none is owed while one goes on.
            self.last_pong = time.monotonic()
        if not self._is_pinging:
            self._is_pinging = True
            try:
                self.send(Ping(nonce))
            finally:
                self._is_pinging = False

    def read(self) -> None:
        """Deliver what arrives until the connection ends: ConnectionEnded or ProtocolError."""
        while True:
            for message in self._connection.receive():
                self._deliver(message)
            # Every frame that has arrived is delivered before any request runs: that is what makes
            # writes coalesce.
            gevent.sleep(0)

    def end(self, *, is_cut: bool = False) -> None:
        """Hand over everything this connection owed; nobody is to blame where it was cut."""
        self._is_ended = True
        self._connection.close()
        lost = list(self._generations.values())
        self._generations.clear()
        self.num_tokens_in_flight = 0
        is_planned = is_cut or self._is_in(Phase.DRAINING)
        if self._mirror is not None:
            self._mirror.end()
        elif self._memory is not None:
            self._memory.close()
        self._memory = None
        self._replay_handler.on_lost(lost, is_planned=is_planned)

    def is_alive(self) -> bool:
        """Return whether the engine loop shows signs of life within its own limit, and answers."""
        is_silent = time.monotonic() - self.last_pong > SILENCE_SECONDS
        if self._memory is None:
            return not self._is_ended and not is_silent
        row = self._memory.read(self.hello.engine_index)
        return (
            row["generation"] == self.hello.generation
            and row["phase"] != Phase.DRAINING
            and time.monotonic_ns() - row["beat_ns"] <= row["step_timeout_ns"]
            and (row["phase"] == Phase.STEPPING or not is_silent)
        )

    def is_idle(self) -> bool:
        """Return whether the engine works for nobody, this process and others."""
        if self._memory is None:
            return not self._generations
        row = self._memory.read(self.hello.engine_index)
        return not self._generations and row["running"] == row["waiting"] == 0

    def figures(self) -> Mapping[str, int] | None:
        """Return what the engine publishes, or None where nothing can be read."""
        return None if self._memory is None else self._memory.read(self.hello.engine_index)

    def device_memory(self) -> DeviceMemory | None:
        if self._memory is None:
            return None
        row = self._memory.read(self.hello.engine_index)
        return DeviceMemory(row["device_allocated"], row["device_reserved"], row["device_total"])

    def generations(self) -> Iterator[Generation]:
        return iter(list(self._generations.values()))

    def _register(self, generation: Generation) -> bool:
        if self._is_ended:
            self._replay_handler.on_lost([generation], is_planned=True)
            return False
        generation.assign(self, self.hello.card.model_hash)
        self._generations[generation.wid] = generation
        self.num_tokens_in_flight += generation.weight
        return True

    def _ask_if_wanted(self, generation: Generation) -> None:
        # An Abort that went ahead would be lost on the engine.
        if generation.wid in self._generations:
            self.send(generation.attempt)

    def _is_in(self, phase: int) -> bool:
        if self._memory is None:
            return False
        row = self._memory.read(self.hello.engine_index)
        return row["generation"] == self.hello.generation and row["phase"] == phase

    def _deliver(self, message: FromEngine) -> None:
        if isinstance(message, StepUpdate):
            self._deliver_step(message)
        elif isinstance(message, Accepted | Rejected):
            self._deliver_reply(message)
        elif isinstance(message, Ping):
            self.send(Pong(message.nonce))
        elif isinstance(message, Pong):
            self.last_pong = time.monotonic()
        elif isinstance(message, SlotUpdate):
            if self._mirror is not None:
                self._mirror.take(message)
        else:
            raise ProtocolError("a second hello")

    def _deliver_step(self, step: StepUpdate) -> None:
        # Ids that are not known belong to requests whose caller has gone, and to attempts that were
        # given up; what was on its way is dropped here.
        generations = self._generations
        for started in step.started:
            if generation := generations.get(started.wid):
                generation.start(started)
        for scores in step.prompt_logprobs:
            if generation := generations.get(scores.wid):
                generation.score(scores)
        for chunk in step.chunks:
            if generation := generations.get(chunk.wid):
                generation.receive(chunk)
        endings: list[Finished | Failed] = [*step.finished, *step.failed]
        for ending in endings:
            if generation := generations.get(ending.wid):
                self._drop(generation)
                generation.end(ending)

    def _deliver_reply(self, reply: Accepted | Rejected) -> None:
        generation = self._generations.get(reply.wid)
        if generation is None:
            return
        if isinstance(reply, Accepted):
            generation.accept(reply)
            return
        self._drop(generation)
        if generation.is_accepted:
            self._replay_handler.on_refused(generation, reply)
        else:
            generation.refuse(reply)

    def _drop(self, generation: Generation) -> bool:
        if self._generations.pop(generation.wid, None) is None:
            return False
        self.num_tokens_in_flight -= generation.weight
        return True
