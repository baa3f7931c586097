"""SpeculativeConfig: who drafts tokens and how many, as `--speculative-config` of vLLM says it.

--speculative-config '{"method": "mtp", "num_speculative_tokens": 2}'    the model's own layer
--speculative-config '{"method": "ngram", "num_speculative_tokens": 2}'  the text so far
--num-speculative-tokens 2                                               the same, and shorter
"""

from dataclasses import dataclass

from workers.checkpoint.overrides import json_object
from workers.config import EngineConfig
from workers.errors import ConfigError

# Beyond, rows fill the processor by themselves, and wrong drafts would cost them.
MAX_SPECULATING_ROWS = 8
MOST_TOKENS = 16

NGRAM, MTP = "ngram", "mtp"
# The last two are names by which older releases of vLLM knew the layers of two architectures.
_METHODS = {NGRAM: NGRAM, MTP: MTP, "qwen3_next_mtp": MTP, "qwen3_5_mtp": MTP}
_FIELDS = ("method", "num_speculative_tokens")


@dataclass(frozen=True)
class SpeculativeConfig:
    """At most `num_tokens` drafts a step of a row.

    By `ngram` they are what followed the same tokens before, by `mtp` what the checkpoint's own
    layer for multi-token prediction says.
    """

    num_tokens: int = 0
    method: str = NGRAM

    @classmethod
    def of(cls, config: EngineConfig) -> "SpeculativeConfig":
        """Return what the two settings say; raise ConfigError naming what is wrong."""
        fields = json_object("speculative_config", config.speculative_config)
        for name in fields:
            if name not in _FIELDS:
                raise ConfigError(
                    f"speculative_config: {name!r} is not supported, only {' and '.join(_FIELDS)};"
                    " leave it out"
                )
        if not fields:
            return cls(config.num_speculative_tokens)
        said = fields.get("method")
        if not isinstance(said, str) or said not in _METHODS:
            raise ConfigError(
                f"speculative_config: method is {said!r}, not one of {', '.join(_METHODS)}"
            )
        asked = config.num_speculative_tokens
        count = fields.get("num_speculative_tokens", asked or 1)
        if type(count) is not int or not 0 < count <= MOST_TOKENS:
            raise ConfigError(
                f"speculative_config: num_speculative_tokens is {count!r}, not one of 1 to"
                f" {MOST_TOKENS}"
            )
        if asked not in (0, count):
            raise ConfigError(
                f"num_speculative_tokens = {asked}, but speculative_config says {count}; leave one"
                " of them out"
            )
        return cls(count, _METHODS[said])

    def num_state_slots(self, max_num_seqs: int) -> int:
        """Return how many states a step of a hybrid model keeps to go back to."""
        return self.num_tokens * min(MAX_SPECULATING_ROWS, max_num_seqs)
