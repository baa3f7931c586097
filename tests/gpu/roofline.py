"""The fastest a model can decode on a device, from the bytes and products it cannot do without.

Knows a model's dimensions and a device's two ceilings, and ENGINE.md 6.1's formula:

    seconds of a step = max(bytes / bandwidth, 2 · weights used per token · rows / products)
    bytes             = weights read once + rows · context · bytes of a token's keys and values

The embedding is a gather and counts nothing; attention's own products are left out, too.
Refuses to know how anything is computed.
"""

from dataclasses import dataclass
from typing import NamedTuple

BYTES = 2  # of a bfloat16 number


class Ceilings(NamedTuple):
    """Bytes per second, read and written, and operations per second (a product is two)."""

    bandwidth: float
    products: float


@dataclass(frozen=True)
class Dimensions:
    """A dense model, or with `experts` one whose layers choose `chosen` of them for each token.

    `intermediate` is the width of an MLP, or of one expert.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    intermediate: int
    head_dim: int = 128
    vocabulary: int = 151_936
    experts: int = 0
    chosen: int = 0
    is_tied: bool = False

    @property
    def attention_weights(self) -> int:
        """Count one layer's projections: queries and output, keys and values; norms are nothing."""
        return 2 * self.hidden * (self.heads + self.kv_heads) * self.head_dim

    @property
    def mlp_weights(self) -> int:
        """Count gate, up and down of one MLP, or of one expert."""
        return 3 * self.hidden * self.intermediate

    @property
    def head_weights(self) -> int:
        return self.hidden * self.vocabulary

    @property
    def token_bytes(self) -> int:
        """Count what one token keeps in the cache."""
        return 2 * self.layers * self.kv_heads * self.head_dim * BYTES

    @property
    def used_weights(self) -> int:
        """Count the weights of all layers that one token is multiplied with."""
        mlps = self.chosen if self.experts else 1
        router = self.hidden * self.experts
        return self.layers * (self.attention_weights + router + mlps * self.mlp_weights)

    def read_weights(self, rows: int) -> float:
        """Count the weights a step of so many rows reads; experts by how many are expected to be
        chosen by any row, when each row chooses at random.
        """
        if not self.experts:
            return self.used_weights + self.head_weights
        touched = self.experts * (1 - (1 - self.chosen / self.experts) ** rows)
        unread = self.chosen - touched
        return self.used_weights + self.head_weights - self.layers * unread * self.mlp_weights


def decode_bound(model: Dimensions, rows: int, context: float, ceilings: Ceilings) -> float:
    """Return tokens per second of a batch, each of whose rows attends to `context` tokens."""
    num_bytes = BYTES * model.read_weights(rows) + rows * context * model.token_bytes
    operations = 2 * (model.used_weights + model.head_weights) * rows
    return rows / max(num_bytes / ceilings.bandwidth, operations / ceilings.products)


def prefill_bound(model: Dimensions, ceilings: Ceilings) -> float:
    """Return prompt tokens per second of long prompts, whose weights are read once for many."""
    return ceilings.products / (2 * model.used_weights)


def measure_ceilings(device: str) -> Ceilings:
    """Return what a large copy and a large matrix product reach now. On a CPU, a rough figure for
    rehearsals.
    """
    import torch

    from tests.gpu import attention_roofline

    if device == "cuda":
        there = torch.device(device)
        return Ceilings(
            attention_roofline.measure_bandwidth(there), attention_roofline.measure_products(there)
        )
    source = torch.ones(1 << 22)
    square = torch.ones(256, 256)
    target, product = torch.empty_like(source), torch.empty_like(square)
    return Ceilings(
        2 * source.nbytes / _seconds(lambda: target.copy_(source)),
        2 * 256**3 / _seconds(lambda: torch.mm(square, square, out=product)),
    )


def _seconds(run) -> float:  # type: ignore[no-untyped-def]
    import time

    run()
    started = time.perf_counter()
    run()
    return time.perf_counter() - started
