"""What the runner says of its device."""

from types import SimpleNamespace

import torch


def test_the_memory_of_a_gpu_is_read_once_a_step(drive, monkeypatch):
    runner = drive().engine._runner
    assert runner.device_memory() == {}
    device, asked = torch.device("cuda", 1), []
    monkeypatch.setattr(runner, "_decoder", SimpleNamespace(device=device))

    def stats(of):
        asked.append(of)
        sizes = {"allocated_bytes": 7, "reserved_bytes": 9}
        return {name: {"all": {"current": size}} for name, size in sizes.items()}

    def properties(of):
        asked.append(of)
        return SimpleNamespace(total_memory=11)

    monkeypatch.setattr(torch.cuda, "memory_stats_as_nested_dict", stats)
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    for _ in range(3):
        assert runner.device_memory() == {
            "device_allocated": 7,
            "device_reserved": 9,
            "device_total": 11,
        }
    assert asked == [device] * 4
