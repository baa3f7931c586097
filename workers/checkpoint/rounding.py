"""Rounding: in how few bits plain weights may be held when a setting asks for it."""

import math
from typing import Literal

from workers.checkpoint.weights import Weights

Rounding = Literal["fp8", "int8", "int4"]
ROUNDINGS: tuple[Rounding, ...] = ("fp8", "int8", "int4")
# What only a CPU multiplies by.
FOR_CPUS: tuple[Rounding, ...] = ("int8", "int4")
# About how many bits a number then takes, with its part of the scales.
ROUNDED_BITS: dict[str, float] = {"fp8": 8, "int8": 8, "int4": 4.2}


def num_rounded(weights: Weights) -> int:
    """Return how many numbers the layers' linears and experts have, which are what is rounded."""
    linears = {f"{module}.weight" for module in weights.decoder_linears}
    return sum(
        math.prod(shape)
        for name, shape in weights.shapes.items()
        if name in linears or ".experts." in name
    )
