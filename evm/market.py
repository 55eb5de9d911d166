"""A pool on a real chain as a market: answers with what the contracts said, and waits for their blocks.

    async with Web3Market.open(["https://..."], "0xd0b5...", "pool.sqlite3", vaults=["0x..."]) as market: ...

Pool and vault are read from the contracts at every snapshot; events come from the file that `follower.py` fills.
Read next: `follower.py`, `pool.py`, `__main__.py`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import astuple, replace
from pathlib import Path

from evm.abi import Receipt, address, integer, read_receipt
from evm.event_file import SCHEMA, EventFile
from evm.events import NamedToken
from evm.follower import CONFIRMATIONS, Follower
from evm.pool import State, TokenPosition, describe, read_liquidity, read_pool, read_vault
from evm.rpc import RpcError, open_rpc
from liquidity.events import Event
from liquidity.executions import EXECUTION_SECONDS, Execution, Order, Report, Sent
from liquidity.replay import Snapshot, VaultPosition
from liquidity.rounds import plan
from markets.base import MarketError, MarketGap
from protocol import ASK_SECONDS, Block, Code
from runtime.db import connect

POLL_SECONDS = 1.0
REPORT_SECONDS = 60.0  # past an order's deadline: until its bot must know how it ended

Amounts = tuple[int, int]  # of token0 and token1, base units
Place = Callable[[Order, float], Awaitable[Report]]


@asynccontextmanager
async def _as_market_errors() -> AsyncIterator[None]:
    try:
        yield
    except RpcError as error:
        raise MarketError(f"the chain cannot be asked: {error}") from error


class Web3Market:
    """A pool on a chain; implements `markets.base.Market`. Made by `Web3Market.open`.

    A vault is an address: its positions are those that it holds as tokens of the position manager, its idle tokens are
    its balances. In snapshots and events they belong to the owner VAULT, or `VAULT#TOKEN` where it has another
    in the same range; all others belong to whom the pool names, mostly the position manager.
    """

    settle_seconds = ASK_SECONDS + EXECUTION_SECONDS
    full_speed = False

    def __init__(self, follower: Follower, clock: Callable[[], float] = time.time, place: Place | None = None):
        self._follower, self._rpc, self.contract = follower, follower.rpc, follower.contract
        self._clock, self._place = clock, place
        self.read_only = "" if place else "no executor bot moves this vault; --executor-url names one"
        self.first, self.pair = follower.first, self.contract.pair
        self._reading, self._read = asyncio.Lock(), (None, None)  # the last block after which all was read, and that
        pair, kind, terms, remark = self.pair, "Uniswap V3", f"{self.pair.fee / 10_000:g} %", ""
        if self.contract.slipstream:
            kind, terms = "Slipstream", f"spacing {pair.tick_spacing}"
            remark = "; staked positions are scored as if unstaked, rewards are not"
        tokens = f"{pair.token0.symbol}/{pair.token1.symbol}"
        self.label = f"{kind} pool {pair.pool_address} ({tokens}, {terms}) on chain {pair.chain_id}{remark}"

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        urls: Sequence[str],
        pool_address: str,
        path: str | Path,
        *,
        first: int | None = None,
        vaults: Iterable[str] = (),
        manager: str | None = None,
        operators: Collection[str] | None = (),
        confirmations: int = CONFIRMATIONS,
        poll_seconds: float = POLL_SECONDS,
        following: bool = True,
        clock: Callable[[], float] = time.time,
        place: Place | None = None,
        **limits: float,
    ) -> AsyncIterator[Web3Market]:
        """Open a pool, and follow it in the background until the end.

        Args:
            urls: of the chain's RPC endpoints, in order of preference.
            path: the SQLite file; made if missing, else reading goes on where it stopped.
            first: events are wanted from the block after this one; None for the chain's head.
            vaults: addresses whose positions will be asked for, before anything happens to them.
            manager: the position manager's address; None for the chain's usual one.
            operators: who besides a vault mints positions that count as its own; None: whoever did.
            confirmations: how many blocks must stand on top of one before it is believed.
            following: whether to follow; else the caller calls `catch_up`.
            clock: unix seconds; the chain's blocks follow it.
            place: gives an order to who carries it out, for so many seconds at most, and returns the final report
                (`executor.client.place`); without it the market is read only.
            limits: see `rpc.Rpc`.

        Raises:
            MarketError: not a pool, another pool's file, or the chain cannot be asked.
            StoreError: the file cannot be used.
        """
        async with AsyncExitStack() as stack:
            async with _as_market_errors():
                rpc = await stack.enter_async_context(open_rpc(urls, **limits))
                db = await stack.enter_async_context(connect(path, SCHEMA))
                contract = await describe(rpc, pool_address, manager)
                vaults = {address(vault, "vault") for vault in vaults}
                if vaults and not contract.manager:
                    raise MarketError(contract.no_manager)
                follower = Follower(rpc, EventFile(db), contract, confirmations, operators)
                await follower.begin(first, vaults, path)
            task = asyncio.create_task(follower.follow(poll_seconds)) if following else None
            try:
                yield cls(follower, clock, place)
            finally:
                if task:
                    task.cancel()
                    with suppress(asyncio.CancelledError):
                        await task

    async def head(self) -> Block:
        return self._follower.tip.block

    async def now(self) -> int:
        return int(self._clock())

    def _check_reached(self, number: int) -> None:
        if number > (head := self._follower.tip.block.number):
            raise MarketError(f"block {number} is above the head {head}: reach it first")

    async def block(self, number: int) -> Block:
        self._check_reached(number)
        async with _as_market_errors():
            return await self._follower.block(number)

    async def first_block_at(self, time_seconds: int) -> Block:
        low, high = await self.block(self.first), self._follower.tip.block
        if time_seconds > high.time:
            raise MarketError(f"time {time_seconds} is after the head's {high.time}: reach it first")
        halve = False  # every other time: by proportion alone it may take as many steps as there are blocks
        while low.time < time_seconds and high.number - low.number > 1:
            part = 0.5 if halve else (time_seconds - low.time) / (high.time - low.time)
            halve = not halve
            guess = low.number + round((high.number - low.number) * part)
            block = await self.block(min(max(guess, low.number + 1), high.number - 1))
            low, high = (block, high) if block.time < time_seconds else (low, block)
        return high if low.time < time_seconds else low

    async def reach(self, number: int) -> Block:
        return await self._until(lambda head: head.number >= number)

    async def reach_time(self, time_seconds: int) -> Block:
        return await self._until(lambda head: head.time >= time_seconds)

    async def reach_first(self, number: int, time_seconds: int) -> Block:
        return await self._until(lambda head: head.number >= number or head.time >= time_seconds)

    async def _until(self, reached: Callable[[Block], bool]) -> Block:
        async with self._follower.moved:
            await self._follower.moved.wait_for(lambda: reached(self._follower.tip.block))
        return self._follower.tip.block

    async def snapshot(self, vault: str, block: int) -> Snapshot:
        """As every market's; for the block after the head, whose time and hash are not known yet, those of the head."""
        vault = address(vault, "vault")
        before, tip = await self.block(block - 1), self._follower.tip
        at = before if block > tip.block.number else await self.block(block)
        async with _as_market_errors():
            snapshot, state = await self._read_pool(before)
            known = await self._follower.known(vault, before.number)
            held, idle = await self._follower.reader.patiently(read_vault, vault, before.hash, known)
        if before == tip.block:
            await self._follower.check(tip, snapshot, state)
            if self._follower.tip.block.number < tip.block.number:
                self._read = None, None  # one of the two is wrong, and it may be this
        async with _as_market_errors():
            names = await self._follower.name(vault, held, before)
        snapshot = replace(snapshot, block=block, block_time=at.time, block_hash=at.hash, vault_owner=vault)
        own = [(names[position.token_id], position) for position in held if position.token_id in names]
        return await self._with_vault(snapshot, own, idle)

    async def _read_pool(self, after: Block) -> tuple[Snapshot, State]:
        """All of the pool after a block; once for all jobs, which ask together: it is most of what a round costs."""
        async with self._reading:
            if self._read[0] != after:
                self._read = after, await self._follower.reader.patiently(read_pool, after)
            return self._read[1]

    async def _with_vault(
        self, snapshot: Snapshot, held: Sequence[tuple[NamedToken, TokenPosition]], idle: tuple[int, int]
    ) -> Snapshot:
        """A vault's positions and tokens; what burns released and nobody collected counts as idle.

        Staked ones begin without fees: they are scored as if they were unstaked at the snapshot.
        """
        positions = []
        for token, position in held:
            if position.staked:  # what an empty one is owed nobody can collect
                if position.liquidity:
                    inside = snapshot.open().fee_growth_inside(position.tick_lower, position.tick_upper)
                    positions.append(VaultPosition(*token, position.liquidity, *inside, 0, 0, staked=True))
                continue
            owed = released = position.tokens_owed0, position.tokens_owed1
            if position.liquidity:
                released = tuple(map(min, owed, await self._follower.file.released(token, snapshot.block)))
                left = owed[0] - released[0], owed[1] - released[1]
                growth = position.fee_growth_inside0_last_x128, position.fee_growth_inside1_last_x128
                positions.append(VaultPosition(*token, position.liquidity, *growth, *left))
            idle = idle[0] + released[0], idle[1] + released[1]
        return replace(snapshot, vault=tuple(positions), idle0=idle[0], idle1=idle[1])

    async def events(self, first: int, last: int) -> list[Event]:
        self._check_reached(last)
        if first <= self.first:
            raise MarketError(f"block {first}: events of this pool were read from block {self.first + 1} on")
        for began, ended, reason in self._follower.gaps:
            if began <= last and first <= ended:
                raise MarketGap(f"the events of blocks {began} to {ended} could not be had: {reason}")
        for began, ended in self._follower.replaced:
            if began < first <= ended + 1:
                raise MarketGap(f"blocks {began} to {ended} were replaced after they had been read (reorganisation)")
        return await self._follower.file.events(first, last)

    @asynccontextmanager
    async def participant(self) -> AsyncIterator[None]:
        yield

    async def execute(self, order: Order) -> Execution:
        """As every market's; waits until the order is final on the chain and its block has been read here."""
        if not self._place:
            raise MarketError(f"{self.label} cannot be changed: {self.read_only}")
        left = max(0.0, order.deadline - self._clock())
        report = await self._place(order, left + REPORT_SECONDS)
        if report.block:  # later than the deadline the contracts refuse it
            head = await self.reach_first(report.block, order.deadline + 1)
            if head.number < report.block:
                said = f"the executor bot says that {order.decision} was done in block {report.block}"
                raise MarketError(f"{said}, and block {head.number} is after its deadline {order.deadline}")
        keep, close, mint = plan(order.shown, order.desired)
        amounts = {name: astuple(getattr(report, name)) for name in ("before", "released", "fees", "paid", "after")}
        if report.block:
            amounts |= await self._without_old(order.vault, report.block, **amounts)
        return Execution(
            *(report.block or order.block_number + 1, order.vault, tuple(keep), tuple(close), tuple(mint)),
            **amounts,
            minted=tuple(map(astuple, report.minted)),
            sent=Sent(Code(report.code), *(getattr(report, name) for name in Sent.__slots__[1:])),
        )

    async def _without_old(
        self, vault: str, block: int, before: Amounts, released: Amounts, fees: Amounts, **_: Amounts
    ) -> dict[str, Amounts]:
        """What was released before of the positions that it collected from, and never paid, was idle, as it was shown.

        The bot cannot know: to the position manager it is owed like fees.
        """
        burnt = [event.args for event in await self._follower.file.events(block, block) if event.kind == "burn"]
        keys = {NamedToken(*args[:3]) for args in burnt if args[0].partition("#")[0] == vault}
        old = [await self._follower.file.released(key, block) for key in sorted(keys)]
        had = sum(amount for amount, _ in old), sum(amount for _, amount in old)
        earned = tuple(max(0, fee - amount) for fee, amount in zip(fees, had, strict=True))
        out = tuple(map(sum, zip(released, fees, (-had[0], -had[1]), (-earned[0], -earned[1]), strict=True)))
        return {"before": (before[0] + had[0], before[1] + had[1]), "released": out, "fees": earned}

    @_as_market_errors()
    async def ends(self, first: int, last: int, keys: Iterable[tuple]) -> tuple[Snapshot, Snapshot]:
        """The pool before `first`, with those of the positions `keys` that are there and without their fees of before,
        and the pool after `last`."""
        keys, at = sorted(keys), await self.block(first)
        (before, _), (after, _) = [await self._read_pool(await self.block(number)) for number in (first - 1, last)]
        held = zip(keys, await read_liquidity(self._rpc, self.contract, keys, before.block_hash), strict=True)
        inside = before.open().fee_growth_inside
        vault = tuple(VaultPosition(*key, amount, *inside(*key[1:]), 0, 0) for key, amount in held if amount)
        return replace(before, block=first, block_time=at.time, block_hash=at.hash, vault=vault), after

    @_as_market_errors()
    async def receipts(self, transactions: Sequence[str]) -> dict[str, Receipt | None]:
        """What became of transactions, by hash; None where the chain has no such one."""
        hashes = [hash_ for hash_ in transactions if hash_]
        found = await self._rpc.batch([("eth_getTransactionReceipt", [hash_]) for hash_ in hashes])
        return {hash_: raw and read_receipt(raw) for hash_, raw in zip(hashes, found, strict=True)}

    @_as_market_errors()
    async def transactions_of(self, sender: str, first: int, last: int) -> int:
        """How many transactions of an address are in these blocks."""
        counts = [("eth_getTransactionCount", [sender, hex(block)]) for block in (first - 1, last)]
        before, after = map(integer, await self._rpc.batch(counts))
        return after - before

    @_as_market_errors()
    async def catch_up(self, until: int | None = None, progress: Callable[[int], None] | None = None) -> None:
        """Where nobody follows in the background: see `Follower.catch_up`."""
        await self._follower.catch_up(until, progress)
