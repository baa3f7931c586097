"""ModelAliases: more names for served models, single ones and patterns such as `claude-*`."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from workers.errors import ConfigError


@dataclass(frozen=True)
class ModelAliases:
    """Pairs of a name or pattern and the served name it is pointed at; the first that fits holds.

    A served name is never taken for an alias.
    """

    pairs: tuple[tuple[str, str], ...]
    served: tuple[str, ...]

    @classmethod
    def of(cls, texts: Sequence[str], served: Sequence[str]) -> "ModelAliases":
        """Return the aliases of `NAME=SERVED` each; raise ConfigError for what points nowhere."""
        pairs = []
        for text in texts:
            name, _, target = text.partition("=")
            if not name or target not in served:
                raise ConfigError(
                    f"--model-alias {text}: must be NAME=SERVED, where SERVED is one of:"
                    f" {', '.join(served)}"
                )
            pairs.append((name, target))
        return cls(tuple(pairs), tuple(served))

    @property
    def names(self) -> tuple[str, ...]:
        """Return the single names; a pattern is none."""
        return tuple(name for name, _ in self.pairs if not set(name) & set("*?["))

    def target(self, name: str) -> str:
        """Return the served name that a name stands for, itself if it is no alias."""
        if name in self.served:
            return name
        return next((target for alias, target in self.pairs if fnmatchcase(name, alias)), name)
