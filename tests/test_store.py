"""The validator's memory: one transaction a method, exact numbers, and errors that say what to do.

Run with `python -m pytest tests/test_store.py`. Read next: `store.py`.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from random import Random

import pytest
from subnets import ROOT, a_job, rows, write
from worlds import random_world

from audit import stored
from chain.weights import add_weights, has_scored, last_weights, weights_noted
from liquidity.events import Event
from liquidity.rounds import Line
from markets.base import MarketGap
from protocol import Code, Entrant, Job, JobSettings, RoundResult
from runtime import db as db_module
from runtime.db import StoreError, connect
from runtime.tables import EVENTS_SCHEMA, JOBS_SCHEMA
from scoring import Outcome, Standing, score_outcome, update_eval
from store import Prediction, Store
from wire.codec import to_json

START, LATE = 1_767_226_500, 2**40  # of the first round; after everything


def using(path: Path, work, **options):
    """Run `await work(store)` on the databases at `path`."""

    async def main():
        async with Store.open(path, **options) as memory:
            return await work(memory)

    return asyncio.run(main())


@pytest.fixture
def path(tmp_path):
    return tmp_path / "validator.sqlite3"


def a_line(name: str = "alice", rank: int = 1, fees: int = 10) -> Line:
    outcome = Outcome(1000, 1000, 990, 1005, fees, 7, 1 << 96, 1 << 96, 2, Decimal("0.5"))
    terms = score_outcome(outcome, "PoL", 0)
    return Line(name, outcome, terms, terms.score, rank)


def a_result(*names: str) -> RoundResult:
    lines = tuple(a_line(name, rank, 100 - rank) for rank, name in enumerate(names, 1))
    return RoundResult(Code.SCORED if names else Code.NOBODY_RANKED, "", lines, {"keep": a_line("keep", 0)}, "keep", 3)


async def a_round(memory: Store, n: int = 0, *names: str, job="job", round_type="evaluation", finish=True) -> str:
    """Round `n` of a job, with these miners ranked in this order."""
    rules = a_job(job)
    await memory.put_job(rules)
    begin = START + n * rules.round_seconds
    round_id = f"{job}:{round_type}:{begin}"
    assert await memory.begin_round(round_id, rules, round_type, begin, 1)
    if finish:
        result = a_result(*names)
        standings = {name: Standing(Decimal(n), Decimal(0), Decimal(n), Decimal(0)) for name in names}
        await memory.finish_round(round_id, job, result, 100 + n, len(names), standings, begin // 86_400)
    return round_id


def a_prediction(round_id: str, hotkey: str = "alice", due: int = 5, **changes) -> Prediction:
    fields = (round_id, hotkey, due, b'{"query":1}', b'{"answer":2}', "ab" * 64, 2**62, Code.ACCEPTED, "", due, 0.25)
    return replace(Prediction(*fields), **changes)


# ---------------------------------------------------------------------------------------------------------------------
# Opening, migrations, files that cannot be used

TWO_STEPS = (
    "CREATE TABLE one (x INTEGER);\nCREATE TABLE two (x INTEGER)",
    "INSERT INTO one VALUES (1);\nALTER TABLE two ADD COLUMN y INTEGER;\nCREATE TABLE three (x INTEGER)",
)


def schema(path: Path) -> tuple:
    with closing(sqlite3.connect(path)) as db:
        tables = sorted(name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'"))
        return db.execute("PRAGMA user_version").fetchone()[0], tables


def open_once(path, migrations):
    async def main():
        async with connect(path, migrations):
            pass

    asyncio.run(main())


def test_a_database_comes_to_the_newest_schema_from_any_older_one(tmp_path):
    for steps in (0, 1, 2):
        path = tmp_path / f"{steps}.sqlite3"
        for known in range(1, steps + 1):
            open_once(path, TWO_STEPS[:known])
        open_once(path, TWO_STEPS)
        open_once(path, TWO_STEPS)
        assert schema(path) == (2, ["one", "three", "two"])
        assert rows(path, "SELECT * FROM one") == [(1,)]


def test_a_migration_that_fails_in_the_middle_leaves_the_old_schema_whole(path):
    open_once(path, TWO_STEPS[:1])
    broken = (
        TWO_STEPS[0],
        "INSERT INTO one VALUES (1);\nCREATE TABLE three (x INTEGER);\nCREATE TABLE one (again TEXT)",
    )
    with pytest.raises(StoreError, match="table one already exists"):
        open_once(path, broken)
    assert schema(path) == (1, ["one", "two"]) and rows(path, "SELECT * FROM one") == []
    open_once(path, TWO_STEPS)
    assert schema(path) == (2, ["one", "three", "two"])


CRASHES_AT_THE_NTH_STATEMENT = """
import asyncio, os, sys
import sqlite3
from runtime.db import connect

