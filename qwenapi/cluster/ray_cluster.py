"""RayCluster: nodes of a Ray cluster, and places for engines; nothing else knows Ray.

Of a process of its own (launcher_process.py): Ray ends the processes that use it when it sees fit.
What travels through Ray is configuration and signals, never a prompt or a token.
"""

import logging
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray._private.state import available_resources_per_node
from ray.exceptions import GetTimeoutError, RayError
from ray.util import list_named_actors
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table
from ray.util.scheduling_strategies import (
    NodeAffinitySchedulingStrategy,
    PlacementGroupSchedulingStrategy,
)

from qwenapi.cluster.engine_host import EngineHost, check_node
from workers.errors import ConfigError

NAMESPACE = "qwenapi"
CHECK_SECONDS = 60.0
KNOCK_SECONDS = 5.0


@dataclass(frozen=True)
class Node:
    """A machine of the cluster: its name, its address, and what it has left of what it has."""

    id: str
    name: str
    host: str
    total: Mapping[str, float]
    free: Mapping[str, float]


class PlacedHost(EngineHost):
    """An EngineHost that knows where it is: Ray may place it anew before it is there."""

    def start(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Start the engine at this node's address."""
        own = ray.get_runtime_context().get_node_id()
        node = next(node for node in ray.nodes() if node["NodeID"] == own)
        place = {
            "host": node["NodeManagerAddress"],
            "node": node["NodeName"],
            "num_gpus": ray.get_runtime_context().get_assigned_resources().get("GPU", 0),
        }
        return super().start({**job, **place})


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
        self._group: PlacementGroup | None = None

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

    def reserve(self, num_engines: int, resources: Mapping[str, float]) -> None:
        """Ask for a place for each engine: all of one on one node, engines on different ones as far
        as there are. Ray finds a new place for those whose node is lost, when there is one.
        """
        bundles = [dict(resources) for _ in range(num_engines)]
        self._group = placement_group(bundles, strategy="SPREAD")

    def node_of(self, engine: int) -> Node | None:
        """Return the living node that has an engine's place, or None while none has."""
        assert self._group is not None
        table = placement_group_table(self._group)
        if table["state"] not in ("CREATED", "RESCHEDULING"):  # the others' places stay theirs
            return None
        node_id = table["bundles_to_node_id"].get(engine)
        return next((node for node in self.nodes() if node.id == node_id), None)

    def host(self, engine: int, name: str, resources: Mapping[str, float]) -> Any:
        """Return a new EngineHost, an actor, in the engine's place."""
        assert self._group is not None
        strategy = PlacementGroupSchedulingStrategy(self._group, engine)
        options: dict[str, Any] = {
            "name": f"{name}:{engine}:{time.time_ns()}",
            "num_cpus": resources.get("CPU", 0),
            "num_gpus": resources.get("GPU", 0),
            "scheduling_strategy": strategy,
            "max_restarts": 0,
        }
        return ray.remote(PlacedHost).options(**options).remote()

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

    def check_nodes(self, settings: Mapping[str, Any]) -> Iterator[tuple[Node, list[Any] | str]]:
        """Yield for each node what the doctor found there, or why it could not look."""
        task = ray.remote(check_node)
        asked = [
            (
                node,
                task.options(
                    num_cpus=0,
                    max_retries=0,
                    scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False),
                ).remote(settings),
            )
            for node in self.nodes()
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


def resources_of(
    nodes: Sequence[Node], device: str, num_ranks: int, threads: int
) -> dict[str, float]:
    """Return what one engine takes of its node: a GPU for each rank where there are any, and a CPU
    for each of its threads.
    """
    has_gpus = any(node.total.get("GPU") for node in nodes)
    if device == "cuda" or (device == "auto" and has_gpus):
        return {"GPU": num_ranks, "CPU": num_ranks}
    return {"CPU": num_ranks * max(1, threads)}
