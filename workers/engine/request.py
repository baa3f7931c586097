"""Request: what one caller asked of an engine, and what is computed of it once; frozen."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from workers.engine.image_layout import ImageLayout
from workers.engine.sampling_rows import NO_TOKENS, Array
from workers.engine_core import Key
from workers.grammar.compiled_grammar import CompiledGrammar
from workers.wire.protocol import Generate, SamplingParams


@dataclass(frozen=True, eq=False)
class Request:
    """A request as it was admitted; `arrival` counts them. Only `generate` is the caller's."""

    key: Key
    generate: Generate
    arrival: int
    eos_token_ids: tuple[int, ...]
    max_model_len: int
    grammar: CompiledGrammar | None = None

    @property
    def params(self) -> SamplingParams:
        return self.generate.params

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        return self.generate.prompt_ids

    @cached_property
    def max_len(self) -> int:
        """The most tokens a choice may have, the prompt's among them."""
        if self.generate.pooling is not None:  # none follows, for which room would have to be left
            return len(self.prompt_ids) + 1
        return min(len(self.prompt_ids) + self.params.max_tokens, self.max_model_len)

    @cached_property
    def images(self) -> ImageLayout | None:
        """Where its pictures are, if there are any."""
        images = self.generate.images
        return ImageLayout(images, len(self.prompt_ids)) if images else None

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        eos_token_ids = () if self.params.ignore_eos else self.eos_token_ids
        return frozenset(self.params.stop_token_ids + eos_token_ids)

    @cached_property
    def prompt_set(self) -> Array:
        """The prompt's distinct tokens, int64; none where nothing penalizes their repetition."""
        return np.unique(self.prompt_ids) if self.params.repetition_penalty != 1.0 else NO_TOKENS

    @cached_property
    def longest_bad_word(self) -> int:
        return max(map(len, self.params.bad_words), default=0)

    @cached_property
    def is_resumed(self) -> bool:
        """Whether it goes on with an answer that an engine before this one had begun."""
        return any(self.generate.resume)
