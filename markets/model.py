"""A model of a market: seeded order flow on our own exact pool, for where no data is at hand. Never a real market.

    market = ModelMarket(seed=1, vaults={"vault": 400_000 * 10**6})

Each block an outside price moves, in calm and in wild hours; an arbitrageur trades the pool back to it with a price
limit once the gap exceeds the fee; noise traders come with heavy-tailed sizes; liquidity providers come, collect and
go; now and then somebody flashes and leaves a tip. The same seed, vaults and executions give the same events on every
platform: all chance is `random.Random.random()`, all floats come from + - * / and square roots, which IEEE 754 fixes.
How far that is like real pools is in `docs/market.md`. Read first: `memory.py`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from math import sqrt
from random import Random

from liquidity.events import Event
from liquidity.executions import Execution, Order
from liquidity.fast import FastPool
from liquidity.live import sums_of
from liquidity.rounds import plan
from markets.base import MarketError
from markets.memory import InMemoryMarket, Purse
from protocol import Pair, Token
from sim import BURN_ALL, MAX_SQRT_RATIO, MAX_TICK, MIN_SQRT_RATIO, PIPS, PoolError, liquidity_for, sqrt_ratio_at_tick

CHAIN_ID = 8453  # Base's, for miners that look at it; the pool's address says that this is a model
FEE, SPACING = 500, 10
BLOCK_SECONDS = 2
FIRST_BLOCK, FIRST_TIME = 1_000_000, 1_767_225_600  # 2026-01-01 00:00 UTC
FIRST_PRICE_X96 = sqrt_ratio_at_tick(-196_260)  # about 3,000 USDC per WETH
LAST_TICK = MAX_TICK // SPACING * SPACING
FAR = (MAX_SQRT_RATIO - 1, MIN_SQRT_RATIO + 1)  # the price limit that limits nothing, by zero_for_one
USDC = 10**6
OURS = "model:"  # what the names of the model's own owners begin with

# what follows is fitted to recordings of real pools; `docs/market.md` has the model beside them
VOLATILITIES = (0.25, 0.35, 0.45, 0.6, 0.8)  # of the outside price, per year; one at a time
VOLATILITY_CHANGES = 1 / 3_600  # a block: every two hours
ROOT_OF_YEAR = sqrt(365 * 86_400 // BLOCK_SECONDS)  # in blocks
HALF_FEE, HALF_COST = FEE / PIPS / 2, 0.000035  # of the price's root: what arbitrage pays, and the least it wants
ARBITRAGE = 0.5  # a block, while it pays
NOISE = 0.17  # trades a block
NOISE_SIZE, NOISE_MOST = 3_600 * USDC, 300_000 * USDC  # mean and most
EXACT_OUTPUT = 0.12  # of the noise trades
PROVIDER = 0.004  # arrivals, departures and collections a block
COLLECT = 0.3  # of these
PROVIDERS = 60  # in the long run, besides the founder, who never leaves and whose range has no end
PROVIDER_REACH = 250  # the most tick spacings on either side of the price, besides 5; the mean is a quarter
PROVIDER_SIZE, PROVIDER_MOST = 200_000 * USDC, 2_000_000 * USDC  # mean and most
FOUNDER_SIZE = 1_500_000 * USDC
FLASH, FLASH_MOST = 1 / 5_000, 500_000 * USDC  # a block; the largest
MOST_EVENTS = 80_000  # kept in memory: a week and more
VAULT_IDLE = 10  # one part in so many of a vault's capital starts outside its position
VAULT_HALF_WIDTH = 100 * SPACING


class ModelMarket(InMemoryMarket):
    """A seeded model of a WETH/USDC pool; its first block fills the pool.

    Args:
        vaults: capital by name, in token1 base units; half of it is held in token0, most of it in one position.
        executions: what `execute` returned in an earlier run, in order (block, vault, keep, close and mint suffice):
            the market takes the same course again. The attribute has what was executed so far.
        options: see `InMemoryMarket`.
    """

    read_only = ""

    def __init__(self, seed: int, vaults: Mapping[str, int] | None = None, executions=(), **options):
        self._chance, self._vaults = Random(seed).random, dict(vaults or {})
        self._planned, self.executions = deque(sorted(executions, key=lambda plan: plan.block)), []
        self._pool = FastPool(FEE, SPACING)
        self._pool.initialize(FIRST_PRICE_X96)
        self._outside = float(FIRST_PRICE_X96)  # square root of the outside price, X96
        self._volatility = VOLATILITIES[2]
        self._providers: list[tuple[str, int, int]] = []  # their positions
        self._arrivals = self._log_index = 0
        self._begun = self._made = FIRST_BLOCK - 1  # the last block that has events, the last one that has all
        super().__init__(
            label=f"MODEL of a market (seed {seed}): invented order flow, no real pool",
            pair=Pair(CHAIN_ID, f"{OURS}{seed}", Token("", "WETH", 18), Token("", "USDC", 6), FEE, SPACING),
            pool=self._pool.copy(),
            first=FIRST_BLOCK,
            most_events=MOST_EVENTS,
            hash_key=f"{OURS}{seed}",
            **options,
        )
        if self._planned and self._planned[0].block <= FIRST_BLOCK:
            raise MarketError(f"execution in block {self._planned[0].block}: the first can be in {FIRST_BLOCK + 1}")
        for vault in self._vaults:
            if vault.startswith(OURS):
                raise MarketError(f"vault {vault!r}: {OURS!r} begins the model's own names; choose another")
            self._purse(vault)

    def time_of(self, number: int) -> int:
        return FIRST_TIME + (number - FIRST_BLOCK) * BLOCK_SECONDS

    def number_at(self, time_seconds: int) -> int:
        return FIRST_BLOCK + max(0, -((FIRST_TIME - time_seconds) // BLOCK_SECONDS))

    def _new_purse(self, vault: str) -> Purse:
        if vault not in self._vaults:
            raise MarketError(f"vault {vault!r}: the model has {', '.join(self._vaults) or 'none'}")
        return Purse(lambda key: key[0] == vault, _halves(self._vaults[vault], FIRST_PRICE_X96), vault)

    async def execute(self, order: Order) -> Execution:
        return await self.rebalance(order.vault, *plan(order.shown, order.desired))

    async def rebalance(self, vault: str, keep: Iterable, close: Iterable, mint: Iterable) -> Execution:
        """Carry out what `plan` gives. Raises `MarketError`."""
        self._grow(self._clock.head)
        self._begin(self._made + 1)
        return self._run(Execution(self._begun, vault, tuple(keep), tuple(close), tuple(mint)))

    def _run(self, plan: Execution) -> Execution:
        vault, first_log = plan.vault, self._log_index
        purse = self._purse(vault)
        before, held = purse.newest, {key[1:] for key in self._pool.positions if key[0] == vault}
        if sorted(map(tuple, (*plan.keep, *plan.close))) != sorted(held):
            both = f"keep {plan.keep} and close {plan.close}"
            raise MarketError(f"vault {vault!r} holds {held}: {both} must add up to it")
        for lower, upper, *most in plan.mint:
            usable = -LAST_TICK <= lower < upper <= LAST_TICK and lower % SPACING == upper % SPACING == 0
            if not usable or min(most) < 0:
                raise MarketError(f"mint {lower}, {upper}, {most}: ordered multiples of {SPACING}, amounts from 0")
        for ticks in plan.close:
            self._burn((vault, *ticks), self._pool.position(vault, *ticks).liquidity)
        for lower, upper, *most in plan.mint:
            self._mint((vault, lower, upper), map(min, most, purse.newest))
        released, fees, paid, minted = sums_of(self._history.between(plan.block, plan.block)[first_log:])
        done = replace(plan, before=before, released=released, fees=fees, paid=paid, after=purse.newest, minted=minted)
        self.executions.append(done)
        return done

    # -- order flow

    def _grow(self, last: int) -> None:
        while self._made < last:
            self._begin(self._made + 1)
            (self._fill if self._begun == FIRST_BLOCK else self._trade)()
            self._made += 1

    def _begin(self, block: int) -> None:
        """Executions come first in their block."""
        if self._begun < block:
            self._begun, self._log_index = block, 0
            while self._planned and self._planned[0].block == block:
                self._run(self._planned.popleft())

    def _fill(self) -> None:
        self._provide("founder", FOUNDER_SIZE, LAST_TICK)
        for _ in range(PROVIDERS):
            self._arrive()
        for vault in self._vaults:
            most = (idle - idle // VAULT_IDLE for idle in self._purse(vault).newest)
            self._mint((vault, *self._around(VAULT_HALF_WIDTH)), most)

    def _trade(self) -> None:
        chance, price = self._chance, self._pool.sqrt_price_x96
        if chance() < VOLATILITY_CHANGES:
            self._volatility = VOLATILITIES[int(chance() * len(VOLATILITIES))]
        # the sum of three chances has a standard deviation of 1/2: half of the price's, which is right for its root
        self._outside *= 1 + self._volatility / ROOT_OF_YEAR * (chance() + chance() + chance() - 1.5)
        if price < (target := self._outside * (1 - HALF_FEE)) * (1 - HALF_COST):
            if chance() < ARBITRAGE:
                self._swap("limit", False, 1 << 120, int(target))
        elif price > (target := self._outside * (1 + HALF_FEE)) * (1 + HALF_COST) and chance() < ARBITRAGE:
            self._swap("limit", True, 1 << 120, int(target))
        event = chance()
        if event < NOISE:
            self._noise()
        elif event < NOISE + PROVIDER:
            self._come_or_go()
        elif event < NOISE + PROVIDER + FLASH:
            self._flash()

    def _noise(self) -> None:
        zero_for_one, exact_output = self._chance() < 0.5, self._chance() < EXACT_OUTPUT
        amount = _halves(2 * self._size(NOISE_SIZE, NOISE_MOST), int(self._outside))[zero_for_one == exact_output]
        how, specified = ("out", -amount) if exact_output else ("in", amount)
        self._swap(how, zero_for_one, specified, FAR[zero_for_one])

    def _come_or_go(self) -> None:
        chance, count = self._chance, len(self._providers)
        if chance() < COLLECT and count:
            self._burn(self._providers[int(chance() * count)], 0)
        elif chance() * 2 * PROVIDERS >= count:
            self._arrive()
        else:
            key = self._providers.pop(int(chance() * count))
            self._burn(key, self._pool.position(*key).liquidity)

    def _arrive(self) -> None:
        self._arrivals += 1
        half_width = SPACING * (5 + int(PROVIDER_REACH * self._chance() * self._chance()))
        self._providers.append(self._provide(str(self._arrivals), self._size(PROVIDER_SIZE, PROVIDER_MOST), half_width))

    def _provide(self, name: str, size: int, half_width: int) -> tuple[str, int, int]:
        key = OURS + name, *self._around(half_width)
        self._mint(key, _halves(size, self._pool.sqrt_price_x96))
        return key

    def _flash(self) -> None:
        loan = _halves(int(FLASH_MOST * self._chance()), self._pool.sqrt_price_x96)
        tip = loan[1] // 10_000 if self._chance() < 0.5 else 0
        self._emit("flash", *loan, *self._pool.flash(*loan, 0, tip))

    def _size(self, mean: int, most: int) -> int:
        """Heavy-tailed: beyond k times the mean lies one in (k + 1) ** 2; half are below two fifths of it."""
        return min(USDC + int(mean * (1 / sqrt(1 - self._chance()) - 1)), most)

    def _around(self, half_width: int) -> tuple[int, int]:
        base = self._pool.tick // SPACING * SPACING
        return max(base - half_width, -LAST_TICK), min(base + half_width, LAST_TICK)

    # -- calls of the pool, each with its event

    def _swap(self, how: str, zero_for_one: bool, amount: int, limit: int) -> None:
        pool = self._pool
        amounts = pool.swap(zero_for_one, amount, limit)
        self._emit("swap", how, *amounts, pool.sqrt_price_x96, pool.liquidity, pool.tick)

    def _mint(self, key: tuple[str, int, int], most: Iterable[int]) -> None:
        """Nothing happens where that would be no liquidity, or more than a tick may hold."""
        bounds = (sqrt_ratio_at_tick(tick) for tick in key[1:])
        liquidity = liquidity_for(*most, self._pool.sqrt_price_x96, *bounds)
        with suppress(PoolError):
            amounts = self._pool.mint(*key, liquidity)
            self._emit("mint", *key, liquidity, *amounts)

    def _burn(self, key: tuple[str, int, int], liquidity: int) -> None:
        """What it releases, and all fees, leave the pool at once."""
        pool = self._pool
        released = pool.burn(*key, liquidity)
        pool.collect(*key, *released)
        self._emit("burn", *key, liquidity, *released)
        if any(fees := pool.collect(*key, BURN_ALL, BURN_ALL)):
            self._emit("collect", *key, *fees)
        if not pool.position(*key).liquidity:
            del pool.positions[key]

    def _emit(self, kind: str, *args) -> None:
        self._history.append(Event(self._begun, self._log_index, self.time_of(self._begun), kind, args))
        self._log_index += 1


def _halves(value: int, sqrt_price_x96: int) -> tuple[int, int]:
    """Amounts of both tokens, each worth half of `value` token1 base units."""
    return (value // 2 << 192) // (sqrt_price_x96 * sqrt_price_x96), value - value // 2
