"""What the operator allows: each limit, and what an order or the market must be to stay within it.

Read first: `execution.py`. Read next: `drafting.py`, which holds every order against them.
"""

from __future__ import annotations

from dataclasses import dataclass

from evm.follower import CONFIRMATIONS
from evm.pool import Contract
from executor.readback import AVERAGE_SECONDS, Tip, unknown_average
from liquidity.executions import Order
from protocol import MAX_TICK, MIN_TICK, Code, ProtocolError

GWEI = 10**9
HOUR_SECONDS = 3600


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

    def check_order(self, order: Order, contract: Contract, vault: str) -> None:
        """What is wrong with it wherever the market stands. Raises `ProtocolError`."""
        pair = contract.pair
        if (order.chain_id, order.pool.lower()) != (pair.chain_id, pair.pool_address):
            here = f"{pair.pool_address} on chain {pair.chain_id}"
            raise ProtocolError(Code.FOREIGN_POOL, f"pool {order.pool} on chain {order.chain_id}, allowed is {here}")
        if order.vault.lower() != vault:
            raise ProtocolError(Code.FOREIGN_VAULT, f"vault {order.vault}, allowed is {vault}")
        if len(order.desired) > self.max_positions:
            what = f"{len(order.desired)} positions, at most {self.max_positions}"
            raise ProtocolError(Code.TOO_MANY_POSITIONS, what)
        for position in order.desired:
            lower, upper = ticks = position.tick_lower, position.tick_upper
            if not (MIN_TICK <= lower <= MAX_TICK and MIN_TICK <= upper <= MAX_TICK):
                raise ProtocolError(Code.TICK_RANGE, f"ticks {ticks}; bounds {MIN_TICK}, {MAX_TICK}")
            if lower >= upper:
                raise ProtocolError(Code.TICK_ORDER, f"tick_lower {lower} >= tick_upper {upper}")
            if lower % pair.tick_spacing or upper % pair.tick_spacing:
                raise ProtocolError(Code.TICK_SPACING, f"ticks {ticks} are no multiples of {pair.tick_spacing}")

    def check_block(self, order: Order, tip: Tip) -> None:
        """Time and gas price. Raises `ProtocolError`: `ORDER_STALE`, `GAS_PRICE_LIMIT`."""
        if (ahead := order.deadline - tip.time) > self.deadline_seconds:
            raise ProtocolError(Code.ORDER_STALE, f"its deadline is {ahead} s ahead, at most {self.deadline_seconds}")
        if tip.base_fee_wei > self.max_gas_wei:
            raise ProtocolError(Code.GAS_PRICE_LIMIT, f"gas costs {tip.base_fee_wei} wei, at most {self.max_gas_wei}")

    def check_price(self, order: Order, contract: Contract, tick: int, averages: tuple[int, int] | None) -> None:
        """The pool's price. Raises `ProtocolError`: `PRICE_MOVED`, `PRICE_MANIPULATED`, `PRICE_UNKNOWN`."""
        if abs(tick - order.tick) > self.shown_ticks:
            what = f"tick {tick}, shown was {order.tick}, at most {self.shown_ticks} apart"
            raise ProtocolError(Code.PRICE_MOVED, what)
        if averages is None:
            raise ProtocolError(Code.PRICE_UNKNOWN, unknown_average(contract))
        for name, average in zip(("average", "median"), averages, strict=True):
            if abs(tick - average) > self.average_ticks:
                what = f"tick {tick}, the {name} of {AVERAGE_SECONDS} s is {average}"
                raise ProtocolError(Code.PRICE_MANIPULATED, f"{what}, at most {self.average_ticks} apart")

    def check_hour(self, ppm: int, mined: int, moved_ppm: int) -> None:
        """What would move `ppm` of the inventory, after what was mined and moved within an hour.

        Raises:
            ProtocolError: `TURNOVER_LIMIT`.
        """
        if mined >= self.hourly_transactions:
            what = f"{mined} transactions were mined within an hour, at most {self.hourly_transactions}"
            raise ProtocolError(Code.TURNOVER_LIMIT, what)
        if ppm + moved_ppm > self.turnover_percent * 10**4:
            raise ProtocolError(
                Code.TURNOVER_LIMIT,
                f"it would move {ppm / 10**4:.2f} % of the inventory, {moved_ppm / 10**4:.2f} % were moved within an"
                f" hour, at most {self.turnover_percent} %",
            )
