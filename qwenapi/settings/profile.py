"""Profile: how one kind of caller wants to be served, data of a TOML file's table `[api]`.

Knows names, dialect, ranges and constants; limits and defaults are settings like any others.
Refuses to know views. Several profiles may share one port: by path first, then by model.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from qwenapi.errors import ModelNotFound, Wording
from qwenapi.settings.model_aliases import ModelAliases
from qwenapi.settings.queue_limits import QueueLimits
from qwenapi.settings.table import Settings
from workers.errors import ConfigError

Interface = Literal["openai", "coder", "generate", "anthropic"]
DialectName = Literal["openai", "fastapi", "flat", "anthropic"]
HealthBody = Literal["plain", "healthy", "gpu"]
MetricsBody = Literal["text", "json"]
UnknownFields = Literal["ignore", "refuse"]
# Spellings of the release before, which still work with a warning: key, old value, new value.
_RENAMED = {("interface", "classic"): "generate"}
_CHOICES = {
    "interface": get_args(Interface),
    "dialect": get_args(DialectName),
    "health": get_args(HealthBody),
    "metrics": get_args(MetricsBody),
    "unknown_fields": get_args(UnknownFields),
}


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One profile in force. `names` are the models callers may ask it for, the answered one first.

    `max_tokens_cap` 0: none; with `clamp` what is above a range is cut, otherwise it is refused.
    Where neither a request nor the setting says max_tokens, `chat_max_tokens` and
    `completion_max_tokens` do; 0: the room left. `as_openai`: errors and bodies have OpenAI's own
    words and keys also where the documents print others or none.
    """

    name: str
    settings: Settings
    interface: Interface = "openai"
    dialect: DialectName = "openai"
    names: tuple[str, ...] = ()
    requires_model: bool = False
    malformed_status: int = 400
    unknown_fields: UnknownFields = "ignore"
    as_openai: bool = False
    chat_max_tokens: int = 0
    completion_max_tokens: int = 16
    max_temperature: float = 2.0
    max_tokens_cap: int = 0
    clamp: bool = False
    logprobs_key: bool = True
    thinking: bool | None = None
    cors_origins: tuple[str, ...] = ()
    health: HealthBody = "plain"
    metrics: MetricsBody = "text"  # what /metrics answers to a caller that names no format
    service: str = "qwenapi"  # what the reports call the service
    title: str = "qwenapi"
    version: str = "1.0.0"
    model_title: str = ""
    new_for_unknown: bool = False  # conversations: an unknown id begins a new one, no 404
    repeats_preface: bool = False  # conversations: their id begins later turns' streams too
    rate_limit: str = "无限制"
    failure_prefix: str = ""
    loading_message: str = ""
    busy_message: str = ""

    @classmethod
    def of(cls, name: str, settings: Settings, facts: Mapping[str, Any], place: str) -> "Profile":
        """Return the profile a table `[api]` describes; raise ConfigError naming a wrong key."""
        known = {field.name: field.default for field in fields(cls) if field.kw_only}
        values: dict[str, Any] = {}
        for key, value in facts.items():
            if key not in known or key in ("name", "settings"):
                raise ConfigError(f"{place}: [api] has no key {key}")
            values[key] = _checked(f"{place}: api.{key}", key, known[key], value)
        names = values.pop("names", ()) or settings.served_names
        return cls(name=name, settings=settings, names=names, **values)

    @property
    def canonical(self) -> str:
        """Return the name replies carry, whichever alias was asked for."""
        return self.names[0]

    @property
    def description(self) -> dict[str, str]:
        """Return what the qwen2 document's service says of itself."""
        return {
            "name": self.title,
            "version": self.version,
            "status": "active",
            "model": self.model_title or self.canonical,
        }

    @property
    def limits(self) -> QueueLimits:
        """Return how many of this profile's requests may run and wait together."""
        settings = self.settings
        return QueueLimits(
            group=self.name,
            max_running=settings.limits_max_running,
            max_waiting=settings.limits_max_waiting,
            queue_timeout=settings.limits_queue_timeout,
        )

    def wording(self, request_id: str) -> Wording:
        """Return this profile's own words for errors."""
        return Wording(
            request_id=request_id,
            malformed_status=self.malformed_status,
            as_openai=self.as_openai,
            failure_prefix=self.failure_prefix,
            loading_message=self.loading_message,
            busy_message=self.busy_message,
        )


