"""What can be seen of a validator: its database as plain JSON objects, and a round taken apart for people.

Only reads, on connections of its own that cannot write, so nobody who looks can disturb the validator. Every object
here is what the status server answers as JSON and what the page shows: one source, the same digits. Amounts and scores
are decimal strings in base units; times are unix seconds of market time.

    python validator.py report -o report.html       all of it in one file
Read first: `store.py` (the databases), `rounds.py`. Read next: `figures.py` (how it looks), `status.py` (the server).
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import zlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from decimal import Context, Decimal, Inexact, InvalidOperation, localcontext
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiosqlite

import scoring
from books import Book, Tape
from evidence import event_args
from protocol import (
    MAX_ANSWER_BYTES,
    MAX_QUERY_BYTES,
    JobSettings,
    Position,
    ProtocolError,
    RebalanceAnswer,
    RebalanceQuery,
    decode,
    from_plain,
    human_price,
    to_plain,
)
from recording import Event, ReplayError, Snapshot
from rounds import Decision, was_carried_out
from sim import PoolError, sqrt_ratio_at_tick
from store import BUSY_TIMEOUT_SECONDS, JOBS_SCHEMA, Store, StoreError, execution_of, to_json

PAGE_ROUNDS = 50  # rounds in one answer of a list; `next` leads to the older ones
MAX_PAGE_ROUNDS = 200
SAMPLES = 64  # moments of a round at which a book is looked at
PATH_POINTS = 240  # of a price path; where there are more, the lowest and highest of each stretch
SHOWN_MINERS = 6  # whose ranges are drawn beside the one that is looked at
CACHED_PANELS = 64
BASELINES = ("keep", "hold", "best")
COUNTED = {  # the terms of which a target's score is the sum, before what the target makes of it
    "PoL": ("drift", "fees", "divergence", "costs"),
    "MaxFees": ("fees", "costs"),
    "MinIL": ("divergence", "costs"),
    "Balanced": ("fees", "divergence", "costs"),
}
EXACT = Context(prec=2000, traps=[Inexact, InvalidOperation])  # a sum that would have to be rounded raises


class NotShown(Exception):
    """There is nothing to see; the message says why, in one line."""


# ---------------------------------------------------------------------------------------------------------------------
# The databases


class Reader(Store):
    """The validator's two databases, for reading only: all that `Store` can be asked, and what only people ask."""

    @classmethod
    @asynccontextmanager
    async def open(cls, path: str | Path) -> AsyncIterator[Reader]:
        """Open both databases of a validator, which may be writing to them. Raises `StoreError`."""
        path = Path(path)
        async with AsyncExitStack() as stack:
            files = []
            for file in (path, path.with_name(f"{path.stem}.events.sqlite3")):
                uri = f"file:{quote(str(file))}?mode=ro"
                try:
                    sqlite3.connect(uri, uri=True).close()  # what cannot be opened fails here, before there is a thread
                    opening = aiosqlite.connect(uri, uri=True, timeout=BUSY_TIMEOUT_SECONDS, isolation_level=None)
                    files.append(await stack.enter_async_context(opening))
                    (version,) = await (await files[-1].execute("PRAGMA user_version")).fetchone()
                except sqlite3.Error as error:
                    raise StoreError(f"database {file}: {error}; is it a validator's? name it with --db") from error
                if len(files) == 1 and version != len(JOBS_SCHEMA):
                    what = f"schema version {version}, this program reads {len(JOBS_SCHEMA)}"
                    raise StoreError(f"database {file}: {what}; run `python validator.py` of this release on it once")
                files[-1].row_factory = sqlite3.Row
            yield cls(*files, path)

    def sizes(self) -> dict[str, int]:
        """Bytes of each database file with its log."""
        events = self._path.with_name(f"{self._path.stem}.events.sqlite3")
        return {
            name: sum(os.path.getsize(f"{path}{end}") for end in ("", "-wal") if os.path.exists(f"{path}{end}"))
            for name, path in (("jobs", self._path), ("events", events))
        }

    async def meta(self) -> dict[str, str]:
        """What the database was made with: market, pool, validator."""
        return {row["key"]: row["value"] for row in await self._rows("SELECT * FROM meta")}

    async def pair(self) -> dict[str, Any] | None:
        """The pool's tokens and fee, as the newest query that is kept shows them; None before the first."""
        query = await self._value("SELECT query FROM predictions WHERE length(query) ORDER BY rowid DESC LIMIT 1")
        if not query:
            return None
        shown = json.loads(zlib.decompress(query))
        return {name: shown[name] for name in ("chain_id", "pair_address", "token0", "token1", "fee", "tick_spacing")}

    async def jobs_now(self) -> list[dict[str, Any]]:
        """Every job with its settings, its newest finished rounds and those that run."""
        shown = []
        for job in await self.jobs():
            newest = {
                round_type: await self._value(
                    "SELECT round_id FROM rounds WHERE job_id = ? AND round_type = ? AND code IS NOT NULL"
                    " ORDER BY end_time DESC LIMIT 1",
                    *(job.job_id, round_type),
                )
                for round_type in ("evaluation", "live")
            }
            sql = "SELECT round_id FROM rounds WHERE job_id = ? AND code IS NULL ORDER BY end_time DESC LIMIT 8"
            shown.append(
                {
                    "job_id": job.job_id,
                    "vault": job.vault,
                    "round_seconds": job.round_seconds,
                    "settings": to_plain(job.settings),
                    "live": job.live,
                    "active": job.active,
                    "newest": newest,
                    "newest_end": await self._value(
                        "SELECT end_time FROM rounds WHERE round_id = ?", newest["evaluation"]
                    ),
                    "running": [row["round_id"] for row in await self._rows(sql, (job.job_id,))],
                }
            )
        return shown

    async def oldest_evidence(self) -> str | None:
        """Id of the oldest finished round whose evidence is kept."""
        return await self._value(
            "SELECT round_id FROM rounds WHERE code IS NOT NULL AND NOT EXISTS"
            " (SELECT 1 FROM pruned WHERE pruned.round_id = rounds.round_id) ORDER BY start_time, round_id LIMIT 1"
        )

    async def pruned(self) -> int:
        """How many rounds' evidence was dropped."""
        return await self._value("SELECT count(*) FROM pruned")

    async def last_weights(self) -> dict[str, Any] | None:
        """The newest attempt to set weights, None before the first."""
        rows = await self._rows("SELECT * FROM weights ORDER BY id DESC LIMIT 1")
        return dict(rows[0]) | {name: json.loads(rows[0][name]) for name in ("vector", "uids")} if rows else None

    async def standings(self, job_id: str, today: int) -> list[dict[str, Any]]:
        """Every miner of a job, the best reputation of the job's kind first.

        Args:
            job_id: which.
            today: UTC day of market time, the last of the 14 in which days of participation count.
        """
        job = next((job for job in await self.jobs() if job.job_id == job_id), None)
        if not job:
            raise NotShown(f"job {_quoted(job_id)}: there is none of this name")
        rows = await self._rows(
            "SELECT hotkey, count(*) AS days FROM miner_participation WHERE job_id = ? AND day > ? AND day <= ?"
            " GROUP BY hotkey",
            (job_id, today - scoring.LIVE_WINDOW_DAYS, today),
        )
        days = {row["hotkey"]: row["days"] for row in rows}
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
        return sorted(lines, key=lambda line: (-Decimal(line[f"combined_{job.settings.reputation}"]), line["hotkey"]))

    async def rounds(self, before: str | None = None, limit: int = PAGE_ROUNDS) -> dict[str, Any]:
        """The newest rounds, those that run too, or those that come before one in time; and where it goes on."""
        columns = "round_id, job_id, round_type, start_time, end_time, opening_block, close_block, code, detail, winner"
        where, values = "", ()
        if before is not None:
            start = await self._value("SELECT start_time FROM rounds WHERE round_id = ?", before)
            if start is None:
                raise NotShown(f"round {_quoted(before)}: not in this database")
            where, values = " WHERE (start_time, round_id) < (?, ?)", (start, before)
        limit = max(1, min(limit, MAX_PAGE_ROUNDS))
        rows = await self._rows(
            f"SELECT {columns}, asked FROM rounds{where} ORDER BY start_time DESC, round_id DESC LIMIT ?",
            (*values, limit),
        )
        return {"rounds": [dict(row) for row in rows], "next": rows[-1]["round_id"] if len(rows) == limit else None}

    async def round(self, round_id: str) -> dict[str, Any]:
        """A round in the shape of its evidence, without bodies: there for pruned rounds and for those that run too."""
        rows = await self._rows("SELECT * FROM rounds WHERE round_id = ?", (round_id,))
        if not rows:
            raise NotShown(f"round {_quoted(round_id)}: not in this database")
        row = dict(rows[0])
        summary = json.loads(row.pop("summary") or '{"swaps":0}')
        for name in ("vault_state", "seal"):
            del row[name]
        asks = await self._rows(
            "SELECT hotkey, due_block, code, detail, effective_block, response_seconds FROM predictions"
            " WHERE round_id = ? ORDER BY due_block, hotkey",
            (round_id,),
        )
        scores = await self._rows(
            "SELECT hotkey, rank, score, line FROM scores WHERE round_id = ? ORDER BY rank", (round_id,)
        )
        executions = await self._rows(
            "SELECT block, vault, execution FROM live_executions WHERE round_id = ? ORDER BY block", (round_id,)
        )
        return {
            "rules_version": row.pop("rules_version"),
            "round": row | {"settings": json.loads(row["settings"]), "swaps": summary.pop("swaps")},
            "pruned": await self._value("SELECT before FROM pruned WHERE round_id = ?", round_id),
            "asks": [dict(ask) | {"response_seconds": f"{ask['response_seconds']:.6f}"} for ask in asks],
            "executions": [dict(item) | {"execution": json.loads(item["execution"])} for item in executions],
            "scores": [dict(score) | {"line": json.loads(score["line"])} for score in scores],
            "baselines": summary,
        }

    async def all_of(self, round_id: str) -> dict[str, Any]:
        """A round's evidence; of one that was pruned or has not finished, what there is of it."""
        try:
            return await self.evidence(round_id)
        except StoreError:
            return await self.round(round_id)

    async def scores_of(self, hotkey: str, before: str | None = None, limit: int = PAGE_ROUNDS) -> dict[str, Any]:
        """A miner in the newest rounds: its terms, rank and reason codes, and keep, hold and best beside them."""
        listed = await self.rounds(before, limit)
        ids = [row["round_id"] for row in listed["rounds"]]
        marks = ", ".join("?" * len(ids))
        scores = {
            row["round_id"]: row
            for row in await self._rows(
                f"SELECT * FROM scores WHERE hotkey = ? AND round_id IN ({marks})", (hotkey, *ids)
            )
        }
        asks: dict[str, list] = {}
        for row in await self._rows(
            "SELECT round_id, due_block, code, detail, effective_block, response_seconds FROM predictions"
            f" WHERE hotkey = ? AND round_id IN ({marks}) ORDER BY due_block",
            (hotkey, *ids),
        ):
            ask = dict(row) | {"response_seconds": f"{row['response_seconds']:.6f}"}
            asks.setdefault(ask.pop("round_id"), []).append(ask)
        taken = [row for row in listed["rounds"] if row["round_id"] in scores or row["round_id"] in asks]
        marks = ", ".join("?" * len(taken))
        summaries = {
            row["round_id"]: json.loads(row["summary"] or "{}")
            for row in await self._rows(
                f"SELECT round_id, summary FROM rounds WHERE round_id IN ({marks})", [row["round_id"] for row in taken]
            )
        }
        lines = []
        for row in taken:
            found, summary = scores.get(row["round_id"]), summaries[row["round_id"]]
            lines.append(
                {name: row[name] for name in ("round_id", "job_id", "round_type", "start_time", "code", "asked")}
                | {
                    "rank": found["rank"] if found else None,
                    "line": json.loads(found["line"]) if found else None,
                    "excess": _excess(found["score"], summary["keep"]["score"]) if found else None,
                    "asks": asks.get(row["round_id"], []),
                }
                | {name: summary.get(name) for name in BASELINES}
            )
        return {"hotkey": hotkey, "looked_at": len(ids), "rounds": lines, "next": listed["next"]}

    async def says(self, hotkey: str) -> dict[str, str] | None:
        """What a miner says of itself in its newest ranked round: version and model; None if that is not kept."""
        newest = await self.rounds(limit=PAGE_ROUNDS)
        for row in newest["rounds"]:
            body = await self._value(
                "SELECT answer FROM predictions WHERE round_id = ? AND hotkey = ? AND length(answer) LIMIT 1",
                *(row["round_id"], hotkey),
            )
            if body:
                try:
                    return to_plain(decode(RebalanceAnswer, body, MAX_ANSWER_BYTES).miner_metadata)
                except ProtocolError:
                    return None
        return None

    async def replayable(self, round_id: str, names: Iterable[str]) -> Replayable:
        """What a round can be played again from, for some of its miners.

        Raises:
            NotShown: it has not finished, never opened, or its evidence is gone.
        """
        rows = await self._rows(
            "SELECT round_type, settings, opening_block, close_block, vault_state, code, detail FROM rounds"
            " WHERE round_id = ?",
            (round_id,),
        )
        if not rows:
            raise NotShown(f"round {_quoted(round_id)}: not in this database")
        row = rows[0]
        if before := await self._value("SELECT before FROM pruned WHERE round_id = ?", round_id):
            raise NotShown(f"its evidence was dropped with all that ended by {before}: there are its scores, no path")
        if row["code"] is None:
            raise NotShown("it runs: its books are seen when it has ended")
        if not row["vault_state"] or not row["close_block"]:
            raise NotShown(f"{row['code']}: {row['detail'] or 'there is nothing to draw'}")
        pool = (await self.meta())["pool"]
        blocks = row["opening_block"], row["close_block"]
        body = await self._event_rows("SELECT body FROM snapshots WHERE pool = ? AND block = ?", (pool, blocks[0]))
        events = await self._event_rows(
            "SELECT * FROM events WHERE pool = ? AND block >= ? AND block < ? ORDER BY block, log_index",
            (pool, *blocks),
        )
        names = sorted(set(names) - set(BASELINES))
        asks = await self._rows(
            "SELECT hotkey, query, answer, effective_block FROM predictions WHERE round_id = ? AND hotkey IN"
            f" ({', '.join('?' * len(names))}) AND effective_block < ? ORDER BY effective_block",
            (round_id, *names, blocks[1]),
        )
        if row["round_type"] == "live":
            asks = await self._carried_out(round_id, asks)
        return Replayable(row["settings"], row["vault_state"], body[0]["body"], blocks[1], events, asks)

    async def _carried_out(self, round_id: str, asks: Iterable[sqlite3.Row]) -> list[dict[str, Any]]:
        """A live round's answers without those that were not carried out, the others at the blocks where they were."""
        rows = await self._rows("SELECT block, execution FROM live_executions WHERE round_id = ?", (round_id,))
        found = {row["block"]: execution_of(json.loads(row["execution"])) for row in rows}
        return [
            dict(ask) | ({"effective_block": one.block} if one else {})
            for ask in asks
            if not (one := found.get(ask["effective_block"])) or was_carried_out(one)
        ]


