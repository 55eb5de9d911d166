"""Killed at any moment and started again, a validator's databases end as if nothing had happened.

A validator with two jobs, live rounds and scripted miners runs in a forked process that kills itself with SIGKILL, at a
commit or at a random moment; a second process goes on to the end. Then every row of the jobs database, the events and
the chain's ledger must equal an undisturbed run's, but for signatures, nonces, seals, measured times and ports.

    ALM_KILLS=all python -m pytest tests/test_resume.py       every commit point and 200 random moments (some minutes)

Without ALM_KILLS some of both are tried, others at each run; a failing one is named and can be tried alone.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import sqlite3
import threading
import time
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from subnets import (
    Subnet,
    a_job,
    accept,
    forked,
    hotkey_of,
    keep,
    model,
    play_subnet,
    rebuilt,
    refuse,
    rows,
    stored_lines,
    write,
    write_meanwhile,
)

from markets.model import FIRST_BLOCK, FIRST_TIME
from protocol import Position
from runtime import db as db_module
from spine.ground import open_market
from store import Store
from validator import build_parser
from wire.codec import to_json

ALL = os.environ.get("ALM_KILLS") == "all"
UNTIL = FIRST_TIME + 4 * 900
DAY = 86_400
LEFT_OUT = {  # by table: what cannot be the same twice
    "predictions": {"signature", "nonce", "response_seconds"},
    "rounds": {"seal"},
    "neurons": {"address"},
}


def mover(query):
    """Another range at every ask, so that books, executions and scores depend on each of them."""
    step = query.tick_spacing * (20 + query.block_number // 75 % 7 * 5)
    middle = query.tick // query.tick_spacing * query.tick_spacing
    return accept([Position(middle - step, middle + step, *query.holdings())])


def by_turns(query):
    """Moves in every second round only, so that the winners change."""
    return mover(query) if query.window_start_time % 1800 else keep(query)


def moody(query):
    """Refuses some rounds, and answers nonsense at some checkpoints."""
    if query.window_start_time % 1800 and not query.rebalances_so_far and query.round_type == "evaluation":
        return refuse()
    return b"{}" if query.block_number % 4 == 0 else mover(query)


MINERS = {"a": by_turns, "b": keep, "c": moody}
JOBS = (
    replace(a_job("one", "Balanced", live=True, checkpoint_blocks=100), vault="vault-balanced"),
    replace(a_job("two", "MaxFees", live=True, checkpoint_blocks=150, round_seconds=600), vault="vault-pol"),
)


def play(folder: Path) -> None:
    """Work until the end of the last round; an earlier run in this folder goes on."""

    async def prepare(subnet, *_):
        subnet.validator.schedule.until = UNTIL
        for n in range(1, 8):  # so that live rounds are played
            for job in JOBS:
                for name in MINERS:
                    row = job.job_id, hotkey_of(name), FIRST_TIME // DAY - n
                    sql = "INSERT OR IGNORE INTO miner_participation VALUES (?, ?, ?, 0)"
                    await write_meanwhile(subnet.path, sql, *row)

    play_subnet(folder, MINERS, JOBS, asyncio.run(_market(folder)), prepare, rounds=None)


async def _market(folder: Path):
    """The model where `validator.py` takes it up."""
    async with Store.open(folder / "validator.sqlite3") as store:
        market = await open_market(build_parser().parse_args(["--seed", "5", "--days", "0"]), store)
    return lambda: market


def everything(folder: Path) -> dict[str, list]:
    """All rows of all databases, in order, without what cannot be the same twice."""
    found = {}
    for file in sorted(folder.glob("*.sqlite3")):
        with closing(sqlite3.connect(file)) as db:
            assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            for (table,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
                names = [name for _, name, *_ in db.execute(f"PRAGMA table_info({table})")]
                columns = [name for name in names if name not in LEFT_OUT.get(table, ())]
                found[f"{file.stem}.{table}"] = sorted(
                    db.execute(f"SELECT {', '.join(columns)} FROM {table}"), key=repr
                )
    return found


def counted(folder: Path, kill_after: int | None = None, kill_seconds: float | None = None) -> None:
    """Play, and note how many commits it took; or die after so many, or after so long."""
    transact, done, counting = db_module.transact, 0, threading.Lock()

    def count():
        nonlocal done
        with counting:  # each database has its own thread
            done += 1
            if done == kill_after:
                os.kill(os.getpid(), signal.SIGKILL)

    def commits(connection, work):
        result = transact(connection, work)
        count()
        return result

    db_module.transact = commits
    if kill_seconds is not None:
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        signal.setitimer(signal.ITIMER_REAL, kill_seconds)
    play(folder)
    (folder / "commits").write_text(str(done))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[dict, int, float]:
    """What an undisturbed run leaves, its commits, and its seconds."""
    folder, began = tmp_path_factory.mktemp("undisturbed"), time.monotonic()
    assert forked(lambda: counted(folder)) == 0
    seconds, found = time.monotonic() - began, everything(folder)
    codes = {code for _, code in rows(folder / "validator.sqlite3", "SELECT round_type, code FROM rounds")}
    assert codes == {"scored", "live_no_winner"} and len(found["validator.live_executions"]) >= 3
    winners = rows(folder / "validator.sqlite3", "SELECT DISTINCT winner FROM rounds WHERE job_id = 'two'")
    assert len(winners) == 4  # all three, and the first live rounds have none
    assert len(found["validator.weights"]) == 1 and len(found["chain.weights"]) == 1
    return found, int((folder / "commits").read_text()), seconds


def goes_on_to_the_same_end(folder: Path, expected: dict[str, list]) -> None:
    assert forked(lambda: play(folder)) == 0
    found = everything(folder)
    wrong = {table: set(found.get(table, ())) ^ set(lines) for table, lines in expected.items()}
    wrong = {table: sorted(lines, key=repr)[:4] for table, lines in wrong.items() if lines}
    assert not wrong and found == expected, (folder.name, wrong)


@pytest.mark.costly("a validator killed")
def test_killed_at_a_commit_and_started_again_it_ends_as_if_nothing_had_happened(undisturbed, tmp_path):
    expected, commits, _ = undisturbed
    points = range(1, commits + 1) if ALL else sorted(random.sample(range(1, commits + 1), 16))
    for point in points:
        folder = tmp_path / f"commit-{point}"
        folder.mkdir()
        assert os.WTERMSIG(forked(lambda at=point, where=folder: counted(where, at))) == signal.SIGKILL
        goes_on_to_the_same_end(folder, expected)
        shutil.rmtree(folder)


@pytest.mark.costly("a validator killed")
def test_killed_at_any_moment_and_again_while_it_goes_on_it_ends_as_if_nothing_had_happened(undisturbed, tmp_path):
    expected, _, seconds = undisturbed
    for n in range(200 if ALL else 8):
        folder = tmp_path / f"moment-{n}"
        folder.mkdir()
        for _ in range(2):
            forked(lambda where=folder: counted(where, kill_seconds=random.uniform(0.01, seconds)))
        goes_on_to_the_same_end(folder, expected)
        shutil.rmtree(folder)


# ---------------------------------------------------------------------------------------------------------------------
# Where time does not wait


OPENING, CHECKPOINT = FIRST_BLOCK + 450, 100


def stopped(folder: Path, at: int) -> str:
    """A round whose validator is killed while it asks miner `a` at this block; returns the round's id."""

    def a(query):
        if query.block_number == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return mover(query)

    job = a_job(checkpoint_blocks=CHECKPOINT)
    status = forked(lambda: play_subnet(folder, {"a": a, "b": keep}, [job]))
    assert os.WTERMSIG(status) == signal.SIGKILL
    ((round_id,),) = rows(folder / "validator.sqlite3", "SELECT round_id FROM rounds WHERE code IS NULL")
    return round_id


