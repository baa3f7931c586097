"""Markdown's fenced code blocks in growing text: is the next character inside one?

A fence opens with three or more backticks or tildes at the start of a line, however indented, and
closes with a line of at least as many and nothing else. Inside it, markup is somebody's example.
"""

import re

_MAX_HEAD = 256
_HEAD = re.compile(r"[ \t]*(`+|~+)?")


class CodeFence:
    """Reads text in pieces of any size, and remembers of it one line's beginning."""

    def __init__(self) -> None:
        self._open = ""  # the run of backticks or tildes that opened the block
        self._head: str | None = ""  # the line so far, while it may be a fence; None once it cannot
        self._is_info = False  # on an opening line, behind the run

    @property
    def is_inside(self) -> bool:
        """Whether a block is open, or its opening line has begun."""
        return bool(self._open) or len((self._head or "").strip()) >= 3

    @property
    def is_at_line_start(self) -> bool:
        """Whether the line so far is blank."""
        return self._head is not None and not self._head.strip()

    def advance(self, text: str) -> None:
        """Read on."""
        first, *others = text.split("\n")
        self._read(first)
        for line in others:
            self._end_line()
            self._read(line)

    def _read(self, part: str) -> None:
        if self._is_info:
            if self._open[0] == "`" and "`" in part:  # inline code that fills a line's beginning
                self._open, self._is_info = "", False
        elif self._head is not None:
            self._judge(self._head + part)

    def _judge(self, line: str) -> None:
        """Decide about the line as soon as something else follows its run."""
        match = _HEAD.match(line, 0, _MAX_HEAD)
        run, rest = (match[1] or "", line[match.end() :]) if match else ("", line)
        if len(line) <= _MAX_HEAD and not rest.strip(" \t\r"):
            self._head = line
            return
        self._head = None
        if not self._open and len(run) >= 3 and not (run[0] == "`" and "`" in rest):
            self._open, self._is_info = run, True

    def _end_line(self) -> None:
        run = (self._head or "").strip(" \t\r")
        if not self._open:
            self._open = run if len(run) >= 3 else ""
        elif len(run) >= len(self._open) and run[0] == self._open[0]:
            self._open = ""
        self._head, self._is_info = "", False
