"""The settings of an engine as plain data, from its supervisor to the node it is placed on."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from qwenapi import __version__
from qwenapi.settings.table import Settings
from workers.errors import ConfigError


def job_settings(settings: Settings) -> dict[str, Any]:
    """Return them for one engine: the others are elsewhere. No key is for engines."""
    alone = replace(settings, data_parallel_size=1, api_key="")
    return {"version": __version__, "settings": asdict(alone)}


def restored(job: Mapping[str, Any]) -> Settings:
    """Return the settings again; raise ConfigError where another version has sent them."""
    if job["version"] != __version__:
        raise ConfigError(
            f"qwenapi {__version__} is installed on this node, and {job['version']} asks for the"
            " engine: install the same version on every machine"
        )
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in job["settings"].items()
    }
    return Settings(**values)
