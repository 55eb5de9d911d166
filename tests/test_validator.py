"""The validator: whole subnets as processes and in this one, what a round keeps and a crash leaves, weights, mistakes.

Run with `python -m pytest tests/test_validator.py`. Read next: `subnets.py` (how a subnet is put together here).
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
from subnets import (
    CAPITAL,
    ROOT,
    VAULT,
    a_job,
    accept,
    command,
    cut_recording,
    endpoints,
    hotkey_of,
    keep,
    listening,
    model,
    play_subnet,
    rebuilt,
    refuse,
    rows,
    standings,
    start,
    stored_lines,
    stored_rounds,
    stored_standings,
    swaps_between,
    wait_for,
    write,
    write_meanwhile,
)

import validator
from chain.base import ChainError
from chain.local import OWNER_HOTKEY, block_at
from markets.model import FIRST_BLOCK, FIRST_TIME, ModelMarket
from markets.recordings import RecordedMarket, read_recording
from protocol import JobSettings, Position, RebalanceQuery
from spine import asking
from wire.codec import encode, to_json

GOLDEN = Path(__file__).parent / "golden" / "model_seed_98.txt"
ARBITRUM, POLYGON = "arbitrum_weth_usdt_500_2025-06-27_07-01", "polygon_usdc_weth_500_2022-01-05"
MODEL_RUN = ("validator.py", "--rounds", 3, "--all-leaderboards", "--seed", 98)
DAY = 86_400


def ids(path: Path) -> set[str]:
    return {round_id for (round_id,) in rows(path, "SELECT round_id FROM rounds")}


def agrees(path: Path, round_id: str) -> bool:
    """Whether a round, played again from the databases, gives every stored digit of every line."""
    result, stored = rebuilt(path, round_id), stored_lines(path, round_id)
    again = {line.name: line for line in result.lines}
    again |= result.baselines
    return stored == {name: to_json(line) for name, line in again.items()} and len(stored) > 1


# ---------------------------------------------------------------------------------------------------------------------
# The programs, on the model and on a recording


@pytest.fixture(scope="session")
def model_runs(tmp_path_factory):
    """The same run twice, side by side, so that they disturb each other: (folder, completed process) of each."""
    folders = [tmp_path_factory.mktemp("model") for _ in range(2)]
    running = [
        subprocess.Popen(
            [sys.executable, *map(str, MODEL_RUN), "--dir", str(folder)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for folder in folders
    ]
    ended = [(process.communicate(timeout=120), process.returncode) for process in running]
    return [
        (folder, subprocess.CompletedProcess(MODEL_RUN, code, *outputs))
        for folder, (outputs, code) in zip(folders, ended, strict=True)
    ]


@pytest.fixture(scope="session")
def model_run(model_runs):
    return model_runs[0]


@pytest.fixture(scope="session")
def recording_run(tmp_path_factory, recording_path):
    folder, path = tmp_path_factory.mktemp("recording"), recording_path(ARBITRUM)
    return folder, command("validator.py", "--events", path, "--rounds", 3, "--all-leaderboards", "--dir", folder)


def test_a_newcomer_sees_that_it_is_local_and_a_model_then_rounds_weights_and_what_to_do_next(model_run):
    folder, run = model_run
    assert run.returncode == 0, run.stderr
    first, second, third, *_ = run.stdout.splitlines()
    assert first.startswith("LOCAL MODE") and "--netuid" in second
    assert third.startswith("MARKET: MODEL") and "no real pool" in third
    assert "ROUNDS: 6 evaluation scored" in run.stdout
    assert re.search(r"^WEIGHTS on the embedded chain: (wide|preserve) 5\w+\.\.\w+ [01]\.\d{3}", run.stdout, re.M)
    assert str(folder / "validator.sqlite3") in run.stdout.split("NEXT:")[1] and "propose()" in run.stdout
    assert "Traceback" not in run.stderr and "WARNING" not in run.stderr


def test_each_leaderboard_shows_all_terms_of_all_miners_beside_the_three_baselines(model_run, recording_run):
    columns = [
        "rank",
        "miner",
        "score",
        "fees",
        "drift",
        "divergence",
        "costs",
        "inventory loss",
        "penalty",
        "in range",
    ]
    columns += ["changes", "rep. excess", "rep. seed"]
    for _, run in (model_run, recording_run):
        boards = parse_boards(run.stdout)
        assert len(boards) == 6
        for board in boards:
            assert re.split(r"  +", board["columns"].strip()) == columns
            assert [row["name"].split()[0] for row in board["rows"][3:]] == ["keep", "hold", "best"]
            assert {row["name"].split()[0] for row in board["rows"][:3]} == {"keep", "wide", "preserve"}
            assert [row["rank"] for row in board["rows"]] == ["1", "2", "3", "", "", ""]
            assert "best fixed range in hindsight" in board["foot"]
            assert "MODEL" in board["head"] or "recording" in board["head"]


def test_the_terms_of_every_printed_row_add_up_within_rounding(model_run, recording_run):
    half = 0.00005  # what is printed is rounded to four decimals
    for _, run in (model_run, recording_run):
        for board in parse_boards(run.stdout):
            for row in board["rows"]:
                score, fees, drift, divergence, costs, penalty = (
                    row[name] for name in ("score", "fees", "drift", "divergence", "costs", "penalty")
                )
                if "target Balanced" in board["head"]:
                    expected, slack = fees + divergence - costs, 4 * half
                else:
                    gain = drift + fees + divergence - costs
                    expected = gain * penalty if gain >= 0 else gain / penalty
                    slack = 5 * half / penalty + abs(gain) * half / min(1, penalty**2) + half
                copy_or_idle = score < expected  # such rows count as *keep* at most
                assert abs(score - expected) <= slack or copy_or_idle, row
                if row["name"] in ("keep", "hold", "best"):
                    assert abs(score - expected) <= slack, row
                loss = float(row["inventory loss"].rstrip("%")) / 100
                assert abs(penalty - 2.718281828459045 ** (-10 * loss)) < 0.0002


def test_the_same_seed_prints_the_same_digits_twice_and_on_every_python(model_runs):
    one, two = (run.stdout.replace(str(folder), "DIR") for folder, run in model_runs)
    assert one == two
    boards = one[one.index("== ") : one.index("ROUNDS:")]
    assert boards == GOLDEN.read_text(), f"if the rules have changed, put the leaderboards of this there: {MODEL_RUN}"


def test_stored_rounds_recompute_to_the_last_digit_from_the_two_databases_alone(model_run, recording_run):
    for folder, _ in (model_run, recording_run):
        path = folder / "validator.sqlite3"
        played = stored_rounds(path)
        assert len(played) == 6 and all(agrees(path, round_id) for round_id in played)
        assert standings(path) == stored_standings(path)


def test_the_audit_agrees_with_every_stored_round_and_finds_one_changed_digit(model_run, tmp_path, capsys):
    copy = shutil.copytree(model_run[0], tmp_path / "copy")
    path = copy / "validator.sqlite3"
    assert validator.main(["audit", "all", "--db", str(path)]) == 0
    assert capsys.readouterr().out.endswith("12 rounds audited, 0 differ, 6 were not played\n")
    round_id = stored_rounds(path)[0]
    write(path, 'UPDATE scores SET line = replace(line, \'"fees0":"\', \'"fees0":"1\') WHERE round_id = ?', round_id)
    assert validator.main(["audit", round_id, "--db", str(path)]) == 1
    assert "fees0" in capsys.readouterr().out


def test_every_ask_is_kept_with_its_answer_and_what_follows_from_it(model_run):
    path = model_run[0] / "validator.sqlite3"
    assert rows(path, "SELECT count(*) FROM predictions WHERE code = 'accepted'") == [(2 * 3 * 3 * 3,)]
    assert rows(path, "SELECT count(*) FROM predictions WHERE length(answer) = 0 OR length(signature) != 128") == [(0,)]
    assert rows(path, "SELECT DISTINCT day FROM miner_participation") == [(FIRST_TIME // DAY,)]
    assert rows(path, "SELECT count(*) FROM miner_participation") == [(2 * 3,)]
    assert rows(path, "SELECT DISTINCT evaluations, lives FROM miner_scores") == [(3, 0)]
    assert rows(path, "SELECT count(*) FROM rounds WHERE round_type = 'live' AND code = 'live_no_winner'") == [(4,)]
    assert rows(path, "SELECT count(*) FROM rounds WHERE round_type = 'live' AND code = 'live_not_eligible'") == [(2,)]


def test_weights_are_set_on_the_embedded_chain_and_sum_to_one(model_run, recording_run):
    for folder, _ in (model_run, recording_run):
        attempts = rows(folder / "validator.sqlite3", "SELECT vector, uids, code, block, next_block FROM weights")
        assert attempts
        for vector, uids, code, block, next_block in attempts:
            assert sum(map(Decimal, json.loads(vector).values())) == sum(map(Decimal, json.loads(uids).values())) == 1
            assert code == "weights_set" and next_block == block + 360
        ((stored,),) = rows(folder / "chain.sqlite3", "SELECT vector FROM weights")
        sent = {uid: Decimal(part) for uid, part in json.loads(attempts[-1][1]).items()}
        assert json.loads(stored) == {uid: round(65535 * part / max(sent.values())) for uid, part in sent.items()}


def test_a_recording_is_called_one_and_its_live_rounds_are_skipped_with_the_reason(recording_run):
    folder, run = recording_run
    assert run.returncode == 0, run.stderr
    assert f"MARKET: recording {ARBITRUM} (arbitrum); its block hashes are synthetic" in run.stdout
    skipped = rows(folder / "validator.sqlite3", "SELECT DISTINCT code, detail FROM rounds WHERE round_type = 'live'")
    assert skipped == [("live_read_only_market", "what happened has happened")]


def parse_boards(text: str) -> list[dict]:
    """The leaderboards of an output: head, columns, rows and foot of each."""
    boards = []
    for block in text.split("\n\n"):
        if "== " not in block:
            continue
        lines = block[block.index("== ") :].splitlines()
        names = ["score", "fees", "drift", "divergence", "costs", "inventory loss", "penalty", "in range", "changes"]
        found = []
        for line in lines[3:9]:
            rank, name, cells = re.fullmatch(r" *(\d*) +(\S.*?)  +([-+]\d.*)", line).groups()
            values = [
                cell if "%" in cell else float(cell.replace(",", "")) for cell in re.split(r" +", cells.strip())[:9]
            ]
            found.append({"rank": rank, "name": name, **dict(zip(names, values, strict=True))})
        boards.append({"head": " ".join(lines[:2]), "columns": lines[2], "rows": found, "foot": " ".join(lines[9:])})
    return boards


# ---------------------------------------------------------------------------------------------------------------------
# Recordings that end, have a swap of unknown call, or a gap


def test_a_recording_that_ends_in_a_round_voids_it_and_ends_well_and_again_when_run_again(recording_path, tmp_path):
    def hide_one_call(lines):
        swaps_between(lines, 4000, 5000)[0][4] = "?"  # in the round from 01:00 to 01:30
        return lines

    path = cut_recording(recording_path(POLYGON), tmp_path / "cut", 8400, hide_one_call)
    folder = tmp_path / "local"
    options = ("validator.py", "--events", path, "--round-seconds", 1800, "--dir", folder)
    for _ in range(2):
        run = command(*options)
        assert run.returncode == 0 and "Traceback" not in run.stderr, run.stderr
        assert (
            "ROUNDS: 4 evaluation scored, 2 evaluation void_interrupted, 2 evaluation void_unknown_swap" in run.stdout
        )
        assert "NEXT:" in run.stdout
        ended = rows(folder / "validator.sqlite3", "SELECT round_id, code, detail FROM rounds WHERE code LIKE 'void%'")
        for _, code, detail in ended:
            assert "ends" in detail if code == "void_interrupted" else "1 swaps of unknown call" in detail
        assert len(ids(folder / "validator.sqlite3")) == 16
        assert standings(folder / "validator.sqlite3") == stored_standings(folder / "validator.sqlite3")


def test_a_real_swap_of_unknown_call_voids_its_round_and_nobody_gains_or_loses(recording_path, tmp_path):
    def market():
        recording = read_recording(recording_path(POLYGON))
        venue = RecordedMarket(recording)
        return RecordedMarket(recording, head=venue.number_at(recording.start_time + 79_000))  # 21:56

    job = replace(a_job(round_seconds=3600), vault=market().vault)
    subnet = play_subnet(tmp_path, {"a": keep}, [job], market, rounds=2)
    ((code, detail, winner),) = subnet.rows("SELECT code, detail, winner FROM rounds ORDER BY start_time LIMIT 1")
    assert (code, detail, winner) == ("void_unknown_swap", "2 swaps of unknown call in the window", None)
    assert subnet.codes() == ["void_unknown_swap", "void_interrupted"]  # the next one runs into the end
    assert stored_standings(subnet.path) == {} and subnet.rows("SELECT * FROM miner_participation") == []


# ---------------------------------------------------------------------------------------------------------------------
# Signals, kill -9, and a miner in a second process


def test_killed_in_the_middle_and_started_again_it_ends_what_was_open_and_applies_nothing_twice(model_run, tmp_path):
    folder, path = tmp_path / "local", tmp_path / "local" / "validator.sqlite3"
    with start("validator.py", "--dir", folder, "--days", 0, folder=tmp_path) as process:
        wait_for("four scored rounds", lambda: len(stored_rounds(path)) >= 4, process)
        process.kill()
    wait_for("the miners' end", lambda: not listening(endpoints(folder)))
    with closing(sqlite3.connect(path)) as db:  # what a crash leaves is whole
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    interrupted = {round_id for (round_id,) in rows(path, "SELECT round_id FROM rounds WHERE code IS NULL")}
    before = {round_id: stored_lines(path, round_id) for round_id in stored_rounds(path)}
    assert standings(path) == stored_standings(path)

    run = command("validator.py", "--dir", folder, "--rounds", 2)
    assert run.returncode == 0, run.stderr
    for round_id in interrupted:
        ((code,),) = rows(path, "SELECT code FROM rounds WHERE round_id = ?", round_id)
        assert code == ("live_no_winner" if ":live:" in round_id else "scored")
        assert f"{round_id} was interrupted and goes on" in run.stderr
    assert {round_id: stored_lines(path, round_id) for round_id in before} == before
    assert len(stored_rounds(path)) == len(before) + 4
    assert all(agrees(path, round_id) for round_id in stored_rounds(path))
    assert standings(path) == stored_standings(path)
    undisturbed = model_run[0] / "validator.sqlite3"  # the same market: the same rounds have the same digits
    common = set(stored_rounds(path)) & set(stored_rounds(undisturbed))
    assert common
    for round_id in common:
        for name, line in stored_lines(path, round_id).items():
            other = stored_lines(undisturbed, round_id)[name]
            assert (line["outcome"], line["terms"]) == (other["outcome"], other["terms"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_validator_and_miners_and_leaves_whole_databases(tmp_path, number):
    folder, path = tmp_path / "local", tmp_path / "local" / "validator.sqlite3"
    with start("validator.py", "--dir", folder, "--days", 0, "--port", 0, folder=tmp_path) as process:
        wait_for("a scored round", lambda: stored_rounds(path), process)
        process.send_signal(number)
        assert process.wait(timeout=60) == 0
    assert len(endpoints(folder)) == 4 and not listening(endpoints(folder))  # three miners and the validator's own
    log = (tmp_path / "validator.err").read_text()
    assert f"stopped by {number.name}" in log and "Traceback" not in log
    for file in folder.glob("*.sqlite3"):
        with closing(sqlite3.connect(file)) as db:
            assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert standings(path) == stored_standings(path)


def test_a_miner_in_a_second_process_joins_the_running_subnet_and_appears_on_the_leaderboard(tmp_path):
    folder, path = tmp_path / "local", tmp_path / "local" / "validator.sqlite3"
    mine = hotkey_of("mine")
    with start("validator.py", "--dir", folder, "--days", 0, "--all-leaderboards", folder=tmp_path) as subnet:
        wait_for("a scored round", lambda: stored_rounds(path), subnet)
        with start("miner.py", "--name", "mine", "--port", 0, "--dir", folder, folder=tmp_path) as newcomer:
            wait_for("its score", lambda: rows(path, "SELECT 1 FROM scores WHERE hotkey = ? LIMIT 1", mine), newcomer)
            shown = f"{mine[:6]}..{mine[-6:]}"
            wait_for("its row", lambda: shown in (tmp_path / "validator.out").read_text(), subnet)
            for process in (newcomer, subnet):
                process.send_signal(signal.SIGINT)
                assert process.wait(timeout=60) == 0
    assert f"hotkey {mine}" in (tmp_path / "miner.out").read_text() and "LOCAL" in (tmp_path / "miner.out").read_text()
    assert standings(path) == stored_standings(path)


# ---------------------------------------------------------------------------------------------------------------------
# Who takes part, and what an answer does


def all_in(query: RebalanceQuery, half_width: int = 600) -> list[Position]:
    """Everything in one range around the price."""
    spacing = query.tick_spacing
    middle = query.tick // spacing * spacing
    return [Position(middle - half_width, middle + half_width, *query.holdings())]


def first_then(first, later):
    """A miner that answers a round's first ask in one way and all later ones in another."""
    return lambda query: (first if query.block_time < query.window_start_time else later)(query)


