"""`markets/`: blocks, snapshots and events of a recording, the lock-step clock, and completing a recording.

Small recordings are made here, call by call, on the exact pool; `tests/conftest.py` says where real ones are sought.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from collections import Counter
from dataclasses import replace
from functools import cache
from random import Random

import pytest

from liquidity import replay
from liquidity.calls import find_call
from liquidity.events import Event
from markets import memory
from markets.__main__ import main
from markets.base import MarketEnded, MarketError
from markets.memory import Lockstep, advance
from markets.recordings import BACKGROUND, CSV_HEADER, RecordedMarket, Recording, complete, read_recording
from sim import MAX_SQRT_RATIO, MIN_SQRT_RATIO, Pool, amounts_of, sqrt_ratio_at_tick

ARBITRUM = "arbitrum_weth_usdt_500_2025-06-27_07-01"
ETHEREUM = "ethereum_usdc_weth_500_2024-01-05"
POLYGON = "polygon_usdc_weth_500_2022-01-05"
START_BLOCK, START_TIME = 500, 1_700_000_000
FINAL = ("sqrt_price_x96", "tick", "liquidity", "fee_growth_global0_x128", "fee_growth_global1_x128")
read = cache(read_recording)


@cache
def small_recording(seed: int = 1, count: int = 400) -> Recording:
    """A pool of 30 positions and `count` swaps of all three kinds, mints, burns and pokes, in blocks with gaps."""
    rng = Random(seed)
    positions = [(BACKGROUND, -600, 600, 10**19), (BACKGROUND, -60, 60, 10**18)]
    positions += [(str(n % 4), -10 * (3 + 2 * n), 10 * (2 + 3 * n), 10**17 * (n + 1)) for n in range(30)]
    pool = Pool(500, 10)
    pool.initialize(sqrt_ratio_at_tick(3))
    for position in positions:
        pool.mint(*position)
    events, block, log_index, time = [], START_BLOCK, 3, START_TIME
    while len(events) < count:
        if rng.random() < 0.6:
            gap = rng.choice([1, 1, 2, 7, 40])
            block, log_index, time = block + gap, 0, time + gap * 2 + rng.randrange(3)
        else:
            log_index += 1 + rng.randrange(3)
        kind = rng.choice(["swap"] * 8 + ["mint", "burn", "poke"])
        key = rng.choice([key for key in pool.positions if key[0] != BACKGROUND and pool.positions[key].liquidity])
        if kind == "swap":
            zero_for_one = pool.tick > 40 or (pool.tick > -40 and rng.random() < 0.5)
            how, amount = rng.choice(["in", "in", "out", "limit"]), int(10**16 * rng.random() ** -0.7)
            limit = pool.sqrt_price_x96 * (10**5 + rng.randint(1, 300) * (-1 if zero_for_one else 1)) // 10**5
            far = MIN_SQRT_RATIO + 1 if zero_for_one else MAX_SQRT_RATIO - 1
            call = {"in": (amount, far), "out": (-amount, far), "limit": (10**30, limit)}[how]
            amounts = pool.swap(zero_for_one, *call)
            args = (how, *amounts, pool.sqrt_price_x96, pool.liquidity, pool.tick)
        elif kind == "mint":
            args = (*key, liquidity := 10**16 * rng.randint(1, 9), *pool.mint(*key, liquidity))
        else:
            liquidity = pool.positions[key].liquidity // rng.choice([1, 2, 5]) if kind == "burn" else 0
            kind, args = "burn", (*key, liquidity, *pool.burn(*key, liquidity))
        events.append(Event(block, log_index, time, kind, args))
    return Recording(
        name=f"small-{seed}",
        chain="arbitrum",
        pool_address="0xpool",
        token0=("ONE", 18),
        token1=("TWO", 6),
        fee=500,
        tick_spacing=10,
        start_block=START_BLOCK,
        start_time=START_TIME,
        sqrt_price_x96=sqrt_ratio_at_tick(3),
        positions=tuple(positions),
        events=tuple(events),
        final={name: getattr(pool, name) for name in FINAL},
        digest=f"digest of small-{seed}",
    )


def changed(recording: Recording, at: int, **fields) -> Recording:
    events = list(recording.events)
    events[at] = events[at]._replace(**fields)
    return replace(recording, events=tuple(events))


def state(pool: Pool, keys) -> tuple:
    """All that a pool is, with the positions `keys`; what has no liquidity is as good as not there."""
    ticks = [
        (i, t.liquidity_gross, t.liquidity_net, t.fee_growth_outside0_x128, t.fee_growth_outside1_x128)
        for i, t in sorted(pool.ticks.items())
    ]
    held = [(key, pool.position(*key)) for key in sorted(keys)]
    fields = (
        "liquidity",
        "fee_growth_inside0_last_x128",
        "fee_growth_inside1_last_x128",
        "tokens_owed0",
        "tokens_owed1",
    )
    positions = [(key, *(getattr(s, f) for f in fields)) for key, s in held if s.liquidity]
    return tuple(getattr(pool, name) for name in FINAL), pool.fee_protocol, ticks, positions


async def holds_over(venue, vault: str, first: int, last: int) -> None:
    """Advance a fresh pool from one snapshot by the events between; it must be the later snapshot, vault included."""
    early, late = await venue.snapshot(vault, first), await venue.snapshot(vault, last + 1)
    pool, keys = early.open(), {position.key for position in early.vault}
    idle = [early.idle0, early.idle1]
    for event in await venue.events(first, last):
        key = event.args[:3]
        if event.kind == "mint" and event.args[0] == early.vault_owner:
            keys.add(key)
        replay.apply_event(pool, event, keys)
        if key in keys and event.kind == "burn":
            assert pool.collect(*key, *event.args[4:]) == event.args[4:]
        if key in keys and event.kind in ("mint", "burn", "collect"):
            sign = -1 if event.kind == "mint" else 1
            idle = [max(0, have + sign * amount) for have, amount in zip(idle, event.args[-2:], strict=True)]
    assert state(pool, keys) == state(late.open(), {position.key for position in late.vault} & keys)
    if early.vault_owner or early.vault:
        assert idle == [late.idle0, late.idle1]


async def at_end(recording: Recording, **options) -> RecordedMarket:
    """A market whose head is the recording's last block."""
    return RecordedMarket(recording, head=recording.events[-1].block, **options)


