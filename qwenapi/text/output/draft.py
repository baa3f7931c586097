"""Calls inside a thought: held back until they prove to be meant, or a part of the thought.

Both happen, and look the same while they are written. What tells them apart is what follows: after
a real call the model waits for its result. So calls inside a thought count if nothing but calls and
`</think>` follows them to an end that the model chose; otherwise they are a part of the thought.
Until that is known such calls are held back, and nothing else is.
"""

from collections.abc import Callable

from qwenapi.text.output.call_format import CALL, END_OF_CALL, FUNCTION
from qwenapi.text.output.call_writer import CallWriter
from qwenapi.text.output.events import Event
from qwenapi.text.output.reader import SPACE, Reader, Reading

END_OF_THOUGHT = "</think>"

ReadCall = Callable[[Reader, CallWriter], Reading[bool]]


class Draft:
    """Reads calls from an output that is inside a thought; `events` are theirs if they count."""

    def __init__(self, reader: Reader, read_call: ReadCall, num_calls: int) -> None:
        self.events: list[Event] = []
        self.writer = CallWriter(self.events.append, num_calls)
        self._reader = reader
        self._read_call = read_call
        self._calls = Reader()  # of the text up to `</think>`, which no draft reaches beyond
        self._run = self._read_calls()
        self._are_calls: bool | None = None

    def read(self) -> Reading[bool]:
        """Read the calls, or what was taken for some; return whether they count."""
        reader = self._reader
        while self._are_calls is None and (reader.text or (yield from reader.more())):
            start = reader.text.find("<")
            if start == 0 and (yield from reader.match((END_OF_THOUGHT,))):
                break
            size = start if start > 0 else 1 if start == 0 else len(reader.text)
            self._calls.push(reader.take(size))
            self._advance()
        self._calls.close(is_cut=reader.is_cut)
        self._advance()
        return bool(self._are_calls) and (yield from self._is_last())

    def _advance(self) -> None:
        if self._are_calls is None:
            try:
                next(self._run)
            except StopIteration as stop:
                self._are_calls = stop.value

    def _read_calls(self) -> Reading[bool]:
        """Read calls to the end of their text; return False at the first thing that is none."""
        calls = self._calls
        while (yield from calls.peek()):
            calls.take(len(calls.text) - len(calls.text.lstrip(SPACE)))
            marker = yield from calls.match((CALL, END_OF_CALL, FUNCTION))
            if marker is None:
                return False
            if marker != FUNCTION:
                calls.take(len(marker))
            if marker != END_OF_CALL and not (yield from self._read_call(calls, self.writer)):
                return False
        return not calls.text.strip(SPACE) and not self.writer.is_unfinished

    def _is_last(self) -> Reading[bool]:
        """Tell whether only `</think>` and whitespace follow to an end that the model chose."""
        reader = self._reader
        size = len(END_OF_THOUGHT) if reader.text.startswith(END_OF_THOUGHT) else 0
        mark = reader.mark()
        reader.take(size)
        char = yield from reader.peek()
        if char == "" and reader.is_at_end and not reader.text.strip(SPACE) and not reader.is_cut:
            return True
        reader.rewind(mark)
        return False
