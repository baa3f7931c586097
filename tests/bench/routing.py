"""`python -m tests.bench.routing`: which engine requests go to, simulated, by the routing itself.

Conversations come and go at random, faster the more engines there are; each turn sends again what
was said before. An engine computes what its cache does not know of a prompt, then an answer, for so
many at a time, the faster the fewer they are; who finds it full waits. Its cache knows the
conversations it served last. Compared are what a decision costs, how unevenly engines are loaded
for what they can do, how much of what was sent again was found, and how long requests wait: by
`qwenapi/engines/routing.py`, by itself without what engines publish once a second, and by three
that know less. `--unlike` lets every fourth engine, from the second on, be half as fast, or have a
cache for half as many. No engine and no GPU is needed, and nobody's clock but the decisions' own.
"""

import argparse
import heapq
import random
import statistics
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from types import SimpleNamespace
from typing import NamedTuple

from qwenapi.engines.capacity import Capacity, QueueClock, measure
from qwenapi.engines.routing import Router
from workers.wire.protocol import Generate, SamplingParams

ENGINES = (2, 8, 32, 128, 512)
REQUESTS_AN_ENGINE = 400
LEAST_REQUESTS, MOST_REQUESTS = 10_000, 100_000
SEEDS = 4
# Of one engine: requests at once, tokens of prompts and of one answer in a second, and the tokens
# that its cache holds.
SLOTS, PREFILL_RATE, DECODE_RATE, CACHE_TOKENS = 16, 20_000, 60, 400_000
# Tokens of a system prompt, of which there are a few, of a message and of an answer; turns.
SYSTEM, MESSAGE, ANSWER, TURNS = 1_200, (40, 400), (50, 600), (1, 8)
NUM_SYSTEMS = 20
THINKING_SECONDS = 20.0
LOAD = 0.95
# Every so many engines are unlike the others: so much slower, or with so small a cache.
UNLIKE = 4
SLOW, SMALL_CACHE = 0.5, SLOTS // 2 * (SYSTEM + 2_000)
MEASURE_SECONDS = 1.0
CARD = SimpleNamespace(max_num_seqs=SLOTS, block_size=1)


@dataclass(eq=False)
class SimulatedEngine:
    """What routing sees of an engine, and what comes of the requests it is given."""

    hello: SimpleNamespace
    speed: float = 1.0
    room: int = CACHE_TOKENS
    num_tokens_in_flight: int = 0
    capacity: Capacity = Capacity()
    queue_clock: QueueClock = field(default_factory=QueueClock)
    num_running: int = 0
    tokens_running: int = 0
    waiting: list["Turn"] = field(default_factory=list)
    served: int = 0
    computed: float = 0.0
    cached: OrderedDict[int, int] = field(default_factory=OrderedDict)
    cached_tokens: int = 0

    def find(self, turn: "Turn") -> int:
        """Return how many tokens of a turn's prompt are known, and know all of them from now on."""
        before = self.cached.pop(turn.conversation, 0)
        length = self.cached[turn.conversation] = turn.prompt + turn.answer
        self.cached_tokens += length - before
        while self.cached_tokens > CACHE_TOKENS:
            self.cached_tokens -= self.cached.popitem(last=False)[1]
        return min(before, turn.sent_again)

    def has_room(self) -> bool:
        """Return whether the first of those who wait may run."""
        needed = self.waiting[0].prompt + self.waiting[0].answer
        is_alone = not self.num_running  # one that fits nowhere must run at last
        fits = self.tokens_running + needed <= self.room or is_alone
        return self.num_running < SLOTS and fits

    def run(self, turn: "Turn", found: int) -> float:
        """Take a turn on, of whose prompt `found` tokens are known; return how long it takes."""
        self.num_running += 1
        self.tokens_running += turn.prompt + turn.answer
        seconds = (turn.prompt - found) / PREFILL_RATE + turn.answer * self.step
        return seconds / self.speed

    @property
    def step(self) -> float:
        """Return the seconds of a step: the shorter, the less there is to do."""
        return (0.5 + 0.5 * self.num_running / SLOTS) / DECODE_RATE

    def end(self, turn: "Turn") -> None:
        tokens = turn.prompt + turn.answer
        self.num_running -= 1
        self.tokens_running -= tokens
        self.num_tokens_in_flight -= tokens
        self.served += tokens

    def compute(self, seconds: float) -> None:
        """Count the tokens of a time in which as many ran as now."""
        self.computed += seconds * self.num_running * self.speed / self.step

    def figures(self) -> Mapping[str, int]:
        """Return what it publishes, in blocks of one token."""
        return {
            "running": self.num_running,
            "waiting": len(self.waiting),
            "free_blocks": max(0, self.room - self.tokens_running),
            "total_blocks": self.room,
            "prompt_tokens": 0,
            "cached_tokens": 0,
            "generated_tokens": int(self.computed),
        }


