"""From a caller's words to prompt ids, without holding up the other streams of the process."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from gevent import get_hub

from qwenapi.errors import BadRequest
from qwenapi.request_context.services import services
from qwenapi.text.errors import TemplateError
from qwenapi.text.tokenizer import Tokenizer
from workers.wire.protocol import ModelCard

# A text is encoded at about 1 µs a character; longer ones go to a thread, where the tokenizer lets
# the others run.
MAX_INLINE_CHARACTERS = 4096

T = TypeVar("T")


def served_model() -> tuple[ModelCard, Tokenizer]:
    """Return what the engines serve; raise EngineUnavailable while none is connected."""
    card = services().engine.card
    tokenizer = services().tokenizers.of(card)
    assert card is not None  # of() has raised
    return card, tokenizer


def encode_chat(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, str]],
    thinking: bool | None,
    *,
    param: str,
) -> list[int]:
    """Return the ids of a conversation; a template's refusal is the fault of field `param`."""

    def work() -> list[int] | TemplateError:
        try:
            return tokenizer.encode_chat(messages, enable_thinking=thinking)
        except TemplateError as error:
            return error  # raised in gevent's thread pool it would be printed there

    size = sum(len(text) for message in messages for text in message.values())
    ids = beside_others(size, work)
    if isinstance(ids, TemplateError):
        raise BadRequest(str(ids), param=param)
    return ids


def beside_others(num_characters: int, work: Callable[[], T]) -> T:
    """Do work on a text here, or in a thread where it would hold up others. It must not raise."""
    if num_characters <= MAX_INLINE_CHARACTERS:
        return work()
    result: T = get_hub().threadpool.apply(work)
    return result