async def asleep(query: RebalanceQuery) -> None:
    await asyncio.sleep(1.6)


def broken(query: RebalanceQuery):
    raise RuntimeError("a bug")


def too_much(query: RebalanceQuery) -> list[Position]:
    amount0, amount1 = query.holdings()
    return [Position(-600, 600, amount0 + 1, amount1)]


def test_refusing_the_first_ask_costs_nothing_and_the_reason_is_shown(tmp_path, capsys):
    def a(query):
        return keep(query) if query.window_start_time == FIRST_TIME + 900 else refuse("too wild for me")

    subnet = play_subnet(tmp_path, {"a": a, "b": keep}, [a_job(target="Balanced")], rounds=2)
    assert sorted(subnet.ranked()) == ["a", "b", "b"]
    assert [ask[:2] for ask in subnet.asks("a")][-1] == ("refused", "too wild for me")
    assert "not ranked: a " in (out := capsys.readouterr().out) and "refused too wild for me" in out
    assert standings(subnet.path) == stored_standings(subnet.path)
    assert subnet.rows("SELECT evaluations FROM miner_scores ORDER BY evaluations") == [(1,), (2,)]
    assert len(subnet.asked["a"]) == 3 + 1  # who refused is not asked again in that round


def test_once_accepted_a_refusal_silence_or_nonsense_means_keep_and_is_scored(tmp_path, monkeypatch):
    monkeypatch.setattr(asking, "ASK_SECONDS", 0.8)
    later = {"refuses": lambda _: refuse("no more"), "sleeps": asleep, "breaks": broken, "lies": too_much}
    later |= {"babbles": lambda _: b"[]", "obeys": lambda query: query.current_positions}
    miners = {name: first_then(all_in, handler) for name, handler in later.items()}
    subnet = play_subnet(tmp_path, miners, [a_job(min_in_range=Decimal(0))])
    assert subnet.codes() == ["scored"] and sorted(subnet.ranked()) == sorted(miners)
    codes = {name: [ask[0] for ask in subnet.asks(name)] for name in miners}
    assert codes.pop("obeys") == ["accepted"] * 3
    assert set(map(tuple, codes.values())) == {("accepted", "kept", "kept")}
    details = {name: subnet.asks(name)[1][1] for name in miners}
    assert (
        details["refuses"] == "refused: no more"
        and "no complete answer" in details["sleeps"]
        and "500" in details["breaks"]
    )
    assert "declared" in details["lies"] and "an object is expected" in details["babbles"]
    lines = stored_lines(subnet.path, "job:evaluation:1767226500")
    own = [lines[hotkey_of(name)] for name in miners]
    assert all((line["outcome"], line["terms"]) == (own[0]["outcome"], own[0]["terms"]) for line in own)
    assert own[0]["outcome"] != lines["keep"]["outcome"]  # they keep what they have, not what the vault had
    for name in miners:
        ranges = [[(p.tick_lower, p.tick_upper) for p in query.current_positions] for query in subnet.asked[name]]
        assert ranges[1] == ranges[2] != ranges[0] and len(ranges[1]) == 1
    assert agrees(subnet.path, "job:evaluation:1767226500")


