"""ConversationStore: one turn at a time in each conversation, kept whole or not at all.

Waits in a conversation's turn queue, holds its lease while the turn runs, and commits. Knows a
Backend; refuses to know HTTP, prompts and engines. `run` takes what would block; all other waiting
is `time.sleep` and threads, which gevent makes greenlets.

    store = open_store("", state_dir, run=ThreadPool(4).apply)
    store.start()
    with store.begin_turn(tenant, None, "hello", owner="http-0", deadline=deadline) as turn:
        text = generate(turn.history)
        turn.commit(text, "stop")
"""

import logging
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import TracebackType
from typing import Any, TypeVar, cast

from qwenapi.conversations.backend import Backend
from qwenapi.conversations.errors import (
    ConversationBusy,
    ConversationNotFound,
    ItemTooLarge,
    StorageUnavailable,
)
from qwenapi.conversations.lease_keeper import LeaseKeeper
from qwenapi.conversations.response_store import MAX_ID_CHARS, ResponseStore
from qwenapi.conversations.values import (
    RESPONSE_PREFIX,
    TURNS_PER_PAGE,
    Claim,
    Conversation,
    PastTurn,
    StoredResponse,
    StoreLimits,
)

# Those far back in the queue ask seldom: 50 waiters cost as much as a few.
POLL_SECONDS = 0.02
MAX_POLL_SECONDS = 0.5

T = TypeVar("T")
Runner = Callable[[Callable[[], Any]], Any]

log = logging.getLogger(__name__)


def run_here(work: Callable[[], T]) -> T:
    """Run work in the calling thread."""
    return work()


class Turn:
    """A turn that has its conversation to itself until it is committed or rolled back.

    As a context manager it is rolled back unless it was committed.
    """

    def __init__(
        self, store: "ConversationStore", claim: Claim, user: str, history: tuple[PastTurn, ...]
    ) -> None:
        self._store = store
        self._claim = claim
        self._user = user
        self._is_open = True
        self.history = history

    @property
    def conversation_id(self) -> str:
        return self._claim.conversation_id

    @property
    def is_lost(self) -> bool:
        """Say whether the lease was lost, so that the turn can no longer be committed."""
        return self._is_open and not self._store.holds(self._claim)

    def commit(
        self,
        assistant: str,
        finish_reason: str,
        response: StoredResponse | None = None,
        labels: str = "",
    ) -> None:
        """Store the user's text and the assistant's, and with them a response that may be asked for
        by itself, and a new conversation's labels; durable when it returns.

        Raises LeaseLost, ItemTooLarge, StoreFull, StorageUnavailable; nothing was stored then.
        """
        assert self._is_open, "a turn ends once"
        turn = PastTurn(self._user, assistant, finish_reason, time.time())
        self._store.commit(self._claim, turn, response, labels)
        self._is_open = False

    def rollback(self) -> None:
        """Leave no trace of the turn; after a commit or another rollback, do nothing."""
        if self._is_open:
            self._is_open = False
            self._store.release(self._claim)

    def __enter__(self) -> "Turn":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.rollback()


