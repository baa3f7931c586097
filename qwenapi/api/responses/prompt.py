"""What a response is asked with: instructions, history and input, as a prepared chat.

With `truncation: auto` the oldest turns of what does not fit are left out, each with the calls and
results that belong to it; instructions and other system messages stay.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qwenapi.api.responses.items import Item, messages_of
from qwenapi.api.responses.schemas import ResponseRequest
from qwenapi.conversations import fit
from qwenapi.errors import BadRequest
from qwenapi.generation.chat import ChatOptions, ChatPrompt, PreparedChat, prepare_chat
from qwenapi.images.reader import ImageReader
from qwenapi.settings.profile import Profile
from qwenapi.text.tokenizer import Tokenizer

# The part of the context that a cut history leaves to the answer, at the least.
MIN_ANSWER_SHARE = 4


@dataclass(frozen=True)
class MessageGroup:
    """A user's message and what followed it."""

    messages: tuple[Mapping[str, Any], ...]

    @property
    def num_chars(self) -> int:
        return sum(_num_chars(message["content"]) for message in self.messages)


def _num_chars(content: Any) -> int:
    """Return the characters of a content; a picture counts as none, since no guess would be one."""
    if isinstance(content, str):
        return len(content)
    return sum(len(part.get("text", "")) for part in content)


def prepare(
    ask: ResponseRequest,
    items: Iterable[Item],
    *,
    profile: Profile,
    tokenizer: Tokenizer,
    context: int,
    reader: ImageReader | None = None,
) -> PreparedChat:
    """Return the items, history before input, ready to be asked of a model with this context."""
    messages = messages_of(items)
    if not messages:
        raise BadRequest("'input' holds no item, and nothing goes before it.", param="input")
    if calls := messages[-1].get("tool_calls"):
        message = f"No tool output found for function call {calls[0]['id']}."
        raise BadRequest(message, param="input")
    reader = reader or ImageReader()
    chat = _prepared(ask, messages, profile, tokenizer, reader)
    if len(chat.ids) < context or not ask.drops_oldest:
        return chat
    system = [message for message in messages if message["role"] == "system"]
    groups = _groups(message for message in messages if message["role"] != "system")
    if not groups:
        return chat  # nothing can be left out
    *older, newest = groups

    def cut(groups: Sequence[MessageGroup]) -> PreparedChat:
        rest = [message for group in (*groups, newest) for message in group.messages]
        return _prepared(ask, [*system, *rest], profile, tokenizer, reader)

    room = context - context // MIN_ANSWER_SHARE
    return cut(fit(older, lambda groups: len(cut(groups).ids), room))


def _groups(messages: Iterable[Mapping[str, Any]]) -> list[MessageGroup]:
    groups: list[list[Mapping[str, Any]]] = []
    for message in messages:
        if message["role"] == "user" or not groups:
            groups.append([])
        groups[-1].append(message)
    return [MessageGroup(tuple(group)) for group in groups]


def _prepared(
    ask: ResponseRequest,
    messages: Sequence[Mapping[str, Any]],
    profile: Profile,
    tokenizer: Tokenizer,
    reader: ImageReader,
) -> PreparedChat:
    told = [{"role": "system", "content": ask.instructions}] if ask.instructions else []
    thinking = profile.thinking if ask.enable_thinking is None else ask.enable_thinking
    prompt = ChatPrompt(
        messages=[*told, *messages],
        tools=ask.tools,
        tool_choice=ask.tool_choice,
        parallel_tool_calls=ask.parallel_tool_calls,
        template_arguments={"enable_thinking": thinking},
        answer_format=ask.answer_format,
    )
    return prepare_chat(tokenizer, prompt, ChatOptions.of(profile.settings), reader)