# ---------------------------------------------------------------------------------------------------------------------
# Blocks of a recording


def test_block_times_are_interpolated_between_events_and_never_run_backwards():
    async def check():
        recording, venue = small_recording(), await at_end(small_recording())
        known = {START_BLOCK: START_TIME} | {event.block: event.time for event in recording.events}
        last, blocks = recording.events[-1].block, sorted(known)
        times = [(await venue.block(number)).time for number in range(START_BLOCK, last + 1)]
        assert times == sorted(times)
        for number, time in enumerate(times, START_BLOCK):
            low, high = max(b for b in blocks if b <= number), min(b for b in blocks if b >= number)
            share = 0 if low == high else (number - low) * (known[high] - known[low]) // (high - low)
            assert time == known[low] + share
        for moment in range(START_TIME - 3, times[-1] + 1):
            first = next(number for number, time in enumerate(times, START_BLOCK) if time >= moment)
            assert (await venue.first_block_at(moment)).number == first

    asyncio.run(check())


def test_a_block_hash_is_made_from_the_recordings_digest_and_the_label_says_so():
    async def check():
        venue = RecordedMarket(small_recording())
        expected = hashlib.sha256(b"digest of small-1:501").hexdigest()
        assert (await venue.block(501)).hash == f"0x{expected}"
        assert venue.label == "recording small-1 (arbitrum); its block hashes are synthetic"
        assert (venue.pair.chain_id, venue.pair.token1.decimals, venue.full_speed) == (42161, 6, True)

    asyncio.run(check())