def test_where_time_does_not_wait_it_goes_on_with_what_is_stored_and_skips_what_it_missed(tmp_path):
    round_id = stopped(tmp_path, OPENING + 3 * CHECKPOINT)
    stored = Subnet(tmp_path).asks("a")
    assert [due for *_, due in stored] == [OPENING, OPENING + 100, OPENING + 200]
    later = partial(model, head=OPENING + 425, pace=15)  # the third checkpoint is missed, the fourth is late, not lost
    subnet = play_subnet(tmp_path, {"a": mover, "b": keep}, market=later, pace=15)
    assert subnet.codes() == ["scored"]
    asks = [ask for ask in subnet.asks("a") if ask[3] < OPENING + 450]
    assert asks[:3] == stored and [due for *_, due in asks[3:]] == [OPENING + 400]
    assert asks[3][0] == "accepted" and OPENING + 425 < asks[3][2] < OPENING + 450
    assert {query.round_id for query in subnet.asked["b"] if query.block_number < OPENING + 425} == set()
    assert {line.name: line for line in rebuilt(subnet.path, round_id).lines}.keys() == {hotkey_of("a"), hotkey_of("b")}
    for line in rebuilt(subnet.path, round_id).lines:
        assert to_json(line) == stored_lines(subnet.path, round_id)[line.name]


@pytest.mark.parametrize(
    ("killed_at", "head", "change", "why"),
    [
        (OPENING + 100, OPENING + 450, "", "its window is over"),
        (OPENING + 100, OPENING + 150, "active = 0", "its job was switched off"),
        (OPENING + 100, OPENING + 150, "round_seconds = 1800", "its job was changed"),
        (OPENING + 100, OPENING + 150, "settings = replace(settings, 'PoL', 'MaxFees')", "its job was changed"),
        (OPENING - 37, OPENING + 1, "", "came too late to ask"),
    ],
)
def test_a_round_that_cannot_go_on_is_void_and_says_why(tmp_path, killed_at, head, change, why):
    round_id = stopped(tmp_path, killed_at)
    if change:
        write(tmp_path / "validator.sqlite3", f"UPDATE jobs SET {change}")

    async def prepare(subnet, store, *_):
        subnet.validator.schedule.until = FIRST_TIME + 1800  # no further rounds
        await store.put_job(a_job("another"))  # without any job it would wait for one

    market = partial(model, head=head, pace=50)
    subnet = play_subnet(tmp_path, {"a": mover, "b": keep}, market=market, prepare=prepare, pace=50)
    ((code, detail),) = subnet.rows("SELECT code, detail FROM rounds WHERE round_id = ?", round_id)
    assert code == "void_interrupted" and detail.endswith(why)
    assert subnet.rows("SELECT * FROM scores") == subnet.rows("SELECT * FROM miner_scores") == []
    assert subnet.rows("SELECT * FROM rounds WHERE seal IS NULL") == []
