"""The tape and the books on it: their four properties, the chain itself, and a slow book written a second time.

Run: `python -m pytest tests/test_books.py`. The slow book goes leg by leg and block by block, in the words of the
rule; the properties hold in a thousand random worlds (`worlds.py`), and on real positions of real recordings to
the wei. Read next: `books.py`.
"""

from __future__ import annotations

import copy
from bisect import bisect_left
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import groupby, pairwise
from random import Random
from typing import NamedTuple

import pytest
from worlds import VAULT, World, random_desired, random_event, random_range, random_world

from liquidity import tape as tape_module
from liquidity.books import Book
from liquidity.events import Event, ReplayError, swap_call
from liquidity.replay import Snapshot, apply_event
from liquidity.slipstream import SlipstreamPool
from liquidity.tape import CHUNK, SHARE_QUANTUM, Holding, Tape, split_fee
from markets.recordings import Recording, read_recording
from protocol import Position
from sim import (
    MAX_SQRT_RATIO,
    MIN_SQRT_RATIO,
    PIPS,
    Q96,
    Pool,
    PoolError,
    amounts_of,
    liquidity_for,
    sqrt_ratio_at_tick,
)

WORLDS = 1000
ARBITRUM = "arbitrum_weth_usdt_500_2025-06-27_07-01"
SMALL = ("ethereum_usdc_weth_500_2024-01-05", "polygon_usdc_weth_500_2022-01-05")
HOURS = 3600
Q192 = 1 << 192
ratio = sqrt_ratio_at_tick


# ---------------------------------------------------------------------------------------------------------------------
# The slow book: the rule at the top of `liquidity/books.py`, leg by leg


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
    """A stretch of market: its legs, touches of the vault as (leg, key), and (block, price, tick) after each swap."""

    legs: list[Leg]
    touches: list[tuple]
    stops: list[tuple]


def history_of(snapshot, events: Iterable[Event]) -> History:
    """Replay, and see in which positions of the vault each leg lies: a leg without movement by its tick."""
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
    """A leg cut at a book's ticks, in the direction of travel: (fee, lower and upper tick or None, lo, hi, others).

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
    return [
        (fee, *piece, len(cuts) if n == len(cuts) else 0)
        for n, (fee, piece) in enumerate(zip(paid, pieces, strict=True))
    ]


def slow_growth(legs: Sequence[Leg], ticks: Sequence[int], lower: int, upper: int, liquidity: int) -> tuple[int, int]:
    """Growth per unit of a book with `liquidity` between two neighbours of its ticks, over a stretch of legs."""
    total = [0, 0]
    for (pool_liquidity, vault, cut, exact), group in groupby(
        legs, lambda leg: (leg.liquidity, leg.vault, leg.unstaked_fee, leg.exact)
    ):
        denominator, fees, owns, counts = (
            max(pool_liquidity, pool_liquidity - vault + liquidity),
            [0, 0],
            [0, 0],
            [0, 0],
        )
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
    """A book in the words of the rule: what it may hold, what it earns, when a decision changes something."""

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
        self.carried = [
            sum(Fraction(h.growth[n] * h.liquidity % 2**128, 2**128) for h in self.holdings) for n in (0, 1)
        ]
        self.initial = self.tokens(snapshot.sqrt_price_x96)

    def fees(self) -> list[int]:
        return [sum(holding.fees()[n] for holding in self.holdings) for n in (0, 1)]

    def earned(self) -> tuple[int, ...]:
        return tuple(f + c - b for f, c, b in zip(self.fees(), self.collected, self.before, strict=True))

    def tokens(self, price: int) -> tuple[int, ...]:
        """Everything at a price, uncollected fees included."""
        return tuple(self.idle[n] + self.fees()[n] + sum(h.amounts(price)[n] for h in self.holdings) for n in (0, 1))

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
        total = value_of([self.idle[n] + sum(h.amounts(price)[n] for h in self.holdings) for n in (0, 1)], price)
        weighted = Fraction(0)
        for at in range(self.block, block):
            tick = tick_after(self.snapshot, self.past, at)
            weighted += sum(value_of(h.amounts(price), price) for h in self.holdings if h.lower <= tick < h.upper)
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
        opens = [p for p, holding in zip(desired, kept, strict=True) if not holding]
        if not closing and not any(self._mint(p, price, self.idle.copy()) for p in opens):
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
        most = min(position.allocation0, idle[0]), min(position.allocation1, idle[1])
        liquidity = liquidity_for(*most, price, lower, upper)
        ceiling = (2**128 - 1) // (887272 // self.snapshot.tick_spacing * 2 + 1)
        if not 0 < liquidity <= ceiling:
            return None
        used = amounts_of(liquidity, price, lower, upper, round_up=True)
        assert all(paid <= allowed for paid, allowed in zip(used, most, strict=True))
        idle[:] = [have - paid for have, paid in zip(idle, used, strict=True)]
        return SlowHolding(None, position.tick_lower, position.tick_upper, liquidity)


def value_of(amounts: Sequence, price: int) -> Fraction:
    """In token1 base units, exactly."""
    return Fraction(amounts[0]) * price**2 / Q192 + amounts[1]


def price_before(snapshot, past: History, block: int) -> int:
    return ([snapshot.sqrt_price_x96] + [price for at, price, _ in past.stops if at < block])[-1]


def tick_after(snapshot, past: History, block: int) -> int:
    return ([snapshot.tick] + [tick for at, _, tick in past.stops if at <= block])[-1]


# ---------------------------------------------------------------------------------------------------------------------
# Books in a thousand random worlds


class Stretch(NamedTuple):
    """Between two changes of a book: its legs, its positions, its idle tokens, the prices at which a block of it ended.

    `held` is what it held when the stretch began, without fees: what it kept, exactly, before any rounding, and of what
    it minted all that went in.
    """

    legs: list[Leg]
    holdings: list[Holding]
    idle: tuple[int, int]
    held: list[Fraction]
    prices: list[int]


class Change(NamedTuple):
    """A decision that changed a book: all tokens, uncollected fees included, before and after, at the same price."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    idle: tuple[int, int]


class Played(NamedTuple):
    """A world, and one random book in it that was walked to the end, beside the slow book that did the same."""

    world: World
    tape: Tape
    book: Book
    slow: SlowBook
    stretches: list[Stretch]
    changes: list[Change]


