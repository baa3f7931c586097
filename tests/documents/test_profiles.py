"""The numbers the documents print, in the profiles that ship."""

import pytest

from qwenapi.settings.sources import load, load_profiles

# max_tokens, temperature, top_p, top_k, repetition_penalty; None: the document does not say
DEFAULTS = {
    "coder": (4096, 0.7, 0.8, 20, 1.05),
    "qwen2": (512, 0.7, 0.9, 50, None),
    "guide": (16, 1.0, 1.0, None, None),
    "browser": (None, None, None, None, None),
    "news": (100, 0.7, None, None, None),
}
PORTS = {"coder": 8001, "qwen2": 2025, "guide": 8000, "browser": 8000, "news": 8000}


@pytest.fixture
def profile(request):
    flags = {"profile": request.param}
    (profile,) = load_profiles(load(flags), flags)
    return profile


@pytest.mark.parametrize("profile", DEFAULTS, indirect=True)
def test_the_defaults_and_the_port_are_the_documents(profile):
    settings = profile.settings
    names = ("max_tokens", "temperature", "top_p", "top_k", "repetition_penalty")
    found = tuple(getattr(settings, f"defaults_{name}") for name in names)
    assert found == DEFAULTS[profile.name]
    assert settings.port == PORTS[profile.name]


@pytest.mark.parametrize("profile", DEFAULTS, indirect=True)
def test_only_the_news_are_limited_in_how_many_run(profile):
    limits = (profile.limits.max_running, profile.limits.max_waiting)
    assert limits[0] == (3 if profile.name == "news" else 0)
    assert limits[1] == (10 if profile.name == "news" else limits[1]) and limits[1] >= 10
    assert profile.settings.max_num_seqs == 256


@pytest.mark.parametrize("profile", DEFAULTS, indirect=True)
def test_no_document_waits_for_a_thought(profile):
    assert profile.thinking is False
