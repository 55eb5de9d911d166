"""What every program does around its work: signals, exit codes, and one line for each mistake, with nothing lost.

Run with `python -m pytest tests/test_runtime.py`. Read next: `runtime.py`.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import json
import logging
import lzma
import os
import re
import resource
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from subnets import ROOT, VAULT, a_job, command, cut_recording, keep, play_subnet, rows, swaps_between

import validator
from chain.base import ChainError, NoSuchSubnet
from evm.rpc import RpcError
from markets.base import MarketMistake
from runtime import db, process
from runtime.process import UserError, clear_progress, number, progress, raise_file_limit, run

POLYGON = "polygon_usdc_weth_500_2022-01-05"


# ---------------------------------------------------------------------------------------------------------------------
# run()


class TheirMistake(Exception):
    pass


@pytest.fixture
def root_logger():
    """Leaves the log as it was."""
    yield
    logging.getLogger("asyncio").setLevel(logging.NOTSET)


def ended(capsys, work, *errors) -> tuple[int, str]:
    code = run(work, "INFO", errors)
    return code, capsys.readouterr().err


def test_the_exit_code_is_the_programs_result_and_0_without_one(root_logger, capsys):
    async def gives(result):
        return result

    assert [ended(capsys, gives(result)) for result in (None, 0, 1)] == [(0, ""), (0, ""), (1, "")]


def test_what_the_user_can_mend_is_one_line_and_exit_code_2_even_out_of_a_task_group(root_logger, capsys):
    async def fails(*errors):
        if len(errors) == 1:
            raise errors[0]
        async with asyncio.TaskGroup() as tasks:
            for error in errors:
                tasks.create_task(fails(error))

    assert ended(capsys, fails(UserError("no such\nfolder x; make it"))) == (2, "no such folder x; make it\n")
    assert ended(capsys, fails(TheirMistake("bad database")), TheirMistake) == (2, "bad database\n")
    both = fails(TheirMistake("bad database"), UserError("bad option"))
    assert ended(capsys, both, TheirMistake) in ((2, "bad database\n"), (2, "bad option\n"))


def test_while_a_program_runs_what_was_loaded_before_is_not_looked_through_for_garbage(root_logger):
    async def frozen():
        return gc.get_freeze_count()

    assert run(frozen(), "INFO") > 1000 and gc.get_freeze_count() == 0


def test_a_bug_is_not_hidden_behind_a_mistake_of_the_users(root_logger):
    async def fails():
        async with asyncio.TaskGroup() as tasks:
            for error in (TheirMistake("bad database"), ZeroDivisionError("a bug")):
                tasks.create_task(_raise(error))

    async def _raise(error):
        raise error

    with pytest.raises(ExceptionGroup) as caught:
        run(fails(), "INFO", (TheirMistake,))
    assert any(isinstance(error, ZeroDivisionError) for error in caught.value.exceptions)
    with pytest.raises(ZeroDivisionError):
        run(_raise(ZeroDivisionError()), "INFO", (TheirMistake,))
    with pytest.raises(asyncio.CancelledError):  # nobody asked for it
        run(_raise(asyncio.CancelledError()), "INFO")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_program_close_what_it_opened_and_is_no_failure(root_logger, number):
    done = []

    async def work():
        try:
            os.kill(os.getpid(), number)
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0)  # closing takes its time
            done.append("closed")

    assert run(work(), "INFO") == 0 and done == ["closed"]


def test_results_go_to_stdout_and_the_log_to_stderr_at_the_level_asked_for():
    script = "import logging\nfrom runtime.process import run\n"
    script += "async def work():\n    logging.info('told')\n    print('result')\n"
    for level, told in (("INFO", True), ("WARNING", False)):
        code = f"{script}raise SystemExit(run(work(), {level!r}))"
        ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
        assert (ended.returncode, ended.stdout, "told" in ended.stderr) == (0, "result\n", told)


PROGRAM = """
import logging, sys, warnings
from runtime.process import UserError, run
async def work():
    logging.getLogger("validator").debug("of ours")
    logging.getLogger("aiosqlite").debug("of a library")
    hostile = "no\\n12:00:00 INFO validator: forged \\x1b[2J \\u2028 \\ud800"
    logging.getLogger("validator").info("a miner said %s", hostile)
    warnings.warn("old call")
    try:
        1 / 0
    except ZeroDivisionError:
        logging.getLogger("validator").exception("failed")
    print("result")
    if ending := sys.argv[4:]:
        raise UserError("no such\\nfolder") if ending == ["mistake"] else RuntimeError("a bug")
