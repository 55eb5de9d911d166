"""A bit-exact Uniswap V3 pool: the contract's arithmetic and refusals, in integers. This is the plain rule.

    pool = Pool(fee=500, tick_spacing=10)
    pool.initialize(79228162514264337593543950336)          # price 1
    pool.mint("me", -100, 100, 10**18)                      # (4987272070701022, 4987272070701022)
    pool.swap(True, 10**15, MIN_SQRT_RATIO + 1)             # (1000000000000000, -998502...)

Not simulated: gas, the price oracle, tokens that charge for transfers, ticks' `secondsOutside`.

    python -m markets replay ../shared/data/arbitrum_weth_usdt_500_2025-06-27_07-01   # five days of swaps

Written from the formulas and judged by the real contracts' outputs (`tests/test_sim.py`); the contracts' source is GPL.
Pure: no clock, no I/O, floats only to guess what integers then prove. Read next: `liquidity/fast.py` (the same pool
made fast, which all programs use), `liquidity/books.py` (what a position earns in it), `scoring.py`.
"""

from __future__ import annotations

import copy
import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Context, Decimal
from functools import lru_cache

from protocol import MAX_TICK, MIN_TICK

Q96, Q128, Q256 = 1 << 96, 1 << 128, 1 << 256
MASK_128, MASK_256 = Q128 - 1, Q256 - 1
PIPS = 1_000_000  # fees are in millionths

WORD_TICKS = 256  # a swap step looks no further than one 256-bit word of the tick bitmap
BURN_ALL = MASK_128

# 2**128 / 1.0001**(2**(n-1)), rounded to nearest: the factor of bit n of |tick| in the contract's TickMath
_EXACT = Context(prec=90)
_roots = [_EXACT.sqrt(Decimal("1.0001"))]
for _ in range(19):
    _roots.append(_EXACT.multiply(_roots[-1], _roots[-1]))
TICK_FACTORS = tuple(int(_EXACT.add(_EXACT.divide(Decimal(Q128), root), Decimal("0.5"))) for root in _roots)


class PoolError(Exception):
    """The contract would have reverted; the pool is untouched. `reason`: its revert string, empty for a bare revert."""

    def __init__(self, reason: str = ""):
        super().__init__(reason or "reverted without a reason")
        self.reason = reason


# ---------------------------------------------------------------------------------------------------------------------
# Ticks, prices, liquidity, amounts


@lru_cache(maxsize=1 << 16)
def sqrt_ratio_at_tick(tick: int) -> int:
    """Square root of 1.0001**tick as a Q64.96, rounded up, so that `tick_at_sqrt_ratio` finds the same tick again.

    Raises `T` beyond `MIN_TICK`, `MAX_TICK`. Source: v3-core TickMath.getSqrtRatioAtTick, factors as above.
    """
    if not MIN_TICK <= tick <= MAX_TICK:
        raise PoolError("T")
    ratio_x128, rest = Q128, abs(tick)
    for factor in TICK_FACTORS:
        if rest & 1:
            ratio_x128 = ratio_x128 * factor >> 128
        rest >>= 1
    if tick > 0:
        ratio_x128 = MASK_256 // ratio_x128
    return (ratio_x128 + 0xFFFFFFFF) >> 32


MIN_SQRT_RATIO, MAX_SQRT_RATIO = sqrt_ratio_at_tick(MIN_TICK), sqrt_ratio_at_tick(MAX_TICK)
_TICKS_PER_LOG = 2 / math.log(1.0001)
_LOG_Q96 = math.log(Q96)


def tick_at_sqrt_ratio(sqrt_price_x96: int) -> int:
    """The greatest tick whose ratio is at most `sqrt_price_x96`: a guess by logarithm, proved by the two exact ratios.

    Raises `R` outside `MIN_SQRT_RATIO` (included) to `MAX_SQRT_RATIO` (excluded).
    Source: v3-core TickMath.getTickAtSqrtRatio.
    """
    if not MIN_SQRT_RATIO <= sqrt_price_x96 < MAX_SQRT_RATIO:
        raise PoolError("R")
    tick = min(max(math.floor((math.log(sqrt_price_x96) - _LOG_Q96) * _TICKS_PER_LOG), MIN_TICK), MAX_TICK - 1)
    while sqrt_ratio_at_tick(tick) > sqrt_price_x96:
        tick -= 1
    while sqrt_ratio_at_tick(tick + 1) <= sqrt_price_x96:
        tick += 1
    return tick


