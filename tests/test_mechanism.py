"""The seam for mechanisms: a fourth one in a file of its own is asked (or not), scored, sealed, audited, receipted,
resumed after a kill, shown and weighed beside liquidity, and no other file knows its name.

Run: `python -m pytest tests/test_mechanism.py`. Read next: `guessing.py`.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace

import pytest
from guessing import MECHANISM, Guess, Question
from subnets import ROOT, Subnet, a_job, forked, hotkey_of, keep, play_subnet, rows, write

from audit import stored
from audit.checks import audit
from audit.evidence import EvidenceError
from audit.receipts import issue, problems, read, seal_digest
from protocol import Job
from runtime.process import UserError
from spine.mechanism import Rules, load
from status import reporting
from store import Store
from validator import main as validator_command
from wire.codec import decode, encode
from wire.signing import local_keypair

UNASKED = replace(MECHANISM, name="unasked", query=None)
LATE = replace(MECHANISM, name="late", settle_seconds=600)
MECHANISMS = dict(load()) | {mechanism.name: mechanism for mechanism in (MECHANISM, UNASKED, LATE)}
GUESSES = {"a": 100, "b": 500, "c": 900}


def job(name: str) -> Job:
    return Job(f"{name}-job", "nobody's vault", 900, Rules(), live=True, mechanism=name)


def guess(name: str):
    async def answer(body: bytes) -> bytes:
        decode(Question, body, 1000)
        return encode(Guess(GUESSES[name])) if name != "c" else b'{"number":5000}'

    return answer


def play(folder: Path, rounds: int = 2, kill_at: int = 0) -> Subnet:
    """The toy and its variants beside a job of liquidity; dies when miner `a` is asked for the `kill_at`th time."""
    asked = 0

    def routes(name: str) -> dict:
        async def guessing(caller: str, body: bytes) -> bytes:
            nonlocal asked
            asked += name == "a"
            if name == "a" and asked == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return await guess(name)(body)

        return {"/guess": guessing}

    jobs = [a_job("liquid", checkpoint_blocks=30), *map(job, ("guessing", "unasked", "late"))]
    miners = dict.fromkeys(GUESSES, keep)
    return play_subnet(folder, miners, jobs, rounds=rounds, mechanisms=MECHANISMS, routes=routes)


@pytest.fixture(scope="module")
def played(tmp_path_factory) -> Subnet:
    return play(tmp_path_factory.mktemp("played"))


def evidence(subnet: Subnet) -> dict[str, list[dict]]:
    """Every round's, by job, in order."""

    async def main() -> dict[str, list[dict]]:
        found: dict[str, list[dict]] = {}
        async with Store.open(subnet.path) as store:
            for round_id in await store.finished():
                found.setdefault(round_id.split(":")[0], []).append(await stored.evidence(store, round_id))
        return found

    return asyncio.run(main())


def test_no_other_file_knows_its_name():
    files = subprocess.run(["git", "ls-files", "*.py", "*.html"], cwd=ROOT, capture_output=True, text=True).stdout
    known = {name for name in files.split() if "guessing" in (ROOT / name).read_text()}
    assert all(name.startswith("tests/") for name in known), known


def test_it_is_at_most_a_hundred_lines():
    assert len((ROOT / "tests" / "guessing.py").read_text().splitlines()) <= 100


def test_all_of_its_rounds_are_asked_scored_and_sealed(played):
    for name in ("liquid", "guessing-job", "unasked-job", "late-job"):
        sql = "SELECT code, asked, seal IS NOT NULL FROM rounds WHERE job_id = ?"
        assert played.rows(sql, name) == [("scored", 0 if name == "unasked-job" else 3, 1)] * 2, name
    lines = played.rows("SELECT hotkey, rank, score, line FROM scores WHERE round_id LIKE 'guessing-job:%'")
    assert len(lines) == 4  # `c` guesses beyond the limit: out, and nothing lost
    for hotkey, _, score, line in lines:
        assert Decimal(score) == 1000 - int(json.loads(line)["terms"]["distance"])
        assert hotkey in (hotkey_of("a"), hotkey_of("b"))
    codes = played.rows("SELECT DISTINCT code FROM predictions WHERE hotkey = ? AND round_id LIKE 'g%'", hotkey_of("c"))
    assert codes == [("amount_range",)]


def test_who_is_not_asked_is_scored_by_what_is_observed(played):
    found = played.rows("SELECT DISTINCT hotkey FROM scores WHERE round_id LIKE 'unasked-job:%'")
    assert {hotkey for (hotkey,) in found} >= {hotkey_of(name) for name in GUESSES}
    assert played.rows("SELECT * FROM predictions WHERE round_id LIKE 'unasked-job:%'") == []


def test_the_one_that_settles_late_is_decided_by_a_block_after_its_close(played):
    for row in evidence(played)["late-job"]:
        assert row["round"]["mechanism"] == "late" and row["settlement"]["hash"].startswith("0x")
    early, late = (evidence(played)[name][0]["settlement"] for name in ("guessing-job", "late-job"))
    assert early != late


def test_every_round_audits_by_its_mechanism_and_a_changed_digit_is_named(played):
    for rounds in evidence(played).values():
        for one in rounds:
            assert audit(one, MECHANISMS) == []
    one = evidence(played)["late-job"][0]
    for change, path in (
        ({"settlement": {"hash": "0x" + "1" * 64}}, "settlement"),
        ({"scores": one["scores"][::-1]}, "scores"),
        ({"round": one["round"] | {"winner": hotkey_of("c")}}, "round.winner"),
    ):
        assert any(problem.startswith(path) for problem in audit(one | change, MECHANISMS)), path
    with pytest.raises(EvidenceError, match="mechanism late, this program has liquidity; name its module"):
        audit(one)


