"""What a validator stands on: its memory, the market, the chain and, locally, the miners; opened and closed together.

Without a netuid that is a whole subnet on this machine; with one it is a real network. The market is a pool of a real
chain, a recording, or the model; on a real network one that was recorded or is invented pays nobody.
Read next: `chain/local.py` (the embedded chain), `chain/subtensor.py` (the real one), `markets/base.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import re
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

from chain.base import Chain, ChainError
from chain.local import LocalChain, block_at
from chain.opening import local_wallet, registered, wallet_of
from executor.client import Bot, place
from liquidity.executions import execution_of
from markets.base import Market
from markets.model import ModelMarket
from markets.recordings import RecordedMarket, read_recording
from protocol import FIRST_ASK_LEAD_SECONDS, UINT128_MAX, Job, JobSettings
from runtime.options import (
    AXON_NAMES,
    RealMarket,
    add_settings,
    axon_settings,
    file_path,
    is_local,
    real_market,
    refuse,
    settings_lines,
)
from runtime.process import UserError, number, only_one
from spine.mechanism import Mechanism, settings_of
from spine.schedule import DAY_SECONDS
from store import Store
from wire.client import client_session, is_public

LOCAL_HOST = "127.0.0.1"
KEEP_DAYS = 30  # of evidence: what can be audited
DEFAULT_PORT = 8090
LOCAL_STAKE_RAO = 100_000 * 10**9
REFERENCE_STRATEGIES = ("keep", "wide", "preserve")
MODEL_VAULTS = {"balanced": "vault-balanced", "pol": "vault-pol"}  # each job manages its own
MODEL_CAPITAL = 400_000 * 10**6  # USDC
MODEL_DAYS = 7  # one more than nobody can be eligible for live rounds
MINER_START_SECONDS = 60
OWN_FILES = ("validator.*sqlite3*", "chain.sqlite3*", "pool.sqlite3*", "receipts-*.sqlite3*", "miner-*.log")  # --fresh

log = logging.getLogger("subnet")


@dataclass(frozen=True, slots=True)
class Ground:
    """Everything that is open."""

    folder: Path  # of all files
    path: Path  # of the jobs database
    store: Store
    market: Market
    chain: Chain
    keypair: Any  # the validator's hotkey
    names: dict[str, str]  # of the miners that were started here, by hotkey
    local: bool  # whether it is all on this machine


def folder_of(options: argparse.Namespace) -> tuple[Path, Path]:
    """The validator's folder, and its jobs database."""
    folder = Path(options.dir or ("local" if is_local(options) else f"netuid-{options.netuid}"))
    return folder, Path(options.db) if options.db else folder / "validator.sqlite3"


