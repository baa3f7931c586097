"""One JSON value read as it arrives: valid so far, complete, or broken at an exact character.

What comes out is the text that went in, save for three slips of models that have one meaning only:
a control character inside a string is escaped (a raw line break becomes `\\n`), a backslash before
a character that needs none is doubled (`\\d`; `\\'` becomes `'`), and `True`, `False`, `None` are
written JSON's way. So the output of a complete value always parses.
"""

import json
import re
from enum import Enum, auto

from qwenapi.text.output.reader import SPACE

MAX_DEPTH = 128
MAX_SCALAR_CHARS = 512
NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
WORDS = {word: word for word in ("true", "false", "null")} | {
    "True": "true",
    "False": "false",
    "None": "null",
}

_PLAIN = re.compile(r'[^"\\\x00-\x1f]+')
_SCALAR = re.compile(r"[-+.0-9A-Za-z]+")
_CLOSER_OF = {"{": "}", "[": "]"}


class _Place(Enum):
    """What may come next."""

    VALUE = auto()
    FIRST_VALUE = auto()  # or the end of an empty array
    KEY = auto()
    FIRST_KEY = auto()  # or the end of an empty object
    COLON = auto()
    NEXT = auto()  # a comma or the end of the container
    STRING = auto()
    ESCAPE = auto()
    SCALAR = auto()  # a number, or a word such as true
    COMPLETE = auto()


class JsonScanner:
    """Reads one value. A number at the very end is complete only with the character behind it."""

    def __init__(self) -> None:
        self.is_broken = False
        self._place = _Place.VALUE
        self._closers: list[str] = []
        self._is_key = False
        self._token = ""  # a scalar or an escape, so far
        self._output: list[str] = []
        self._steps = {
            _Place.VALUE: self._value,
            _Place.FIRST_VALUE: self._value,
            _Place.KEY: self._key,
            _Place.FIRST_KEY: self._key,
            _Place.COLON: self._colon,
            _Place.NEXT: self._next,
            _Place.STRING: self._string,
            _Place.ESCAPE: self._escape,
            _Place.SCALAR: self._scalar,
        }

    @property
    def is_complete(self) -> bool:
        return self._place is _Place.COMPLETE

    def feed(self, text: str) -> int:
        """Read on; return how many characters belong to the value, all of them if it goes on."""
        at = 0
        while at < len(text) and not self.is_complete and not self.is_broken:
            at = self._steps[self._place](text, at)
        return at

    def drain(self) -> str:
        """Return the output since the last call."""
        output = "".join(self._output)
        self._output.clear()
        return output

    def close(self) -> bool:
        """Close the brackets left open; return False where more than brackets is missing."""
        if self._place is _Place.SCALAR:
            self._end_scalar()
        if self._place not in (_Place.NEXT, _Place.FIRST_KEY, _Place.FIRST_VALUE):
            return False
        self._output += reversed(self._closers)
        self._place = _Place.COMPLETE
        return True

    def give_up(self) -> str:
        """Return the output since the last `drain`, and as it is what was not decided on."""
        output, self._token = self.drain() + self._token, ""
        return output

    def _value(self, text: str, at: int) -> int:
        char = text[at]
        if char in SPACE:
            return self._pass(char, at)
        if char == '"':
            self._is_key, self._place = False, _Place.STRING
            return self._pass(char, at)
        if char in _CLOSER_OF and len(self._closers) < MAX_DEPTH:
            self._closers.append(_CLOSER_OF[char])
            self._place = _Place.FIRST_KEY if char == "{" else _Place.FIRST_VALUE
            return self._pass(char, at)
        if char == "]" and self._place is _Place.FIRST_VALUE:
            return self._close_container(char, at)
        if not _SCALAR.match(char):
            return self._break(at)
        self._place = _Place.SCALAR
        return at

    def _key(self, text: str, at: int) -> int:
        char = text[at]
        if char in SPACE:
            return self._pass(char, at)
        if char == '"':
            self._is_key, self._place = True, _Place.STRING
            return self._pass(char, at)
        if char == "}" and self._place is _Place.FIRST_KEY:
            return self._close_container(char, at)
        return self._break(at)

    def _colon(self, text: str, at: int) -> int:
        char = text[at]
        if char == ":":
            self._place = _Place.VALUE
        elif char not in SPACE:
            return self._break(at)
        return self._pass(char, at)

    def _next(self, text: str, at: int) -> int:
        char = text[at]
        if char in SPACE:
            return self._pass(char, at)
        if char == self._closers[-1]:
            return self._close_container(char, at)
        if char == ",":
            self._place = _Place.KEY if self._closers[-1] == "}" else _Place.VALUE
            return self._pass(char, at)
        return self._break(at)

    def _string(self, text: str, at: int) -> int:
        plain = _PLAIN.match(text, at)
        if plain:
            self._output.append(plain[0])
            return plain.end()
        char = text[at]
        if char == '"':
            self._output.append(char)
            self._place = _Place.COLON if self._is_key else self._behind_value()
        elif char == "\\":
            self._token, self._place = char, _Place.ESCAPE
        else:
            self._output.append(json.dumps(char)[1:-1])
        return at + 1

    def _escape(self, text: str, at: int) -> int:
        char = text[at]
        if len(self._token) > 1 and char in "0123456789abcdefABCDEF":
            self._token += char
            return at + 1 if len(self._token) < 6 else self._end_escape(self._token, at + 1)
        if self._token == "\\" and char == "u":
            self._token += char
            return at + 1
        if self._token == "\\" and char in '"\\/bfnrt':
            return self._end_escape(self._token + char, at + 1)
        if self._token == "\\" and char == "'":
            return self._end_escape(char, at + 1)
        return self._end_escape("\\" + self._token, at)

    def _end_escape(self, output: str, at: int) -> int:
        self._output.append(output)
        self._token, self._place = "", _Place.STRING
        return at

    def _scalar(self, text: str, at: int) -> int:
        more = _SCALAR.match(text, at)
        if not more:
            self._end_scalar()
            return at
        room = MAX_SCALAR_CHARS - len(self._token)
        self._token += more[0][:room]
        if len(more[0]) > room:
            self.is_broken = True
        return at + min(len(more[0]), room)

    def _end_scalar(self) -> None:
        json_text = WORDS.get(self._token) or NUMBER.fullmatch(self._token) and self._token
        if json_text:
            self._output.append(json_text)
            self._token, self._place = "", self._behind_value()
        else:
            self.is_broken = True  # the token stays, for `give_up`

    def _close_container(self, char: str, at: int) -> int:
        self._closers.pop()
        self._place = self._behind_value()
        return self._pass(char, at)

    def _behind_value(self) -> _Place:
        return _Place.NEXT if self._closers else _Place.COMPLETE

    def _break(self, at: int) -> int:
        self.is_broken = True
        return at

    def _pass(self, char: str, at: int) -> int:
        self._output.append(char)
        return at + 1
