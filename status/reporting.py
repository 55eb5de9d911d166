"""`python validator.py report`: all that the status page shows, as one file that needs no server.

Read first: `validator.py` of this room.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from runtime.process import UserError
from spine.ground import REFERENCE_STRATEGIES
from spine.mechanism import load
from status.validator import report
from wire.signing import local_keypair

HELP = "write jobs, leaderboards and rounds as one self-contained HTML file"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "rounds_shown", nargs="*", metavar="ROUND", help="whose panels to draw (default: each job's newest)"
    )
    parser.add_argument("-o", "--output", default="report.html", help="the file (default: report.html)")
    parser.add_argument("--db", dest="report_db", default="local/validator.sqlite3", help="jobs database")


async def write_report(options: argparse.Namespace) -> None:
    """Write the status page's contents as one file that needs no server, and name it."""
    names = {local_keypair(f"{name}-hotkey").ss58_address: name for name in REFERENCE_STRATEGIES}
    text = await report(Path(options.report_db), options.rounds_shown, names, load(options.mechanism))
    try:
        Path(options.output).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"-o {options.output}: {error.strerror}; choose another file") from error
    print(f"REPORT: {options.output}, {len(text) // 1000} kB, one file; open it in any browser")
