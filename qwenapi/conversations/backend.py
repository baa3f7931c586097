"""Backend: the seam between the store and where it keeps things, SQLite or Redis.

Each method is one atomic step. A backend knows tenants, claims, limits and time; it never waits for
another turn and never renews a lease by itself. Every method may raise StorageUnavailable.
"""

from collections.abc import Collection
from typing import Protocol

from qwenapi.conversations.values import Claim, Conversation, PastTurn


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

    def commit(self, claim: Claim, turn: PastTurn) -> None:
        """Store the turn and give up the lease; durable when it returns.

        Raises LeaseLost, StoreFull.
        """

    def export(self, tenant: str, conversation_id: str) -> Conversation:
        """Return a conversation whole."""

    def delete(self, tenant: str, conversation_id: str) -> None:
        """Erase a conversation, and whatever claims there are to it."""

    def purge(self) -> int:
        """Erase some expired conversations and return how many; 0: none is left."""

    def close(self) -> None:
        """Close what is open."""
