"""Record a pool: fetch a stretch of a chain into a recording for `--events` and `--backtest`.

    python -m evm record --rpc URL --pool 0x... --from BLOCK --to BLOCK --out FOLDER

What was fetched stays in `FOLDER/NAME.sqlite3`: the same command again goes on where the last one stopped. The endpoint
must still have the state of the first block (an archive endpoint). What is written has been replayed: every swap's call
is found, and the pool at the end is the contract's, fee growth and all.
Exit codes: 1 where some events cannot be had, 2: cannot be had as asked.
Read next: `markets/recordings.py` (a recording as a market).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from evm.abi import address
from evm.follower import CONFIRMATIONS
from evm.market import Web3Market
from evm.rpc import RpcError
from liquidity.events import Event
from markets.base import MarketError
from markets.recordings import (
    CALLS,
    CHAIN_IDS,
    FINAL,
    RECORDED,
    RecordingError,
    complete,
    read_recording,
    write_recording,
)
from runtime.db import StoreError
from runtime.options import file_path, url
from runtime.process import EXIT_OK, Parser, UserError, clear_progress, number, only_one, progress, run
from wire.codec import to_plain


def build_parser() -> Parser:
    parser = Parser(prog="python -m evm", description="A real pool on a real chain.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("record", help="fetch a stretch of a pool's life into a recording")
    about = "endpoint; may be given repeatedly"
    verb.add_argument("--rpc", required=True, action="append", type=url("http", "https"), metavar="URL", help=about)
    verb.add_argument("--pool", required=True, metavar="0x...", help="the pool's address")
    verb.add_argument("--from", required=True, type=number(1), dest="first", metavar="BLOCK", help="the first block")
    verb.add_argument("--to", required=True, type=number(1), dest="last", metavar="BLOCK", help="the last block")
    verb.add_argument("-o", "--out", required=True, type=file_path, metavar="FOLDER", help="where the recording goes")
    verb.add_argument("--name", help="of the recording (default: chain, tokens, fee and blocks)")
    help_ = f"blocks on top of the last one (default: {CONFIRMATIONS})"
    verb.add_argument("--confirmations", type=number(0), default=CONFIRMATIONS, help=help_)
    verb.add_argument("--log-level", default="WARNING", choices=("DEBUG", "INFO", "WARNING", "ERROR"))
    return parser


def touched(events: Iterable[Event], gauge: str) -> set[tuple[str, int, int]]:
    """The positions that events change; what somebody gave a gauge has an owner of no address, and nobody moves it."""
    keys = {event.args[:3] for event in events if event.kind in ("mint", "burn", "stake", "unstake")}
    keys |= {(gauge, *event.args[1:3]) for event in events if event.kind in ("stake", "unstake")}
    return {key for key in keys if not key[0].endswith("#")}


async def record(options: argparse.Namespace) -> int:
    """Fetch, check, write."""
    if options.last < options.first:
        raise UserError(f"--to {options.last} is before --from {options.first}")
    options.out = Path(options.out)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {options.out}: {error.strerror}; choose another folder") from None
    pool = address(options.pool, "pool")
    name = options.name or f"{pool}_{options.first}_{options.last}"
    path, begin = options.out / f"{name}.sqlite3", options.first - 1
    reading = {"confirmations": options.confirmations, "following": False}
    with only_one(options.out / f"{name}.lock", "recording"):
        async with Web3Market.open(options.rpc, pool, path, first=begin, **reading) as market:
            return await _record(market, options, name)


async def _record(market: Web3Market, options: argparse.Namespace, name: str) -> int:
    first, last = options.first, options.last
    print(market.label, flush=True)
    reached = first - 1

    def show(block: int) -> None:
        nonlocal reached
        progress(block - first + 1, last - first + 1, "blocks", block - reached)
        reached = block

    await market.catch_up(last, show)
    if reached < last:
        clear_progress()
    if (head := (await market.head()).number) < last:
        what = f"the last block with {options.confirmations} confirmations is {head}"
        raise UserError(f"--to {last}: {what}; wait and run this again, or choose --to {head}")
    events = [event for event in await market.events(first, last) if event.kind in RECORDED]
    start, after = await market.ends(first, last, touched(events, market.contract.gauge))
    end, pair, chains = after.open(), market.pair, {number_: chain for chain, number_ in CHAIN_IDS.items()}
    description = {
        "chain": chains.get(pair.chain_id, f"chain {pair.chain_id}"),
        "pool": pair.pool_address,
        **{f"token{n}": f"{t.symbol} ({t.decimals})" for n, t in enumerate((pair.token0, pair.token1))},
        "snapshot": to_plain(start),
        "final": {name: getattr(end, name) for name in FINAL if hasattr(end, name)},
    }
    target = options.out / name
    write_recording(target, json.dumps(description).encode(), events)
    kinds, calls = Counter(), Counter()
    for event in complete(read_recording(target)):  # as any reader will
        kinds[event.kind] += 1
        calls[event.args[0]] += event.kind == "swap"
    print(f"{name}: {', '.join(f'{kinds[kind]} {kind}' for kind in RECORDED if kinds[kind])}; every digit agrees")
    print(f"calls: {', '.join(f'{how} {calls[how]}' for how in CALLS if calls[how]) or 'none'}")
    print(f"written to {target}.json and {target}.events.csv.xz; --events {target} names both")
    return EXIT_OK


def main(argv: list[str] | None = None) -> int:
    options = build_parser().parse_args(argv)
    return run(record(options), options.log_level, (MarketError, StoreError, RpcError, RecordingError))


if __name__ == "__main__":
    sys.exit(main())