class ConversationStore:
    """The conversations of all tenants, for this process and every other on the same storage.

    `responses` has what is kept as single answers.
    """

    def __init__(
        self, backend: Backend, *, limits: StoreLimits | None = None, run: Runner = run_here
    ) -> None:
        self._backend = backend
        self._limits = limits or StoreLimits()
        self._run = run
        self._keeper = LeaseKeeper(
            renew=lambda claims: self._call(lambda: backend.renew(claims)),
            purge=lambda: self._call(backend.purge),
            seconds=self._limits.lease_seconds / 3,
        )
        self.responses = ResponseStore(
            backend, self._keeper, self._call, self._limits.max_history_bytes
        )

    def start(self) -> None:
        """Open the storage and begin to renew and purge; a storage that is unavailable is
        logged, and tried again by each call.
        """
        try:
            self._call(self._backend.open)
        except StorageUnavailable as error:
            log.warning("conversations are unavailable until the storage is: %s", error.__cause__)
        self._keeper.start()

    def begin_turn(
        self,
        tenant: str,
        conversation_id: str | None,
        user: str,
        *,
        owner: str,
        deadline: float,
        pause: Callable[[float], object] | None = None,
        new_id: str = "",
    ) -> Turn:
        """Return a turn of this conversation, or with None of a new one, once it is its turn. A new
        one is called `new_id`, or by chance.

        Waits in order of arrival until `deadline` of `time.monotonic`. `pause` sleeps between two
        polls; it may raise to leave the queue, as when the caller has gone. Raises ItemTooLarge,
        ConversationNotFound, ConversationBusy, StoreFull, StorageUnavailable.
        """
        self._check_item(user)
        claim = Claim(tenant, _plausible(conversation_id or new_id or str(uuid.uuid4())), owner)
        try:
            if conversation_id is None:
                self._call(lambda: self._backend.create(claim))
            else:
                self._wait_for_turn(claim, deadline, pause or time.sleep)
            self._keeper.hold(claim)
            return Turn(self, claim, user, self._call(lambda: self._backend.history(claim)))
        except BaseException:  # a greenlet may be killed here, and must not block the queue
            self.release(claim)
            raise

    def find(self, tenant: str, conversation_id: str) -> Conversation:
        """Return what is known of a conversation, without a turn that runs; raises
        ConversationNotFound.
        """
        return self._call(lambda: self._backend.find(tenant, _plausible(conversation_id)))

    def pages(
        self, tenant: str, conversation: Conversation, *, newest_first: bool = False
    ) -> Iterator[Sequence[PastTurn]]:
        """Yield a conversation's turns, some at a time, as they are fetched; raises
        ConversationNotFound where it was erased meanwhile.
        """
        end = conversation.num_turns + 1
        firsts = range(1, end, TURNS_PER_PAGE)
        for first in reversed(firsts) if newest_first else firsts:
            numbers = range(first, min(first + TURNS_PER_PAGE, end))
            found = self._call(partial(self._backend.turns, tenant, conversation.id, numbers))
            yield found[::-1] if newest_first else found

    def label(self, tenant: str, conversation_id: str, labels: str) -> None:
        """Put other labels in the place of a conversation's, whether or not a turn runs; raises
        ConversationNotFound, ItemTooLarge, StoreFull.
        """
        self._check_item(labels)
        self._call(lambda: self._backend.label(tenant, _plausible(conversation_id), labels))

    def delete(self, tenant: str, conversation_id: str) -> None:
        """Erase a conversation; a turn that runs is lost. Raises ConversationNotFound."""
        self._call(lambda: self._backend.delete(tenant, _plausible(conversation_id)))

    def close(self) -> None:
        """Stop renewing and close the storage; turns that run are lost."""
        self._keeper.stop()
        self._call(self._backend.close)

    def holds(self, claim: Claim) -> bool:
        """Say whether a claim's lease is still ours, as far as is known."""
        return self._keeper.holds(claim)

    def commit(
        self, claim: Claim, turn: PastTurn, response: StoredResponse | None, labels: str
    ) -> None:
        """Store the turn of a claim and end it; for Turn."""
        self._check_item(turn.assistant)
        self._call(lambda: self._backend.commit(claim, turn, response, labels))
        self._keeper.drop(claim)

    def release(self, claim: Claim) -> None:
        """End a claim, for Turn; where the storage is unavailable its lease runs out instead."""
        self._keeper.drop(claim)
        try:
            self._call(lambda: self._backend.leave(claim))
        except StorageUnavailable as error:
            log.warning("a conversation stays leased until it runs out: %s", error.__cause__)

    def _wait_for_turn(
        self, claim: Claim, deadline: float, pause: Callable[[float], object]
    ) -> None:
        num_ahead = self._call(lambda: self._backend.enter(claim))
        while num_ahead:
            left = deadline - time.monotonic()
            if left <= 0:
                raise ConversationBusy()
            pause(min(POLL_SECONDS * num_ahead, MAX_POLL_SECONDS, left))
            num_ahead = self._call(lambda: self._backend.advance(claim))

    def _check_item(self, text: str) -> None:
        if len(text.encode()) > self._limits.max_item_bytes:
            raise ItemTooLarge()

    def _call(self, work: Callable[[], T]) -> T:
        # gevent's thread pool prints the traceback of whatever is raised in it: carry it across.
        value, error = self._run(lambda: _outcome(work))
        if error is not None:
            raise error
        return cast(T, value)


def _plausible(conversation_id: str) -> str:
    """Return an id that a store may be asked for; what callers send can be anything."""
    is_response = conversation_id.startswith(RESPONSE_PREFIX)
    if is_response or len(conversation_id) > MAX_ID_CHARS or not conversation_id.isascii():
        raise ConversationNotFound()
    return conversation_id


def _outcome(work: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return work(), None
    except Exception as error:  # raised again by _call
        return None, error
