"""SqliteBackend: conversations in one file of the state directory; the default.

Each method is one transaction. Knows conversations and turns; TurnQueue knows whose turn it is,
ResponseTable the responses, Database how to reach the file.
"""

import sqlite3
import time
from collections.abc import Collection
from pathlib import Path

from qwenapi.conversations.database import Database
from qwenapi.conversations.errors import (
    ConversationBusy,
    ConversationFull,
    ConversationNotFound,
    LeaseLost,
)
from qwenapi.conversations.living_processes import LivingProcesses
from qwenapi.conversations.migrations import migrate
from qwenapi.conversations.sqlite_responses import ResponseTable
from qwenapi.conversations.sqlite_turn_queue import TurnQueue
from qwenapi.conversations.values import (
    ITEMS_PER_TURN,
    Claim,
    Conversation,
    PastTurn,
    Step,
    StoredResponse,
    StoreLimits,
)

FILE_NAME = "conversations.db"
PROCESSES_NAME = "conversations.processes"
PURGE_BATCH = 100
LABEL = """
    UPDATE conversations SET labels = ?,
    num_bytes = num_bytes + length(CAST(? AS BLOB)) - length(CAST(labels AS BLOB)), used_at = ?
    WHERE id = ?"""
TURNS = "SELECT user, assistant, finish_reason, created_at FROM turns WHERE conversation_id = ?"


