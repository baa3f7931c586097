"""A Python literal as JSON text: what models write for objects when they think of Python.

Dictionaries, lists, strings in either quotes, numbers, True, False, None; no tuples, sets or
expressions. Translates token by token, in linear time, and evaluates nothing; whether the result is
JSON is for a JSON parser to say.
"""

import json
import re

from qwenapi.text.output.json_scanner import NUMBER, WORDS

_TOKEN = re.compile(
    r"(?P<string>'(?:[^'\\]++|\\.)*+'|\"(?:[^\"\\]++|\\.)*+\")"
    rf"|(?P<number>{NUMBER.pattern})"
    r"|(?P<word>[A-Za-z]+)"
    r"|(?:,\s*)(?=[\]}])"  # a trailing comma, which JSON has not
    r"|(?P<other>[][{}:,\s])",
    re.DOTALL,
)
_IN_STRING = re.compile(
    r"\\(?:x(?P<byte>[0-9a-fA-F]{2})|(?P<unicode>u[0-9a-fA-F]{4})|U(?P<wide>[0-9a-fA-F]{8})"
    r"|(?P<escaped>.))|(?P<raw>[\"\x00-\x1f])",
    re.DOTALL,
)
_ESCAPES = {"a": "\\u0007", "v": "\\u000b", "0": "\\u0000", "'": "'", "\n": ""} | {
    char: f"\\{char}" for char in 'bfnrt"\\'
}


def to_json(literal: str) -> str | None:
    """Return the literal's JSON text, or None if it holds anything else."""
    pieces: list[str] = []
    at = 0
    while at < len(literal):
        token = _TOKEN.match(literal, at)
        piece = _translate(token) if token else None
        if token is None or piece is None:
            return None
        pieces.append(piece)
        at = token.end()
    return "".join(pieces)


def _translate(token: re.Match[str]) -> str | None:
    if token["string"]:
        return f'"{_IN_STRING.sub(_escape, token["string"][1:-1])}"'
    if token["word"]:
        return WORDS.get(token["word"])
    return token["number"] or token["other"] or ""


def _escape(match: re.Match[str]) -> str:
    """Return JSON's spelling of one escape or of a character that JSON escapes."""
    if match["byte"]:
        return f"\\u00{match['byte']}"
    if match["unicode"]:
        return f"\\{match['unicode']}"
    if match["wide"]:
        code = int(match["wide"], 16)
        return json.dumps(chr(code))[1:-1] if code <= 0x10FFFF else f"\\\\U{match['wide']}"
    if match["escaped"]:
        char = match["escaped"]
        return _ESCAPES.get(char) or ("" if char == "\n" else "\\\\" + json.dumps(char)[1:-1])
    return json.dumps(match["raw"])[1:-1]
