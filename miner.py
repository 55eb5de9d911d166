"""A miner, to copy: change `propose`, run it, and validators ask you where the vault's liquidity should be.

    python miner.py                          joins the local subnet that `python validator.py` runs in another terminal
    python miner.py --strategy wide          with one of the reference strategies below
    python miner.py --check                  one simulated round: what is wrong with your strategy, or its score; and
                                             whether a validator would reach you
    python miner.py --backtest               many rounds: skill or luck?  Both also take --events RECORDING
    python miner.py receipts                 what validators signed about your scores: fetched, verified, listed

Everything below `propose` works unchanged: the signed server, who may call, registration, the safe answer when your
code fails. Read next: `protocol.py` (what you are asked and may answer), `scoring.py` (what you are paid for).
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import runtime.home  # noqa: F401
from audit import receipt_book
from chain.base import ChainError
from chain.opening import Published, joined
from doctor import backtest
from liquidity import showing
from protocol import (
    MAX_ANSWER_BYTES,
    MAX_QUERY_BYTES,
    MAX_TICK,
    MIN_TICK,
    MinerMetadata,
    Position,
    RebalanceAnswer,
    RebalanceQuery,
    check_answer,
)
from runtime.db import StoreError
from runtime.options import (
    add_chain_options,
    add_logging_options,
    add_settings,
    axon_settings,
    file_path,
    is_local,
    parse_options,
)
from runtime.process import Parser, UserError, run
from status.miner import MinerStatus
from status.server import MINER_PORT, add_options
from wire.client import is_public
from wire.codec import decode, encode
from wire.server import Gate, Limits, add_limit_options, build_app, limited, serve
from wire.signing import WireError

VERSION = "1.0.0"
MIN_CALLER_STAKE_RAO = 1_000 * 10**9  # who has no permit must have this much
CALLERS_SECONDS = 30  # how often the list of callers is read
# a local subnet at full speed asks hundreds of times a second, all from this machine; elsewhere the defaults are right
LOCAL_LIMITS = Limits(address_per_second=1e5, address_burst=1e5, hotkey_per_second=1e5, hotkey_burst=1e5)

log = logging.getLogger("miner")


@dataclass(frozen=True)
class Refusal:
    """What `propose` returns instead of positions when you do not want the job; it costs nothing."""

    reason: str


# =====================================================================================================================
# YOUR STRATEGY: the one function to change


def propose(query: RebalanceQuery) -> list[Position] | Refusal:
    """Say which positions you want to hold from now on, or refuse the job.

    Args:
        query: the market and your own positions and tokens; every field is explained at `protocol.RebalanceQuery`.

    Returns:
        The complete list. A position returned exactly as it was shown is kept untouched; one that is missing is closed;
        the rest is opened with at most the tokens you name. All allocations together may not exceed `query.holdings()`.
        Or `Refusal("why")`: at the first ask of a round you are out without harm, later it means keep.
    """
    # Filters you may want (any field will do):
    #   if "ETH" not in (query.token0.symbol + query.token1.symbol): return Refusal("only ETH pairs")
    #   if query.round_type == "live": return Refusal("not ready for live")
    #   if query.rebalances_so_far >= 5: return list(query.current_positions)
    return keep(query)


# =====================================================================================================================
# Reference strategies: legal for any pool, short enough to read, not tuned


def keep(query: RebalanceQuery) -> list[Position]:
    """Change nothing."""
    return list(query.current_positions)


def wide(query: RebalanceQuery) -> list[Position]:
    """All tokens in one range, a tenth around the price; opened anew when the price has left its middle half."""
    reach = 960  # 1.0001**960 is 1.10
    for position in query.current_positions:
        width = position.tick_upper - position.tick_lower
        centred = abs(position.tick_lower + position.tick_upper - 2 * query.tick) < width / 2
        if len(query.current_positions) == 1 and centred and width <= 2 * reach + 2 * query.tick_spacing:
            return list(query.current_positions)
    return [Position(*grid_range(query, query.tick - reach, query.tick + reach), *query.holdings())]


def preserve(query: RebalanceQuery) -> list[Position]:
    """Keep the tokens what they are: token0 waits two percent above the price, token1 below; moved when it nears."""
    away, depth = (max(ticks, 2 * query.tick_spacing) for ticks in (200, 400))  # ticks of a hundredth of a percent
    untouched = all(
        query.tick < p.tick_lower - away // 4 or query.tick >= p.tick_upper + away // 4 for p in query.current_positions
    )
    if query.rebalances_so_far and untouched:
        return list(query.current_positions)
    amount0, amount1 = query.holdings()
    above = grid_range(query, query.tick + away, query.tick + away + depth)
    below = grid_range(query, query.tick - away - depth, query.tick - away)
    return [Position(*above, amount0, 0), Position(*below, 0, amount1)][: query.settings.max_positions]


def grid_range(query: RebalanceQuery, lower: int, upper: int) -> tuple[int, int]:
    """The legal range nearest to the two ticks: on the grid, within the bounds, at least one spacing wide."""
    spacing = query.tick_spacing
    first, last = -(-MIN_TICK // spacing) * spacing, MAX_TICK // spacing * spacing
    lower = min(max(lower // spacing * spacing, first), last - spacing)
    return lower, min(max(-(-upper // spacing) * spacing, lower + spacing), last)


STRATEGIES = {"mine": propose, "keep": keep, "wide": wide, "preserve": preserve}


# =====================================================================================================================
# The rest: works unchanged


def respond(
    query: RebalanceQuery, strategy: Callable[[RebalanceQuery], list[Position] | Refusal], name: str
) -> RebalanceAnswer:
    """Turn a proposal into an answer; raises what the strategy raises, and `ProtocolError` for what is not legal."""
    proposal, metadata = strategy(query), MinerMetadata(VERSION, name)
    if isinstance(proposal, Refusal):
        return RebalanceAnswer(False, proposal.reason[:300], (), metadata)
    if not isinstance(proposal, (list, tuple)):
        raise TypeError(f"the strategy returned {type(proposal).__name__}, not a list of Position or a Refusal")
    result = RebalanceAnswer(True, None, tuple(proposal), metadata)
    check_answer(decode(RebalanceAnswer, encode(result), MAX_ANSWER_BYTES), query)  # as the validator will see it
    return result


def answer(
    query: RebalanceQuery,
    strategy: Callable[[RebalanceQuery], list[Position] | Refusal],
    name: str,
    failed: Callable[[RebalanceQuery, Exception], None] = lambda query, error: None,
) -> RebalanceAnswer:
    """As `respond`, but what fails or is not legal is told to `failed`, and the answer keeps what there is."""
    try:
        return respond(query, strategy, name)
    except Exception as error:  # whatever a strategy does wrong, an honest keep is the better answer
        failed(query, error)
        log.exception("%s failed on %s at block %d; answering: keep", name, query.round_id, query.block_number)
        return RebalanceAnswer(True, None, query.current_positions, MinerMetadata(VERSION, name))


def in_short(query: RebalanceQuery, said: RebalanceAnswer) -> str:
    if not said.accepted:
        return f"refused, {said.refusal_reason}"
    kept = said.desired_positions == query.current_positions
    return "keep" if kept else f"{len(said.desired_positions)} positions"


def published_address(options: argparse.Namespace) -> str:
    """The IP address that the chain is told; raises `UserError` if no validator would ask there."""
    address, fix = options.external_ip or options.host, "name the address to publish with --external-ip"
    if not is_local(options) and not is_public(address):
        raise UserError(f"{address} is no public IP address, validators of a real network do not ask there; {fix}")
    if address in ("0.0.0.0", "::"):
        raise UserError(f"{address} is all addresses of this machine, none that can be asked; {fix}")
    return address


async def mine(options: argparse.Namespace) -> None:
    """Register, serve, publish the endpoint, and keep the list of callers fresh until stopped."""
    strategy, local, address = STRATEGIES[options.strategy], is_local(options), published_address(options)
    thinker = ThreadPoolExecutor(max_workers=1)  # one proposal at a time; meanwhile the server goes on answering

    async def rebalance(caller: str, body: bytes) -> bytes:
        query, began = decode(RebalanceQuery, body, MAX_QUERY_BYTES), time.monotonic()
        work = answer, query, strategy, options.strategy, shown.failed
        said = await asyncio.get_running_loop().run_in_executor(thinker, *work)
        shown.note(caller, query, said, time.monotonic() - began)
        log.info("%s block %d: %s", query.round_id, query.block_number, in_short(query, said))
        return encode(said)

    async with AsyncExitStack() as stack:
        chain, hotkey = await stack.enter_async_context(joined(options))
        if local:
            await chain.register(chain.hotkey, chain.coldkey)
        callers, read_at = {}, -3600.0  # nobody may call before the chain was read
        gate = Gate(lambda: (callers, time.monotonic() - read_at), min_stake_rao=MIN_CALLER_STAKE_RAO)
        path = Path(options.dir) / f"receipts-{options.name}.sqlite3"
        book = await stack.enter_async_context(receipt_book.ReceiptBook.open(path, hotkey.ss58_address))
        place = "local" if local else options.network or options.chain_endpoint
        shown = MinerStatus(
            lambda: (len(callers), time.monotonic() - read_at), book.newest, chain.hotkey, options, place, [showing]
        )
        routes = {"/rebalance": book.noting(rebalance), "/receipt": book.take}
        limits = limited(LOCAL_LIMITS if local else Limits(), options)
        app = build_app(keypair=hotkey, gate=gate, routes=routes, limits=limits)
        port = await stack.enter_async_context(serve(app, options.host, options.port))
        published = Published(chain, address, options.external_port or port)
        await stack.enter_async_context(shown.serving(options))
        if options.exit_with_parent:
            stack.callback(asyncio.create_task(_stop_with_parent()).cancel)
        said, trouble = None, ""
        while True:
            try:
                graph = await chain.metagraph()
                callers = {neuron.hotkey: (neuron.permit, neuron.stake_rao) for neuron in graph.neurons}
                read_at, problem = time.monotonic(), await published.keep(graph)
                if (me := graph.by_hotkey(chain.hotkey)) and not problem:
                    shown.joined(me.uid, graph.netuid, f"{address}:{published.port}")
            except ChainError as error:
                problem = f"the chain cannot be read: {error}"
            if problem and problem != trouble:
                log.warning("%s; looking again every %g s", problem, CALLERS_SECONDS)
            elif not problem and said != me.uid:
                said, what = me.uid, f"hotkey {chain.hotkey}, strategy {options.strategy}, {address}:{published.port}"
                print(f"miner {options.name}: uid {said}, {what}")
                print(
                    "LOCAL: this is the embedded chain of `python validator.py`, no real subnet." if local else "",
                    flush=True,
                )
            trouble = problem
            await asyncio.sleep(CALLERS_SECONDS)


async def _stop_with_parent() -> None:
    """Stop when the process that started this one is gone: its end of our standard input closes."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await reader.read()
    signal.raise_signal(signal.SIGTERM)


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="miner.py", description="A miner of the local subnet, or with --netuid of a real one.")
    add = parser.add_argument
    add("--strategy", choices=STRATEGIES, default="mine", help="`mine` is the function propose() (default)")
    add("--name", default="mine", help="names the local development key and this miner's files (default: mine)")
    folder = "folder of the local subnet and of this miner's files (default: local)"
    add("--dir", type=file_path, default="local", help=folder)
    listens, publishes = "port, 0 for any free one", "address to publish (default: that of --host)"
    add_settings(parser, "address", axon_settings(8091, listens, publishes))
    add_limit_options(add)
    add_options(add, MINER_PORT)
    parser.add_argument("--exit-with-parent", action="store_true", help="stop when standard input closes")
    backtest.add_options(parser)
    add_chain_options(parser)
    add_logging_options(parser)
    commands = parser.add_subparsers(dest="command", title="commands", metavar="receipts")
    help_ = "fetch, verify and list what validators signed about your scores; exit 1 if any is wrong"
    receipts = commands.add_parser("receipts", help=help_, description=help_)
    receipt_book.add_options(receipts)
    add_chain_options(receipts)
    add_logging_options(receipts)
    return parser


def main(argv: list[str] | None = None) -> int:
    options = parse_options(build_parser(), argv)
    if options.command == "receipts":
        return receipt_book.command(options)
    if options.check or options.backtest is not None:
        return backtest.main(options, STRATEGIES, respond, MIN_CALLER_STAKE_RAO)
    problems = (ChainError, StoreError, WireError)
    return run(mine(options), options.log_level, problems, options.log_json, options.log_file)


if __name__ == "__main__":
    sys.exit(main())