class Turn(NamedTuple):
    """One request: a conversation's prompt so far, of which `sent_again` tokens are not new."""

    conversation: int
    system: int
    prompt: int
    sent_again: int
    answer: int
    turns_left: int
    at: float

    def request(self, num_system: int) -> Generate:
        """Return what routing is asked: all that one speaker says is the same token."""
        said = (self.system,) * num_system + (self.conversation,) * (self.prompt - num_system)
        params = SamplingParams(max_tokens=self.answer)
        return Generate(wid=self.conversation, request_id="", prompt_ids=said, params=params)


class Result(NamedTuple):
    """Microseconds of a decision; the tokens of the engine that was busiest for what it can do,
    over the mean; the part of tokens sent again that was found; seconds that half of the requests
    waited at most, and nearly all.
    """

    microseconds: float
    imbalance: float
    hits: float
    median_wait: float
    p99_wait: float


Choose = Callable[[Sequence[SimulatedEngine], Generate], SimulatedEngine]


def by_routing() -> Choose:
    router = Router()
    return lambda engines, request: router.candidates(engines, request)[0]  # type: ignore


def at_random(seed: int) -> Choose:
    draw = random.Random(seed)
    return lambda engines, request: draw.choice(engines)


def in_turn() -> Choose:
    numbers = count()
    return lambda engines, request: engines[next(numbers) % len(engines)]


def least_loaded(engines: Sequence[SimulatedEngine], request: Generate) -> SimulatedEngine:
    return min(engines, key=lambda engine: engine.num_tokens_in_flight)


POLICIES: dict[str, Callable[[], Choose]] = {
    "routing": by_routing,
    "no figures": by_routing,
    "least loaded": lambda: least_loaded,
    "in turn": in_turn,
    "random": lambda: at_random(1),
}


