"""Questions for code in three languages, and second turns that ask for another language."""

from random import Random

from data.code_java import JAVA
from data.code_javascript import JAVASCRIPT
from data.code_python import PYTHON
from data.conversation import Conversation, Turn
from data.texts import questions, toml
from data.wording import dress, is_chinese

LANGUAGES = {"Python": PYTHON, "Java": JAVA, "JavaScript": JAVASCRIPT}
_SPOKEN = {
    "Python": ("Python", "Python", "python"),
    "Java": ("Java", "Java", "java"),
    "JavaScript": ("JavaScript", "JavaScript", "javascript", "JS", "js"),
}
NAMES = {task: (names["zh"], names["en"]) for task, names in toml("algorithms").items()}
_FORMS = questions("code")


def code_question(rng: Random) -> Conversation:
    """Ask for one algorithm in one language; fewer questions name no language and mean Python."""
    task = rng.choice(list(NAMES))
    language = rng.choices(list(LANGUAGES), (5, 3, 3))[0]
    return Conversation((_first_turn(rng, task, language),), system=_system(rng))


def code_conversion(rng: Random) -> Conversation:
    """Ask for code, then for the same in one or two other languages."""
    task = rng.choice(list(NAMES))
    languages = rng.sample(list(LANGUAGES), 3)
    if languages[0] != "Python" and rng.random() < 0.7:
        languages.remove("Python")
        languages.insert(0, "Python")
    turns = [_first_turn(rng, task, languages[0])]
    previous = languages[0]
    for language in languages[1 : rng.choice((2, 2, 2, 3))]:
        forms = _FORMS["turn_zh" if rng.random() < 0.55 else "turn_en"]
        text = rng.choice(forms).format(l=rng.choice(_SPOKEN[language]), p=previous)
        turns.append(_turn(dress(rng, text), task, language, False))
        previous = language
    return Conversation(tuple(turns), system=_system(rng))


def raw_code(rng: Random) -> Conversation:
    """Continue a Python function outside any chat."""
    head, _, rest = PYTHON[rng.choice([t for t in PYTHON if t != "hello"])].partition("\n")
    return Conversation((Turn(head + "\n", rest),), is_raw=True)


def _first_turn(rng: Random, task: str, language: str) -> Turn:
    is_zh = rng.random() < 0.55
    name = rng.choice(NAMES[task][0 if is_zh else 1])
    is_unnamed = language == "Python" and rng.random() < 0.08
    if is_unnamed:
        text = rng.choice(("写一个{n}", "写{n}", "给我写{n}") if is_zh else ("Write {n}", "{n}"))
    else:
        text = rng.choice(_FORMS["ask_zh" if is_zh else "ask_en"])
    text = dress(rng, text.format(l=rng.choice(_SPOKEN[language]), n=name))
    is_bare = rng.random() < 0.12
    if is_bare:
        text = text.rstrip("。？！?.!") + rng.choice(_FORMS["only_zh" if is_zh else "only_en"])
    return _turn(text, task, language, is_bare)


def _turn(question: str, task: str, language: str, is_bare: bool) -> Turn:
    code = LANGUAGES[language][task]
    answer = code if is_bare else f"```{language.lower()}\n{code}\n```"
    zh, en = (names[0] for names in NAMES[task])
    if is_chinese(question):
        return Turn(question, answer, f"用户要 {language} 的{zh}，我写出代码。")
    return Turn(question, answer, f"The user wants {en} in {language}. I write the code.")


def _system(rng: Random) -> str:
    return rng.choice(_FORMS["systems"]) if rng.random() < 0.2 else ""
