"""What `stake.py` remembers of one wallet, in SQLite: the baseline, each epoch's sweep, each movement, each burn.

A movement is a row before it is sent and stays one for ever. Each method is a transaction, so a process may be killed
anywhere. `python stake.py status` prints it; the schema below says what each column means. Read next: `stake.py`.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiosqlite

from chain.base import WriteOutcome
from runtime.db import connect, transaction
from runtime.process import UserError

ROUNDING_RAO = 10  # a share pool may lose or leave a rao at each movement (subtensor; the SDK's notes on MoveStake)
SHOWN_ROWS = 10  # of each table, by `status`

log = logging.getLogger("journal")


@dataclass(frozen=True, slots=True)
class Reading:
    """Stakes as they were together. Stake changes by epochs and by extrinsics only, so within one epoch it changes only
    where somebody moved it.

    Attributes:
        block: not before which the values hold.
        epoch_block: the last epoch's.
        next_epoch_block: the present expectation, None if none is due.
        rao: in the order they were asked for.
    """

    block: int
    epoch_block: int
    next_epoch_block: int | None
    rao: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Wanted:
    """One movement of a sweep. A move keeps the owner, a transfer gives the stake to `dest_coldkey`."""

    action: str
    origin_hotkey: str
    dest_hotkey: str
    dest_coldkey: str
    amount_rao: int


@dataclass(frozen=True, slots=True)
class Step:
    """A row of the journal's `steps`."""

    id: int
    epoch_block: int
    action: str
    origin_hotkey: str
    dest_hotkey: str
    dest_coldkey: str
    amount_rao: int
    state: str
    attempts: int
    retry_block: int
    sent_block: int | None
    sent_epoch_block: int | None
    origin_before_rao: int | None
    dest_before_rao: int | None
    extrinsic: str | None
    origin_after_rao: int | None
    dest_after_rao: int | None
    detail: str


MIGRATIONS = (
    """CREATE TABLE wallet (  -- one row: whose journal this is
    id INTEGER PRIMARY KEY CHECK (id = 1),
    netuid INTEGER NOT NULL,
    hotkey TEXT NOT NULL,
    coldkey TEXT NOT NULL
);
CREATE TABLE baselines (  -- stake on the miner hotkey that is not swept; the last row counts
    id INTEGER PRIMARY KEY,
    block INTEGER NOT NULL,
    rao INTEGER NOT NULL,
    reason TEXT NOT NULL
);
CREATE TABLE epochs (  -- the key is what sweeps an epoch once
    epoch_block INTEGER PRIMARY KEY,
    observed_block INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('observed', 'open', 'swept', 'nothing', 'baseline', 'skipped')),
    earned_rao INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE steps (  -- one row for each movement, written before it is sent
    id INTEGER PRIMARY KEY,
    epoch_block INTEGER NOT NULL REFERENCES epochs,
    action TEXT NOT NULL CHECK (action IN ('move', 'transfer')),
    origin_hotkey TEXT NOT NULL,
    dest_hotkey TEXT NOT NULL,
    dest_coldkey TEXT NOT NULL,
    amount_rao INTEGER NOT NULL CHECK (amount_rao > 0),
    state TEXT NOT NULL CHECK (state IN ('planned', 'sent', 'applied', 'dropped')),
    attempts INTEGER NOT NULL DEFAULT 0,
    retry_block INTEGER NOT NULL DEFAULT 0,
    sent_block INTEGER,  -- the head when the last attempt was written down
    sent_epoch_block INTEGER,
    origin_before_rao INTEGER,
    dest_before_rao INTEGER,
    extrinsic TEXT UNIQUE,  -- the chain's record of it
    origin_after_rao INTEGER,
    dest_after_rao INTEGER,
    detail TEXT NOT NULL DEFAULT ''
);
CREATE TABLE seen (  -- one row: the last reading
    id INTEGER PRIMARY KEY CHECK (id = 1),
    block INTEGER NOT NULL,
    epoch_block INTEGER NOT NULL,
    next_epoch_block INTEGER,
    miner_rao INTEGER  -- NULL when it cannot be compared with the next
);
CREATE TABLE targets (  -- the hotkey that a --target-uid meant when it was first given: uids are recycled
    uid INTEGER PRIMARY KEY,
    hotkey TEXT NOT NULL
);
CREATE TABLE burns (  -- every attempt to set weights
    id INTEGER PRIMARY KEY,
    block INTEGER NOT NULL,
    uid INTEGER NOT NULL,
    hotkey TEXT NOT NULL,
    result TEXT NOT NULL,
    detail TEXT NOT NULL
);
CREATE TABLE summaries (  -- one row: the last daily summary, and what it covered
    id INTEGER PRIMARY KEY CHECK (id = 1),
    day TEXT NOT NULL,
    epoch_block INTEGER NOT NULL,
    burn_id INTEGER NOT NULL
)""",
)


