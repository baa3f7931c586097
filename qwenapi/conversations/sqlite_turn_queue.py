"""TurnQueue: who may take the next turn of each conversation, as SQLite rows.

A waiting turn has a ticket, the running one the lease. Works inside the transactions of its caller.
A row runs out by the monotonic clock of the machine; one that would run out later than a lease is
long is of an earlier boot, and dead.
"""

import sqlite3
import time

from qwenapi.conversations.values import Claim

LEASE = "SELECT 1 FROM leases WHERE conversation_id = ? AND {} = ? AND expires_at BETWEEN ? AND ?"


class TurnQueue:
    """The queues before all conversations. `seconds` is how long a claim lives unrenewed."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def join(self, db: sqlite3.Connection, claim: Claim) -> None:
        """Take a ticket."""
        db.execute(
            "INSERT INTO tickets (conversation_id, token, expires_at) VALUES (?, ?, ?)",
            (claim.conversation_id, claim.token, self._fresh),
        )

    def renew_ticket(self, db: sqlite3.Connection, claim: Claim) -> bool:
        """Keep the claim's place; False: it has none any more."""
        renewed = db.execute(
            "UPDATE tickets SET expires_at = ? WHERE token = ?", (self._fresh, claim.token)
        )
        return renewed.rowcount > 0

    def has_fresh_ticket(self, db: sqlite3.Connection, claim: Claim) -> bool:
        """Say whether the claim's ticket can wait to be renewed."""
        row = db.execute("SELECT expires_at FROM tickets WHERE token = ?", (claim.token,))
        (expires_at,) = row.fetchone() or (0,)
        return self._fresh - self._seconds / 2 < expires_at <= self._fresh

    def num_ahead(self, db: sqlite3.Connection, claim: Claim) -> int:
        """Return how many turns run or wait before the claim's ticket."""
        (num_ahead,) = db.execute(
            "SELECT (SELECT count(*) FROM leases"
            " WHERE conversation_id = :id AND expires_at BETWEEN :now AND :fresh) +"
            " (SELECT count(*) FROM tickets"
            " WHERE conversation_id = :id AND expires_at BETWEEN :now AND :fresh"
            " AND number < (SELECT number FROM tickets WHERE token = :token))",
            {
                "id": claim.conversation_id,
                "token": claim.token,
                "now": self._span[0],
                "fresh": self._span[1],
            },
        ).fetchone()
        return int(num_ahead)

    def take(self, db: sqlite3.Connection, claim: Claim) -> None:
        """Exchange the claim's ticket for the lease."""
        db.execute("DELETE FROM tickets WHERE token = ?", (claim.token,))
        db.execute(
            "INSERT OR REPLACE INTO leases VALUES (?, ?, ?, ?, ?)",
            (claim.conversation_id, claim.tenant, claim.token, claim.owner, self._fresh),
        )

    def renew_lease(self, db: sqlite3.Connection, claim: Claim) -> bool:
        """Keep the claim's lease; False: it was lost."""
        renewed = db.execute(
            "UPDATE leases SET expires_at = ?"
            " WHERE conversation_id = ? AND token = ? AND expires_at BETWEEN ? AND ?",
            (self._fresh, claim.conversation_id, claim.token, *self._span),
        )
        return renewed.rowcount > 0

    def holds(self, db: sqlite3.Connection, claim: Claim) -> bool:
        """Say whether the claim has the lease."""
        found = db.execute(LEASE.format("token"), (claim.conversation_id, claim.token, *self._span))
        return found.fetchone() is not None

    def is_leased_to(self, db: sqlite3.Connection, tenant: str, conversation_id: str) -> bool:
        """Say whether a turn of this tenant runs."""
        found = db.execute(LEASE.format("tenant"), (conversation_id, tenant, *self._span))
        return found.fetchone() is not None

    def leave(self, db: sqlite3.Connection, claim: Claim) -> None:
        """Give back the claim's ticket and lease, whichever it has."""
        for table in ("tickets", "leases"):
            db.execute(
                f"DELETE FROM {table} WHERE conversation_id = ? AND token = ?",
                (claim.conversation_id, claim.token),
            )

    def dissolve(self, db: sqlite3.Connection, conversation_id: str) -> None:
        """Take away all tickets and the lease of a conversation."""
        for table in ("tickets", "leases"):
            db.execute(f"DELETE FROM {table} WHERE conversation_id = ?", (conversation_id,))

    def has_dead(self, db: sqlite3.Connection) -> bool:
        """Say whether any row has run out."""
        found = db.execute(
            "SELECT 1 FROM tickets WHERE expires_at NOT BETWEEN ? AND ?"
            " UNION ALL SELECT 1 FROM leases WHERE expires_at NOT BETWEEN ? AND ?",
            (*self._span, *self._span),
        )
        return found.fetchone() is not None

    def sweep(self, db: sqlite3.Connection) -> None:
        """Remove the rows that have run out."""
        for table in ("tickets", "leases"):
            db.execute(f"DELETE FROM {table} WHERE expires_at NOT BETWEEN ? AND ?", self._span)

    @property
    def _span(self) -> tuple[float, float]:
        """Return between which times a live row runs out."""
        now = time.monotonic()
        return now, now + self._seconds

    @property
    def _fresh(self) -> float:
        return self._span[1]
