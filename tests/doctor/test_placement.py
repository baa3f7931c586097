import pytest

from qwenapi.doctor.placement import Placement, Share

TAKES = {"GPU": 1.0, "CPU": 1.0}


def placement(**gpus):
    return Placement(TAKES, {name: {"GPU": count, "CPU": 64.0} for name, count in gpus.items()})


def as_text(shares):
    return " ".join(f"{share.num_ranks}{share.node}" for share in shares)


@pytest.mark.parametrize(
    ("num_ranks", "gpus", "found"),
    [
        (4, {"a": 2, "b": 4, "c": 8}, "4b"),
        (8, {"a": 2, "b": 4, "c": 8}, "8c"),
        (9, {"a": 1, "b": 4, "c": 8}, "8c 1a"),
        (9, {"a": 0, "b": 4, "c": 8}, "8c 1b"),
        (14, {"a": 2, "b": 4, "c": 8}, "8c 4b 2a"),
        (15, {"a": 2, "b": 4, "c": 8}, ""),
        (1, {}, ""),
    ],
)
def test_an_engine_has_a_node_of_its_own_or_as_few_as_can_be(num_ranks, gpus, found):
    assert as_text(placement(**gpus).place(num_ranks, may_cross=True)) == found


def test_without_leave_an_engine_is_on_one_node_or_nowhere():
    assert placement(a=2, b=2).place(3) == ()
    assert placement(a=2, b=3).place(3) == (Share("b", 3),)


def test_engines_are_spread_while_nodes_have_room_and_only_then_cross():
    nodes = placement(a=5, b=5, c=2)
    found = [as_text(nodes.place(2, may_cross=True)) for _ in range(7)]
    assert found == ["2a", "2b", "2c", "2a", "2b", "1a 1b", ""]


def test_the_scarcest_of_what_a_rank_takes_decides():
    nodes = Placement(TAKES, {"a": {"GPU": 8.0, "CPU": 1.0}, "b": {"CPU": 64.0}})
    assert nodes.rooms == {"a": 1, "b": 0}


def test_an_engine_that_waits_for_its_room_has_it_and_one_that_is_there_has_had_it():
    nodes = placement(a=2, b=2)
    nodes.take((Share("a", 2), Share("gone", 2)))
    assert nodes.rooms == {"a": 0, "b": 2}
    nodes = placement(a=2, b=2)
    nodes.take((Share("a", 2),), is_taken=True)
    assert nodes.rooms == {"a": 2, "b": 2}
    assert as_text(nodes.place(2)) == "2b", "the other has an engine already"
