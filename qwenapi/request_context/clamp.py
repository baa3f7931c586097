"""Clamp temperature and token counts of a body to the profile's ranges, before its schema."""

from typing import Any

from qwenapi.settings.profile import Profile


def clamp(body: dict[str, Any], profile: Profile) -> dict[str, int | float]:
    """Cut a body's values to a profile's ranges; return the names cut and what they became."""
    cut: dict[str, int | float] = {}
    temperature = body.get("temperature")
    if isinstance(temperature, int | float) and not isinstance(temperature, bool):
        inside = min(max(temperature, 0.0), profile.max_temperature)
        if inside != temperature:
            cut["temperature"] = inside
    for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
        if type(body.get(name)) is int and body[name] > profile.max_tokens_cap > 0:
            cut[name] = profile.max_tokens_cap
    body.update(cut)
    return cut
