"""A miner's receipt book: the answers it gave, and what validators signed about its scores, in one SQLite file.

    python miner.py receipts                        fetch what is missing, verify all, print the newest: exit 0 or 1
    python miner.py receipts --from URL             fetch from this validator: http://host:port
    python miner.py receipts --export ROUND         one round's receipts as JSON, to hand to somebody else

The running miner keeps what validators post to its `/receipt`. Whatever is validly signed is kept, right or wrong, and
nothing is dropped for something newer: a wrong receipt is the proof of a wrong. So what is kept of each validator is
bounded, and one that fills its part is refused.
Read first: `receipts.py` (what a receipt says). Read next: `miner.py`.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from audit.issuer import PAGE_BYTES, PAGE_RECEIPTS
from audit.receipts import MAX_PAGE_BYTES, read
from audit.shape import check_shape
from protocol import MAX_QUERY_BYTES, Code, ProtocolError
from runtime.db import Database, connect
from wire.codec import canonical, digest, parse_json
from wire.server import Handler

MAX_VALIDATOR_BYTES = 128 * 2**20  # what is kept of one validator: some 30,000 rounds
NOTE_BYTES = 400  # of one note of an answer, about
MAX_NOTES, NOTES_SECONDS = 10_000, 1.0  # answers not written yet; how often they are

SCHEMA = (
    """
    CREATE TABLE receipts (            -- whatever was validly signed, right or wrong; two of one round prove a fault
        validator TEXT NOT NULL,
        round_id TEXT NOT NULL,
        digest TEXT NOT NULL,          -- sha256 of the statement
        end_time INTEGER NOT NULL,
        statement TEXT NOT NULL,       -- canonical JSON
        signature TEXT NOT NULL,       -- over its digest
        PRIMARY KEY (validator, round_id, digest)
    ) STRICT;
    CREATE TABLE answers (             -- what this miner answered, noted when it did
        validator TEXT NOT NULL,
        round_id TEXT NOT NULL,
        query TEXT NOT NULL,           -- sha256 of the bytes
        answer TEXT NOT NULL,
        PRIMARY KEY (validator, round_id, query, answer)
    ) STRICT, WITHOUT ROWID
    """,
)

log = logging.getLogger("receipt_book")


class ReceiptBook:
    """A miner's own file: the answers that it gave, and the receipts that validators signed."""

    def __init__(self, db: Database, hotkey: str):
        """Use `ReceiptBook.open`."""
        self.hotkey = hotkey
        self._db = db
        self._notes: list[tuple[str, str, str, str]] = []
        self._bytes: Counter[str] = Counter()  # kept, by validator

    @classmethod
    @asynccontextmanager
    async def open(cls, path: Path, hotkey: str) -> AsyncIterator[ReceiptBook]:
        """Open the file, made if missing, of the miner `hotkey`. Raises `StoreError`."""
        async with connect(path, SCHEMA) as db:
            book = cls(db, hotkey)
            for size, table in (("sum(length(statement))", "receipts"), (f"count(*) * {NOTE_BYTES}", "answers")):
                book._bytes.update(dict(await db.rows(f"SELECT validator, {size} FROM {table} GROUP BY validator")))
            writing = asyncio.create_task(book._write_notes())
            try:
                yield book
            finally:
                writing.cancel()
                await asyncio.gather(writing, return_exceptions=True)
                await book.flush()

    def noting(self, handler: Handler) -> Handler:
        """The same handler of queries, with its answers noted; they are written in the background, a second later."""

        async def noted(caller: str, body: bytes) -> bytes:
            answer = await handler(caller, body)
            with suppress(ProtocolError, TypeError, KeyError):  # it is the handler who judges queries
                if len(self._notes) < MAX_NOTES and self._bytes[caller] < MAX_VALIDATOR_BYTES:
                    round_id = parse_json(body, MAX_QUERY_BYTES)["round_id"]
                    self._notes.append((caller, round_id, digest(body), digest(answer)))
                    self._bytes[caller] += NOTE_BYTES
            return answer

        return noted

    async def _write_notes(self) -> None:
        while True:
            await asyncio.sleep(NOTES_SECONDS)
            await self.flush()

    async def flush(self) -> None:
        """Write the answers noted so far."""
        notes, self._notes = self._notes, []
        try:
            if notes:
                sql = "INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?)"
                await self._db.write(lambda connection: connection.executemany(sql, notes))
        except sqlite3.Error as error:
            log.warning("%d answers could not be noted: %s", len(notes), error)

    async def take(self, caller: str, body: bytes) -> bytes:
        """Handle a post to `/receipt`: `{"receipts": [...]}` from the validator that signed them, all of them or none.

        Raises:
            ProtocolError: `MALFORMED`, `RECEIPT_SIGNATURE`, `RECEIPT_FOREIGN` or `RECEIPTS_FULL`.
        """
        page = parse_json(body, PAGE_BYTES)
        check_shape(page, {"receipts": ["object"]}, "page")
        if len(page["receipts"]) > PAGE_RECEIPTS:
            raise ProtocolError(Code.MALFORMED, f"{len(page['receipts'])} receipts, at most {PAGE_RECEIPTS}")
        return canonical({"new": await self.keep(caller, page["receipts"])})

    async def keep(self, validator: str, receipts: Sequence[Any]) -> int:
        """Keep receipts of one validator about this miner, those too that are kept already; returns how many are new.

        Raises: as `take`.
        """
        rows, size = [], 0
        for receipt in receipts:
            said = read(receipt)
            if (said["validator"], said["hotkey"]) != (validator, self.hotkey):
                what = f"a receipt of {said['validator']} about {said['hotkey']}"
                raise ProtocolError(Code.RECEIPT_FOREIGN, f"{what}, expected {validator} about {self.hotkey}")
            data = canonical(said)
            about = said["round"]["round_id"], digest(data), said["round"]["end_time"]
            rows.append((validator, *about, data.decode(), receipt["signature"]))
            size += len(data)
        if self._bytes[validator] + size > MAX_VALIDATOR_BYTES:  # none is dropped for another: it might be the proof
            limit = f"{MAX_VALIDATOR_BYTES} bytes are kept of one validator"
            raise ProtocolError(Code.RECEIPTS_FULL, f"{limit}; the miner's owner can move the file away")
        self._bytes[validator] += size  # before the write, in which others may come

        def work(connection: sqlite3.Connection) -> list[tuple]:
            sql = "INSERT OR IGNORE INTO receipts VALUES (?, ?, ?, ?, ?, ?)"
            return [row for row in rows if connection.execute(sql, row).rowcount]

        new: list[tuple] = []
        try:
            new = await self._db.write(work)
        finally:
            self._bytes[validator] -= size - sum(len(row[4]) for row in new)
        return len(new)

    async def held(self, validator: str) -> set[str]:
        """Ids of the rounds for which there is a receipt of this validator."""
        rows = await self._db.rows("SELECT round_id FROM receipts WHERE validator = ?", validator)
        return {row["round_id"] for row in rows}

    async def validators(self) -> set[str]:
        """Hotkeys of those that have asked this miner, or signed a receipt for it."""
        rows = await self._db.rows("SELECT validator FROM answers UNION SELECT validator FROM receipts")
        return {row["validator"] for row in rows}

    async def receipts(self, round_id: str | None = None) -> AsyncIterator[tuple[sqlite3.Row, dict[str, Any]]]:
        """All receipts, or one round's, the oldest first: the row, and the receipt as it was sent."""
        which, values = ("", ()) if round_id is None else (" WHERE round_id = ?", (round_id,))
        async with self._db.execute(f"SELECT * FROM receipts{which} ORDER BY end_time, round_id", values) as cursor:
            async for row in cursor:
                try:
                    said = parse_json(row["statement"].encode(), MAX_PAGE_BYTES)
                except ProtocolError:
                    said = None
                yield row, {"statement": said, "signature": row["signature"]}

    async def newest(self, most: int) -> list[dict[str, Any]]:
        """So many of the newest receipts' statements, the newest first."""
        sql = "SELECT statement FROM receipts ORDER BY end_time DESC, round_id DESC LIMIT ?"
        return [parse_json(row["statement"].encode(), MAX_PAGE_BYTES) for row in await self._db.rows(sql, most)]

    async def compare(self, said: dict[str, Any]) -> tuple[list[str], int]:
        """Hold a statement against what this miner noted of its answers.

        Returns:
            What it misquotes, each named; and how many noted answers it does not name as received. Those may have
            come too late, or before a crash: they prove nothing.
        """
        sql = "SELECT query, answer FROM answers WHERE validator = ? AND round_id = ?"
        noted: dict[str, set[str]] = {}
        for row in await self._db.rows(sql, said["validator"], said["round"]["round_id"]):
            noted.setdefault(row["query"], set()).add(row["answer"])
        quoted = {asked["query"]: asked["answer"] for asked in said["asks"]}
        wrong = [
            f"asks: quotes an answer {answer} to query {query}, this miner noted {', '.join(sorted(noted[query]))}"
            for query, answer in quoted.items()
            if answer and query in noted and answer not in noted[query]
        ]
        return wrong, sum(not quoted.get(query) for query in noted)