level, as_json, file = sys.argv[1:4]
raise SystemExit(run(work(), level, (), as_json == "json", file or None))
"""


def logged(level: str, as_json: str = "", file: object = "", *ending: str) -> subprocess.CompletedProcess:
    words = [sys.executable, "-c", PROGRAM, level, as_json, str(file), *ending]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("level", "ours", "theirs"), [("TRACE", True, True), ("DEBUG", True, False), ("INFO", False, False)]
)
def test_debug_is_of_our_own_modules_and_trace_of_the_libraries_too(level, ours, theirs):
    error = logged(level).stderr
    assert ("of ours" in error, "of a library" in error) == (ours, theirs)


@pytest.mark.parametrize(("ending", "code"), [((), 0), (("mistake",), 2), (("bug",), 1)])
def test_with_log_json_every_line_on_stderr_is_an_object_whatever_happens(ending, code):
    ended = logged("INFO", "json", "", *ending)
    plain = [json.loads(line) for line in ended.stderr.splitlines()]
    assert (ended.returncode, ended.stdout) == (code, "result\n")
    for record in plain:
        assert {"time", "level", "logger", "message"} <= set(record) <= {*record, "exception"}
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", record["time"])
    said, warned, failed, *last = plain
    assert said["message"] == "a miner said no\n12:00:00 INFO validator: forged \x1b[2J \u2028 \ud800"
    assert (said["logger"], said["level"], "exception" in said) == ("validator", "INFO", False)
    assert "old call" in warned["message"] and warned["logger"] == "py.warnings"
    assert failed["message"] == "failed" and failed["exception"].endswith("ZeroDivisionError: division by zero")
    expected = {0: [], 2: [("ERROR", "no such folder")], 1: [("CRITICAL", "ended by an error that nobody expected")]}
    assert [(record["level"], record["message"]) for record in last] == expected[code]
    assert code != 1 or last[0]["exception"].endswith("RuntimeError: a bug")


def test_what_a_peer_says_cannot_forge_a_line_or_steer_the_terminal():
    lines = logged("INFO").stderr.splitlines()
    assert re.fullmatch(
        r"[\d:]{8} INFO validator: a miner said no\\x0a12:00:00 INFO validator: forged \\x1b\[2J .*", lines[0]
    )
    assert not any("\x1b" in line or line.startswith("12:00:00 INFO validator: forged") for line in lines)


def test_a_log_file_gets_what_stderr_gets_and_the_mistake_or_bug_that_ended_the_program(tmp_path):
    path = tmp_path / "alm.log"
    for as_json in ("", "json"):
        for ending, last in (("mistake", "no such folder"), ("bug", "RuntimeError: a bug")):
            error = logged("INFO", as_json, path, ending).stderr
            lines = path.read_text(encoding="utf-8").splitlines()
            path.unlink()
            assert len(lines) == len(error.splitlines()) and last in lines[-1] and last in error.splitlines()[-1]
            assert as_json or re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d INFO validator: a miner said", lines[0])
    logged("INFO", "", path)
    once = path.stat().st_size
    logged("INFO", "", path)
    assert path.stat().st_size == 2 * once  # a restart goes on in the same file


def test_a_log_file_is_put_aside_when_it_is_full_and_only_so_many_are_kept(tmp_path):
    script = (
        "import logging\nfrom runtime import process\nprocess.LOG_FILE_BYTES, process.LOG_FILES_KEPT = 1000, 2\n"
        f"process.log_to('INFO', False, {str(tmp_path / 'alm.log')!r})\n"
        "for n in range(200): logging.info('line %d', n)\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, check=True, timeout=60)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alm.log", "alm.log.1", "alm.log.2"]
    assert all(path.stat().st_size <= 1000 for path in tmp_path.iterdir())
    assert "line 199" in (tmp_path / "alm.log").read_text()


def test_a_log_file_that_cannot_be_written_is_one_line_and_nothing_is_run(tmp_path):
    for as_json in ("", "json"):
        ended = logged("INFO", as_json, tmp_path / "nowhere" / "alm.log")
        assert (ended.returncode, ended.stdout) == (2, "")
        assert (
            ended.stderr
            == f"--log-file {tmp_path / 'nowhere' / 'alm.log'}: No such file or directory; choose another\n"
        )


def test_a_number_is_finite_and_within_its_bounds():
    assert number(0)("7") == 7 and number(0.5, kind=float)("0.5") == 0.5 and number(1, 9)("9") == 9
    for kind, text in ((int, "1.0"), (int, "x"), (int, ""), (int, "0"), (int, "10"), (float, "nan"), (float, "inf")):
        with pytest.raises(Exception, match="from 1"):
            number(1, 9 if kind is int else float("inf"), kind)(text)


# ---------------------------------------------------------------------------------------------------------------------
# Mistakes: one line with the fix, exit code 2, nothing lost


def mistake(capsys, *arguments: object) -> tuple[int, str]:
    """Exit code and what is on stderr of a run in this process; fails unless that is one line."""
    capsys.readouterr()
    try:
        code = validator.main(list(map(str, arguments)))
    except SystemExit as exit_:
        code = exit_.code
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.endswith("\n") and "Traceback" not in error, error
    return code, error[:-1]


@pytest.mark.parametrize(
    "option",
    [
        "--idle x", "--idle 1", "--idle 1,-2", "--idle 1,2,3", f"--idle {2**128},0", "--rounds 0", "--rounds -1",
        "--rounds 1.5", "--rounds x", "--round-seconds 0", "--round-seconds 86401", "--pace 0", "--pace -1",
        "--pace nan", "--pace inf", "--days -1", "--latency-seconds -1", "--seed x", "--log-level LOUD", "--nonsense",
        "--events", "nonsense", "audit",
    ],
)  # fmt: skip
def test_a_bad_option_is_one_line_and_exit_code_2(capsys, tmp_path, option):
    code, error = mistake(capsys, "--dir", tmp_path / "local", *option.split())
    assert code == 2 and error.startswith("validator.py") and error.endswith("; see --help")
    named = option.split()[-1 if option in ("nonsense", "audit") else 0]
    assert named in error or "ROUND" in error
    assert not (tmp_path / "local").exists()


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("--neuron.name x", "--neuron.name"), ("--nonsense 7", "--nonsense"), ("-x 7", "-x"), ("--days 1 -xy 7", "-xy"),
        ("--dir=x --nonsense=7", "--nonsense"), ("audit x --nonsense 7", "--nonsense"),
    ],
)  # fmt: skip
def test_an_option_that_nobody_knows_is_blamed_itself_not_its_value(capsys, line, wrong):
    code, error = mistake(capsys, *line.split())
    assert (code, error) == (2, f"validator.py: unrecognized arguments: {wrong}; see --help")


class Full(Exception):
    """As a program's own error, whatever it comes from."""