def exactly(holdings: Sequence[Holding], price: int, tokens: tuple[int, int]) -> list[Fraction]:
    """Tokens, and what positions consist of at a price, unrounded."""
    total = [Fraction(token) for token in tokens]
    for holding in holdings:
        a, b = ratio(holding.tick_lower), ratio(holding.tick_upper)
        p = min(max(price, a), b)
        total[0] += Fraction((holding.liquidity << 96) * (b - p), b * p)
        total[1] += Fraction(holding.liquidity * (p - a), Q96)
    return total


def play_book(world: World, tape: Tape, past: History) -> Played:
    """Let a random miner decide at up to four random blocks, from what it was shown a little earlier."""
    rng, snapshot = world.rng, world.snapshot
    book, slow, stretches, changes = Book(tape), SlowBook(snapshot, past), [], []
    blocks = sorted(rng.randint(snapshot.block, world.close_block) for _ in range(rng.choice([0, 1, 1, 2, 4])))
    if rng.random() < 0.7:
        blocks = [snapshot.block, *blocks]
    since, held = snapshot.block, exactly(book.holdings, snapshot.sqrt_price_x96, (book.idle0, book.idle1))
    for block in [*blocks, world.close_block]:
        asked = rng.randint(since, block)
        seen = book.at(asked)
        shown = seen.shown(tape.price_before(asked))
        tokens = tuple(a + f for a, f in zip(seen.amounts(tape.price_before(asked)), seen.fees(), strict=True))
        desired = random_desired(rng, world.pool, tape.price_before(asked), shown, tokens)
        holdings, idle, walked = book.holdings, (book.idle0, book.idle1), book.at(block)
        price = tape.price_before(block)
        if block == world.close_block:
            book.walk(block)
            slow.walk(block)
            changed = True
        else:
            changed = book.rebalance(block, desired, shown)
            assert slow.decide(block, desired, shown) == changed
        if changed:
            inside = [leg for leg in past.legs if since <= leg.block < block]
            prices = [p for at, p, _ in past.stops if since <= at < block]
            stretches.append(Stretch(inside, holdings, idle, held, prices))
            before = tuple(a + f for a, f in zip(walked.amounts(price), walked.fees(), strict=True))
            after = tuple(a + f for a, f in zip(book.amounts(price), book.fees(), strict=True))
            changes.append(Change(before, after, (book.idle0, book.idle1)))
            closed = [w for w, h in zip(walked.holdings, holdings, strict=True) if h not in book.holdings]
            given = [sum(w.amounts(price)[n] + w.fees()[n] for w in closed) for n in (0, 1)]
            stake = tuple(i + g for i, g in zip(idle, given, strict=True))
            since, held = block, exactly([h for h in holdings if h in book.holdings], price, stake)
    return Played(world, tape, book, slow, stretches, changes)


@pytest.fixture(scope="module")
def played() -> list[Played]:
    found = []
    for seed in range(WORLDS):
        world = random_world(seed)
        tape = Tape(world.snapshot)
        tape.feed(world.events)
        found.append(play_book(world, tape, history_of(world.snapshot, world.events)))
    return found


def parts_in(stretch: Stretch) -> Iterable[tuple]:
    """Every part of every leg of a stretch: (leg, token, fee, lo, hi, others, the book's liquidity in it)."""
    ticks = sorted({tick for h in stretch.holdings for tick in (h.tick_lower, h.tick_upper)})
    for leg in stretch.legs:
        for fee, below, above, lo, hi, others in parts_of(leg, ticks):
            inside = below is not None and above is not None
            around = [h for h in stretch.holdings if inside and h.tick_lower <= below and above <= h.tick_upper]
            held = sum(holding.liquidity for holding in around)
            yield leg, 0 if leg.zero_for_one else 1, fee, lo, hi, others, held


def test_worlds_are_as_unpleasant_as_they_should_be(played):
    seen = Counter()
    for world, tape, book, *_ in played:
        seen.update(event.kind for event in world.events)
        seen.update(event.args[0] for event in world.events if event.kind == "swap")
        seen["vault is the pool"] += any(run.vault == run.liquidity for run in tape.runs)
        seen["no vault"] += not world.snapshot.vault
        seen["stands below its tick"] += any(p != s for p, s in zip(tape.stop_prices, tape.stop_spots, strict=True))
        seen["no movement"] += any(hi - lo == 1 for _, lo, hi, *_ in tape.legs)
        seen["tiny liquidity"] += any(run.liquidity < 100 for run in tape.runs)
        seen["several in a block"] += len(set(tape.blocks)) < len(tape.blocks)
        seen["book above vault"] += any(h.liquidity > r.vault for h in book.holdings for r in tape.runs)
        seen["changes"] += book.changes
        seen["overlapping"] += any(
            one.tick_lower < other.tick_upper and other.tick_lower < one.tick_upper
            for one, other in pairwise(book.holdings)
        )
    rare = {name: count for name, count in seen.items() if count < 50}
    assert len(seen) == 18 and not rare, (seen, rare)


def test_a_book_is_what_the_slow_book_says_to_the_last_unit(played):
    for seed, (world, tape, book, slow, *_) in enumerate(played):
        price = tape.price_before(world.close_block)
        assert [(h.tick_lower, h.tick_upper, h.liquidity) for h in book.holdings] == [
            (h.lower, h.upper, h.liquidity) for h in slow.holdings
        ], seed
        assert [book.idle0, book.idle1] == slow.idle, seed
        assert book.initial == slow.initial, seed
        assert book.earned() == slow.earned(), seed
        assert tuple(f + e for f, e in zip(book.final(price), book.earned(), strict=True)) == slow.tokens(price), seed
        assert book.in_range == slow.quanta and book.changes == slow.changes == len(book.history) - 1, seed


def test_conservation_fees_of_book_and_rest_of_the_pool_never_exceed_the_recorded_ones(played):
    for seed, (_, _, book, slow, stretches, _) in enumerate(played):
        pie, rest = [0, 0], [Fraction(0), Fraction(0)]
        for stretch in stretches:
            for leg, token, fee, _, _, _, held in parts_in(stretch):
                others = leg.liquidity - leg.vault
                pie[token] += fee
                rest[token] += Fraction(fee * others, max(leg.liquidity, others + held))
        assert sum(pie) == sum(leg.fee for leg in slow.past.legs), seed
        for token in (0, 1):
            assert book.earned()[token] + rest[token] <= pie[token] + slow.carried[token], seed


def test_conservation_tokens_change_only_by_swaps_through_positions(played):
    for seed, (_, _, _, _, _, changes) in enumerate(played):
        for before, after, idle in changes:
            assert after[0] <= before[0] and after[1] <= before[1], seed
            assert min(idle) >= 0, seed