def test_beyond_the_end_there_is_nothing_and_before_the_start_neither():
    async def check():
        recording = small_recording()
        venue, last = RecordedMarket(recording), recording.events[-1]
        async with venue.participant():
            assert (await venue.reach(last.block)).number == last.block
            for beyond in (
                venue.block(last.block + 1),
                venue.reach(last.block + 1),
                venue.reach_time(last.time + 1),
                venue.first_block_at(last.time + 1),
                venue.snapshot(venue.vault, last.block + 1),
            ):
                with pytest.raises(MarketEnded, match="small-1"):
                    await beyond
            with pytest.raises(MarketError, match="begins with block 500"):
                await venue.block(START_BLOCK - 1)

    asyncio.run(check())


def test_nobody_sees_what_lies_above_the_head():
    async def check():
        venue = RecordedMarket(small_recording())
        head = (await venue.head()).number
        await venue.snapshot(venue.vault, head + 1)
        with pytest.raises(MarketError, match=f"block {head + 1} is above the head {head}"):
            await venue.snapshot(venue.vault, head + 2)
        with pytest.raises(MarketError, match=f"block {head + 1} is above the head {head}"):
            await venue.events(head, head + 1)

    asyncio.run(check())


def test_a_recording_cannot_be_changed():
    venue = RecordedMarket(small_recording())
    assert venue.read_only
    with pytest.raises(MarketError, match="cannot be changed"):
        asyncio.run(venue.execute(None))


# ---------------------------------------------------------------------------------------------------------------------
# Snapshots and events


def oracle(recording: Recording, block: int) -> Pool:
    """The pool before a block, replayed from the start."""
    pool = recording.open_pool()
    for event in recording.events:
        if event.block < block:
            advance(pool, event)
    return pool


@pytest.mark.parametrize("kept", [7, 10_000])
def test_snapshots_are_right_forwards_backwards_and_for_two_vaults(monkeypatch, kept):
    monkeypatch.setattr(memory, "KEEP_EVERY_EVENTS", kept)
    applied = []
    monkeypatch.setattr(memory, "advance", lambda pool, event: (applied.append(event), advance(pool, event)))

    async def check():
        recording = small_recording()
        venue, rng = await at_end(recording, idle=(5, 6)), Random(4)
        vaults = [":".join(map(str, key)) for key in sorted(oracle(recording, 10**9).positions) if key[0] == "1"][:2]
        assert len(vaults) == 2
        for _ in range(60):
            block, vault = rng.randint(START_BLOCK, recording.events[-1].block), rng.choice(vaults)
            applied.clear()
            snapshot, pool = await venue.snapshot(vault, block), oracle(recording, block)
            assert len(applied) < kept  # from a kept copy, not from the start
            owner, lower, upper = vault.split(":")
            key = owner, int(lower), int(upper)
            assert state(snapshot.open(), [key]) == state(pool, [key])
            mine = [e for e in recording.events if e.block < block and e.kind != "swap" and e.args[:3] == key]
            idle = [5, 6]
            for event in mine:
                sign = -1 if event.kind == "mint" else 1
                idle = [max(0, a + sign * b) for a, b in zip(idle, event.args[4:], strict=True)]
            assert [snapshot.idle0, snapshot.idle1] == idle
            assert (snapshot.block, snapshot.block_time) == (block, (await venue.block(block)).time)

    asyncio.run(check())


def test_monotone_snapshots_replay_every_event_once(monkeypatch):
    recording = small_recording()
    venue = asyncio.run(at_end(recording))
    applied = []
    monkeypatch.setattr(memory, "advance", lambda pool, event: (applied.append(event), advance(pool, event)))

    async def walk():
        for block in range(START_BLOCK, recording.events[-1].block + 1, 5):
            await venue.snapshot(venue.vault, block)
            await venue.snapshot("1:-50:50", block)

    asyncio.run(walk())
    before_last = [event for event in recording.events if event.block < recording.events[-1].block - 4]
    assert len(before_last) <= len(applied) <= len(recording.events)
    assert list(recording.events[: len(applied)]) == applied


def test_events_between_two_snapshots_lead_from_one_to_the_other():
    async def check():
        rng = Random(8)
        for seed in (1, 2, 3):
            recording = small_recording(seed)
            venue, last = await at_end(recording, idle=(10**16, 10**16)), recording.events[-1].block
            vaults = [":".join(map(str, position[:3])) for position in recording.positions[2:]]
            for _ in range(40):
                first, second = sorted(rng.randint(START_BLOCK, last - 1) for _ in "ab")
                await holds_over(venue, rng.choice(vaults), first, second)

    asyncio.run(check())