@pytest.mark.parametrize(
    ("cause", "code"),
    [
        (OSError(errno.ENOSPC, "no space left"), process.EXIT_AGAIN),
        (OSError(errno.EMFILE, "too many open files"), process.EXIT_AGAIN),
        (PermissionError(errno.EACCES, "not yours"), process.EXIT_USAGE),
        (FileNotFoundError(errno.ENOENT, "nothing"), process.EXIT_USAGE),
        (ChainError("no answer"), process.EXIT_AGAIN),
        (RpcError("no answer"), process.EXIT_AGAIN),
        (NoSuchSubnet("none"), process.EXIT_USAGE),
        (MarketMistake("no pool"), process.EXIT_USAGE),
        (None, process.EXIT_USAGE),
    ],
)
def test_exit_code_2_is_only_for_what_a_person_must_correct(capsys, cause, code):
    async def work() -> None:
        if cause is None:
            raise Full("one line")
        try:
            raise cause
        except Exception as error:
            raise Full("one line") from error

    assert (run(work(), "ERROR", (Full,)), capsys.readouterr().err) == (code, "one line\n")


def test_a_database_that_is_held_or_does_not_fit_ends_so_that_it_is_started_again(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(db, "BUSY_TIMEOUT_SECONDS", 1)

    async def writing(pages: int) -> None:
        async with db.connect(tmp_path / "file", ["CREATE TABLE places (name TEXT)"]) as opened:
            await opened.rows(f"PRAGMA max_page_count = {pages}")
            with db.as_store_errors(tmp_path / "file"):
                await opened.write(lambda c: c.execute("INSERT INTO places VALUES (zeroblob(100000))"))

    assert run(writing(2), "ERROR", (db.StoreError,)) == process.EXIT_AGAIN and "full" in capsys.readouterr().err
    with closing(sqlite3.connect(tmp_path / "file", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert run(writing(99), "ERROR", (db.StoreError,)) == process.EXIT_AGAIN
    assert "locked" in capsys.readouterr().err and run(writing(99), "ERROR", (db.StoreError,)) == process.EXIT_OK
    (tmp_path / "file").write_bytes(b"no database" * 1000)
    assert run(writing(99), "ERROR", (db.StoreError,)) == process.EXIT_USAGE


def test_a_node_that_is_not_up_and_a_password_command_that_fails_are_tried_again(capsys, tmp_path):
    pool, folder = "0x" + "12" * 20, ["--dir", tmp_path, "--no-miners", "--status-port", 0]
    code, error = mistake(capsys, "--rpc", "http://127.0.0.1:1", "--pool", pool, "--vault", pool, *folder)
    assert code == process.EXIT_AGAIN and "is it up" in error
    code, error = mistake(capsys, "--netuid", 98, "--dry-run", "--password-command", "false", "--dir", tmp_path)
    assert code == process.EXIT_AGAIN and "ended with code 1" in error


def test_the_program_itself_ends_with_one_line_too(tmp_path):
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "validator.sqlite3").write_bytes(b"no database at all" * 100)
    for options, said in ((("--rounds", "0"), "--rounds"), (("--dir", str(tmp_path / "local")), "validator.sqlite3")):
        run = command("validator.py", *options)
        assert run.returncode == 2 and run.stderr.count("\n") == 1 and said in run.stderr


def test_a_database_that_cannot_be_used_is_one_line_and_stays_as_it_is(capsys, tmp_path):
    foreign, newer, text = tmp_path / "foreign.sqlite3", tmp_path / "newer.sqlite3", tmp_path / "text.sqlite3"
    text.write_bytes(b"this is no database, whatever its name" * 50)
    for path, sql in ((foreign, "CREATE TABLE jobs (mine TEXT)"), (newer, "PRAGMA user_version = 99")):
        with closing(sqlite3.connect(path)) as db, db:
            db.execute(sql)
    for path, said in (
        (text, "not a database"),
        (foreign, "another program"),
        (newer, "update the program"),
        (tmp_path / "nowhere" / "jobs.sqlite3", "does not exist"),
        (tmp_path, "unable to open"),
    ):
        before = path.read_bytes() if path.is_file() else None
        code, error = mistake(capsys, "--dir", tmp_path / "local", "--db", path)
        assert code == 2 and str(path) in error and said in error
        assert before is None or path.read_bytes() == before
    (tmp_path / "file").write_text("")
    code, error = mistake(capsys, "--dir", tmp_path / "file")
    assert code == 2 and "--dir" in error and "choose another" in error


def test_a_database_of_another_market_is_refused_and_unharmed(capsys, tmp_path):
    play_subnet(tmp_path, {"a": keep}, [a_job()])
    path = tmp_path / "validator.sqlite3"
    before = rows(path, "SELECT * FROM rounds"), rows(path, "SELECT * FROM scores")
    code, error = mistake(capsys, "--dir", tmp_path, "--seed", 6)
    assert code == 2 and "made for market MODEL of a market (seed 5)" in error and "--dir" in error
    assert (rows(path, "SELECT * FROM rounds"), rows(path, "SELECT * FROM scores")) == before


def test_a_recording_that_cannot_be_read_is_one_line(capsys, tmp_path, recording_path):
    code, error = mistake(capsys, "--dir", tmp_path / "local", "--events", tmp_path / "nothing")
    assert code == 2 and "nothing" in error and "does not exist" in error
    path = cut_recording(recording_path(POLYGON), tmp_path / "cut", 600)
    table = Path(f"{path}.events.csv")
    whole = table.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole.replace(b"swap", b"swop", 1), b"\xff\xfe" * 100):
        table.write_bytes(damaged)
        code, error = mistake(capsys, "--dir", tmp_path / "local", "--events", path)
        assert code == 2 and "cut" in error
    table.write_bytes(whole)
    Path(f"{path}.events.csv.xz").write_bytes(lzma.compress(whole)[:-20])
    code, error = mistake(capsys, "--dir", tmp_path / "local", "--events", path)
    assert code == 2 and "fetch the file again" in error
    Path(f"{path}.events.csv.xz").unlink()
    Path(f"{path}.json").write_text('{"chain": "polygon"')
    code, error = mistake(capsys, "--dir", tmp_path / "local", "--events", path)
    assert code == 2 and "cut" in error


def test_a_recording_with_a_gap_is_refused_with_the_block_where_it_shows(recording_path, tmp_path, capsys):
    def lose_one_swap(lines):
        lines.remove(swaps_between(lines, 1000, 8000)[5])
        return lines

    path = cut_recording(recording_path(POLYGON), tmp_path / "gap", 8400, lose_one_swap)
    code, error = mistake(capsys, "--events", path, "--dir", tmp_path / "local")
    assert code == 2 and re.match(r"block \d+ log \d+: .*lacks an event", error)


def test_a_vault_that_the_recording_does_not_have_is_one_line(capsys, tmp_path, recording_path):
    path = cut_recording(recording_path(POLYGON), tmp_path / "cut", 600)
    for vault in ("nonsense", "1:2", "nobody:-10:10", "background:193780:193790", "0:a:b"):
        code, error = mistake(capsys, "--dir", tmp_path / "local", "--events", path, f"--vault={vault}")
        assert code == 2 and vault in error


def test_an_audit_of_what_is_not_there_or_no_evidence_is_one_line(capsys, tmp_path):
    code, error = mistake(capsys, "audit", "all", "--db", tmp_path / "none.sqlite3")
    assert code == 2 and "no database" in error and not (tmp_path / "none.sqlite3").exists()
    play_subnet(tmp_path, {"a": keep}, [a_job()])
    code, error = mistake(capsys, "audit", "job:evaluation:1", "--db", tmp_path / "validator.sqlite3")
    assert code == 2 and "job:evaluation:1" in error
    for content in ("{", "[]", '{"format": "alm-round/0"}'):
        (tmp_path / "round.json").write_text(content)
        assert validator.main(["audit", str(tmp_path / "round.json")]) == 1
        assert re.fullmatch(r".*round.json: cannot be audited: .*\n0 rounds .*1 not.*\n", capsys.readouterr().out)


def test_two_validators_never_work_with_the_same_folder_or_database(capsys, tmp_path):
    one, other, path = tmp_path / "one", tmp_path / "other", tmp_path / "jobs.sqlite3"
    options = ["--rounds", "1", "--no-miners"]
    for held, arguments in ((one / "validator.lock", ["--dir", one, "--fresh"]), (f"{path}.lock", ["--db", path])):
        one.mkdir(exist_ok=True)
        with process.only_one(Path(held), "this test"):
            said = f"{held}: another process works with this --{'dir' if arguments[0] == '--dir' else 'db'}"
            code, error = mistake(capsys, *options, "--dir", other, *arguments)
            assert code == 2 and error.startswith(said)
    assert not any(one.glob("*.sqlite3"))
    assert validator.main([*options, "--dir", str(one)]) == 0  # whoever held it is gone


def test_a_system_that_locks_no_files_is_one_line(monkeypatch, tmp_path):
    def flock(*_) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(process.fcntl, "flock", flock)
    said = "held: No locks available; choose another --dir"
    with pytest.raises(process.UserError, match=said), process.only_one(tmp_path / "held", "--dir"):
        raise AssertionError("it holds nothing")


def test_fresh_forgets_the_local_subnet_and_nothing_else_in_the_folder(capsys, tmp_path):
    play_subnet(tmp_path, {"a": keep}, [a_job()])
    (tmp_path / "precious.txt").write_text("mine")
    (tmp_path / "miner-wide.log").write_text("an old log")
    options = ["--dir", str(tmp_path), "--fresh", "--no-miners", "--rounds", "1", "--seed", "6"]
    assert validator.main(options) == 0  # an earlier run with another seed does not matter
    assert (tmp_path / "precious.txt").read_text() == "mine" and not (tmp_path / "miner-wide.log").exists()
    assert "seed 6" in capsys.readouterr().out and VAULT not in str(
        rows(tmp_path / "validator.sqlite3", "SELECT vault FROM jobs WHERE vault = 'vault'")
    )


def test_a_process_may_raise_its_limit_of_open_files_to_what_the_system_allows():
    code = (
        "import resource as r; from runtime.process import raise_file_limit; r.setrlimit(7, (64, 512));"
        " print(raise_file_limit(), r.getrlimit(7))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.split("\n")[0] == "512 (512, 512)", done.stderr


def test_a_system_that_refuses_to_open_more_files_stops_nobody(monkeypatch):
    def refused(which, limits):
        raise ValueError("current limit exceeds maximum limit")

    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, resource.RLIM_INFINITY))
    monkeypatch.setattr(resource, "setrlimit", refused)
    assert raise_file_limit() == 256


