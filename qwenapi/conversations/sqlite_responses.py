"""ResponseTable: single answers as SQLite rows, each with the id of the one it follows.

Works inside the transactions of its caller; whose response runs, TurnQueue knows.
"""

import sqlite3
import time

from qwenapi.conversations.errors import (
    ConversationFull,
    ConversationNotFound,
    LeaseLost,
    StoreFull,
)
from qwenapi.conversations.sqlite_turn_queue import TurnQueue
from qwenapi.conversations.values import Claim, PastTurn, Step, StoredResponse, StoreLimits

_TURN = "user, assistant, finish_reason, created_at"
# A response and those it follows, newest first; a column of nulls for one that is missing.
_LINE = f"""
    WITH RECURSIVE line (id, depth) AS (
        VALUES (?, 0) UNION ALL
        SELECT previous_id, depth + 1 FROM line JOIN responses USING (id) WHERE previous_id <> ''
    )
    SELECT {_TURN} FROM line LEFT JOIN responses
    ON responses.id = line.id AND tenant = ? AND used_at > ? ORDER BY depth"""
_TOUCH = """
    WITH RECURSIVE line (id) AS (
        VALUES (?) UNION ALL
        SELECT previous_id FROM line JOIN responses USING (id) WHERE previous_id <> ''
    )
    UPDATE responses SET used_at = ? WHERE id IN line AND tenant = ?"""
_PUT = """
    INSERT INTO responses VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (id) DO UPDATE SET used_at = excluded.used_at, num_bytes = excluded.num_bytes,
    assistant = excluded.assistant, finish_reason = excluded.finish_reason, body = excluded.body"""
_OLDEST = """
    DELETE FROM responses WHERE id = (
        SELECT id FROM responses WHERE tenant = ? AND id NOT IN (SELECT conversation_id FROM leases)
        ORDER BY used_at LIMIT 1)"""


class ResponseTable:
    """The responses of all tenants. What a tenant has no room for drives out its oldest."""

    def __init__(self, limits: StoreLimits, queue: TurnQueue) -> None:
        self._limits = limits
        self._queue = queue

    def put(
        self, db: sqlite3.Connection, claim: Claim, response: StoredResponse, step: Step
    ) -> bool:
        """Take a step of a response; False: there is none to cancel."""
        if step == "cancel" and not self._queue.is_leased_to(db, claim.tenant, response.id):
            return False
        if step in ("update", "end") and not self._queue.holds(db, claim):
            raise LeaseLost()
        now, turn = time.time(), response.turn
        db.execute(_TOUCH, (response.previous_id, now, claim.tenant))
        self.make_room(db, claim.tenant, response.num_bytes - self._num_held(db, response.id))
        db.execute(
            _PUT,
            (
                *(response.id, claim.tenant, response.previous_id, now, response.num_bytes),
                *(turn.user, turn.assistant, turn.finish_reason, turn.created_at, response.body),
            ),
        )
        if step == "begin":
            self._queue.take(db, claim)
        elif step in ("end", "cancel"):
            self._queue.dissolve(db, response.id)
        return True

    def find(self, db: sqlite3.Connection, tenant: str, response_id: str) -> StoredResponse:
        row = db.execute(
            f"SELECT previous_id, body, {_TURN} FROM responses"
            " WHERE id = ? AND tenant = ? AND used_at > ?",
            (response_id, tenant, self._expired_at),
        ).fetchone()
        if row is None:
            raise ConversationNotFound()
        previous_id, body, *turn = row
        is_running = self._queue.is_leased_to(db, tenant, response_id)
        return StoredResponse(response_id, previous_id, PastTurn(*turn), body, is_running)

    def line(self, db: sqlite3.Connection, tenant: str, response_id: str) -> tuple[PastTurn, ...]:
        turns: list[PastTurn] = []
        left = self._limits.max_history_bytes
        for row in db.execute(_LINE, (response_id, tenant, self._expired_at)):
            if row[0] is None:
                raise ConversationNotFound()
            turn = PastTurn(*row)
            left -= turn.num_bytes
            if left < 0:
                raise ConversationFull()
            turns.append(turn)
        return tuple(reversed(turns))

    def delete(self, db: sqlite3.Connection, tenant: str, response_id: str) -> None:
        erased = db.execute(
            "DELETE FROM responses WHERE id = ? AND tenant = ? AND used_at > ?",
            (response_id, tenant, self._expired_at),
        )
        if not erased.rowcount:
            raise ConversationNotFound()
        self._queue.dissolve(db, response_id)

    def make_room(self, db: sqlite3.Connection, tenant: str, num_bytes: int) -> None:
        """Erase a tenant's responses that were not used for longest, until there is room for so
        many bytes more; raise StoreFull where that is not enough.
        """
        while self._num_stored(db, tenant) + num_bytes > self._limits.max_tenant_bytes:
            if not db.execute(_OLDEST, (tenant,)).rowcount:
                raise StoreFull()

    def has_expired(self, db: sqlite3.Connection) -> bool:
        expired = db.execute("SELECT 1 FROM responses WHERE used_at <= ?", (self._expired_at,))
        return expired.fetchone() is not None

    def erase_expired(self, db: sqlite3.Connection, number: int) -> int:
        erased = db.execute(
            "DELETE FROM responses WHERE id IN (SELECT id FROM responses WHERE used_at <= ?"
            " AND id NOT IN (SELECT conversation_id FROM leases) LIMIT ?)",
            (self._expired_at, number),
        )
        return erased.rowcount

    def _num_held(self, db: sqlite3.Connection, response_id: str) -> int:
        """Return how many bytes a response's own row takes, which the new one replaces."""
        held = db.execute("SELECT num_bytes FROM responses WHERE id = ?", (response_id,))
        row = held.fetchone()
        return int(row[0]) if row else 0

    def _num_stored(self, db: sqlite3.Connection, tenant: str) -> int:
        (number,) = db.execute(
            "SELECT total(num_bytes) FROM tenants WHERE tenant = ?", (tenant,)
        ).fetchone()
        return int(number)

    @property
    def _expired_at(self) -> float:
        return time.time() - self._limits.ttl_seconds
