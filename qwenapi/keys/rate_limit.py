"""RateLimit: one request against the limits of its key, and the queue of those that wait.

    count_request ── once its profile is known, before anything is computed for it
    enter         ── before it goes to an engine: its prompt is charged, and it takes a place among
                     the key's running requests, or waits in the queue for one
    leave         ── at its end: its tokens are charged, and the place is free

One that gives way to its key's other requests stands in no queue: it takes a place that nobody
waits for, and never the last of several, which is theirs.

Refusals are the caller's own doing: 429, with the time after which it may try again.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping

from qwenapi.errors import RateLimited
from qwenapi.keys.key import Key
from qwenapi.keys.usage import KeyUsage, Rate

POLL_SECONDS = 0.02
BEHIND_POLL_SECONDS = 0.05
# What a caller is told to wait where only other requests' ends can tell.
BUSY_SECONDS = 1.0

# Who waits in this process for one key: the arrivals of its requests, oldest first.
KeyQueue = deque[int]


class RateLimit:
    """`leave` may be called twice, and without `enter`."""

    def __init__(
        self, usage: KeyUsage, key: Key, queues: dict[str, KeyQueue], *, gives_way: bool = False
    ) -> None:
        """`queues` are those of this process, by key."""
        self.key = key
        self._gives_way = gives_way
        self._usage = usage
        self._queues = queues
        self._limits = key.limits
        self._charged = 0
        self._column = -1  # where it runs; −1: it does not

    def count_request(self) -> None:
        """Count the request; raise RateLimited if its key has made too many in this minute."""
        limit = self._limits.requests_per_minute
        if not limit:
            return
        with self._usage.locked():
            wait = self._usage.take(self._usage.column(self.key.id), "requests_ns", 1, limit)
        if wait:
            raise _limited(f"{limit} requests per minute", wait)

    def enter(self, prompt_tokens: int, timeout: float, check: Callable[[], None]) -> None:
        """Return once the request may run; raise RateLimited, or what `check` raises meanwhile."""
        if not self._limits.concurrent and not self._limits.tokens_per_minute:
            return
        if self._gives_way:
            self._enter_behind(prompt_tokens, timeout, check)
            return
        arrival = time.monotonic_ns()
        with self._usage.locked():
            column = self._usage.column(self.key.id)
            has_place = self._has_place(column, arrival, self._limits.concurrent)
            if not has_place and self._is_queue_full(column):
                raise self._busy
            self._charge_prompt(column, prompt_tokens)
            if has_place:
                self._run(column)
                return
            self._join(column, arrival)
        try:
            self._wait(column, arrival, timeout, check)
        except BaseException:
            self._give_back()
            raise
        finally:
            self._step_out(column, arrival)

    def leave(self, completion_tokens: int, *, was_read: bool = True) -> None:
        """Free the place, charge what was generated, and give back a prompt that nobody read."""
        if self._column >= 0:
            self._usage.add(self._column, "running", -1)
            self._column = -1
            if not was_read:
                self._give_back()
            self._charge(completion_tokens)

    @property
    def headers(self) -> Mapping[str, str]:
        """Return OpenAI's headers: the limits, what is left of them, and when all of it is back."""
        shown: dict[str, str] = {}
        rates: tuple[tuple[str, Rate, int], ...] = (
            ("requests", "requests_ns", self._limits.requests_per_minute),
            ("tokens", "tokens_ns", self._limits.tokens_per_minute),
        )
        for name, rate, limit in rates:
            if limit:
                with self._usage.locked():
                    left, seconds = self._usage.left(self._usage.column(self.key.id), rate, limit)
                shown[f"x-ratelimit-limit-{name}"] = str(limit)
                shown[f"x-ratelimit-remaining-{name}"] = str(left)
                shown[f"x-ratelimit-reset-{name}"] = f"{seconds:.3f}s"
        return shown

    def _charge_prompt(self, column: int, tokens: int) -> None:
        limit = self._limits.tokens_per_minute
        if not limit:
            return
        if tokens > limit:  # waiting does not help
            raise RateLimited(
                f"The prompt has {tokens} tokens; this key has {limit} per minute.",
                headers={"x-should-retry": "false"},
            )
        if wait := self._usage.take(column, "tokens_ns", tokens, limit):
            raise _limited(f"{limit} tokens per minute", wait)
        self._charged = tokens

    def _charge(self, tokens: int) -> None:
        if tokens and (limit := self._limits.tokens_per_minute):
            with self._usage.locked():
                column = self._usage.column(self.key.id)
                self._usage.charge(column, "tokens_ns", tokens, limit)

    def _give_back(self) -> None:
        """Let a prompt that nobody read cost nothing."""
        self._charge(-self._charged)
        self._charged = 0

    def _has_place(self, column: int, arrival: int, limit: int) -> bool:
        """Return whether the request may run now: of so many places one is free, and nobody came
        before it.
        """
        if not limit:
            return True
        is_next = all(first >= arrival for first in self._usage.in_all(column, "first_ns"))
        return is_next and sum(self._usage.in_all(column, "running")) < limit

    def _is_queue_full(self, column: int) -> bool:
        return sum(self._usage.in_all(column, "queued")) >= self._limits.queued

    def _run(self, column: int) -> None:
        self._usage.add(column, "running", 1)
        self._column = column

    def _join(self, column: int, arrival: int) -> None:
        queue = self._queues.setdefault(self.key.id, deque())
        queue.append(arrival)
        self._usage.add(column, "queued", 1)
        self._usage.set_first(column, queue[0])

    def _step_out(self, column: int, arrival: int) -> None:
        queue = self._queues[self.key.id]
        queue.remove(arrival)
        self._usage.add(column, "queued", -1)
        self._usage.set_first(column, queue[0] if queue else 0)
        if not queue:
            del self._queues[self.key.id]

    def _wait(self, column: int, arrival: int, timeout: float, check: Callable[[], None]) -> None:
        deadline = time.monotonic() + timeout
        while True:
            time.sleep(POLL_SECONDS)
            check()
            # Others of this process need not try: it is not their turn.
            if self._queues[self.key.id][0] == arrival:
                with self._usage.locked():
                    if self._has_place(column, arrival, self._limits.concurrent):
                        self._run(column)
                        return
            if time.monotonic() > deadline:
                raise self._busy

    def _enter_behind(self, prompt_tokens: int, timeout: float, check: Callable[[], None]) -> None:
        """Return with a place that nobody waits for; what it costs is charged only then."""
        places = self._limits.concurrent
        places -= places > 1
        deadline = time.monotonic() + timeout
        while True:
            with self._usage.locked():
                column = self._usage.column(self.key.id)
                if self._has_place(column, time.monotonic_ns(), places):
                    self._charge_prompt(column, prompt_tokens)
                    self._run(column)
                    return
            if time.monotonic() > deadline:
                raise self._busy
            time.sleep(BEHIND_POLL_SECONDS)
            check()

    @property
    def _busy(self) -> RateLimited:
        return _limited(f"{self._limits.concurrent} requests at a time", BUSY_SECONDS)


def _limited(limit: str, wait: float) -> RateLimited:
    return RateLimited(f"This key is limited to {limit}.", retry_after=wait)
