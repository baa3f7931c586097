"""Capitals, small sums and translations."""

from random import Random

from data.conversation import Conversation, ask
from data.texts import questions, table
from data.wording import dress

_FORMS = questions("facts")
_DIGITS_ZH = "零一二三四五六七八九十"
_SUM_ZH = {"+": ("加", "加上"), "-": ("减", "减去"), "*": ("乘", "乘以")}
_SUM_EN = {
    "+": ("plus", "and", "added to"),
    "-": ("minus", "take away"),
    "*": ("times", "multiplied by"),
}


def capital(rng: Random) -> Conversation:
    """Ask for the capital of a country."""
    country_zh, city_zh, country_en, city_en = rng.choice(table("capitals"))
    if rng.random() < 0.5:
        question = dress(rng, rng.choice(_FORMS["capital_zh"]).format(n=country_zh))
        return ask(question, f"{country_zh}的首都是{city_zh}。", f"{country_zh}的首都是{city_zh}。")
    question = dress(rng, rng.choice(_FORMS["capital_en"]).format(n=country_en))
    name = country_en[:1].upper() + country_en[1:]
    answer = f"The capital of {country_en} is {city_en}."
    return ask(question, answer, f"{name}: {city_en}.")


def sum_of_two(rng: Random) -> Conversation:
    """Ask for a small sum, in digits or words."""
    sign = rng.choice("++-*")
    left, right = rng.randrange(11), rng.randrange(11)
    if sign == "+" and rng.random() < 0.4:
        left, right = rng.randrange(100), rng.randrange(20)
    if sign == "-" and left < right:
        left, right = right, left
    result = {"+": left + right, "-": left - right, "*": left * right}[sign]
    shown = {"*": "×"}.get(sign, sign)
    equation = f"{left} {shown} {right} = {result}"
    if rng.random() < 0.5:
        spoken = _spoken_sum(rng, sign, left, right, _SUM_ZH, True)
        question = dress(rng, rng.choice(_FORMS["ask_sum_zh"]).format(s=spoken))
        return ask(question, f"{equation}。", f"计算：{equation}。")
    if sign == "+" and rng.random() < 0.15:
        form = rng.choice(
            ("Add {a} and {b}", "the sum of {a} and {b}", "What is the sum of {a} and {b}?")
        )
        return ask(
            dress(rng, form.format(a=left, b=right)), f"{equation}.", f"I compute {equation}."
        )
    spoken = _spoken_sum(rng, sign, left, right, _SUM_EN, False)
    question = dress(rng, rng.choice(_FORMS["ask_sum_en"]).format(s=spoken))
    return ask(question, f"{equation}.", f"I compute {equation}.")


def translation(rng: Random) -> Conversation:
    """Ask for a word or sentence in the other language."""
    word_zh, word_en = rng.choice(table("translations"))
    is_quoted = rng.random() < 0.5
    if rng.random() < 0.5:
        question = _unquoted(rng.choice(_FORMS["to_en"]).format(w=word_zh), is_quoted)
        return ask(dress(rng, question), word_en, f"{word_zh} = {word_en}")
    question = _unquoted(rng.choice(_FORMS["to_zh"]).format(w=word_en), is_quoted)
    return ask(dress(rng, question), word_zh, f"{word_en} = {word_zh}")


def _spoken_sum(rng, sign, left, right, words, is_zh: bool) -> str:  # type: ignore[no-untyped-def]
    if rng.random() < 0.45:
        space = rng.choice(("", " "))
        return f"{left}{space}{rng.choice(('*', '×', 'x')) if sign == '*' else sign}{space}{right}"
    if is_zh and max(left, right) <= 10 and rng.random() < 0.6:
        return _DIGITS_ZH[left] + rng.choice(words[sign]) + _DIGITS_ZH[right]
    space = " " if not is_zh or rng.random() < 0.3 else ""
    return f"{left}{space}{rng.choice(words[sign])}{space}{right}"


def _unquoted(question: str, is_quoted: bool) -> str:
    return question if is_quoted else question.replace("“", "").replace("”", "").replace('"', "")