def test_an_invalid_first_answer_is_out_with_the_code_of_the_rule_it_breaks(tmp_path, monkeypatch):
    monkeypatch.setattr(asking, "ASK_SECONDS", 0.8)

    def one(lower, upper):
        return lambda query: [Position(lower, upper, 0, 0)]

    wrong = {
        "over_allocated": too_much,
        "tick_spacing": one(-605, 600),
        "tick_order": one(600, 600),
        "tick_range": one(-887280, 600),
        "too_many_positions": lambda query: [Position(-10, 10, 0, 0)] * 11,
        "malformed": lambda query: b'{"accepted": true}',
        "amount_range": lambda query: encode(accept(one(-10, 10)(query))).replace(b'"0"', b'"-1"'),
        "http_status": broken,
        "reply_too_large": lambda query: b" " * 40_000,
        "timeout": asleep,
    }

    async def a_ghost(subnet, store, chain, market):
        await chain.register(hotkey_of("ghost"), "its coldkey")  # registered, never served
        await chain.register(hotkey_of("gone"), "its coldkey")
        await write_meanwhile(
            tmp_path / "chain.sqlite3", "UPDATE neurons SET address = '127.0.0.1:9' WHERE hotkey = ?", hotkey_of("gone")
        )

    subnet = play_subnet(tmp_path, {**wrong, "good": keep}, [a_job()], prepare=a_ghost)
    assert subnet.ranked() == ["good"]
    assert {name: [ask[0] for ask in subnet.asks(name)] for name in wrong} == {name: [name] for name in wrong}
    assert [ask[0] for ask in subnet.asks("gone")] == ["unreachable"] and subnet.asks("ghost") == []
    assert all(detail for name in wrong for _, detail, *_ in subnet.asks(name))
    assert [ask[0] for ask in subnet.asks("good")] == ["accepted"] * 3


