"""Native: the compiled functions, called with tensors of one dtype on a CPU."""

import ctypes
from ctypes import c_float, c_int32, c_int64
from functools import cache

import torch
from torch import Tensor

from workers.model.native import library
from workers.model.native.bfloat16_tiles import Bfloat16Tiles
from workers.model.native.int4_tiles import Int4Tiles
from workers.model.native.int8_tiles import Int8Tiles
from workers.model.native.panels import PANEL

# As attention.c has them.
PART = 1024
_MOST_DIMS, _MOST_GROUP = 256, 16
_LANES = 16
# Queries that a tile of a span has: their contexts stay in the second cache.
_TILE_ROWS = 128
_NO_WINDOW = 2**30
# Floats that contexts are folded in at once: 64 MiB.
_MOST_SCRATCH = 1 << 24


class Native:
    """What is computed by C, for contiguous tensors of one dtype."""

    def __init__(self, functions: ctypes.CDLL, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._attend = functions.attend_tokens
        self._attend_span = getattr(functions, "attend_span", None)
        if self._attend_span is not None:
            self._span_bytes = functions.span_bytes
            self._span_bytes.restype = c_int64
        self._add_rms_norm = functions.add_rms_norm
        self._norm_rope_write = functions.norm_rope_write
        self._silu_mul = functions.silu_mul
        self._multiply_bfloat16 = getattr(functions, "multiply_bfloat16", None)
        self._multiply_int4 = functions.multiply_int4
        self._multiply_int8 = getattr(functions, "multiply_int8", None)
        self._round_rows = functions.round_rows
        self._scale_rows = functions.scale_rows

    @classmethod
    @cache
    def load(cls, dtype: torch.dtype) -> "Native | None":
        """Return the functions for a dtype; None, with a line in the log, where they cannot be."""
        functions = library.load(dtype)
        return None if functions is None else cls(functions, dtype)

    @staticmethod
    def takes_heads(head_dim: int, group: int) -> bool:
        """Whether heads of this size, so many to a key head, are computed."""
        return head_dim % _LANES == 0 and head_dim <= _MOST_DIMS and group <= _MOST_GROUP

    def takes_spans(self, head_dim: int) -> bool:
        """Whether spans of heads of this size are attended, which is for some CPUs only."""
        return self._attend_span is not None and head_dim % PANEL == 0 and head_dim <= _MOST_DIMS

    @staticmethod
    def takes_width(width: int) -> bool:
        """Whether rows of so many numbers are computed."""
        return width % _LANES == 0

    def takes_plain(self, num_inputs: int) -> bool:
        """Whether products with plain weights are computed, which is for some CPUs only."""
        return self._multiply_bfloat16 is not None and num_inputs % 2 == 0

    def takes_int8(self, num_inputs: int) -> bool:
        """Whether products with weights of 8 bits are computed, which is for some CPUs only."""
        return self._multiply_int8 is not None and self.takes_width(num_inputs)

    def attend(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        block_size: int,
        tables: Tensor,
        rows: Tensor,
        lengths: Tensor,
        longest: int,
        window: int | None,
    ) -> Tensor:
        """Return the context of scaled queries `[tokens, heads, head_dim]`, each alone.

        `keys` and `values` are `[kv_heads, blocks * block_size, head_dim]`. Token t sees the last
        `window` of its first `lengths[t]` keys, `longest` at most, in the blocks of row `rows[t]`
        of `tables` `[sequences, blocks]`; all three are int32.
        """
        num_tokens, num_heads, head_dim = query.shape
        num_kv_heads, num_slots = keys.shape[:2]
        assert query.dtype == keys.dtype == self._dtype and query.is_contiguous()
        parts = -(-min(longest, window or longest) // PART)
        context = torch.empty_like(query)
        folded = num_heads * parts * (head_dim + 2)  # of one token
        at_once = max(1, min(num_tokens, _MOST_SCRATCH // folded))
        scratch = torch.empty(at_once * folded)
        for first in range(0, num_tokens, at_once):
            some = slice(first, first + at_once)
            asked, given, their_rows, seen = query[some], context[some], rows[some], lengths[some]
            self._attend(
                *_pointers(asked, keys, values, given, tables, their_rows, seen),
                *map(c_int32, (len(asked), num_heads, num_kv_heads, head_dim)),
                *map(c_int32, (num_slots // block_size, block_size, tables.shape[1])),
                *map(c_int32, (window or _NO_WINDOW, parts, torch.get_num_threads())),
                *_pointers(scratch),
            )
        return context

    def attend_span(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        block_size: int,
        table: Tensor,
        length: int,
        window: int | None,
    ) -> Tensor:
        """Return the context of scaled queries `[tokens, heads, head_dim]` of the last tokens of a
        sequence of `length`, each of which sees the last `window` keys up to its own.

        Keys and values are as in `attend`, `table` has the sequence's blocks, int32.
        """
        num_tokens, num_heads, head_dim = query.shape
        num_kv_heads, num_slots = keys.shape[:2]
        assert self._attend_span is not None, "spans are planned only where they are attended"
        assert query.dtype == keys.dtype == self._dtype and query.is_contiguous()
        group, threads = num_heads // num_kv_heads, torch.get_num_threads()
        tile = max(1, _TILE_ROWS // group)
        context = torch.empty_like(query)
        num_bytes = self._span_bytes(c_int32(tile), c_int32(group), c_int32(head_dim))
        scratch = torch.empty(threads * num_bytes, dtype=torch.uint8)
        self._attend_span(
            *_pointers(query, keys, values, context, table, scratch),
            *map(c_int32, (num_tokens, num_heads, num_kv_heads, head_dim)),
            *map(c_int32, (num_slots // block_size, block_size, length)),
            *map(c_int32, (window or _NO_WINDOW, tile, threads)),
        )
        return context

    def add_rms_norm(
        self, delta: Tensor | None, residual: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """Add delta to residual `[tokens, width]` in place; return its norm, and it."""
        assert residual.dtype == self._dtype and residual.is_contiguous()
        if delta is not None:
            assert delta.dtype == self._dtype and delta.shape == residual.shape
            delta = delta.contiguous()
        normed = torch.empty_like(residual)
        self._add_rms_norm(
            *_pointers(delta, residual, weight, normed),
            *map(c_int32, residual.shape),
            c_float(eps),
            c_int32(torch.get_num_threads()),
        )
        return normed, residual

    def norm_rope_write(
        self,
        qkv: Tensor,
        head_norm: Tensor | None,
        eps: float,
        scale: float,
        cos: Tensor,
        sin: Tensor,
        slots: Tensor,
        keys: Tensor,
        values: Tensor,
    ) -> Tensor:
        """Rotate the heads of `qkv` `[tokens, (heads + 2 kv_heads) * head_dim]`, write keys and
        values to the slots of `[kv_heads, slots, head_dim]`; return queries, scaled.

        `head_norm` is float32 `[heads + kv_heads, head_dim]` and holds the scale of queries, `cos`
        and signed `sin` are those of Rope.
        """
        num_kv_heads, num_slots, head_dim = keys.shape
        num_tokens, num_all = qkv.shape[0], qkv.shape[1] // head_dim
        num_heads = num_all - 2 * num_kv_heads
        assert qkv.dtype == keys.dtype == self._dtype and qkv.is_contiguous()
        query = qkv.new_empty((num_tokens, num_heads, head_dim))
        self._norm_rope_write(
            *_pointers(qkv, head_norm, cos, sin, slots, query, keys, values),
            *map(c_int32, (num_tokens, num_heads, num_kv_heads, head_dim, cos.shape[-1])),
            c_int64(num_slots),
            c_float(eps),
            c_float(scale),
            c_int32(torch.get_num_threads()),
        )
        return query

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """Return the SiLU of the first half of `[tokens, 2 * width]`, times the second."""
        assert gate_up.dtype == self._dtype and gate_up.is_contiguous()
        num_tokens, width = gate_up.shape[0], gate_up.shape[1] // 2
        product = gate_up.new_empty((num_tokens, width))
        self._silu_mul(
            *_pointers(gate_up, product),
            *map(c_int32, (num_tokens, width, torch.get_num_threads())),
        )
        return product

    def round_rows(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return x `[rows, width]` in 8 bits, plus 128, and the float32 scales `[rows, 1]`."""
        assert x.dtype == self._dtype and x.is_contiguous()
        values = torch.empty(x.shape, dtype=torch.uint8)
        scales = torch.empty((len(x), 1))
        self._round_rows(
            *_pointers(x, values, scales), *map(c_int32, (*x.shape, torch.get_num_threads()))
        )
        return values, scales

    def scale_rows(self, y: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
        """Multiply y `[rows, width]` by float32 scales `[rows, 1]` in place, and add a float32 bias
        `[width]`; return y.
        """
        assert y.dtype == self._dtype and y.is_contiguous()
        self._scale_rows(
            *_pointers(y, scales, bias), *map(c_int32, (*y.shape, torch.get_num_threads()))
        )
        return y

    def multiply_bfloat16(self, x: Tensor, weight: Bfloat16Tiles, bias: Tensor | None) -> Tensor:
        """Return x Wᵀ + b for x `[rows, in]` and a float32 bias filled up to whole panels; every
        row as if it were alone.
        """
        num_outputs, num_inputs = weight.shape
        assert self._multiply_bfloat16 is not None, "such weights are made only where it is"
        assert x.dtype == self._dtype and x.is_contiguous() and x.shape[1] == num_inputs
        y = x.new_empty((len(x), num_outputs))
        self._multiply_bfloat16(
            *_pointers(x, weight.panels, bias, y),
            *map(c_int32, (len(x), num_inputs, num_outputs, torch.get_num_threads())),
        )
        return y

    def multiply_int8(self, x: Tensor, weight: Int8Tiles, bias: Tensor | None) -> Tensor:
        """Return x Wᵀ + b for x `[rows, in]`, rounded to 8 bits, and a float32 bias filled up to
        whole panels; every row as if it were alone.
        """
        num_rows, (num_outputs, num_inputs) = len(x), weight.shape
        assert self._multiply_int8 is not None, "such weights are made only where it is"
        assert x.dtype == self._dtype and x.is_contiguous() and x.shape[1] == num_inputs
        y = x.new_empty((num_rows, num_outputs))
        scratch = torch.empty(num_rows * (num_inputs + 4), dtype=torch.uint8)
        parts = (weight.panels, weight.offsets, weight.scales)
        self._multiply_int8(
            *_pointers(x, *parts, bias, y, scratch),
            *map(c_int32, (num_rows, num_inputs, num_outputs, torch.get_num_threads())),
        )
        return y

    def multiply_int4(self, x: Tensor, weight: Int4Tiles, bias: Tensor | None) -> Tensor:
        """Return x Wᵀ + b for x `[rows, in]` and a float32 bias; every row as if it were alone."""
        (num_outputs, num_inputs), num_groups = weight.shape, weight.scales.shape[1]
        num_rows, width = len(x), num_groups * weight.group_size
        assert x.dtype == self._dtype and x.is_contiguous() and x.shape[1] == num_inputs
        y = x.new_empty((num_rows, num_outputs))
        scratch = torch.empty(num_rows * (width + 2 * 4 * num_groups), dtype=torch.int8)
        parts = (weight.tiles, weight.scales, weight.zeros, weight.factors)
        sizes = (num_rows, num_inputs, num_outputs, weight.group_size, num_groups)
        self._multiply_int4(
            *_pointers(x, *parts, bias, weight.order, y, scratch),
            *map(c_int32, (*sizes, torch.get_num_threads())),
        )
        return y


def _pointers(*tensors: Tensor | None) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(None if one is None else one.data_ptr()) for one in tensors]
