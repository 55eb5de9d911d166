"""Options and where they come from: the command line, else the environment, else `.env`, else the default.

    add_chain_options(parser)                    # a `Parser` of `process.py`, or its sub-parsers
    options = parse_options(parser, argv)
    print(*settings_lines(options), sep="\n")   # once, no secret

The spellings are those of the ecosystem, old and new. Nothing to run here. Read next: `passwords.py`, `process.py`.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import runtime.home  # noqa: F401
from runtime.hidden import conceal, masked_host
from runtime.passwords import Secret, check_own, read_executor_key, without_ends
from runtime.process import EXIT_USAGE, LOG_FILE_BYTES, LOG_FILES_KEPT, LOG_LEVELS, UserError, number

NETWORKS = ("finney", "test", "archive", "devnet", "local")  # the SDK's names; others are ws:// or wss:// addresses
MAX_NETUID = 2**16 - 1
MAX_CONFIRMATIONS = 10_000
MAX_DOTENV_BYTES = 2**16


def masked_url(url: str) -> str:
    """An address without what may be secret in it: user, password, the host but for its domain, path and query."""
    parts = urlsplit(url)
    host = masked_host(parts.hostname or "")
    host = f"[{host}]" if ":" in host else host
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{host}{port}" + ("/*****" if parts.path.strip("/") or parts.query else "")


def text(value: str) -> str:
    """The type of an option that must not be empty."""
    if not value.strip():
        raise argparse.ArgumentTypeError("is empty")
    return value


def file_path(value: str) -> str:
    """The type of an option that is a file or folder: `~` is the user's home, as no shell says it in a variable."""
    return os.path.expanduser(text(value))


def url(*schemes: str) -> Callable[[str], str]:
    """The type of an option that is an address with one of these schemes; a mistake is told without the address."""

    def parse(value: str) -> str:
        with suppress(ValueError):
            parts = urlsplit(value)
            if parts.scheme in schemes and parts.hostname and parts.port != 0 and value.isprintable():
                conceal(value)
                return value
        raise argparse.ArgumentTypeError(f"is no address like {schemes[-1]}://HOST")

    return parse


def evm_address(value: str) -> str:
    """The type of an option that is an address of a contract or account of an EVM chain; in lower case."""
    if not re.fullmatch(r"0x[0-9a-fA-F]{40}", value):
        shown = repr(value) if len(value) <= 42 else f"{len(value)} characters"  # which may be a private key
        raise argparse.ArgumentTypeError(f"{shown}: 0x and 40 hexadecimal digits are expected")
    return value.lower()


def _service(value: str) -> str:
    value = url("http", "https")(value)
    parts = urlsplit(value)
    if parts.query or parts.fragment or "@" in parts.netloc:  # a user's name would go where its key does
        raise argparse.ArgumentTypeError("has more than scheme, host, port and path")
    return value.rstrip("/")


def _key_name(value: str) -> str:
    if not value.isprintable() or "/" in value or value.strip(" .") != value or not value:
        raise argparse.ArgumentTypeError(f"{value!r} is no name of a wallet or key")
    return value


def _network(value: str) -> str:
    if value in NETWORKS:
        return value
    with suppress(argparse.ArgumentTypeError):
        return url("ws", "wss")(value)
    named = "" if "://" in value else f"{value!r} "  # an address may hold a secret
    raise argparse.ArgumentTypeError(f"{named}is no network; use {', '.join(NETWORKS)} or wss://HOST")


class Setting(NamedTuple):
    """An option that may also come from the environment or `.env`.

    Attributes:
        name: of the attribute it fills.
        flags: its spellings, the plain one first; none for what may not stand on a command line.
        env: the variables that may hold it, the first that holds something counts.
        type: checks and converts the text; raises `argparse.ArgumentTypeError`.
        secret: never printed, taken out of the environment; becomes a `Secret`.
        many: may be given again and again; a variable has commas between them. Becomes a list.
    """

    name: str
    flags: tuple[str, ...]
    help: str
    env: tuple[str, ...] = ()
    default: Any = None
    type: Callable[[str], Any] = text
    metavar: str | None = None
    secret: bool = False
    many: bool = False

    def read(self, value: str) -> Any:
        """What a variable says. Raises `argparse.ArgumentTypeError`."""
        return [self.type(part.strip()) for part in value.split(",")] if self.many else self.type(value)


