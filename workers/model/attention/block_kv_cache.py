"""BlockKVCache: keys and values of one layer for the kernels, whole blocks with all heads.

KVCache is the layout for torch. Triton is imported when a cache is made, not before; attention is
launched on the current device, which is not the one of every layer.
"""

import torch
from torch import Tensor

from workers.model.layout.paged_plan import PagedPlan


class BlockKVCache:
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
        from workers.model.kernels import layers, paged_attention

        self._norm_rope_write = layers.norm_rope_write
        self._attend = paged_attention.attend
        shape = (num_blocks, block_size, num_kv_heads, head_dim)
        # Not filled: kernels read only what was written.
        self._keys = torch.empty(shape, dtype=dtype, device=device)
        self._values = torch.empty(shape, dtype=dtype, device=device)

    def clear(self, blocks: list[int]) -> None:
        """Leave blocks as they are: kernels read only what was written."""

    def rotate_and_write(
        self,
        qkv: Tensor,
        head_norm: Tensor | None,
        eps: float,
        scale: float,
        cos: Tensor,
        sin: Tensor,
        slots: Tensor,
        *,
        is_gated: bool = False,
    ) -> Tensor:
        """Store keys and values at the slots of the tokens, keys normalized and rotated.

        Return the queries `[tokens, heads, head_dim]`, scaled as well. See kernels/layers.py.
        """
        return self._norm_rope_write(
            qkv, head_norm, eps, scale, cos, sin, slots, self._keys, self._values, is_gated=is_gated
        )

    def attend(self, query: Tensor, plan: PagedPlan, window: int | None = None) -> Tensor:
        """Return the context `[tokens, heads, head_dim]` of all tokens of a step."""
        with torch.cuda.device_of(query):
            return self._attend(query, self._keys, self._values, plan, window)
