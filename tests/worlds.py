"""Random worlds: a pool, a vault in it, what then happens to both, and what miners might ask for. All from a seed.

Nothing is invented beside the contract: every event is a call that the exact pool accepted, written down the way a
chain would. Worlds are small and unpleasant: one wei of liquidity, a vault that is the whole pool, prices at the ends
of the scale, fees of 99.9 %, swaps that stop on a tick and stand one below it, tips, protocol fees, several events in
a block.

Used by `test_books.py` and `test_rounds.py`. Read next: `test_books.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from random_calls import magnitude, random_limit

from liquidity.calls import find_call
from liquidity.events import Event, ReplayError
from liquidity.replay import Snapshot, apply_event
from liquidity.slipstream import SlipstreamPool
from protocol import Position
from sim import MAX_TICK, MIN_TICK, Pool, PoolError, amounts_of, sqrt_ratio_at_tick, tick_at_sqrt_ratio

VAULT = "vault"


@dataclass
class World:
    """A stretch of market, `snapshot.block` to before `close_block`, and the vault it happens to.

    Attributes:
        rng: for what a test wants to draw beyond.
        pool: before the first event, with everybody's positions; copy it before use.
        snapshot: the same as a round gets it: the vault's positions and no others.
        events: in order.
        close_block: the first block after.
    """

    rng: Random
    pool: Pool
    snapshot: Snapshot
    events: list[Event]
    close_block: int


def random_world(seed: int, length: int = 24, vault_moves: bool = True, plain: bool = False) -> World:
    """A world from a seed.

    Args:
        seed: the same seed gives the same world.
        length: how many calls are tried; some are refused.
        vault_moves: whether the vault may mint and burn in it; it is poked in any case.
        plain: ordinary prices, fees and much liquidity, for comparisons that rounding must not decide.
    """
    rng = Random(seed)
    fee = rng.choice([100, 500, 3000, 10_000]) if plain else rng.choice([0, 1, 100, 500, 3000, 3000, 10_000, 999_999])
    spacing = rng.choice([1, 10, 60, 200])
    extreme = not plain and rng.random() < 0.1
    tick = rng.randint(MIN_TICK, MAX_TICK - 1) if extreme else rng.randint(-20_000, 20_000)
    pool = Pool(fee, spacing)
    lower, upper = sqrt_ratio_at_tick(tick), sqrt_ratio_at_tick(tick + 1)
    pool.initialize(rng.choice([lower, rng.randrange(lower, upper), upper - 1]))
    if rng.random() < 0.2:
        pool.set_fee_protocol(rng.choice([0, 4, 10]), rng.choice([0, 5, 7]))

    scale = 80 if plain else rng.choice([6, 40, 70, 70, 100, 120])  # bits of a typical liquidity
    crowd = rng.choice([1, 3, 6]) if plain else rng.choice([0, 1, 3, 6])
    for n in range(crowd):
        _try(pool, "mint", f"lp{n}", *random_range(rng, pool, wide=n == 0), magnitude(rng, 2) << scale)
    for _ in range(rng.choice([0, 1, 1, 2, 3])):
        _try(pool, "mint", VAULT, *random_range(rng, pool), max(1, (1 << scale) * magnitude(rng, 16) >> 8))
    event = Event(rng.randint(1, 10**6), 0, 0, "", ())
    for _ in range(rng.choice([0, 4])):  # so that fees have grown, and some are settled, before the start
        event = random_event(rng, pool, event, vault_moves=False) or event

    event = event._replace(block=event.block + 1, log_index=0)
    keys = [key for key in pool.positions if key[0] == VAULT]
    held = _holdings(pool, keys)
    idle = tuple(rng.choice([0, amount, amount * magnitude(rng, 8)]) for amount in held)
    snapshot = Snapshot.of(pool, keys, idle, event.block, event.block * 12, "synthetic", rng.choice(["", VAULT]))
    start, events = pool.copy(), []
    for _ in range(length):
        found = random_event(rng, pool, event, vault_moves=vault_moves)
        if found:
            events.append(found)
            event = found
    return World(rng, start, snapshot, events, event.block + rng.randint(1, 3))


def random_range(rng: Random, pool: Pool, wide: bool = False, around: int | None = None) -> tuple[int, int]:
    """Usable ticks near the price: around it, beside it, neighbours; with `wide` now and then everything there is."""
    spacing, most = pool.tick_spacing, MAX_TICK // pool.tick_spacing
    if wide and rng.random() < 0.7:
        return -most * spacing, most * spacing
    width = magnitude(rng, 5)
    lower = (pool.tick if around is None else around) // spacing - rng.randint(-1, width)
    lower = min(max(lower, -most), most - width)
    return lower * spacing, (lower + width) * spacing


def random_event(rng: Random, pool: Pool, before: Event, vault_moves: bool) -> Event | None:
    """Make one call that the pool accepts, and write it down; None if it refused this one."""
    block = before.block + rng.choice([0, 0, 0, 1, 1, 2, 5])
    log_index = before.log_index + 1 if block == before.block else 0
    kinds = {"swap": 16, "mint": 2, "burn": 2, "poke": 1, "flash": 1}
    if not isinstance(pool, SlipstreamPool):
        kinds |= {"set_fee_protocol": 1, "collect_protocol": 1}
    kind = rng.choices(list(kinds), list(kinds.values()))[0]
    trial, owner = pool.copy(), rng.choice(["lp0", "lp1", "lp2", VAULT if vault_moves else "lp0"])
    try:
        if kind == "swap":
            zero_for_one, amount, limit = random_swap(rng, pool)
            amounts = trial.swap(zero_for_one, amount, limit)
            args = ("", *amounts, trial.sqrt_price_x96, trial.liquidity, trial.tick)
        elif kind == "mint":
            args = (owner, *random_range(rng, pool), magnitude(rng, max(4, pool.liquidity.bit_length())))
            args = (*args, *trial.mint(*args))
        elif kind in ("burn", "poke"):
            keys = [key for key in pool.positions if key[0] == (VAULT if kind == "poke" else owner)]
            if not keys:
                return None
            key = rng.choice(keys)
            args = (*key, 0 if kind == "poke" else rng.randint(0, pool.positions[key].liquidity))
            args = (*args, *trial.burn(*args))
            kind = "burn"
        elif kind == "flash":
            lent = magnitude(rng, 60) - 1, magnitude(rng, 60) - 1
            tips = rng.choice([0, magnitude(rng, 60)]), rng.choice([0, magnitude(rng, 20)])
            args = (*lent, *trial.flash(*lent, *tips))
        elif kind == "set_fee_protocol":
            args = rng.choice([0, 4, 10]), rng.choice([0, 0, 7])
        else:
            args = trial.collect_protocol(magnitude(rng, 100) - 1, magnitude(rng, 100) - 1)
        event = Event(block, log_index, block * 12, kind, args)
        if kind == "swap":
            if not any(args[1:3]):
                return None  # no tokens moved: an event does not even tell the direction
            event = event._replace(args=(find_call(pool, event), *args[1:]))
        apply_event(pool, event)
        return event
    except (PoolError, ReplayError):
        return None


def random_swap(rng: Random, pool: Pool) -> tuple[bool, int, int]:
    """A swap by some tick spacings: exact input or output, with or without a limit, or too small to move the price."""
    zero_for_one = rng.random() < 0.5
    horizon = pool.tick + (-1 if zero_for_one else 1) * 2000 * pool.tick_spacing  # the end of the scale can be far away
    limit = random_limit(rng, pool, zero_for_one, far=0.6)
    if abs(horizon) < MAX_TICK:
        limit = (max if zero_for_one else min)(limit, sqrt_ratio_at_tick(horizon))
    if not pool.liquidity or rng.random() < 0.1:
        return zero_for_one, magnitude(rng, 30), limit
    move = magnitude(rng, 5) * pool.tick_spacing * rng.random()
    goal = min(max(pool.tick + round(-move if zero_for_one else move), MIN_TICK + 1), MAX_TICK - 1)
    lower, upper = sorted((pool.sqrt_price_x96, sqrt_ratio_at_tick(goal)))
    if lower == upper:
        return zero_for_one, 1, limit
    sold, bought = (
        amounts_of(pool.liquidity, lower, lower, upper, True)[0],
        (pool.liquidity * (upper - lower) >> 96) + 1,
    )
    amount_in, amount_out = (sold, bought) if zero_for_one else (bought, sold)
    return zero_for_one, amount_in if rng.random() < 0.7 else -amount_out, limit


def random_desired(
    rng: Random, pool: Pool, price: int, shown: Sequence[Position], holdings: tuple[int, int], most: int = 4
) -> list[Position]:
    """What a miner might ask for: some of what it has, and new ranges around the price, also for more than it has."""
    tick, desired = tick_at_sqrt_ratio(price), [position for position in shown if rng.random() < 0.5]
    for _ in range(rng.randint(0, most)):
        part = rng.choice([rng.random(), 1, 1 / most, 2])
        amounts = (
            rng.choice([0, 1, int(have * part)]) if rng.random() < 0.2 else int(have * part) for have in holdings
        )
        desired.append(Position(*random_range(rng, pool, wide=True, around=tick), *amounts))
    rng.shuffle(desired)
    return desired


def _holdings(pool: Pool, keys: Sequence[tuple]) -> tuple[int, int]:
    price, total0, total1 = pool.sqrt_price_x96, 0, 0
    for key in keys:
        lower, upper = sqrt_ratio_at_tick(key[1]), sqrt_ratio_at_tick(key[2])
        amount0, amount1 = amounts_of(pool.positions[key].liquidity, price, lower, upper, False)
        total0, total1 = total0 + amount0, total1 + amount1
    return total0, total1


def _try(pool: Pool, name: str, *arguments) -> Callable | None:
    try:
        return getattr(pool, name)(*arguments)
    except PoolError:
        return None