class Source(NamedTuple):
    rank: int  # the lower wins
    name: str


OPTION, ENVIRONMENT, DOTENV, DEFAULT = range(4)

CHAIN_SETTINGS = (
    Setting("netuid", ("--netuid",), "the subnet; without it everything stays on this machine", ("NETUID",),
            type=number(0, MAX_NETUID), metavar="N"),
    Setting("network", ("--network", "--subtensor.network", "--subtensor_network"),
            f"{', '.join(NETWORKS)} or an address (default: finney)",
            ("BT_NETWORK", "BT_SUBTENSOR_NETWORK", "SUBTENSOR_NETWORK"), type=_network),
    Setting("chain_endpoint", ("--chain-endpoint", "--subtensor.chain_endpoint", "--chain_endpoint"),
            "a node of your own instead of the network's", ("BT_CHAIN_ENDPOINT", "BT_SUBTENSOR_CHAIN_ENDPOINT"),
            type=url("ws", "wss"), metavar="URL"),
    Setting("wallet", ("--wallet", "--wallet.name", "--wallet_name"), "the wallet's name",
            ("BT_WALLET", "BT_WALLET_NAME", "WALLET_NAME"), "default", _key_name, "NAME"),
    Setting("wallet_hotkey", ("--wallet-hotkey", "--wallet.hotkey", "--wallet_hotkey"), "the hotkey's name",
            ("BT_WALLET_HOTKEY", "HOTKEY_NAME"), "default", _key_name, "NAME"),
    Setting("wallet_path", ("--wallet-path", "--wallet.path", "--wallet_path"), "the folder of wallets",
            ("BT_WALLET_PATH",), "~/.bittensor/wallets", file_path, "DIR"),
    Setting("password", (), "", ("BT_WALLET_PASSWORD", "MINER_WALLET_PASSWORD"), secret=True),
    Setting("password_file", ("--password-file", "--password_file"),
            "its first line is the wallet's password; nobody else may read it", ("BT_WALLET_PASSWORD_FILE",),
            type=file_path, metavar="FILE"),
    Setting("password_command", ("--password-command", "--password_command"),
            "its first line of output is the wallet's password; for Google Secret Manager:"
            " 'gcloud secrets versions access latest --secret=NAME'", ("BT_WALLET_PASSWORD_COMMAND",),
            metavar="COMMAND"),
)  # fmt: skip
MARKET_SETTINGS = (
    Setting("rpc", ("--rpc",), "a node of the pool's chain, http or https; give several, the most preferred first."
            " An address with a key in it belongs into the environment", ("ALM_RPC_URLS",),
            type=url("http", "https"), metavar="URL", many=True),
    Setting("pool", ("--pool",), "the pool's address", ("ALM_POOL",), type=evm_address, metavar="0x..."),
    Setting("vault", ("--vault",), "with --rpc the address that holds positions and tokens; of a recording its"
            " position OWNER:LOWER:UPPER (default: see docs/validator.md)", metavar="VAULT"),
    Setting("manager", ("--manager",), "the position manager's address, where it is not the chain's usual one",
            type=evm_address, metavar="0x..."),
    Setting("vault_operator", ("--vault-operator",), "who besides the vault's own address mints positions that count as"
            " its own; give several. Strangers' never do", type=evm_address, metavar="0x...", many=True),
    Setting("confirmations", ("--confirmations",), "blocks that must stand on top of one before it is believed",
            default=3, type=number(0, MAX_CONFIRMATIONS), metavar="N"),
    Setting("executor_url", ("--executor-url",), "the executor bot that carries live decisions out; without it there"
            " are no live rounds", ("EXECUTOR_BOT_URL",), type=_service, metavar="URL"),
    Setting("executor_key", (), "", ("EXECUTOR_API_KEY",), secret=True),
    Setting("executor_key_file", ("--executor-key-file",), "its first line is the executor bot's key; nobody else may"
            " read it", ("EXECUTOR_API_KEY_FILE",), type=file_path, metavar="FILE"),
)  # fmt: skip
LOG_SETTINGS = (
    Setting("log_level", (), "", ("BT_LOGGING_TRACE", "BT_LOGGING_DEBUG", "BT_LOGGING_INFO"), "INFO"),
    Setting("log_json", (), "", default=False),
    Setting("log_file", (), ""),
)


