"""Answers on file: the bytes of a body, what differs from call to call replaced by a placeholder.

`WRITE_GOLDEN=1 pytest tests/documents/test_golden.py` writes them anew; look at the difference
before you keep it: it is what callers will see change.
"""

import os
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).with_name("golden")
_STRING = rb'"(?:[^"\\]|\\.)+"'
_UUID = rb"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_WORDS = rb'((?:"role":"assistant","content"|"delta":{"content"|"text"|"result"):)'
_MASKS = [
    (rb"cmpl-[0-9a-f]{32}", rb"cmpl-<ID>"),
    (rb'("(?:created|created_at|used_at)":)[\d.]+', rb"\g<1>0"),
    (rb"(conversation_id:)%b(\n---\n)(?s:.+)" % _UUID, rb"\g<1><UUID>\g<2><TEXT>"),
    (_UUID, rb"<UUID>"),
    (_WORDS + _STRING, rb'\g<1>"<TEXT>"'),
    (
        rb'(?<="generated_texts":\[).+?(?=\],"parameters")',
        lambda found: re.sub(_STRING, b'"<TEXT>"', found[0]),
    ),
]


def masked(body: bytes) -> bytes:
    """Return a body without what is new in every answer: ids, times, and the model's words."""
    for pattern, placeholder in _MASKS:
        body = re.sub(pattern, placeholder, body)
    return body


def check(name: str, body: bytes) -> None:
    """Compare a body with the one on file; or, when asked to, put it there."""
    path = FOLDER / name
    if os.environ.get("WRITE_GOLDEN"):
        path.write_bytes(masked(body))
        pytest.skip(f"{name} is written, not compared")
    assert masked(body) == path.read_bytes()