def test_closing_and_minting_again_at_the_same_price_loses_at_most_two_units_of_each_token(played):
    for seed, (_, _, _, _, _, changes) in enumerate(played):
        for before, after, _ in changes:
            # a mint pays rounded up, what it is then worth is rounded down; what was closed was already rounded down
            assert max(b - a for b, a in zip(before, after, strict=True)) <= 4, seed  # up to four new positions


def test_own_volume_on_moving_legs_no_book_earns_more_than_the_fee_rate_on_what_it_swapped(played):
    """The unit of rounding, derived. A leg takes N in for its move, n before rounding up, and its fee F is

    - at a target, F = ceil(N * r) with r = f / (1 - f): so F < n * r + (1 + r);
    - where the input R ran out: B = floor(R * (1 - f)) buys the move, F = R - N. R < (B + 1) / (1 - f) and B - N < u,
      what one unit of price costs in tokens (the price is rounded towards the start; one more where the product
      overflows). So F < n * r + (1 + f + u) / (1 - f).

    A book's share of a whole leg is at most `held / liquidity` and at most 1. Cut parts are `floor(F * part / N)`;
    the last one gets what the k floors before it left: at most k units and, their inputs being floored too, (k + 1)
    times F / n.
    """
    for seed, (_, _, book, slow, stretches, _) in enumerate(played):
        most = [slow.carried[0], slow.carried[1]]
        for stretch in stretches:
            for leg, token, fee, lo, hi, others, held in parts_in(stretch):
                if leg.lo == leg.hi:  # a tip, or a swap too small to move the price: nobody swapped through a position
                    most[token] += Fraction(fee * held, max(leg.liquidity, leg.liquidity - leg.vault + held))
                    continue
                net, share = (
                    net_input(leg, leg.lo, leg.hi, leg.liquidity),
                    min(Fraction(held, leg.liquidity), Fraction(1)),
                )
                rate, rest = Fraction(leg.rate, PIPS - leg.rate), Fraction(PIPS, PIPS - leg.rate)
                step = (
                    net_input(leg, leg.lo - 1, leg.lo, leg.liquidity)
                    if leg.zero_for_one
                    else Fraction(leg.liquidity, Q96)
                )
                overflow = leg.zero_for_one and (leg.liquidity * Q96 + net * leg.hi) * 2 > 2**256
                unit = rest * (1 + Fraction(leg.rate, PIPS) + step + overflow)
                part = net_input(leg, lo, hi, leg.liquidity) / net
                swapped = net_input(leg, lo, hi, held)
                rounding = unit * part + (others + (others + 1) * (rate + unit / net) if others else 0)
                most[token] += min(rate * swapped, rate * part * net) + rounding * share
        for token in (0, 1):
            assert book.earned()[token] <= most[token], seed


def test_no_free_lunch_without_fees_a_book_is_never_worth_more_than_holding_what_it_held(played):
    for seed, (_, _, _, _, stretches, _) in enumerate(played):
        for stretch in stretches:
            for price in stretch.prices:
                amounts = [holding.amounts(price) for holding in stretch.holdings]
                left = [stretch.idle[n] + sum(a[n] for a in amounts) for n in (0, 1)]
                assert value_of(left, price) <= value_of(stretch.held, price), seed


# ---------------------------------------------------------------------------------------------------------------------
# The tape alone


