"""The doctor on what others answer: the subnet's chain and the wallet on it, a real market, the executor bot.

Needs only the standard library to say what is missing. Read next: `nodes.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import json
import logging
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from doctor.machine import FAIL, OK, WARN, Finding, judged
from runtime.options import is_local, masked_url
from runtime.passwords import check_own, read_executor_key, read_password
from runtime.process import UserError

CHAIN_SECONDS = 90  # for all that is asked of it; dialing a public endpoint takes several
GOOD_BALANCE_RAO = 10_000_000  # free TAO that pays the fees of some hundred writes
RAO = 10**9
BOT_SECONDS = 10  # for one question to an executor bot
MAX_HEALTH_BYTES = 64 << 10


def check_subnet(options: argparse.Namespace) -> Iterator[Finding]:
    """Whether the wallet can be used, and what the chain says of it, with the settings of `add_chain_options`."""
    if is_local(options):
        yield Finding(OK, "no subnet is named (--netuid): everything stays on this machine")
        return
    try:
        from chain.base import ChainError
        from chain.opening import network
        from chain.wallets import load_wallet
    except (ImportError, SyntaxError, TypeError) as error:
        yield Finding(WARN, f"wallet and chain are not checked: {error}", "mend the lines above first")
        return
    folder = Path(options.wallet_path) / options.wallet
    try:
        password = read_password(options)
        unlock = password is not None and (folder / "coldkey").exists()
        wallet = load_wallet(options.wallet, options.wallet_hotkey, str(folder.parent), password, unlock)
    except (UserError, ChainError) as error:
        fix = "name it with --wallet, --wallet-hotkey, --wallet-path, or create it: btcli wallet create"
        yield Finding(FAIL, f"wallet {options.wallet}, hotkey {options.wallet_hotkey}: {error}", fix)
        return
    what = f"wallet {options.wallet}: hotkey {wallet.hotkey.ss58_address}, coldkey {wallet.coldkey_address}"
    yield Finding(OK, what + (", the password opens it" if unlock else ""))
    yield from check_key_files(folder / "coldkey", folder / "hotkeys" / options.wallet_hotkey)
    place = options.network or masked_url(options.chain_endpoint)

    async def ask() -> list[Finding]:
        async with asyncio.timeout(CHAIN_SECONDS):
            async with network(options, wallet) as (subnet, _):
                return await check_chain(subnet, place)

    try:
        yield from asyncio.run(ask())
    except (ChainError, TimeoutError) as error:
        reason = str(error) or f"no answer within {CHAIN_SECONDS} s"
        fix = "look at the connection, --network and --netuid, or name another node with --chain-endpoint"
        yield Finding(FAIL, f"chain {place}: {reason}", fix)


def check_key_files(*paths: Path) -> Iterator[Finding]:
    """Whether others on this machine own or can read what signs."""
    for path in paths:
        try:
            with open(path, "rb") as file:
                check_own(file.fileno(), f"key file {path}", path)
        except UserError as error:
            what, _, fix = str(error).partition("; run: ")
            yield Finding(WARN, what, fix)
        except OSError:  # the wallet was opened: it needs none that is not there
            pass


async def check_chain(chain, place: str) -> list[Finding]:
    """What a chain says of the wallet it was opened with: registration, permit, stake, and free TAO for fees."""
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
        permit = f"validator permit on {subnet}"
        what = permit if me.permit else f"no {permit}: weights of this hotkey are not taken"
        fix = "a miner needs none; a validator needs more stake than the others without one"
        found.append(judged(me.permit, what, fix))
        fix = "a miner needs none; a validator stakes with btcli stake add"
        found.append(judged(me.stake_rao > 0, f"stake {me.stake_rao / RAO:.4f} alpha on the hotkey", fix))
    if balance is not None:
        fix = f"keep {GOOD_BALANCE_RAO / RAO} TAO there, fees are taken from it"
        what = f"free balance of the coldkey: {balance / RAO:.4f} TAO"
        found.append(judged(balance >= GOOD_BALANCE_RAO, what, fix))
    return found


def check_market(options: argparse.Namespace) -> Iterator[Finding]:
    """Whether a real market could be opened, with the settings of `add_market_options`, and the executor bot asked."""
    if not options.rpc:
        yield Finding(OK, "no node of a pool's chain is named (--rpc): the market is a model or a recording")
        return
    try:
        from doctor.nodes import check_chain_side  # it needs aiohttp and web3
    except (ImportError, SyntaxError, TypeError) as error:
        yield Finding(WARN, f"nodes, pool and executor are not checked: {error}", "mend the lines above first")
        return
    logging.getLogger("rpc").addHandler(logging.NullHandler())  # what it has to say is in the findings
    yield from asyncio.run(check_chain_side(options))
    if options.executor_url:
        yield from check_executor_key(options)
        yield from asyncio.run(check_executor(options))
    else:
        yield Finding(OK, "no executor bot is named (--executor-url): evaluation only, no live rounds")


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
    name, fix = f"executor {masked_url(url)}", "start it (python -m executor serve), or correct --executor-url"
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
            found.append(Finding(WARN, f"{name}: paused, it carries nothing out", "python -m executor resume"))
        if not _in_the_clear(url) and FAIL not in [finding.level for finding in found]:
            with suppress(UserError):  # told by check_executor_key
                if key := read_executor_key(options):
                    status, _ = await _get(f"{url}/orders/doctor", {"Authorization": f"Bearer {key.reveal()}"})
                    if status != 404:
                        what = f"{name}: it does not take the key, HTTP {status}"
                        found.append(Finding(FAIL, what, "give both the same, the first line of --executor-key-file"))
    except TimeoutError:
        return [Finding(FAIL, f"{name}: no answer within {BOT_SECONDS} s", fix)]
    except (ValueError, RecursionError):
        return [Finding(FAIL, f"{name}/health: HTTP {status}, {raw[:60]!r}", fix)]
    except (aiohttp.ClientError, OSError) as error:
        return [Finding(FAIL, f"{name}: {getattr(error, 'strerror', None) or error}", fix)]
    return found or [Finding(OK, f"{name} answers, is live, and is of this pool and vault")]


async def _get(url: str, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
    """Status and the beginning of the body."""
    import aiohttp

    async with (
        asyncio.timeout(BOT_SECONDS),
        aiohttp.ClientSession(trust_env=False) as session,
        session.get(url, headers=headers, allow_redirects=False) as reply,
    ):
        return reply.status, await reply.content.read(MAX_HEALTH_BYTES)
