"""Masks of the rows that have a grammar: computed on the host, applied to logits.

Knows bit rows and logits. Refuses to know grammars; workers.grammar does. A step without such rows
makes nothing and pays nothing.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from workers.engine.batch import Row
from workers.grammar.masks import MaskFiller, MaskRow
from workers.model.layout.device_copy import to_device

_WORD_BITS = 32


class MaskedRows:
    """Bit rows int32 `[masks, words]` on the host, and the rows of logits they are for."""

    def __init__(self, rows: list[int], bits: Tensor) -> None:
        self.rows = rows
        self.bits = bits

    def apply(self, logits: Tensor) -> None:
        """Set what is not allowed in logits `[rows, vocabulary]` to minus infinity, in place."""
        if logits.device.type == "cpu":
            self._apply_on_cpu(logits)
        else:
            self._apply_on_gpu(logits)

    def _apply_on_cpu(self, logits: Tensor) -> None:
        forbidden = np.unpackbits(
            (~self.bits.numpy()).view(np.uint8), axis=1, count=logits.shape[1], bitorder="little"
        )
        for row, cells in zip(self.rows, torch.from_numpy(forbidden).view(torch.bool), strict=True):
            logits[row].masked_fill_(cells, float("-inf"))

    def _apply_on_gpu(self, logits: Tensor) -> None:
        bits = self.bits.to(logits.device, non_blocking=True)
        shifts = torch.arange(_WORD_BITS, dtype=torch.int32, device=logits.device)
        forbidden = ((bits[:, :, None] >> shifts) & 1 == 0).flatten(1)[:, : logits.shape[1]]
        rows = to_device(torch.tensor(self.rows), logits.device)
        logits[rows] = logits[rows].masked_fill(forbidden, float("-inf"))


class TokenMasks:
    """Makes the masks of steps."""

    def __init__(self, num_threads: int) -> None:
        self._filler = MaskFiller(num_threads)

    def of(self, rows: Sequence[Row], logits: Tensor) -> MaskedRows | None:
        """Return the masks of those rows, in the order of their logits, that have a grammar."""
        asking: list[MaskRow] = []
        indexes: list[int] = []
        first = 0
        for row in rows:
            if row.num_samples and row.sequence.grammar is not None:
                asking.append(_mask_row(row))
                indexes += range(first, first + row.num_samples)
            first += row.num_samples
        if not asking:
            return None
        words = -(-logits.shape[1] // _WORD_BITS)
        is_pinned = logits.device.type == "cuda"
        bits = torch.empty(len(indexes), words, dtype=torch.int32, pin_memory=is_pinned)
        self._filler.fill(asking, bits.numpy())
        return MaskedRows(indexes, bits)


def _mask_row(row: Row) -> MaskRow:
    sequence = row.sequence
    assert sequence.grammar is not None
    return MaskRow(
        sequence.grammar,
        row.drafts,
        num_output=sequence.num_output_tokens,
        min_tokens=sequence.request.params.min_tokens,
        stop_ids=sequence.request.stop_ids,
    )
