"""Gets the pages' vendored files again, and verifies them against README.md's table.

Knows no registry: `npm pack` asks npm's own. A file whose sum differs is never written.
"""

import argparse
import hashlib
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
_ROW = re.compile(
    r"^\| `([^`]+)` \| `([^`]+)` \| ([^ |]+) \| `([^`]+)` \| `([0-9a-f]{64})` \|$", re.MULTILINE
)


class VendoredFile(NamedTuple):
    """One vendored file: its name here, and where it comes from."""

    file: str
    package: str
    version: str
    member: str
    sha256: str


def rows() -> Iterator[VendoredFile]:
    """Yield the table of README.md."""
    for found in _ROW.finditer((HERE / "README.md").read_text(encoding="utf-8")):
        yield VendoredFile(*found.groups())


def differing() -> list[str]:
    """Return the names of the files that are missing or not what the table says."""
    return [
        row.file
        for row in rows()
        if not (HERE / row.file).is_file() or _sum((HERE / row.file).read_bytes()) != row.sha256
    ]


def main() -> int:
    """Fetch, check or print; return 1 when a sum differs."""
    parser = argparse.ArgumentParser(description="Get the vendored files again.")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--check", action="store_true", help="compare the files here, fetch nothing")
    mode.add_argument("--print", action="store_true", help="print the rows with the sums found")
    parsed = parser.parse_args()
    if parsed.check:
        wrong = differing()
    else:
        with tempfile.TemporaryDirectory() as folder:
            wrong = [row.file for row in rows() if not _fetch(row, folder, parsed.print)]
    for file in wrong:
        print(f"{file}: not the file whose sum README.md gives", file=sys.stderr)
    return 1 if wrong else 0


def _fetch(row: VendoredFile, folder: str, is_print: bool) -> bool:
    """Write the file, or print its row; return False where its sum differs."""
    with tarfile.open(_pack(f"{row.package}@{row.version}", folder)) as archive:
        member = archive.extractfile(f"package/{row.member}")
        content = member.read() if member else b""
    if is_print:
        print(f"| `{row.file}` | `{row.package}` | {row.version} | `{row.member}` ", end="")
        print(f"| `{_sum(content)}` |")
        return True
    if _sum(content) != row.sha256:
        return False
    (HERE / row.file).parent.mkdir(exist_ok=True)
    (HERE / row.file).write_bytes(content)
    return True


@cache
def _pack(package: str, folder: str) -> Path:
    command = ["npm", "pack", "--silent", "--pack-destination", folder, package]
    packed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return Path(folder) / packed.stdout.split()[-1]


def _sum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
