"""The files of the pages, read once: name, bytes, content type, ETag."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

STATIC = Path(__file__).resolve().parent / "static"
# What is served, and as what; files of other kinds in the folder are for its maintainers.
CONTENT_TYPES: Mapping[str, str] = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}


@dataclass(frozen=True)
class StaticFile:
    """One file as it is sent."""

    content: bytes
    content_type: str

    @cached_property
    def etag(self) -> str:
        return hashlib.sha256(self.content).hexdigest()[:32]


def load_static_files(folder: Path = STATIC) -> dict[str, StaticFile]:
    """Return every file of the folder by its name under `/ui/`; symbolic links are not followed."""
    files = (file for file in folder.rglob("*") if file.suffix in CONTENT_TYPES)
    return {
        file.relative_to(folder).as_posix(): StaticFile(
            file.read_bytes(), CONTENT_TYPES[file.suffix]
        )
        for file in files
        if file.is_file() and not file.is_symlink()
    }
