"""A Slipstream pool on a chain: what the real bytecode did, as its traces have it, against what the market says of it.

The chain is a trace, served by `slipstream_node.py`, which says what of it is real.
Run with `python -m pytest tests/test_slipstream.py`.
"""

from __future__ import annotations

import asyncio
import copy
import gzip
import json
import logging
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import anvil
import pytest
from slipstream_node import CALLS, FIRST_BLOCK, POOL, TracedChain
from subnets import a_job, keep, play_subnet

import miner
from audit import stored
from audit.checks import audit
from audit.evidence import seal
from doctor.nodes import check_pool
from doctor.trial import backtest
from evm import rpc
from evm.__main__ import build_parser as evm_parser
from evm.__main__ import record
from evm.abi import CL_LOGS, POOL_LOGS, Log, Malformed
from evm.audit import audit_chain
from evm.events import Named, NamedToken, follow_to, name_tokens, to_events
from evm.market import Web3Market
from evm.pool import Contract, State
from executor import __main__ as executor_command
from liquidity import calls
from liquidity.calls import find_call_and_fee
from liquidity.events import Event, ReplayError
from liquidity.live import LiveInputs, play_live
from liquidity.recheck import check_shown
from liquidity.replay import Snapshot, apply_event
from liquidity.rounds import Round
from liquidity.slipstream import SlipstreamPool
from liquidity.tape import Tape
from markets.__main__ import main as markets_command
from markets.base import MarketEnded, MarketError
from markets.memory import InMemoryMarket
from markets.recordings import RecordedMarket, read_recording, replay, write_recording
from protocol import Block, Code, Inventory, Job, JobSettings, Moment, Pair, Position, Token
from runtime.options import parse_options
from sim import MASK_128, MASK_256
from store import Store
from wire.codec import canonical, decode, encode, from_plain, to_plain
from wire.signing import local_keypair

KEY = local_keypair("validator-hotkey")
TRACES = sorted((Path(__file__).parent / "traces").glob("slipstream_*.jsonl.gz"))
CALM, BOUNDARY = TRACES[1], TRACES[4]
RECORDED = "sqrtPriceX96", "tick", "liquidity", "feeGrowthGlobal0X128", "feeGrowthGlobal1X128"
RECORDED += "gaugeFees0", "gaugeFees1", "stakedLiquidity"
HELD = "sqrt_price_x96", "tick", "liquidity", "fee_growth_global0_x128", "fee_growth_global1_x128"
HELD += "gauge_fees0", "gauge_fees1", "staked_liquidity"

each_trace = pytest.mark.parametrize("path", TRACES, ids=lambda path: path.name[11:13])


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Failing endpoints rest for hundredths of seconds."""
    monkeypatch.setattr(rpc, "FIRST_REST_SECONDS", 0.01)
    monkeypatch.setattr(rpc, "MAX_REST_SECONDS", 0.05)


def open_market(chain: TracedChain, path: Path, *urls: str, **options) -> AbstractAsyncContextManager[Web3Market]:
    options = {"first": FIRST_BLOCK, "vaults": [chain.vault], "confirmations": 0, "following": False} | options
    return Web3Market.open(urls, POOL, path, **options)


async def read_all(market: Web3Market, chain: TracedChain) -> list[Event]:
    """Catch up as the follower does: again, when it failed."""
    for _ in range(40):
        with suppress(rpc.RpcError):
            await market.catch_up()
        if (await market.head()).number == chain.head:
            return await market._follower.file.events(market.first + 1, chain.head)
        await asyncio.sleep(0.01)
    raise AssertionError("it does not catch up")


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """By trace: the chain, and the events that a market found in it."""
    found = {}

    def follow(path: Path) -> tuple[TracedChain, list[Event]]:
        if path not in found:
            chain = TracedChain(path)

            async def work():
                file = tmp_path_factory.mktemp("followed") / "a.sqlite3"
                async with chain.node() as url, open_market(chain, file, url) as market:
                    events = await read_all(market, chain)
                    return events, market._follower.gaps

            events, gaps = asyncio.run(work())
            assert not gaps
            found[path] = chain, events
        return found[path]

    return follow


def operation_of(chain: TracedChain, event: Event) -> int:
    """Number of the operation that an event comes from."""
    return int(chain.blocks[event.block].logs[event.log_index]["transactionHash"], 16)


def start_of(chain: TracedChain) -> SlipstreamPool:
    """The pool before anything happened, without positions."""
    return Snapshot.of(chain.blocks[FIRST_BLOCK].pool, (), (0, 0), FIRST_BLOCK, 0, "").open()


# ---------------------------------------------------------------------------------------------------------------------
# What is found


@each_trace
def test_the_events_that_were_found_make_the_pool_what_the_bytecode_made_it_after_every_operation(followed, path):
    """Not at the ends of chunks alone, where the follower looks: so every fee and every stake is in its place."""
    chain, events = followed(path)
    recorded, lines = {}, [line for _, line in chain.operations()]
    for one, two in zip(lines, [*lines[1:], {}], strict=True):  # what a gauge mints or burns it stakes at once
        later = two if two.get("op") == "stake" and not two["upd"] else one
        recorded[one["i"]] = [dict(zip(chain._keys, later["s"], strict=True))[name] for name in RECORDED]
    pool, compared = start_of(chain), 0
    for event, following in zip(events, [*events[1:], None], strict=True):
        apply_event(pool, event, ())
        number = operation_of(chain, event)
        if not following or operation_of(chain, following) != number:
            assert [getattr(pool, name) for name in HELD] == recorded[number], event
            compared += 1
    assert compared > 500
    last = chain.blocks[chain.head].pool
    assert {i: mark.staked_liquidity_net for i, mark in pool.ticks.items()} == {
        i: mark.staked_liquidity_net for i, mark in last.ticks.items()
    }


def may_be_either(event: Event, fees: tuple[int, int], pool: SlipstreamPool) -> bool:
    """Whether two fees may give a swap's digits, on the pool before it.

    What they take of the input P differs by P * |f - g| / 10**6. It is lost only in rounding: each of the k steps
    rounds its fee to a unit, so (P - k) * |f - g| < k * 10**6. Below 10**6 units a step neighbouring fees may be the
    same; where a unit of price is worth several units of input, so many more are lost.
    """
    steps = 1
    for fee in fees:
        fork = pool.copy()
        fork.set_fees(fee, pool.unstaked_fee)
        legs = fork.record()
        with suppress(ReplayError):
            apply_event(fork, event._replace(args=event.args[:6]), ())
        steps = max(steps, len(legs))
    low = min(pool.sqrt_price_x96, event.args[3])
    steps += max(pool.liquidity, event.args[4]) * max(1 << 96, (1 << 288) // low**2) >> 192
    return (max(event.args[1:3]) - steps) * abs(fees[0] - fees[1]) < 10**6 * steps


@each_trace
def test_the_fee_of_every_swap_is_what_the_factory_said_or_another_that_its_digits_cannot_be_told_from(followed, path):
    chain, events = followed(path)
    swaps = [(line["s"][chain._keys.index("fee")], line) for _, line in chain.operations() if line["op"] == "swap"]
    found = [event for event in events if event.kind == "swap"]
    pool, other, at = start_of(chain), 0, 0
    for event in events:
        if event.kind == "swap":
            fee, line = swaps[at]
            at += 1
            assert event.args[1:3] == tuple(line["ret"])
            if event.args[6] != fee:
                spent = pool.copy()
                spent.set_fees(fee, pool.unstaked_fee)
                assert find_call_and_fee(spent, event._replace(args=("", *event.args[1:6])))[1] == fee
                assert may_be_either(event, (fee, event.args[6]), pool), event
                other += 1
        apply_event(pool, event, ())
    assert len(found) == len(swaps) > 290 and other < len(swaps) / 15
    assert len({fee for fee, _ in swaps}) > 4


@each_trace
def test_every_stake_is_found_where_it_was_made(followed, path):
    chain, events = followed(path)
    made = [line for _, line in chain.operations() if line["op"] == "stake" and line["upd"]]
    found = [event for event in events if event.kind in ("stake", "unstake")]
    assert [
        (operation_of(chain, event), *event.args[1:3], event.args[3] * (1 if event.kind == "stake" else -1))
        for event in found
    ] == [(line["i"], line["lo"], line["hi"], line["d"]) for line in made]
    assert {event.kind for event in found} == {"stake", "unstake"} and {e.args[0] for e in found} == {chain.manager}


def test_a_fee_is_found_that_nobody_expects_and_one_that_cannot_be_is_refused(monkeypatch):
    """In a few tries; and by halving on a pool so deep that few units do not move it evenly."""
    tries, try_swap = [], calls._try_swap
    monkeypatch.setattr(calls, "_try_swap", lambda *call, **fee: tries.append(fee) or try_swap(*call, **fee))
    fees = 0, 1, 77, 3_141, 99_999, 500_000
    for liquidity, amount in ((10**18, 10**15), (10**30, 10**9), (10**9, 10**12)):
        for fee in fees:
            for amount_specified in (amount, -amount // 1000):
                pool = SlipstreamPool(fee, 10, 100_000, "nft", "gauge")
                pool.initialize(1 << 96)
                pool.mint("nft", -50_000, 50_000, liquidity)
                pool.mint("nft", -30, 30, liquidity)
                after = pool.copy()
                paid = after.swap(True, amount_specified, 4295128740)
                told = ("", *paid, after.sqrt_price_x96, after.liquidity, after.tick)
                event = Event(1, 0, 0, "swap", told)
                pool.set_fees(12_345, 100_000)
                assert find_call_and_fee(pool, event, (fee,))[1] in (12_345, fee)
                tries.clear()
                how, found = find_call_and_fee(pool, event)
                assert max(paid) < 10**7 or len(tries) < 12
                assert may_be_either(event._replace(args=(how, *told[1:])), (fee, found), pool)
                pool.set_fees(found, 100_000)
                apply_event(pool, event._replace(args=(how, *told[1:])))
                growth = pool.fee_growth_global0_x128, pool.gauge_fees0
                assert growth == (after.fee_growth_global0_x128, after.gauge_fees0), (liquidity, fee)
    with pytest.raises(ReplayError, match="by any call at any fee"):
        find_call_and_fee(after, event)


def test_of_several_fees_that_explain_a_swap_of_few_units_a_likely_one_is_taken():
    pool = SlipstreamPool(3000, 10, 100_000, "nft", "gauge")
    pool.initialize(1 << 96)
    pool.mint("nft", -1000, 1000, 10**9)
    after = pool.copy()
    told = ("", *after.swap(True, 1100, 4295128740), after.sqrt_price_x96, after.liquidity, after.tick)
    event = Event(1, 0, 0, "swap", told)
    pool.set_fees(500_000, 100_000)
    assert find_call_and_fee(pool, event, (7, 3000)) == ("in", 3000)
    assert find_call_and_fee(pool, event)[1] not in (3000, 500_000)


def made(path: Path, *blocks: list[tuple]) -> TracedChain:
    """A chain of these operations (name and arguments), as this project's own pool makes them."""
    header = json.loads(gzip.decompress(CALM.read_bytes()).splitlines()[0])
    owners, lines = header["owners"], [header]
    pool = SlipstreamPool(header["fee"], header["tickSpacing"], nft=owners[0], gauge=owners[1])
    pool.initialize(header["sqrtPriceX96"])
    for number, operations in enumerate(blocks, 1):
        for name, *arguments in operations:
            named = dict(zip(CALLS[name], arguments, strict=True))
            line = {"i": len(lines), "op": name, "t": header["t"] + 2 * number, **named}
            pool.timestamp = line["t"]
            done = getattr(pool, name)(*(owners[value] if key == "owner" else value for key, value in named.items()))
            line["ret"] = list(done or ())
            states = (re.sub("([A-Z])", r"_\1", key).lower() for key in header["sKeys"])
            lines.append(line | {"s": [getattr(pool, state, 0) for state in states]})
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, lines)).encode()))
    return TracedChain(path)


