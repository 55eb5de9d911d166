"""`python validator.py report`: all that the status page shows, as one file that needs no server.

Read first: `validator.py` of this room.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from runtime.options import add_logging_options, file_path
from runtime.process import UserError
from spine.ground import REFERENCE_STRATEGIES
from spine.mechanism import Mechanism, load, showings
from status.pages import BOARD_ROWS, Pages
from status.panels import Panels
from status.reader import Reader
from status.validator import boards
from wire.signing import local_keypair

HELP = "write jobs, leaderboards and rounds as one self-contained HTML file"


def add_options(parser: argparse.ArgumentParser) -> None:
    about = "whose panels to draw (default: each job's newest)"
    parser.add_argument("rounds_shown", nargs="*", metavar="ROUND", help=about)
    about = "the file (default: report.html)"
    parser.add_argument("-o", "--output", type=file_path, default="report.html", metavar="FILE", help=about)
    usual = "local/validator.sqlite3"
    parser.add_argument("--db", dest="report_db", type=file_path, default=usual, metavar="FILE", help="jobs database")
    also = "also show rounds of the mechanism of this Python module"
    parser.add_argument("--mechanism", action="append", metavar="MODULE", default=argparse.SUPPRESS, help=also)
    add_logging_options(parser)


async def write_report(options: argparse.Namespace) -> None:
    names = {local_keypair(f"{name}-hotkey").ss58_address: name for name in REFERENCE_STRATEGIES}
    text = await report(Path(options.report_db), options.rounds_shown, names, load(options.mechanism))
    try:
        Path(options.output).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"-o {options.output}: {error.strerror}; choose another file") from error
    print(f"REPORT: {options.output}, {len(text) // 1000} kB, one file; open it in any browser")


async def report(
    path: Path, round_ids: list[str], names: Mapping[str, str], mechanisms: Mapping[str, Mechanism]
) -> str:
    """The page of a validator's database as one file, with panels of these rounds, or of the newest scored one of each
    job and type. Raises `StoreError` if the database cannot be read, `NotShown` if there is no such round."""
    async with Reader.open(path, mechanisms) as reader:
        drawing, listed, drawings = Panels(reader), await reader.rounds(), []
        today = max((row["end_time"] for row in listed["rounds"]), default=0) // 86_400
        if not round_ids:
            scored = [row for row in listed["rounds"] if row["code"] == "scored"]
            round_ids = list({(row["job_id"], row["round_type"]): row["round_id"] for row in reversed(scored)}.values())
        for round_id in round_ids:
            seen = await reader.round(round_id)
            drawn = await drawing.drawn(seen)
            others = [] if isinstance(drawn, str) else seen["scores"][1:BOARD_ROWS]
            others = [(score["rank"], await drawing.of(seen, score["hotkey"])) for score in others]
            drawings.append((seen, drawn, others))
        shown = {"jobs": await boards(reader, await reader.jobs_now(), today), "drawings": drawings, "listed": listed}
        shown |= {"meta": await reader.meta(), "counts": await reader.counts()}
        return Pages(names, await reader.pair(), showings(mechanisms), links=False).write(
            "report.html", "ALM report", **shown
        )
