"""StartupConfig: the settings and profiles a start reads, as JSON between processes.

Both are read from their files by the code on disk at that moment, after an upgrade newer than the
supervisor's; so what a reader does not know is left out, and what it misses has its default.
"""

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, TypeVar

import orjson

from qwenapi.cluster.wire_tls import wire_tls
from qwenapi.observability.tracing import check_endpoint
from qwenapi.settings.profile import Profile
from qwenapi.settings.sources import load, load_profiles
from qwenapi.settings.table import Settings
from workers.errors import ConfigError

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
        wire_tls(settings)  # reading is what refuses
        return cls(settings, load_profiles(settings, flags))

    def to_json(self) -> bytes:
        return orjson.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: bytes) -> "StartupConfig":
        """Return what `to_json` wrote, by this version or another; raise ConfigError otherwise.

        What else the writing process has printed stands on lines of its own.
        """
        for line in reversed(text.splitlines()):
            try:
                facts = orjson.loads(line)
            except orjson.JSONDecodeError:
                continue
            if isinstance(facts, dict) and "settings" in facts:
                return cls._from_facts(facts)
        raise ConfigError("the settings that were read did not arrive; restart to read them")

    @classmethod
    def _from_facts(cls, facts: Mapping[str, Any]) -> "StartupConfig":
        try:
            return cls(
                _restore(Settings, facts["settings"]),
                tuple(
                    _restore(
                        Profile, profile | {"settings": _restore(Settings, profile["settings"])}
                    )
                    for profile in facts["profiles"]
                ),
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ConfigError(
                "the settings were read by a version that this one does not understand"
                f" ({type(error).__name__}: {error}); restart to change versions"
            ) from error


def _restore(kind: type[Restored], values: Mapping[str, Any]) -> Restored:
    """Return a dataclass as it was before it became JSON, which knows no tuples."""
    if not isinstance(values, Mapping):
        raise TypeError(f"{kind.__name__} is {type(values).__name__}")
    restored: dict[str, Any] = {}
    for field in fields(kind):  # type: ignore[arg-type]
        if field.name in values:
            value = values[field.name]
            restored[field.name] = tuple(value) if isinstance(value, list) else value
            _require_like(field.name, restored[field.name], field.default)
    return kind(**restored)


def _require_like(name: str, value: Any, default: Any) -> None:
    """Raise TypeError if a value is of another kind than its field's default."""
    is_known = default is not None and default is not MISSING and value is not None
    wanted = (int, float) if isinstance(default, float) else type(default)
    if is_known and not isinstance(value, wanted):
        raise TypeError(f"{name} is {type(value).__name__}")
