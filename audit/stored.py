"""A round's evidence in the validator's databases: read in one call, of one state of both files, and pruned.

    evidence = await stored.evidence(store, round_id)                       # for the seal, the audit, the export
    about, seal = await stored.evidence_about(store, round_id, hotkey)      # for one miner's receipt

Read first: `evidence.py`, which says what the parts are. Read next: `store.py`, whose columns these are.
"""

from __future__ import annotations

import base64
import json
import sqlite3
import zlib
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

from audit.evidence import FORMAT
from runtime.db import StoreError, as_json, inflated, insert
from store import KEPT, Store
from wire.codec import digest


class Pruned(StoreError):
    """A round's evidence was dropped by the rule of `Store.prune`; what came of the round is still there."""


async def evidence(store: Store, round_id: str) -> dict[str, Any]:
    """A finished round as `evidence.py` describes it; damaged columns come as they are, for the audit to name.

    Raises `Pruned`, or `StoreError`: there is no such round, or it has not finished.
    """
    return await store.read(lambda db: _evidence(db, round_id))


def _evidence(db: sqlite3.Connection, round_id: str) -> dict[str, Any]:
    found = db.execute("SELECT * FROM rounds WHERE round_id = ? AND code IS NOT NULL", (round_id,)).fetchone()
    if not found:
        fix = "`export` without a round lists them"
        raise StoreError(f"round {round_id}: not in this database, or not finished; {fix}")
    for (before,) in db.execute("SELECT before FROM pruned WHERE round_id = ?", (round_id,)):
        day = datetime.fromtimestamp(before, UTC)
        raise Pruned(f"round {round_id}: was pruned with all that ended by {day:%Y-%m-%d %H:%M} UTC; scores remain")
    row, settled = round_row(found, as_json)
    pool, baselines = _meta(db)["pool"], as_json(row.pop("summary"))
    swaps = baselines.pop("swaps", None) if isinstance(baselines, dict) else None
    vault_state, seal, rules_version = (row.pop(name) for name in ("vault_state", "seal", "rules_version"))
    snapshot, events = as_json(vault_state), []
    pools = isinstance(snapshot, dict) and "ticks" in snapshot  # which all jobs on it share, and so its events
    if pools:
        sql = "SELECT body FROM snapshots WHERE pool = ? AND block = ?"
        body = db.execute(sql, (pool, row["opening_block"])).fetchone()
        known = as_json(inflated(body[0])) if body else None
        snapshot |= {"ticks": known.get("ticks") if isinstance(known, dict) else known}
    if row["close_block"] and (pools or not isinstance(snapshot, dict)):
        which = "pool = ? AND block >= ? AND block < ? ORDER BY block, log_index"
        sql = f"SELECT block, log_index, time, kind, args FROM events WHERE {which}"
        rows = db.execute(sql, (pool, row["opening_block"], row["close_block"]))
        events = [[*map(str, place), kind, as_json(args)] for *place, kind, args in rows]
    entrants = db.execute("SELECT * FROM entrants WHERE round_id = ? ORDER BY hotkey", (round_id,))
    return {
        "format": FORMAT,
        "rules_version": rules_version,
        **_meta(db),
        "round": row | {"swaps": swaps},
        "snapshot": snapshot,
        "events": events,
        "asks": _asks(db, "round_id = ? ORDER BY due_block, hotkey", (round_id,), inflated),
        "entrants": list(map(dict, entrants)),
        **outcome(db, round_id, as_json),
        "baselines": baselines,
        **settled,
        "seal": as_json(seal),
    }


def round_row(found: sqlite3.Row, loads: Callable[[str], Any] = json.loads) -> tuple[dict[str, Any], dict[str, Any]]:
    """A row of `rounds` as evidence has it, and its part `settlement`; rounds of liquidity name neither that nor their
    mechanism, as before there were others."""
    row = dict(found) | {"settings": loads(found["settings"])}
    settlement = row.pop("settlement")
    if (row["mechanism"], settlement) == ("liquidity", None):
        del row["mechanism"]
        return row, {}
    return row, {"settlement": None if settlement is None else loads(settlement)}


def outcome(db: sqlite3.Connection, round_id: str, loads: Callable[[str], Any]) -> dict[str, list[dict[str, Any]]]:
    """What came of a round, as evidence has it: its `executions` by block and its `scores` by rank."""
    executions = "SELECT block, vault, execution FROM live_executions WHERE round_id = ? ORDER BY block"
    scores = "SELECT hotkey, rank, score, line FROM scores WHERE round_id = ? ORDER BY rank"
    return {
        "executions": [dict(e) | {"execution": loads(e["execution"])} for e in db.execute(executions, (round_id,))],
        "scores": [dict(score) | {"line": loads(score["line"])} for score in db.execute(scores, (round_id,))],
    }


def _meta(db: sqlite3.Connection) -> dict[str, str | None]:
    meta = dict(map(tuple, db.execute("SELECT * FROM meta")))
    return {name: meta.get(name) for name in ("validator", "market", "pool")}