def amounts_of(liquidity: int, sqrt_price_x96: int, lower_x96: int, upper_x96: int, round_up: bool) -> tuple[int, int]:
    """Amounts of token0 and token1, in base units, behind `liquidity` in the price range lower to upper at a price.

    Rounded up for what a mint pays and down for what a burn gets: the pool never loses. The contract's nested divisions
    are one: floor(floor(a/b)/c) = floor(a/(bc)), and so for ceilings.
    Source: v3-core SqrtPriceMath.getAmount0Delta, getAmount1Delta.
    """
    price = lower_x96 if sqrt_price_x96 < lower_x96 else upper_x96 if sqrt_price_x96 > upper_x96 else sqrt_price_x96
    numerator0, numerator1 = (liquidity << 96) * (upper_x96 - price), liquidity * (price - lower_x96)
    if round_up:
        return -(-numerator0 // (upper_x96 * price)), -(-numerator1 >> 96)
    return numerator0 // (upper_x96 * price), numerator1 >> 96


def liquidity_for(amount0: int, amount1: int, sqrt_price_x96: int, lower_x96: int, upper_x96: int) -> int:
    """The most liquidity that the amounts can mint in a range, as the position manager computes it.

    Its rounding (a product of square roots cut to Q96, then a quotient rounded down) never asks for more than was
    given. Source: v3-periphery LiquidityAmounts.getLiquidityForAmounts.
    """
    price = min(max(sqrt_price_x96, lower_x96), upper_x96)
    of_0 = amount0 * (price * upper_x96 >> 96) // (upper_x96 - price) if price < upper_x96 else None
    of_1 = (amount1 << 96) // (price - lower_x96) if price > lower_x96 else None
    return min(found for found in (of_0, of_1) if found is not None)


# ---------------------------------------------------------------------------------------------------------------------
# The pool


@dataclass(slots=True, eq=False)
class Tick:
    """An initialised tick: where positions begin or end.

    Attributes:
        liquidity_gross: liquidity of all positions that begin or end here; the tick exists while it is > 0.
        liquidity_net: what is added to the liquidity in range when the price crosses upwards.
        fee_growth_outside0_x128, fee_growth_outside1_x128: on the other side of the tick, seen from the price.
    """

    index: int
    liquidity_gross: int = 0
    liquidity_net: int = 0
    fee_growth_outside0_x128: int = 0
    fee_growth_outside1_x128: int = 0


@dataclass(slots=True, eq=False)
class PositionState:
    """One position inside a pool, as the contract's `positions()` shows it."""

    liquidity: int = 0
    fee_growth_inside0_last_x128: int = 0
    fee_growth_inside1_last_x128: int = 0
    tokens_owed0: int = 0
    tokens_owed1: int = 0

    def settle(self, inside0_x128: int, inside1_x128: int, earns: bool = True) -> None:
        """Move the fees earned since the last touch to what is owed; wraps at 2**128 as the contract does."""
        if earns:
            grown0 = (inside0_x128 - self.fee_growth_inside0_last_x128 & MASK_256) * self.liquidity >> 128
            grown1 = (inside1_x128 - self.fee_growth_inside1_last_x128 & MASK_256) * self.liquidity >> 128
            self.tokens_owed0 = self.tokens_owed0 + grown0 & MASK_128
            self.tokens_owed1 = self.tokens_owed1 + grown1 & MASK_128
        self.fee_growth_inside0_last_x128, self.fee_growth_inside1_last_x128 = inside0_x128, inside1_x128


class Pool:
    """A Uniswap V3 pool: same results to the last digit, same refusals by name, each a `PoolError`.

    Attributes (public, read only):
        fee, tick_spacing: in pips, 0 to 999,999; of the usable ticks, >= 1.
        sqrt_price_x96, liquidity: price and liquidity in range.
        tick: the contract's `slot0.tick`; one below the price's own tick after a downward crossing that stopped there.
        fee_growth_global0_x128, fee_growth_global1_x128: fees per unit of liquidity since the start, modulo 2**256.
        fee_protocol, protocol_fees: see `set_fee_protocol`; what `collect_protocol` may take of each token.
        ticks, positions: initialised ticks by index; positions by (owner, tick_lower, tick_upper).

    Source: v3-core UniswapV3Pool and its libraries; judged by traces of the bytecode.
    """

    tick_class = Tick

    def __init__(self, fee: int, tick_spacing: int):
        self.fee, self.tick_spacing = fee, tick_spacing
        self.max_liquidity_per_tick = MASK_128 // (MAX_TICK // tick_spacing * 2 + 1)  # by the ticks in use
        self.sqrt_price_x96 = self.tick = self.liquidity = 0
        self.fee_growth_global0_x128 = self.fee_growth_global1_x128 = 0
        self.fee_protocol = self.protocol_fees = (0, 0)
        self.ticks: dict[int, Tick] = {}
        self.positions: dict[tuple, PositionState] = {}
        self.legs: list | None = None  # while not None, every leg is appended; see `record`
        self._indices: list[int] = []  # of the initialised ticks, in order

    # -- reading

    @property
    def spot(self) -> int:
        """The price, less one where the pool stands one below its price's tick: in a range where that tick is."""
        return self.sqrt_price_x96 - (sqrt_ratio_at_tick(self.tick + 1) <= self.sqrt_price_x96)

    def stands_at(self, tick: int) -> bool:
        """Whether `tick` is the current tick."""
        return tick == self.tick

    def position(self, owner, tick_lower: int, tick_upper: int) -> PositionState:
        """The position's state; all zero if there is none."""
        return self.positions.get((owner, tick_lower, tick_upper)) or PositionState()

    def fee_growth_inside(self, tick_lower: int, tick_upper: int) -> tuple[int, int]:
        """Fees per unit of liquidity earned inside a range, X128, modulo 2**256: only differences over time mean
        anything. Source: v3-core Tick.getFeeGrowthInside."""
        lower = self.ticks.get(tick_lower) or Tick(tick_lower)
        upper = self.ticks.get(tick_upper) or Tick(tick_upper)
        below0, below1 = lower.fee_growth_outside0_x128, lower.fee_growth_outside1_x128
        above0, above1 = upper.fee_growth_outside0_x128, upper.fee_growth_outside1_x128
        if not self._at_or_above(tick_lower):
            inside0, inside1 = below0 - above0, below1 - above1
        elif self._at_or_above(tick_upper):
            inside0, inside1 = above0 - below0, above1 - below1
        else:
            inside0 = self.fee_growth_global0_x128 - below0 - above0
            inside1 = self.fee_growth_global1_x128 - below1 - above1
        return inside0 & MASK_256, inside1 & MASK_256

    def record(self) -> list:
        """From now on append every leg to the returned list; clear it as you read it.

        A leg is a step of a swap, or what a flash paid, that took a fee: (zero_for_one, price before, price after,
        liquidity, fee without the protocol's part, growth per unit of liquidity X128).
        """
        self.legs = []
        return self.legs

    def copy(self) -> Pool:
        """An independent pool in the same state, which records no legs."""
        twin = copy.copy(self)
        twin.ticks = {index: copy.copy(mark) for index, mark in self.ticks.items()}
        twin._indices = self._indices.copy()
        twin.positions = {key: copy.copy(state) for key, state in self.positions.items()}
        twin.legs = None
        return twin

    # -- the calls of the contract

    def initialize(self, sqrt_price_x96: int) -> None:
        """Set the first price. Raises `AI` when there is one already, `R` outside the price range."""
        if self.sqrt_price_x96:
            raise PoolError("AI")
        self.tick = tick_at_sqrt_ratio(sqrt_price_x96)
        self.sqrt_price_x96 = sqrt_price_x96

    def mint(self, owner, tick_lower: int, tick_upper: int, amount: int) -> tuple[int, int]:
        """Add `amount` of liquidity (1 to 2**127 - 1); returns the tokens paid in, rounded up.

        Raises `LOK` before `initialize`; `TLU`, `TLM`, `TUM` for ticks out of order or bounds; `LO` above the most
        liquidity a tick may hold; bare for an amount out of range or a tick off the spacing.
        """
        self._unlocked()
        if not 0 < amount < Q128 >> 1:
            raise PoolError
        self._check_ticks(tick_lower, tick_upper)
        for index in (tick_lower, tick_upper):
            mark = self.ticks.get(index)
            if (mark.liquidity_gross if mark else 0) + amount > self.max_liquidity_per_tick:
                raise PoolError("LO")
        if tick_lower % self.tick_spacing or tick_upper % self.tick_spacing:
            raise PoolError
        key = (owner, tick_lower, tick_upper)
        state = self.positions[key] = self.positions.get(key) or PositionState()
        amounts = self.change_liquidity(tick_lower, tick_upper, amount)
        state.settle(*self.fee_growth_inside(tick_lower, tick_upper), self._earns(owner))
        state.liquidity += amount
        return amounts

    def burn(self, owner, tick_lower: int, tick_upper: int, amount: int) -> tuple[int, int]:
        """Remove `amount` of liquidity (0 only settles fees); the tokens, rounded down, are owed to the position.

        Raises as `mint`, `LS` for more than there is, `NP` for settling a position without liquidity.
        """
        self._unlocked()
        if not 0 <= amount < Q128 >> 1:
            raise PoolError
        self._check_ticks(tick_lower, tick_upper)
        state = self.positions.get((owner, tick_lower, tick_upper))
        held = state.liquidity if state else 0
        if amount > held:
            raise PoolError("LS")
        if held == 0:
            raise PoolError("NP")
        # the fees are settled first: the ticks may vanish with their liquidity
        state.settle(*self.fee_growth_inside(tick_lower, tick_upper), self._earns(owner))
        if amount == 0:
            return 0, 0
        amount0, amount1 = self.change_liquidity(tick_lower, tick_upper, -amount)
        state.liquidity -= amount
        state.tokens_owed0 = state.tokens_owed0 - amount0 & MASK_128
        state.tokens_owed1 = state.tokens_owed1 - amount1 & MASK_128
        return -amount0, -amount1

    def collect(self, owner, tick_lower: int, tick_upper: int, amount0: int, amount1: int) -> tuple[int, int]:
        """Pay out what is owed to a position, up to these amounts; fees not settled yet stay."""
        self._unlocked()
        state = self.position(owner, tick_lower, tick_upper)
        amount0, amount1 = min(amount0, state.tokens_owed0), min(amount1, state.tokens_owed1)
        state.tokens_owed0 -= amount0
        state.tokens_owed1 -= amount1
        return amount0, amount1

    def swap(self, zero_for_one: bool, amount_specified: int, sqrt_price_limit_x96: int) -> tuple[int, int]:
        """Trade along the curve, step by step: from tick to tick and from word end to word end.

        Args:
            zero_for_one: token0 in and the price down, or the reverse.
            amount_specified: exact input if positive, exact output if negative, in base units.
            sqrt_price_limit_x96: the price never goes past it; the swap then ends with less than specified.

        Returns (amount0, amount1) as the pool emits them: positive into the pool, negative out of it. Raises `AS` for
        amount 0, `LOK` before `initialize`, `SPL` for a limit on the wrong side or out of range.
        Source: v3-core UniswapV3Pool.swap, SwapMath.computeSwapStep.
        """
        self._check_swap(zero_for_one, amount_specified, limit := sqrt_price_limit_x96)
        exact_input, remaining, calculated = amount_specified > 0, amount_specified, 0
        while remaining and self.sqrt_price_x96 != limit:
            start, stop = self.sqrt_price_x96, self._next_stop(zero_for_one)
            stop_x96 = sqrt_ratio_at_tick(stop)
            end = max(stop_x96, limit) if zero_for_one else min(stop_x96, limit)
            amount_in, amount_out, fee = self._whole_step(start, end, zero_for_one)
            if remaining < amount_in if exact_input else -remaining < amount_out:
                end, amount_in, amount_out, fee = self._last_step(start, remaining, zero_for_one)
            if exact_input:
                remaining -= amount_in
                calculated -= amount_out
            else:
                remaining += amount_out
                calculated += amount_in
            self._share_out(fee, zero_for_one, end)
            self.sqrt_price_x96 = end
            if end == stop_x96:
                if mark := self.ticks.get(stop):
                    self._flip(mark)
                    self._crossed(mark, zero_for_one)
                    self.liquidity += -mark.liquidity_net if zero_for_one else mark.liquidity_net
                self.tick = stop - 1 if zero_for_one else stop
            elif end != start:
                self.tick = tick_at_sqrt_ratio(end)
        used = amount_specified - remaining
        return (used, calculated) if zero_for_one == exact_input else (calculated, used)

    def flash(self, amount0: int, amount1: int, tip0: int = 0, tip1: int = 0) -> tuple[int, int]:
        """Lend tokens for one call. The fee, and whatever comes back above it (`tip`), goes to the liquidity in range.

        Returns what was paid above the loan, both tokens (the event's paid0, paid1). Raises `L` without liquidity in
        range; `F0`, `F1` for less than the fee (a negative tip); bare if the payment would overflow the fee growth.
        """
        self._unlocked()
        if not self.liquidity:
            raise PoolError("L")
        if tip0 < 0 or tip1 < 0:
            raise PoolError("F0" if tip0 < 0 else "F1")
        paid0 = -(-amount0 * self.fee // PIPS) + tip0
        paid1 = -(-amount1 * self.fee // PIPS) + tip1
        if self._split(paid0, True)[0] >= Q256 or self._split(paid1, False)[0] >= Q256:
            raise PoolError
        for zero_for_one, paid in ((True, paid0), (False, paid1)):
            self._share_out(paid, zero_for_one, self.sqrt_price_x96)
        return paid0, paid1

    def set_fee_protocol(self, fee_protocol0: int, fee_protocol1: int) -> None:
        """The protocol takes 1/n of each token's fees; n is 0 (nothing) or 4 to 10, anything else a bare revert."""
        self._unlocked()
        if any(n and not 4 <= n <= 10 for n in (fee_protocol0, fee_protocol1)):
            raise PoolError
        self.fee_protocol = (fee_protocol0, fee_protocol1)

    def collect_protocol(self, amount0: int, amount1: int) -> tuple[int, int]:
        """Pay out protocol fees; of all there is one unit stays behind, as the contract never clears the slot."""
        self._unlocked()
        have0, have1 = self.protocol_fees
        paid0 = amount0 if amount0 < have0 else max(have0 - 1, 0)
        paid1 = amount1 if amount1 < have1 else max(have1 - 1, 0)
        self.protocol_fees = (have0 - paid0, have1 - paid1)
        return paid0, paid1

    # -- beyond the contract: for replays

    def jump(self, sqrt_price_x96: int, tick: int, liquidity: int) -> None:
        """Take a recorded state over without trading: nothing moves, no fees grow, ticks on the way are crossed."""
        for index, mark in self.ticks.items():
            if self._at_or_above(index) != (index <= tick):
                self._flip(mark)
        self.sqrt_price_x96, self.tick, self.liquidity = sqrt_price_x96, tick, liquidity

    def load(self, tick: int, liquidity: int, growth0_x128: int, growth1_x128: int, ticks: Iterable[Tick]) -> None:
        """Take a recorded state over."""
        self.tick, self.liquidity = tick, liquidity
        self.fee_growth_global0_x128, self.fee_growth_global1_x128 = growth0_x128, growth1_x128
        self.ticks = {mark.index: mark for mark in ticks}
        self._indices = sorted(self.ticks)

    def change_liquidity(self, tick_lower: int, tick_upper: int, delta: int) -> tuple[int, int]:
        """Add liquidity to a range or take it out, whoever owns it: what mint and burn have in common.

        Returns signed token amounts, positive into the pool, each rounded up: a payment grows, a release (being
        negative) shrinks, so the pool never loses. Raises `LS` if more is taken out than begins or ends at one of the
        ticks, which are not checked otherwise. Source: v3-core UniswapV3Pool._modifyPosition, Tick.update.
        """
        lower, upper = self.ticks.get(tick_lower), self.ticks.get(tick_upper)
        if delta < 0 and not (lower and upper and min(lower.liquidity_gross, upper.liquidity_gross) + delta >= 0):
            raise PoolError("LS")
        lower = lower or self._add_tick(tick_lower)
        upper = upper or self._add_tick(tick_upper)
        lower.liquidity_gross += delta
        lower.liquidity_net += delta
        upper.liquidity_gross += delta
        upper.liquidity_net -= delta
        if self._at_or_above(tick_lower) and not self._at_or_above(tick_upper):
            self.liquidity += delta
        lower_x96, upper_x96 = sqrt_ratio_at_tick(tick_lower), sqrt_ratio_at_tick(tick_upper)
        if delta > 0:
            return amounts_of(delta, self.sqrt_price_x96, lower_x96, upper_x96, True)
        amount0, amount1 = amounts_of(-delta, self.sqrt_price_x96, lower_x96, upper_x96, False)
        for mark in (lower, upper):
            if not mark.liquidity_gross:
                self._remove_tick(mark)
        return -amount0, -amount1

    def _unlocked(self) -> None:
        if not self.sqrt_price_x96:
            raise PoolError("LOK")

    def _check_swap(self, zero_for_one: bool, amount_specified: int, limit: int) -> None:
        if not amount_specified:
            raise PoolError("AS")
        if not (price := self.sqrt_price_x96):
            raise PoolError("LOK")
        if not (MIN_SQRT_RATIO < limit < price if zero_for_one else price < limit < MAX_SQRT_RATIO):
            raise PoolError("SPL")

    def _check_ticks(self, tick_lower: int, tick_upper: int) -> None:
        if tick_lower >= tick_upper:
            raise PoolError("TLU")
        if tick_lower < MIN_TICK:
            raise PoolError("TLM")
        if tick_upper > MAX_TICK:
            raise PoolError("TUM")

    def _earns(self, owner) -> bool:
        """Whether a position of this owner earns fees."""
        return True

    def _at_or_above(self, index: int) -> bool:
        return index <= self.tick

    def _add_tick(self, index: int) -> Tick:
        mark = self.ticks[index] = self.tick_class(index)
        insort(self._indices, index)
        if self._at_or_above(index):  # by convention all growth so far happened below
            mark.fee_growth_outside0_x128 = self.fee_growth_global0_x128
            mark.fee_growth_outside1_x128 = self.fee_growth_global1_x128
        return mark

    def _remove_tick(self, mark: Tick) -> None:
        del self.ticks[mark.index], self._indices[bisect_left(self._indices, mark.index)]

    def _flip(self, mark: Tick) -> None:
        """The price goes to the other side of a tick."""
        mark.fee_growth_outside0_x128 = self.fee_growth_global0_x128 - mark.fee_growth_outside0_x128 & MASK_256
        mark.fee_growth_outside1_x128 = self.fee_growth_global1_x128 - mark.fee_growth_outside1_x128 & MASK_256

    def _crossed(self, mark: Tick, zero_for_one: bool) -> None:
        """What else happens when a swap crosses a tick: nothing here."""

    def _next_stop(self, zero_for_one: bool) -> int:
        """At the next initialised tick, or where its word of the bitmap ends (v3-core TickBitmap)."""
        spacing, at = self.tick_spacing, bisect_right(self._indices, self.tick)
        place = self.tick // spacing
        if zero_for_one:
            edge = max(place // WORD_TICKS * WORD_TICKS * spacing, MIN_TICK)
            return max(edge, self._indices[at - 1]) if at else edge
        edge = min(((place + 1) // WORD_TICKS * WORD_TICKS + WORD_TICKS - 1) * spacing, MAX_TICK)
        return min(edge, self._indices[at]) if at < len(self._indices) else edge

    def _whole_step(self, start: int, stop: int, zero_for_one: bool) -> tuple[int, int, int]:
        """What it takes to go from price to price: (in with the fee, out, fee)."""
        net_in, amount_out = _step_amounts(self.liquidity, start, stop, zero_for_one)
        fee = -(-net_in * self.fee // (PIPS - self.fee))
        return net_in + fee, amount_out, fee

    def _last_step(self, start: int, remaining: int, zero_for_one: bool) -> tuple[int, int, int, int]:
        """The step in which the specified amount runs out: (price reached, in with the fee, out, fee)."""
        liquidity = self.liquidity
        if remaining > 0:
            stop = _price_after_input(start, liquidity, remaining * (PIPS - self.fee) // PIPS, zero_for_one)
            net_in, amount_out = _step_amounts(liquidity, start, stop, zero_for_one)
            return stop, remaining, amount_out, remaining - net_in  # what the rounding leaves over is fee as well
        stop = _price_after_output(start, liquidity, -remaining, zero_for_one)
        amount_in, _, fee = self._whole_step(start, stop, zero_for_one)
        return stop, amount_in, -remaining, fee

    def _split(self, fee: int, zero_for_one: bool) -> tuple[int, int, int]:
        """What becomes of a step's fee: (growth per unit of liquidity X128, the protocol's part, the leg's fee)."""
        cut = self.fee_protocol[not zero_for_one]
        protocol = fee // cut if cut else 0
        return (fee - protocol << 128) // self.liquidity, protocol, fee - protocol

    def _take(self, protocol: int, zero_for_one: bool) -> None:
        """Put the protocol's part of the fees aside."""
        fees = list(self.protocol_fees)
        fees[not zero_for_one] = fees[not zero_for_one] + protocol & MASK_128
        self.protocol_fees = tuple(fees)

    def _share_out(self, fee: int, zero_for_one: bool, end_x96: int) -> None:
        """Give everybody their part of a step's fee, and note the leg."""
        if not fee:
            return
        growth, protocol, leg_fee = self._split(fee, zero_for_one)
        if protocol:
            self._take(protocol, zero_for_one)
        if leg_fee and self.legs is not None:
            self.legs.append((zero_for_one, self.sqrt_price_x96, end_x96, self.liquidity, leg_fee, growth))
        if zero_for_one:
            self.fee_growth_global0_x128 = self.fee_growth_global0_x128 + growth & MASK_256
        else:
            self.fee_growth_global1_x128 = self.fee_growth_global1_x128 + growth & MASK_256


def _step_amounts(liquidity: int, start: int, stop: int, zero_for_one: bool) -> tuple[int, int]:
    """(in without fee, rounded up; out, rounded down) of a move from price to price at one liquidity."""
    if zero_for_one:
        return -((liquidity << 96) * (stop - start) // (start * stop)), liquidity * (start - stop) >> 96
    return -(liquidity * (start - stop) >> 96), (liquidity << 96) * (stop - start) // (stop * start)


def _price_after_input(price: int, liquidity: int, net_in: int, zero_for_one: bool) -> int:
    """Where an input ends, rounded towards the start: the pool must not give more than it was paid for.

    As v3-core SqrtPriceMath.getNextSqrtPriceFromInput, with its less exact form where uint256 would overflow.
    """
    if not zero_for_one:
        return price + (net_in << 96) // liquidity
    liquidity_x96 = liquidity << 96
    denominator = liquidity_x96 + net_in * price
    if denominator < Q256:
        return -(-liquidity_x96 * price // denominator)
    return -(-liquidity_x96 // (liquidity_x96 // price + net_in))


def _price_after_output(price: int, liquidity: int, amount_out: int, zero_for_one: bool) -> int:
    """Where an output is reached, rounded away from the start: the pool must be paid for all of it."""
    if zero_for_one:
        return price - -((-amount_out << 96) // liquidity)
    liquidity_x96 = liquidity << 96
    return -(-liquidity_x96 * price // (liquidity_x96 - amount_out * price))
