"""The doctor on a real market: nodes, pool, vault, executor bot. Read next: `reach.py`."""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import json
import logging
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from doctor.finding import FAIL, OK, WARN, Finding
from runtime.options import masked_url
from runtime.passwords import read_executor_key
from runtime.process import UserError

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

        from evm import pool as contracts  # noqa: F401
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
    from evm.rpc import open_rpc

    return open_rpc(urls, total_seconds=NODE_SECONDS, attempt_seconds=NODE_SECONDS)


async def check_node(url: str, pool: str | None) -> tuple[list[Finding], NodeHead | None]:
    """What a node can do of what a validator asks of it; it is named by its host alone.

    Args:
        url: of the node.
        pool: whose state and logs are asked for; None for those of nobody.

    Returns:
        The findings, and where the node's chain is; None if it is of no use.
    """
    from evm.abi import header_call, read_header
    from evm.rpc import RpcError

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
    from evm.pool import SLOT0
    from evm.rpc import Refusal

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
    from evm.abi import header_call, read_header

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
    from evm.abi import header_call, read_header
    from evm.rpc import RpcError

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
    from evm.abi import Function, Malformed, header_call, read_header
    from evm.manager import read_vault
    from evm.pool import SLOT0, describe
    from evm.rpc import Refusal, RpcError
    from markets.base import MarketError

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
                        fix = "the bot refuses to mint; python -m executor approve --yes mends it"
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
