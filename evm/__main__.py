"""`python -m evm record ...`: fetch a stretch of a pool's life into a recording; exit code 2: cannot be had as asked.

Read next: `recorder.py`.
"""

from __future__ import annotations

import sys

from evm.recorder import add_options, record
from evm.rpc import RpcError
from markets.base import MarketError
from markets.recordings import RecordingError
from runtime.db import StoreError
from runtime.process import Parser, run


def build_parser() -> Parser:
    parser = Parser(prog="python -m evm", description="A real pool on a real chain.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    add_options(verbs.add_parser("record", help="fetch a stretch of a pool's life into a recording"))
    return parser


def main(argv: list[str] | None = None) -> int:
    options = build_parser().parse_args(argv)
    return run(record(options), options.log_level, (MarketError, StoreError, RpcError, RecordingError))


if __name__ == "__main__":
    sys.exit(main())
