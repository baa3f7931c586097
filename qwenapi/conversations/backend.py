"""Backend: the seam between the store and where it keeps things, SQLite or Redis.

Each method is one atomic step. A backend knows tenants, claims, limits and time; it never waits for
another turn and never renews a lease by itself. Every method may raise StorageUnavailable.
"""

from collections.abc import Collection
from typing import Protocol

from qwenapi.conversations.values import Claim, Conversation, PastTurn, Step, StoredResponse


class Backend(Protocol):
    """Where conversations are kept."""

    def open(self) -> None:
        """Make the storage ready; every other method does so too if it must."""

    def create(self, claim: Claim) -> None:
        """Lease a conversation that will exist with its first turn."""

    def enter(self, claim: Claim) -> int:
        """Join the queue for a conversation and return how many are ahead; 0: it is leased.

        Raises ConversationNotFound, StoreFull.
        """

    def advance(self, claim: Claim) -> int:
        """Return what `enter` does, for a claim that is already in the queue."""

    def leave(self, claim: Claim) -> None:
        """Give up the claim's place and its lease, whichever it has."""

    def renew(self, claims: Collection[Claim]) -> set[Claim]:
        """Lengthen these leases and return those that were lost."""

    def history(self, claim: Claim) -> tuple[PastTurn, ...]:
        """Return the newest turns, oldest first, as many as the limits allow."""

    def commit(
        self,
        claim: Claim,
        turn: PastTurn,
        response: StoredResponse | None = None,
        labels: str = "",
    ) -> None:
        """Store the turn, and with it a response that ends it and, of a new conversation, labels;
        give up the lease. Durable when it returns.

        Raises LeaseLost, StoreFull.
        """

    def find(self, tenant: str, conversation_id: str) -> Conversation:
        """Return what is known of a conversation; raises ConversationNotFound."""

    def turns(self, tenant: str, conversation_id: str, numbers: range) -> tuple[PastTurn, ...]:
        """Return the turns of these numbers, which count from 1, oldest first; raises
        ConversationNotFound.
        """

    def label(self, tenant: str, conversation_id: str, labels: str) -> None:
        """Put other labels in the place of a conversation's; durable when it returns.

        Raises ConversationNotFound, StoreFull.
        """

    def delete(self, tenant: str, conversation_id: str) -> None:
        """Erase a conversation, and whatever claims there are to it."""

    def put_response(self, claim: Claim, response: StoredResponse, step: Step) -> bool:
        """Store a response, the claim's conversation being its id, and touch those it follows;
        durable when it returns.

        To begin takes the lease, to end and to cancel gives it up. False: there is none to cancel.
        Raises LeaseLost, StoreFull, ConversationNotFound.
        """

    def response(self, tenant: str, response_id: str) -> StoredResponse:
        """Return a response."""

    def line(self, tenant: str, response_id: str) -> tuple[PastTurn, ...]:
        """Return the turns that lead to a response and its own, oldest first.

        Raises ConversationNotFound where one is missing, ConversationFull beyond the limits.
        """

    def delete_response(self, tenant: str, response_id: str) -> None:
        """Erase a response and its lease."""

    def purge(self) -> int:
        """Erase some expired conversations and responses, and return how many; 0: none is left."""

    def close(self) -> None:
        """Close what is open."""