def _asks(db: sqlite3.Connection, which: str, values: Iterable[str], inflate: Callable[[bytes], bytes]) -> list[dict]:
    asks = [dict(ask) for ask in db.execute(f"SELECT * FROM predictions WHERE {which}", values)]
    for ask in asks:
        ask["query"] = base64.b64encode(inflate(ask["query"])).decode()
        ask["answer"] = base64.b64encode(ask["answer"]).decode()
        ask["nonce"], ask["response_seconds"] = str(ask["nonce"]), f"{ask['response_seconds']:.6f}"
    return asks


async def prune(store: Store, before: int) -> int:
    """Drop the evidence of finished, sealed rounds that ended by then; what came of them stays.

    Dropped: queries, answers and signatures, entrants, vault, settlement, and the events and snapshots that no other
    round needs. Kept: rounds with seals, every score with its terms, the codes of all asks, reputations, days,
    executions and weights. Each round is one transaction, so a crash leaves whole rounds. Freed space is used again: a
    file stops growing but for what is kept, it does not shrink. Returns how many rounds were pruned by `before`, unix
    seconds of market time.
    """
    which = f"end_time <= ? AND {KEPT} AND code IS NOT NULL AND seal IS NOT NULL"
    sql = f"SELECT round_id FROM rounds WHERE {which} ORDER BY start_time, round_id"

    def prune_round(db: sqlite3.Connection, round_id: str) -> None:
        asks = "UPDATE predictions SET query = x'', answer = x'', signature = ''"
        for change in (asks, "DELETE FROM entrants", "UPDATE rounds SET vault_state = NULL, settlement = NULL"):
            db.execute(f"{change} WHERE round_id = ?", (round_id,))
        insert(db, "pruned", [{"round_id": round_id, "before": before}])

    def prune_pools(db: sqlite3.Connection) -> None:
        (oldest,) = db.execute(f"SELECT min(opening_block) FROM rounds WHERE {KEPT}").fetchone()
        for table in ("events", "snapshots") if oldest else ():
            db.execute(f"DELETE FROM {table} WHERE block < ?", (oldest,))

    rounds = await store.read(lambda db: db.execute(sql, (before,)).fetchall())
    for (round_id,) in rounds:  # a call each: others come in between
        await store.write(lambda db, round_id=round_id: prune_round(db, round_id))
    await store.write(prune_pools)
    return len(rounds)


async def asked_rounds(store: Store, hotkey: str, after: int, scan: int) -> tuple[list[tuple[int, str]], int | None]:
    """Sealed rounds, not pruned, in which a miner was asked or scored, in the order of their beginning, in parts.

    A part looks through `scan` rounds `after` where the part before ended, first 0. Returns (position, round_id) of
    each, and where this part ends; None when nothing comes after it.
    """
    there = "EXISTS (SELECT 1 FROM {0} WHERE {0}.round_id = rounds.round_id AND hotkey = :hotkey)"
    asked = f"({there.format('predictions')} OR {there.format('scores')}) AND {KEPT}"
    sql = f"SELECT rowid AS position, round_id, seal IS NOT NULL AND {asked} AS asked FROM rounds"
    sql += " WHERE rowid > :after ORDER BY rowid LIMIT :scan"
    rows = await store.read(lambda db: db.execute(sql, {"hotkey": hotkey, "after": after, "scan": scan}).fetchall())
    found = [(row["position"], row["round_id"]) for row in rows if row["asked"]]
    return found, rows[-1]["position"] if len(rows) == scan else None


async def evidence_about(store: Store, round_id: str, hotkey: str) -> tuple[dict[str, Any], str] | None:
    """What a sealed round's evidence says of one miner that was asked or scored, without reading the rest.

    Returns this miner's asks, entrant and score, of other scores only their number, without snapshot, events and seal;
    and the sha256 of the sealed digests. None if there is nothing of it, or it was pruned.
    """
    return await store.read(lambda db: _evidence_about(db, round_id, hotkey))


def _evidence_about(db: sqlite3.Connection, round_id: str, hotkey: str) -> tuple[dict[str, Any], str] | None:
    """Strict where `_evidence` is not: of what is damaged no receipt is signed."""
    sql = "SELECT *, json_extract(seal, '$.digests') AS digests FROM rounds WHERE round_id = ? AND seal IS NOT NULL"
    found = db.execute(f"{sql} AND {KEPT}", (round_id,)).fetchone()
    which, mine = "round_id = ? AND hotkey = ?", (round_id, hotkey)
    asks = _asks(db, f"{which} ORDER BY due_block", mine, zlib.decompress) if found else []
    if not found or not (asks or db.execute(f"SELECT 1 FROM scores WHERE {which}", mine).fetchone()):
        return None
    row, settled = round_row(found)
    sql = "SELECT hotkey, CASE hotkey WHEN ? THEN line END AS line FROM scores WHERE round_id = ?"
    scores = db.execute(sql, (hotkey, round_id))
    about = {
        **_meta(db),
        "rules_version": row["rules_version"],
        "round": row,
        "asks": asks,
        "entrants": list(map(dict, db.execute(f"SELECT * FROM entrants WHERE {which}", mine))),
        "scores": [dict(score) | {"line": score["line"] and json.loads(score["line"])} for score in scores],
        "baselines": {name: one for name, one in json.loads(row["summary"]).items() if name != "swaps"},
        **settled,
    }
    return about, digest(row["digests"].encode())