@dataclass(frozen=True, slots=True)
class Replayable:
    """Rows from which a round's market and some of its books can be made again."""

    settings: str
    vault_state: str
    pool: bytes
    close_block: int
    events: Sequence[sqlite3.Row]
    asks: Sequence[Mapping[str, Any]]


def _excess(score: str, keep: str) -> str:
    with localcontext(scoring.CONTEXT):
        return str(Decimal(score) - Decimal(keep))


def _quoted(text: str) -> str:
    return ascii(text[:100])


# ---------------------------------------------------------------------------------------------------------------------
# A round taken apart


class Panels:
    """Panels of rounds, the newest asked for kept, made one at a time outside the event loop."""

    def __init__(self, reader: Reader):
        self._reader, self._making = reader, asyncio.Lock()
        self._made: OrderedDict[tuple[str, str], dict] = OrderedDict()

    async def of(self, seen: Mapping[str, Any], miner: str | None = None) -> dict[str, Any]:
        """The four panels of a round for one book; see `panels`.

        Args:
            seen: `Reader.round` of the round.
            miner: a hotkey, `keep`, `hold` or `best`; by default the winner, or keep where nobody won.

        Raises:
            NotShown: there is nothing to draw.
        """
        lines = {score["hotkey"]: score["line"] for score in seen["scores"]} | seen["baselines"]
        miner = miner or next(iter(lines), "keep")
        if miner not in lines:
            raise NotShown(f"{_quoted(miner)} was not ranked in this round")
        key = seen["round"]["round_id"], miner
        async with self._making:
            if key not in self._made:
                shown = list(dict.fromkeys([miner, *list(lines)[: SHOWN_MINERS - 1], "keep", "best"]))
                shown = [name for name in shown if name in lines]
                rows = await self._reader.replayable(key[0], shown)
                pair = await self._reader.pair()
                self._made[key] = await asyncio.to_thread(panels, rows, lines, shown, miner, pair)
                if len(self._made) > CACHED_PANELS:
                    self._made.popitem(last=False)
            self._made.move_to_end(key)
            return self._made[key]


