"""The words headlines are made of, by language and category."""

from typing import NamedTuple

from data.texts import toml


class Words(NamedTuple):
    """The vocabulary of one category in one language: who, does what, about what, and then."""

    actors: list[str]
    acts: list[str]
    things: list[str]
    tails: list[str]


class Neutral(NamedTuple):
    """Words that occur in headlines of every category."""

    place: list[str]
    time: list[str]
    link: list[str]
    tail: list[str]


def news_words(language: str) -> tuple[dict[str, Words], Neutral]:
    """Return the words by category and the neutral ones of "zh" or "en"."""
    content = dict(toml(f"news_{language}"))
    neutral = Neutral(**content.pop("neutral"))
    return {category: Words(**words) for category, words in content.items()}, neutral
