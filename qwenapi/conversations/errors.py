"""Errors of the conversation store: one tree, with fixed messages that callers may see.

ConversationError
├── ConversationNotFound      404  unknown, expired or another tenant's: not to be told apart
├── ConversationBusy          503  another turn ran for as long as this one could wait
├── ItemTooLarge              400  one text is over the limit
├── StoreFull                 507  the tenant has used up its room
│   └── ConversationFull      400  the conversation has as many turns as it may have
├── LeaseLost                 503  the turn ran on after it lost its place; nothing was stored
└── StorageUnavailable        503  disk full, locked, damaged, unreachable
"""

from typing import ClassVar


class ConversationError(Exception):
    """Base of everything a store raises on purpose."""

    sentence: ClassVar[str] = "The conversation cannot be used."

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or self.sentence)


class ConversationNotFound(ConversationError):
    sentence = "The conversation does not exist or has expired. Start a new one."


class ConversationBusy(ConversationError):
    sentence = "The conversation is busy with another turn. Wait, then try again."


class ItemTooLarge(ConversationError):
    sentence = "The text is too long to be kept in a conversation. Send less."


class StoreFull(ConversationError):
    sentence = "There is no room for more conversations. Delete some, then try again."


class ConversationFull(StoreFull):
    sentence = "The conversation is as long as it may be. Start a new one."


class LeaseLost(ConversationError):
    sentence = "The turn lost its place in the conversation and was not kept. Send it again."


class StorageUnavailable(ConversationError):
    sentence = "Conversations cannot be stored at the moment. Wait, then try again."
