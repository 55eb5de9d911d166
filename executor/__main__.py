"""The executor bot: it holds a vault's key and carries out a validator's live decisions, each at most once.

    python -m executor serve --rpc URL --pool 0x... --key-file FILE --api-key-file FILE          a dry run
    python -m executor serve --rpc URL --pool 0x... --key-file FILE --api-key-file FILE --live
    python -m executor status | pause | resume | approve                                         see --help

An order (`orders.py`) comes in over HTTP with the API key, is written down (`order_journal.py`), and is worked on apart
from the request (`execution.py`). `docs/executor.md` has every limit, crash and failure, each with its test.
Read next: `execution.py`.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from web3 import Account

from chain.notify import Notifier, add_notify_options
from evm.abi import address, integer
from evm.manager import read_vault
from evm.pool import describe
from evm.rpc import RpcError, open_rpc
from executor.door import Door, read_api_key, secret_text
from executor.execution import GWEI, HOUR_SECONDS, POLL_SECONDS, UNLIMITED, Executor, Limits
from executor.journal import OrderJournal
from executor.readback import AVERAGE_SECONDS, read_prices, unknown_average
from markets.base import MarketError
from protocol import MAX_POSITIONS, MAX_TICK
from runtime.db import StoreError
from runtime.options import Setting, add_logging_options, add_settings, parse_options, settings_lines, url
from runtime.passwords import read_password, read_private
from runtime.process import EXIT_OK, Parser, UserError, number, only_one, run
from wire.server import serve
from wire.signing import WireError

PORT = 8095
PAUSE_FILE, JOURNAL_FILE, LOCK_FILE = "executor.pause", "executor.sqlite3", "executor.lock"

log = logging.getLogger("executor")


def load_account(path: Path, password: str | None) -> Any:
    """The vault's key: 64 hexadecimal digits, or a keystore's JSON with its password.

    Decrypting a keystore takes a second or more, by design.

    Raises:
        UserError: there is none; contains nothing of it.
    """
    text = secret_text(read_private(path, "key file"), path).strip()
    try:
        if not text.startswith("{"):
            return Account.from_key(bytes.fromhex(text.removeprefix("0x")))
        if password is None:
            raise UserError(f"key file {path} is encrypted; name its password with --password-file FILE")
        return Account.from_key(Account.decrypt(json.loads(text), password))
    except UserError:
        raise
    except Exception:  # the packages' errors may quote the key
        fix = "is its password right?" if text.startswith("{") else "64 hexadecimal digits or a keystore are expected"
        raise UserError(f"key file {path} holds no key that can be used: {fix}") from None


# ---------------------------------------------------------------------------------------------------------------------
# The commands


@asynccontextmanager
async def opened(options: argparse.Namespace, live: bool, alone: bool) -> AsyncIterator[Executor]:
    """The bot of the options.

    Args:
        live: whether it may send.
        alone: no other process may work in the folder.
    """
    folder = Path(options.dir)
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
        tell = notifier.notify
        yield Executor(rpc, contract, journal, vault, account, limits, folder / PAUSE_FILE, live, tell)


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
            print(f"{what}. Vault {bot.vault}, http://{options.host}:{port}", flush=True)
            await bot.follow(POLL_SECONDS)


async def status(options: argparse.Namespace) -> None:
    """Print vault, price and journal."""
    async with opened(options, live=False, alone=False) as bot:
        for line in await status_lines(bot):
            print(line)


async def status_lines(bot: Executor) -> list[str]:
    tip, pair = await bot.tip(), bot.contract.pair
    held, idle = await read_vault(bot.rpc, bot.contract, bot.vault, tip.hash)
    _, tick, averages = await read_prices(bot.rpc, bot.contract, tip.hash)
    [gas_money] = await bot.rpc.batch([("eth_getBalance", [bot.vault, "latest"])])
    lines = [
        f"block {tip.number} of chain {pair.chain_id}, gas {tip.base_fee_wei / GWEI:g} gwei",
        f"pool {pair.pool_address}: tick {tick}, "
        + (f"average of {AVERAGE_SECONDS} s {averages[0]}" if averages else unknown_average(bot.contract)),
        f"vault {bot.vault}: {idle[0]} {pair.token0.symbol}, {idle[1]} {pair.token1.symbol} base units idle,"
        f" {integer(gas_money)} wei for gas",
    ]
    lines += [f"  token {one.token_id}: {one.tick_lower}..{one.tick_upper}, L {one.liquidity}" for one in held]
    allowed = await bot.allowances(tip.hash)
    for token, amount in zip((pair.token0, pair.token1), allowed, strict=True):
        fix = "" if amount else "; run: python -m executor approve --yes"
        lines.append(
            f"the position manager may take {'all' if amount >= UNLIMITED // 2 else amount} {token.symbol}{fix}"
        )
    mined, moved = await bot.journal.within(tip.time - HOUR_SECONDS)
    lines.append(f"moved within an hour: {moved / 10**4:.2f} % of the inventory, in {mined} transactions")
    lines.append("paused" if bot.pause_file.exists() else "not paused")
    return [*lines, *await bot.journal.lines()]


async def approve(options: argparse.Namespace) -> int:
    """Let the position manager take the vault's tokens, once and for all; only with `--yes`."""
    async with opened(options, live=options.yes, alone=True) as bot:
        if await bot.journal.oldest_open():
            raise UserError("an order is open: let `python -m executor serve` end it first")
        tokens = bot.contract.pair.token0, bot.contract.pair.token1
        allowed = await bot.allowances((await bot.tip()).hash)
        due = [token for token, amount in zip(tokens, allowed, strict=True) if amount < UNLIMITED // 2]
        for token in due:
            print(f"{token.symbol} {token.address}: approve {bot.contract.manager} for all", flush=True)
            if options.yes:
                print(f"  {await bot.approve(token.address)}", flush=True)
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


# ---------------------------------------------------------------------------------------------------------------------
# The command line


def _urls(text: str) -> str:
    for one in text.split(","):
        url("http", "https")(one)
    return text


def _gas_price(text: str) -> int:
    return int(number(0.000001, 10**6, float)(text) * GWEI)


CHAIN_SETTINGS = (
    Setting(
        "rpc", ("--rpc",), "RPC endpoints of the chain, with commas between them", ("EXECUTOR_RPC",), type=_urls,
        metavar="URL", secret=True,
    ),
    Setting("pool", ("--pool",), "the pool's address", ("EXECUTOR_POOL",), metavar="ADDRESS"),
    Setting(
        "manager", ("--manager",), "the position manager's address (default: the chain's usual one)",
        ("EXECUTOR_MANAGER",), metavar="ADDRESS",
    ),
    Setting(
        "vault", ("--vault",), "the vault's address, which the key must be of (default: the key's)",
        ("EXECUTOR_VAULT",), metavar="ADDRESS",
    ),
    Setting(
        "key_file", ("--key-file",), "the vault's key, 64 hexadecimal digits or a keystore; nobody else may read it",
        ("EXECUTOR_KEY_FILE",), metavar="FILE",
    ),
    Setting("password", (), "", ("EXECUTOR_PASSWORD",), secret=True),
    Setting(
        "password_file", ("--password-file",), "its first line is the keystore's password; nobody else may read it",
        ("EXECUTOR_PASSWORD_FILE",), metavar="FILE",
    ),
    Setting(
        "password_command", ("--password-command",), "its first line of output is the keystore's password",
        ("EXECUTOR_PASSWORD_COMMAND",), metavar="COMMAND",
    ),
)  # fmt: skip
DOOR_SETTINGS = (
    Setting(
        "api_key_file", ("--api-key-file",), "its first line is the key of this door; nobody else may read it",
        ("EXECUTOR_API_KEY_FILE",), metavar="FILE",
    ),
)  # fmt: skip
_LIMITS = (
    ("max_gas_wei", "--max-gas-gwei", _gas_price, "the most that a unit of gas may cost", "GWEI"),
    ("slippage_ticks", "--slippage-ticks", number(0, 10_000), "how far the price may move from plan to block", "N"),
    (
        "reserve_ticks", "--reserve-ticks", number(0, 10_000),
        "leave so much idle that mints succeed though the price moves by so much", "N",
    ),
    ("average_ticks", "--average-ticks", number(0, MAX_TICK), "from the price to its average of 10 minutes", "N"),
    ("shown_ticks", "--shown-ticks", number(0, MAX_TICK), "from the price to the one that the miner was shown", "N"),
    ("turnover_percent", "--turnover-percent", number(0, 10**6), "of the inventory's value moved within an hour", "N"),
    ("hourly_transactions", "--hourly-transactions", number(0, 3600), "mined within an hour, failed ones too", "N"),
    ("deadline_seconds", "--deadline-seconds", number(1, 86_400), "how far ahead a deadline may be", "N"),
    ("max_positions", "--max-positions", number(0, MAX_POSITIONS), "that an order may ask for", "N"),
    ("confirmations", "--confirmations", number(0, 1000), "blocks that must stand on a transaction", "N"),
    ("replace_blocks", "--replace-blocks", number(1, 1000), "after so many a waiting transaction is replaced", "N"),
)  # fmt: skip

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
        inner.add_argument("--dir", default="local", help="folder of journal and pause switch (default: local)")
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
    for name, flag, kind, what, metavar in _LIMITS:
        default = getattr(Limits(), name)
        shown = f"{default / GWEI:g}" if name == "max_gas_wei" else default
        group.add_argument(
            flag, dest=name, type=kind, default=default, metavar=metavar, help=f"{what} (default: {shown})"
        )
    verb("status", "the vault, the price beside its average, and the journal")
    inner = verb("approve", "let the position manager take the vault's tokens; a dry run without --yes")
    inner.add_argument("--yes", action="store_true", help="really do it")
    verb("pause", "nothing is sent from now on", chain=False)
    verb("resume", "the end of a pause", chain=False)
    return parser


def main(argv: list[str] | None = None) -> int:
    options = parse_options(build_parser(), argv)
    commands = {"serve": serve_orders, "status": status, "approve": approve, "pause": pause, "resume": resume}
    errors = RpcError, MarketError, StoreError, WireError
    return run(commands[options.verb](options), options.log_level, errors, options.log_json, options.log_file)


if __name__ == "__main__":
    sys.exit(main())