def test_events_are_those_of_the_blocks_asked_for_both_ends_included():
    async def check():
        recording, rng = small_recording(), Random(2)
        venue, last = await at_end(recording), recording.events[-1].block
        assert await venue.events(START_BLOCK, last) == list(recording.events)
        for _ in range(50):
            first, second = rng.randint(START_BLOCK, last), rng.randint(START_BLOCK, last)
            assert await venue.events(first, second) == [e for e in recording.events if first <= e.block <= second]

    asyncio.run(check())


def test_real_windows_of_three_chains_hold_together(recording_path):
    async def check(name, windows):
        recording = read(recording_path(name))
        venue, rng, last = await at_end(recording), Random(5), recording.events[-1].block
        for _ in range(windows):
            first = rng.randint(recording.start_block, last - 1)
            await holds_over(venue, venue.vault, first, min(last - 1, first + rng.randint(0, 4000)))

    for name, windows in ((ARBITRUM, 12), (ETHEREUM, 6), (POLYGON, 6)):
        asyncio.run(check(name, windows))


# ---------------------------------------------------------------------------------------------------------------------
# The vault of a recording


def test_what_a_burn_releases_goes_to_idle_and_its_fees_stay_uncollected():
    async def check():
        recording, found = small_recording(), 0
        for burn in recording.events:
            if burn.kind == "burn" and burn.args[3] and burn.args[3] < oracle(recording, burn.block).liquidity:
                vault, key = ":".join(map(str, burn.args[:3])), burn.args[:3]
                venue = await at_end(recording, vault=vault, idle=(10**20, 10**20))
                if sum(event.block == burn.block for event in recording.events) > 1 or burn.block == venue.last:
                    continue
                before, after = await venue.snapshot(vault, burn.block), await venue.snapshot(vault, burn.block + 1)
                assert (after.idle0 - before.idle0, after.idle1 - before.idle1) == burn.args[4:]
                if after.vault:  # something is left
                    assert before.vault[0].liquidity - after.vault[0].liquidity == burn.args[3]
                    pool = before.open()
                    pool.burn(*key, 0)
                    owed = pool.position(*key)
                    kept = after.vault[0].tokens_owed0, after.vault[0].tokens_owed1
                    assert kept == (owed.tokens_owed0, owed.tokens_owed1)
                    found += kept > (0, 0)
        assert found > 3

    asyncio.run(check())


def test_a_mint_is_paid_from_idle_as_far_as_it_reaches():
    async def check():
        recording = small_recording()
        mint = next(event for event in recording.events if event.kind == "mint" and min(event.args[4:]) > 1)
        vault, (paid0, paid1) = ":".join(map(str, mint.args[:3])), mint.args[4:]
        earlier = [e for e in recording.events if e.kind == "burn" and e[:2] < mint[:2] and e.args[:3] == mint.args[:3]]
        given = [sum(e.args[n] for e in earlier) for n in (4, 5)]
        for idle, left in (((paid0, 0), (given[0], max(0, given[1] - paid1))), ((paid0 + 9, paid1 + 9), None)):
            venue = await at_end(recording, vault=vault, idle=idle)
            after = await venue.snapshot(vault, mint.block + 1)
            assert (after.idle0, after.idle1) == (left or (given[0] + 9, given[1] + 9))

    asyncio.run(check())


def test_the_default_vault_of_the_arbitrum_recording_is_the_known_one(recording_path):
    async def check():
        recording = read(recording_path(ARBITRUM))
        venue = await at_end(recording)
        assert venue.vault == "0:-199760:-196890"
        start = await venue.snapshot(venue.vault, recording.start_block)
        (position,) = start.vault
        price = start.sqrt_price_x96
        bounds = sqrt_ratio_at_tick(position.tick_lower), sqrt_ratio_at_tick(position.tick_upper)
        amount0, amount1 = amounts_of(position.liquidity, price, *bounds, round_up=False)
        worth = (amount0 * price * price >> 192) + amount1
        assert round(worth / 10**6, -3) == 395_000  # USDT has 6 decimals
        until = next(e for e in recording.events if e.kind != "swap" and e.args[:3] == position.key and e.args[3])
        assert (until.time - recording.start_time) // 3600 == 102

    asyncio.run(check())


