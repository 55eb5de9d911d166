"""The tables of the validator's two databases: what each column means.

Amounts, scores and fee growth are decimal strings, they do not fit SQLite's 64 bits; JSON is canonical. A script brings
its database from one schema version to the next, so what stands here once is never changed.

    sqlite3 validator.sqlite3 .schema

Read next: `store.py`, which writes them.
"""

from __future__ import annotations

from pathlib import Path

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
    """
    -- settlement: what a mechanism settles by after the close, NULL where it needs nothing
    ALTER TABLE jobs ADD COLUMN mechanism TEXT NOT NULL DEFAULT 'liquidity';
    ALTER TABLE rounds ADD COLUMN mechanism TEXT NOT NULL DEFAULT 'liquidity';
    ALTER TABLE rounds ADD COLUMN settlement TEXT;
    CREATE TABLE mechanisms (
        name TEXT PRIMARY KEY,
        mechanism_share TEXT NOT NULL  -- of all weights, relative to the others'; 1 where there is no row
    ) STRICT
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


def events_of(path: Path) -> Path:
    """The pool-events database that is beside a jobs database."""
    return path.with_name(f"{path.stem}.events.sqlite3")
