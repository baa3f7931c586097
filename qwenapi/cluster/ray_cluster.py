"""RayCluster: nodes of a Ray cluster, and places for engines; nothing else knows Ray.

Of a process of its own (launcher_process.py): Ray ends the processes that use it when it sees fit.
What travels through Ray is configuration and signals, never a prompt or a token.
"""

import logging
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray._private.state import available_resources_per_node
from ray.exceptions import GetTimeoutError, RayError
from ray.util import list_named_actors
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import (
    NodeAffinitySchedulingStrategy,
    PlacementGroupSchedulingStrategy,
)

from qwenapi.cluster.engine_host import EngineHost, check_node
from qwenapi.cluster.rank_host import RankHost
from qwenapi.doctor.placement import Placement, Resources, Share
from workers.errors import ConfigError

NAMESPACE = "qwenapi"
CHECK_SECONDS = 60.0
KNOCK_SECONDS = 5.0
NODE_LABEL = "ray.io/node-id"
# An engine waits so long for a node of its own, as what another has left is told bit by bit.
ALONE_SECONDS = 1.0
ASKING_SECONDS = 5.0


@dataclass(frozen=True)
class Node:
    """A machine of the cluster: its name, its address, and what it has left of what it has."""

    id: str
    name: str
    host: str
    total: Mapping[str, float]
    free: Mapping[str, float]


