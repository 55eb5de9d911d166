"""Databases: a transaction is one call and one function, whole for everybody, whoever fails or is cancelled.

Run with `python -m pytest tests/test_db.py`. Read next: `runtime/db.py`; `tests/test_store.py` has migrations.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from runtime.db import Database, StoreError, claim, connect, connect_read_only, insert, look

PLACES = ("CREATE TABLE places (name TEXT PRIMARY KEY, blocks INTEGER NOT NULL) STRICT",)
OWNER = ("CREATE TABLE owner (id INTEGER PRIMARY KEY CHECK (id = 1), netuid INTEGER, hotkey TEXT) STRICT",)


@dataclass(frozen=True)
class Place:
    name: str
    blocks: int


def using(path: Path, work, migrations=PLACES):
    """Run `await work(db)` on a database of places."""

    async def main():
        async with connect(path, migrations) as db:
            return await work(db)

    return asyncio.run(main())


def adding(*places: Place, then=lambda: None):
    """A work that adds places, and calls `then` before its transaction ends."""

    def work(connection):
        insert(connection, "places", places)
        then()
        return len(places)

    return work


@pytest.fixture
def path(tmp_path):
    return tmp_path / "places.sqlite3"


def test_a_transaction_is_one_call_into_the_thread_of_the_database(path, monkeypatch):
    calls, real = [], Database._execute

    async def counted(db, *args):
        calls.append(db)
        return await real(db, *args)

    async def work(db):
        monkeypatch.setattr(Database, "_execute", counted)
        assert await db.write(adding(*(Place(str(n), n) for n in range(100)))) == 100
        assert await db.read(lambda connection: [connection.execute("SELECT 1").fetchone()[0] for _ in range(9)])
        assert await db.value("SELECT count(*) FROM places") == 100
        monkeypatch.undo()

    using(path, work)
    assert len(calls) == 3


def test_an_exception_undoes_its_own_transaction_and_leaves_out_those_that_would_follow(path):
    async def work(db):
        with pytest.raises(ZeroDivisionError):
            await db.write(adding(Place("a", 1)), adding(Place("b", 1), then=lambda: 1 // 0), adding(Place("c", 1)))
        await db.write(adding(Place("d", 1)))

    using(path, work)
    assert look(path, "SELECT name FROM places ORDER BY name") == [("a",), ("d",)]


def test_a_commit_that_fails_leaves_no_transaction_open(path):
    async def work(db):
        tables = "CREATE TABLE child (name TEXT REFERENCES places DEFERRABLE INITIALLY DEFERRED)"
        await db.write(lambda connection: connection.execute(tables))
        with pytest.raises(sqlite3.IntegrityError):
            await db.write(lambda connection: connection.execute("INSERT INTO child VALUES ('nowhere')"))
        await db.write(adding(Place("a", 1)))

    using(path, work)
    assert look(path, "SELECT count(*) FROM child") == [(0,)] and look(path, "SELECT * FROM places") == [("a", 1)]


def test_a_cancelled_transaction_still_ends_as_a_whole(path):
    inside, go_on = threading.Event(), threading.Event()

    def waits():
        inside.set()
        assert go_on.wait(60)

    async def work(db):
        writing = asyncio.create_task(db.write(adding(Place("a", 1), Place("b", 2), then=waits)))
        await asyncio.to_thread(inside.wait)
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        reading = asyncio.create_task(db.rows("SELECT name FROM places"))
        await asyncio.sleep(0.01)
        assert not reading.done()  # nobody reads half of it
        go_on.set()
        assert [row["name"] for row in await reading] == ["a", "b"]

    using(path, work)


def test_a_reading_sees_one_state_whatever_another_process_commits_meanwhile(path):
    async def work(db):
        await db.write(adding(Place("a", 1)))

        def count_twice(connection):
            first = connection.execute("SELECT count(*) FROM places").fetchone()[0]
            with closing(sqlite3.connect(path)) as other, other:
                other.execute("INSERT INTO places VALUES ('b', 2)")
            return first, connection.execute("SELECT count(*) FROM places").fetchone()[0]

        assert await db.read(count_twice) == (1, 1)
        assert await db.value("SELECT count(*) FROM places") == 2

    using(path, work)


def test_a_row_and_a_value_are_none_where_there_is_nothing(path):
    async def work(db):
        assert await db.row("SELECT * FROM places") is None and await db.value("SELECT blocks FROM places") is None
        await db.write(adding(Place("a", 7)))
        assert Place(*await db.row("SELECT * FROM places WHERE name = ?", "a")) == Place("a", 7)
        assert await db.value("SELECT blocks FROM places WHERE name = ? AND blocks = ?", "a", 7) == 7

    using(path, work)


def test_rows_are_inserted_from_dataclasses_or_mappings_and_it_is_told_how_many_were_new(path):
    async def work(db):
        assert await db.write(lambda connection: insert(connection, "places", [])) == 0
        assert await db.write(lambda connection: insert(connection, "places", [{"blocks": 1, "name": "a"}])) == 1
        again = [Place("a", 9), Place("b", 2), Place("c", 3)]
        assert await db.write(lambda connection: insert(connection, "places", again, "INSERT OR IGNORE")) == 2

    using(path, work)
    assert look(path, "SELECT * FROM places ORDER BY name") == [("a", 1), ("b", 2), ("c", 3)]


def test_a_file_belongs_to_whom_claimed_it_first(path):
    async def work(db):
        mine, other = {"netuid": 1, "hotkey": "mine"}, {"netuid": 1, "hotkey": "other"}
        for whose in (mine, other):
            assert await db.write(lambda connection, whose=whose: claim(connection, "owner", **whose)) == mine

    using(path, work, OWNER)


def test_who_only_looks_sees_what_is_committed_and_cannot_write(path):
    async def work(db):
        await db.write(adding(Place("a", 1)))
        assert look(path, "SELECT blocks FROM places WHERE name = ?", "a") == [(1,)]
        async with connect_read_only(path) as reader:
            await db.write(adding(Place("b", 2)))
            assert await reader.value("SELECT count(*) FROM places") == 2
            with pytest.raises(sqlite3.OperationalError, match="readonly"):
                await reader.write(adding(Place("c", 3)))

    using(path, work)
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        look(path, "DELETE FROM places")


def test_looking_makes_no_file(path):
    async def reading():
        async with connect_read_only(path):
            pass

    for attempt in (lambda: asyncio.run(reading()), lambda: look(path, "SELECT 1")):
        with pytest.raises(sqlite3.OperationalError, match="unable to open"):
            attempt()
    assert not path.exists()


def test_two_files_serve_one_connection_and_each_keeps_its_own_tables_and_schema(tmp_path):
    first, second = tmp_path / "first.sqlite3", tmp_path / "sec ond?.sqlite3"

    async def work(db):
        await db.attach("owners", second, OWNER)
        await db.write(adding(Place("a", 1)), lambda connection: claim(connection, "owners.owner", netuid=1))
        assert (
            await db.value("PRAGMA owners.synchronous") == 2 and await db.value("PRAGMA owners.journal_mode") == "wal"
        )
        async with connect_read_only(first, owners=second) as reader:
            assert await reader.value("SELECT count(*) FROM places, owner") == 1
            with pytest.raises(sqlite3.OperationalError, match="readonly"):
                await reader.write(lambda connection: connection.execute("DELETE FROM owner"))

    using(first, work)
    tables = "SELECT name FROM sqlite_master"
    assert look(first, tables)[0] == ("places",) and look(second, tables) == [("owner",)]
    assert look(second, "PRAGMA user_version") == [(1,)]


def test_a_second_file_that_cannot_be_used_is_named_with_a_fix(tmp_path):
    second = tmp_path / "second.sqlite3"
    second.write_bytes(b"this is a text file, not a database" * 30)
    with pytest.raises(StoreError, match="not a database; restore a copy") as caught:
        using(tmp_path / "first.sqlite3", lambda db: db.attach("owners", second, OWNER))
    assert str(second) in str(caught.value)
