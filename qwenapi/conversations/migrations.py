"""The schema of the conversations' SQLite file, as a list of migrations.

The file's `user_version` counts the steps. A step that was released is never changed; a new one is
added at the end of the list.
"""

import sqlite3
from collections.abc import Callable, Sequence

from qwenapi.conversations.errors import StorageUnavailable

Step = Callable[[sqlite3.Connection], None]


def migrate(connection: sqlite3.Connection, steps: Sequence[Step] | None = None) -> None:
    """Bring the file to the newest schema, by default the conversations'; it stays as it was if a
    step fails.
    """
    steps = MIGRATIONS if steps is None else steps
    if _version(connection) == len(steps):
        return
    connection.execute("BEGIN IMMEDIATE")
    version = _version(connection)
    if version > len(steps):
        connection.execute("ROLLBACK")
        raise StorageUnavailable() from RuntimeError(
            f"the file was written by a newer qwenapi (schema {version})"
        )
    for migration in steps[version:]:
        migration(connection)
    connection.execute(f"PRAGMA user_version = {len(steps)}")
    connection.execute("COMMIT")


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def create_conversations(connection: sqlite3.Connection) -> None:
    """Conversations and their turns; each tenant's bytes are counted by triggers."""
    for statement in (
        """CREATE TABLE conversations (
            id TEXT PRIMARY KEY, tenant TEXT NOT NULL, created_at REAL NOT NULL,
            used_at REAL NOT NULL, num_turns INTEGER NOT NULL, num_bytes INTEGER NOT NULL)""",
        "CREATE INDEX conversations_by_use ON conversations (used_at)",
        """CREATE TABLE turns (
            conversation_id TEXT NOT NULL REFERENCES conversations ON DELETE CASCADE,
            number INTEGER NOT NULL, user TEXT NOT NULL, assistant TEXT NOT NULL,
            finish_reason TEXT NOT NULL, created_at REAL NOT NULL,
            PRIMARY KEY (conversation_id, number))""",
        """CREATE TABLE tenants (
            tenant TEXT PRIMARY KEY, num_bytes INTEGER NOT NULL) WITHOUT ROWID""",
        """CREATE TRIGGER conversation_added AFTER INSERT ON conversations BEGIN
            INSERT OR IGNORE INTO tenants VALUES (new.tenant, 0);
            UPDATE tenants SET num_bytes = num_bytes + new.num_bytes WHERE tenant = new.tenant;
        END""",
        """CREATE TRIGGER conversation_grown AFTER UPDATE OF num_bytes ON conversations BEGIN
            UPDATE tenants SET num_bytes = num_bytes + new.num_bytes - old.num_bytes
            WHERE tenant = new.tenant;
        END""",
        """CREATE TRIGGER conversation_erased AFTER DELETE ON conversations BEGIN
            UPDATE tenants SET num_bytes = num_bytes - old.num_bytes WHERE tenant = old.tenant;
        END""",
    ):
        connection.execute(statement)


def create_claims(connection: sqlite3.Connection) -> None:
    """The queue before each conversation, and the lease of the turn that runs.

    `expires_at` is the machine's monotonic clock, which the processes on one machine share.
    """
    for statement in (
        """CREATE TABLE tickets (
            number INTEGER PRIMARY KEY AUTOINCREMENT, conversation_id TEXT NOT NULL,
            token TEXT NOT NULL UNIQUE, expires_at REAL NOT NULL)""",
        "CREATE INDEX tickets_by_conversation ON tickets (conversation_id, number)",
        """CREATE TABLE leases (
            conversation_id TEXT PRIMARY KEY, tenant TEXT NOT NULL, token TEXT NOT NULL,
            owner TEXT NOT NULL, expires_at REAL NOT NULL)""",
    ):
        connection.execute(statement)


def create_responses(connection: sqlite3.Connection) -> None:
    """Single answers, each behind the one it follows; their bytes count among their tenant's."""
    for statement in (
        """CREATE TABLE responses (
            id TEXT PRIMARY KEY, tenant TEXT NOT NULL, previous_id TEXT NOT NULL,
            used_at REAL NOT NULL, num_bytes INTEGER NOT NULL, user TEXT NOT NULL,
            assistant TEXT NOT NULL, finish_reason TEXT NOT NULL, created_at REAL NOT NULL,
            body TEXT NOT NULL)""",
        "CREATE INDEX responses_by_use ON responses (used_at)",
        "CREATE INDEX responses_by_tenant ON responses (tenant, used_at)",
        """CREATE TRIGGER response_added AFTER INSERT ON responses BEGIN
            INSERT OR IGNORE INTO tenants VALUES (new.tenant, 0);
            UPDATE tenants SET num_bytes = num_bytes + new.num_bytes WHERE tenant = new.tenant;
        END""",
        """CREATE TRIGGER response_changed AFTER UPDATE OF num_bytes ON responses BEGIN
            UPDATE tenants SET num_bytes = num_bytes + new.num_bytes - old.num_bytes
            WHERE tenant = new.tenant;
        END""",
        """CREATE TRIGGER response_erased AFTER DELETE ON responses BEGIN
            UPDATE tenants SET num_bytes = num_bytes - old.num_bytes WHERE tenant = old.tenant;
        END""",
    ):
        connection.execute(statement)


def create_labels(connection: sqlite3.Connection) -> None:
    """Labels beside a conversation of items; they were turns before, whose assistant is an object.

    What such a turn counts for, it keeps.
    """
    for statement in (
        "ALTER TABLE conversations ADD COLUMN labels TEXT NOT NULL DEFAULT ''",
        """UPDATE conversations SET labels = coalesce((
            SELECT assistant FROM turns WHERE conversation_id = conversations.id
            AND assistant LIKE '{%' ORDER BY number DESC LIMIT 1), '')
            WHERE id LIKE 'conv\\_%' ESCAPE '\\'""",
        """UPDATE turns SET assistant = '[]' WHERE assistant LIKE '{%'
            AND conversation_id LIKE 'conv\\_%' ESCAPE '\\'""",
        """UPDATE conversations SET num_bytes = length(CAST(labels AS BLOB)) + (
            SELECT total(length(CAST(user AS BLOB)) + length(CAST(assistant AS BLOB)))
            FROM turns WHERE conversation_id = conversations.id)
            WHERE labels <> ''""",
    ):
        connection.execute(statement)


MIGRATIONS: list[Step] = [
    create_conversations,
    create_claims,
    create_responses,
    create_labels,
]