TWO_STEPS = {steps}

left = int(sys.argv[2])
class Dying(sqlite3.Connection):
    def execute(self, *args):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), 9)
        return super().execute(*args)
real = sqlite3.connect
sqlite3.connect = lambda *args, **options: real(*args, factory=Dying, **options)

async def main():
    async with connect(sys.argv[1], TWO_STEPS):
        pass
asyncio.run(main())
"""


def test_a_crash_between_two_statements_of_a_migration_leaves_a_whole_schema(tmp_path):
    script = CRASHES_AT_THE_NTH_STATEMENT.replace("{steps}", repr(TWO_STEPS))
    processes = []
    for n in range(5, 13):  # the migration's statements are among these
        command = [sys.executable, "-c", script, str(tmp_path / f"{n}.sqlite3"), str(n)]
        processes.append(subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE))
    ended = [(process.communicate(timeout=60)[1].decode(), process.returncode) for process in processes]
    assert [code for _, code in ended][:7] == [-9] * 7, ended
    for n in range(5, 13):
        path = tmp_path / f"{n}.sqlite3"
        assert schema(path) in ((0, []), (2, ["one", "three", "two"])), n
        open_once(path, TWO_STEPS)
        assert schema(path) == (2, ["one", "three", "two"]) and rows(path, "SELECT * FROM one") == [(1,)]


def test_a_newer_or_foreign_database_is_refused_and_stays_as_it_was(tmp_path):
    newer, foreign = tmp_path / "newer.sqlite3", tmp_path / "foreign.sqlite3"
    open_once(newer, TWO_STEPS)
    with closing(sqlite3.connect(foreign)) as db:
        db.execute("CREATE TABLE bookmarks (url TEXT)")
    for path, said in (
        (newer, "schema version 2, this program knows 1; update the program"),
        (foreign, "another program"),
    ):
        before = path.read_bytes()
        with pytest.raises(StoreError, match=said) as caught:
            open_once(path, TWO_STEPS[:1])
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
        assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: folder / "nowhere" / "x.sqlite3", "does not exist; create it"),
        (lambda folder: folder, "unable to open database file"),  # a folder is no file
        (lambda folder: Path("/sys/x.sqlite3"), "does not exist|unable to open"),  # nobody can write there
        (lambda folder: _file(folder, b"this is a text file, not a database" * 30), "not a database"),
        (lambda folder: _damaged(folder), "malformed|not a database"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line_with_the_path_and_a_fix(tmp_path, make, said):
    path = make(tmp_path)
    with pytest.raises(StoreError, match=said) as caught:
        using(path, lambda memory: memory.jobs())
    text = str(caught.value)
    assert str(path) in text and "\n" not in text and ("choose" in text or "is another process" in text)


def _file(folder: Path, content: bytes) -> Path:
    (folder / "x.sqlite3").write_bytes(content)
    return folder / "x.sqlite3"


def _damaged(folder: Path) -> Path:
    path = folder / "x.sqlite3"
    using(path, lambda memory: memory.put_job(a_job()))
    content = bytearray(path.read_bytes())
    content[100:] = bytes(b ^ 0x5A for b in content[100:])
    return _file(folder, bytes(content))


def test_a_full_disk_is_a_store_error_that_changes_nothing_and_passes(path):
    async def work(memory):
        round_id = await a_round(memory, finish=False)
        ((pages,),) = await memory.rows("PRAGMA page_count")
        await memory.rows(f"PRAGMA max_page_count = {pages + 2}")  # SQLite's own word for a full disk
        many = [a_prediction(round_id, due=due, answer=Random(due).randbytes(2000)) for due in range(50)]
        with pytest.raises(StoreError, match="disk is full") as caught:
            await memory.add_predictions(many)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
        assert await memory.rows("SELECT * FROM predictions") == []
        await memory.rows("PRAGMA max_page_count = 1000000")
        await memory.add_predictions(many)

    using(path, work)
    assert rows(path, "SELECT count(*) FROM predictions") == [(50,)]


def test_an_error_inside_a_task_group_is_still_one_that_the_user_can_mend(path):
    async def work(memory):
        await memory.write(lambda db: db.execute("DROP TABLE weights"))
        with pytest.raises(ExceptionGroup) as caught:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(last_weights(memory))
        assert [type(error) for error in caught.value.exceptions] == [StoreError]

    using(path, work)


def test_a_database_belongs_to_one_market(path):
    using(path, lambda memory: memory.claim("market", "MODEL 1"))
    using(path, lambda memory: memory.claim("market", "MODEL 1"))
    with pytest.raises(StoreError, match="made for market MODEL 1, not MODEL 2; choose another"):
        using(path, lambda memory: memory.claim("market", "MODEL 2"))
    assert rows(path, "SELECT * FROM meta") == [("market", "MODEL 1")]


# ---------------------------------------------------------------------------------------------------------------------
# Transactions


def test_cancelled_at_any_moment_a_method_is_applied_as_a_whole_or_not_at_all(path):
    async def work(memory):
        await memory.put_job(a_job())
        for n in range(60):
            round_id = await a_round(memory, n, finish=False)
            finishing = asyncio.create_task(
                memory.finish_round(round_id, "job", a_result("a", "b"), 7, 2, {"a": Standing(), "b": Standing()}, n)
            )
            for _ in range(n):
                await asyncio.sleep(0)
            finishing.cancel()
            await asyncio.gather(finishing, return_exceptions=True)
        await memory.claim("still", "usable")

    using(path, work)
    finished = rows(path, "SELECT round_id FROM rounds WHERE code IS NOT NULL")
    scored = rows(path, "SELECT round_id, count(*) FROM scores GROUP BY round_id")
    assert [(round_id, 2) for (round_id,) in finished] == scored
    days = rows(path, "SELECT count(*) FROM miner_participation")[0][0]
    assert days == 2 * len(scored)
    counted = rows(path, "SELECT evaluations FROM miner_scores")
    assert counted == [(len(scored),)] * (2 if scored else 0)


def test_a_reader_never_sees_half_of_another_tasks_transaction(path):
    async def work(memory):
        async def writer():
            for n in range(30):
                await a_round(memory, n, "alice", "bob")

        async def reader():
            seen = []
            while len(seen) < 200 and not writing.done():
                _, ranked = await memory.ranked_since("job", 0, LATE)
                seen.append(ranked)
            return seen

        writing = asyncio.create_task(writer())
        for ranked in await reader():
            assert ranked.get("alice", 0) == ranked.get("bob", 0)
        await writing

    using(path, work)


def test_two_connections_share_a_database_and_each_sees_what_the_other_committed(path):
    async def work(first):
        async with Store.open(path) as second:
            await first.put_job(a_job("one"))
            assert [job.job_id for job in await second.jobs()] == ["one"]
            await asyncio.gather(*(memory.put_job(a_job(f"{n}")) for n in range(20) for memory in (first, second)))
            assert len(await first.jobs()) == len(await second.jobs()) == 21

            with closing(sqlite3.connect(path)) as other:  # a writer waits for another process, a reader does not
                other.execute("UPDATE jobs SET active = 0")
                writing = asyncio.create_task(first.claim("who", "first"))
                assert all(job.active for job in await second.jobs())
                await asyncio.sleep(0.05)
                assert not writing.done()
                other.commit()
            await writing
            assert not any(job.active for job in await second.jobs())

    using(path, work)


KILLED = """
import asyncio, sys
from subnets import a_job
from store import Store
from test_store import a_round

