"""Database: one SQLite file of several processes and threads, as safe as SQLite makes it.

Knows connections, transactions, damage and disk errors; knows no table. Connections are opened
after the fork, one for each thread that is inside at once. A damaged file is moved aside, never
repaired and never read. The folder must be on a local disk: WAL shares memory.
"""

import fcntl
import logging
import os
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

from qwenapi.conversations.errors import StorageUnavailable

T = TypeVar("T")
Migrate = Callable[[sqlite3.Connection], None]

DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
PRAGMAS = (
    "journal_mode = WAL",
    "foreign_keys = ON",
    "secure_delete = ON",
    "trusted_schema = OFF",
    f"journal_size_limit = {64 * 1024**2}",
)

log = logging.getLogger(__name__)


class _Open(NamedTuple):
    connection: sqlite3.Connection
    inode: int


class Database:
    """A SQLite file. Methods raise StorageUnavailable with its cause; the next call tries again."""

    def __init__(self, path: Path, migrate: Migrate, busy_seconds: float = 5.0) -> None:
        self._path = path
        self._migrate = migrate
        self._busy_seconds = busy_seconds
        self._idle: dict[int, deque[_Open]] = {}  # by process: a fork must not use its parent's
        self._is_checked = False

    def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run work on one state of the file."""
        return self._transact("BEGIN", work)

    def write(self, work: Callable[[sqlite3.Connection], T], *, is_durable: bool = True) -> T:
        """Run work and commit it, or if it raises nothing of it.

        What is durable outlives a loss of power, and all that was written before it; the rest
        outlives the process.
        """
        return self._transact("BEGIN IMMEDIATE", work, "FULL" if is_durable else "NORMAL")

    def empty_log(self) -> bool:
        """Move the write-ahead log into the file and empty it, as it holds what was erased; False:
        others are reading, try again.
        """
        with self._connection() as connection:
            busy, *_ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return not busy

    def close(self) -> None:
        """Close the connections that nobody uses."""
        idle = self._pool()
        while idle:
            idle.pop().connection.close()

    def _transact(
        self, begin: str, work: Callable[[sqlite3.Connection], T], synchronous: str = "FULL"
    ) -> T:
        with self._connection() as connection:
            connection.execute(f"PRAGMA synchronous = {synchronous}")
            connection.execute(begin)
            result = work(connection)
            connection.execute("COMMIT")
        return result

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        try:
            opened = self._take()
        except (sqlite3.Error, OSError) as error:
            raise self._unavailable(error) from error
        try:
            yield opened.connection
        except sqlite3.Error as error:
            opened.connection.close()
            raise self._unavailable(error) from error
        except BaseException:
            if opened.connection.in_transaction:
                opened.connection.execute("ROLLBACK")
            self._pool().append(opened)
            raise
        self._pool().append(opened)

    def _take(self) -> _Open:
        idle = self._pool()
        while idle:
            opened = idle.pop()
            if self._is_checked and opened.inode == _inode(self._path):
                return opened
            opened.connection.close()  # another process has moved its file aside
        return self._open()

    def _open(self) -> _Open:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(self._path.with_suffix(".lock")):
            if not self._is_checked and _is_damaged(self._path, self._busy_seconds):
                _move_aside(self._path)
            connection = _connect(self._path, self._busy_seconds)
            try:
                for pragma in PRAGMAS:
                    connection.execute(f"PRAGMA {pragma}").fetchall()
                self._migrate(connection)
            except BaseException:
                connection.close()
                raise
            self._is_checked = True
            return _Open(connection, _inode(self._path))

    def _pool(self) -> deque[_Open]:
        return self._idle.setdefault(os.getpid(), deque())

    def _unavailable(self, error: Exception) -> StorageUnavailable:
        if _says_damaged(error):
            self._is_checked = False  # the next call looks at the whole file
        return StorageUnavailable()


def _connect(path: Path, busy_seconds: float) -> sqlite3.Connection:
    # SQLite gives its log and index files the mode of the file itself. Where that is there already
    # it must not be opened here: to close it would take this process's locks from it, and the next
    # process to close its own would delete the log that is still written.
    if not path.exists():
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    return sqlite3.connect(
        path, timeout=busy_seconds, isolation_level=None, check_same_thread=False
    )


def _is_damaged(path: Path, busy_seconds: float) -> bool:
    if not path.exists():
        return False
    connection = _connect(path, busy_seconds)
    try:
        return list(connection.execute("PRAGMA quick_check(1)")) != [("ok",)]
    except sqlite3.DatabaseError as error:
        if not _says_damaged(error):
            raise
        return True
    finally:
        connection.close()


def _says_damaged(error: Exception) -> bool:
    return (getattr(error, "sqlite_errorcode", 0) & 0xFF) in DAMAGED


def _move_aside(path: Path) -> None:
    place = f"{path.name}.damaged-{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}"
    for suffix in ("-wal", "-shm", ""):
        try:
            path.with_name(path.name + suffix).rename(path.with_name(place + suffix))
        except FileNotFoundError:
            pass
    log.error("%s is damaged; moved aside to %s, starting anew", path, place)


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return 0


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
