"""An order's way to the chain: held against the limits, planned, signed, sent, awaited, read back; at most once.

    bot = Executor(wallet, journal, Limits(), live=True)
    await bot.follow(1.0)                       # works on what `journal.accept` took in

The journal decides what is done next (`state_of`), so a process may be killed anywhere. At most one of an order's
transactions can succeed: those of one nonce exclude each other, and another nonce is used only after the transaction of
the last one was mined and had failed. An order that is given up leaves its nonce to the next one.
Read next: `drafting.py`, `wallet.py`, `journal.py`.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import Enum, auto
from typing import Any

from evm.abi import Malformed, header_call, number, read_header, reading
from evm.rpc import Refusal, RpcError
from executor.drafting import Draft, Drafter, Limits
from executor.journal import CANCEL, PLAN, Attempt, OrderJournal
from executor.readback import Tip, checked_receipt, gas_of, read_back
from executor.wallet import Later, Untaken, Wallet
from liquidity.executions import Order, Report
from markets.base import MarketError
from protocol import MAX_TEXT_CHARS, Code, ProtocolError
from runtime.db import StoreError
from runtime.hidden import hide
from wire.text import one_line

MAX_REVERTED = 3  # attempts of one order that were mined and failed; then it is given up
FOREIGN_SECONDS = 30  # past the deadline: a node that still has no receipt by then has none, and nobody waits on

log = logging.getLogger("execution")


class State(Enum):
    """Where an order stands, and what is done about it."""

    UNSENT = auto()  # nothing that was signed can still be mined: plan it and send it
    SENT = auto()  # of the last nonce nothing is mined: wait for it, replace it, or cancel it
    EXECUTED = auto()  # a plan was mined and did what it should: read back what that was
    CANCELLED = auto()  # this and all below are refused
    TOO_LATE = auto()  # mined after the deadline, so it did nothing
    REVERTED = auto()  # mined in vain, too often or with no time left
    STALE = auto()  # the deadline passed and nothing was mined


def state_of(order: Order, attempts: Sequence[Attempt], now: int) -> tuple[State, Attempt | None]:
    """What the journal says of an open order at a block of time `now`, unix seconds; later blocks have later times.

    Returns:
        The state, and what was mined of the last nonce.
    """
    mined = next((one for one in attempts if one.receipt and one.nonce == attempts[-1].nonce), None)
    late = now > order.deadline
    if mined is None:
        return (State.SENT if attempts else State.STALE if late else State.UNSENT), None
    if mined.decision != order.decision:  # of an order that was given up; this one needs another nonce
        return (State.STALE if late else State.UNSENT), mined
    if mined.kind == CANCEL:
        return State.CANCELLED, mined
    if mined.succeeded:
        return State.EXECUTED, mined
    if mined.time > order.deadline:
        return State.TOO_LATE, mined
    given_up = late or sum(one.kind == PLAN and bool(one.receipt) for one in attempts) >= MAX_REVERTED
    return (State.REVERTED if given_up else State.UNSENT), mined


class Executor:
    """One vault, one order at a time.

    Args:
        live: else orders are planned and simulated, not sent.
        tell: logs what an operator should know, a kind and a text; see `notify.Notifier.notify`.

    Attributes:
        said: what the open order waits for.
        woken: to be set when an order was accepted.
        ended: told when one came to its end.
    """

    def __init__(
        self,
        wallet: Wallet,
        journal: OrderJournal,
        limits: Limits,
        live: bool,
        tell: Callable[[str, str], None] = lambda kind, text: log.warning("%s", text),
    ):
        self.wallet, self.journal, self.limits, self.live, self._tell = wallet, journal, limits, live, tell
        self.drafter = Drafter(wallet, journal, limits)
        self.said, self.woken, self.ended = "", asyncio.Event(), asyncio.Condition()

    # -- the loop

    async def follow(self, poll_seconds: float) -> None:
        """Work on what was accepted, for ever; what fails is said and tried again."""
        while True:
            try:
                waiting = await self.step()
            except (RpcError, MarketError, StoreError, sqlite3.Error) as error:
                if isinstance(error, Malformed):
                    self.wallet.rpc.distrust_last(str(error))
                self.said = str(error)
                self._tell("trouble", f"{error}; trying again")
                waiting = True
            except Exception as error:  # what a node says is read strictly, so it is not the node's
                log.exception("an order could not be worked on; trying again")
                self.said = f"a fault of this program ({type(error).__name__}), its log says more"
                self._tell("trouble", f"{self.said}; trying again")
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
        """One thing at a time, as the order's state demands. Returns whether anything changed."""
        attempts, tip = await self.journal.attempts(order.decision), await self.wallet.tip()
        state, mined = state_of(order, attempts, tip.time)
        if state is State.SENT:
            return await self._wait(order, attempts, tip)
        if state is State.EXECUTED:
            await self._read_back(order, attempts, mined)
            return True
        if mined and not await self._is_there(mined):
            log.error("%s was final and is not where it was: a reorganisation, or a node that is behind", mined.hash)
            await self.journal.not_mined(mined)
            return True
        match state:
            case State.UNSENT:
                try:
                    return await self._begin(order, attempts, tip)
                except ProtocolError as error:
                    code, why = error.code, error.detail
                except Later as error:
                    self.said = str(error)
                    log.info("%s: %s; looking again", order.decision, error)
                    return False
            case State.CANCELLED:
                code, why = Code.EXECUTION_EXPIRED, f"not included until {order.deadline}; cancelled by {mined.hash}"
            case State.TOO_LATE:
                code, why = Code.EXECUTION_EXPIRED, f"included too late: {mined.hash} did nothing"
            case State.REVERTED:
                code, why = Code.EXECUTION_REVERTED, f"{mined.hash} was mined and did nothing"
            case State.STALE:
                code, why = Code.ORDER_STALE, f"deadline {order.deadline}, block {tip.number} is of {tip.time}"
                why += self.said and f": {self.said}"
        await self._refuse(order, attempts, code, why)
        return True

    async def _is_there(self, mined: Attempt) -> bool:
        """Whether a transaction that did nothing is in the block that it was in: elsewhere it may do something."""
        receipt = await self.wallet.ask("eth_getTransactionReceipt", mined.hash)
        with reading("receipt"):
            return receipt is not None and receipt["blockHash"] == mined.receipt["blockHash"]

    # -- a new nonce

    async def _begin(self, order: Order, attempts: Sequence[Attempt], tip: Tip) -> bool:
        """Plan, and send the first transaction of a new nonce."""
        draft = await self.drafter.draft(order, tip)
        if not draft.data or not self.live:
            code, why = Code.EXECUTED, "nothing to do"
            if draft.data:
                code, why = Code.EXECUTION_DRY_RUN, draft.words
            await self._finish(draft.done.fill(await self._report(order, attempts, code, why)))
            return True
        count = await self.wallet.count()
        if lost := await self.journal.mined_with(count):
            log.error("%s was final and is not in the chain: a reorganisation, or a node that is behind", lost.hash)
            await self.wallet.broadcast(lost)
            raise Later(f"the chain is at nonce {count}, {lost.hash} was mined with it")
        await self._check_alone(order, draft.tip, count)
        await self._send(order, PLAN, count, draft, None)
        return True

    async def _check_alone(self, order: Order, tip: Tip, count: int) -> None:
        """All that the vault sent since the miner was shown it is in the journal: else this may have been done already,
        by a bot in another folder, or by this one before its journal was lost. A node that has forgotten that block
        cannot tell.
        """
        if order.block_number > tip.number:
            raise Later(f"the miner was shown block {order.block_number}, the chain is at {tip.number}")
        call = "eth_getTransactionCount", [self.wallet.vault, hex(max(0, order.block_number))]
        [answer] = first = await self.wallet.rpc.batch([call], refusable=True)
        if isinstance(answer, Refusal) and (other := await self.wallet.rpc.second([call], first.endpoints)):
            [answer] = other
        if isinstance(answer, Refusal):
            if not answer.forgotten:
                raise Later(f"whether this was done before is unknown: {answer}")
            log.warning("%s: whether this journal is complete is unknown: %s", order.decision, answer)
        elif (foreign := count - number(answer) - await self.journal.signed(number(answer), count)) > 0:
            what = f"{foreign} of the vault's transactions since block {order.block_number} are not in this journal"
            why = "another bot, an old journal, or somebody else has the key"
            raise ProtocolError(Code.VAULT_CHANGED, f"{what}: {why}")

    async def _send(
        self, order: Order, kind: str, nonce: int, draft: Draft, over: Attempt | None, cheap: bool = False
    ) -> None:
        """Sign a transaction, write it down, and send it, in this order; with more gas than what it replaces."""
        fees = await self.wallet.fees(draft.tip, over, cheap)
        to = self.wallet.contract.manager if kind == PLAN else self.wallet.vault
        gas = draft.gas + await self.journal.tried(nonce)  # of two orders that come to the same each has its own hash
        raw, hash_ = self.wallet.sign(nonce, to, draft.data, gas, fees)
        attempt = Attempt(nonce, kind, hash_, raw, *fees, draft.tip.number, draft.moved_ppm)
        await self.journal.sign(order.decision, attempt)
        await self.wallet.broadcast(attempt)
        what = draft.words if kind == PLAN else "cancelled: its deadline passed"
        log.info("%s: %s, nonce %d, %s", order.decision, what, nonce, hash_)

    # -- a nonce that waits

    async def _wait(self, order: Order, attempts: Sequence[Attempt], tip: Tip) -> bool:
        """For one of the transactions of the last nonce, of which at most one can be mined."""
        waiting = [one for one in attempts if one.nonce == attempts[-1].nonce]
        newest = waiting[-1]
        calls = [("eth_getTransactionReceipt", [one.hash]) for one in waiting]
        calls += [("eth_getTransactionByHash", [one.hash]) for one in waiting]
        deep = hex(max(0, tip.number - self.limits.confirmations))
        calls += [("eth_getTransactionCount", [self.wallet.vault, block]) for block in ("latest", deep)]
        *found, count, deep_count = await self.wallet.rpc.batch(calls)  # from one node: they belong together
        receipts, known = found[: len(waiting)], found[len(waiting) :]
        for attempt, receipt in zip(waiting, receipts, strict=True):
            if receipt is not None:
                return await self._confirm(attempt, receipt, tip)
        count, said = number(count), self.said
        over = tip.time > order.deadline + FOREIGN_SECONDS
        if count > newest.nonce:  # or its receipt is not there yet
            self.said = f"{newest.hash} was signed at block {newest.block}, its nonce is used, it has no receipt"
            if not over or number(deep_count) <= newest.nonce or await self._is_known(waiting):
                return False
            detail = f"nonce {newest.nonce} was used by a transaction that is not this bot's: who else has the key?"
            await self._refuse(order, attempts, Code.EXECUTION_EXPIRED, detail)
            return True
        self.said = f"{newest.hash} was signed at block {newest.block} and is not mined"
        if over:
            detail = f"not included until {order.deadline}: {said or self.said}; the next order gets its nonce"
            await self._refuse(order, attempts, Code.EXECUTION_EXPIRED, detail)
            return True
        if not self.live or self.wallet.paused:
            self.said += "; nothing is sent in a pause" if self.live else "; nothing is sent in a dry run"
            return False
        if count < newest.nonce and (lost := await self.journal.mined_with(count)):
            log.error("%s was final and is not in the chain: %s waits behind it", lost.hash, newest.hash)
            await self.wallet.broadcast(lost)
            return False
        late, untaken = tip.time > order.deadline, None
        if known[-1] is None and not (late and newest.kind == PLAN):
            untaken = await self.wallet.broadcast(newest)
        if untaken:
            self.said = f"{newest.hash} is not sent: {untaken.why}"
            if said != self.said:
                self._tell("trouble", f"{order.decision}: {self.said}")
        return await self._replace(order, attempts, tip, untaken, any(known))

    async def _confirm(self, attempt: Attempt, receipt: dict[str, Any], tip: Tip) -> bool:
        """It is mined: write that down once enough blocks stand on it."""
        block = checked_receipt(receipt, attempt, self.wallet.contract)
        self.said = f"{attempt.hash} is in block {block}, {self.limits.confirmations} more are awaited"
        if tip.number - block < self.limits.confirmations:
            return False
        header = read_header((await self.wallet.rpc.batch([header_call(block)], usable=bool))[0])
        if header.hash != receipt["blockHash"]:
            raise Malformed(f"block {block} is {header.hash}, {attempt.hash} is in another")
        await self.journal.mined(attempt, receipt, header.time)
        return True

    async def _is_known(self, attempts: Sequence[Attempt]) -> bool:
        """Whether any node has a receipt: one may be behind, or part of it."""
        for attempt in attempts:

            def usable(raw: Any, attempt: Attempt = attempt) -> bool:
                return raw is None or bool(checked_receipt(raw, attempt, self.wallet.contract))

            if any((await self.wallet.rpc.each("eth_getTransactionReceipt", [attempt.hash], usable)).values()):
                return True
        return False

    async def _replace(
        self, order: Order, attempts: Sequence[Attempt], tip: Tip, untaken: Untaken | None, known: bool
    ) -> bool:
        """What waits for too long, or offers too little, by a new plan; after the deadline by one that does nothing.

        What no node takes for as long, or could take within the limits, ends the order, unless any is `known`.
        """
        newest, late, cheap = attempts[-1], tip.time > order.deadline, bool(untaken and untaken.cheap)
        stuck = tip.number - newest.block >= self.limits.replace_blocks
        try:
            if late and (newest.kind == PLAN or stuck or cheap):
                gas = await self.wallet.estimate(self.wallet.vault, "0x")
                await self._send(order, CANCEL, newest.nonce, Draft(tip, "0x", gas), newest, cheap)
                return True
            if stuck and untaken and not (late or cheap or known):
                raise ProtocolError(Code.EXECUTION_REFUSED, f"no node takes it: {untaken.why}")
            if (stuck or cheap) and not late:
                draft = await self.drafter.draft(order, tip)
                if draft.data:
                    await self._send(order, PLAN, newest.nonce, draft, newest, cheap)
                    return True
        except (ProtocolError, Later) as error:
            if untaken and not (late or known) and isinstance(error, ProtocolError):
                await self._refuse(order, attempts, error.code, error.detail)
                return True
            log.warning("%s: %s is not replaced: %s", order.decision, newest.hash, error)
        return False

    # -- reports

    async def _read_back(self, order: Order, attempts: Sequence[Attempt], mined: Attempt) -> None:
        wallet = self.wallet
        did = await read_back(wallet.rpc, wallet.contract, wallet.vault, mined, await wallet.tip())
        report = await self._report(order, attempts, Code.EXECUTED, did.trouble or f"{len(did.minted)} minted")
        await self._finish(did.fill(report))

    async def _report(self, order: Order, attempts: Sequence[Attempt], code: Code, detail: str) -> Report:
        """With the gas of all that was mined for the order."""
        used, wei = gas_of(attempts)
        native = await self.wallet.native_token() if wei else ""
        gas = tuple(wei if token == native else 0 for token in self.wallet.tokens)
        return Report(order.decision, code, one_line(hide(detail), MAX_TEXT_CHARS), 0, "", used, wei, *gas)

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
