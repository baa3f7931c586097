"""Conversations of items: kept as turns, each of what was asked and what was answered.

Turns follow each other: one that runs has the conversation to itself. Metadata stand beside them.
A conversation may be larger than memory: it is read by pages of turns, each parsed in a thread.
"""

import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from itertools import chain
from typing import Any

import orjson
from flask import g, request

from qwenapi.api.responses.items import Item, named
from qwenapi.conversations import (
    ITEMS_PREFIX,
    Conversation,
    ConversationNotFound,
    PastTurn,
    Turn,
)
from qwenapi.errors import ContextLengthExceeded, NotFound
from qwenapi.generation.disconnect import watched_pause
from qwenapi.greenlets import in_thread
from qwenapi.request_context.current_request import caller, current_profile
from qwenapi.request_context.services import conversations
from qwenapi.request_context.storage_errors import storage_errors

MAX_SHOWN_CHARS = 64
CREATED = "created"  # why a conversation's first turn ended


def new_items(items: Iterable[Item]) -> list[Item]:
    """Return items that are of no response, with ids."""
    return named(items, uuid.uuid4().hex)


def create(items: Iterable[Item], metadata: Mapping[str, str]) -> str:
    """Return the id of a new conversation, which is kept."""
    id_ = f"{ITEMS_PREFIX}{uuid.uuid4().hex}"
    with errors_of(id_, "items"), _begin(None, _text(list(items)), new_id=id_) as turn:
        turn.commit(_text([]), CREATED, labels=_text(metadata))
    return id_


def add(conversation_id: str, items: list[Item]) -> None:
    """Add items to a conversation, once it is its turn."""
    errors = errors_of(conversation_id, "items")
    with errors, _begin(_known(conversation_id), _text(items)) as turn:
        turn.commit(_text([]), "")


def label(conversation_id: str, metadata: Mapping[str, str]) -> None:
    """Put other metadata in the place of a conversation's; no turn is waited for."""
    with errors_of(conversation_id, "metadata"):
        conversations().label(caller().tenant, _known(conversation_id), _text(metadata))


def begin(conversation_id: str, items: Iterable[Item]) -> Turn:
    """Return a turn that adds these items, once those before it have ended."""
    with errors_of(conversation_id):
        return _begin(_known(conversation_id), _text(list(items)))


def body_of(conversation_id: str) -> dict[str, Any]:
    """Return what its owner is told of a conversation; its items are listed apart."""
    found = _found(conversation_id)
    return {
        "id": conversation_id,
        "object": "conversation",
        "created_at": int(found.created_at),
        "metadata": orjson.loads(found.labels or "{}"),
    }


def items_in(conversation_id: str, *, newest_first: bool = False) -> Iterator[Item]:
    """Yield the items of a conversation of the caller's, as they are fetched."""
    for turns in _pages(conversation_id, newest_first=newest_first):
        items = in_thread(partial(_items_of, turns[::-1] if newest_first else turns))
        yield from reversed(items) if newest_first else items


def prompt_items(conversation_id: str, *, drops_oldest: bool) -> list[Item]:
    """Return what `history_of` does, without a turn."""
    newest: list[PastTurn] = []
    left = conversations().responses.max_history_bytes
    for turn in chain.from_iterable(_pages(conversation_id, newest_first=True)):
        left -= turn.num_bytes
        if left < 0:
            if drops_oldest:
                break
            raise ContextLengthExceeded()
        newest.append(turn)
    return in_thread(lambda: _items_of(reversed(newest)))


def history_of(turn: Turn, *, drops_oldest: bool) -> list[Item]:
    """Return the items before a turn: all, or as many of the newest as a prompt can be made of."""
    is_whole = bool(turn.history) and turn.history[0].finish_reason == CREATED
    if not is_whole and not drops_oldest:
        raise ContextLengthExceeded()
    return in_thread(lambda: _items_of(turn.history))


def delete(conversation_id: str) -> None:
    """Erase a conversation of the caller's; its responses stay."""
    with errors_of(conversation_id):
        conversations().delete(caller().tenant, _known(conversation_id))


def errors_of(conversation_id: str, param: str = "input") -> AbstractContextManager[None]:
    """Raise the store's errors as those of a request about one conversation, whose items are in
    field `param`.
    """
    shown = conversation_id[:MAX_SHOWN_CHARS]
    return storage_errors(
        lambda: NotFound(f"Conversation with id '{shown}' not found.", param="conversation"),
        param=param,
    )


def _known(conversation_id: str) -> str:
    if not conversation_id.startswith(ITEMS_PREFIX):
        raise ConversationNotFound()
    return conversation_id


def _begin(conversation_id: str | None, user: str, new_id: str = "") -> Turn:
    """Return a turn once those before it have ended; raise Cancelled if its caller leaves first."""
    deadline = time.monotonic() + current_profile().settings.limits_queue_timeout
    with watched_pause(request.environ) as pause:
        return conversations().begin_turn(
            caller().tenant,
            conversation_id,
            user,
            owner=g.request_id,
            deadline=deadline,
            pause=pause,
            new_id=new_id,
        )


def _found(conversation_id: str) -> Conversation:
    with errors_of(conversation_id):
        return conversations().find(caller().tenant, _known(conversation_id))


def _pages(conversation_id: str, *, newest_first: bool) -> Iterator[Sequence[PastTurn]]:
    found = _found(conversation_id)
    with errors_of(conversation_id):
        yield from conversations().pages(caller().tenant, found, newest_first=newest_first)


def _items_of(turns: Iterable[PastTurn]) -> list[Item]:
    items: list[Item] = []
    for turn in turns:
        items += orjson.loads(turn.user)
        items += orjson.loads(turn.assistant)
    return items


def _text(value: Any) -> str:
    return orjson.dumps(value).decode()
