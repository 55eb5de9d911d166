"""What is needed to run here, line by line: `ok`, `warn` (it runs, but look) or `FAIL`, each with its fix.

    python validator.py doctor [--dir local] [--db FILE] [--port 8091]
    python validator.py doctor --netuid N --wallet NAME --wallet-hotkey NAME     and the wallet, and what the chain says
    python validator.py doctor --rpc URL --pool 0x.. --vault 0x..        and whether a real market can be opened there
    python doctor.py                    the same where validator.py itself does not start: a package is missing

Exit code 0 when nothing fails, else 1. Nothing is changed, and nothing leaves this machine unless a subnet or a node is
named: then they are asked, each node for some 1,100 small things. This file needs only the standard library, and no
particular Python, to say what is missing.
Read next: `store.py` (the databases), `settings.py` (the options).
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import ipaddress
import json
import logging
import os
import re
import shutil
import socket
import sqlite3
import stat
import struct
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from runtime import UserError
from settings import (
    add_chain_options,
    add_market_options,
    is_local,
    masked_url,
    read_executor_key,
    read_password,
    resolve,
)

OK, WARN, FAIL = "ok", "warn", "FAIL"
FIRST_PYTHON, LAST_PYTHON = (3, 11), (3, 13)
DEFAULT_PORT = 8091  # of miner.py
LEAST_DISK_BYTES, GOOD_DISK_BYTES = 100 * 10**6, 2 * 10**9  # two jobs and three miners write 11 MB a market day
CLOCK_SAMPLE_SECONDS, CLOCK_DRIFT_SECONDS = 0.1, 0.05
PLAUSIBLE_SINCE = 1_760_000_000  # October 2025, before this was written
SIGNED_SECONDS = "10 s late or 2 s early"  # btauth: signatures outside of this are refused
BLOCK_SECONDS = 12  # of the subnet's chain
CHAIN_SECONDS = 90  # for all that is asked of it; dialing a public endpoint takes several
GOOD_BALANCE_RAO = 10_000_000  # free TAO that pays the fees of some hundred writes
RAO = 10**9
NODE_SECONDS = 10  # for one question to a node
SLOW_NODE_SECONDS = 1.0
STALE_HEAD_SECONDS, DEAD_HEAD_SECONDS = 60, 600  # of a chain's newest block; slow chains have one in 12 s
AHEAD_SECONDS = 15  # that a block may be ahead of this machine's clock
LOG_RANGES = (5000, 2000, 1000, 500, 200, 50, 10, 1)  # blocks of one eth_getLogs; the follower takes at most the first
GOOD_LOG_RANGE, GOOD_BATCH = 50, 100
ENOUGH_CALLS = 1000  # in one request; what a validator sends at most
HOUR, DAY = 3600, 86_400
ORACLE_SECONDS = 600  # the executor compares with the average price of so long
MAX_HEALTH_BYTES = 64 << 10
NULL_ADDRESS = "0x" + "0" * 40
F_GETLK_FORMAT = "hhqqi4x"  # struct flock on 64-bit Linux: type, whence, start, length, pid


class Finding(NamedTuple):
    """One line: `OK`, `WARN` or `FAIL`, what was found, and what to do about it (empty if nothing)."""

    level: str
    what: str
    fix: str = ""


# ---------------------------------------------------------------------------------------------------------------------
# Python and packages


def check_python(version: tuple = sys.version_info[:3]) -> Iterator[Finding]:
    """Whether this is a Python that the programs are tested on."""
    text = "Python " + ".".join(map(str, version))
    if FIRST_PYTHON <= version[:2] <= LAST_PYTHON:
        yield Finding(OK, text)
    else:
        yield Finding(FAIL, f"{text}, 3.11 to 3.13 is needed", "make a venv with one of them: python3.12 -m venv .venv")


def check_packages(requirements: Path) -> Iterator[Finding]:
    """Whether the installed packages are those of `requirements.txt`, by the numbers of their versions."""
    for line in requirements.read_text().splitlines():
        line = line.split("#")[0].split(";")[0].strip()
        if not line:
            continue
        name, bounds = re.fullmatch(r"([A-Za-z0-9._-]+)(.*)", line).groups()
        found = _installed(name)
        if found is None:
            yield Finding(FAIL, f"package {name} is missing, {line} is needed", f"pip install '{line}'")
        elif not all(_within(found, bound) for bound in bounds.split(",") if bound):
            yield Finding(FAIL, f"package {name} {found}, {line} is needed", f"pip install '{line}'")
        else:
            yield Finding(OK, f"package {name} {found}")
    web3, bittensor = _installed("web3"), _installed("bittensor")
    if web3 and bittensor and _within(web3, ">=8") and _within(bittensor, ">=11"):
        fix = "pip install 'web3>=7.16,<8'"
        yield Finding(FAIL, f"web3 {web3} and bittensor {bittensor} cannot work together: their websockets differ", fix)


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _within(version: str, bound: str) -> bool:
    sign, limit = re.fullmatch(r"\s*(>=|<=|==|<|>)\s*(\S+)\s*", bound).groups()
    one, two = _numbers(version), _numbers(limit)
    width = max(len(one), len(two))
    one, two = (numbers + (0,) * (width - len(numbers)) for numbers in (one, two))
    return {">=": one >= two, "<=": one <= two, "==": one == two, "<": one < two, ">": one > two}[sign]


def _numbers(version: str) -> tuple:
    return tuple(map(int, re.match(r"\d+(\.\d+)*", version).group().split(".")))


# ---------------------------------------------------------------------------------------------------------------------
# The machine


def check_port(port: int) -> Iterator[Finding]:
    """Whether a miner could listen on its default port."""
    with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind(("127.0.0.1", port))
        except OSError as error:
            fix = "fine if your miner runs there, else start it with --port 0"
            yield Finding(WARN, f"port {port} of 127.0.0.1 is not free ({error.strerror})", fix)
        else:
            yield Finding(OK, f"port {port} is free for a miner")


def check_clock(ledger: Path, wall=time.time, monotonic=time.monotonic, sleep=time.sleep) -> Iterator[Finding]:
    """Whether the clock is plausible and runs evenly; the time zone does not matter."""
    wall_begin, monotonic_begin = wall(), monotonic()
    sleep(CLOCK_SAMPLE_SECONDS)
    now = wall()
    drift = (now - wall_begin) - (monotonic() - monotonic_begin)
    date = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    sync = f"synchronise it (timedatectl set-ntp true): signatures {SIGNED_SECONDS} are refused"
    if now < PLAUSIBLE_SINCE:
        yield Finding(FAIL, f"the clock says {date}, which is in the past", sync)
    elif abs(drift) > CLOCK_DRIFT_SECONDS:
        yield Finding(WARN, f"the clock jumped by {drift:+.3f} s in {CLOCK_SAMPLE_SECONDS} s", sync)
    else:
        yield Finding(OK, f"clock {date}, runs evenly; not compared with a time server, nothing leaves this machine")
    try:
        (block,) = _read(ledger, "SELECT block FROM subnet")[0]
    except (sqlite3.Error, IndexError, ValueError):
        return
    ahead = block * BLOCK_SECONDS - now
    if ahead > BLOCK_SECONDS:
        fix = "right if it was played at full speed, in market time; else " + sync
        yield Finding(WARN, f"the ledger's newest block is {ahead:.0f} s ahead of the clock", fix)
    else:
        at = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(block * BLOCK_SECONDS))
        yield Finding(OK, f"the ledger's newest block, {at}, is not ahead of the clock")


def check_folder(folder: Path) -> Iterator[Finding]:
    """Whether the folder, or the one it would be made in, can be written and has room."""
    place = folder
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        yield Finding(FAIL, f"{place} is a file, a folder is needed", "remove it or choose another --dir")
        return
    try:
        with tempfile.TemporaryFile(dir=str(place)) as probe:
            probe.write(b"doctor")
        yield Finding(OK, f"folder {folder}: {'can be written' if place == folder else 'can be made'}")
    except OSError as error:
        fix = "give yourself write permission or choose another --dir"
        yield Finding(FAIL, f"folder {place} cannot be written ({error.strerror})", fix)
    free = shutil.disk_usage(place).free
    level = FAIL if free < LEAST_DISK_BYTES else WARN if free < GOOD_DISK_BYTES else OK
    fix = "" if level == OK else f"free some, {GOOD_DISK_BYTES / 10**9:.0f} GB are comfortable"
    yield Finding(level, f"disk of {place}: {free / 10**9:.1f} GB free", fix)


# ---------------------------------------------------------------------------------------------------------------------
# The databases


def check_database(what: str, path: Path, newest: int | None) -> Iterator[Finding]:
    """Whether a database is whole, of a version that this program knows, and nobody else's at the moment.

    Args:
        what: its name in the lines.
        path: the file; there need not be one.
        newest: the schema version of this program, None if it could not be asked.
    """
    if not path.exists() or not path.stat().st_size:
        yield Finding(OK, f"{what} {path}: not there yet, the first start makes it")
        return
    pid = _holder(path)  # before it is opened here: closing any descriptor of it gives up this process's own locks
    log = Path(f"{path}-wal")
    waiting = log.stat().st_size if log.exists() else 0
    restore = "restore a copy, or move it away (with it go its scores) and start anew"
    try:
        (version,) = _read(path, "PRAGMA user_version")[0]
        tables = _read(path, "SELECT count(*) FROM sqlite_master")[0][0]
        damage = [row[0] for row in _read(path, "PRAGMA quick_check(3)") if row[0] != "ok"]
    except (sqlite3.Error, ValueError) as error:
        busy = "locked" in str(error)
        fix = "stop the process that writes to it, then try again" if busy else restore
        yield Finding(FAIL, f"{what} {path}: {error}", fix)
        return
    if damage:
        yield Finding(FAIL, f"{what} {path} is damaged: {'; '.join(damage)}".replace("\n", " "), restore)
    elif version == 0 and tables:
        yield Finding(FAIL, f"{what} {path}: tables of another program", "choose another --dir or --db")
    elif newest is not None and version > newest:
        fix = "update the program, or choose another --dir or --db"
        yield Finding(FAIL, f"{what} {path}: schema version {version}, this program knows {newest}", fix)
    else:
        older = newest is not None and version < newest
        note = f", the next start brings it to {newest}" if older else ""
        note += f"; {waiting} bytes of its log wait for the next start" if waiting and pid is None else ""
        yield Finding(OK, f"{what} {path}: whole, schema version {version}{note}")
    if pid is not None:
        fix = "let it end before you start another validator on this folder"
        yield Finding(WARN, f"{what} {path} is in use by process {pid}{_command(pid)}", fix)


def _read(path: Path, sql: str) -> list:
    """Rows of a query on a connection that cannot write."""
    if not path.exists():
        raise ValueError(f"{path} does not exist")
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=2)) as db:
        return db.execute(sql).fetchall()


def _holder(path: Path) -> int | None:
    """The process that holds one of SQLite's locks on a file; None if nobody does, or this system does not say."""
    if sys.platform != "linux" or sys.maxsize < 2**32:
        return None
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return None
    try:
        asked = struct.pack(F_GETLK_FORMAT, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, _, _, pid = struct.unpack(F_GETLK_FORMAT, fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))
    finally:
        os.close(descriptor)
    return None if kind == fcntl.F_UNLCK else pid