class PlacedEngineHost(EngineHost):
    """An EngineHost that knows where it is: Ray may place it anew before it is there."""

    def start(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Start the engine at this node's address."""
        return super().start({**job, **_place_here()})


class PlacedRankHost(RankHost):
    """A RankHost that knows where it is."""

    def start(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Start the ranks at this node's address."""
        return super().start({**job, **_place_here()})


@dataclass(frozen=True)
class Seat:
    """A bundle of a placement group, on a living node, for so many ranks of an engine."""

    group: PlacementGroup
    bundle: int
    node: Node
    num_ranks: int


class RayCluster:
    """A connection to a cluster; what it has placed ends with it."""

    def __init__(self, address: str) -> None:
        try:
            _knock(address)
            ray.init(address, namespace=NAMESPACE, log_to_driver=True, logging_level=logging.ERROR)
        except (OSError, ValueError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]
            raise ConfigError(
                f"no Ray cluster at {address}: {reason}; start one with ray start --head, and let"
                " this machine join it with ray start --address"
            ) from error

    def nodes(self) -> list[Node]:
        """Return the nodes that are alive, by name."""
        free = available_resources_per_node()
        found = (
            Node(
                node["NodeID"],
                node["NodeName"],
                node["NodeManagerAddress"],
                node["Resources"],
                free.get(node["NodeID"], {}),
            )
            for node in ray.nodes()
            if node["Alive"]
        )
        return sorted(found, key=lambda node: (node.name, node.id))

    def host(self, seat: Seat, name: str, takes: Resources, *, is_first: bool) -> Any:
        """Return a new actor in a seat: the EngineHost of an engine's first rank, or a RankHost.

        `name` is for those who look for engines.
        """
        options: dict[str, Any] = {
            "name": f"{name}:{time.time_ns()}" if is_first else None,
            "num_cpus": seat.num_ranks * takes.get("CPU", 0),
            "num_gpus": seat.num_ranks * takes.get("GPU", 0),
            "scheduling_strategy": PlacementGroupSchedulingStrategy(seat.group, seat.bundle),
            "max_restarts": 0,
        }
        kind = PlacedEngineHost if is_first else PlacedRankHost
        return ray.remote(kind).options(**options).remote()

    def newest_hosts(self, name: str) -> dict[int, tuple[str, Any]]:
        """Return the hosts of a model's engines by number: their names, and the actors."""
        newest: dict[int, str] = {}
        for found in sorted(list_named_actors(), key=lambda found: found.rpartition(":")[2]):
            model, engine, _ = (found.rsplit(":", 2) + ["", ""])[:3]
            if model == name and engine.isdigit():
                newest[int(engine)] = found
        hosts = {}
        for number, found in newest.items():
            try:
                hosts[number] = (found, ray.get_actor(found, namespace=NAMESPACE))
            except ValueError:
                pass  # it has gone meanwhile
        return hosts

    def has_come(self, answer: Any) -> bool:
        """Return whether an actor's answer, or its end, is there."""
        return bool(ray.wait([answer], timeout=0)[0])

    def result(self, answer: Any) -> Any:
        """Return an answer that has come; raise HostLost if there is none and will be none."""
        try:
            return ray.get(answer, timeout=5)
        except RayError as error:
            raise HostLost(str(error).strip().partition("\n")[0]) from error

    def end(self, host: Any) -> None:
        """End an actor, and with it its engine."""
        ray.kill(host)

    def check_nodes(
        self, jobs: Mapping[str, Mapping[str, Any]]
    ) -> Iterator[tuple[Node, list[Any] | str]]:
        """Yield what the doctor found on each node, or why it could not look; `jobs` are by the
        nodes' ids.
        """
        task = ray.remote(check_node)
        asked = [
            (
                node,
                task.options(
                    num_cpus=0,
                    max_retries=0,
                    scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False),
                ).remote(jobs[node.id]),
            )
            for node in self.nodes()
            if node.id in jobs
        ]
        for node, answer in asked:
            try:
                yield node, ray.get(answer, timeout=CHECK_SECONDS)
            except GetTimeoutError:
                yield node, f"no answer within {CHECK_SECONDS:g} s"
            except RayError as error:
                yield node, str(error).strip().rpartition("\n")[2]


def _knock(address: str) -> None:
    """Raise OSError where nobody listens: Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), KNOCK_SECONDS).close()


class HostLost(Exception):
    """An actor has ended, or its node has."""


def resources_of(nodes: Sequence[Node], device: str, threads: int) -> dict[str, float]:
    """Return what each rank of an engine takes of its node: a GPU where there are any, and a CPU
    for each of its threads.
    """
    has_gpus = any(node.total.get("GPU") for node in nodes)
    if device == "cuda" or (device == "auto" and has_gpus):
        return {"GPU": 1, "CPU": 1}
    return {"CPU": max(1, threads)}


def _place_here() -> dict[str, Any]:
    """Return what Ray has given this process, and where."""
    context = ray.get_runtime_context()
    node = next(node for node in ray.nodes() if node["NodeID"] == context.get_node_id())
    return {
        "host": node["NodeManagerAddress"],
        "node": node["NodeName"],
        "num_gpus": context.get_assigned_resources().get("GPU", 0),
    }


def _times(takes: Resources, num_ranks: int) -> dict[str, float]:
    return {what: num_ranks * amount for what, amount in takes.items()}


class SharedSeats:
    """Seats of engines that have a node each, all in one placement group: spread as far as there
    are nodes. Ray finds a new one for an engine whose node is lost, when there is one.
    """

    def __init__(
        self, cluster: RayCluster, takes: Resources, num_ranks: int, num_engines: int
    ) -> None:
        self._cluster, self._num_ranks = cluster, num_ranks
        bundles = [_times(takes, num_ranks) for _ in range(num_engines)]
        self._group = placement_group(bundles, strategy="SPREAD")

    def find(self, engine: int) -> tuple[Seat, ...]:
        """Return an engine's seat; empty while it has none."""
        table = placement_group_table(self._group)
        if table["state"] not in ("CREATED", "RESCHEDULING"):  # the others' places stay theirs
            return ()
        node_id = table["bundles_to_node_id"].get(engine)
        return tuple(
            Seat(self._group, engine, node, self._num_ranks)
            for node in self._cluster.nodes()
            if node.id == node_id
        )

    def release(self, engine: int) -> None:
        """Do nothing: its next life is to have the same."""


@dataclass(frozen=True)
class _Asked:
    group: PlacementGroup
    shares: tuple[Share, ...]
    is_given: bool
    give_up_at: float


class CrossNodeSeats:
    """Seats of engines whose ranks may be on several nodes: a placement group for each life of one.

    What is free becomes known late, so that a group may ask for what is taken; it is given up then.
    """

    def __init__(self, cluster: RayCluster, takes: Resources, num_ranks: int) -> None:
        self._cluster, self._takes, self._num_ranks = cluster, takes, num_ranks
        self._asked: dict[int, _Asked] = {}
        self._waits_since: dict[int, float] = {}

    def find(self, engine: int) -> tuple[Seat, ...]:
        """Return an engine's seats, the first rank's first; empty while it has none."""
        asked = self._asked.get(engine)
        if asked is None:
            self._ask(engine)
            return ()
        if placement_group_table(asked.group)["state"] == "CREATED":
            self._asked[engine] = replace(asked, is_given=True)
            nodes = {node.id: node for node in self._cluster.nodes()}
            if all(share.node in nodes for share in asked.shares):
                return tuple(
                    Seat(asked.group, bundle, nodes[share.node], share.num_ranks)
                    for bundle, share in enumerate(asked.shares)
                )
        if time.monotonic() >= asked.give_up_at:
            self.release(engine)
        return ()

    def release(self, engine: int) -> None:
        """Give the seats of an engine back, or the wish for any."""
        self._waits_since.pop(engine, None)
        if asked := self._asked.pop(engine, None):
            remove_placement_group(asked.group)

    def _ask(self, engine: int) -> None:
        now = time.monotonic()
        waits_since = self._waits_since.setdefault(engine, now)
        may_cross = now - waits_since >= ALONE_SECONDS
        placement = Placement(self._takes, {node.id: node.free for node in self._cluster.nodes()})
        for other in self._asked.values():
            placement.take(other.shares, is_taken=other.is_given)
        shares = placement.place(self._num_ranks, may_cross=may_cross)
        if shares:
            group = placement_group(
                [_times(self._takes, share.num_ranks) for share in shares],
                strategy="PACK",
                bundle_label_selector=[{NODE_LABEL: share.node} for share in shares],
            )
            self._asked[engine] = _Asked(group, shares, False, now + ASKING_SECONDS)
