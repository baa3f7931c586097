"""ObjectText: a call's arguments as text that can be parsed while it comes, and in the end.

For interfaces whose clients parse what has come so far, and want an object whatever became of the
call. Of a call that broke, what is no JSON is left out.
"""

import json
import re

from qwenapi.text.output.json_scanner import JsonScanner

_CLOSER_OF = {"{": "}", "[": "]"}
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"?|[{}\[\],]', re.DOTALL)


class ObjectText:
    """Arguments of one call. What `push` has returned so far is the beginning of a JSON object."""

    def __init__(self) -> None:
        self._scanner = JsonScanner()

    def push(self, fragment: str) -> str:
        """Return what more is certain now that a fragment has arrived."""
        self._scanner.feed(fragment)
        return self._scanner.drain()


def closed_object(beginning: str) -> str:
    """Return the JSON object of those members that the beginning of an object's text completes."""
    closers: list[str] = []
    end = 0  # of the last complete member
    for token in _TOKEN.finditer(beginning):
        if closer := _CLOSER_OF.get(token[0]):
            closers.append(closer)
        elif token[0] in ("}", "]"):
            closers.pop()
        elif token[0] != ",":
            continue
        end = token.start() if token[0] == "," else token.end()
    closing = "".join(reversed(closers))
    for text in (beginning + closing, beginning[:end] + closing):
        try:
            json.loads(text)
        except ValueError:
            continue
        return text
    return "{}"
