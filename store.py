"""The validator's memory: a jobs database and a pool-events database in SQLite, and the one way to open either.

What is written follows one rule: a method is a transaction. A round's result, the reputations, and the days that follow
from it are one such method, so they are applied exactly once, whatever crashes. Everything is keyed by hotkey: uids are
recycled.

    sqlite3 validator.sqlite3 'SELECT hotkey, rank, score FROM scores ORDER BY round_id, rank'    # every score given

Read next: `validator.py`, which writes; the schema below says what each column means.
"""

from __future__ import annotations

import base64
import json
import sqlite3
import zlib
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import astuple, dataclass, fields, replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import aiosqlite

from liquidity.events import Event
from liquidity.executions import Execution, execution_of
from liquidity.replay import Snapshot
from liquidity.rounds import Entrant, RoundResult
from markets.base import MarketGap
from protocol import MAX_QUERY_BYTES, Code, Job, JobSettings, ProtocolError
from runtime.db import StoreError, as_store_errors, connect, transaction, write_lock
from scoring import Standing
from wire.codec import canonical, decode, digest, encode, to_json


class AlreadyFinished(StoreError):
    """A round's result was stored before: it is not applied twice."""


class Pruned(StoreError):
    """A round's evidence was dropped by the rule of `Store.prune`; what came of the round is still there."""


# ---------------------------------------------------------------------------------------------------------------------
# Schema: amounts, scores and fee growth are decimal strings, they do not fit SQLite's 64 bits; JSON is canonical

JOBS_SCHEMA = (
    """
    CREATE TABLE meta (                -- what this database was made with
        key TEXT PRIMARY KEY,
        value TEXT NOT NULL
    ) STRICT;
    CREATE TABLE jobs (
        job_id TEXT PRIMARY KEY,
        vault TEXT NOT NULL,           -- sn_liquidity_manager_address: on a recording OWNER:LOWER:UPPER
        round_seconds INTEGER NOT NULL CHECK (round_seconds > 0),
        settings TEXT NOT NULL,        -- protocol.JobSettings
        live INTEGER NOT NULL DEFAULT 1,
        active INTEGER NOT NULL DEFAULT 1
    ) STRICT;
    CREATE TABLE rounds (
        round_id TEXT PRIMARY KEY,     -- JOB:TYPE:START
        job_id TEXT NOT NULL REFERENCES jobs,
        round_type TEXT NOT NULL CHECK (round_type IN ('evaluation', 'live')),
        start_time INTEGER NOT NULL,   -- nominal, unix seconds of market time, a multiple of the length
        end_time INTEGER NOT NULL,
        settings TEXT NOT NULL,        -- the job's at the start
        rules_version INTEGER NOT NULL,
        opening_block INTEGER,
        opening_hash TEXT,
        vault_state TEXT,              -- recording.Snapshot without ticks
        close_block INTEGER,
        code TEXT,                     -- NULL while it runs; then protocol.Code
        detail TEXT NOT NULL DEFAULT '',
        winner TEXT,                   -- hotkey
        asked INTEGER NOT NULL DEFAULT 0,
        summary TEXT,                  -- lines of keep, hold and best; number of swaps
        seal TEXT,                     -- evidence.py: digest of each part of the evidence, signed by the validator
        UNIQUE (job_id, round_type, start_time)
    ) STRICT;
    CREATE TABLE predictions (         -- one row an ask
        round_id TEXT NOT NULL REFERENCES rounds,
        hotkey TEXT NOT NULL,
        due_block INTEGER NOT NULL,    -- the checkpoint; the first ask of a round has the opening
        query BLOB NOT NULL,           -- the bytes that were sent, zlib
        answer BLOB NOT NULL,          -- the bytes that came back, empty if none did
        signature TEXT NOT NULL,       -- the miner's, over answer and request; empty if there was none
        nonce INTEGER NOT NULL,        -- of the request, nanoseconds
        code TEXT NOT NULL,
        detail TEXT NOT NULL,
        effective_block INTEGER,       -- an accepted answer acts before this block's first event
        response_seconds REAL NOT NULL,
        PRIMARY KEY (round_id, hotkey, due_block)
    ) STRICT;
    CREATE TABLE entrants (            -- who accepted the first ask
        round_id TEXT NOT NULL REFERENCES rounds,
        hotkey TEXT NOT NULL,
        registered_block INTEGER NOT NULL,
        combined TEXT NOT NULL,        -- reputation before the round
        PRIMARY KEY (round_id, hotkey)
    ) STRICT;
    CREATE TABLE scores (
        round_id TEXT NOT NULL REFERENCES rounds,
        hotkey TEXT NOT NULL,
        rank INTEGER NOT NULL,
        score TEXT NOT NULL,           -- what counts; the target's own score is in the line's terms
        line TEXT NOT NULL,            -- rounds.Line
        PRIMARY KEY (round_id, hotkey)
    ) STRICT;
    CREATE TABLE miner_scores (        -- reputations
        job_id TEXT NOT NULL REFERENCES jobs,
        hotkey TEXT NOT NULL,
        eval_seed TEXT NOT NULL,
        live_seed TEXT NOT NULL,
        eval_excess TEXT NOT NULL,
        live_excess TEXT NOT NULL,
        evaluations INTEGER NOT NULL,
        lives INTEGER NOT NULL,
        PRIMARY KEY (job_id, hotkey)
    ) STRICT;
    CREATE TABLE miner_participation ( -- UTC days of market time with a ranked round
        job_id TEXT NOT NULL REFERENCES jobs,
        hotkey TEXT NOT NULL,
        day INTEGER NOT NULL,          -- unix seconds // 86400
        PRIMARY KEY (job_id, hotkey, day)
    ) STRICT;
    CREATE TABLE live_executions (
        round_id TEXT NOT NULL REFERENCES rounds,
        block INTEGER NOT NULL,        -- from which its answer acts
        vault TEXT NOT NULL,
        execution TEXT NOT NULL,       -- market.Execution: what was asked of the market, and what became of it
        PRIMARY KEY (round_id, block)
    ) STRICT;
    CREATE TABLE weights (             -- every attempt to set weights
        id INTEGER PRIMARY KEY,
        market_time INTEGER NOT NULL,
        block INTEGER NOT NULL,        -- the subnet chain's
        vector TEXT NOT NULL,          -- fraction by hotkey, and the burn part
        uids TEXT NOT NULL,            -- fraction by uid, as sent
        code TEXT NOT NULL,
        name TEXT NOT NULL,            -- the chain's name of the error
        detail TEXT NOT NULL,
        next_block INTEGER NOT NULL    -- the next try is due
    ) STRICT;
    CREATE INDEX rounds_by_job ON rounds (job_id, round_type, end_time)
    """,
    """
    -- ended: the end_time of the day's first such round
    ALTER TABLE miner_participation ADD COLUMN ended INTEGER NOT NULL DEFAULT 0
    """,
    """
    CREATE TABLE pruned (              -- rounds whose evidence was dropped; their scores, seals and codes stay
        round_id TEXT PRIMARY KEY REFERENCES rounds,
        before INTEGER NOT NULL        -- what ended by then, market time, was dropped
    ) STRICT;
    CREATE INDEX rounds_by_start ON rounds (start_time, round_id);
    CREATE INDEX rounds_by_code ON rounds (round_type, code)
    """,
)

