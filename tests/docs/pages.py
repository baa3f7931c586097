"""The pages: the front page, how to contribute, and `docs/`, each in English and Chinese.

Knows where they lie, and takes code, links and headings out of their Markdown. Its anchors are
GitHub's.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^()\s]+)\)|<(https?://[^>]+)>")


@dataclass(frozen=True)
class Page:
    """One page, by its path from the project's folder."""

    name: str

    @property
    def path(self) -> Path:
        return ROOT / self.name

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def prose(self) -> str:
        """Return the text without its blocks of code."""
        return _FENCED.sub("", self.text)

    @property
    def is_chinese(self) -> bool:
        return self.name.endswith(".zh.md") or self.name.startswith("docs/zh/")

    @property
    def twin(self) -> "Page":
        """Return the same page in the other language."""
        if self.name.startswith("docs/"):
            other = self.path.name if self.is_chinese else f"zh/{self.path.name}"
            return Page(f"docs/{other}")
        plain = self.name.removesuffix(".zh.md").removesuffix(".md")
        return Page(plain + (".md" if self.is_chinese else ".zh.md"))

    @property
    def headings(self) -> list[tuple[str, str]]:
        """Return the marks and the words of each heading."""
        return re.findall(r"^(#+) (.*)$", self.prose, re.MULTILINE)

    @property
    def anchors(self) -> set[str]:
        return {anchor(words) for _, words in self.headings}

    @property
    def links(self) -> list[str]:
        return [here or outside for here, outside in _LINK.findall(self.prose)]

    def blocks(self, *languages: str) -> list[str]:
        """Return the blocks of code in these languages."""
        return [code for language, code in _FENCED.findall(self.text) if language in languages]

    def commands_of_first_block(self) -> list[str]:
        return joined(self.blocks("bash")[0])

    def commands(self) -> Iterator[str]:
        """Yield each command of a shell, in blocks and between backticks, without its comment."""
        for block in self.blocks("bash"):
            for line in joined(block):
                yield re.sub(r"\s+#\s.*$", "", line)
        yield from re.findall(r"`((?:curl|bin/|qwenapi |\.venv/|python )[^`]+)`", self.prose)


def anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def joined(block: str) -> list[str]:
    """Return the commands of a block; one whose quote is open goes on in the next line."""
    commands: list[str] = []
    for line in block.splitlines():
        if commands and commands[-1].count("'") % 2:
            commands[-1] += "\n" + line
        elif line.strip():
            commands.append(line)
    return commands


def pages() -> list[Page]:
    files = [*ROOT.glob("README*.md"), *ROOT.glob("CONTRIBUTING*.md"), *ROOT.glob("docs/**/*.md")]
    return [Page(file.relative_to(ROOT).as_posix()) for file in sorted(files)]


def english() -> list[Page]:
    return [page for page in pages() if not page.is_chinese]
