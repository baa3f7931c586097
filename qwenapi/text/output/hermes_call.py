"""Calls in Hermes format: `<tool_call>`, a JSON object with name and arguments, `</tool_call>`.

The arguments stream as they come, mended as JsonScanner mends. Nothing is a call before its name is
known and its arguments have begun as an object; what breaks before is not a call, and all of it is
given back. Behind that point no text can be taken back, so:

- missing brackets at `</tool_call>` are closed: the model has said that the call ends there;
- any other fault, or the end of the output, leaves the call unfinished, with arguments as the model
  wrote them. As with OpenAI, they do not parse: nobody runs half of them, and the model is told.

A line break followed by `</tool_call>` ends a call even inside a string, where no JSON has one: a
missing quote costs one call, not the rest of the answer. Arguments may also be absent or null
(`{}`), a JSON string that holds an object, or stand before the name; other keys are dropped.
"""

import json
from collections.abc import Callable
from typing import NoReturn

from qwenapi.text.output.call_format import CALL, END_OF_CALL, Tools
from qwenapi.text.output.call_writer import CallWriter
from qwenapi.text.output.json_scanner import JsonScanner
from qwenapi.text.output.reader import SPACE, Reader, Reading

_END_IN_STRING = "\n" + END_OF_CALL


class HermesCall:
    """Reads what follows one `<tool_call>`: an object, or several, which some models write."""

    def __init__(self, reader: Reader, tools: Tools, writer: CallWriter) -> None:
        self._reader = reader
        self._tools = tools
        self._writer = writer

    def read(self) -> Reading[bool]:
        """Read up to `</tool_call>` or other text; if it is no call, return False, nothing read."""
        if not (yield from self._object()):
            return False
        while (char := (yield from self._reader.peek())) in ("{", "}"):
            if char == "}":  # one too many
                self._take_space(1)
            elif not (yield from self._object()):
                break
        return True

    def _object(self) -> Reading[bool]:
        """Read one call; return False, with nothing read, if it is none."""
        call = _Object(self._reader, self._tools, self._writer)
        start = self._reader.mark()
        try:
            yield from call.read()
        except _BrokenError:
            if call.is_started and self._writer.is_unfinished:
                yield from call.read_broken()
            else:
                self._reader.rewind(start if call.end is None else call.end)
        return call.is_started

    def _take_space(self, num_more: int) -> None:
        text = self._reader.text
        self._reader.take(len(text) - len(text.lstrip(SPACE)) + num_more)


class _BrokenError(Exception):
    """The text is no JSON object that calls a known tool."""


class _Object:
    """One object. `end` is the reader's mark behind its arguments, once they are written."""

    def __init__(self, reader: Reader, tools: Tools, writer: CallWriter) -> None:
        self.is_started = False
        self.end: int | None = None
        self._reader = reader
        self._tools = tools
        self._writer = writer
        self._name: str | None = None
        self._arguments: str | None = None  # those that came before the name, or not as an object
        self._scanner = JsonScanner()

    def read(self) -> Reading[None]:
        """Read to the closing brace; raise _BrokenError where the text is something else."""
        yield from self._expect("{")
        char = yield from self._first()
        while char != "}":
            key = yield from self._string()
            yield from self._expect(":")
            yield from self._member(key)
            char = yield from self._first()
            if char == ",":
                self._reader.take(1)
                char = yield from self._first()
            elif char != "}":
                _fail()
        self._reader.take(1)
        if self.end is None:
            self._write(self._arguments or "{}")

    def read_broken(self) -> Reading[None]:
        """Read the arguments on from where they broke, up to the next marker."""
        if (yield from self._reader.peek()) == "<" and (yield from self._is_closed()):
            self._writer.write(self._scanner.drain())
            self._writer.finish()
            return
        self._writer.write(self._scanner.give_up())
        while self._reader.text or (yield from self._reader.more()):
            start = self._reader.text.find("<")
            if start == 0 and (yield from self._reader.match((END_OF_CALL, CALL))):
                return
            size = start if start > 0 else 1 if start == 0 else len(self._reader.text)
            self._writer.write(self._reader.take(size))

    def _is_closed(self) -> Reading[bool]:
        start = self._reader.text.index("<")
        marker = yield from self._reader.match((END_OF_CALL,), start)
        return marker is not None and self._scanner.close()

    def _member(self, key: str) -> Reading[None]:
        if key == "name" and self._name is None:
            self._name = yield from self._string()
            if self._name not in self._tools:
                _fail()
            if self._arguments is not None:
                self._write(self._arguments)
        elif key == "arguments" and self._arguments is None and self.end is None:
            yield from self._read_arguments()
        else:
            yield from self._json()

    def _read_arguments(self) -> Reading[None]:
        if self._name is not None and (yield from self._first()) == "{":
            self._start()
            yield from self._scan(self._scanner, self._writer.write)
            self._finish()
            return
        self._arguments = _unwrap((yield from self._json()))
        if self._name is not None:
            self._write(self._arguments)

    def _write(self, arguments: str) -> None:
        self._start()
        self._writer.write(arguments)
        self._finish()

    def _start(self) -> None:
        if self._name is None:
            _fail()
        self.is_started = True
        self._writer.start(self._name)

    def _finish(self) -> None:
        self._writer.finish()
        self.end = self._reader.mark()

    def _expect(self, char: str) -> Reading[None]:
        if (yield from self._first()) != char:
            _fail()
        self._reader.take(1)

    def _first(self) -> Reading[str]:
        """Skip whitespace; return the character that follows, without reading it."""
        reader = self._reader
        while True:
            reader.take(len(reader.text) - len(reader.text.lstrip(SPACE)))
            if reader.text:
                return reader.text[0]
            if not (yield from reader.more()):
                _fail()

    def _string(self) -> Reading[str]:
        if (yield from self._first()) != '"':
            _fail()
        return str(json.loads((yield from self._json())))

    def _json(self) -> Reading[str]:
        yield from self._first()
        pieces: list[str] = []
        yield from self._scan(JsonScanner(), pieces.append)
        return "".join(pieces)

    def _scan(self, scanner: JsonScanner, write: Callable[[str], None]) -> Reading[None]:
        reader = self._reader
        while not scanner.is_complete:
            size = _num_before_end(reader.text)
            if size:
                reader.take(scanner.feed(reader.text[:size]))
                write(scanner.drain())
                if scanner.is_broken:
                    _fail()
            elif reader.text.startswith(_END_IN_STRING) or not (yield from reader.more()):
                _fail()


def _num_before_end(text: str) -> int:
    """Return how many characters stand before a line break that may end the call."""
    end = text.find(_END_IN_STRING)
    if end < 0:
        last = text.rfind("\n")
        end = last if last >= 0 and _END_IN_STRING.startswith(text[last:]) else len(text)
    return end


def _unwrap(text: str) -> str:
    """Return as an object's text the arguments that are one, a string of one, or null."""
    value = _parse(text)
    if isinstance(value, str):
        text, value = value.strip() or "{}", _parse(value.strip() or "{}")
    if value is None:
        return "{}"
    return text if isinstance(value, dict) else _fail()


def _parse(text: str) -> object:
    try:
        return json.loads(text, parse_constant=_fail)
    except (ValueError, RecursionError):
        _fail()


def _fail(_: str = "") -> NoReturn:
    raise _BrokenError