class Journal:
    """What one wallet did and is about to do, in SQLite. Each method is a transaction."""

    def __init__(self, db: aiosqlite.Connection, coldkey: str):
        """Use `Journal.open`."""
        self._db, self._coldkey = db, coldkey

    @classmethod
    @asynccontextmanager
    async def open(cls, path: Path, netuid: int, hotkey: str, coldkey: str) -> AsyncIterator[Journal]:
        """Open the journal of a wallet on a subnet; make it if it is new.

        Raises:
            UserError: it is another wallet's or subnet's.
            StoreError: the file cannot be used.
        """
        async with connect(path, MIGRATIONS) as db:
            async with transaction(db):
                await db.execute("INSERT OR IGNORE INTO wallet VALUES (1, ?, ?, ?)", (netuid, hotkey, coldkey))
            journal = cls(db, coldkey)
            whose = tuple(await journal._row("SELECT netuid, hotkey, coldkey FROM wallet"))
            if whose != (netuid, hotkey, coldkey):
                raise UserError(
                    f"journal {path} is of netuid {whose[0]}, hotkey {whose[1]}; choose another with --journal"
                )
            yield journal

    async def is_new(self) -> bool:
        """Nothing was ever done with it."""
        row = await self._row("SELECT EXISTS (SELECT 1 FROM baselines) OR EXISTS (SELECT 1 FROM burns)")
        return not row[0]

    # -- the sweep

    async def observe(self, now: Reading, new_state: str, first_state: str) -> None:
        """Note a reading of the miner hotkey's stake, and the epoch in it when it is new.

        The first reading ever becomes the baseline. Later, stake that came or went within an epoch was not earned: the
        baseline follows it; and it is never above what is there.

        Args:
            new_state: of a new epoch, `observed` or `skipped`; what a skipped one brought goes with the next.
            first_state: of the first epoch ever seen, `baseline` or `observed`.
        """
        miner_rao = now.rao[0]
        async with transaction(self._db):
            baseline = await self._baseline()
            in_flight = await self._row("SELECT 1 FROM steps WHERE state = 'sent'")
            seen = await self._row("SELECT * FROM seen")
            if baseline is None:
                new_state = first_state
                await self._add_baseline(now.block, miner_rao, "first reading")
            else:
                same_epoch = seen["epoch_block"] == now.epoch_block and seen["miner_rao"] is not None
                change = miner_rao - seen["miner_rao"] if same_epoch else 0
                moved = baseline + change if abs(change) > ROUNDING_RAO else baseline
                if (allowed := max(0, min(moved, miner_rao))) != baseline:
                    await self._add_baseline(now.block, allowed, f"{change:+d} rao without an epoch: not earned")
            await self._db.execute(
                """INSERT INTO epochs (epoch_block, observed_block, state) SELECT ?, ?, ?
                WHERE ? > (SELECT COALESCE(MAX(epoch_block), -1) FROM epochs)""",
                (now.epoch_block, now.block, new_state, now.epoch_block),
            )
            await self._db.execute(
                "INSERT OR REPLACE INTO seen VALUES (1, ?, ?, ?, ?)",
                (now.block, now.epoch_block, now.next_epoch_block, None if in_flight else miner_rao),
            )

    async def _add_baseline(self, block: int, rao: int, reason: str) -> None:
        await self._db.execute("INSERT INTO baselines VALUES (NULL, ?, ?, ?)", (block, rao, reason))
        log.warning("baseline: %d rao on the miner hotkey are not swept (%s)", rao, reason)

    async def baseline_rao(self) -> int | None:
        """Stake on the miner hotkey that is not swept; None before the first reading."""
        async with transaction(self._db):
            return await self._baseline()

    async def _baseline(self) -> int | None:
        row = await self._row("SELECT rao FROM baselines ORDER BY id DESC LIMIT 1")
        return row["rao"] if row else None

    async def open_step(self) -> Step | None:
        """The next movement of the oldest sweep that is not finished."""
        row = await self._row("SELECT * FROM steps WHERE state IN ('planned', 'sent') ORDER BY id LIMIT 1")
        return Step(**row) if row else None

    async def next_epoch(self) -> int | None:
        """The oldest epoch that was observed and not yet planned."""
        row = await self._row("SELECT MIN(epoch_block) FROM epochs WHERE state = 'observed'")
        return row[0]

    async def write_plan(self, epoch_block: int, earned_rao: int, steps: Sequence[Wanted]) -> None:
        """The movements of an epoch's sweep; without any there was nothing to sweep."""
        async with transaction(self._db):
            await self._db.execute(
                "UPDATE epochs SET state = ?, earned_rao = ? WHERE epoch_block = ? AND state = 'observed'",
                ("open" if steps else "nothing", earned_rao, epoch_block),
            )
            await self._db.executemany(
                """INSERT INTO steps (epoch_block, action, origin_hotkey, dest_hotkey, dest_coldkey, amount_rao, state)
                VALUES (?, ?, ?, ?, ?, ?, 'planned')""",
                [(epoch_block, s.action, s.origin_hotkey, s.dest_hotkey, s.dest_coldkey, s.amount_rao) for s in steps],
            )

    async def sending(self, step: Step, amount_rao: int, before: Reading) -> Step:
        """Before anything is sent: how much, and what origin and destination had."""
        async with transaction(self._db):
            await self._db.execute(
                """UPDATE steps SET state = 'sent', attempts = attempts + 1, amount_rao = ?, sent_block = ?,
                sent_epoch_block = ?, origin_before_rao = ?, dest_before_rao = ?, detail = '' WHERE id = ?""",
                (amount_rao, before.block, before.epoch_block, *before.rao, step.id),
            )
            await self._db.execute("UPDATE seen SET miner_rao = NULL")
            return Step(**await self._row("SELECT * FROM steps WHERE id = ?", step.id))

    async def not_applied(self, step: Step, retry_block: int, detail: str) -> None:
        """The last attempt certainly did not happen; the next is made at `retry_block`."""
        async with transaction(self._db):
            await self._db.execute(
                "UPDATE steps SET state = 'planned', retry_block = ?, detail = ? WHERE id = ?",
                (retry_block, detail, step.id),
            )

    async def applied(self, step: Step, extrinsic: str | None, after: Reading, detail: str) -> bool:
        """The chain shows the step.

        Returns:
            True when it was the last of its epoch's sweep.
        """
        async with transaction(self._db):
            await self._db.execute(
                """UPDATE steps SET state = 'applied', extrinsic = ?, origin_after_rao = ?, dest_after_rao = ?,
                detail = ? WHERE id = ?""",
                (extrinsic, *after.rao, detail, step.id),
            )
            return await self._close(step.epoch_block)

    async def drop(self, step: Step, detail: str) -> None:
        """What the step was to move is gone: it and the rest of its epoch's sweep will not be sent."""
        async with transaction(self._db):
            await self._db.execute(
                "UPDATE steps SET state = 'dropped', detail = ? WHERE epoch_block = ? AND state = 'planned'",
                (detail, step.epoch_block),
            )
            await self._close(step.epoch_block)

    async def _close(self, epoch_block: int) -> bool:
        done = await self._db.execute(
            """UPDATE epochs SET state = 'swept' WHERE epoch_block = ? AND NOT EXISTS
            (SELECT 1 FROM steps s WHERE s.epoch_block = epochs.epoch_block AND s.state IN ('planned', 'sent'))""",
            (epoch_block,),
        )
        return bool(done.rowcount)

    async def extrinsics(self) -> set[str]:
        """The chain's records that belong to finished steps."""
        rows = await self._db.execute_fetchall("SELECT extrinsic FROM steps WHERE extrinsic IS NOT NULL")
        return {row[0] for row in rows}

    async def check_addresses(self, aggregator_hotkey: str, destination_coldkey: str) -> None:
        """See that a sweep that was begun goes to these addresses.

        Raises:
            UserError: it does not.
        """
        other = await self._row(
            """SELECT * FROM steps WHERE state IN ('planned', 'sent')
            AND (dest_hotkey != ? OR (action = 'transfer' AND dest_coldkey != ?))""",
            aggregator_hotkey,
            destination_coldkey,
        )
        if other:
            raise UserError(
                f"the sweep of epoch {other['epoch_block']} was begun to {other['dest_hotkey']} of"
                f" {other['dest_coldkey']}; let it end with those addresses first"
            )

    # -- the burn

    async def bind_target(self, uid: int, hotkey: str | None) -> str | None:
        """The hotkey that `uid` meant when it was first given; `hotkey`, who has it, if that is now."""
        async with transaction(self._db):
            if hotkey is not None:
                await self._db.execute("INSERT OR IGNORE INTO targets VALUES (?, ?)", (uid, hotkey))
            row = await self._row("SELECT hotkey FROM targets WHERE uid = ?", uid)
            return row["hotkey"] if row else None

    async def add_burn(self, uid: int, hotkey: str, outcome: WriteOutcome) -> None:
        result = "set" if outcome.ok else outcome.name
        async with transaction(self._db):
            await self._db.execute(
                "INSERT INTO burns VALUES (NULL, ?, ?, ?, ?, ?)", (outcome.block, uid, hotkey, result, outcome.detail)
            )

    # -- for people

    async def lines(self) -> list[str]:
        """The newest rows, the oldest of them first."""
        epochs = await self._db.execute_fetchall(
            "SELECT * FROM (SELECT * FROM epochs ORDER BY epoch_block DESC LIMIT ?) ORDER BY epoch_block", (SHOWN_ROWS,)
        )
        lines = []
        for epoch in epochs:
            lines.append(f"epoch {epoch['epoch_block']}: {epoch['state']}, earned {alpha(epoch['earned_rao'])}")
            for row in await self._db.execute_fetchall(
                "SELECT * FROM steps WHERE epoch_block = ? ORDER BY id", (epoch["epoch_block"],)
            ):
                lines.append(
                    f"  step {row['id']}: {row['action']} {alpha(row['amount_rao'])} to {row['dest_hotkey']} of"
                    f" {row['dest_coldkey']}: {row['state']}, block {row['sent_block']}, extrinsic {row['extrinsic']},"
                    f" origin {row['origin_before_rao']} -> {row['origin_after_rao']} rao"
                    f"{', ' + row['detail'] if row['detail'] else ''}"
                )
        burns = await self._db.execute_fetchall(
            "SELECT * FROM (SELECT * FROM burns ORDER BY id DESC LIMIT ?) ORDER BY id", (SHOWN_ROWS,)
        )
        lines += [f"block {b['block']}: weights on uid {b['uid']}: {b['result']} {b['detail']}".rstrip() for b in burns]
        return lines or ["empty"]

    async def summary(self, first_day: str, due: Callable[[str], str | None]) -> str:
        """The daily summary if it is due, else empty; what it tells is then told.

        Args:
            first_day: the day before the journal's first.
            due: from the day of the last summary to the day of the one due, or None.
        """
        async with transaction(self._db):
            await self._db.execute("INSERT OR IGNORE INTO summaries VALUES (1, ?, 0, 0)", (first_day,))
            last = await self._row("SELECT * FROM summaries")
            day = due(last["day"])
            if day is None:
                return ""
            swept = await self._row(
                """SELECT COUNT(*) AS steps, COALESCE(SUM(amount_rao), 0) AS rao, MAX(epoch_block) AS last FROM steps
                WHERE state = 'applied' AND action = 'transfer' AND epoch_block > ?""",
                last["epoch_block"],
            )
            burns = await self._row(
                """SELECT COUNT(*) AS tries, COALESCE(SUM(result = 'set'), 0) AS ok, MAX(id) AS last
                FROM burns WHERE id > ?""",
                last["burn_id"],
            )
            await self._db.execute(
                "UPDATE summaries SET day = ?, epoch_block = ?, burn_id = ?",
                (day, swept["last"] or last["epoch_block"], burns["last"] or last["burn_id"]),
            )
            return (
                f"{day}, 00:00 UTC: {swept['steps']} transfers, {alpha(swept['rao'])};"
                f" weights set {burns['ok']} times of {burns['tries']} tries"
            )

    async def _row(self, sql: str, *values: object) -> sqlite3.Row | None:
        return next(iter(await self._db.execute_fetchall(sql, values)), None)


def alpha(rao: int) -> str:
    """Rao as people read them: `1.500000000 alpha`."""
    return f"{'-' if rao < 0 else ''}{abs(rao) // 10**9}.{abs(rao) % 10**9:09d} alpha"
