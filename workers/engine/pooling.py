"""Pooling: what a step gives of the prompts that end in it and are not gone on with.

A vector of the last token's hidden state, cut before it is brought to length 1, or a few logits.
Refuses to know sequences and what the numbers mean.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.model.layout.device_copy import HostCopy, to_device
from workers.wire.protocol import Pooling


class PooledRows:
    """Numbers of some rows, which the host can wait for and read later."""

    def __init__(self, values: Tensor, counts: Sequence[int]) -> None:
        """`values` is `[rows, most]` in float32, of which each row's first `counts` are meant."""
        self._copy = HostCopy([values])
        self._counts = counts

    def read(self) -> list[bytes | None]:
        """Return each row's numbers, little-endian float32; None where one is NaN or infinite."""
        (values,) = self._copy.read()
        rows = zip(values.numpy().astype("<f4"), self._counts, strict=True)
        are_finite = values.isfinite().all(-1).tolist()
        return [
            row[:count].tobytes() if is_finite else None
            for (row, count), is_finite in zip(rows, are_finite, strict=True)
        ]


@torch.inference_mode()
def pool(outputs: Tensor, poolings: Sequence[Pooling]) -> PooledRows:
    """Return what is asked of outputs `[rows, width]`: all for vectors, or all for logits."""
    counts = [len(pooling.token_ids) for pooling in poolings]
    if any(counts):
        ids = torch.zeros(len(counts), max(counts), dtype=torch.int64)
        for row, pooling in zip(ids, poolings, strict=True):
            row[: len(pooling.token_ids)] = torch.tensor(pooling.token_ids)
        return PooledRows(outputs.gather(1, to_device(ids, outputs.device)).float(), counts)
    width = outputs.shape[1]
    counts = [pooling.dimensions or width for pooling in poolings]
    ends = to_device(torch.tensor(counts), outputs.device)
    is_kept = torch.arange(width, device=outputs.device) < ends[:, None]
    return PooledRows(F.normalize(torch.where(is_kept, outputs.float(), 0.0), dim=-1), counts)
