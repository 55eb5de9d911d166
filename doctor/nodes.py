"""The doctor on a pool's chain: what its nodes can do, and what the contracts say of pool, manager and vault.

Read first: `network.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import NamedTuple

from doctor.machine import FAIL, OK, WARN, Finding, judged
from evm.abi import NULL_ADDRESS, Function, Header, Malformed, header_call, read_header
from evm.pool import BALANCE_OF, SLOT0, Contract, describe, read_state, read_vault
from evm.rpc import Refusal, Rpc, RpcError, open_rpc
from executor.readback import AVERAGE_SECONDS, OBSERVE
from executor.wallet import Wallet
from markets.base import MarketError

NODE_SECONDS = 10  # for one question to a node
SLOW_NODE_SECONDS = 1.0
STALE_HEAD_SECONDS, DEAD_HEAD_SECONDS = 60, 600  # of a chain's newest block; slow chains have one in 12 s
AHEAD_SECONDS = 15  # that a block may be ahead of this machine's clock
LOG_RANGES = (5000, 2000, 1000, 500, 200, 50, 10, 1)  # blocks of one eth_getLogs; the follower takes at most the first
GOOD_LOG_RANGE, GOOD_BATCH = 50, 100
ENOUGH_CALLS = 1000  # in one request; what a validator sends at most
HOUR, DAY = 3600, 86_400
ARRIVES = Function("arrives(address,uint256)", "uint256")  # as the pool itself would send it, with this in its place:
_SENDS = (  # code: balanceOf() of somebody before and after transfer() to them; returns the difference, or reverts
    "0x"
    "7f70a082310000000000000000000000000000000000000000000000000000000060005273c0ffee254729296a45a3885639"
    "ac7e10f9d5497960045260206040602460006004355afa507fa9059cbb000000000000000000000000000000000000000000"
    "0000000000000060605273c0ffee254729296a45a3885639ac7e10f9d5497960645260243560845260006000604460606000"
    "6004355af11560bc5760206060602460006004355afa506040516060510360005260206000f35b60006000fd"
)


async def check_chain_side(options: argparse.Namespace) -> list[Finding]:
    """What is found of all nodes, of whether they agree, and of the pool if one is named."""
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
    """A node's host, address, chain id, and its newest block, an `abi.Header`."""

    name: str
    url: str
    chain_id: int
    block: Header


def _open(urls: Sequence[str]) -> AbstractAsyncContextManager[Rpc]:
    return open_rpc(urls, total_seconds=NODE_SECONDS, attempt_seconds=NODE_SECONDS)


async def check_node(url: str, pool: str | None) -> tuple[list[Finding], NodeHead | None]:
    """What a node can do of what a validator asks of it, and where its chain is; it is named by its host alone."""
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
        what = f"node {name}: chain {head.chain_id}, block {head.block.number}, answers in {taken * 1000:.0f} ms"
        fix, age = "every round takes dozens of requests; name a faster one first", time.time() - head.block.time
        found.append(judged(taken <= SLOW_NODE_SECONDS, what, fix))
        if age < -AHEAD_SECONDS:
            what, fix = f"{-age:.0f} s ahead of this clock", "synchronise the clock of this machine"
        else:
            what = f"{max(age, 0):.0f} s old"
            fix = "it is behind, or the chain stands; name a node that keeps up" if age > STALE_HEAD_SECONDS else ""
        level = FAIL if age > DEAD_HEAD_SECONDS else WARN if fix else OK
        found.append(Finding(level, f"node {name}: its newest block is {what}", fix))
        for look in (_look_by_hash, _look_at_logs, _look_at_batches, _look_back):
            try:
                finding = await look(rpc, head.block, pool or NULL_ADDRESS)
            except (RpcError, TypeError, ValueError) as error:
                finding = Finding(FAIL, f"{error!s:.200}", elsewhere)
            found.append(finding._replace(what=f"node {name}: {finding.what}"))
        return found, head


