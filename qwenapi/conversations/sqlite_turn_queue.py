"""TurnQueue: who may take the next turn of each conversation, as SQLite rows.

A waiting turn has a ticket, the running one the lease. Works inside the transactions of its caller.
A row is dead when its process is, whose number stands behind its claim's token; or when it has run
out by the monotonic clock of the machine. One that would run out later than a lease is long is of
an earlier boot, and dead.
"""

import sqlite3
import time

from qwenapi.conversations.living_processes import UNKNOWN, LivingProcesses
from qwenapi.conversations.values import Claim

LEASE = (
    "SELECT token FROM leases WHERE conversation_id = ? AND {} = ? AND expires_at BETWEEN ? AND ?"
)


class TurnQueue:
    """The queues before all conversations. `seconds` is how long a claim lives unrenewed."""

    def __init__(self, seconds: float, processes: LivingProcesses) -> None:
        self._seconds = seconds
        self._processes = processes

    def join(self, db: sqlite3.Connection, claim: Claim) -> None:
        """Take a ticket."""
        db.execute(
            "INSERT INTO tickets (conversation_id, token, expires_at) VALUES (?, ?, ?)",
            (claim.conversation_id, self._name(claim), self._fresh),
        )

    def renew_ticket(self, db: sqlite3.Connection, claim: Claim) -> bool:
        """Keep the claim's place; False: it has none any more."""
        renewed = db.execute(
            "UPDATE tickets SET expires_at = ? WHERE token = ?", (self._fresh, self._name(claim))
        )
        return renewed.rowcount > 0

    def has_fresh_ticket(self, db: sqlite3.Connection, claim: Claim) -> bool:
        """Say whether the claim's ticket can wait to be renewed."""
        row = db.execute("SELECT expires_at FROM tickets WHERE token = ?", (self._name(claim),))
        (expires_at,) = row.fetchone() or (0,)
        return self._fresh - self._seconds / 2 < expires_at <= self._fresh

    def num_ahead(self, db: sqlite3.Connection, claim: Claim) -> int:
        """Return how many turns run or wait before the claim's ticket."""
        now, fresh = self._span
        ahead = db.execute(
            "SELECT token FROM leases"
            " WHERE conversation_id = :id AND expires_at BETWEEN :now AND :fresh"
            " UNION ALL SELECT token FROM tickets"
            " WHERE conversation_id = :id AND expires_at BETWEEN :now AND :fresh"
            " AND number < (SELECT number FROM tickets WHERE token = :token)",
            {"id": claim.conversation_id, "token": self._name(claim), "now": now, "fresh": fresh},
        )
        return sum(self._lives(token) for (token,) in ahead.fetchall())

    def take(self, db: sqlite3.Connection, claim: Claim) -> None:
        """Exchange the claim's ticket for the lease."""
        name = self._name(claim)
        db.execute("DELETE FROM tickets WHERE token = ?", (name,))
        db.execute(
            "INSERT OR REPLACE INTO leases VALUES (?, ?, ?, ?, ?)",
            (claim.conversation_id, claim.tenant, name, claim.owner, self._fresh),
        )

    def renew_lease(self, db: sqlite3.Connection, claim: Claim) -> bool:
        """Keep the claim's lease; False: it was lost."""
        renewed = db.execute(
            "UPDATE leases SET expires_at = ?"
            " WHERE conversation_id = ? AND token = ? AND expires_at BETWEEN ? AND ?",
            (self._fresh, claim.conversation_id, self._name(claim), *self._span),
        )
        return renewed.rowcount > 0

    def holds(self, db: sqlite3.Connection, claim: Claim) -> bool:
        """Say whether the claim has the lease."""
        name = self._name(claim)
        found = db.execute(LEASE.format("token"), (claim.conversation_id, name, *self._span))
        return found.fetchone() is not None

    def is_leased_to(self, db: sqlite3.Connection, tenant: str, conversation_id: str) -> bool:
        """Say whether a turn of this tenant runs."""
        found = db.execute(LEASE.format("tenant"), (conversation_id, tenant, *self._span))
        row = found.fetchone()
        return row is not None and self._lives(row[0])

    def leave(self, db: sqlite3.Connection, claim: Claim) -> None:
        """Give back the claim's ticket and lease, whichever it has."""
        for table in ("tickets", "leases"):
            db.execute(
                f"DELETE FROM {table} WHERE conversation_id = ? AND token = ?",
                (claim.conversation_id, self._name(claim)),
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

    def _name(self, claim: Claim) -> str:
        """Return what tells the claim's rows from all others, and whose they are."""
        number = self._processes.number
        return claim.token if number == UNKNOWN else f"{claim.token}@{number:x}"

    def _lives(self, name: str) -> bool:
        """Say whether the process of a row lives; rows of the release before name none."""
        _, _, number = name.partition("@")
        return self._processes.lives(int(number, 16) if number else UNKNOWN)

    @property
    def _span(self) -> tuple[float, float]:
        """Return between which times a live row runs out."""
        now = time.monotonic()
        return now, now + self._seconds

    @property
    def _fresh(self) -> float:
        return self._span[1]
