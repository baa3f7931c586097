"""PagedPlan: the attention of one step for the kernels, as a few tensors on the device.

    row 0      row 1         row 2
    ┌──────────┬─┬───────────┐
    │ a prompt │1│ a chunk   │   flat batch; starts = [0, 10, 11, 22]
    └──────────┴─┴───────────┘

Row r is the newest `starts[r + 1] - starts[r]` tokens of a sequence of `lengths[r]`, whose block b
is block `tables[r, b]` of the cache. A row without tokens is padding, as are tokens beyond
`starts[-1]`.
"""

from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

# Programs a split aims at for each multiprocessor, and the longest part it is worth cutting for.
_PROGRAMS_PER_PROCESSOR = 2
_SHORTEST_SPLIT = 256
_MOST_SPLITS = 32
# Where there is no GPU to ask: small, so that tests under Triton's interpreter split as well.
_PROCESSORS_WITHOUT_GPU = 8


@dataclass(frozen=True)
class PagedPlan:
    """All attention of one step; equal for every layer on one device. Tensors are int32.

    `slots` `[tokens]` is where keys and values go, `starts` `[rows + 1]`, `lengths` `[rows]`,
    `tables` `[rows, blocks]`. `max_query` bounds the tokens of any row; `num_splits`, a power of
    two, is into how many parts each row's keys are cut. A batch-invariant plan cuts none and has
    one tile for every row, so that a token's context depends on nothing beside it.
    """

    slots: Tensor
    starts: Tensor
    lengths: Tensor
    tables: Tensor
    max_query: int
    num_splits: int = 1
    is_batch_invariant: bool = False

    def __post_init__(self) -> None:
        assert not self.is_batch_invariant or self.num_splits == 1

    def to(self, device: torch.device) -> Self:
        """Return the plan with its tensors on another device."""
        parts = vars(self).items()
        moved: Any = {name: part.to(device) for name, part in parts if isinstance(part, Tensor)}
        return replace(self, **moved)


def locate(
    starts: Tensor, lengths: Tensor, tables: Tensor, num_tokens: int, block_size: int
) -> tuple[Tensor, Tensor]:
    """Return positions and slots `[num_tokens]` of a flat batch, padding at 0 of the trash block.

    Nothing here looks at a value on the host, so a CUDA graph may hold it.
    """
    token = torch.arange(num_tokens, dtype=torch.int32, device=starts.device)
    row = torch.searchsorted(starts[1:], token, right=True).clamp_(max=lengths.shape[0] - 1)
    is_real = token < starts[-1]
    position = torch.where(is_real, lengths[row] - starts[row + 1] + token, 0)
    block = tables[row, position // block_size]
    return position, torch.where(is_real, block * block_size + position % block_size, 0)


def choose_splits(rows: int, num_kv_heads: int, longest: int, device: torch.device) -> int:
    """Return into how many parts to cut the keys of single-token rows, so that no GPU half idles.

    `longest` is a bound on lengths. One split is the batch-invariant choice.
    """
    processors = (
        torch.cuda.get_device_properties(device).multi_processor_count
        if device.type == "cuda"
        else _PROCESSORS_WITHOUT_GPU
    )
    wanted = processors * _PROGRAMS_PER_PROCESSOR // max(1, rows * num_kv_heads)
    useful = min(wanted, longest // _SHORTEST_SPLIT, _MOST_SPLITS)
    return 1 << max(0, useful.bit_length() - 1)
