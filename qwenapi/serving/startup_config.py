"""StartupConfig: what a start reads, and step 1 of a reload: settings and profiles, as JSON.

Both are read from their files by the code on disk at that moment, after an upgrade newer than the
supervisor's; so what a reader does not know is left out, and what it misses has its default.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

import orjson

from qwenapi.observability.tracing import check_endpoint
from qwenapi.settings.profile import Profile
from qwenapi.settings.sources import load, load_profiles
from qwenapi.settings.table import Settings

Restored = TypeVar("Restored")


@dataclass(frozen=True)
class StartupConfig:
    """The settings of one start, and the profiles in force."""

    settings: Settings
    profiles: tuple[Profile, ...]

    @classmethod
    def read(cls, flags: Mapping[str, Any]) -> "StartupConfig":
        """Return what files, environment and flags say now; raise ConfigError."""
        settings = load(flags)
        if settings.otel_endpoint:
            check_endpoint(settings.otel_endpoint)
        return cls(settings, load_profiles(settings, flags))

    def to_json(self) -> bytes:
        return orjson.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: bytes) -> "StartupConfig":
        facts = orjson.loads(text)
        return cls(
            _restore(Settings, facts["settings"]),
            tuple(
                _restore(Profile, profile | {"settings": _restore(Settings, profile["settings"])})
                for profile in facts["profiles"]
            ),
        )


def _restore(kind: Callable[..., Restored], values: Mapping[str, Any]) -> Restored:
    """Return a dataclass as it was before it became JSON, which knows no tuples."""
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    return kind(
        **{k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in known}
    )
