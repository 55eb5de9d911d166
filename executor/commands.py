"""What the bot's commands do: serve orders, print the status, approve the position manager, pause and resume.

Read first: `__main__.py`, the command line. Read next: `execution.py`.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from chain.notify import Notifier
from evm.abi import address
from evm.manager import read_vault
from evm.pool import describe
from evm.rpc import open_rpc
from executor.door import Door
from executor.execution import Executor
from executor.journal import OrderJournal
from executor.keys import load_account, read_api_key
from executor.limits import GWEI, HOUR_SECONDS, Limits
from executor.readback import AVERAGE_SECONDS, read_prices, unknown_average
from executor.wallet import POLL_SECONDS, UNLIMITED, Wallet
from markets.base import MarketError
from runtime.options import settings_lines
from runtime.passwords import read_password
from runtime.process import EXIT_OK, UserError, only_one
from wire.server import serve

PAUSE_FILE, JOURNAL_FILE, LOCK_FILE = "executor.pause", "executor.sqlite3", "executor.lock"
APPROVE_COMMAND = "python -m executor approve --yes"

log = logging.getLogger("executor")


@asynccontextmanager
async def opened(options: argparse.Namespace, live: bool, alone: bool) -> AsyncIterator[Executor]:
    """The bot of the options.

    Args:
        live: whether it may send.
        alone: no other process may work in the folder.
    """
    folder = Path(options.dir)
    vault, account = _whose(options, live)
    if not options.rpc or not options.pool:
        raise UserError("which pool, and where? add --rpc URL and --pool ADDRESS")
    limits = Limits(**{name: getattr(options, name) for name in Limits.__slots__ if hasattr(options, name)})
    async with AsyncExitStack() as stack:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if alone:
                stack.enter_context(only_one(folder / LOCK_FILE, "executor's folder"))
        except OSError as error:
            raise UserError(f"--dir {folder}: {error.strerror}; choose another") from None
        rpc = await stack.enter_async_context(open_rpc(options.rpc.reveal().split(",")))
        contract = await describe(rpc, options.pool, options.manager)
        if not contract.manager:
            raise UserError(f"no position manager is known on chain {contract.pair.chain_id}; add --manager ADDRESS")
        pair = contract.pair
        path = folder / JOURNAL_FILE
        if not alone and not path.exists():
            path = Path(":memory:")  # who only looks makes no file, which would then be this vault's
        journal = await stack.enter_async_context(OrderJournal.open(path, pair.chain_id, pair.pool_address, vault))
        notifier = await stack.enter_async_context(
            Notifier.open(getattr(options, "slack_webhook_url", None), f"executor, vault {vault[:10]}")
        )
        wallet = Wallet(rpc, contract, vault, account, limits.max_gas_wei, folder / PAUSE_FILE)
        yield Executor(wallet, journal, limits, live, notifier.notify)


def _whose(options: argparse.Namespace, live: bool) -> tuple[str, Any]:
    """The vault's address, and the account with its key; None where it is not needed."""
    account = None
    if options.key_file:
        account = load_account(Path(options.key_file).expanduser(), read_password(options))
    elif live:
        raise UserError("the vault's key is needed to send anything; add --key-file FILE")
    vault = address(options.vault, "--vault") if options.vault else account.address.lower() if account else ""
    if not vault:
        raise UserError("whose vault? add --key-file FILE, or --vault ADDRESS for a dry run")
    if account and account.address.lower() != vault:
        raise UserError(f"--key-file {options.key_file} is the key of {account.address}, not of --vault {vault}")
    return vault, account


