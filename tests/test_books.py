"""The tape and the books on it: DESIGN's four properties, the chain itself, and a slow book that shares no code with `books.py`.

Run: `python -m pytest tests/test_books.py`. The slow book goes leg by leg and block by block, in the words of DESIGN section 3;
the properties hold in a thousand random worlds (`worlds.py`), and on real positions of real recordings to the wei.
Read next: `books.py`.
"""

from __future__ import annotations

import copy
import json
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from fractions import Fraction
from itertools import groupby, pairwise
from random import Random
from types import SimpleNamespace
from typing import NamedTuple

import pytest

import books
from books import CHUNK, SHARE_QUANTUM, Book, Holding, Tape, fork_replay, split_fee, worth
from protocol import Position
from recording import Event, Recording, ReplayError, Snapshot, apply_event, read_recording, replay
from sim import (
    MAX_SQRT_RATIO,
    MIN_SQRT_RATIO,
    PIPS,
    Q96,
    Pool,
    PoolError,
    SlipstreamPool,
    amounts_of,
    liquidity_for,
    sqrt_ratio_at_tick,
)
from worlds import VAULT, World, random_desired, random_event, random_range, random_world

WORLDS = 1000
ARBITRUM = "arbitrum_weth_usdt_500_2025-06-27_07-01"
SMALL = ("ethereum_usdc_weth_500_2024-01-05", "polygon_usdc_weth_500_2022-01-05")
HOURS = 3600
ratio = sqrt_ratio_at_tick


# ---------------------------------------------------------------------------------------------------------------------
# The slow book: DESIGN section 3, "Simulate", leg by leg


class Leg(NamedTuple):
    """One leg. `rate` is the swap fee in pips; `exact`: the vault earns the pool's own growth (it is not staked)."""

    block: int
    zero_for_one: bool
    lo: int
    hi: int
    tick: int
    liquidity: int
    vault: int
    fee: int
    own: int
    unstaked_fee: int
    exact: bool
    rate: int


class History(NamedTuple):
    """What a stretch of market did: legs, touches of the vault as (leg index, key), (block, price, tick) after each swap."""

    legs: list[Leg]
    touches: list[tuple]
    stops: list[tuple]


def history_of(snapshot, events: Iterable[Event]) -> History:
    """Replay, and see in which positions of the vault each leg lies: by tick where the price stands, by prices where it moves."""
    pool, keys, found = snapshot.open(), {position.key for position in snapshot.vault}, History([], [], [])
    raw = pool.record()
    for event in events:
        if event.kind == "mint" and event.args[0] == snapshot.vault_owner:
            keys.add(event.args[:3])
        if event.kind != "collect_protocol":
            apply_event(pool, event, keys)
        if event.kind in ("mint", "burn") and event.args[:3] in keys:
            found.touches.append((len(found.legs), event.args[:3]))
        for zero_for_one, start, end, liquidity, fee, own in raw:
            lo, hi = min(start, end), max(start, end)
            inside = [
                key
                for key in keys
                if (ratio(key[1]) <= lo and hi <= ratio(key[2]) if lo < hi else key[1] <= pool.tick < key[2])
            ]
            vault = sum(pool.position(*key).liquidity for key in inside)
            exact = not any(key[0] == getattr(pool, "gauge", None) for key in inside)
            cut = getattr(pool, "unstaked_fee", 0)
            found.legs.append(
                Leg(event.block, zero_for_one, lo, hi, pool.tick, liquidity, vault, fee, own, cut, exact, pool.fee)
            )
        raw.clear()
        if event.kind == "swap":
            found.stops.append((event.block, pool.sqrt_price_x96, pool.tick))
    return found


def net_input(leg: Leg, lo: int, hi: int, liquidity: int) -> Fraction:
    """What `liquidity` takes in, exactly, when the price goes from one end of [lo, hi] to the other."""
    return Fraction(liquidity * Q96 * (hi - lo), lo * hi) if leg.zero_for_one else Fraction(liquidity * (hi - lo), Q96)


