"""The keys and values of one layer as the kernels want them: pages that hold all heads of a block.

The other layout is in pages.py. Triton is imported when pages are made, not before; it launches on
the current device, which is not the one of every layer.
"""

import torch
from torch import Tensor

from workers.model.paged_plan import PagedPlan


class BlockPages:
    """Keys and values of one layer, `[blocks, block_size, kv_heads, head_dim]` each."""

    def __init__(
        self,
        num_kv_heads: int,
        num_blocks: int,
        block_size: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        from workers.model.kernels import paged_attention

        self._kernels = paged_attention
        shape = (num_blocks, block_size, num_kv_heads, head_dim)
        # Not filled: kernels read only what was written.
        self._keys = torch.empty(shape, dtype=dtype, device=device)
        self._values = torch.empty(shape, dtype=dtype, device=device)

    def write(self, slots: Tensor, key: Tensor, value: Tensor) -> None:
        """Store `[tokens, kv_heads, head_dim]` at the slots of the tokens."""
        with torch.cuda.device_of(key):
            self._kernels.write(slots, key, value, self._keys, self._values)

    def attend(self, query: Tensor, plan: PagedPlan) -> Tensor:
        """Return the context `[tokens, heads, head_dim]` of all tokens of a step."""
        with torch.cuda.device_of(query):
            return self._kernels.attend(query, self._keys, self._values, plan)
