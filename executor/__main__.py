"""The executor bot: it holds a vault's key and carries out a validator's live decisions, each at most once.

    python -m executor serve | status | pause | resume | approve                                 see --help

An order (`liquidity/executions.py`) comes in over HTTP with the API key, is written down (`journal.py`), and is worked
on apart from the request (`execution.py`). `docs/executor.md` has every limit, crash and failure, each with its test.
Read next: `execution.py`.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from chain.notify import Notifier, add_notify_options
from evm.abi import address
from evm.pool import describe, read_vault
from evm.rpc import RpcError, open_rpc
from executor.door import Door, read_api_key
from executor.drafting import GWEI, HOUR_SECONDS, Limits
from executor.execution import Executor
from executor.journal import OrderJournal
from executor.readback import AVERAGE_SECONDS, read_prices, unknown_average
from executor.wallet import POLL_SECONDS, UNLIMITED, Wallet, load_account
from markets.base import MarketError
from runtime.db import StoreError
from runtime.options import (
    Setting,
    add_logging_options,
    add_settings,
    evm_address,
    file_path,
    parse_options,
    refuse,
    settings_lines,
    url,
)
from runtime.passwords import read_password
from runtime.process import EXIT_OK, Parser, UserError, number, only_one, run
from wire.server import serve
from wire.signing import WireError

PORT = 8095
PAUSE_FILE, JOURNAL_FILE, LOCK_FILE = "executor.pause", "executor.sqlite3", "executor.lock"
APPROVE_COMMAND = "python -m executor approve --yes"

log = logging.getLogger("executor")


def _urls(text: str) -> str:
    for one in text.split(","):
        url("http", "https")(one)
    return text


def _setting(name: str, what: str, metavar: str, **more: Any) -> Setting:
    """An option, and its variable `EXECUTOR_...`."""
    flag, variable = f"--{name.replace('_', '-')}", f"EXECUTOR_{name.upper()}"
    return Setting(name, (flag,), what, (variable,), metavar=metavar, **more)


CHAIN_SETTINGS = (
    _setting("rpc", "RPC endpoints of the chain, with commas between them", "URL", type=_urls, secret=True),
    _setting("pool", "the pool's address", "ADDRESS"),
    _setting("manager", "the position manager's address (default: the chain's usual one)", "ADDRESS"),
    _setting("vault", "the vault's address, which the key must be of (default: the key's)", "ADDRESS"),
    _setting("vault_operator", "who besides the vault mints positions of its own; give several", "ADDRESS",
             type=evm_address, many=True),
    _setting("key_file", "the vault's key, 64 hexadecimal digits or a keystore; nobody else may read it", "FILE",
             type=file_path),
    Setting("password", (), "", ("EXECUTOR_PASSWORD",), secret=True),
    _setting("password_file", "its first line is the keystore's password; nobody else may read it", "FILE",
             type=file_path),
    _setting("password_command", "its first line of output is the keystore's password", "COMMAND"),
)  # fmt: skip
DOOR_SETTINGS = (
    _setting("api_key_file", "its first line is the key of this door; nobody else may read it", "FILE", type=file_path),
)
_EXAMPLES = """examples:
  python -m executor approve --rpc URL --pool 0x... --key-file vault.key --yes
  python -m executor serve --rpc URL --pool 0x... --key-file vault.key --api-key-file api.key
  python -m executor serve --rpc URL --pool 0x... --key-file vault.key --api-key-file api.key --live
  python -m executor status --rpc URL --pool 0x... --vault 0x...
  python -m executor pause
