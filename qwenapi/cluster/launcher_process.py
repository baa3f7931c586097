"""The launcher's process: does in a Ray cluster what its parent asks for, and ends with it.

Started as `python -m qwenapi.cluster.launcher_process EVENTS_FD`. One JSON object a line: the first
on stdin says the mode, `place`, `watch` or `survey`; events go to the descriptor.

    place    start and signal engines as commands come; say how each of them is
    watch    keep the files of a run directory as the engines of a model come and go
    survey   say once what the nodes have, and what the doctor finds on each
"""

import json
import logging
import os
import selectors
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from qwenapi.cluster.ray_cluster import (
    CrossNodeSeats,
    HostLost,
    RayCluster,
    Seat,
    SharedSeats,
    resources_of,
)
from qwenapi.doctor.cluster import in_words
from qwenapi.doctor.placement import Placement
from workers import logs, parent_death
from workers.errors import WorkerError
from workers.wire.endpoint import Endpoint, endpoint_path

log = logging.getLogger(__name__)

TICK_SECONDS = 0.2
WATCH_SECONDS = 0.5
WAITING_SECONDS = 3.0


class PlacedEngine:
    """One life of an engine: waits for a place, starts it there, looks at it until it ends.

    On each of its nodes a host keeps its ranks; the first's also says where the others find it.
    """

    def __init__(self, launcher: "EnginePlacer", command: Mapping[str, Any]) -> None:
        self.engine = int(command["engine"])
        self.is_over = False
        self._launcher = launcher
        self._life = command["life"]
        self._job = command["job"]
        self._seats: tuple[Seat, ...] = ()
        self._hosts: list[Any] = []
        self._answers: list[Any] = []  # of those hosts that have been started
        self._told: dict[str, Any] = {"exit": None, "failure": None}
        self._complain_at = time.monotonic() + WAITING_SECONDS

    def tick(self) -> None:
        if not self._hosts:
            self._find_place()
            return
        cluster = self._launcher.cluster
        for number, answer in enumerate(self._answers):
            if not cluster.has_come(answer):
                continue
            try:
                look = cluster.result(answer)
            except HostLost as error:
                node = self._seats[number].node.name
                self.end(f"node {node} or its place there is lost: {error}")
                return
            if number == 0:
                self._on_first(**look)
            elif look["exit"] is not None:
                self._tell(**self._told | look)
            if self.is_over:
                return
            self._answers[number] = self._hosts[number].look.remote()

    def signal(self, name: str) -> None:
        if not self._hosts:
            if name != "dump":
                self.end("it was stopped before it had a place")
        elif name == "kill":
            self.end("it was killed")
        else:
            self._hosts[0].signal.remote(name)

    def end(self, why: str) -> None:
        """Be done with this life, whatever is left of it."""
        self.is_over = True
        for host in self._hosts:
            self._launcher.cluster.end(host)
        self._launcher.seats.release(self.engine)
        self._launcher.say(event="gone", engine=self.engine, life=self._life, why=why)

    def _find_place(self) -> None:
        launcher = self._launcher
        self._seats = launcher.seats.find(self.engine)
        if not self._seats:
            if time.monotonic() >= self._complain_at:
                self._complain_at = float("inf")
                launcher.complain(self.engine)
            return
        nodes = ", ".join(seat.node.name for seat in self._seats)
        if len(self._seats) > 1:
            log.info(
                "engine-%d has its ranks on several nodes, %s, as none has %s free",
                self.engine, nodes, launcher.wanted,
            )  # fmt: skip
        else:
            log.info("engine-%d has a place on node %s", self.engine, nodes)
        name = f"{launcher.name}:{self.engine}"
        self._hosts = [
            launcher.cluster.host(seat, name, launcher.takes, is_first=number == 0)
            for number, seat in enumerate(self._seats)
        ]
        self._start(0)

    def _start(self, number: int, **facts: Any) -> None:
        job = {**self._job, "engine": self.engine, "num_local_ranks": self._seats[number].num_ranks}
        self._answers.append(self._hosts[number].start.remote({**job, **facts}))

    def _on_first(self, *, rendezvous: str | None = None, **look: Any) -> None:
        if rendezvous and len(self._answers) == 1:
            first_rank = 0
            for number, seat in enumerate(self._seats):
                if number:
                    self._start(number, rendezvous=rendezvous, first_rank=first_rank)
                first_rank += seat.num_ranks
        if look != self._told:
            self._tell(**look)

    def _tell(self, **look: Any) -> None:
        self._told = look
        self._launcher.say(event="look", engine=self.engine, life=self._life, **look)
        if look["exit"] is not None:
            self.end("it has ended")