def test_what_a_miner_says_cannot_break_the_round_the_table_or_the_terminal(tmp_path, capsys):
    said = {"escape": "\x1b[2J", "lines": "\n== fake: rank 1\r", "half": "\ud800", "turned": "\u202e \U0001f600" * 90}
    evil = {name: lambda _, text=text: refuse(text) for name, text in said.items()}
    subnet = play_subnet(tmp_path, {**evil, "good": keep}, [a_job("a:job")])
    assert subnet.codes() == ["scored"] and subnet.ranked() == ["good"]
    shown = capsys.readouterr().out
    assert shown.isascii() and "\x1b" not in shown and ("\n" + shown).count("\n== ") == 1
    assert {name: [ask[0] for ask in subnet.asks(name)] for name in evil} == {
        "escape": ["malformed"],
        "lines": ["malformed"],
        "half": ["malformed"],
        "turned": ["refused"],
    }
    ((_, detail, *_),) = subnet.asks("turned")
    assert detail.startswith(r"\u202e \U0001f600") and len(detail) <= 300


def test_all_first_answers_act_at_the_opening_and_later_ones_at_the_next_block(tmp_path):
    async def slow(query):
        await asyncio.sleep(0.05)
        return all_in(query, 900)

    subnet = play_subnet(tmp_path, {"quick": all_in, "slow": slow, "keeper": keep}, [a_job()])
    opening = FIRST_BLOCK + 450  # the first block at or after 00:15, two seconds each
    assert subnet.rows("SELECT opening_block, close_block FROM rounds") == [(opening, opening + 450)]
    for name in subnet.asked:
        assert [ask[2:] for ask in subnet.asks(name)] == [
            (opening, opening),
            (opening + 151, opening + 150),
            (opening + 301, opening + 300),
        ]
        asked = subnet.asked[name]
        assert [query.block_number for query in asked] == [opening - 37, opening + 150, opening + 300]  # 75 s before
        assert [query.deadline - query.window_start_time for query in asked] == [-15, 360, 660]
        assert all(query.window_start_block == opening for query in asked)