async def _look_by_hash(rpc: Rpc, head: Header, address: str) -> Finding:
    if why := await _no_state(rpc, head, address):
        fix = "it cannot be used, a validator reads every state by its block's hash; name another node"
        return Finding(FAIL, f"state by block hash (EIP-1898) is refused: {why}", fix)
    return Finding(OK, "takes block hashes (EIP-1898)")


async def _no_state(rpc: Rpc, block: Header, address: str) -> str:
    """Why the state after a block cannot be had; empty if it can."""
    (answer,) = await rpc.batch([SLOT0.call(address, block.hash)], refusable=True)
    return f"{answer.message:.100}" if isinstance(answer, Refusal) and not answer.reverted else ""


async def _look_at_logs(rpc: Rpc, head: Header, address: str) -> Finding:
    for blocks in (ranges := [n for n in LOG_RANGES if n <= head.number + 1]):
        span = {"fromBlock": hex(head.number - blocks + 1), "toBlock": hex(head.number)}
        (answer,) = await rpc.batch([("eth_getLogs", [span | {"address": address}])], refusable=True)
        if isinstance(answer, list):
            fix = "catching up after a stop takes long with it; name one that gives more"
            enough = blocks >= GOOD_LOG_RANGE or blocks == ranges[0]
            return judged(enough, f"eth_getLogs gives {blocks} blocks at a time", fix)
    return Finding(
        FAIL, f"eth_getLogs is refused: {answer.message:.100}", "name another node, this one gives no events"
    )


async def _look_at_batches(rpc: Rpc, head: Header, address: str) -> Finding:
    await rpc.batch([("eth_chainId", [])] * ENOUGH_CALLS, refusable=True)
    most = min(rpc.endpoints[0].most_calls, ENOUGH_CALLS)  # it is halved until the node takes it
    fix = "a snapshot of a pool takes up to 700 calls; name a node that takes more"
    return judged(most >= GOOD_BATCH, f"takes {most} calls in a request", fix)


async def _look_back(rpc: Rpc, head: Header, address: str) -> Finding:
    """How old a state it still has."""
    back = min(1000, head.number)
    (past,) = map(read_header, await rpc.batch([header_call(head.number - back)]))
    pace = max(head.time - past.time, 1) / max(back, 1)  # seconds a block
    for seconds, age in ((HOUR, "an hour"), (DAY, "a day")):
        if (number := head.number - round(seconds / pace)) < 0:
            return Finding(OK, f"the chain is younger than {age}")
        (block,) = map(read_header, await rpc.batch([header_call(number)]))
        if why := await _no_state(rpc, block, address):
            what = f"the state of {age} ago is gone ({why})"
            what += ": enough for rounds, an audit against the chain needs an archive node" if seconds == DAY else ""
            fix = "rounds that were open at a stop may be lost; a node with more history keeps them"
            return judged(seconds == DAY, what, fix)
    return Finding(OK, "has the state of a day ago")


