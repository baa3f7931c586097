"""NumberChannel: numbers that the first rank says and all others hear, one message a step."""

from collections.abc import Sequence

import torch

from workers.model.parallel.group import Group

# Numbers that go in one broadcast, their count among them: 16 KiB.
_FIXED = 4096


class NumberChannel:
    """Messages of int32 in the host's memory: one broadcast of a fixed buffer, and a second one
    only of what it cannot hold.
    """

    def __init__(self, group: Group) -> None:
        self._group = group
        self._buffer = torch.zeros(_FIXED, dtype=torch.int32)

    def say(self, numbers: Sequence[int]) -> None:
        """Send a message from the first rank."""
        message = torch.tensor([len(numbers), *numbers], dtype=torch.int32)
        self._buffer[: len(message)] = message[:_FIXED]
        self._group.share_numbers(self._buffer)
        if len(message) > _FIXED:
            self._group.share_numbers(message[_FIXED:].contiguous())

    def hear(self) -> list[int]:
        """Wait for the next message, on another rank."""
        self._group.share_numbers(self._buffer)
        count = int(self._buffer[0])
        numbers: list[int] = self._buffer[1 : count + 1].tolist()
        if count > len(numbers):
            rest = torch.empty(count - len(numbers), dtype=torch.int32)
            self._group.share_numbers(rest)
            numbers += rest.tolist()
        return numbers
