"""Accounts: what callers were told of tokens, against what the metrics store has counted.

A whole answer says its tokens, and they are counted exactly. Of one that broke off, by its caller
or by a fault, at most what was asked for is counted: so a profile whose answers were all whole
agrees to the token, and one that callers leave within these bounds.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from qwenapi.metrics.snapshot import Counts

PROMPT, COMPLETION = "prompt_tokens", "completion_tokens"


class Range(NamedTuple):
    """How many tokens there were, at least and at most."""

    least: int
    most: int

    @classmethod
    def exactly(cls, count: int) -> "Range":
        return cls(count, count)

    @classmethod
    def total(cls, ranges: Iterable["Range"]) -> "Range":
        pairs = list(ranges)
        return cls(sum(one.least for one in pairs), sum(one.most for one in pairs))

    def __contains__(self, count: object) -> bool:
        return isinstance(count, int) and self.least <= count <= self.most


class Told(NamedTuple):
    """What one caller knows of his request: its profile, its tokens, and whether all of it came."""

    profile: str
    is_whole: bool
    prompt: Range
    completion: Range


@dataclass(frozen=True)
class Account:
    """Both sides of one profile: what callers were told, and what was counted of their requests."""

    told: Sequence[Told]
    counts: Counts

    def check(self) -> list[str]:
        """Return what does not add up.

        A process that is killed between the last byte of an answer and its own note of it counts it
        as lost.
        """
        told, counts = self.told, self.counts
        whole = [one for one in told if one.is_whole]
        num_lost = counts["failed.worker_lost"]
        least = 0 if num_lost else sum(one.completion.least for one in whole)
        done = Range(least, sum(one.completion.most for one in told))
        claims = {
            "accepted = ended": counts["accepted"] == counts.ended,
            "accepted = started": counts["accepted"] == counts["started"],
            "failed = its reasons": counts["failed"] == sum(counts.failures.values()),
            "accepted": counts["accepted"] in Range(len(whole), len(told)),
            "successful": counts["successful"] in Range(len(whole) - num_lost, len(told)),
            "cancelled": counts["cancelled"] in Range(0, len(told) - len(whole)),
            "tokens of successful": int(counts.distribution("completion").sum) in done,
            PROMPT: counts[PROMPT] in Range.total(one.prompt for one in told),
            COMPLETION: counts[COMPLETION] in Range.total(one.completion for one in told),
        }
        return [claim for claim, holds in claims.items() if not holds]

    @property
    def figures(self) -> dict[str, Any]:
        """Return both sides, for a report."""
        counts, names = self.counts, ("accepted", "successful", "failed", "cancelled")
        return {
            "asked": len(self.told),
            "whole": sum(one.is_whole for one in self.told),
            **{name: counts[name] for name in names},
            "failures": counts.failures,
            PROMPT: {
                "counted": counts[PROMPT],
                "told": self._told(one.prompt for one in self.told),
            },
            COMPLETION: {
                "counted": counts[COMPLETION],
                "told": self._told(one.completion for one in self.told),
            },
        }

    @staticmethod
    def _told(ranges: Iterable[Range]) -> int | list[int]:
        total = Range.total(ranges)
        return total.least if total.least == total.most else list(total)
