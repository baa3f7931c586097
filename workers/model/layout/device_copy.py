"""Copy tensors to a device without waiting, and back to the host when they are there.

A plain `.to(device)` first lets the device finish all it has been given: nothing overlaps then.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a copy of a CPU tensor on a device, in order with what the device is given later."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class HostCopy:
    """Tensors of one device on their way to the host."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._parts = [tensor.to("cpu", non_blocking=True) for tensor in tensors]
        self._copied = None
        device = tensors[0].device
        if device.type == "cuda":
            self._copied = torch.cuda.Event()
            self._copied.record(torch.cuda.current_stream(device))

    def read(self) -> list[Tensor]:
        """Return the tensors, once they are there."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._parts
