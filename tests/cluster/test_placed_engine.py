"""Placed engines, on a cluster of this test's: their hosts on one node or several, their ends."""

import time
from unittest.mock import Mock

import pytest

pytest.importorskip("ray", reason="the extra ray is not installed")

from qwenapi.cluster import ray_cluster
from qwenapi.cluster.launcher_process import PlacedEngine
from qwenapi.cluster.ray_cluster import CrossNodeSeats, HostLost, Node, Seat

FIRST = {"exit": None, "failure": None, "pid": 7, "rendezvous": None, "endpoint": None}
OTHER = {"exit": None, "failure": None}


def node(name, cpus=1.0):
    return Node(f"id-{name}", name, f"10.0.0.{name}", {"CPU": cpus}, {"CPU": cpus})


class Host:
    """Takes calls as an actor does; `answer` is what the last one will bring, None: nothing yet."""

    def __init__(self):
        self.answer, self.jobs, self.signals, self.is_ended = None, [], [], False
        self.start, self.look, self.signal = Mock(), Mock(), Mock()
        self.start.remote = lambda job: self.jobs.append(job) or self
        self.look.remote = lambda: self
        self.signal.remote = self.signals.append

    def end(self):
        self.is_ended = True


class Cluster:
    """Hands out hosts, and keeps them."""

    def __init__(self):
        self.hosts = []

    def host(self, seat, name, takes, *, is_first):
        self.hosts.append(Host())
        return self.hosts[-1]

    def has_come(self, host):
        return host.answer is not None

    def result(self, host):
        answer, host.answer = host.answer, None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def end(self, host):
        host.end()


@pytest.fixture
def engine():
    """An engine of four ranks, two, one and one of them on a node, that has just been placed."""
    launcher = Mock(cluster=Cluster(), takes={"CPU": 1.0}, wanted="4 CPU")
    launcher.name = "m"
    seats = [
        Seat(None, i, node(name), n) for i, (name, n) in enumerate((("a", 2), ("b", 1), ("c", 1)))
    ]
    launcher.seats.find.return_value = tuple(seats)
    engine = PlacedEngine(launcher, {"engine": 3, "life": 1, "job": {"settings": {}}})
    engine.launcher, engine.hosts = launcher, launcher.cluster.hosts
    engine.tick()
    return engine


def said(engine):
    return [call.kwargs for call in engine.launcher.say.call_args_list]


def meet(engine):
    engine.hosts[0].answer = FIRST | {"rendezvous": "tcp://10.0.0.1:7"}
    engine.tick()


def test_the_others_are_started_when_the_first_says_where_it_waits(engine):
    engine.hosts[0].answer = FIRST
    engine.tick()
    assert [len(host.jobs) for host in engine.hosts] == [1, 0, 0]
    meet(engine)
    engine.hosts[0].answer = FIRST | {"rendezvous": "tcp://10.0.0.1:7"}
    engine.tick()
    started = [job for host in engine.hosts for job in host.jobs]
    assert [job["num_local_ranks"] for job in started] == [2, 1, 1]
    assert [job.get("first_rank") for job in started] == [None, 2, 3]
    assert {job.get("rendezvous") for job in started[1:]} == {"tcp://10.0.0.1:7"}
    assert all(job["engine"] == 3 for job in started)


def test_what_one_says_of_its_end_is_that_of_the_engine_and_ends_all(engine):
    meet(engine)
    engine.hosts[2].answer = {"exit": 78, "failure": "no such model"}
    engine.tick()
    assert engine.is_over and all(host.is_ended for host in engine.hosts)
    *_, look, gone = said(engine)
    assert (look["exit"], look["failure"], look["pid"]) == (78, "no such model", 7)
    assert gone["event"] == "gone"
    engine.launcher.seats.release.assert_called_once_with(3)


def test_a_node_that_is_lost_ends_all_by_its_name(engine):
    meet(engine)
    engine.hosts[1].answer = HostLost("it died")
    engine.tick()
    assert all(host.is_ended for host in engine.hosts)
    assert said(engine)[-1]["why"] == "node b or its place there is lost: it died"


def test_the_first_alone_is_told_to_end_and_all_are_killed(engine):
    meet(engine)
    engine.hosts[1].answer = OTHER
    engine.signal("terminate")
    engine.tick()
    assert [host.signals for host in engine.hosts] == [["terminate"], [], []]
    assert not engine.is_over
    engine.signal("kill")
    assert engine.is_over and all(host.is_ended for host in engine.hosts)


class Groups:
    """Ray's placement groups, each with the state that a test gives it."""

    def __init__(self, monkeypatch):
        self.asked, self.removed, self.state = [], [], "PENDING"
        monkeypatch.setattr(ray_cluster, "placement_group", self.ask)
        monkeypatch.setattr(ray_cluster, "remove_placement_group", self.removed.append)
        monkeypatch.setattr(
            ray_cluster, "placement_group_table", lambda group: {"state": self.state}
        )

    def ask(self, bundles, strategy, bundle_label_selector):
        wanted = [one["ray.io/node-id"] for one in bundle_label_selector]
        self.asked.append(list(zip(wanted, (bundle["CPU"] for bundle in bundles), strict=True)))
        return len(self.asked)


@pytest.fixture
def groups(monkeypatch):
    return Groups(monkeypatch)


def test_an_engine_crosses_nodes_only_when_none_has_had_room_for_a_while(groups, monkeypatch):
    nodes = [node("a"), node("b")]
    seats = CrossNodeSeats(Mock(nodes=lambda: nodes), {"CPU": 1.0}, 2)
    assert seats.find(0) == () and groups.asked == []
    monkeypatch.setattr(time, "monotonic", lambda now=time.monotonic: now() + 2)
    assert seats.find(0) == () and groups.asked == [[("id-a", 1.0), ("id-b", 1.0)]]
    groups.state = "CREATED"
    assert [(seat.node.name, seat.num_ranks) for seat in seats.find(0)] == [("a", 1), ("b", 1)]
    seats.release(0)
    assert groups.removed == [1]


def test_engines_that_ask_at_once_ask_for_different_nodes_and_give_up_what_is_taken(
    groups, monkeypatch
):
    nodes = [node("a", 2.0), node("b", 2.0)]
    seats = CrossNodeSeats(Mock(nodes=lambda: nodes), {"CPU": 1.0}, 2)
    assert not any(seats.find(engine) for engine in (0, 1, 2))
    assert groups.asked == [[("id-a", 2.0)], [("id-b", 2.0)]]
    monkeypatch.setattr(time, "monotonic", lambda now=time.monotonic: now() + 6)
    seats.find(0)
    assert groups.removed == [1]
