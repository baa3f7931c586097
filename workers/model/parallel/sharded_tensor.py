"""ShardedTensor: a rank's part of a tensor in an open file, of which nothing else is read."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from workers.checkpoint.shard_plan import Cut


@dataclass(frozen=True)
class ShardedTensor:
    """A safetensors slice cut as a plan says; reading it, or one of its experts, is an index."""

    data: Any
    cut: Cut

    def get_shape(self) -> list[int]:
        shape = list(self.data.get_shape())
        shape[self.cut.axis] = self.cut.length
        return shape

    def get_dtype(self) -> str:
        return str(self.data.get_dtype())

    def __getitem__(self, index: Any) -> Tensor:
        if type(index) is int and self.cut.axis > 0:  # one of a stack
            whole: Tensor = self.data[index]
            return torch.cat(
                [whole.narrow(self.cut.axis - 1, a, b - a) for a, b in self.cut.spans],
                self.cut.axis - 1,
            )
        if type(index) is int and index >= 0 and not self.cut.num_zeros:
            for start, stop in self.cut.spans:
                if index < stop - start:
                    one: Tensor = self.data[start + index]
                    return one.clone()  # what a file gives is a view
                index -= stop - start
            raise IndexError(index)
        return self._read()[index]

    def _read(self) -> Tensor:
        before = (slice(None),) * self.cut.axis
        spans = self.cut.spans or ((0, 0),)  # an empty one has the dtype
        parts = [self.data[(*before, slice(start, stop))] for start, stop in spans]
        if self.cut.num_zeros:
            shape = list(parts[0].shape)
            shape[self.cut.axis] = self.cut.num_zeros
            parts.append(parts[0].new_zeros(shape))
        # A copy even of one part: what a file gives is a view, by columns with gaps.
        return torch.cat(parts, self.cut.axis)


def shard(data: Any, cut: Cut | None) -> Any:
    """Return what reads a rank's part of a tensor; the tensor itself where it is not cut."""
    return data if cut is None else ShardedTensor(data, cut)
