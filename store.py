"""The validator's memory: a jobs database and a pool-events database in SQLite.

What is written follows one rule: a method is a transaction. A round's result, the reputations, and the days that follow
from it are one such method: applied exactly once, whatever crashes. Everything is keyed by hotkey: uids are recycled.

    sqlite3 validator.sqlite3 'SELECT hotkey, rank, score FROM scores ORDER BY round_id, rank'    # every score given

Read first: `runtime/tables.py`, which says what each column means. Read next: `validator.py`, which writes.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import zlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, astuple, dataclass, fields, replace
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from liquidity.events import Event
from liquidity.executions import Execution, execution_of
from liquidity.replay import Snapshot
from markets.base import MarketGap
from protocol import DECIMAL_TEXT, MAX_QUERY_BYTES, Code, Entrant, Job, JobSettings, ProtocolError, RoundResult
from runtime.db import Database, StoreError, as_json, as_store_errors, connect, inflated, insert
from runtime.tables import EVENTS_SCHEMA, JOBS_SCHEMA, events_of
from scoring import Standing
from wire.codec import canonical, decode, encode, to_json

T = TypeVar("T")
LEAST_ROUND_SECONDS, MOST_ROUND_SECONDS = 60, 86_400
KEPT = "round_id NOT IN (SELECT round_id FROM pruned)"
LIQUIDITY = {"liquidity": JobSettings}  # by mechanism, what its jobs are set up with
EVALUATED = "job_id = ? AND round_type = 'evaluation' AND code IN ('scored', 'nobody_ranked')"
_settings = lru_cache(decode)  # jobs are looked at every minute, and hardly ever change

log = logging.getLogger("validator")


class AlreadyFinished(StoreError):
    """A round's result was stored before: it is not applied twice."""


# ---------------------------------------------------------------------------------------------------------------------
# Rows


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
    """A round that began; the columns of `rounds`."""

    round_id: str
    job_id: str
    round_type: str
    start_time: int
    end_time: int
    settings: str
    rules_version: int
    mechanism: str


@dataclass(frozen=True, slots=True)
class Opened:
    """What is stored of a round that runs: by which rules, its asks by due block and hotkey, and who takes part."""

    rules_version: int
    predictions: dict[int, dict[str, Prediction]]
    entrants: list[Entrant]


@dataclass(frozen=True, slots=True)
class Reputation:
    """A miner's standing in one job, and how many rounds made it."""

    standing: Standing
    evaluations: int = 0
    lives: int = 0


