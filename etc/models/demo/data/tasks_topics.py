"""Questions for definitions and poems."""

from random import Random

from data.conversation import Conversation, Turn
from data.texts import questions, toml
from data.topics import EXAMPLE_EN, EXAMPLE_ZH, HISTORY_EN, HISTORY_ZH, TOPICS
from data.wording import dress

_FORMS = questions("topics")


def definition(rng: Random) -> Conversation:
    """Ask what something is."""
    turn = _definition(rng, rng.choice(TOPICS))
    return Conversation((turn,), system=_system(rng))


def example_after_definition(rng: Random) -> Conversation:
    """Ask for an example after the definition of machine learning, perhaps in other words."""
    first = _definition(rng, TOPICS[0])
    if rng.random() < 0.3:
        cut = first.answer[: rng.randrange(12, 40)] + "..."
        first = Turn(first.question, cut, is_given=True)
    elif rng.random() < 0.5:
        first = Turn("什么是机器学习？", "机器学习是人工智能的一个分支...", is_given=True)
    if rng.random() < 0.6:
        question = dress(rng, rng.choice(_FORMS["examples_zh"]))
        second = Turn(question, EXAMPLE_ZH, "用户要一个机器学习的例子。")
    else:
        question = dress(rng, rng.choice(_FORMS["examples_en"]))
        second = Turn(question, EXAMPLE_EN, "An example is wanted.")
    return Conversation((first, second), system=_system(rng))


def history(rng: Random) -> Conversation:
    """Ask how deep learning came about."""
    if rng.random() < 0.6:
        turn = Turn(
            dress(rng, rng.choice(_FORMS["history_zh"])), HISTORY_ZH, "用户问深度学习的历史。"
        )
    else:
        turn = Turn(
            dress(rng, rng.choice(_FORMS["history_en"])), HISTORY_EN, "This is about history."
        )
    return Conversation((turn,), system=_system(rng))


def poem(rng: Random) -> Conversation:
    """Ask for a poem on a subject."""
    is_zh = rng.random() < 0.55
    poems = toml("poems")["zh" if is_zh else "en"]
    forms = _FORMS["poem_zh" if is_zh else "poem_en"]
    name = rng.choice(list(poems))
    thought = f"用户想要一首关于{name}的诗。" if is_zh else f"The user wants a poem about {name}."
    question = dress(rng, rng.choice(forms).format(n=name))
    return Conversation((Turn(question, poems[name], thought),))


def _definition(rng: Random, topic: tuple[str, str, str, str]) -> Turn:
    zh, en, answer_zh, answer_en = topic
    if rng.random() < 0.55:
        question = dress(rng, rng.choice(_FORMS["ask_zh"]).format(n=zh))
        return Turn(question, answer_zh, f"用户问{zh}，我简短地解释。")
    name = en
    for article in ("a ", "an ", "the "):
        if en.startswith(article) and rng.random() < 0.4:
            name = en.removeprefix(article) + ("s" if article != "the " else "")
    question = dress(rng, rng.choice(_FORMS["ask_en"]).format(n=name))
    return Turn(question, answer_en, f"The user asks about {en}. I explain it in short.")


def _system(rng: Random) -> str:
    if rng.random() < 0.85:
        return ""
    return rng.choice(
        ("你是一个专业的AI助手", "You are a helpful assistant.", "你是一个helpful的AI助手")
    )
