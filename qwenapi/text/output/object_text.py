"""ObjectText: a call's arguments as text that can be parsed while it comes, and in the end.

For interfaces whose clients parse what has come so far, and want an object whatever became of the
call. Of a call that broke, what is no JSON is left out; half a surrogate pair, which such clients
choke on, becomes U+FFFD.
"""

import json
import re

from qwenapi.text.output.json_scanner import JsonScanner

_CLOSER_OF = {"{": "}", "[": "]"}
# An escape; a group holds the first half of a surrogate pair, and the next its second half.
_ESCAPE = re.compile(
    r"\\(?:u([dD][89abAB][0-9a-fA-F]{2})(\\u[dD][c-fC-F][0-9a-fA-F]{2})?|u[0-9a-fA-F]{4}|.)",
    re.DOTALL,
)
_SECOND_HALF = re.compile(r"\\u[dD][c-fC-F]")
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"?|[{}\[\],]', re.DOTALL)


class ObjectText:
    """Arguments of one call. What `push` has returned so far is the beginning of a JSON object."""

    def __init__(self) -> None:
        self._scanner = JsonScanner()
        self._held = ""  # half a surrogate pair

    def push(self, fragment: str) -> str:
        """Return what more is certain now that a fragment has arrived."""
        self._scanner.feed(fragment)
        text = self._held + self._scanner.drain()  # which cuts no escape
        self._held = ""
        return _ESCAPE.sub(self._whole, text)

    def _whole(self, escape: re.Match[str]) -> str:
        """Return an escape as it is, but half a pair as another character, or not yet."""
        first, second = escape.groups()
        if first and not second and escape.end() == len(escape.string):
            self._held = escape[0]
            return ""
        is_half = (first and not second) or _SECOND_HALF.match(escape[0])
        return "\\ufffd" if is_half else escape[0]


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
