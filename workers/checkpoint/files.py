"""Read a model folder's files as bytes and JSON, or say what a wrong one is instead.

Every refusal names the file, says what it is and what to do.
"""

import json
from pathlib import Path
from typing import Any

from workers.errors import ModelError

# First bytes of what is found where a whole file should be.
_KINDS = (
    (
        b"version https://git-lfs.github.com/spec",
        "a Git LFS pointer, not the file itself; run `git lfs pull` in the folder, or download"
        " the file again",
    ),
    (b"GGUF", "a GGUF file, which llama.cpp reads; take the model's *.safetensors files"),
    (b"PK\x03\x04", "a PyTorch pickle, which may run code; take the model's *.safetensors files"),
    (b"<", "a page of HTML or XML, not the file itself; download the file again"),
)


def what_it_is(file: Path) -> str | None:
    """Return what a file is that cannot be read as what its name says, and the remedy, if known."""
    with file.open("rb") as stream:
        start = stream.read(64).lstrip()
    return next((text for magic, text in _KINDS if start.startswith(magic)), None)


def refuse_other_kind(file: Path) -> None:
    """Raise ModelError if a file cannot be opened, or is known to be something else."""
    try:
        known = what_it_is(file)
    except OSError as error:
        raise _unreadable(file, error) from error
    if known:
        raise ModelError(f"{file}: {known}")


def read_bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise _unreadable(file, error) from error


def read_json(file: Path, *, optional: bool = False) -> dict[str, Any]:
    """Return the object that a JSON file holds; an empty one if `optional` and not there."""
    if optional and not file.exists():
        return {}
    try:
        value = json.loads(read_bytes(file).decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        known = what_it_is(file)
        raise ModelError(
            f"{file}: {known}" if known else f"{file}: not valid JSON: {error}; download it again"
        ) from error
    if not isinstance(value, dict):
        raise ModelError(f"{file}: not a JSON object; take the file of the published model")
    return value


def _unreadable(file: Path, error: OSError) -> ModelError:
    return ModelError(f"{file}: {error.strerror}; mend the file or its permissions")
