"""An order as a transaction: held against all limits, planned at the latest block, and simulated there.

    draft = await drafter.draft(order, await wallet.tip())

Read first: `plan.py`, `limits.py`, `wallet.py`. Read next: `execution.py`, which signs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from evm.manager import MAX_VAULT_TOKENS, TokenPosition, read_vault
from executor import plan
from executor.journal import OrderJournal
from executor.limits import HOUR_SECONDS, Limits
from executor.plan import Amounts, VaultChanged, add
from executor.readback import Tip, read_prices
from executor.wallet import Later, Wallet
from liquidity.executions import Minted, Order, Report
from liquidity.tape import worth
from markets.base import MarketError
from protocol import Code, Inventory, ProtocolError
from sim import Pool, amounts_of, sqrt_ratio_at_tick


@dataclass(frozen=True, slots=True)
class Draft:
    """A transaction that could be signed now, with the amounts of the state that it was made in.

    Attributes:
        tip: the last block that it was held against.
        data, gas: of the transaction; no data where there is nothing to do.
        moved_ppm: share of the inventory's value that it moves.
        before, released, fees, mints, closed: what it would do.
    """

    tip: Tip
    data: str = ""
    gas: int = 0
    moved_ppm: int = 0
    before: Amounts = (0, 0)
    released: Amounts = (0, 0)
    fees: Amounts = (0, 0)
    mints: tuple[plan.Mint, ...] = ()
    closed: int = 0

    @property
    def words(self) -> str:
        """The plan in one line."""
        mints = ", ".join(
            f"{'more of' if mint.token_id else 'mint'} {mint.tick_lower}..{mint.tick_upper} L {mint.liquidity}"
            for mint in self.mints
        )
        return f"close {self.closed} of its positions, {mints or 'mint nothing'}, gas {self.gas}"

    def fill(self, report: Report) -> Report:
        """The report with what would have been."""
        paid = add(*(mint.paid for mint in self.mints))
        have = add(self.before, self.released, self.fees)
        return replace(
            report,
            before=Inventory(*self.before),
            after=Inventory(have[0] - paid[0], have[1] - paid[1]),
            released=Inventory(*self.released),
            fees=Inventory(*self.fees),
            paid=Inventory(*paid),
            minted=tuple(Minted(mint.tick_lower, mint.tick_upper, mint.liquidity) for mint in self.mints),
        )


class Drafter:
    """Of one vault; reads the chain through its wallet, and what was moved within an hour from its journal."""

    def __init__(self, wallet: Wallet, journal: OrderJournal, limits: Limits):
        self.wallet, self.journal, self.limits = wallet, journal, limits
        pair = wallet.contract.pair
        self._most_liquidity = Pool(pair.fee, pair.tick_spacing).max_liquidity_per_tick

    async def draft(self, order: Order, tip: Tip) -> Draft:
        """Hold an order against all limits, plan it at the latest block, and simulate it there.

        Raises:
            ProtocolError: why it is refused.
            Later: the price moved meanwhile.
        """
        wallet, slippage = self.wallet, self.limits.slippage_ticks
        self._check_pause()
        self.limits.check_order(order, wallet.contract, wallet.vault)
        price = await self._check_market(order, tip)
        held, idle = await self._read_vault(tip)
        keep, close, wanted = _match(order, held)
        calls = plan.close_calls(close, wallet.vault, price, slippage, order.deadline)
        released, collected = plan.read_closed(await wallet.simulate(calls, tip)) if calls else ((0, 0), (0, 0))
        there = self._spendable(idle, collected, released, close, price)
        mints = plan.size(wanted, keep, there, price, slippage, self._most_liquidity)
        if len(held) - len(close) + sum(not mint.token_id for mint in mints) > MAX_VAULT_TOKENS:
            raise ProtocolError(Code.TOO_MANY_POSITIONS, f"the vault may hold {MAX_VAULT_TOKENS} position tokens")
        fees = tuple(max(0, got - out) for got, out in zip(collected, released, strict=True))
        released = tuple(got - fee for got, fee in zip(collected, fees, strict=True))
        if not close and not mints:
            return Draft(tip, before=idle)
        most = tuple(map(min, add(*(mint.most for mint in mints)), there))  # others choose the price of its block
        moved_ppm = await self._check_turnover(tip, price, held, add(idle, fees), collected, most)
        await self._check_allowances(tip, mints)
        calls += plan.mint_calls(mints, wallet.contract, wallet.vault, order.deadline)
        await wallet.simulate(calls, tip)
        data = plan.multicall(calls)
        gas = await wallet.estimate(wallet.contract.manager, data)
        now = await self._look_again(order, tip, gas)
        return Draft(now, data, gas, moved_ppm, idle, released, fees, tuple(mints), len(close))

    async def _read_vault(self, tip: Tip) -> tuple[list[TokenPosition], Amounts]:
        try:
            return await read_vault(self.wallet.rpc, self.wallet.contract, self.wallet.vault, tip.hash)
        except MarketError as error:
            raise ProtocolError(Code.TOO_MANY_POSITIONS, f"{error}; move some away by hand") from None

    def _spendable(
        self, idle: Amounts, collected: Amounts, released: Amounts, close: Sequence[TokenPosition], price: int
    ) -> Amounts:
        """What mints may take: all that there is then, but for what the reserve leaves idle."""
        if not (ticks := self.limits.reserve_ticks):
            return add(idle, collected)
        worst = add(*(plan.worst_release(token, price, ticks) for token in close))
        return tuple(
            have + got - (out - max(0, min(out, least)))
            for have, got, out, least in zip(idle, collected, released, worst, strict=True)
        )

    async def _look_again(self, order: Order, tip: Tip, gas: int) -> Tip:
        """The latest block, where all that may have changed since the plan is held against the limits again."""
        now = await self.wallet.tip()
        if now.time > order.deadline:
            raise Later("its deadline passed")
        if now.hash != tip.hash:
            await self._check_market(order, now)
        have = await self.wallet.balance_wei()
        need = gas * (await self.wallet.fees(now, None)).most  # nodes want to see all that is offered
        if have < need:
            what = f"{have} wei for gas, {need} are needed; send some to {self.wallet.vault}"
            raise ProtocolError(Code.EXECUTION_REVERTED, what)
        self._check_pause()
        return now

    def _check_pause(self) -> None:
        if self.wallet.paused:
            raise ProtocolError(Code.EXECUTOR_PAUSED, "paused by its operator; python -m executor resume ends that")

    async def _check_market(self, order: Order, tip: Tip) -> int:
        """Chain time, gas price and pool price; returns the pool's price."""
        self.limits.check_block(order, tip)
        price, tick, averages = await read_prices(self.wallet.rpc, self.wallet.contract, tip.hash)
        self.limits.check_price(order, self.wallet.contract, tick, averages)
        return price

    async def _check_turnover(
        self, tip: Tip, price: int, held: Sequence[TokenPosition], loose: Amounts, collected: Amounts, most: Amounts
    ) -> int:
        """The value that this moves at most, in millionths of the inventory's, rounded up."""
        inside = add(
            *(
                amounts_of(token.liquidity, price, *map(sqrt_ratio_at_tick, token[1:3]), round_up=False)
                for token in held
                if token.liquidity
            )
        )
        moved, whole = max(worth(collected, price), worth(most, price)), worth(add(loose, inside), price)
        ppm = -(-moved * 10**6 // max(1, whole))
        self.limits.check_hour(ppm, *await self.journal.within(tip.time - HOUR_SECONDS))
        return ppm

    async def _check_allowances(self, tip: Tip, mints: Sequence[plan.Mint]) -> None:
        need, allowed = add(*(mint.most for mint in mints)), await self.wallet.allowances(tip.hash)
        for token, least, have in zip(self.wallet.tokens, need, allowed, strict=True):
            if have < least:
                raise ProtocolError(
                    Code.EXECUTION_REVERTED,
                    f"the position manager may take {have} of {token}, {least} are needed:"
                    " stop the bot and run python -m executor approve",
                )


def _match(order: Order, held: Sequence[TokenPosition]) -> tuple[list, list, list]:
    """`plan.match`, where a gauge holds none of those to close."""
    try:
        keep, close, wanted = plan.match(order.shown, order.desired, held)
    except VaultChanged as error:
        raise ProtocolError(Code.VAULT_CHANGED, str(error)) from None
    if staked := [token.token_id for token in close if token.staked]:
        raise ProtocolError(Code.EXECUTION_REVERTED, f"tokens {staked} are staked in the gauge: withdraw them")
    return keep, close, wanted