def test_a_query_shows_the_miners_own_book_and_its_holdings_are_all_there_is_to_open(tmp_path):
    script = iter([all_in, lambda query: [], all_in])  # open, close everything, open again with every unit there is
    subnet = play_subnet(tmp_path, {"mover": lambda query: next(script)(query), "keeper": keep}, [a_job()])
    first, second, third = subnet.asked["mover"]
    assert [ask[0] for ask in subnet.asks("mover")] == ["accepted"] * 3
    assert [query.rebalances_so_far for query in (first, second, third)] == [0, 1, 2]
    assert len(second.current_positions) == 1 and second.uncollected_fees.amount0 + second.uncollected_fees.amount1 > 0
    assert third.current_positions == () and third.uncollected_fees.amount0 == third.uncollected_fees.amount1 == 0
    assert third.holdings() == (third.inventory_remaining.amount0, third.inventory_remaining.amount1)
    assert third.holdings() == second.holdings()  # it closed before the first event after what it was shown
    keeper = subnet.asked["keeper"]
    ticks = [[(p.tick_lower, p.tick_upper) for p in query.current_positions] for query in keeper]
    assert ticks[0] == ticks[1] == ticks[2] and [query.rebalances_so_far for query in keeper] == [0, 0, 0]
    assert keeper[0] == first and keeper[1].sqrt_price_x96 == second.sqrt_price_x96


def test_answers_that_take_market_time_act_at_the_first_block_after_it_and_are_scored_as_stored(tmp_path):
    def moving(query):
        return all_in(query, 400 + query.block_number % 7 * 100)

    for name in ("1", "2"):
        (tmp_path / name).mkdir()
    quick = play_subnet(tmp_path / "1", {"a": moving}, [a_job()], latency_seconds=33)
    assert [acts - due for *_, acts, due in quick.asks("a")] == [0, 17, 17]  # 34 s, in blocks of 2 s
    late = play_subnet(tmp_path / "2", {"a": moving}, [a_job()], latency_seconds=700)
    assert [acts - due for *_, acts, due in late.asks("a")] == [0, 351]  # too late; not asked again while it is open
    for subnet in (quick, late):
        assert agrees(subnet.path, "job:evaluation:1767226500")
    changes = [
        stored_lines(s.path, "job:evaluation:1767226500")[hotkey_of("a")]["outcome"]["changes"] for s in (quick, late)
    ]
    assert changes == ["3", "1"]


def test_a_market_with_a_pace_gives_the_same_evidence_whenever_answers_arrive(tmp_path):
    async def slow(query):
        if query.block_time >= query.window_start_time:
            await asyncio.sleep(0.02)
        return all_in(query, 400 + query.block_number % 7 * 100)

    subnet = play_subnet(
        tmp_path,
        {"a": slow, "b": keep},
        [a_job(round_seconds=150, checkpoint_blocks=25)],
        lambda: model(pace=60, head=FIRST_BLOCK + 412),
        pace=60,
    )
    assert subnet.codes() == ["scored"] and subnet.ranked()
    assert agrees(subnet.path, stored_rounds(subnet.path)[0])
    later = [(code, acts, due) for name in ("a", "b") for code, _, acts, due in subnet.asks(name)[1:]]
    assert any(code == "accepted" for code, *_ in later)
    assert all(acts > due if code == "accepted" else acts is None for code, acts, due in later)


def test_a_round_ends_with_its_last_block_however_far_the_next_checkpoint_would_be(tmp_path):
    subnet = play_subnet(tmp_path, {"a": all_in}, [a_job(checkpoint_blocks=100_000)], rounds=3)
    known = [Decimal(combined) for (combined,) in subnet.rows("SELECT combined FROM entrants ORDER BY round_id")]
    assert known[0] == 0 and len(set(known)) == 3  # each opening knows the result of the round that ends with it


# ---------------------------------------------------------------------------------------------------------------------
# Jobs


