"""A live round's evidence held against the chain, as a node tells it.

    python validator.py audit all --rpc URL

Read first: `market.py`.
"""

from __future__ import annotations

import asyncio
import base64
import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from evm.abi import Receipt
from evm.market import Web3Market
from liquidity.events import Event
from liquidity.executions import Execution, execution_of
from liquidity.live import FLOWS, LiveInputs, own_events, play_live, sums_of
from liquidity.replay import Snapshot
from liquidity.rounds import RoundResult
from liquidity.tape import Tape
from protocol import MAX_QUERY_BYTES, Block, Code, JobSettings, RebalanceQuery
from wire.codec import decode, from_plain


async def audit_chain(
    evidence: dict[str, Any],
    urls: Sequence[str],
    manager: str | None = None,
    operators: Collection[str] = (),
    **limits: float,
) -> list[str]:
    """Hold a stored round against the chain: its snapshot, its events, and every block hash that miners were shown.

    Of a live round also each transaction, with what it did to the vault and what it cost, and whether anything else
    happened to the vault before the close. Returns what differs, each named; empty when all is as the chain has it.

    What burns released before the round and nobody had collected at its start is idle to a validator that saw them and
    owed to one that came later: idle and owed tokens are compared together, and a collect may be less than the chain's.
    Which of the vault's tokens in one range has the plain name depends on that as well: they count as one. A validator
    that follows other jobs' vaults, too, names their positions: they count as the position manager's, and how much of
    their collects was fees is not compared.

    Args:
        evidence: after `audit.checks.audit` found nothing wrong in it.
        urls: RPC endpoints that still have the state of the opening (an archive endpoint).
        manager: the position manager's address; None for the chain's usual one.
        operators: who besides the vault mints positions that count as its own; by rules version 1 all counted.
        limits: see `Rpc`.

    Raises:
        MarketError: the chain cannot be asked.
    """
    row = evidence["round"]
    if evidence["snapshot"] is None:
        return []  # the round never opened
    stored, played = from_plain(Snapshot, evidence["snapshot"]), row["close_block"] is not None
    opening, vault = stored.block, stored.vault_owner
    last = int(row["close_block"]) - 1 if played else opening
    queries = [decode(RebalanceQuery, base64.b64decode(ask["query"]), MAX_QUERY_BYTES) for ask in evidence["asks"]]
    shown = {(query.block_number, query.block_hash) for query in queries} | {(opening, row["opening_hash"])}
    executions = [execution_of(item["execution"]) for item in evidence["executions"]]
    with tempfile.TemporaryDirectory() as folder:
        path, vaults = Path(folder) / "audit.sqlite3", [vault] if vault else []
        limits |= {"confirmations": 0, "following": False, "manager": manager}
        limits["operators"] = None if evidence.get("rules_version") == 1 else operators
        async with Web3Market.open(urls, evidence["pool"], path, first=opening - 1, vaults=vaults, **limits) as market:
            await market.catch_up(last)
            blocks = {number: await market.block(number) for number, _ in shown}
            seen = await _see(market, vault, opening, last, executions, played)
            closing = await market.snapshot(vault, last + 1) if played and row["round_type"] == "live" else None
    wrong = [*_check_shown(shown, blocks), *_check_snapshot(stored, seen.opening)]
    wrong += _check_executions(executions, seen, played)
    if played:
        wrong += _check_events(evidence["events"], seen.events, vault, seen.manager)
    if closing:
        settings = from_plain(JobSettings, row["settings"])
        told = tuple(seen.events), "", tuple(executions), closing, evidence["rules_version"]
        inputs = LiveInputs(settings, seen.opening, last + 1, *told)
        wrong += _check_end(row, await asyncio.to_thread(play_live, inputs))
    return wrong


class _Seen(NamedTuple):
    """What the chain has of a round."""

    opening: Snapshot  # the pool with the vault
    events: list[Event]
    manager: str  # the position manager's address
    receipts: dict[str, Receipt | None]  # of the round's transactions
    others: bool  # whether the vault sent more than those, or nobody can tell


async def _see(
    market: Web3Market, vault: str, opening: int, last: int, executions: Sequence[Execution], played: bool
) -> _Seen:
    receipts = await market.receipts([one.sent.transaction for one in executions if one.sent])
    others = bool(executions) and (not played or len(receipts) < await market.transactions_of(vault, opening, last))
    snapshot, events = await market.snapshot(vault, opening), await market.events(opening, last)
    return _Seen(snapshot, events, market.contract.manager, receipts, others)


def _check_shown(shown: Iterable[tuple[int, str]], blocks: dict[int, Block]) -> Iterator[str]:
    for number, hash_ in sorted(shown):
        if blocks[number].hash != hash_:
            yield f"block {number}: the miners were shown {hash_}, the chain has {blocks[number].hash}"


