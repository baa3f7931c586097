"""The conversation store's frozen values: limits, turns, conversations, claims."""

import uuid
from dataclasses import dataclass, field
from typing import Literal

ITEMS_PER_TURN = 2
TURNS_PER_PAGE = 16
# What the ids of responses begin with, and no conversation's.
RESPONSE_PREFIX = "resp_"
# What the ids of conversations begin with whose turns are items, and no texts.
ITEMS_PREFIX = "conv_"

# Of a response: it has ended; it begins to run, says more of itself, ends; another ends it.
Step = Literal["whole", "begin", "update", "end", "cancel"]


@dataclass(frozen=True)
class PastTurn:
    """What a user said and what was answered; neither is part of the repr, which may be logged."""

    user: str = field(repr=False)
    assistant: str = field(repr=False)
    finish_reason: str
    created_at: float  # seconds since 1970

    @property
    def messages(self) -> tuple[dict[str, str], dict[str, str]]:
        """Return the two items of the turn as chat messages."""
        return (
            {"role": "user", "content": self.user},
            {"role": "assistant", "content": self.assistant},
        )

    @property
    def num_chars(self) -> int:
        return len(self.user) + len(self.assistant)

    @property
    def num_bytes(self) -> int:
        return len(self.user.encode()) + len(self.assistant.encode())


@dataclass(frozen=True)
class Conversation:
    """What is known of a conversation without its turns: those are fetched by pages, as they may be
    more than fits into memory. `labels` are its owner's, in whatever form they were given.
    """

    id: str
    created_at: float
    used_at: float
    num_turns: int
    labels: str = field(repr=False)


@dataclass(frozen=True)
class StoredResponse:
    """One answer: the turn it is, what its reader is told of it, and the answer it follows.

    `previous_id` is empty where it follows none. `is_running`: somebody has its lease.
    """

    id: str
    previous_id: str
    turn: PastTurn
    body: str = field(repr=False)
    is_running: bool = False

    @property
    def num_bytes(self) -> int:
        return self.turn.num_bytes + len(self.body.encode())


@dataclass(frozen=True, kw_only=True)
class StoreLimits:
    """How much is kept, and for how long.

    `max_history_bytes` bounds what a turn loads, in whole turns from the newest: more text than the
    longest context takes.
    """

    max_items: int = 2000
    max_item_bytes: int = 1024**2
    max_tenant_bytes: int = 1024**3
    max_history_bytes: int = 8 * 1024**2
    ttl_seconds: float = 7 * 24 * 3600
    lease_seconds: float = 15


@dataclass(frozen=True)
class Claim:
    """One turn's claim to a conversation: its place in the queue, then its lease.

    The token tells it from every other, of this process and of the dead; `owner` is for people.
    """

    tenant: str
    conversation_id: str
    owner: str
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