def test_jobs_are_switched_off_added_and_changed_while_it_runs(tmp_path):
    starts = [FIRST_TIME + 900 * n for n in range(1, 7)]

    async def a(query):
        if (query.job_id, query.window_start_time) == ("one", starts[1]) and query.block_time < starts[1]:
            path = tmp_path / "validator.sqlite3"
            changed = encode(JobSettings.for_target("MaxFees", checkpoint_blocks=200)).decode()
            await write_meanwhile(path, "UPDATE jobs SET settings = ? WHERE job_id = 'one'", changed)
            await write_meanwhile(path, "UPDATE jobs SET active = 0 WHERE job_id = 'two'")
            await write_meanwhile(
                path,
                "INSERT INTO jobs SELECT 'new', vault, 1800, ?, 0, 1, mechanism FROM jobs WHERE job_id = 'one'",
                changed,
            )
        return keep(query)

    subnet = play_subnet(tmp_path, {"a": a}, [a_job("one"), a_job("two", round_seconds=1800)], rounds=3)
    played = {job: [] for job in ("one", "two", "new")}
    for job, begun, settings in subnet.rows("SELECT job_id, start_time, settings FROM rounds ORDER BY start_time"):
        rules = json.loads(settings)
        played[job].append((begun, rules["target"], rules["checkpoint_blocks"]))
    assert played["one"] == [(starts[0], "PoL", 150), (starts[1], "PoL", 150), (starts[2], "MaxFees", 200)]
    assert played["two"] == [(starts[1], "PoL", 150)]  # its first round had begun: it is played to its end
    assert played["new"] == [(starts[n], "MaxFees", 200) for n in (3, 5)] + [(FIRST_TIME + 900 * 8, "MaxFees", 200)]
    assert set(subnet.codes()) == {"scored"} and len(subnet.asked["a"]) > 20
    assert all(agrees(subnet.path, round_id) for round_id in stored_rounds(subnet.path))


def test_a_new_round_length_counts_from_the_next_multiple_of_it(tmp_path):
    async def a(query):
        if query.window_start_time == FIRST_TIME + 900:
            await write_meanwhile(tmp_path / "validator.sqlite3", "UPDATE jobs SET round_seconds = 1200")
        return keep(query)

    subnet = play_subnet(tmp_path, {"a": a}, [a_job()], rounds=3)
    times = subnet.rows("SELECT start_time, end_time FROM rounds ORDER BY start_time")
    assert [(one - FIRST_TIME, two - FIRST_TIME) for one, two in times] == [(900, 1800), (2400, 3600), (3600, 4800)]


def test_a_job_whose_row_is_gone_is_off_and_one_for_an_unknown_vault_says_so_and_harms_no_other(tmp_path):
    async def a(query):
        await write_meanwhile(tmp_path / "validator.sqlite3", "DELETE FROM jobs WHERE job_id = 'gone'")
        return keep(query)

    jobs = [
        a_job("here"),
        a_job("gone", round_seconds=7200),
        replace(a_job("lost"), vault="who"),
    ]
    subnet = play_subnet(tmp_path, {"a": a}, jobs, rounds=2)
    ended = subnet.rows("SELECT job_id, code, detail FROM rounds WHERE round_type = 'evaluation' ORDER BY round_id")
    assert [row[:2] for row in ended] == [("here", "scored")] * 2 + [("lost", "void_interrupted")] * 2
    assert "vault 'who'" in ended[-1][2]


# ---------------------------------------------------------------------------------------------------------------------
# Live rounds


