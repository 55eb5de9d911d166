"""The exact pool against everything that knows better: traces of the contracts' bytecode, a slow reference, arithmetic.

What is said of a pool is held against both: `sim.Pool`, the plain rule, and `FastPool`, which the programs use.

`tests/traces/` holds the traces and their README the format. `tests/test_evm.py` compares with the live contract.
"""

from __future__ import annotations

import copy
import gzip
import json
import re
from decimal import Context, Decimal
from fractions import Fraction
from itertools import product
from math import isqrt
from pathlib import Path
from random import Random

import pytest
from random_calls import magnitude, outcome, random_operation, random_range, random_terms

from liquidity import fast
from liquidity.fast import FastPool
from liquidity.slipstream import SlipstreamPool
from sim import (
    BURN_ALL,
    MASK_128,
    MAX_SQRT_RATIO,
    MAX_TICK,
    MIN_SQRT_RATIO,
    MIN_TICK,
    PIPS,
    Q96,
    Q128,
    Q256,
    TICK_FACTORS,
    Pool,
    PoolError,
    amounts_of,
    liquidity_for,
    sqrt_ratio_at_tick,
    tick_at_sqrt_ratio,
)

TRACES = sorted((Path(__file__).parent / "traces").glob("*.jsonl.gz"))


class PlainSlipstreamPool(SlipstreamPool):
    """Aerodrome's pool that swaps by the plain rule."""

    swap = Pool.swap


KINDS = [Pool, FastPool]
both = pytest.mark.parametrize("kind", KINDS)
FAR = {True: MIN_SQRT_RATIO + 1, False: MAX_SQRT_RATIO - 1}


def fields(thing) -> dict:
    """Everything an object holds, but memos of swap steps."""
    slots = {name for kind in type(thing).__mro__ for name in getattr(kind, "__slots__", ())}
    names = slots | getattr(thing, "__dict__", {}).keys()
    return {name: getattr(thing, name) for name in sorted(names - {"__dict__", "span_down", "span_up"})}


def full_state(pool: Pool) -> dict:
    """Everything a pool holds, copied; the tick is worked out."""
    return fields(pool) | {
        "_tick": pool.tick,
        "_ratios": list(getattr(pool, "_ratios", ())),
        "_indices": list(pool._indices),
        "ticks": {index: fields(mark) for index, mark in pool.ticks.items()},
        "positions": {key: fields(state) for key, state in pool.positions.items()},
        "legs": copy.copy(pool.legs),
    }


# ---------------------------------------------------------------------------------------------------------------------
# Traces of the real bytecode

UNISWAP_KEYS = (
    *("sqrtPriceX96", "tick", "liquidity", "feeGrowthGlobal0X128", "feeGrowthGlobal1X128"),
    *("protocolFees0", "protocolFees1", "obsIndex", "obsCard", "obsCardNext", "feeProtocol"),
)
CALLS = {  # an operation's arguments in the trace, in the order in which the method takes them
    "mint": ("owner", "lo", "hi", "amount"),
    "burn": ("owner", "lo", "hi", "amount"),
    "collect": ("owner", "lo", "hi", "max0", "max1"),
    "swap": ("z", "amount", "limit"),
    "flash": ("amount0", "amount1", "tip0", "tip1"),
    "set_fee_protocol": ("p0", "p1"),
    "collect_protocol": ("max0", "max1"),
    "set_fees": ("fee", "unstaked"),
    "stake": ("d", "lo", "hi", "upd"),
    "collect_fees": (),
    "sync_reward": ("rate", "reserve", "finish"),
    "update_rewards": (),
    "reward_inside": ("lo", "hi"),
}


def read_trace(path: Path, plain: bool = False) -> tuple[Pool, tuple[str, ...], list[dict]]:
    """The pool (fast, or by the plain rule) at its first price, the names of its state, the comparable operations."""
    header, *lines = map(json.loads, gzip.decompress(path.read_bytes()).splitlines())
    slipstream = path.name.startswith("slipstream")
    kinds = (PlainSlipstreamPool, Pool) if plain else (SlipstreamPool, FastPool)
    pool = kinds[not slipstream](header["fee"], header["tickSpacing"])
    pool.initialize(header["sqrtPriceX96"])
    transfer_failed = next((n for n, line in enumerate(lines) if line.get("err") == "TF"), len(lines))
    lines = [line for line in lines[:transfer_failed] if line["op"] not in ("grow", "observe", "snapshot", "increase")]
    return pool, tuple(header["sKeys"]) if slipstream else UNISWAP_KEYS, lines


def set_clock(pool: Pool, line: dict) -> None:
    if isinstance(pool, SlipstreamPool):
        pool.timestamp = line["t"]


def call(pool: Pool, line: dict):
    result = getattr(pool, line["op"])(*(line[name] for name in CALLS[line["op"]]))
    return [result] if isinstance(result, int) else None if result is None else list(result)


def state_of(pool: Pool, keys: tuple[str, ...]) -> list:
    """The pool's state as a trace line lists it; None for the oracle's values."""

    def value(key: str):
        if key.startswith("obs"):
            return None
        if key.startswith("protocolFees"):
            return pool.protocol_fees[int(key[-1])]
        if key == "feeProtocol":
            return pool.fee_protocol[0] + 16 * pool.fee_protocol[1]
        return getattr(pool, re.sub("([A-Z])", r"_\1", key).lower())

    return [value(key) for key in keys]


def position_of(pool: Pool, owner, lower: int, upper: int) -> list[int]:
    state = pool.position(owner, lower, upper)
    growth = state.fee_growth_inside0_last_x128, state.fee_growth_inside1_last_x128
    return [state.liquidity, *growth, state.tokens_owed0, state.tokens_owed1]


