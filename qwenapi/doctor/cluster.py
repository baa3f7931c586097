"""Checks of a cluster: what would be placed on which node, and what is missing."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qwenapi.doctor.check import Check, Outcome, failure, ok, warning
from qwenapi.doctor.placement import Placement, Share
from qwenapi.settings.table import Settings

NAME = "cluster"


def check_cluster(survey: Mapping[str, Any], settings: Settings) -> Iterator[Check]:
    """Look at what a launcher's survey found, the `nodes` and what a rank `takes`; the engines are
    spread as they would be at a start.
    """
    nodes, num_engines = survey["nodes"], settings.data_parallel_size
    placed = spread(survey, settings, may_cross=settings.allow_cross_node_tp)
    for node in nodes:
        has = ", ".join(f"{node['free'].get(what, 0):g} {what}" for what in survey["takes"])
        yield ok(
            f"node {node['name']}", f"{node['host']} has {has} free, gets {_given(node, placed)}"
        )
        yield from _found(node)
    if len(placed) < num_engines:
        yield _missing(survey, settings, len(placed))
    else:
        wanted = in_words(survey["takes"], settings.tensor_parallel_size)
        yield ok(NAME, f"{num_engines} engines find places, each of {wanted}")
    if len(nodes) == 1 and num_engines > 1:
        remedy = "add nodes: with the only one all streams are lost"
        yield warning(NAME, "one node", "engines cannot be spread", remedy)


def spread(
    survey: Mapping[str, Any], settings: Settings, *, may_cross: bool
) -> list[tuple[Share, ...]]:
    """Return the places of those engines that find one."""
    free = {node["name"]: node["free"] for node in survey["nodes"] if not _is_refused(node)}
    placement = Placement(survey["takes"], free)
    tried = (
        placement.place(settings.tensor_parallel_size, may_cross=may_cross)
        for _ in range(settings.data_parallel_size)
    )
    return [shares for shares in tried if shares]


def in_words(takes: Mapping[str, float], num_ranks: int) -> str:
    """Return what so many ranks take."""
    return ", ".join(f"{num_ranks * amount:g} {what}" for what, amount in takes.items())


def _given(node: Mapping[str, Any], placed: Sequence[tuple[Share, ...]]) -> str:
    wholes: list[str] = []
    parts: list[str] = []
    for engine, shares in enumerate(placed):
        first = 0
        for share in shares:
            last = first + share.num_ranks - 1
            ranks = f"ranks {first} to {last}" if last > first else f"rank {first}"
            first = last + 1
            if share.node == node["name"] and len(shares) > 1:
                parts.append(f"{ranks} of engine {engine}")
            elif share.node == node["name"]:
                wholes.append(str(engine))
    given = [f"engine {', '.join(wholes)}"] if wholes else []
    return "; ".join(given + parts) or "no engine"


def _missing(survey: Mapping[str, Any], settings: Settings, num_placed: int) -> Check:
    """Return the failure to place some engines, or all."""
    num_engines, may_cross = settings.data_parallel_size, settings.allow_cross_node_tp
    wanted = in_words(survey["takes"], settings.tensor_parallel_size)
    if num_placed:
        what = f"{num_engines - num_placed} of {num_engines} engines find no place"
        why = f"each takes {wanted}" + ("" if may_cross else " of one node")
        remedy = f"add nodes, or set --data-parallel-size {num_placed}"
    else:
        what = "no engine finds a place"
        why = f"no node has {wanted} free, which an engine takes of one node"
        if may_cross:
            why = f"all nodes together have not {wanted} free, which an engine takes"
        remedy = "add nodes, or ask for less"
    if not may_cross and len(spread(survey, settings, may_cross=True)) > num_placed:
        remedy += ", or let an engine's ranks be on several nodes by --allow-cross-node-tp"
    return failure(NAME, what, why, remedy)


def _found(node: Mapping[str, Any]) -> Iterator[Check]:
    """Yield what the doctor had to say on a node, as far as it is not well."""
    name = f"node {node['name']}"
    if isinstance(node["found"], str):
        remedy = "install qwenapi there, the same version as here, where Ray was started from"
        yield failure(name, "nothing can run there", node["found"], remedy)
        return
    for found in node["found"]:
        outcome = Outcome(found["outcome"])
        if outcome is not Outcome.OK:
            yield Check(name, outcome, found["what"], found["why"], found["remedy"])


def _is_refused(node: Mapping[str, Any]) -> bool:
    found = node["found"]
    return isinstance(found, str) or any(one["outcome"] == Outcome.FAILURE for one in found)
