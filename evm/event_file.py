"""Where reading a pool has come to, and the SQLite file of its events: a copy of the chain, fetched again if deleted.

Each method is one transaction: events land together with the cursor, once each.
Read next: `follower.py`, which fills it.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from evm.events import NamedToken, follow
from evm.rpc import Endpoint
from liquidity.events import Event
from liquidity.replay import Snapshot
from protocol import Block
from runtime.db import Database, insert
from sim import Pool
from wire.codec import canonical, from_plain, to_plain

KEPT_ANCHORS = 8
Fees = tuple[int, int]  # of the protocol, not collected yet; no snapshot has them

SCHEMA = (
    """
    CREATE TABLE facts (               -- chain, pool, and the first block
        key TEXT PRIMARY KEY,
        value TEXT NOT NULL
    ) STRICT;
    CREATE TABLE cursor (              -- one row: all events up to this block have landed
        id INTEGER PRIMARY KEY CHECK (id = 0),
        block INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE blocks (              -- those that were looked at: with events, and at the ends of chunks
        number INTEGER PRIMARY KEY,
        time INTEGER NOT NULL,
        hash TEXT NOT NULL
    ) STRICT;
    CREATE TABLE events (
        block INTEGER NOT NULL, log_index INTEGER NOT NULL,
        time INTEGER NOT NULL,
        kind TEXT NOT NULL,
        args TEXT NOT NULL,            -- events.Event.args as JSON
        PRIMARY KEY (block, log_index)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE released (            -- what a position's burns released and no collect has paid yet, after an event
        block INTEGER NOT NULL, log_index INTEGER NOT NULL,
        owner TEXT NOT NULL,
        tick_lower INTEGER NOT NULL, tick_upper INTEGER NOT NULL,
        amount0 TEXT NOT NULL, amount1 TEXT NOT NULL,
        PRIMARY KEY (block, log_index)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE vaults (              -- whose tokens of the position manager have names in the events
        vault TEXT PRIMARY KEY
    ) STRICT;
    CREATE TABLE tokens (
        token_id TEXT PRIMARY KEY,
        owner TEXT NOT NULL,           -- the name in the events
        tick_lower INTEGER NOT NULL, tick_upper INTEGER NOT NULL,
        block INTEGER NOT NULL         -- where it came
    ) STRICT;
    CREATE TABLE anchors (             -- pools that were the contract's in every tick, after a block
        block INTEGER PRIMARY KEY,
        body BLOB NOT NULL             -- replay.Snapshot without a vault, and protocol fees; JSON, zlib
    ) STRICT;
    CREATE TABLE gaps (                -- blocks whose events could not be had
        first INTEGER NOT NULL,
        last INTEGER NOT NULL,
        reason TEXT NOT NULL
    ) STRICT
    """,
    """
    ALTER TABLE released RENAME TO released_before;
    CREATE TABLE released (            -- as before, where one event may be of two positions: a token changes hands
        block INTEGER NOT NULL, log_index INTEGER NOT NULL,
        owner TEXT NOT NULL,
        tick_lower INTEGER NOT NULL, tick_upper INTEGER NOT NULL,
        amount0 TEXT NOT NULL, amount1 TEXT NOT NULL,
        PRIMARY KEY (block, log_index, owner)
    ) STRICT, WITHOUT ROWID;
    INSERT INTO released SELECT * FROM released_before;
    DROP TABLE released_before;
    ALTER TABLE tokens RENAME TO tokens_before;
    CREATE TABLE tokens (              -- whose a token is from a block on; an empty owner is nobody who is followed
        token_id TEXT NOT NULL,
        owner TEXT NOT NULL,
        tick_lower INTEGER NOT NULL, tick_upper INTEGER NOT NULL,
        block INTEGER NOT NULL,
        PRIMARY KEY (token_id, block)
    ) STRICT;
    INSERT INTO tokens SELECT * FROM tokens_before;
    DROP TABLE tokens_before
    """,
    """
    DELETE FROM tokens                 -- some are strangers', who are called `#` from now on
    ;
    DELETE FROM vaults                 -- to be looked up again
    """,
)


@dataclass(slots=True)
class Tip:
    """Where reading has come to: the last block, the pool after it, and what the next events need."""

    block: Block
    pool: Pool  # replayed; it knows all ticks and no positions
    released: dict[tuple, tuple[int, int]]  # by position: what its burns released and no collect has paid
    tokens: dict[int, NamedToken]  # the vaults', by id

    def copy(self) -> Tip:
        return Tip(self.block, self.pool.copy(), dict(self.released), dict(self.tokens))


@dataclass(slots=True)
class Draft:
    """What was read beyond the tip and is not committed."""

    tip: Tip
    events: list[Event] = field(default_factory=list)
    blocks: dict[int, Block] = field(default_factory=dict)
    released: list[tuple] = field(default_factory=list)
    tokens: list[tuple] = field(default_factory=list)
    endpoints: set[Endpoint] = field(default_factory=set)


class EventFile:
    """What is known of one pool; made by `db.connect` with `SCHEMA`."""

    def __init__(self, db: Database):
        self._db = db

    async def facts(self) -> dict[str, str]:
        """Chain, pool and first block; empty in a new one."""
        return dict(map(tuple, await self._db.rows("SELECT key, value FROM facts")))

    async def vaults(self) -> set[str]:
        return {vault for (vault,) in await self._db.rows("SELECT vault FROM vaults")}

    async def block(self, number: int) -> Block | None:
        """A block, if it was looked at."""
        row = await self._db.row("SELECT number, time, hash FROM blocks WHERE number = ?", number)
        return Block(*row) if row else None

    async def newest_blocks(self, most: int) -> list[Block]:
        rows = await self._db.rows("SELECT number, time, hash FROM blocks ORDER BY number DESC LIMIT ?", most)
        return [Block(*row) for row in rows]

    async def events(self, first: int, last: int) -> list[Event]:
        sql = "SELECT * FROM events WHERE block BETWEEN ? AND ? ORDER BY block, log_index"
        return [Event(*place, tuple(json.loads(args))) for *place, args in await self._db.rows(sql, first, last)]

    async def released(self, token: NamedToken, block: int) -> tuple[int, int]:
        """What a position's burns had released before a block and no collect had paid."""
        key = "owner = ? AND tick_lower = ? AND tick_upper = ?"
        newest = f"WHERE {key} AND block < ? ORDER BY block DESC, log_index DESC LIMIT 1"
        row = await self._db.row(f"SELECT amount0, amount1 FROM released {newest}", *token, block)
        return tuple(map(int, row or (0, 0)))

    async def anchor(self) -> int:
        """The last block after which the pool is known to be the contract's."""
        return await self._db.value("SELECT max(block) FROM anchors")

    async def load(self) -> tuple[Tip, list[tuple[int, int, str]]]:
        """The tip, made of the last anchor and the events since; and first, last and reason of each gap."""

        def work(connection: sqlite3.Connection) -> tuple:
            (number,) = connection.execute("SELECT block FROM cursor").fetchone()
            last = "SELECT block, body FROM anchors WHERE block <= ? ORDER BY block DESC LIMIT 1"
            anchor = connection.execute(last, (number,)).fetchone()
            tables = "released ORDER BY block, log_index", "tokens ORDER BY block", "gaps"
            return number, *anchor, *(connection.execute(f"SELECT * FROM {table}").fetchall() for table in tables)

        number, anchor, packed, released, tokens, gaps = await self._db.read(work)
        body = json.loads(zlib.decompress(packed))
        pool = from_plain(Snapshot, body["snapshot"]).open()
        pool.protocol_fees = tuple(map(int, body["protocol_fees"]))
        await asyncio.to_thread(follow, pool, await self.events(anchor + 1, number))
        left = {tuple(key): (int(amount0), int(amount1)) for _, _, *key, amount0, amount1 in released}
        names = {token_id: token for token_id, token in _tokens(tokens).items() if token.vault}
        return Tip(await self.block(number), pool, left, names), list(map(tuple, gaps))

    async def begin(self, facts: dict[str, str], block: Block, pool: Snapshot, fees: Fees) -> None:
        """A new file, which knows the pool after a block."""

        def work(connection: sqlite3.Connection) -> None:
            connection.executemany("INSERT INTO facts VALUES (?, ?)", facts.items())
            connection.execute("INSERT INTO cursor VALUES (0, ?)", (block.number,))
            insert(connection, "blocks", [block])
            _put_anchor(connection, block, pool, fees)

        await self._db.write(work)

    async def commit(self, draft: Draft) -> None:
        """All that a draft brings, and the cursor."""
        events = [(*event[:4], json.dumps(event.args, separators=(",", ":"))) for event in draft.events]

        def work(connection: sqlite3.Connection) -> None:
            insert(connection, "blocks", draft.blocks.values(), "INSERT OR REPLACE")
            connection.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?)", events)
            connection.executemany("INSERT INTO released VALUES (?, ?, ?, ?, ?, ?, ?)", draft.released)
            connection.executemany("INSERT OR REPLACE INTO tokens VALUES (?, ?, ?, ?, ?)", draft.tokens)
            connection.execute("UPDATE cursor SET block = ?", (draft.tip.block.number,))

        await self._db.write(work)

    async def put_anchor(self, block: Block, pool: Snapshot, fees: Fees) -> None:
        """The pool after a block is the contract's, in every tick."""
        await self._db.write(lambda connection: _put_anchor(connection, block, pool, fees))

    async def put_gap(self, first: int, reason: str, block: Block, pool: Snapshot, fees: Fees) -> None:
        """Blocks from `first` to this one could not be had; what comes next begins with the contract's own state."""

        def work(connection: sqlite3.Connection) -> None:
            connection.execute("INSERT INTO gaps VALUES (?, ?, ?)", (first, block.number, reason))
            connection.execute("DELETE FROM released")  # who was paid what meanwhile nobody knows
            connection.execute("UPDATE cursor SET block = ?", (block.number,))
            insert(connection, "blocks", [block], "INSERT OR REPLACE")
            _put_anchor(connection, block, pool, fees)

        await self._db.write(work)

    async def forget_after(self, block: int) -> int:
        """Go back to a block; returns how many events that took."""

        def work(connection: sqlite3.Connection) -> int:
            count = connection.execute("DELETE FROM events WHERE block > ?", (block,)).rowcount
            for column in ("blocks.number", "released.block", "tokens.block", "anchors.block", "gaps.last"):
                table, _, name = column.partition(".")
                connection.execute(f"DELETE FROM {table} WHERE {name} > ?", (block,))
            connection.execute("UPDATE cursor SET block = ?", (block,))
            return count

        return await self._db.write(work)

    async def tokens(self, block: int) -> dict[int, NamedToken]:
        """Whose each token was after a block."""
        return _tokens(await self._db.rows("SELECT * FROM tokens WHERE block <= ? ORDER BY block", block))

    async def name(self, vault: str, rows: list[tuple[Any, ...]]) -> None:
        """A vault is followed, and this is how its tokens are called, rows of `tokens`."""

        def work(connection: sqlite3.Connection) -> None:
            connection.execute("INSERT OR IGNORE INTO vaults VALUES (?)", (vault,))
            connection.executemany("INSERT OR REPLACE INTO tokens VALUES (?, ?, ?, ?, ?)", rows)

        await self._db.write(work)


def _tokens(rows: Iterable[sqlite3.Row]) -> dict[int, NamedToken]:
    return {int(token_id): NamedToken(*token) for token_id, *token, _ in rows}


def _put_anchor(connection: sqlite3.Connection, block: Block, pool: Snapshot, fees: Fees) -> None:
    body = {"snapshot": to_plain(pool), "protocol_fees": [str(amount) for amount in fees]}
    row = block.number, zlib.compress(canonical(body))
    connection.execute("INSERT OR REPLACE INTO anchors VALUES (?, ?)", row)
    newest = "SELECT block FROM anchors ORDER BY block DESC LIMIT ?"
    connection.execute(f"DELETE FROM anchors WHERE block NOT IN ({newest})", (KEPT_ANCHORS,))