def compare_dump(pool: Pool, line: dict) -> None:
    names = ["liquidity_gross", "liquidity_net", "fee_growth_outside0_x128", "fee_growth_outside1_x128"]
    if isinstance(pool, SlipstreamPool):
        names[2:2], names[5:] = ["staked_liquidity_net"], ["reward_growth_outside_x128"]
    expected = {int(i): values[: len(names)] for i, values in line["ticks"].items() if values[-1]}
    assert {i: [getattr(mark, name) for name in names] for i, mark in pool.ticks.items()} == expected
    for owner, lower, upper, values in line["positions"]:
        assert position_of(pool, owner, lower, upper) == values, (owner, lower, upper)
    for lower, upper, growth in line.get("rewardInside", ()):
        assert pool.reward_inside(lower, upper) == growth, (lower, upper)


def test_there_are_traces_of_both_contracts():
    assert {path.name.split("_")[0] for path in TRACES} == {"uniswap", "slipstream"}


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.name.removesuffix(".jsonl.gz"))
def test_a_trace_of_the_bytecode_replays_to_the_last_digit(path, plain):
    pool, keys, lines = read_trace(path, plain)
    assert len(lines) > 300
    for line in lines:
        set_clock(pool, line)
        if line["op"] == "dump":
            compare_dump(pool, line)
        elif "err" in line:
            before = full_state(pool)
            with pytest.raises(PoolError) as refusal:
                call(pool, line)
            assert refusal.value.reason == line["err"], line
            assert full_state(pool) == before, line
        else:
            returned = call(pool, line)
            assert returned == line.get("ret", returned), line
            for key, owner in (("p", line.get("owner")), ("p0", 0), ("p1", 1)):
                if isinstance(line.get(key), list):
                    assert position_of(pool, owner, line["lo"], line["hi"]) == line[key], line
        if "s" in line:
            known = [None if key.startswith("obs") else value for key, value in zip(keys, line["s"], strict=True)]
            assert state_of(pool, keys) == known, line


@pytest.mark.parametrize("path", TRACES[::3], ids=lambda path: path.name.removesuffix(".jsonl.gz"))
@pytest.mark.parametrize("plain", [False, True])
def test_a_copy_goes_on_as_the_original_would_and_neither_touches_the_other(path, plain):
    pool, _, lines = read_trace(path, plain)
    for start in range(0, len(lines), 150):
        twin, before = pool.copy(), full_state(pool)
        assert full_state(twin) == before
        for each in (twin, pool):
            for line in lines[start : start + 150]:
                set_clock(each, line)
                if line["op"] != "dump" and "err" not in line:
                    call(each, line)
            if each is twin:
                assert full_state(pool) == before
        assert full_state(twin) == full_state(pool)


# ---------------------------------------------------------------------------------------------------------------------
# A slow reference: the contract's way of swapping, straight from the formulas