DOWN, UP = 4295128740, 1 << 159  # limits of a swap that has none
BEGIN = [("mint", 0, -50_000, 50_000, 10**18), ("stake", 10**17, -50_000, 50_000, True), ("set_fees", 500, 100_000)]


def test_a_fee_that_changed_and_changed_back_within_a_chunk_loses_no_block_and_nobody_is_blamed(tmp_path, caplog):
    blocks = [[("swap", number % 2 == 0, 10**15, UP if number % 2 else DOWN)] for number in range(150)]
    for number, fee in ((70, 300_000), (71, 100_000), (99, 0), (104, 100_000)):
        blocks[number].insert(0, ("set_fees", 500, fee))
    chain = made(tmp_path / "made.gz", BEGIN, *blocks)

    async def work():
        async with chain.node() as url, open_market(chain, tmp_path / "a.sqlite3", url) as market:
            return await read_all(market, chain), market._follower.gaps

    events, gaps = asyncio.run(work())
    told = [line["s"][chain._keys.index("unstakedFee")] for _, line in chain.operations() if line["op"] == "swap"]
    assert [event.args[7] for event in events if event.kind == "swap"] == told and len(set(told)) == 3
    assert not gaps and not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("turn", range(5))
def test_where_the_gauges_part_changed_is_found_though_other_places_contradict_the_events(turn):
    """What the gauge is paid between two swaps of one block shows that a place is wrong before the contract's state."""
    pool = SlipstreamPool(3000, 10, 100_000, A_MANAGER, A_GAUGE)
    pool.initialize(1 << 96)
    pool.mint(A_MANAGER, -1000, 1000, 10**18)
    pool.stake(10**17, -1000, 1000, True)
    walker, events = pool.copy(), []
    for number, kind in enumerate(("swap", "collect_fees", "swap", "collect_fees")):
        if number == turn:
            walker.set_fees(3000, 250_000)
        if kind == "swap":
            amounts = walker.swap(True, 10**15, DOWN)
            args = ("in", *amounts, walker.sqrt_price_x96, walker.liquidity, walker.tick, 3000, walker.unstaked_fee)
        else:
            args = walker.collect_fees()
        events.append(Event(7, number, 70, kind, args))
    walker.set_fees(3000, 250_000)
    state = State.of(walker)._replace(fee=3000, unstaked_fee=250_000)
    told = [e._replace(args=("", *e.args[1:6])) if e.kind == "swap" else e for e in events]
    found, done = follow_to(pool.copy(), told, state)
    assert done == events and State.of(found) == State.of(walker)
    with pytest.raises(Malformed, match="the logs and the contract differ"):
        follow_to(pool.copy(), told[1:], state)


