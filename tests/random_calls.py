"""Random markets: pools and operations on them from a seed, legal and illegal, at ordinary and at extreme prices.

Used by `test_sim.py` (against a slow reference) and `test_evm.py` (against the contract itself).
"""

from __future__ import annotations

from random import Random

from sim import (
    MAX_SQRT_RATIO,
    MAX_TICK,
    MIN_SQRT_RATIO,
    MIN_TICK,
    PIPS,
    Pool,
    PoolError,
    amounts_of,
    sqrt_ratio_at_tick,
)

OWNERS = 3


def magnitude(rng: Random, bits: float) -> int:
    """1 to 2**bits, every number of digits equally likely."""
    return max(1, int(2 ** rng.uniform(0, bits)))


def random_terms(rng: Random) -> tuple[int, int, int]:
    """Fee, tick spacing and first price of a market."""
    fee = rng.choice([0, 1, 100, 500, 500, 3000, 10_000, 999_999, rng.randrange(1_000_000)])
    spacing = rng.choice([1, 10, 60, 200, 2000, 16383])  # v3-core allows spacings below 16384
    tick = rng.choice([0, rng.randint(-500, 500), rng.randint(-200_000, 200_000), rng.randint(MIN_TICK, MAX_TICK - 1)])
    lower, upper = sqrt_ratio_at_tick(tick), sqrt_ratio_at_tick(tick + 1)
    return fee, spacing, rng.choice([lower, rng.randrange(lower, upper), upper - 1])


def random_range(rng: Random, pool: Pool) -> tuple[int, int]:
    """Usable ticks near the price: neighbours, ordinary ranges, now and then everything there is."""
    most, spacing = MAX_TICK // pool.tick_spacing, pool.tick_spacing
    if rng.random() < 0.1:
        return -most * spacing, most * spacing
    width = magnitude(rng, 8)
    lower = pool.tick // spacing + rng.randint(-2 * width, width)
    lower = min(max(lower, -most), most - 1)
    return lower * spacing, min(lower + width, most) * spacing


def random_liquidity(rng: Random, pool: Pool) -> int:
    """An amount to mint, mostly of the size of what is there."""
    most = pool.max_liquidity_per_tick
    if not pool.liquidity or rng.random() < 0.2:
        return min(most, magnitude(rng, most.bit_length()))
    return min(most, max(1, int(pool.liquidity * 2 ** rng.uniform(-6, 2))))


def random_limit(rng: Random, pool: Pool, zero_for_one: bool, far: float) -> int:
    """A price limit: the farthest (with probability `far`), at a tick's price or one beside it, close by, or wrong."""
    if rng.random() < far:
        return MIN_SQRT_RATIO + 1 if zero_for_one else MAX_SQRT_RATIO - 1
    if rng.random() < 0.05:
        return rng.choice([0, MIN_SQRT_RATIO, MAX_SQRT_RATIO, pool.sqrt_price_x96, rng.randrange(MAX_SQRT_RATIO)])
    sign = -1 if zero_for_one else 1
    if rng.random() < 0.2:
        return pool.sqrt_price_x96 + sign * magnitude(rng, 60)
    ahead = [tick for tick in sorted(pool.ticks) if (tick - pool.tick) * sign >= 0]
    if ahead and rng.random() < 0.7:
        tick = rng.choice(ahead)
    else:
        tick = pool.tick + sign * rng.choice([0, 1, 256, magnitude(rng, 6), magnitude(rng, 9)]) * pool.tick_spacing
    return sqrt_ratio_at_tick(min(max(tick, MIN_TICK), MAX_TICK)) + rng.choice([-1, 0, 0, 1])


def random_amount(rng: Random, pool: Pool, zero_for_one: bool) -> int:
    """An amount to swap, exact input or exact output, mostly of the size that moves the price by some ticks."""
    if rng.random() < 0.03:
        return 0
    move = magnitude(rng, 11) * pool.tick_spacing
    ticks = sorted((pool.tick, pool.tick + (-move if zero_for_one else move)))
    lower, upper = (sqrt_ratio_at_tick(min(max(tick, MIN_TICK), MAX_TICK)) for tick in ticks)
    if lower == upper or not pool.liquidity or rng.random() < 0.1:
        return magnitude(rng, rng.choice([8, 64, 128, 240])) * rng.choice([1, -1])
    exact_input = rng.random() < 0.6
    amount0, _ = amounts_of(pool.liquidity, lower, lower, upper, True)
    _, amount1 = amounts_of(pool.liquidity, upper, lower, upper, True)
    amount = max(1, (amount0 if zero_for_one == exact_input else amount1) * rng.randrange(1 << 20) >> 20)
    return amount * rng.choice([1, PIPS // (PIPS - pool.fee)]) if exact_input else -amount


def random_operation(rng: Random, pool: Pool, far: float = 0.5) -> tuple[str, tuple]:
    """The next call, by name and arguments; `pool` says what would be interesting now."""
    names = {"swap": 24, "mint": 4, "burn": 3, "collect": 1, "flash": 1, "set_fee_protocol": 1, "collect_protocol": 1}
    name = "mint" if not pool.liquidity and rng.random() < 0.5 else rng.choices([*names], [*names.values()])[0]
    owner, most = rng.randrange(OWNERS), pool.max_liquidity_per_tick
    if name == "swap":
        zero_for_one = rng.random() < 0.5
        amount, limit = random_amount(rng, pool, zero_for_one), random_limit(rng, pool, zero_for_one, far)
        return name, (zero_for_one, amount, limit)
    if name == "mint":
        (lower, upper), amount = random_range(rng, pool), random_liquidity(rng, pool)
        if rng.random() < 0.1:
            illegal = [(upper, lower, amount), (lower, lower, amount), (lower + 1, upper + 1, amount)]
            illegal += [(MIN_TICK - 1, upper, amount), (lower, MAX_TICK + 1, amount), (lower, upper, 0)]
            illegal += [(lower, upper, most + 1), (lower, upper, 1 << 127), (lower, upper, (1 << 128) - 1)]
            lower, upper, amount = rng.choice(illegal)
        return name, (owner, lower, upper, amount)
    if name in ("burn", "collect"):
        if pool.positions and rng.random() < 0.9:
            owner, lower, upper = rng.choice(sorted(pool.positions))
        else:
            lower, upper = random_range(rng, pool)
        if name == "collect":
            return name, (owner, lower, upper, magnitude(rng, 128) - 1, magnitude(rng, 128) - 1)
        held = pool.position(owner, lower, upper).liquidity
        return name, (owner, lower, upper, rng.choice([0, held, held, held // 2, rng.randint(0, held), held + 1]))
    if name == "flash":
        return name, tuple(rng.choice([0, magnitude(rng, 100)]) for _ in range(4))
    if name == "set_fee_protocol":
        return name, (rng.choice([0, 4, 7, 10]), rng.choice([0, 0, 4, 5, 10, 3, 11]))
    return name, (magnitude(rng, 128) - 1, magnitude(rng, 128) - 1)


def outcome(target, name: str, arguments: tuple) -> tuple:
    """What a call returned, or why it was refused."""
    try:
        return "returned", getattr(target, name)(*arguments)
    except PoolError as error:
        return "refused", error.reason
