"""Embedding and Head: token ids in, logits out, each of one rank's rows of the vocabulary or all.

A rank's rows follow those of the one before; of a token that is another's, it knows zeros.
"""

from collections.abc import Callable

from torch import Tensor

from workers.model.native.bfloat16_tiles import Bfloat16Tiles
from workers.model.parallel.group import Group


class Embedding:
    """The hidden state that each token begins with, `[tokens, hidden]`."""

    def __init__(self, weight: Tensor | Bfloat16Tiles, group: Group | None = None) -> None:
        """`weight` is `[rows, hidden]`, a rank's share where there is a group. Where the head is
        the same matrix it may be that one's tiles.
        """
        self.weight = weight
        self._group = group

    def __call__(self, token_ids: Tensor) -> Tensor:
        if self._group is None:
            return self.weight[token_ids]
        num_rows = len(self.weight)
        local = token_ids - self._group.rank * num_rows
        is_other = (local < 0) | (local >= num_rows)
        hidden = self.weight[local.masked_fill(is_other, 0)]
        return self._group.sum(hidden.masked_fill_(is_other[:, None], 0))


def join_logits(
    product: Callable[[Tensor], Tensor], group: Group | None, vocab_size: int
) -> Callable[[Tensor], Tensor]:
    """Return what gives logits of the whole vocabulary, of a product with a rank's rows of it."""
    if group is None:
        return product
    return lambda x: group.join_columns(product(x), vocab_size)