def _command(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return ""
    return f" ({' '.join(words).strip()[:80]})"


# ---------------------------------------------------------------------------------------------------------------------
# The wallet and the chain


def check_subnet(options: argparse.Namespace) -> Iterator[Finding]:
    """Whether the wallet can be used, and what the named subnet's chain says of it; nothing where none is named.

    Args:
        options: with the settings of `settings.add_chain_options`, resolved.
    """
    if is_local(options):
        yield Finding(OK, "no subnet is named (--netuid): everything stays on this machine")
        return
    try:
        import chain
    except (ImportError, SyntaxError, TypeError) as error:
        yield Finding(WARN, f"wallet and chain are not checked: {error}", "mend the lines above first")
        return
    folder = Path(options.wallet_path).expanduser() / options.wallet
    try:
        password = read_password(options)
        unlock = password is not None and (folder / "coldkey").exists()
        wallet = chain.load_wallet(options.wallet, options.wallet_hotkey, str(folder.parent), password, unlock)
    except (UserError, chain.ChainError) as error:
        fix = "name it with --wallet, --wallet-hotkey, --wallet-path, or create it: btcli wallet create"
        yield Finding(FAIL, f"wallet {options.wallet}, hotkey {options.wallet_hotkey}: {error}", fix)
        return
    what = f"wallet {options.wallet}: hotkey {wallet.hotkey.ss58_address}, coldkey {wallet.coldkey_address}"
    yield Finding(OK, what + (", the password opens it" if unlock else ""))
    yield from check_key_files(folder / "coldkey", folder / "hotkeys" / options.wallet_hotkey)
    place = options.network or masked_url(options.chain_endpoint)

    async def ask() -> list[Finding]:
        async with asyncio.timeout(CHAIN_SECONDS):
            opened = chain.BittensorChain.open(
                network=options.network or "", endpoint=options.chain_endpoint, netuid=options.netuid, wallet=wallet
            )
            async with opened as subnet:
                return await check_chain(subnet, place)

    try:
        yield from asyncio.run(ask())
    except (chain.ChainError, TimeoutError) as error:
        reason = str(error) or f"no answer within {CHAIN_SECONDS} s"
        fix = "look at the connection, --network and --netuid, or name another node with --chain-endpoint"
        yield Finding(FAIL, f"chain {place}: {reason}", fix)


def check_key_files(*paths: Path) -> Iterator[Finding]:
    """Whether others on this machine can read what signs."""
    for path in paths:
        if path.exists() and stat.S_IMODE(path.stat().st_mode) & 0o077:
            yield Finding(WARN, f"key file {path} can be read by others", f"chmod 600 {path}")


async def check_chain(chain, place: str) -> list[Finding]:
    """What a chain says of the wallet it was opened with: registration, permit, stake, and free TAO for fees.

    Args:
        chain: a `chain.Chain`.
        place: its name in the lines.

    Raises:
        ChainError: it does not answer.
    """
    graph = await chain.metagraph()
    me, balance = graph.by_hotkey(chain.hotkey), await chain.free_balance()
    subnet = f"netuid {graph.netuid}"
    found = [Finding(OK, f"chain {place} answers: block {graph.block}, {subnet} has {len(graph.neurons)} neurons")]
    if me is None:
        fix = f"btcli subnets register --netuid {graph.netuid} with this wallet"
        found.append(Finding(FAIL, f"hotkey {chain.hotkey} is not registered on {subnet}", fix))
    else:
        found.append(Finding(OK, f"registered on {subnet}: uid {me.uid} since block {me.registered_block}"))
        if me.coldkey != chain.coldkey:
            fix = "stake moves and fees need the owner; right if somebody else owns the hotkey"
            found.append(Finding(WARN, f"the hotkey belongs to coldkey {me.coldkey}, the wallet's is another", fix))
        if me.permit:
            found.append(Finding(OK, f"validator permit on {subnet}"))
        else:
            fix = "a miner needs none; a validator needs more stake than the others without one"
            found.append(Finding(WARN, f"no validator permit on {subnet}: weights of this hotkey are not taken", fix))
        fix = "" if me.stake_rao else "a miner needs none; a validator stakes with btcli stake add"
        found.append(Finding(OK if me.stake_rao else WARN, f"stake {me.stake_rao / RAO:.4f} alpha on the hotkey", fix))
    if balance is not None:
        fix = "" if balance >= GOOD_BALANCE_RAO else f"keep {GOOD_BALANCE_RAO / RAO} TAO there, fees are taken from it"
        found.append(Finding(WARN if fix else OK, f"free balance of the coldkey: {balance / RAO:.4f} TAO", fix))
    return found


# ---------------------------------------------------------------------------------------------------------------------
# A pool of a real chain


def check_market(options: argparse.Namespace) -> Iterator[Finding]:
    """Whether a real market could be opened: its nodes, pool and vault, and the executor bot.

    Args:
        options: with the settings of `settings.add_market_options`, resolved.
    """
    if not options.rpc:
        yield Finding(OK, "no node of a pool's chain is named (--rpc): the market is a model or a recording")
        return
    try:
        import aiohttp  # noqa: F401

        import contracts  # noqa: F401
    except (ImportError, SyntaxError, TypeError) as error:
        yield Finding(WARN, f"nodes, pool and executor are not checked: {error}", "mend the lines above first")
        return
    logging.getLogger("rpc").addHandler(logging.NullHandler())  # what it has to say is in the findings
    yield from asyncio.run(_check_chain_side(options))
    if options.executor_url:
        yield from check_executor_key(options)
        yield from asyncio.run(check_executor(options))
    else:
        yield Finding(OK, "no executor bot is named (--executor-url): evaluation only, no live rounds")


async def _check_chain_side(options: argparse.Namespace) -> list[Finding]:
    looks = await asyncio.gather(*(check_node(url, options.pool) for url in options.rpc))
    found = [finding for findings, _ in looks for finding in findings]
    heads = [head for _, head in looks if head]
    if len(heads) > 1:
        found += await check_agreement(heads, options.confirmations)
    if options.pool is None:
        found.append(Finding(WARN, "no pool is named: nodes alone were checked", "--pool 0x..."))
    elif urls := [head.url for head in heads]:
        found += await check_pool(urls, options.pool, options.manager, options.vault, bool(options.executor_url))
    return found


class NodeHead(NamedTuple):
    """A node's host, address, chain id, and its newest block, a `contracts.Header`."""

    name: str
    url: str
    chain_id: int
    block: Any


def _open(urls: list[str]) -> Any:
    from rpc import open_rpc

    return open_rpc(urls, total_seconds=NODE_SECONDS, attempt_seconds=NODE_SECONDS)


async def check_node(url: str, pool: str | None) -> tuple[list[Finding], NodeHead | None]:
    """What a node can do of what a validator asks of it; it is named by its host alone.

    Args:
        url: of the node.
        pool: whose state and logs are asked for; None for those of nobody.

    Returns:
        The findings, and where the node's chain is; None if it is of no use.
    """
    from contracts import header_call, read_header
    from rpc import RpcError

    found, elsewhere = [], "look at its address and your key for it, or name another node"
    async with _open([url]) as rpc:
        name = rpc.endpoints[0].name
        try:
            (chain,) = await rpc.batch([("eth_chainId", [])])
            began = time.monotonic()
            (raw,) = await rpc.batch([header_call("latest")])
            taken, head = time.monotonic() - began, NodeHead(name, url, int(chain, 16), read_header(raw))
        except (RpcError, TypeError, ValueError) as error:
            return [Finding(FAIL, f"node {name}: {error!s:.200}", elsewhere)], None
        slow, age = taken > SLOW_NODE_SECONDS, time.time() - head.block.time
        fix = "every round takes dozens of requests; name a faster one first" if slow else ""
        what = f"node {name}: chain {head.chain_id}, block {head.block.number}, answers in {taken * 1000:.0f} ms"
        found.append(Finding(WARN if slow else OK, what, fix))
        if age < -AHEAD_SECONDS:
            what, fix = f"{-age:.0f} s ahead of this clock", "synchronise the clock of this machine"
        else:
            what = f"{max(age, 0):.0f} s old"
            fix = "it is behind, or the chain stands; name a node that keeps up" if age > STALE_HEAD_SECONDS else ""
        level = FAIL if age > DEAD_HEAD_SECONDS else WARN if fix else OK
        found.append(Finding(level, f"node {name}: its newest block is {what}", fix))
        for look in (_look_by_hash, _look_at_logs, _look_at_batches, _look_back):
            try:
                level, what, fix = await look(rpc, head.block, pool or NULL_ADDRESS)
            except (RpcError, TypeError, ValueError) as error:
                level, what, fix = FAIL, f"{error!s:.200}", elsewhere
            found.append(Finding(level, f"node {name}: {what}", fix))
        return found, head


async def _look_by_hash(rpc: Any, head: Any, address: str) -> tuple[str, str, str]:
    if why := await _no_state(rpc, head, address):
        fix = "it cannot be used, a validator reads every state by its block's hash; name another node"
        return FAIL, f"state by block hash (EIP-1898) is refused: {why}", fix
    return OK, "takes block hashes (EIP-1898)", ""


async def _no_state(rpc: Any, block: Any, address: str) -> str:
    """Why the state after a block cannot be had; empty if it can."""
    from contracts import SLOT0
    from rpc import Refusal

    (answer,) = await rpc.batch([SLOT0.call(address, block.hash)], refusable=True)
    return f"{answer!s:.100}" if isinstance(answer, Refusal) and not answer.reverted else ""


async def _look_at_logs(rpc: Any, head: Any, address: str) -> tuple[str, str, str]:
    for blocks in (ranges := [n for n in LOG_RANGES if n <= head.number + 1]):
        span = {"fromBlock": hex(head.number - blocks + 1), "toBlock": hex(head.number)}
        (answer,) = await rpc.batch([("eth_getLogs", [span | {"address": address}])], refusable=True)
        if isinstance(answer, list):
            few = blocks < GOOD_LOG_RANGE and blocks != ranges[0]
            fix = "catching up after a stop takes long with it; name one that gives more" if few else ""
            return WARN if few else OK, f"eth_getLogs gives {blocks} blocks at a time", fix
    return FAIL, f"eth_getLogs is refused: {answer!s:.100}", "name another node, this one gives no events"


async def _look_at_batches(rpc: Any, head: Any, address: str) -> tuple[str, str, str]:
    await rpc.batch([("eth_chainId", [])] * ENOUGH_CALLS, refusable=True)
    most = min(rpc.endpoints[0].most_calls, ENOUGH_CALLS)  # it is halved until the node takes it
    fix = "a snapshot of a pool takes up to 700 calls; name a node that takes more" if most < GOOD_BATCH else ""
    return WARN if fix else OK, f"takes {most} calls in a request", fix


async def _look_back(rpc: Any, head: Any, address: str) -> tuple[str, str, str]:
    """How old a state it still has."""
    from contracts import header_call, read_header

    back = min(1000, head.number)
    (past,) = map(read_header, await rpc.batch([header_call(head.number - back)]))
    pace = max(head.time - past.time, 1) / max(back, 1)  # seconds a block
    for seconds, age in ((HOUR, "an hour"), (DAY, "a day")):
        if (number := head.number - round(seconds / pace)) < 0:
            return OK, f"the chain is younger than {age}", ""
        (block,) = map(read_header, await rpc.batch([header_call(number)]))
        if why := await _no_state(rpc, block, address):
            what = f"the state of {age} ago is gone ({why})"
            if seconds == DAY:
                return OK, f"{what}: enough for rounds, an audit against the chain needs an archive node", ""
            return WARN, what, "rounds that were open at a stop may be lost; a node with more history keeps them"
    return OK, "has the state of a day ago", ""


async def check_agreement(heads: list[NodeHead], confirmations: int) -> list[Finding]:
    """Whether the nodes are of one chain, and of one opinion about a block that all of them should have.

    Args:
        heads: of the nodes.
        confirmations: how far below the lowest head that block is.
    """
    from contracts import header_call, read_header
    from rpc import RpcError

    if len({head.chain_id for head in heads}) > 1:
        said = ", ".join(f"{head.name} {head.chain_id}" for head in heads)
        return [Finding(FAIL, f"the nodes are of different chains ({said})", "leave the wrong ones out")]
    number, hashes = max(0, min(head.block.number for head in heads) - confirmations), []
    for head in heads:
        try:
            async with _open([head.url]) as rpc:
                hashes.append(read_header((await rpc.batch([header_call(number)]))[0]).hash)
        except RpcError as error:
            hashes.append(f"{error!s:.100}")
    if len(set(hashes)) == 1:
        return [Finding(OK, f"all {len(heads)} nodes have the same block {number}")]
    said = ", ".join(f"{head.name} {what}" for head, what in zip(heads, hashes, strict=True))
    fix = "one of them is wrong or of another fork; compare with a block explorer and leave it out"
    return [Finding(FAIL, f"the nodes disagree about block {number} ({said})", fix)]


async def check_pool(
    urls: list[str], pool: str, manager: str | None, vault: str | None, executes: bool
) -> list[Finding]:
    """What the contracts say of the pool, its oracle, the position manager and the vault.

    Args:
        urls: of nodes that answer.
        pool, manager, vault: addresses; None for the chain's usual manager, and for no vault.
        executes: whether an executor bot will be asked, which needs the oracle.
    """
    from contracts import SLOT0, Function, Malformed, describe, header_call, read_header, read_vault
    from market import MarketError
    from rpc import Refusal, RpcError

    observe = Function("observe(uint32[])", "int56[]", "uint160[]")
    allowance = Function("allowance(address,address)", "uint256")
    found = []
    try:
        async with _open(urls) as rpc:
            contract = await describe(rpc, pool, manager)
            pair = contract.pair
            at = read_header((await rpc.batch([header_call("latest")]))[0]).hash
            what = (
                f"{pair.token0.symbol}/{pair.token1.symbol}, fee {pair.fee / 10_000:g} %, spacing {pair.tick_spacing}"
            )
            found.append(Finding(OK, f"pool {pool}: {what}"))

            slot0, seen = await rpc.batch(
                [SLOT0.call(pool, at), observe.call(pool, at, [ORACLE_SECONDS, 0])], refusable=True
            )
            if isinstance(seen, Refusal):
                short = f"its oracle does not reach back {ORACLE_SECONDS // 60} minutes ({seen!s:.80})"
                fix = "anybody can call increaseObservationCardinalityNext on it once, then wait"
                fix += "; the executor refuses every decision until then" if executes else ""
                found.append(Finding(FAIL if executes else WARN, f"pool {pool}: {short}", fix))
            else:
                (then, now), _ = observe.read(seen)
                spot = int.from_bytes(bytes.fromhex(slot0[2 + 64 : 2 + 128]), signed=True)
                said = f"average tick of {ORACLE_SECONDS // 60} minutes {(now - then) // ORACLE_SECONDS}, now {spot}"
                found.append(Finding(OK, f"pool {pool}: oracle, {said}"))

            if not contract.manager:
                fix = "name it with --manager 0x..., else the vault's positions are not seen"
                found.append(Finding(FAIL, f"no position manager is known on chain {pair.chain_id}", fix))
            else:
                found.append(Finding(OK, f"position manager {contract.manager}"))
            if vault is None:
                found.append(Finding(WARN, "no vault is named: no job can be made for it", "--vault 0x..."))
                return found
            positions, idle = await read_vault(rpc, contract, vault, at)
            working = sum(position.liquidity > 0 for position in positions)
            amounts = [
                f"{amount / 10**token.decimals:.6g} {token.symbol}"
                for amount, token in zip(idle, (pair.token0, pair.token1), strict=True)
            ]
            what = f"vault {vault}: {len(positions)} positions in this pool, {working} with liquidity, "
            what += f"idle {' and '.join(amounts)}"
            empty = not working and not any(idle)
            fix = "its rounds are skipped as empty; is it the right address, on this chain?" if empty else ""
            found.append(Finding(WARN if empty else OK, what, fix))
            if executes and contract.manager:
                tokens, manager = (pair.token0, pair.token1), contract.manager
                answers = await rpc.batch([allowance.call(token.address, at, vault, manager) for token in tokens])
                for token, have, answer in zip(tokens, idle, answers, strict=True):
                    (allowed,) = allowance.read(answer) or (0,)
                    what = f"vault {vault}: the position manager may take its {token.symbol}"
                    if allowed <= have:
                        what = f"{what.replace('may take', 'may not take')}, {allowed} of {have} base units idle"
                        fix = "the bot refuses to mint; python executor.py approve --yes mends it"
                        found.append(Finding(WARN, what, fix))
                    else:
                        found.append(Finding(OK, what))
    except MarketError as error:
        what, _, fix = str(error).partition("; ")
        found.append(Finding(FAIL, what, fix or "name the right one with --pool, --manager, --vault"))
    except (Malformed, TypeError, ValueError) as error:
        found.append(Finding(FAIL, f"pool {pool}: {error!s:.200}", "check the addresses, or name another node"))
    except RpcError as error:
        found.append(Finding(FAIL, f"pool {pool}: {error}", "name a node that answers with --rpc"))
    return found


def check_executor_key(options: argparse.Namespace) -> Iterator[Finding]:
    """Whether there is a key for the executor bot that nobody else can read, here or on its way."""
    if _in_the_clear(options.executor_url):
        fix = "use https, or an SSH or VPN tunnel that ends on loopback"
        yield Finding(WARN, f"the executor's key travels in the clear to {masked_url(options.executor_url)}", fix)
    try:
        key = read_executor_key(options)
    except UserError as error:
        yield Finding(FAIL, f"the executor's key: {error}")
        return
    if key is None:
        fix = "name its file with --executor-key-file, or set EXECUTOR_API_KEY"
        yield Finding(FAIL, "the executor's key is not given", fix)
    else:
        name = "executor_key" if options.executor_key else "executor_key_file"
        yield Finding(OK, f"the executor's key is given ({options.sources[name].name})")


def _in_the_clear(url: str) -> bool:
    """Whether others may read what is sent there."""
    parts = urlsplit(url)
    try:
        return parts.scheme == "http" and not ipaddress.ip_address(parts.hostname).is_loopback
    except ValueError:
        return parts.hostname != "localhost"


async def check_executor(options: argparse.Namespace) -> list[Finding]:
    """Whether the executor bot answers, is of the same pool and vault, takes the key, and will send.

    The key is shown to a bot of this pool and vault alone, as the validator will do, and never in the clear.
    """
    import aiohttp

    url = options.executor_url
    name, fix = f"executor {masked_url(url)}", "start it (python executor.py serve), or correct --executor-url"
    try:
        status, raw = await _get(f"{url}/health")
        said = json.loads(raw)
        if status != 200 or not isinstance(said, dict):
            raise ValueError
        found = [
            Finding(FAIL, f"{name}: it is of {what} {str(said.get(what))[:60]!r}, not {wanted}", "name the right bot")
            for what, wanted in (("pool", options.pool), ("vault", options.vault))
            if wanted and said.get(what) != wanted
        ]
        if said.get("live") is not True:
            found.append(Finding(WARN, f"{name}: a dry run, it carries nothing out", "start it with --live"))
        if said.get("paused"):
            found.append(Finding(WARN, f"{name}: paused, it carries nothing out", "python executor.py resume"))
        if not _in_the_clear(url) and FAIL not in [finding.level for finding in found]:
            with suppress(UserError):  # told by check_executor_key
                if key := read_executor_key(options):
                    status, _ = await _get(f"{url}/orders/doctor", {"Authorization": f"Bearer {key.reveal()}"})
                    if status != 404:
                        what = f"{name}: it does not take the key, HTTP {status}"
                        found.append(Finding(FAIL, what, "give both the same, the first line of --executor-key-file"))
    except TimeoutError:
        return [Finding(FAIL, f"{name}: no answer within {NODE_SECONDS} s", fix)]
    except (ValueError, RecursionError):
        return [Finding(FAIL, f"{name}/health: HTTP {status}, {raw[:60]!r}", fix)]
    except (aiohttp.ClientError, OSError) as error:
        return [Finding(FAIL, f"{name}: {getattr(error, 'strerror', None) or error}", fix)]
    return found or [Finding(OK, f"{name} answers, is live, and is of this pool and vault")]


async def _get(url: str, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
    """Status and the beginning of the body."""
    import aiohttp

    async with (
        asyncio.timeout(NODE_SECONDS),
        aiohttp.ClientSession(trust_env=False) as session,
        session.get(url, headers=headers, allow_redirects=False) as reply,
    ):
        return reply.status, await reply.content.read(MAX_HEALTH_BYTES)


# ---------------------------------------------------------------------------------------------------------------------
# The command


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command's options; those that `validator.py` has too are only set when given."""
    suppress = argparse.SUPPRESS
    parser.add_argument("--dir", default=suppress, help="folder of the databases (default: local, or netuid-N)")
    parser.add_argument("--db", default=suppress, metavar="FILE", help="jobs database (default: DIR/validator.sqlite3)")
    parser.add_argument(
        "--port", type=int, default=DEFAULT_PORT, help=f"where a miner would listen (default: {DEFAULT_PORT})"
    )
    add_chain_options(parser)
    add_market_options(parser)


def examine(folder: Path, jobs: Path, port: int) -> Iterator[Finding]:
    """All checks.

    Args:
        folder: of the local subnet.
        jobs: the jobs database; the pool events' is beside it.
        port: of a miner.
    """
    yield from check_python()
    yield from check_packages(Path(__file__).with_name("requirements.txt"))
    yield from check_port(port)
    yield from check_clock(folder / "chain.sqlite3")
    yield from check_folder(folder)
    try:
        from local import MIGRATIONS
        from store import EVENTS_SCHEMA, JOBS_SCHEMA

        versions = len(JOBS_SCHEMA), len(EVENTS_SCHEMA), len(MIGRATIONS)
    except (ImportError, TypeError) as error:  # TypeError: of a Python too old for its dataclasses
        yield Finding(WARN, f"the databases' versions are not compared: {error}", "mend the lines above first")
        versions = None, None, None
    events = jobs.with_name(f"{jobs.stem}.events.sqlite3")
    yield from check_database("jobs database", jobs, versions[0])
    yield from check_database("events database", events, versions[1])
    yield from check_database("chain ledger", folder / "chain.sqlite3", versions[2])


def _all(options: argparse.Namespace) -> Iterator[Finding]:
    problem = None
    try:
        if not hasattr(options, "sources"):
            resolve(options)
    except UserError as error:
        problem = Finding(FAIL, str(error))
    netuid, database = getattr(options, "netuid", None), getattr(options, "db", None)
    folder = Path(getattr(options, "dir", None) or ("local" if netuid is None else f"netuid-{netuid}"))
    yield from examine(folder, Path(database) if database else folder / "validator.sqlite3", options.port)
    if problem:
        yield problem
    else:
        yield from check_subnet(options)
        yield from check_market(options)


def report(options: argparse.Namespace) -> int:
    """Print all findings; returns the exit code."""
    levels = []
    for finding in _all(options):
        levels.append(finding.level)
        print(f"{finding.level:5}{finding.what}" + (f"; {finding.fix}" if finding.fix else ""), flush=True)
    print(f"{levels.count(FAIL)} FAIL, {levels.count(WARN)} warn, {levels.count(OK)} ok")
    return 1 if FAIL in levels else 0


def main(argv: list | None = None) -> int:
    parser = argparse.ArgumentParser(prog="doctor.py", description="What is needed to run, each with its fix.")
    add_options(parser)
    return report(parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
