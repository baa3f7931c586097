"""Calls as events: numbers them, and knows whether one is unfinished."""

from collections.abc import Callable

from qwenapi.text.output.events import Arguments, CallFinished, CallStarted, Event


class CallWriter:
    """Writes calls one after the other; the first has the number `num_calls`."""

    def __init__(self, emit: Callable[[Event], None], num_calls: int = 0) -> None:
        self.num_calls = num_calls
        self.is_unfinished = False  # the latest call
        self._emit = emit

    def start(self, name: str) -> None:
        """Begin the next call."""
        self._emit(CallStarted(self.num_calls, name))
        self.num_calls += 1
        self.is_unfinished = True

    def write(self, fragment: str) -> None:
        """Add to the arguments of the call that was started."""
        if fragment:
            self._emit(Arguments(self.num_calls - 1, fragment))

    def finish(self) -> None:
        """End the call: its arguments are a JSON object."""
        self._emit(CallFinished(self.num_calls - 1))
        self.is_unfinished = False
