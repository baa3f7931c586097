"""BatchStore: uploaded files and batches of all tenants, in a folder that outlives restarts.

A file's bytes lie under its id, what is known of it and of batches in SQLite, for all processes of
one machine. A change of a batch is one transaction over what it is at that moment. Every method but
`path` may raise BatchesUnavailable, and does its work in a thread.
"""

import json
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from qwenapi.batches.errors import (
    BatchesUnavailable,
    FileInUse,
    NoRoom,
    TooManyBatches,
    UnknownObject,
)
from qwenapi.batches.values import OPEN, RequestBatch, StoredFile
from qwenapi.conversations.database import Database
from qwenapi.conversations.errors import StorageUnavailable
from qwenapi.conversations.migrations import migrate
from qwenapi.greenlets import in_thread

TTL_SECONDS = 30 * 24 * 3600
RETRY_SECONDS = 5
# A file that nothing names for so long was left by a process that died.
ORPHAN_SECONDS = 24 * 3600
MAX_TENANT_BYTES = 10 * 1024**3
MAX_TENANT_FILES, MAX_TENANT_OPEN = 1000, 100

_IS_OPEN = f"status IN ({', '.join('?' * len(OPEN))})"

T = TypeVar("T", StoredFile, RequestBatch)
R = TypeVar("R")


class BatchStore:
    """The files and batches below one folder; made with the first of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files = folder / "files"
        self._database = Database(folder / "batches.db", partial(migrate, steps=[_create]))

    @property
    def uploads(self) -> Path:
        """Return the folder that files lie in, and those that are still coming; make it."""
        _in_thread(lambda: self._files.mkdir(mode=0o700, parents=True, exist_ok=True))
        return self._files

    def path(self, file_id: str) -> Path:
        """Return where the bytes of a file lie, whose id the store has given."""
        return self._files / file_id

    def add_file(self, file: StoredFile, source: str) -> None:
        """Take in a file whose bytes lie in `uploads`; raises NoRoom."""

        def work(db: sqlite3.Connection) -> None:
            (used,) = db.execute(
                "SELECT total(num_bytes) FROM files WHERE tenant = ?", (file.tenant,)
            ).fetchone()
            num_files = _count(db, "files", file.tenant)
            if used + file.num_bytes > MAX_TENANT_BYTES or num_files >= MAX_TENANT_FILES:
                raise NoRoom()
            os.link(source, self.path(file.id))
            _insert_file(db, file)

        def keep() -> None:
            with open(source, "rb") as written:
                os.fsync(written.fileno())  # or after a loss of power only its row were there
            self._database.write(work)

        _in_thread(keep)

    def file(self, tenant: str, file_id: str) -> StoredFile:
        """Return what is known of a file; raises UnknownObject."""
        return self._one("files", StoredFile, tenant, file_id)

    def files(self, tenant: str) -> list[StoredFile]:
        """Return a tenant's files, the oldest first."""
        return self._all("files", StoredFile, tenant)

    def delete_file(self, tenant: str, file_id: str) -> None:
        """Erase a file; raises UnknownObject, FileInUse."""

        def work(db: sqlite3.Connection) -> None:
            _select(db, "files", StoredFile, tenant, file_id)
            for batch in _open_batches(db):
                if file_id == batch.input_file_id:
                    raise FileInUse()
            db.execute("DELETE FROM files WHERE id = ?", (file_id,))

        def erase() -> None:
            self._database.write(work)
            self.path(file_id).unlink(missing_ok=True)  # not before its row is gone for good

        _in_thread(erase)

    def create(self, batch: RequestBatch) -> None:
        """Begin a batch; raises UnknownObject where its input is not there, TooManyBatches."""

        def work(db: sqlite3.Connection) -> None:
            _select(db, "files", StoredFile, batch.tenant, batch.input_file_id)
            if _count(db, "batches", batch.tenant, _IS_OPEN, OPEN) >= MAX_TENANT_OPEN:
                raise TooManyBatches()
            db.execute(
                "INSERT INTO batches (id, tenant, status, created_at, facts)"
                " VALUES (?, ?, ?, ?, ?)",
                (batch.id, batch.tenant, batch.status, batch.created_at, _facts(batch)),
            )

        _in_thread(lambda: self._database.write(work))

    def batch(self, tenant: str, batch_id: str) -> RequestBatch:
        """Return a batch; raises UnknownObject."""
        return self._one("batches", RequestBatch, tenant, batch_id)

    def batches(self, tenant: str) -> list[RequestBatch]:
        """Return a tenant's batches, the oldest first."""
        return self._all("batches", RequestBatch, tenant)

    def open_batches(self) -> list[RequestBatch]:
        """Return all batches that are not over, the oldest first; before there were any, without
        making a database.
        """
        if not (self._folder / "batches.db").exists():
            return []
        return _in_thread(lambda: self._database.read(_open_batches))

    def update(
        self,
        tenant: str,
        batch_id: str,
        change: Callable[[RequestBatch], RequestBatch],
        outputs: Sequence[StoredFile] = (),
        *,
        is_durable: bool = True,
    ) -> RequestBatch:
        """Change a batch, list its outputs among the files, and return what it is now; a status it
        comes into is dated. Raises UnknownObject.
        """

        def work(db: sqlite3.Connection) -> RequestBatch:
            before = _select(db, "batches", RequestBatch, tenant, batch_id)
            after = change(before)
            if after.status != before.status:
                times = {**after.times, after.status: int(time.time())}
                after = replace(after, times=times)
            db.execute(
                "UPDATE batches SET status = ?, facts = ? WHERE id = ?",
                (after.status, _facts(after), batch_id),
            )
            for file in outputs:
                _insert_file(db, file)
            return after

        return _in_thread(lambda: self._database.write(work, is_durable=is_durable))

    def purge(self) -> None:
        """Erase what is older than a month, and files that nothing names."""
        if not (self._folder / "batches.db").exists():
            return
        oldest = int(time.time()) - TTL_SECONDS

        def work(db: sqlite3.Connection) -> set[str]:
            db.execute(
                f"DELETE FROM batches WHERE created_at < ? AND NOT {_IS_OPEN}", (oldest, *OPEN)
            )
            in_use = {batch.input_file_id for batch in _open_batches(db)}
            for (file_id,) in db.execute(
                "SELECT id FROM files WHERE created_at < ?", (oldest,)
            ).fetchall():
                if file_id not in in_use:
                    db.execute("DELETE FROM files WHERE id = ?", (file_id,))
            kept = {file_id for (file_id,) in db.execute("SELECT id FROM files")}
            for batch in _open_batches(db):
                kept |= {batch.output_file_id, batch.error_file_id}
            return kept

        _in_thread(lambda: self._sweep(self._database.write(work)))

    def _sweep(self, kept: set[str]) -> None:
        for path in self._files.glob("*"):
            with suppress(FileNotFoundError):  # an upload that ended meanwhile
                age = time.time() - path.stat().st_mtime
                if path.name not in kept and age > ORPHAN_SECONDS:
                    path.unlink()

    def _one(self, table: str, kind: type[T], tenant: str, object_id: str) -> T:
        return _in_thread(
            lambda: self._database.read(lambda db: _select(db, table, kind, tenant, object_id))
        )

    def _all(self, table: str, kind: type[T], tenant: str) -> list[T]:
        def work(db: sqlite3.Connection) -> list[T]:
            rows = db.execute(
                f"SELECT facts FROM {table} WHERE tenant = ? ORDER BY number", (tenant,)
            )
            return [_value(kind, facts) for (facts,) in rows]

        return _in_thread(lambda: self._database.read(work))