async def check_agreement(heads: list[NodeHead], confirmations: int) -> list[Finding]:
    """Whether the nodes are of one chain, and agree about the block so far below the lowest head."""
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
        manager, vault: None for the chain's usual manager, and for no vault.
        executes: whether an executor bot will be asked, which needs the oracle.
    """
    found = []
    try:
        async with _open(urls) as rpc:
            async for finding in _look_at_contracts(rpc, await describe(rpc, pool, manager), vault, executes):
                found.append(finding)
    except MarketError as error:
        what, _, fix = str(error).partition("; ")
        found.append(Finding(FAIL, what, fix or "name the right one with --pool, --manager, --vault"))
    except (Malformed, TypeError, ValueError) as error:
        found.append(Finding(FAIL, f"pool {pool}: {error!s:.200}", "check the addresses, or name another node"))
    except RpcError as error:
        found.append(Finding(FAIL, f"pool {pool}: {error}", "name a node that answers with --rpc"))
    return found


async def _look_at_contracts(rpc: Rpc, contract: Contract, vault: str | None, executes: bool) -> AsyncIterator[Finding]:
    pair, at = contract.pair, read_header((await rpc.batch([header_call("latest")]))[0]).hash
    what = f"{pair.token0.symbol}/{pair.token1.symbol}, fee {pair.fee / 10_000:g} %, spacing {pair.tick_spacing}"
    yield Finding(OK, f"pool {pair.pool_address}: {what}{contract.remark}")
    yield await _look_at_oracle(rpc, contract, at, executes)
    for token in (pair.token0, pair.token1):
        sent, arrived = await _send_some(rpc, contract, token.address, at)
        if arrived is not None and arrived != sent:
            what = f"token {token.symbol} takes a fee on transfer: of {sent} base units {arrived} arrive"
            yield Finding(FAIL, what, "no position can be minted of it; choose a pool of other tokens")
    what, _, fix = contract.no_manager.partition("; ")
    here = Finding(OK, f"position manager {contract.manager}")
    yield here if contract.manager else Finding(FAIL, what, fix)
    if vault is None:
        yield Finding(WARN, "no vault is named: no job can be made for it", "--vault 0x...")
        return
    positions, idle = await read_vault(rpc, contract, vault, at)
    tokens, working = (pair.token0, pair.token1), sum(position.liquidity > 0 for position in positions)
    amounts = [f"{amount / 10**t.decimals:.6g} {t.symbol}" for amount, t in zip(idle, tokens, strict=True)]
    what = f"vault {vault}: {len(positions)} positions in this pool, {working} with liquidity"
    if staked := ", ".join(str(position.token_id) for position in positions if position.staked):
        what += f", staked in the gauge: {staked}"
    fix = "its rounds are skipped as empty; is it the right address, on this chain?"
    yield judged(bool(working or any(idle)), f"{what}, idle {' and '.join(amounts)}", fix)
    if executes and contract.manager:
        allowances = await Wallet(rpc, contract, vault, None, 0, Path()).allowances(at)
        for token, have, allowed in zip(tokens, idle, allowances, strict=True):
            what = f"take its {token.symbol}"
            if allowed <= have:
                what = f"not {what}, {allowed} of {have} base units idle"
            fix = "the bot refuses to mint; python -m executor approve --yes mends it"
            yield judged(allowed > have, f"vault {vault}: the position manager may {what}", fix)


async def _send_some(rpc: Rpc, contract: Contract, token: str, at: str) -> tuple[int, int | None]:
    """Of how much of a token that the pool sends how much arrives; None where the node cannot try that."""
    pool = contract.pair.pool_address
    (balance,) = BALANCE_OF.read((await rpc.batch([BALANCE_OF.call(token, at, pool)]))[0])
    if not (amount := balance // 100):
        return 0, None
    method, parameters = ARRIVES.call(pool, at, token, amount)
    (answer,) = await rpc.batch([(method, [*parameters, {pool: {"code": _SENDS}}])], refusable=True)
    found = ARRIVES.read(answer)
    return amount, found[0] if found else None


async def _look_at_oracle(rpc: Rpc, contract: Contract, at: str, executes: bool) -> Finding:
    pool = contract.pair.pool_address
    (seen,) = await rpc.batch([OBSERVE.call(pool, at, [AVERAGE_SECONDS, 0])], refusable=True)
    minutes = f"{AVERAGE_SECONDS // 60} minutes"
    if isinstance(seen, Refusal):
        fix = "anybody can call increaseObservationCardinalityNext on it once, then wait"
        fix += "; the executor refuses every decision until then" if executes else ""
        what = f"its oracle does not reach back {minutes} ({seen.message:.80})"
        return Finding(FAIL if executes else WARN, f"pool {pool}: {what}", fix)
    (then, now), _ = OBSERVE.read(seen)
    spot = (await read_state(rpc, contract, at, True, set())).tick
    said = f"average tick of {minutes} {(now - then) // AVERAGE_SECONDS}, now {spot}"
    return Finding(OK, f"pool {pool}: oracle, {said}")
