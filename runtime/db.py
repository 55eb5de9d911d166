"""SQLite: the one way to open a database, bring it to its newest schema, and write in transactions.

    async with connect(path, MIGRATIONS) as db, transaction(db): ...

Read next: `store.py`.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import aiosqlite

BUSY_TIMEOUT_SECONDS = 10


class StoreError(Exception):
    """A database cannot be used; the message says which, why, and what to do, in one line."""


@asynccontextmanager
async def connect(path: str | Path, migrations: Sequence[str]) -> AsyncIterator[aiosqlite.Connection]:
    """Open a SQLite file (made if missing), bring it to the newest schema, and close it at the end.

    Write-ahead log, so readers never wait; `synchronous=FULL`, so a commit survives a power cut; autocommit mode, so
    transactions are exactly what `transaction()` says.

    Args:
        path: the file.
        migrations: SQL scripts; number n brings schema version n to n + 1 (`PRAGMA user_version`). Each runs in a
            transaction with its version number: a crash in the middle leaves the old schema whole.

    Raises:
        StoreError: no such folder, not a database, damaged, or written by a newer version of this program.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise StoreError(f"database {path}: folder {path.parent} does not exist; create it or choose another --db")
    with as_store_errors(path):
        sqlite3.connect(path).close()  # what cannot be opened fails here: aiosqlite's thread would outlive the loop
        async with aiosqlite.connect(path, timeout=BUSY_TIMEOUT_SECONDS, isolation_level=None) as db:
            db.row_factory = sqlite3.Row
            await db.execute("PRAGMA foreign_keys = ON")
            await db.execute("PRAGMA synchronous = FULL")
            await _migrate(db, path, migrations)  # first, so that a file that is refused stays as it was
            await _use_wal(db)
            yield db


@contextmanager
def as_store_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.IntegrityError:
        raise
    except sqlite3.OperationalError as error:
        raise StoreError(
            f"database {path}: {error}; is another process using it, is the disk full or read-only?"
        ) from error
    except sqlite3.DatabaseError as error:
        raise StoreError(f"database {path}: {error}; restore a copy or choose another --db") from error


async def _use_wal(db: aiosqlite.Connection) -> None:
    """Switch to the write-ahead log; SQLite does not apply the busy timeout here, and processes may start together."""
    for remaining in reversed(range(BUSY_TIMEOUT_SECONDS * 20)):
        try:
            await db.execute_fetchall("PRAGMA journal_mode = WAL")  # fetched, or its read lock stays
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or not remaining:
                raise
            await asyncio.sleep(0.05)


async def _migrate(db: aiosqlite.Connection, path: Path, migrations: Sequence[str]) -> None:
    async with transaction(db):
        (version,) = await (await db.execute("PRAGMA user_version")).fetchone()
        if version > len(migrations):
            raise StoreError(
                f"database {path}: schema version {version}, this program knows {len(migrations)}; update the program"
            )
        if version == 0 and await (await db.execute("SELECT 1 FROM sqlite_master")).fetchone():
            raise StoreError(f"database {path}: has tables of another program; choose another file")
        for number in range(version, len(migrations)):
            for statement in migrations[number].split(";\n"):
                await db.execute(statement)  # not executescript: it would commit in between
            await db.execute(f"PRAGMA user_version = {number + 1}")


def write_lock(db: aiosqlite.Connection) -> asyncio.Lock:
    """The connection's lock: held during a transaction, and by whoever must not see half of one."""
    return db.__dict__.setdefault("_write_lock", asyncio.Lock())


@asynccontextmanager
async def transaction(db: aiosqlite.Connection) -> AsyncIterator[None]:
    """All of the block or none of it, also when the task is cancelled or the process dies in the middle.

    The write lock is taken at the start. One connection serves one task at a time inside a transaction: a lock on the
    connection keeps other tasks of this process waiting, `busy_timeout` other processes.
    """
    async with write_lock(db):
        try:
            await db.execute("BEGIN IMMEDIATE")  # inside: a cancelled wait for it still begins one in SQLite's thread
            yield
            await db.commit()  # inside: a commit that fails leaves the transaction open
        except BaseException:
            await asyncio.shield(db.rollback())
            raise