class Store:
    """Every method is one transaction, or two where it says so, in one call into the database's thread."""

    def __init__(self, db: Database, path: Path, settings: Mapping[str, type] = LIQUIDITY):
        self._db, self._path, self._settings = db, path, settings
        self.wrong: dict[str, str] = {}  # by id, why a job's row cannot be read: it is off

    @classmethod
    @asynccontextmanager
    async def open(cls, path: str | Path, settings: Mapping[str, type] = LIQUIDITY) -> AsyncIterator[Store]:
        """Open the jobs database at `path`, and the pool-events database (`NAME.events.sqlite3`) beside it."""
        path = Path(path)
        async with connect(path, JOBS_SCHEMA) as db:
            await db.attach("pools", events_of(path), EVENTS_SCHEMA)
            yield cls(db, path, settings)

    # -- identity and jobs

    async def claim(self, key: str, value: str) -> None:
        """Note what this database belongs to. Raises `StoreError` if it already belongs to something else."""

        def work(db: sqlite3.Connection) -> str:
            insert(db, "meta", [{"key": key, "value": value}], "INSERT OR IGNORE")
            return db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()[0]

        if (found := await self.write(work)) != value:
            raise StoreError(f"this database was made for {key} {found}, not {value}; choose another --dir or --db")

    async def remember(self, key: str, value: str) -> None:
        """Note something for later, in place of what was noted under this name."""
        await self.write(lambda db: insert(db, "meta", [{"key": key, "value": value}], "INSERT OR REPLACE"))

    async def recall(self, key: str) -> str | None:
        """What was noted under this name."""
        return await self.value("SELECT value FROM meta WHERE key = ?", key)

    async def put_job(self, job: Job) -> None:
        """Add a job, or change its rules from the next round on."""
        row = replace(job, settings=encode(job.settings).decode())
        await self.write(lambda db: insert(db, "jobs", [row], update="job_id"))

    async def jobs(self) -> list[Job]:
        """All jobs that can be read, active or not, by id; `wrong` names the others, which are off."""
        good, wrong = [], {}
        for row in map(dict, await self.rows("SELECT * FROM jobs ORDER BY job_id")):
            try:
                good.append(self._job(row))
            except ProtocolError as error:
                wrong[row["job_id"]] = f"{error.detail}; correct it: python validator.py jobs set {row['job_id']} ..."
        for job_id in [job_id for job_id in wrong if wrong[job_id] != self.wrong.get(job_id)]:
            log.error("job %s is off: %s", job_id, wrong[job_id])
        self.wrong = wrong
        return good

    def _job(self, row: dict[str, Any]) -> Job:
        if row["mechanism"] not in self._settings:
            raise ProtocolError(Code.MALFORMED, f"there is no mechanism {row['mechanism']!r} in this program")
        if not LEAST_ROUND_SECONDS <= row["round_seconds"] <= MOST_ROUND_SECONDS:
            known = f"{LEAST_ROUND_SECONDS} to {MOST_ROUND_SECONDS}"
            raise ProtocolError(Code.MALFORMED, f"rounds of {row['round_seconds']} s: {known} are possible")
        settings = _settings(self._settings[row["mechanism"]], row["settings"].encode(), MAX_QUERY_BYTES)
        return Job(**row | {"settings": settings, "live": bool(row["live"]), "active": bool(row["active"])})

    async def mechanism_shares(self) -> dict[str, Decimal]:
        """Each mechanism's part of all weights, relative to the others; of those that have jobs."""
        sql = "SELECT DISTINCT mechanism, coalesce(mechanism_share, '1') FROM jobs LEFT JOIN mechanisms"
        shares = dict(map(tuple, await self.rows(f"{sql} ON name = mechanism ORDER BY mechanism")))
        shares = {name: share for name, share in shares.items() if name in self._settings}
        for name, share in shares.items():
            if not DECIMAL_TEXT.fullmatch(share):
                fix = "write a decimal from 0 up into its row of the table mechanisms"
                raise StoreError(f"mechanism {name}: its share is {share!r}; {fix}")
        return {name: Decimal(share) for name, share in shares.items()}

    # -- a round

    async def begin_round(
        self, round_id: str, job: Job, round_type: str, start_time: int, rules_version: int
    ) -> Opened | None:
        """Note that a round begins by these rules, or goes on by its own; what is stored, None if it has finished."""
        end_time, settings = start_time + job.round_seconds, encode(job.settings).decode()
        row = Begun(round_id, job.job_id, round_type, start_time, end_time, settings, rules_version, job.mechanism)

        def work(db: sqlite3.Connection) -> Opened | None:
            insert(db, "rounds", [row], "INSERT OR IGNORE")
            sql = "SELECT rules_version FROM rounds WHERE round_id = ? AND code IS NULL"
            running = db.execute(sql, (round_id,)).fetchone()
            return Opened(*running, _predictions(db, round_id), _entrants(db, round_id)) if running else None

        return await self.write(work)

    async def add_predictions(self, predictions: Sequence[Prediction], entrants: Iterable[Entrant] = ()) -> None:
        """A checkpoint's asks with their answers, and at the first one who takes part."""
        await self.write(_adding_predictions(predictions, entrants))

    async def open_window(self, round_id: str, pool: str, state: Any) -> None:
        """The opening, a pool's ticks once for all jobs. Two transactions. Raises `MarketGap` as `add_events`."""
        pools = isinstance(state, Snapshot)
        body = encode(replace(state, vault=(), idle0=0, idle1=0, vault_owner="")) if pools else b""
        own = encode(replace(state, ticks=()) if pools else state).decode()

        def put_pool(db: sqlite3.Connection) -> None:
            sql = "SELECT body FROM snapshots WHERE pool = ? AND block = ?"
            for (stored,) in db.execute(sql, (pool, state.block)).fetchall():
                known = as_json(inflated(stored))  # older ones name the vault that came first
                if not isinstance(known, dict) or known | {"vault_owner": ""} != json.loads(body):
                    _keep_evidence(db, {state.block})
            row = {"pool": pool, "block": state.block, "body": zlib.compress(body)}
            insert(db, "snapshots", [row], "INSERT OR REPLACE")

        def put_own(db: sqlite3.Connection) -> None:
            sql = "UPDATE rounds SET opening_block = ?, opening_hash = ?, vault_state = ? WHERE round_id = ?"
            db.execute(sql, (state.block, state.block_hash, own, round_id))

        await self.write(*([put_pool] if pools else []), put_own)

    async def add_events(self, pool: str, first: int, last: int, events: Iterable[Event]) -> None:
        """The events of blocks `first` to `last`, in place of any others there: rounds of several jobs share them.

        What a reorganisation took back must not stand beside what came instead. But a finished round stays what it was
        scored from: then it is the caller's that cannot go on. Raises `MarketGap`, and nothing was stored.
        """
        await self.write(_adding_events(pool, first, last, events))

    async def add_block(
        self, pool: str, first: int, last: int, events: Iterable[Event] | None, predictions: Sequence[Prediction]
    ) -> None:
        """What a due block brings: the events up to it, as `add_events`, and then its asks. Two transactions."""
        known = () if events is None else (_adding_events(pool, first, last, events),)
        await self.write(*known, _adding_predictions(predictions))

    async def finish_round(
        self,
        round_id: str,
        job_id: str,
        result: RoundResult,
        close_block: int | None,
        asked: int,
        standings: Mapping[str, Standing],
        day: int,
        settlement: Any = None,
    ) -> dict[str, Reputation]:
        """A round's result with all that follows from it, exactly once; the job's reputations after it.

        Args:
            close_block: None if it never got there.
            asked: how many miners were asked first.
            standings: the new reputations of the ranked miners.
            day: UTC day of market time at the close; the ranked miners took part on it.
            settlement: plain JSON, what the mechanism settled by after the close; None if it needs nothing.

        Raises:
            AlreadyFinished: its result was stored before.
        """
        summary = {name: to_json(line) for name, line in result.baselines.items()}
        row = {
            "code": result.code,
            "detail": result.detail,
            "close_block": close_block,
            "winner": result.lines[0].name if result.lines else None,
            "asked": asked,
            "summary": canonical(summary | {"swaps": result.swaps}).decode(),
            "settlement": None if settlement is None else canonical(settlement).decode(),
        }
        columns = ", ".join(f"{name} = :{name}" for name in row)

        def work(db: sqlite3.Connection) -> dict[str, Reputation]:
            sql = f"UPDATE rounds SET {columns} WHERE round_id = :round_id AND code IS NULL"
            if db.execute(sql, row | {"round_id": round_id}).rowcount != 1:
                raise AlreadyFinished(f"round {round_id} was finished before; its scores are not applied twice")
            _put_lines(db, round_id, result.lines, day)
            _put_standings(db, job_id, standings, evaluation=round_id.split(":")[-2] == "evaluation")
            return _reputations(db, job_id)

        return await self.write(work)

    async def add_execution(self, round_id: str, block: int, execution: Execution) -> None:
        """What became of a live decision; `block` is where its answer acts from, as the ask says."""
        text = canonical(to_json(execution)).decode()
        row = {"round_id": round_id, "block": block, "vault": execution.vault, "execution": text}
        await self.write(lambda db: insert(db, "live_executions", [row]))

    async def executions_of(self, round_id: str) -> list[Execution]:
        """What became of a round's decisions that change something, in order."""
        return await self.read(lambda db: _executions(db, round_id))

    async def executions(self) -> list[dict]:
        """All live decisions carried out, in order: in one block by the round's end and job."""
        sql = "SELECT execution FROM live_executions JOIN rounds USING (round_id) ORDER BY block, end_time, job_id"
        return [json.loads(row["execution"]) for row in await self.rows(sql)]

    async def was_executed(self, round_id: str, block: int) -> bool:
        """Whether a round's decision for this block was carried out."""
        return bool(await self.value("SELECT 1 FROM live_executions WHERE round_id = ? AND block = ?", round_id, block))

    async def add_seal(self, round_id: str, seal: dict) -> None:
        """The validator's seal on a finished round's evidence."""
        text = canonical(seal).decode()
        await self.write(lambda db: db.execute("UPDATE rounds SET seal = ? WHERE round_id = ?", (text, round_id)))

    # -- questions

    async def finished(self, unsealed_only: bool = False) -> list[str]:
        """Ids of finished rounds whose evidence is there, oldest first."""
        which = f"code IS NOT NULL{' AND seal IS NULL' if unsealed_only else ''} AND {KEPT}"
        rows = await self.rows(f"SELECT round_id FROM rounds WHERE {which} ORDER BY start_time, round_id")
        return [row["round_id"] for row in rows]

    async def interrupted(self) -> list[Begun]:
        """Rounds that began and have not ended, oldest first."""
        columns = ", ".join(field.name for field in fields(Begun))
        rows = await self.rows(f"SELECT {columns} FROM rounds WHERE code IS NULL ORDER BY start_time, round_id")
        return [Begun(*row) for row in rows]

    async def predictions(self, round_id: str) -> dict[int, dict[str, Prediction]]:
        """A round's asks so far, by due block and hotkey."""
        return await self.read(lambda db: _predictions(db, round_id))

    async def shown(self, round_id: str) -> list[bytes]:
        """A query of each of a round's due blocks: all of one show the same block."""
        rows = await self.rows("SELECT query FROM predictions WHERE round_id = ? GROUP BY due_block", round_id)
        return [zlib.decompress(row["query"]) for row in rows]

    async def newest_end(self, job_id: str) -> int | None:
        """Nominal end of a job's newest round, finished or not."""
        return await self.value("SELECT max(end_time) FROM rounds WHERE job_id = ?", job_id)

    async def resume_time(self, lead_seconds: int) -> int | None:
        """Market time to go on from: `lead_seconds` before the oldest interrupted round, else before the next one."""
        sql = "SELECT coalesce(min(CASE WHEN code IS NULL THEN start_time END), max(end_time)) - ? FROM rounds"
        return await self.value(sql, lead_seconds)

    async def newest_codes(self, job_id: str, round_type: str, count: int) -> list[tuple[str, str]]:
        """How a job's newest rounds of one type ended, the newest first: code and detail."""
        sql = "SELECT code, detail FROM rounds WHERE job_id = ? AND round_type = ? AND code IS NOT NULL"
        return list(map(tuple, await self.rows(f"{sql} ORDER BY start_time DESC LIMIT ?", job_id, round_type, count)))

    async def last_end(self) -> int | None:
        """When the newest round ended, market time."""
        return await self.value("SELECT max(end_time) FROM rounds WHERE code IS NOT NULL")

    async def reputations(self, job_id: str) -> dict[str, Reputation]:
        """By hotkey, of one job."""
        return await self.read(lambda db: _reputations(db, job_id))

    # the next three take the time they are asked for: a round played again after a crash must not see what followed it

    async def days(self, job_id: str, hotkey: str, by: int) -> list[int]:
        """UTC days on which a miner was ranked in a job, in rounds that ended by then."""
        sql = "SELECT day FROM miner_participation WHERE job_id = ? AND hotkey = ? AND ended <= ? ORDER BY day"
        return [row["day"] for row in await self.rows(sql, job_id, hotkey, by)]

    async def last_winner(self, job_id: str, by: int) -> str | None:
        """Hotkey of the winner of the newest non-void evaluation that ended by then; None if it had none."""
        sql = f"SELECT winner FROM rounds WHERE {EVALUATED} AND end_time <= ? ORDER BY end_time DESC LIMIT 1"
        return await self.value(sql, job_id, by)

    async def ranked_since(self, job_id: str, since: int, by: int) -> tuple[int, dict[str, int]]:
        """How many non-void evaluations of a job ended after `since`, and in how many of them each miner ranked."""
        ended = f"{EVALUATED} AND end_time > ? AND end_time <= ?"
        ranked = f"SELECT hotkey, count(*) FROM scores JOIN rounds USING (round_id) WHERE {ended} GROUP BY hotkey"

        def work(db: sqlite3.Connection) -> tuple[int, dict[str, int]]:
            (finished,) = db.execute(f"SELECT count(*) FROM rounds WHERE {ended}", (job_id, since, by)).fetchone()
            return finished, dict(map(tuple, db.execute(ranked, (job_id, since, by))))

        return await self.read(work)

    async def counts(self, since: int = 0) -> dict[str, int]:
        """How many rounds that end after a time ended with which code."""
        sql = "SELECT round_type || ' ' || coalesce(code, 'running'), count(*) FROM rounds WHERE end_time > ?"
        return dict(map(tuple, await self.rows(f"{sql} GROUP BY 1 ORDER BY 1", since)))

    async def ranked_ever(self) -> set[str]:
        """Hotkeys that have a reputation in any job."""
        return {row["hotkey"] for row in await self.rows("SELECT DISTINCT hotkey FROM miner_scores")}

    async def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Whatever `work` reads, of one state of both databases."""
        with as_store_errors(self._path):
            return await self._db.read(work)

    async def write(self, *works: Callable[[sqlite3.Connection], T]) -> T:
        """Each work in a transaction of its own, one after another; the last one's result."""
        with as_store_errors(self._path):
            return await self._db.write(*works)

    async def rows(self, sql: str, *parameters: Any) -> list[sqlite3.Row]:
        """All rows of a query."""
        with as_store_errors(self._path):
            return await self._db.rows(sql, *parameters)

    async def value(self, sql: str, *parameters: Any) -> Any:
        """The first column of its first row, None without one."""
        rows = await self.rows(sql, *parameters)
        return rows[0][0] if rows else None