def parts_of(leg: Leg, ticks: Sequence[int]) -> list[tuple]:
    """A leg cut at a book's ticks: (fee, lower tick or None, upper tick or None, lo, hi, others) in the direction of travel.

    `others` is 0, or for the last part, which gets what the floors of the others left over, how many others there are.
    """
    cuts = [tick for tick in sorted(ticks) if leg.lo < ratio(tick) < leg.hi]
    below = max((t for t in ticks if (ratio(t) <= leg.lo if leg.lo < leg.hi else t <= leg.tick)), default=None)
    above = min((t for t in ticks if (ratio(t) >= leg.hi if leg.lo < leg.hi else t > leg.tick)), default=None)
    pieces = []
    for one, two in pairwise([below, *cuts, above]):
        pieces.append((one, two, ratio(one) if one in cuts else leg.lo, ratio(two) if two in cuts else leg.hi))
    if leg.zero_for_one:
        pieces.reverse()
    if not cuts:
        return [(leg.fee, *pieces[0], 0)]
    whole = -(-net_input(leg, leg.lo, leg.hi, leg.liquidity) // 1)
    paid = [leg.fee * int(net_input(leg, lo, hi, leg.liquidity)) // whole for _, _, lo, hi in pieces[:-1]]
    paid.append(leg.fee - sum(paid))
    return [(fee, *piece, len(cuts) if n == len(cuts) else 0) for n, (fee, piece) in enumerate(zip(paid, pieces, strict=True))]


def slow_growth(legs: Sequence[Leg], ticks: Sequence[int], lower: int, upper: int, liquidity: int) -> tuple[int, int]:
    """Growth per unit of a book with `liquidity` between two neighbours of its ticks, over a stretch of legs."""
    total = [0, 0]
    for (pool_liquidity, vault, cut, exact), group in groupby(
        legs, lambda leg: (leg.liquidity, leg.vault, leg.unstaked_fee, leg.exact)
    ):
        denominator, fees, owns, counts = max(pool_liquidity, pool_liquidity - vault + liquidity), [0, 0], [0, 0], [0, 0]
        for leg in group:
            token = 0 if leg.zero_for_one else 1
            for fee, below, above, *_ in parts_of(leg, ticks):
                if below is not None and above is not None and lower <= below and above <= upper:
                    fees[token] += fee
                    owns[token] += leg.own * fee // leg.fee
                    counts[token] += 1
        for token in (0, 1):
            if liquidity == vault and exact:
                total[token] += owns[token]
            else:
                grown = max(0, (fees[token] << 128) // denominator - counts[token])
                total[token] += grown - -(-grown * cut // PIPS)
    return total[0], total[1]


@dataclass
class SlowHolding:
    key: tuple | None
    lower: int
    upper: int
    liquidity: int
    growth: list[int] = field(default_factory=lambda: [0, 0])
    owed: list[int] = field(default_factory=lambda: [0, 0])

    def amounts(self, price: int) -> tuple[int, int]:
        return amounts_of(self.liquidity, price, ratio(self.lower), ratio(self.upper), round_up=False)

    def fees(self) -> list[int]:
        return [owed + (growth * self.liquidity >> 128) for owed, growth in zip(self.owed, self.growth, strict=True)]

    def settle(self) -> None:
        self.owed, self.growth = self.fees(), [0, 0]


class SlowBook:
    """A book in the words of DESIGN: what it may hold, what it earns, when a decision changes something."""

    def __init__(self, snapshot, past: History):
        self.past, self.snapshot, self.block, self.leg = past, snapshot, snapshot.block, 0
        self.idle, self.changes, self.collected, self.quanta = [snapshot.idle0, snapshot.idle1], 0, [0, 0], 0
        self.holdings = [SlowHolding(p.key, p.tick_lower, p.tick_upper, p.liquidity) for p in snapshot.vault]
        pool = snapshot.open()
        for holding, p in zip(self.holdings, snapshot.vault, strict=True):
            inside = pool.fee_growth_inside(p.tick_lower, p.tick_upper)
            last = p.fee_growth_inside0_last_x128, p.fee_growth_inside1_last_x128
            holding.growth = [(now - then) % 2**256 for now, then in zip(inside, last, strict=True)]
            holding.owed = [p.tokens_owed0, p.tokens_owed1]
        self.before = self.fees()
        # the fraction of a unit that the vault had earned when the round began: the book may complete it
        self.carried = [sum(Fraction(h.growth[n] * h.liquidity % 2**128, 2**128) for h in self.holdings) for n in (0, 1)]
        self.initial = self.tokens(snapshot.sqrt_price_x96)

    def fees(self) -> list[int]:
        return [sum(holding.fees()[n] for holding in self.holdings) for n in (0, 1)]

    def earned(self) -> tuple[int, ...]:
        return tuple(f + c - b for f, c, b in zip(self.fees(), self.collected, self.before, strict=True))

    def tokens(self, price: int) -> tuple[int, ...]:
        """Everything at a price, uncollected fees included."""
        return tuple(
            self.idle[n] + self.fees()[n] + sum(h.amounts(price)[n] for h in self.holdings) for n in (0, 1)
        )

    def bounds(self) -> list[int]:
        return sorted({tick for holding in self.holdings for tick in (holding.lower, holding.upper)})

    def liquidity_in(self, below: int | None, above: int | None) -> int:
        """The book's liquidity between two neighbouring bounds of its own."""
        if below is None or above is None:
            return 0
        return sum(h.liquidity for h in self.holdings if h.lower <= below and above <= h.upper)

    def walk(self, block: int) -> None:
        """To before the block's first event: blocks one by one, legs from touch to touch."""
        price = price_before(self.snapshot, self.past, self.block)
        total = worth(tuple(self.idle[n] + sum(h.amounts(price)[n] for h in self.holdings) for n in (0, 1)), price)
        weighted = 0
        for at in range(self.block, block):
            tick = tick_after(self.snapshot, self.past, at)
            weighted += sum(worth(h.amounts(price), price) for h in self.holdings if h.lower <= tick < h.upper)
        self.quanta += weighted * SHARE_QUANTUM // total if total else 0
        self.block = block

        last = sum(leg.block < block for leg in self.past.legs)
        keys = {holding.key for holding in self.holdings} - {None}
        touches = [(leg, key) for leg, key in self.past.touches if self.leg <= leg <= last and key in keys]
        for leg, key in [*touches, (last, None)]:
            legs, ticks = self.past.legs[self.leg : leg], self.bounds()
            for below, above in pairwise(ticks):
                if liquidity := self.liquidity_in(below, above):
                    grown = slow_growth(legs, ticks, below, above, liquidity)
                    for holding in self.holdings:
                        if holding.lower <= below and above <= holding.upper:
                            holding.growth = [a + b for a, b in zip(holding.growth, grown, strict=True)]
            self.leg = leg
            for holding in self.holdings:
                if key and holding.key == key:
                    holding.settle()

    def decide(self, block: int, desired: Sequence[Position], shown: Sequence[Position]) -> bool:
        by_ticks, offered = defaultdict(deque), defaultdict(deque)
        for holding in self.holdings:
            by_ticks[holding.lower, holding.upper].append(holding)
        for position in shown:
            if same := by_ticks[position.tick_lower, position.tick_upper]:
                offered[position].append(same.popleft())
        kept = [offered[position].popleft() if offered[position] else None for position in desired]
        closing = [holding for holding in self.holdings if not any(holding is other for other in kept)]
        price = price_before(self.snapshot, self.past, block)
        trial = copy.deepcopy(self.idle)
        for holding in closing:
            trial = [t + a for t, a in zip(trial, holding.amounts(price), strict=True)]
        if not closing:
            mintable = [p for p, k in zip(desired, kept, strict=True) if not k and self._mint(p, price, list(self.idle))]
            if not mintable:
                return False
        self.walk(block)
        for holding in closing:
            for n in (0, 1):
                self.collected[n] += holding.fees()[n]
                self.idle[n] += holding.fees()[n] + holding.amounts(price)[n]
        minted = [holding or self._mint(p, price, self.idle) for p, holding in zip(desired, kept, strict=True)]
        self.holdings = [holding for holding in minted if holding]
        self.changes += 1
        return True

    def _mint(self, position: Position, price: int, idle: list[int]) -> SlowHolding | None:
        lower, upper = ratio(position.tick_lower), ratio(position.tick_upper)
        most = [min(allocation, have) for allocation, have in zip(position[2:], idle, strict=True)] if isinstance(
            position, tuple
        ) else [min(position.allocation0, idle[0]), min(position.allocation1, idle[1])]
        liquidity = liquidity_for(*most, price, lower, upper)
        ceiling = (2**128 - 1) // (887272 // self.snapshot.tick_spacing * 2 + 1)
        if not 0 < liquidity <= ceiling:
            return None
        used = amounts_of(liquidity, price, lower, upper, round_up=True)
        assert all(paid <= allowed for paid, allowed in zip(used, most, strict=True))
        idle[:] = [have - paid for have, paid in zip(idle, used, strict=True)]
        return SlowHolding(None, position.tick_lower, position.tick_upper, liquidity)


def price_before(snapshot, past: History, block: int) -> int:
    return ([snapshot.sqrt_price_x96] + [price for at, price, _ in past.stops if at < block])[-1]


def tick_after(snapshot, past: History, block: int) -> int:
    return ([snapshot.tick] + [tick for at, _, tick in past.stops if at <= block])[-1]
