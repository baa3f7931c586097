"""HubName: a model's name on a hub, `Qwen/Qwen3-0.6B` or `Qwen/Qwen3-0.6B@revision`.

Knows how a name is told from a path. Refuses to know hubs.
"""

import os
import re
from dataclasses import dataclass

_FORM = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([^\s@]+))?")


@dataclass(frozen=True)
class HubName:
    """`revision` is a branch, a tag or a commit; empty: the hub's own choice."""

    repo: str
    revision: str = ""

    @classmethod
    def of(cls, model: str) -> "HubName | None":
        """Return the name that a setting gives, or None if it is a path; what lies there wins."""
        found = _FORM.fullmatch(model)
        if found is None or os.path.lexists(model):
            return None
        return cls(found[1], found[2] or "")

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}" if self.revision else self.repo
