"""Names and use of the engines' GPUs, as NVIDIA's driver tells them.

Asked only where an engine runs on one, in a thread, as it may take a while; what fails is left out.
"""

import logging
import os
from collections.abc import Iterable, Sequence

from gevent import get_hub

from qwenapi.metrics.report import Gpu
from workers.wire.engine_stats import EngineRow

log = logging.getLogger(__name__)


def read_gpus(engines: Sequence[EngineRow]) -> dict[int, Gpu]:
    """Return the GPU of each engine that has one the driver knows."""
    on_gpu = {row.engine: _number(row.device) for row in engines if row.has_gpu}
    if not on_gpu:
        return {}
    found: dict[int, Gpu] = get_hub().threadpool.apply(_ask, (set(on_gpu.values()),))
    return {engine: found[number] for engine, number in on_gpu.items() if number in found}


def _number(device: str) -> int:
    """Return the driver's number of torch's device, which counts the visible ones only."""
    number = int(device.partition(":")[2] or 0)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    is_renumbered = number < len(visible) and visible[number].strip().isdigit()
    return int(visible[number]) if is_renumbered else number


def _ask(numbers: Iterable[int]) -> dict[int, Gpu]:
    import pynvml

    try:
        pynvml.nvmlInit()  # counts how often it is called; the first call is the slow one
        return {number: _gpu(number) for number in numbers}
    except pynvml.NVMLError as error:
        log.debug("the GPU's driver does not answer: %s", error)
        return {}


def _gpu(number: int) -> Gpu:
    import pynvml

    handle = pynvml.nvmlDeviceGetHandleByIndex(number)
    busy_percent = pynvml.nvmlDeviceGetUtilizationRates(handle).gpu
    return Gpu(str(pynvml.nvmlDeviceGetName(handle)), busy_percent / 100)
