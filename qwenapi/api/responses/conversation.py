"""Conversations of items: kept as turns, each of what was asked and what was answered.

A turn's assistant is a list of items or, where the turn only labels the conversation, an object of
its metadata. Turns follow each other: one that runs has the conversation to itself.
"""

import time
import uuid
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import orjson
from flask import g

from qwenapi.api.responses.items import Item, named
from qwenapi.conversations import ITEMS_PREFIX, ConversationNotFound, PastTurn, Turn
from qwenapi.errors import NotFound
from qwenapi.request_context.current_request import caller, current_profile
from qwenapi.request_context.services import conversations
from qwenapi.request_context.storage_errors import storage_errors

MAX_SHOWN_CHARS = 64


@dataclass(frozen=True)
class ItemConversation:
    """A whole conversation."""

    id: str
    created_at: int
    items: tuple[Item, ...] = field(repr=False)
    metadata: Mapping[str, str]

    @property
    def body(self) -> dict[str, Any]:
        """Return what its owner is told of it; its items are listed apart."""
        return {
            "id": self.id,
            "object": "conversation",
            "created_at": self.created_at,
            "metadata": self.metadata,
        }


def new_items(items: Iterable[Item]) -> list[Item]:
    """Return items that are of no response, with ids."""
    return named(items, uuid.uuid4().hex)


def create(items: Iterable[Item], metadata: Mapping[str, str]) -> ItemConversation:
    """Return a new conversation, which is kept."""
    id_ = f"{ITEMS_PREFIX}{uuid.uuid4().hex}"
    with errors_of(id_, "items"), _begin(None, _text(list(items)), new_id=id_) as turn:
        turn.commit(_text(metadata), "")
    return find(id_)


def add(conversation_id: str, items: list[Item], metadata: Mapping[str, str] | None = None) -> None:
    """Add items to a conversation, or label it anew, once it is its turn."""
    errors = errors_of(conversation_id, "items")
    with errors, _begin(_known(conversation_id), _text(items)) as turn:
        turn.commit(_text([] if metadata is None else metadata), "")


def begin(conversation_id: str, items: Iterable[Item]) -> Turn:
    """Return a turn that adds these items, once those before it have ended."""
    with errors_of(conversation_id):
        return _begin(_known(conversation_id), _text(list(items)))


def find(conversation_id: str) -> ItemConversation:
    """Return a conversation of the caller's."""
    with errors_of(conversation_id):
        found = conversations().export(caller().tenant, _known(conversation_id))
    labels = [value for turn in found.turns if isinstance(value := _answered(turn), dict)]
    items = tuple(items_of(found.turns))
    return ItemConversation(conversation_id, int(found.created_at), items, labels[-1])


def delete(conversation_id: str) -> None:
    """Erase a conversation of the caller's; its responses stay."""
    with errors_of(conversation_id):
        conversations().delete(caller().tenant, _known(conversation_id))


def items_of(turns: Iterable[PastTurn]) -> list[Item]:
    """Return the items of turns, oldest first."""
    items: list[Item] = []
    for turn in turns:
        answered = _answered(turn)
        items += orjson.loads(turn.user)
        items += answered if isinstance(answered, list) else []
    return items


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
    deadline = time.monotonic() + current_profile().settings.limits_queue_timeout
    return conversations().begin_turn(
        caller().tenant,
        conversation_id,
        user,
        owner=g.request_id,
        deadline=deadline,
        new_id=new_id,
    )


def _answered(turn: PastTurn) -> Any:
    return orjson.loads(turn.assistant)


def _text(value: Any) -> str:
    return orjson.dumps(value).decode()
