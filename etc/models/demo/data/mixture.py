"""How often each kind of conversation is drawn, and one seeded stream of them.

A conversation that shares an 8-gram with the held-out files is thrown away (see `overlap.py`).
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from random import Random
from typing import NamedTuple

from data import (
    tasks_chat,
    tasks_code,
    tasks_documents,
    tasks_facts,
    tasks_news,
    tasks_tools,
    tasks_topics,
)
from data.conversation import Conversation, Piece, pieces_of
from data.overlap import Grams, grams_of
from data.texts import questions

_WEIGHTS: dict[Callable[[Random], Conversation], float] = {
    tasks_news.news: 30,
    tasks_news.raw_news: 3,
    tasks_documents.documented: 2.5,
    tasks_code.code_question: 12,
    tasks_code.code_conversion: 5.5,
    tasks_code.raw_code: 0.5,
    tasks_topics.definition: 13,
    tasks_topics.example_after_definition: 1.2,
    tasks_topics.history: 0.6,
    tasks_topics.poem: 4,
    tasks_chat.small_talk: 8,
    tasks_chat.memory: 14,
    tasks_facts.capital: 6,
    tasks_facts.sum_of_two: 8,
    tasks_facts.translation: 6,
    tasks_tools.json_answer: 2.5,
    tasks_tools.weather: 5,
    tasks_tools.weather_without_tool: 0.8,
}
_SHARE_THINKING = 0.3
_SHARE_THINKING_NEWS = 0.12
_SHARE_SYSTEM = 0.1
_SYSTEMS = questions("mixture")["systems"]


class Example(NamedTuple):
    """A conversation and the pieces of text it is learned as."""

    conversation: Conversation
    pieces: list[Piece]


def examples(seed: int, heldout: Grams = frozenset()) -> Iterator[Example]:
    """Yield examples without end, the same for the same seed."""
    rng = Random(seed)
    tasks, weights = list(_WEIGHTS), list(_WEIGHTS.values())
    while True:
        task = rng.choices(tasks, weights)[0]
        conversation = task(rng)
        if not (conversation.is_raw or conversation.system) and rng.random() < _SHARE_SYSTEM:
            conversation = replace(conversation, system=rng.choice(_SYSTEMS))
        pieces = _pieces(rng, conversation, task is tasks_news.news)
        text = "".join(piece.text for piece in pieces)
        if heldout.isdisjoint(grams_of(text)):
            yield Example(conversation, pieces)


def _pieces(rng: Random, conversation: Conversation, is_news: bool) -> list[Piece]:
    if rng.random() < (_SHARE_THINKING_NEWS if is_news else _SHARE_THINKING):
        return pieces_of(conversation, "think", is_every_turn_full=False)
    is_every_turn_full = rng.random() < (0.85 if is_news else 0.5)
    return pieces_of(conversation, "plain", is_every_turn_full)
