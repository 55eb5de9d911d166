"""What a position would have earned in a recorded market: the anchored replay's tape, and a miner's book on it.

The real pool advances bit-exactly through its real events. Each stretch of a swap at one liquidity becomes a *leg*, and
all legs of a round make a `Tape`, computed once and shared by all miners. A `Book` is one miner's positions and tokens.
Its part of a leg's fee is

    share = L_book / max(L_leg, L_leg - L_vault + L_book)

so the price path is the market's (no pinning it with a wall), the fee pie is the recorded one (no fees on volume that
never happened), and no book earns more than the fee rate on what it swapped itself (no windfall for dust in an empty
pool).

Fees follow the contract's own form, growth per unit of liquidity in X128. Over a *run* of legs with the same liquidity,
vault and fees the book's growth is `(sum of fees << 128) // denominator`, less one unit for each leg: never more than
the sum of what each leg alone would give, rounded down. That sum is the rule, and its grouping belongs to
`RULES_VERSION`. Where `L_book = L_vault` the pool's own growth is used, so that a book which keeps what the vault has
earns what the vault earned, to the last unit.

The independent check, which mints into a copy of the pool and makes the calls again, is in `tests/test_books.py`.
Pure. Read first: `tape.py`. Read next: `scoring.py`, then `rounds.py`, which puts both together.
"""

from __future__ import annotations

import copy
from bisect import bisect_right
from collections.abc import Iterable, Sequence

from liquidity.events import OWN_KINDS, Event, idle_after
from liquidity.tape import SHARE_QUANTUM, Holding, Tape, holding_of, worth
from protocol import Position
from sim import amounts_of, liquidity_for, sqrt_ratio_at_tick


