"""Decoder: a whole causal model, token ids in and logits or hidden states of chosen tokens out.

Takes the weights out of a transformers model layer by layer, so that memory never holds them twice.
Layers may lie on several devices; hidden states follow them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from workers.checkpoint.vision import VisionConfig
from workers.model.attention.attention import AttentionPlan, LayerKVCache, Plan
from workers.model.attention.block_kv_cache import BlockKVCache
from workers.model.attention.kv_cache import KVCache
from workers.model.layers.means import Means, Product
from workers.model.layers.qwen_layers import (
    DecoderLayer,
    Hidden,
    LayerCache,
    RMSNorm,
    Rope,
)
from workers.model.layers.state_cache import StateCache
from workers.model.layout.flat_batch import FlatBatch
from workers.model.layout.sight import Sight
from workers.model.layout.slot_plan import States
from workers.model.layout.state_plan import SlotCopy, StatePlan
from workers.model.linear.linear import Linear
from workers.model.mtp import MtpDrafter, MtpModules
from workers.model.native.bfloat16_tiles import Bfloat16Tiles
from workers.model.native.native import Native
from workers.model.parallel.group import Group
from workers.model.parallel.vocabulary import Embedding, join_logits
from workers.model.picture_rope import PictureRope


@dataclass(frozen=True)
class CacheShape:
    """The dimensions of one token's keys and values in one layer, and who is to read them."""

    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype
    for_kernels: bool = False
    native: Native | None = None

    @classmethod
    def of(
        cls,
        config: PretrainedConfig,
        dtype: torch.dtype,
        *,
        for_kernels: bool = False,
        native: Native | None = None,
    ) -> "CacheShape":
        """Without `native` where its functions take no such heads."""
        num_heads, num_kv_heads = config.num_attention_heads, config.num_key_value_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // num_heads
        if native is not None and not native.takes_heads(head_dim, num_heads // num_kv_heads):
            native = None
        return cls(num_kv_heads, head_dim, dtype, for_kernels, native)

    @property
    def token_bytes(self) -> int:
        return 2 * self.num_kv_heads * self.head_dim * self.dtype.itemsize

    def allocate(self, num_blocks: int, block_size: int, device: torch.device) -> LayerKVCache:
        """Return an empty cache of one layer, for kernels or for torch."""
        sizes = (self.num_kv_heads, num_blocks, block_size, self.head_dim, self.dtype, device)
        return BlockKVCache(*sizes) if self.for_kernels else KVCache(*sizes, self.native)


class Decoder:
    """The model of one engine. Its cache is allocated when it is known how much memory is left."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        is_batch_invariant: bool = False,
        for_kernels: bool = False,
        native: Native | None = None,
        has_head: bool = True,
        group: Group | None = None,
        vocab_size: int = 0,
        vision: VisionConfig | None = None,
    ) -> None:
        """With `is_batch_invariant`, a token's logits depend on nothing beside it.

        With `for_kernels`, a layer is about ten launches; its cache must be for kernels too.
        `native` are functions for the layers of a CPU. Without a head, normed hidden states stand
        in the place of logits. Where ranks share the model, `group` are these, and `vocab_size` is
        the whole one. `vision` is of a model that sees.
        """
        means = Means(is_batch_invariant, for_kernels, native, group)
        base: Any = model.model
        weight: Tensor = base.embed_tokens.weight.detach()
        self.device, self.dtype = weight.device, weight.dtype
        embedded: Tensor | Bfloat16Tiles = weight
        self._rotary = base.rotary_emb
        self._picture_rope = PictureRope(base.rotary_emb, vision) if vision else None
        self._layers = [DecoderLayer(layer, means) for layer in base.layers]
        self._caches: list[LayerCache] = []
        self._norm = RMSNorm(base.norm, means)
        self._head: Product | None = None
        if has_head:
            whole: Any = model
            is_classifier = hasattr(whole, "score")
            linear = whole.score if is_classifier else whole.lm_head
            self._head_device = linear.weight.device
            product = Linear(linear.weight.detach(), is_batch_invariant=is_batch_invariant)
            if product.tiles is not None and linear.weight.data_ptr() == weight.data_ptr():
                embedded = product.tiles  # a matrix that is both is held once
            self._head = join_logits(product, None if is_classifier else group, vocab_size)
        self._embedding = Embedding(embedded, group)
        self.drafter: MtpDrafter | None = None
        modules = getattr(model, "mtp", None)
        if isinstance(modules, MtpModules):
            assert not for_kernels, "multi-token prediction is computed by torch"
            modules.to(self._norm.device)  # a model that is spread may have spread them too
            self.drafter = MtpDrafter(
                modules, self._embedding, self._rotary, self._logits, Means(group=group)
            )
        self.is_batch_invariant = is_batch_invariant

    @property
    def layer_devices(self) -> list[torch.device]:
        drafter = [] if self.drafter is None else [self.drafter.device]
        return [layer.device for layer in self._layers] + drafter

    @property
    def num_attention_layers(self) -> int:
        """How many layers keep keys and values, a drafting one among them."""
        num_own = sum(layer.state_shape is None for layer in self._layers)
        return num_own + (self.drafter is not None)

    @cached_property
    def window(self) -> int | None:
        """How many tokens a token sees in layers that have a window; None if there are none."""
        return next((layer.window for layer in self._layers if layer.window), None)

    @cached_property
    def slot_bytes(self) -> int:
        """The bytes of one sequence's state in all layers; 0 for a model without states."""
        shapes = [layer.state_shape for layer in self._layers]
        own = sum(shape.slot_bytes for shape in shapes if shape is not None)
        return own + (self.drafter.slot_bytes if self.drafter else 0)

    def allocate_cache(
        self, shape: CacheShape, num_blocks: int, block_size: int, num_slots: int = 0
    ) -> None:
        """Replace the caches by empty ones; the old ones' memory is given back first."""
        self._caches.clear()
        for layer in self._layers:
            if layer.state_shape is None:
                self._caches.append(shape.allocate(num_blocks, block_size, layer.device))
            else:
                self._caches.append(StateCache(layer.state_shape, num_slots, layer.device))
        if self.drafter is not None:
            cache = shape.allocate(num_blocks, block_size, self.drafter.device)
            assert isinstance(cache, KVCache)
            self.drafter.allocate(cache, num_slots)
        self.cache_shape, self.num_blocks, self.block_size = shape, num_blocks, block_size

    def clear_cache(self, blocks: list[int]) -> None:
        """Put zeros into blocks, where what nobody wrote is read."""
        for cache in self._caches:
            if not isinstance(cache, StateCache):
                cache.clear(blocks)
        if self.drafter is not None:
            self.drafter.clear(blocks)

    def copy_states(self, copies: Sequence[SlotCopy]) -> None:
        """Copy or empty state slots in all layers, one copy after the other.

        Where kernels compute: else it is part of a StatePlan.
        """
        for cache in self._caches:
            if isinstance(cache, StateCache):
                cache.copy(copies)

    def forward_flat(self, flat: FlatBatch, rows: Tensor, sight: Sight | None = None) -> Tensor:
        """Return the logits at `rows` of a flat batch, whose attention kernels plan and compute."""
        num_kv_heads, is_batch_invariant = self.cache_shape.num_kv_heads, self.is_batch_invariant
        positions, plan = flat.plan_attention(num_kv_heads, self.block_size, is_batch_invariant)
        return self.forward(flat.token_ids, positions, plan, rows, flat.plan_states(), sight)

    @torch.inference_mode()
    def forward(
        self,
        token_ids: Tensor,
        positions: Tensor,
        plan: Plan,
        rows: Tensor,
        states: States | None = None,
        sight: Sight | None = None,
    ) -> Tensor:
        """Return the logits `[len(rows), vocabulary]` of the tokens at `rows` of the flat batch, or
        their hidden states `[len(rows), hidden]`.

        Where some belong to prompts with pictures, the `sight` has all tokens' positions. A drafter
        follows, and the hidden states that these are of are then `newest`.
        """
        embeddings = self._embedding(token_ids)
        hidden = Hidden(embeddings if sight is None else sight.put(embeddings))
        rope = self._rotate(positions, sight).to(self.device)
        device = self.device
        for number, (layer, cache) in enumerate(zip(self._layers, self._caches, strict=True)):
            if layer.device != device:
                device = layer.device
                hidden, rope, plan = hidden.to(device), rope.to(device), plan.to(device)
                states = None if states is None else states.to(device)
                sight = None if sight is None else sight.to(device)
            hidden = layer(hidden, rope, cache, plan, states)
            if sight is not None:
                sight.add_level(hidden.residual, number)
        if self.drafter is None:
            normed, _ = self._norm(hidden.at(rows.to(device)).to(self._norm.device))
            return self._logits(normed)
        assert isinstance(plan, AttentionPlan) and isinstance(states, StatePlan)
        behind, _ = self._norm(hidden.to(self._norm.device))
        self.drafter.follow(token_ids, behind, rope, plan.slots, states)
        self.newest = behind[rows.to(behind.device)]
        return self._logits(self.newest)

    def _rotate(self, positions: Tensor, sight: Sight | None) -> Rope:
        if sight is None:
            return Rope.compute(self._rotary, positions)
        assert self._picture_rope is not None
        return self._picture_rope(sight.positions)

    def _logits(self, normed: Tensor) -> Tensor:
        return normed if self._head is None else self._head(normed.to(self._head_device))
