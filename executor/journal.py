"""What the executor bot remembers, in SQLite: orders, what was signed for them, and what became of it.

An order is a row before anything is done about it, a signed transaction is one before it is sent, and both stay for
ever. Each method is a transaction, so a process may be killed anywhere. `python -m executor status` prints it.
Read next: `execution.py`.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from executor.client import MAX_ORDER_BYTES, MAX_REPORT_BYTES
from liquidity.executions import Order, Report
from protocol import Code, ProtocolError
from runtime.db import Database, claim, connect, insert
from runtime.process import UserError
from wire.codec import decode, encode

MAX_OPEN = 16  # orders at once that are not final
PLAN, CANCEL = "plan", "cancel"
_FEES = "max_fee_wei", "priority_fee_wei"

MIGRATIONS = (
    """CREATE TABLE vault (  -- one row: whose journal this is
    id INTEGER PRIMARY KEY CHECK (id = 1),
    chain_id INTEGER NOT NULL,
    pool TEXT NOT NULL,
    vault TEXT NOT NULL
);
CREATE TABLE started (  -- one row: how the bot was started last
    id INTEGER PRIMARY KEY CHECK (id = 1),
    live INTEGER NOT NULL,
    limits TEXT NOT NULL  -- drafting.Limits, JSON
);
CREATE TABLE orders (
    id INTEGER PRIMARY KEY,
    decision TEXT NOT NULL UNIQUE,  -- what was carried out under a name is never carried out again
    body BLOB NOT NULL,  -- executions.Order, canonical JSON
    report BLOB  -- executions.Report, once it is final
);
CREATE TABLE attempts (  -- a signed transaction; those of one nonce exclude each other
    id INTEGER PRIMARY KEY,
    decision TEXT NOT NULL REFERENCES orders (decision),
    nonce INTEGER NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('plan', 'cancel')),
    hash TEXT NOT NULL UNIQUE,
    raw TEXT NOT NULL,
    max_fee_wei TEXT NOT NULL,  -- a gas
    priority_fee_wei TEXT NOT NULL,
    block INTEGER NOT NULL,  -- the head when it was signed
    moved_ppm INTEGER NOT NULL,  -- of the inventory's value
    receipt TEXT,  -- once enough blocks stand on it
    time INTEGER  -- of the receipt's block, unix seconds
)""",
)


@dataclass(frozen=True, slots=True)
class Attempt:
    """A row of `attempts`; `receipt` as the node gave it."""

    nonce: int
    kind: str
    hash: str
    raw: str
    max_fee_wei: int
    priority_fee_wei: int
    block: int
    moved_ppm: int
    receipt: dict[str, Any] | None = None
    time: int | None = None
    decision: str = ""

    @property
    def succeeded(self) -> bool:
        return self.receipt is not None and self.receipt["status"] == "0x1"


class OrderJournal:
    """See the file's head; made by `OrderJournal.open`."""

    def __init__(self, db: Database):
        self._db = db

    @classmethod
    @asynccontextmanager
    async def open(cls, path: Path, chain_id: int, pool: str, vault: str) -> AsyncIterator[OrderJournal]:
        """A vault's, made if it is new. Raises `UserError` if it is another vault's, `StoreError` as `connect`."""
        if str(path) != ":memory:":
            with suppress(OSError):  # `connect` says why
                path.touch()
                path.chmod(0o600)  # whoever reads what was signed could send it; its log gets the same permissions
        asked = {"chain_id": chain_id, "pool": pool, "vault": vault}
        async with connect(path, MIGRATIONS) as db:
            if (whose := await db.write(lambda connection: claim(connection, "vault", **asked))) != asked:
                owner = f"vault {whose['vault']} in pool {whose['pool']} on chain {whose['chain_id']}"
                raise UserError(f"journal {path} is of {owner}, the key is of {vault}; choose another --dir")
            yield cls(db)

    async def accept(self, order: Order) -> Report | None:
        """Write an order down, once; its final report if there is one.

        Raises:
            ProtocolError: `ORDER_CONFLICT`, another one has its name; `BUSY`, too many are open.
        """
        body = encode(order)

        def work(connection: sqlite3.Connection) -> sqlite3.Row | None:
            known = "SELECT body, report FROM orders WHERE decision = ?"
            row = connection.execute(known, (order.decision,)).fetchone()
            if row is None:
                (waiting,) = connection.execute("SELECT COUNT(*) FROM orders WHERE report IS NULL").fetchone()
                if waiting >= MAX_OPEN:
                    raise ProtocolError(Code.BUSY, f"{waiting} orders are open; place it again later")
                insert(connection, "orders", [{"decision": order.decision, "body": body}])
            return row

        row = await self._db.write(work)
        if row and row["body"] != body:
            raise ProtocolError(Code.ORDER_CONFLICT, "another order has this name; nothing new is done under it")
        return _report(row) if row else None

    async def report(self, decision: str) -> tuple[bool, Report | None]:
        """Whether an order is known, and its final report if there is one."""
        row = await self._db.row("SELECT report FROM orders WHERE decision = ?", decision)
        return row is not None, _report(row) if row else None

    async def oldest_open(self) -> Order | None:
        body = await self._db.value("SELECT body FROM orders WHERE report IS NULL ORDER BY id LIMIT 1")
        return decode(Order, body, MAX_ORDER_BYTES) if body else None

    async def attempts(self, decision: str) -> list[Attempt]:
        """An order's, in the order they were signed in, among those of others that were given up with its nonces."""
        nonces = "SELECT nonce FROM attempts WHERE decision = ?"
        rows = await self._db.rows(f"SELECT * FROM attempts WHERE nonce IN ({nonces}) ORDER BY id", decision)
        return [_attempt(row) for row in rows]

    async def sign(self, decision: str, attempt: Attempt) -> None:
        """Before it is sent."""
        fees = {name: str(getattr(attempt, name)) for name in _FEES}  # they may not fit the 8 bytes of an INTEGER
        row = {**asdict(attempt), "decision": decision, **fees}
        await self._db.write(lambda connection: insert(connection, "attempts", [row]))

    async def mined(self, attempt: Attempt, receipt: dict[str, Any], time: int) -> None:
        """It is in a block of that time, and enough blocks stand on it."""
        sql = "UPDATE attempts SET receipt = ?, time = ? WHERE hash = ?"
        await self._write(sql, json.dumps(receipt), time, attempt.hash)

    async def not_mined(self, attempt: Attempt) -> None:
        """It was in a block, and that block is gone."""
        await self._write("UPDATE attempts SET receipt = NULL, time = NULL WHERE hash = ?", attempt.hash)

    async def finish(self, report: Report) -> None:
        """The order is done with, in one way or another; only the first report counts."""
        sql = "UPDATE orders SET report = ? WHERE decision = ? AND report IS NULL"
        await self._write(sql, encode(report), report.decision)

    async def tried(self, nonce: int) -> int:
        """How many were signed with it."""
        return await self._db.value("SELECT COUNT(*) FROM attempts WHERE nonce = ?", nonce)

    async def signed(self, first: int, end: int) -> int:
        """How many nonces from `first` to before `end` were signed with."""
        sql = "SELECT COUNT(DISTINCT nonce) FROM attempts WHERE nonce >= ? AND nonce < ?"
        return await self._db.value(sql, first, end)

    async def mined_with(self, nonce: int) -> Attempt | None:
        """What was final under this nonce."""
        row = await self._db.row("SELECT * FROM attempts WHERE nonce = ? AND receipt IS NOT NULL", nonce)
        return _attempt(row) if row else None

    async def within(self, since: int) -> tuple[int, int]:
        """Transactions in blocks after that time, and how much they moved, in millionths of what there then was."""
        moved = "SUM(moved_ppm) FILTER (WHERE json_extract(receipt, '$.status') = '0x1')"
        return tuple(await self._db.row(f"SELECT COUNT(*), COALESCE({moved}, 0) FROM attempts WHERE time > ?", since))

    async def start(self, live: bool, limits: dict[str, int]) -> None:
        """How the bot works from now on: for `lines`."""
        await self._write("INSERT OR REPLACE INTO started VALUES (1, ?, ?)", live, json.dumps(limits))

    async def lines(self, most: int = 10) -> list[str]:
        """For people: how the bot was started last, and the newest orders, the oldest of them first."""
        started = await self._db.row("SELECT live, limits FROM started")
        limits = json.loads(started["limits"]) if started else {}
        lines = [f"last started {'live' if started['live'] else 'as a dry run'}, with the limits:"] if started else []
        lines += [f"  {name} {value}" for name, value in limits.items()]
        rows = await self._db.rows("SELECT * FROM (SELECT * FROM orders ORDER BY id DESC LIMIT ?) ORDER BY id", most)
        lines.append("orders:" if rows else "no orders yet")
        for row in rows:
            report = _report(row)
            lines.append(f"  {row['decision']}: {f'{report.code}, {report.detail}' if report else 'open'}")
            for attempt in await self.attempts(row["decision"]):
                if attempt.decision != row["decision"]:
                    continue
                became = {True: "succeeded", False: "reverted"}[attempt.succeeded] if attempt.receipt else "not mined"
                what = f"{attempt.kind} {attempt.hash}, nonce {attempt.nonce}"
                lines.append(f"    {what}, signed at block {attempt.block}, {became}")
        return lines

    async def _write(self, sql: str, *values: object) -> None:
        await self._db.write(lambda connection: connection.execute(sql, values))


def _report(row: sqlite3.Row) -> Report | None:
    return decode(Report, row["report"], MAX_REPORT_BYTES) if row["report"] else None


def _attempt(row: sqlite3.Row) -> Attempt:
    values = {name: row[name] for name in Attempt.__slots__}
    values |= {name: int(row[name]) for name in _FEES}
    return Attempt(**values | {"receipt": json.loads(row["receipt"]) if row["receipt"] else None})
