"""What a validator stands on: its memory, the market, the chain and, locally, the miners; opened and closed together.

    async with opened(options) as ground:
        await Validator(ground.store, ground.chain, ground.market, ...).work()

Without a netuid that is a whole subnet on this machine; with one it is a real network. The market is a pool of a real
chain, a recording, or the model; on a real network one that was recorded or is invented pays nobody.
Read next: `chain/local.py` (the embedded chain), `chain/subtensor.py` (the real one), `markets/base.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

from chain.base import Chain
from chain.local import LocalChain, block_at
from chain.opening import local_wallet, registered, wallet_of
from executor.client import Bot, place
from liquidity.executions import execution_of
from markets.base import Market
from markets.model import ModelMarket
from markets.recordings import RecordedMarket, read_recording
from protocol import FIRST_ASK_LEAD_SECONDS, Job, JobSettings
from runtime.options import RealMarket, is_local, real_market, settings_lines
from runtime.process import UserError, only_one
from spine.mechanism import Mechanism, settings_of
from spine.miners import reference_miners
from store import Store
from wire.client import client_session, is_public

DEFAULT_PORT = 8090
LOCAL_STAKE_RAO = 100_000 * 10**9
REFERENCE_STRATEGIES = ("keep", "wide", "preserve")
MODEL_VAULTS = {"balanced": "vault-balanced", "pol": "vault-pol"}  # each job manages its own
MODEL_CAPITAL = 400_000 * 10**6  # USDC
MODEL_DAYS = 7  # one more than nobody can be eligible for live rounds
OWN_FILES = (
    "validator.*sqlite3*",
    "chain.sqlite3*",
    "pool.sqlite3*",
    "receipts-*.sqlite3*",
    "miner-*.log",
)  # what --fresh removes

log = logging.getLogger("subnet")


@dataclass(frozen=True, slots=True)
class Ground:
    """Everything that is open.

    Attributes:
        folder, path: of all files, and of the jobs database.
        keypair: the validator's hotkey.
        names: of the miners that were started here, by hotkey.
        local: whether it is all on this machine.
    """

    folder: Path
    path: Path
    store: Store
    market: Market
    chain: Chain
    keypair: Any
    names: dict[str, str]
    local: bool


@asynccontextmanager
async def opened(options: argparse.Namespace, mechanisms: Mapping[str, Mechanism]) -> AsyncIterator[Ground]:
    """Open what the options name, and say on stdout what it is.

    Raises:
        UserError: the options do not fit together, or the hotkey is not registered.
        StoreError, MarketError, RecordingError, ChainError: a part cannot be opened.
    """
    local = is_local(options)
    if local and options.external_ip:
        raise UserError("--external-ip is for a real network; add --netuid N, or leave it out")
    if options.rpc and options.pace is not None:
        raise UserError("--pace is for a recording or the model; a real market has its own")
    real = real_market(options)
    folder = Path(options.dir or ("local" if local else f"netuid-{options.netuid}"))
    path = Path(options.db) if options.db else folder / "validator.sqlite3"
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
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(only_one(folder / "validator.lock", "--dir"))
            for file in [file for name in OWN_FILES for file in folder.glob(name)] if options.fresh else ():
                file.unlink()
        except OSError as error:
            raise UserError(f"--dir {folder}: {error.strerror}; choose another folder") from error
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
        names = {}
        if local:
            start = (await market.head()).time
            chain = await enter(
                LocalChain.open(
                    folder / "chain.sqlite3",
                    keypair.ss58_address,
                    coldkey,
                    clock=None if market.full_speed else time.time,
                    genesis_block=block_at(start) if market.full_speed else None,
                )
            )
            await chain.register(keypair.ss58_address, coldkey, LOCAL_STAKE_RAO)
        for job in [] if jobs else _first_jobs(market, options.round_seconds, real and real.vault):
            await store.put_job(job)
        if local and not options.no_miners:
            for name in REFERENCE_STRATEGIES:  # here, so that their uids do not depend on which process is faster
                hotkey, its_coldkey = local_wallet(name)
                await chain.register(hotkey.ss58_address, its_coldkey)
            names = await enter(reference_miners(REFERENCE_STRATEGIES, folder))
        for line in settings_lines(options):
            log.info("%s", line)
        yield Ground(folder, path, store, market, chain, keypair, names, local)


def _check_real(options: argparse.Namespace) -> None:
    """What the validator of a real network must not be told to do."""
    if options.fresh:
        raise UserError("--fresh forgets a local subnet; to forget a real validator's memory move its files away")
    if options.no_miners:
        raise UserError("--no-miners is for a local subnet; a real one has the miners that registered")
    if not options.dry_run and not options.rpc:
        what = "the market is invented or past, nobody can be paid by it"
        raise UserError(f"{what}; name a real one with --rpc, or --dry-run shows what would be sent")
    if options.external_ip and not is_public(options.external_ip):
        raise UserError(f"--external-ip {options.external_ip} is no public IP address: miners do not fetch there")
    if options.pace is None:
        options.pace = 1.0


def receipts_door(options: argparse.Namespace) -> tuple[str | None, int, str | None]:
    """Where the validator of a real network serves receipts, as `receipts.issuing` takes it: host, port, published.

    Nowhere without an address at which miners reach it; in a dry run they can, but the chain is not told.
    """
    host, port = options.host if options.external_ip else None, DEFAULT_PORT if options.port is None else options.port
    return host, port, None if options.dry_run else options.external_ip


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
        market = await stack.enter_async_context(
            Web3Market.open(
                real.urls,
                real.pool,
                path,
                vaults={real.vault, *(job.vault for job in jobs)},
                manager=real.manager,
                confirmations=real.confirmations,
                place=giving,
            )
        )
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
