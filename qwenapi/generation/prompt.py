"""Prompts and words to token ids, long ones in a thread so that other streams go on."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from qwenapi.errors import BadRequest
from qwenapi.greenlets import in_thread
from qwenapi.text.errors import TemplateError
from qwenapi.text.tokenizer import Tokenizer

# A text is encoded at about 1 µs a character; longer ones go to a thread, where the tokenizer lets
# the others run.
MAX_INLINE_CHARACTERS = 4096

T = TypeVar("T")


def encode_chat(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, str]],
    thinking: bool | None,
    *,
    param: str,
) -> list[int]:
    """Return the ids of a conversation; a template's refusal is the fault of field `param`."""
    size = sum(len(text) for message in messages for text in message.values())
    try:
        return beside_others(
            size, lambda: tokenizer.encode_chat(messages, enable_thinking=thinking).ids
        )
    except TemplateError as error:
        raise BadRequest(str(error), param=param) from error


def beside_others(num_characters: int, work: Callable[[], T]) -> T:
    """Do work on a text here, or in a thread where it would hold up others."""
    return work() if num_characters <= MAX_INLINE_CHARACTERS else in_thread(work)


def cut_prompt(
    ids: list[int], limit: int | None, max_tokens: int | None, max_model_len: int
) -> list[int]:
    """Return the last `limit` tokens of a prompt; -1: as many as fit beside `max_tokens`."""
    if limit is None:
        return ids
    return ids[-(limit if limit > 0 else max(1, max_model_len - (max_tokens or 1))) :]


def bad_word_ids(tokenizer: Tokenizer, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Return the tokens of words: at the beginning of a text, and behind a space where that is
    another token and not a space by itself.
    """
    found: list[tuple[int, ...]] = []
    for word in words:
        alone = tuple(tokenizer.encode(word, add_special_tokens=False))
        spaced = tuple(tokenizer.encode(f" {word.lstrip()}", add_special_tokens=False))
        found.append(alone)
        if spaced[0] != alone[0] and len(spaced) == len(alone):
            found.append(spaced)
    return tuple(found)