class EnginePlacer:
    """Mode `place`."""

    def __init__(self, cluster: RayCluster, facts: Mapping[str, Any], events_fd: int) -> None:
        self.cluster = cluster
        self.name = facts["name"]
        self.takes = resources_of(cluster.nodes(), facts["device"], facts["threads"])
        num_ranks, num_engines = facts["num_ranks"], facts["num_engines"]
        self.wanted = in_words(self.takes, num_ranks)
        self.seats: SharedSeats | CrossNodeSeats
        if facts["may_cross"]:
            self.seats = CrossNodeSeats(cluster, self.takes, num_ranks)
        else:
            self.seats = SharedSeats(cluster, self.takes, num_ranks, num_engines)
        self._where = "nodes that together have" if facts["may_cross"] else "a node with"
        self._hint = ""
        if num_ranks > 1 and not facts["may_cross"]:
            self._hint = ", or let its ranks be on several by --allow-cross-node-tp"
        self._events_fd = events_fd
        self._engines: dict[int, PlacedEngine] = {}

    def complain(self, engine: int) -> None:
        """Say that an engine waits for a place."""
        log.warning(
            "engine-%d waits for %s %s free; see qwenapi doctor --cluster%s",
            engine, self._where, self.wanted, self._hint,
        )  # fmt: skip

    def run(self) -> None:
        """Serve until the parent has gone."""
        selector = selectors.DefaultSelector()
        selector.register(sys.stdin, selectors.EVENT_READ)
        pending = b""
        while True:
            if selector.select(TICK_SECONDS):
                data = os.read(sys.stdin.fileno(), 1 << 20)
                if not data:
                    return
                *lines, pending = (pending + data).split(b"\n")
                for line in lines:
                    self._do(json.loads(line))
            for engine, placed in list(self._engines.items()):
                placed.tick()
                if placed.is_over:
                    del self._engines[engine]

    def say(self, **event: Any) -> None:
        write_event(self._events_fd, event)

    def _do(self, command: Mapping[str, Any]) -> None:
        placed = self._engines.get(command["engine"])
        if command["do"] == "start":
            if placed is not None:
                placed.end("another takes its place")
            self._engines[command["engine"]] = PlacedEngine(self, command)
        elif placed is not None:
            placed.signal(command["do"])
            if placed.is_over:
                del self._engines[command["engine"]]


def watch(cluster: RayCluster, name: str, run_dir: Path) -> None:
    """Keep a run directory's files as a model's engines come and go, for ever."""
    known: dict[int, tuple[str, Endpoint]] = {}
    for stale in run_dir.glob("engine-*.tcp"):
        stale.unlink(missing_ok=True)
    while True:
        hosts = cluster.newest_hosts(name)
        for engine in known.keys() - hosts.keys():
            del known[engine]
            endpoint_path(run_dir, engine).unlink(missing_ok=True)
        for engine, (actor, host) in hosts.items():
            if engine in known and known[engine][0] == actor:
                continue
            endpoint = _endpoint_of(cluster, host)
            if endpoint is not None:
                known[engine] = (actor, endpoint)
                endpoint.write(endpoint_path(run_dir, engine))
                log.info("engine-%d is on node %s", engine, endpoint.node)
        time.sleep(WATCH_SECONDS)


def survey(cluster: RayCluster, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a rank takes, what each node has, and what was found there: with all ranks of an
    engine, or as many as there is room for where they may be on several nodes.
    """
    nodes = cluster.nodes()
    takes = resources_of(nodes, facts["device"], facts["threads"])
    rooms = Placement(takes, {node.id: node.free for node in nodes}).rooms
    jobs = {}
    for node in nodes:
        num_ranks = facts["num_ranks"]
        if facts["may_cross"]:
            num_ranks = max(1, min(num_ranks, rooms[node.id]))
        if any(node.total.get(what) for what in takes):
            jobs[node.id] = {**facts["job"], "num_local_ranks": num_ranks}
    checked = [
        {"name": node.name, "host": node.host, "free": dict(node.free), "found": found}
        for node, found in cluster.check_nodes(jobs)
    ]
    return {"takes": takes, "nodes": checked}


def write_event(events_fd: int, event: Mapping[str, Any]) -> None:
    line = json.dumps(event).encode() + b"\n"
    while line:
        line = line[os.write(events_fd, line) :]


def main() -> None:
    """Be the launcher's process until the parent has gone."""
    parent_death.die_with_parent()
    events_fd = int(sys.argv[1])
    os.dup2(2, 1)  # what Ray prints
    facts = json.loads(_first_line())
    logs.configure("cluster", facts["log_level"], facts["log_format"])
    try:
        _serve(facts, events_fd)
    except WorkerError as error:
        write_event(events_fd, {"event": "failed", "why": str(error)})
        sys.exit(error.exit_code)


def _serve(facts: Mapping[str, Any], events_fd: int) -> None:
    cluster = RayCluster(facts["address"])
    write_event(events_fd, {"event": "connected"})
    if facts["mode"] == "place":
        EnginePlacer(cluster, facts, events_fd).run()
    elif facts["mode"] == "watch":
        parent_death.hold(sys.stdin.fileno())
        watch(cluster, facts["name"], Path(facts["run_dir"]))
    else:
        write_event(events_fd, {"event": "survey", **survey(cluster, facts)})


def _endpoint_of(cluster: RayCluster, host: Any) -> Endpoint | None:
    try:
        found = cluster.result(host.endpoint.remote())
    except HostLost:
        return None
    return None if found is None else msgspec.convert(found, Endpoint)


def _first_line() -> bytes:
    """Read a line and not a byte more: the rest is for a selector to tell of."""
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(sys.stdin.fileno(), 1)
        if not byte:
            sys.exit(0)
        line += byte
    return line


if __name__ == "__main__":
    main()
