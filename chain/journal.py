"""What `stake.py` remembers of one wallet, in SQLite: the baseline, each epoch's sweep, each movement, each burn.

A movement is a row before it is sent and stays one for ever. Each method is a transaction, so a process may be killed
anywhere. `python stake.py status` prints it; the schema below says what each column means. Read next: `stake.py`.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from chain.notify import day_before, summary_due
from runtime.db import Database, claim, connect, insert
from runtime.process import UserError

ROUNDING_RAO = 10  # a share pool may lose or leave a rao at each movement (subtensor; the SDK's notes on MoveStake)
SHOWN_ROWS = 10  # of each table, by `status`

log = logging.getLogger("journal")


@dataclass(frozen=True, slots=True)
class Reading:
    """Stakes as they were together. Stake changes by epochs and by extrinsics only, so within one epoch it changes only
    where somebody moved it."""

    block: int  # not before which the values hold
    epoch_block: int  # the last epoch's
    next_epoch_block: int | None  # the present expectation, None if none is due
    rao: tuple[int, ...]  # in the order they were asked for


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
    id INTEGER PRIMARY KEY CHECK (id = 1), netuid INTEGER NOT NULL, hotkey TEXT NOT NULL, coldkey TEXT NOT NULL
);
CREATE TABLE baselines (  -- stake on the miner hotkey that is not swept; the last row counts
    id INTEGER PRIMARY KEY, block INTEGER NOT NULL, rao INTEGER NOT NULL, reason TEXT NOT NULL
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
    uid INTEGER PRIMARY KEY, hotkey TEXT NOT NULL
);
CREATE TABLE burns (  -- every attempt to set weights
    id INTEGER PRIMARY KEY, block INTEGER NOT NULL, uid INTEGER NOT NULL, hotkey TEXT NOT NULL,
    result TEXT NOT NULL, detail TEXT NOT NULL
);
CREATE TABLE summaries (  -- one row: the last daily summary, and what it covered
    id INTEGER PRIMARY KEY CHECK (id = 1), day TEXT NOT NULL, epoch_block INTEGER NOT NULL, burn_id INTEGER NOT NULL
)""",
    """CREATE TABLE weights (  -- every attempt to set weights, as the validator's own database has them
    id INTEGER PRIMARY KEY, market_time INTEGER NOT NULL, block INTEGER NOT NULL, vector TEXT NOT NULL,
    uids TEXT NOT NULL, code TEXT NOT NULL, name TEXT NOT NULL, detail TEXT NOT NULL, next_block INTEGER NOT NULL
);
INSERT INTO weights SELECT id, 0, block, json_object(hotkey, '1'), json_object(CAST(uid AS TEXT), '1'),
    iif(result = 'set', 'weights_set', 'weights_rejected'), iif(result = 'set', '', result), detail,
    iif(result = 'set', block + 720, block) FROM burns;
DROP TABLE burns""",
)