def test_the_default_vault_is_in_range_unchanged_and_never_background():
    recording = small_recording()
    venue = RecordedMarket(recording)
    owner, lower, upper = venue.vault.split(":")
    key = owner, int(lower), int(upper)
    assert owner != BACKGROUND
    assert key[1] <= recording.open_pool().tick < key[2]
    length = recording.events[-1].time - recording.start_time
    touched = [e.time for e in recording.events if e.kind != "swap" and e.args[:3] == key and e.args[3]]
    assert all(time >= recording.start_time + 0.8 * length for time in touched)
    far_and_rich = (*recording.positions, ("9", 20_000, 30_000, 10**25))
    assert RecordedMarket(replace(recording, positions=far_and_rich)).vault == venue.vault
    only_background = replace(recording, positions=recording.positions[:2], events=(), final={})
    with pytest.raises(MarketError, match="--vault OWNER:LOWER:UPPER"):
        RecordedMarket(only_background)


@pytest.mark.parametrize("vault", ["nonsense", "0:-50", "0:a:b", f"{BACKGROUND}:-600:600", "0:-60:50"])
def test_a_vault_that_is_not_there_is_refused_with_the_fix(vault):
    with pytest.raises(MarketError, match="vault"):
        RecordedMarket(small_recording(), vault)


def test_negative_idle_and_a_pace_of_zero_are_refused():
    with pytest.raises(MarketError, match=r"idle -1,0"):
        RecordedMarket(small_recording(), idle=(-1, 0))
    with pytest.raises(MarketError, match="pace 0"):
        RecordedMarket(small_recording(), pace=0)
    with pytest.raises(MarketError, match="head 1"):
        RecordedMarket(small_recording(), head=1)


# ---------------------------------------------------------------------------------------------------------------------
# Streams that contradict themselves


def contradictions(recording: Recording):
    """One event wrong in one digit, missing, or twice; with the block that must be named."""
    for at in (5, 120, 300):
        event = recording.events[at]
        for n in range(1 if event.kind == "swap" else 4, 6):
            args = list(event.args)
            args[n] += 1
            yield changed(recording, at, args=tuple(args)), event.block
    swap = next(n for n, event in enumerate(recording.events) if n > 50 and event.kind == "swap")
    after = next(event for event in recording.events[swap + 1 :] if event.kind == "swap")
    yield replace(recording, events=recording.events[:swap] + recording.events[swap + 1 :]), after.block
    burn = next(n for n, event in enumerate(recording.events) if event.kind == "burn" and event.args[3] > 0)
    too_much = recording.events[burn]
    too_much = too_much._replace(log_index=99, args=(*too_much.args[:3], 10**30, 1, 1))
    yield replace(recording, events=(*recording.events[: burn + 1], too_much)), too_much.block


def test_a_recording_that_contradicts_itself_is_refused_with_the_block():
    for wrong, block in contradictions(small_recording()):
        with pytest.raises(MarketError, match=f"^block {block} log "):
            RecordedMarket(wrong)
        with pytest.raises(MarketError, match=f"^block {block} log "):
            list(complete(wrong))


def test_a_final_state_that_is_not_reached_is_refused():
    recording = small_recording()
    wrong = replace(recording, final=recording.final | {"liquidity": 1})
    with pytest.raises(MarketError, match=rf"final liquidity is {recording.final['liquidity']}, the recording says 1"):
        RecordedMarket(wrong)


def test_time_that_runs_backwards_is_refused_with_the_block():
    recording = small_recording()
    for fields in ({"time": START_TIME}, {"time": 2 * START_TIME}, {"block": START_BLOCK - 1}):
        with pytest.raises(MarketError, match=r"^block \d+ log \d+: time \d+, but block \d+ was at"):
            RecordedMarket(changed(recording, 200, **fields))


