"""CircuitBreaker: after too many lives in a row that served nothing, restarts turn rare."""

from collections import deque

MAX_DEATHS = 5
WINDOW_SECONDS = 300.0


class CircuitBreaker:
    """Opens after MAX_DEATHS within WINDOW_SECONDS; only success closes it again."""

    def __init__(self) -> None:
        self._deaths: deque[float] = deque(maxlen=MAX_DEATHS)
        self.is_open = False

    def note_death(self, now: float) -> None:
        self._deaths.append(now)
        if len(self._deaths) == MAX_DEATHS and now - self._deaths[0] <= WINDOW_SECONDS:
            self.is_open = True

    def note_success(self) -> None:
        self._deaths.clear()
        self.is_open = False
