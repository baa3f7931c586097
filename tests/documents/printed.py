"""The snippets the documents print, cut out of their texts and pointed at a test's server."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
# Typing accidents of the texts: an address that became a Markdown link.
LINK = re.compile(r"\[(http://[^\]]+)\]\(\1\)")
ADDRESSES = re.compile(
    r"http://(?:10\.3\.35\.21:8001|localhost:2025|localhost:8000|172\.18\.15\.27:8000|10\.9\.3\.131:8000)"
)


@dataclass(frozen=True)
class Snippet:
    """One fenced block of a document."""

    document: str
    language: str
    text: str

    def pointed_at(self, url: str) -> str:
        return ADDRESSES.sub(url, LINK.sub(r"\1", self.text))


def snippets(number: str) -> list[Snippet]:
    """Return all blocks of a document, in order; skip the test where the texts are not at hand."""
    folder = os.environ.get("QWENAPI_DOCUMENTS")
    if not folder:
        pytest.skip("QWENAPI_DOCUMENTS does not name the folder of the documents")
    (path,) = Path(folder).glob(f"{number}_*.md")
    return [Snippet(number, *found.groups()) for found in FENCE.finditer(path.read_text("utf-8"))]


def only(number: str, holding: str) -> Snippet:
    """Return the one block of a document that holds a text."""
    (found,) = [snippet for snippet in snippets(number) if holding in snippet.text]
    return found
