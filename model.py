"""A model of a market: seeded order flow on our own exact pool, for where no data is at hand. Never a real market.

    market = ModelMarket(seed=1, vaults={"vault": 400_000 * 10**6})

Each block an outside price moves, in calm and in wild hours; an arbitrageur trades the pool back to it with a price
limit once the gap exceeds the fee; noise traders come with heavy-tailed sizes; liquidity providers come, collect and go;
now and then somebody flashes and leaves a tip. The same seed, vaults and executions give the same events on every platform: all
chance is `random.Random.random()`, all floats come from + - * / and square roots, which IEEE 754 fixes to the last bit.
Read next: `market.py` (what every market answers, and the lock-step clock).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import sqrt
from random import Random

from market import Execution, InMemoryMarket, MarketError, Pair, Purse
from protocol import Token
from recording import Event
from sim import (
    BURN_ALL,
    MAX_SQRT_RATIO,
    MAX_TICK,
    MIN_SQRT_RATIO,
    PIPS,
    Pool,
    PoolError,
    liquidity_for,
    sqrt_ratio_at_tick,
)

CHAIN_ID = 8453  # Base's, for miners that look at it; the pool's address says that this is a model
FEE, SPACING = 500, 10
BLOCK_SECONDS = 2
FIRST_BLOCK, FIRST_TIME = 1_000_000, 1_767_225_600  # 2026-01-01 00:00 UTC
FIRST_PRICE_X96 = sqrt_ratio_at_tick(-196_260)  # about 3,000 USDC per WETH
LAST_TICK = MAX_TICK // SPACING * SPACING
FAR = (MAX_SQRT_RATIO - 1, MIN_SQRT_RATIO + 1)  # the price limit that limits nothing, by zero_for_one
USDC = 10**6
OURS = "model:"  # what the names of the model's own owners begin with

VOLATILITIES = (0.3, 0.45, 0.6, 0.75, 1.2)  # of the outside price, per year; one at a time
VOLATILITY_CHANGES = 1 / 3_600  # a block: every two hours
BLOCKS_PER_YEAR = 365 * 86_400 // BLOCK_SECONDS
ARBITRAGE = 0.5  # a block, while the gap between the prices exceeds the fee by `ARBITRAGE_COST`
ARBITRAGE_COST = 0.00002
NOISE = 0.12  # trades a block
NOISE_SIZE, NOISE_MOST = 700 * USDC, 300_000 * USDC  # least and most; the mean is twice the least
EXACT_OUTPUT = 0.15  # of the noise trades
PROVIDER = 0.004  # arrivals, departures and collections a block
PROVIDERS = 60  # in the long run, besides the founder, who never leaves and whose range has no end
PROVIDER_SIZE, PROVIDER_MOST, FOUNDER_SIZE = 50_000 * USDC, 1_000_000 * USDC, 1_500_000 * USDC
FLASH = 1 / 5_000  # a block
VAULT_IDLE = 10  # one part in so many of a vault's capital starts outside its position
VAULT_HALF_WIDTH = 100 * SPACING


class ModelMarket(InMemoryMarket):
    """A seeded model of a WETH/USDC pool; its first block fills the pool.

    Args:
        seed: of all chance.
        vaults: capital by name, in token1 base units; half of it is held in token0, most of it in one position.
        executions: what `execute` returned in an earlier run (block, vault, keep, close and mint suffice), in order: the
            market takes the same course again.
        options: see `InMemoryMarket`.

    Attributes:
        executions: what was executed so far, in order.
    """

    executes = True

    def __init__(
        self, seed: int, vaults: Mapping[str, int] | None = None, executions: Iterable[Execution] = (), **options
    ):
        self._vaults = dict(vaults or {})
        if ours := [vault for vault in self._vaults if vault.startswith(OURS)]:
            raise MarketError(f"vault {ours[0]!r}: {OURS!r} begins the model's own names; choose another")
        self._chance = Random(seed).random
        self._pool = Pool(FEE, SPACING)
        self._pool.initialize(FIRST_PRICE_X96)
        self._outside, self._step = float(FIRST_PRICE_X96), 0.0  # square root of the outside price, X96, and its step
        self._providers: list[tuple[str, int, int, int]] = []
        self._arrivals = self._log_index = 0
        self._begun = self._made = FIRST_BLOCK - 1  # the last block that has events, the last one that has all
        self.executions: list[Execution] = []
        self._planned: dict[int, list[Execution]] = defaultdict(list)
        for plan in executions:
            self._planned[plan.block].append(plan)
        super().__init__(
            label=f"MODEL of a market (seed {seed}): invented order flow, no real pool",
            pair=Pair(CHAIN_ID, f"{OURS}{seed}", Token("", "WETH", 18), Token("", "USDC", 6), FEE, SPACING),
            pool=self._pool.copy(),
            first=FIRST_BLOCK,
            hash_key=f"{OURS}{seed}",
            **options,
        )

    def time_of(self, number: int) -> int:
        return FIRST_TIME + (number - FIRST_BLOCK) * BLOCK_SECONDS

    def number_at(self, time_seconds: int) -> int:
        return FIRST_BLOCK + max(0, -((FIRST_TIME - time_seconds) // BLOCK_SECONDS))

    def _new_purse(self, vault: str) -> Purse:
        if vault not in self._vaults:
            raise MarketError(f"vault {vault!r}: the model has {', '.join(self._vaults) or 'none'}")
        return Purse(lambda key: key[0] == vault, _halves(self._vaults[vault], FIRST_PRICE_X96), vault)

    # -- executions

    async def execute(self, vault, keep, close, mint) -> Execution:
        self._grow(self._clock.head)
        self._begin(self._made + 1)
        return self._run(Execution(self._begun, vault, tuple(keep), tuple(close), tuple(mint)))

    def _run(self, plan: Execution) -> Execution:
        held = sorted(key[1:] for key in self._pool.positions if key[0] == plan.vault)
        before = self._idle(plan.vault)
        if sorted((*plan.keep, *plan.close)) != held:
            raise MarketError(f"vault {plan.vault!r} holds {held}: keep {plan.keep} or close {plan.close}, each once")
        for lower, upper, *most in plan.mint:
            usable = -LAST_TICK <= lower < upper <= LAST_TICK and lower % SPACING == upper % SPACING == 0
            if not usable or min(most) < 0:
                raise MarketError(f"mint {lower}, {upper}, {most}: ordered multiples of {SPACING}, amounts from 0")
        closed = [
            self._burn(*key, self._pool.position(*key).liquidity) for key in ((plan.vault, *t) for t in plan.close)
        ]
        minted, paid = [], [(0, 0)]
        for lower, upper, *most in plan.mint:
            liquidity, amounts = self._mint(plan.vault, lower, upper, *map(min, most, self._idle(plan.vault)))
            if liquidity:
                minted.append((lower, upper, liquidity))
                paid.append(amounts)
        done = replace(
            plan,
            before=before,
            released=_sum(released for released, _ in closed),
            fees=_sum(fees for _, fees in closed),
            paid=_sum(paid),
            after=self._idle(plan.vault),
            minted=tuple(minted),
        )
        self.executions.append(done)
        return done

    def _idle(self, vault: str) -> tuple[int, int]:
        return self._purse(vault).before(self._history.events, len(self._history.events))

    # -- order flow

    def _grow(self, last: int) -> None:
        while self._made < last:
            self._begin(self._made + 1)
            if self._begun == FIRST_BLOCK:
                self._fill()
            else:
                self._trade()
            self._made += 1

    def _begin(self, block: int) -> None:
        """Executions come first in their block."""
        if self._begun < block:
            self._begun, self._log_index = block, 0
            for plan in self._planned.pop(block, ()):
                self._run(plan)

    def _fill(self) -> None:
        self._provide("founder", FOUNDER_SIZE, LAST_TICK)
        for _ in range(PROVIDERS):
            self._arrive()
        for vault in self._vaults:
            base = self._pool.tick // SPACING * SPACING
            amounts = (idle - idle // VAULT_IDLE for idle in self._idle(vault))
            self._mint(vault, base - VAULT_HALF_WIDTH, base + VAULT_HALF_WIDTH, *amounts)
        self._step = _step(VOLATILITIES[len(VOLATILITIES) // 2])

    def _trade(self) -> None:
        chance, price = self._chance, self._pool.sqrt_price_x96
        if chance() < VOLATILITY_CHANGES:
            self._step = _step(VOLATILITIES[int(chance() * len(VOLATILITIES))])
        self._outside *= 1 + self._step * (chance() + chance() + chance() - 1.5)
        for zero_for_one, fee in ((False, -FEE), (True, FEE)):
            worth_it = self._outside * (1 + fee / PIPS / 2)  # where trading on would lose more to the fee than it gains
            gap = (price - worth_it) / worth_it if zero_for_one else (worth_it - price) / worth_it
            if gap > ARBITRAGE_COST / 2 and chance() < ARBITRAGE:
                self._swap("limit", zero_for_one, 1 << 120, int(worth_it))
        event = chance()
        if event < NOISE:
            self._noise()
        elif event < NOISE + PROVIDER:
            self._come_or_go()
        elif event < NOISE + PROVIDER + FLASH:
            self._flash()

    def _noise(self) -> None:
        zero_for_one, exact_output = self._chance() < 0.5, self._chance() < EXACT_OUTPUT
        size = min(int(NOISE_SIZE / sqrt(1 - self._chance())), NOISE_MOST)
        amount = _halves(2 * size, int(self._outside))[zero_for_one == exact_output]
        self._swap(
            "out" if exact_output else "in", zero_for_one, -amount if exact_output else amount, FAR[zero_for_one]
        )

    def _come_or_go(self) -> None:
        chance, count = self._chance, len(self._providers)
        if chance() * 2 * PROVIDERS > count:
            self._arrive()
        elif chance() < 0.5:
            self._burn(*self._providers.pop(int(chance() * count)))
        else:
            owner, lower, upper, _ = self._providers[int(chance() * count)]
            self._burn(owner, lower, upper, 0)

    def _arrive(self) -> None:
        chance = self._chance
        half_width = 5 + int(400 * chance() * chance())
        self._arrivals += 1
        size = min(int(PROVIDER_SIZE / sqrt(1 - chance())), PROVIDER_MOST)
        self._providers.append(self._provide(str(self._arrivals), size, half_width * SPACING))

    def _provide(self, name: str, size: int, half_width: int) -> tuple[str, int, int, int]:
        base = self._pool.tick // SPACING * SPACING
        key = OURS + name, max(base - half_width, -LAST_TICK), min(base + half_width, LAST_TICK)
        return *key, self._mint(*key, *_halves(size, self._pool.sqrt_price_x96))[0]

    def _flash(self) -> None:
        chance, pool = self._chance, self._pool
        amounts = _halves(int(NOISE_MOST * chance()), pool.sqrt_price_x96)
        loan = (amounts[0], 0) if chance() < 0.5 else (0, amounts[1])
        tips = (amount // 10_000 if chance() < 0.5 else 0 for amount in loan)
        self._emit("flash", *loan, *pool.flash(*loan, *tips))

    # -- calls of the pool, each with its event

    def _swap(self, how: str, zero_for_one: bool, amount: int, limit: int) -> None:
        pool = self._pool
        amounts = pool.swap(zero_for_one, amount, limit)
        self._emit("swap", how, *amounts, pool.sqrt_price_x96, pool.liquidity, pool.tick)

    def _mint(self, owner: str, lower: int, upper: int, most0: int, most1: int) -> tuple[int, tuple[int, int]]:
        """(liquidity, amounts paid); nothing happens where that would be no liquidity, or more than a tick may hold."""
        prices = sqrt_ratio_at_tick(lower), sqrt_ratio_at_tick(upper)
        liquidity = liquidity_for(most0, most1, self._pool.sqrt_price_x96, *prices)
        try:
            amounts = self._pool.mint(owner, lower, upper, liquidity)
        except PoolError:
            return 0, (0, 0)
        self._emit("mint", owner, lower, upper, liquidity, *amounts)
        return liquidity, amounts

    def _burn(self, owner: str, lower: int, upper: int, liquidity: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """(amounts released, fees), both taken out of the pool at once."""
        pool, key = self._pool, (owner, lower, upper)
        released = pool.burn(*key, liquidity)
        pool.collect(*key, *released)
        self._emit("burn", *key, liquidity, *released)
        fees = pool.collect(*key, BURN_ALL, BURN_ALL)
        if any(fees):
            self._emit("collect", *key, *fees)
        if not pool.position(*key).liquidity:
            del pool.positions[key]
        return released, fees

    def _emit(self, kind: str, *args) -> None:
        self._history.append(Event(self._begun, self._log_index, self.time_of(self._begun), kind, args))
        self._log_index += 1


def _step(volatility: float) -> float:
    """By which to multiply a sum of three chances, less 1.5 (standard deviation 1/2), for a step of the price's root."""
    return volatility / sqrt(BLOCKS_PER_YEAR)


def _halves(value: int, sqrt_price_x96: int) -> tuple[int, int]:
    """Amounts of both tokens, each worth half of `value` token1 base units."""
    return (value // 2 << 192) // sqrt_price_x96**2, value - value // 2


def _sum(amounts: Iterable[tuple[int, int]]) -> tuple[int, int]:
    return tuple(map(sum, zip(*amounts, strict=True))) or (0, 0)
