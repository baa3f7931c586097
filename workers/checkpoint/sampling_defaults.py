"""Sampling defaults: the fields of generation_config.json that fill in a request, checked.

Fields as transformers names them, from the file or from a setting. Refuses to know who asks.
"""

from collections.abc import Mapping
from typing import Any

from workers.errors import ModelError

# The fields, and the values they may have.
SAMPLING_DEFAULTS: Mapping[str, tuple[float, float]] = {
    "temperature": (0, 100),
    "top_p": (0, 1),
    "top_k": (-1, 2**31 - 1),  # 0 and -1: no limit
    "min_p": (0, 1),
    "repetition_penalty": (1e-3, 1e3),
    "max_new_tokens": (1, 2**31 - 1),
}
_WHOLE = ("top_k", "max_new_tokens")
_OF_CHOICE = ("top_p", "top_k", "min_p")


def sampling_defaults(said: Mapping[str, Any], place: str, remedy: str) -> dict[str, float]:
    """Return the sampling fields of an object; others are left out. With `do_sample: false` the
    best token is taken, as penalties leave it. Raise ModelError of `place` with `remedy`.
    """
    found: dict[str, float] = {}
    for name, (least, most) in SAMPLING_DEFAULTS.items():
        value = said.get(name)
        if value is None:
            continue
        is_number = type(value) is int or (type(value) is float and name not in _WHOLE)
        if not is_number or not least <= value <= most:
            kind = "whole number" if name in _WHOLE else "number"
            raise ModelError(
                f"{place}: {name} is {value!r}, not a {kind} from {least:g} to {most:g}; {remedy}"
            )
        found[name] = float(max(value, 0))
    if said.get("do_sample") is False:
        found = {name: value for name, value in found.items() if name not in _OF_CHOICE}
        found["temperature"] = 0.0
    return found
