"""What is said of GPUs, above all where there is none."""

import pynvml
import pytest

from qwenapi.api.ops.gpus import _number, read_gpus
from tests.metrics.readings import engine_row


def has_driver():
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return False
    return True


def test_no_driver_is_asked_for_an_engine_on_a_cpu(monkeypatch):
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: pytest.fail("asked"))
    assert read_gpus([engine_row(device="cpu"), engine_row(1, device="stub")]) == {}


def test_without_a_driver_nothing_is_said_of_a_gpu():
    if has_driver():
        pytest.skip("this machine has NVIDIA's driver")
    assert read_gpus([engine_row(device="cuda:0")]) == {}


def test_a_gpu_has_a_name_and_a_share_of_time():
    if not has_driver():
        pytest.skip("this machine has no NVIDIA driver")
    gpu = read_gpus([engine_row(7, device="cuda:0")])[7]
    assert gpu.name and 0 <= gpu.utilization <= 1


@pytest.mark.parametrize(
    ("device", "visible", "number"),
    [
        ("cuda", "", 0),
        ("cuda:1", "", 1),
        ("cuda:1", "4,6", 6),
        ("cuda:2", "4,6", 2),
        ("cuda:0", "GPU-8f1e", 0),
    ],
)
def test_torchs_number_becomes_the_drivers(monkeypatch, device, visible, number):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert _number(device) == number