def axon_settings(port: int | None, listens: str, publishes: str) -> tuple[Setting, ...]:
    """Where a program listens and what the chain is told of it.

    Args:
        port: the usual one; None: the program chooses.
        listens, publishes: help of `--port` and `--external-ip`.
    """
    outside = "the port to publish, where another one outside leads to --port (default: the same)"
    host, external = ("--host", "--axon.ip"), ("--external-port", "--axon.external_port")
    return (
        Setting("host", host, "where to listen; 0.0.0.0 is all", ("BT_AXON_IP",), "127.0.0.1", _host, "IP"),
        Setting("port", ("--port", "--axon.port"), listens, ("BT_AXON_PORT",), port, number(0, 65535), "PORT"),
        Setting("external_ip", ("--external-ip", "--axon.external_ip"), publishes, ("BT_AXON_EXTERNAL_IP",),
                type=_host, metavar="IP"),
        Setting("external_port", external, outside, ("BT_AXON_EXTERNAL_PORT",), None, number(1, 65535), "PORT"),
    )  # fmt: skip


def _host(value: str) -> str:
    return text(value).strip("[]")  # the SDK wrote IPv6 in brackets


_OF_THE_SDK = re.compile(r"BT_(SUBTENSOR|WALLET|AXON|LOGGING|PRIORITY)_.+")  # whatever of these is not read, is refused
_READ = {name for setting in (*CHAIN_SETTINGS, *axon_settings(None, "", ""), *LOG_SETTINGS) for name in setting.env}
_OFF = ("", "0", "false", "no", "off", "none")
AXON_NAMES = ("host", "port", "external_ip", "external_port")
CHAIN_NAMES = [setting.name for setting in CHAIN_SETTINGS]
_RPC_NAMES = [setting.name for setting in MARKET_SETTINGS if setting.name != "vault"]
_NEVER_LEFT_TO_A_CHILD = r"BT_PW_.*|(BT|MINER)_WALLET_PASSWORD|SLACK_WEBHOOK_URL|EXECUTOR_API_KEY|ALM_RPC_URLS"


def add_settings(parser: argparse.ArgumentParser, title: str, settings: Sequence[Setting]) -> None:
    """Add settings to a parser or sub-parser, and have `resolve` fill them.

    They are not set by the parser unless given, so that a sub-parser may have those of its parent too.
    """
    group = parser.add_argument_group(title)
    for setting in settings:
        notes = [f"environment: {', '.join(setting.env)}"] if setting.env else []
        notes += [f"default: {setting.default}"] if setting.default is not None else []
        about = setting.help + (f" ({'; '.join(notes)})" if notes else "")
        how = {"dest": setting.name, "type": setting.type, "action": "append" if setting.many else "store"}
        if setting.flags:
            group.add_argument(*setting.flags, default=argparse.SUPPRESS, metavar=setting.metavar, help=about, **how)
    parser.set_defaults(**{f"settings_{title}": tuple(settings)})


def add_chain_options(parser: argparse.ArgumentParser) -> None:
    """Wallet, network and subnet; see `is_local`, `read_password`."""
    add_settings(parser, "chain", CHAIN_SETTINGS)


def add_market_options(parser: argparse.ArgumentParser) -> None:
    """A pool of a real chain, its vault, and the executor bot; see `real_market`."""
    add_settings(parser, "real pool", MARKET_SETTINGS)