def _check_snapshot(stored: Snapshot, found: Snapshot) -> Iterator[str]:
    theirs = _comparable(found)
    for name, mine in _comparable(stored).items():
        if mine != theirs[name]:
            yield f"snapshot.{name}: {mine}, the chain has {theirs[name]}"


def _check_executions(executions: Sequence[Execution], seen: _Seen, played: bool) -> Iterator[str]:
    events = own_events(Tape(seen.opening), seen.events)
    for n, one in enumerate(executions):
        if one.sent and one.sent.transaction:
            receipt, own = seen.receipts[one.sent.transaction], None
            if receipt and played:
                own = [event for event in events.get(one.block, ()) if event[:2] in receipt.places]
            for what in _check_receipt(one, receipt, own, seen.others):
                yield f"executions[{n}]: {what}"
        elif one.sent and one.sent.gas_used and not seen.others:
            yield f"executions[{n}]: gas_used {one.sent.gas_used}, the vault sent no other transaction"


def _check_events(stored: Iterable[Sequence], events: Iterable[Event], vault: str, manager: str) -> Iterator[str]:
    told = {(int(block), int(at)): (time, kind, *_unnamed(args)) for block, at, time, kind, args in stored}
    real = {event[:2]: (str(event.time), event.kind, *_unnamed(map(str, event.args))) for event in events}
    for place in sorted(told.keys() | real.keys()):
        mine, theirs = told.get(place), real.get(place)
        others = mine and mine[2] not in (vault, manager)
        if others and (theirs[2] == manager if theirs else mine[1] in ("collect", "write_off")):
            if mine[1] == "collect" or not theirs:
                continue
            mine = (*mine[:2], manager, *mine[3:])
        if theirs and theirs[1] == "collect" and (mine is None or _is_part(mine, theirs)):
            continue
        if _told(mine) != _told(theirs):
            yield f"events: block {place[0]} log {place[1]} is {mine}, the chain has {theirs}"


def _check_receipt(one: Execution, receipt: Receipt | None, own: list[Event] | None, others: bool) -> Iterator[str]:
    """What a transaction was and cost, and what the vault's own events in it say; `own` is None where nobody knows.

    Where the vault sent `others` as well, which failed or cancelled one, gas may be theirs too: they are not named.
    """
    sent = one.sent
    if receipt is None:
        yield f"transaction {sent.transaction} is not on the chain"
        return
    said = one.block, sent.code == Code.EXECUTED, one.vault, sent.gas_used, sent.gas_wei
    pairs = dict(zip(Receipt._fields[:5], zip(said, receipt, strict=False), strict=True))
    if own is not None and receipt.success:
        *flows, minted = sums_of(own)
        pairs |= {name: (getattr(one, name), real) for name, real in zip(FLOWS, flows, strict=True)}
        pairs["minted"] = sorted(one.minted), sorted(minted)
    for name, (mine, real) in pairs.items():
        if mine != real and not (others and name in ("gas_used", "gas_wei") and mine > real):
            yield f"{name} {mine}, transaction {sent.transaction} has {real}"


def _check_end(row: dict[str, Any], result: RoundResult) -> Iterator[str]:
    ends = (row["code"], row["detail"]), (result.code, result.detail)
    if ends[0] != ends[1]:
        said, shows = (" ".join(filter(None, end)) for end in ends)
        yield f"round: {said}; the chain shows {shows}"


def _unnamed(args: Iterable[str]) -> tuple[str, ...]:
    """An event's arguments without the number of the vault's token."""
    owner, *rest = args
    return owner.partition("#")[0], *rest


def _told(event: tuple | None) -> tuple | None:
    """An event without what its reader found out: call and fee of a Slipstream swap, for several may give its digits.

    The evidence's own were held against those digits when it was replayed. What is written off is fees or what burns
    released, as its reader knew of those.
    """
    if event and event[1] == "swap" and len(event) == 10:
        return *event[:2], *event[3:8], event[9]
    if event and event[1] == "write_off":
        return *event[:5], *(int(fees) + int(released) for fees, released in zip(event[5:7], event[7:], strict=True))
    return event


def _is_part(mine: tuple, theirs: tuple) -> bool:
    return mine[:5] == theirs[:5] and all(int(a) <= int(b) for a, b in zip(mine[5:], theirs[5:], strict=True))


def _comparable(snapshot: Snapshot) -> dict[str, Any]:
    """What two who read the same state at the same block must agree on."""
    owed = [(position.tokens_owed0, position.tokens_owed1) for position in snapshot.vault]
    return {name: getattr(snapshot, name) for name in Snapshot.__slots__} | {
        "vault": [replace(p, owner=p.owner.partition("#")[0], tokens_owed0=0, tokens_owed1=0) for p in snapshot.vault],
        "idle0": snapshot.idle0 + sum(amount for amount, _ in owed),
        "idle1": snapshot.idle1 + sum(amount for _, amount in owed),
    }
