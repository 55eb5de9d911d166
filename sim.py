"""A bit-exact Uniswap V3 pool and Aerodrome's variant of it: the contracts' arithmetic and refusals, in integers.

    pool = Pool(fee=500, tick_spacing=10)
    pool.initialize(79228162514264337593543950336)          # price 1
    pool.mint("me", -100, 100, 10**18)                      # (4987272070701022, 4987272070701022)
    pool.swap(True, 10**15, MIN_SQRT_RATIO + 1)             # (1000000000000000, -998502...)

Not simulated: gas, the price oracle, tokens that charge for transfers, ticks' `secondsOutside`.

    python -m markets replay ../shared/data/arbitrum_weth_usdt_500_2025-06-27_07-01   # five days of swaps

Written from the formulas and judged by the real contracts' outputs (`tests/test_sim.py`); the contracts' source is GPL.
Pure: standard library only, no clock, no I/O but in `main()`, floats only to guess what integers then prove.
Read next: `recording.py` (what a chain recorded of a pool), `books.py` (what a position earns in that), `scoring.py`.
"""

from __future__ import annotations

import copy
import math
from bisect import bisect_left, bisect_right
from decimal import Context, Decimal
from functools import lru_cache

Q96, Q128, Q256 = 1 << 96, 1 << 128, 1 << 256
MASK_128, MASK_256 = Q128 - 1, Q256 - 1
PIPS = 1_000_000  # fees are in millionths
MIN_TICK, MAX_TICK = -887272, 887272
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

    Raises:
        PoolError: `T` beyond `MIN_TICK`, `MAX_TICK`.

    Source: v3-core TickMath.getSqrtRatioAtTick; the factors are derived above.
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

    Raises:
        PoolError: `R` outside `MIN_SQRT_RATIO` (included) to `MAX_SQRT_RATIO` (excluded).

    Source: v3-core TickMath.getTickAtSqrtRatio.
    """
    if not MIN_SQRT_RATIO <= sqrt_price_x96 < MAX_SQRT_RATIO:
        raise PoolError("R")
    tick = math.floor((math.log(sqrt_price_x96) - _LOG_Q96) * _TICKS_PER_LOG)
    tick = min(max(tick, MIN_TICK), MAX_TICK - 1)
    while sqrt_ratio_at_tick(tick) > sqrt_price_x96:
        tick -= 1
    while sqrt_ratio_at_tick(tick + 1) <= sqrt_price_x96:
        tick += 1
    return tick


def amounts_of(liquidity: int, sqrt_price_x96: int, lower_x96: int, upper_x96: int, round_up: bool) -> tuple[int, int]:
    """Tokens behind `liquidity` in the price range lower to upper at a price.

    Rounded up for what a mint pays and down for what a burn gets: the pool never loses. The contract's nested divisions
    are one: floor(floor(a/b)/c) = floor(a/(bc)), and so for ceilings.

    Args:
        liquidity: of the position, >= 0.
        sqrt_price_x96, lower_x96, upper_x96: Q64.96, lower < upper.

    Returns:
        Amounts of token0 and token1 in base units.

    Source: v3-core SqrtPriceMath.getAmount0Delta, getAmount1Delta.
    """
    price = min(max(sqrt_price_x96, lower_x96), upper_x96)
    numerator0, denominator0 = (liquidity << 96) * (upper_x96 - price), upper_x96 * price
    numerator1 = liquidity * (price - lower_x96)
    if round_up:
        return -(-numerator0 // denominator0), -(-numerator1 >> 96)
    return numerator0 // denominator0, numerator1 >> 96


def liquidity_for(amount0: int, amount1: int, sqrt_price_x96: int, lower_x96: int, upper_x96: int) -> int:
    """The most liquidity that the amounts can mint in a range, as the position manager computes it.

    Its rounding (a product of square roots cut to Q96, then a quotient rounded down) never asks for more than was
    given.

    Source: v3-periphery LiquidityAmounts.getLiquidityForAmounts.
    """
    price = min(max(sqrt_price_x96, lower_x96), upper_x96)
    of_0 = amount0 * (price * upper_x96 >> 96) // (upper_x96 - price) if price < upper_x96 else None
    of_1 = (amount1 << 96) // (price - lower_x96) if price > lower_x96 else None
    return min(found for found in (of_0, of_1) if found is not None)


# ---------------------------------------------------------------------------------------------------------------------
# The pool


class Tick:
    """An initialised tick: where positions begin or end.

    Attributes:
        liquidity_gross: liquidity of all positions that begin or end here; the tick exists while it is > 0.
        liquidity_net: what is added to the liquidity in range when the price crosses upwards.
        fee_growth_outside0_x128, fee_growth_outside1_x128: fee growth on the other side of the tick, seen from the
            price.
        index, sqrt_ratio_x96: the tick and its price.
        span_down, span_up: memo of a whole swap step that ends here; see `Pool._walk`.
    """

    __slots__ = (
        "fee_growth_outside0_x128",
        "fee_growth_outside1_x128",
        "index",
        "liquidity_gross",
        "liquidity_net",
        "span_down",
        "span_up",
        "sqrt_ratio_x96",
    )

    def __init__(self, index: int):
        self.index, self.sqrt_ratio_x96 = index, sqrt_ratio_at_tick(index)
        self.liquidity_gross = self.liquidity_net = 0
        self.fee_growth_outside0_x128 = self.fee_growth_outside1_x128 = 0
        self.span_down = self.span_up = _NO_SPAN


_NO_SPAN = (0, 0, 0, None)


class PositionState:
    """One position inside a pool, as the contract's `positions()` shows it."""

    __slots__ = (
        "fee_growth_inside0_last_x128",
        "fee_growth_inside1_last_x128",
        "liquidity",
        "tokens_owed0",
        "tokens_owed1",
    )

    def __init__(self):
        self.liquidity = self.tokens_owed0 = self.tokens_owed1 = 0
        self.fee_growth_inside0_last_x128 = self.fee_growth_inside1_last_x128 = 0

    def settle(self, inside0_x128: int, inside1_x128: int, earns: bool = True) -> None:
        """Move the fees earned since the last touch to what is owed; wraps at 2**128 as the contract does."""
        if earns:
            grown0 = (inside0_x128 - self.fee_growth_inside0_last_x128 & MASK_256) * self.liquidity >> 128
            grown1 = (inside1_x128 - self.fee_growth_inside1_last_x128 & MASK_256) * self.liquidity >> 128
            self.tokens_owed0 = self.tokens_owed0 + grown0 & MASK_128
            self.tokens_owed1 = self.tokens_owed1 + grown1 & MASK_128
        self.fee_growth_inside0_last_x128, self.fee_growth_inside1_last_x128 = inside0_x128, inside1_x128