def add_logging_options(parser: argparse.ArgumentParser) -> None:
    """Level, form and file of the log; they fill `log_level`, `log_json`, `log_file` for `run`."""
    add = partial(parser.add_argument_group("log").add_argument, default=argparse.SUPPRESS)
    kept = f"put aside at {LOG_FILE_BYTES // 2**20} MB, {LOG_FILES_KEPT} are kept"
    add("--log-level", choices=LOG_LEVELS, help="TRACE is DEBUG of the libraries too (default: INFO)")
    for name in ("debug", "trace"):
        level = name.upper()
        add(f"--logging.{name}", action="store_const", const=level, dest="log_level", help=f"--log-level {level}")
    add("--log-json", "--log_json", action="store_true", help="one JSON object a line")
    add("--log-file", "--log_file", metavar="FILE", type=file_path, help=f"write the log there too; {kept}")
    parser.set_defaults(settings_log=LOG_SETTINGS)


def parse_options(
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None = None,
    environ: MutableMapping[str, str] = os.environ,
    dotenv: Path = Path(".env"),
) -> argparse.Namespace:
    """The program's options with all settings resolved; a mistake is one line on stderr and exit code 2.

    A parser whose default `check_options` is a function has that refuse, with `UserError`, what would not be used.
    """
    options = parser.parse_args(argv)
    try:
        resolve(options, environ, dotenv)
        if check := getattr(options, "check_options", None):
            check(options)
    except UserError as error:
        parser.exit(EXIT_USAGE, f"{parser.prog}: {error}\n")
    return options


def refuse(options: argparse.Namespace, why: str, *names: str) -> None:
    """Raises `UserError` for the first of these options that was given: what is asked for would not use it."""
    for name in names:
        if name in options.given:
            raise UserError(f"{options.given[name]} {why}")


def resolve(
    options: argparse.Namespace, environ: MutableMapping[str, str] = os.environ, dotenv: Path = Path(".env")
) -> None:
    """Fill what was not given: from the environment, else from `.env`, else the default; to be called once.

    A variable that is set to nothing hides `.env` and means the default: `NETUID= python validator.py` stays local.
    Secrets are taken out of `environ`, so that no child process inherits them, and never enter it from `.env`.
    `options.sources` then says where each setting came from.

    Raises:
        UserError: a value, or `.env`, is not what it should be; names the place, and no secret.
    """
    settings = [one for name, group in vars(options).items() if name.startswith("settings_") for one in group]
    known = dict(environ)
    for name in known:
        if re.fullmatch(_NEVER_LEFT_TO_A_CHILD, name) or any(one.secret and name in one.env for one in settings):
            conceal(environ.pop(name))
        elif name.lower().endswith("_proxy"):  # the SDK's websockets use one, and its address may hold a password
            conceal(known[name])
    known, file = _plain(known), _plain(read_dotenv(dotenv))
    options.sources = {}
    for setting in settings:
        if hasattr(options, setting.name):
            value, source = getattr(options, setting.name), Source(OPTION, "option")
        else:
            value, source = _look_up(setting, known, file, dotenv)
        if setting.secret and isinstance(value, str):
            value = Secret(value, masked_url(value) if "://" in value else "*****")
        setattr(options, setting.name, value)
        options.sources[setting.name] = source
    if hasattr(options, "netuid"):
        _settle_chain(options)
        if is_local(options):
            _forget_published(options, settings)
        else:
            _refuse_unread({**dict.fromkeys(file, dotenv), **dict.fromkeys(known, "environment")}, {**file, **known})
    if "executor_url" in options.sources:  # the bot itself names a chain too, in its own way
        _settle_market(options)


def _look_up(setting: Setting, environ: Mapping, file: Mapping, dotenv: Path) -> tuple[Any, Source]:
    for rank, where, variables in ((ENVIRONMENT, "environment", environ), (DOTENV, str(dotenv), file)):
        if not any(name in variables for name in setting.env):
            continue
        given = {name: variables[name] for name in setting.env if variables.get(name)}
        if not given:
            break
        name, *others = given
        if len(set(given.values())) > 1:
            raise UserError(f"{name} and {others[0]} ({where}) say different things; unset one")
        if setting.secret and rank == DOTENV:
            with dotenv.open("rb") as secret:
                check_own(secret.fileno(), f"{dotenv} holds {name} and", dotenv)
        try:
            return setting.read(given[name].encode().decode()), Source(rank, f"{where} {name}")
        except UnicodeEncodeError:
            raise UserError(f"{name} ({where}) is no UTF-8") from None
        except argparse.ArgumentTypeError as error:
            raise UserError(f"{name} ({where}) {error}") from None
    expand = setting.type is file_path and setting.default
    return file_path(setting.default) if expand else setting.default, Source(DEFAULT, "default")


