"""Batch-invariant arithmetic: a token's result depends on nothing beside it (`deterministic`).

A matrix product picks its kernel by the number of rows, and another kernel adds in another order:
one row of `F.linear` alone and among 64 differs in nine of ten elements. So every shape is fixed
here. A prompt computed at once, in chunks, or token by token again after an engine was lost then
gives the same bits.

    CPU    products in blocks of 16 rows padded with zeros; attention for one query at a time over
           blocks of 128 keys, folded in their order
    CUDA   products by kernels/matmul.py, attention by kernels/paged_attention.py with a plan for it

On CUDA norms, rotation and activations are kernels/layers.py's, one program a token whatever the
batch; of torch it is relied upon that lookups, casts and rotary angles, products of one term each,
are computed element by element. The bits are those of one kind of device with one version of torch
and triton. Checked on a CPU, with the kernels under Triton's interpreter; no GPU has run it.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

LINEAR_ROWS = 16
KEY_BLOCK = 128


def blocks_of_rows(x: Tensor) -> tuple[Tensor, ...]:
    """Return x `[rows, in]` as blocks of LINEAR_ROWS rows, the last one filled up with zeros."""
    return F.pad(x, (0, 0, 0, -x.shape[0] % LINEAR_ROWS)).split(LINEAR_ROWS)


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x `[rows, in]` times weight `[out, in]` transposed, plus bias."""
    if multiplies_by_kernel(x.device):
        from workers.model.kernels import matmul

        with torch.cuda.device_of(x):
            return matmul.multiply(x, weight, bias)
    return in_blocks(partial(F.linear, weight=weight, bias=bias), x)


def multiplies_by_kernel(device: torch.device) -> bool:
    """Return whether products are the kernel's there. Tests replace this, to interpret it."""
    return device.type == "cuda"


def in_blocks(multiply: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return a product with x `[rows, in]`, computed by blocks of rows."""
    return torch.cat([multiply(block) for block in blocks_of_rows(x)])[: x.shape[0]]


def silu(x: Tensor) -> Tensor:
    """Return the SiLU of `[rows, ...]`."""
    return by_row(F.silu, x)


def sigmoid(x: Tensor) -> Tensor:
    """Return the logistic function of `[rows, ...]`."""
    return by_row(torch.sigmoid, x)


def by_row(compute: Callable[..., Tensor], *parts: Tensor) -> Tensor:
    """Return an elementwise function of `[rows, ...]`, on a CPU computed row by row: threads share
    out a whole tensor, and where a share ends the last elements are computed by another routine.
    """
    if parts[0].device.type != "cpu":
        return compute(*parts)
    rows = zip(*(part.split(1) for part in parts), strict=True)
    return torch.cat([compute(*row) for row in rows])


def attend_span(query: Tensor, keys: Tensor, values: Tensor, window: int | None = None) -> Tensor:
    """Attend causally; scaled queries are of the last tokens of `[kv_heads, length, head_dim]`.

    With a `window` a token sees itself and so many less one before it.
    """
    tokens, num_heads, head_dim = query.shape
    num_kv_heads, length = keys.shape[:2]
    filled = (0, 0, 0, -length % KEY_BLOCK)
    key_blocks = F.pad(keys, filled).split(KEY_BLOCK, dim=1)
    value_blocks = F.pad(values, filled).split(KEY_BLOCK, dim=1)
    blocks = [
        (key.contiguous().transpose(1, 2), value.contiguous())
        for key, value in zip(key_blocks, value_blocks, strict=True)
    ]
    grouped = query.reshape(tokens, num_kv_heads, -1, head_dim)
    context = torch.empty_like(grouped)
    for token in range(tokens):
        num_visible = length - tokens + token + 1
        num_hidden = max(0, num_visible - window) if window else 0
        context[token] = _attend_one(grouped[token].contiguous(), blocks, num_visible, num_hidden)
    return context.view(tokens, num_heads, head_dim)


def _attend_one(
    query: Tensor, blocks: list[tuple[Tensor, Tensor]], num_visible: int, num_hidden: int
) -> Tensor:
    """Attend one query `[kv_heads, group, head_dim]` over its first `num_visible` keys, of which
    the first `num_hidden` are left out.

    The softmax is folded block by block, as in Milakov and Gimelshein, "Online normalizer
    calculation for softmax" (2018), in float32.
    """
    shape = query.shape[:2]
    largest = torch.full((*shape, 1), float("-inf"))
    total = torch.zeros((*shape, 1))
    context = torch.zeros(query.shape)
    for first, (key, value) in zip(range(0, num_visible, KEY_BLOCK), blocks, strict=False):
        if first + KEY_BLOCK <= num_hidden:
            continue
        scores = torch.bmm(query, key).float()
        scores[..., : max(0, num_hidden - first)] = float("-inf")
        scores[..., max(0, num_visible - first) :] = float("-inf")
        larger = torch.maximum(largest, scores.amax(-1, keepdim=True))
        weights = (scores - larger).exp_()
        shrink = (largest - larger).exp_()
        part = torch.bmm(weights.to(value.dtype), value).float()
        context = context.mul_(shrink).add_(part)
        total = total.mul_(shrink).add_(weights.sum(-1, keepdim=True))
        largest = larger
    return (context / total).to(query.dtype)
