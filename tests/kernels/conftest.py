"""Batches over poisoned pages: what a kernel must not read is NaN, and so is what it must write."""

import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from workers.model.kernels import reference
from workers.model.layout.paged_plan import PagedPlan, locate

DEVICE = os.environ.get("QWENAPI_TEST_DEVICE", "cpu")
# Triton's interpreter computes products of bfloat16 wrongly, so those are for a GPU.
DTYPES = [torch.float32, torch.float16, *([] if DEVICE == "cpu" else [torch.bfloat16])]
# The largest error of any head's context, relative to its length. Rounding weights and contexts
# alone makes 3.9e-4 in float16 and 3.2e-3 in bfloat16.
LIMITS = {torch.float32: 1e-5, torch.float16: 1.5e-3, torch.bfloat16: 1e-2}


@dataclass
class Case:
    """Rows of (tokens, length), with their queries, pages and expected contexts."""

    rows: list[tuple[int, int]]
    query: Tensor
    keys: Tensor
    values: Tensor
    starts: Tensor
    lengths: Tensor
    tables: Tensor
    expected: Tensor

    def plan(self, num_splits: int = 1, max_query: int = 0) -> PagedPlan:
        num_tokens, block_size = self.query.shape[0], self.keys.shape[1]
        _, slots = locate(self.starts, self.lengths, self.tables, num_tokens, block_size)
        max_query = max_query or max(tokens for tokens, _ in self.rows)
        return PagedPlan(slots, self.starts, self.lengths, self.tables, max_query, num_splits)

    def check(self, context: Tensor) -> None:
        """Check contexts of all rows' tokens against float64 over unpaged keys and values."""
        context = context[: len(self.expected)].double()
        error = (context - self.expected).norm(dim=-1) / self.expected.norm(dim=-1)
        assert float(error.nan_to_num(nan=torch.inf).max()) < LIMITS[self.query.dtype]


def make_case(
    rows: list[tuple[int, int]],
    *,
    group: int = 2,
    num_kv_heads: int = 2,
    head_dim: int = 64,
    block_size: int = 16,
    padding: int = 0,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    window: int | None = None,
) -> Case:
    """Return a case with shuffled block tables and NaN wherever no token lies."""
    torch.manual_seed(seed)
    num_tokens = sum(tokens for tokens, _ in rows)
    shape = (num_tokens + padding, group * num_kv_heads, head_dim)
    query = (torch.randn(shape) * (3 * head_dim**-0.5)).to(dtype)
    width = max(1, max(-(-length // block_size) for _, length in rows))
    num_blocks = len(rows) * width + 2
    shape = (num_blocks, block_size, num_kv_heads, head_dim)
    keys, values = (torch.full(shape, torch.nan, dtype=dtype) for _ in range(2))
    shuffled = torch.randperm(num_blocks - 2)[: len(rows) * width].view(len(rows), width) + 1
    starts = torch.tensor([0, *(tokens for tokens, _ in rows)]).cumsum(0)
    expected = []
    for (tokens, length), start, table in zip(rows, starts.tolist(), shuffled, strict=False):
        used = -(-length // block_size)
        table[used:] = num_blocks - 1  # a page of NaN
        slots = (table[:used, None] * block_size + torch.arange(block_size)).view(-1)[:length]
        key, value = torch.randn(2, length, num_kv_heads, head_dim).to(dtype)
        keys.view(-1, num_kv_heads, head_dim)[slots] = key
        values.view(-1, num_kv_heads, head_dim)[slots] = value
        own = query[start : start + tokens].double()
        if tokens:
            whole = key.double().transpose(0, 1), value.double().transpose(0, 1)
            expected.append(reference.attend_row(own, *whole, window))
    lengths = torch.tensor([length for _, length in rows])
    on_device = (t.to(DEVICE) for t in (query, keys, values))
    as_int32 = (t.int().to(DEVICE) for t in (starts, lengths, shuffled))
    return Case(rows, *on_device, *as_int32, torch.cat(expected).to(DEVICE))


@pytest.fixture
def poisoned(monkeypatch) -> Iterator[list[Tensor]]:
    """Let every new_empty of floating numbers return NaN, and list what it returned."""
    new_empty, made = torch.Tensor.new_empty, []

    def new_poisoned(self: Tensor, *args: object, **kwargs: object) -> Tensor:
        tensor = new_empty(self, *args, **kwargs)
        if tensor.is_floating_point():
            made.append(tensor.fill_(torch.nan))
        return tensor

    monkeypatch.setattr(torch.Tensor, "new_empty", new_poisoned)
    yield made
    assert made, "the kernel made its output in another way: nothing was poisoned"