def _plain(variables: Mapping[str, str]) -> dict[str, str]:
    """Variables without the marks that editors and `echo` leave; of the SDK's switches the level that is on."""
    found = {name: without_ends(value) for name, value in variables.items()}
    for name in found.keys() & set(LOG_SETTINGS[0].env):
        found[name] = "" if found[name].lower() in _OFF else name.rpartition("_")[2]
    return found


def _forget_published(options: argparse.Namespace, settings: Sequence[Setting]) -> None:
    """What somebody has in the environment for a real network's miner is no part of a local subnet."""
    for setting in settings:
        if setting.name in AXON_NAMES and options.sources[setting.name].rank in (ENVIRONMENT, DOTENV):
            setattr(options, setting.name, setting.default)
            options.sources[setting.name] = Source(DEFAULT, "default")


def _refuse_unread(places: Mapping[str, Any], variables: Mapping[str, str]) -> None:
    """A variable that the SDK has or had, and nobody reads here, would be believed to work."""
    for name, value in variables.items():
        if _OF_THE_SDK.fullmatch(name) and name not in _READ and value.lower() not in _OFF:
            raise UserError(f"{name} ({places[name]}): nothing here reads it; see docs/options.md, and unset it")


def _settle_chain(options: argparse.Namespace) -> None:
    """Of network and endpoint the one that was given nearer to the command line counts, of equals the endpoint."""
    sources = options.sources
    if is_local(options):
        refuse(options, "is given, but not which subnet; add --netuid N or set NETUID", *CHAIN_NAMES)
    elif options.chain_endpoint and sources["network"].rank != sources["chain_endpoint"].rank:
        nearer = sources["network"].rank < sources["chain_endpoint"].rank
        setattr(options, "chain_endpoint" if nearer else "network", None)
    elif not options.network and not options.chain_endpoint:
        options.network = "finney"
    if options.network and "://" in options.network:  # one node, as btcli takes it too
        options.chain_endpoint, options.network = options.network, None
        sources["chain_endpoint"] = sources["network"]
    if options.network == "local" and not options.chain_endpoint:  # the SDK would take it from the environment
        options.chain_endpoint = "ws://127.0.0.1:9944"


def is_local(options: argparse.Namespace) -> bool:
    """Whether the program stays on this machine, on the embedded chain: nobody named a subnet.

    A wallet or network alone, as `btcli` users have them in their environment, does not lead to a real chain.
    """
    return options.netuid is None


def _settle_market(options: argparse.Namespace) -> None:
    """A recording that is named counts for more than a chain in the environment; both as options are a mistake."""
    if getattr(options, "events", None):
        refuse(options, "is for a real chain, --events is a recording; name one", *_RPC_NAMES)
        options.rpc = options.pool = options.executor_url = None
        return
    if not options.rpc:
        refuse(options, "is given, but no node of the chain; add --rpc URL or set ALM_RPC_URLS", *_RPC_NAMES, "vault")
        options.pool = options.executor_url = None
    if not options.executor_url:
        refuse(options, "is the key of an executor bot; add --executor-url URL", "executor_key_file")
    if options.rpc and options.vault is not None:
        try:
            options.vault = evm_address(options.vault)
        except argparse.ArgumentTypeError as error:
            raise UserError(f"--vault {error}; OWNER:LOWER:UPPER is for recordings") from None


class RealMarket(NamedTuple):
    """A pool of a real chain, as the options name it: its nodes in order of preference, addresses in lower case, the
    manager None where it is the chain's usual one, the executor's None where there are no live rounds."""

    urls: tuple[str, ...]
    pool: str
    vault: str
    manager: str | None
    confirmations: int
    executor_url: str | None
    executor_key: Secret | None
    operators: tuple[str, ...]


