"""What can be seen of a validator: its database as plain JSON objects, and a round taken apart for people.

Only reads, on connections of its own that cannot write, so nobody who looks can disturb the validator. Every object
here is what the status server answers as JSON and what the page shows: one source, the same digits. Amounts and scores
are decimal strings in base units; times are unix seconds of market time.

    python validator.py report -o report.html       all of it in one file
Read first: `store.py` (the databases), `audit/stored.py`. Read next: `panels.py`, `server.py`.
"""

from __future__ import annotations

import json
import os
import sqlite3
import zlib
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from decimal import Decimal, localcontext
from pathlib import Path
from typing import Any

import scoring
from audit import stored
from liquidity.executions import execution_of
from liquidity.live import was_carried_out
from protocol import MAX_ANSWER_BYTES, ProtocolError, RebalanceAnswer
from runtime.db import StoreError, connect_read_only, look
from runtime.tables import EVENTS_SCHEMA, JOBS_SCHEMA, events_of
from spine.mechanism import Mechanism, load, settings_of
from store import Store
from wire.codec import decode, to_json, to_plain
from wire.text import quoted

PAGE_ROUNDS = 50  # rounds in one answer of a list; `next` leads to the older ones
BASELINES = ("keep", "hold", "best")
ROUND = "round_id, job_id, round_type, start_time, end_time, opening_block, close_block, code, detail, winner, asked"
ASK = "due_block, code, detail, effective_block, response_seconds"


class NotShown(Exception):
    """There is nothing to see; the message says why, in one line."""


