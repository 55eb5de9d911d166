"""Every option is read by the command that accepts it, or refused: none is ignored; every path knows `~`.

The commands' own code is the oracle: what it reads of `options`, followed through every call that hands `options` on.
Run with `python -m pytest tests/test_options.py`. Read next: `test_settings.py`.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from functools import cache
from pathlib import Path

import pytest
from subnets import ROOT, a_job
from test_house import TREES, imports, root

import audit.__main__ as auditing
import chain.__main__ as chaining
import evm.__main__ as recording
import executor.__main__ as executing
import markets.__main__ as replaying
import miner
import stake
import validator
from executor.drafting import Limits
from runtime.options import parse_options, settings_lines
from runtime.process import UserError
from spine import ground

HOTKEY = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY"
SWEEP = ("sweep", "--aggregator-hotkey", HOTKEY, "--destination-coldkey", HOTKEY)
RECORD = ("record", "--rpc", "http://h", "--pool", "0x1", "--from", "1", "--to", "2", "--out", "x")
NET = ("--netuid", "98")
MODES = {  # what is typed, and the functions that then work
    "validator": (validator, (), ("validator.validate",)),
    "validator, paced": (validator, ("--pace", "1"), ("validator.validate",)),
    "validator of a network": (validator, (*NET, "--dry-run"), ("validator.validate",)),
    "validator audit": (validator, ("audit", "all"), ("audit.__main__.run_audit",)),
    "validator report": (validator, ("report",), ("status.reporting.write_report",)),
    "validator doctor": (validator, ("doctor",), ("doctor.__main__._all",)),
    "miner": (miner, (), ("miner.mine",)),
    "miner of a network": (miner, NET, ("miner.mine",)),
    "miner --check": (miner, ("--check",), ("doctor.backtest.check_command", "doctor.reach.report")),
    "miner --backtest": (miner, ("--backtest",), ("doctor.backtest.backtest_command",)),
    "miner receipts": (miner, ("receipts",), ("audit.receipt_book._report",)),
    "stake burn": (stake, ("burn",), ("stake.burn",)),
    "stake burn of a network": (stake, ("burn", *NET), ("stake.burn",)),
    "stake sweep": (stake, SWEEP, ("stake.sweep",)),
    "stake sweep --yes": (stake, (*SWEEP, "--yes"), ("stake.sweep",)),
    "stake status": (stake, ("status",), ("stake.status",)),
    **{
        f"executor {verb}": (executing, (verb,), (f"executor.__main__.{name}",))
        for verb, name in {"serve": "serve_orders", **{v: v for v in ("status", "approve", "pause", "resume")}}.items()
    },
    "evm record": (recording, RECORD, ("evm.__main__.record",)),
    "markets replay": (replaying, ("replay", "x"), ("markets.__main__.replay_command",)),
    "markets import": (replaying, ("import", "x", "--out", "y"), ("markets.__main__.import_command",)),
    "audit export": (auditing, ("export",), ("audit.__main__._export",)),
    "audit verify": (auditing, ("verify", "x"), ("audit.__main__._verify",)),
    "chain notify": (chaining, ("notify", "x"), ("chain.__main__._send",)),
}
BY_MAIN = {"log_level", "log_json", "log_file", "help", "command", "verb", "check", "backtest"}
LIMITS = set(Limits.__slots__)  # read by their names, in a loop
VALUES = (
    "3", "http://127.0.0.1:1", "wss://h", "127.0.0.0/8", "0,0", "0x" + "1" * 40, "2025-01-01", "PoL", "applied",
    "wide", "DEBUG", "x",
)  # fmt: skip
NO_READERS = ("runtime.options.settings_lines", "runtime.options.refuse")  # who prints or refuses whatever there is


@cache
def functions() -> dict[str, tuple[str, ast.AST]]:
    """Every function, method and class by its full name, with the class or module it stands in."""
    found = {}

    def below(node: ast.AST, within: str) -> None:
        for child in node.body:
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found[f"{within}.{child.name}"] = within, child
                if isinstance(child, ast.ClassDef):
                    below(child, f"{within}.{child.name}")

    for module, tree in TREES.items():
        below(tree, module)
    return found


@cache
def imported(module: str) -> dict[str, str]:
    """What a name of a module stands for, in full; an import inside a function too."""
    found = {}
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import | ast.ImportFrom):
            prefix = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            found |= {alias.asname or alias.name: prefix + alias.name for alias in node.names}
    return found


def meant(expression: ast.AST, within: str) -> str:
    """The full name of a function that is named in a class or module; empty where that cannot be said."""
    head, *rest = ast.unparse(expression).split(".") if isinstance(expression, ast.Name | ast.Attribute) else [""]
    module = next(name for name in (within, within.rpartition(".")[0]) if name in TREES)
    full = ".".join([within if head == "self" else imported(module).get(head, f"{module}.{head}"), *rest])
    return full if full in functions() else ""


def is_options(node: ast.AST) -> bool:
    return ast.unparse(node).removeprefix("self.").removeprefix("_") == "options"


def reads(node: ast.AST) -> Iterator[str]:
    """The attributes of `options` that code reads itself."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Attribute) and isinstance(inner.ctx, ast.Load) and is_options(inner.value):
            yield inner.attr
        elif (
            isinstance(inner, ast.Call)
            and ast.unparse(inner.func) in ("getattr", "_given")
            and is_options(inner.args[0])
        ):
            yield from (word.value for word in inner.args[1:] if isinstance(word, ast.Constant) and word.value)


