"""Calls in Qwen3-Coder's format: `<function=NAME>`, parameters as tagged text, `</function>`.

Nothing is a call before a known name and a first parameter, or the end of a function that has none;
all else is given back. The arguments are written parameter by parameter; a string as it grows, any
other type once its value is whole.

A value may hold anything, its own markup too. It ends at a `</parameter>` that another tag of the
format follows, or the end of the output. Where the model forgot it, the value ends at a line that
begins with `</function>` or `</tool_call>`, again before a tag or the end, or with a parameter that
the schema has and the call not yet. Not covered: a value that quotes a whole call to its end.
A value that the output's end cuts leaves the call unfinished.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from qwenapi.text.output.call_format import END_OF_CALL, FUNCTION, Tools
from qwenapi.text.output.call_writer import CallWriter
from qwenapi.text.output.parameter_type import ParameterType, parameter_type
from qwenapi.text.output.reader import MAX_SPACE, SPACE, Reader, Reading

_MAX_NAME = 256
_TAG = re.compile(
    rf"[ \t\r\n]{{0,{MAX_SPACE}}}<(?:function=(?P<function>[^<>\n]{{1,{_MAX_NAME}}})"
    rf"|parameter=(?P<parameter>[^<>\n]{{1,{_MAX_NAME}}})"
    r"|(?P<other>/parameter|/function|/?tool_call))>"
)
_STARTS = (FUNCTION, "<parameter=", "</parameter>", "</function>", "<tool_call>", END_OF_CALL)
_NAMING = re.compile(rf"<(?:function|parameter)=[^<>\n]{{0,{_MAX_NAME}}}")


class XmlCall:
    """Reads one function; what surrounds it is the caller's."""

    def __init__(self, reader: Reader, tools: Tools, writer: CallWriter) -> None:
        self._reader = reader
        self._tools = tools
        self._writer = writer

    def read(self) -> Reading[bool]:
        """Read to the end of the function; if it is no call, return False, nothing read."""
        start = self._reader.mark()
        tag = yield from self._tag()
        name = (tag["function"] or "").strip() if tag else ""
        if tag is None or name not in self._tools:
            return False
        self._reader.take(tag.end())
        tag = yield from self._tag()
        if tag and (tag["parameter"] or tag["other"] in ("/function", "/tool_call")):
            self._writer.start(name)
            yield from self._parameters(tag, self._tools[name])
            return True
        self._reader.rewind(start)
        return False

    def _parameters(self, tag: re.Match[str] | None, schema: Mapping[str, Any]) -> Reading[None]:
        seen: set[str] = set()
        while tag and tag["parameter"]:
            self._reader.take(tag.end())
            key = tag["parameter"].strip()
            self._writer.write(f"{', ' if seen else '{'}{_to_json(key)}: ")
            seen.add(key)
            unseen = _keys(schema) - seen
            if not (yield from self._value(parameter_type(schema, key), unseen)):
                return
            tag = yield from self._tag()
        if tag is None and (self._reader.is_cut or self._reader.text.strip(SPACE)):
            self._reader.take(len(self._reader.text))  # half a tag
            return
        if tag and tag["other"] == "/function":
            self._reader.take(tag.end())
        self._writer.write("}" if seen else "{}")
        self._writer.finish()

    def _value(self, type_: ParameterType, unseen: set[str]) -> Reading[bool]:
        """Read a value and its closing tag; return whether it ended before the output did."""
        reader = self._reader
        value = _Value(type_, self._writer.write)
        if reader.text or (yield from reader.more()):
            reader.take(1 if reader.text.startswith("\n") else 0)
        is_line_start = True
        while reader.text or (yield from reader.more()):
            start = reader.text.find("<")
            # A line break stays unread as long as a closing tag may follow it.
            end = start if start >= 0 else len(reader.text)
            num_free = end - 1 if reader.text.endswith("\n", 0, end) else end
            if num_free:
                value.write(reader.take(num_free))
                is_line_start = False
            elif start < 0:
                if not (yield from reader.more()):
                    break
            elif (yield from self._is_end(start, is_line_start or start == 1, unseen)):
                value.close()
                return True
            else:
                value.write(reader.take(start + 1))
                is_line_start = False
        value.abandon(reader.take(len(reader.text)))
        return False

    def _is_end(self, offset: int, is_line_start: bool, unseen: set[str]) -> Reading[bool]:
        """Tell whether the tag at `offset` ends the value; if so, read up to the next tag."""
        tag = yield from self._tag(offset)
        if tag is None:
            return False
        if tag["other"] == "/parameter":
            size = tag.end()
        elif not is_line_start:
            return False
        elif tag["other"] in ("/function", "/tool_call"):
            size = offset
        else:
            is_next = (tag["parameter"] or "").strip() in unseen
            self._reader.take(offset if is_next else 0)
            return is_next
        # At the end of the output, the beginning of a tag will do.
        follower = yield from self._tag(tag.end())
        is_end = follower is not None or _may_become_tag(self._reader.text[tag.end() :])
        self._reader.take(size if is_end else 0)
        return is_end

    def _tag(self, offset: int = 0) -> Reading[re.Match[str] | None]:
        """Return the tag at `offset`, whitespace aside, once more text could not change it."""
        while True:
            tag = _TAG.match(self._reader.text, offset)
            if tag or not _may_become_tag(self._reader.text[offset:]):
                return tag
            if not (yield from self._reader.more()):
                return None


class _Value:
    """One value on its way into the arguments."""

    def __init__(self, type_: ParameterType, write: Callable[[str], None]) -> None:
        self._type = type_
        self._write = write
        self._pieces: list[str] = []
        if type_.is_string:
            write('"')

    def write(self, text: str) -> None:
        """Add text: at once to a string, which JSON escapes character by character."""
        if self._type.is_string:
            self._write(_to_json(text)[1:-1])
        else:
            self._pieces.append(text)

    def close(self) -> None:
        """Write what the end of the value decides."""
        self._write('"' if self._type.is_string else self._type.to_json("".join(self._pieces)))

    def abandon(self, rest: str) -> None:
        """Write what there is, as it is."""
        self.write(rest)
        self._write("".join(self._pieces))


def _may_become_tag(text: str) -> bool:
    bare = text.lstrip(SPACE)
    if len(text) - len(bare) > MAX_SPACE:
        return False
    return any(start.startswith(bare) for start in _STARTS) or bool(_NAMING.fullmatch(bare))


def _keys(schema: Mapping[str, Any]) -> set[str]:
    properties = schema.get("properties")
    return set(properties) if isinstance(properties, Mapping) else set()


def _to_json(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