@each_trace
def test_snapshots_are_the_bytecodes_pool_and_survive_json(path, tmp_path, caplog):
    chain = TracedChain(path)
    numbers = range(FIRST_BLOCK + 40, max(chain.blocks), 120)

    async def work():
        async with chain.node() as url, open_market(chain, tmp_path / "a.sqlite3", url) as market:
            found = []
            for chain.head in numbers:
                await read_all(market, chain)
                found.append(await market.snapshot(chain.vault, chain.head + 1))
            return found

    found = asyncio.run(work())
    for number, snapshot in zip(numbers, found, strict=True):
        pool = chain.blocks[number].pool
        keys = [(chain.vault, *range_) for range_ in sorted(chain.blocks[number].tokens)]
        expected = Snapshot.of(pool, keys, (0, 0), number + 1, 0, "", chain.vault)
        for name in ("ticks", "slipstream", "fee", "liquidity", "sqrt_price_x96", "fee_growth_global1_x128"):
            assert getattr(snapshot, name) == getattr(expected, name), name
        assert {p.key: p.liquidity for p in snapshot.vault} == {p.key: p.liquidity for p in expected.vault}
        assert (
            from_plain(Snapshot, json.loads(encode(snapshot)))
            == decode(Snapshot, encode(snapshot), 1 << 24)
            == snapshot
        )
        again = Snapshot.of(snapshot.open(), [p.key for p in snapshot.vault], (0, 0), number + 1, 0, "", chain.vault)
        assert replace(again, block_time=0, idle0=0) == replace(snapshot, block_time=0, block_hash="", idle0=0, idle1=0)
    assert sum(bool(snapshot.vault) for snapshot in found) > 1
    assert "are read again" not in caplog.text


def test_what_a_uniswap_snapshot_says_has_not_changed():
    """Old evidence has no word of Slipstream."""
    pool = SlipstreamPool(500, 10, 0, "nft", "gauge")
    pool.initialize(1 << 96)
    pool.mint("nft", -10, 10, 5)
    slipstream = to_plain(Snapshot.of(pool, [("nft", -10, 10)], (0, 0), 1, 0, ""))
    uniswap = to_plain(
        replace(
            from_plain(Snapshot, slipstream),
            slipstream=None,
            ticks=tuple(replace(tick, staked_liquidity_net=None) for tick in from_plain(Snapshot, slipstream).ticks),
        )
    )
    assert slipstream.keys() - uniswap.keys() == {"slipstream"}
    assert slipstream["ticks"][0].keys() - uniswap["ticks"][0].keys() == {"staked_liquidity_net"}
    assert "staked" not in json.dumps(uniswap)


# ---------------------------------------------------------------------------------------------------------------------
# Keep equals chain


def untouched(chain: TracedChain, index: int, least_blocks: int = 8) -> list[tuple[int, int, dict]]:
    """Stretches in which an owner does nothing: (first block, last block, the operation of its that ends it)."""
    stretches, last = [], None
    for block, line in chain.operations():
        if line.get("owner") == index and line["op"] in ("mint", "burn", "collect"):
            if last is not None and block.number - last > least_blocks:
                stretches.append((last + 1, block.number - 1, line))
            last = block.number
    return stretches


@each_trace
def test_keep_earns_to_the_wei_what_the_vaults_positions_really_earned(path, tmp_path):
    """While others stake, unstake and pay changing fees.

    What it earned is read off the trace: where its owner touches a position the bytecode shows what it is owed, and
    `TracedChain` has shown that the pool which settles the others is the bytecode's at that operation.
    """
    chain, earned_something = TracedChain(path), 0

    async def work():
        async with chain.node() as url, open_market(chain, tmp_path / "a.sqlite3", url) as market:
            await read_all(market, chain)
            found = []
            for first, last, _ in untouched(chain, 3, least_blocks=10):
                snapshot = await market.snapshot(chain.vault, first)
                if snapshot.vault:
                    game = Round(JobSettings(), snapshot)
                    game.feed(await market.events(first, last))
                    found.append((first, last, snapshot, game.keep(last + 1).outcome, game.tape))
            return found

    for first, last, snapshot, keep_, tape in asyncio.run(work()):
        ranges = [(position.tick_lower, position.tick_upper) for position in snapshot.vault]
        before, after = (
            [chain.earned(chain.blocks[number], range_) for range_ in ranges] for number in (first - 1, last)
        )
        chains = tuple(sum((b[n] - a[n]) & MASK_128 for a, b in zip(before, after, strict=True)) for n in (0, 1))
        if max(map(max, before + after)) < MASK_128 >> 1:  # what is owed wraps around in some traces
            assert (keep_.fees0, keep_.fees1) == chains, (first, last)
            earned_something += any(chains)
        assert tape.swaps == sum(
            line["op"] == "swap" for block, line in chain.operations() if first <= block.number <= last
        )
    assert earned_something


def test_the_bytecode_itself_shows_what_was_earned(followed):
    """What the test above compares with, where an operation after a stretch shows what its position is owed."""
    shown = 0
    for path in TRACES:
        chain, _ = followed(path)
        for _, last, line in untouched(chain, 3):
            if line["op"] in ("mint", "burn") and chain.blocks[last + 1].operations[0] is line:
                owed = chain.earned(chain.blocks[last], (line["lo"], line["hi"]))
                released = line["ret"] if line["op"] == "burn" else (0, 0)
                assert [(fees + amount) & MASK_128 for fees, amount in zip(owed, released, strict=True)] == line["p"][
                    3:
                ]
                shown += any(owed)
    assert shown > 5


def staked(chain: TracedChain, of: int = 1) -> TracedChain:
    """The same, but for the node, which says that the gauge holds one `of` so many of the vault's tokens."""
    for block in chain.blocks.values():
        block.staked = tuple(token for token in block.tokens.values() if not token % of)
    return chain


def test_a_staked_vault_is_scored_as_if_unstaked(tmp_path):
    """The same stretches, with a vault that is said to be staked: up to a unit of growth a leg what the other earns."""
    chain, compared = staked(TracedChain(BOUNDARY)), 0

    async def work():
        async with chain.node() as url, open_market(chain, tmp_path / "a.sqlite3", url) as market:
            await read_all(market, chain)
            found = []
            for first, last, _ in untouched(chain, 3):
                snapshot = await market.snapshot(chain.vault, first)
                if snapshot.vault:
                    found.append((first, last, snapshot, await market.events(first, last)))
            assert not await anvil.uncollected(market, chain.vault, chain.head)
            return found, market.label

    found, label = asyncio.run(work())
    assert "staked positions are scored as if unstaked, rewards are not" in label
    for first, last, snapshot, events in found:
        assert all(position.staked for position in snapshot.vault)
        assert not any(position.tokens_owed0 or position.tokens_owed1 for position in snapshot.vault)
        game = Round(JobSettings(), snapshot)
        game.feed(events)
        assert not any(run.exact for run in game.tape.runs if run.vault)
        outcome = game.keep(last + 1).outcome
        ranges = [(position.tick_lower, position.tick_upper) for position in snapshot.vault]
        growth = [
            chain.blocks[number].pool.fee_growth_inside(*range_) for number in (first - 1, last) for range_ in ranges
        ]
        for n, fees in enumerate((outcome.fees0, outcome.fees1)):
            real = sum(
                ((after[n] - before[n]) & MASK_256) * position.liquidity >> 128
                for position, before, after in zip(snapshot.vault, growth, growth[len(ranges) :], strict=False)
            )
            assert real * 0.999 - 2 * len(game.tape.blocks) <= fees <= real * 1.001 + 2 * len(game.tape.blocks)
            compared += fees > 1000
        assert game.tape.vault_holds()[1] == (0, 0)  # the gauge has the fees
    assert compared > 2