def panels(
    rows: Replayable, lines: Mapping[str, dict], shown: Sequence[str], miner: str, pair: Mapping | None
) -> dict[str, Any]:
    """What liquidity providers look at, from playing the round again.

    Args:
        rows: of the round.
        lines: its stored lines by name, the baselines' too.
        shown: whose ranges to show.
        miner: whose value, score and inventory to show; one of `shown`.
        pair: the tokens; None shows prices of base units.

    Returns:
        `path`: [block, price]. `ranges`: by name, [from, to, [[tick_lower, tick_upper, price_low, price_high]]] between
        rebalances. `value`: at some blocks, with fees, without, and of holding the first tokens, all at that block's
        price; `ends`: each at the close, and its change since the opening, also as a part of the value then.
        `inventory`: at the same blocks both amounts, without this round's fees, and token0's share of the value.
        `apart`: see there. Prices are token1 per token0 in human units.

    Raises:
        NotShown: the events contradict the replay.
    """
    settings = from_plain(JobSettings, json.loads(rows.settings))
    plain = json.loads(rows.vault_state) | {"ticks": json.loads(zlib.decompress(rows.pool))["ticks"]}
    snapshot = from_plain(Snapshot, plain)
    tape, close = Tape(snapshot), rows.close_block
    try:
        tape.feed(
            Event(e["block"], e["log_index"], e["time"], e["kind"], event_args(e["kind"], json.loads(e["args"])))
            for e in rows.events
        )
    except (ReplayError, PoolError) as error:
        raise NotShown(str(error)) from error
    decimals = (pair["token0"]["decimals"], pair["token1"]["decimals"]) if pair else (0, 0)

    def price_of(sqrt_price_x96: int) -> str:
        return human_price(sqrt_price_x96, *decimals)

    blocks = _moments(snapshot.block, close)
    books, sampled = {}, []
    for name in shown:
        book = books[name] = Book(tape)
        acts = _decisions(name, rows.asks, lines, snapshot)
        for until in (*sorted({act.block for act in acts}), close + 1):
            if name == miner:  # before the next decision acts
                done = sampled[-1]["block"] if sampled else -1
                sampled += [_sample(book, tape, block) for block in blocks if done < block < until]
            for act in (act for act in acts if act.block == until):
                book.rebalance(act.block, act.desired, act.shown)
    amounts, values = ("block", "amount0", "amount1", "share0"), ("block", "with_fees", "without_fees", "holding")
    return {
        "miner": miner,
        "target": settings.target,
        "opening_block": snapshot.block,
        "close_block": close,
        "swaps": tape.swaps,
        "path": [[block, price_of(price)] for block, price in _path(tape, snapshot, close)],
        "ranges": {name: _ranges(books[name], close, price_of) for name in shown},
        "value": [{name: sample[name] for name in values} for sample in sampled],
        "ends": {name: _change(sampled[0]["holding"], sampled[-1][name]) for name in values[1:]},
        "inventory": [{name: sample[name] for name in amounts} for sample in sampled],
        **apart(lines[miner], settings),
    }


