"""An order as a transaction: held against all limits, planned at the latest block, and simulated there.

    draft = await Drafter(wallet, journal, Limits()).draft(order, await wallet.tip())

Read first: `plan.py`, `wallet.py`. Read next: `execution.py`, which signs it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from evm.follower import CONFIRMATIONS
from evm.minters import counts, read_minters
from evm.pool import MAX_VAULT_TOKENS, TokenPosition, read_vault
from evm.rpc import RpcError
from executor import plan
from executor.journal import OrderJournal
from executor.plan import Amounts, add
from executor.readback import AVERAGE_SECONDS, Done, Tip, read_prices, unknown_average
from executor.wallet import GWEI, Later, Wallet
from liquidity.executions import Minted, Order
from liquidity.tape import worth
from markets.base import MarketError
from protocol import MAX_POSITIONS, MAX_TICK, MIN_TICK, Code, ProtocolError
from runtime.process import number
from sim import Pool, amounts_of, sqrt_ratio_at_tick

HOUR_SECONDS = 3600


def _gas_price(text: str) -> int:
    return int(number(0.000001, 10**6, float)(text) * GWEI)


def _limit(default: int, kind: Callable[[str], float], what: str) -> int:
    return field(default=default, metadata={"type": kind, "help": what})


@dataclass(frozen=True, slots=True)
class Limits:
    """What the operator allows: each is an option of `python -m executor serve`, with this type and this help."""

    max_gas_wei: int = _limit(50 * GWEI, _gas_price, "the most that a unit of gas may cost")
    slippage_ticks: int = _limit(20, number(0, 10_000), "how far the price may move from plan to block")
    reserve_ticks: int = _limit(
        0, number(0, 10_000), "leave so much idle that mints succeed though the price moves by so much"
    )
    average_ticks: int = _limit(50, number(0, MAX_TICK), "from the price to its average of 10 minutes")
    shown_ticks: int = _limit(100, number(0, MAX_TICK), "from the price to the one that the miner was shown")
    turnover_percent: int = _limit(200, number(0, 10**6), "of the inventory's value moved within an hour")
    hourly_transactions: int = _limit(20, number(0, 3600), "mined within an hour, failed ones too")
    deadline_seconds: int = _limit(600, number(1, 86_400), "how far ahead a deadline may be")
    max_positions: int = _limit(10, number(0, MAX_POSITIONS), "that an order may ask for")
    confirmations: int = _limit(CONFIRMATIONS, number(0, 1000), "blocks that must stand on a transaction")
    replace_blocks: int = _limit(5, number(1, 1000), "after so many a waiting transaction is replaced")


@dataclass(frozen=True, slots=True)
class Draft:
    """A transaction that could be signed now, with the amounts of the state that it was made in.

    Attributes:
        tip: the last block that it was held against.
        data: empty where there is nothing to do.
        moved_ppm: share of the inventory's value that it moves.
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

    @property
    def done(self) -> Done:
        """What it would do; of one with nothing to do that this is so after its block."""
        paid, have = add(*(mint.paid for mint in self.mints)), add(self.before, self.released, self.fees)
        after, block = (have[0] - paid[0], have[1] - paid[1]), 0 if self.data else self.tip.number
        minted = tuple(Minted(mint.tick_lower, mint.tick_upper, mint.liquidity) for mint in self.mints)
        return Done(block, "", self.before, after, self.released, self.fees, paid, minted)


