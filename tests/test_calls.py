"""How often a played round calls into a database's thread: counted, not timed.

Run with `python -m pytest tests/test_calls.py`. Read next: `runtime/db.py`.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from pathlib import Path

import pytest
from subnets import a_job, keep, play_subnet

from protocol import Position
from runtime.db import Database

DUE_BLOCKS, MOST_CALLS, MOST_STORE_CALLS = 12, 60, 40


def mover(query):
    step = query.tick_spacing * (20 + query.block_number // 75 % 7 * 5)
    middle = query.tick // query.tick_spacing * query.tick_spacing
    return [Position(middle - step, middle + step, *query.holdings())]


def calls_of(folder: Path, rounds: int, patch) -> Counter:
    """Calls by database file, of so many rounds of three miners with all that goes on around them."""
    calls, files, real = Counter(), {}, Database._execute

    def file_of(connection: sqlite3.Connection) -> str:
        return Path(connection.execute("PRAGMA database_list").fetchone()["file"]).name

    async def counted(db: Database, *arguments, **options):
        calls[files.setdefault(db, await real(db, file_of, db._conn))] += 1
        return await real(db, *arguments, **options)

    patch.setattr(Database, "_execute", counted)
    folder.mkdir()
    job = a_job(checkpoint_blocks=37)
    subnet = play_subnet(folder, {"a": mover, "b": keep, "c": mover}, [job], rounds=rounds)
    patch.undo()
    asked = subnet.rows("SELECT count(DISTINCT due_block), count(*) FROM predictions GROUP BY round_id")
    assert asked == [(DUE_BLOCKS + 1, 3 * (DUE_BLOCKS + 1))] * rounds  # at the opening, and at each due block
    return calls


@pytest.fixture(scope="module")
def calls(tmp_path_factory) -> Counter:
    """The second round's, by file: what starting and ending cost stands in both runs."""
    with pytest.MonkeyPatch.context() as patch:
        one, two = (calls_of(tmp_path_factory.mktemp(f"{rounds}") / "run", rounds, patch) for rounds in (1, 2))
    return two - one


def test_a_round_of_three_miners_and_twelve_due_blocks_makes_few_calls_into_the_store(calls):
    assert DUE_BLOCKS < calls["validator.sqlite3"] <= MOST_STORE_CALLS, calls


def test_such_a_round_makes_few_calls_into_all_databases_together(calls):
    assert calls.total() <= MOST_CALLS, calls
