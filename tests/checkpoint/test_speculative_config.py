"""Who drafts and how many is said as vLLM says it, and what is not understood is named."""

import json

import pytest

from workers.checkpoint.speculative_config import SpeculativeConfig
from workers.config import EngineConfig
from workers.errors import ConfigError


def config(said=None, count=0):
    text = said if isinstance(said, str) else json.dumps(said) if said else ""
    return SpeculativeConfig.of(
        EngineConfig("model", speculative_config=text, num_speculative_tokens=count)
    )


@pytest.mark.parametrize(
    ("said", "count", "expected"),
    [
        (None, 0, SpeculativeConfig(0)),
        (None, 3, SpeculativeConfig(3)),
        ({"method": "ngram", "num_speculative_tokens": 4}, 0, SpeculativeConfig(4)),
        ({"method": "ngram", "num_speculative_tokens": 4}, 4, SpeculativeConfig(4)),
        ({"method": "ngram"}, 5, SpeculativeConfig(5)),
        ({"method": "mtp", "num_speculative_tokens": 2}, 0, SpeculativeConfig(2, "mtp")),
        ({"method": "mtp"}, 0, SpeculativeConfig(1, "mtp")),
        ({"method": "qwen3_next_mtp"}, 3, SpeculativeConfig(3, "mtp")),
        ({"method": "qwen3_5_mtp"}, 0, SpeculativeConfig(1, "mtp")),
    ],
)
def test_either_setting_says_it(said, count, expected):
    assert config(said, count) == expected


@pytest.mark.parametrize(
    ("said", "count", "words"),
    [
        ("[", 0, "speculative_config = '[': not JSON"),
        ({"method": "eagle"}, 0, "method is 'eagle', not one of ngram, mtp"),
        ({"method": ["ngram"]}, 0, "not one of ngram"),
        ({"num_speculative_tokens": 2}, 0, "method is None, not one of ngram"),
        ({"method": "ngram", "num_speculative_tokens": 0}, 0, "is 0, not one of 1 to 16"),
        ({"method": "ngram", "num_speculative_tokens": True}, 0, "is True, not one of 1 to 16"),
        ({"method": "ngram", "prompt_lookup_max": 4}, 0, "'prompt_lookup_max' is not supported"),
        ({"method": "ngram", "num_speculative_tokens": 2}, 3, "= 3, but speculative_config says 2"),
    ],
)
def test_what_is_not_understood_is_named(said, count, words):
    with pytest.raises(ConfigError) as caught:
        config(said, count)
    assert words in str(caught.value)
