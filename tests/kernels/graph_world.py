"""A tiny random Qwen3, or Qwen3.5, on the kernels, graphs over it, and sequences that grow step by
step.
"""

import random
from types import SimpleNamespace
from weakref import WeakSet

import torch
from torch import Tensor
from transformers import (
    Qwen3_5ForCausalLM,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from workers.engine.batch import Row
from workers.engine.batch_layout import flatten_rows
from workers.engine.state_manager import StateTable
from workers.model.decoder import CacheShape, Decoder
from workers.model.graphs import Capture, Graphs
from workers.model.layers.state_cache import StateCache
from workers.model.layout.flat_batch import FlatBatch
from workers.model.layout.state_plan import SlotCopy

VOCABULARY = 61
DIMENSIONS = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 32768,
}
# A layer with a state, and one with attention.
HYBRID = {
    "num_hidden_layers": 2,
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 1,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
}


class Recorder:
    """Keeps what it was given, and calls it again on a poisoned output: a graph without CUDA."""

    def __init__(self) -> None:
        self.count = 0
        self.recorded: WeakSet[object] = WeakSet()
        self.is_broken = False

    def __call__(self, compute):
        if self.is_broken:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        output = compute()
        self.count += 1

        def replay() -> Tensor:
            output.fill_(torch.nan)
            assert compute().data_ptr() == output.data_ptr()
            return output

        self.recorded.add(replay)
        return replay


class World:
    """A decoder with a cache of NaN, and sequences of random tokens in shuffled blocks."""

    def __init__(
        self,
        *,
        num_sequences: int = 12,
        max_model_len: int = 64,
        block_size: int = 4,
        num_blocks: int = 160,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        is_batch_invariant: bool = True,
        for_kernels: bool = False,
        is_hybrid: bool = False,
        **dimensions: int,
    ) -> None:
        self.num_sequences, self.max_model_len = num_sequences, max_model_len
        self.block_size, self.device = block_size, torch.device(device)
        torch.manual_seed(3)
        if is_hybrid:
            config = Qwen3_5TextConfig(**(DIMENSIONS | HYBRID | dimensions))
        else:
            config = Qwen3Config(**(DIMENSIONS | dimensions))
        model_class = Qwen3_5ForCausalLM if is_hybrid else Qwen3ForCausalLM
        model = model_class(config).to(self.device, dtype).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.2)
        self.decoder = Decoder(
            model, is_batch_invariant=is_batch_invariant, for_kernels=for_kernels
        )
        shape = CacheShape.of(config, dtype, for_kernels=True)
        self.decoder.allocate_cache(shape, num_blocks, block_size, num_slots=2 * num_sequences + 1)
        self.num_kv_heads = shape.num_kv_heads
        self.pages, self.states = [], []
        for cache in self.decoder._caches:
            if isinstance(cache, StateCache):
                self.states += [cache.matrices, cache.inputs]
            else:
                self.pages += [cache._keys, cache._values]
        for part in (*self.pages, *self.states):
            part.fill_(torch.nan)
        chance = random.Random(5)
        slots = chance.sample(range(1, 2 * num_sequences + 1), num_sequences)
        blocks = chance.sample(range(1, num_blocks), num_blocks - 1)
        each = (num_blocks - 1) // num_sequences
        self.sequences = [
            SimpleNamespace(
                token_ids=[chance.randrange(VOCABULARY) for _ in range(each * block_size)],
                table=SimpleNamespace(
                    ids=blocks[index * each : (index + 1) * each],
                    state=StateTable(slot=slots[index]) if is_hybrid else None,
                ),
            )
            for index in range(num_sequences)
        ]
        self.lengths = [0] * num_sequences

    def graphs(self, capture: Capture | None = None) -> Graphs:
        return Graphs(self.decoder, self.max_model_len, self.num_sequences, capture)

    def rows(self, *counts: int, num_samples: int = 1) -> list[Row]:
        """Return the next tokens of the first sequences, as many as counted; they are computed."""
        rows = []
        for index, count in enumerate(counts):
            if count:
                start = self.lengths[index]
                rows.append(Row(self.sequences[index], start, count, min(count, num_samples)))
                self.lengths[index] += count
        return rows

    def flat(self, *counts: int, num_samples: int = 1) -> FlatBatch:
        rows = self.rows(*counts, num_samples=num_samples)
        return flatten_rows(rows, self.block_size, self.device)

    def empty_states(self) -> None:
        """Let all sequences begin, which leaves the slots of nobody at NaN."""
        slots = [one.table.state.slot for one in self.sequences if one.table.state]
        self.decoder.copy_states([SlotCopy(None, slot) for slot in slots])

    def prefill(self, *counts: int) -> None:
        """Let the next tokens of the first sequences have been computed: anything but NaN."""
        for row in self.rows(*counts):
            for part in self.states:
                part[row.sequence.table.state.slot].normal_(std=0.3)
            for position in range(row.start, row.stop):
                block = row.sequence.table.ids[position // self.block_size]
                for part in self.pages:
                    part[block, position % self.block_size].normal_()

    def eager(self, flat: FlatBatch) -> Tensor:
        return self.decoder.forward_flat(flat, flat.last_tokens)

    def snapshot(self) -> list[Tensor]:
        return [part.clone() for part in (*self.pages, *self.states)]

    def restore(self, parts: list[Tensor]) -> None:
        for part, old in zip((*self.pages, *self.states), parts, strict=True):
            part.copy_(old)
