"""How a question is dressed: politeness, spaces, punctuation. Wording varies without end."""

import re
from random import Random

from data.texts import questions

_FORMS = questions("wording")
_END = ("", "", "。", "！", "？", "?", ".", "!")
_SPACED = re.compile(r"(?<=[\u4e00-\u9fff]) ?(?=[A-Za-z])|(?<=[A-Za-z]) ?(?=[\u4e00-\u9fff])")


def is_chinese(text: str) -> bool:
    """Return whether a text has a Chinese character in it."""
    return any("\u4e00" <= character <= "\u9fff" for character in text)


def dress(rng: Random, question: str) -> str:
    """Return the question with a random politeness, spacing, case and end."""
    if is_chinese(question):
        return _dress_zh(rng, question)
    text = question
    if rng.random() < 0.35:
        text = rng.choice(_FORMS["before_en"]) + _lower_first(text)
    if rng.random() < 0.2:
        text = text.rstrip("?.!") + rng.choice(_FORMS["after_en"]) + rng.choice(_END[-3:])
    if rng.random() < 0.3:
        text = text.rstrip("?.!") + rng.choice(("", "?", ".", "!"))
    if rng.random() < 0.25:
        text = text.lower() if rng.random() < 0.6 else _lower_first(text)
    return text


def _dress_zh(rng: Random, text: str) -> str:
    if rng.random() < 0.4:
        text = rng.choice(_FORMS["before_zh"]) + text
    if rng.random() < 0.25:
        text = text.rstrip("。？！?") + rng.choice(_FORMS["after_zh"])
    if rng.random() < 0.5:
        text = text.rstrip("。？！?") + rng.choice(_END)
    if rng.random() < 0.5:
        text = _SPACED.sub(rng.choice(("", " ")), text)
    if rng.random() < 0.1:
        text = text.lower()
    return text


def _lower_first(text: str) -> str:
    word = text.split(" ")[0]
    return text if word.isupper() or word[1:2].isupper() else text[:1].lower() + text[1:]
