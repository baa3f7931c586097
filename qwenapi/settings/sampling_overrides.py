"""Sampling defaults in the place of the model's, read from their setting."""

from qwenapi.settings.table import Settings
from workers.checkpoint.overrides import json_object
from workers.checkpoint.sampling_defaults import SAMPLING_DEFAULTS, sampling_defaults
from workers.errors import ConfigError


def sampling_overrides(settings: Settings) -> dict[str, float]:
    """Return the sampling defaults that are set; raise ConfigError of a wrong one."""
    name = "override_generation_config"
    said = json_object(name, settings.override_generation_config)
    for key in said.keys() - {*SAMPLING_DEFAULTS, "do_sample"}:
        raise ConfigError(
            f"{name}: {key!r} is no sampling field; there are {', '.join(SAMPLING_DEFAULTS)}"
        )
    return sampling_defaults(said, name, "mend the setting")
