"""Capacity: how many tokens in flight an engine runs at once, how slowly those beyond it move.

By what engines publish, looked at once a second. What changes from one request to the next, the
tokens in flight, is the router's and always up to date: so nobody is sent where there was room a
second ago and has not been since. Refuses to know routing.
"""

import math
from collections.abc import Collection, Mapping
from statistics import median_low
from typing import NamedTuple, Protocol

from workers.wire.protocol import Hello

# What is left of an earlier second's weight in the mean after another.
_MEMORY = 0.9
_MOST_SLOWNESS = 4.0


class Capacity(NamedTuple):
    """Tokens in flight that an engine runs at once, and the time that it takes for a token of those
    who wait there, in that of the usual engine.
    """

    tokens: float = math.inf
    slowness: float = 1.0


class QueueClock:
    """The seconds that an engine takes for a token, while there is a queue.

    Without one an engine would seem slow because it has little to do, and would so be left alone.
    """

    def __init__(self) -> None:
        self._seen: tuple[float, int] | None = None
        self._seconds = self._tokens = 0.0

    def look(self, figures: Mapping[str, int], now: float, *, has_queue: bool) -> float | None:
        """Return the mean of lately; None where it is not known."""
        computed = figures["prompt_tokens"] - figures["cached_tokens"] + figures["generated_tokens"]
        seen, self._seen = self._seen, (now, computed)
        if not has_queue:
            self._seen = None
        elif seen is not None and computed >= seen[1]:
            self._seconds = self._seconds * _MEMORY + now - seen[0]
            self._tokens = self._tokens * _MEMORY + computed - seen[1]
        return self._seconds / self._tokens if self._tokens else None


class MeasuredEngine(Protocol):
    """Whose capacity is measured: an EngineLink."""

    hello: Hello
    num_tokens_in_flight: int
    capacity: Capacity

    @property
    def queue_clock(self) -> QueueClock: ...

    def figures(self) -> Mapping[str, int] | None: ...


def measure(engines: Collection[MeasuredEngine], now: float) -> None:
    """Set each engine's capacity by what all of them publish now."""
    published = [(engine, figures) for engine in engines if (figures := engine.figures())]
    clocks = [
        engine.queue_clock.look(figures, now, has_queue=_has_queue(engine, figures))
        for engine, figures in published
    ]
    known = [seconds for seconds in clocks if seconds is not None]
    usual = median_low(known) if known else 1.0
    for (engine, figures), seconds in zip(published, clocks, strict=True):
        slowness = (seconds or usual) / usual
        bounded = min(_MOST_SLOWNESS, max(1 / _MOST_SLOWNESS, slowness))
        engine.capacity = Capacity(_num_tokens(engine, figures), bounded)


def _has_queue(engine: MeasuredEngine, figures: Mapping[str, int]) -> bool:
    """Return whether somebody waits for want of a place or of blocks, and not for a limited group.

    Blocks lack where fewer are free than a sequence holds in the mean.
    """
    running, free_blocks = figures["running"], figures["free_blocks"]
    lacks_blocks = free_blocks * running < figures["total_blocks"] - free_blocks
    lacks_places = running >= engine.hello.card.max_num_seqs
    return figures["waiting"] > 0 and (lacks_blocks or lacks_places)


def _num_tokens(engine: MeasuredEngine, figures: Mapping[str, int]) -> float:
    """Return what it runs of what is in flight from here, and what it would run besides."""
    card, running, waiting = engine.hello.card, figures["running"], figures["waiting"]
    in_flight = engine.num_tokens_in_flight
    if not in_flight or not running:
        return math.inf
    each = in_flight / (running + waiting)
    if _has_queue(engine, figures):
        return running * each
    free_tokens = figures["free_blocks"] * card.block_size
    return in_flight + min(free_tokens, each * (card.max_num_seqs - running))
