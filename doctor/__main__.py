"""What is needed to run here, line by line: `ok`, `warn` (it runs, but look) or `FAIL`, each with its fix.

    python validator.py doctor [--dir local] [--db FILE] [--port 8091]
    python validator.py doctor --netuid N --wallet NAME --wallet-hotkey NAME     and the wallet, and what the chain says
    python validator.py doctor --rpc URL --pool 0x.. --vault 0x..        and whether a real market can be opened there
    python -m doctor                    the same where validator.py itself does not start: a package is missing

Exit code 0 when nothing fails, else 1. Nothing is changed, and nothing leaves this machine unless a subnet or a node is
named: then they are asked, each node for some 1,100 small things. Without any package it says which are missing.
Read next: `machine.py`, `network.py`, `nodes.py` (the checks).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from doctor import machine
from doctor.machine import FAIL, OK, WARN, Finding, tell
from doctor.network import check_market, check_subnet
from runtime.options import add_chain_options, add_market_options, file_path, resolve
from runtime.process import Parser, UserError

DEFAULT_PORT = 8091  # of miner.py


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command's options; those that `validator.py` has too are only set when given."""
    add, given = parser.add_argument, {"default": argparse.SUPPRESS}
    add("--dir", **given, type=file_path, help="folder of the databases (default: local, or netuid-N)")
    add("--db", **given, type=file_path, metavar="FILE", help="jobs database (default: DIR/validator.sqlite3)")
    add("--port", type=int, default=DEFAULT_PORT, help=f"where a miner would listen (default: {DEFAULT_PORT})")
    add_chain_options(parser)
    add_market_options(parser)


def examine(folder: Path, jobs: Path, port: int) -> Iterator[Finding]:
    """All checks of this machine; the database of pool events is beside that of the jobs."""
    yield from machine.check_python()
    yield from machine.check_packages(Path(__file__).parents[1] / "requirements.txt")
    yield from machine.check_port(port)
    yield from machine.check_clock(folder / "chain.sqlite3")
    yield from machine.check_folder(folder)
    try:
        from chain.ledger import MIGRATIONS
        from runtime.tables import EVENTS_SCHEMA, JOBS_SCHEMA

        versions = len(JOBS_SCHEMA), len(EVENTS_SCHEMA), len(MIGRATIONS)
    except (ImportError, TypeError) as error:  # TypeError: of a Python too old for its dataclasses
        yield Finding(WARN, f"the databases' versions are not compared: {error}", "mend the lines above first")
        versions = None, None, None
    events = jobs.with_name(f"{jobs.stem}.events.sqlite3")
    yield from machine.check_database("jobs database", jobs, versions[0])
    yield from machine.check_database("events database", events, versions[1])
    yield from machine.check_database("chain ledger", folder / "chain.sqlite3", versions[2])


def _all(options: argparse.Namespace) -> Iterator[Finding]:
    problem = None
    try:
        if not hasattr(options, "sources"):
            resolve(options)
    except UserError as error:
        problem = Finding(FAIL, str(error))
    netuid, database = getattr(options, "netuid", None), getattr(options, "db", None)
    folder = Path(getattr(options, "dir", None) or ("local" if netuid is None else f"netuid-{netuid}"))
    yield from examine(folder, Path(database) if database else folder / "validator.sqlite3", options.port)
    if problem:
        yield problem
    else:
        yield from check_subnet(options)
        yield from check_market(options)


def report(options: argparse.Namespace) -> int:
    """Print all findings; returns the exit code."""
    levels = tell(_all(options))
    print(f"{levels.count(FAIL)} FAIL, {levels.count(WARN)} warn, {levels.count(OK)} ok")
    return 1 if FAIL in levels else 0


def main(argv: list | None = None) -> int:
    parser = Parser(prog="python -m doctor", description="What is needed to run, each with its fix.")
    add_options(parser)
    return report(parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