def test_a_program_that_crashes_writes_no_core_file_whatever_it_was_started_with():
    code = "import asyncio, resource as r; from runtime.process import run; r.setrlimit(4, r.getrlimit(4)[1:] * 2)"
    code += "\nasync def work(): print(r.getrlimit(r.RLIMIT_CORE))\nrun(work(), 'INFO')"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT).stdout == "(0, 0)\n"


def test_progress_is_one_line_of_a_terminal_drawn_once_a_percent_and_nothing_elsewhere(monkeypatch, capsys):
    for terminal in (False, True):
        monkeypatch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal)
        for done in range(1, 2001):
            progress(done, 2000, "events")
        clear_progress()
        told = capsys.readouterr()
        assert not told.out and bool(told.err) == terminal
    first, *drawn, last = told.err.split("\r\x1b[K")
    assert not first and not last and len(drawn) == 100 and told.err.count("\n") == 1
    assert drawn[49] == f"[{'#' * 15:30}]  50 %, 1,000 of 2,000 events"
    assert drawn[99] == f"[{'#' * 30}] 100 %, 2,000 of 2,000 events\n"
    progress(1, 3, "rounds")  # three steps are three lines, the last complete
    progress(3, 3, "rounds")
    assert "]  33 %, 1 of 3 rounds\r" in (err := capsys.readouterr().err) and err.endswith("100 %, 3 of 3 rounds\n")