"""


def build_parser() -> Parser:
    parser = Parser(
        prog="python -m executor",
        description="Carry out a validator's live decisions on a vault, each at most once.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="serve | status | approve | pause | resume")

    def verb(name: str, what: str, chain: bool = True) -> argparse.ArgumentParser:
        inner = verbs.add_parser(name, help=what, description=what)
        about = "folder of journal and pause switch (default: local)"
        inner.add_argument("--dir", type=file_path, default="local", help=about)
        if chain:
            add_settings(inner, "vault", CHAIN_SETTINGS)
        add_logging_options(inner)
        return inner

    inner = verb("serve", "take orders; a dry run without --live")
    inner.add_argument("--live", action="store_true", help="sign and send")
    inner.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    inner.add_argument("--port", type=number(0, 65535), default=PORT, help=f"0 is any free one (default: {PORT})")
    add_settings(inner, "door", DOOR_SETTINGS)
    add_notify_options(inner)
    group = inner.add_argument_group("limits; whatever is above one is refused with its code")
    for limit in fields(Limits):
        flag, shown, metavar = f"--{limit.name.replace('_', '-')}", limit.default, "N"
        if limit.name == "max_gas_wei":
            flag, shown, metavar = "--max-gas-gwei", f"{limit.default / GWEI:g}", "GWEI"
        kind, help_ = limit.metadata["type"], f"{limit.metadata['help']} (default: {shown})"
        group.add_argument(flag, dest=limit.name, type=kind, default=limit.default, metavar=metavar, help=help_)
    verb("status", "the vault, the price beside its average, and the journal")
    inner = verb("approve", "let the position manager take the vault's tokens; a dry run without --yes")
    inner.add_argument("--yes", action="store_true", help="really do it")
    verb("pause", "nothing is sent from now on", chain=False)
    verb("resume", "the end of a pause", chain=False)
    return parser


@asynccontextmanager
async def opened(options: argparse.Namespace, live: bool, alone: bool) -> AsyncIterator[Executor]:
    """The bot of the options: `live` if it may send, `alone` if no other process may work in the folder."""
    folder, (vault, account) = Path(options.dir), _whose(options, live)
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
            raise UserError(contract.no_manager)
        pair = contract.pair
        path = folder / JOURNAL_FILE
        if not alone and not path.exists():
            path = Path(":memory:")  # who only looks makes no file, which would then be this vault's
        journal = await stack.enter_async_context(OrderJournal.open(path, pair.chain_id, pair.pool_address, vault))
        notify = Notifier.open(getattr(options, "slack_webhook_url", None), f"executor, vault {vault[:10]}")
        notifier = await stack.enter_async_context(notify)
        wallet = Wallet(rpc, contract, vault, account, limits.max_gas_wei, folder / PAUSE_FILE)
        bot = Executor(wallet, journal, limits, live, notifier.notify)
        bot.drafter.operators = options.vault_operator or ()
        yield bot


def _whose(options: argparse.Namespace, live: bool) -> tuple[str, Any]:
    """The vault's address, and the account with its key; None where it is not needed."""
    account = None
    if options.key_file:
        account = load_account(Path(options.key_file), read_password(options))
    elif live:
        raise UserError("the vault's key is needed to send anything; add --key-file FILE")
    else:
        refuse(options, "is of the vault's key; add --key-file FILE", "password_file", "password_command")
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
    key_file = Path(options.api_key_file)
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
        f"pool {pair.pool_address}{wallet.contract.remark}: tick {tick}, "
        + (f"average of {AVERAGE_SECONDS} s {averages[0]}" if averages else unknown_average(wallet.contract)),
        f"vault {wallet.vault}: {idle[0]} {pair.token0.symbol}, {idle[1]} {pair.token1.symbol} base units idle,"
        f" {await wallet.balance_wei()} wei for gas",
    ]
    for one in held:
        owed = f", owed {one.owed[0]} and {one.owed[1]}, which the next transaction collects" if one.owed else ""
        owed = ", staked in the gauge: left alone" if one.staked else owed
        lines.append(f"  token {one.token_id}: {one.tick_lower}..{one.tick_upper}, L {one.liquidity}{owed}")
    for token, amount in zip((pair.token0, pair.token1), await wallet.allowances(tip.hash), strict=True):
        most, fix = "all" if amount == UNLIMITED else amount, "" if amount else "; run: " + APPROVE_COMMAND
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
        due, failed = [one for one in zip(tokens, allowed, strict=True) if one[1] != UNLIMITED], []
        for token, amount in due:
            print(f"{token.symbol} {token.address}: approve {wallet.contract.manager} for all", flush=True)
            try:
                for hash_ in await wallet.approve(token.address, amount) if options.yes else ():
                    print(f"  {hash_}", flush=True)
            except UserError as error:  # the other may be approved nonetheless
                failed.append(str(error))
        if failed:
            raise UserError("; ".join(failed))
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


def main(argv: list[str] | None = None) -> int:
    options = parse_options(build_parser(), argv)
    commands = {"serve": serve_orders, "status": status, "approve": approve, "pause": pause, "resume": resume}
    errors = RpcError, MarketError, StoreError, WireError
    return run(commands[options.verb](options), options.log_level, errors, options.log_json, options.log_file)


if __name__ == "__main__":
    sys.exit(main())
