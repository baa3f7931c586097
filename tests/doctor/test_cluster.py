from qwenapi.doctor.check import Outcome
from qwenapi.doctor.cluster import check_cluster, spread

GOOD = {"name": "model", "outcome": "ok", "what": "fine", "why": "", "remedy": ""}


def node(name, gpus, found=(GOOD,)):
    free = {"GPU": gpus, "CPU": 64.0}
    return {"name": name, "host": f"10.0.0.{name}", "free": free, "found": found}


def checks(num_engines, *nodes):
    survey = {"takes": {"GPU": 4, "CPU": 4}, "nodes": nodes}
    return list(check_cluster(survey, num_engines))


def test_engines_are_spread_over_the_nodes_that_have_room():
    nodes = [node("1", 8.0), node("2", 8.0), node("3", 3.0)]
    assert spread({"GPU": 4}, nodes, 3) == ["1", "2", "1"]
    assert spread({"GPU": 4}, nodes, 9) == ["1", "2", "1", "2"]
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
    assert checks(1, node("1", 2.0))[-1].what == "no engine finds a place"
    assert checks(2, node("1", 8.0))[-1].outcome is Outcome.WARNING


def test_a_node_without_the_model_gets_nothing_and_says_why():
    bad = GOOD | {"outcome": "failure", "what": "/m", "why": "no such folder", "remedy": "copy it"}
    found = checks(2, node("1", 8.0, [GOOD, bad]), node("2", 8.0, "No module named 'qwenapi'"))
    said = {check.sentence for check in found if check.outcome is Outcome.FAILURE}
    assert "/m: no such folder; copy it" in said
    assert any("No module named 'qwenapi'" in sentence for sentence in said)
    assert any(sentence.startswith("no engine finds a place") for sentence in said)
