"""How many threads are worth starting, also in a container."""

import pytest

from workers import cgroups, cpu_cores
from workers.cpu_cores import cpu_quota, physical_cores


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu.max": "200000 100000\n"}, 2.0),
        ({"app/web/cpu.max": "150000 100000\n"}, 1.5),
        ({"app/cpu.max": "50000 100000", "app/web/cpu.max": "400000 100000"}, 0.5),
        ({"app/cpu.max": "max 100000", "app/web/cpu.max": "30000 10000"}, 3.0),
        ({"other/cpu.max": "10000 100000"}, None),
        ({"cpu.max": ""}, None),
        ({"cpu.max": "100000 0"}, None),
        ({"cpu.max": "nonsense"}, None),
    ],
)
def test_the_least_quota_on_the_way_to_the_root_counts(machine, files, quota):
    machine("0::/app/web\n", files)
    assert cpu_quota() == quota


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        (
            {
                "cpu,cpuacct/a/cpu.cfs_quota_us": "250000",
                "cpu,cpuacct/a/cpu.cfs_period_us": "100000",
            },
            2.5,
        ),
        (
            {"cpu,cpuacct/a/cpu.cfs_quota_us": "-1", "cpu,cpuacct/a/cpu.cfs_period_us": "100000"},
            None,
        ),
        ({"cpu,cpuacct/cpu.cfs_quota_us": "50000", "cpu,cpuacct/cpu.cfs_period_us": "50000"}, 1.0),
        ({"cpuset/a/cpu.cfs_quota_us": "50000", "cpuset/a/cpu.cfs_period_us": "50000"}, None),
    ],
)
def test_groups_of_the_first_version_are_read_too(machine, files, quota):
    machine("5:cpuset:/a\n4:cpu,cpuacct:/a\n0::/\n\nodd line\n", files)
    assert cpu_quota() == quota


@pytest.mark.parametrize("path", ["/docker/of/the/host", "/../../other"])
def test_in_a_container_the_root_is_its_own_group(machine, path):
    machine(f"0::{path}\n", {"cpu.max": "100000 100000"})
    assert cpu_quota() == 1.0


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("max 100000", 8), ("350000 100000", 3), ("50000 100000", 1), ("9 1", 8)],
)
def test_only_whole_cores_of_a_quota_count(machine, monkeypatch, quota, expected):
    machine("0::/\n", {"cpu.max": quota})
    # CPUs that have no siblings here.
    monkeypatch.setattr(cpu_cores.os, "sched_getaffinity", lambda pid: range(10**6, 10**6 + 8))
    assert physical_cores() == expected


def test_without_control_groups_all_cores_count(tmp_path, monkeypatch):
    monkeypatch.setattr(cgroups, "FILE", tmp_path / "none")
    assert cpu_quota() is None
