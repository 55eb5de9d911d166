"""The tape: every leg of every swap of a round, computed once and shared by all books.

    tape = Tape(snapshot)
    tape.feed(events)                                   # the real pool advances; legs are noted

Pure. Read first: `replay.py`. Read next: `books.py` (what a miner's positions earn on it).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, repeat
from operator import add, attrgetter, floordiv, sub

from liquidity.events import OWN_KINDS, Event, idle_after
from liquidity.replay import Snapshot, VaultPosition, apply_event
from liquidity.slipstream import SlipstreamPool
from sim import MASK_256, MAX_SQRT_RATIO, PIPS, PositionState, amounts_of, sqrt_ratio_at_tick

SHARE_QUANTUM = 10**18  # the in-range share of a stretch is rounded down to this fraction
CHUNK = 16  # runs, or stops, that are looked at together
_NO_CELL = (1, 0, 0, True)  # price interval, the vault's liquidity in it, whether none of it is staked


@dataclass(slots=True, eq=False)
class Run:
    """Consecutive legs, `last` excluded, at the same liquidity, vault liquidity and fees.

    Attributes:
        lo, hi: the price span of all legs, Q64.96.
        liquidity, vault: L_leg and L_vault.
        unstaked_fee: Slipstream's cut of unstaked fees, pips; 0 on Uniswap.
        exact: whether the pool's own growth is what the vault earns; not so where some of it is staked.
        sums: over the legs by input token: fees << 128, the pool's own growth per unit of liquidity, number of legs.
    """

    first: int
    last: int
    liquidity: int
    vault: int
    unstaked_fee: int
    exact: bool
    lo: int = MAX_SQRT_RATIO
    hi: int = 0
    sums: tuple[list[int], list[int]] = field(default_factory=lambda: ([0, 0, 0], [0, 0, 0]))

    def growth(self, liquidity: int, sums: tuple[list[int], list[int]]) -> tuple[int, ...]:
        """Growth per unit, X128, of a book with `liquidity` in range, on legs of these sums: the rule of `books.py`."""
        if liquidity == self.vault and self.exact:
            return tuple(own for _, own, _ in sums)
        denominator = self.liquidity if liquidity <= self.vault else self.liquidity - self.vault + liquidity
        grown = []
        for fees_x128, _, legs in sums:
            growth = max(0, fees_x128 // denominator - legs)
            grown.append(growth - -(-growth * self.unstaked_fee // PIPS))
        return tuple(grown)


def _add_leg(sums: tuple[list[int], list[int]], zero_for_one: bool, fee: int, own: int) -> None:
    into = sums[not zero_for_one]
    into[0] += fee << 128
    into[1] += own
    into[2] += 1


class Holding:
    """One position of a book.

    Attributes:
        key: the vault's key of a position taken over from the vault, else None.
        owed0, owed1: settled fees, not collected.
        growth0, growth1: growth per unit of liquidity not settled yet, X128.
    """

    def __init__(self, tick_lower: int, tick_upper: int, liquidity: int, key: tuple | None = None):
        self.tick_lower, self.tick_upper, self.liquidity, self.key = tick_lower, tick_upper, liquidity, key
        self.lower_x96, self.upper_x96 = sqrt_ratio_at_tick(tick_lower), sqrt_ratio_at_tick(tick_upper)
        self.owed0 = self.owed1 = self.growth0 = self.growth1 = 0

    def amounts(self, price: int) -> tuple[int, int]:
        """What closing would release at a price, without fees."""
        return amounts_of(self.liquidity, price, self.lower_x96, self.upper_x96, round_up=False)

    def fees(self) -> tuple[int, int]:
        """Uncollected fees, as the contract would pay them."""
        return self.owed0 + (self.growth0 * self.liquidity >> 128), self.owed1 + (self.growth1 * self.liquidity >> 128)

    def settle(self) -> None:
        (self.owed0, self.owed1), self.growth0, self.growth1 = self.fees(), 0, 0


def holding_of(key: tuple, state: PositionState | VaultPosition, inside_x128: tuple[int, int]) -> Holding:
    """A position of the vault, as the contract has it, with the fees it has not settled yet."""
    holding = Holding(*key[1:], state.liquidity, key)
    holding.owed0, holding.owed1 = state.tokens_owed0, state.tokens_owed1
    holding.growth0 = inside_x128[0] - state.fee_growth_inside0_last_x128 & MASK_256
    holding.growth1 = inside_x128[1] - state.fee_growth_inside1_last_x128 & MASK_256
    return holding


class Tape:
    """All legs of a stretch of market, and where the price stood at the end of each block.

    Attributes:
        blocks, legs: by leg: its block; its direction, lower and upper price, fee of the input token (net of the
            protocol's part), the pool's own growth. A leg without movement has a span of one unit, at its tick's side.
        stop_blocks, stop_prices, stop_spots: by block in which the price was touched: its number, the price after it,
            and `Pool.spot`: a range holds the spot if and only if it holds the tick.
        touches: (leg index, vault key) whenever the vault's position was touched and its fees settled.
        idle: the vault's tokens outside the pool: what burns and collects gave, less what mints took as far as it was
            there. `collected` of it are fees since the start.
        given: (block, log index) of mints of the vault's that others paid for.
        gifts: what these took, and others beyond what was idle.
        staked: keys of the vault's positions that Slipstream's gauge holds now: they earn no fees.
        live: of a live round: what is staked earns nothing in books either, which else count it as unstaked.
        vault_growth: fee growth inside each of the vault's positions at the start, X128, modulo 2**256.
    """

    def __init__(self, snapshot: Snapshot, live: bool = False, given: Collection[tuple[int, int]] = ()):
        self.snapshot, self.live, self.given = snapshot, live, given
        self.pool = snapshot.open()
        self.vault_keys = {position.key for position in snapshot.vault}
        self.staked = {position.key for position in snapshot.vault if position.staked}
        self.vault_growth = [self.pool.fee_growth_inside(p.tick_lower, p.tick_upper) for p in snapshot.vault]
        self.blocks: list[int] = []
        self.legs: list[tuple[bool, int, int, int, int]] = []
        self.runs: list[Run] = []
        self.stop_blocks, self.stop_prices, self.stop_spots = [], [], []
        self.touches: list[tuple[int, tuple]] = []
        self.swaps = self.unknown_swaps = 0
        self.start_spot = self.pool.spot
        self.idle, self.collected, self.gifts = (snapshot.idle0, snapshot.idle1), (0, 0), (0, 0)
        self._news = self.pool.record()
        self._slipstream = isinstance(self.pool, SlipstreamPool)
        self._cell = _NO_CELL
        self._chunks: list[_Chunk] = []
        self._spans: list[tuple[int, int]] = []

    # -- writing

    def feed(self, events: Iterable[Event]) -> None:
        """Advance the pool by events, hold it against them, and write their legs down.

        Raises `ReplayError` or `PoolError` where the events are not this pool's, or some are missing.
        """
        for event in events:
            if event.kind == "mint" and self.snapshot.is_vaults(event.args[0]):
                self.vault_keys.add(event.args[:3])
            if event.kind != "collect_protocol":  # what the protocol was owed before the snapshot nobody knows
                apply_event(self.pool, event, self.vault_keys)
            if event.kind == "swap":
                self.swaps += 1
                self.unknown_swaps += event.args[0] == "?"
            elif event.kind in OWN_KINDS and event.args[:3] in self.vault_keys:
                self._follow_vault(event)
            elif event.kind == "write_off" and self.snapshot.is_vaults(event.args[0]):  # of an empty token: it was idle
                self.idle = tuple(map(sub, self.idle, map(add, event.args[3:5], event.args[5:])))
            elif event.kind in ("stake", "unstake") and event.args[:3] in self.vault_keys:
                self._follow_stake(event)
            if self._news:
                for leg in self._news:
                    self._write(event.block, *leg)
                self._news.clear()
            if event.kind == "swap":
                self._stop(event.block)

    def unpaid(self, key: tuple | None) -> bool:
        """Whether a book's position, named by its key at the vault, earns no fees."""
        return self.live and key in self.staked

    def _follow_vault(self, event: Event) -> None:
        key, amounts = event.args[:3], event.args[-2:]
        before = self.idle
        if event[:2] not in self.given:
            self.idle = idle_after(before, event)
        if event.kind == "mint":
            taken = map(sub, before, self.idle)
            self.gifts = tuple(map(add, self.gifts, map(sub, amounts, taken)))
        if event.kind == "collect":
            self.collected = tuple(map(add, self.collected, amounts))
        if event.kind in ("collect", "write_off"):
            return
        self.touches.append((len(self.blocks), key))
        self._cell = _NO_CELL
        if event.kind == "burn":  # what a burn releases leaves the pool with it: only fees stay owed
            self.pool.collect(*key, *amounts)

    def _follow_stake(self, event: Event) -> None:
        """Where a vault has no owner, as in recordings, it is what all tokens in a range have: a part comes or goes."""
        key, staked, self._cell = event.args[:3], event.kind == "stake", _NO_CELL
        state, inside = self.pool.position(*key), self.pool.fee_growth_inside(*key[1:])
        if not self.snapshot.vault_owner:
            state.settle(*inside)
            state.liquidity += -event.args[3] if staked else event.args[3]
            self.touches.append((len(self.blocks), key))
        elif staked:
            self.staked.add(key)
        else:  # it earned no fees meanwhile
            state.settle(*inside, earns=False)
            self.staked.discard(key)

    def vault_holds(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """What the vault really has after the last event: (all tokens without uncollected fees, uncollected fees)."""
        tokens, fees = self.idle, (0, 0)
        for key in sorted(self.vault_keys):
            holding = holding_of(key, self.pool.position(*key), self.pool.fee_growth_inside(*key[1:]))
            if key in self.staked:
                holding.growth0 = holding.growth1 = 0
            tokens = tuple(map(add, tokens, holding.amounts(self.pool.sqrt_price_x96)))
            fees = tuple(map(add, fees, holding.fees()))
        return tokens, fees

    def _write(self, block: int, zero_for_one: bool, start: int, end: int, liquidity: int, fee: int, own: int) -> None:
        lo, hi = (self.pool.spot, self.pool.spot + 1) if start == end else (min(start, end), max(start, end))
        vault, exact = self._vault_on(lo, hi)
        unstaked_fee = self.pool.unstaked_fee if self._slipstream else 0
        run = self.runs[-1] if self.runs else None
        terms = liquidity, vault, unstaked_fee, exact
        if not run or (run.liquidity, run.vault, run.unstaked_fee, run.exact) != terms:
            run = Run(len(self.blocks), len(self.blocks), *terms)
            self.runs.append(run)
        run.last += 1
        run.lo, run.hi = min(run.lo, lo), max(run.hi, hi)
        _add_leg(run.sums, zero_for_one, fee, own)
        self.blocks.append(block)
        self.legs.append((zero_for_one, lo, hi, fee, own))

    def _vault_on(self, lo: int, hi: int) -> tuple[int, bool]:
        """The vault's liquidity on a leg, and whether none of it is staked: no leg crosses an initialised tick."""
        if not (self._cell[0] <= lo and hi <= self._cell[1]):
            left, right, liquidity, exact = 0, MAX_SQRT_RATIO, 0, True
            gauge = self.pool.gauge if self._slipstream else None
            for key in self.vault_keys:
                lower, upper = sqrt_ratio_at_tick(key[1]), sqrt_ratio_at_tick(key[2])
                for bound in (lower, upper):
                    if bound <= lo:
                        left = max(left, bound)
                    else:
                        right = min(right, bound)
                if lower <= lo and hi <= upper and not self.unpaid(key):
                    liquidity += self.pool.position(*key).liquidity
                    exact = exact and key[0] != gauge and key not in self.staked
            self._cell = (left, right, liquidity, exact)
        return self._cell[2:]

    def _stop(self, block: int) -> None:
        if self.stop_blocks and self.stop_blocks[-1] == block:
            self.stop_prices[-1], self.stop_spots[-1] = self.pool.sqrt_price_x96, self.pool.spot
        else:
            self.stop_blocks.append(block)
            self.stop_prices.append(self.pool.sqrt_price_x96)
            self.stop_spots.append(self.pool.spot)

    # -- reading

    def leg_at(self, block: int) -> int:
        """Index of the first leg of this block or a later one."""
        return bisect_left(self.blocks, block)

    def price_before(self, block: int) -> int:
        """The price before the block's first event."""
        at = bisect_left(self.stop_blocks, block) - 1
        return self.stop_prices[at] if at >= 0 else self.snapshot.sqrt_price_x96

    def growth(self, bounds: Sequence[int], n: int, liquidity: int, first: int, last: int) -> tuple[int, int]:
        """Growth of token0 and token1 per unit of liquidity that a book earns in one of its intervals, X128.

        Args:
            bounds: the prices at which the book's liquidity changes, in order, Q64.96.
            n: the interval from `bounds[n - 1]` to `bounds[n]`.
            liquidity: the book's liquidity there, > 0.
            first, last: legs of the stretch, `last` excluded.
        """
        lower, upper, runs = bounds[n - 1], bounds[n], self.runs
        total0 = total1 = 0
        at = bisect_right(runs, first, key=_first) - 1 if first < last else len(runs)
        while at < len(runs) and (run := runs[at]).first < last:
            if at % CHUNK == 0 and (chunk := self._chunk(at)) and first <= chunk.first and chunk.last <= last:
                if chunk.hi <= lower or chunk.lo >= upper:
                    at += CHUNK
                    continue
                if lower <= chunk.lo and chunk.hi <= upper and chunk.uniform and liquidity != chunk.vault:
                    more0, more1 = chunk.growth(liquidity)
                    total0, total1, at = total0 + more0, total1 + more1, at + CHUNK
                    continue
            at += 1
            if run.hi <= lower or run.lo >= upper:
                continue
            if lower <= run.lo and run.hi <= upper and first <= run.first and run.last <= last:
                more0, more1 = run.growth(liquidity, run.sums)
            else:
                more0, more1 = self._part(run, bounds, n, liquidity, max(first, run.first), min(last, run.last))
            total0, total1 = total0 + more0, total1 + more1
        return total0, total1

    def _part(self, run: Run, bounds: Sequence[int], n: int, liquidity: int, first: int, last: int) -> tuple[int, ...]:
        """As `Run.growth`, for some of its legs, those that cross the book's bounds cut there."""
        lower, upper = bounds[n - 1], bounds[n]
        sums = ([0, 0, 0], [0, 0, 0])
        for zero_for_one, lo, hi, fee, own in self.legs[first:last]:
            if hi <= lower or lo >= upper:
                continue
            if lo < lower or hi > upper:
                cuts = bounds[bisect_right(bounds, lo) : bisect_left(bounds, hi)]
                parts = split_fee(fee, run.liquidity, zero_for_one, (lo, *cuts, hi))
                part = parts[bisect_right(cuts, lower)]
                own, fee = own * part // fee, part
            _add_leg(sums, zero_for_one, fee, own)
        return run.growth(liquidity, sums)

    def _chunk(self, at: int) -> _Chunk | None:
        """The runs `at` to `at + CHUNK`, all of them finished; `at` is a multiple of `CHUNK`."""
        if at + CHUNK >= len(self.runs):
            return None
        while len(self._chunks) <= at // CHUNK:
            start = len(self._chunks) * CHUNK
            self._chunks.append(_Chunk(self.runs[start : start + CHUNK]))
        return self._chunks[at // CHUNK]

    def blocks_inside(self, bounds: Sequence[int], first_block: int, last_block: int) -> list[int]:
        """For how many blocks of a stretch, `last_block` excluded, the price stood in each interval.

        Interval n reaches from `bounds[n - 1]` (included) to `bounds[n]` (excluded), the first from 0 and the last
        without end. A block counts with the price at its end.
        """
        counts, blocks, spots = [0] * (len(bounds) + 1), self.stop_blocks, self.stop_spots
        at, end = bisect_left(blocks, first_block), bisect_left(blocks, last_block)
        inside, since = bisect_right(bounds, spots[at - 1] if at else self.start_spot), first_block
        while at < end:
            counts[inside] += blocks[at] - since
            if at % CHUNK == 0 and at + CHUNK < end:
                low, high = self._span(at)
                inside = bisect_right(bounds, low)
                if inside == bisect_right(bounds, high):
                    since, at = blocks[at], at + CHUNK
                    continue
            inside, since = bisect_right(bounds, spots[at]), blocks[at]
            at += 1
        counts[inside] += last_block - since
        return counts

    def _span(self, at: int) -> tuple[int, int]:
        """The lowest and the highest spot of the stops `at` to `at + CHUNK`, of which none will change any more."""
        while len(self._spans) <= at // CHUNK:
            start = len(self._spans) * CHUNK
            spots = self.stop_spots[start : start + CHUNK]
            self._spans.append((min(spots), max(spots)))
        return self._spans[at // CHUNK]


class _Chunk:
    """Several runs at once, for intervals that hold all of them: the same sums in fewer steps."""

    def __init__(self, runs: list[Run]):
        self.first, self.last, self.vault = runs[0].first, runs[-1].last, runs[0].vault
        self.lo, self.hi = min(run.lo for run in runs), max(run.hi for run in runs)
        self.uniform = all(run.vault == self.vault and not run.unstaked_fee for run in runs)
        self.liquidity = [run.liquidity for run in runs]
        self.sums = [([run.sums[n][0] for run in runs], [run.sums[n][2] for run in runs]) for n in (0, 1)]

    def growth(self, liquidity: int) -> tuple[int, ...]:
        """The sum of `Run.growth` where the runs are `uniform` and `liquidity` is not the vault's."""
        denominators = list(map(add, self.liquidity, repeat(max(0, liquidity - self.vault))))
        return tuple(
            sum(map(max, map(sub, map(floordiv, fees_x128, denominators), legs), repeat(0)))
            for fees_x128, legs in self.sums
        )


_first = attrgetter("first")


def split_fee(fee: int, liquidity: int, zero_for_one: bool, prices: Sequence[int]) -> list[int]:
    """Cut a leg's fee at prices inside it.

    A part's fee is `floor(fee * part's net input / leg's net input)`; the last part in the direction of travel gets the
    rest. The parts' inputs are rounded down and the leg's, as it was paid, up: the rest is never negative.

    Args:
        prices: the leg's lower end, the cuts, its upper end, ascending, Q64.96.

    Returns:
        Fees of the parts, in the order of the prices; they add up to `fee`.
    """
    side = 0 if zero_for_one else 1
    whole = amounts_of(liquidity, prices[0] if side == 0 else prices[-1], prices[0], prices[-1], round_up=True)[side]
    parts = [
        fee * amounts_of(liquidity, low if side == 0 else high, low, high, round_up=False)[side] // whole
        for low, high in pairwise(prices)
    ]
    parts[0 if zero_for_one else -1] += fee - sum(parts)
    return parts


def worth(amounts: tuple[int, int], price: int) -> int:
    """Value in units of 2**-192 token1 base units."""
    return amounts[0] * price * price + (amounts[1] << 192)