def test_a_swap_of_unknown_call_is_refused_with_the_command_that_finds_it():
    recording = small_recording()
    at = next(n for n, event in enumerate(recording.events) if event.kind == "swap")
    args = recording.events[at].args
    with pytest.raises(MarketError, match="python -m markets import"):
        RecordedMarket(changed(recording, at, args=("", *args[1:])))


# ---------------------------------------------------------------------------------------------------------------------
# Completing a recording


def stripped(recording: Recording) -> Recording:
    """Without the calls."""
    events = (e._replace(args=("", *e.args[1:])) if e.kind == "swap" else e for e in recording.events)
    return replace(recording, events=tuple(events))


def test_the_calls_behind_all_swaps_are_found_again():
    for seed in (1, 2, 3):
        recording = small_recording(seed)
        found = list(complete(stripped(recording)))
        assert Counter(e.args[0] for e in recording.events if e.kind == "swap").keys() == {"in", "out", "limit"}
        for was, now in zip(recording.events, found, strict=True):
            assert now == was


def test_finding_a_call_leaves_the_pool_as_it_was():
    recording = small_recording()
    pool, crossings = recording.open_pool(), 0
    for event in stripped(recording).events:
        if event.kind == "swap":
            before, low = state(pool, pool.positions), pool.tick
            how = find_call(pool, event)
            assert state(pool, pool.positions) == before
            crossings += any(min(low, event.args[5]) < tick <= max(low, event.args[5]) for tick in pool.ticks)
            event = event._replace(args=(how, *event.args[1:]))
        advance(pool, event)
    assert crossings > 20


def write(folder, recording: Recording) -> str:
    """The files of a recording, as the README beside the real ones describes them."""
    stem = folder / recording.name
    lines = [",".join(map(str, (*event[:4], *event.args))) for event in recording.events]
    (folder / f"{recording.name}.events.csv").write_text("\n".join((CSV_HEADER, *lines)) + "\n")
    names = {"sqrt_price_x96": "sqrtPriceX96", "tick": "tick", "liquidity": "liquidity"}
    description = {
        "chain": recording.chain,
        "pool": recording.pool_address,
        "token0": "{} ({})".format(*recording.token0),
        "token1": "{} ({})".format(*recording.token1),
        "fee": recording.fee,
        "tickSpacing": recording.tick_spacing,
        "start": {"block": START_BLOCK, "time": START_TIME, "sqrtPriceX96": recording.sqrt_price_x96},
        "background": [p[1:] for p in recording.positions if p[0] == BACKGROUND],
        "preexisting": [p for p in recording.positions if p[0] != BACKGROUND],
        "final": {theirs: recording.final[ours] for ours, theirs in names.items() if ours in recording.final},
    }
    (folder / f"{recording.name}.json").write_text(json.dumps(description))
    return str(stem)


def test_import_writes_the_completed_recording(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)  # else there is no progress
    recording = small_recording()
    (out := tmp_path / "out").mkdir()
    assert main(["import", write(tmp_path, stripped(recording)), "--out", str(out)]) == 0
    assert read_recording(out / recording.name).events == recording.events
    assert sorted(path.name for path in out.iterdir()) == ["small-1.events.csv.xz", "small-1.json"]
    said = capsys.readouterr()
    assert "every digit agrees" in said.out and str(out) in said.out
    assert "400 of 400 events" in said.err
    RecordedMarket(read_recording(out / recording.name))


def test_import_of_real_swaps_gives_the_very_file_whose_calls_were_taken_out(recording_path, tmp_path, capsys):
    for name in (ETHEREUM, POLYGON):
        recording = read(recording_path(name))
        unknown = {n for n, e in enumerate(recording.events) if e.kind == "swap" and e.args[0] == "?"}
        events = stripped(recording).events
        partly = [recording.events[n] if n in unknown else event for n, event in enumerate(events)]
        assert list(complete(replace(recording, events=tuple(partly)))) == list(recording.events)


def test_import_refuses_a_contradiction_with_its_block_and_exit_code_1(tmp_path, capsys):
    (out := tmp_path / "out").mkdir()
    wrong, block = next(contradictions(small_recording()))
    assert main(["import", write(tmp_path, wrong), "-o", str(out)]) == 1
    assert f"small-1: block {block} log " in capsys.readouterr().err
    assert not list(out.iterdir())