def real_market(options: argparse.Namespace) -> RealMarket | None:
    """The pool of a real chain that the options name; None where no node of one is named. Raises `UserError` where
    pool, vault or the executor's key are missing, or the key cannot be read."""
    if not options.rpc:
        return None
    for name, fix in (("pool", "or set ALM_POOL"), ("vault", "the address whose positions are managed")):
        if getattr(options, name) is None:
            raise UserError(f"a chain is named with --rpc, but no {name}; add --{name} 0x..., {fix}")
    executor, key = options.executor_url, read_executor_key(options)
    if executor and key is None:
        fix = "name its key with --executor-key-file, or set EXECUTOR_API_KEY"
        raise UserError(f"the executor bot {masked_url(executor)} asks for a key; {fix}")
    what = tuple(options.rpc), options.pool, options.vault, options.manager, options.confirmations
    return RealMarket(*what, executor, key if executor else None, tuple(options.vault_operator or ()))


def settings_lines(options: argparse.Namespace) -> list[str]:
    """What a program prints once at its start: each setting that has a value, and its source; no secret."""
    local = "netuid" in options.sources and is_local(options)
    modelled = "rpc" in options.sources and not options.rpc
    lines = ["SETTING chain = embedded, on this machine (no --netuid)"] if local else []
    for name, source in options.sources.items():
        value = getattr(options, name)
        if value is None or (local and name in CHAIN_NAMES) or (modelled and name in _RPC_NAMES):
            continue
        if name == "password_command":  # its arguments may be secret
            value = f"{value.split()[0]} ..."
        elif isinstance(value, list):
            value = ", ".join(masked_url(one) if "://" in one else one for one in value)
        elif isinstance(value, str) and "://" in value:
            value = masked_url(value)
        lines.append(f"SETTING {name} = {value} ({source.name})")
    return lines


def read_dotenv(path: Path) -> dict[str, str]:
    """The variables of a `.env` file: lines of `NAME=VALUE`, `export` before and `# ...` after allowed.

    A value in '...' is taken as it stands; in "..." a backslash escapes backslash, quote, $, n and t. Nothing is
    expanded: a `${` outside of '...' is refused rather than misread. No file means no variables; a folder too, as
    some name their venv so.

    Raises:
        UserError: with the line's number, never its text, which may be a secret.
    """
    try:
        if not path.is_file():
            return {}
        with path.open("rb") as file:
            data = file.read(MAX_DOTENV_BYTES + 1)
        lines = data.decode("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or 'it is no UTF-8'}") from None
    if len(data) > MAX_DOTENV_BYTES:
        raise UserError(f"{path} is longer than {MAX_DOTENV_BYTES} bytes")
    found: dict[str, str] = {}
    for at, line in enumerate(lines, 1):
        line = line.strip(" \t\r")  # no more: a secret may end in what Unicode calls a space
        if not line or line.startswith("#"):
            continue
        if not (match := _DOTENV_LINE.fullmatch(line)):
            raise UserError(f"{path} line {at}: not NAME=VALUE; quote a value that has quotes or # in '...'")
        name, literal, quoted, plain = match.groups()
        if "${" in (quoted or plain or "").replace(r"\$", ""):
            raise UserError(f"{path} line {at}: ${{...}} is not expanded; write it out, or quote it in '...'")
        if name in found:
            raise UserError(f"{path} line {at}: {name} is there twice; remove one")
        unquoted = re.sub(r"\\(.)", lambda escape: {"n": "\n", "t": "\t"}.get(escape[1], escape[1]), quoted or "")
        found[name] = literal or unquoted or plain or ""
    return found


_DOTENV_LINE = re.compile(  # possessive: a line is read once, whatever is in it
    r"""(?:export\s++)?([A-Za-z_]\w*+)\s*+=\s*+(?:'([^']*+)'|"((?:[^"\\]|\\[\\"nt$])*+)"|([^\s'"#]++(?:\s++[^\s'"#]++)*+))?"""
    r"""\s*+(?:(?<=\s)\#.*)?""",
    re.ASCII,
)
