"""Eight units in a row: what training data and held-out files must not share.

A unit is one Chinese character, or one run of letters or digits in lower case; nothing else counts.
"""

import csv
import re
from pathlib import Path

Grams = frozenset[tuple[str, ...]]
_LENGTH = 8
_UNIT = re.compile(r"[\u3400-\u9fff]|[^\W_\u3400-\u9fff]+")


def grams_of(text: str) -> set[tuple[str, ...]]:
    """Return all runs of eight units in a text."""
    units = _UNIT.findall(text.lower())
    return {tuple(units[i : i + _LENGTH]) for i in range(len(units) - _LENGTH + 1)}


def heldout_grams(directory: Path) -> Grams:
    """Return the 8-grams of the held-out headlines and paraphrases."""
    grams: set[tuple[str, ...]] = set()
    for name, column in (("headlines.tsv", "headline"), ("paraphrases.tsv", "prompt")):
        with (directory / name).open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
                for part in row[column].split(" ‖ "):
                    grams |= grams_of(part)
    return frozenset(grams)
