"""An order's way to the chain: held against the limits, planned, signed, sent, awaited, read back; at most once.

    bot = Executor(rpc, contract, journal, vault, account, Limits(), folder / "executor.pause", live=True)
    await bot.follow(1.0)                       # works on what `journal.accept` took in

The journal decides what is done next, so a process may be killed anywhere. At most one of an order's transactions can
succeed: those of one nonce exclude each other, and another nonce is used only after the transaction of the last one was
mined and had failed.
Read next: `rebalance.py`, `order_journal.py`.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from evm.abi import Function, Malformed, header_call, integer, read_header
from evm.follower import CONFIRMATIONS
from evm.manager import MAX_VAULT_TOKENS, read_vault
from evm.pool import Contract
from evm.rpc import Refusal, Rpc, RpcError
from executor import plan
from executor.journal import CANCEL, PLAN, Attempt, OrderJournal
from executor.plan import Amounts, VaultChanged, add
from executor.readback import (
    AVERAGE_SECONDS,
    Tip,
    checked_receipt,
    gas_of,
    one,
    read_back,
    read_prices,
    unknown_average,
)
from liquidity.executions import Minted, Order, Report
from liquidity.tape import worth
from markets.base import MarketError
from protocol import MAX_TEXT_CHARS, MAX_TICK, MIN_TICK, Code, Inventory, ProtocolError
from runtime.db import StoreError
from runtime.process import UserError
from sim import Pool, amounts_of, sqrt_ratio_at_tick
from wire.text import one_line

GWEI = 10**9
HOUR_SECONDS = 3600
POLL_SECONDS = 1.0
GAS_MARGIN_PERCENT = 25  # above the estimate
MAX_REVERTED = 3  # attempts of one order that were mined and failed; then it is given up
APPROVE_SECONDS = 180
STILL_SECONDS, BEHIND_BLOCKS = (
    120,
    20,
)  # a node whose head stands still, or is so far behind what was seen, is not asked
FOREIGN_SECONDS = 30  # past the deadline: a node that still has no receipt by then has none
UNLIMITED = 2**256 - 1

ALLOWANCE = Function("allowance(address,address)", "uint256")
APPROVE = Function("approve(address,uint256)", "bool")
WETH9 = Function("WETH9()", "address")

log = logging.getLogger("execution")


@dataclass(frozen=True, slots=True)
class Limits:
    """What the operator allows.

    Attributes:
        max_gas_wei: the most that a unit of gas may cost, priority fee included.
        slippage_ticks: how far the price may move between plan and block; the contract refuses beyond.
        reserve_ticks: leave so much idle that mints still find their tokens if the price moves by so many ticks.
        average_ticks: between the spot price and the pool's time-weighted average, and the median of its parts.
        shown_ticks: between the spot price and the one that the miner was shown.
        turnover_percent: share of the inventory's value that may be moved within an hour.
        hourly_transactions: that may be mined within an hour, those that failed too: what gas may cost.
        deadline_seconds: how far ahead a deadline may be.
        max_positions: that an order may ask for.
        confirmations: blocks that must stand on a transaction before it counts.
        replace_blocks: a transaction that waits for longer is replaced, with a higher fee.
    """

    max_gas_wei: int = 50 * GWEI
    slippage_ticks: int = 20
    reserve_ticks: int = 0
    average_ticks: int = 50
    shown_ticks: int = 100
    turnover_percent: int = 200
    hourly_transactions: int = 20
    deadline_seconds: int = 600
    max_positions: int = 10
    confirmations: int = CONFIRMATIONS
    replace_blocks: int = 5


class Fees(NamedTuple):
    """What is offered for a unit of gas, in all and of it to whoever makes the block; wei."""

    most: int
    priority: int


@dataclass(frozen=True, slots=True)
class Draft:
    """A plan that could be signed now, with the amounts of the state that it was made in.

    Attributes:
        tip: the last block that it was held against.
        data, gas: of the transaction; no data where there is nothing to do.
        moved_ppm: share of the inventory's value that it moves.
        before, released, fees, mints, closed: what it would do.
    """

    tip: Tip
    data: str
    gas: int
    moved_ppm: int
    before: Amounts
    released: Amounts
    fees: Amounts
    mints: tuple[plan.Mint, ...]
    closed: int


class _Later(Exception):
    """Nothing is wrong with the order; look again at the next block."""


class Executor:
    """One vault, one order at a time.

    Args:
        rpc: the chain.
        contract: the pool, with its position manager.
        journal: of this vault.
        vault: its address, in lower case.
        account: with its key; None for a dry run.
        limits: the operator's.
        pause_file: while it is there, nothing is sent.
        live: else orders are planned and simulated, not sent.
        tell: logs what an operator should know, a kind and a text; see `notify.Notifier.notify`.

    Attributes:
        said: what the open order waits for.
        woken: to be set when an order was accepted.
        ended: told when one came to its end.
    """

    def __init__(
        self,
        rpc: Rpc,
        contract: Contract,
        journal: OrderJournal,
        vault: str,
        account: Any,
        limits: Limits,
        pause_file: Path,
        live: bool,
        tell: Callable[[str, str], None] = lambda kind, text: log.warning("%s", text),
    ):
        self.rpc, self.contract, self.journal, self.vault, self.limits = rpc, contract, journal, vault, limits
        self.pause_file, self.live, self._account, self._tell = pause_file, live, account, tell
        self._tokens = contract.pair.token0.address.lower(), contract.pair.token1.address.lower()
        self._most_liquidity = Pool(contract.pair.fee, contract.pair.tick_spacing).max_liquidity_per_tick
        self._native: str | None = None
        self._head = 0, time.monotonic()  # the highest block seen, and when it came
        self.said, self.woken, self.ended = "", asyncio.Event(), asyncio.Condition()

    # -- the loop

    async def follow(self, poll_seconds: float) -> None:
        """Work on what was accepted, for ever; what fails is said and tried again."""
        while True:
            try:
                waiting = await self.step()
            except (RpcError, MarketError, StoreError, sqlite3.Error) as error:
                self.said = str(error)
                self._tell("trouble", f"{error}; trying again")
                waiting = True
            except Exception:
                log.exception("an order could not be worked on; trying again")
                waiting = True
            with suppress(TimeoutError):
                async with asyncio.timeout(poll_seconds if waiting else None):
                    await self.woken.wait()
            self.woken.clear()

    async def step(self) -> bool:
        """Do what can be done now; returns whether an order is still open."""
        while order := await self.journal.oldest_open():
            if not await self._advance(order):
                return True
            async with self.ended:
                self.ended.notify_all()
        return False

    async def _advance(self, order: Order) -> bool:
        """One thing at a time: what the journal says decides which. Returns whether it changed."""
        attempts, tip = await self.journal.attempts(order.decision), await self.tip()
        mined = next((one for one in attempts if one.receipt and one.nonce == attempts[-1].nonce), None)
        late = tip.time > order.deadline  # every later block has a later time
        if attempts and not mined:
            return await self._wait(order, attempts, tip, late)
        if mined and mined.succeeded and mined.kind == PLAN:
            did = await read_back(self.rpc, self.contract, self.vault, mined, await self.tip())
            report = await self._report(order, attempts, Code.EXECUTED, did.trouble or f"{len(did.minted)} minted")
            await self._finish(did.fill(report))
        elif mined and not await self._is_there(mined):
            log.error("%s was final and is not where it was: a reorganisation, or a node that is behind", mined.hash)
            await self.journal.not_mined(mined)
        elif mined and mined.kind == CANCEL:
            detail = f"not included until {order.deadline}; cancelled by {mined.hash}"
            await self._refuse(order, attempts, Code.EXECUTION_EXPIRED, detail)
        elif mined and mined.time > order.deadline:
            await self._refuse(order, attempts, Code.EXECUTION_EXPIRED, f"included too late: {mined.hash} did nothing")
        elif mined and (late or sum(one.kind == PLAN and bool(one.receipt) for one in attempts) >= MAX_REVERTED):
            await self._refuse(order, attempts, Code.EXECUTION_REVERTED, f"{mined.hash} was mined and did nothing")
        elif late:
            detail = f"deadline {order.deadline}, block {tip.number} is of {tip.time}"
            await self._refuse(order, attempts, Code.ORDER_STALE, f"{detail}{self.said and ': ' + self.said}")
        else:
            try:
                return await self._begin(order, attempts, tip)
            except ProtocolError as error:
                await self._refuse(order, attempts, error.code, error.detail)
            except _Later as error:
                self.said = str(error)
                log.info("%s: %s; looking again", order.decision, error)
                return False
        return True

    async def _is_there(self, mined: Attempt) -> bool:
        """Whether a transaction that did nothing is in the block that it was in: elsewhere it may do something."""
        [receipt] = await self.rpc.batch([("eth_getTransactionReceipt", [mined.hash])])
        return receipt is not None and receipt["blockHash"] == mined.receipt["blockHash"]

    async def _begin(self, order: Order, attempts: Sequence[Attempt], tip: Tip) -> bool:
        """Plan, and send the first transaction of a new nonce."""
        draft = await self._draft(order, tip)
        if not draft.data:
            report = await self._report(order, attempts, Code.EXECUTED, "nothing to do", block=draft.tip.number)
            await self._finish(replace(report, before=Inventory(*draft.before), after=Inventory(*draft.before)))
            return True
        if not self.live:
            await self._finish(
                _foreseen(await self._report(order, attempts, Code.EXECUTION_DRY_RUN, _words(draft)), draft)
            )
            return True
        count, next_nonce = await self._count("latest"), await self.journal.next_nonce()
        if count < next_nonce:
            if lost := await self.journal.mined_with(count):
                log.error("%s was final and is not in the chain: a reorganisation, or a node that is behind", lost.hash)
                await self._broadcast(lost)
            raise _Later(f"the chain is at nonce {count}, {next_nonce} is next")
        await self._check_alone(order, draft.tip, count)
        fees = await self._fees(draft.tip, None)
        await self._sign(order, PLAN, count, self.contract.manager, draft.data, draft.gas, fees, draft)
        return True

    async def _check_alone(self, order: Order, tip: Tip, count: int) -> None:
        """All that the vault sent since the miner was shown it is in the journal: else this may have been done already.

        That is by a bot in another folder, or by this one before its journal was lost. A node that has forgotten that
        block cannot tell.

        Raises:
            ProtocolError: something is not.
            _Later: the block is not there yet.
        """
        if order.block_number > tip.number:
            raise _Later(f"the miner was shown block {order.block_number}, the chain is at {tip.number}")
        shown = "eth_getTransactionCount", [self.vault, hex(max(0, order.block_number))]
        [answer] = await self.rpc.batch([shown], refusable=True)
        if isinstance(answer, Refusal):
            log.warning("%s: whether this journal is complete is unknown: %s", order.decision, answer)
        elif (foreign := count - integer(answer) - await self.journal.signed(integer(answer), count)) > 0:
            raise ProtocolError(
                Code.VAULT_CHANGED,
                f"{foreign} of the vault's transactions since block {order.block_number} are not in this journal:"
                " another bot, an old journal, or somebody else has the key",
            )

    async def _wait(self, order: Order, attempts: Sequence[Attempt], tip: Tip, late: bool) -> bool:
        """For one of the transactions of the last nonce, of which at most one can be mined."""
        waiting = [one for one in attempts if one.nonce == attempts[-1].nonce]
        newest = waiting[-1]
        calls = [("eth_getTransactionReceipt", [one.hash]) for one in waiting]
        calls.append(("eth_getTransactionByHash", [newest.hash]))
        deep = hex(max(0, tip.number - self.limits.confirmations))
        calls += [("eth_getTransactionCount", [self.vault, block]) for block in ("latest", deep)]
        *receipts, known, count, deep_count = await self.rpc.batch(calls)  # from one node: they belong together
        for attempt, receipt in zip(waiting, receipts, strict=True):
            if receipt is None:
                continue
            block = checked_receipt(receipt, attempt)
            self.said = f"{attempt.hash} is in block {block}, {self.limits.confirmations} more are awaited"
            if tip.number - block < self.limits.confirmations:
                return False
            header = read_header((await self.rpc.batch([header_call(block)], usable=bool))[0])
            if header.hash != receipt["blockHash"]:
                raise Malformed(f"block {block} is {header.hash}, {attempt.hash} is in {receipt['blockHash']}")
            await self.journal.mined(attempt, receipt, header.time)
            return True
        self.said = f"{newest.hash} was signed at block {newest.block} and is not mined"
        if integer(count) > newest.nonce:  # or its receipt is not there yet
            if tip.time > order.deadline + FOREIGN_SECONDS and integer(deep_count) > newest.nonce:
                for attempt in waiting:  # a node may be behind, or part of it
                    if any((await self.rpc.each("eth_getTransactionReceipt", [attempt.hash])).values()):
                        return False
                detail = f"nonce {newest.nonce} was used by a transaction that is not this bot's: who else has the key?"
                await self._refuse(order, attempts, Code.EXECUTION_EXPIRED, detail)
                return True
            return False
        if not self.live or self.pause_file.exists():
            self.said += "; nothing is sent in a pause" if self.live else "; nothing is sent in a dry run"
            return False
        if integer(count) < newest.nonce and (lost := await self.journal.mined_with(integer(count))):
            log.error("%s was final and is not in the chain: %s waits behind it", lost.hash, newest.hash)
            await self._broadcast(lost)
            return False
        stuck = tip.number - newest.block >= self.limits.replace_blocks
        try:
            if late and (newest.kind == PLAN or stuck):
                fees = await self._fees(tip, newest)
                gas = await self._estimate(self.vault, "0x")
                await self._sign(order, CANCEL, newest.nonce, self.vault, "0x", gas, fees, None, tip)
                return True
            if stuck and not late:
                draft = await self._draft(order, tip)
                if draft.data:
                    fees = await self._fees(draft.tip, newest)
                    to = self.contract.manager
                    await self._sign(order, PLAN, newest.nonce, to, draft.data, draft.gas, fees, draft)
                    return True
        except (ProtocolError, _Later) as error:
            log.warning("%s: %s is not replaced: %s", order.decision, newest.hash, error)
        if known is None:
            await self._broadcast(newest)
        return False

    # -- planning

    async def _draft(self, order: Order, tip: Tip) -> Draft:
        """Hold an order against all limits, plan it at the latest block, and simulate it there.

        Raises:
            ProtocolError: why it is refused.
            _Later: the price moved meanwhile.
        """
        self._check_order(order)
        price = await self._check_market(order, tip)
        try:
            held, idle = await read_vault(self.rpc, self.contract, self.vault, tip.hash)
        except MarketError as error:
            raise ProtocolError(Code.TOO_MANY_POSITIONS, f"{error}; move some away by hand") from None
        try:
            keep, close, wanted = plan.match(order.shown, order.desired, held)
        except VaultChanged as error:
            raise ProtocolError(Code.VAULT_CHANGED, str(error)) from None
        if staked := [token.token_id for token in close if token.staked]:
            raise ProtocolError(Code.EXECUTION_REVERTED, f"tokens {staked} are staked in the gauge: withdraw them")
        slippage = self.limits.slippage_ticks
        calls = plan.close_calls(close, self.vault, price, slippage, order.deadline)
        released = collected = (0, 0)
        if calls:
            released, collected = plan.read_closed(await self._simulate(calls, tip))
        worst = add(*(plan.worst_release(token, price, self.limits.reserve_ticks) for token in close))
        there = tuple(
            have + got - (out - max(0, min(out, least)) if self.limits.reserve_ticks else 0)
            for have, got, out, least in zip(idle, collected, released, worst, strict=True)
        )
        mints = plan.size(wanted, keep, there, price, slippage, self._most_liquidity)
        if len(held) - len(close) + sum(not mint.token_id for mint in mints) > MAX_VAULT_TOKENS:
            raise ProtocolError(Code.TOO_MANY_POSITIONS, f"the vault may hold {MAX_VAULT_TOKENS} position tokens")
        before, fees = idle, tuple(max(0, got - out) for got, out in zip(collected, released, strict=True))
        released = tuple(got - fee for got, fee in zip(collected, fees, strict=True))
        if not close and not mints:
            return Draft(tip, "", 0, 0, before, released, fees, (), 0)
        most = tuple(map(min, add(*(mint.most for mint in mints)), there))  # others choose the price of its block
        moved_ppm = await self._check_turnover(tip, price, held, add(idle, fees), collected, most)
        await self._check_allowances(tip, mints)
        calls += plan.mint_calls(mints, self.contract, self.vault, order.deadline)
        await self._simulate(calls, tip)
        data = plan.multicall(calls)
        gas = await self._estimate(self.contract.manager, data)
        now = await self.tip()
        if now.time > order.deadline:
            raise _Later("its deadline passed")
        if now.hash != tip.hash:
            await self._check_market(order, now)
        await self._check_gas_money(now, gas)
        self._check_pause()
        return Draft(now, data, gas, moved_ppm, before, released, fees, tuple(mints), len(close))

    def _check_order(self, order: Order) -> None:
        """What is wrong with it wherever the market stands."""
        pair, limits = self.contract.pair, self.limits
        self._check_pause()
        if (order.chain_id, order.pool.lower()) != (pair.chain_id, pair.pool_address):
            here = f"{pair.pool_address} on chain {pair.chain_id}"
            raise ProtocolError(Code.FOREIGN_POOL, f"pool {order.pool} on chain {order.chain_id}, allowed is {here}")
        if order.vault.lower() != self.vault:
            raise ProtocolError(Code.FOREIGN_VAULT, f"vault {order.vault}, allowed is {self.vault}")
        if len(order.desired) > limits.max_positions:
            raise ProtocolError(
                Code.TOO_MANY_POSITIONS, f"{len(order.desired)} positions, at most {limits.max_positions}"
            )
        for position in order.desired:
            lower, upper = ticks = position.tick_lower, position.tick_upper
            if not (MIN_TICK <= lower <= MAX_TICK and MIN_TICK <= upper <= MAX_TICK):
                raise ProtocolError(Code.TICK_RANGE, f"ticks {ticks}; bounds {MIN_TICK}, {MAX_TICK}")
            if lower >= upper:
                raise ProtocolError(Code.TICK_ORDER, f"tick_lower {lower} >= tick_upper {upper}")
            if lower % pair.tick_spacing or upper % pair.tick_spacing:
                raise ProtocolError(Code.TICK_SPACING, f"ticks {ticks} are no multiples of {pair.tick_spacing}")

    def _check_pause(self) -> None:
        if self.pause_file.exists():
            raise ProtocolError(Code.EXECUTOR_PAUSED, "paused by its operator; python -m executor resume ends that")

    async def _check_market(self, order: Order, tip: Tip) -> int:
        """Chain time, gas price and pool price; returns the pool's price.

        Raises:
            ProtocolError: `ORDER_STALE`, `GAS_PRICE_LIMIT`, `PRICE_MOVED`, `PRICE_MANIPULATED`, `PRICE_UNKNOWN`.
        """
        limits = self.limits
        if order.deadline > tip.time + limits.deadline_seconds:
            ahead = order.deadline - tip.time
            raise ProtocolError(Code.ORDER_STALE, f"its deadline is {ahead} s ahead, at most {limits.deadline_seconds}")
        if tip.base_fee_wei > limits.max_gas_wei:
            raise ProtocolError(Code.GAS_PRICE_LIMIT, f"gas costs {tip.base_fee_wei} wei, at most {limits.max_gas_wei}")
        price, tick, averages = await read_prices(self.rpc, self.contract, tip.hash)
        if abs(tick - order.tick) > limits.shown_ticks:
            raise ProtocolError(
                Code.PRICE_MOVED, f"tick {tick}, shown was {order.tick}, at most {limits.shown_ticks} apart"
            )
        if averages is None:
            raise ProtocolError(Code.PRICE_UNKNOWN, unknown_average(self.contract))
        for name, average in zip(("average", "median"), averages, strict=True):
            if abs(tick - average) > limits.average_ticks:
                raise ProtocolError(
                    Code.PRICE_MANIPULATED,
                    f"tick {tick}, the {name} of {AVERAGE_SECONDS} s is {average},"
                    f" at most {limits.average_ticks} apart",
                )
        return price

    async def _check_turnover(
        self,
        tip: Tip,
        price: int,
        held: Sequence[Any],
        loose: Amounts,
        collected: Amounts,
        most: Amounts,
    ) -> int:
        """The value that this moves at most, in millionths of the inventory's. Raises `ProtocolError`."""
        inside = add(
            *(
                amounts_of(
                    token.liquidity,
                    price,
                    sqrt_ratio_at_tick(token.tick_lower),
                    sqrt_ratio_at_tick(token.tick_upper),
                    round_up=False,
                )
                for token in held
                if token.liquidity
            )
        )
        moved, whole = max(worth(collected, price), worth(most, price)), worth(add(loose, inside), price)
        ppm = -(-moved * 10**6 // max(1, whole))
        mined, before = await self.journal.within(tip.time - HOUR_SECONDS)
        if mined >= self.limits.hourly_transactions:
            raise ProtocolError(
                Code.TURNOVER_LIMIT,
                f"{mined} transactions were mined within an hour, at most {self.limits.hourly_transactions}",
            )
        if ppm + before > self.limits.turnover_percent * 10**4:
            raise ProtocolError(
                Code.TURNOVER_LIMIT,
                f"it would move {ppm / 10**4:.2f} % of the inventory, {before / 10**4:.2f} % were moved within an hour,"
                f" at most {self.limits.turnover_percent} %",
            )
        return ppm

    async def _check_allowances(self, tip: Tip, mints: Sequence[plan.Mint]) -> None:
        need = add(*(mint.most for mint in mints))
        allowed = await self.allowances(tip.hash)
        for token, least, have in zip(self._tokens, need, allowed, strict=True):
            if have < least:
                raise ProtocolError(
                    Code.EXECUTION_REVERTED,
                    f"the position manager may take {have} of {token}, {least} are needed:"
                    " stop the bot and run python -m executor approve",
                )

    async def allowances(self, block_hash: str) -> list[int]:
        """How much of each token the position manager may take from the vault."""
        calls = [ALLOWANCE.call(token, block_hash, self.vault, self.contract.manager) for token in self._tokens]
        return [one(ALLOWANCE.read(answer)) for answer in await self.rpc.batch(calls)]

    async def _check_gas_money(self, tip: Tip, gas: int) -> None:
        [answer] = await self.rpc.batch([("eth_getBalance", [self.vault, "latest"])])
        have, need = integer(answer), gas * (await self._fees(tip, None)).most  # nodes want to see all that is offered
        if have < need:
            raise ProtocolError(
                Code.EXECUTION_REVERTED, f"{have} wei for gas, {need} are needed; send some to {self.vault}"
            )

    async def _simulate(self, calls: Sequence[bytes], tip: Tip) -> Sequence[bytes]:
        """What they would return in the state that was planned from. Raises `ProtocolError` if they would fail."""
        data = plan.multicall(calls)
        transaction = {"from": self.vault, "to": self.contract.manager, "data": data}
        at = {"blockHash": tip.hash, "requireCanonical": True}
        [answer] = await self.rpc.batch([("eth_call", [transaction, at])])
        found = plan.MULTICALL.read(answer)
        if found is None:
            raise ProtocolError(Code.EXECUTION_REVERTED, f"the contracts would refuse it: {answer}")
        return found[0]

    async def _estimate(self, to: str, data: str) -> int:
        transaction = {"from": self.vault, "to": to, "data": data}
        [answer] = await self.rpc.batch([("eth_estimateGas", [transaction, "latest"])], refusable=True)
        if isinstance(answer, Refusal):
            raise _Later(f"gas cannot be estimated: {answer}")
        return integer(answer) * (100 + GAS_MARGIN_PERCENT) // 100

    async def _fees(self, tip: Tip, over: Attempt | None) -> Fees:
        """What to offer; an eighth more than what it shall replace, as nodes demand. Raises `ProtocolError`."""
        [answer] = await self.rpc.batch([("eth_maxPriorityFeePerGas", [])], refusable=True)
        priority = 0 if isinstance(answer, Refusal) else integer(answer)
        most = 2 * tip.base_fee_wei + priority
        if over:
            most, priority = max(most, over.max_fee_wei * 9 // 8 + 1), max(priority, over.priority_fee_wei * 9 // 8 + 1)
        limit = self.limits.max_gas_wei
        if tip.base_fee_wei > limit or (over and max(over.max_fee_wei, over.priority_fee_wei) * 9 // 8 + 1 > limit):
            raise ProtocolError(Code.GAS_PRICE_LIMIT, f"gas would cost {most} wei, at most {limit}")
        return Fees(min(most, limit), min(priority, limit))

    # -- sending

    async def _sign(
        self,
        order: Order,
        kind: str,
        nonce: int,
        to: str,
        data: str,
        gas: int,
        fees: Fees,
        draft: Draft | None,
        tip: Tip | None = None,
    ) -> None:
        """Sign a transaction, write it down, and send it, in this order."""
        raw, hash_ = self._signed(nonce, to, data, gas, fees)
        block = draft.tip.number if draft else tip.number
        attempt = Attempt(nonce, kind, hash_, raw, fees.most, fees.priority, block, draft.moved_ppm if draft else 0)
        await self.journal.sign(order.decision, attempt)
        await self._broadcast(attempt)
        what = _words(draft) if draft else "cancelled: its deadline passed"
        log.info("%s: %s, nonce %d, %s", order.decision, what, nonce, hash_)

    def _signed(self, nonce: int, to: str, data: str, gas: int, fees: Fees) -> tuple[str, str]:
        """A signed transaction and its hash."""
        signed = self._account.sign_transaction(
            {
                "type": 2,
                "chainId": self.contract.pair.chain_id,
                "nonce": nonce,
                "to": bytes.fromhex(to[2:]),
                "value": 0,
                "data": data,
                "gas": gas,
                "maxFeePerGas": fees.most,
                "maxPriorityFeePerGas": fees.priority,
            }
        )
        return f"0x{bytes(signed.raw_transaction).hex()}", f"0x{bytes(signed.hash).hex()}"

    async def _broadcast(self, attempt: Attempt) -> None:
        """Whether it arrived is not asked here: the next look at the chain says."""
        if self.pause_file.exists():
            log.warning("paused: %s is not sent", attempt.hash)
            return
        [answer] = await self.rpc.batch([("eth_sendRawTransaction", [attempt.raw])], refusable=True)
        if isinstance(answer, Refusal):
            log.warning("%s: the node says %s", attempt.hash, answer)

    async def approve(self, token: str) -> str:
        """Let the position manager take all of a token; returns the transaction. Raises `UserError` if that fails."""
        tip, data = await self.tip(), "0x" + plan.data_of(APPROVE, self.contract.manager, UNLIMITED).hex()
        try:
            gas, fees = await self._estimate(token, data), await self._fees(tip, None)
        except (ProtocolError, _Later) as error:
            raise UserError(f"{token} cannot be approved: {error}") from None
        raw, hash_ = self._signed(await self._count("latest"), token, data, gas, fees)
        [answer] = await self.rpc.batch([("eth_sendRawTransaction", [raw])], refusable=True)
        log.info("sent as %s (%s)", hash_, answer)
        until = time.monotonic() + APPROVE_SECONDS
        while time.monotonic() < until:
            [receipt] = await self.rpc.batch([("eth_getTransactionReceipt", [hash_])])
            if receipt:
                if receipt["status"] != "0x1":
                    raise UserError(f"{token} cannot be approved: {hash_} was mined and did nothing")
                return hash_
            await asyncio.sleep(POLL_SECONDS)
        raise UserError(f"{hash_} is not mined after {APPROVE_SECONDS} s; look whether it is, before you try again")

    # -- the chain's answers

    async def tip(self) -> Tip:
        """The latest block. Raises `RpcError` of a node that is behind: the next one is asked another time."""
        [raw] = answers = await self.rpc.batch([header_call("latest")], usable=bool)
        header, (seen, since) = read_header(raw), self._head
        if header.number > seen:
            self._head = header.number, time.monotonic()
        elif header.number < seen - BEHIND_BLOCKS or time.monotonic() - since > STILL_SECONDS:
            said = f"its head is block {header.number}, {seen} was seen {time.monotonic() - since:.0f} s ago"
            self.rpc.distrust(answers.endpoints, said)
            raise RpcError(f"a node is behind: {said}")
        if "baseFeePerGas" not in raw:
            raise MarketError(f"chain {self.contract.pair.chain_id} has no base fee (EIP-1559): it is not supported")
        return Tip(header.number, header.time, header.hash, integer(raw["baseFeePerGas"]))

    async def _count(self, block: str) -> int:
        [answer] = await self.rpc.batch([("eth_getTransactionCount", [self.vault, block])])
        return integer(answer)

    # -- reports

    async def _report(
        self, order: Order, attempts: Sequence[Attempt], code: Code, detail: str, block: int = 0
    ) -> Report:
        """With the gas of all that was mined for the order."""
        used, wei = gas_of(attempts)
        native = await self._native_token() if wei else ""
        gas = tuple(wei if token == native else 0 for token in self._tokens)
        return Report(order.decision, code, one_line(detail, MAX_TEXT_CHARS), block, "", used, wei, *gas)

    async def _native_token(self) -> str:
        """The token that gas can be counted in: the manager's wrapped native one; asked once."""
        if self._native is None:
            [answer] = await self.rpc.batch([WETH9.call(self.contract.manager, (await self.tip()).hash)])
            self._native = one(WETH9.read(answer)).lower()
        return self._native

    async def _refuse(self, order: Order, attempts: Sequence[Attempt], code: Code, detail: str) -> None:
        await self._finish(await self._report(order, attempts, code, detail))

    async def _finish(self, report: Report) -> None:
        await self.journal.finish(report)
        self.said = ""
        text = f"{report.decision}: {report.code}, {report.detail}"
        if report.code in (Code.EXECUTED, Code.EXECUTION_DRY_RUN):
            log.info("%s", text)
        else:
            self._tell("executor", text)


def _words(draft: Draft) -> str:
    """A plan in one line."""
    mints = ", ".join(
        f"{'more of' if mint.token_id else 'mint'} {mint.tick_lower}..{mint.tick_upper} L {mint.liquidity}"
        for mint in draft.mints
    )
    return f"close {draft.closed} of its positions, {mints or 'mint nothing'}, gas {draft.gas}"


def _foreseen(report: Report, draft: Draft) -> Report:
    """A dry run's report says what would have been."""
    paid = add(*(mint.paid for mint in draft.mints))
    after = (
        have + out + fee - cost
        for have, out, fee, cost in zip(draft.before, draft.released, draft.fees, paid, strict=True)
    )
    return replace(
        report,
        before=Inventory(*draft.before),
        after=Inventory(*after),
        released=Inventory(*draft.released),
        fees=Inventory(*draft.fees),
        paid=Inventory(*paid),
        minted=tuple(Minted(mint.tick_lower, mint.tick_upper, mint.liquidity) for mint in draft.mints),
    )