def _in_thread(work: Callable[[], R]) -> R:
    try:
        return in_thread(work)
    except (StorageUnavailable, OSError) as error:
        raise BatchesUnavailable(retry_after=RETRY_SECONDS) from error.__cause__ or error


def _create(connection: sqlite3.Connection) -> None:
    for statement in (
        """CREATE TABLE files (
            number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE,
            tenant TEXT NOT NULL, num_bytes INTEGER NOT NULL, created_at INTEGER NOT NULL,
            facts TEXT NOT NULL)""",
        "CREATE INDEX files_by_tenant ON files (tenant, number)",
        """CREATE TABLE batches (
            number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE,
            tenant TEXT NOT NULL, status TEXT NOT NULL, created_at INTEGER NOT NULL,
            facts TEXT NOT NULL)""",
        "CREATE INDEX batches_by_tenant ON batches (tenant, number)",
        "CREATE INDEX batches_by_status ON batches (status, number)",
    ):
        connection.execute(statement)


def _select(db: sqlite3.Connection, table: str, kind: type[T], tenant: str, object_id: str) -> T:
    row = db.execute(
        f"SELECT facts FROM {table} WHERE id = ? AND tenant = ?", (object_id, tenant)
    ).fetchone()
    if row is None:
        raise UnknownObject()
    return _value(kind, row[0])


def _open_batches(db: sqlite3.Connection) -> list[RequestBatch]:
    rows = db.execute(f"SELECT facts FROM batches WHERE {_IS_OPEN} ORDER BY number", OPEN)
    return [_value(RequestBatch, facts) for (facts,) in rows]


def _count(
    db: sqlite3.Connection, table: str, tenant: str, which: str = "TRUE", values: Sequence[str] = ()
) -> int:
    count: int
    query = f"SELECT count(*) FROM {table} WHERE tenant = ? AND {which}"
    (count,) = db.execute(query, (tenant, *values)).fetchone()
    return count


def _insert_file(db: sqlite3.Connection, file: StoredFile) -> None:
    db.execute(
        "INSERT OR REPLACE INTO files (id, tenant, num_bytes, created_at, facts)"
        " VALUES (?, ?, ?, ?, ?)",
        (file.id, file.tenant, file.num_bytes, file.created_at, _facts(file)),
    )


def _facts(value: StoredFile | RequestBatch) -> str:
    return json.dumps(asdict(value), ensure_ascii=False)


def _value(kind: type[T], facts: str) -> T:
    values: dict[str, Any] = json.loads(facts)
    return kind(**values)
