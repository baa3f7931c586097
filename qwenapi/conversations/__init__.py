"""Conversations that the server remembers between turns, and that survive its restarts.

`open_store` chooses where they are kept. The rest of the house uses ConversationStore, Turn and the
errors, and knows neither SQLite nor Redis.
"""

from pathlib import Path
from urllib.parse import urlsplit

from qwenapi.conversations.errors import (
    ConversationBusy,
    ConversationError,
    ConversationFull,
    ConversationNotFound,
    ItemTooLarge,
    LeaseLost,
    StorageUnavailable,
    StoreFull,
)
from qwenapi.conversations.response_store import ResponseStore, RunningResponse
from qwenapi.conversations.store import ConversationStore, Runner, Turn, run_here
from qwenapi.conversations.trimming import fit
from qwenapi.conversations.values import (
    ITEMS_PREFIX,
    RESPONSE_PREFIX,
    Conversation,
    PastTurn,
    StoredResponse,
    StoreLimits,
)
from workers.errors import ConfigError

__all__ = [
    "ITEMS_PREFIX",
    "RESPONSE_PREFIX",
    "Conversation",
    "ConversationBusy",
    "ConversationError",
    "ConversationFull",
    "ConversationNotFound",
    "ConversationStore",
    "ItemTooLarge",
    "LeaseLost",
    "PastTurn",
    "ResponseStore",
    "RunningResponse",
    "StorageUnavailable",
    "StoreFull",
    "StoreLimits",
    "StoredResponse",
    "Turn",
    "fit",
    "open_store",
]

_REDIS_SCHEMES = ("redis", "rediss", "unix")


def open_store(
    url: str, state_dir: Path, *, limits: StoreLimits | None = None, run: Runner = run_here
) -> ConversationStore:
    """Return the store at a Redis URL, or for "" and "sqlite" the one in the state directory.

    Call it after the fork. `run` runs what would block this thread: under gevent, the `apply` of a
    thread pool. Redis needs none, as gevent waits for its socket.
    """
    limits = limits or StoreLimits()
    if url in ("", "sqlite"):
        from qwenapi.conversations.sqlite import SqliteBackend

        return ConversationStore(SqliteBackend(state_dir, limits), limits=limits, run=run)
    if urlsplit(url).scheme in _REDIS_SCHEMES:
        from qwenapi.conversations.redis import RedisBackend

        return ConversationStore(RedisBackend(url, limits), limits=limits)
    raise ConfigError(
        "conversations are kept in sqlite, or at a URL that begins with redis://, rediss:// or"
        " unix://"
    )