EVENTS_SCHEMA = (
    """
    CREATE TABLE events (
        pool TEXT NOT NULL,
        block INTEGER NOT NULL,
        log_index INTEGER NOT NULL,
        time INTEGER NOT NULL,
        kind TEXT NOT NULL,
        args TEXT NOT NULL,            -- recording.Event.args: integers as decimal strings
        PRIMARY KEY (pool, block, log_index)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE snapshots (           -- pools before a block's first event
        pool TEXT NOT NULL,
        block INTEGER NOT NULL,
        body BLOB NOT NULL,            -- recording.Snapshot without a vault, canonical JSON, zlib
        PRIMARY KEY (pool, block)
    ) STRICT
    """,
)


@dataclass(frozen=True, slots=True)
class Prediction:
    """One ask and what came of it; the columns of `predictions`."""

    round_id: str
    hotkey: str
    due_block: int
    query: bytes
    answer: bytes
    signature: str
    nonce: int
    code: Code
    detail: str
    effective_block: int | None
    response_seconds: float


@dataclass(frozen=True, slots=True)
class Begun:
    """A round that began and has not ended; the columns of `rounds`."""

    round_id: str
    job_id: str
    start_time: int
    end_time: int
    settings: str
    rules_version: int


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt to set weights: at which block of the subnet's chain, how it ended, what was sent, the next try."""

    block: int
    code: Code
    uids: dict[int, Decimal]
    next_block: int


@dataclass(frozen=True, slots=True)
class Reputation:
    """A miner's standing in one job, and how many rounds made it."""

    standing: Standing
    evaluations: int = 0
    lives: int = 0


