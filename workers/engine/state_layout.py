"""Lay out the state slots of a batch's rows: the plan of the layers that have states.

For torch that is a StatePlan, for kernels two rows of numbers. Knows how rows lie in the flat
batch, for torch decoding ones first. Refuses to know tensors of states.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from workers.engine.batch import Row
from workers.engine.state_manager import StateTable
from workers.model.layout.device_copy import to_device
from workers.model.layout.state_plan import SlotCopy, StatePlan, StateRun, StateSpan


def plan_states(
    decodes: Sequence[Row],
    spans: Sequence[Row],
    before: tuple[SlotCopy, ...],
    device: torch.device,
) -> StatePlan:
    """Lay out decoding rows and the rows behind them, for a step that begins with copies."""
    slots = [_state_of(row).slot for row in decodes]
    order = sorted(range(len(slots)), key=slots.__getitem__)
    is_sorted = order == list(range(len(slots)))
    return StatePlan(
        before,
        None if is_sorted else to_device(torch.tensor(order), device),
        tuple(_runs(sorted(slots))),
        tuple(
            SlotCopy(_state_of(row).slot, slot)
            for row in decodes
            for _, slot in _state_of(row).kept_within(row.start, row.stop)
        ),
        tuple(_spans(spans, len(decodes))),
    )


def slots_of_rows(rows: Sequence[Row]) -> np.ndarray:
    """Return the slot of each row."""
    return np.array([_state_of(row).slot for row in rows])


def slots_of_tokens(rows: Sequence[Row], starts: np.ndarray) -> np.ndarray:
    """Return the slot to be given a copy of the state behind each token of a flat batch, mostly 0.

    Row r begins at `starts[r]`.
    """
    kept = np.zeros(starts[-1], np.int32)
    for row, start in zip(rows, starts, strict=False):
        for position, slot in _state_of(row).kept_within(row.start, row.stop):
            kept[start + position - row.start - 1] = slot
    return kept


def _runs(slots: list[int]) -> Iterator[StateRun]:
    """Yield the runs of neighbouring numbers."""
    first = 0
    for stop in range(1, len(slots) + 1):
        if stop == len(slots) or slots[stop] != slots[stop - 1] + 1:
            yield StateRun(first, stop, slots[first])
            first = stop


def _spans(rows: Sequence[Row], first: int) -> Iterator[StateSpan]:
    """Yield the spans of rows from `first` in the flat batch on, cut behind each kept copy."""
    for row in rows:
        state, stop = _state_of(row), first + row.num_tokens
        for position, slot in state.kept_within(row.start, row.stop):
            end = stop - (row.stop - position)
            yield StateSpan(first, end, state.slot, slot)
            first = end
        if first < stop:
            yield StateSpan(first, stop, state.slot)
            first = stop


def _state_of(row: Row) -> StateTable:
    state = row.sequence.table.state
    assert state is not None, "a hybrid model's row has no slot"
    return state