class Drafter:
    """Of one vault; reads the chain through its wallet, and what was moved within an hour from its journal."""

    def __init__(self, wallet: Wallet, journal: OrderJournal, limits: Limits):
        self.wallet, self.journal, self.limits = wallet, journal, limits
        self.operators: Collection[str] = ()  # whose tokens count, too
        self._minters: dict[int, str] = {}  # of the vault's tokens, by id
        pair = wallet.contract.pair
        self._most_liquidity = Pool(pair.fee, pair.tick_spacing).max_liquidity_per_tick

    async def draft(self, order: Order, tip: Tip) -> Draft:
        """Raises `ProtocolError`, why it is refused, or `Later`: the price moved meanwhile."""
        wallet, slippage = self.wallet, self.limits.slippage_ticks
        self._check_pause()
        self._check_order(order)
        price = await self._check_market(order, tip)
        try:
            held, idle = await read_vault(wallet.rpc, wallet.contract, wallet.vault, tip.hash)
        except MarketError as error:
            raise ProtocolError(Code.TOO_MANY_POSITIONS, f"{error}; move some away by hand") from None
        held = await self._own(held, tip)
        keep, close, wanted = plan.match_tokens(order.shown, order.desired, held)
        calls = plan.close_calls(close, wallet.vault, price, slippage, order.deadline)
        # what was taken out of a token by hand is shown as idle: of an empty one it is collected first, and ...
        calls += [plan.collect_call(token, wallet.vault) for token in held if token.owed]
        results = await wallet.simulate(calls, tip) if calls else ()
        released, collected, owed = plan.read_closed(results, len(close))
        idle = add(idle, owed)
        there = self._spendable(idle, collected, released, close, price)
        short = any(sum(getattr(one, f"allocation{n}") for one in wanted) > there[n] for n in (0, 1))
        # ... of one that is kept, with its fees, where it is wanted
        if short and (more := [plan.collect_call(token, wallet.vault) for token in keep if any(token[6:8])]):
            extra = plan.read_closed(await wallet.simulate(more, tip), 0)[2]
            calls, collected, there = calls + more, add(collected, extra), add(there, extra)
        mints = plan.size(wanted, keep, there, price, slippage, self._most_liquidity)
        if len(held) - len(close) + sum(not mint.token_id for mint in mints) > MAX_VAULT_TOKENS:
            raise ProtocolError(Code.TOO_MANY_POSITIONS, f"the vault may hold {MAX_VAULT_TOKENS} position tokens")
        released, fees = plan.apart(released, collected)
        if not close and not mints:
            return Draft(tip, before=idle)
        most = tuple(map(min, add(*(mint.most for mint in mints)), there))  # others choose the price of its block
        moved_ppm = await self._check_turnover(tip, price, held, add(idle, fees), collected, most)
        await self._check_allowances(tip, mints)
        calls += plan.mint_calls(mints, wallet.contract, wallet.vault, order.deadline)
        await wallet.simulate(calls, tip)
        data = plan.multicall(calls)
        gas = await wallet.estimate(wallet.contract.manager, data)
        now = await self._look_again(order, tip, gas, data)
        return Draft(now, data, gas, moved_ppm, idle, released, fees, tuple(mints), len(close))

    async def _own(self, held: Sequence[TokenPosition], tip: Tip) -> list[TokenPosition]:
        """Without the tokens that strangers minted."""
        wallet, known = self.wallet, self._minters
        if new := [token.token_id for token in held if token.token_id not in known]:
            try:
                known |= await read_minters(wallet.rpc, wallet.contract, new, tip.number)
            except MarketError as error:
                raise RpcError(str(error)) from error
        return [token for token in held if counts(known[token.token_id], wallet.vault, self.operators)]

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

    async def _look_again(self, order: Order, tip: Tip, gas: int, data: str) -> Tip:
        """The latest block, where all that may have changed since the plan is held against the limits again."""
        now = await self.wallet.tip()
        if now.time > order.deadline:
            raise Later("its deadline passed")
        if now.hash != tip.hash:
            await self._check_market(order, now)
        have = await self.wallet.balance_wei()
        need = gas * (await self.wallet.fees(now, None)).most + await self.wallet.layer2_fees(data, gas, now)
        if have < need:  # nodes want to see all that is offered
            what = f"{have} wei for gas, {need} are needed; send some to {self.wallet.vault}"
            raise ProtocolError(Code.EXECUTION_REVERTED, what)
        self._check_pause()
        return now

    def _check_pause(self) -> None:
        if self.wallet.paused:
            raise ProtocolError(Code.EXECUTOR_PAUSED, "paused by its operator; python -m executor resume ends that")

    def _check_order(self, order: Order) -> None:
        """What is wrong with it wherever the market stands."""
        pair, vault, most = self.wallet.contract.pair, self.wallet.vault, self.limits.max_positions
        if (order.chain_id, order.pool.lower()) != (pair.chain_id, pair.pool_address):
            here = f"{pair.pool_address} on chain {pair.chain_id}"
            raise ProtocolError(Code.FOREIGN_POOL, f"pool {order.pool} on chain {order.chain_id}, allowed is {here}")
        if order.vault.lower() != vault:
            raise ProtocolError(Code.FOREIGN_VAULT, f"vault {order.vault}, allowed is {vault}")
        if len(order.desired) > most:
            raise ProtocolError(Code.TOO_MANY_POSITIONS, f"{len(order.desired)} positions, at most {most}")
        for position in order.desired:
            lower, upper = ticks = position.tick_lower, position.tick_upper
            if not (MIN_TICK <= lower <= MAX_TICK and MIN_TICK <= upper <= MAX_TICK):
                raise ProtocolError(Code.TICK_RANGE, f"ticks {ticks}; bounds {MIN_TICK}, {MAX_TICK}")
            if lower >= upper:
                raise ProtocolError(Code.TICK_ORDER, f"tick_lower {lower} >= tick_upper {upper}")
            if lower % pair.tick_spacing or upper % pair.tick_spacing:
                raise ProtocolError(Code.TICK_SPACING, f"ticks {ticks} are no multiples of {pair.tick_spacing}")

    async def _check_market(self, order: Order, tip: Tip) -> int:
        """Chain time, gas price and pool price; returns the pool's price."""
        limits, contract = self.limits, self.wallet.contract
        if (ahead := order.deadline - tip.time) > limits.deadline_seconds:
            raise ProtocolError(Code.ORDER_STALE, f"its deadline is {ahead} s ahead, at most {limits.deadline_seconds}")
        if tip.base_fee_wei > limits.max_gas_wei:
            what = f"gas costs {tip.base_fee_wei} wei, at most {limits.max_gas_wei}"
            raise ProtocolError(Code.GAS_PRICE_LIMIT, what)
        price, tick, averages = await read_prices(self.wallet.rpc, contract, tip.hash)
        if abs(tick - order.tick) > limits.shown_ticks:
            what = f"tick {tick}, shown was {order.tick}, at most {limits.shown_ticks} apart"
            raise ProtocolError(Code.PRICE_MOVED, what)
        if averages is None:
            raise ProtocolError(Code.PRICE_UNKNOWN, unknown_average(contract))
        for name, average in zip(("average", "median"), averages, strict=True):
            if abs(tick - average) > limits.average_ticks:
                what = f"tick {tick}, the {name} of {AVERAGE_SECONDS} s is {average}"
                raise ProtocolError(Code.PRICE_MANIPULATED, f"{what}, at most {limits.average_ticks} apart")
        return price

    async def _check_turnover(
        self, tip: Tip, price: int, held: Sequence[TokenPosition], loose: Amounts, collected: Amounts, most: Amounts
    ) -> int:
        """The value that this moves at most, in millionths of the inventory's, rounded up."""
        working = [token for token in held if token.liquidity]
        bounds = [map(sqrt_ratio_at_tick, token[1:3]) for token in working]
        inside = add(
            *(amounts_of(one.liquidity, price, *at, round_up=False) for one, at in zip(working, bounds, strict=True))
        )
        moved, whole = max(worth(collected, price), worth(most, price)), worth(add(loose, inside), price)
        ppm = -(-moved * 10**6 // max(1, whole))
        mined, moved_ppm = await self.journal.within(tip.time - HOUR_SECONDS)
        if mined >= self.limits.hourly_transactions:
            what = f"{mined} transactions were mined within an hour, at most {self.limits.hourly_transactions}"
            raise ProtocolError(Code.TURNOVER_LIMIT, what)
        if ppm + moved_ppm > self.limits.turnover_percent * 10**4:
            what = f"it would move {ppm / 10**4:.2f} % of the inventory, {moved_ppm / 10**4:.2f} % were moved within an"
            raise ProtocolError(Code.TURNOVER_LIMIT, f"{what} hour, at most {self.limits.turnover_percent} %")
        return ppm

    async def _check_allowances(self, tip: Tip, mints: Sequence[plan.Mint]) -> None:
        need, allowed = add(*(mint.most for mint in mints)), await self.wallet.allowances(tip.hash)
        for token, least, have in zip(self.wallet.tokens, need, allowed, strict=True):
            if have < least:
                what = f"the position manager may take {have} of {token}, {least} are needed"
                fix = "stop the bot and run python -m executor approve"
                raise ProtocolError(Code.EXECUTION_REVERTED, f"{what}: {fix}")