@pytest.mark.parametrize("chunk", [1, 2, 3, CHUNK])
def test_growth_is_the_slow_sum_for_any_bounds_and_stretch(chunk, monkeypatch):
    """Over whole tapes and parts of them, chunks and parts of them, with bounds beside legs, at their ends, inside."""
    monkeypatch.setattr(tape_module, "CHUNK", chunk)
    seen = Counter()
    for seed in range(60):
        world = random_world(10_000 + seed, length=90 if chunk == CHUNK else 30)
        rng, tape, past = world.rng, Tape(world.snapshot), history_of(world.snapshot, world.events)
        tape.feed(world.events)
        for _ in range(6):
            ticks = sorted({t for _ in range(rng.randint(1, 3)) for t in random_range(rng, world.pool, wide=True)})
            first, last = sorted(rng.choice([0, rng.randint(0, len(past.legs)), len(past.legs)]) for _ in range(2))
            n = rng.randrange(1, len(ticks))
            vaults = [leg.vault for leg in past.legs if leg.vault] or [1]
            scale = rng.choice([leg.liquidity for leg in past.legs] or [1])
            liquidity = rng.choice([rng.choice(vaults), 1, scale, max(1, scale // 1000), scale * 1000])
            legs = past.legs[first:last]
            expected = slow_growth(legs, ticks, ticks[n - 1], ticks[n], liquidity)
            assert tape.growth([ratio(tick) for tick in ticks], n, liquidity, first, last) == expected, seed
            seen["grown"] += any(expected)
            seen["own"] += any(expected) and liquidity in vaults
            seen["cut"] += any(leg.lo < ratio(tick) < leg.hi for leg in legs for tick in ticks)
            seen["chunks"] += len(tape._chunks) > 1
    assert min(seen[kind] for kind in ("grown", "own", "cut", "chunks")) > 20, seen


@pytest.mark.parametrize("chunk", [1, 2, 5, CHUNK])
def test_blocks_inside_counts_every_block_once_by_the_tick_at_its_end(chunk, monkeypatch):
    monkeypatch.setattr(tape_module, "CHUNK", chunk)
    for seed in range(100):
        world = random_world(20_000 + seed, length=120 if chunk == CHUNK else 30)
        rng, tape, past = world.rng, Tape(world.snapshot), history_of(world.snapshot, world.events)
        tape.feed(world.events)
        for _ in range(4):
            ticks = sorted({t for _ in range(rng.randint(1, 3)) for t in random_range(rng, world.pool, wide=True)})
            if past.stops and rng.random() < 0.3:  # a bound where the price stood, or one above
                ticks = sorted({*ticks, rng.choice(past.stops)[2] + rng.choice([0, 1])})
            first, last = sorted(rng.randint(world.snapshot.block, world.close_block + 2) for _ in range(2))
            expected = [0] * (len(ticks) + 1)
            for block in range(first, last):
                expected[sum(bound <= tick_after(world.snapshot, past, block) for bound in ticks)] += 1
            assert tape.blocks_inside([ratio(tick) for tick in ticks], first, last) == expected, seed
            assert sum(expected) == last - first


def test_a_split_fee_adds_up_and_no_part_is_negative():
    rng = Random(7)
    for _ in range(2000):
        liquidity = 1 << rng.randint(0, 100)
        prices = sorted({rng.randint(Q96 >> 20, Q96 << 20) for _ in range(rng.randint(2, 5))})
        fee, zero_for_one = rng.choice([1, rng.randint(1, 10**6), 1 << 90]), rng.random() < 0.5
        parts = split_fee(fee, liquidity, zero_for_one, prices)
        assert sum(parts) == fee and min(parts) >= 0 and len(parts) == len(prices) - 1


def test_a_tape_fed_in_pieces_is_the_tape_fed_at_once():
    for seed in range(100):
        world = random_world(30_000 + seed)
        whole, pieces = Tape(world.snapshot), Tape(world.snapshot)
        whole.feed(world.events)
        at = 0
        while at < len(world.events):
            step = world.rng.randint(1, 5)
            pieces.feed(world.events[at : at + step])
            at += step
        for name in (
            "blocks",
            "legs",
            "stop_blocks",
            "stop_prices",
            "stop_spots",
            "touches",
            "swaps",
        ):
            assert getattr(whole, name) == getattr(pieces, name), name
        assert [[getattr(run, n) for n in run.__slots__] for run in whole.runs] == [
            [getattr(run, n) for n in run.__slots__] for run in pieces.runs
        ]


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_looking_at_a_tape_while_it_grows_changes_nothing(chunk, monkeypatch):
    """Sums prepared in between, also in the middle of a block or a run, are of nothing that can still change."""
    monkeypatch.setattr(tape_module, "CHUNK", chunk)
    for seed in range(100):
        world = random_world(35_000 + seed)
        rng, tape, whole = world.rng, Tape(world.snapshot), Tape(world.snapshot)
        whole.feed(world.events)
        first, close = world.snapshot.block, world.close_block
        for event in world.events:
            tape.feed([event])
            ticks = sorted({*random_range(rng, world.pool), *random_range(rng, world.pool, wide=True)})
            bounds = [ratio(tick) for tick in ticks]
            tape.blocks_inside(bounds, first, event.block + 1)
            tape.growth(bounds, 1, 1000, 0, len(tape.blocks))
        for n in range(1, len(ticks)):
            assert tape.growth(bounds, n, 1000, 0, len(tape.blocks)) == whole.growth(
                bounds, n, 1000, 0, len(whole.blocks)
            )
        assert tape.blocks_inside(bounds, first, close) == whole.blocks_inside(bounds, first, close)


def test_what_the_vault_holds_is_what_its_own_calls_left_it():
    """Fees: what the contract owes, less what burns released. Tokens: idle as the calls moved it, and the positions."""
    moved = 0
    for seed in range(200):
        world = random_world(45_000 + seed)
        tape, pool, s = Tape(world.snapshot), world.pool.copy(), world.snapshot
        tape.feed(world.events)
        keys, idle, released = {position.key for position in s.vault}, [s.idle0, s.idle1], [0, 0]
        for event in world.events:
            apply_event(pool, event)
            if event.kind == "mint" and s.vault_owner and event.args[0] == VAULT:
                keys.add(event.args[:3])
            if event.kind in ("mint", "burn") and event.args[:3] in keys:
                for n, amount in enumerate(event.args[4:]):
                    idle[n] = max(0, idle[n] + (amount if event.kind == "burn" else -amount))
                    released[n] += amount if event.kind == "burn" else 0
                moved += event.args[3] > 0
        price, tokens, fees = pool.sqrt_price_x96, idle, [-amount for amount in released]
        for key in keys:
            held = amounts_of(pool.position(*key).liquidity, price, ratio(key[1]), ratio(key[2]), round_up=False)
            tokens = [token + amount for token, amount in zip(tokens, held, strict=True)]
            fees = [fee + owed for fee, owed in zip(fees, earned_on_chain(pool, key), strict=True)]
        assert tape.vault_holds() == (tuple(tokens), tuple(fees)), seed
    assert moved > 100


def test_a_stream_that_lacks_repeats_or_changes_a_swap_is_refused():
    """One that moved something: a few wei, or the price where there is no liquidity, may be lost without a trace."""
    tried = refused = 0
    for seed in range(100):
        world = random_world(40_000 + seed, plain=True)
        events = world.events
        swaps = [n for n, event in enumerate(events) if event.kind == "swap" and event.args[4]]
        for at in [n for n in swaps if min(map(abs, events[n].args[1:3])) > 10**9][:1]:
            how, amount0, amount1, price, *state = events[at].args
            changes = [
                (how, amount0 * 101 // 100, amount1, price, *state),
                (how, amount0, amount1, price + 10**6, *state),
            ]
            for wrong in ([], [events[at]] * 2, *([events[at]._replace(args=args)] for args in changes)):
                tried += 1
                try:
                    Tape(world.snapshot).feed([*events[:at], *wrong, *events[at + 1 :]])
                except (ReplayError, PoolError):
                    refused += 1
    assert refused == tried > 300


# ---------------------------------------------------------------------------------------------------------------------
# Keep equals chain: real positions of real pools


class Window(NamedTuple):
    """A position, and events `first` to `last` (excluded) between which its liquidity does not change."""

    key: tuple
    first: int
    last: int
    pokes: int


def windows_of(recording: Recording, seconds: int) -> list[Window]:
    """All positions that lie unchanged for at least so long: stretches of that length, each with its pokes."""
    events, found, pokes = recording.events, [], defaultdict(list)
    times, end = [event.time for event in events], len(events)
    levels = {position[:3]: [(-1, position[3])] for position in recording.positions}  # (event, liquidity after it)
    for n, event in enumerate(events):
        if event.kind == "burn" and not event.args[3]:
            pokes[event.args[:3]].append(n)
        elif event.kind != "swap":
            held = levels.setdefault(event.args[:3], [(-1, 0)])
            held.append((n, held[-1][1] + (event.args[3] if event.kind == "mint" else -event.args[3])))
    for key, held in levels.items():
        for (before, liquidity), (after, _) in pairwise([*held, (end, 0)]):
            first, last = before + 1, bisect_left(times, times[min(before + 1, end - 1)] + seconds) + 1
            if liquidity and last <= after and key[0] != "background":
                found.append(Window(key, first, last, sum(first <= n < last for n in pokes[key])))
    return found


def earned_on_chain(pool: Pool, key: tuple) -> tuple[int, int]:
    """What the contract would pay a position now: owed, and what a poke would add (v3-core Position.update)."""
    state, inside = pool.position(*key), pool.fee_growth_inside(*key[1:])
    last = state.fee_growth_inside0_last_x128, state.fee_growth_inside1_last_x128
    owed = state.tokens_owed0, state.tokens_owed1
    return tuple(
        o + ((i - before) % 2**256 * state.liquidity >> 128) for o, i, before in zip(owed, inside, last, strict=True)
    )


def keep_against_chain(recording: Recording, windows: list[Window]) -> list[tuple]:
    """For each window what a book that keeps the position earned, and what the position did: (window, book, chain)."""
    starts, ends, pool, found = defaultdict(list), defaultdict(list), recording.open_pool(), []
    for window in windows:
        starts[window.first].append(window)
        ends[window.last].append(window)
    before, tapes = {}, {}
    for n in range(len(recording.events) + 1):
        for window in ends[n]:
            real = tuple(a - b for a, b in zip(earned_on_chain(pool, window.key), before[window], strict=True))
            tape, block = tapes[window], recording.events[n - 1].block + 1
            tape.feed(recording.events[window.first : n])
            book = Book(tape)
            book.walk(block)
            found.append((window, book.earned(), real))
        if n == len(recording.events):
            return found
        for window in starts[n]:
            snapshot = Snapshot.of(pool, [window.key], (0, 0), recording.events[n].block, 0, "")
            tapes[window], before[window] = Tape(snapshot), earned_on_chain(pool, window.key)
        apply_event(pool, recording.events[n])


def test_keep_equals_chain_on_real_positions_over_a_whole_day(recording_path):
    recording = read_recording(recording_path(ARBITRUM))
    ticks = [event.args[5] for event in recording.events if event.kind == "swap"]
    low, high = min(ticks), max(ticks)
    windows = [w for w in windows_of(recording, 24 * HOURS) if w.key[1] < high and low < w.key[2]]
    poked = sorted(windows, key=lambda w: w.pokes)[-3:]
    narrow = sorted((w for w in windows if not w.pokes), key=lambda w: w.key[2] - w.key[1])[:3]
    wide = Random(1).sample([w for w in windows if w.key[2] - w.key[1] > 1000], 2)
    checked = keep_against_chain(recording, poked + narrow + wide)
    assert [(window, book) for window, book, _ in checked] == [(window, chain) for window, _, chain in checked]
    assert sum(any(chain) for _, _, chain in checked) >= 5 and sum(window.pokes > 0 for window, _, _ in checked) >= 3


@pytest.mark.parametrize("name", SMALL)
def test_keep_equals_chain_where_some_swaps_are_unknown_and_earn_nothing_for_anyone(name, recording_path):
    recording = read_recording(recording_path(name))
    checked = keep_against_chain(recording, windows_of(recording, int(23.9 * HOURS)))
    assert [(window, book) for window, book, _ in checked] == [(window, chain) for window, _, chain in checked]
    assert sum(any(chain) for _, _, chain in checked) >= 3 and sum(window.pokes > 0 for window, _, _ in checked) >= 3


# ---------------------------------------------------------------------------------------------------------------------
# The fork: mint into a copy of the pool and make the calls again


def fork_replay(
    pool: Pool, events: Iterable[Event], positions: Sequence[tuple[int, int, int]]
) -> list[tuple[int, int]]:
    """Mint positions into a copy of the pool and make the recorded calls again: no shares, no legs, just the contract.

    Args:
        pool: in the state before the events, with all their positions; it stays as it is.
        events: with the calls known.
        positions: (tick_lower, tick_upper, liquidity) to add.

    Returns:
        Fees of each position, as the contract would pay them.

    Swaps with an input or output keep it, so with more liquidity they move the price less; swaps with a limit trade to
    the same price, and do not happen where the price is already past it.
    """
    fork = pool.copy()
    for n, position in enumerate(positions):
        fork.mint(("fork", n), *position)
    for event in events:
        if event.kind == "swap":
            call = swap_call(event, event.args[0])
            past = fork.sqrt_price_x96 <= call[2] if call[0] else fork.sqrt_price_x96 >= call[2]
            if not past:
                fork.swap(*call)
        elif event.kind == "mint":
            fork.mint(*event.args[:4])
        elif event.kind == "burn":
            fork.burn(*event.args[:4])
        elif event.kind not in ("collect", "collect_protocol"):
            apply_event(fork, event)
    fees = []
    for n, (tick_lower, tick_upper, _) in enumerate(positions):
        fork.burn(("fork", n), tick_lower, tick_upper, 0)
        state = fork.position(("fork", n), tick_lower, tick_upper)
        fees.append((state.tokens_owed0, state.tokens_owed1))
    return fees


def test_keep_equals_the_fork_in_which_the_vault_is_replicated_to_the_wei():
    """Take the vault's positions out of the pool, mint them again as somebody else's, replay: the same fees.

    The vault is poked before the start: a fork cannot take over the fraction of a unit that it had earned by then.
    """
    compared = 0
    for seed in range(150):
        world = random_world(50_000 + seed, vault_moves=False)
        pool, keys = world.pool.copy(), [position.key for position in world.snapshot.vault]
        for key in keys:
            pool.burn(*key, 0)
        s = world.snapshot
        tape = Tape(Snapshot.of(pool, keys, (0, 0), s.block, s.block_time, ""))
        events = [event for event in world.events if event.args[0] != VAULT]  # nobody pokes what is not there
        tape.feed(events)
        book = Book(tape)
        book.walk(world.close_block)
        for position in s.vault:
            pool.burn(*position.key, position.liquidity)
        positions = [(p.tick_lower, p.tick_upper, p.liquidity) for p in s.vault]
        fees = fork_replay(pool, events, positions)
        assert book.earned() == tuple(sum(fee[n] for fee in fees) for n in (0, 1)), seed
        compared += any(book.earned())
    assert compared > 60


def thin_book(
    snapshot: Snapshot, tape: Tape, ranges: Sequence[tuple[int, int]], liquidity: int, close_block: int
) -> Book:
    """A book with the same liquidity in each range from the opening on, and nothing else."""
    book = Book(tape)
    price, positions = snapshot.sqrt_price_x96, []
    for lower, upper in ranges:
        amounts = amounts_of(liquidity, price, ratio(lower), ratio(upper), round_up=True)
        positions.append(Position(lower, upper, *(amount + amount // 10**9 + 2 for amount in amounts)))
    book.idle0, book.idle1 = 1 << 200, 1 << 200
    book.rebalance(snapshot.block, positions, ())
    assert len(book.holdings) == len(ranges)
    book.walk(close_block)
    return book


def fork_against(
    snapshot: Snapshot, pool: Pool, events: Sequence[Event], ranges: Sequence, part: int, close: int
) -> tuple:
    """Fees of (book, fork) for the same liquidity, 1/`part` of the thinnest leg's, in all ranges together."""
    tape = Tape(snapshot)
    tape.feed(events)
    liquidity = max(1, min(run.liquidity for run in tape.runs) // part // len(ranges))
    book = thin_book(snapshot, tape, ranges, liquidity, close)
    forked = fork_replay(pool, events, [(h.tick_lower, h.tick_upper, h.liquidity) for h in book.holdings])
    return book.earned(), tuple(sum(fees[n] for fees in forked) for n in (0, 1))


def test_a_thin_book_equals_the_fork_within_a_millionth_in_random_worlds():
    """With a ten-millionth of the liquidity, in value: the deviation is of the order of the book's share of the pool.

    In these few, coarse swaps a bound that the price only just reaches magnifies it, up to thirty times in one of a
    thousand worlds. Tips are left out: they fall on one side of a bound or the other. So are worlds in which the
    price went where nobody had liquidity: there the fork's book is the pool.
    """
    compared = 0
    for seed in range(400):
        world = random_world(60_000 + seed, plain=True)
        events = [event for event in world.events if event.kind != "flash"]
        past = history_of(world.snapshot, events)
        prices = [world.snapshot.sqrt_price_x96, *(price for _, price, _ in past.stops)]
        moved = sum(leg.hi - leg.lo for leg in past.legs)
        if not moved or moved != sum(abs(b - a) for a, b in pairwise(prices)):
            continue
        ranges = list({random_range(world.rng, world.pool) for _ in range(2)})
        book, fork = fork_against(world.snapshot, world.pool, events, ranges, 10**7, world.close_block)
        ours, theirs = value_of(book, prices[-1]), value_of(fork, prices[-1])
        if theirs > 10**8:
            compared += 1
            assert abs(ours - theirs) * 10**6 <= theirs, seed
    assert compared > 200


def test_a_thin_book_equals_the_fork_within_a_millionth_on_real_swaps(recording_path):
    """A millionth of the liquidity over 8,000 real events: both tokens within 1e-6 and what two floors may cost."""
    recording = read_recording(recording_path(ARBITRUM))
    pool, events = recording.open_pool(), recording.events
    for event in events[:20_000]:
        apply_event(pool, event)
    vault = [("0", -199760, -196890)]
    snapshot = Snapshot.of(pool, vault, (0, 0), events[20_000].block, 0, "")
    tick = snapshot.tick // 10 * 10
    for ranges in (
        [(tick - 1000, tick + 1000)],
        [(tick - 20, tick + 30)],
        [(tick - 300, tick - 50), (tick - 100, tick + 20)],
    ):
        book, fork = fork_against(snapshot, pool, events[20_000:28_000], ranges, 10**6, events[28_000].block)
        for ours, theirs in zip(book, fork, strict=True):
            assert abs(ours - theirs) * 10**6 <= theirs + 2 * 10**6 * len(ranges)
            assert theirs > 1000


@pytest.mark.parametrize("liquidity", [10**12, 10**33])
def test_a_fork_makes_no_swap_whose_limit_it_stands_at_or_has_passed(liquidity):
    """Up by a little input, back down to a limit: with a book of 1e33 the input moves nothing, there is no way back."""
    pool, events = Pool(3000, 10), []
    pool.initialize(Q96)
    pool.mint("crowd", -100, 100, 10**12)
    moved = pool.copy()
    up = moved.swap(False, 1000, MAX_SQRT_RATIO - 1)
    events.append(Event(1, 0, 0, "swap", ("in", *up, moved.sqrt_price_x96, moved.liquidity, moved.tick)))
    down = moved.swap(True, 10**6, Q96)
    events.append(Event(1, 1, 0, "swap", ("limit", *down, Q96, moved.liquidity, moved.tick)))
    fees = fork_replay(pool, events, [(-100, 100, liquidity)])
    assert fees[0][1] > 0 and (fees[0][0] > 0) == (liquidity == 10**12)


# ---------------------------------------------------------------------------------------------------------------------
# Slipstream: books are unstaked


class SlipstreamWorld(NamedTuple):
    """A vault's position, and the same events for a pool with stakes and its twin in which nobody ever stakes.

    Before event `turn` somebody stakes the range `late`, and the factory changes both fees.
    """

    pool: SlipstreamPool
    twin: SlipstreamPool
    key: tuple
    events: list[Event]
    turn: int
    late: tuple
    close_block: int


def slipstream_world(seed: int, staked_vault: bool) -> SlipstreamWorld:
    """Staking moves no price and no liquidity, so that the same events are right for both pools."""
    rng = Random(seed)
    fee, spacing, unstaked_fee = (
        rng.choice([100, 500, 3000]),
        rng.choice([1, 50, 200]),
        rng.choice([0, 100_000, 500_000]),
    )
    pool = SlipstreamPool(fee, spacing, unstaked_fee, nft="nft", gauge="gauge")
    pool.initialize(ratio(rng.randint(-10_000, 10_000)) + rng.randint(0, 1000))
    twin, key, late = (
        pool.copy(),
        ("gauge" if staked_vault else VAULT, *random_range(rng, pool)),
        random_range(rng, pool),
    )
    mints = [("lp0", *random_range(rng, pool, wide=True)), ("nft", *random_range(rng, pool)), ("nft", *late)]
    mints.append(("nft" if staked_vault else VAULT, *key[1:]))
    sizes = [1 << rng.randint(60, 80) for _ in mints]
    for mint, liquidity in zip(mints, sizes, strict=True):
        pool.mint(*mint, liquidity)
        twin.mint(*mint, liquidity)
    pool.stake(sizes[1], *mints[1][1:], True)
    if staked_vault:
        pool.stake(sizes[3], *key[1:], True)
    world = SlipstreamWorld(pool, twin, key, [], 15, (sizes[2], *late), 0)
    walker, event = pool.copy(), Event(1, 0, 0, "", ())
    for length in (world.turn, 30):
        while len(world.events) < length:
            if found := random_event(rng, walker, event, vault_moves=False):
                event = found
                world.events.append(event)
        if length == world.turn:
            turn(world, walker)
    return world._replace(close_block=event.block + 1)


def turn(world: SlipstreamWorld, pool: SlipstreamPool, stakes: bool = True, positions: bool = True) -> None:
    if stakes:
        pool.stake(*world.late, positions)
    pool.set_fees(pool.fee * 2, 200_000)


def slipstream_book(world: SlipstreamWorld) -> Book:
    """What keeps the vault's position; the tape's pool knows no others."""
    tape = Tape(Snapshot.of(world.pool, [world.key], (0, 0), 1, 0, ""))
    tape.feed(world.events[: world.turn])
    turn(world, tape.pool, positions=False)
    tape.feed(world.events[world.turn :])
    book = Book(tape)
    book.walk(world.close_block)
    return book


def test_an_unstaked_keep_equals_chain_on_slipstream_whatever_others_stake():
    earned = 0
    for seed in range(200):
        world = slipstream_world(seed, staked_vault=False)
        for n, event in enumerate(world.events):
            if n == world.turn:
                turn(world, world.pool)
            apply_event(world.pool, event)
        chain = earned_on_chain(world.pool, world.key)
        assert slipstream_book(slipstream_world(seed, staked_vault=False)).earned() == chain, seed
        earned += any(chain)
    assert earned > 100


def test_a_staked_vault_is_scored_as_if_unstaked():
    """As in the twin pool: equal but for one X128 unit of growth a leg, floors, and how often the cut is rounded up."""
    earned = 0
    for seed in range(200):
        world = slipstream_world(1000 + seed, staked_vault=True)
        held = world.twin.position("nft", *world.key[1:]).liquidity
        for n, event in enumerate(world.events):
            if n == world.turn:
                turn(world, world.twin, stakes=False)
            apply_event(world.twin, event)
        chain = [growth * held >> 128 for growth in world.twin.fee_growth_inside(*world.key[1:])]
        book = slipstream_book(world)
        runs = [run for run in book.tape.runs if run.vault]
        assert not any(run.exact for run in runs)
        if book.holdings[0].liquidity == held:  # else somebody else has the same range
            legs = len(book.tape.blocks)
            assert all(abs(a - b) <= 1 + legs for a, b in zip(book.earned(), chain, strict=True)), seed
            earned += any(chain)
    assert earned > 100


def test_the_cut_of_unstaked_fees_is_taken_from_a_books_growth():
    """f = floor(fee * share), the book gets f - ceil(f * u / 1e6): of 1,000 at 10 % 900, of 1,001 as well."""
    for per_unit, kept in ((1000, 900), (1001, 900), (1, 0), (0, 0)):
        run = tape_module.Run(0, 0, 10, 0, 100_000, True)
        run.sums[0][0] = per_unit * 20
        assert run.growth(10, run.sums) == (kept, 0)


# ---------------------------------------------------------------------------------------------------------------------
# A decision


def market(vault: Sequence[tuple] = ((-100, 100, 10**18),), idle: tuple[int, int] = (0, 0), owed: int = 0) -> Tape:
    """Spacing 10, price 1, a crowd of 1e18 everywhere, and a vault with these positions; block 100 comes first."""
    pool = Pool(3000, 10)
    pool.initialize(Q96)
    pool.mint("crowd", -887270, 887270, 10**18)
    for position in vault:
        pool.mint(VAULT, *position)
    if owed:
        pool.flash(0, 0, owed, owed)
    keys = [(VAULT, lower, upper) for lower, upper, _ in vault]
    return Tape(Snapshot.of(pool, keys, idle, 100, 1200, "synthetic"))


def ranges_of(book: Book) -> list[tuple]:
    return [(h.tick_lower, h.tick_upper) for h in book.holdings]


def test_returning_what_was_shown_keeps_everything_and_changes_nothing():
    tape = market(((-100, 100, 10**18), (-50, 50, 10**17)), owed=10**12)
    book = Book(tape)
    before = copy.deepcopy([(h.liquidity, h.growth0, h.owed0) for h in book.holdings])
    shown = book.shown(Q96)
    assert book.rebalance(100, shown, shown) is False
    assert book.rebalance(101, shown[::-1], shown) is False  # the order is no change
    assert [(h.liquidity, h.growth0, h.owed0) for h in book.holdings] == before
    assert book.changes == 0 and len(book.history) == 1 and book.earned() == (0, 0)


def test_an_empty_answer_closes_everything_and_credits_the_fees():
    book = Book(market(owed=10**12))
    amounts, fees = book.amounts(Q96), book.fees()
    assert all(fees) and book.initial == tuple(a + f for a, f in zip(amounts, fees, strict=True))
    assert book.rebalance(100, (), book.shown(Q96)) is True
    assert (book.idle0, book.idle1) == book.initial and not book.holdings
    assert book.fees() == (0, 0) and book.earned() == (0, 0) and book.final(Q96) == book.initial


def test_a_position_with_one_amount_changed_is_closed_and_minted_anew():
    book = Book(market())
    (shown,) = book.shown(Q96)
    old = book.holdings[0]
    assert book.rebalance(100, [replace(shown, allocation0=shown.allocation0 - 1)], [shown]) is True
    assert ranges_of(book) == [(-100, 100)] and book.holdings[0] is not old and book.holdings[0].key is None


def test_equal_positions_are_matched_one_for_one():
    """Asked for once, one of two equal holdings is closed; asked for three times, the other gets two new companions."""
    book = Book(market((), idle=(10**18, 10**18)))
    book.rebalance(100, [Position(-100, 100, 10**17, 10**17)] * 2, ())
    first, _ = book.holdings
    one, other = book.shown(Q96)
    assert one == other and book.rebalance(101, [other, one], [one, other]) is False
    assert book.rebalance(101, [one], [one, other]) is True
    assert book.holdings == [first]
    assert book.rebalance(102, [one] * 3, [one]) is True
    assert len(book.holdings) == 3 and book.holdings[0] is first


def test_allocations_are_capped_in_list_order_at_what_is_there():
    """The first takes all it asks for, the second what is left, the third nothing: it is skipped."""
    book = Book(market((), idle=(10**18, 10**18)))
    wants = [Position(lower, -lower, 6 * 10**17, 6 * 10**17) for lower in (-100, -200, -300)]
    assert book.rebalance(100, wants, ()) is True
    assert ranges_of(book) == [(-100, 100), (-200, 200)]
    first, second = (h.amounts(Q96)[0] for h in book.holdings)
    assert first == 6 * 10**17 - 1 and 4 * 10**17 - 3 <= second < 4 * 10**17
    assert 0 <= book.idle0 <= 2 and 0 <= book.idle1 <= 2


def test_a_position_without_liquidity_is_skipped_and_an_answer_of_only_such_changes_nothing():
    tape = market(idle=(5, 5))
    book = Book(tape)
    shown = book.shown(Q96)
    nothing = [Position(-10, 10, 0, 0), Position(10, 20, 0, 10**30), Position(-20, -10, 10**30, 0)]
    assert book.rebalance(100, [*shown, *nothing], shown) is False
    assert book.changes == 0 and len(book.history) == 1 and ranges_of(book) == [(-100, 100)]


def test_more_than_a_tick_may_hold_is_skipped():
    tape = market((), idle=(2**127, 2**127))
    book = Book(tape)
    assert book.rebalance(100, [Position(-10, 10, 2**127, 2**127)], ()) is False
    assert not book.holdings and tape.pool.max_liquidity_per_tick < 2**128 // 10**5


def test_kept_positions_go_on_earning_without_a_cut_and_new_ones_from_their_block_on():
    """A swap of 1e15 in block 100, one in 101; the range minted at 101 sees only the second."""
    events, pool = [], market().snapshot.open()
    for block in (100, 101):
        amounts = pool.swap(True, 10**15, MIN_SQRT_RATIO + 1)
        args = ("in", *amounts, pool.sqrt_price_x96, pool.liquidity, pool.tick)
        events.append(Event(block, 0, block * 12, "swap", args))
    tape = market(idle=(10**16, 10**16))
    tape.feed(events)
    book = Book(tape)
    shown = book.at(101).shown(tape.price_before(101))
    book.rebalance(101, [*shown, Position(-200, 200, 10**16, 10**16)], shown)
    book.walk(102)
    kept, new = book.holdings
    alone = Book(tape)
    alone.walk(102)
    assert kept.fees()[0] < alone.holdings[0].fees()[0]  # it now shares with its neighbour
    fee = 3 * 10**12  # 0.3 % of 1e15
    whole, part = kept.liquidity + new.liquidity, 2 * 10**18 - kept.liquidity
    second = fee * new.liquidity // (part + whole)
    assert new.fees()[0] in (second, second - 1)


def test_a_book_settles_when_its_vault_position_is_touched_like_the_position_itself():
    """Two growths of a third of a unit and two thirds: settled apart they give nothing, together one unit."""
    snapshot = market(((-100, 100, 1),)).snapshot
    pool = snapshot.open()
    tips = [(0, 0, 2 * 10**17, 0)] * 9  # a book of one unit of liquidity gets 0.2 of each
    poke = Event(100, 4, 0, "burn", (VAULT, -100, 100, 0, 0, 0))
    events = [Event(100 + n, n, 0, "flash", (0, 0, paid0, paid1)) for n, (_, _, paid0, paid1) in enumerate(tips)]
    for pokes, expected in (([], 1), ([3], 1), ([4], 0), ([0, 9], 1), ([4, 4], 0), ([6], 1)):
        stream = [*events]
        for at in sorted(pokes, reverse=True):
            stream.insert(at, poke._replace(block=100 + at))
        tape, real = Tape(snapshot), pool.copy()
        tape.feed(stream)
        for event in stream:
            apply_event(real, event, {(VAULT, -100, 100)})
        book = Book(tape)
        book.walk(200)
        assert book.earned() == earned_on_chain(real, (VAULT, -100, 100)), pokes
        assert book.earned()[0] == expected


def test_looking_at_a_book_leaves_its_sums_uncut():
    """`at` walks a copy: however often a query looks, the book ends with the digits of one that nobody looked at."""
    for seed in range(100):
        world = random_world(70_000 + seed)
        tape = Tape(world.snapshot)
        tape.feed(world.events)
        looked, alone = Book(tape), Book(tape)
        desired = random_desired(world.rng, world.pool, world.snapshot.sqrt_price_x96, (), alone.initial)
        for book in (looked, alone):
            book.rebalance(world.snapshot.block, desired, ())
        for block in range(world.snapshot.block, world.close_block):
            before = looked.history.copy(), looked.fees(), looked.in_range
            twin = looked.at(block)
            twin.rebalance(block, (), twin.shown(tape.price_before(block)))
            assert (looked.history, looked.fees(), looked.in_range) == before
        for book in (looked, alone):
            book.walk(world.close_block)
        assert looked.earned() == alone.earned() and looked.in_range == alone.in_range


def test_books_with_the_same_history_hold_and_earn_the_same():
    """And one wei less in one position is another history."""
    for seed in range(100):
        world = random_world(80_000 + seed)
        tape = Tape(world.snapshot)
        tape.feed(world.events)
        price, block = world.snapshot.sqrt_price_x96, world.snapshot.block
        one, two, other = Book(tape), Book(tape), Book(tape)
        desired = random_desired(world.rng, world.pool, price, (), one.initial)
        for book in (one, two):
            book.rebalance(block, desired, ())
        other.idle1 += 1
        other.rebalance(block, desired, ())
        for book in (one, two, other):
            book.walk(world.close_block)
        assert one.history == two.history and one.earned() == two.earned()
        assert (one.history == other.history) == (other.changes == 0), seed


def test_protocol_fees_collected_in_a_round_do_not_contradict_a_snapshot_that_does_not_know_them():
    tape = market()
    tape.feed([Event(100, 0, 1200, "collect_protocol", (10**9, 10**9))])
    assert tape.blocks == []


def test_what_a_burn_of_the_vault_releases_is_gone_and_its_fees_are_collected_by_an_event():
    """The markets' convention: a `collect` event follows for the fees only."""
    tape = market(owed=10**12)
    pool = tape.snapshot.open()
    released = pool.burn(VAULT, -100, 100, 10**17)
    fees = [owed - out for owed, out in zip(earned_on_chain(pool, (VAULT, -100, 100)), released, strict=True)]
    events = [
        Event(100, 0, 1200, "burn", (VAULT, -100, 100, 10**17, *released)),
        Event(100, 1, 1200, "collect", (VAULT, -100, 100, *fees)),
    ]
    tape.feed(events)
    assert all(fees) and tape.pool.position(VAULT, -100, 100).tokens_owed0 == 0
    with pytest.raises(ReplayError):
        tape.feed([events[1]])


def test_a_vault_that_opens_positions_in_the_round_counts_with_them():
    """L_vault follows the owner's new ranges where the snapshot names the owner, and the book's share with it."""
    pool = market().snapshot.open()
    paid = pool.mint(VAULT, -200, 200, 10**18)
    pool.flash(0, 0, 10**9, 0)
    events = [
        Event(100, 0, 1200, "mint", (VAULT, -200, 200, 10**18, *paid)),
        Event(100, 1, 1200, "flash", (0, 0, 10**9, 0)),
    ]
    for owner, vault in ((VAULT, 2 * 10**18), ("", 10**18)):
        tape = Tape(replace(market().snapshot, vault_owner=owner))
        tape.feed(events)
        assert tape.runs[0].liquidity == 3 * 10**18 and tape.runs[0].vault == vault