# ---------------------------------------------------------------------------------------------------------------------
# Parts of transactions


def _adding_predictions(predictions: Sequence[Prediction], entrants: Iterable[Entrant] = ()) -> Callable:
    rows = [replace(ask, query=zlib.compress(ask.query, 1)) for ask in predictions]
    accepted = [asdict(e) | {"round_id": rows[0].round_id, "combined": str(e.combined)} for e in entrants]

    def work(db: sqlite3.Connection) -> None:
        insert(db, "predictions", rows)
        insert(db, "entrants", accepted)

    return work


def _adding_events(pool: str, first: int, last: int, events: Iterable[Event]) -> Callable:
    def columns(e: Event) -> tuple:
        return pool, e.block, e.log_index, e.time, e.kind, canonical([str(arg) for arg in e.args]).decode()

    rows = set(map(columns, events))

    def work(db: sqlite3.Connection) -> None:
        sql = "SELECT * FROM events WHERE pool = ? AND block BETWEEN ? AND ?"
        stored = set(map(tuple, db.execute(sql, (pool, first, last))))
        if rows == stored:
            return
        _keep_evidence(db, {row[1] for row in rows ^ stored})
        gone = [row[:3] for row in stored - rows]
        db.executemany("DELETE FROM events WHERE pool = ? AND block = ? AND log_index = ?", gone)
        db.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?)", sorted(rows - stored))

    return work


