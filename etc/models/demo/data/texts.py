"""Read the text files beside this module: words, forms of questions and answers."""

import csv
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent


@cache
def toml(name: str) -> dict[str, Any]:
    """Return the content of a .toml file."""
    return tomllib.loads((_HERE / f"{name}.toml").read_text(encoding="utf-8"))


@cache
def questions(module: str) -> dict[str, list[str]]:
    """Return the forms in which one module asks its questions."""
    forms: dict[str, list[str]] = toml("questions")[module]
    return forms


@cache
def table(name: str) -> list[list[str]]:
    """Return the rows of a .tsv file below its head."""
    with (_HERE / f"{name}.tsv").open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[1:]