@pytest.mark.parametrize(("path", "of"), [(CALM, 2), (BOUNDARY, 1), (BOUNDARY, 2)], ids=["calm", "all", "some"])
def test_an_idle_manager_of_a_vault_with_staked_positions_scores_exactly_keep(path, of, tmp_path):
    """What is staked earns nothing, in *keep* neither; what is not earns to the wei the same in both."""
    chain = staked(TracedChain(path), of)

    async def work():
        async with chain.node() as url, open_market(chain, tmp_path / "a.sqlite3", url) as market:
            await read_all(market, chain)
            found = []
            for first, last, _ in untouched(chain, 3):
                snapshot, closing = [await market.snapshot(chain.vault, number) for number in (first, last + 1)]
                if any(position.staked for position in snapshot.vault):
                    events = tuple(await market.events(first, last))
                    found.append(LiveInputs(JobSettings(), snapshot, last + 1, events, "idler", (), closing))
            return found

    played = [(inputs.snapshot, play_live(inputs)) for inputs in asyncio.run(work())]
    played = [one for one in played if one[1].code is not Code.EMPTY_VAULT]  # what it holds is worth no unit
    assert all(result.code is Code.SCORED for _, result in played), {result.detail for _, result in played}
    for snapshot, result in played:
        (line,), keep_ = result.lines, result.baselines["keep"]
        assert line.outcome == keep_.outcome and line.score == keep_.score
        if all(position.staked for position in snapshot.vault):
            assert keep_.outcome.fees0 == keep_.outcome.fees1 == 0
    assert len(played) > 2
    assert (of == 1) != any(result.lines[0].outcome.fees0 for _, result in played)


@pytest.mark.parametrize("kind", ["stake", "unstake"])
def test_a_live_round_in_which_the_owner_stakes_or_unstakes_is_void_for_that_reason(kind):
    pool = SlipstreamPool(3000, 10, 100_000, "manager", "gauge")
    pool.initialize(1 << 96)
    for owner in ("crowd", "vault"):
        pool.mint(owner, -500, 500, 10**18)
    pool.stake(10**18, -500, 500, False)
    snapshot = Snapshot.of(pool, [("vault", -500, 500)], (0, 0), 1, 0, "", "vault")
    if kind == "unstake":
        inside = dict(zip(("fee_growth_inside0_last_x128", "fee_growth_inside1_last_x128"), (0, 0), strict=True))
        snapshot = replace(snapshot, vault=(replace(snapshot.vault[0], staked=True, **inside),))
    events = Event(5, 0, 5, kind, ("other", -500, 500, 9)), Event(7, 0, 7, kind, ("vault", -500, 500, 9))
    result = play_live(LiveInputs(JobSettings(), snapshot, 9, events, "a", ()))
    assert result.code is Code.LIVE_FOREIGN_TRANSFER
    assert result.detail == f"block 7: the vault's owner {kind}d liquidity 9 from -500 to 500"
    assert play_live(LiveInputs(JobSettings(), snapshot, 9, events[:1], "a", ())).code is Code.SCORED


def test_a_staked_position_is_shown_where_it_may_be_moved_in_thought_but_not_where_the_bot_would_refuse():
    pool = SlipstreamPool(3000, 10, 100_000, "manager", "gauge")
    pool.initialize(1 << 96)
    for lower in (-500, -600):
        pool.mint("vault", lower, 500, 10**18)
    snapshot = Snapshot.of(pool, [("vault", -500, 500), ("vault", -600, 500)], (5, 6), 1, 0, "", "vault")
    snapshot = replace(snapshot, vault=(replace(snapshot.vault[0], staked=True), snapshot.vault[1]))
    shown = {}
    for round_type in ("evaluation", "live"):
        moment = Moment(a_job(), A_PAIR, "r", round_type, 900, Block(0, 880, "0x"), Block(0, 880, "0x"))
        query = Round(JobSettings(), snapshot).query(moment)
        assert query.inventory_remaining == Inventory(5, 6)
        shown[query] = [position.tick_lower for position in query.current_positions]
    (evaluation, of_it), (live, of_that) = shown.items()
    assert (of_it, of_that) == ([-500, -600], [-600])
    parts = {"played": True, "live": True, "settings": JobSettings(), "snapshot": snapshot, "events": []}
    parts |= {"evidence": {"entrants": []}, "decisions": [], "executions": [], "row": {"code": "scored", "detail": ""}}
    for query, wrong in ((live, False), (replace(live, current_positions=evaluation.current_positions), True)):
        asks = [SimpleNamespace(query=query, first=False, hotkey="a", path="asks[0]")]
        assert bool(list(check_shown(SimpleNamespace(**parts, asks=asks)))) is wrong


def test_a_token_of_the_same_tokens_with_another_spacing_is_not_of_this_pool(tmp_path):
    """Two Slipstream pools of a pair differ by it, whatever their fees."""
    chain = TracedChain(BOUNDARY)
    chain.head = FIRST_BLOCK + 150
    told = chain._call_positions
    foreign, *own = chain._held(chain.blocks[chain.head])

    def positions(to: str, block, token: int) -> tuple:
        row = told(to, block, token)
        return (*row[:4], 1 if token == foreign else row[4], *row[5:])

    chain._call_positions = positions

    async def work():
        async with chain.node() as url, open_market(chain, tmp_path / "a.sqlite3", url) as market:
            await read_all(market, chain)
            return await anvil.uncollected(market, chain.vault, chain.head)

    assert list(asyncio.run(work())) == own


def test_a_vault_that_stakes_in_a_round_earns_until_then_and_from_where_it_takes_its_token_back():
    """What it really has; a book that keeps its position goes on earning as if it were unstaked."""
    pool = SlipstreamPool(3000, 10, 100_000, "manager", "gauge")
    pool.initialize(1 << 96)
    pool.mint("crowd", -1000, 1000, 10**18)
    pool.mint("manager", -500, 500, 10**18)
    snapshot = Snapshot.of(pool, [("manager", -500, 500)], (0, 0), 1, 0, "", "manager")
    walker, events, earned = pool.copy(), [], []

    def act(kind: str) -> None:
        number = len(events)
        if kind == "swap":
            amounts = walker.swap(number % 2 == 0, 10**15, 4295128740 if number % 2 == 0 else 1 << 159)
            after = walker.sqrt_price_x96, walker.liquidity, walker.tick, walker.fee, walker.unstaked_fee
            args = ("in", *amounts, *after)
        else:
            args = ("manager", -500, 500, 10**18)
            walker.stake(10**18 if kind == "stake" else -(10**18), -500, 500, True)
        events.append(Event(1 + number, 0, number, kind, args))

    for kind in ("swap", "swap", "stake", "swap", "swap", "unstake", "swap", "swap"):
        act(kind)
        state = walker.copy()
        if state.position("manager", -500, 500).liquidity:
            state.burn("manager", -500, 500, 0)
        earned.append(position_owed(state))
    games = []
    for until in range(len(events)):
        game = Round(JobSettings(), snapshot)
        game.feed(events[: until + 1])
        games.append(game)
    assert [game.tape.vault_holds()[1] for game in games[:2]] == earned[:2]
    assert games[-1].tape.vault_holds()[1] == tuple(
        end - back for end, back in zip(earned[-1], earned[5], strict=True)
    )  # before it staked, the gauge collected
    book = games[-1].keep(len(events) + 1).outcome
    assert book.fees0 > earned[-1][0] > 0 and not games[-1].tape.staked
    assert games[3].tape.staked == {("manager", -500, 500)}
    assert [run.exact for run in games[-1].tape.runs] == [True, False, True]


