"""What a start says of the model names it serves."""

from qwenapi.cli import _alias_table as alias_table
from qwenapi.settings.profile import Profiles
from qwenapi.settings.sources import load, load_profiles

AWQ = "/home/modern/models/Qwen/Qwen2.5-Coder-7B-Instruct-AWQ"


def table(profile, *names):
    flags = (
        {"profile": profile, "served_model_name": list(names)} if names else {"profile": profile}
    )
    return alias_table(Profiles(load_profiles(load(flags), flags)))


def test_every_name_is_listed_with_who_answers_and_as_what():
    rows = [line.split() for line in table("all", "mine", "also-mine").splitlines()]
    assert rows == [
        ["model", "names:"],
        ["mine", "openai", "as", "mine"],
        ["also-mine", "openai", "as", "mine"],
        ["MyCoder", "browser", "as", "MyCoder"],
        [AWQ, "browser", "as", "MyCoder"],
        ["Qwen3-32B", "guide", "as", "Qwen3-32B"],
        ["qwen-news-classifier", "news", "as", "qwen-news-classifier"],
        ["(none)", "news", "as", "qwen-news-classifier"],
    ]


def test_one_name_needs_no_table():
    assert table("guide") == table("coder") == ""


def test_a_start_says_it_before_it_is_ready(everything, news):
    said = everything.log[: everything.log.index("ready: ")]
    assert "model names:" in said and "Qwen3-32B" in said
    assert "model names:" not in news.log
