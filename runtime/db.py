"""SQLite: the one way to open a database, bring it to its newest schema, and read and write it in whole transactions.

    async with connect(path, MIGRATIONS) as db:
        await db.write(lambda connection: insert(connection, "places", [place]))
        rows = await db.rows("SELECT * FROM places WHERE name = ?", name)

A transaction is one function, run from its beginning to its end in the one thread that owns the connection: no other
task of the process can see half of one, and one whose caller is cancelled still ends as a whole.

Read next: `store.py`.
"""

from __future__ import annotations

import json
import sqlite3
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import aiosqlite

BUSY_TIMEOUT_SECONDS = 10

T = TypeVar("T")


class StoreError(Exception):
    """A database cannot be used; the message says which, why, and what to do, in one line."""


class Database(aiosqlite.Connection):
    """A connection, each call of which is a whole transaction; made by `connect` and `connect_read_only`.

    `work` gets the `sqlite3.Connection`, in the thread of the database: it awaits nothing, and touches nothing that the
    event loop may change meanwhile.
    """

    async def call(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Run `function(connection)` in the thread of the database, after all that was asked of it before."""
        return await self._execute(function, self._conn)  # aiosqlite has no public name for this

    async def write(self, *works: Callable[[sqlite3.Connection], T]) -> T:
        """Run each work in a write transaction of its own, one after another in one call; the last one's result.

        An exception undoes its own transaction and leaves out those that would follow.
        """
        return await self.call(lambda connection: [transact(connection, work) for work in works][-1])

    async def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` on what is committed now: other processes' writes meanwhile are not seen by half."""

        def reading(connection: sqlite3.Connection) -> T:
            connection.execute("BEGIN")
            try:
                return work(connection)
            finally:
                connection.rollback()

        return await self.call(reading)

    async def rows(self, sql: str, *parameters: Any) -> list[sqlite3.Row]:
        """All rows of a query."""
        return await self.call(lambda connection: connection.execute(sql, parameters).fetchall())

    async def row(self, sql: str, *parameters: Any) -> sqlite3.Row | None:
        """The first row of a query, if there is one."""
        return next(iter(await self.rows(sql, *parameters)), None)

    async def value(self, sql: str, *parameters: Any) -> Any:
        """The first column of the first row, None without one."""
        row = await self.row(sql, *parameters)
        return row[0] if row else None

    async def attach(self, name: str, path: str | Path, migrations: Sequence[str]) -> None:
        """Bring a second file to its newest schema, for use on this connection, where its tables are `name.TABLE`.

        A transaction on both files is whole in each of them; a power cut may leave one of the two without it. Raises
        what `connect` does.
        """
        path = Path(path)

        def attaching(connection: sqlite3.Connection) -> None:
            with closing(sqlite3.connect(path, timeout=BUSY_TIMEOUT_SECONDS, isolation_level=None)) as alone:
                _prepare(alone, path, migrations)
            connection.execute(f"ATTACH ? AS {name}", (str(path),))
            connection.execute(f"PRAGMA {name}.synchronous = FULL")

        with as_store_errors(path):
            await self.call(attaching)


@asynccontextmanager
async def connect(path: str | Path, migrations: Sequence[str]) -> AsyncIterator[Database]:
    """Open a SQLite file (made if missing), bring it to the newest schema, and close it at the end.

    Write-ahead log, so readers never wait; `synchronous=FULL`, so a commit survives a power cut; autocommit mode, so
    transactions are exactly what `Database.write` says.

    `migrations` are SQL scripts; number n brings schema version n to n + 1 (`PRAGMA user_version`). Each runs in a
    transaction with its version number: a crash in the middle leaves the old schema whole.

    Raises:
        StoreError: no such folder, not a database, damaged, or written by a newer version of this program.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise StoreError(f"database {path}: folder {path.parent} does not exist; create it or choose another --db")
    with as_store_errors(path):
        async with _open(str(path), uri=False) as db:
            await db.call(lambda connection: _prepare(connection, path, migrations))
            yield db


@asynccontextmanager
async def connect_read_only(path: str | Path, **attached: Path) -> AsyncIterator[Database]:
    """Open a file that another process may be writing to, and others beside it by name, for reading only. Raises
    `sqlite3.Error` if one cannot be opened."""
    async with _open(_read_only_uri(path), uri=True) as db:
        for name, file in attached.items():
            await db.rows(f"ATTACH ? AS {name}", _read_only_uri(file))
        yield db


def look(path: str | Path, sql: str, *parameters: Any) -> list[tuple]:
    """Rows of one query on a connection that cannot write, for what runs without an event loop. Raises
    `sqlite3.Error`."""
    with closing(sqlite3.connect(_read_only_uri(path), uri=True, timeout=2)) as connection:
        return connection.execute(sql, parameters).fetchall()


def transact(connection: sqlite3.Connection, work: Callable[[sqlite3.Connection], T]) -> T:
    """All that `work` writes or none of it, also when the process dies in the middle; `Database.write` runs it.

    It waits for other processes' transactions at the start, where nothing was read yet.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        result = work(connection)
        connection.commit()  # inside: a commit that fails leaves the transaction open
    except BaseException:
        connection.rollback()  # does nothing where SQLite rolled back by itself, as on a full disk
        raise
    return result


def insert(
    connection: sqlite3.Connection, table: str, rows: Iterable[Any], how: str = "INSERT", update: str = ""
) -> int:
    """Insert dataclasses, or mappings, whose fields are columns of the table; returns how many rows were new.

    `how` may be `INSERT OR IGNORE`; `update` is the key, where a row that is there gets the other columns anew.
    """
    named = [row if isinstance(row, Mapping) else {f.name: getattr(row, f.name) for f in fields(row)} for row in rows]
    if not named:
        return 0
    sql = f"{how} INTO {table} ({', '.join(named[0])}) VALUES ({', '.join(f':{column}' for column in named[0])})"
    if update:
        changed = ", ".join(f"{column} = excluded.{column}" for column in named[0] if column != update)
        sql += f" ON CONFLICT ({update}) DO UPDATE SET {changed}"
    return connection.executemany(sql, named).rowcount


def claim(connection: sqlite3.Connection, table: str, **whose: Any) -> dict[str, Any]:
    """Note in a table of one row (`id` 1) what a file belongs to, where nothing is noted yet; returns what is."""
    insert(connection, table, [{"id": 1, **whose}], "INSERT OR IGNORE")
    return dict(zip(whose, connection.execute(f"SELECT {', '.join(whose)} FROM {table}").fetchone(), strict=True))


def as_json(text: str | bytes | None) -> Any:
    """What a column holds; text that is not JSON as it is."""
    try:
        return None if text is None else json.loads(text)
    except (ValueError, RecursionError):
        return text if isinstance(text, str) else text.decode("ascii", "backslashreplace")


def inflated(blob: bytes) -> bytes:
    """What a compressed column holds; bytes that were not compressed as they are."""
    try:
        return zlib.decompress(blob)
    except zlib.error:
        return blob


@contextmanager
def as_store_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.IntegrityError:
        raise
    except sqlite3.OperationalError as error:
        fix = "is another process using it, is the disk full or read-only?"
        raise StoreError(f"database {path}: {error}; {fix}") from error
    except sqlite3.DatabaseError as error:
        raise StoreError(f"database {path}: {error}; restore a copy or choose another --db") from error


# ---------------------------------------------------------------------------------------------------------------------
# Opening


@asynccontextmanager
async def _open(file: str, uri: bool) -> AsyncIterator[Database]:
    def opened() -> sqlite3.Connection:
        return sqlite3.connect(file, uri=uri, timeout=BUSY_TIMEOUT_SECONDS, isolation_level=None)

    opened().close()  # what cannot be opened fails here: aiosqlite's thread would outlive the loop
    async with Database(opened, iter_chunk_size=64) as db:
        db.row_factory = sqlite3.Row
        yield db


def _read_only_uri(path: str | Path) -> str:
    return f"{Path(path).resolve().as_uri()}?mode=ro"


def _prepare(connection: sqlite3.Connection, path: Path, migrations: Sequence[str]) -> None:
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA synchronous = FULL")
    transact(connection, lambda _: _migrate(connection, path, migrations))  # first: what is refused stays as it was
    _use_wal(connection)


def _migrate(connection: sqlite3.Connection, path: Path, migrations: Sequence[str]) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(migrations):
        known = f"schema version {version}, this program knows {len(migrations)}"
        raise StoreError(f"database {path}: {known}; update the program")
    if version == 0 and connection.execute("SELECT 1 FROM sqlite_master").fetchone():
        raise StoreError(f"database {path}: has tables of another program; choose another file")
    for number in range(version, len(migrations)):
        for statement in migrations[number].split(";\n"):
            connection.execute(statement)  # not executescript: it would commit in between
        connection.execute(f"PRAGMA user_version = {number + 1}")


def _use_wal(connection: sqlite3.Connection) -> None:
    """Switch to the write-ahead log; SQLite does not apply the busy timeout here, and processes may start together."""
    for remaining in reversed(range(BUSY_TIMEOUT_SECONDS * 20)):
        try:
            connection.execute("PRAGMA journal_mode = WAL").fetchall()  # fetched, or its read lock stays
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or not remaining:
                raise
            time.sleep(0.05)
