"""A strategy is tried from the command line: what is wrong in one sentence, what it is worth, and then the leaderboard.

Run: `python -m pytest tests/test_check.py`. Each way to be wrong is a strategy put into `miner.STRATEGIES`; the
stranger at the end is a script that knows the README and `--help` alone, with the programs as processes.
Read next: `backtest.py`, `miner.py`.
"""

from __future__ import annotations

import re
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from itertools import count

import pytest
from subnets import ROOT, command, hotkey_of, rows, start, stored_rounds, wait_for

import miner
from doctor import backtest, trial
from miner import Refusal
from protocol import MAX_TICK, Position, RebalanceQuery

POLYGON = "polygon_usdc_weth_500_2022-01-05"  # token1 is WETH
ETHEREUM = "ethereum_usdc_weth_500_2024-01-05"


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the miner's command in this process: `run(strategy, "--check")` gives exit code, stdout, stderr."""

    def run(strategy, *arguments: object) -> tuple[int, str, str]:
        monkeypatch.setitem(miner.STRATEGIES, "mine", strategy)
        try:
            code = miner.main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def span(query: RebalanceQuery, lower: int = -100, upper: int = 100, share: float = 1, **changes) -> Position:
    """A legal position around the price, with some of its fields changed."""
    amounts = [int(amount * share) for amount in query.holdings()]
    position = Position(*miner.grid_range(query, query.tick + lower, query.tick + upper), *amounts)
    return replace(position, **changes)


# ---------------------------------------------------------------------------------------------------------------------
# --check: what is wrong


def divides(query):
    return [span(query, share=1 / (query.tick - query.tick))]


def calls_something_that_fails(query):
    return [span(query, share=broken_helper(query))]


def broken_helper(query):
    return {}["no such key"]


def fails_later(query):
    return [span(query)] if not query.rebalances_so_far else query.no_such_field


def exits(query):
    sys.exit("done")


class Endless:
    def __index__(self):
        return 1


WRONG = {
    "raises": (
        divides,
        "ZeroDivisionError: division by zero in test_check.py line {divides} `return",
        "mend that line",
    ),
    "raises in a helper": (
        calls_something_that_fails,
        "KeyError: 'no such key' in test_check.py line {broken_helper} `return {{}}",
        "",
    ),
    "raises later": (
        fails_later,
        "AttributeError: 'RebalanceQuery' object has no attribute 'no_such_field'",
        "line {fails_later}",
    ),
    "exits": (exits, "SystemExit: done", "line {exits}"),
    "returns nothing": (lambda q: None, "the strategy returned NoneType", "return a list of Position"),
    "returns one position": (lambda q: span(q), "the strategy returned Position", "return a list of Position"),
    "returns text": (lambda q: "keep", "the strategy returned str", "or Refusal('why')"),
    "returns tuples": (
        lambda q: [(-100, 100, 1, 1)],
        "malformed: RebalanceAnswer.desired_positions[0] is a list",
        "four whole",
    ),
    "returns dicts": (
        lambda q: [{"tick_lower": 1}],
        "malformed: RebalanceAnswer.desired_positions[0] lacks",
        "Position(",
    ),
    "a fraction as tick": (
        lambda q: [span(q, tick_lower=-1.5)],
        "malformed: a number with a fraction",
        "four whole numbers",
    ),
    "a text as tick": (
        lambda q: [span(q, tick_lower="-10")],
        "malformed: RebalanceAnswer.desired_positions[0].tick_lower",
        "",
    ),
    "a nan as tick": (lambda q: [span(q, tick_lower=float("nan"))], "ValueError", "four whole numbers"),
    "no JSON at all": (
        lambda q: [span(q, tick_lower=Endless())],
        "TypeError: Object of type Endless",
        "four whole numbers",
    ),
    "a fraction as amount": (
        lambda q: [span(q, allocation0=1.5)],
        "amount_range: RebalanceAnswer.desired_positions[0].allocation0 is",
        "max(0, int(amount))",
    ),
    "less than nothing": (lambda q: [span(q, allocation1=-5)], "allocation1 is '-5'", "max(0, int(amount))"),
    "too many digits": (lambda q: [span(q, allocation1=10**5000)], "ValueError", ""),
    "beyond uint128": (lambda q: [span(q, allocation1=2**128)], "amount_range", "from 0"),
    "more than it has": (lambda q: [span(q), span(q, share=0.5)], "over_allocated: declared", "query.holdings()"),
    "off the grid": (
        lambda q: [span(q, tick_lower=9, tick_upper=20)],
        "tick_spacing: position 0: ticks 9, 20 are not multiples of 10",
        "multiples of query.tick_spacing",
    ),
    "upside down": (
        lambda q: [span(q, tick_lower=q.tick_spacing, tick_upper=0)],
        "tick_order: position 0: tick_lower 10 >= tick_upper 0",
        "the smaller one",
    ),
    "out of bounds": (
        lambda q: [span(q, tick_upper=MAX_TICK + 8)],
        "tick_range: position 0: ticks",
        "within the bounds",
    ),
    "too many": (
        lambda q: [span(q, share=0.01)] * 11,
        "too_many_positions: 11 positions, at most 10",
        "query.settings.max_positions",
    ),
    "too large": (lambda q: [span(q, share=0.001)] * 600, "bytes, at most 32768", "of at most 32768 bytes"),
    "refuses with a number": (lambda q: Refusal(17), "TypeError: 'int' object is not subscriptable", "Refusal('why')"),
}


