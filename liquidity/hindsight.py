"""The best that one range could have scored, had anybody known: every range on the grid, none estimated.

    best_fixed_range(tape, settings, tokens, close_block, price)

Pure. Read first: `rounds.py`.
"""

from __future__ import annotations

from bisect import bisect_left
from decimal import Decimal
from operator import add, sub

from liquidity.tape import Tape, worth
from protocol import JobSettings
from scoring import CONTEXT, Outcome, score_outcome
from sim import MAX_TICK, MIN_TICK, amounts_of, liquidity_for, sqrt_ratio_at_tick, tick_at_sqrt_ratio

HINDSIGHT_SPACINGS = 50  # how far beyond the visited ticks the best fixed range is searched
HINDSIGHT_BOUNDS = 240  # on so many bounds; where the price travelled far, each n-th of the tick grid is one
ROUNDING = 1 << 64  # 2**-128 token1 base units: more than the roundings to 1e-40 of all terms of a score together


def best_fixed_range(
    tape: Tape, settings: JobSettings, tokens: tuple[int, int], close_block: int, price: int
) -> tuple[int, int] | None:
    """The best that one position of all tokens, opened at the opening and left alone, could have scored.

    All ranges on the tick grid from `HINDSIGHT_SPACINGS` below the lowest visited tick to as many above the highest are
    tried: put in order by integers that bound their scores from above, and scored until no better one can come.

    Args:
        tokens: the holdings at the opening, base units.
        close_block, price: the end.

    Returns: its ticks; None if no range on the grid can be minted.
    """
    start, grid = tape.snapshot.sqrt_price_x96, _grid(tape, close_block)
    prices = [sqrt_ratio_at_tick(tick) for tick in grid]
    last, cost = tape.leg_at(close_block), settings.rebalance_cost << 192
    ceiling = _FeeCeiling(tape, prices, last)
    initial_worth, hold_worth = worth(tokens, start), worth(tokens, price)
    alone = (tokens[0], 0), (0, tokens[1])  # losing dust is no loss: a bound must not count what may be dust
    losable = [sum(one) if worth(one, start) * 10**6 >= 2 * initial_worth else 0 for one in alone]
    found = []
    for n, lower in enumerate(prices):
        for m in range(n + 1, len(prices)):
            upper = prices[m]
            liquidity = liquidity_for(*tokens, start, lower, upper)
            if not 0 < liquidity <= tape.pool.max_liquidity_per_tick:
                continue
            used0, used1 = amounts_of(liquidity, start, lower, upper, round_up=True)
            end0, end1 = amounts_of(liquidity, price, lower, upper, round_up=False)
            final = tokens[0] - used0 + end0, tokens[1] - used1 + end1
            left = worth(final, price) + ROUNDING
            earned = worth(ceiling.fees(n, m, liquidity), price) + ROUNDING
            match settings.target:
                case "PoL":
                    bound = _pol_bound(left + earned - initial_worth - cost, losable, final), 0
                case "MaxFees":
                    bound = earned - cost, 0
                case "MinIL":  # the tolerance is 1e-5 of the initial value
                    bound = min(0, left - hold_worth - cost + initial_worth // 10**5), earned
                case _:
                    bound = left + earned - hold_worth - cost, 0
            found.append((bound, n, m, liquidity, final))
    found.sort(key=lambda row: row[0], reverse=True)
    best, best_range = None, None
    for bound, n, m, liquidity, final in found:
        if best and bound < best:
            break
        growth = tape.growth((prices[n], prices[m]), 1, liquidity, 0, last)
        fees = (grown * liquidity >> 128 for grown in growth)
        outcome = Outcome(*tokens, *final, *fees, start, price, 1, Decimal(0))
        terms = score_outcome(outcome, settings.target, settings.rebalance_cost)
        score = tuple(CONTEXT.multiply(x, Decimal(1 << 192)) for x in (terms.score, terms.tie_fees))
        if best is None or score > best:
            best, best_range = score, (grid[n], grid[m])
    return best_range


def _grid(tape: Tape, close_block: int) -> range:
    """The ticks at which a range may begin or end."""
    until, spacing = bisect_left(tape.stop_blocks, close_block), tape.snapshot.tick_spacing
    visited = [tape.snapshot.sqrt_price_x96, *tape.stop_prices[:until]]
    margin = HINDSIGHT_SPACINGS * spacing
    lowest = max(tick_at_sqrt_ratio(min(visited)) // spacing * spacing - margin, -(-MIN_TICK // spacing) * spacing)
    highest = min(-(-tick_at_sqrt_ratio(max(visited)) // spacing) * spacing + margin, MAX_TICK // spacing * spacing)
    return range(lowest, highest + 1, spacing * -(-(highest - lowest) // (spacing * HINDSIGHT_BOUNDS)))


class _FeeCeiling:
    """The most that a range can have earned, from sums over legs that are made once for all ranges.

    Of a leg that touches the range the book gets at most `fee * L / (L_leg + d)`, with d what L exceeds the vault by.
    With x = 1 / L_leg that is `fee * L * x / (1 + d * x)`, which is concave in x. So all legs together give at most
    what legs of their mean x would (Jensen): `L * G * F / (F + d * G)`, F being the sum of fees and G the sum of fee
    / L_leg.
    """

    def __init__(self, tape: Tape, prices: list[int], last: int):
        self.vault = max((run.vault for run in tape.runs), default=0)
        rows = []
        for run in tape.runs:
            for zero_for_one, lo, hi, fee, _ in tape.legs[run.first : min(run.last, last)]:
                sums = fee, -(-(fee << 128) // run.liquidity)
                rows.append((lo, hi, (*sums, 0, 0) if zero_for_one else (0, 0, *sums)))
        self.begun, self.ended = [], []  # by price: sums over the legs that begin, and that end, below it
        for by_price, end in ((self.begun, 0), (self.ended, 1)):
            rows.sort(key=lambda row, end=end: row[end])
            total, at = (0, 0, 0, 0), 0
            for price in prices:
                while at < len(rows) and rows[at][end] < price + end:  # a leg that ends at the price is below it
                    total, at = tuple(map(add, total, rows[at][2])), at + 1
                by_price.append(total)

    def fees(self, n: int, m: int, liquidity: int) -> tuple[int, int]:
        """For the range from price `n` to price `m`, in base units of both tokens."""
        fee0, growth0, fee1, growth1 = map(sub, self.begun[m], self.ended[n])
        above = max(0, liquidity - self.vault)
        return (
            liquidity * growth0 * fee0 // ((fee0 << 128) + above * growth0) + 1 if fee0 else 0,
            liquidity * growth1 * fee1 // ((fee1 << 128) + above * growth1) + 1 if fee1 else 0,
        )


def _pol_bound(gain: int, losable: list[int], final: tuple[int, int]) -> int:
    """No PoL score can be above this; both in 2**-192 token1 base units.

    `losable` are the initial amounts, 0 instead of dust. With x = 10 * the larger loss, rounded down,
    `e**x >= 1 + x + x**2/2 + x**3/6`; the penalty is at most its inverse.
    """
    unit = 10**9
    x = max(0, *(10 * unit * (have - left) // have for have, left in zip(losable, final, strict=True) if have), 0)
    grown = unit**3 + x * unit**2 + x * x * unit // 2 + x**3 // 6
    return gain * unit**3 // grown + 1 if gain >= 0 else gain * grown // unit**3 + 1
