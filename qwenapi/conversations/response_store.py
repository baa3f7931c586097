"""ResponseStore: single answers, each kept by its id and behind the one that it follows.

A response that has ended is stored in one step. One that runs on without its caller is stored as it
begins, and leases its id: it runs as long as somebody has the lease, whatever it says of itself.
Which follow which is a tree, where nobody waits for another.
"""

import logging
from collections.abc import Callable
from typing import Any

from qwenapi.conversations.backend import Backend
from qwenapi.conversations.errors import ConversationNotFound, StorageUnavailable
from qwenapi.conversations.lease_keeper import LeaseKeeper
from qwenapi.conversations.values import RESPONSE_PREFIX, Claim, PastTurn, Step, StoredResponse

MAX_ID_CHARS = 64

log = logging.getLogger(__name__)

Call = Callable[[Callable[[], Any]], Any]


class RunningResponse:
    """A response that runs on without its caller, until it ends or is ended by another."""

    def __init__(self, store: "ResponseStore", claim: Claim) -> None:
        self._store = store
        self._claim = claim
        self._is_open = True

    @property
    def is_lost(self) -> bool:
        """Say whether it was cancelled or deleted, as far as is known: it is heard of late."""
        return not self._store.holds(self._claim)

    def update(self, response: StoredResponse) -> None:
        """Store what it says of itself by now; raises LeaseLost."""
        self._store.put(self._claim, response, "update")

    def end(self, response: StoredResponse) -> None:
        """Store it as it has ended; raises LeaseLost, StoreFull: nothing was stored then."""
        self._store.put(self._claim, response, "end")
        self._is_open = False
        self._store.drop(self._claim)

    def abandon(self) -> None:
        """Let it count as lost from now on, unless it has ended."""
        if self._is_open:
            self._is_open = False
            self._store.leave(self._claim)


class ResponseStore:
    """The responses of all tenants; ConversationStore makes it.

    `max_history_bytes` is what one prompt can be made of, at the most.
    """

    def __init__(
        self, backend: Backend, keeper: LeaseKeeper, call: Call, max_history_bytes: int
    ) -> None:
        self.max_history_bytes = max_history_bytes
        self._backend = backend
        self._keeper = keeper
        self._call = call

    def keep(self, tenant: str, response: StoredResponse) -> None:
        """Store a response that has ended; durable when it returns. Raises StoreFull."""
        self.put(Claim(tenant, response.id, ""), response, "whole")

    def begin(self, tenant: str, response: StoredResponse, *, owner: str) -> RunningResponse:
        """Store a response that will run on, and return what ends it. Raises StoreFull."""
        claim = Claim(tenant, response.id, owner)
        self.put(claim, response, "begin")
        self._keeper.hold(claim)
        return RunningResponse(self, claim)

    def find(self, tenant: str, response_id: str) -> StoredResponse:
        """Return a response; raises ConversationNotFound."""
        id_ = plausible_response(response_id)
        found: StoredResponse = self._call(lambda: self._backend.response(tenant, id_))
        return found

    def history(self, tenant: str, response_id: str) -> tuple[PastTurn, ...]:
        """Return the turns that lead to a response and its own, oldest first.

        Raises ConversationNotFound where one of them is missing, ConversationFull where they are
        more than a prompt can be.
        """
        id_ = plausible_response(response_id)
        found: tuple[PastTurn, ...] = self._call(lambda: self._backend.line(tenant, id_))
        return found

    def cancel(self, tenant: str, response: StoredResponse) -> bool:
        """Store how a running response ends, and take its lease; False: it runs no longer."""
        claim = Claim(tenant, response.id, "")
        was_running = self.put(claim, response, "cancel")
        if was_running:
            self._keeper.drop_all(response.id)
        return was_running

    def delete(self, tenant: str, response_id: str) -> None:
        """Erase a response; what follows it is left without. Raises ConversationNotFound."""
        id_ = plausible_response(response_id)
        self._call(lambda: self._backend.delete_response(tenant, id_))
        self._keeper.drop_all(id_)

    def put(self, claim: Claim, response: StoredResponse, step: Step) -> bool:
        """Take a step of a response; False: there was none to cancel."""
        return bool(self._call(lambda: self._backend.put_response(claim, response, step)))

    def holds(self, claim: Claim) -> bool:
        return self._keeper.holds(claim)

    def drop(self, claim: Claim) -> None:
        self._keeper.drop(claim)

    def leave(self, claim: Claim) -> None:
        """End a claim; where the storage is unavailable its lease runs out instead."""
        self.drop(claim)
        try:
            self._call(lambda: self._backend.leave(claim))
        except StorageUnavailable as error:
            log.warning("a response stays leased until it runs out: %s", error.__cause__)


def plausible_response(response_id: str) -> str:
    """Return an id that a store may be asked for; what callers send can be anything."""
    is_short = len(response_id) <= MAX_ID_CHARS and response_id.isascii()
    if not is_short or not response_id.startswith(RESPONSE_PREFIX):
        raise ConversationNotFound()
    return response_id
