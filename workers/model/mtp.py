"""Multi-token prediction: a hybrid checkpoint's own extra layer, which drafts tokens.

    hidden state behind token i-1 → RMSNorm ┐
                                            ├ fc → layer with attention → RMSNorm → head → i+1
             embedding of token i → RMSNorm ┘

After vLLM's `Qwen3NextMultiTokenPredictor` and `Qwen3_5MultiTokenPredictor`, and SGLang's of the
same models: the hidden state is the one behind the model's last norm, `fc` takes the embedding
first, and for drafts behind the first the layer's own output, behind its norm, takes the place of
the hidden state.

Keys and values of the layer lie in the sequences' blocks as those of others do, and its state slots
hold the hidden state behind a sequence's last token. What follows from token i and all before it
lies in i's place: so blocks and snapshots in which a prompt is found again hold all that it needs.
vLLM counts places from the hidden state's, one less; in rotations only differences count. A
sequence's first place, before which there is no hidden state, is attended by none.
"""

from collections.abc import Callable
from copy import copy
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

from workers.model.attention.attention import AttentionPlan
from workers.model.attention.kv_cache import KVCache
from workers.model.layers.means import Means
from workers.model.layers.qwen_layers import DecoderLayer, Hidden, RMSNorm, Rope
from workers.model.layers.state_cache import copy_slots
from workers.model.layout.state_plan import SlotCopy, StatePlan
from workers.model.linear.linear import merge
from workers.model.parallel.vocabulary import Embedding


class MtpModules(torch.nn.Module):
    """The layer's weights, by the names they have in checkpoints, as transformers loads them."""

    def __init__(self, config: PretrainedConfig, base: Any) -> None:
        """`base` is the model whose classes of layers and norms these are."""
        super().__init__()
        own = copy(config)
        own.num_hidden_layers, own.layer_types = 1, ["full_attention"]
        norm, width = type(base.norm), config.hidden_size
        self.fc = torch.nn.Linear(2 * width, width, bias=False)
        self.pre_fc_norm_embedding = norm(width, config.rms_norm_eps)
        self.pre_fc_norm_hidden = norm(width, config.rms_norm_eps)
        self.layers = torch.nn.ModuleList([type(base.layers[0])(own, 0)])
        self.norm = norm(width, config.rms_norm_eps)


class MtpDrafter:
    """The layer, and what it keeps of sequences; embeddings, rotation and head are the model's."""

    def __init__(
        self,
        modules: MtpModules,
        embedding: Embedding,
        rotary: Any,
        head: Callable[[Tensor], Tensor],
        means: Means,
    ) -> None:
        self._fc = merge([modules.fc], is_batch_invariant=False)
        self._norm_embedding = RMSNorm(modules.pre_fc_norm_embedding)
        self._norm_hidden = RMSNorm(modules.pre_fc_norm_hidden)
        self._layer = DecoderLayer(modules.layers[0], means)
        self._norm = RMSNorm(modules.norm)
        self._embedding, self._rotary, self._head = embedding, rotary, head
        self.device = self._layer.device
        self._width, self._dtype = embedding.weight.shape[1], embedding.weight.dtype

    @property
    def slot_bytes(self) -> int:
        """The bytes of one sequence's hidden state."""
        return self._width * self._dtype.itemsize

    def allocate(self, cache: KVCache, num_slots: int) -> None:
        """Keep keys and values in `cache`, and hidden states in as many new slots."""
        self._cache = cache
        # Not filled: a slot is emptied before its first token.
        shape = (num_slots, self._width)
        self._behind = torch.empty(shape, dtype=self._dtype, device=self.device)

    def clear(self, blocks: list[int]) -> None:
        """Put zeros into blocks."""
        self._cache.clear(blocks)

    def follow(
        self, token_ids: Tensor, hidden: Tensor, rope: Rope, slots: Tensor, plan: StatePlan
    ) -> None:
        """Keep what later drafts need of a step's tokens; `hidden` `[tokens, width]` is behind
        each.
        """
        device = self.device
        before = self._shift(hidden, plan.to(device))
        joined = self._join(token_ids, before)
        self._layer.remember(joined, rope.to(device), self._cache, slots.to(device))

    @torch.inference_mode()
    def draft(
        self, token_ids: Tensor, hidden: Tensor, positions: Tensor, plan: AttentionPlan
    ) -> tuple[Tensor, Tensor]:
        """Return what may follow tokens, given the hidden state before each, and what to give in
        its place for the drafts behind.
        """
        joined = self._join(token_ids, hidden)
        rope = Rope.compute(self._rotary, positions).to(self.device)
        output = self._layer(joined, rope, self._cache, plan.to(self.device), None)
        normed, _ = self._norm(output)
        return self._head(normed).argmax(-1), normed

    def _join(self, token_ids: Tensor, hidden: Tensor) -> Hidden:
        """Return the layer's input for tokens, given the hidden state before each."""
        embedded = self._embedding(token_ids.to(self._embedding.weight.device)).to(self.device)
        token, _ = self._norm_embedding(Hidden(embedded))
        before, _ = self._norm_hidden(Hidden(hidden))
        return Hidden(self._fc(torch.cat((token, before), -1)))

    def _shift(self, hidden: Tensor, plan: StatePlan) -> Tensor:
        """Return the hidden state before each token, and leave the last one in each slot."""
        before = torch.empty_like(hidden)
        copy_slots(plan.before, self._behind)
        for run in plan.runs:
            rows: slice | Tensor = slice(run.first, run.stop)
            if plan.order is not None:
                rows = plan.order[rows]
            before[rows] = self._behind[run.slots]
            self._behind[run.slots] = hidden[rows]
        copy_slots(plan.after, self._behind)
        for span in plan.spans:
            before[span.first] = self._behind[span.slot]
            before[span.first + 1 : span.stop] = hidden[span.first : span.stop - 1]
            self._behind[span.slot] = hidden[span.stop - 1]
            if span.kept is not None:
                copy_slots([SlotCopy(span.slot, span.kept)], self._behind)
        return before