async def serve_orders(options: argparse.Namespace) -> None:
    """Until it is stopped."""
    if not options.api_key_file:
        raise UserError("who may place orders? add --api-key-file FILE; its first line is the key")
    key_file = Path(options.api_key_file).expanduser()
    read_api_key(key_file)
    async with opened(options, options.live, alone=True) as bot:
        for line in settings_lines(options):
            log.info("%s", line)
        await bot.journal.start(options.live, asdict(bot.limits))
        try:
            for line in await status_lines(bot):
                log.info("%s", line)
        except MarketError as error:  # orders will be refused with it; those that were sent are still awaited
            log.error("%s", error)
        async with serve(Door(bot, key_file).app, options.host, options.port) as port:
            what = "LIVE: orders are signed and sent" if options.live else "DRY RUN: nothing is sent; --live ends that"
            print(f"{what}. Vault {bot.wallet.vault}, http://{options.host}:{port}", flush=True)
            await bot.follow(POLL_SECONDS)


async def status(options: argparse.Namespace) -> None:
    """Print vault, price and journal."""
    async with opened(options, live=False, alone=False) as bot:
        for line in await status_lines(bot):
            print(line)


async def status_lines(bot: Executor) -> list[str]:
    """The vault, the price beside its average, what was moved within an hour, and the journal."""
    wallet, pair, tip = bot.wallet, bot.wallet.contract.pair, await bot.wallet.tip()
    held, idle = await read_vault(wallet.rpc, wallet.contract, wallet.vault, tip.hash)
    _, tick, averages = await read_prices(wallet.rpc, wallet.contract, tip.hash)
    lines = [
        f"block {tip.number} of chain {pair.chain_id}, gas {tip.base_fee_wei / GWEI:g} gwei",
        f"pool {pair.pool_address}: tick {tick}, "
        + (f"average of {AVERAGE_SECONDS} s {averages[0]}" if averages else unknown_average(wallet.contract)),
        f"vault {wallet.vault}: {idle[0]} {pair.token0.symbol}, {idle[1]} {pair.token1.symbol} base units idle,"
        f" {await wallet.balance_wei()} wei for gas",
    ]
    lines += [f"  token {one.token_id}: {one.tick_lower}..{one.tick_upper}, L {one.liquidity}" for one in held]
    for token, amount in zip((pair.token0, pair.token1), await wallet.allowances(tip.hash), strict=True):
        most, fix = "all" if amount >= UNLIMITED // 2 else amount, "" if amount else "; run: " + APPROVE_COMMAND
        lines.append(f"the position manager may take {most} {token.symbol}{fix}")
    mined, moved = await bot.journal.within(tip.time - HOUR_SECONDS)
    lines.append(f"moved within an hour: {moved / 10**4:.2f} % of the inventory, in {mined} transactions")
    lines.append("paused" if wallet.paused else "not paused")
    return [*lines, *await bot.journal.lines()]


async def approve(options: argparse.Namespace) -> int:
    """Let the position manager take the vault's tokens, once and for all; only with `--yes`."""
    async with opened(options, live=options.yes, alone=True) as bot:
        wallet = bot.wallet
        if await bot.journal.oldest_open():
            raise UserError("an order is open: let `python -m executor serve` end it first")
        tokens = wallet.contract.pair.token0, wallet.contract.pair.token1
        allowed = await wallet.allowances((await wallet.tip()).hash)
        due = [token for token, amount in zip(tokens, allowed, strict=True) if amount < UNLIMITED // 2]
        for token in due:
            print(f"{token.symbol} {token.address}: approve {wallet.contract.manager} for all", flush=True)
            if options.yes:
                print(f"  {await wallet.approve(token.address)}", flush=True)
        if not due:
            print("the position manager may take all of both tokens already")
        elif not options.yes:
            print("DRY RUN: nothing was sent; add --yes to do it.")
        return EXIT_OK


async def pause(options: argparse.Namespace) -> None:
    """From now on nothing is sent."""
    folder = Path(options.dir)
    path = folder / PAUSE_FILE
    if not (folder / JOURNAL_FILE).exists():
        raise UserError(f"no executor bot works in {folder}, nothing is paused; name the bot's folder with --dir")
    try:
        path.touch()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; name the bot's folder with --dir") from None
    print(f"paused: {path}")


async def resume(options: argparse.Namespace) -> None:
    """The end of a pause."""
    path = Path(options.dir) / PAUSE_FILE
    path.unlink(missing_ok=True)
    print(f"not paused: {path} is gone")
