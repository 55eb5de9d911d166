"""The executor bot: it holds a vault's key and carries out a validator's live decisions, each at most once.

    python -m executor serve --rpc URL --pool 0x... --key-file FILE --api-key-file FILE          a dry run
    python -m executor serve --rpc URL --pool 0x... --key-file FILE --api-key-file FILE --live
    python -m executor status | pause | resume | approve                                         see --help

An order (`liquidity/executions.py`) comes in over HTTP with the API key, is written down (`journal.py`), and is worked
on apart from the request (`execution.py`). `docs/executor.md` has every limit, crash and failure, each with its test.
Read next: `commands.py`.
"""

from __future__ import annotations

import argparse
import sys

from chain.notify import add_notify_options
from evm.rpc import RpcError
from executor.commands import approve, pause, resume, serve_orders, status
from executor.limits import GWEI, Limits
from markets.base import MarketError
from protocol import MAX_POSITIONS, MAX_TICK
from runtime.db import StoreError
from runtime.options import Setting, add_logging_options, add_settings, parse_options, url
from runtime.process import Parser, number, run
from wire.signing import WireError

PORT = 8095


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
