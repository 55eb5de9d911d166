"""`model.py`: the same seed is the same market everywhere, it behaves like one, and executions make no tokens."""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from itertools import pairwise
from random import Random

import pytest
from test_market import holds_over, state

from liquidity.books import Book
from liquidity.executions import Execution
from liquidity.tape import Tape
from markets import memory, model
from markets.base import MarketError
from markets.memory import advance
from markets.model import FIRST_BLOCK, FIRST_PRICE_X96, FIRST_TIME, ModelMarket
from protocol import Position
from sim import Pool, amounts_of, sqrt_ratio_at_tick

CAPITAL = 400_000 * 10**6
DAY = 43_200  # blocks
VAULTS = {"one": CAPITAL, "two": CAPITAL // 2}


def at(head: int, seed: int = 7, executions=()) -> ModelMarket:
    """A market whose head is `head` blocks after the first."""
    return ModelMarket(seed, VAULTS, executions, head=FIRST_BLOCK + head)


def everything(venue: ModelMarket) -> list:
    """All events up to the head."""

    async def read():
        return await venue.events(FIRST_BLOCK, (await venue.head()).number)

    return asyncio.run(read())


def digest(events: list) -> str:
    return hashlib.sha256(repr([tuple(event) for event in events]).encode()).hexdigest()


# ---------------------------------------------------------------------------------------------------------------------
# One seed, one market


def test_one_market_day_is_the_same_on_every_platform():
    """Golden: printed by this code. A change of the order flow changes it; no platform and no Python may."""
    assert digest(everything(at(DAY))) == "ac8c46ba26aeb1ef0d0d7df6d4eae31dfc04b2fa1f2fc9d14ce5bd55a367bb25"


def test_another_seed_is_another_market():
    assert digest(everything(at(500, seed=8))) != digest(everything(at(500)))


def test_what_is_asked_and_when_changes_nothing():
    reference, rng = everything(at(3000)), Random(3)

    async def wander():
        venue = ModelMarket(7, VAULTS)
        async with venue.participant():
            while (head := (await venue.head()).number) < FIRST_BLOCK + 3000:
                for _ in range(rng.randint(0, 3)):
                    await venue.snapshot(rng.choice(["one", "two"]), rng.randint(FIRST_BLOCK, head + 1))
                    await venue.events(rng.randint(FIRST_BLOCK, head), head)
                await venue.reach(min(head + rng.randint(1, 700), FIRST_BLOCK + 3000))
        return await venue.events(FIRST_BLOCK, FIRST_BLOCK + 3000)

    for _ in range(3):
        assert asyncio.run(wander()) == reference


def test_a_snapshot_is_the_same_whenever_it_is_taken():
    async def check():
        venue, rng = at(4000), Random(4)
        for _ in range(30):
            block = FIRST_BLOCK + rng.randint(1, 4001)
            early = ModelMarket(7, VAULTS, head=block - 1)
            assert await venue.snapshot("one", block) == await early.snapshot("one", block)

    asyncio.run(check())


def test_events_between_two_snapshots_lead_from_one_to_the_other():
    async def check():
        venue, rng = at(6000), Random(6)
        for _ in range(25):
            first, last = sorted(FIRST_BLOCK + rng.randint(1, 6000) for _ in "ab")
            await holds_over(venue, rng.choice(["one", "two"]), first, last)

    asyncio.run(check())


def test_blocks_come_every_two_seconds_and_their_hashes_from_the_seed():
    async def check():
        venue = at(10)
        block = await venue.block(FIRST_BLOCK + 5)
        assert block.time == FIRST_TIME + 10
        assert block.hash == "0x" + hashlib.sha256(b"model:7:1000005").hexdigest()
        for time, number in ((-5, 0), (0, 0), (1, 1), (2, 1), (3, 2), (20, 10)):
            assert (await venue.first_block_at(FIRST_TIME + time)).number == FIRST_BLOCK + number

    asyncio.run(check())


def test_it_says_that_it_is_a_model():
    venue = at(0)
    assert venue.label == "MODEL of a market (seed 7): invented order flow, no real pool"
    assert venue.pair.pool_address == "model:7"
    assert not venue.read_only


def test_old_events_are_forgotten_and_nothing_else_changes(monkeypatch):
    async def check():
        full, rng = at(9000), Random(1)
        await full.events(FIRST_BLOCK, FIRST_BLOCK + 9000)
        monkeypatch.setattr(memory, "KEEP_EVERY_EVENTS", 100)
        monkeypatch.setattr(model, "MOST_EVENTS", 1000)
        venue, head = ModelMarket(7, VAULTS), FIRST_BLOCK
        async with venue.participant():
            while head < FIRST_BLOCK + 9000:
                head = (await venue.reach(min(head + rng.randint(1, 300), FIRST_BLOCK + 9000))).number
                if rng.random() < 0.5:
                    block = max(FIRST_BLOCK, head - rng.randint(0, 900))
                    assert await venue.snapshot("two", block) == await full.snapshot("two", block)
                    assert await venue.events(block, head) == await full.events(block, head)
        with pytest.raises(MarketError, match=f"block {FIRST_BLOCK + 10} is forgotten"):
            await venue.snapshot("one", FIRST_BLOCK + 10)
        with pytest.raises(MarketError, match=f"block {FIRST_BLOCK + 10} is forgotten"):
            await venue.events(FIRST_BLOCK + 10, FIRST_BLOCK + 9000)
        assert len(venue._history._events) < 1100 and len(venue._history._kept) < 12

    asyncio.run(check())


# ---------------------------------------------------------------------------------------------------------------------
# It behaves like a market


@pytest.fixture(scope="module")
def week() -> ModelMarket:
    """Seven market days of the seed that the demo uses."""
    return ModelMarket(98, VAULTS, head=FIRST_BLOCK + 7 * DAY)


def test_all_kinds_of_order_flow_occur(week):
    counts = Counter(event.args[0] if event.kind == "swap" else event.kind for event in everything(week))
    swaps = sum(counts[how] for how in ("in", "out", "limit"))
    assert 0.15 < swaps / (7 * DAY) < 0.3
    assert 0.03 < counts["out"] / swaps < 0.2 and counts["limit"] / swaps > 0.2 and counts["in"] / swaps > 0.2
    assert min(counts[kind] for kind in ("mint", "burn", "collect")) > 200 and counts["flash"] > 20
    pokes = [event for event in everything(week) if event.kind == "burn" and event.args[3] == 0]
    tips = [e for e in everything(week) if e.kind == "flash" and e.args[3] > -(-e.args[1] * model.FEE // 10**6)]
    assert len(pokes) > 50 and len(tips) > 5


def test_sizes_of_noise_trades_are_heavy_tailed(week):
    sizes = sorted(abs(event.args[2]) for event in everything(week) if event.kind == "swap" and event.args[0] == "in")
    assert sizes[-1] > 50 * sizes[len(sizes) // 2]
    assert sum(sizes[-len(sizes) // 100 :]) > 0.05 * sum(sizes)


def test_volatility_is_that_of_a_volatile_pair_and_changes(week):
    prices, price = [], FIRST_PRICE_X96
    events = iter(everything(week))
    event = next(events, None)
    for hour in range(1, 7 * 24 + 1):
        while event and event.block <= FIRST_BLOCK + hour * 1800:
            price = event.args[3] if event.kind == "swap" else price
            event = next(events, None)
        prices.append(price)
    returns = [2 * math.log(b / a) for a, b in pairwise(prices)]
    assert 0.4 < math.sqrt(sum(r * r for r in returns) / len(returns) * 24 * 365) < 1.0
    calm, wild = (sorted(abs(r) for r in returns)[n] for n in (len(returns) // 4, -len(returns) // 8))
    assert wild > 4 * calm


def test_the_price_follows_the_outside_price_within_the_fee():
    venue, gaps = at(0), []
    for block in range(FIRST_BLOCK, FIRST_BLOCK + 10_000):
        venue._grow(block)
        gaps.append(2 * abs(venue._pool.sqrt_price_x96 / venue._outside - 1))
    fee = model.FEE / 1e6
    assert sum(gap < 1.5 * fee for gap in gaps) > 0.9 * len(gaps)
    assert sorted(gaps)[-len(gaps) // 200] < 4 * fee


def test_a_wide_position_earns_a_plausible_rate_and_narrow_ones_more_fees(week):
    async def check():
        snapshot = await week.snapshot("one", FIRST_BLOCK + 1)
        tape, price, base = Tape(snapshot), snapshot.sqrt_price_x96, snapshot.tick // 10 * 10
        tape.feed(await week.events(FIRST_BLOCK + 1, FIRST_BLOCK + 7 * DAY))
        rates = []
        for half_width in (5000, 1500):  # from -39 % to +65 %, and from -14 % to +16 %: wide enough for the week
            book = Book(tape)
            both = Position(base - half_width, base + half_width, *book.amounts(price))
            book.rebalance(FIRST_BLOCK + 1, [both], book.shown(price))
            book.walk(FIRST_BLOCK + 7 * DAY + 1)
            (fees0, fees1), (had0, had1) = book.earned(), book.initial
            rates.append(((fees0 * price**2 >> 192) + fees1) / ((had0 * price**2 >> 192) + had1) * 365 / 7)
        assert 0.05 < rates[0] < 0.4
        assert rates[1] > 2 * rates[0]

    asyncio.run(check())


def test_providers_come_and_go_around_their_usual_number(week):
    everything(week)
    assert 30 < len(week._providers) < 90
    assert len(week._pool.positions) == len(week._providers) + 1 + len(VAULTS)


# ---------------------------------------------------------------------------------------------------------------------
# Vaults and executions


def worth(amounts, price: int) -> int:
    return (amounts[0] * price * price >> 192) + amounts[1]


def holdings(snapshot) -> tuple[int, int]:
    """Idle tokens and what closing releases, without fees."""
    price, held = snapshot.sqrt_price_x96, [(snapshot.idle0, snapshot.idle1)]
    for p in snapshot.vault:
        bounds = sqrt_ratio_at_tick(p.tick_lower), sqrt_ratio_at_tick(p.tick_upper)
        held.append(amounts_of(p.liquidity, price, *bounds, round_up=False))
    return tuple(map(sum, zip(*held, strict=True)))


def test_a_vault_begins_with_one_position_around_the_price_and_something_idle():
    async def check():
        for vault, capital in VAULTS.items():
            snapshot = await at(0).snapshot(vault, FIRST_BLOCK + 1)
            (position,) = snapshot.vault
            assert position.tick_lower < snapshot.tick < position.tick_upper
            assert snapshot.vault_owner == vault
            total, idle = (
                worth(holdings(snapshot), FIRST_PRICE_X96),
                worth((snapshot.idle0, snapshot.idle1), FIRST_PRICE_X96),
            )
            assert abs(total - capital) <= 3
            assert 0.05 < idle / capital < 0.3

    asyncio.run(check())


def test_vaults_that_are_not_there_and_names_of_the_models_own_are_refused():
    with pytest.raises(MarketError, match="'three': the model has one, two"):
        asyncio.run(at(0).snapshot("three", FIRST_BLOCK))
    with pytest.raises(MarketError, match="'model:1'"):
        ModelMarket(1, {"model:1": CAPITAL})
    with pytest.raises(MarketError, match=f"execution in block {FIRST_BLOCK}"):
        at(0, executions=[Execution(FIRST_BLOCK, "one", (), (), ())])


def random_plan(rng: Random, snapshot) -> tuple[list, list, list]:
    """Keep some positions, close the others, mint up to three; sometimes more than there is, sometimes dust."""
    ranges = [(p.tick_lower, p.tick_upper) for p in snapshot.vault]
    keep = [ticks for ticks in ranges if rng.random() < 0.4]
    held, base, mint = holdings(snapshot), snapshot.tick // 10 * 10, []
    for _ in range(rng.randint(0, 3)):
        lower = base + 10 * rng.randint(-60, 20)
        part = rng.choice([0, 0.3, 0.6, 3])
        amounts = (int(amount * part) for amount in held)
        mint.append((lower, lower + 10 * rng.randint(1, 80), *amounts))
    return keep, [ticks for ticks in ranges if ticks not in keep], mint


async def live(venue: ModelMarket, seed: int, until: int, act: Callable[[str, tuple], Awaitable[object]]) -> None:
    """Every 50 blocks or so rebalance one of the vaults at random, through `act(vault, plan)`."""
    rng, head = Random(seed), (await venue.head()).number
    async with venue.participant():
        while head < until:
            head = (await venue.reach(min(until, head + rng.randint(1, 100)))).number
            vault = rng.choice(list(VAULTS))
            await act(vault, random_plan(rng, await venue.snapshot(vault, head + 1)))


def test_executions_neither_make_nor_lose_tokens():
    async def check():
        venue, minted, closed = ModelMarket(7, VAULTS), 0, 0

        async def act(vault, plan):
            nonlocal minted, closed
            head = (await venue.head()).number
            was = await venue.snapshot(vault, head + 1)
            done = await venue.rebalance(vault, *plan)
            assert (done.block, done.vault, done.keep) == (head + 1, vault, tuple(plan[0]))
            assert await venue.snapshot(vault, head + 1) == was  # before the block's first event, still
            pairs = zip(done.before, done.released, done.fees, done.paid, done.after, strict=True)
            for before, released, fees, paid, after in pairs:
                assert before + released + fees - paid == after >= 0
            assert done.before == (was.idle0, was.idle1)
            pool = was.open()  # the contract, asked directly
            closing = [p for p in was.vault if (p.tick_lower, p.tick_upper) in done.close]
            released = [pool.burn(*p.key, p.liquidity) for p in closing]
            owed = [pool.collect(*p.key, 2**128 - 1, 2**128 - 1) for p in closing]
            paid = [pool.mint(vault, *position) for position in done.minted]
            for n in (0, 1):
                assert done.released[n] == sum(amounts[n] for amounts in released)
                assert done.fees[n] == sum(amounts[n] for amounts in owed) - done.released[n]
                assert done.paid[n] == sum(amounts[n] for amounts in paid)
            asked = {(lower, upper): most for lower, upper, *most in done.mint}
            if len(asked) == len(done.mint):
                for (lower, upper, _), amounts in zip(done.minted, paid, strict=True):
                    assert all(a <= most for a, most in zip(amounts, asked[lower, upper], strict=True))
            minted, closed = minted + len(done.minted), closed + len(done.close)

        await live(venue, 1, FIRST_BLOCK + 4000, act)
        assert minted > 30 and closed > 20
        head = (await venue.head()).number
        for vault in VAULTS:
            await holds_over(venue, vault, FIRST_BLOCK + 1, head)

    asyncio.run(check())


def test_an_execution_acts_before_the_other_events_of_the_next_block():
    async def check():
        venue = at(1000)
        base = (await venue.snapshot("one", FIRST_BLOCK + 1001)).tick // 10 * 10
        (position,) = (await venue.snapshot("one", FIRST_BLOCK + 1001)).vault
        ticks = position.tick_lower, position.tick_upper
        await venue.rebalance("one", [], [ticks], [(base - 100, base + 100, 10**30, 10**30)])
        with pytest.raises(MarketError, match="above the head"):
            await venue.events(FIRST_BLOCK + 1001, FIRST_BLOCK + 1001)
        async with venue.participant():
            await venue.reach(FIRST_BLOCK + 1001)
        events = await venue.events(FIRST_BLOCK + 1001, FIRST_BLOCK + 1001)
        assert [(e.kind, e.args[0], e.log_index) for e in events[:3]] == [
            ("burn", "one", 0),
            ("collect", "one", 1),
            ("mint", "one", 2),
        ]
        assert all("one" not in event.args for event in events[3:])
        after = await venue.snapshot("one", FIRST_BLOCK + 1002)
        assert [(p.tick_lower, p.tick_upper) for p in after.vault] == [(base - 100, base + 100)]

    asyncio.run(check())


def test_an_execution_waits_for_all_events_up_to_the_head_whether_asked_for_or_not():
    async def check():
        asked, unasked = at(700), at(700)
        ticks = [(p.tick_lower, p.tick_upper) for p in (await asked.snapshot("two", FIRST_BLOCK + 701)).vault]
        assert await unasked.rebalance("two", [], ticks, []) == await asked.rebalance("two", [], ticks, [])

    asyncio.run(check())


def test_a_plan_that_does_not_fit_the_vault_is_refused_and_changes_nothing():
    async def check():
        venue = at(100)
        snapshot = await venue.snapshot("one", FIRST_BLOCK + 101)
        (position,) = snapshot.vault
        ticks = position.tick_lower, position.tick_upper
        before = state(venue._pool, venue._pool.positions)
        for keep, close, mint in (
            ([], [], []),
            ([ticks], [ticks], []),
            ([ticks], [(0, 10)], []),
            ([], [ticks], [(5, 20, 1, 1)]),
            ([], [ticks], [(20, 10, 1, 1)]),
            ([], [ticks], [(0, 887_280, 1, 1)]),
            ([], [ticks], [(0, 10, -1, 1)]),
        ):
            with pytest.raises(MarketError, match=r"vault 'one' holds|mint "):
                await venue.rebalance("one", keep, close, mint)
        with pytest.raises(MarketError, match="'three'"):
            await venue.rebalance("three", [], [], [])
        assert state(venue._pool, venue._pool.positions) == before
        assert not venue.executions
        await venue.rebalance("one", [ticks], [], [])
        assert await venue.snapshot("one", FIRST_BLOCK + 101) == snapshot

    asyncio.run(check())


def test_a_restart_with_the_executions_takes_the_same_course():
    first = ModelMarket(7, VAULTS)
    asyncio.run(live(first, 2, FIRST_BLOCK + 3000, lambda vault, plan: first.rebalance(vault, *plan)))
    reference = everything(first)
    assert digest(reference) != digest(everything(at(3000)))
    plain = [Execution(done.block, done.vault, done.keep, done.close, done.mint) for done in first.executions]
    assert len(plain) > 40
    for executions in (first.executions, plain, sorted(plain, key=lambda plan: -plan.block)):
        again = at(3000, executions=executions)
        assert everything(again) == reference
        assert again.executions == [done for done in first.executions if done.block <= FIRST_BLOCK + 3000]


def test_a_restart_in_the_middle_goes_on_as_if_there_had_been_none():
    whole = ModelMarket(7, VAULTS)
    asyncio.run(live(whole, 3, FIRST_BLOCK + 1500, lambda vault, plan: whole.rebalance(vault, *plan)))
    done = [replace(execution) for execution in whole.executions]
    asyncio.run(live(whole, 4, FIRST_BLOCK + 3000, lambda vault, plan: whole.rebalance(vault, *plan)))
    resumed = at(1500, executions=done)
    asyncio.run(live(resumed, 4, FIRST_BLOCK + 3000, lambda vault, plan: resumed.rebalance(vault, *plan)))
    assert everything(resumed) == everything(whole)
    assert resumed.executions == whole.executions


def test_rounds_side_by_side_that_execute_take_the_same_course_every_time():
    async def run():
        venue = ModelMarket(7, VAULTS)

        async def round_(vault, step):
            rng = Random(step)
            async with venue.participant():
                while (head := (await venue.head()).number) < FIRST_BLOCK + 1500:
                    head = (await venue.reach(head + step)).number
                    plan = random_plan(rng, await venue.snapshot(vault, head + 1))
                    for _ in range(rng.randint(0, 5)):
                        await asyncio.sleep(0)  # a miner thinks
                    assert (await venue.rebalance(vault, *plan)).block == head + 1

        await asyncio.gather(round_("one", 37), round_("two", 53))
        return await venue.events(FIRST_BLOCK, FIRST_BLOCK + 1500)

    assert asyncio.run(run()) == asyncio.run(run())


def test_the_models_own_pool_and_the_replay_of_its_events_agree_at_the_end(week):
    pool = Pool(model.FEE, model.SPACING)
    pool.initialize(FIRST_PRICE_X96)
    for event in everything(week):
        advance(pool, event)
    assert state(pool, pool.positions) == state(week._pool, week._pool.positions)
    assert pool.positions.keys() == week._pool.positions.keys()
