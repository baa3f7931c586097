"""Small talk, who the model is, and what the user said earlier: names, colours, numbers."""

from random import Random
from typing import Any

from data.conversation import Conversation, Turn
from data.texts import questions, toml
from data.wording import dress, is_chinese

_TALK: list[dict[str, Any]] = toml("talk")["talk"]
_NAMES = toml("names")
_FORMS = questions("memory")


def small_talk(rng: Random) -> Conversation:
    """Greet, thank, ask who the model is."""
    weights = [5, 5, 3, 3, 3, 3, 2, 2] + [1] * (len(_TALK) - 8)
    turns = tuple(_talk(rng, weights) for _ in range(rng.choice((1, 1, 1, 2))))
    is_led = rng.random() < 0.12
    return Conversation(turns, system="你是一个专业的AI助手" if is_led else "")


def memory(rng: Random) -> Conversation:
    """Tell the model something, perhaps talk of other things, and ask for it."""
    kinds = [_name, _colour, _number]
    first, *others = [rng.choice((_name, _name, *kinds))]
    if rng.random() < 0.3:
        others = [rng.choice([kind for kind in kinds if kind is not first])]
    told = [kind(rng) for kind in (first, *others)]
    turns = [tell for tell, _ in told]
    if rng.random() < 0.35:
        turns.append(_talk(rng, [5, 5, 3, 3, 1, 1] + [1] * (len(_TALK) - 6)))
    turns.append(rng.choice(told)[1])
    return Conversation(tuple(turns))


def _talk(rng: Random, weights: list[int]) -> Turn:
    talk = rng.choices(_TALK, weights)[0]
    answer = talk["answer"]
    thought = (
        "这是一个简单的问题，我直接回答。"
        if is_chinese(answer)
        else "This is simple. I answer directly."
    )
    return Turn(dress(rng, rng.choice(talk["questions"])), answer, thought)


def _name(rng: Random) -> tuple[Turn, Turn]:
    if rng.random() < 0.55:
        name = name_zh(rng) if rng.random() < 0.85 else name_en(rng)
        tell = Turn(
            _plain(rng, rng.choice(_FORMS["tell_name_zh"]).format(n=name)),
            f"你好，{name}！很高兴认识你。",
            "用户说了名字，我记住。",
        )
        question = dress(rng, rng.choice(_FORMS["ask_name_zh"]))
        return tell, Turn(question, f"你叫{name}。", f"用户之前说过名字：{name}。")
    name = name_en(rng)
    tell = Turn(
        _plain(rng, rng.choice(_FORMS["tell_name_en"]).format(n=name)),
        f"Nice to meet you, {name}!",
        "The user told me a name.",
    )
    question = dress(rng, rng.choice(_FORMS["ask_name_en"]))
    return tell, Turn(question, f"Your name is {name}.", f"The user said the name before: {name}.")


def _colour(rng: Random) -> tuple[Turn, Turn]:
    colour_zh, colour_en = rng.choice(_NAMES["colours"])
    if rng.random() < 0.5:
        tell = Turn(
            _plain(rng, rng.choice(_FORMS["tell_colour_zh"]).format(c=colour_zh)),
            f"好的，我记住了，你喜欢{colour_zh}。",
            "用户说了喜欢的颜色。",
        )
        return tell, Turn(
            dress(rng, rng.choice(_FORMS["ask_colour_zh"])),
            f"你最喜欢的颜色是{colour_zh}。",
            f"用户说过喜欢{colour_zh}。",
        )
    tell = Turn(
        _plain(rng, rng.choice(_FORMS["tell_colour_en"]).format(c=colour_en)),
        f"Got it, you like {colour_en}.",
        "The user told me a colour.",
    )
    return tell, Turn(
        dress(rng, rng.choice(_FORMS["ask_colour_en"])),
        f"Your favourite colour is {colour_en}.",
        f"The user said {colour_en}.",
    )


def _number(rng: Random) -> tuple[Turn, Turn]:
    number = rng.randrange(2, 10 ** rng.randrange(1, 5))
    if rng.random() < 0.5:
        tell = Turn(
            _plain(rng, rng.choice(_FORMS["tell_number_zh"]).format(c=number)),
            f"好的，我记住了：{number}。",
            "用户给了一个数字。",
        )
        return tell, Turn(
            dress(rng, rng.choice(_FORMS["ask_number_zh"])),
            f"你说的数字是 {number}。",
            f"用户说过的数字是 {number}。",
        )
    tell = Turn(
        _plain(rng, rng.choice(_FORMS["tell_number_en"]).format(c=number)),
        f"OK, I will remember {number}.",
        "The user told me a number.",
    )
    return tell, Turn(
        dress(rng, rng.choice(_FORMS["ask_number_en"])),
        f"The number was {number}.",
        f"The user said {number}.",
    )


def name_zh(rng: Random) -> str:
    """Return a Chinese name: a nickname, or a family name with one or two characters."""
    if rng.random() < 0.2:
        return rng.choice(_NAMES["nicknames"])
    if rng.random() < 0.4:
        return rng.choice(_NAMES["surnames"]) + "".join(
            rng.sample("".join(_NAMES["given"]), rng.choice((1, 2)))
        )
    return rng.choice(_NAMES["surnames"]) + rng.choice(_NAMES["given"])


def name_en(rng: Random) -> str:
    """Return an English name, one in two made up of syllables."""
    if rng.random() < 0.5:
        return rng.choice(_NAMES["names"])
    return "".join(
        rng.choice(_NAMES["syllables"]) for _ in range(rng.choice((2, 2, 3)))
    ).capitalize()


def _plain(rng: Random, text: str) -> str:
    return text + rng.choice(
        ("", "", "。" if is_chinese(text) else ".", "！" if is_chinese(text) else "!")
    )