class Simulation:
    """Requests from their arrival to their end, in the order of time."""

    def __init__(
        self,
        num_engines: int,
        choose: Choose,
        system: int = SYSTEM,
        unlike: str = "",
        seed: int = 0,
        *,
        is_measured: bool = True,
    ) -> None:
        """`system` is how many tokens of a system prompt each conversation begins with; `unlike` is
        what every fourth engine has less of, `speed` or `room`.
        """
        self._system = system
        self._draw = random.Random(seed)
        less = {"speed": {"speed": SLOW}, "room": {"room": SMALL_CACHE}}.get(unlike, {})
        self._engines = [
            SimulatedEngine(
                SimpleNamespace(engine_index=i, card=CARD), **(less if i % UNLIKE == 1 else {})
            )
            for i in range(num_engines)
        ]
        # Either halves what an engine can do.
        self._capacities = [0.5 if less and i % UNLIKE == 1 else 1.0 for i in range(num_engines)]
        self._is_measured = is_measured
        self._choose = choose
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._order = count()
        self._waits: list[float] = []
        self._sent_again = self._found = 0
        self._seconds = 0.0
        num_requests = max(LEAST_REQUESTS, REQUESTS_AN_ENGINE * num_engines)
        self._num_left = min(MOST_REQUESTS, num_requests)
        a_request = sum(MESSAGE) / 2 / PREFILL_RATE + sum(ANSWER) / 2 / DECODE_RATE
        a_conversation = a_request * sum(TURNS) / 2
        self._rate = LOAD * SLOTS * sum(self._capacities) / a_conversation

    def run(self) -> Result:
        num_requests = self._num_left
        self._later(0.0, self._begin)
        self._later(0.0, self._measure)
        while self._events:
            now, _, happen = heapq.heappop(self._events)
            happen(now)
        capacity, num_served = sum(self._capacities), sum(e.served for e in self._engines)
        pairs = zip(self._engines, self._capacities, strict=True)
        waits = sorted(self._waits)
        return Result(
            1e6 * self._seconds / num_requests,
            max(engine.served / can for engine, can in pairs) * capacity / num_served,
            self._found / self._sent_again,
            waits[len(waits) // 2],
            waits[int(0.99 * len(waits))],
        )

    def _begin(self, now: float) -> None:
        """Let a conversation begin, and the next one after a while."""
        if self._num_left <= 0:
            return
        number = next(self._order)
        system = self._draw.randrange(NUM_SYSTEMS)
        turns = self._draw.randint(*TURNS)
        self._ask(Turn(number, system, self._system, 0, 0, turns, now), now)
        self._later(now + self._draw.expovariate(self._rate), self._begin)

    def _ask(self, before: Turn, now: float) -> None:
        """Send a conversation's next turn."""
        if self._num_left <= 0:
            return
        self._num_left -= 1
        said = before.prompt + before.answer
        turn = before._replace(
            prompt=said + self._draw.randint(*MESSAGE),
            sent_again=said if before.answer else 0,
            answer=self._draw.randint(*ANSWER),
            turns_left=before.turns_left - 1,
            at=now,
        )
        request = turn.request(self._system)
        started = time.perf_counter()
        engine = self._choose(self._engines, request)
        self._seconds += time.perf_counter() - started
        engine.num_tokens_in_flight += turn.prompt + turn.answer
        engine.waiting.append(turn)
        self._start(engine, now)

    def _start(self, engine: SimulatedEngine, now: float) -> None:
        """Run whom there is room for."""
        while engine.waiting and engine.has_room():
            turn = engine.waiting.pop(0)
            found = engine.find(turn)
            self._sent_again += turn.sent_again
            self._found += found
            self._waits.append(now - turn.at)
            seconds = engine.run(turn, found)
            self._later(now + seconds, lambda then, turn=turn: self._end(engine, turn, then))

    def _end(self, engine: SimulatedEngine, turn: Turn, now: float) -> None:
        engine.end(turn)
        self._start(engine, now)
        if turn.turns_left:
            pause = self._draw.expovariate(1 / THINKING_SECONDS)
            self._later(now + pause, lambda then: self._ask(turn, then))

    def _measure(self, now: float) -> None:
        """Let engines publish, as they are looked at once a second."""
        for engine in self._engines:
            engine.compute(MEASURE_SECONDS)
        if self._is_measured:
            measure(self._engines, now)
        if self._num_left > 0:
            self._later(now + MEASURE_SECONDS, self._measure)

    def _later(self, at: float, happen: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (at, next(self._order), happen))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tests.bench.routing", description=__doc__)
    parser.add_argument("--engines", type=int, nargs="+", default=ENGINES)
    parser.add_argument("--system", type=int, default=SYSTEM, help="tokens of a system prompt")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="runs, of which are means shown")
    parser.add_argument("--unlike", choices=("speed", "room"), default="", help="of some engines")
    asked = parser.parse_args(arguments)
    print("engines  policy             µs  busiest   found  wait p50     p99")
    for num_engines in asked.engines:
        for name, policy in POLICIES.items():
            is_measured = name == "routing"
            results = [
                Simulation(
                    num_engines, policy(), asked.system, asked.unlike, seed, is_measured=is_measured
                ).run()
                for seed in range(asked.seeds)
            ]
            found = Result(*map(statistics.mean, zip(*results, strict=True)))
            print(
                f"{num_engines:>7}  {name:<13}{found.microseconds:>8.1f}{found.imbalance:>9.2f}"
                f"{100 * found.hits:>7.0f}%{found.median_wait:>10.2f}{found.p99_wait:>8.2f}"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