def test_import_says_in_one_line_what_cannot_be_read_or_written_with_exit_code_2(tmp_path, capsys):
    stem = write(tmp_path, small_recording())
    (tmp_path / "broken.json").write_text("{}")
    (tmp_path / "broken.events.csv").write_text(CSV_HEADER)
    for path, out, said in (
        (tmp_path / "nothing", tmp_path, "nothing"),
        (tmp_path / "broken", tmp_path, "broken"),
        (stem, tmp_path / "nowhere", "nowhere: no such folder"),
        (stem, tmp_path, "the recording itself is there"),
    ):
        assert main(["import", str(path), "--out", str(out)]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
    with pytest.raises(SystemExit) as refused:
        main(["import", stem])
    assert refused.value.code == 2


# ---------------------------------------------------------------------------------------------------------------------
# The lock-step clock


def test_the_head_stands_still_while_anybody_is_busy():
    async def check():
        clock, seen, free = Lockstep(0), [], asyncio.Event()

        async def waits():
            async with clock.participant():
                await clock.reach(10)
                seen.append(clock.head)

        async def works():
            async with clock.participant():
                await free.wait()
                assert clock.head == 0
                await clock.reach(4)
                assert clock.head == 4

        tasks = [asyncio.create_task(waits()), asyncio.create_task(works())]
        for _ in range(20):
            await asyncio.sleep(0)
            assert clock.head == 0
        free.set()
        await asyncio.gather(*tasks)
        assert seen == [10]

    asyncio.run(check())


def test_those_who_wait_for_one_block_wake_in_the_order_in_which_they_came():
    async def check():
        clock, order = Lockstep(0), []

        async def one(name, turns):
            async with clock.participant():
                for _ in range(turns):
                    await asyncio.sleep(0)
                await clock.reach(5)
                order.append(name)

        await asyncio.gather(*(one(name, turns) for name, turns in (("c", 9), ("a", 0), ("d", 12), ("b", 4))))
        assert order == ["a", "b", "c", "d"]

    asyncio.run(check())


def test_a_block_that_is_past_is_reached_at_once():
    async def check():
        clock = Lockstep(7)
        async with clock.participant():
            await clock.reach(7)
            await clock.reach(3)
        assert clock.head == 7

    asyncio.run(check())


def test_a_cancelled_wait_is_busy_until_it_leaves_and_holds_up_nobody_after():
    async def check():
        clock, left = Lockstep(0), asyncio.Event()

        async def quits():
            async with clock.participant():
                try:
                    await clock.reach(3)
                finally:
                    await asyncio.sleep(0)
                    await asyncio.sleep(0)
                    assert clock.head == 0
                    left.set()

        async def goes_on():
            async with clock.participant():
                await clock.reach(8)
                assert left.is_set()

        async def holds():
            async with clock.participant():
                for _ in range(5):
                    await asyncio.sleep(0)
                quitter.cancel()

        quitter, other, holder = (asyncio.create_task(job()) for job in (quits, goes_on, holds))
        await asyncio.wait_for(asyncio.gather(other, holder), 10)
        assert clock.head == 8 and quitter.cancelled()

    asyncio.run(check())


def test_a_participant_that_fails_holds_up_nobody():
    async def check():
        clock = Lockstep(0)

        async def fails():
            async with clock.participant():
                await clock.reach(2)
                raise ValueError

        async def goes_on():
            async with clock.participant():
                await clock.reach(5)

        done = await asyncio.wait_for(asyncio.gather(fails(), goes_on(), return_exceptions=True), 10)
        assert isinstance(done[0], ValueError) and done[1] is None and clock.head == 5

    asyncio.run(check())


def test_a_wait_with_a_deadline_stays_usable_after_it():
    async def check():
        clock = Lockstep(0)

        async def busy(until):
            async with clock.participant():
                await until.wait()

        async with clock.participant():
            until = asyncio.Event()
            other = asyncio.create_task(busy(until))
            await asyncio.sleep(0)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await clock.reach(3)
            assert clock.head == 0
            until.set()
            await clock.reach(2)
            assert clock.head == 2
        await other

    asyncio.run(check())


def test_waiting_outside_and_entering_twice_are_errors():
    async def check():
        clock = Lockstep(0)
        with pytest.raises(MarketError, match=r"outside of participant\(\)"):
            await clock.reach(1)
        async with clock.participant():
            with pytest.raises(MarketError, match=r"participant\(\) inside participant\(\)"):
                async with clock.participant():
                    pass
            await clock.reach(1)

    asyncio.run(check())


def random_crowd(seed: int) -> list:
    """Forty tasks that wait, work, are cancelled and fail at random; what happened, in order."""

    async def run():
        rng, clock, log = Random(seed), Lockstep(0), []

        async def one(name):
            async with clock.participant():
                for _ in range(rng.randint(1, 8)):
                    for _ in range(rng.randint(0, 3)):
                        await asyncio.sleep(0)
                    due = clock.head + rng.randint(0, 9)
                    was = clock.head
                    await clock.reach(due)
                    assert clock.head == max(was, due)
                    log.append((name, clock.head))
                    chance = rng.random()
                    if chance < 0.03:
                        raise KeyError(name)
                    if chance < 0.1:
                        rng.choice(tasks).cancel()

        tasks = [asyncio.create_task(one(name)) for name in range(40)]
        results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 30)
        assert not [found for found in results if not isinstance(found, None | KeyError | asyncio.CancelledError)]
        heads = [head for _, head in log]
        assert heads == sorted(heads)
        return log

    return asyncio.run(run())