@pytest.mark.parametrize("name", WRONG)
def test_the_check_names_what_is_wrong_with_its_values_and_its_fix_in_one_sentence(run, name):
    strategy, said, fix = WRONG[name]
    lines = {f.__name__: f.__code__.co_firstlineno + 1 for f in (divides, broken_helper, fails_later, exits)}
    code, out, err = run(strategy, "--check")
    (sentence,) = [line for line in out.splitlines() if line.startswith("WRONG: ")]
    assert code == 1 and out.splitlines()[-1] == sentence and not err
    assert re.match(r"WRONG: asked at block \d+, your strategy.* .*\.$", sentence)
    assert said.format(**lines) in sentence and fix.format(**lines) in sentence
    assert "MODEL of a market" in out.splitlines()[0] and "Traceback" not in out


def test_an_answer_that_takes_longer_than_the_deadline_is_wrong_and_the_line_where_it_was_is_named(run, monkeypatch):
    monkeypatch.setattr(trial, "ASK_SECONDS", 0.1)

    def sleeps(query):
        time.sleep(30)

    code, out, _ = run(sleeps, "--check")
    line = sleeps.__code__.co_firstlineno + 1
    assert code == 1 and f"no answer within 0.1 s in test_check.py line {line} `time.sleep(30)`: make it faster" in out


def test_a_slow_answer_is_a_warning(run, monkeypatch):
    monkeypatch.setattr(backtest, "SLOW_SECONDS", 0)
    code, out, _ = run(miner.keep, "--check")
    assert code == 0 and "WARNING: that is above 0 s" in out


def test_an_answer_that_differs_the_second_time_is_a_note(run):
    numbers = count()
    code, out, _ = run(lambda query: [span(query, upper=100 + 10 * next(numbers))], "--check")
    assert code == 0 and "NOTE: the same query twice got different answers, 3 of 3 times" in out
    code, out, _ = run(miner.keep, "--check")
    assert code == 0 and "NOTE" not in out


def test_a_strategy_that_fails_when_asked_the_same_again_is_wrong(run):
    seen = set()

    def once(query):
        assert query.block_number not in seen, "asked before"
        seen.add(query.block_number)
        return miner.keep(query)

    code, out, _ = run(once, "--check")
    assert code == 1 and "AssertionError: asked before" in out


# ---------------------------------------------------------------------------------------------------------------------
# --check: what it is worth


@pytest.mark.parametrize("target", ["PoL", "MaxFees", "MinIL", "Balanced"])
def test_a_legal_strategy_sees_its_terms_beside_keep_hold_and_best(run, target):
    code, out, err = run(lambda query: [span(query)], "--check", "--target", target)
    assert code == 0 and not err and f"target {target}" in out
    assert re.search(r"^RIGHT: 3 asks, 3 legal answers; [+-][0-9.]+ USDC over keep\.$", out, re.M)
    board = out[out.index("rank  miner") :].splitlines()
    assert [line[:12].split() for line in board[1:5]] == [["1", "yours"], ["keep"], ["hold"], ["best"]]


def test_a_refusal_is_right_and_has_no_score(run):
    code, out, _ = run(lambda query: Refusal("not my pair"), "--check")
    assert code == 0 and "RIGHT: your strategy refuses (not my pair), which is legal" in out and "keep" in out
    assert "yours" not in out[out.index("rank  miner") :]


def test_it_is_played_on_the_recording_that_is_named_the_last_one_of_several(run, recording_path):
    code, out, _ = run(miner.wide, "--check", "--events", recording_path(POLYGON))
    assert code == 0 and f"on recording {POLYGON}" in out and "WETH over keep" in out and "MODEL" not in out