def test_the_command_audits_it_where_its_module_is_named(played, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tests"))
    ours = [round_id for (round_id,) in played.rows("SELECT round_id FROM rounds WHERE job_id = 'guessing-job'")]
    command = ["audit", *ours, "--mechanism", "guessing", "--db", str(played.path)]
    for argv in (command, ["--mechanism", "guessing", "audit", *ours, "--db", str(played.path)]):
        assert validator_command(argv) == 0
        assert "2 rounds audited, 0 differ" in capsys.readouterr().out
    assert validator_command(["audit", *ours, "--db", str(played.path)]) == 1
    assert "name its module with --mechanism" in capsys.readouterr().out


def test_its_receipts_verify_and_a_false_score_does_not(played):
    key = local_keypair("validator-hotkey")
    for name, rounds in evidence(played).items():
        for one in rounds:
            for score in one["scores"]:
                receipt = issue(one, score["hotkey"], seal_digest(one), key)
                assert list(problems(read(receipt), one, MECHANISMS)) == [], name
    said = read(receipt)
    said["line"]["score"] = "999999"
    assert any("line.score" in problem for problem in problems(said, None, MECHANISMS))


def test_a_miner_that_nobody_asked_fetches_its_receipts_too(played):
    async def main() -> None:
        async with Store.open(played.path) as store:
            found, _ = await stored.asked_rounds(store, hotkey_of("c"), 0, 1000)
            mine = [round_id for _, round_id in found if round_id.startswith("unasked-job")]
            assert len(mine) == 2
            about, seal = await stored.evidence_about(store, mine[0], hotkey_of("c"))
            assert issue(about, hotkey_of("c"), seal, local_keypair("validator-hotkey"))["statement"]["line"]

    asyncio.run(main())


def test_it_is_weighed_beside_liquidity_by_its_share(tmp_path):
    subnet = play(tmp_path, rounds=1)
    assert subnet.codes() == ["scored"] * 4
    write(subnet.path, "INSERT INTO mechanisms VALUES ('guessing', '3')")
    write(subnet.path, "DELETE FROM weights")
    play(tmp_path, rounds=1)
    ((text,),) = subnet.rows("SELECT vector FROM weights ORDER BY id DESC LIMIT 1")
    weights = {hotkey: Decimal(part) for hotkey, part in json.loads(text).items()}
    (winner,) = {winner for (winner,) in subnet.rows("SELECT winner FROM rounds WHERE job_id = 'guessing-job'")}
    # three of six parts are guessing's, one each unasked's, late's and liquidity's; of the last nobody earned, it burns
    assert weights.pop(winner) == Decimal("0.5")
    assert len(weights) == 3 and "burn" in weights
    assert all(abs(part - Decimal(1) / 6) < Decimal("1e-27") for part in weights.values())


def test_a_share_of_zero_pays_nobody_of_that_mechanism(tmp_path):
    subnet = play(tmp_path, rounds=1)
    for name in ("unasked", "late", "liquidity"):
        write(subnet.path, "INSERT INTO mechanisms VALUES (?, '0')", name)
    write(subnet.path, "DELETE FROM weights")
    play(tmp_path, rounds=1)
    ((text,),) = subnet.rows("SELECT vector FROM weights ORDER BY id DESC LIMIT 1")
    winners = {hotkey for hotkey, part in json.loads(text).items() if Decimal(part) and hotkey != "burn"}
    assert winners <= {hotkey_of("a"), hotkey_of("b")} and len(winners) == 1


def test_killed_in_a_round_it_goes_on_to_the_same_end(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    assert forked(lambda: play(whole)) == 0
    assert os.WTERMSIG(forked(lambda: play(killed, kill_at=3))) == signal.SIGKILL
    assert rows(killed / "validator.sqlite3", "SELECT * FROM rounds WHERE code IS NULL")
    open_ones = len(rows(killed / "validator.sqlite3", "SELECT * FROM rounds WHERE mechanism != 'liquidity'"))
    assert open_ones
    assert forked(lambda: play(killed)) == 0
    sql = "SELECT round_id, code, winner, summary, settlement FROM rounds ORDER BY round_id"
    again = rows(killed / "validator.sqlite3", sql)
    assert set(rows(whole / "validator.sqlite3", sql)) <= set(again)
    assert all(code == "scored" for _, code, *_ in again)


def test_page_report_and_board_show_it(played, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(reporting, "load", lambda modules: MECHANISMS)
    target = tmp_path / "report.html"
    options = SimpleNamespace(report_db=str(played.path), rounds_shown=[], output=str(target), mechanism=[])
    asyncio.run(reporting.write_report(options))
    page = target.read_text()
    assert "guessing-job" in page and "unasked-job" in page and "late-job" in page and "distance" in page
    played.validator.board.show_latest()
    assert "distance" in capsys.readouterr().out


def test_a_module_without_a_mechanism_is_refused_in_a_line():
    for name in ("nowhere", "json"):
        with pytest.raises(UserError, match=f"--mechanism {name}: .*; name a module that has MECHANISM"):
            load([name])


def test_a_job_of_an_unknown_mechanism_is_off_and_named(tmp_path):
    subnet = play(tmp_path, rounds=1)

    async def main() -> tuple[list[str], dict[str, str]]:
        async with Store.open(subnet.path) as store:
            return [job.job_id for job in await store.jobs()], store.wrong

    good, wrong = asyncio.run(main())
    assert good == ["liquid"] and "no mechanism 'guessing'" in wrong["guessing-job"] and len(wrong) == 3
