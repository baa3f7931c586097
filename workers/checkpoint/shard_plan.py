"""ShardPlan: which part of each weight a rank of a tensor-parallel engine holds.

    [out, in]   by outputs: queries, keys, values, gate, up, all that goes into a Gated DeltaNet
                by inputs:  what joins heads or the MLP's width again (o_proj, out_proj, down_proj)
                by rows of the vocabulary: embeddings and head; whole: norms, routers, scores
    experts     by width as any MLP, or each rank some of them whole

So a rank's model is a smaller one of the same architecture, whose outputs by inputs are parts of a
sum. Heads of keys and values are held by several ranks where there are fewer than these. Refuses,
naming the setting, what cannot be shared out evenly. Knows no tensors, so `doctor` asks it too.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from workers.checkpoint.architectures import EMBEDDING, HEAD, Shape
from workers.checkpoint.model_config import ModelConfig
from workers.checkpoint.packings import Packing
from workers.checkpoint.weights import Weights
from workers.errors import ConfigError

Span = tuple[int, int]

_BY_OUTPUTS = re.compile(r"\.((q|gate|up)_proj|in_proj_(qkvz|ba|z|b|a))\.(weight|bias)$")
_BY_INPUTS = re.compile(r"\.(o|out|down)_proj\.(weight|bias)$")
_KEYS_AND_VALUES = re.compile(r"\.[kv]_proj\.(weight|bias)$")
_BY_HEADS = re.compile(r"\.(A_log|dt_bias)$")
# One after another: all heads' queries, keys and values of a Gated DeltaNet; all experts' gate, up.
_MIXED = re.compile(r"\.(in_proj_qkv|conv1d)\.weight$")
_STACKED_INWARDS = re.compile(r"\.experts\.gate_up_proj$")
_STACKED_OUTWARDS = re.compile(r"\.experts\.down_proj$")
_EXPERT = re.compile(r"(.*\.experts\.)(\d+)(\..*)")
# Of a configuration, what a rank has its share of.
_SHARED_OUT = (
    *("num_attention_heads", "intermediate_size", "moe_intermediate_size"),
    *("shared_expert_intermediate_size", "linear_num_key_heads", "linear_num_value_heads"),
)
_MOST_RANKS = 64


@dataclass(frozen=True)
class Cut:
    """Along `axis` the elements of `spans`, one span after another, and `num_zeros` behind them."""

    axis: int
    spans: tuple[Span, ...]
    num_zeros: int = 0

    @property
    def length(self) -> int:
        return sum(stop - start for start, stop in self.spans) + self.num_zeros


@dataclass(frozen=True)
class ShardPlan:
    """The shares of `size` ranks, seen by one. `by_expert`: each has some experts whole."""

    config: ModelConfig
    size: int
    rank: int = 0
    by_expert: bool = False

    @property
    def num_experts(self) -> int:
        """How many experts a layer of the whole model has; 0 without any."""
        return int(self.config.values.get("num_experts") or 0)

    @property
    def vocabulary_share(self) -> int:
        """How many rows of embeddings and head a rank holds; the last ones may be padding."""
        return -(-self.config.vocab_size // self.size)

    def fields(self) -> dict[str, Any]:
        """Return what a rank's configuration has in the place of the whole model's."""
        config = self.config
        shares = {
            name: value // self.size for name in _SHARED_OUT if (value := config.values.get(name))
        }
        if self.by_expert:
            shares |= {
                "num_experts": self.num_experts // self.size,
                "moe_intermediate_size": config.values["moe_intermediate_size"],
            }
        return shares | {
            "num_key_value_heads": max(1, config.num_key_value_heads // self.size),
            "head_dim": config.head_dim,
            "vocab_size": self.vocabulary_share,
            "pad_token_id": None,  # it may lie in another's share
        }

    def local_name(self, name: str) -> str | None:
        """Return a weight's name in a rank's model, where experts are counted anew; None of a
        weight that is another rank's alone.
        """
        found = _EXPERT.fullmatch(name) if self.by_expert else None
        if found is None:
            return name
        share = self.num_experts // self.size
        owner, number = divmod(int(found[2]), share)
        return f"{found[1]}{number}{found[3]}" if owner == self.rank else None

    def cut(self, name: str, shape: Shape) -> Cut | None:
        """Return how a weight of a shape is cut, by its name in the whole model; None: it is not.

        A bias of what is cut by inputs is the first rank's, so that it is added once.
        """
        if name in (EMBEDDING, HEAD):
            return self._vocabulary()
        if self.by_expert and ".experts." in name:
            is_stacked = _EXPERT.fullmatch(name) is None
            return self._segments(0, shape[0]) if is_stacked else None
        if _BY_OUTPUTS.search(name) or _BY_HEADS.search(name):
            return self._segments(0, shape[0])
        if _BY_INPUTS.search(name):
            if len(shape) == 2:
                return self._segments(1, shape[1])
            return Cut(0, (), shape[0]) if self.rank else None
        if _KEYS_AND_VALUES.search(name):
            return self._keys_and_values(shape[0] // self.config.num_key_value_heads)
        if _MIXED.search(name):
            return self._segments(0, *self._mixed_widths(shape[0]))
        if _STACKED_INWARDS.search(name):
            return self._segments(1, shape[1] // 2, shape[1] // 2)
        return self._segments(2, shape[2]) if _STACKED_OUTWARDS.search(name) else None

    def cut_part(
        self, packing: Packing, part: str, cut: Cut | None, shape: Shape, *, is_ordered: bool
    ) -> Cut | None:
        """Return how a part of a packed weight [out, in] is cut, of which `cut` is meant.

        `is_ordered`: a part names each input's group, so that every rank needs all groups.
        """
        if cut is None:
            return None
        places = packing.places(part, shape)
        place = places[cut.axis]
        if place is None or (is_ordered and cut.axis == 1 and place.is_group):
            return None
        spans = tuple((start // place.unit, -(-stop // place.unit)) for start, stop in cut.spans)
        return Cut(place.axis, spans)

    def shape(self, name: str, shape: Shape) -> Shape:
        """Return the shape of a rank's part of a weight."""
        cut = self.cut(name, shape)
        return shape if cut is None else (*shape[: cut.axis], cut.length, *shape[cut.axis + 1 :])

    def part_of(self, weights: Weights) -> float:
        """Return which part of all numbers a rank holds."""
        held = (
            math.prod(self.shape(name, shape))
            for name, shape in weights.shapes.items()
            if self.local_name(name) is not None
        )
        return sum(held) / weights.num_parameters

    def check(self, weights: Weights) -> None:
        """Raise ConfigError of a model that so many ranks cannot share."""
        if self.by_expert and not self.num_experts:
            raise ConfigError(
                "enable_expert_parallel is for mixtures of experts, and the model has none; leave"
                " it out"
            )
        for count, what in self._counts(weights):
            if count % self.size:
                self._refuse(f"the model's {count} {what} cannot be shared out evenly", weights)
        keys = self.config.num_key_value_heads
        if keys % self.size and self.size % keys:
            self._refuse(f"the model's {keys} heads of keys cannot be shared out evenly", weights)
        for module, packing in weights.packed.items():
            if broken := self._broken_unit(module, packing, weights.shapes[f"{module}.weight"]):
                self._refuse(f"{module} is packed by {broken}, which a cut would break", weights)

    def _counts(self, weights: Weights) -> Iterator[tuple[int, str]]:
        values = self.config.values
        yield self.config.num_attention_heads, "attention heads"
        for name in ("linear_num_key_heads", "linear_num_value_heads"):
            if name in values:
                yield values[name], f"heads of Gated DeltaNet ({name})"
        if self.by_expert:
            yield self.num_experts, "experts"
        for name, shape in weights.shapes.items():
            if name.endswith((".down_proj.weight", ".experts.down_proj")):
                is_whole = self.by_expert and ".experts." in name
                yield self.size if is_whole else shape[-1], f"columns of {name}"

    def _broken_unit(self, module: str, packing: Packing, shape: Shape) -> str:
        """Return the unit of a packed weight that its cut would go through, if there is one."""
        cut = self.cut(f"{module}.weight", shape)
        if cut is None:
            return ""
        # Rows are filled up, which only the last ranks see.
        if f"{module}.weight" in (EMBEDDING, HEAD) and shape[0] % self.size:
            return f"words, and {shape[0]} rows are no multiple of {self.size}"
        for part in packing.parts(shape):
            place = packing.places(part, shape)[cut.axis]
            ends = [end for span in cut.spans for end in span if end != shape[cut.axis]]
            if place and any(end % place.unit for end in ends):
                return f"{place.unit} {('outputs', 'inputs')[cut.axis]}"
        return ""

    def _refuse(self, why: str, weights: Weights) -> None:
        possible = [str(size) for size in range(1, _MOST_RANKS + 1) if self._fits(size, weights)]
        raise ConfigError(
            f"tensor_parallel_size = {self.size}, but {why}; choose one of {', '.join(possible)}"
        )

    def _fits(self, size: int, weights: Weights) -> bool:
        other = ShardPlan(self.config, size, by_expert=self.by_expert)
        keys = self.config.num_key_value_heads
        return (
            all(count % size == 0 for count, _ in other._counts(weights))
            and (keys % size == 0 or size % keys == 0)
            and not any(
                other._broken_unit(module, packing, weights.shapes[f"{module}.weight"])
                for module, packing in weights.packed.items()
            )
        )

    def _segments(self, axis: int, *widths: int) -> Cut:
        """Return a rank's share of each of several neighbouring parts."""
        spans, first = [], 0
        for width in widths:
            share = width // self.size
            start = first + self.rank * share
            spans.append((start, start + share))
            first += width
        return Cut(axis, tuple(spans))

    def _keys_and_values(self, head_dim: int) -> Cut:
        heads = self.config.num_key_value_heads
        if heads >= self.size:
            return self._segments(0, heads * head_dim)
        head = self.rank * heads // self.size
        return Cut(0, ((head * head_dim, (head + 1) * head_dim),))

    def _vocabulary(self) -> Cut:
        share, rows = self.vocabulary_share, self.config.vocab_size
        start, stop = (min(rows, number * share) for number in (self.rank, self.rank + 1))
        return Cut(0, ((start, stop),), share - (stop - start))

    def _mixed_widths(self, width: int) -> tuple[int, int, int]:
        values: Mapping[str, Any] = self.config.values
        keys = values["linear_num_key_heads"] * values["linear_key_head_dim"]
        return keys, keys, width - 2 * keys
