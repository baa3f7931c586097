"""Bit rows of the vocabulary: which tokens may come next, for all rows of a step that must ask.

Knows matchers, and how stop tokens and minimum lengths go with a grammar. Refuses to know tensors
and logits. Rows are filled by threads outside the GIL.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from workers.grammar.state import GrammarState

if TYPE_CHECKING:
    from llguidance import LLExecutor, LLMatcher

Bits = np.ndarray


@dataclass(frozen=True, slots=True)
class MaskRow:
    """What one row of a step samples: what follows its last token, and each of its drafts.

    `num_output` counts the tokens before the first sample, `stop_ids` are those that end the
    answer.
    """

    state: GrammarState
    drafts: tuple[int, ...] = ()
    num_output: int = 0
    min_tokens: int = 0
    stop_ids: frozenset[int] = frozenset()

    @property
    def num_masks(self) -> int:
        return 1 + len(self.drafts)


class MaskFiller:
    """Threads that compute masks."""

    def __init__(self, num_threads: int) -> None:
        self._num_threads = num_threads

    def fill(self, rows: Sequence[MaskRow], bits: Bits) -> None:
        """Write the masks of all rows, one after another, into int32 `[masks, words]`.

        A row whose grammar fails allows everything, and its state says so.
        """
        assert bits.dtype == np.int32 and bits.flags["C_CONTIGUOUS"]
        bits.fill(-1)  # what no mask is written for follows the answer's end, and is not read
        plain: list[tuple[LLMatcher, int]] = []
        drafting: list[tuple[LLMatcher, int, list[int]]] = []
        first = 0
        for row in rows:
            state = row.state
            if state.constrains and not state.is_free:
                if row.drafts:
                    drafting.append((state.matcher, first, list(row.drafts)))
                else:
                    plain.append((state.matcher, first))
            first += row.num_masks
        where = bits.ctypes.data, 4 * bits.shape[1], bits.shape[0]
        if plain:
            self._threads.unsafe_compute_mask_ptr(plain, *where)
        if drafting:
            self._threads.unsafe_compute_mask_ptr_with_draft_token(drafting, *where)
        first = 0
        for row in rows:
            _finish(row, bits[first : first + row.num_masks].view(np.uint32))
            first += row.num_masks

    @cached_property
    def _threads(self) -> "LLExecutor":
        from llguidance import LLExecutor

        return LLExecutor(self._num_threads)


def _finish(row: MaskRow, masks: Bits) -> None:
    """Mend a row's masks by what llguidance does not know."""
    state = row.state
    if state.matcher.is_error() and not state.error:
        state.fail(state.matcher.get_error())
    if state.error:
        masks.fill(0xFFFFFFFF)
        return
    if due := state.due:
        masks.fill(0)
        for mask, token_id in zip(masks, due, strict=True):
            _set(mask, [token_id])
        return
    if state.is_free and not state.is_thinking:
        return
    ends = state.compiled.eos_token_ids
    for index, mask in enumerate(masks):
        if state.is_thinking:
            _clear(mask, ends)
        else:
            if any(_has(mask, token_id) for token_id in ends):
                _set(mask, row.stop_ids)
                _clear(mask, [token_id for token_id in ends if token_id not in row.stop_ids])
            if index == 0 and state.opening_id is not None:
                _set(mask, [state.opening_id])
        if row.num_output + index < row.min_tokens:
            _clear(mask, row.stop_ids)


def _has(mask: Bits, token_id: int) -> bool:
    return bool(mask[token_id >> 5] >> np.uint32(token_id & 31) & np.uint32(1))


def _set(mask: Bits, token_ids: Iterable[int]) -> None:
    for token_id in token_ids:
        if token_id >> 5 < len(mask):
            mask[token_id >> 5] |= np.uint32(1 << (token_id & 31))


def _clear(mask: Bits, token_ids: Iterable[int]) -> None:
    """Take tokens away, unless nothing would be left."""
    before = mask.copy()
    for token_id in token_ids:
        if token_id >> 5 < len(mask):
            mask[token_id >> 5] &= np.uint32(~(1 << (token_id & 31)) & 0xFFFFFFFF)
    if not mask.any():
        mask[:] = before
