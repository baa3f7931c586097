"""Find the row of a flat batch that a program of a kernel works for."""

import triton
import triton.language as tl


@triton.jit
def find_row(block, starts, num_rows, tokens_per_block: tl.constexpr, spare: tl.constexpr = 1):
    """Return the row a block of tokens belongs to, and the number of the block within the row.

    Row r has blocks from `starts[r] // tokens_per_block + spare * r` on: as many as it needs, if
    they begin with its first token and `spare` is 1, or anywhere before it and `spare` is 2.
    """
    low = 0
    high = num_rows
    while high - low > 1:
        middle = (low + high) // 2
        is_before = tl.load(starts + middle) // tokens_per_block + spare * middle <= block
        low = tl.where(is_before, middle, low)
        high = tl.where(is_before, high, middle)
    return low, block - (tl.load(starts + low) // tokens_per_block + spare * low)