class Book:
    """One miner's positions and tokens on a tape.

    Attributes:
        holdings: the positions, in the order in which they are shown.
        changes: how often an answer changed something.
        in_range: block-weighted share of value in range, summed over the blocks walked, in `SHARE_QUANTUM`.
        history: (block, idle0, idle1, sorted ranges and liquidities) at the start and at each change: books with the
            same history are identical at every block.
    """

    def __init__(self, tape: Tape):
        """A book that holds what the vault holds at the tape's start."""
        snapshot, self.tape = tape.snapshot, tape
        self.idle0, self.idle1 = snapshot.idle0, snapshot.idle1
        vault = zip(snapshot.vault, tape.vault_growth, strict=True)
        self.holdings = [holding_of(position.key, position, inside) for position, inside in vault]
        for holding in self.holdings:
            if tape.unpaid(holding.key):
                holding.growth0 = holding.growth1 = 0
        self.changes = 0
        self._leg, self._block = 0, snapshot.block  # how far fees and blocks are counted
        self._collected0 = self._collected1 = 0
        self.in_range = 0
        self._before = self.fees()  # earned before the start: part of the initial amounts
        self.initial = self.amounts(snapshot.sqrt_price_x96)
        self.initial = self.initial[0] + self._before[0], self.initial[1] + self._before[1]
        self.history = [self._signature(snapshot.block)]

    # -- reading

    def amounts(self, price: int) -> tuple[int, int]:
        """All tokens at a price, without uncollected fees."""
        held = [holding.amounts(price) for holding in self.holdings]
        return self.idle0 + sum(a for a, _ in held), self.idle1 + sum(a for _, a in held)

    def fees(self) -> tuple[int, int]:
        """Uncollected fees, as far as the book has been walked."""
        owed = [holding.fees() for holding in self.holdings]
        return sum(a for a, _ in owed), sum(a for _, a in owed)

    def earned(self) -> tuple[int, int]:
        """Fees earned since the start, collected or not."""
        fees0, fees1 = self.fees()
        return fees0 + self._collected0 - self._before[0], fees1 + self._collected1 - self._before[1]

    def final(self, price: int) -> tuple[int, int]:
        """All tokens at a price, without the fees earned since the start: what scoring calls `final`."""
        (amount0, amount1), (fees0, fees1), (earned0, earned1) = self.amounts(price), self.fees(), self.earned()
        return amount0 + fees0 - earned0, amount1 + fees1 - earned1

    def shown(self, price: int, live: bool = False) -> list[Position]:
        """The positions as a query shows them; a live one not those that a gauge holds, which nobody can change."""
        held = [holding for holding in self.holdings if not (live and holding.key in self.tape.staked)]
        return [Position(h.tick_lower, h.tick_upper, *h.amounts(price)) for h in held]

    def at(self, block: int) -> Book:
        """A copy walked to the block's first event: what a query shows. The book's own sums stay uncut."""
        twin = copy.copy(self)
        twin.holdings = [copy.copy(holding) for holding in self.holdings]
        twin.history = self.history.copy()
        twin.walk(block)
        return twin

    # -- walking

    def walk(self, block: int) -> None:
        """Earn fees and count blocks in range up to the block's first event; at touches, settle as the real one."""
        tape, last = self.tape, self.tape.leg_at(block)
        if self._block < block:
            self._count_blocks(block)
        keys = {holding.key for holding in self.holdings if holding.key}
        touches = [(leg, key) for leg, key in tape.touches if self._leg <= leg <= last and key in keys] if keys else []
        for leg, key in touches:
            self._earn(leg)
            for holding in self.holdings:
                if holding.key == key:
                    holding.settle()
        self._earn(last)

    def _earn(self, last: int) -> None:
        holdings = [h for h in self.holdings if h.liquidity and not self.tape.unpaid(h.key)]
        bounds = _bounds(holdings)
        for n in range(1, len(bounds)):
            inside = [h for h in holdings if h.lower_x96 <= bounds[n - 1] and bounds[n] <= h.upper_x96]
            if inside:
                liquidity = sum(holding.liquidity for holding in inside)
                growth0, growth1 = self.tape.growth(bounds, n, liquidity, self._leg, last)
                for holding in inside:
                    holding.growth0 += growth0
                    holding.growth1 += growth1
        self._leg = max(self._leg, last)

    def _count_blocks(self, block: int) -> None:
        """Value is taken at the price at the start of the stretch, since the book last changed, and held constant."""
        price = self.tape.price_before(self._block)
        total = worth(self.amounts(price), price)
        if total and self.holdings:
            bounds = _bounds(self.holdings)
            blocks = self.tape.blocks_inside(bounds, self._block, block)
            weighted = 0
            for holding in self.holdings:
                first, last = bisect_right(bounds, holding.lower_x96), bisect_right(bounds, holding.upper_x96)
                weighted += worth(holding.amounts(price), price) * sum(blocks[first:last])
            self.in_range += weighted * SHARE_QUANTUM // total
        self._block = block

    def rebalance(self, block: int, desired: Sequence[Position], shown: Sequence[Position]) -> bool:
        """Let an answer act before a block's first event.

        Each position that its query showed stands for the book's holding with the same ticks, in order. A desired
        position, already checked, that is equal to a shown one keeps that holding untouched. The other holdings are
        closed; their tokens and fees go to idle. Then the remaining desired positions are minted in order, each with at
        most its allocation and at most what is then idle. A position that would get no liquidity, or more than a tick
        may hold, is skipped. Returns whether anything changed.
        """
        price, free, waiting = self.tape.price_before(block), self.holdings.copy(), []
        for position in shown:
            ticks = position.tick_lower, position.tick_upper
            if holding := next((h for h in free if (h.tick_lower, h.tick_upper) == ticks), None):
                free.remove(holding)
                waiting.append((position, holding))
        kept: list[Holding | None] = []
        for position in desired:
            pair = next((pair for pair in waiting if pair[0] == position), None)
            if pair:
                waiting.remove(pair)
            kept.append(pair[1] if pair else None)
        closing = [holding for holding in self.holdings if holding not in kept]
        opening = [position for position, holding in zip(desired, kept, strict=True) if not holding]
        if not closing and not any(self._mintable(position, price) for position in opening):
            return False
        self.walk(block)
        for holding in closing:
            (amount0, amount1), (fees0, fees1) = holding.amounts(price), holding.fees()
            self.idle0 += amount0 + fees0
            self.idle1 += amount1 + fees1
            self._collected0 += fees0
            self._collected1 += fees1
        minted = [holding or self._mint(position, price) for holding, position in zip(kept, desired, strict=True)]
        self.holdings = [holding for holding in minted if holding]
        self.changes += 1
        self.history.append(self._signature(block))
        return True

    def mirror(self, events: Iterable[Event], block: int) -> None:
        """Walk to a block's first event and change as the vault did by its own; for the share in range, not for fees.

        What the vault does acts before its block's first event, wherever in the block it stands.
        """
        held = {holding.key: holding.liquidity for holding in self.holdings}
        for event in events:
            if not (event.kind in OWN_KINDS and self.tape.snapshot.is_vaults(event.args[0])):
                continue
            if self._block < event.block and any(event.args[3:]):
                self._count_blocks(event.block)
            if event[:2] not in self.tape.given:
                self.idle0, self.idle1 = idle_after((self.idle0, self.idle1), event)
            if event.kind in ("mint", "burn"):
                key, liquidity = event.args[:3], event.args[3] if event.kind == "mint" else -event.args[3]
                held[key] = held.get(key, 0) + liquidity
            self.holdings = [Holding(*key[1:], liquidity, key) for key, liquidity in held.items() if liquidity]
        self._count_blocks(block)

    def _mintable(self, position: Position, price: int) -> int:
        """The liquidity that a desired position would get now; 0 if it would be skipped."""
        amount0, amount1 = min(position.allocation0, self.idle0), min(position.allocation1, self.idle1)
        lower_x96, upper_x96 = sqrt_ratio_at_tick(position.tick_lower), sqrt_ratio_at_tick(position.tick_upper)
        liquidity = liquidity_for(amount0, amount1, price, lower_x96, upper_x96)
        return liquidity if liquidity <= self.tape.pool.max_liquidity_per_tick else 0

    def _mint(self, position: Position, price: int) -> Holding | None:
        liquidity = self._mintable(position, price)
        if not liquidity:
            return None
        holding = Holding(position.tick_lower, position.tick_upper, liquidity)
        used0, used1 = amounts_of(liquidity, price, holding.lower_x96, holding.upper_x96, round_up=True)
        self.idle0 -= used0
        self.idle1 -= used1
        return holding

    def _signature(self, block: int) -> tuple:
        held = sorted((h.tick_lower, h.tick_upper, h.liquidity) for h in self.holdings)
        return block, self.idle0, self.idle1, tuple(held)


def _bounds(holdings: Iterable[Holding]) -> list[int]:
    """The prices at which the liquidity of these changes."""
    return sorted({bound for holding in holdings for bound in (holding.lower_x96, holding.upper_x96)})
