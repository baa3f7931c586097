"""Where settings come from: four sources, the later one wins.

    default  <  profile file  <  --config file  <  environment  <  flag

Knows how each source is read and how a mistake in it is named. Refuses to know what settings do.
"""

import difflib
import math
import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from qwenapi.settings.profile import Profile
from qwenapi.settings.sampling_overrides import sampling_overrides
from qwenapi.settings.setting import Setting
from qwenapi.settings.table import Settings, etc_dir, table
from workers.checkpoint.speculative_config import SpeculativeConfig
from workers.errors import ConfigError

INTERNAL_VARIABLES = ("QWENAPI_DOCUMENTS", "QWENAPI_FAULT", "QWENAPI_TEST")
_VLLMS_HUB = "VLLM_USE_MODELSCOPE"
# How alike a word must be to be proposed in an unknown one's place.
MIN_LIKENESS = 0.75
_SWITCH = {"1": True, "true": True, "yes": True, "on": True}
_SWITCH |= {"0": False, "false": False, "no": False, "off": False}


def load(
    flags: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None
) -> Settings:
    """Return the settings of this start; raise ConfigError naming source, value and remedy.

    `flags` are the given flags by field name, `vars()` of what flags.FlagParser parsed; names that
    are no setting are ignored.
    """
    near = _from_environment(os.environ if environ is None else environ) | _from_flags(flags or {})
    config = near.get("config")
    laid_over = _from_file(Path(config), refused=("config",)) if config else {}
    profile = (laid_over | near).get("profile", Settings.profile)
    base = _from_file(profile_path(profile), refused=("config", "profile"))
    settings = Settings(**(base | laid_over | near))
    # Reading is what refuses.
    _ = sampling_overrides(settings), SpeculativeConfig.of(settings.engine_config())
    return settings


def load_profiles(
    settings: Settings,
    flags: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
) -> tuple[Profile, ...]:
    """Return the profiles in force: the one of `settings`, or those its file lists.

    Each has the limits and defaults of its own file under the same environment and flags.
    """
    path = profile_path(settings.profile)
    facts = _facts(path)
    listed = facts.pop("profiles", None)
    if listed is None:
        return (Profile.of(settings.profile, settings, facts, str(path)),)
    profiles = []
    for name in listed:
        own = load({**(flags or {}), "profile": name}, environ)
        place = profile_path(name)
        profiles.append(Profile.of(name, own, _facts(place), str(place)))
    return tuple(profiles)


def profile_path(name: str) -> Path:
    """Return the file of a profile, given its name in etc/profiles or its path."""
    if "/" in name or name.endswith(".toml"):
        return Path(name)
    folder = etc_dir() / "profiles"
    path = folder / f"{name}.toml"
    if not path.is_file():
        known = sorted(file.stem for file in folder.glob("*.toml"))
        raise ConfigError(f"profile {name!r} does not exist; there are: {', '.join(known)}")
    return path


def closest(word: str, known: Iterable[str]) -> str:
    """Return a remedy for an unknown word: the nearest known one, if any is near.

    Dashes in front are alike in all flags, and say nothing.
    """
    bare = {name.lstrip("-"): name for name in known}
    found = difflib.get_close_matches(word.lstrip("-"), list(bare), n=1, cutoff=MIN_LIKENESS)
    near = [bare[name] for name in found]
    return f"did you mean {near[0]}?" if near else "nothing is called like it"


def _from_flags(flags: Mapping[str, Any]) -> dict[str, Any]:
    rows = table()
    given = [(rows[name], raw) for name, raw in flags.items() if name in rows]
    return {
        row.name: _value(row, raw, f"{row.flag} {raw}", is_text=isinstance(raw, str))
        for row, raw in given
    }


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    rows = {row.variable: row for row in table().values()}
    values = _from_vllms_variable(environ)
    for variable, raw in environ.items():
        if not variable.startswith("QWENAPI_") or variable.startswith(INTERNAL_VARIABLES):
            continue
        if variable not in rows:
            raise ConfigError(f"unknown variable {variable}: {closest(variable, rows)}")
        if raw:  # an empty variable is how unit files and shells say "not set"
            row = rows[variable]
            values[row.name] = _value(row, raw, f"{variable}={raw}", is_text=True)
    return values


def _from_vllms_variable(environ: Mapping[str, str]) -> dict[str, Any]:
    """Return what vLLM's own variable for a hub says; QWENAPI_MODEL_SOURCE goes before it."""
    raw = environ.get(_VLLMS_HUB, "")
    if raw and raw.lower() not in _SWITCH:
        raise ConfigError(f"{_VLLMS_HUB}={raw}: must be true or false")
    return {"model_source": "modelscope"} if raw and _SWITCH[raw.lower()] else {}


def _from_file(path: Path, refused: tuple[str, ...]) -> dict[str, Any]:
    rows = {row.key: row for row in table().values() if row.name not in refused}
    values = {}
    document = _read(path)
    if "profile" in refused:
        document.pop("api", None)  # the profile's own facts, which no other source can set
    for key, raw in _flat(document):
        if key not in rows:
            raise ConfigError(f"{path}: unknown key {key}: {closest(key, rows)}")
        row = rows[key]
        values[row.name] = _value(row, raw, f"{path}: {key} = {raw!r}", is_text=False)
    return values


def _facts(path: Path) -> dict[str, Any]:
    facts = _read(path).get("api", {})
    if not isinstance(facts, dict):
        raise ConfigError(f"{path}: api must be a table")
    return facts


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; name a readable TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error


def _flat(document: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in document.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _value(row: Setting, raw: Any, place: str, *, is_text: bool) -> Any:
    try:
        value = _parsed(row, raw) if is_text else _typed(row, raw)
        value = row.synonyms.get(value, value) if isinstance(value, str) else value
        if _is_allowed(row, value):
            return value
    except (ValueError, KeyError):
        pass
    raise ConfigError(f"{place}: {row.key} must be {_expected(row)}")


def _parsed(row: Setting, text: str) -> Any:
    match row.kind:
        case "text":
            return text
        case "texts":
            return tuple(part.strip() for part in text.split(","))
        case "whole number":
            return int(text)
        case "number":
            return float(text)
        case "switch":
            return _SWITCH[text.lower()]


def _typed(row: Setting, raw: Any) -> Any:
    match row.kind, raw:
        case ("switch", bool()) | ("text", str()):
            return raw
        case ("whole number" | "number", bool()):
            pass
        case "whole number", int():
            return raw
        case "number", int() | float():
            return float(raw)
        case "texts", list() if all(isinstance(part, str) for part in raw):
            return tuple(raw)
    raise ValueError(raw)


def _is_allowed(row: Setting, value: Any) -> bool:
    if isinstance(value, tuple):
        return all(value)
    if row.choices:
        return value in row.choices
    if isinstance(value, str | bool):
        return "\0" not in str(value)
    low = -math.inf if row.minimum is None else row.minimum
    high = math.inf if row.maximum is None else row.maximum
    return low <= value <= high and math.isfinite(value)


def _expected(row: Setting) -> str:
    if row.choices:
        return f"one of: {', '.join(row.choices)}"
    if row.kind == "texts":
        return "one or more names, none of them empty"
    if row.kind == "switch":
        return "true or false"
    if row.maximum is not None:
        return f"a {row.kind} from {row.minimum} to {row.maximum}"
    return f"a {row.kind}" + ("" if row.minimum is None else f" of at least {row.minimum}")