def _change(start: str, end: str) -> dict[str, str]:
    with localcontext(scoring.CONTEXT):
        change = Decimal(end) - Decimal(start)
        part = round(change / Decimal(start), 12) if Decimal(start) else Decimal(0)
        return {"value": end, "change": str(change), "part": str(part)}


def _moments(opening: int, close: int) -> list[int]:
    """Blocks from the opening to the close, both included: the state before each one's first event."""
    steps = max(1, min(SAMPLES, close - opening))
    return [opening + (close - opening) * n // steps for n in range(steps + 1)]


def _decisions(name: str, asks: Sequence[Mapping], lines: Mapping[str, dict], snapshot: Snapshot) -> list[Decision]:
    opening = snapshot.block
    if name == "hold":
        return [Decision(name, opening, (), ())]
    if name == "best":
        ticks, outcome = lines[name]["range_"], lines[name]["outcome"]
        tokens = int(outcome["initial0"]), int(outcome["initial1"])
        return [Decision(name, opening, (), (Position(*map(int, ticks), *tokens),) if ticks else ())]
    decisions = []
    for ask in asks:
        if ask["hotkey"] == name:
            query = decode(RebalanceQuery, zlib.decompress(ask["query"]), MAX_QUERY_BYTES)
            answer = decode(RebalanceAnswer, ask["answer"], MAX_ANSWER_BYTES)
            decisions.append(Decision(name, ask["effective_block"], query.current_positions, answer.desired_positions))
    return decisions


def _sample(book: Book, tape: Tape, block: int) -> dict[str, Any]:
    twin, price = book.at(block), tape.price_before(block)
    (final0, final1), (fees0, fees1) = twin.final(price), twin.earned()
    with localcontext(scoring.CONTEXT):
        without = scoring.value(final0, final1, price)
        share0 = round(scoring.value(final0, 0, price) / without, 6) if without else Decimal(0)
        return {
            "block": block,
            "with_fees": str(without + scoring.value(fees0, fees1, price)),
            "without_fees": str(without),
            "holding": str(scoring.value(*book.initial, price)),
            "amount0": str(final0),
            "amount1": str(final1),
            "share0": str(share0),
        }


def _path(tape: Tape, snapshot: Snapshot, close: int) -> list[tuple[int, int]]:
    """Where the price stood: at the start of the opening, after each block that touched it, at the close."""
    stops = list(zip(tape.stop_blocks, tape.stop_prices, strict=True))
    if len(stops) > PATH_POINTS:
        size, kept = -(-len(stops) // (PATH_POINTS // 2)), []
        for at in range(0, len(stops), size):
            stretch = stops[at : at + size]
            ends = {min(stretch, key=lambda stop: stop[1]), max(stretch, key=lambda stop: stop[1])}
            kept += sorted(ends)
        stops = kept
    return [(snapshot.block, snapshot.sqrt_price_x96), *stops, (close, tape.price_before(close))]


def _ranges(book: Book, close: int, price_of) -> list[list]:
    ends = [entry[0] for entry in book.history[1:]] + [close]
    return [
        [
            entry[0],
            end,
            [
                [lower, upper, price_of(sqrt_ratio_at_tick(lower)), price_of(sqrt_ratio_at_tick(upper))]
                for lower, upper, _ in entry[3]
            ],
        ]
        for entry, end in zip(book.history, ends, strict=True)
        if entry[0] < end
    ]


def apart(line: Mapping[str, Any], settings: JobSettings) -> dict[str, Any]:
    """A stored line's score as a sum of its parts, exact to the last digit.

    Returns:
        `apart`: [name, amount] in order; `score`: their sum, what counts; `not_counted`: terms that the target leaves
        out.

    Raises:
        decimal.Inexact: never, for a line that `scoring.py` made; the sum is not rounded.
    """
    terms = {name: Decimal(value) for name, value in line["terms"].items()}
    with localcontext(EXACT):
        counted = COUNTED[settings.target]
        parts = [(name, -terms[name] if name == "costs" else terms[name]) for name in counted]
        reached = sum(amount for _, amount in parts)
        match settings.target:
            case "PoL":
                parts.append(("inventory penalty", terms["score"] - reached))
            case "MinIL":
                forgiven = scoring.MIN_IL_TOLERANCE * terms["initial_value"]
                parts += [("tolerance", forgiven), ("at most 0", terms["score"] - reached - forgiven)]
        if withheld := Decimal(line["score"]) - terms["score"]:
            parts.append(("counts as keep at most", withheld))
        assert sum(amount for _, amount in parts) == Decimal(line["score"])
        left_out = [name for name in ("drift", "fees", "divergence") if name not in counted]
        return {
            "apart": [[name, str(amount)] for name, amount in parts],
            "score": line["score"],
            "not_counted": [[name, str(terms[name])] for name in left_out],
        }