def up(numerator: int, denominator: int) -> int:
    return -(-numerator // denominator)


def amount0_between(low: int, high: int, liquidity: int, round_up: bool) -> int:
    """Whitepaper 6.16, one division after the other, as 256 bits require."""
    divide = up if round_up else int.__floordiv__
    return divide(divide(liquidity * Q96 * (high - low), high), low)


def amount1_between(low: int, high: int, liquidity: int, round_up: bool) -> int:
    """Whitepaper 6.14."""
    return (up if round_up else int.__floordiv__)(liquidity * (high - low), Q96)


def price_after(price: int, liquidity: int, amount: int, token0: bool, into_the_pool: bool) -> int:
    """Whitepaper 6.13 and 6.15; rounded up where token0 moves the price and down where token1 does."""
    if token0:
        if not into_the_pool:
            return up(liquidity * Q96 * price, liquidity * Q96 - amount * price)
        if liquidity * Q96 + amount * price >= Q256:  # where it would overflow, a coarser form
            return up(liquidity * Q96, liquidity * Q96 // price + amount)
        return up(liquidity * Q96 * price, liquidity * Q96 + amount * price)
    if into_the_pool:
        return price + amount * Q96 // liquidity
    return price - up(amount * Q96, liquidity)


def compute_swap_step(price: int, target: int, liquidity: int, remaining: int, fee_pips: int) -> tuple[int, ...]:
    """One step towards a target: (price reached, amount in, amount out, fee)."""
    zero_for_one, exact_input = price >= target, remaining >= 0
    low, high = min(price, target), max(price, target)
    between_in, between_out = (amount0_between, amount1_between) if zero_for_one else (amount1_between, amount0_between)
    if exact_input:
        less_fee = remaining * (PIPS - fee_pips) // PIPS
        enough = less_fee >= between_in(low, high, liquidity, True)
        end = target if enough else price_after(price, liquidity, less_fee, zero_for_one, True)
    else:
        enough = -remaining >= between_out(low, high, liquidity, False)
        end = target if enough else price_after(price, liquidity, -remaining, not zero_for_one, False)
    low, high = min(price, end), max(price, end)
    amount_in = between_in(low, high, liquidity, True)
    amount_out = between_out(low, high, liquidity, False)
    if not exact_input:
        amount_out = min(amount_out, -remaining)
    fee = remaining - amount_in if exact_input and end != target else up(amount_in * fee_pips, PIPS - fee_pips)
    return end, amount_in, amount_out, fee


class Reference:
    """A pool as the whitepaper tells it: a bitmap read one word at a time, step after step, nothing remembered.

    It shares with `Pool` only the prices of ticks, and takes from it what positions do (mints and burns are simple).
    """

    def __init__(self, fee: int, spacing: int, price: int):
        self.fee, self.spacing, self.price = fee, spacing, price
        self.liquidity, self.growth, self.protocol, self.cuts = 0, [0, 0], [0, 0], (0, 0)
        self.ticks: dict[int, list[int]] = {}  # gross, net, outside0, outside1
        self.tick = self.tick_of(price)

    def tick_of(self, price: int) -> int:
        low, high = MIN_TICK, MAX_TICK  # ratio(low) <= price < ratio(high)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if sqrt_ratio_at_tick(middle) <= price else (low, middle)
        return low

    def change_liquidity(self, lower: int, upper: int, delta: int) -> None:
        for index, net in ((lower, delta), (upper, -delta)):
            below = self.growth if index <= self.tick else (0, 0)
            state = self.ticks.setdefault(index, [0, 0, *below])
            state[0] += delta
            state[1] += net
            if not state[0]:
                del self.ticks[index]
        if lower <= self.tick < upper:
            self.liquidity += delta

    def next_tick(self, down: bool, bitmap: dict[int, int]) -> tuple[int, bool]:
        """The next initialised tick within one word of the bitmap, or else the word's last tick on the way."""
        position = self.tick // self.spacing + (not down)
        word, bit = divmod(position, 256)
        if down:
            found = bitmap.get(word, 0) & (1 << bit + 1) - 1
            bit = found.bit_length() - 1 if found else 0
        else:
            found = bitmap.get(word, 0) >> bit << bit
            bit = (found & -found).bit_length() - 1 if found else 255
        return (word * 256 + bit) * self.spacing, bool(found)

    def swap(self, zero_for_one: bool, amount: int, limit: int) -> tuple[int, int]:
        if not amount:
            raise PoolError("AS")
        if not (MIN_SQRT_RATIO < limit < self.price if zero_for_one else self.price < limit < MAX_SQRT_RATIO):
            raise PoolError("SPL")
        bitmap: dict[int, int] = {}
        for index in self.ticks:
            word, bit = divmod(index // self.spacing, 256)
            bitmap[word] = bitmap.get(word, 0) | 1 << bit
        token, cut, remaining, other, protocol = int(not zero_for_one), self.cuts[not zero_for_one], amount, 0, 0
        while remaining and self.price != limit:
            start = self.price
            index, initialised = self.next_tick(zero_for_one, bitmap)
            index = min(max(index, MIN_TICK), MAX_TICK)
            edge = sqrt_ratio_at_tick(index)
            target = max(edge, limit) if zero_for_one else min(edge, limit)
            step = compute_swap_step(self.price, target, self.liquidity, remaining, self.fee)
            self.price, amount_in, amount_out, fee = step
            if amount > 0:
                remaining, other = remaining - amount_in - fee, other - amount_out
            else:
                remaining, other = remaining + amount_out, other + amount_in + fee
            if cut:
                protocol, fee = protocol + fee // cut, fee - fee // cut
            if self.liquidity:
                self.growth[token] = (self.growth[token] + fee * Q128 // self.liquidity) % Q256
            if self.price == edge:
                if initialised:
                    state = self.ticks[index]
                    state[2:] = [(now - then) % Q256 for now, then in zip(self.growth, state[2:], strict=True)]
                    self.liquidity += -state[1] if zero_for_one else state[1]
                self.tick = index - 1 if zero_for_one else index
            elif self.price != start:
                self.tick = self.tick_of(self.price)
        self.protocol[token] = (self.protocol[token] + protocol) % Q128
        specified = amount - remaining
        return (specified, other) if zero_for_one == (amount > 0) else (other, specified)

    def flash(self, amount0: int, amount1: int, tip0: int, tip1: int) -> tuple[int, int]:
        if not self.liquidity:
            raise PoolError("L")
        paid = [up(amount * self.fee, PIPS) + tip for amount, tip in ((amount0, tip0), (amount1, tip1))]
        for token in (0, 1):
            protocol = paid[token] // self.cuts[token] if self.cuts[token] else 0
            self.protocol[token] = (self.protocol[token] + protocol) % Q128
            self.growth[token] = (self.growth[token] + (paid[token] - protocol) * Q128 // self.liquidity) % Q256
        return paid[0], paid[1]

    def state(self) -> tuple:
        return self.price, self.tick, self.liquidity, *self.growth, *self.protocol, self.ticks


def comparable(pool: Pool) -> tuple:
    """A pool's state in the order of `Reference.state()`."""
    ticks = {
        index: [mark.liquidity_gross, mark.liquidity_net, mark.fee_growth_outside0_x128, mark.fee_growth_outside1_x128]
        for index, mark in pool.ticks.items()
    }
    growth = pool.fee_growth_global0_x128, pool.fee_growth_global1_x128
    return pool.sqrt_price_x96, pool.tick, pool.liquidity, *growth, *pool.protocol_fees, ticks


@both
@pytest.mark.parametrize("first", range(0, 1200, 100))
def test_1200_random_markets_swap_as_the_slow_reference_does(first, kind):
    for seed in range(first, first + 100):
        rng = Random(seed)
        fee, spacing, price = random_terms(rng)
        pool, reference = kind(fee, spacing), Reference(fee, spacing, price)
        pool.initialize(price)
        for _ in range(20):
            name, arguments = random_operation(rng, pool, far=0.2)
            told = outcome(pool, name, arguments)
            if name in ("swap", "flash"):
                assert told == outcome(reference, name, arguments), (seed, arguments)
            elif told[0] == "returned":
                if name in ("mint", "burn") and arguments[3]:
                    _, lower, upper, amount = arguments
                    reference.change_liquidity(lower, upper, amount if name == "mint" else -amount)
                elif name == "set_fee_protocol":
                    reference.cuts = arguments
                elif name == "collect_protocol":
                    reference.protocol = [have - paid for have, paid in zip(reference.protocol, told[1], strict=True)]
            assert comparable(pool) == reference.state(), (seed, name, arguments)


@both
def test_where_256_bits_overflow_the_coarser_form_of_the_next_price_rules(kind):
    """Input that times the price reaches 2**256: the contract divides in another order, and so rounds otherwise."""
    differ = 0
    for seed in range(200):
        rng = Random(seed)
        tick, liquidity = rng.randint(700_000, 880_000), rng.randrange(1 << 116, 1 << 121)
        price = sqrt_ratio_at_tick(tick)
        pool, reference = kind(500, 16383), Reference(500, 16383, price)
        pool.initialize(price)
        pool.mint(0, -884_682, 884_682, liquidity)
        reference.change_liquidity(-884_682, 884_682, liquidity)
        amount = Q256 // price * rng.randrange(1 << 10, 1 << 12) // (1 << 10)
        exact = up(liquidity * Q96 * price, liquidity * Q96 + amount * (PIPS - 500) // PIPS * price)
        assert pool.swap(True, amount, FAR[True]) == reference.swap(True, amount, FAR[True])
        assert comparable(pool) == reference.state()
        differ += pool.sqrt_price_x96 != exact
    assert differ > 50


@both
def test_the_end_of_a_word_is_a_step_of_its_own_even_without_a_tick(kind):
    """Two pools, one with ticks 256 spacings apart, differ from one long step by the rounding at the word's end.

    Derived by `compute_swap_step`: one step from price 1 to the limit, against two with a stop at tick -256 * 10.
    """
    limit = sqrt_ratio_at_tick(-4000)
    stop = sqrt_ratio_at_tick(-2560)  # going down from tick 0, spacing 10: words end at 0 and at -2560
    pool = kind(3000, 10)
    pool.initialize(Q96)
    pool.mint(0, -10_000, 10_000, 123_456_789)
    one = compute_swap_step(Q96, limit, 123_456_789, 1 << 200, 3000)
    first = compute_swap_step(Q96, stop, 123_456_789, 1 << 200, 3000)
    second = compute_swap_step(stop, limit, 123_456_789, 1 << 200, 3000)
    two = (first[1] + first[3] + second[1] + second[3], -first[2] - second[2])
    assert two != (one[1] + one[3], -one[2])
    assert pool.swap(True, 1 << 200, limit) == two


@both
@pytest.mark.parametrize("spacing", [1, 10])
def test_swaps_too_small_to_move_the_price_still_move_the_tick_at_the_ends_of_words(spacing, kind):
    """At a tick's own price a downward swap crosses it, even one unit that the fee swallows; so at a word's end."""
    everywhere, liquidity = (-4096 * spacing, 4096 * spacing), 10**15
    for word, place, arrives_down, beside, ranges, amount in product(
        (-256, 0), (-1, 0, 1, 254, 255, 256), (True, False), (-1, 0, 1), range(3), (1, 2, -1)
    ):
        stop = (word + place) * spacing
        limit, start = sqrt_ratio_at_tick(stop) + beside, sqrt_ratio_at_tick(stop + (3 if arrives_down else -3))
        pool, reference = kind(3000, spacing), Reference(3000, spacing, start)
        pool.initialize(start)
        for lower, upper in [everywhere, (stop, stop + 2 * spacing), (stop - spacing, stop)][: 1 + ranges]:
            pool.mint(0, lower, upper, liquidity)
            reference.change_liquidity(lower, upper, liquidity)
        swaps = [(arrives_down, 10**25, limit)] + [(down, amount, FAR[down]) for down in (True, False, False, True)]
        for arguments in swaps:
            assert pool.swap(*arguments) == reference.swap(*arguments), (stop, arguments)
            assert comparable(pool) == reference.state(), (stop, arguments)


def forget(pool: FastPool) -> None:
    for mark in pool.ticks.values():
        mark.span_down = mark.span_up = fast._NO_SPAN


@pytest.mark.parametrize("slipstream", [False, True])
def test_remembered_steps_never_outlive_what_they_depend_on(slipstream, monkeypatch):
    """A pool that remembers and one that forgets before each call agree, whatever changes between the same swaps."""
    steps = {}
    whole_step = Pool._whole_step

    def counted(pool, *arguments):
        steps[id(pool)] = steps.get(id(pool), 0) + 1
        return whole_step(pool, *arguments)

    monkeypatch.setattr(Pool, "_whole_step", counted)
    spared = 0
    for seed in range(40):
        rng = Random(seed)
        pools = [SlipstreamPool(500, 10, 100_000) if slipstream else FastPool(500, 10) for _ in range(2)]
        ranges = [sorted(rng.sample(range(-100, 101, 10), 2)) for _ in range(8)]
        stops = [sqrt_ratio_at_tick(tick) for pair in ranges for tick in pair]
        for pool in pools:
            pool.initialize(Q96)
            for owner, (lower, upper) in enumerate(ranges):
                pool.mint(owner % 3, lower, upper, 10**18 + owner)
        for now in range(60):
            lower, upper = rng.choice(ranges)
            changes = [("mint", (0, lower, upper, 10**15)), ("burn", (rng.randrange(3), lower, upper, 10**15))]
            if slipstream:
                changes += [("set_fees", (rng.choice([100, 500, 3000]), rng.choice([0, 100_000, PIPS])))]
                changes += [("stake", (rng.randrange(10**18), lower, upper, rng.random() < 0.8))]
                changes += [("sync_reward", (10**15, 10**18, now + 100))]
            else:
                changes += [("set_fee_protocol", (rng.choice([0, 4, 10]), rng.choice([0, 5])))]
                changes += [("flash", (10**15, 10**12, 10**6, 10**9))]
            zero_for_one = rng.random() < 0.5
            swap = "swap", (zero_for_one, 10**30, rng.choice(stops))
            name, arguments = swap if rng.random() < 0.8 else rng.choice(changes)
            for pool in pools:
                if slipstream:
                    pool.timestamp = now
            forget(pools[1])
            assert outcome(pools[0], name, arguments) == outcome(pools[1], name, arguments), (seed, name, arguments)
            assert full_state(pools[0]) == full_state(pools[1]), (seed, name, arguments)
        remembering, forgetful = (steps.pop(id(pool), 0) for pool in pools)
        spared += forgetful - remembering
    assert spared > 500


@both
def test_a_pool_that_records_its_legs_does_what_one_that_does_not_does_and_the_legs_add_up(kind):
    for seed in range(60):
        rng = Random(seed)
        fee, spacing, price = random_terms(rng)
        plain, recording = FastPool(fee, spacing), kind(fee, spacing)
        legs = recording.record()
        for pool in (plain, recording):
            pool.initialize(price)
        for _ in range(40):
            name, arguments = random_operation(rng, plain, far=0.2)
            before = plain.sqrt_price_x96, plain.fee_growth_global0_x128, plain.fee_growth_global1_x128
            assert outcome(plain, name, arguments) == outcome(recording, name, arguments)
            assert comparable(plain) == comparable(recording)
            after = plain.sqrt_price_x96, plain.fee_growth_global0_x128, plain.fee_growth_global1_x128
            for token in (0, 1):
                grown = sum(leg[5] for leg in legs if leg[0] == (token == 0))
                assert (before[1 + token] + grown) % Q256 == after[1 + token]
            for zero_for_one, start, end, liquidity, leg_fee, growth in legs:
                assert min(before[0], after[0]) <= min(start, end) <= max(start, end) <= max(before[0], after[0])
                assert (end <= start if zero_for_one else end >= start) if name == "swap" else end == start
                assert growth == leg_fee * Q128 // liquidity
            legs.clear()
        assert recording.copy().legs is None


# ---------------------------------------------------------------------------------------------------------------------
# Refusals


def pool_at_one(kind: type[Pool] = FastPool, fee: int = 3000, spacing: int = 60) -> Pool:
    pool = kind(fee, spacing)
    pool.initialize(Q96)
    pool.mint("me", -600, 600, 10**18)
    return pool


@both
@pytest.mark.parametrize(
    ("reason", "name", "arguments"),
    [
        ("AI", "initialize", (Q96,)),
        ("TLU", "mint", ("me", 60, 60, 1)),
        ("TLU", "mint", ("me", 60, -60, 1)),
        ("TLM", "mint", ("me", MIN_TICK - 1, 60, 1)),
        ("TUM", "mint", ("me", 60, MAX_TICK + 1, 1)),
        ("LO", "mint", ("me", -600, 600, Pool(3000, 60).max_liquidity_per_tick - 10**18 + 1)),
        ("LO", "mint", ("me", -600, 600, (1 << 127) - 1)),
        ("", "mint", ("me", -600, 600, 0)),
        ("", "mint", ("me", -600, 600, 1 << 127)),
        ("", "mint", ("me", -601, 600, 1)),
        ("", "mint", ("me", -600, 601, 1)),
        ("LS", "burn", ("me", -600, 600, 10**18 + 1)),
        ("LS", "burn", ("you", -600, 600, 1)),
        ("LS", "burn", ("me", -600, 600, (1 << 127) - 1)),
        ("", "burn", ("me", -600, 600, 1 << 127)),
        ("NP", "burn", ("you", -600, 600, 0)),
        ("TLU", "burn", ("me", 600, -600, 0)),
        ("", "burn", ("me", -600, 600, BURN_ALL)),
        ("AS", "swap", (True, 0, FAR[True])),
        ("SPL", "swap", (True, 1, MIN_SQRT_RATIO)),
        ("SPL", "swap", (True, 1, Q96)),
        ("SPL", "swap", (True, -1, Q96 + 1)),
        ("SPL", "swap", (False, 1, MAX_SQRT_RATIO)),
        ("SPL", "swap", (False, 1, Q96)),
        ("SPL", "swap", (False, -1, Q96 - 1)),
        ("", "set_fee_protocol", (3, 0)),
        ("", "set_fee_protocol", (0, 11)),
        ("F0", "flash", (10**6, 10**6, -1, -1)),
        ("F1", "flash", (10**6, 10**6, 0, -1)),
        ("", "flash", (0, 0, 10**18 << 128, 0)),
        ("", "flash", (0, 0, 0, 10**18 << 128)),
    ],
)
def test_a_refused_call_says_why_in_the_contracts_words_and_changes_nothing(reason, name, arguments, kind):
    pool = pool_at_one(kind)
    before = full_state(pool)
    with pytest.raises(PoolError) as refusal:
        getattr(pool, name)(*arguments)
    assert refusal.value.reason == reason
    assert full_state(pool) == before


def test_a_position_that_does_not_exist_is_all_zero_and_asking_makes_none():
    pool = pool_at_one()
    assert position_of(pool, "nobody", -60, 60) == [0, 0, 0, 0, 0]
    assert pool.collect("nobody", -60, 60, 1, 1) == (0, 0)
    assert list(pool.positions) == [("me", -600, 600)]


@both
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("mint", (0, -60, 60, 1)),
        ("burn", (0, -60, 60, 0)),
        ("collect", (0, -60, 60, 1, 1)),
        ("swap", (True, 1, FAR[True])),
        ("flash", (1, 1)),
        ("set_fee_protocol", (4, 4)),
        ("collect_protocol", (1, 1)),
    ],
)
def test_before_it_has_a_price_a_pool_is_locked(name, arguments, kind):
    assert outcome(kind(500, 10), name, arguments) == ("refused", "LOK")


# ---------------------------------------------------------------------------------------------------------------------
# Ticks and prices

EXACT = Context(prec=90)


def exact_ratio_x96(tick: int) -> Decimal:
    return EXACT.multiply(EXACT.power(EXACT.sqrt(Decimal("1.0001")), tick), Decimal(Q96))


def test_the_ends_of_the_price_range_are_the_published_ones():
    assert (MIN_SQRT_RATIO, MAX_SQRT_RATIO) == (4295128739, 1461446703485210103287273052203988822378723970342)
    for tick in (MIN_TICK - 1, MAX_TICK + 1):
        with pytest.raises(PoolError, match="T"):
            sqrt_ratio_at_tick(tick)
    for price in (0, MIN_SQRT_RATIO - 1, MAX_SQRT_RATIO):
        with pytest.raises(PoolError, match="R"):
            tick_at_sqrt_ratio(price)
    assert tick_at_sqrt_ratio(MIN_SQRT_RATIO) == MIN_TICK
    assert tick_at_sqrt_ratio(MAX_SQRT_RATIO - 1) == MAX_TICK - 1


@pytest.mark.parametrize(
    ("tick", "published"),
    [  # v3-core TickMath.spec.ts, the ticks next to the ends; price 1; v3-sdk's example pool
        (MIN_TICK + 1, 4295343490),
        (MAX_TICK - 1, 1461373636630004318706518188784493106690254656249),
        (0, Q96),
    ],
)
def test_prices_of_ticks_are_the_published_ones(tick, published):
    assert sqrt_ratio_at_tick(tick) == published


def test_the_factors_of_the_price_of_a_tick_follow_from_integers_alone():
    """2**128 / 1.0001**(2**(n - 1)) to the nearest, by an integer square root and exact fractions, without decimals."""
    assert TICK_FACTORS[0] == (isqrt((10_000 << 258) // 10_001) + 1) // 2
    for n, factor in enumerate(TICK_FACTORS[1:]):
        numerator, denominator = 10_000 ** (1 << n) << 129, 10_001 ** (1 << n)
        assert factor == (numerator // denominator + 1) // 2, n
    assert len(TICK_FACTORS) == MAX_TICK.bit_length()
    assert TICK_FACTORS[0] == 0xFFFCB933BD6FAD37AA2D162D1A594001  # the two ends as v3-core's TickMath has them
    assert TICK_FACTORS[-1] == 0x48A170391F7DC42444E8FA2


def test_the_price_of_a_tick_is_the_exact_one_rounded_up_within_the_contracts_error():
    """Below 1 the error is that of twenty products cut to 2**-128, above 1 what the reciprocal makes of it.

    Each product loses at most one unit and each factor half a unit: 30 * 2**-128 of a number r below 1, so r's
    reciprocal R is off by 30 * 2**-128 * R**2.
    """
    rng = Random(1)
    ticks = {rng.randint(MIN_TICK, MAX_TICK) for _ in range(3000)} | {MIN_TICK, -1, 0, 1, MAX_TICK}
    for tick in ticks:
        exact = exact_ratio_x96(tick)
        error = Decimal(sqrt_ratio_at_tick(tick)) - exact
        bound = Decimal(30) / (1 << 32) if tick <= 0 else 30 * exact * exact / (1 << 224)
        assert -bound <= error <= 1 + bound, tick


def test_prices_rise_with_ticks_and_the_tick_of_a_price_is_the_last_at_or_below_it():
    rng = Random(2)
    ticks = [rng.randint(MIN_TICK + 1, MAX_TICK - 1) for _ in range(5000)]
    ticks += [*range(-300, 300), *range(MIN_TICK + 1, MIN_TICK + 300), *range(MAX_TICK - 300, MAX_TICK)]
    for tick in ticks:
        ratio, following = sqrt_ratio_at_tick(tick), sqrt_ratio_at_tick(tick + 1)
        assert sqrt_ratio_at_tick(tick - 1) < ratio < following
        assert tick_at_sqrt_ratio(ratio) == tick
        assert tick_at_sqrt_ratio(ratio - 1) == tick - 1
        assert tick_at_sqrt_ratio(rng.randrange(ratio, following)) == tick


# ---------------------------------------------------------------------------------------------------------------------
# Amounts


def random_position(rng: Random) -> tuple[int, int, int, int]:
    """Liquidity, price, lower and upper price: below, in and above the range, and at its ends."""
    lower, upper = sorted(rng.sample(range(MIN_TICK, MAX_TICK + 1), 2))
    if rng.random() < 0.7:
        upper = min(lower + magnitude(rng, 14), MAX_TICK)
    lower_x96, upper_x96 = sqrt_ratio_at_tick(lower), sqrt_ratio_at_tick(upper)
    inside = rng.randrange(lower_x96, upper_x96)
    price = rng.choice([inside, inside, lower_x96, upper_x96, rng.randrange(MIN_SQRT_RATIO, MAX_SQRT_RATIO)])
    return magnitude(rng, 128), price, lower_x96, upper_x96


def test_amounts_are_the_whitepapers_rounded_once():
    rng = Random(3)
    for _ in range(2000):
        liquidity, price, lower, upper = random_position(rng)
        clamped = min(max(price, lower), upper)
        exact0 = Fraction(liquidity * Q96 * (upper - clamped), upper * clamped)
        exact1 = Fraction(liquidity * (clamped - lower), Q96)
        floor0, floor1 = amounts_of(liquidity, price, lower, upper, False)
        assert (floor0, floor1) == (exact0.__floor__(), exact1.__floor__())
        assert amounts_of(liquidity, price, lower, upper, True) == (exact0.__ceil__(), exact1.__ceil__())


def test_liquidity_for_never_asks_for_more_than_was_given_and_leaves_little():
    rng = Random(4)
    for _ in range(2000):
        _, price, lower, upper = random_position(rng)
        given0, given1 = magnitude(rng, 128) - 1, magnitude(rng, 128) - 1
        liquidity = liquidity_for(given0, given1, price, lower, upper)
        needed0, needed1 = amounts_of(liquidity, price, lower, upper, True)
        assert needed0 <= given0 and needed1 <= given1
        more0, more1 = amounts_of(liquidity + (liquidity >> 60) + 2, price, lower, upper, True)
        product_is_fine = min(max(price, lower), upper) * upper >> 96 > 1 << 64  # else its cut to Q96 costs more
        assert not product_is_fine or more0 > given0 or more1 > given1


@both
def test_mint_and_burn_agree_with_amounts_of_and_a_mint_never_pays_less_than_its_burn_gives(kind):
    for seed in range(300):
        rng = Random(seed)
        fee, spacing, price = random_terms(rng)
        pool = kind(fee, spacing)
        pool.initialize(price)
        for _ in range(4):
            lower, upper = random_range(rng, pool)
            amount = min(magnitude(rng, 127), pool.max_liquidity_per_tick)
            bounds = sqrt_ratio_at_tick(lower), sqrt_ratio_at_tick(upper)
            paid = pool.mint("me", lower, upper, amount)
            assert paid == amounts_of(amount, price, *bounds, True)
            got = pool.burn("me", lower, upper, amount)
            assert got == amounts_of(amount, price, *bounds, False)
            assert all(0 <= paid_one - got_one <= 1 for paid_one, got_one in zip(paid, got, strict=True))
        assert not pool.ticks and pool.liquidity == 0


# ---------------------------------------------------------------------------------------------------------------------
# What the pool owes


def settle_everything(pool: Pool) -> tuple[int, int]:
    """Burn and collect all positions and the protocol's fees: the tokens paid out."""
    out = [0, 0]
    for key in pool.positions:
        held = pool.position(*key).liquidity
        if held:
            pool.burn(*key, held)
        for token, amount in enumerate(pool.collect(*key, MASK_128, MASK_128)):
            out[token] += amount
    for token, amount in enumerate(pool.collect_protocol(MASK_128, MASK_128)):
        out[token] += amount
    return out[0], out[1]


def play(pool: Pool, held: list[int], name: str, arguments: tuple) -> None:
    """Make a call and keep the ledger: what went in less what went out, by token."""
    told, amounts = outcome(pool, name, arguments)
    if told == "returned" and name in ("swap", "mint", "flash", "collect", "collect_protocol"):
        for token, amount in enumerate(amounts):
            held[token] += -amount if name.startswith("collect") else amount


@both
def test_whatever_happens_the_pool_can_pay_what_it_owes(kind):
    """Over swaps, flashes, wrapped fee growth and changing protocol fees, in 150 markets of every kind."""
    for seed in range(150):
        rng = Random(seed)
        fee, spacing, price = random_terms(rng)
        pool, held = kind(fee, spacing), [0, 0]
        pool.initialize(price)
        for _ in range(40):
            name, arguments = random_operation(rng, pool, far=0.2)
            play(pool, held, name, arguments)
            owed = settle_everything(pool.copy())
            assert owed[0] <= held[0] and owed[1] <= held[1], (seed, name, arguments)


@both
def test_in_an_ordinary_market_the_pool_keeps_but_dust(kind):
    """At most a few units a call stay behind: every rounding is by less than one unit, in the pool's favour."""
    calls = 200
    for seed in range(20):
        rng = Random(seed)
        pool, held, owners = kind(3000, 60), [0, 0], range(3)
        pool.initialize(Q96)
        play(pool, held, "mint", (0, -60_000, 60_000, 10**18))
        for _ in range(calls):
            lower, upper = sorted(rng.sample(range(-1200, 1201, 60), 2))
            zero_for_one, amount = rng.random() < 0.5, rng.choice([1, -1]) * magnitude(rng, 56)
            operations = [("swap", (zero_for_one, amount, FAR[zero_for_one]))] * 6
            operations += [("mint", (rng.choice(owners), lower, upper, magnitude(rng, 62)))]
            operations += [("flash", (magnitude(rng, 56), magnitude(rng, 56), 0, magnitude(rng, 40)))]
            operations += [("set_fee_protocol", (rng.choice([0, 4, 10]), rng.choice([0, 5])))]
            operations += [("collect_protocol", (MASK_128, MASK_128))]
            play(pool, held, *rng.choice(operations))
        owed = settle_everything(pool)
        assert all(0 <= kept - due < 5 * calls for kept, due in zip(held, owed, strict=True)), seed


@both
def test_fee_growth_and_owed_tokens_wrap_around_as_in_the_contract(kind):
    """With one unit of liquidity a tip of t grows the fees by t * 2**128: the sums below pass 2**256 and 2**128."""
    pool, me = kind(0, 60), ("me", -60, 60)
    pool.initialize(Q96)
    pool.mint(*me, 1)
    pool.flash(0, 0, MASK_128, 0)
    pool.burn(*me, 0)
    assert pool.position(*me).tokens_owed0 == MASK_128
    pool.flash(0, 0, 7, 0)
    assert pool.fee_growth_global0_x128 == 6 << 128
    pool.burn(*me, 0)
    assert pool.position(*me).tokens_owed0 == 6  # 2**128 - 1 + 7: what wraps is lost, as in the contract


@both
def test_a_jump_takes_a_state_over_and_moves_no_fees(kind):
    """Ranges earn nothing by it, wherever it lands: also one below a tick's own price, after a crossing downwards."""
    for seed in range(100):
        rng = Random(seed)
        pool = kind(500, 10)
        pool.initialize(Q96)
        for owner in range(6):
            lower, upper = sorted(rng.sample(range(-400, 401, 10), 2))
            pool.mint(owner, lower, upper, magnitude(rng, 70))
        for _ in range(10):
            zero_for_one = rng.random() < 0.5
            outcome(pool, "swap", (zero_for_one, magnitude(rng, 66), sqrt_ratio_at_tick(rng.randint(-500, 500))))
        growth = pool.fee_growth_global0_x128, pool.fee_growth_global1_x128
        inside = {key: pool.fee_growth_inside(*key[1:]) for key in pool.positions}
        price_tick = rng.choice([rng.randint(-500, 500), rng.choice(sorted(pool.ticks))])
        price, tick = sqrt_ratio_at_tick(price_tick), price_tick - (rng.random() < 0.3)
        held = [(key, state.liquidity) for key, state in pool.positions.items()]
        liquidity = sum(amount for (_, lower, upper), amount in held if lower <= tick < upper)
        twin = pool.copy()
        pool.jump(price, tick, liquidity)
        assert (pool.sqrt_price_x96, pool.tick, pool.liquidity) == (price, tick, liquidity)
        assert (pool.fee_growth_global0_x128, pool.fee_growth_global1_x128) == growth
        assert {key: pool.fee_growth_inside(*key[1:]) for key in pool.positions} == inside
        # and from there it trades like a pool that was swapped there, but for the fees of the way
        if price != twin.sqrt_price_x96:
            twin.swap(price < twin.sqrt_price_x96, 1 << 200, price)
        if twin.tick == pool.tick:
            for zero_for_one in (True, False):
                ways = [each.copy().swap(zero_for_one, 10**19, FAR[zero_for_one]) for each in (pool, twin)]
                assert ways[0] == ways[1], seed


@both
def test_stands_at_is_the_tick_without_asking_for_it(kind):
    for seed in range(60):
        rng = Random(seed)
        fee, spacing, price = random_terms(rng)
        pool = kind(fee, spacing)
        pool.initialize(price)
        for _ in range(20):
            outcome(pool, *random_operation(rng, pool, far=0.2))
            tick = pool.copy().tick
            assert [pool.stands_at(tick + off) for off in (-1, 0, 1)] == [False, True, False]


@both
def test_a_pool_loaded_from_its_ticks_goes_on_as_the_pool_they_are_from(kind):
    for seed in range(80):
        rng = Random(seed)
        fee, spacing, price = random_terms(rng)
        pool = kind(fee, spacing)
        pool.initialize(price)
        for _ in range(15):
            outcome(pool, *random_operation(rng, pool, far=0.2))
        loaded = kind(fee, spacing)
        loaded.initialize(pool.sqrt_price_x96)
        loaded.set_fee_protocol(*pool.fee_protocol)
        growth = pool.fee_growth_global0_x128, pool.fee_growth_global1_x128
        rows = [loaded.tick_class(index, *state) for index, state in comparable(pool)[-1].items()]
        loaded.load(pool.tick, pool.liquidity, *growth, rng.sample(rows, len(rows)))
        loaded.protocol_fees = pool.protocol_fees
        assert comparable(loaded) == comparable(pool)
        for _ in range(15):
            name, arguments = random_operation(rng, pool, far=0.2)
            if name not in ("burn", "collect"):  # the loaded pool knows no positions
                assert outcome(loaded, name, arguments) == outcome(pool, name, arguments), (seed, name, arguments)
            assert comparable(loaded) == comparable(pool) or name in ("burn", "collect")
            if name == "burn":
                break


@both
def test_the_spot_price_is_in_a_range_where_the_tick_is(kind):
    below = 0
    for seed in range(300):
        rng = Random(seed)
        pool = kind(500, 10)
        pool.initialize(Q96)
        pool.mint(0, -400, 400, 10**18)
        pool.mint(0, -20, 30, 10**18)
        for _ in range(4):
            stop = sqrt_ratio_at_tick(rng.choice([-20, 30, rng.randint(-100, 100)])) + rng.choice([0, 0, -1, 1])
            outcome(pool, "swap", (stop < pool.sqrt_price_x96, 10**30, stop))
            for tick in (pool.tick - 1, pool.tick, pool.tick + 1, -20, 30):
                assert (sqrt_ratio_at_tick(tick) <= pool.spot) == (tick <= pool.tick)
            assert pool.spot in (pool.sqrt_price_x96, pool.sqrt_price_x96 - 1)
            below += pool.spot != pool.sqrt_price_x96
    assert below > 20


# ---------------------------------------------------------------------------------------------------------------------
# Aerodrome's variant (its digits are in the traces)


@both
def test_with_nothing_staked_and_no_cut_slipstream_is_a_uniswap_pool(kind):
    for seed in range(150):
        rng = Random(seed)
        fee, spacing, price = random_terms(rng)
        pools = kind(fee, spacing), SlipstreamPool(fee, spacing, nft="nft", gauge="gauge")
        for pool in pools:
            pool.initialize(price)
        for _ in range(20):
            name, arguments = random_operation(rng, pools[0], far=0.2)
            if "protocol" not in name:
                assert outcome(pools[0], name, arguments) == outcome(pools[1], name, arguments), (seed, name, arguments)
                assert comparable(pools[0]) == comparable(pools[1])
        assert (pools[1].gauge_fees0, pools[1].gauge_fees1) == (0, 0)


def test_a_gauge_can_stake_no_more_than_there_is():
    pool = SlipstreamPool(500, 10)
    pool.initialize(Q96)
    pool.mint(pool.nft, -100, 100, 1000)
    pool.stake(600, -100, 100, True)
    assert (pool.staked_liquidity, pool.liquidity) == (600, 1000)
    before = full_state(pool)
    for reason, delta, lower in (("LS", 401, -100), ("LS", -601, -100), ("LS", 1, -90), ("NP", 0, -90)):
        assert outcome(pool, "stake", (delta, lower, 100, True)) == ("refused", reason)
        assert full_state(pool) == before


def test_what_staked_liquidity_earns_goes_to_the_gauge_and_a_cut_of_the_rest():
    """Half staked, a tenth cut: of each fee the gauge gets 55 %, the unstaked half 45 %; and one unit stays behind."""
    pool = SlipstreamPool(10_000, 10, unstaked_fee=100_000)
    pool.initialize(Q96)
    pool.mint(pool.nft, -1000, 1000, 10**18)
    pool.mint("me", -1000, 1000, 10**18)
    pool.stake(10**18, -1000, 1000, True)
    pool.swap(True, 10**15, FAR[True])
    assert pool.gauge_fees0 == 55 * 10**11
    pool.burn("me", -1000, 1000, 0)
    assert 45 * 10**11 - pool.position("me", -1000, 1000).tokens_owed0 in (0, 1)
    pool.burn(pool.gauge, -1000, 1000, 0)
    assert pool.position(pool.gauge, -1000, 1000).tokens_owed0 == 0
    assert pool.collect_fees() == (55 * 10**11 - 1, 0)
    assert pool.collect_fees() == (1, 0)
    assert pool.gauge_fees0 == 1
