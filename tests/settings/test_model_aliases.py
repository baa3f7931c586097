import pytest

from qwenapi.errors import ModelNotFound
from qwenapi.settings.model_aliases import ModelAliases
from qwenapi.settings.profile import Profiles
from qwenapi.settings.sources import load, load_profiles
from workers.errors import ConfigError

SERVED = ("big", "small")


def profiles(*aliases, profile="all"):
    flags = {
        "profile": profile,
        "served_model_name": list(SERVED),
        "model_alias": list(aliases),
    }
    return Profiles(load_profiles(load(flags, {}), flags, {}))


def test_a_name_or_pattern_stands_for_a_served_name_the_first_that_fits():
    aliases = ModelAliases.of(["claude-haiku-*=small", "claude-*=big", "gpt=small"], SERVED)
    assert aliases.target("claude-haiku-4-5") == "small"
    assert aliases.target("claude-opus-5") == "big"
    assert aliases.target("gpt") == "small"
    assert aliases.target("gpt-4") == "gpt-4"
    assert aliases.names == ("gpt",)


def test_a_served_name_is_no_alias():
    assert ModelAliases.of(["*=big"], SERVED).target("small") == "small"


@pytest.mark.parametrize("text", ["claude", "claude=", "=big", "claude=nobody"])
def test_an_alias_that_points_nowhere_is_refused(text):
    with pytest.raises(
        ConfigError, match="must be NAME=SERVED, where SERVED is one of: big, small"
    ):
        profiles(text)


def test_both_interfaces_know_them():
    known = profiles("claude-*=big", "gpt=big")
    assert known.for_model("claude-x").name == known.for_model("gpt").name == "openai"
    assert {"gpt", *SERVED} <= set(known.model_names) and "claude-*" not in known.model_names
    anthropic = known.of_interface("anthropic")
    known.check_name(anthropic, "claude-x", ())
    with pytest.raises(ModelNotFound, match="'mistral' is not served here. Served: 'big', 'small'"):
        known.check_name(anthropic, "mistral", ())


def test_a_key_of_a_model_is_for_its_aliases_and_one_of_an_alias_for_that():
    known = profiles("claude-*=big", "gpt=small")
    anthropic = known.of_interface("anthropic")
    for name, models in (("claude-x", ["big"]), ("gpt", ["gpt"]), ("small", ["small"])):
        known.check_name(anthropic, name, models)
        assert known.for_model(name, models).name == "openai"
    assert known.names_for(["small"]) == ("small", "gpt")
    for name, models in (("gpt", ["big"]), ("small", ["gpt"])):
        with pytest.raises(ModelNotFound):
            known.check_name(anthropic, name, models)
        with pytest.raises(ModelNotFound):
            known.for_model(name, models)
