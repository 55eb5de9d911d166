"""The exact pool made fast: the same digits as `sim.Pool`, which is the rule; all programs use this one.

    pool = FastPool(fee=500, tick_spacing=10)               # then as `Pool`

Both are held to the same traces of the bytecode and to the same random markets (`tests/test_sim.py`). How it is fast:
the *cell* is the open price interval in which no tick, and no end of a bitmap word, lies. A swap that stays inside
needs no search, and its tick is only worked out when somebody asks. Everything else walks, and whole steps from tick to
tick are remembered. Pure. Read first: `sim.py`. Read next: `slipstream.py`.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from dataclasses import dataclass
from functools import lru_cache

from sim import (
    MASK_256,
    MAX_SQRT_RATIO,
    MAX_TICK,
    MIN_SQRT_RATIO,
    MIN_TICK,
    PIPS,
    Q96,
    Q256,
    WORD_TICKS,
    Pool,
    Tick,
    sqrt_ratio_at_tick,
    tick_at_sqrt_ratio,
)

_NO_SPAN = (0, 0, 0, None)


@dataclass(slots=True, eq=False)
class FastTick(Tick):
    """A tick that remembers the last whole steps that ended here, downwards and upwards; see `FastPool._walk`."""

    span_down: tuple = _NO_SPAN
    span_up: tuple = _NO_SPAN


class FastPool(Pool):
    """`Pool`, made fast. Changes besides swaps, which are rare, find again what swaps build on."""

    # slots: a swap reads a dozen attributes; without them each read takes a fifth longer once a pool has been copied
    __slots__ = (
        *("_below", "_epoch", "_hi", "_indices", "_keep", "_liquidity_x96", "_lo", "_lo_squared", "_plain", "_ratios"),
        *("_tick", "_word", "_word_hi", "_word_lo", "fee", "fee_growth_global0_x128", "fee_growth_global1_x128"),
        *("fee_protocol", "legs", "liquidity", "protocol_fees", "sqrt_price_x96", "tick_spacing", "ticks"),
    )
    tick_class = FastTick
    _crosses = False  # whether `_crossed` has anything to do

    def __init__(self, fee: int, tick_spacing: int):
        super().__init__(fee, tick_spacing)
        self._epoch = 0  # counts changes of fees: outdates remembered steps
        self._ratios: list[int] = []  # prices of the initialised ticks
        self._below = -1  # index in _ratios of the highest one at or below the tick
        self._liquidity_x96 = 0
        self._word = 0  # first tick of the bitmap word that the tick lies in; the prices of its first and last
        self._word_lo, self._word_hi = _clamped_ratio(0), _clamped_ratio((WORD_TICKS - 1) * tick_spacing)
        self._lo = self._hi = self._lo_squared = 0  # the cell, both ends excluded
        self._new_terms()

    @property
    def tick(self) -> int:
        """As `Pool`'s; worked out when it is asked for."""
        if self._tick is None:
            self._tick = tick_at_sqrt_ratio(self.sqrt_price_x96)
        return self._tick

    @tick.setter
    def tick(self, tick: int) -> None:
        self._tick = tick

    @property
    def spot(self) -> int:
        return self.sqrt_price_x96 if self._tick is None else super().spot

    def _at_or_above(self, index: int) -> bool:
        return sqrt_ratio_at_tick(index) <= self.sqrt_price_x96 if self._tick is None else index <= self._tick

    def stands_at(self, tick: int) -> bool:
        """Without a logarithm."""
        if self._tick is not None:
            return tick == self._tick
        low, high = _ratios_around(tick)
        return low <= self.sqrt_price_x96 < high

    # -- what changes besides swaps

    def record(self) -> list:
        legs = super().record()
        self._new_terms()
        return legs

    def copy(self) -> FastPool:
        twin = super().copy()
        twin._ratios = self._ratios.copy()
        twin._plain = not twin._shares_fees()
        return twin

    def initialize(self, sqrt_price_x96: int) -> None:
        super().initialize(sqrt_price_x96)
        self._locate(self._first_of_word())

    def set_fee_protocol(self, fee_protocol0: int, fee_protocol1: int) -> None:
        super().set_fee_protocol(fee_protocol0, fee_protocol1)
        self._new_terms()

    def jump(self, sqrt_price_x96: int, tick: int, liquidity: int) -> None:
        super().jump(sqrt_price_x96, tick, liquidity)
        self._locate(self._first_of_word())

    def load(self, *state) -> None:
        super().load(*state)
        self._ratios = [sqrt_ratio_at_tick(index) for index in self._indices]
        self._locate(self._first_of_word())

    def change_liquidity(self, tick_lower: int, tick_upper: int, delta: int) -> tuple[int, int]:
        ticks = len(self._ratios)
        amounts = Pool.change_liquidity(self, tick_lower, tick_upper, delta)
        if len(self._ratios) == ticks:
            self._liquidity_x96 = self.liquidity << 96
        else:
            self._locate(self._word)
        return amounts

    def _add_tick(self, index: int) -> FastTick:
        insort(self._ratios, sqrt_ratio_at_tick(index))
        return Pool._add_tick(self, index)

    def _remove_tick(self, mark: FastTick) -> None:
        del self._ratios[bisect_left(self._ratios, sqrt_ratio_at_tick(mark.index))]
        Pool._remove_tick(self, mark)

    def _new_terms(self) -> None:
        """Fees, or who gets them, may have changed."""
        self._epoch += 1
        self._keep = PIPS - self.fee
        self._plain = self.legs is None and not self._shares_fees()

    def _shares_fees(self) -> bool:
        """Whether anybody but the liquidity in range takes a part of the fees."""
        return any(self.fee_protocol)

    def _first_of_word(self) -> int:
        return self.tick // self.tick_spacing // WORD_TICKS * WORD_TICKS * self.tick_spacing

    def _locate(self, word: int) -> None:
        """The price, the liquidity in range or the ticks have changed; the tick is in this word."""
        self._liquidity_x96 = self.liquidity << 96
        self._below = bisect_right(self._ratios, self.spot) - 1
        self._enter(word)

    def _enter(self, word: int) -> None:
        """Set the cell around the price, in the bitmap word that begins at this tick: one step is all it can take.

        A step downwards ends at the first tick of the word, a step upwards at the last. Between the last tick of a word
        and the first of the next lies a cell of its own, from which upward steps already look into the next word.
        """
        if word != self._word:
            self._word, self._word_lo = word, _clamped_ratio(word)
            self._word_hi = _clamped_ratio(word + (WORD_TICKS - 1) * self.tick_spacing)
        ratios, below, lo, hi = self._ratios, self._below, self._word_lo, self._word_hi
        if self.sqrt_price_x96 >= hi:
            lo, hi = hi, _clamped_ratio(word + WORD_TICKS * self.tick_spacing)
        if below >= 0 and ratios[below] > lo:
            lo = ratios[below]
        if below + 1 < len(ratios) and ratios[below + 1] < hi:
            hi = ratios[below + 1]
        self._lo, self._hi, self._lo_squared = lo, hi, lo * lo

    # -- swapping

    def swap(self, zero_for_one: bool, amount_specified: int, sqrt_price_limit_x96: int) -> tuple[int, int]:
        """As `Pool.swap`.

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
                    else:
                        self._share_out(amount_specified - net, True, end)
                    self.sqrt_price_x96, self._tick = end, None
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
                    else:
                        self._share_out(amount_specified - net, False, end)
                    self.sqrt_price_x96, self._tick = end, None
                    return -(self._liquidity_x96 * move // (end * price)), amount_specified
        elif amount_specified < 0 and liquidity and (done := self._exact_output(zero_for_one, amount_specified, limit)):
            return done
        return self._walk(zero_for_one, amount_specified, limit)

    def _exact_output(self, zero_for_one: bool, amount_specified: int, limit: int) -> tuple[int, int] | None:
        """Exact output, where there is more of it up to the cell's end and the limit, by the contract's own trial."""
        price, liquidity, liquidity_x96 = self.sqrt_price_x96, self.liquidity, self._liquidity_x96
        if zero_for_one:
            stop = max(self._lo, limit)
            if not MIN_SQRT_RATIO < limit < price or -amount_specified >= liquidity * (price - stop) >> 96:
                return None
            end = price + (amount_specified << 96) // liquidity
            if not stop < end:
                return None
            net = -(liquidity_x96 * (end - price) // (price * end))
        else:
            stop = min(self._hi, limit)
            if not price < limit < MAX_SQRT_RATIO or price >= stop:
                return None
            if -amount_specified >= liquidity_x96 * (stop - price) // (stop * price):
                return None
            end = -(-liquidity_x96 * price // (liquidity_x96 + amount_specified * price))
            if not end < stop:
                return None
            net = -(liquidity * (price - end) >> 96)
        fee = -(-net * self.fee // self._keep)
        self._share_out(fee, zero_for_one, end)
        self.sqrt_price_x96, self._tick = end, None
        return (net + fee, amount_specified) if zero_for_one else (amount_specified, net + fee)

    def _walk(self, zero_for_one: bool, amount_specified: int, limit: int) -> tuple[int, int]:
        """A swap step by step.

        A step from tick to tick always moves the same amounts while its start, liquidity and fees are the same. It is
        kept on the tick that it ends at: (start, liquidity, epoch, (in with the fee, out, what `_split` says)).
        """
        self._check_swap(zero_for_one, amount_specified, limit)
        exact_input, remaining, calculated, taken = amount_specified > 0, amount_specified, 0, 0
        ticks, indices, ratios, below = self.ticks, self._indices, self._ratios, self._below
        epoch, liquidity = self._epoch, self.liquidity
        growth0, growth1 = self.fee_growth_global0_x128, self.fee_growth_global1_x128
        price, tick = self.sqrt_price_x96, self._tick
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
                    mark, target = ticks[indices[below]], ratios[below]
                    span = mark.span_down
                stop = target if target > limit else limit
            else:
                if below + 1 < len(ratios) and ratios[below + 1] <= target:
                    mark, target = ticks[indices[below + 1]], ratios[below + 1]
                    span = mark.span_up
                stop = target if target < limit else limit

            if span[0] == price and stop == target and span[1] == liquidity and span[2] == epoch:
                step = span[3]
            else:
                amount_in, amount_out, fee = self._whole_step(price, stop, zero_for_one)
                step = amount_in, amount_out, *(self._split(fee, zero_for_one) if fee else (0, 0, 0))
                if at_tick and mark and stop == target:
                    if zero_for_one:
                        mark.span_down = price, liquidity, epoch, step
                    else:
                        mark.span_up = price, liquidity, epoch, step
            amount_in, amount_out, growth, protocol, leg_fee = step
            if remaining < amount_in if exact_input else -remaining < amount_out:
                stop, amount_in, amount_out, fee = self._last_step(price, remaining, zero_for_one)
                growth, protocol, leg_fee = self._split(fee, zero_for_one) if fee else (0, 0, 0)

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
                self.legs.append((zero_for_one, price, stop, liquidity, leg_fee, growth))

            if stop == target:
                if mark:
                    mark.fee_growth_outside0_x128 = growth0 - mark.fee_growth_outside0_x128 & MASK_256
                    mark.fee_growth_outside1_x128 = growth1 - mark.fee_growth_outside1_x128 & MASK_256
                    if self._crosses:
                        self._crossed(mark, zero_for_one)
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


@lru_cache(maxsize=1 << 12)
def _ratios_around(tick: int) -> tuple[int, int]:
    return _clamped_ratio(tick), _clamped_ratio(tick + 1)


@lru_cache(maxsize=1 << 12)
def _clamped_ratio(tick: int) -> int:
    return sqrt_ratio_at_tick(min(max(tick, MIN_TICK), MAX_TICK))