@asynccontextmanager
async def opened(options: argparse.Namespace, mechanisms: Mapping[str, Mechanism]) -> AsyncIterator[Ground]:
    """Open what the options name, and say on stdout what it is.

    Raises:
        UserError: the options do not fit together, or the hotkey is not registered.
        StoreError, MarketError, RecordingError, ChainError: a part cannot be opened.
    """
    local = is_local(options)
    real = real_market(options)
    folder, path = folder_of(options)
    if local:
        keypair, coldkey = local_wallet("validator")
        money = "The executor bot moves a vault's real tokens" if options.executor_url else "Nothing here is real money"
        print(f"LOCAL MODE: an embedded chain, development keys, miners on loopback. {money};")
        print("a real network: --netuid N and a wallet, see README. Results follow, the log is on stderr.")
    else:
        _check_real(options)
        wallet = await asyncio.to_thread(wallet_of, options)
        keypair = wallet.hotkey
        what = "DRY RUN: nothing is sent to the chain" if options.dry_run else "weights are set on the chain"
        print(f"NETUID {options.netuid}, {what}. The log is on stderr.")
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        if not local:  # first: a hotkey that is not registered must not become the owner of a new database
            chain = await enter(registered(options, wallet))
        _take(folder, stack, options.fresh)
        store = await enter(Store.open(path, settings_of(mechanisms)))
        if options.db:
            stack.enter_context(only_one(Path(f"{path}.lock"), "--db"))
        jobs = await store.jobs()
        if real:
            market = await enter(_open_chain(real, options, folder / "pool.sqlite3", jobs))
        else:
            market = await open_market(options, store)
        print(f"MARKET: {market.label}", flush=True)
        owner = {"market": market.label, "pool": market.pair.pool_address, "validator": keypair.ss58_address}
        for key, value in owner.items():
            await store.claim(key, value)
        if local:
            clock, genesis = (None, block_at((await market.head()).time)) if market.full_speed else (time.time, None)
            ledger, hotkey = folder / "chain.sqlite3", keypair.ss58_address
            chain = await enter(LocalChain.open(ledger, hotkey, coldkey, clock=clock, genesis_block=genesis))
            await chain.register(keypair.ss58_address, coldkey, LOCAL_STAKE_RAO)
        for job in [] if jobs else _first_jobs(market, options.round_seconds, real and real.vault):
            await store.put_job(job)
        _check_old(options, jobs, path)
        names = {}
        if local and not options.no_miners:
            for name in REFERENCE_STRATEGIES:  # here, so that their uids do not depend on which process is faster
                hotkey, its_coldkey = local_wallet(name)
                await chain.register(hotkey.ss58_address, its_coldkey)
            names = await enter(reference_miners(REFERENCE_STRATEGIES, folder))
        for line in settings_lines(options):
            log.info("%s", line)
        yield Ground(folder, path, store, market, chain, keypair, names, local)


def _take(folder: Path, stack: AsyncExitStack, fresh: bool) -> None:
    """Make the folder, lock it, and with `--fresh` forget the subnet that was in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stack.enter_context(only_one(folder / "validator.lock", "--dir"))
        for file in [file for name in OWN_FILES for file in folder.glob(name)] if fresh else ():
            file.unlink()
    except OSError as error:
        raise UserError(f"--dir {folder}: {error.strerror}; choose another folder") from error


def check_options(options: argparse.Namespace) -> None:
    """Refuse what would not be used."""
    if options.command:  # it has options of its own
        return
    local = is_local(options)
    if local:
        outward = ("external_ip", "external_port", "host")
        refuse(options, "is for a real network; add --netuid N, or leave it out", *outward)
    else:
        refuse(options, "forgets a local subnet; to forget a real one's memory move its files away", "fresh")
        refuse(options, "is for a local subnet; a real one has the miners that registered", "no_miners")
    if not local and not options.external_ip:
        door = (*AXON_NAMES, "trusted_proxy", "address_limit")
        refuse(options, "is where miners fetch their receipts; add --external-ip IP, or leave it out", *door)
    if options.rpc:
        refuse(options, "is for a recording or the model; a real market has its own", "pace", "latency_seconds")
    if options.rpc or options.events:
        refuse(options, "is of the market model; leave it out", "seed")
    if not options.events:
        refuse(options, "is of a recorded vault; add --events PATH, or leave it out", "idle")
    if not local or options.pace is not None:
        refuse(options, "is for full speed; a market with a --pace has real answers", "latency_seconds")
    elif not options.rpc:
        refuse(options, "tells of trouble in real time, at full speed there is none; add --pace 1", "slack_webhook_url")
        options.slack_webhook_url = None


def _check_old(options: argparse.Namespace, jobs: list[Job], path: Path) -> None:
    """What is for new jobs alone must be as it is in those that there are."""
    for name in ("round_seconds", "vault"):
        there = {getattr(job, name) for job in jobs}
        if there and getattr(options, name) not in there:
            refuse(options, f"is for new jobs, those of {path} have {', '.join(map(str, sorted(there)))}", name)


def _check_real(options: argparse.Namespace) -> None:
    """What the validator of a real network must not be told to do."""
    if not options.dry_run and not options.rpc:
        what = "the market is invented or past, nobody can be paid by it"
        raise UserError(f"{what}; name a real one with --rpc, or --dry-run shows what would be sent")
    if options.external_ip and not is_public(options.external_ip):
        raise UserError(f"--external-ip {options.external_ip} is no public IP address: miners do not fetch there")
    if options.pace is None:
        options.pace = 1.0


def receipts_door(options: argparse.Namespace) -> tuple[str | None, int, str | None, int | None]:
    """Where the validator of a real network serves receipts, as `issuer.issuing` takes it: host, port, published ones.

    Nowhere without an address at which miners reach it; in a dry run they can, but the chain is not told.
    """
    host, port = options.host if options.external_ip else None, DEFAULT_PORT if options.port is None else options.port
    return host, port, None if options.dry_run else options.external_ip, options.external_port


async def open_market(options: argparse.Namespace, store: Store) -> Market:
    """The recording that was named, else the model, where the database's last run left it."""
    if options.days is None and not options.events:
        options.days = MODEL_DAYS
    if options.events:
        recording = await asyncio.to_thread(read_recording, options.events)
        build = partial(RecordedMarket, recording, options.vault, options.idle)
    else:
        done = [execution_of(plain) for plain in await store.executions()]
        build = partial(ModelMarket, options.seed, dict.fromkeys(MODEL_VAULTS.values(), MODEL_CAPITAL), done)
    market = await asyncio.to_thread(build)
    resumed = await store.resume_time(FIRST_ASK_LEAD_SECONDS)
    if resumed is None and options.pace is None:
        return market
    head = market.first if resumed is None else market.last_block_by(resumed)
    return await asyncio.to_thread(build, head=head, pace=options.pace)


