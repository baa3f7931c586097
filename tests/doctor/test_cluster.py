from qwenapi.doctor.check import Outcome
from qwenapi.doctor.cluster import check_cluster
from qwenapi.settings.table import Settings

GOOD = {"name": "model", "outcome": "ok", "what": "fine", "why": "", "remedy": ""}


def node(name, gpus, found=(GOOD,)):
    free = {"GPU": gpus, "CPU": 64.0}
    return {"name": name, "host": f"10.0.0.{name}", "free": free, "found": found}


def checks(num_engines, *nodes, num_ranks=4, may_cross=False):
    settings = Settings(
        data_parallel_size=num_engines,
        tensor_parallel_size=num_ranks,
        allow_cross_node_tp=may_cross,
    )
    return list(check_cluster({"takes": {"GPU": 1, "CPU": 1}, "nodes": nodes}, settings))


def test_engines_are_spread_over_the_nodes_that_have_room():
    nodes = [node("1", 8.0), node("2", 8.0), node("3", 3.0)]
    said = [check.what for check in checks(3, *nodes)]
    assert said == [
        "10.0.0.1 has 8 GPU, 64 CPU free, gets engine 0, 2",
        "10.0.0.2 has 8 GPU, 64 CPU free, gets engine 1",
        "10.0.0.3 has 3 GPU, 64 CPU free, gets no engine",
        "3 engines find places, each of 4 GPU, 4 CPU",
    ]


def test_what_is_missing_is_said_with_what_would_do():
    last = checks(5, node("1", 8.0), node("2", 4.0))[-1]
    assert last.outcome is Outcome.FAILURE and last.what == "2 of 5 engines find no place"
    assert last.remedy == "add nodes, or set --data-parallel-size 3"
    assert "--allow-cross-node-tp" not in last.remedy, "no more would find one"
    assert checks(1, node("1", 2.0))[-1].what == "no engine finds a place"
    assert checks(2, node("1", 8.0))[-1].outcome is Outcome.WARNING


def test_ranks_that_no_node_has_room_for_may_be_on_several_and_the_refusal_says_so():
    nodes = [node("1", 3.0), node("2", 1.0), node("3", 5.0)]
    last = checks(2, *nodes)[-1]
    assert last.what == "1 of 2 engines find no place"
    assert last.remedy.endswith(
        "or let an engine's ranks be on several nodes by --allow-cross-node-tp"
    )
    *said, last = checks(2, *nodes, may_cross=True)
    assert [check.what.partition(" gets ")[2] for check in said] == [
        "ranks 0 to 2 of engine 1",
        "rank 3 of engine 1",
        "engine 0",
    ]
    assert last.outcome is Outcome.OK
    missing = checks(1, *nodes, num_ranks=16, may_cross=True)[-1]
    assert missing.why.startswith("all nodes together have not 16 GPU, 16 CPU free")
    assert "cross-node" not in missing.remedy
    assert "cross-node" not in checks(1, *nodes, num_ranks=16)[-1].remedy


def test_a_node_without_the_model_gets_nothing_and_says_why():
    bad = GOOD | {"outcome": "failure", "what": "/m", "why": "no such folder", "remedy": "copy it"}
    found = checks(2, node("1", 8.0, [GOOD, bad]), node("2", 8.0, "No module named 'qwenapi'"))
    said = {check.sentence for check in found if check.outcome is Outcome.FAILURE}
    assert "/m: no such folder; copy it" in said
    assert any("No module named 'qwenapi'" in sentence for sentence in said)
    assert any(sentence.startswith("no engine finds a place") for sentence in said)