class Store:
    """The validator's memory. Every method is one transaction: applied as a whole or not at all, whatever crashes."""

    def __init__(self, jobs: aiosqlite.Connection, events: aiosqlite.Connection, path: Path):
        self._jobs, self._events, self._path = jobs, events, path

    @classmethod
    @asynccontextmanager
    async def open(cls, path: str | Path) -> AsyncIterator[Store]:
        """Open the jobs database at `path` and the pool-events database beside it (`NAME.events.sqlite3`)."""
        path = Path(path)
        async with (
            connect(path, JOBS_SCHEMA) as jobs,
            connect(path.with_name(f"{path.stem}.events.sqlite3"), EVENTS_SCHEMA) as events,
        ):
            yield cls(jobs, events, path)

    # -- identity and jobs

    async def claim(self, key: str, value: str) -> None:
        """Note what this database belongs to. Raises `StoreError` if it already belongs to something else."""
        async with self._transaction(self._jobs):
            await self._jobs.execute("INSERT OR IGNORE INTO meta VALUES (?, ?)", (key, value))
        found = await self._value("SELECT value FROM meta WHERE key = ?", key)
        if found != value:
            raise StoreError(f"this database was made for {key} {found}, not {value}; choose another --dir or --db")

    async def remember(self, key: str, value: str) -> None:
        """Note something for later, in place of what was noted under this name."""
        async with self._transaction(self._jobs):
            await self._jobs.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    async def recall(self, key: str) -> str | None:
        """What was noted under this name."""
        return await self._value("SELECT value FROM meta WHERE key = ?", key)

    async def put_job(self, job: Job) -> None:
        """Add a job, or change its rules from the next round on."""
        async with self._transaction(self._jobs):
            await self._jobs.execute(
                "INSERT INTO jobs VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET vault = excluded.vault,"
                " round_seconds = excluded.round_seconds, settings = excluded.settings, live = excluded.live,"
                " active = excluded.active",
                (job.job_id, job.vault, job.round_seconds, encode(job.settings).decode(), job.live, job.active),
            )

    async def jobs(self) -> list[Job]:
        """All jobs, active or not, by id."""
        return [_job(row) for row in await self._rows("SELECT * FROM jobs ORDER BY job_id")]

    # -- a round

    async def begin_round(self, round_id: str, job: Job, round_type: str, start_time: int, rules_version: int) -> bool:
        """Note that a round begins, or goes on after a crash. Returns False if it has finished."""
        async with self._transaction(self._jobs):
            await self._jobs.execute(
                "INSERT OR IGNORE INTO rounds (round_id, job_id, round_type, start_time, end_time, settings,"
                " rules_version) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    round_id,
                    job.job_id,
                    round_type,
                    start_time,
                    start_time + job.round_seconds,
                    encode(job.settings).decode(),
                    rules_version,
                ),
            )
        return await self._value("SELECT code IS NULL FROM rounds WHERE round_id = ?", round_id) == 1

    async def add_predictions(self, predictions: Iterable[Prediction], entrants: Iterable[Entrant] = ()) -> None:
        """A checkpoint's asks with their answers, and at the first one who takes part."""
        rows = [astuple(replace(p, query=zlib.compress(p.query, 1))) for p in predictions]
        async with self._transaction(self._jobs):
            await self._jobs.executemany(f"INSERT INTO predictions VALUES ({', '.join('?' * 11)})", rows)
            for entrant in entrants:
                await self._jobs.execute(
                    "INSERT INTO entrants VALUES (?, ?, ?, ?)",
                    (rows[0][0], entrant.hotkey, entrant.registered_block, str(entrant.combined)),
                )

    async def open_window(self, round_id: str, pool: str, snapshot: Snapshot) -> None:
        """The opening: pool (shared by all jobs on it) and vault before its first event.

        Raises:
            MarketGap: as `add_events`.
        """
        body = encode(replace(snapshot, vault=(), idle0=0, idle1=0, vault_owner=""))
        async with self._transaction(self._events):
            found = await self._events.execute_fetchall(
                "SELECT body FROM snapshots WHERE pool = ? AND block = ?", (pool, snapshot.block)
            )
            for row in found:
                known = _as_json(_inflated(row["body"]))  # older ones name the vault that came first
                if not isinstance(known, dict) or known | {"vault_owner": ""} != json.loads(body):
                    await self._keep_evidence({snapshot.block})
            await self._events.execute(
                "INSERT OR REPLACE INTO snapshots VALUES (?, ?, ?)", (pool, snapshot.block, zlib.compress(body))
            )
        async with self._transaction(self._jobs):
            await self._jobs.execute(
                "UPDATE rounds SET opening_block = ?, opening_hash = ?, vault_state = ? WHERE round_id = ?",
                (snapshot.block, snapshot.block_hash, encode(replace(snapshot, ticks=())).decode(), round_id),
            )

    async def add_events(self, pool: str, first: int, last: int, events: Iterable[Event]) -> None:
        """The events of blocks `first` to `last`, in place of any others there: rounds of several jobs share them.

        What a reorganisation took back after it was believed must not stand beside what came instead. But a finished
        round stays what it was scored from: it must not be given another's past, so then it is the caller's round that
        cannot go on.

        Raises:
            MarketGap: a finished round's evidence would change; nothing was stored.
        """
        rows = {
            (pool, e.block, e.log_index, e.time, e.kind, canonical([str(arg) for arg in e.args]).decode())
            for e in events
        }
        async with self._transaction(self._events):
            found = await self._events.execute_fetchall(
                "SELECT * FROM events WHERE pool = ? AND block BETWEEN ? AND ?", (pool, first, last)
            )
            stored = set(map(tuple, found))
            if rows == stored:
                return
            await self._keep_evidence({row[1] for row in rows ^ stored})
            await self._events.executemany(
                "DELETE FROM events WHERE pool = ? AND block = ? AND log_index = ?", [row[:3] for row in stored - rows]
            )
            await self._events.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?)", sorted(rows - stored))

    async def _keep_evidence(self, blocks: set[int]) -> None:
        """Raises `MarketGap` where what is known of these blocks is evidence of a finished round."""
        rounds = await self._rows(
            "SELECT round_id, opening_block, close_block FROM rounds WHERE code IS NOT NULL AND close_block > ?"
            " AND opening_block <= ? AND round_id NOT IN (SELECT round_id FROM pruned) ORDER BY start_time, round_id",
            (min(blocks), max(blocks)),
        )
        for row in rounds:
            if changed := sorted(blocks & set(range(row["opening_block"], row["close_block"]))):
                raise MarketGap(
                    f"block {changed[0]} is not what round {row['round_id']} was scored from: the chain was reorganised"
                    " deeper than its blocks were confirmed; raise --confirmations"
                )

    async def finish_round(
        self,
        round_id: str,
        job_id: str,
        result: RoundResult,
        close_block: int | None,
        asked: int,
        standings: Mapping[str, Standing],
        day: int,
    ) -> None:
        """A round's result with all that follows from it, exactly once.

        Args:
            round_id, job_id: which.
            result: from `rounds.play`, or a void or skipped round's.
            close_block: None if it never got there.
            asked: how many miners were asked first.
            standings: the new reputations of the ranked miners.
            day: UTC day of market time at the close; the ranked miners took part on it.

        Raises:
            StoreError: it was finished before.
        """
        round_type = round_id.split(":")[-2]
        column = "evaluations" if round_type == "evaluation" else "lives"
        summary = {name: to_json(line) for name in ("keep", "hold", "best") if (line := getattr(result, name))}
        async with self._transaction(self._jobs):
            cursor = await self._jobs.execute(
                "UPDATE rounds SET code = ?, detail = ?, close_block = ?, winner = ?, asked = ?, summary = ?"
                " WHERE round_id = ? AND code IS NULL",
                (
                    result.code,
                    result.detail,
                    close_block,
                    result.lines[0].name if result.lines else None,
                    asked,
                    canonical(summary | {"swaps": result.swaps}).decode(),
                    round_id,
                ),
            )
            if cursor.rowcount != 1:
                raise AlreadyFinished(f"round {round_id} was finished before; its scores are not applied twice")
            for line in result.lines:
                await self._jobs.execute(
                    "INSERT INTO scores VALUES (?, ?, ?, ?, ?)",
                    (round_id, line.name, line.rank, str(line.score), canonical(to_json(line)).decode()),
                )
                await self._jobs.execute(
                    "INSERT OR IGNORE INTO miner_participation SELECT job_id, ?, ?, end_time FROM rounds"
                    " WHERE round_id = ?",
                    (line.name, day, round_id),
                )
            for hotkey, standing in standings.items():
                await self._jobs.execute(
                    "INSERT INTO miner_scores VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
                    " eval_seed = excluded.eval_seed, live_seed = excluded.live_seed,"
                    f" eval_excess = excluded.eval_excess, live_excess = excluded.live_excess, {column} = {column} + 1",
                    (
                        job_id,
                        hotkey,
                        str(standing.eval_seed),
                        str(standing.live_seed),
                        str(standing.eval_excess),
                        str(standing.live_excess),
                        int(round_type == "evaluation"),
                        int(round_type == "live"),
                    ),
                )

    async def add_execution(self, round_id: str, block: int, execution: Execution) -> None:
        """What became of a live decision; `block` is where its answer acts from, as the ask says."""
        async with self._transaction(self._jobs):
            await self._jobs.execute(
                "INSERT INTO live_executions VALUES (?, ?, ?, ?)",
                (round_id, block, execution.vault, canonical(to_json(execution)).decode()),
            )

    async def executions_of(self, round_id: str) -> list[Execution]:
        """What became of a round's decisions that change something, in order."""
        rows = await self._rows("SELECT execution FROM live_executions WHERE round_id = ? ORDER BY block", (round_id,))
        return [execution_of(json.loads(row["execution"])) for row in rows]

    async def executions(self) -> list[dict]:
        """All live decisions carried out, in order: in one block by the round's end and job."""
        rows = await self._rows(
            "SELECT execution FROM live_executions JOIN rounds USING (round_id) ORDER BY block, end_time, job_id"
        )
        return [json.loads(row["execution"]) for row in rows]

    async def was_executed(self, round_id: str, block: int) -> bool:
        """Whether a round's decision for this block was carried out."""
        return bool(
            await self._value("SELECT 1 FROM live_executions WHERE round_id = ? AND block = ?", round_id, block)
        )

    async def add_weights(
        self,
        market_time: int,
        block: int,
        vector: Mapping[str, Decimal],
        uids: Mapping[int, Decimal],
        code: Code,
        name: str,
        detail: str,
        next_block: int,
    ) -> None:
        """An attempt to set weights and how it ended."""
        async with self._transaction(self._jobs):
            await self._jobs.execute(
                "INSERT INTO weights (market_time, block, vector, uids, code, name, detail, next_block)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    market_time,
                    block,
                    canonical({key: str(value) for key, value in vector.items()}).decode(),
                    canonical({str(key): str(value) for key, value in uids.items()}).decode(),
                    code,
                    name,
                    detail,
                    next_block,
                ),
            )

    async def add_seal(self, round_id: str, seal: dict) -> None:
        """The validator's seal on a finished round's evidence."""
        async with self._transaction(self._jobs):
            await self._jobs.execute(
                "UPDATE rounds SET seal = ? WHERE round_id = ?", (canonical(seal).decode(), round_id)
            )

    async def prune(self, before: int) -> int:
        """Drop the evidence of finished, sealed rounds that ended by then; what came of them stays.

        Dropped: queries, answers and signatures, entrants, vault, and the events and snapshots that no other round
        needs. Kept: rounds with seals, every score with its terms, the codes of all asks, reputations, days, executions
        and weights. Each round is one transaction, so a crash leaves whole rounds. Freed space is used again: a file
        stops growing but for what is kept, it does not shrink.

        Args:
            before: market time, unix seconds.

        Returns:
            How many rounds were pruned.
        """
        waiting = "NOT EXISTS (SELECT 1 FROM pruned WHERE pruned.round_id = rounds.round_id)"
        rows = await self._rows(
            f"SELECT round_id FROM rounds WHERE end_time <= ? AND {waiting} AND code IS NOT NULL AND seal IS NOT NULL"
            " ORDER BY start_time, round_id",
            (before,),
        )
        for (round_id,) in rows:
            async with self._transaction(self._jobs):
                for sql in (
                    "UPDATE predictions SET query = x'', answer = x'', signature = '' WHERE round_id = ?",
                    "DELETE FROM entrants WHERE round_id = ?",
                    "UPDATE rounds SET vault_state = NULL WHERE round_id = ?",
                ):
                    await self._jobs.execute(sql, (round_id,))
                await self._jobs.execute("INSERT INTO pruned VALUES (?, ?)", (round_id, before))
        if oldest := await self._value(f"SELECT min(opening_block) FROM rounds WHERE {waiting}"):
            async with self._transaction(self._events):
                for table in ("events", "snapshots"):
                    await self._events.execute(f"DELETE FROM {table} WHERE block < ?", (oldest,))
        return len(rows)

    # -- questions

    async def finished(self, unsealed_only: bool = False) -> list[str]:
        """Ids of finished rounds whose evidence is there, oldest first."""
        which = " AND seal IS NULL" if unsealed_only else ""
        rows = await self._rows(
            f"SELECT round_id FROM rounds WHERE code IS NOT NULL{which} AND round_id NOT IN"
            " (SELECT round_id FROM pruned) ORDER BY start_time, round_id"
        )
        return [row["round_id"] for row in rows]

    async def evidence(self, round_id: str) -> dict:
        """A finished round as `evidence.py` describes it; damaged columns come as they are, for the audit to name.

        Raises:
            Pruned: its evidence was dropped.
            StoreError: there is no such round, or it has not finished.
        """
        rows = await self._rows("SELECT * FROM rounds WHERE round_id = ? AND code IS NOT NULL", (round_id,))
        if not rows:
            raise StoreError(
                f"round {round_id}: not in this database, or not finished; `export` without a round lists them"
            )
        if before := await self._value("SELECT before FROM pruned WHERE round_id = ?", round_id):
            day = datetime.fromtimestamp(before, UTC)
            raise Pruned(f"round {round_id}: was pruned with all that ended by {day:%Y-%m-%d %H:%M} UTC; scores remain")
        row = dict(rows[0])
        meta = {r["key"]: r["value"] for r in await self._rows("SELECT * FROM meta")}
        summary, vault_state = _as_json(row.pop("summary")), _as_json(row.pop("vault_state"))
        seal, rules_version = row.pop("seal"), row.pop("rules_version")
        swaps = summary.pop("swaps", None) if isinstance(summary, dict) else None
        snapshot, events = vault_state, []
        if isinstance(vault_state, dict):
            found = await self._event_rows(
                "SELECT body FROM snapshots WHERE pool = ? AND block = ?", (meta.get("pool"), row["opening_block"])
            )
            pool = _as_json(_inflated(found[0]["body"])) if found else None
            snapshot = vault_state | {"ticks": pool.get("ticks") if isinstance(pool, dict) else pool}
        if row["close_block"]:
            events = [
                [str(e["block"]), str(e["log_index"]), str(e["time"]), e["kind"], _as_json(e["args"])]
                for e in await self._event_rows(
                    "SELECT * FROM events WHERE pool = ? AND block >= ? AND block < ? ORDER BY block, log_index",
                    (meta.get("pool"), row["opening_block"], row["close_block"]),
                )
            ]
        asks = [
            dict(ask)
            | {
                "query": base64.b64encode(_inflated(ask["query"])).decode(),
                "answer": base64.b64encode(ask["answer"]).decode(),
                "nonce": str(ask["nonce"]),
                "response_seconds": f"{ask['response_seconds']:.6f}",
            }
            for ask in await self._rows(
                "SELECT * FROM predictions WHERE round_id = ? ORDER BY due_block, hotkey", (round_id,)
            )
        ]
        entrants = [
            dict(entrant)
            for entrant in await self._rows("SELECT * FROM entrants WHERE round_id = ? ORDER BY hotkey", (round_id,))
        ]
        scores = await self._rows(
            "SELECT hotkey, rank, score, line FROM scores WHERE round_id = ? ORDER BY rank", (round_id,)
        )
        executions = await self._rows(
            "SELECT block, vault, execution FROM live_executions WHERE round_id = ? ORDER BY block", (round_id,)
        )
        return {
            "format": "alm-round/1",
            "rules_version": rules_version,
            **{name: meta.get(name) for name in ("validator", "market", "pool")},
            "round": row | {"settings": _as_json(row["settings"]), "swaps": swaps},
            "snapshot": snapshot,
            "events": events,
            "asks": asks,
            "entrants": entrants,
            "executions": [dict(e) | {"execution": _as_json(e["execution"])} for e in executions],
            "scores": [dict(s) | {"line": _as_json(s["line"])} for s in scores],
            "baselines": summary,
            "seal": _as_json(seal),
        }

    async def interrupted(self) -> list[Begun]:
        """Rounds that began and have not ended, oldest first."""
        columns = ", ".join(field.name for field in fields(Begun))
        rows = await self._rows(f"SELECT {columns} FROM rounds WHERE code IS NULL ORDER BY start_time, round_id")
        return [Begun(*row) for row in rows]

    async def predictions(self, round_id: str) -> dict[int, dict[str, Prediction]]:
        """A round's asks so far, by due block and hotkey."""
        asks: dict[int, dict[str, Prediction]] = {}
        for row in await self._rows("SELECT * FROM predictions WHERE round_id = ? ORDER BY hotkey", (round_id,)):
            ask = Prediction(*row)
            ask = replace(ask, query=zlib.decompress(ask.query), code=Code(ask.code))
            asks.setdefault(ask.due_block, {})[ask.hotkey] = ask
        return asks

    async def shown(self, round_id: str) -> list[bytes]:
        """A query of each of a round's due blocks: all of one show the same block."""
        rows = await self._rows("SELECT query FROM predictions WHERE round_id = ? GROUP BY due_block", (round_id,))
        return [zlib.decompress(row["query"]) for row in rows]

    async def entrants(self, round_id: str) -> list[Entrant]:
        """Who takes part in a round, by hotkey."""
        rows = await self._rows("SELECT * FROM entrants WHERE round_id = ? ORDER BY hotkey", (round_id,))
        return [Entrant(row["hotkey"], row["registered_block"], Decimal(row["combined"])) for row in rows]

    async def newest_end(self, job_id: str) -> int | None:
        """Nominal end of a job's newest round, finished or not."""
        return await self._value("SELECT max(end_time) FROM rounds WHERE job_id = ?", job_id)

    async def resume_time(self, lead_seconds: int) -> int | None:
        """Market time to go on from: `lead_seconds` before the oldest interrupted round, else before the next one."""
        sql = "SELECT coalesce(min(CASE WHEN code IS NULL THEN start_time END), max(end_time)) - ? FROM rounds"
        return await self._value(sql, lead_seconds)

    async def last_end(self) -> int | None:
        """When the newest round ended, market time."""
        return await self._value("SELECT max(end_time) FROM rounds WHERE code IS NOT NULL")

    async def reputations(self, job_id: str) -> dict[str, Reputation]:
        """By hotkey, of one job."""
        rows = await self._rows("SELECT * FROM miner_scores WHERE job_id = ?", (job_id,))
        return {
            row["hotkey"]: Reputation(
                Standing(*(Decimal(row[name]) for name in ("eval_seed", "live_seed", "eval_excess", "live_excess"))),
                row["evaluations"],
                row["lives"],
            )
            for row in rows
        }

    # the next four take the time for which they are asked: a round that is played again after a crash must not see what
    # followed it

    async def days(self, job_id: str, hotkey: str, by: int) -> list[int]:
        """UTC days on which a miner was ranked in a job, in rounds that ended by then."""
        sql = "SELECT day FROM miner_participation WHERE job_id = ? AND hotkey = ? AND ended <= ? ORDER BY day"
        return [row["day"] for row in await self._rows(sql, (job_id, hotkey, by))]

    async def last_winner(self, job_id: str, by: int) -> str | None:
        """Hotkey of the winner of the newest non-void evaluation that ended by then; None if it had none."""
        return await self._value(
            "SELECT winner FROM rounds WHERE job_id = ? AND round_type = 'evaluation' AND end_time <= ?"
            " AND code IN ('scored', 'nobody_ranked') ORDER BY end_time DESC LIMIT 1",
            job_id,
            by,
        )

    async def ranked_since(self, job_id: str, since: int, by: int) -> tuple[int, dict[str, int]]:
        """How many non-void evaluations of a job ended after `since`, and in how many of them each miner ranked."""
        ended = (
            "job_id = ? AND round_type = 'evaluation' AND end_time > ? AND end_time <= ?"
            " AND code IN ('scored', 'nobody_ranked')"
        )
        finished = await self._value(f"SELECT count(*) FROM rounds WHERE {ended}", job_id, since, by)
        rows = await self._rows(
            f"SELECT hotkey, count(*) AS n FROM scores JOIN rounds USING (round_id) WHERE {ended} GROUP BY hotkey",
            (job_id, since, by),
        )
        return finished, {row["hotkey"]: row["n"] for row in rows}

    async def has_scored(self, by: int) -> bool:
        """Whether any round that ended by then was scored."""
        return bool(await self._value("SELECT 1 FROM rounds WHERE code = 'scored' AND end_time <= ? LIMIT 1", by))

    async def last_weights(self) -> Attempt | None:
        """The newest attempt to set weights."""
        rows = await self._rows("SELECT block, code, uids, next_block FROM weights ORDER BY id DESC LIMIT 1")
        for row in rows:
            uids = {int(uid): Decimal(part) for uid, part in json.loads(row["uids"]).items()}
            return Attempt(row["block"], Code(row["code"]), uids, row["next_block"])
        return None

    async def weights_noted(self) -> int:
        """The subnet chain's block of the newest attempt that the chain took; 0 before the first."""
        taken = "('weights_set', 'weights_committed')"
        return await self._value(f"SELECT max(block) FROM weights WHERE code IN {taken}") or 0

    async def counts(self, since: int = 0) -> dict[str, int]:
        """How many rounds that end after a time ended with which code, for summaries."""
        rows = await self._rows(
            "SELECT round_type || ' ' || coalesce(code, 'running') AS what, count(*) AS n FROM rounds"
            " WHERE end_time > ? GROUP BY what ORDER BY what",
            (since,),
        )
        return {row["what"]: row["n"] for row in rows}

    # -- questions for receipts, see `receipts.py`

    async def asked_rounds(self, hotkey: str, after: int, scan: int) -> tuple[list[tuple[int, str]], int | None]:
        """Sealed rounds, not pruned, in which a miner was asked, in the order in which they began, a part at a time.

        Args:
            after: 0, or where the part before ended.
            scan: rounds to look through.

        Returns:
            (position, round_id) of each, and where this part ends; None when nothing comes after it.
        """
        rows = await self._rows(
            "SELECT rowid AS position, round_id, seal IS NOT NULL AND EXISTS (SELECT 1 FROM predictions p"
            " WHERE p.round_id = rounds.round_id AND hotkey = ?)"
            " AND round_id NOT IN (SELECT round_id FROM pruned) AS asked"
            " FROM rounds WHERE rowid > ? ORDER BY rowid LIMIT ?",
            (hotkey, after, scan),
        )
        found = [(row["position"], row["round_id"]) for row in rows if row["asked"]]
        return found, rows[-1]["position"] if len(rows) == scan else None

    async def evidence_about(self, round_id: str, hotkey: str) -> tuple[dict, str] | None:
        """What a sealed round's evidence says of one miner that was asked, without reading the rest.

        Returns:
            The evidence with this miner's asks, entrant and score; of other scores only their number; without snapshot,
            events and seal. And the sha256 of the sealed digests. None if there is no such ask, or it was pruned.
        """
        rows = await self._rows(
            "SELECT *, json_extract(seal, '$.digests') AS digests FROM rounds WHERE round_id = ? AND seal IS NOT NULL"
            " AND round_id NOT IN (SELECT round_id FROM pruned)",
            (round_id,),
        )
        asks = await self._rows(
            "SELECT * FROM predictions WHERE round_id = ? AND hotkey = ? ORDER BY due_block", (round_id, hotkey)
        )
        if not rows or not asks:
            return None
        row, meta = rows[0], {r["key"]: r["value"] for r in await self._rows("SELECT * FROM meta")}
        evidence = {
            **{name: meta[name] for name in ("validator", "market", "pool")},
            "rules_version": row["rules_version"],
            "round": dict(row) | {"settings": json.loads(row["settings"])},
            "asks": [
                dict(ask)
                | {
                    "query": base64.b64encode(zlib.decompress(ask["query"])).decode(),
                    "answer": base64.b64encode(ask["answer"]).decode(),
                    "nonce": str(ask["nonce"]),
                    "response_seconds": f"{ask['response_seconds']:.6f}",
                }
                for ask in asks
            ],
            "entrants": [
                dict(entrant)
                for entrant in await self._rows(
                    "SELECT * FROM entrants WHERE round_id = ? AND hotkey = ?", (round_id, hotkey)
                )
            ],
            "scores": [
                {"hotkey": score["hotkey"], "line": score["own"] and json.loads(score["own"])}
                for score in await self._rows(
                    "SELECT hotkey, CASE hotkey WHEN ? THEN line END AS own FROM scores WHERE round_id = ?",
                    (hotkey, round_id),
                )
            ],
            "baselines": json.loads(row["summary"]),
        }
        return evidence, digest(row["digests"].encode())

    async def ranked_ever(self) -> set[str]:
        """Hotkeys that have a reputation in any job."""
        return {row["hotkey"] for row in await self._rows("SELECT DISTINCT hotkey FROM miner_scores")}

    @asynccontextmanager
    async def _transaction(self, db: aiosqlite.Connection) -> AsyncIterator[None]:
        with as_store_errors(self._path):
            async with transaction(db):
                yield

    async def _rows(self, sql: str, parameters: Sequence = ()) -> list[sqlite3.Row]:
        """Read what is committed: on this connection a task would also see what another is about to commit."""
        with as_store_errors(self._path):
            async with write_lock(self._jobs):
                return await self._jobs.execute_fetchall(sql, parameters)

    async def _event_rows(self, sql: str, parameters: Sequence) -> list[sqlite3.Row]:
        with as_store_errors(self._path):
            async with write_lock(self._events):
                return await self._events.execute_fetchall(sql, parameters)

    async def _value(self, sql: str, *parameters):
        rows = await self._rows(sql, parameters)
        return rows[0][0] if rows else None


def _job(row: sqlite3.Row) -> Job:
    try:
        settings = decode(JobSettings, row["settings"].encode(), MAX_QUERY_BYTES)
    except ProtocolError as error:
        raise StoreError(f"job {row['job_id']}: {error.detail}; correct its row in the table jobs") from error
    return Job(row["job_id"], row["vault"], row["round_seconds"], settings, bool(row["live"]), bool(row["active"]))


def _as_json(text: str | bytes | None):
    """What a column holds; text that is not JSON as it is."""
    try:
        return None if text is None else json.loads(text)
    except (ValueError, RecursionError):
        return text if isinstance(text, str) else text.decode("ascii", "backslashreplace")


def _inflated(blob: bytes) -> bytes:
    """What a compressed column holds; bytes that were not compressed as they are."""
    try:
        return zlib.decompress(blob)
    except zlib.error:
        return blob