def test_the_reference_strategies_are_right_for_every_target(run):
    for name in ("keep", "wide", "preserve"):
        code, out, _ = run(miner.propose, "--check", "--strategy", name, "--round-seconds", 300)
        assert code == 0 and f"strategy {name} on" in out and "RIGHT" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--check", "--events", "nowhere"), "does not exist"),
        (("--check", "--vault", "nobody"), "vault 'nobody': the model has vault-balanced, vault-pol"),
        (("--check", "--round-seconds", "900000"), "no whole number from 1 to 86400"),
        (("--check", "--round-seconds", "0"), "no whole number from 1 to 86400"),
        (("--check", "--target", "Luck"), "--target"),
        (("--check", "--backtest"), "not allowed with"),
        (("--backtest", "2026-01-01"), "takes two times, FROM and TO, or none; 1 given"),
        (("--backtest", "tomorrow", "2026-01-01"), "'tomorrow' is no time: YYYY-MM-DD"),
        (
            ("--backtest", "2026-01-02", "2026-01-01"),
            "no whole round in these times; the market has 2026-01-01 00:00 to",
        ),
        (("--backtest", "2024-01-02", "2024-01-03"), "no whole round in these times"),
        (("--backtest", "2026-01-09", "2026-01-10"), "no whole round in these times"),  # it is there, and not asked for
        (("--backtest", "--vault", "1:2:3", "--events", "a", "b"), "is of one recording, 2 are named"),
    ],
)
def test_options_that_cannot_work_are_one_line_with_the_fix(run, arguments, said):
    code, _, err = run(miner.keep, *arguments)
    assert code == 2 and said in err and err.count("\n") == 1


# ---------------------------------------------------------------------------------------------------------------------
# --backtest