class Reader(Store):
    """The validator's two databases, for reading only: all that `Store` can be asked, and what only people ask."""

    @classmethod
    @asynccontextmanager
    async def open(cls, path: str | Path, mechanisms: Mapping[str, Mechanism] | None = None) -> AsyncIterator[Reader]:
        """Open both databases of a validator, which may be writing to them. Raises `StoreError`.

        `mechanisms` are those that its jobs may be of; None for those that come with the program.
        """
        path = Path(path)
        for file, newest in ((path, len(JOBS_SCHEMA)), (events_of(path), len(EVENTS_SCHEMA))):
            try:
                ((version,),) = look(file, "PRAGMA user_version")
            except sqlite3.Error as error:
                raise StoreError(f"database {file}: {error}; is it a validator's? name it with --db") from error
            if version != newest:
                what = f"schema version {version}, this program reads {newest}"
                raise StoreError(f"database {file}: {what}; run `python validator.py` of this release on it once")
        async with connect_read_only(path, pools=events_of(path)) as db:
            yield cls(db, path, settings_of(mechanisms or load()))

    async def database(self) -> dict[str, Any]:
        """Bytes of each file with its log; the oldest finished round whose evidence is kept; how many were pruned."""
        oldest = await self.value(
            "SELECT round_id FROM rounds WHERE code IS NOT NULL AND NOT EXISTS"
            " (SELECT 1 FROM pruned WHERE pruned.round_id = rounds.round_id) ORDER BY start_time, round_id LIMIT 1"
        )
        sizes = {
            name: sum(os.path.getsize(f"{path}{end}") for end in ("", "-wal") if os.path.exists(f"{path}{end}"))
            for name, path in (("jobs", self._path), ("events", events_of(self._path)))
        }
        return {
            "bytes": sizes,
            "oldest_evidence": oldest,
            "oldest_evidence_time": int(oldest.rsplit(":", 1)[1]) if oldest else None,
            "pruned": await self.value("SELECT count(*) FROM pruned"),
        }

    async def meta(self) -> dict[str, str]:
        """What the database was made with: market, pool, validator."""
        return {row["key"]: row["value"] for row in await self.rows("SELECT * FROM meta")}

    async def pair(self) -> dict[str, Any] | None:
        """The pool's tokens and fee, as the newest query of a pool shows them that is kept; None before the first."""
        query = await self.value("SELECT query FROM predictions WHERE length(query) ORDER BY rowid DESC LIMIT 1")
        if not query:
            return None
        if pair := _pair(query):
            return pair
        for row in (await self.rounds())["rounds"]:  # the newest is of no pool: other rounds' may be
            sql = "SELECT query FROM predictions WHERE round_id = ? AND length(query) LIMIT 1"
            if (query := await self.value(sql, row["round_id"])) and (pair := _pair(query)):
                return pair
        return None

    async def jobs_now(self) -> list[dict[str, Any]]:
        """Every job with its settings, its newest finished rounds and those that run."""
        ended = "SELECT round_id, end_time FROM rounds WHERE job_id = ? AND round_type = ? AND code IS NOT NULL"
        ended += " ORDER BY end_time DESC LIMIT 1"
        runs = "SELECT round_id FROM rounds WHERE job_id = ? AND code IS NULL ORDER BY end_time DESC LIMIT 8"

        def now(db: sqlite3.Connection, job: sqlite3.Row) -> dict[str, Any]:
            newest = {kind: db.execute(ended, (job["job_id"], kind)).fetchone() for kind in ("evaluation", "live")}
            return dict(job) | {
                "settings": _settings(job),
                "live": bool(job["live"]),
                "active": bool(job["active"]),
                "newest": {kind: found and found["round_id"] for kind, found in newest.items()},
                "newest_end": newest["evaluation"] and newest["evaluation"]["end_time"],
                "running": [round_id for (round_id,) in db.execute(runs, (job["job_id"],))],
            }

        return await self.read(lambda db: [now(db, job) for job in db.execute("SELECT * FROM jobs ORDER BY job_id")])

    async def last_weights(self) -> dict[str, Any] | None:
        """The newest attempt to set weights, None before the first."""
        for row in await self.rows("SELECT * FROM weights ORDER BY id DESC LIMIT 1"):
            return dict(row) | {name: json.loads(row[name]) for name in ("vector", "uids")}

    async def standings(self, job_id: str, today: int) -> list[dict[str, Any]]:
        """Every miner of a job, the best reputation of the job's kind first.

        `today` is the UTC day of market time, the last of the 14 in which days of participation count.
        """
        jobs = await self.rows("SELECT * FROM jobs WHERE job_id = ?", job_id)
        if not jobs:
            raise NotShown(f"job '{quoted(job_id)}': there is none of this name")
        kind = f"combined_{_settings(jobs[0]).get('reputation', 'excess')}"
        since = today - scoring.LIVE_WINDOW_DAYS
        sql = "SELECT hotkey, count(*) FROM miner_participation WHERE job_id = ? AND day > ? AND day <= ? GROUP BY 1"
        days = dict(map(tuple, await self.rows(sql, job_id, since, today)))
        lines = [
            {
                "hotkey": hotkey,
                "combined_excess": str(found.standing.combined("excess")),
                "combined_seed": str(found.standing.combined("seed")),
                **to_json(found.standing),
                "evaluations": found.evaluations,
                "lives": found.lives,
                "days": days.get(hotkey, 0),
            }
            for hotkey, found in (await self.reputations(job_id)).items()
        ]
        return sorted(lines, key=lambda line: (-Decimal(line[kind]), line["hotkey"]))

    async def rounds(self, before: str | None = None, limit: int = PAGE_ROUNDS) -> dict[str, Any]:
        """The newest rounds, those that run too, or those that come before one in time; and where it goes on."""
        where, values = "", ()
        if before is not None:
            start = await self.value("SELECT start_time FROM rounds WHERE round_id = ?", before)
            if start is None:
                raise NotShown(f"round '{quoted(before)}': not in this database")
            where, values = " WHERE (start_time, round_id) < (?, ?)", (start, before)
        sql = f"SELECT {ROUND} FROM rounds{where} ORDER BY start_time DESC, round_id DESC LIMIT ?"
        rows = await self.rows(sql, *values, limit)
        return {"rounds": [dict(row) for row in rows], "next": rows[-1]["round_id"] if len(rows) == limit else None}

    async def round(self, round_id: str) -> dict[str, Any]:
        """A round in the shape of its evidence, without bodies: there for pruned rounds and for those that run too."""
        return await self.read(lambda db: _round(db, round_id))

    async def all_of(self, round_id: str) -> dict[str, Any]:
        """A round's evidence; of one that was pruned or has not finished, what there is of it."""
        try:
            return await stored.evidence(self, round_id)
        except StoreError:
            return await self.round(round_id)

    async def scores_of(self, hotkey: str, before: str | None = None) -> dict[str, Any]:
        """A miner in the newest rounds: its terms, rank and reason codes, and keep, hold and best beside them."""
        listed = await self.rounds(before)
        ids = [row["round_id"] for row in listed["rounds"]]
        which, mine = f"round_id IN ({', '.join('?' * len(ids))})", (hotkey, *ids)
        sql = f"SELECT round_id, rank, score, line FROM scores WHERE hotkey = ? AND {which}"
        scores = {row["round_id"]: row for row in await self.rows(sql, *mine)}
        asks: dict[str, list] = {}
        sql = f"SELECT round_id, {ASK} FROM predictions WHERE hotkey = ? AND {which} ORDER BY due_block"
        for row in await self.rows(sql, *mine):
            ask = _ask(row)
            asks.setdefault(ask.pop("round_id"), []).append(ask)
        summaries = dict(map(tuple, await self.rows(f"SELECT round_id, summary FROM rounds WHERE {which}", *ids)))

        def seen(row: Mapping[str, Any]) -> dict[str, Any]:
            score, summary = scores.get(row["round_id"]), json.loads(summaries[row["round_id"]] or "{}")
            names = ("round_id", "job_id", "round_type", "start_time", "code", "asked")
            own = {
                "rank": score and score["rank"],
                "line": score and json.loads(score["line"]),
                "excess": score and _excess(score["score"], summary.get("keep")),
                "asks": asks.get(row["round_id"], []),
            }
            return {name: row[name] for name in names} | own | {name: summary.get(name) for name in BASELINES}

        rounds = [seen(row) for row in listed["rounds"] if row["round_id"] in scores or row["round_id"] in asks]
        return {"hotkey": hotkey, "looked_at": len(ids), "rounds": rounds, "next": listed["next"]}

    async def says(self, hotkey: str) -> dict[str, str] | None:
        """What a miner says of itself in its newest ranked round: version and model; None if that is not kept."""
        sql = "SELECT answer FROM predictions WHERE round_id = ? AND hotkey = ? AND length(answer) LIMIT 1"
        for row in (await self.rounds())["rounds"]:
            if body := await self.value(sql, row["round_id"], hotkey):
                try:
                    return to_plain(decode(RebalanceAnswer, body, MAX_ANSWER_BYTES).miner_metadata)
                except ProtocolError:
                    return None
        return None

    async def replayable(self, round_id: str, names: Iterable[str]) -> dict[str, Any]:
        """What a round can be played again from, for some of its miners: its columns, `pool` (the snapshot's `body`),
        rows of `events` and `asks`. It must have been played; raises `NotShown` where its evidence is gone.
        """
        rows = await self.rows("SELECT * FROM rounds WHERE round_id = ?", round_id)
        if not rows:
            raise NotShown(f"round '{quoted(round_id)}': not in this database")
        row = rows[0]
        if before := await self.value("SELECT before FROM pruned WHERE round_id = ?", round_id):
            raise NotShown(f"its evidence was dropped with all that ended by {before}: there are its scores, no path")
        pool = (await self.meta())["pool"]
        blocks = row["opening_block"], row["close_block"]
        body = await self.value("SELECT body FROM snapshots WHERE pool = ? AND block = ?", pool, blocks[0])
        sql = "SELECT * FROM events WHERE pool = ? AND block >= ? AND block < ? ORDER BY block, log_index"
        events = await self.rows(sql, pool, *blocks)
        names = sorted(set(names) - set(BASELINES))
        asks = await self.rows(
            "SELECT hotkey, query, answer, effective_block FROM predictions WHERE round_id = ? AND hotkey IN"
            f" ({', '.join('?' * len(names))}) AND effective_block < ? ORDER BY effective_block",
            *(round_id, *names, blocks[1]),
        )
        if row["round_type"] == "live":
            asks = await self._carried_out(round_id, asks)
        return dict(row) | {"pool": body, "events": events, "asks": asks}

    async def _carried_out(self, round_id: str, asks: Iterable[sqlite3.Row]) -> list[dict[str, Any]]:
        """A live round's answers without those that were not carried out, the others at the blocks where they were."""
        rows = await self.rows("SELECT block, execution FROM live_executions WHERE round_id = ?", round_id)
        found = {row["block"]: execution_of(json.loads(row["execution"])) for row in rows}
        return [
            dict(ask) | ({"effective_block": one.block} if one else {})
            for ask in asks
            if not (one := found.get(ask["effective_block"])) or was_carried_out(one)
        ]