def _keep_evidence(db: sqlite3.Connection, blocks: set[int]) -> None:
    """Raises `MarketGap` where what is known of these blocks is evidence of a finished round."""
    which = f"code IS NOT NULL AND close_block > ? AND opening_block <= ? AND {KEPT} ORDER BY start_time, round_id"
    sql = f"SELECT round_id, opening_block, close_block FROM rounds WHERE {which}"
    for round_id, opening, close in db.execute(sql, (min(blocks), max(blocks))):
        if changed := sorted(block for block in blocks if opening <= block < close):
            raise MarketGap(
                f"block {changed[0]} is not what round {round_id} was scored from: the chain was reorganised"
                " deeper than its blocks were confirmed; raise --confirmations"
            )


def _put_lines(db: sqlite3.Connection, round_id: str, lines: Sequence[Any], day: int) -> None:
    scores = [(round_id, line.name, line.rank, str(line.score), canonical(to_json(line)).decode()) for line in lines]
    db.executemany("INSERT INTO scores VALUES (?, ?, ?, ?, ?)", scores)
    sql = "INSERT OR IGNORE INTO miner_participation SELECT job_id, ?, ?, end_time FROM rounds WHERE round_id = ?"
    db.executemany(sql, [(line.name, day, round_id) for line in lines])


