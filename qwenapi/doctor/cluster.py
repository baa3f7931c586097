"""Checks of a cluster: what would be placed on which node, and what is missing."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qwenapi.doctor.check import Check, Outcome, failure, ok, warning

NAME = "cluster"


def check_cluster(survey: Mapping[str, Any], num_engines: int) -> Iterator[Check]:
    """Look at what a launcher's survey found; the engines are spread as Ray would spread them."""
    takes, nodes = survey["takes"], survey["nodes"]
    wanted = ", ".join(f"{amount:g} {what}" for what, amount in takes.items())
    placed = spread(takes, nodes, num_engines)
    for node in nodes:
        numbers = [str(engine) for engine, name in enumerate(placed) if name == node["name"]]
        has = ", ".join(f"{node['free'].get(what, 0):g} {what}" for what in takes)
        gets = f"gets engine {', '.join(numbers)}" if numbers else "gets no engine"
        yield ok(f"node {node['name']}", f"{node['host']} has {has} free, {gets}")
        yield from _found(node)
    missing = num_engines - len(placed)
    if missing == num_engines:
        why = f"no node has {wanted} free, which an engine takes of one node"
        yield failure(NAME, "no engine finds a place", why, "add nodes, or ask for less")
    elif missing:
        why = f"each takes {wanted} of one node"
        remedy = f"add nodes, or set --data-parallel-size {len(placed)}"
        yield failure(NAME, f"{missing} of {num_engines} engines find no place", why, remedy)
    else:
        yield ok(NAME, f"{num_engines} engines find places, each of {wanted}")
    if len(nodes) == 1 and num_engines > 1:
        remedy = "add nodes: with the only one all streams are lost"
        yield warning(NAME, "one node", "engines cannot be spread", remedy)


def spread(
    takes: Mapping[str, float], nodes: Sequence[Mapping[str, Any]], num_engines: int
) -> list[str]:
    """Return the node of each engine that finds one, those with the fewest engines first."""
    rooms = {
        node["name"]: min(int(node["free"].get(what, 0) // takes[what]) for what in takes)
        for node in nodes
        if not _is_refused(node)
    }
    given = dict.fromkeys(rooms, 0)
    placed: list[str] = []
    while len(placed) < num_engines:
        free = [name for name in rooms if given[name] < rooms[name]]
        if not free:
            break
        name = min(free, key=lambda name: given[name])
        given[name] += 1
        placed.append(name)
    return placed


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
