"""FlatBatch: the rows of a step as a few tensors on the device, from which its plans follow.

Knows shapes alone, so that what it derives may be recorded in a CUDA graph: how many splits and
what tile is decided by sizes of tensors and never by what they hold. Refuses to know sequences.
"""

from typing import NamedTuple

from torch import Tensor

from workers.model.layout.paged_plan import PagedPlan, choose_splits, locate
from workers.model.layout.slot_plan import SlotPlan


class FlatBatch(NamedTuple):
    """A flat batch on a device, int32; rows as in paged_plan.py.

    `token_ids` `[tokens]`, `starts` `[rows + 1]`, `lengths` `[rows]`, `tables` `[rows, blocks]`,
    `last_tokens` `[samples]`: the tokens behind which to sample. `max_query` bounds the tokens of
    any row. Of a model with states, `slots` `[rows]` and `kept` `[tokens]` are as in slot_plan.py;
    of others they are empty.
    """

    token_ids: Tensor
    starts: Tensor
    lengths: Tensor
    tables: Tensor
    last_tokens: Tensor
    slots: Tensor
    kept: Tensor
    max_query: int

    def plan_attention(
        self, num_kv_heads: int, block_size: int, is_batch_invariant: bool = False
    ) -> tuple[Tensor, PagedPlan]:
        """Return the positions `[tokens]` and the plan of their attention."""
        num_rows, num_blocks = self.tables.shape
        rows = self.starts, self.lengths, self.tables
        positions, slots = locate(*rows, self.token_ids.shape[0], block_size)
        num_splits = 1
        if self.max_query == 1 and not is_batch_invariant:
            longest = num_blocks * block_size
            num_splits = choose_splits(num_rows, num_kv_heads, longest, self.starts.device)
        return positions, PagedPlan(slots, *rows, self.max_query, num_splits, is_batch_invariant)

    def plan_states(self) -> SlotPlan | None:
        """Return the plan of the layers that have states; None where there are none."""
        if not self.slots.shape[0]:
            return None
        return SlotPlan(self.starts, self.lengths, self.slots, self.kept, self.max_query)