def position_owed(pool: SlipstreamPool) -> tuple[int, int]:
    state = pool.position("manager", -500, 500)
    return state.tokens_owed0, state.tokens_owed1


# ---------------------------------------------------------------------------------------------------------------------
# Evidence


class TracedMarket(InMemoryMarket):
    """A trace as a market that plays at full speed: its pool, and the events that were found in it.

    Blocks are `BLOCK_SECONDS` apart: the trace's own gaps of hours leave no time to ask.
    """

    BLOCK_SECONDS, FIRST_TIME = 10, 1_700_000_000

    def __init__(self, chain: TracedChain, events: list[Event]):
        self._chain, self._events = chain, [event._replace(time=self.time_of(event.block)) for event in events]
        tokens = Token("0x" + "8" * 40, "NIL", 18), Token("0x" + "9" * 40, "ONE", 18)
        pair, pool = Pair(8453, POOL, *tokens, 500, chain.spacing), chain.blocks[FIRST_BLOCK].pool
        super().__init__("a trace", pair, pool, FIRST_BLOCK + 1, "trace", last=max(chain.blocks))

    def time_of(self, number: int) -> int:
        return self.FIRST_TIME + self.BLOCK_SECONDS * number

    def number_at(self, time_seconds: int) -> int:
        number = max(self.first, -(-(time_seconds - self.FIRST_TIME) // self.BLOCK_SECONDS))
        if number > self.last:
            raise MarketEnded(f"time {time_seconds}")
        return number

    def _new_purse(self, vault: str):
        raise NotImplementedError

    def _grow(self, last: int) -> None:
        pass

    async def events(self, first: int, last: int) -> list[Event]:
        return [event for event in self._events if first <= event.block <= last]

    async def snapshot(self, vault: str, block: int) -> Snapshot:
        before = self._chain.blocks[block - 1]
        at, keys = await self.block(block), [(vault, *range_) for range_ in sorted(before.tokens)]
        return Snapshot.of(before.pool, keys, (0, 0), block, at.time, at.hash, vault)


def test_rounds_on_a_slipstream_pool_are_stored_sealed_and_audited(followed, tmp_path):
    """By a whole validator with miners; a falsehood in what only Slipstream has is found if a digit depends on it."""
    chain, events = followed(BOUNDARY)
    job = replace(a_job(round_seconds=600, checkpoint_blocks=15), vault=chain.vault)
    miners = {"keeper": keep, "mover": lambda query: [Position(-5000, 5000, *query.holdings())]}
    subnet = play_subnet(tmp_path, miners, [job], lambda: TracedMarket(chain, events), rounds=4)
    assert subnet.codes().count("scored") >= 2

    async def export():
        async with Store.open(subnet.path) as store:
            scored = [row for (row,) in subnet.rows("SELECT round_id FROM rounds WHERE code = 'scored'")]
            return [json.loads(canonical(await stored.evidence(store, round_id))) for round_id in scored]

    kinds = set()
    for evidence in asyncio.run(export()):
        assert audit(evidence) == []
        kinds |= {event[3] for event in evidence["events"]}
        for path, value in falsehoods(evidence):
            changed = copy.deepcopy(evidence)
            at = changed
            for key in path[:-1]:
                at = at[key]
            at[path[-1]] = value
            found = audit(seal(changed, KEY))
            assert found, path
    assert kinds >= {"swap", "mint", "burn", "stake", "unstake"}


def falsehoods(evidence: dict):
    """(path, value) that an audit must find even if the validator seals them."""
    slipstream, events = evidence["snapshot"]["slipstream"], evidence["events"]
    yield ("snapshot", "slipstream"), None
    yield ("snapshot", "slipstream", "gauge"), 5
    yield ("snapshot", "slipstream", "staked_liquidity"), str(int(slipstream["staked_liquidity"]) + 1)
    yield ("snapshot", "slipstream", "unstaked_fee"), 2_000_000
    yield ("snapshot", "ticks", 0, "staked_liquidity_net"), "x"
    for n, event in enumerate(events):
        if event[3] == "swap" and abs(int(event[4][1])) > 10**9 and abs(int(event[4][2])) > 10**9:
            yield ("events", n, 4, 6), str(int(event[4][6]) + 5000)
            yield ("events", n, 4, 6), "1000000"
            yield ("events", n, 4, 7), "-1"
            yield ("events", n, 4), event[4][:7]
            break


# ---------------------------------------------------------------------------------------------------------------------
# When nodes lie


def without(name: str, every: int = 1):
    """A node that leaves out logs of one kind."""
    topic = next(kind.topic for kind in (*POOL_LOGS, *CL_LOGS) if kind.name == name)

    def fault(method: str, result):
        if method != "eth_getLogs":
            return result
        return [log for n, log in enumerate(result) if log["topics"][0] != topic or n % every]

    return fault


FAULTS = {
    "leaves stakes out": without("Deposit"),
    "leaves unstakes out": without("Withdraw"),
    "leaves some stakes out": without("Deposit", every=3),
    "leaves out what the gauge collects": without("CollectFees"),
    "leaves swaps out": without("Swap", every=7),
    "leaves collects out": without("Collect"),
}


@pytest.mark.parametrize("fault_", FAULTS)
def test_with_one_honest_endpoint_no_stake_is_lost(followed, tmp_path, fault_, caplog):
    chain, events = followed(BOUNDARY)

    async def work():
        async with AsyncExitStack() as stack:
            liar, honest = [await stack.enter_async_context(chain.node(*fault)) for fault in ([FAULTS[fault_]], [])]
            market = await stack.enter_async_context(open_market(chain, tmp_path / "a.sqlite3", liar, honest))
            return await read_all(market, chain), market._follower.gaps, liar.split("/")[2]

    found, gaps, liar = asyncio.run(work())
    assert found == events and not gaps
    assert any(liar in record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)


@pytest.mark.parametrize("fault", ["leaves stakes out", "leaves unstakes out", "leaves out what the gauge collects"])
def test_a_single_endpoint_that_loses_stakes_leaves_gaps_that_are_named(tmp_path, fault):
    """Nothing wrong is told: what is told between the gaps makes the pool that the contract says it is."""
    chain = TracedChain(BOUNDARY)
    chain.head = FIRST_BLOCK + 200

    async def work():
        async with chain.node(FAULTS[fault]) as url, open_market(chain, tmp_path / "a.sqlite3", url) as market:
            await read_all(market, chain)
            gaps = market._follower.gaps
            with pytest.raises(MarketError, match="could not be had"):
                await market.events(FIRST_BLOCK + 1, chain.head)
            return gaps

    gaps = asyncio.run(work())
    assert gaps and all("differ" in reason or "collect_fees" in reason or "burn" in reason for _, _, reason in gaps)


def test_a_stake_out_of_range_that_a_single_endpoint_loses_is_found_when_ticks_are_compared(tmp_path, caplog):
    chain = TracedChain(BOUNDARY)
    for block, line in chain.operations():
        if line["op"] == "stake" and line["upd"] and not line["lo"] <= block.pool.tick < line["hi"]:
            number = block.number
            break
    chain.head = number - 1
    lost = {"on": True}

    def fault(method: str, result):
        return without("Deposit")(method, result) if lost["on"] else result

    async def work():
        async with (
            chain.node(fault) as url,
            open_market(chain, tmp_path / "a.sqlite3", url, first=number - 1) as market,
        ):
            chain.head = number
            await read_all(market, chain)
            before = await market.events(number, number)
            lost["on"] = False
            await market.snapshot(chain.vault, number + 1)
            await read_all(market, chain)
            return before, await market.events(number, number)

    before, after = asyncio.run(work())
    assert "stake" not in {event.kind for event in before} and "stake" in {event.kind for event in after}
    assert "are read again" in caplog.text


def test_a_tick_whose_stake_does_not_fit_the_pools_is_not_believed(tmp_path):
    chain = TracedChain(BOUNDARY)
    chain.head = FIRST_BLOCK + 150
    lies = {"on": False}

    def fault(method: str, result):
        is_tick = method == "eth_call" and len(result) == 2 + 10 * 64
        return result[:130] + f"{7:064x}" + result[194:] if lies["on"] and is_tick else result

    async def work():
        async with chain.node(fault) as url, open_market(chain, tmp_path / "a.sqlite3", url, total_seconds=2) as market:
            await read_all(market, chain)
            lies["on"] = True
            with pytest.raises(MarketError, match="staked in range"):
                await market.snapshot(chain.vault, chain.head + 1)

    asyncio.run(work())


def test_events_are_the_same_however_often_the_file_is_opened_and_however_the_blocks_are_cut(followed, tmp_path):
    """But for the fee of swaps that several fees explain."""
    chain, events = followed(CALM)
    fresh, found = TracedChain(CALM), []

    async def work(head: int):
        fresh.head = head
        async with fresh.node() as url, open_market(fresh, tmp_path / "a.sqlite3", url) as market:
            return await read_all(market, fresh)

    for head in (*range(FIRST_BLOCK + 1, max(chain.blocks), 37), max(chain.blocks)):
        found = asyncio.run(work(head))
    assert [event[:4] for event in found] == [event[:4] for event in events]
    agree(start_of(chain), found, events)


def agree(pool: SlipstreamPool, found: Sequence[Event], events: Sequence[Event]) -> None:
    """They are the same but for a few fees that cannot be told apart; the pool is the one before them."""
    for one, other in zip(found, events, strict=True):
        if one != other:
            assert one.kind == "swap" and one.args[1:6] == other.args[1:6] and one.args[7] == other.args[7]
            assert may_be_either(other, (one.args[6], other.args[6]), pool)
        apply_event(pool, other, ())
    assert sum(one != other for one, other in zip(found, events, strict=True)) < 20


def test_an_audit_on_the_chain_agrees_and_names_a_stake_and_an_unstaked_fee_that_are_false(followed, tmp_path):
    chain, _ = followed(BOUNDARY)
    opening, close = FIRST_BLOCK + 100, FIRST_BLOCK + 140

    async def work():
        async with chain.node() as url:
            async with open_market(chain, tmp_path / "a.sqlite3", url) as market:
                await read_all(market, chain)
                snapshot = await market.snapshot(chain.vault, opening)
                told = await market.events(opening, close - 1)
            evidence = {
                "pool": POOL,
                "round": {"opening_hash": snapshot.block_hash, "close_block": str(close), "round_type": "evaluation"},
                "snapshot": to_plain(snapshot),
                "events": [[*map(str, e[:3]), e.kind, [*map(str, e.args)]] for e in told],
                "asks": [],
                "executions": [],
            }
            honest, found = await audit_chain(evidence, [url]), []
            stake = next(n for n, event in enumerate(told) if event.kind in ("stake", "unstake"))
            swap = next(n for n, event in enumerate(told) if event.kind == "swap")
            for path, value in (
                (("snapshot", "slipstream", "staked_liquidity"), "7"),
                (("snapshot", "slipstream", "unstaked_fee"), 7),
                (("snapshot", "ticks", 0, "staked_liquidity_net"), "7"),
                (("events", stake, 4, 3), "7"),
                (("events", swap, 4, 7), "7"),
            ):
                changed = copy.deepcopy(evidence)
                at = changed
                for key in path[:-1]:
                    at = at[key]
                at[path[-1]] = value
                found.append((path, await audit_chain(changed, [url])))
            return honest, found

    honest, found = asyncio.run(work())
    assert honest == []
    for path, wrong in found:
        assert len(wrong) == 1 and wrong[0].startswith(path[0] if path[0] == "events" else f"{path[0]}.{path[1]}"), path


# ---------------------------------------------------------------------------------------------------------------------
# Logs and descriptions


A_MANAGER, A_GAUGE, SOMEBODY = ("0x" + digit * 40 for digit in "ace")
A_PAIR = Pair(8453, POOL, Token("0x" + "8" * 40, "NIL", 18), Token("0x" + "9" * 40, "ONE", 18), 500, 10)
NOT_NAMED = Named({}, {}, {}, [])
A_CONTRACT = Contract(A_PAIR, A_MANAGER, A_GAUGE)


def logs_of(*told: tuple) -> list[Log]:
    """Of one transaction, in order: (contract, name, values)."""
    return [Log(7, n, "0x", "0x1", contract, name, values) for n, (contract, name, values) in enumerate(told)]


def test_a_token_is_unstaked_before_its_receiver_is_called_who_may_trade_first():
    """The gauge's log comes last; what the pool did meanwhile was done with the stake gone."""
    swap = POOL, "Swap", (SOMEBODY, SOMEBODY, 5, -4, 1 << 96, 10, 0)
    logs = logs_of(
        (POOL, "Burn", (A_GAUGE, -10, 10, 0, 0, 0)),
        (POOL, "Collect", (A_GAUGE, -10, 10, SOMEBODY, 0, 0)),
        swap,
        (POOL, "Collect", (SOMEBODY, -90, 90, SOMEBODY, 1, 1)),
        (A_GAUGE, "Withdraw", (SOMEBODY, 3, 1000)),
    )
    events, _ = to_events(logs, A_CONTRACT, {7: 70}, NOT_NAMED, {})
    assert [(event.log_index, event.kind) for event in events] == [
        (0, "burn"),
        (1, "unstake"),
        (2, "swap"),
        (3, "collect"),
    ]
    assert events[1].args == (A_MANAGER, -10, 10, 1000)


def test_stakes_are_of_the_token_whose_collect_the_gauge_made_just_before():
    logs = logs_of(
        (POOL, "Collect", (A_MANAGER, -10, 10, SOMEBODY, 3, 4)),
        (A_GAUGE, "Deposit", (SOMEBODY, 3, 1000)),
        (POOL, "Collect", (A_MANAGER, -20, 20, SOMEBODY, 0, 0)),
        (A_GAUGE, "Deposit", (SOMEBODY, 4, 2000)),
        (POOL, "Collect", (A_GAUGE, -10, 10, SOMEBODY, 0, 0)),
        (A_GAUGE, "Withdraw", (SOMEBODY, 3, 0)),
        (POOL, "CollectFees", (A_GAUGE, 8, 9)),
    )
    events, _ = to_events(logs, A_CONTRACT, {7: 70}, NOT_NAMED._replace(owners={(7, 3): "vault"}), {})
    assert [(event.kind, *event.args) for event in events] == [
        ("collect", A_MANAGER, -10, 10, 3, 4),
        ("stake", A_MANAGER, -10, 10, 1000),
        ("stake", "vault", -20, 20, 2000),
        ("collect_fees", 8, 9),
    ]
    with pytest.raises(Malformed, match="Withdraw without the collect before it"):
        to_events(logs_of(logs[0][4:7], (A_GAUGE, "Withdraw", (SOMEBODY, 3, 1))), A_CONTRACT, {7: 70}, NOT_NAMED, {})


def test_a_vaults_token_keeps_its_name_while_the_gauge_has_it():
    """Each transaction as the contracts log it, as far as it is asked for; the token goes to the gauge and back."""
    vault, tokens = "0x" + "d" * 40, {3: NamedToken("0x" + "d" * 40, -10, 10)}
    deposit = logs_of(
        (POOL, "Burn", (A_MANAGER, -10, 10, 0, 0, 0)),
        (POOL, "Collect", (A_MANAGER, -10, 10, vault, 5, 6)),
        (A_MANAGER, "Collect", (3, vault, 5, 6)),
        (A_MANAGER, "Transfer", (vault, A_GAUGE, 3)),
        (A_GAUGE, "Deposit", (vault, 3, 1000)),
    )
    withdraw = logs_of(
        (POOL, "Burn", (A_GAUGE, -10, 10, 0, 0, 0)),
        (POOL, "Collect", (A_GAUGE, -10, 10, A_GAUGE, 0, 0)),
        (A_MANAGER, "Collect", (3, A_GAUGE, 0, 0)),
        (A_MANAGER, "Transfer", (A_GAUGE, vault, 3)),
        (A_GAUGE, "Withdraw", (vault, 3, 1000)),
    )
    for logs, kind, first in ((deposit, "stake", vault), (withdraw, "unstake", A_GAUGE), (deposit, "stake", vault)):
        named = name_tokens(logs, A_CONTRACT, {vault}, tokens)
        events, _ = to_events([one for one in logs if one.address != A_MANAGER], A_CONTRACT, {7: 70}, named, {})
        assert (events[0].kind, events[0].args[0]) == ("burn", first) and not named.rows
        assert (events[-1].kind, events[-1].args) == (kind, (vault, -10, 10, 1000))
    assert tokens == {3: NamedToken(vault, -10, 10)}


def test_what_somebody_gives_to_the_gauge_is_not_staked():
    """Anybody may mint for any owner; what the gauge mints itself comes through the position manager."""
    logs = logs_of(
        (POOL, "Mint", (A_GAUGE, -10, 10, SOMEBODY, 50, 1, 1)),
        (POOL, "Mint", (A_GAUGE, -10, 10, A_MANAGER, 50, 1, 1)),
    )
    events, _ = to_events(logs, A_CONTRACT, {7: 70}, NOT_NAMED, {})
    pool = SlipstreamPool(500, 10, 0, A_MANAGER, A_GAUGE)
    pool.initialize(1 << 96)
    for event, staked_ in zip(events, (0, 50), strict=True):
        apply_event(pool, event, ())
        assert pool.staked_liquidity == staked_


def test_what_is_no_slipstream_pool_or_cannot_be_followed_is_refused_in_one_line(tmp_path):
    chain = TracedChain(CALM)

    async def refused(change) -> str:
        chain._of_pool = lambda function, pool: change(function.name, TracedChain._of_pool(chain, function, pool))
        async with chain.node() as url:
            with pytest.raises(MarketError) as error:
                async with open_market(chain, tmp_path / "a.sqlite3", url):
                    pass
            return str(error.value)

    no_gauge = asyncio.run(refused(lambda name, found: ("0x" + "0" * 40,) if name == "gauge" else found))
    nameless = asyncio.run(refused(lambda name, found: None if name == "stakedLiquidity" else found))
    assert "no gauge yet" in no_gauge and "does not answer as a Slipstream pool" in nameless
    assert "\n" not in no_gauge + nameless


def test_the_doctor_and_the_bots_status_say_that_it_is_slipstream_and_what_is_staked(tmp_path):
    chain = staked(TracedChain(CALM), 2)
    chain.head = FIRST_BLOCK + 150
    held = chain.blocks[chain.head].tokens.values()
    of_gauge, free = [token for token in held if not token % 2], [token for token in held if token % 2]
    assert of_gauge and free

    async def work():
        async with chain.node() as url:
            found = await check_pool([url], POOL, None, chain.vault, executes=False)
            command = ["status", "--rpc", url, "--pool", POOL, "--vault", chain.vault, "--dir", str(tmp_path)]
            options = parse_options(executor_command.build_parser(), command)
            async with executor_command.opened(options, live=False, alone=False) as bot:
                return [finding.what for finding in found], await executor_command.status_lines(bot)

    said, lines = asyncio.run(work())
    kind = f"Slipstream, gauge {chain.gauge}, nft {chain.manager}"
    assert any(POOL in what and kind in what for what in said) and any(POOL in line and kind in line for line in lines)
    assert any(f"staked in the gauge: {', '.join(map(str, of_gauge))}" in what for what in said)
    shown = {int(line.split()[1][:-1]): "staked in the gauge" in line for line in lines if line.startswith("  token")}
    assert shown == {token: token in of_gauge for token in held}


def test_a_position_manager_that_is_not_the_slipstream_pools_own_is_refused(tmp_path):
    chain = TracedChain(CALM)

    async def opened(manager: str) -> str:
        async with chain.node() as url, open_market(chain, tmp_path / "a.sqlite3", url, manager=manager) as market:
            return market.contract.manager

    assert asyncio.run(opened(chain.manager.upper().replace("X", "x"))) == chain.manager
    with pytest.raises(MarketError, match=f"position manager {SOMEBODY}: the pool's own is {chain.manager}"):
        asyncio.run(opened(SOMEBODY))


# ---------------------------------------------------------------------------------------------------------------------
# Recordings


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """By trace: the chain, its blocks 10 s apart, and where the command has recorded it, from its middle to its end."""
    found = {}

    def made_of(path: Path) -> tuple[TracedChain, Path]:
        if path not in found:
            chain, folder = TracedChain(path), tmp_path_factory.mktemp("recorded")
            for number, block in chain.blocks.items():
                block.time = 1_700_000_000 + 10 * number

            async def work():
                async with chain.node() as url:
                    command = ["record", "--rpc", url, "--pool", POOL, "--confirmations", "0", "--name", "x"]
                    command += ["--from", str(FIRST_BLOCK + 80), "--to", str(chain.head), "--out", str(folder)]
                    return await record(evm_parser().parse_args(command))

            assert asyncio.run(work()) == 0
            found[path] = chain, folder / "x"
        return found[path]

    return made_of


@pytest.mark.parametrize("path", [CALM, TRACES[2], BOUNDARY], ids=["32", "35", "38"])
def test_a_slipstream_market_is_recorded_and_replayed_to_the_bytecodes_state(recorded, path, capsys):
    chain, stem = recorded(path)
    recording, end = read_recording(stem), chain.blocks[chain.head].pool
    pool = replay(recording)
    assert [getattr(pool, name) for name in HELD] == [getattr(end, name) for name in HELD]
    assert len(recording.final) == len(HELD) and markets_command(["replay", str(stem)]) == 0
    assert pool.ticks.keys() == end.ticks.keys()
    for index, mark in pool.ticks.items():
        for name in ("liquidity_gross", "liquidity_net", "staked_liquidity_net", "fee_growth_outside1_x128"):
            assert getattr(mark, name) == getattr(end.ticks[index], name)
    held = Counter()
    for (owner, *range_), state in end.positions.items():
        held[chain.manager if owner == chain.vault else owner, *range_] += state.liquidity
    assert {key: state.liquidity for key, state in pool.positions.items()} == {key: held[key] for key in pool.positions}
    kinds = {event.kind: len(event.args) for event in recording.events}
    lengths = {"swap": 8, "flash": 5, "mint": 6, "burn": 6, "stake": 4, "unstake": 4, "collect_fees": 2}
    assert kinds == lengths or kinds | {"flash": 5} == lengths
    known = recording.snapshot.slipstream
    assert (known.manager, known.gauge) == (chain.manager, chain.gauge)
    capsys.readouterr()


def stripped(stem: Path, folder: Path, length: int, events: int | None = None) -> Path:
    """The same recording, its swaps with so many values and without their calls; of its events the first."""
    recording = read_recording(stem)
    told = [
        event._replace(args=("", *event.args[1:length])) if event.kind == "swap" else event
        for event in recording.events[:events]
    ]
    description = json.loads(Path(f"{stem}.json").read_text())
    if events:
        del description["final"]
    folder.mkdir()
    write_recording(folder / "x", json.dumps(description).encode(), told)
    return folder / "x"


def test_calls_and_fees_that_a_recording_lacks_are_found_by_import(recorded, tmp_path, capsys):
    """With the fees told every call is the recorded one; without them both are, while the gauge's part is the same."""
    _, stem = recorded(CALM)
    recording = read_recording(stem)
    assert markets_command(["import", str(stripped(stem, tmp_path / "calls", 8)), "--out", str(tmp_path)]) == 0
    assert read_recording(tmp_path / "x").events == recording.events
    part = recording.snapshot.slipstream.unstaked_fee
    other = next(n for n, event in enumerate(recording.events) if event.kind == "swap" and event.args[7] != part)
    assert other > 30
    less = stripped(stem, tmp_path / "both", 6, other)
    assert markets_command(["replay", str(less)]) == 0
    assert markets_command(["import", str(less), "--out", str(tmp_path)]) == 0
    agree(recording.snapshot.open(), read_recording(tmp_path / "x").events, recording.events[:other])
    with pytest.raises(MarketError, match="the call of this swap is not known"):
        RecordedMarket(read_recording(less))
    assert "found now" in capsys.readouterr().out


@pytest.mark.parametrize("path", [CALM, BOUNDARY], ids=["32", "38"])
def test_a_backtest_of_a_recording_gives_what_the_bytecode_paid_to_the_last_digit(recorded, path):
    """In every round in which nobody touches the position, to whoever is its owner: the position manager too."""
    chain, stem = recorded(path)
    recording, compared, at_all = read_recording(stem), 0, 0
    moves = ("mint", "burn", "stake", "unstake")
    for owner, *range_ in sorted({event.args[:3] for event in recording.events if event.kind in moves})[::3]:
        if owner == chain.gauge or (owner == chain.manager and tuple(range_) in chain.blocks[chain.head].tokens):
            continue
        touched = [
            block.number
            for block, line in chain.operations()
            if [line.get("lo"), line.get("hi")] == range_
            and (line["op"] == "stake" or ("owner" in line and chain.owners[line["owner"]] == owner))
        ]
        market = RecordedMarket(recording, f"{owner}:{range_[0]}:{range_[1]}")
        job = Job("pol", market.vault, 120, JobSettings())
        for played in asyncio.run(backtest(market, job, {}, 0, market.time_of(market.last))):
            assert played.result.code in (Code.NOBODY_RANKED, Code.EMPTY_VAULT), played.result
            opening, close = (market.number_at(played.start + seconds) for seconds in (0, 120))
            settled = any(recording.start_block <= number < opening for number in touched)
            if played.result.baselines and settled and not any(opening <= number < close for number in touched):
                keep_ = played.result.baselines["keep"].outcome
                before, after = (owed_to(chain.blocks[number - 1].pool, owner, *range_) for number in (opening, close))
                assert (keep_.fees0, keep_.fees1) == tuple(b - a & MASK_128 for a, b in zip(before, after, strict=True))
                compared, at_all = compared + 1, at_all + bool(keep_.fees0 or keep_.fees1)
    assert compared > 100 and at_all > 20, (compared, at_all)


def owed_to(pool: SlipstreamPool, *key) -> tuple[int, int]:
    """What a position is owed once its fees are settled."""
    pool = pool.copy()
    if pool.position(*key).liquidity:
        pool.burn(*key, 0)
    state = pool.position(*key)
    return state.tokens_owed0, state.tokens_owed1


def test_a_recording_is_a_market_whose_vault_is_what_the_position_manager_has_in_a_range_and_never_the_gauges(recorded):
    """What others of its tokens stake leaves the vault of a round, which goes on and agrees with the next snapshot."""
    chain, stem = recorded(BOUNDARY)
    recording = read_recording(stem)
    stakes = [event for event in recording.events if event.kind in ("stake", "unstake")]
    with pytest.raises(MarketError, match="shows no such position"):
        RecordedMarket(recording, "{}:{}:{}".format(chain.gauge, *stakes[0].args[1:3]))
    moved = 0
    for key in sorted({event.args[:3] for event in stakes}):
        market = RecordedMarket(recording, "{}:{}:{}".format(*key), head=recording.events[-1].block)

        async def work(market=market, key=key) -> int:
            moved = 0
            for event in [event for event in stakes if event.args[:3] == key]:
                snapshot, after = [await market.snapshot(market.vault, event.block + by) for by in (0, 1)]
                if snapshot.vault:
                    tape = Tape(snapshot)
                    tape.feed(await market.events(event.block, event.block))
                    expected = [(p.liquidity, p.fee_growth_inside0_last_x128, p.tokens_owed1) for p in after.vault]
                    state = tape.pool.position(*key)
                    found = state.liquidity, state.fee_growth_inside0_last_x128, state.tokens_owed1
                    assert not state.liquidity if not after.vault else [found] == expected
                    assert tape.vault_keys == {key} and not tape.staked
                    moved += 1
            return moved

        moved += asyncio.run(work())
    assert moved > 10


def test_a_miner_backtests_on_a_recording_of_slipstream(recorded, capsys):
    chain, stem = recorded(CALM)
    recording = read_recording(stem)
    own = [position for position in recording.positions if position[0] != chain.gauge]
    vault = "{}:{}:{}".format(*max(own, key=lambda position: position[3]))
    command = ["--backtest", "1700001800", "1700003600", "--events", str(stem), "--vault", vault]
    assert miner.main([*command, "--round-seconds", "600"]) == 0
    assert "BACKTEST of strategy" in (said := capsys.readouterr().out) and vault in said


@pytest.mark.parametrize(
    "change",
    [
        {"slipstream": None},
        {"slipstream": {}},
        {"fee": 1_000_000},
        {"tick": 7},
        {"liquidity": "1"},
        {"ticks": []},
        {"vault": 5},
        {"block": "x"},
    ],
    ids=str,
)
def test_a_snapshot_that_is_of_no_pool_is_refused_in_one_line(recorded, tmp_path, capsys, change):
    _, stem = recorded(CALM)
    description = json.loads(Path(f"{stem}.json").read_text())
    description["snapshot"] |= change
    write_recording(tmp_path / "x", json.dumps(description).encode(), read_recording(stem).events)
    assert markets_command(["replay", str(tmp_path / "x")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("recording x") and said.count("\n") == 1
