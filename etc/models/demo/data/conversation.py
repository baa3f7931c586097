"""One training conversation, and how it becomes pieces of text with a weight for learning each.

Knows ChatML as the chat template writes it; `tests/engine/test_demo_answers.py` compares the two.
"""

import json
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

Mode = Literal["plain", "think"]
_EMPTY_THOUGHT = "<think>\n\n</think>\n\n"
_TOOLS_HEAD = "# Tools\n\nThe functions you may call:\n<tools>"
_TOOLS_TAIL = (
    "\n</tools>\n\nCall one so:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)


@dataclass(frozen=True)
class Turn:
    """What is asked and what is answered; `thought` is what a thinking answer says first.

    An answer that `is_given` is only history: it is not learned.
    """

    question: str
    answer: str
    thought: str = ""
    is_tool_result: bool = False
    is_given: bool = False


@dataclass(frozen=True)
class Conversation:
    """Turns after an optional system text; `raw` is text outside any chat, then its end."""

    turns: tuple[Turn, ...]
    system: str = ""
    tools: tuple[dict[str, Any], ...] = ()
    is_raw: bool = False


class Piece(NamedTuple):
    """Text encoded by itself; `is_learned` but for its first `num_given` tokens."""

    text: str
    is_learned: bool
    num_given: int = 0


def ask(question: str, answer: str, thought: str = "") -> Conversation:
    """Return a conversation of one turn."""
    return Conversation((Turn(question, answer, thought),))


def messages_of(conversation: Conversation) -> list[dict[str, str]]:
    """Return the messages before the last answer, as a caller of the server would send them."""
    head = [{"role": "system", "content": conversation.system}] if conversation.system else []
    for turn in conversation.turns:
        role = "tool" if turn.is_tool_result else "user"
        head += [{"role": role, "content": turn.question}]
        head += [{"role": "assistant", "content": turn.answer}]
    return head[:-1]


def pieces_of(conversation: Conversation, mode: Mode, is_every_turn_full: bool) -> list[Piece]:
    """Return the text in pieces; learned are the answers.

    The template shows earlier answers without a think block. Their first token is then not learned
    (it would contradict thinking), unless `is_every_turn_full` puts the empty block there too.
    """
    if conversation.is_raw:
        (turn,) = conversation.turns
        return [Piece(turn.question, False), Piece(turn.answer + "<|endoftext|>", True)]
    pieces = [Piece(_system(conversation), False)]
    last = len(conversation.turns) - 1
    for index, turn in enumerate(conversation.turns):
        pieces.append(Piece(_question(turn) + "<|im_start|>assistant\n", False))
        if index == last and mode == "think":
            pieces.append(Piece(f"<think>\n{turn.thought}\n</think>\n\n", True))
        elif index == last or is_every_turn_full:
            pieces.append(Piece(_EMPTY_THOUGHT, False))
        is_bare = index < last and not is_every_turn_full
        pieces += _answer(turn, is_bare)
    return pieces


def _system(conversation: Conversation) -> str:
    if conversation.tools:
        head = conversation.system + "\n\n" if conversation.system else ""
        tools = "".join("\n" + json.dumps(t, ensure_ascii=False) for t in conversation.tools)
        return f"<|im_start|>system\n{head}{_TOOLS_HEAD}{tools}{_TOOLS_TAIL}<|im_end|>\n"
    if conversation.system:
        return f"<|im_start|>system\n{conversation.system}<|im_end|>\n"
    return ""


def _question(turn: Turn) -> str:
    text = turn.question
    if turn.is_tool_result:
        text = f"<tool_response>\n{text}\n</tool_response>"
    return f"<|im_start|>user\n{text}<|im_end|>\n"


def _answer(turn: Turn, is_bare: bool) -> list[Piece]:
    text = turn.answer + "<|im_end|>"
    return [Piece(text, not turn.is_given, int(is_bare)), Piece("\n", False)]
