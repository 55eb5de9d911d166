"""The options of `validator.py` that are not its chain's, its market's or its log's.

Read next: `ground.py` (what they open).
"""

from __future__ import annotations

import argparse

from protocol import UINT128_MAX
from runtime.process import number
from spine.schedule import DAY_SECONDS

LOCAL_HOST = "127.0.0.1"
KEEP_DAYS = 30  # of evidence: what can be audited


def add_market_options(parser: argparse.ArgumentParser) -> None:
    """A market in memory."""
    market = parser.add_argument_group("market")
    market.add_argument("--events", metavar="PATH", help="replay this recording of a real pool instead of the model")
    market.add_argument(
        "--idle", type=_amounts, metavar="A0,A1", default="0,0", help="the recorded vault's idle tokens, base units"
    )
    market.add_argument("--seed", type=int, default=98, help="of the market model (default: 98)")
    market.add_argument(
        "--days",
        type=number(0),
        help="stop so many days after the market's first block, 0 never (default: 7 on the model)",
    )
    market.add_argument(
        "--pace",
        type=number(0.01, 60, kind=float),
        help="market seconds per second, at most 60 so that miners have a second to answer (default: full speed)",
    )
    market.add_argument(
        "--latency-seconds", type=number(0), default=0, help="market time an answer takes at full speed (default: 0)"
    )


def add_round_options(parser: argparse.ArgumentParser) -> None:
    """How many rounds of what, and what comes of them."""
    rounds = parser.add_argument_group("rounds")
    rounds.add_argument("--rounds", type=number(1), metavar="N", help="stop after N evaluation rounds of each job")
    rounds.add_argument("--once", action="store_const", const=1, dest="rounds", help="the same as --rounds 1")
    rounds.add_argument(
        "--round-seconds",
        type=number(60, DAY_SECONDS),
        default=900,
        help="length of a round in new local jobs, from 60 (default: 900)",
    )
    rounds.add_argument(
        "--dry-run", action="store_true", help="compute and print weights, send none; give no orders to a bot"
    )
    rounds.add_argument(
        "--all-leaderboards", action="store_true", help="print one for every round, not one a market day"
    )
    rounds.add_argument(
        "--keep-days",
        type=number(0),
        default=KEEP_DAYS,
        metavar="N",
        help=f"drop the evidence of rounds older than N days, not their scores; 0 never (default: {KEEP_DAYS})",
    )
    rounds.add_argument(
        "--mechanism",
        action="append",
        metavar="MODULE",
        default=[],
        help="also serve the mechanism of this Python module; see spine/mechanism.py",
    )


def add_local_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Where files are, and who listens; returns the group."""
    local = parser.add_argument_group("this machine")
    local.add_argument("--dir", help="folder of databases and logs (default: local, or netuid-N on a real network)")
    local.add_argument("--db", metavar="FILE", help="jobs database (default: DIR/validator.sqlite3)")
    local.add_argument("--fresh", action="store_true", help="forget the folder's earlier local subnet first")
    local.add_argument("--no-miners", action="store_true", help="start no reference miners")
    local.add_argument(
        "--port",
        type=number(0, 65535),
        help="where miners fetch their receipts, 0 for any free port (default: 8090, or any free one if that is taken)",
    )
    local.add_argument(
        "--external-ip", metavar="IP", help="on a real network: publish this address, and serve receipts at --port"
    )
    local.add_argument("--host", default=LOCAL_HOST, help="where to listen then; 0.0.0.0 is all (default: 127.0.0.1)")
    return local


def _amounts(text: str) -> tuple[int, int]:
    """The type of `--idle`."""
    parts = text.split(",")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) <= UINT128_MAX for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r}: two whole numbers of base units are expected, like 0,0")
    return int(parts[0]), int(parts[1])
