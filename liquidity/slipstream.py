"""Aerodrome's variant of the pool: staked liquidity earns no fees, and the factory may change the fee at any swap.

    pool = SlipstreamPool(fee=500, tick_spacing=10, unstaked_fee=100_000)

Written from the formulas and judged by the real contracts' outputs (`tests/test_slipstream.py`). Pure.
Read first: `sim.py`, `fast.py`. Read next: `events.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from liquidity.fast import FastPool, FastTick
from sim import MASK_128, MASK_256, PIPS, PoolError, PositionState


@dataclass(slots=True, eq=False)
class SlipstreamTick(FastTick):
    """A tick that also knows how much of its net liquidity is staked, and the reward growth on its other side."""

    staked_liquidity_net: int = 0
    reward_growth_outside_x128: int = 0


class SlipstreamPool(FastPool):
    """Aerodrome's CLPool: a Uniswap V3 pool whose staked liquidity trades its swap fees for rewards.

    Attributes besides `Pool`'s; there is no protocol fee:
        fee, unstaked_fee: of swaps, and the part of the unstaked positions' fees that goes to the gauge, in pips; asked
            for once a swap, see `set_fees`.
        nft, gauge: the owners that stand for the position manager and the gauge, whose positions earn no fees.
        timestamp: block time in unix seconds, set by the caller before each call: rewards grow with it.
        gauge_fees0, gauge_fees1: fees of staked liquidity and cuts of unstaked fees, for `collect_fees`.
        staked_liquidity: the part of `liquidity` that is staked.

    Source: Aerodrome Slipstream CLPool; judged by traces of the bytecode.
    """

    tick_class = SlipstreamTick
    _crosses = True

    def __init__(self, fee: int, tick_spacing: int, unstaked_fee: int = 0, nft=0, gauge=1):
        super().__init__(fee, tick_spacing)
        self.unstaked_fee, self.nft, self.gauge = unstaked_fee, nft, gauge
        self.timestamp = self.last_updated = 0
        self.gauge_fees0 = self.gauge_fees1 = 0
        self.staked_liquidity = 0
        self.reward_growth_global_x128 = self.reward_rate = self.reward_reserve = 0
        self.period_finish = self.rollover = 0

    def set_fees(self, fee: int, unstaked_fee: int) -> None:
        """What the factory answers from now on, both in pips."""
        self.fee, self.unstaked_fee = fee, unstaked_fee
        self._new_terms()

    def stake(self, liquidity_delta: int, tick_lower: int, tick_upper: int, position_update: bool) -> None:
        """The gauge stakes liquidity of a range, or takes it back (negative).

        With `position_update` it also moves from the position manager's position to the gauge's. Raises `LS` where more
        leaves than there is, `NP` for a delta of 0 without liquidity.
        """
        in_range = tick_lower <= self.tick < tick_upper
        if in_range and self.staked_liquidity + liquidity_delta < 0:
            raise PoolError("LS")
        if position_update:
            moves = [
                ((owner, tick_lower, tick_upper), delta)
                for owner, delta in ((self.nft, -liquidity_delta), (self.gauge, liquidity_delta))
            ]
            for key, delta in moves:
                held = self.position(*key).liquidity
                if held + delta < 0:
                    raise PoolError("LS")
                if held == delta == 0:
                    raise PoolError("NP")
            inside = self.fee_growth_inside(tick_lower, tick_upper)
            for key, delta in moves:
                state = self.positions.setdefault(key, PositionState())
                state.settle(*inside, self._earns(key[0]))
                state.liquidity += delta
        if in_range:
            self.update_rewards()
            self.staked_liquidity += liquidity_delta
        for index, delta in ((tick_lower, liquidity_delta), (tick_upper, -liquidity_delta)):
            if index in self.ticks:
                self.ticks[index].staked_liquidity_net += delta
        self._new_terms()

    def collect_fees(self) -> tuple[int, int]:
        """Pay the gauge its fees, but for one unit of each token; a lone unit is reported and stays."""
        fees0, fees1 = self.gauge_fees0, self.gauge_fees1
        self.gauge_fees0, self.gauge_fees1 = min(fees0, 1), min(fees1, 1)
        return fees0 - (fees0 > 1), fees1 - (fees1 > 1)

    def sync_reward(self, rate: int, reserve: int, finish: int) -> None:
        """The gauge sets the reward stream: wei a second, wei in reserve, unix seconds of its end."""
        self.reward_rate, self.reward_reserve, self.period_finish, self.rollover = rate, reserve, finish, 0

    def update_rewards(self) -> None:
        """Let the reward growth catch up with `timestamp`; what falls on no staked liquidity rolls over."""
        elapsed = self.timestamp - self.last_updated
        if not elapsed:
            return
        if self.reward_reserve:
            reward = min(self.reward_rate * elapsed, self.reward_reserve)
            self.reward_reserve -= reward
            if self.staked_liquidity:
                growth = (reward << 128) // self.staked_liquidity
                self.reward_growth_global_x128 = self.reward_growth_global_x128 + growth & MASK_256
            else:
                self.rollover += reward
        self.last_updated = self.timestamp

    def reward_inside(self, tick_lower: int, tick_upper: int) -> int:
        """Rewards per unit of staked liquidity inside a range, X128, modulo 2**256."""
        below, above = (
            self.ticks[i].reward_growth_outside_x128 if i in self.ticks else 0 for i in (tick_lower, tick_upper)
        )
        if self.tick < tick_lower:
            return below - above & MASK_256
        if self.tick >= tick_upper:
            return above - below & MASK_256
        return self.reward_growth_global_x128 - below - above & MASK_256

    def _earns(self, owner) -> bool:
        return owner != self.gauge

    def _shares_fees(self) -> bool:
        return True

    def _split(self, fee: int, zero_for_one: bool) -> tuple[int, int, int]:
        """Staked liquidity's part, rounded up, and the cut of the rest, rounded up, go to the gauge."""
        liquidity, staked = self.liquidity, self.staked_liquidity
        if staked == liquidity:
            return 0, fee, fee
        unstaked = fee - -(-fee * staked // liquidity)
        earned = unstaked - -(-unstaked * self.unstaked_fee // PIPS)
        return (earned << 128) // (liquidity - staked), fee - earned, fee

    def _take(self, gauge: int, zero_for_one: bool) -> None:
        if zero_for_one:
            self.gauge_fees0 = self.gauge_fees0 + gauge & MASK_128
        else:
            self.gauge_fees1 = self.gauge_fees1 + gauge & MASK_128

    def _crossed(self, mark: SlipstreamTick, zero_for_one: bool) -> None:
        self.update_rewards()  # with the stake of before the crossing; later ones in this block find no time elapsed
        mark.reward_growth_outside_x128 = self.reward_growth_global_x128 - mark.reward_growth_outside_x128 & MASK_256
        self.staked_liquidity += -mark.staked_liquidity_net if zero_for_one else mark.staked_liquidity_net
