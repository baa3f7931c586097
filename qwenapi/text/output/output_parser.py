"""Parser of one output: characters in, events out, for content, thoughts and tool calls.

The joined events depend on the characters alone, not on how they were cut; a whole answer is the
same parser fed once. No text is lost: what turns out to be no call, or is inside a code fence, is
content, or thought where it stands in one. A call streams from its first argument on; what then
happens if it breaks, the modules of the two formats say.
"""

from typing import Literal

from qwenapi.text.output.call_format import CALL, END_OF_CALL, FUNCTION, CallFormat, Tools
from qwenapi.text.output.call_writer import CallWriter
from qwenapi.text.output.draft import END_OF_THOUGHT, Draft
from qwenapi.text.output.events import Event, merge_events
from qwenapi.text.output.hermes_call import HermesCall
from qwenapi.text.output.prose import Prose
from qwenapi.text.output.reader import SPACE, Reader, Reading
from qwenapi.text.output.xml_call import XmlCall

THOUGHT = "<think>"

Thinking = Literal["off", "possible", "open"]
"""All is content · the model may open a thought at its beginning · the prompt has opened one."""


class OutputParser:
    """One choice's output. Without a format or tools nothing is a call."""

    def __init__(
        self,
        call_format: CallFormat | None = None,
        tools: Tools | None = None,
        thinking: Thinking = "off",
    ) -> None:
        self._call_type = HermesCall if call_format == "hermes" else XmlCall
        self._tools: Tools = tools if tools and call_format else {}
        self._reader = Reader()
        self._events: list[Event] = []
        self._writer = CallWriter(self._events.append)
        self._prose = Prose(self._events.append, holds_space=bool(self._tools))
        self._is_call_open = False  # a `</tool_call>` may still come
        if thinking == "open":
            self._prose.begin_thought()
        self._run = self._parse(thinking)

    @property
    def in_reasoning(self) -> bool:
        """Whether the text so far ends inside a thought. Push token by token to count tokens."""
        return self._prose.is_thought

    @property
    def num_calls(self) -> int:
        """Return how many calls have started."""
        return self._writer.num_calls

    def push(self, text: str) -> list[Event]:
        """Return what is certain now that `text` has arrived."""
        self._reader.push(text)
        return self._advance()

    def finish(self, *, is_cut: bool = False) -> list[Event]:
        """Return what was held back: the output has ended, by the model or (`is_cut`) by a limit.

        Only an end by the model completes a call whose own end is missing.
        """
        self._reader.close(is_cut=is_cut)
        return self._advance()

    def _advance(self) -> list[Event]:
        next(self._run, None)
        events = self._events.copy() if len(self._events) < 2 else list(merge_events(self._events))
        self._events.clear()
        return events

    def _parse(self, thinking: Thinking) -> Reading[None]:
        reader, prose = self._reader, self._prose
        if thinking != "off":
            yield from self._opening()
        while reader.text or (yield from reader.more()):
            reader.forget()
            start = reader.text.find("<") if prose.is_thought or self._tools else -1
            if start == 0:
                yield from self._at_angle()
            else:
                prose.write(reader.take(start if start > 0 else len(reader.text)))
        prose.finish()

    def _opening(self) -> Reading[None]:
        """Read `<think>` at the beginning; some models repeat it when the prompt has it."""
        reader = self._reader
        if (yield from reader.peek()) != "<":
            return
        offset = len(reader.text) - len(reader.text.lstrip(SPACE))
        if (yield from reader.match((THOUGHT,), offset)):
            reader.take(offset + len(THOUGHT))
            self._prose.begin_thought()

    def _at_angle(self) -> Reading[None]:
        reader, prose = self._reader, self._prose
        marker = yield from reader.match(self._markers())
        if marker is None and self._is_half_an_end():
            reader.take(len(reader.text))
        elif marker is None:
            prose.write(reader.take(1))
        elif marker == END_OF_THOUGHT:
            reader.take(len(marker))
            prose.end_thought()
        elif marker == END_OF_CALL:
            reader.take(len(marker))
            prose.drop_space()
            self._is_call_open = False
        elif prose.is_thought:
            yield from self._draft()
        else:
            yield from self._call(marker)

    def _markers(self) -> list[str]:
        """Return what counts as markup at this place."""
        markers = [END_OF_THOUGHT] if self._prose.is_thought else []
        if self._tools and not self._prose.fence.is_inside:
            markers.append(CALL)
            if self._call_type is XmlCall and self._prose.fence.is_at_line_start:
                markers.append(FUNCTION)
            if self._is_call_open:
                markers.append(END_OF_CALL)
        return markers

    def _is_half_an_end(self) -> bool:
        """Tell whether the output ends in the middle of the `</tool_call>` that is due."""
        text = self._reader.text
        return self._is_call_open and self._reader.is_at_end and END_OF_CALL.startswith(text)

    def _call(self, marker: str) -> Reading[None]:
        opener = self._reader.take(len(CALL)) if marker == CALL else ""
        if (yield from self._read_call(self._reader, self._writer)):
            self._prose.end_call()
            self._is_call_open = True
        else:
            self._prose.write(opener or self._reader.take(1))

    def _draft(self) -> Reading[None]:
        reader = self._reader
        mark = reader.mark()
        draft = Draft(reader, self._read_call, self._writer.num_calls)
        if (yield from draft.read()):
            self._events += draft.events
            self._writer.num_calls = draft.writer.num_calls
            self._prose.end_call()
        else:
            self._prose.write(reader.since(mark))

    def _read_call(self, reader: Reader, writer: CallWriter) -> Reading[bool]:
        return self._call_type(reader, self._tools, writer).read()


def thinking_of(prompt: str) -> Thinking:
    """Return how a thinking model's rendered prompt leaves it: in a thought, behind one, or free.

    The prompt says it whatever switch a template listens to. For a model that does not think, or
    where thoughts are not split off, it is "off".
    """
    beginning = prompt.rpartition("<|im_start|>")[2]
    if beginning.rfind(THOUGHT) > beginning.rfind(END_OF_THOUGHT):
        return "open"
    return "off" if END_OF_THOUGHT in beginning else "possible"
