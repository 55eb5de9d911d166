"""What an earlier release left: databases of schema 3, interrupted or finished, and receipts, are taken up by this one.

`golden/schema_3` was made by the release before rounds had mechanisms, with the miners and jobs of `test_resume.py`:
`interrupted` was killed (SIGKILL) in two rounds of each type, one of which had moved its vault; `finished` is
the whole run; `receipts.jsonl` are its receipts for an evaluation and a live round.

Run with `python -m pytest tests/test_earlier.py`. Read next: `test_resume.py`.
"""

from __future__ import annotations

import asyncio
import json
import lzma
from pathlib import Path

import pytest
from subnets import forked, rows
from test_resume import everything, play

from audit import stored
from audit.__main__ import main as audit_command
from store import Store
from validator import main as validator_command
from wire.codec import canonical

EARLIER = Path(__file__).parent / "golden" / "schema_3"


def unpacked(name: str, folder: Path) -> Path:
    """A folder as the earlier release left it."""
    for packed in (EARLIER / name).glob("*.xz"):
        (folder / packed.stem).write_bytes(lzma.decompress(packed.read_bytes()))
    assert rows(folder / "validator.sqlite3", "PRAGMA user_version") == [(3,)]
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    return unpacked("finished", tmp_path_factory.mktemp("finished"))


def test_rounds_that_an_earlier_release_was_killed_in_go_on_and_end_as_its_whole_run_did(tmp_path, finished):
    folder = unpacked("interrupted", tmp_path)
    open_ = rows(folder / "validator.sqlite3", "SELECT round_type, count(*) FROM rounds WHERE code IS NULL GROUP BY 1")
    assert open_ == [("evaluation", 2), ("live", 2)]
    assert forked(lambda: play(folder)) == 0
    ended = rows(folder / "validator.sqlite3", "SELECT code, rules_version FROM rounds WHERE code = 'scored'")
    assert ("scored", 1) in ended and ("scored", 2) in ended  # what was begun by the rules of then goes on by them
    found, expected = everything(folder), everything(finished)
    at = [column[1] for column in rows(folder / "validator.sqlite3", "PRAGMA table_info(rounds)")].index(
        "rules_version"
    )
    for one in (found, expected):
        one["validator.rounds"] = [(*row[:at], *row[at + 1 :]) for row in one["validator.rounds"]]
    for table in ("rounds", "predictions", "scores", "miner_scores", "miner_participation", "live_executions"):
        width = len(expected[f"validator.{table}"][0])  # what was added since stands behind
        assert sorted((row[:width] for row in found[f"validator.{table}"]), key=repr) == expected[f"validator.{table}"]
    assert found["validator.events.events"] == expected["validator.events.events"]


def test_every_round_of_an_earlier_release_is_audited_to_the_last_digit(finished, capsys):
    ended = rows(finished / "validator.sqlite3", "SELECT count(*) FROM rounds WHERE code IS NOT NULL")[0][0]
    assert validator_command(["audit", "all", "--db", str(finished / "validator.sqlite3")]) == 0
    out = capsys.readouterr().out
    agree, idle = out.count("every digit agrees"), out.count("no digit to recompute")
    assert agree and agree + idle == ended and f"{ended} rounds audited, 0 differ" in out
    assert rows(finished / "validator.sqlite3", "PRAGMA user_version")[0][0] > 3
    assert rows(finished / "validator.sqlite3", "SELECT DISTINCT mechanism, settlement FROM rounds") == [
        ("liquidity", None)
    ]


def test_receipts_of_an_earlier_release_verify_alone_and_against_the_evidence(finished, tmp_path, capsys):
    receipts = [json.loads(line) for line in (EARLIER / "receipts.jsonl").read_text().splitlines()]
    assert audit_command(["verify", str(EARLIER / "receipts.jsonl")]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(receipts) == 4

    async def evidence_of(round_id: str) -> dict:
        async with Store.open(finished / "validator.sqlite3") as store:
            return await stored.evidence(store, round_id)

    for receipt in receipts:
        evidence = asyncio.run(evidence_of(receipt["statement"]["round"]["round_id"]))
        (tmp_path / "receipt.json").write_bytes(canonical(receipt))
        (tmp_path / "round.json").write_bytes(canonical(evidence))
        command = ["verify", str(tmp_path / "receipt.json"), "--evidence", str(tmp_path / "round.json")]
        assert audit_command(command) == 0, capsys.readouterr().out