def test_any_crowd_gets_through_and_the_same_one_takes_the_same_course():
    for seed in range(25):
        assert random_crowd(seed) == random_crowd(seed)


def test_rounds_side_by_side_see_the_market_at_the_blocks_they_waited_for():
    async def check():
        venue, seen = RecordedMarket(small_recording()), []

        async def round_(step):
            async with venue.participant():
                try:
                    while True:
                        due = (await venue.head()).number + step
                        head = await venue.reach(due)
                        assert head.number == due
                        snapshot = await venue.snapshot(venue.vault, head.number + 1)
                        seen.append((step, head.number, snapshot.sqrt_price_x96))
                        await asyncio.sleep(0)
                except MarketEnded:
                    return

        await asyncio.gather(round_(50), round_(70))
        return seen

    first = asyncio.run(check())
    assert first == asyncio.run(check())
    assert {step for step, _, _ in first} == {50, 70}
    assert [block for _, block, _ in first] == sorted(block for _, block, _ in first)


# ---------------------------------------------------------------------------------------------------------------------
# A market that follows a clock


def test_a_paced_head_is_the_last_block_whose_time_has_come():
    async def check():
        now = [1000.0]
        recording = small_recording()
        venue = RecordedMarket(recording, pace=10, clock=lambda: now[0])
        assert not venue.full_speed
        last = recording.events[-1].block
        for seconds in (0, 0.05, 0.1, 3.7, 9.99, 20, 55.5):
            now[0] = 1000 + seconds
            head = await venue.head()
            assert head.time <= START_TIME + seconds * 10
            if head.number < last:
                assert (await venue.block(head.number + 1)).time > START_TIME + int(seconds * 10)
        now[0] = 10**6
        assert (await venue.head()).number == last
        with pytest.raises(MarketEnded):
            await venue.reach(last + 1)

    asyncio.run(check())


def test_a_paced_market_is_waited_for_by_its_clock():
    async def check():
        venue = RecordedMarket(small_recording(), pace=100_000)
        async with venue.participant():
            assert (await venue.reach(600)).number >= 600
        assert (await venue.reach_time(START_TIME + 900)).time >= START_TIME + 900  # no participant needed

    asyncio.run(check())


def test_a_market_may_start_with_a_later_head():
    async def check():
        for pace in (None, 0.001):
            venue = RecordedMarket(small_recording(), head=650, pace=pace)
            assert (await venue.head()).number == 650 or pace
            assert (await venue.head()).time == (await venue.block(650)).time
            await venue.snapshot(venue.vault, 651)

    asyncio.run(check())
