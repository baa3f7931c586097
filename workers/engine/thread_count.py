"""ThreadCount: how many threads a step computes with, so that none waits for a neighbour's core.

Threads share every product and wait for the last of them. With a busy neighbour on one of two cores
the thread there runs half the time at best, the other waits for it, and a stream keeps a quarter of
its speed; one thread alone has a core of its own and keeps more than half.

    threads wait for cores ─→ as many fewer        cores idle ─→ as many more, after a while
                                                   (too early: after twice that while)
"""

import logging
import time
from collections.abc import Callable

from workers.cpu_times import CpuTimes, read_cpu_times

# How long to look before anything is changed. Seconds.
WINDOW = 0.5
# Threads are too many if they wait for so many cores in a window, and too few if so many are idle.
# Two threads on two quiet cores wait for 0.03 to 0.05 beside the HTTP half, with a busy neighbour
# for 0.96; one of them leaves 0.96 idle, and beside the neighbour 0.04.
HELD_UP = 0.4
IDLE = 0.5
# Seconds after fewer threads without more; more that lasted no longer than a trial were too early.
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
TRIAL = 3.0

log = logging.getLogger(__name__)


class ThreadCount:
    """The number of threads for the next step, at most `most`."""

    def __init__(
        self,
        most: int,
        set_threads: Callable[[int], None],
        read: Callable[[], CpuTimes | None] = read_cpu_times,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`set_threads` is told a new number; it is taken to be `most` at first."""
        self._most = self.current = most
        self._set, self._read, self._clock = set_threads, read, clock
        self._began = clock()
        self._known = read() if most > 1 else None
        self._pause = FIRST_PAUSE
        self._lowered = self._raised = float("-inf")  # when

    def adapt(self) -> None:
        """Look at the window that has passed, if one has; to be called before each step."""
        now = self._clock()
        seconds = now - self._began
        if self._known is None or seconds < WINDOW:
            return
        before, self._known, self._began = self._known, self._read(), now
        if self._known is None:
            return
        waits = sum(s - before.waits.get(t, 0.0) for t, s in self._known.waits.items()) / seconds
        idle = (self._known.idle - before.idle) / seconds
        if waits >= HELD_UP and self.current > 1:
            is_early = now - self._raised < TRIAL
            self._pause = min(2 * self._pause, LONGEST_PAUSE) if is_early else FIRST_PAUSE
            self._lowered = now
            self._change(max(1, self.current - max(1, round(waits))))
        elif idle >= IDLE and self.current < self._most and now - self._lowered >= self._pause:
            self._raised = now
            self._change(min(self._most, self.current + max(1, int(idle))))

    def _change(self, number: int) -> None:
        log.info(
            "computing with %d of %d threads, as %s",
            number,
            self._most,
            "others use the cores" if number < self.current else "cores are idle",
        )
        self.current = number
        self._set(number)