@asynccontextmanager
async def _open_chain(
    real: RealMarket, options: argparse.Namespace, path: Path, jobs: list[Job]
) -> AsyncIterator[Market]:
    """The pool of a real chain, with its executor bot if there is one."""
    from evm.market import Web3Market  # it needs web3, which takes seconds to import

    options.pace, giving = 1.0, None
    async with AsyncExitStack() as stack:
        if real.executor_url and not options.dry_run:
            session = await stack.enter_async_context(client_session(0))
            giving = partial(place, Bot(session, real.executor_url, real.executor_key.reveal()))
        known = [job.vault for job in jobs if re.fullmatch("0x[0-9a-fA-F]{40}", job.vault)]  # rounds of others are void
        vaults, fixed = {real.vault, *known}, {"manager": real.manager, "operators": real.operators, "place": giving}
        opening = Web3Market.open(real.urls, real.pool, path, vaults=vaults, confirmations=real.confirmations, **fixed)
        market = await stack.enter_async_context(opening)
        if options.dry_run:
            market.read_only = "in a dry run no order is given"
        yield market


def _first_jobs(market: Market, round_seconds: int, real_vault: str | None) -> list[Job]:
    """Two jobs on one pool with different aims, so that different miners win; one of them manages a real vault."""
    settings = {
        "balanced": JobSettings.for_target("Balanced", min_in_range=Decimal("0.5")),
        "pol": JobSettings.for_target("PoL"),
    }
    vault = real_vault or getattr(market, "vault", None)
    return [
        Job(job_id, vault or MODEL_VAULTS[job_id], round_seconds, rules, live=not real_vault or job_id == "pol")
        for job_id, rules in settings.items()
    ]


