"""Sight: what a flat batch needs of the pictures that some of its prompts have."""

from typing import NamedTuple

import torch
from torch import Tensor


class Sight(NamedTuple):
    """`positions` `[3, tokens]` are those of the whole flat batch: time, row and column.

    The tokens at the places `where` `[seen]` stand for parts of pictures. `features`
    `[1 + levels, seen, width]` come in the place of their embeddings, and those of further levels
    are added behind the first layers, one behind each.
    """

    positions: Tensor
    where: Tensor
    features: Tensor

    def put(self, embeddings: Tensor) -> Tensor:
        """Return the embeddings of the flat batch, with what is seen in its place."""
        if not len(self.where):
            return embeddings
        return embeddings.index_copy(0, self.where, self.features[0].to(embeddings))

    def add_level(self, residual: Tensor, layer: int) -> None:
        """Add what the tower gives behind a layer to the sum there, in place."""
        if layer + 1 < self.features.shape[0] and len(self.where):
            residual.index_add_(0, self.where, self.features[layer + 1].to(residual))

    def to(self, device: torch.device) -> "Sight":
        return Sight(self.positions, self.where.to(device), self.features.to(device))
