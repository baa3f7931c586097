"""Patience: how long, and for how many bytes, the other end of one connection is waited for.

    idle ── a kept-alive connection between two requests
    head ── from a request's first byte to the end of its head
    body ── no silence, nor less than MIN_RATE on the whole, and a bound on what chunks add to it
    rest ── a body that nobody read: a caller reads our refusal once it has sent what it has

Once it is over it stays so: the connection's reader finds the end of the stream.
"""

import time
from dataclasses import dataclass

MIN_RATE = 1024.0  # bytes a second
REST_SECONDS = 5.0
# What is read of a refused body, and what the marks of chunks may add to one that is read.
REST_PER_BODY, CHUNKS_PER_BODY, CHUNK_BYTES = 4, 1.5, 512 * 1024


@dataclass(frozen=True)
class PatienceLimits:
    """Seconds for an idle connection, a head, and a silence in a body; the largest body."""

    idle: float
    head: float
    silence: float
    max_body_bytes: int


class Patience:
    """One connection's; it begins before the first byte has come."""

    def __init__(self, limits: PatienceLimits) -> None:
        self._limits = limits
        self._is_idle = True
        self._began = self._deadline = 0.0
        self._num_left: float = 0
        self._min_rate = 0.0
        self._num_heard = 0
        self._silence = 0.0
        self.is_over = False
        self._begin(limits.head)

    @property
    def seconds_left(self) -> float:
        """Return how long the next bytes may take; none once it is over."""
        return 0.0 if self.is_over else self._deadline - time.monotonic()

    def hear(self, num_bytes: int) -> None:
        """Note bytes that have come."""
        if self._is_idle:
            self._is_idle = False
            self._begin(self._limits.head)
        self._num_heard += num_bytes
        self._num_left -= num_bytes
        if self._min_rate:
            earned = self._began + self._silence + self._num_heard / self._min_rate
            self._deadline = min(time.monotonic() + self._silence, earned)
        if self._num_left < 0:
            self.is_over = True

    def await_request(self) -> None:
        """Begin to wait for the next request of a kept-alive connection."""
        self._is_idle = True
        self._begin(self._limits.idle)

    def await_body(self, max_bytes: int = 0) -> None:
        """Begin to wait for a body, at an address that takes more than others of `max_bytes`."""
        limits = self._limits
        max_bytes = max(max_bytes, limits.max_body_bytes)
        self._is_idle = False
        self._begin(limits.silence, max_bytes * CHUNKS_PER_BODY + CHUNK_BYTES, min_rate=MIN_RATE)

    def await_rest(self, seconds: float = REST_SECONDS) -> None:
        """Begin to wait for the rest of a body that nobody reads."""
        self._is_idle = False
        self._begin(seconds, self._limits.max_body_bytes * REST_PER_BODY)

    def give_up(self) -> None:
        self.is_over = True

    def _begin(self, seconds: float, num_bytes: float = float("inf"), min_rate: float = 0) -> None:
        self._began = time.monotonic()
        self._deadline = self._began + seconds
        self._silence, self._min_rate = seconds, min_rate
        self._num_heard, self._num_left = 0, num_bytes