def _put_standings(db: sqlite3.Connection, job_id: str, standings: Mapping[str, Standing], evaluation: bool) -> None:
    changed = [f"{field.name} = excluded.{field.name}" for field in fields(Standing)]
    changed += [f"{count} = {count} + excluded.{count}" for count in ("evaluations", "lives")]
    sql = f"INSERT INTO miner_scores VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET {', '.join(changed)}"
    rounds = int(evaluation), int(not evaluation)
    rows = [(job_id, hotkey, *map(str, astuple(standing)), *rounds) for hotkey, standing in standings.items()]
    db.executemany(sql, rows)


def _predictions(db: sqlite3.Connection, round_id: str) -> dict[int, dict[str, Prediction]]:
    asks: dict[int, dict[str, Prediction]] = {}
    for row in db.execute("SELECT * FROM predictions WHERE round_id = ? ORDER BY hotkey", (round_id,)):
        ask = Prediction(*row)
        ask = replace(ask, query=zlib.decompress(ask.query), code=Code(ask.code))
        asks.setdefault(ask.due_block, {})[ask.hotkey] = ask
    return asks


def _entrants(db: sqlite3.Connection, round_id: str) -> list[Entrant]:
    sql = "SELECT hotkey, registered_block, combined FROM entrants WHERE round_id = ? ORDER BY hotkey"
    return [Entrant(hotkey, block, Decimal(combined)) for hotkey, block, combined in db.execute(sql, (round_id,))]


def _executions(db: sqlite3.Connection, round_id: str) -> list[Execution]:
    sql = "SELECT execution FROM live_executions WHERE round_id = ? ORDER BY block"
    return [execution_of(json.loads(text)) for (text,) in db.execute(sql, (round_id,))]


def _reputations(db: sqlite3.Connection, job_id: str) -> dict[str, Reputation]:
    rows = db.execute("SELECT * FROM miner_scores WHERE job_id = ?", (job_id,))
    return {
        hotkey: Reputation(Standing(*map(Decimal, numbers)), evaluations, lives)
        for _, hotkey, *numbers, evaluations, lives in rows
    }