class Journal:
    """What one wallet did and is about to do, in SQLite. Each method is a transaction."""

    def __init__(self, db: Database):
        """Use `Journal.open`."""
        self._db, self.read, self.write = db, db.read, db.write

    @classmethod
    @asynccontextmanager
    async def open(cls, path: Path, netuid: int, hotkey: str, coldkey: str) -> AsyncIterator[Journal]:
        """Open the journal of a wallet on a subnet, made if it is new.

        Raises `UserError` if it is another wallet's or subnet's, `StoreError` if the file cannot be used.
        """
        wallet = {"netuid": netuid, "hotkey": hotkey, "coldkey": coldkey}
        async with connect(path, MIGRATIONS) as db:
            whose = await db.write(lambda connection: claim(connection, "wallet", **wallet))
            if whose != wallet:
                found = f"netuid {whose['netuid']}, hotkey {whose['hotkey']}"
                raise UserError(f"journal {path} is of {found}; choose another with --journal")
            yield cls(db)

    async def is_new(self) -> bool:
        """Nothing was ever done with it."""
        return not await self._db.value("SELECT EXISTS (SELECT 1 FROM baselines) OR EXISTS (SELECT 1 FROM weights)")

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

        def work(db: sqlite3.Connection) -> None:
            baseline, state = _baseline(db), new_state
            in_flight = db.execute("SELECT 1 FROM steps WHERE state = 'sent'").fetchone()
            seen = db.execute("SELECT * FROM seen").fetchone()
            if baseline is None:
                state = first_state
                _add_baseline(db, now.block, miner_rao, "first reading")
            else:
                same_epoch = seen["epoch_block"] == now.epoch_block and seen["miner_rao"] is not None
                change = miner_rao - seen["miner_rao"] if same_epoch else 0
                moved = baseline + change if abs(change) > ROUNDING_RAO else baseline
                if (allowed := max(0, min(moved, miner_rao))) != baseline:
                    _add_baseline(db, now.block, allowed, f"{change:+d} rao without an epoch: not earned")
            (newest,) = db.execute("SELECT COALESCE(MAX(epoch_block), -1) FROM epochs").fetchone()
            if now.epoch_block > newest:
                row = {"epoch_block": now.epoch_block, "observed_block": now.block, "state": state}
                insert(db, "epochs", [row])
            seen = now.block, now.epoch_block, now.next_epoch_block, None if in_flight else miner_rao
            db.execute("INSERT OR REPLACE INTO seen VALUES (1, ?, ?, ?, ?)", seen)

        await self._db.write(work)

    async def baseline_rao(self) -> int | None:
        """Stake on the miner hotkey that is not swept; None before the first reading."""
        return await self._db.read(_baseline)

    async def open_step(self) -> Step | None:
        """The next movement of the oldest sweep that is not finished."""
        row = await self._db.row("SELECT * FROM steps WHERE state IN ('planned', 'sent') ORDER BY id LIMIT 1")
        return Step(**row) if row else None

    async def moved_rao(self, aggregator_hotkey: str) -> int:
        """What a sweep that is not finished has moved to the aggregator, and not given on yet."""
        sql = """SELECT COALESCE(SUM(iif(action = 'move', -amount_rao, amount_rao)), 0) FROM steps
            WHERE state = 'planned' AND (action = 'move' OR origin_hotkey = ?)"""
        return await self._db.value(sql, aggregator_hotkey)

    async def next_epoch(self) -> int | None:
        """The oldest epoch that was observed and not yet planned."""
        return await self._db.value("SELECT MIN(epoch_block) FROM epochs WHERE state = 'observed'")

    async def write_plan(
        self, epoch_block: int, earned_rao: int, steps: Sequence[Wanted], stuck: Step | None = None
    ) -> None:
        """The movements of an epoch's sweep; without any there was nothing to sweep.

        They take the place of a sweep that is stuck, and what is still to be moved of it is in them.
        """
        attempts = stuck.attempts if stuck else 0

        def work(db: sqlite3.Connection) -> None:
            if stuck:
                detail = f"left to the sweep of epoch {epoch_block}"
                db.execute("UPDATE steps SET state = 'dropped', detail = ? WHERE state = 'planned'", (detail,))
                db.execute("""UPDATE epochs SET state = 'nothing', earned_rao = (SELECT COALESCE(SUM(amount_rao), 0)
                    FROM steps WHERE steps.epoch_block = epochs.epoch_block AND state = 'applied' AND action = 'move')
                    WHERE state = 'open'""")
            sql = "UPDATE epochs SET state = ?, earned_rao = ? WHERE epoch_block = ? AND state = 'observed'"
            db.execute(sql, ("open" if steps else "nothing", earned_rao, epoch_block))
            row = {"epoch_block": epoch_block, "state": "planned", "attempts": attempts}
            insert(db, "steps", [asdict(step) | row for step in steps])

        await self._db.write(work)

    async def sending(self, step: Step, amount_rao: int, before: Reading) -> Step:
        """Before anything is sent: how much, and what origin and destination had."""
        origin_rao, dest_rao = before.rao
        sent = replace(step, state="sent", attempts=step.attempts + 1, amount_rao=amount_rao, detail="")
        sent = replace(sent, sent_block=before.block, sent_epoch_block=before.epoch_block)
        sent = replace(sent, origin_before_rao=origin_rao, dest_before_rao=dest_rao)

        def work(db: sqlite3.Connection) -> None:
            _put(db, sent)
            db.execute("UPDATE seen SET miner_rao = NULL")

        await self._db.write(work)
        return sent

    async def not_applied(self, step: Step, retry_block: int, detail: str) -> None:
        """The last attempt certainly did not happen; the next is made at `retry_block`."""
        planned = replace(step, state="planned", retry_block=retry_block, detail=detail)
        await self._db.write(lambda db: _put(db, planned))

    async def applied(self, step: Step, extrinsic: str | None, after: Reading, detail: str) -> bool:
        """The chain shows the step. Returns whether it was the last of its epoch's sweep."""
        origin_rao, dest_rao = after.rao
        found = replace(step, state="applied", extrinsic=extrinsic, detail=detail)
        found = replace(found, origin_after_rao=origin_rao, dest_after_rao=dest_rao)

        def work(db: sqlite3.Connection) -> bool:
            _put(db, found)
            return _close(db, step.epoch_block)

        return await self._db.write(work)

    async def drop(self, step: Step, detail: str) -> None:
        """What the step was to move is gone: it and the rest of its epoch's sweep will not be sent."""

        def work(db: sqlite3.Connection) -> None:
            sql = "UPDATE steps SET state = 'dropped', detail = ? WHERE epoch_block = ? AND state = 'planned'"
            db.execute(sql, (detail, step.epoch_block))
            _close(db, step.epoch_block)

        await self._db.write(work)

    async def extrinsics(self) -> set[str]:
        """The chain's records that belong to finished steps."""
        return {row[0] for row in await self._db.rows("SELECT extrinsic FROM steps WHERE extrinsic IS NOT NULL")}

    async def check_addresses(self, aggregator_hotkey: str, destination_coldkey: str) -> None:
        """See that a sweep that was begun goes to these addresses; raises `UserError`."""
        sql = """SELECT * FROM steps WHERE state IN ('planned', 'sent')
            AND (dest_hotkey != ? OR (action = 'transfer' AND dest_coldkey != ?))"""
        if other := await self._db.row(sql, aggregator_hotkey, destination_coldkey):
            begun = f"epoch {other['epoch_block']} was begun to {other['dest_hotkey']} of {other['dest_coldkey']}"
            raise UserError(f"the sweep of {begun}; let it end with those addresses first")

    # -- the burn

    async def bind_target(self, uid: int, hotkey: str) -> str:
        """The hotkey that `uid` meant when it was first given; `hotkey`, who has it, if that is now."""

        def work(db: sqlite3.Connection) -> str:
            insert(db, "targets", [{"uid": uid, "hotkey": hotkey}], "INSERT OR IGNORE")
            return db.execute("SELECT hotkey FROM targets WHERE uid = ?", (uid,)).fetchone()["hotkey"]

        return await self._db.write(work)

    # -- for people

    async def lines(self) -> list[str]:
        """The newest rows, the oldest of them first."""
        newest = "SELECT * FROM (SELECT * FROM {0} ORDER BY {1} DESC LIMIT ?) ORDER BY {1}"
        lines = []
        for epoch in await self._db.rows(newest.format("epochs", "epoch_block"), SHOWN_ROWS):
            lines.append(f"epoch {epoch['epoch_block']}: {epoch['state']}, earned {alpha(epoch['earned_rao'])}")
            sql = "SELECT * FROM steps WHERE epoch_block = ? ORDER BY id"
            for step in [Step(**row) for row in await self._db.rows(sql, epoch["epoch_block"])]:
                lines.append(
                    f"  step {step.id}: {step.action} {alpha(step.amount_rao)} to {step.dest_hotkey} of"
                    f" {step.dest_coldkey}: {step.state}, block {step.sent_block}, extrinsic {step.extrinsic},"
                    f" origin {step.origin_before_rao} -> {step.origin_after_rao} rao"
                    f"{', ' + step.detail if step.detail else ''}"
                )
        for row in await self._db.rows(newest.format("weights", "id"), SHOWN_ROWS):
            detail = f", {row['detail']}" if row["detail"] else ""
            lines.append(f"block {row['block']}: weights on {row['vector']}: {row['code']}{detail}")
        return lines or ["empty"]

    async def summary(self, now: float) -> str | None:
        """The daily summary if it is due (`summary_due`); what it tells is then told."""

        def work(db: sqlite3.Connection) -> str | None:
            db.execute("INSERT OR IGNORE INTO summaries VALUES (1, ?, 0, 0)", (day_before(now),))
            last = db.execute("SELECT * FROM summaries").fetchone()
            if (day := summary_due(now, last["day"])) is None:
                return None
            sql = """SELECT COUNT(*) AS steps, COALESCE(SUM(amount_rao), 0) AS rao, MAX(epoch_block) AS last FROM steps
                WHERE state = 'applied' AND action = 'transfer' AND epoch_block > ?"""
            swept = db.execute(sql, (last["epoch_block"],)).fetchone()
            sql = """SELECT COALESCE(SUM(code != 'weights_committed'), 0) AS tries,
                COALESCE(SUM(code = 'weights_set'), 0) AS ok, MAX(id) AS last FROM weights WHERE id > ?"""
            burns = db.execute(sql, (last["burn_id"],)).fetchone()
            values = day, swept["last"] or last["epoch_block"], burns["last"] or last["burn_id"]
            db.execute("UPDATE summaries SET day = ?, epoch_block = ?, burn_id = ?", values)
            weights = f"weights set {burns['ok']} times of {burns['tries']} tries"
            return f"{day}, 00:00 UTC: {swept['steps']} transfers, {alpha(swept['rao'])}; {weights}"

        return await self._db.write(work)


def _baseline(db: sqlite3.Connection) -> int | None:
    row = db.execute("SELECT rao FROM baselines ORDER BY id DESC LIMIT 1").fetchone()
    return row["rao"] if row else None


def _add_baseline(db: sqlite3.Connection, block: int, rao: int, reason: str) -> None:
    insert(db, "baselines", [{"block": block, "rao": rao, "reason": reason}])
    log.warning("baseline: %d rao on the miner hotkey are not swept (%s)", rao, reason)


def _put(db: sqlite3.Connection, step: Step) -> None:
    insert(db, "steps", [step], update="id")


def _close(db: sqlite3.Connection, epoch_block: int) -> bool:
    sql = """UPDATE epochs SET state = 'swept' WHERE epoch_block = ? AND NOT EXISTS
        (SELECT 1 FROM steps s WHERE s.epoch_block = epochs.epoch_block AND s.state IN ('planned', 'sent'))"""
    return bool(db.execute(sql, (epoch_block,)).rowcount)


def alpha(rao: int) -> str:
    """Rao as people read them: `1.500000000 alpha`."""
    return f"{'-' if rao < 0 else ''}{abs(rao) // 10**9}.{abs(rao) % 10**9:09d} alpha"