def ranked_before(days: int):
    """Prepare: miner `a` was ranked on that many days before the first one."""

    async def prepare(subnet, *_):
        for n in range(1, days + 1):
            row = ("job", hotkey_of("a"), FIRST_TIME // DAY - 2 * n + 1)  # every other day
            await write_meanwhile(subnet.path, "INSERT INTO miner_participation VALUES (?, ?, ?, 0)", *row)

    return prepare


def test_a_proven_winner_manages_the_vault_and_the_stored_outcome_is_the_simulated_books(tmp_path, caplog, capsys):
    def a(query):
        return all_in(query, 300 + query.block_number // 150 % 5 * 100) if query.block_number % 4 else keep(query)

    with caplog.at_level(logging.INFO):
        subnet = play_subnet(tmp_path, {"a": a}, [a_job(live=True)], rounds=5, prepare=ranked_before(6))
    # the first evaluation has ended when the third live ask leaves, and made it seven days
    assert subnet.codes("live") == ["live_no_winner", "live_no_winner", "scored", "scored", "scored"]
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []
    played = stored_rounds(subnet.path, "live")
    for round_id in played:
        assert agrees(subnet.path, round_id)
        assert subnet.rows("SELECT detail, winner, asked FROM rounds WHERE round_id = ?", round_id) == [
            ("", hotkey_of("a"), 1)
        ]
    executed = subnet.rows("SELECT execution FROM live_executions ORDER BY block")
    assert len(executed) >= 3
    for (text,) in executed:
        done = json.loads(text)
        for n in (0, 1):
            paid = int(done["before"][n]) + int(done["released"][n]) + int(done["fees"][n]) - int(done["paid"][n])
            assert paid == int(done["after"][n]) >= 0
    asks = [ask for ask in subnet.asks("a", "live") if ask[0] == "accepted"]
    blocks = {block for (block,) in subnet.rows("SELECT block FROM live_executions")}
    assert len(asks) == 9 and blocks <= {acts for _, _, acts, _ in asks}
    live = [query for query in subnet.asked["a"] if query.round_type == "live"]
    assert {query.current_positions for query in live} != {live[0].current_positions}
    assert subnet.rows("SELECT evaluations, lives FROM miner_scores") == [(5, 3)]
    assert standings(subnet.path) == stored_standings(subnet.path)
    assert all(agrees(subnet.path, round_id) for round_id in stored_rounds(subnet.path))
    assert "LIVE, on the vault itself" in capsys.readouterr().out


def test_six_days_are_not_enough_for_a_live_round(tmp_path):
    subnet = play_subnet(tmp_path, {"a": keep}, [a_job(live=True)], rounds=3, prepare=ranked_before(5))
    ((detail,),) = subnet.rows("SELECT detail FROM rounds WHERE code = 'live_not_eligible'")
    assert detail == f"{hotkey_of('a')} was ranked on 6 of the last 14 days, 7 are needed"
    assert subnet.codes("live") == ["live_no_winner", "live_no_winner", "live_not_eligible"]
    assert subnet.rows("SELECT * FROM live_executions") == [] and subnet.codes() == ["scored"] * 3


def test_a_winner_that_refuses_or_is_gone_has_no_substitute_and_silence_in_a_live_round_is_keep(tmp_path, monkeypatch):
    monkeypatch.setattr(asking, "ASK_SECONDS", 0.8)
    starts = [FIRST_TIME + 900 * n for n in range(1, 6)]

    async def a(query):
        first = query.block_time < query.window_start_time
        if query.round_type == "live" and query.window_start_time == starts[2]:
            return refuse("not with real money")
        if query.round_type == "live" and not first:
            return await asleep(query)
        if query.round_type == "evaluation" and query.window_start_time == starts[4] and not first:
            await write_meanwhile(
                tmp_path / "chain.sqlite3", "UPDATE neurons SET address = NULL WHERE hotkey = ?", hotkey_of("a")
            )
        return all_in(query, 400)

    job = a_job(target="MaxFees", live=True)
    subnet = play_subnet(tmp_path, {"a": a, "b": keep}, [job], rounds=6, prepare=ranked_before(6))
    assert subnet.codes("live")[2:] == ["refused", "scored", "scored", "live_winner_gone"]
    ((refused,),) = subnet.rows("SELECT detail FROM rounds WHERE round_type = 'live' AND code = 'refused'")
    assert refused == f"{hotkey_of('a')}: not with real money"
    assert [ask[0] for ask in subnet.asks("a", "live")] == ["refused", *["accepted", "kept", "kept"] * 2]
    assert subnet.asks("b", "live") == []


# ---------------------------------------------------------------------------------------------------------------------
# Weights


def weights(subnet) -> list[tuple]:
    return subnet.rows("SELECT code, block, next_block, uids, name FROM weights ORDER BY id")


def test_before_anybody_was_scored_no_weights_are_set(tmp_path):
    subnet = play_subnet(tmp_path, {"a": lambda _: refuse()}, [a_job()])
    assert subnet.codes() == ["nobody_ranked"] and weights(subnet) == []


def test_when_nobody_earns_everything_burns_to_the_owners_uid(tmp_path):
    subnet = play_subnet(tmp_path, {"a": keep}, [a_job()])  # who only keeps is worth 0 above keep
    assert [(row[0], json.loads(row[3])) for row in weights(subnet)] == [("weights_set", {"0": "1"})]
    ledger = tmp_path / "chain.sqlite3"
    assert rows(ledger, "SELECT vector FROM weights") == [('{"0": 65535}',)]
    assert rows(ledger, "SELECT hotkey FROM neurons WHERE uid = 0") == [(OWNER_HOTKEY,)]


def test_a_dry_run_computes_weights_and_sets_none(tmp_path, caplog):
    async def dry(subnet, *_):
        subnet.validator.weigher.dry_run = True

    with caplog.at_level(logging.INFO):
        subnet = play_subnet(tmp_path, {"a": all_in}, [a_job()], prepare=dry)
    assert [row[0] for row in weights(subnet)] == ["weights_dry_run"]
    assert rows(tmp_path / "chain.sqlite3", "SELECT * FROM weights") == []
    assert any("weights_dry_run at block" in record.message for record in caplog.records)


def test_weights_that_come_too_soon_are_set_exactly_when_the_chain_takes_them(tmp_path):
    async def slow_chain(subnet, store, chain, market):
        await chain.set_hyperparameters(weights_rate_limit_blocks=400)

    subnet = play_subnet(tmp_path, {"a": keep}, [a_job()], rounds=6, prepare=slow_chain)
    registered = block_at(FIRST_TIME)
    (early, *_), (second, *_) = weights(subnet)[:1], weights(subnet)[1:2]
    assert (early[0], early[1], early[2], early[4]) == (
        "weights_too_soon",
        registered + 150,  # the first round has ended
        registered + 400,
        "SettingWeightsTooFast",
    )
    assert (second[0], second[1], second[2]) == ("weights_set", registered + 400, registered + 760)


def test_rejected_weights_are_tried_again_until_the_chain_takes_them(tmp_path):
    chains = []

    async def strict(subnet, store, chain, market):
        chains.append(chain)
        await chain.set_hyperparameters(version_key=2000)

    async def a(query):
        if query.window_start_time == FIRST_TIME + 2700:
            await chains[0].set_hyperparameters(version_key=0)
        return query.current_positions

    subnet = play_subnet(tmp_path, {"a": a}, [a_job()], rounds=3, prepare=strict)
    codes = [row[0] for row in weights(subnet)]
    assert codes[-1] == "weights_set" and set(codes[:-1]) == {"weights_rejected"} and len(codes) > 2
    assert {row[4] for row in weights(subnet)[:-1]} == {"IncorrectWeightVersionKey"}
    blocks = [row[1] for row in weights(subnet)]
    assert all(two - one == 25 for one, two in pairwise(blocks))


def test_a_restart_keeps_the_time_of_the_next_try(tmp_path):
    first = weights(play_subnet(tmp_path, {"a": keep}, [a_job()], rounds=1))
    again = weights(play_subnet(tmp_path, {"a": keep}, rounds=2))
    assert len(first) == 1 and again == first  # 360 blocks are 72 minutes
    much_later = weights(play_subnet(tmp_path, {"a": keep}, rounds=3))
    assert len(much_later) == 2 and much_later[1][1] >= first[0][2]


def test_evidence_older_than_keep_days_is_dropped_once_a_day_and_scores_stay(tmp_path):
    late = functools.partial(model, head=FIRST_BLOCK + (DAY - 2000) // 2)  # half an hour before midnight
    jobs = [a_job(round_seconds=600)]
    first = play_subnet(tmp_path, {"a": keep}, jobs, market=late, rounds=2, keep_days=1)
    assert first.rows("SELECT * FROM pruned") == []
    write(
        first.path,
        "UPDATE rounds SET end_time = end_time - 86400 WHERE start_time = (SELECT min(start_time) FROM rounds)",
    )
    again = play_subnet(
        tmp_path, {"a": keep}, market=functools.partial(model, head=FIRST_BLOCK + DAY // 2), rounds=1, keep_days=1
    )
    ((pruned, before),) = again.rows("SELECT round_id, before FROM pruned")
    assert (pruned, before) == (stored_rounds(again.path)[0], FIRST_TIME // DAY * DAY)
    assert len(again.rows("SELECT * FROM scores")) == 3


def test_no_live_decision_changes_a_vault_that_the_next_rounds_first_query_has_shown(tmp_path):
    def a(query):
        return all_in(query, 300 + query.block_number // 20 % 5 * 100)

    job = a_job(live=True, round_seconds=300, checkpoint_blocks=20)
    subnet = play_subnet(tmp_path, {"a": a}, [job], rounds=5, prepare=ranked_before(7))
    assert subnet.codes("live") == ["live_no_winner", "live_no_winner", "scored", "scored", "scored"]
    opening = {start: block for start, block in subnet.rows("SELECT start_time, opening_block FROM rounds") if block}
    last = max(
        due - opening[FIRST_TIME + 900] for *_, due in subnet.asks("a", "live") if due < opening[FIRST_TIME + 1200]
    )
    assert last == 100  # 200 s of 300: the next round is asked 75 s before this one's end


def test_a_round_is_void_where_a_block_that_miners_were_shown_is_replaced_later(tmp_path):
    """The market is the model at sixty times our speed; what a deep reorganisation does to it is another hash."""
    replaced, wanted = {}, {("evaluation", 600), ("live", 900)}  # one round of each type

    class Reorganised(ModelMarket):
        async def block(self, number):
            block = await super().block(number)
            return replace(block, hash="0x" + "ab" * 32) if number in replaced.values() else block

    def a(query):
        one = query.round_type, query.window_start_time - FIRST_TIME
        if one in wanted and query.block_time >= query.window_start_time:
            replaced.setdefault(one, query.block_number)
        return keep(query)

    market = functools.partial(Reorganised, 5, {VAULT: CAPITAL}, head=FIRST_BLOCK + 90, pace=60)
    job = a_job(round_seconds=300, checkpoint_blocks=40, live=True)
    subnet = play_subnet(tmp_path, {"a": a}, [job], market=market, prepare=ranked_before(6), rounds=3, pace=60)
    assert subnet.codes() == ["scored", "void_gap", "void_gap"]  # the third showed the live round's block too
    assert subnet.codes("live") == ["live_no_winner", "live_no_winner", "void_gap"]
    details = subnet.rows("SELECT detail FROM rounds WHERE code = 'void_gap'")
    blocks = [int(re.match(r"block (\d+) was replaced after it", detail)[1]) for (detail,) in details]
    assert len(replaced) == 2 and sorted(set(blocks)) == sorted(replaced.values())


def test_one_read_of_the_chain_that_fails_as_a_round_begins_costs_no_round(tmp_path, caplog):
    fails = {3, 5}  # in rounds; not the first: then nobody is known

    async def prepare(subnet, store, chain, market) -> None:
        asker, real = subnet.validator.asker, chain.metagraph
        peers = asker.peers

        async def counted(start: int) -> dict:
            chain.metagraph = failing if len(starts) + 1 in fails else real
            starts.append(start)
            try:
                return await peers(start)
            finally:
                chain.metagraph = real

        async def failing(block: int | None = None):
            raise ChainError("metagraph: 429")

        starts: list[int] = []
        asker.peers = counted

    caplog.set_level("WARNING")
    played = play_subnet(tmp_path, {"a": keep, "b": keep}, [a_job()], prepare=prepare, rounds=5)
    assert played.codes() == ["scored"] * 5
    assert [len(played.asks(name)) > 4 for name in "ab"] == [True, True]
    assert caplog.text.count("metagraph: 429): the last list serves, 2") == len(fails)


@pytest.mark.parametrize(("failing", "waited"), [(1, [5.0]), (99, [5.0] * 5)])
def test_who_can_be_asked_is_read_again_in_half_of_the_time_that_is_left(monkeypatch, failing, waited):
    clock, slept, answers = [100.0], [], iter([False] * failing + [True] * 9)

    class World:
        full_speed, hotkey = False, "me"

        async def now(self) -> float:
            return 1000.0

        async def metagraph(self):
            if not next(answers):
                raise ChainError("429")
            return SimpleNamespace(neurons=[SimpleNamespace(hotkey="a", address="1.2.3.4:5")])

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock[0] += seconds

    asker = asking.Asker(World(), World(), None, SimpleNamespace(ss58_address="me"), SimpleNamespace(pace=1.0), True)
    monkeypatch.setattr(asking, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(asking.asyncio, "sleep", sleep)
    begin = 1000 + 60 + asking.FIRST_ASK_DEADLINE_SECONDS
    if failing == 1:
        assert list(asyncio.run(asker.peers(begin))) == ["a"]
    else:
        with pytest.raises(ChainError, match="429"):
            asyncio.run(asker.peers(begin))
    assert slept == waited
