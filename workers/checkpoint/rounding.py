"""Rounding: in how few bits plain weights may be held when a setting asks for it."""

from typing import Literal

Rounding = Literal["fp8", "int8", "int4"]
ROUNDINGS: tuple[Rounding, ...] = ("fp8", "int8", "int4")
# What only a CPU multiplies by.
FOR_CPUS: tuple[Rounding, ...] = ("int8", "int4")
# About how many bits a number then takes, with its part of the scales.
ROUNDED_BITS: dict[str, float] = {"fp8": 8, "int8": 8, "int4": 4.2}