async def main():
    async with Store.open(sys.argv[1]) as memory:
        for n in range(10_000):
            await a_round(memory, n, "alice", "bob")
            print(n, flush=True)
asyncio.run(main())
"""


def test_what_was_said_to_be_written_survives_kill_9_and_nothing_half_written_is_left(path):
    code = f"import sys; sys.path[:0] = ['.', 'tests']\n{KILLED}"
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    said = [process.stdout.readline() for _ in range(25)][-1]
    process.kill()
    process.communicate()
    using(path, lambda memory: memory.jobs())
    finished = rows(path, "SELECT count(*) FROM rounds WHERE code IS NOT NULL")[0][0]
    assert finished > int(said)
    assert rows(path, "SELECT count(*) FROM scores") == [(2 * finished,)]
    assert rows(path, "SELECT evaluations FROM miner_scores") == [(finished,), (finished,)]
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


# ---------------------------------------------------------------------------------------------------------------------
# Rounds


def test_a_round_is_finished_exactly_once(path):
    async def work(memory):
        round_id = await a_round(memory, 0, "alice", "bob")
        before = await memory.reputations("job")
        with pytest.raises(StoreError, match=f"{round_id} was finished before"):
            await memory.finish_round(round_id, "job", a_result("alice"), 7, 1, {"alice": Standing(Decimal(9))}, 1)
        assert await memory.reputations("job") == before
        assert not await memory.begin_round(round_id, a_job(), "evaluation", START, 1)
        with pytest.raises(StoreError, match="finished before"):
            await memory.finish_round("job:evaluation:1", "job", a_result(), 7, 0, {}, 1)  # never begun

    using(path, work)
    assert rows(path, "SELECT hotkey, rank FROM scores ORDER BY rank") == [("alice", 1), ("bob", 2)]


def test_a_result_that_cannot_be_stored_leaves_the_round_open_and_no_trace(path):
    async def work(memory):
        round_id = await a_round(memory, finish=False)
        twice = a_result("alice", "alice")
        with pytest.raises(sqlite3.IntegrityError):
            await memory.finish_round(round_id, "job", twice, 7, 2, {"alice": Standing()}, 5)
        assert [begun.round_id for begun in await memory.interrupted()] == [round_id]
        assert await memory.reputations("job") == {} and await memory.days("job", "alice", LATE) == []
        await memory.finish_round(round_id, "job", a_result("alice"), 7, 1, {"alice": Standing()}, 5)
        assert await memory.interrupted() == [] and await memory.days("job", "alice", LATE) == [5]

    using(path, work)


def test_numbers_of_120_digits_come_back_as_they_were(path):
    rng, standing, hard = Random(3), Standing(), []
    for _ in range(40):
        digits = "".join(rng.choices("0123456789", k=120))
        number = Decimal(f"{rng.choice('-+')}{digits[:1]}.{digits[1:]}E{rng.randint(-90, 60)}")
        standing = update_eval(standing, number, -number / 7)
        hard.append(replace(standing, live_seed=number, live_excess=Decimal(0)))

    async def work(memory):
        for n, values in enumerate(hard):
            round_id = await a_round(memory, n, finish=False)
            await memory.finish_round(round_id, "job", a_result("alice"), 7, 1, {"alice": values}, 1)
            found = (await memory.reputations("job"))["alice"]
            assert found.standing == values
            assert all(str(a) == str(b) for a, b in zip(_numbers(found.standing), _numbers(values), strict=True))
        assert (found.evaluations, found.lives) == (40, 0)

    using(path, work)


def _numbers(standing: Standing) -> tuple[Decimal, ...]:
    return standing.eval_seed, standing.live_seed, standing.eval_excess, standing.live_excess


def test_evaluations_and_live_rounds_are_counted_apart(path):
    async def work(memory):
        await a_round(memory, 0, "alice")
        await a_round(memory, 0, "alice", round_type="live")
        await a_round(memory, 1, "alice", "bob")
        await a_round(memory, 1, "alice", job="other")
        found = await memory.reputations("job")
        assert {name: (r.evaluations, r.lives) for name, r in found.items()} == {"alice": (2, 1), "bob": (1, 0)}
        assert set(await memory.reputations("other")) == {"alice"} and await memory.reputations("none") == {}

    using(path, work)


def test_the_questions_that_orchestration_asks(path):
    async def has(memory, by):
        return await memory.read(lambda db: has_scored(db, by))

    async def work(memory):
        assert await memory.newest_end("job") is await memory.last_end() is await memory.resume_time(75) is None
        assert await memory.last_winner("job", LATE) is await last_weights(memory) is None
        assert await memory.ranked_since("job", 0, LATE) == (0, {})
        await a_round(memory, 0, "alice", "bob")
        await a_round(memory, 1, "bob")
        assert await has(memory, LATE) and await memory.last_winner("job", LATE) == "bob"
        void = await a_round(memory, 3, finish=False)
        (begun,) = await memory.interrupted()
        assert (begun.round_id, begun.start_time, begun.end_time) == (void, START + 2700, START + 3600)
        assert await memory.begin_round(void, a_job(), "evaluation", START + 2700, 1)  # it goes on
        assert await memory.resume_time(75) == START + 3 * 900 - 75  # before the ask of an interrupted round
        assert await memory.newest_end("job") == START + 3600 and await memory.last_end() == START + 1800
        await memory.finish_round(void, "job", RoundResult(Code.VOID_GAP, "why"), None, 0, {}, 0)
        assert await memory.resume_time(75) == START + 4 * 900 - 75  # else of the next one
        assert await memory.newest_end("job") == await memory.last_end() == START + 3600
        assert await memory.last_winner("job", LATE) == "bob"  # a void round has no say
        await a_round(memory, 2)
        assert await memory.last_winner("job", LATE) is None  # in the newest one nobody was ranked
        assert await memory.ranked_since("job", 0, LATE) == (3, {"alice": 1, "bob": 2})  # the void one does not count
        assert await memory.ranked_since("job", START + 900, LATE) == (2, {"bob": 1})  # its end is not after that
        # as it was at a time: who asks then does not see what followed
        assert not await has(memory, START + 899) and await has(memory, START + 900)
        assert await memory.last_winner("job", START + 900) == "alice"
        assert await memory.last_winner("job", START + 899) is None
        assert await memory.ranked_since("job", 0, START + 900) == (1, {"alice": 1, "bob": 1})
        assert await memory.days("job", "bob", START + 899) == [] != await memory.days("job", "bob", START + 900)
        assert await memory.counts() == {
            "evaluation nobody_ranked": 1,
            "evaluation scored": 2,
            "evaluation void_gap": 1,
        }
        for n in (5, 9):
            await add_weights(memory, START, n, {"a": Decimal(1)}, {3: Decimal(1)}, Code.WEIGHTS_SET, "", "", n + 360)
        last = await last_weights(memory)
        assert (last.block, last.code, last.uids, last.next_block) == (9, Code.WEIGHTS_SET, {3: Decimal(1)}, 369)
        assert await weights_noted(memory) == 9
        assert await memory.recall("mood") is None and await memory.remember("mood", "good") is None
        await memory.remember("mood", "better")
        assert await memory.recall("mood") == "better"

    using(path, work)


def test_jobs_come_back_as_they_were_put_and_a_broken_row_is_named(path):
    exact = JobSettings(
        "MinIL", 7, Decimal("0.50"), 2**127, 64, Decimal("0.3"), "seed", (Decimal("0.6"), Decimal("0.4"))
    )
    jobs = [replace(a_job("b"), settings=exact, live=False), replace(a_job("a:b c"), active=False)]

    async def work(memory):
        for job in [*jobs, jobs[0]]:
            await memory.put_job(job)
        assert await memory.jobs() == sorted(jobs, key=lambda job: job.job_id)

    using(path, work)
    for broken, said in (("{", "not JSON"), ('{"target":"PoL"}', "lacks the field"), ("null", "an object is expected")):
        write(path, "UPDATE jobs SET settings = ? WHERE job_id = 'b'", broken)
        assert said in off(path)["b"] and "\n" not in off(path)["b"]
    for seconds in (1, 59, 86_401):
        write(path, "UPDATE jobs SET round_seconds = ? WHERE job_id = 'b'", seconds)
        assert f"rounds of {seconds} s: 60 to 86400 are possible" in off(path)["b"]


def off(path) -> dict[str, str]:
    """Why rows cannot be read, by job; the others can."""

    async def work(memory):
        good = await memory.jobs()
        assert len(good) + len(memory.wrong) == len(await memory.rows("SELECT 1 FROM jobs"))
        return memory.wrong

    return using(path, work)


@dataclass(frozen=True)
class GuessSettings:
    most: int


GUESSING = {"liquidity": JobSettings, "guessing": GuessSettings}


def test_a_job_of_another_mechanism_is_read_by_its_own_settings_and_refused_by_who_does_not_know_it(path):
    job = Job("guess", "", 900, GuessSettings(7), mechanism="guessing")

    async def work(memory):
        await memory.put_job(a_job("pool"))
        await memory.put_job(job)
        assert await memory.jobs() == [job, a_job("pool")]
        assert await memory.mechanism_shares() == {"guessing": 1, "liquidity": 1}
        await memory.write(lambda db: db.execute("INSERT INTO mechanisms VALUES ('guessing', '0.25'), ('other', '9')"))
        assert await memory.mechanism_shares() == {"guessing": Decimal("0.25"), "liquidity": 1}

    using(path, work, settings=GUESSING)
    assert off(path).keys() == {"guess"} and "no mechanism 'guessing' in this program" in off(path)["guess"]
    assert using(path, lambda memory: memory.mechanism_shares()) == {"liquidity": 1}  # its part is not burnt
    write(path, "UPDATE mechanisms SET mechanism_share = '-1' WHERE name = 'guessing'")
    with pytest.raises(StoreError, match=r"^mechanism guessing: its share is '-1'; write a decimal"):
        using(path, lambda memory: memory.mechanism_shares(), settings=GUESSING)


def test_evidence_names_mechanism_and_settlement_of_other_mechanisms_only(path):
    async def work(memory):
        pool = await a_round(memory, 0, "alice")
        job = Job("guess", "", 900, GuessSettings(7), mechanism="guessing")
        await memory.put_job(job)
        assert (await memory.begin_round("guess:evaluation:900", job, "evaluation", 900, 1)).predictions == {}
        assert [begun.mechanism for begun in await memory.interrupted()] == ["guessing"]
        await memory.finish_round("guess:evaluation:900", "guess", a_result(), 7, 0, {}, 0, settlement={"hash": "0x1"})
        evidence = await stored.evidence(memory, "guess:evaluation:900")
        assert (evidence["round"]["mechanism"], evidence["settlement"]) == ("guessing", {"hash": "0x1"})
        evidence = await stored.evidence(memory, pool)
        assert "mechanism" not in evidence["round"] and "settlement" not in evidence

    using(path, work, settings=GUESSING)


def test_a_due_block_is_one_call_for_events_and_asks_and_a_round_goes_on_with_what_is_stored(path):
    async def work(memory):
        round_id = await a_round(memory, finish=False)
        entrants = [Entrant("alice", 5, Decimal("1E-90"))]
        await memory.add_predictions([a_prediction(round_id)], entrants)
        await memory.add_block("pool", 5, 9, pokes((7, 0)), [a_prediction(round_id, due=9)])
        with pytest.raises(sqlite3.IntegrityError):  # the events are a transaction of their own, and come first
            await memory.add_block("pool", 10, 12, pokes((11, 0)), [a_prediction(round_id, due=9)])
        assert [row[1] for row in await stored_events(memory, path)] == [7, 11]
        opened = await memory.begin_round(round_id, a_job(), "evaluation", START, 1)
        assert opened.predictions == await memory.predictions(round_id) and list(opened.predictions) == [5, 9]
        assert opened.entrants == entrants
        found = await memory.finish_round(round_id, "job", a_result("alice"), 7, 1, {"alice": Standing()}, 1)
        assert found == await memory.reputations("job") and found["alice"].evaluations == 1

    using(path, work)


def test_asks_are_kept_byte_for_byte_with_who_takes_part(path):
    async def work(memory):
        round_id = await a_round(memory, finish=False)
        entrants = [Entrant("alice", 5, Decimal("1E-90")), Entrant("bob", 6, Decimal("-0.1"))]
        asks = [
            a_prediction(round_id),
            a_prediction(round_id, "bob", code=Code.TIMEOUT, answer=b"", effective_block=None),
        ]
        await memory.add_predictions(asks, entrants)
        await memory.add_predictions([a_prediction(round_id, due=6, code=Code.KEPT, effective_block=None, detail="x")])
        with pytest.raises(sqlite3.IntegrityError):  # one ask a checkpoint
            await memory.add_predictions([a_prediction(round_id, due=7), a_prediction(round_id, due=6)])

    using(path, work)
    assert rows(path, "SELECT hotkey, due_block, code, effective_block, nonce FROM predictions") == [
        ("alice", 5, "accepted", 5, 2**62),
        ("bob", 5, "timeout", None, 2**62),
        ("alice", 6, "kept", None, 2**62),
    ]
    assert rows(path, "SELECT answer FROM predictions WHERE hotkey = 'alice'")[0] == (b'{"answer":2}',)
    assert rows(path, "SELECT hotkey, registered_block, combined FROM entrants") == [
        ("alice", 5, "1E-90"),
        ("bob", 6, "-0.1"),
    ]


def test_events_and_pools_are_stored_once_however_many_rounds_share_them(path):
    world = next(w for seed in range(50) if len((w := random_world(seed)).events) > 10)

    async def work(memory):
        for job, idle in (("one", 7), ("two", 8)):
            round_id = await a_round(memory, job=job, finish=False)
            await memory.open_window(round_id, "pool", replace(world.snapshot, idle0=idle))
            until = world.events[8].block
            await memory.add_events("pool", 0, until - 1, [event for event in world.events if event.block < until])
        await memory.add_events("pool", until, 10**9, [event for event in world.events if event.block >= until])
        await memory.add_events("pool", 0, 10**9, world.events)

    using(path, work)
    events = path.with_name("validator.events.sqlite3")
    assert rows(events, "SELECT count(*) FROM snapshots") == [(1,)]
    found = rows(events, "SELECT block, log_index, kind, args FROM events ORDER BY block, log_index")
    assert found == [
        (e.block, e.log_index, e.kind, json.dumps(list(map(str, e.args)), separators=(",", ":"))) for e in world.events
    ]
    assert [json.loads(state)["idle0"] for (state,) in rows(path, "SELECT vault_state FROM rounds")] == ["7", "8"]


def pokes(*places: tuple[int, int], amount: int = 0) -> list[Event]:
    return [Event(*place, 12 * place[0], "burn", ("x", -10, 10, amount, 0, 0)) for place in places]


async def stored_events(memory: Store, path: Path) -> list[tuple]:
    events = path.with_name("validator.events.sqlite3")
    return rows(events, "SELECT pool, block, log_index, json_extract(args, '$[3]') FROM events ORDER BY 1, 2, 3")


def test_what_a_reorganisation_took_back_goes_with_what_came_instead(path):
    async def work(memory):
        await memory.add_events("other", 5, 9, pokes((7, 0)))
        await memory.add_events("pool", 5, 9, pokes((5, 1), (7, 0), (7, 3), (9, 2)))
        await memory.add_events("pool", 6, 8, [*pokes((7, 0)), *pokes((7, 2), amount=4), *pokes((8, 1))])
        assert await stored_events(memory, path) == [
            ("other", 7, 0, "0"),
            *(("pool", *row) for row in ((5, 1, "0"), (7, 0, "0"), (7, 2, "4"), (8, 1, "0"), (9, 2, "0"))),
        ]
        await memory.add_events("pool", 8, 9, pokes((8, 1), amount=5))
        assert (await stored_events(memory, path))[-1] == ("pool", 8, 1, "5")

    using(path, work)


def test_a_finished_round_keeps_the_events_it_was_scored_from_and_the_next_one_is_told(path):
    """Finished: blocks 100 to 109. A round that still runs has no evidence yet."""
    snapshot = replace(random_world(1).snapshot, block=100)

    async def work(memory):
        running = await a_round(memory, job="running", finish=False)
        done = await a_round(memory, finish=False)
        for round_id in (running, done):
            await memory.open_window(round_id, "pool", snapshot)
        await memory.add_events("pool", 100, 112, pokes((104, 1), (109, 1), (110, 1)))
        await memory.add_events("pool", 100, 112, pokes((104, 2), (109, 1), (110, 1)))
        await memory.finish_round(done, "job", a_result("alice"), 110, 1, {}, 0)
        held = (await stored.evidence(memory, done))["events"]
        before = await stored_events(memory, path)
        for changed in (pokes((109, 1), (110, 1)), pokes((104, 2), (109, 1), (109, 2), (110, 1))):
            with pytest.raises(MarketGap, match=f"round {done} was scored from"):
                await memory.add_events("pool", 100, 112, changed)
        with pytest.raises(MarketGap, match="block 100 is not"):
            await memory.open_window(running, "pool", replace(snapshot, tick=snapshot.tick + 1))
        assert await stored_events(memory, path) == before and (await stored.evidence(memory, done))["events"] == held
        await memory.open_window(
            running, "pool", replace(snapshot, idle0=9, vault_owner="me")
        )  # another vault, the same pool
        await memory.add_events("pool", 100, 112, pokes((104, 2), (109, 1), (110, 2), (111, 1)))  # after its close
        assert (await stored.evidence(memory, done))["events"] == held and len(await stored_events(memory, path)) == 4
        await memory.add_seal(done, {})
        assert await stored.prune(memory, 2**40) == 1
        await memory.add_events("pool", 100, 112, [])  # a pruned round has no evidence that could change
        assert await stored_events(memory, path) == []

    using(path, work)


def test_results_become_plain_json_with_numbers_as_strings():
    plain = to_json((a_line(), None, True, 5, Decimal("1E+3")))
    assert plain[0]["outcome"]["fees0"] == "10" and plain[0]["terms"]["loss0"] == "0.01" and plain[0]["range_"] is None
    assert plain[1:] == [None, True, "5", "1E+3"]
    json.dumps(plain)


def test_every_table_is_strict_and_the_schemas_make_what_they_say(path):
    using(path, lambda memory: memory.jobs())
    for file, migrations in ((path, JOBS_SCHEMA), (path.with_name("validator.events.sqlite3"), EVENTS_SCHEMA)):
        tables = rows(file, "SELECT name, sql FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
        assert tables and all("STRICT" in sql for _, sql in tables)
        assert schema(file)[0] == len(migrations)
    assert db_module.BUSY_TIMEOUT_SECONDS > 0
