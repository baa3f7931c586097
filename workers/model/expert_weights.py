"""ExpertWeights: the experts of one layer one by one, rounded or packed, for a CPU.

transformers stacks plain experts; these are read beside it, each straight into its own form. Files
have them one by one, or all of a layer in two tensors.
"""

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from workers.model.quantization.packed_weights import State

Read = Callable[[], Any]

_FIRST = re.compile(r"(.*\.mlp\.experts)\.(?:0\.gate_proj\.weight|gate_up_proj)")


class ExpertWeights(NamedTuple):
    """Of each expert, what gives gate and up side by side, and what gives its output."""

    gate_up: Sequence[Sequence[Any]]
    down: Sequence[Any]


class _Slice(NamedTuple):
    """One expert's weight in a tensor that holds all of a layer."""

    stack: Any
    expert: int

    def __getitem__(self, index: Any) -> Any:
        return self.stack[self.expert][index]


def take_experts(state: State, reader: Callable[[Any], Read | None]) -> dict[str, Read]:
    """Take layers' experts out of a state; return what reads them, by the names of their modules.

    `reader` returns what reads one weight, or None of one that transformers is to read; a layer is
    taken if all of its are.
    """
    taken: dict[str, Read] = {}
    for module in [found[1] for found in map(_FIRST.fullmatch, state) if found]:
        experts = _one_by_one(state, module) or _stacked(state, module)
        reads = [([reader(part) for part in gate_up], reader(down)) for gate_up, down in experts]
        if all(all(gate_up) and down for gate_up, down in reads):
            for name in [name for name in state if name.startswith(f"{module}.")]:
                del state[name]
            taken[module] = partial(_read_layer, reads)
    return taken


def _one_by_one(state: State, module: str) -> list[tuple[list[Any], Any]]:
    found: list[tuple[list[Any], Any]] = []
    while f"{module}.{len(found)}.gate_proj.weight" in state:
        names = [f"{module}.{len(found)}.{part}_proj.weight" for part in ("gate", "up", "down")]
        gate, up, down = (state[name] for name in names)
        found.append(([gate, up], down))
    return found


def _stacked(state: State, module: str) -> list[tuple[list[Any], Any]]:
    gate_up, down = state[f"{module}.gate_up_proj"], state[f"{module}.down_proj"]
    num_experts = gate_up.get_shape()[0]
    return [([_Slice(gate_up, i)], _Slice(down, i)) for i in range(num_experts)]


def _read_layer(reads: Sequence[tuple[Sequence[Any], Any]]) -> ExpertWeights:
    gate_up = [[read() for read in parts] for parts, _ in reads]
    return ExpertWeights(gate_up, [read() for _, read in reads])