class Pool:
    """A Uniswap V3 pool: same results to the last digit, same refusals by name.

    Args:
        fee: in pips, 0 to 999,999.
        tick_spacing: of the usable ticks, >= 1.

    Attributes (public, read only):
        sqrt_price_x96, liquidity: price and liquidity in range.
        tick: the contract's `slot0.tick`; one below the price's own tick after a downward crossing that stopped there.
        fee_growth_global0_x128, fee_growth_global1_x128: fees per unit of liquidity since the start, modulo 2**256.
        protocol_fees: (token0, token1) that `collect_protocol` may take.
        ticks: initialised ticks by index.

    How it is fast: the *cell* is the open price interval in which no tick, and no end of a bitmap word, lies. A swap
    that stays inside needs no search, and its tick is only computed when somebody asks (`_tick is None` until then).
    Everything else walks in `_walk`, where whole steps from tick to tick are remembered.

    Source: v3-core UniswapV3Pool and its libraries, `reference` notes on formulas; judged by traces of the bytecode.
    """

    # slots: a swap reads a dozen attributes; without them each read takes a fifth longer once a pool has been copied
    __slots__ = (
        "__dict__",
        "_below",
        "_epoch",
        "_hi",
        "_keep",
        "_liquidity_x96",
        "_lo",
        "_lo_squared",
        "_marks",
        "_plain",
        "_ratios",
        "_tick",
        "_word",
        "_word_hi",
        "_word_lo",
        "fee",
        "fee_growth_global0_x128",
        "fee_growth_global1_x128",
        "fee_protocol",
        "legs",
        "liquidity",
        "max_liquidity_per_tick",
        "positions",
        "protocol_fees",
        "sqrt_price_x96",
        "tick_spacing",
        "ticks",
    )
    tick_class = Tick
    _crosses = False  # whether `_cross` has anything to do

    def __init__(self, fee: int, tick_spacing: int):
        self.fee, self.tick_spacing = fee, tick_spacing
        ticks_in_use = MAX_TICK // tick_spacing * 2 + 1
        self.max_liquidity_per_tick = MASK_128 // ticks_in_use
        self.sqrt_price_x96 = self.liquidity = 0
        self.fee_growth_global0_x128 = self.fee_growth_global1_x128 = 0
        self.fee_protocol = (0, 0)
        self.protocol_fees = (0, 0)
        self.ticks: dict[int, Tick] = {}
        self.positions: dict[tuple, PositionState] = {}
        self.legs: list | None = None  # while not None, every leg is appended; see `record`
        self._plain = True  # no legs to record, nobody to share fees with
        self._keep = PIPS - fee
        self._epoch = 0  # counts changes of fees: outdates remembered steps
        self._tick: int | None = None
        self._marks: list[Tick] = []  # initialised ticks in order,
        self._ratios: list[int] = []  # and their prices
        self._below = -1  # index in _marks of the highest one at or below the tick
        self._liquidity_x96 = 0
        self._word = 0  # first tick of the bitmap word that the tick lies in,
        self._word_lo = self._word_hi = 0  # its price, and that of the word's last tick
        self._lo = self._hi = self._lo_squared = 0  # the cell, both ends excluded

    # -- reading

    @property
    def tick(self) -> int:
        if self._tick is None:
            self._tick = tick_at_sqrt_ratio(self.sqrt_price_x96)
        return self._tick

    @property
    def spot(self) -> int:
        """The price, less one where the pool stands one below its price's tick: in a range where that tick is."""
        below = self._tick is not None and sqrt_ratio_at_tick(self._tick + 1) <= self.sqrt_price_x96
        return self.sqrt_price_x96 - below

    def position(self, owner, tick_lower: int, tick_upper: int) -> PositionState:
        """The position's state; all zero if there is none."""
        return self.positions.get((owner, tick_lower, tick_upper)) or PositionState()

    def fee_growth_inside(self, tick_lower: int, tick_upper: int) -> tuple[int, int]:
        """Fees per unit of liquidity earned inside a range, modulo 2**256: only differences over time mean anything.

        Source: v3-core Tick.getFeeGrowthInside.
        """
        lower = self.ticks.get(tick_lower) or self.tick_class(tick_lower)
        upper = self.ticks.get(tick_upper) or self.tick_class(tick_upper)
        below0, below1 = lower.fee_growth_outside0_x128, lower.fee_growth_outside1_x128
        above0, above1 = upper.fee_growth_outside0_x128, upper.fee_growth_outside1_x128
        if not self._at_or_below(lower):
            inside0, inside1 = below0 - above0, below1 - above1
        elif self._at_or_below(upper):
            inside0, inside1 = above0 - below0, above1 - below1
        else:
            inside0 = self.fee_growth_global0_x128 - below0 - above0
            inside1 = self.fee_growth_global1_x128 - below1 - above1
        return inside0 & MASK_256, inside1 & MASK_256

    def record(self) -> list:
        """From now on append every leg to the returned list; clear it as you read it. Legs are described at `Tape`."""
        self.legs, self._plain = [], False
        return self.legs

    def copy(self) -> Pool:
        """An independent pool in the same state."""
        twin = copy.copy(self)
        twin._marks = [copy.copy(mark) for mark in self._marks]
        twin.ticks = {mark.index: mark for mark in twin._marks}
        twin._ratios = self._ratios.copy()
        twin.positions = {key: copy.copy(state) for key, state in self.positions.items()}
        twin.legs, twin._plain = None, not self._shares_fees()
        return twin

    # -- the calls of the contract

    def initialize(self, sqrt_price_x96: int) -> None:
        """Set the first price. Raises `AI` when there is one already, `R` outside the price range."""
        if self.sqrt_price_x96:
            raise PoolError("AI")
        self._tick = tick_at_sqrt_ratio(sqrt_price_x96)
        self.sqrt_price_x96 = sqrt_price_x96
        self._locate()

    def mint(self, owner, tick_lower: int, tick_upper: int, amount: int) -> tuple[int, int]:
        """Add `amount` of liquidity (1 to 2**127 - 1); returns the tokens paid in, rounded up.

        Raises:
            PoolError: `LOK` before `initialize`; `TLU`, `TLM`, `TUM` for ticks out of order or bounds; `LO` above the
                most liquidity a tick may hold; bare for an amount out of range or a tick off the spacing.
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
        state = self.positions.get(key)
        if state is None:
            state = self.positions[key] = PositionState()
        amounts = self.change_liquidity(tick_lower, tick_upper, amount)
        state.settle(*self.fee_growth_inside(tick_lower, tick_upper), self._earns(owner))
        state.liquidity += amount
        return amounts

    def burn(self, owner, tick_lower: int, tick_upper: int, amount: int) -> tuple[int, int]:
        """Remove `amount` of liquidity (0 only settles fees); the tokens, rounded down, are owed to the position.

        Raises:
            PoolError: as `mint`; `LS` for more than there is; `NP` for settling a position without liquidity.
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

    def collect(
        self, owner, tick_lower: int, tick_upper: int, amount0_requested: int, amount1_requested: int
    ) -> tuple[int, int]:
        """Pay out what is owed to a position, up to the requested amounts; fees not settled yet stay."""
        self._unlocked()
        state = self.position(owner, tick_lower, tick_upper)
        amount0, amount1 = min(amount0_requested, state.tokens_owed0), min(amount1_requested, state.tokens_owed1)
        state.tokens_owed0 -= amount0
        state.tokens_owed1 -= amount1
        return amount0, amount1

    def swap(self, zero_for_one: bool, amount_specified: int, sqrt_price_limit_x96: int) -> tuple[int, int]:
        """Trade along the curve.

        Args:
            zero_for_one: token0 in and the price down, or the reverse.
            amount_specified: exact input if positive, exact output if negative, in base units.
            sqrt_price_limit_x96: the price never goes past it; the swap then ends with less than specified.

        Returns:
            (amount0, amount1) as the pool emits them: positive into the pool, negative out of it.

        Raises:
            PoolError: `AS` for amount 0, `LOK` before `initialize`, `SPL` for a limit on the wrong side or out of
                range.

        The code here is the step that stays inside the cell: exact input, or input cut off by a limit inside the cell.
        It finds the next price first. The contract asks "does the input reach the target?" with the amount to the
        target rounded up; that is so if and only if the next price, rounded towards the start, is at or past the
        target. And the input used up to that price, rounded up, is all of it: with `end = ceil(x/d)` less than one
        unit is left over wherever `d <= price * end` (downwards) or `liquidity <= 2**96` (upwards).
        """
        price, liquidity, limit = self.sqrt_price_x96, self.liquidity, sqrt_price_limit_x96
        if amount_specified > 0 and liquidity:
            net = amount_specified * self._keep // PIPS
            if zero_for_one:
                product = net * price
                denominator = self._liquidity_x96 + product
                move = product * price // denominator
                end = price - move
                if end < limit:
                    end, move = limit, price - limit
                if self._lo < end < price and limit > MIN_SQRT_RATIO and denominator < Q256:
                    if end == limit:
                        net = -(-self._liquidity_x96 * move // (price * end))
                        amount_specified = net - -net * self.fee // self._keep
                    elif denominator > self._lo_squared:
                        net = -(-self._liquidity_x96 * move // (price * end))
                    if self._plain:
                        growth = (amount_specified - net << 128) // liquidity
                        self.fee_growth_global0_x128 = self.fee_growth_global0_x128 + growth & MASK_256
                        self.sqrt_price_x96, self._tick = end, None
                    else:
                        self._advance(end, True, amount_specified - net)
                    return amount_specified, -(liquidity * move >> 96)
            else:
                move = (net << 96) // liquidity
                end = price + move
                if end > limit:
                    end, move = limit, limit - price
                if price < end < self._hi and limit < MAX_SQRT_RATIO:
                    if end == limit:
                        net = -(-liquidity * move >> 96)
                        amount_specified = net - -net * self.fee // self._keep
                    elif liquidity > Q96:
                        net = -(-liquidity * move >> 96)
                    if self._plain:
                        growth = (amount_specified - net << 128) // liquidity
                        self.fee_growth_global1_x128 = self.fee_growth_global1_x128 + growth & MASK_256
                        self.sqrt_price_x96, self._tick = end, None
                    else:
                        self._advance(end, False, amount_specified - net)
                    return -(self._liquidity_x96 * move // (end * price)), amount_specified
        elif amount_specified < 0 and liquidity:
            # exact output: not enough for all there is to the cell's end or the limit, by the contract's own trial
            liquidity_x96 = self._liquidity_x96
            if zero_for_one:
                stop = max(self._lo, limit)
                if MIN_SQRT_RATIO < limit < price and -amount_specified < liquidity * (price - stop) >> 96:
                    end = price + (amount_specified << 96) // liquidity
                    if stop < end:
                        net = -(liquidity_x96 * (end - price) // (price * end))
                        fee = -(-net * self.fee // self._keep)
                        self._advance(end, True, fee)
                        return net + fee, amount_specified
            else:
                stop = min(self._hi, limit)
                if (
                    price < limit < MAX_SQRT_RATIO
                    and price < stop
                    and -amount_specified < liquidity_x96 * (stop - price) // (stop * price)
                ):
                    end = -(-liquidity_x96 * price // (liquidity_x96 + amount_specified * price))
                    if end < stop:
                        net = -(liquidity * (price - end) >> 96)
                        fee = -(-net * self.fee // self._keep)
                        self._advance(end, False, fee)
                        return amount_specified, net + fee
        return self._walk(zero_for_one, amount_specified, limit)

    def flash(self, amount0: int, amount1: int, tip0: int = 0, tip1: int = 0) -> tuple[int, int]:
        """Lend tokens for one call. The fee, and whatever comes back above it (`tip`), goes to the liquidity in range.

        Returns:
            What was paid above the loan, both tokens, in base units (the event's paid0, paid1).

        Raises:
            PoolError: `L` without liquidity in range; `F0`, `F1` for less than the fee (a negative tip); bare if the
                payment would overflow the fee growth.
        """
        self._unlocked()
        if not self.liquidity:
            raise PoolError("L")
        if tip0 < 0 or tip1 < 0:
            raise PoolError("F0" if tip0 < 0 else "F1")
        paid0 = -(-amount0 * self.fee // PIPS) + tip0
        paid1 = -(-amount1 * self.fee // PIPS) + tip1
        for zero_for_one, paid in ((True, paid0), (False, paid1)):
            if self._split(paid, zero_for_one)[0] >= Q256:
                raise PoolError
        for zero_for_one, paid in ((True, paid0), (False, paid1)):
            self._advance(self.sqrt_price_x96, zero_for_one, paid)
        return paid0, paid1

    def set_fee_protocol(self, fee_protocol0: int, fee_protocol1: int) -> None:
        """The protocol takes 1/n of each token's fees; n is 0 (nothing) or 4 to 10, anything else a bare revert."""
        self._unlocked()
        if any(n and not 4 <= n <= 10 for n in (fee_protocol0, fee_protocol1)):
            raise PoolError
        self.fee_protocol = (fee_protocol0, fee_protocol1)
        self._epoch += 1
        self._plain = self.legs is None and not self._shares_fees()

    def collect_protocol(self, amount0_requested: int, amount1_requested: int) -> tuple[int, int]:
        """Pay out protocol fees; of all there is one unit stays behind, as the contract never clears the slot."""
        self._unlocked()
        (have0, have1), want0, want1 = self.protocol_fees, amount0_requested, amount1_requested
        paid0 = want0 if want0 < have0 else max(have0 - 1, 0)
        paid1 = want1 if want1 < have1 else max(have1 - 1, 0)
        self.protocol_fees = (have0 - paid0, have1 - paid1)
        return paid0, paid1

    # -- beyond the contract: for replays

    def stands_at(self, tick: int) -> bool:
        """Whether `tick` is the current tick, without a logarithm."""
        if self._tick is not None:
            return tick == self._tick
        low, high = _ratios_around(tick)
        return low <= self.sqrt_price_x96 < high

    def jump(self, sqrt_price_x96: int, tick: int, liquidity: int) -> None:
        """Take a recorded state over without trading: nothing moves, no fees grow, ticks on the way are crossed."""
        was = self._below
        self.sqrt_price_x96, self._tick = sqrt_price_x96, tick
        self.liquidity, self._liquidity_x96 = liquidity, liquidity << 96
        self._below = bisect_right(self._ratios, sqrt_ratio_at_tick(tick)) - 1
        for mark in self._marks[min(was, self._below) + 1 : max(was, self._below) + 1]:
            mark.fee_growth_outside0_x128 = self.fee_growth_global0_x128 - mark.fee_growth_outside0_x128 & MASK_256
            mark.fee_growth_outside1_x128 = self.fee_growth_global1_x128 - mark.fee_growth_outside1_x128 & MASK_256
        self._locate()

    def load_ticks(self, tick: int, liquidity: int, growth0: int, growth1: int, rows: list[tuple]) -> None:
        """Take a recorded state over; rows are index, gross, net, fee growth outside of token0 and token1."""
        self.fee_growth_global0_x128, self.fee_growth_global1_x128 = growth0, growth1
        for index, gross, net, outside0, outside1 in sorted(rows):
            mark = self.ticks[index] = self.tick_class(index)
            mark.liquidity_gross, mark.liquidity_net = gross, net
            mark.fee_growth_outside0_x128, mark.fee_growth_outside1_x128 = outside0, outside1
        self._marks = [self.ticks[index] for index in sorted(self.ticks)]
        self._ratios = [mark.sqrt_ratio_x96 for mark in self._marks]
        self._tick, self.liquidity, self._liquidity_x96 = tick, liquidity, liquidity << 96
        self._below = bisect_right(self._ratios, sqrt_ratio_at_tick(tick)) - 1
        self._locate()

    # -- inside

    def change_liquidity(self, tick_lower: int, tick_upper: int, delta: int) -> tuple[int, int]:
        """Add liquidity to a range or take it out, whoever owns it: what mint and burn have in common.

        Args:
            tick_lower, tick_upper: already checked.
            delta: liquidity, signed.

        Returns:
            Signed token amounts, positive into the pool, each rounded up: a payment grows, a release (being negative)
            shrinks, so the pool never loses.

        Raises:
            PoolError: `LS` if more is taken out than begins or ends at one of the ticks.

        Source: v3-core UniswapV3Pool._modifyPosition, Tick.update.
        """
        lower, upper = self.ticks.get(tick_lower), self.ticks.get(tick_upper)
        if delta < 0 and not (lower and upper and min(lower.liquidity_gross, upper.liquidity_gross) + delta >= 0):
            raise PoolError("LS")
        lower = lower or self._add_mark(tick_lower)
        upper = upper or self._add_mark(tick_upper)
        lower.liquidity_gross += delta
        lower.liquidity_net += delta
        upper.liquidity_gross += delta
        upper.liquidity_net -= delta
        a, b, price = lower.sqrt_ratio_x96, upper.sqrt_ratio_x96, self.sqrt_price_x96
        amount0 = amount1 = 0
        if not self._at_or_below(lower):
            amount0 = -((-delta << 96) * (b - a) // (b * a))
        elif self._at_or_below(upper):
            amount1 = -(-delta * (b - a) >> 96)
        else:
            amount0 = -((-delta << 96) * (b - price) // (b * price))
            amount1 = -(-delta * (price - a) >> 96)
            self.liquidity += delta
            self._liquidity_x96 = self.liquidity << 96
        if delta < 0:
            for mark in (lower, upper):
                if not mark.liquidity_gross:
                    self._remove_mark(mark)
        return amount0, amount1

    def _unlocked(self) -> None:
        if not self.sqrt_price_x96:
            raise PoolError("LOK")

    def _check_ticks(self, tick_lower: int, tick_upper: int) -> None:
        if tick_lower >= tick_upper:
            raise PoolError("TLU")
        if tick_lower < MIN_TICK:
            raise PoolError("TLM")
        if tick_upper > MAX_TICK:
            raise PoolError("TUM")

    def _earns(self, owner) -> bool:
        return True

    def _at_or_below(self, mark: Tick) -> bool:
        """Whether a tick is at or below the current one; by price, unless the pool stands one below that."""
        return mark.sqrt_ratio_x96 <= self.sqrt_price_x96 if self._tick is None else mark.index <= self._tick

    def _add_mark(self, index: int) -> Tick:
        mark = self.ticks[index] = self.tick_class(index)
        at = bisect_left(self._ratios, mark.sqrt_ratio_x96)
        self._ratios.insert(at, mark.sqrt_ratio_x96)
        self._marks.insert(at, mark)
        if self._at_or_below(mark):  # by convention all growth so far happened below
            mark.fee_growth_outside0_x128 = self.fee_growth_global0_x128
            mark.fee_growth_outside1_x128 = self.fee_growth_global1_x128
            self._below += 1
        self._bound()
        return mark

    def _remove_mark(self, mark: Tick) -> None:
        at = bisect_left(self._ratios, mark.sqrt_ratio_x96)
        del self.ticks[mark.index], self._ratios[at], self._marks[at]
        if self._at_or_below(mark):
            self._below -= 1
        self._bound()

    def _locate(self) -> None:
        """Find word and cell from the tick."""
        self._enter(self.tick // self.tick_spacing // WORD_TICKS * WORD_TICKS * self.tick_spacing)

    def _enter(self, word: int) -> None:
        """Move to the word that begins at a tick; set the cell."""
        if word != self._word or not self._word_hi:
            self._word, self._word_lo = word, _clamped_ratio(word)
            self._word_hi = _clamped_ratio(word + (WORD_TICKS - 1) * self.tick_spacing)
        self._bound()

    def _bound(self) -> None:
        """Set the cell around the price: no tick and no end of a word inside, so that one step is all there can be.

        A step downwards ends at the first tick of the word, a step upwards at the last. Between the last tick of a word
        and the first of the next lies a cell of its own, from which upward steps already look into the next word.
        """
        ratios, below, lo, hi = self._ratios, self._below, self._word_lo, self._word_hi
        if self.sqrt_price_x96 >= hi:
            lo, hi = hi, _clamped_ratio(self._word + WORD_TICKS * self.tick_spacing)
        if below >= 0 and ratios[below] > lo:
            lo = ratios[below]
        if below + 1 < len(ratios) and ratios[below + 1] < hi:
            hi = ratios[below + 1]
        self._lo, self._hi, self._lo_squared = lo, hi, lo * lo

    def _shares_fees(self) -> bool:
        """Whether anybody but the liquidity in range takes a part of the fees."""
        return any(self.fee_protocol)

    def _split(self, fee: int, zero_for_one: bool) -> tuple[int, int, int]:
        """What becomes of a step's fee: (growth per unit of liquidity X128, the protocol's part, the leg's fee)."""
        cut = self.fee_protocol[not zero_for_one]
        protocol = fee // cut if cut else 0
        return (fee - protocol << 128) // self.liquidity, protocol, fee - protocol

    def _take(self, protocol: int, zero_for_one: bool) -> None:
        """Put the protocol's part of the fees aside."""
        fees0, fees1 = self.protocol_fees
        self.protocol_fees = (
            (fees0 + protocol & MASK_128, fees1) if zero_for_one else (fees0, fees1 + protocol & MASK_128)
        )

    def _advance(self, end_x96: int, zero_for_one: bool, fee: int) -> None:
        """A step inside the cell, or without movement: share the fee out, move the price."""
        growth, protocol, leg_fee = self._split(fee, zero_for_one)
        if protocol:
            self._take(protocol, zero_for_one)
        if leg_fee and self.legs is not None:
            self._record(zero_for_one, self.sqrt_price_x96, end_x96, leg_fee, growth)
        if zero_for_one:
            self.fee_growth_global0_x128 = self.fee_growth_global0_x128 + growth & MASK_256
        else:
            self.fee_growth_global1_x128 = self.fee_growth_global1_x128 + growth & MASK_256
        if end_x96 != self.sqrt_price_x96:
            self.sqrt_price_x96, self._tick = end_x96, None

    def _record(self, zero_for_one: bool, start_x96: int, end_x96: int, leg_fee: int, growth: int) -> None:
        self.legs.append((zero_for_one, start_x96, end_x96, self.liquidity, leg_fee, growth))

    def _cross(self, mark: Tick, zero_for_one: bool) -> None:
        """What else happens when a swap crosses a tick: nothing here."""

    def _walk(self, zero_for_one: bool, amount_specified: int, limit: int) -> tuple[int, int]:
        """A swap step by step, from tick to tick and word end to word end, as the contract goes.

        A step from tick to tick always moves the same amounts while its start, liquidity and fees are the same. It is
        kept on the tick that it ends at: (start, liquidity, epoch, what `_whole_step` says).
        """
        if not amount_specified:
            raise PoolError("AS")
        self._unlocked()
        price = self.sqrt_price_x96
        if not (MIN_SQRT_RATIO < limit < price if zero_for_one else price < limit < MAX_SQRT_RATIO):
            raise PoolError("SPL")
        exact_input, remaining, calculated, taken = amount_specified > 0, amount_specified, 0, 0
        marks, ratios, below, epoch, liquidity = self._marks, self._ratios, self._below, self._epoch, self.liquidity
        growth0, growth1, tick = self.fee_growth_global0_x128, self.fee_growth_global1_x128, self._tick
        word_size, last_of_word = WORD_TICKS * self.tick_spacing, (WORD_TICKS - 1) * self.tick_spacing
        # `edge`: where a step ends if no initialised tick comes first
        edge, edge_x96 = (self._word, self._word_lo) if zero_for_one else (self._word + last_of_word, self._word_hi)
        if price >= edge_x96 and not zero_for_one:
            edge += word_size
            edge_x96 = _clamped_ratio(edge)
        recording, at_tick = self.legs is not None, False  # a first step from between the ticks will hardly come again

        while remaining and price != limit:
            mark, target, span = None, edge_x96, _NO_SPAN
            if zero_for_one:
                if below >= 0 and ratios[below] >= target:
                    mark, target = marks[below], ratios[below]
                    span = mark.span_down
                stop = target if target > limit else limit
            else:
                if below + 1 < len(ratios) and ratios[below + 1] <= target:
                    mark, target = marks[below + 1], ratios[below + 1]
                    span = mark.span_up
                stop = target if target < limit else limit

            if span[0] == price and stop == target and span[1] == liquidity and span[2] == epoch:
                step = span[3]
            else:
                step = self._whole_step(price, stop, zero_for_one)
                if at_tick and mark and stop == target:
                    if zero_for_one:
                        mark.span_down = price, liquidity, epoch, step
                    else:
                        mark.span_up = price, liquidity, epoch, step
            amount_in, amount_out, growth, protocol, leg_fee = step
            if remaining < amount_in if exact_input else -remaining < amount_out:
                stop, amount_in, amount_out, growth, protocol, leg_fee = self._last_step(price, remaining, zero_for_one)

            if exact_input:
                remaining -= amount_in
                calculated -= amount_out
            else:
                remaining += amount_out
                calculated += amount_in
            taken += protocol
            if zero_for_one:
                growth0 += growth
            else:
                growth1 += growth
            if recording and leg_fee:
                self._record(zero_for_one, price, stop, leg_fee, growth)

            if stop == target:
                if mark:
                    mark.fee_growth_outside0_x128 = growth0 - mark.fee_growth_outside0_x128 & MASK_256
                    mark.fee_growth_outside1_x128 = growth1 - mark.fee_growth_outside1_x128 & MASK_256
                    if self._crosses:
                        self._cross(mark, zero_for_one)
                    if zero_for_one:
                        liquidity -= mark.liquidity_net
                        below -= 1
                    else:
                        liquidity += mark.liquidity_net
                        below += 1
                    self.liquidity = liquidity
                    tick = mark.index
                else:
                    tick = edge
                if zero_for_one:
                    tick -= 1
                if target == edge_x96:
                    edge += -word_size if zero_for_one else word_size
                    edge_x96 = _clamped_ratio(edge)
                at_tick = True
            elif stop != price:
                tick = None
            price = stop

        self.sqrt_price_x96, self._tick = price, tick
        if zero_for_one:
            self.fee_growth_global0_x128 = growth0 & MASK_256
        else:
            self.fee_growth_global1_x128 = growth1 & MASK_256
        if not self._lo < price < self._hi:
            self._below, self._liquidity_x96 = below, liquidity << 96
            if not zero_for_one:
                edge -= last_of_word
                if price < _clamped_ratio(edge):
                    edge -= word_size
            self._enter(edge)
        if taken:
            self._take(taken, zero_for_one)
        used = amount_specified - remaining
        return (used, calculated) if zero_for_one == exact_input else (calculated, used)

    def _whole_step(self, start: int, stop: int, zero_for_one: bool) -> tuple[int, int, int, int, int]:
        """What it takes to go from price to price: (in with fee, out, growth, protocol's part, leg's fee)."""
        net_in, amount_out = _step_amounts(self.liquidity, start, stop, zero_for_one)
        fee = -(-net_in * self.fee // self._keep)
        return net_in + fee, amount_out, *(self._split(fee, zero_for_one) if fee else (0, 0, 0))

    def _last_step(self, start: int, remaining: int, zero_for_one: bool) -> tuple[int, int, int, int, int, int]:
        """The step in which the specified amount runs out: (price reached, then as `_whole_step`)."""
        liquidity = self.liquidity
        if remaining > 0:
            stop = _price_after_input(start, liquidity, remaining * self._keep // PIPS, zero_for_one)
            net_in, amount_out = _step_amounts(liquidity, start, stop, zero_for_one)
            fee = remaining - net_in  # what the rounding leaves over is fee as well
        else:
            stop = _price_after_output(start, liquidity, -remaining, zero_for_one)
            net_in, amount_out = _step_amounts(liquidity, start, stop, zero_for_one)
            fee, amount_out = -(-net_in * self.fee // self._keep), -remaining
        return stop, net_in + fee, amount_out, *(self._split(fee, zero_for_one) if fee else (0, 0, 0))


@lru_cache(maxsize=1 << 12)
def _ratios_around(tick: int) -> tuple[int, int]:
    return _clamped_ratio(tick), _clamped_ratio(tick + 1)


def _clamped_ratio(tick: int) -> int:
    return sqrt_ratio_at_tick(MIN_TICK if tick < MIN_TICK else MAX_TICK if tick > MAX_TICK else tick)


def _step_amounts(liquidity: int, start: int, stop: int, zero_for_one: bool) -> tuple[int, int]:
    """(in without fee, rounded up; out, rounded down) of a move from price to price at one liquidity."""
    if zero_for_one:
        return -((liquidity << 96) * (stop - start) // (start * stop)), liquidity * (start - stop) >> 96
    return -(liquidity * (start - stop) >> 96), (liquidity << 96) * (stop - start) // (stop * start)


def _price_after_input(price: int, liquidity: int, net_in: int, zero_for_one: bool) -> int:
    """Where an input ends, rounded towards the start: the pool must not give more than it was paid for.

    Source: v3-core SqrtPriceMath.getNextSqrtPriceFromInput, with its less exact form where uint256 would overflow.
    """
    if not zero_for_one:
        return price + (net_in << 96) // liquidity
    liquidity_x96 = liquidity << 96
    denominator = liquidity_x96 + net_in * price
    if denominator < Q256:
        return -(-liquidity_x96 * price // denominator)
    return -(-liquidity_x96 // (liquidity_x96 // price + net_in))


def _price_after_output(price: int, liquidity: int, amount_out: int, zero_for_one: bool) -> int:
    """Where an output is reached, rounded away from the start: the pool must be paid for all of it.

    Source: v3-core SqrtPriceMath.getNextSqrtPriceFromOutput.
    """
    if zero_for_one:
        return price - -((-amount_out << 96) // liquidity)
    liquidity_x96 = liquidity << 96
    return -(-liquidity_x96 * price // (liquidity_x96 - amount_out * price))