def _round(db: sqlite3.Connection, round_id: str) -> dict[str, Any]:
    found = db.execute("SELECT * FROM rounds WHERE round_id = ?", (round_id,)).fetchone()
    if not found:
        raise NotShown(f"round '{quoted(round_id)}': not in this database")
    row, settled = stored.round_row(found)
    summary = json.loads(row.pop("summary") or '{"swaps":0}')
    del row["vault_state"], row["seal"]
    pruned = db.execute("SELECT before FROM pruned WHERE round_id = ?", (round_id,)).fetchone()
    asks = f"SELECT hotkey, {ASK} FROM predictions WHERE round_id = ? ORDER BY due_block, hotkey"
    return {
        "rules_version": row.pop("rules_version"),
        "round": row | {"swaps": summary.pop("swaps", None)},
        **settled,
        "pruned": pruned and pruned["before"],
        "asks": list(map(_ask, db.execute(asks, (round_id,)))),
        **stored.outcome(db, round_id, json.loads),
        "baselines": summary,
    }


def _ask(row: sqlite3.Row) -> dict[str, Any]:
    """An ask without its bodies, as evidence writes it."""
    return dict(row) | {"response_seconds": f"{row['response_seconds']:.6f}"}


def _settings(job: sqlite3.Row) -> dict[str, Any]:
    """A job's settings as they are stored, of whichever mechanism; none where they are no object: the job is off."""
    with suppress(ValueError):
        if isinstance(settings := json.loads(job["settings"]), dict):
            return settings
    return {}


def _pair(query: bytes) -> dict[str, Any] | None:
    """The pool that a query is of, None if it is of none."""
    shown = json.loads(zlib.decompress(query))
    names = ("chain_id", "pair_address", "token0", "token1", "fee", "tick_spacing")
    return {name: shown[name] for name in names} if all(name in shown for name in names) else None


def _excess(score: str, keep: Mapping[str, Any] | None) -> str | None:
    """How far above *keep* a score is, None where there was no such baseline."""
    if not keep:
        return None
    with localcontext(scoring.CONTEXT):
        return str(Decimal(score) - Decimal(keep["score"]))
