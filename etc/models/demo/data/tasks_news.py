"""Headlines made of the words of a category, and the forms in which their category is asked for."""

from random import Random

from data.conversation import Conversation, Turn
from data.news_words import news_words
from data.texts import questions

_NEWS_ZH, _NEUTRAL_ZH = news_words("zh")
_NEWS_EN, _NEUTRAL_EN = news_words("en")
CATEGORIES_ZH = list(_NEWS_ZH)
CATEGORIES_EN = list(_NEWS_EN)
_FORMS = questions("news")
SYSTEM_ZH, SYSTEM_EN = _FORMS["systems_zh"][0], _FORMS["systems_en"][0]


def news(rng: Random) -> Conversation:
    """Ask for the category of one to four headlines."""
    is_zh = rng.random() < 0.5
    if rng.random() < 0.45:
        forms = _FORMS["systems_zh" if is_zh else "systems_en"]
        system = rng.choice(forms).format(c=_listed(rng, is_zh))
        turns = [_turn(rng, is_zh, "{h}") for _ in range(rng.choice((1, 2, 4, 6)))]
        return Conversation(tuple(turns), system=system)
    forms = _FORMS["asks_zh" if is_zh else "asks_en"]
    turns = [_turn(rng, is_zh, rng.choice(forms)) for _ in range(rng.choice((1, 2, 3, 4)))]
    return Conversation(tuple(turns))


def raw_news(rng: Random) -> Conversation:
    """Ask outside any chat, as a text to complete."""
    is_zh = rng.random() < 0.6
    turn = _turn(rng, is_zh, rng.choice(_FORMS["raw_zh" if is_zh else "raw_en"]))
    answer = turn.answer if is_zh else " " + turn.answer
    return Conversation((Turn(turn.question, answer),), is_raw=True)


def headline(rng: Random, category: int, is_zh: bool) -> str:
    """Return a headline of the category: words of it in one of many frames, some of them loose."""
    if is_zh:
        return _headline_zh(rng, CATEGORIES_ZH[category])
    return _headline_en(rng, CATEGORIES_EN[category])


def _turn(rng: Random, is_zh: bool, form: str) -> Turn:
    category = rng.randrange(6)
    text = headline(rng, category, is_zh)
    question = form.format(h=text, c=_listed(rng, is_zh))
    answer = CATEGORIES_ZH[category] if is_zh else CATEGORIES_EN[category]
    thought = f"这条新闻讲的是{answer}。" if is_zh else f"This headline is about {answer}."
    return Turn(question, answer, thought)


def _listed(rng: Random, is_zh: bool) -> str:
    names = list(CATEGORIES_ZH if is_zh else CATEGORIES_EN)
    if rng.random() < 0.4:
        rng.shuffle(names)
    return rng.choice(("、", "，", "/", " ") if is_zh else (", ", ", ", " / ")).join(names)


def _headline_zh(rng: Random, category: str) -> str:
    words, neutral, pick = _NEWS_ZH[category], _NEUTRAL_ZH, rng.choice
    slots = {"place": pick(neutral.place), "time": pick(neutral.time)}
    slots |= {"link": pick(neutral.link), "tail": pick(neutral.tail)}
    some = str(rng.randrange(2, 500))
    slots["number"] = pick(("", some, pick("两三四五六七八九十百")))
    slots |= {"actor": pick(words.actors), "act": pick(words.acts)}
    slots |= {"thing": pick(words.things), "other": pick(words.things)}
    slots["second"] = pick(words.acts)
    slots["end"] = pick((pick(words.tails), pick(words.tails), slots["tail"]))
    slots["also"] = pick(words.actors)
    return _mixed_zh(rng, pick(_FORMS["frames_zh"]).format(**slots), words.things)


def _mixed_zh(rng: Random, text: str, things: list[str]) -> str:
    """Drop a character or add a word in a few headlines, so that no single word decides."""
    if rng.random() < 0.12 and len(text) > 10:
        place = rng.randrange(1, len(text) - 1)
        text = text[:place] + text[place + rng.choice((1, 2)) :]
    if rng.random() < 0.1:
        text += " " + rng.choice(things)
    return text


def _headline_en(rng: Random, category: str) -> str:
    words, neutral, pick = _NEWS_EN[category], _NEUTRAL_EN, rng.choice
    slots = {"place": pick(neutral.place), "time": pick(neutral.time)}
    slots |= {"link": pick(neutral.link), "tail": pick(neutral.tail)}
    slots["number"] = str(rng.randrange(2, 500))
    slots |= {"actor": pick(words.actors), "act": pick(words.acts)}
    slots |= {"thing": pick(words.things), "other": pick(words.things)}
    slots["end"] = pick((pick(words.tails), pick(words.tails), slots["tail"]))
    slots |= {"also": pick(words.actors), "third": pick(words.actors), "second": pick(words.acts)}
    return _mixed_en(rng, pick(_FORMS["frames_en"]).format(**slots))


def _mixed_en(rng: Random, text: str) -> str:
    """Drop a word of a few headlines, and write them in one of three cases."""
    if rng.random() < 0.15:
        parts = text.split(" ")
        del parts[rng.randrange(len(parts))]
        text = " ".join(parts)
    style = rng.random()
    if style < 0.65:
        return text[:1].upper() + text[1:]
    return text.title() if style < 0.85 else text.lower()