@contextmanager
def _starting(strategy: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ChainError(f"miner {strategy} cannot be started: {error.filename}: {error.strerror}") from None


@asynccontextmanager
async def reference_miners(strategies: Sequence[str], folder: Path) -> AsyncIterator[dict[str, str]]:
    """Run `miner.py` once for each strategy, as processes of their own behind real signed HTTP on loopback.

    They end with the block, and also when this process is killed: their standard input closes then. Yields the
    strategies by hotkey. Raises `ChainError` for a miner that did not come up: `FOLDER/miner-STRATEGY.log` says why.
    """
    program, names, processes = Path(__file__).parents[1] / "miner.py", {}, []
    try:
        for strategy in strategies:
            with _starting(strategy), open(folder / f"miner-{strategy}.log", "ab") as log_file:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, str(program), "--strategy", strategy, "--name", strategy, "--dir", str(folder)),
                    *("--port", "0", "--status-port", "0", "--exit-with-parent"),
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=log_file,
                    env={**os.environ, "NETUID": ""},  # whatever a .env says: they are this subnet's
                )
            processes.append(process)
        for strategy, process in zip(strategies, processes, strict=True):
            try:
                async with asyncio.timeout(MINER_START_SECONDS):
                    line = (await process.stdout.readline()).decode()
            except TimeoutError:
                line = ""
            if "hotkey " not in line:
                raise ChainError(f"miner {strategy} did not start: see {folder / f'miner-{strategy}.log'}")
            names[line.split("hotkey ")[1].split(",")[0]] = strategy
        yield names
    finally:
        for process in processes:
            if process.returncode is None:
                process.terminate()
        await asyncio.gather(*(process.wait() for process in processes))


# ---------------------------------------------------------------------------------------------------------------------
# The options of `validator.py` that are not its chain's, its real market's or its log's


def add_memory_options(parser: argparse.ArgumentParser) -> None:
    """A market in memory."""
    add = parser.add_argument_group("market").add_argument
    add("--events", type=file_path, metavar="PATH", help="replay this recording of a real pool instead of the model")
    add("--idle", type=_amounts, metavar="A0,A1", default="0,0", help="the recorded vault's idle tokens, base units")
    add("--seed", type=int, default=98, help="of the market model (default: 98)")
    days = "stop so many days after the market's first block, 0 never (default: 7 on the model)"
    add("--days", type=number(0), help=days)
    pace = "market seconds per second, at most 60 so that miners have a second to answer (default: full speed)"
    add("--pace", type=number(0.01, 60, kind=float), help=pace)
    latency = "market time an answer takes at full speed (default: 0)"
    add("--latency-seconds", type=number(0), default=0, help=latency)


def add_round_options(parser: argparse.ArgumentParser) -> None:
    """How many rounds of what, and what comes of them."""
    add = parser.add_argument_group("rounds").add_argument
    add("--rounds", type=number(1), metavar="N", help="stop after N evaluation rounds of each job")
    add("--once", action="store_const", const=1, dest="rounds", help="the same as --rounds 1")
    length = "length of a round in new local jobs, from 60 (default: 900)"
    add("--round-seconds", type=number(60, DAY_SECONDS), default=900, help=length)
    dry = "compute and print weights, send none; give no orders to a bot"
    add("--dry-run", action="store_true", help=dry)
    add("--all-leaderboards", action="store_true", help="print one for every round, not one a market day")
    keep = f"drop the evidence of rounds older than N days, not their scores; 0 never (default: {KEEP_DAYS})"
    add("--keep-days", type=number(0), default=KEEP_DAYS, metavar="N", help=keep)
    also = "also serve the mechanism of this Python module; see spine/mechanism.py"
    add("--mechanism", action="append", metavar="MODULE", default=[], help=also)


def add_local_options(parser: argparse.ArgumentParser) -> Callable[..., argparse.Action]:
    """Where files are, and who listens; returns what adds further ones to the group."""
    add = parser.add_argument_group("this machine").add_argument
    add("--dir", type=file_path, help="folder of databases and logs (default: local, or netuid-N on a real network)")
    add("--db", type=file_path, metavar="FILE", help="jobs database (default: DIR/validator.sqlite3)")
    add("--fresh", action="store_true", help="forget the folder's earlier local subnet first")
    add("--no-miners", action="store_true", help="start no reference miners")
    port = "where miners fetch their receipts, 0 for any free port (default: 8090, or any free one if that is taken)"
    address = "on a real network: publish this address, and serve receipts at --port"
    parser.set_defaults(check_options=check_options)
    add_settings(parser, "receipts", axon_settings(None, port, address))
    return add


def _amounts(text: str) -> tuple[int, int]:
    """The type of `--idle`."""
    parts = text.split(",")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) <= UINT128_MAX for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r}: two whole numbers of base units are expected, like 0,0")
    return int(parts[0]), int(parts[1])