def handed_on(node: ast.AST, within: str) -> Iterator[str]:
    """The full names of what gets `options`: what is called with it, or stands beside it as an argument."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Call) and any(is_options(part) for word in inner.args for part in ast.walk(word)):
            yield from (meant(word, within) for word in (inner.func, *inner.args))
            if isinstance(inner.func, ast.Attribute) and not meant(inner.func, within):  # of an object: any that has it
                yield from (
                    name for name in functions() if name.endswith(f".{inner.func.attr}") and name[-9:] != ".__init__"
                )
        elif isinstance(inner, ast.Attribute) and ast.unparse(inner.value) == "self":  # which has `self.options`
            yield meant(inner, within)


def all_read(*entries: str) -> set[str]:
    """The attributes of `options` that functions read, themselves or through what they hand it to."""
    found, seen, todo = set(), set(), list(entries)
    while todo:
        name = todo.pop()
        if name in seen or not name or name.startswith(NO_READERS):
            continue
        seen.add(name)
        within, node = functions()[name]
        found |= set(reads(node))
        inside = name if isinstance(node, ast.ClassDef) else within
        todo += handed_on(node, inside)
        todo += [f"{name}.{child.name}" for child in node.body if inside == name and hasattr(child, "name")]
    return found


def accepted(parser: argparse.ArgumentParser, words: tuple) -> list[argparse.Action]:
    """The options of the command that is typed, and those of its program where it has no command."""
    verbs = [verb for group in (parser._subparsers._group_actions if parser._subparsers else ()) for verb in [group]]
    chosen = next((group.choices[word] for group in verbs for word in words if word in group.choices), parser)
    return [action for action in chosen._actions if action.option_strings]


def written(action: argparse.Action) -> list[str]:
    """The option with a value that it takes."""
    if action.nargs == 0:
        return [action.option_strings[0]]
    for value in VALUES:
        try:
            value_of = (action.type or str)(value)
        except (argparse.ArgumentTypeError, ValueError, TypeError):
            continue
        if action.choices is None or value_of in action.choices:
            return [action.option_strings[0], value]
    raise AssertionError(f"no value for {action.option_strings[0]}")


@pytest.mark.parametrize("mode", MODES)
def test_every_option_is_read_by_the_command_that_accepts_it_or_refused_in_one_line(
    mode, monkeypatch, tmp_path, capsys
):
    module, words, entries = MODES[mode]
    monkeypatch.chdir(tmp_path)
    read = all_read(*entries) | BY_MAIN | LIMITS
    for action in accepted(module.build_parser(), words):
        if action.dest not in read:
            with pytest.raises(SystemExit) as caught:
                raise SystemExit(module.main([*words, *written(action)]))
            error = capsys.readouterr().err
            assert caught.value.code == 2 and error.count("\n") == 1, (mode, action.option_strings, error)
            assert action.option_strings[0] in error or action.dest == "settle", (mode, error)


def test_the_reader_of_code_sees_what_is_read_and_what_is_not():
    assert {"seed", "events", "days", "rounds", "dry_run", "slack_webhook_url", "status_port"} <= all_read(
        "validator.validate"
    )
    assert all_read("executor.__main__.pause") == {"dir"}
    assert "seed" not in all_read("miner.mine") and "exit_with_parent" in all_read("miner.mine")
    assert {"seed", "strategy"} <= all_read("doctor.backtest.check_command")


def test_an_address_for_alerts_in_the_environment_is_not_shown_where_nobody_is_told(tmp_path):
    for line, told in (("", False), ("--pace 1", True)):
        environ = {"SLACK_WEBHOOK_URL": "https://h/x"}
        options = parse_options(validator.build_parser(), line.split(), environ, tmp_path / "none")
        assert any("slack_webhook_url" in shown for shown in settings_lines(options)) == told


def first_imports(module: str, seen: set[str]) -> Iterator[str]:
    """Modules in the order in which they are imported when one is, the SDK and `runtime.home` among them."""
    if module in seen or module not in TREES:
        yield module
        return
    seen.add(module)
    for inner, inside in imports(TREES[module]):
        if not inside:
            yield from first_imports(inner, seen)
    yield module


@pytest.mark.parametrize("program", sorted({module.__name__ for module, _, _ in MODES.values()} | {"doctor.__main__"}))
def test_every_program_has_a_home_before_the_sdk_asks_for_one(program):
    names = list(first_imports(program, set()))
    assert "runtime.home" in names and "bittensor" not in {root(name) for name in names[: names.index("runtime.home")]}


def test_a_program_starts_for_a_user_without_a_home(tmp_path):
    script = (
        "import os, pwd, sys; os.environ.pop('HOME')\n"
        "def getpwuid(_): raise KeyError\n"
        "pwd.getpwuid = getpwuid; import miner; sys.exit(miner.main())"
    )
    environ = os.environ | {"HOME": "x", "PYTHONPATH": str(ROOT), "NETUID": "98"}
    line = [sys.executable, "-c", script, "--external-ip", "8.8.8.8"]
    done = subprocess.run(line, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "no key file /nonexistent/.bittensor/wallets/" in done.stderr, done.stderr
    assert done.stderr.splitlines()[-1].count("no key file") == 1 and "Traceback" not in done.stderr


POOL = f"--rpc http://h --pool 0x{'1' * 40} --vault 0x{'2' * 40}"


@pytest.mark.parametrize(
    ("module", "line", "says"),
    [  # what another option beside it makes useless
        (validator, "--seed 5 --events x", "--seed is of the market model"),
        (validator, f"--seed 5 {POOL}", "--seed is of the market model"),
        (validator, f"--pace 1 {POOL}", "--pace is for a recording or the model"),
        (validator, "--idle 1,2", "--idle is of a recorded vault"),
        (validator, "--vault 1", "--vault is given, but no node of the chain"),
        (validator, "--latency-seconds 3 --pace 1", "--latency-seconds is for full speed"),
        (validator, "--latency-seconds 3 --netuid 98 --dry-run", "--latency-seconds is for full speed"),
        (validator, "--slack-webhook-url https://h/SECRET", "--slack-webhook-url tells of trouble in real time"),
        (validator, "--host 0.0.0.0", "--host is for a real network"),
        (validator, "--external-port 5", "--external-port is for a real network"),
        (validator, "--netuid 98 --dry-run --port 5", "--port is where miners fetch their receipts; add --external-ip"),
        (validator, "--netuid 98 --dry-run --trusted-proxy 10.0.0.0/8", "--trusted-proxy is where miners fetch"),
        (validator, "--netuid 98 --fresh", "--fresh forgets a local subnet"),
        (validator, "--netuid 98 --no-miners", "--no-miners is for a local subnet"),
        (validator, "--db x audit all", "--db goes after audit"),
        (validator, "--dir x report", "--dir is no option of report"),
        (validator, "--rounds 3 doctor", "--rounds is no option of doctor"),
        (validator, f"audit all --manager 0x{'1' * 40}", "--manager is asked for on the chain alone; add --rpc"),
        (miner, "--check --seed 5 --events x", "--seed is of the market model"),
        (miner, "--port 5 receipts", "--port is no option of receipts"),
        (miner, "receipts --export r --from http://h", "--from is of no use with --export"),
        (stake, " ".join((*SWEEP, "--settle applied")), "--settle changes the journal; add --yes"),
        (stake, "burn --netuid 98 --name x", "--name is a wallet of the local subnet"),
        (executing, f"status --pool 0x1 {POOL.partition('--pool')[0]} --vault 0x1 --password-file x",
         "--password-file is of the vault's key; add --key-file"),
    ],
)  # fmt: skip
def test_an_option_that_another_makes_useless_is_refused_in_one_line(module, line, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        raise SystemExit(module.main(line.split()))
    error = capsys.readouterr().err
    assert caught.value.code == 2 and error.count("\n") == 1 and says in error and "SECRET" not in error, error


def test_what_is_for_new_jobs_must_be_as_it_is_in_those_that_there_are(tmp_path, monkeypatch):
    jobs = [a_job("one"), a_job("two")]
    for line, says in (
        ("--round-seconds 1800", "--round-seconds is for new jobs, those of here have 900"),
        (f"--vault other {'--events x'}", f"--vault is for new jobs, those of here have {jobs[0].vault}"),
        ("--round-seconds 900", ""),
        ("", ""),
    ):
        options = parse_options(validator.build_parser(), line.split(), {}, tmp_path / "none")
        for known in (jobs, []):
            with pytest.raises(UserError, match=says) if says and known else nullcontext():
                ground._check_old(options, known, "here")


def every_option() -> Iterator[tuple[list[str], argparse.ArgumentParser, argparse.Action]]:
    """Each option and argument of each command, with the command's name and parser."""
    for module in (validator, miner, stake, executing, recording, replaying, auditing, chaining):
        parser = module.build_parser()
        commands = parser._subparsers._group_actions[0].choices if parser._subparsers else {}
        for name, one in [("", parser), *commands.items()]:
            yield from ((f"{module.__name__} {name}", one, action) for action in one._actions)


def test_every_path_may_begin_with_the_users_home_and_only_the_type_of_paths_knows_how(monkeypatch):
    monkeypatch.setenv("HOME", "/them")
    paths = 0
    for where, _, action in every_option():
        if re.search("FILE|DIR|FOLDER|PATH", f"{action.metavar}") or action.dest in ("dir", "db", "path"):
            assert action.type("~/x") == "/them/x" and action.type("x") == "x", (where, action.dest)
            paths += 1
    assert paths > 40
    environ = {"NETUID": "1", "BT_WALLET_PATH": "~/w", "BT_WALLET_PASSWORD_FILE": "~/p"}
    options = parse_options(miner.build_parser(), [], environ, Path("none"))
    assert (options.wallet_path, options.password_file) == ("/them/w", "/them/p")
    knows = [name for name, tree in TREES.items() if "expanduser" in ast.unparse(tree)]
    assert knows == ["runtime.home", "runtime.options"]
