"""Memory is what the machine has, or the least that a control group above this process leaves."""

import psutil
import pytest
import torch

from qwenapi.doctor.memory import machine_room
from workers.memory import machine_memory
from workers.model.capacity import available_bytes

GROUPS = "4:memory:/x\n3:cpu:/x\n0::/a/b/c\n"
OF_FILES = "anon 5\ninactive_file 100\n"


def group(folder, **values):
    return {f"{folder}/memory.{name}": value for name, value in values.items()}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (group("a/b", max="9000", current="1100", stat=OF_FILES), (9000, 8000)),
        (
            group("a/b", max="9000", current="1100", stat=OF_FILES)
            | group("a/b/c", max="max", current="1000", stat=OF_FILES),
            (9000, 8000),
        ),
        (
            group("a", max="9000", current="8500", stat=OF_FILES)
            | group("a/b/c", max="4000", current="1000", stat=OF_FILES),
            (4000, 600),
        ),
        (
            group("memory/x", limit_in_bytes="8000", usage_in_bytes="600")
            | group("memory/x", stat="inactive_file 9\ntotal_inactive_file 50\n"),
            (8000, 7450),
        ),
        (group("a/b", max="9000", current="9100"), (9000, 0)),  # about to be ended
    ],
)
def test_the_least_that_a_group_leaves_is_all_there_is(machine, files, expected):
    machine(GROUPS, files)
    assert machine_memory() == expected
    room = machine_room()
    assert (room.total, room.free) == expected
    assert available_bytes(torch.device("cpu"), 0.9) == expected[1]


@pytest.mark.parametrize(
    "files",
    [
        {},
        group("a/b", max="max", current="1100", stat=OF_FILES),
        group("other", max="10", current="5", stat=OF_FILES),
        group("memory/x", limit_in_bytes=str(2**63 - 4096), usage_in_bytes="600", stat=""),
    ],
)
def test_without_a_limit_it_is_the_machines(machine, files):
    machine(GROUPS, files)
    assert machine_memory().total == psutil.virtual_memory().total
    assert 0 < machine_memory().free <= machine_memory().total