class Profiles:
    """The profiles of one HTTP half, the most general one last."""

    def __init__(self, profiles: Sequence[Profile]) -> None:
        self._all = tuple(profiles)
        self._openai = tuple(p for p in profiles if p.interface == "openai")
        settings = self._all[-1].settings
        self._aliases = ModelAliases.of(settings.model_alias, settings.served_names)

    def __iter__(self) -> Iterator[Profile]:
        return iter(self._all)

    def of_interface(self, interface: str | None) -> Profile | None:
        return next((p for p in self._all if p.interface == interface), None)

    @property
    def is_single(self) -> bool:
        return len(self._all) == 1

    @property
    def for_health(self) -> Profile:
        """Return whose body `/health` has: the fullest, as its readers find theirs within it."""
        return next((p for p in self._all if p.health == "gpu"), self._all[0])

    @property
    def for_metrics(self) -> Profile:
        """Return whose service the reports are about, and whose body `/metrics` has."""
        return next((p for p in self._all if p.metrics == "json"), self._all[0])

    @property
    def unread(self) -> Profile:
        """Return whose dialect answers before a model could be read: the only one, or OpenAI's."""
        plain = (p for p in self._openai if p.dialect == "openai")
        return self._all[0] if len(self._all) == 1 else next(plain, self._all[-1])

    @property
    def model_names(self) -> tuple[str, ...]:
        """Return the names OpenAI's callers may use: the served one first, then the aliases."""
        names = [name for p in reversed(self._openai) for name in p.names]
        return tuple(dict.fromkeys([*names, *self._aliases.names]))

    def names_for(self, models: Sequence[str]) -> tuple[str, ...]:
        """Return the names a key may use that is for these models; none: all there are."""
        return tuple(name for name in self.model_names if self._is_among(name, models))

    def check_model(self, profile: Profile, models: Sequence[str]) -> None:
        """Raise ModelNotFound if none of a profile's names is among a key's models."""
        if models and not any(name in models for name in profile.names):
            raise ModelNotFound(profile.canonical, self.names_for(models))

    def check_name(self, profile: Profile, name: str, models: Sequence[str]) -> None:
        """Raise ModelNotFound if a profile is not called so, or not for a key of these models."""
        if self._aliases.target(name) in profile.names and self._is_among(name, models):
            return
        names = (*profile.names, *self._aliases.names)
        raise ModelNotFound(name, [one for one in names if self._is_among(one, models)])

    def for_model(self, name: str | None, models: Sequence[str] = ()) -> Profile:
        """Return the profile that serves a name; None is for the first that asks for none. What
        is not among a key's `models` does not exist.
        """
        if name is None:
            candidates = [p for p in self._openai if not p.requires_model] or list(self._openai)
            self.check_model(candidates[0], models)
            return candidates[0]
        for profile in self._openai:
            if self._aliases.target(name) in profile.names and self._is_among(name, models):
                return profile
        raise ModelNotFound(name, self.names_for(models))

    def _is_among(self, name: str, models: Sequence[str]) -> bool:
        """Return whether a key of these models, none meaning all, is for a name or alias."""
        return not models or name in models or self._aliases.target(name) in models


def _checked(place: str, key: str, default: Any, value: Any) -> Any:
    """Return a TOML value as its field's type, or raise ConfigError."""
    if isinstance(default, tuple) and isinstance(value, list):
        value = tuple(value)
    kind = bool if default is None else type(default)
    if renamed := _RENAMED.get((key, str(value))):
        print(f"qwenapi: {place} = {value!r} is now {renamed!r}", file=sys.stderr)
        value = renamed
    if isinstance(value, int) and kind is float:
        value = float(value)
    choices = _CHOICES.get(key)
    if type(value) is not kind or (choices and value not in choices):
        wanted = f"one of {', '.join(choices)}" if choices else f"a {kind.__name__}"
        raise ConfigError(f"{place} = {value!r}: must be {wanted}")
    return value