class SqliteBackend:
    """A Backend on SQLite, for all processes of one machine."""

    def __init__(self, state_dir: Path, limits: StoreLimits, busy_seconds: float = 5.0) -> None:
        self._limits = limits
        self._processes = LivingProcesses(state_dir / PROCESSES_NAME)
        self._queue = TurnQueue(limits.lease_seconds, self._processes)
        self._responses = ResponseTable(limits, self._queue)
        self._database = Database(state_dir / FILE_NAME, migrate, busy_seconds)
        self._must_empty_log = False

    def open(self) -> None:
        self._database.read(lambda db: None)

    def create(self, claim: Claim) -> None:
        def work(db: sqlite3.Connection) -> None:
            self._require_room(db, claim)
            self._queue.take(db, claim)

        self._database.write(work, is_durable=False)

    def enter(self, claim: Claim) -> int:
        def work(db: sqlite3.Connection) -> int:
            self._require_known(db, claim.tenant, claim.conversation_id)
            self._queue.join(db, claim)
            return self._advance(db, claim)

        return self._database.write(work, is_durable=False)

    def advance(self, claim: Claim) -> int:
        # Most calls find others ahead, and only read.
        num_ahead = self._database.read(lambda db: self._num_ahead(db, claim))
        if num_ahead:
            return num_ahead
        return self._database.write(lambda db: self._advance(db, claim), is_durable=False)

    def leave(self, claim: Claim) -> None:
        self._database.write(lambda db: self._queue.leave(db, claim), is_durable=False)

    def renew(self, claims: Collection[Claim]) -> set[Claim]:
        def work(db: sqlite3.Connection) -> set[Claim]:
            return {claim for claim in claims if not self._queue.renew_lease(db, claim)}

        return self._database.write(work, is_durable=False)

    def history(self, claim: Claim) -> tuple[PastTurn, ...]:
        def work(db: sqlite3.Connection) -> list[PastTurn]:
            turns: list[PastTurn] = []
            left = self._limits.max_history_bytes
            for row in db.execute(f"{TURNS} ORDER BY number DESC", (claim.conversation_id,)):
                turn = PastTurn(*row)
                left -= turn.num_bytes
                if left < 0:
                    break
                turns.append(turn)
            return turns

        return tuple(reversed(self._database.read(work)))

    def commit(
        self,
        claim: Claim,
        turn: PastTurn,
        response: StoredResponse | None = None,
        labels: str = "",
    ) -> None:
        def work(db: sqlite3.Connection) -> None:
            if not self._queue.holds(db, claim):
                raise LeaseLost()
            self._require_room(db, claim, turn.num_bytes + len(labels.encode()))
            self._append(db, claim, turn)
            if labels:
                db.execute(LABEL, (labels, labels, time.time(), claim.conversation_id))
            if response is not None:
                self._responses.put(db, claim, response, "whole")
            self._queue.leave(db, claim)

        self._database.write(work)

    def find(self, tenant: str, conversation_id: str) -> Conversation:
        return self._database.read(lambda db: self._find(db, tenant, conversation_id))

    def turns(self, tenant: str, conversation_id: str, numbers: range) -> tuple[PastTurn, ...]:
        def work(db: sqlite3.Connection) -> tuple[PastTurn, ...]:
            self._find(db, tenant, conversation_id)
            found = db.execute(
                f"{TURNS} AND number >= ? AND number < ? ORDER BY number",
                (conversation_id, numbers.start, numbers.stop),
            )
            return tuple(PastTurn(*row) for row in found)

        return self._database.read(work)

    def label(self, tenant: str, conversation_id: str, labels: str) -> None:
        def work(db: sqlite3.Connection) -> None:
            known = self._find(db, tenant, conversation_id)
            grown = len(labels.encode()) - len(known.labels.encode())
            self._responses.make_room(db, tenant, grown)
            db.execute(LABEL, (labels, labels, time.time(), conversation_id))

        self._database.write(work)

    def delete(self, tenant: str, conversation_id: str) -> None:
        def work(db: sqlite3.Connection) -> None:
            self._require_known(db, tenant, conversation_id)
            db.execute("DELETE FROM conversations WHERE id = ?", (conversation_id,))
            self._queue.dissolve(db, conversation_id)

        self._database.write(work)
        self._empty_log()

    def put_response(self, claim: Claim, response: StoredResponse, step: Step) -> bool:
        return self._database.write(lambda db: self._responses.put(db, claim, response, step))

    def response(self, tenant: str, response_id: str) -> StoredResponse:
        return self._database.read(lambda db: self._responses.find(db, tenant, response_id))

    def line(self, tenant: str, response_id: str) -> tuple[PastTurn, ...]:
        return self._database.read(lambda db: self._responses.line(db, tenant, response_id))

    def delete_response(self, tenant: str, response_id: str) -> None:
        self._database.write(lambda db: self._responses.delete(db, tenant, response_id))
        self._empty_log()

    def purge(self) -> int:
        num_erased = 0
        if self._database.read(self._has_expired):
            num_erased = self._database.write(self._erase_expired)
        if num_erased or self._must_empty_log:
            self._empty_log()
        return num_erased

    def close(self) -> None:
        self._database.close()
        self._processes.close()

    @property
    def _oldest(self) -> float:
        return time.time() - self._limits.ttl_seconds

    def _find(self, db: sqlite3.Connection, tenant: str, conversation_id: str) -> Conversation:
        row = db.execute(
            "SELECT id, created_at, used_at, num_turns, labels FROM conversations"
            " WHERE id = ? AND tenant = ? AND used_at > ?",
            (conversation_id, tenant, self._oldest),
        ).fetchone()
        if row is None:
            raise ConversationNotFound()
        return Conversation(*row)

    def _require_known(self, db: sqlite3.Connection, tenant: str, conversation_id: str) -> None:
        known = db.execute(
            "SELECT 1 FROM conversations WHERE id = ? AND tenant = ? AND used_at > ?",
            (conversation_id, tenant, self._oldest),
        ).fetchone()
        # A new conversation is known by its lease until its first turn is committed.
        if known is None and not self._queue.is_leased_to(db, tenant, conversation_id):
            raise ConversationNotFound()

    def _require_room(self, db: sqlite3.Connection, claim: Claim, num_bytes: int = 1) -> None:
        (num_turns,) = db.execute(
            "SELECT total(num_turns) FROM conversations WHERE id = ?", (claim.conversation_id,)
        ).fetchone()
        if (num_turns + 1) * ITEMS_PER_TURN > self._limits.max_items:
            raise ConversationFull()
        self._responses.make_room(db, claim.tenant, num_bytes)

    def _num_ahead(self, db: sqlite3.Connection, claim: Claim) -> int:
        """Return how many are ahead, or 0 where there is something to write."""
        return self._queue.num_ahead(db, claim) if self._queue.has_fresh_ticket(db, claim) else 0

    def _advance(self, db: sqlite3.Connection, claim: Claim) -> int:
        self._require_known(db, claim.tenant, claim.conversation_id)
        if not self._queue.renew_ticket(db, claim):
            raise ConversationBusy()  # this process stood still for longer than a lease
        num_ahead = self._queue.num_ahead(db, claim)
        if num_ahead == 0:
            self._require_room(db, claim)
            self._queue.take(db, claim)
            db.execute(
                "UPDATE conversations SET used_at = ? WHERE id = ?",
                (time.time(), claim.conversation_id),
            )
        return num_ahead

    def _append(self, db: sqlite3.Connection, claim: Claim, turn: PastTurn) -> None:
        now = time.time()
        db.execute(
            "INSERT INTO conversations"
            " (id, tenant, created_at, used_at, num_turns, num_bytes)"
            " VALUES (?, ?, ?, ?, 1, ?) ON CONFLICT (id) DO UPDATE SET"
            " used_at = excluded.used_at, num_turns = num_turns + 1,"
            " num_bytes = num_bytes + excluded.num_bytes",
            (claim.conversation_id, claim.tenant, now, now, turn.num_bytes),
        )
        db.execute(
            "INSERT INTO turns SELECT id, num_turns, ?, ?, ?, ? FROM conversations WHERE id = ?",
            (turn.user, turn.assistant, turn.finish_reason, turn.created_at, claim.conversation_id),
        )

    def _has_expired(self, db: sqlite3.Connection) -> bool:
        expired = db.execute("SELECT 1 FROM conversations WHERE used_at <= ?", (self._oldest,))
        has_expired = expired.fetchone() is not None or self._responses.has_expired(db)
        return has_expired or self._queue.has_dead(db)

    def _erase_expired(self, db: sqlite3.Connection) -> int:
        self._queue.sweep(db)
        erased = db.execute(
            "DELETE FROM conversations WHERE id IN (SELECT id FROM conversations WHERE used_at <= ?"
            " AND id NOT IN (SELECT conversation_id FROM leases) LIMIT ?)",
            (self._oldest, PURGE_BATCH),
        )
        return erased.rowcount + self._responses.erase_expired(db, PURGE_BATCH)

    def _empty_log(self) -> None:
        """Empty the write-ahead log, which holds what was erased; in use, the next purge does."""
        self._must_empty_log = True
        self._must_empty_log = not self._database.empty_log()