def moment(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


def test_a_backtest_prints_every_round_and_all_strategies_with_their_error_and_a_verdict(run):
    times = "2026-01-01", "2026-01-01T06:00"
    code, out, err = run(lambda query: [span(query, -300, 300)], "--backtest", *times, "--target", "Balanced")
    lines = out.splitlines()
    assert code == 0 and "MODEL" in lines[0] and "vault vault-balanced" in lines[0] and "min_in_range 0.5" in lines[1]
    assert lines[2].split() == ["round,", "UTC", "keep", "wide", "preserve", "mine"]
    starts = [f"2026-01-01 {n // 4:02}:{n % 4 * 15:02}" for n in range(1, 24)]  # 00:00 could not be asked 75 s before
    assert [line[:16] for line in lines[3:26]] == starts
    mine = [Decimal(line.split()[-1]) for line in lines[3:26]]
    table = {line.split()[0]: line.split() for line in lines[27:32]}
    assert list(table) == ["over", "keep", "wide", "preserve", "mine"]
    assert table["mine"][1] == "23" and abs(Decimal(table["mine"][2]) - sum(mine) / 23) < Decimal("0.0001")
    assert table["keep"][2:] == ["+0.0000", "0.0000", "-"]
    assert "23 rounds taken as independent" in lines[32] and lines[32].split(":")[0] in ("LUCK", "SKILL", "WORSE")
    assert not err
    seconds = tuple(moment(text) for text in times)
    _, again, _ = run(lambda query: [span(query, -300, 300)], "--backtest", *seconds, "--target", "Balanced")
    assert again.splitlines()[3:32] == lines[3:32]


def test_on_a_terminal_the_progress_is_one_line_that_is_drawn_anew(run, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    _, out, err = run(miner.keep, "--backtest", "2026-01-01", "2026-01-01T01:00")
    bars = [f"[{'#' * (10 * n):30}] {100 * n // 3:3} %, {n} of 3 rounds" for n in (1, 2, 3)]
    assert [line for line in err.replace("\n", "").split("\r\x1b[K") if line] == bars and "\r" not in out


def test_it_says_who_was_out_who_failed_and_who_copied(run):
    turns = count()

    def moody(query):
        turn = next(turns) % 3
        if turn == 0:
            raise RuntimeError("no idea")
        return Refusal("enough") if turn == 1 else miner.wide(query)

    _, out, _ = run(moody, "--backtest", "2026-01-01", "2026-01-01T02:00", "--round-seconds", 300)
    assert re.search(r"^Rounds without mine: \d+ refused\.$", out, re.M)
    assert "RuntimeError: no idea in test_check.py line" in out
    _, out, _ = run(miner.wide, "--backtest", "2026-01-01", "2026-01-01T02:00")
    assert "Copies: 7 of wide" in out and "TOO FEW: 7 rounds with mine" in out
    _, out, _ = run(miner.propose, "--strategy", "wide", "--backtest", "2026-01-01", "2026-01-01T02:00")
    assert "Copies" not in out and "TOO FEW: 7 rounds with wide" in out


def test_recordings_are_played_each_by_itself_and_then_together_in_parts_of_the_vaults_value(run, recording_path):
    paths = recording_path(POLYGON), recording_path(ETHEREUM)
    arguments = "--backtest", "2022-01-05T18:00", "2024-01-05T06:00", "--events", *paths, "--round-seconds", 1800
    code, out, _ = run(lambda query: [span(query, -500, 500)], *arguments)
    assert code == 0 and out.count("BACKTEST of strategy mine on recording") == 2
    assert out.count("in WETH: keep's score") == 2
    each = [int(n) for n in re.findall(r"^mine +(\d+) ", out, re.M)]
    assert len(each) == 3 and each[2] == each[0] + each[1] and min(each) > 1
    assert "ALL 2 MARKETS together, in hundredths of a percent" in out and re.search(r"mine .* bp a round", out)


# ---------------------------------------------------------------------------------------------------------------------
# A stranger


def test_a_stranger_checks_and_backtests_a_strategy_in_a_copy_and_sees_it_on_the_board(tmp_path, monkeypatch):
    text, folder = (ROOT / "miner.py").read_text(), tmp_path / "local"
    copy = tmp_path / "my_miner.py"
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # or the copy lies beside the other files

    def write(body: str) -> None:
        assert text.count("    return keep(query)\n") == 1
        copy.write_text(text.replace("    return keep(query)\n", body))

    # a first try: half a range off the grid
    write("    return [Position(query.tick - 5, query.tick + 500, *query.holdings())]\n")
    tried = command(copy, "--check")
    assert tried.returncode == 1 and "tick_spacing" in tried.stdout and "grid_range(query" in tried.stdout
    # the sentence says how to mend it
    write(
        "    if query.rebalances_so_far:\n        return list(query.current_positions)\n"
        "    return [Position(*grid_range(query, query.tick - 5, query.tick + 500), *query.holdings())]\n"
    )
    tried = command(copy, "--check")
    assert tried.returncode == 0 and "RIGHT: 3 asks" in tried.stdout and "yours" in tried.stdout
    played = command(copy, "--backtest", "2026-01-01", "2026-01-01T07:00")
    verdict = r"^(SKILL|LUCK|WORSE): mine .* 27 rounds taken as independent"
    assert played.returncode == 0 and re.search(verdict, played.stdout, re.M)

    # a subnet, as the README has it, and the copy joins it
    first = command("validator.py", "--dir", folder, "--rounds", 1, "--no-miners")
    assert first.returncode == 0 and "Traceback" not in first.stderr
    with_copy = start(copy, "--dir", folder, "--name", "stranger", "--port", 0, folder=tmp_path)
    try:
        hotkey, port = hotkey_of("stranger"), "SELECT 1 FROM neurons WHERE hotkey = ? AND address IS NOT NULL"
        wait_for("the copy's endpoint", lambda: rows(folder / "chain.sqlite3", port, hotkey), with_copy)
        second = command("validator.py", "--dir", folder, "--rounds", 2, "--all-leaderboards")
    finally:
        with_copy.terminate()
        with_copy.wait()
    assert second.returncode == 0
    assert re.search(rf"^ +[1-4]  {hotkey[:6]}\.\.{hotkey[-6:]} +[+-][0-9,.]+", second.stdout, re.M)

    # what the backtest had said of these rounds is what the validator has stored
    path = folder / "validator.sqlite3"
    ids = [round_id for round_id in stored_rounds(path) if round_id.startswith("pol:")]
    assert len(ids) == 2
    for round_id in ids:
        when = f"{datetime.fromtimestamp(int(round_id.split(':')[-1]), UTC):%Y-%m-%d %H:%M}"
        (line,) = [line for line in played.stdout.splitlines() if line.startswith(when)]
        scores = dict(rows(path, "SELECT hotkey, score FROM scores WHERE round_id = ?", round_id))
        keep = Decimal(scores[hotkey_of("keep")])
        ranked = [hotkey_of(name) for name in ("wide", "preserve", "stranger") if hotkey_of(name) in scores]
        expected = [Decimal(scores[hotkey]) - keep for hotkey in ranked]
        shown = [Decimal(cell.replace(",", "")) for cell in line.split()[3:]][: len(expected)]
        assert len(expected) >= 2 and shown == [round(value / 10**6, 4) for value in expected]
