"""A pool on a chain: what the contracts did, against what the market says of it.

The chain is anvil on the loopback interface with Uniswap's own contracts (`anvil.py`); between it and the market
stands, where a test wants it, a node that lies, breaks off or answers late.
"""

from __future__ import annotations

import asyncio
import copy
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import replace
from functools import partial
from random import Random
from types import SimpleNamespace
from typing import Any

import aiohttp
import anvil
import pytest
from aiohttp import web

import validator
from evm import market as market_module
from evm import pool as pool_module
from evm import rpc as rpc_module
from evm.abi import Function, Log, Malformed, read_header, read_logs
from evm.audit import audit_chain
from evm.events import NamedToken, name_tokens, to_events
from evm.market import Web3Market
from evm.pool import TOKEN_OF_OWNER, Contract, read_pool
from liquidity.events import Event
from liquidity.executions import Execution, Sent
from liquidity.live import LiveInputs, gifts_of, play_live, sums_of, words_of
from liquidity.replay import Snapshot, apply_event
from liquidity.rounds import Round
from markets.base import MarketError
from markets.recordings import RecordedMarket, read_recording, replay
from protocol import Code, JobSettings, Pair, Token
from scoring import RULES_VERSION
from sim import Pool, amounts_of, sqrt_ratio_at_tick
from wire.codec import canonical, to_json, to_plain

pytestmark = pytest.mark.costly("a market on anvil", fixture="chain")

ETHER = 10**18


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Failing endpoints rest for hundredths of seconds."""
    monkeypatch.setattr(rpc_module, "FIRST_REST_SECONDS", 0.01)
    monkeypatch.setattr(rpc_module, "MAX_REST_SECONDS", 0.1)


@pytest.fixture
def chain(missing):
    if anvil.missing():
        missing(anvil.missing())
    with anvil.Chain() as chain:
        yield chain


class World:
    """A pool with a vault and others in it, and a seed's worth of trading."""

    def __init__(self, chain: anvil.Chain, seed: int, **terms):
        self.chain, self.rng = chain, Random(seed)
        self.uniswap = anvil.Uniswap(chain, **terms)
        self.vault, self.other = chain.accounts[1:3]
        spacing = self.uniswap.spacing
        self.uniswap.mint_direct(-200 * spacing, 200 * spacing, 10 * ETHER)
        for half_width in (3, 8, 20):
            self.uniswap.mint(self.other, -half_width * spacing, half_width * spacing, ETHER // 50, ETHER // 50)
        self.uniswap.mint(self.vault, -5 * spacing, 4 * spacing, ETHER // 10, ETHER // 10)
        self.uniswap.mint(self.vault, 2 * spacing, 6 * spacing, ETHER // 10, ETHER // 10)
        self.chain.mine()

    def trade(self, blocks: int, vault_moves: bool = False) -> None:
        """A few calls in each block; the contracts refuse some."""
        rng, uniswap, spacing = self.rng, self.uniswap, self.uniswap.spacing
        for _ in range(blocks):
            [price, *_] = self.chain.call(uniswap.address, Function("slot0()", "uint160"))
            for _ in range(rng.randint(0, 5)):
                kind, amount = rng.random(), int(10 ** rng.uniform(3, 17.6))
                lower = rng.randint(-12, 10) * spacing
                upper = lower + rng.randint(1, 12) * spacing
                if kind < 0.45:
                    uniswap.swap(rng.random() < 0.3 + 0.4 * (price > anvil.Q96), amount * rng.choice([1, 1, -1]))
                elif kind < 0.6:
                    down = rng.random() < 0.2 + 0.6 * (price > anvil.Q96)
                    uniswap.swap(down, ETHER, price * (10_000 - (1 if down else -1) * rng.randint(1, 90)) // 10_000)
                elif kind < 0.68:
                    uniswap.flash(amount, rng.choice([0, amount]), *rng.choice([(0, 0), (3, 1)]))
                elif kind < 0.76:
                    uniswap.mint_direct(lower, upper, amount)
                elif kind < 0.8:
                    uniswap.burn_direct(-200 * spacing, 200 * spacing, rng.choice([0, amount]))
                    uniswap.collect_direct(-200 * spacing, 200 * spacing)
                elif kind < 0.86:
                    uniswap.mint(self.other, lower, upper, amount, amount)
                elif kind < 0.92:
                    token_id = rng.randint(1, 3)
                    uniswap.decrease(self.other, token_id, amount // 100)
                    uniswap.collect(self.other, token_id, *rng.choice([(), (amount // 200, 0)]))
                elif kind < 0.96:
                    uniswap.set_fee_protocol(*rng.choice([(0, 0), (4, 10), (0, 7), (5, 0)]))
                else:
                    uniswap.collect_protocol(rng.choice([amount, 1 << 127]))
                if vault_moves and rng.random() < 0.3:
                    self._move_vault(lower, upper, amount)
            self.chain.mine(rng.choice([1, 1, 3]))

    def _move_vault(self, lower: int, upper: int, amount: int) -> None:
        uniswap, token_id = self.uniswap, self.rng.choice([4, 5])
        move = self.rng.randrange(4)
        if move == 0:
            uniswap.increase(self.vault, token_id, amount, amount)
        elif move == 1:
            uniswap.decrease(self.vault, token_id, amount // 10)
        elif move == 2:
            uniswap.collect(self.vault, token_id, *self.rng.choice([(), (amount // 1000, 5)]))
        else:
            uniswap.mint(self.vault, lower, upper, amount // 100, amount // 100)

    def balance(self, holder: str, token: str) -> int:
        return self.chain.call(token, Function("balanceOf(address)", "uint256"), holder)[0]

    def everything(self, end: Snapshot) -> list[int]:
        """The vault's tokens now, without uncollected fees: its balances, and what the contract would release."""
        total = [self.balance(self.vault, token) for token in (self.uniswap.token0, self.uniswap.token1)]
        for position in end.vault:
            bounds = sqrt_ratio_at_tick(position.tick_lower), sqrt_ratio_at_tick(position.tick_upper)
            for n, amount in enumerate(amounts_of(position.liquidity, end.sqrt_price_x96, *bounds, round_up=False)):
                total[n] += amount
        return total

    @asynccontextmanager
    async def market(self, path, urls=(), **options) -> AsyncIterator[Web3Market]:
        options = {"confirmations": 0, "following": False, "vaults": [self.vault]} | options
        async with Web3Market.open(
            urls or [self.chain.url], self.uniswap.address, path, manager=self.uniswap.manager, **options
        ) as market:
            yield market

    async def truth(self, path, first: int) -> list[Event]:
        """All events from the block after `first` on, read without disturbance."""
        async with self.market(path, first=first) as market:
            await market.catch_up()
            return await market.events(first + 1, (await market.head()).number)


@pytest.fixture
def world(chain) -> World:
    return World(chain, seed=1)


# ---------------------------------------------------------------------------------------------------------------------
# What is read


def test_a_snapshot_is_the_pool_that_the_events_from_its_first_block_make(world, tmp_path):
    """Independent of how ticks are read: a pool of our own that goes through everything since `initialize`."""
    world.trade(25)

    async def work():
        async with world.market(tmp_path / "a.sqlite3", first=world.uniswap.born, vaults=[]) as market:
            await market.catch_up()
            head = await market.head()
            return await market.events(market.first + 1, head.number), await market.snapshot(
                world.vault, head.number + 1
            )

    events, snapshot = asyncio.run(work())
    pool = Pool(world.uniswap.fee, world.uniswap.spacing)
    pool.initialize(anvil.Q96)
    for event in events:
        apply_event(pool, event, ())
    again = Snapshot.of(pool, (), (0, 0), snapshot.block, snapshot.block_time, snapshot.block_hash)
    assert again.ticks == snapshot.ticks and len(again.ticks) > 8
    assert pool.fee_growth_global0_x128 == snapshot.fee_growth_global0_x128 > 0
    assert (pool.sqrt_price_x96, pool.tick) == (snapshot.sqrt_price_x96, snapshot.tick)
    assert {event.kind for event in events} >= {"swap", "mint", "burn", "collect", "flash", "set_fee_protocol"}
    assert {event.args[0] for event in events if event.kind == "swap"} == {"in", "out", "limit"}


@pytest.mark.parametrize("seed", range(4))
def test_keep_earns_to_the_wei_what_the_vaults_positions_really_earned(chain, tmp_path, seed):
    """Through tick crossings, flashes and protocol fees, while others mint and burn; and so do the tokens in them."""
    world = World(chain, seed, fee=[500, 3000][seed % 2], tick_spacing=[10, 60][seed % 2])
    world.trade(8)

    async def work():
        async with world.market(tmp_path / "a.sqlite3") as market:
            opening = (await market.head()).number + 1
            snapshot = await market.snapshot(world.vault, opening)
            before = await anvil.uncollected(market, world.vault, opening - 1)
            world.trade(30)
            await market.catch_up()
            close = (await market.head()).number + 1
            game = Round(JobSettings(), snapshot)
            game.feed(await market.events(opening, close - 1))
            after = await anvil.uncollected(market, world.vault, close - 1)
            end = await market.snapshot(world.vault, close)
            return snapshot, game.keep(close).outcome, before, after, end, game

    snapshot, keep, before, after, end, game = asyncio.run(work())
    assert len(snapshot.vault) == 2 and after.keys() == before.keys() == {4, 5}
    earned = tuple(sum(fees[n] for fees in after.values()) - sum(fees[n] for fees in before.values()) for n in (0, 1))
    assert (keep.fees0, keep.fees1) == earned and all(earned)
    tokens = [end.idle0, end.idle1]
    for position in end.vault:  # what the contract would release
        bounds = sqrt_ratio_at_tick(position.tick_lower), sqrt_ratio_at_tick(position.tick_upper)
        for n, amount in enumerate(amounts_of(position.liquidity, end.sqrt_price_x96, *bounds, round_up=False)):
            tokens[n] += amount
    opening_fees = [sum(fees[n] for fees in before.values()) for n in (0, 1)]
    assert [keep.final0 - opening_fees[0], keep.final1 - opening_fees[1]] == tokens
    assert len(game.tape.runs) > 5 and len({run.vault for run in game.tape.runs}) > 1


@pytest.mark.parametrize("seed", range(4))
def test_what_the_vault_does_itself_is_followed_token_by_token(chain, tmp_path, seed):
    """Increases, decreases, collects and new positions, some of them later than the release, some only in part."""
    world = World(chain, seed + 20)
    world.trade(8, vault_moves=True)

    async def work():
        async with world.market(tmp_path / "a.sqlite3") as market:
            world.trade(4, vault_moves=True)
            await market.catch_up()
            opening = (await market.head()).number + 1
            snapshot = await market.snapshot(world.vault, opening)
            world.trade(25, vault_moves=True)
            await market.catch_up()
            close = (await market.head()).number + 1
            game, events = Round(JobSettings(), snapshot), await market.events(opening, close - 1)
            game.feed(events)
            end = await market.snapshot(world.vault, close)
            return game, events, world.everything(end), await anvil.uncollected(market, world.vault, close - 1)

    game, events, total, uncollected = asyncio.run(work())
    for fees in uncollected.values():
        total = [have + fee for have, fee in zip(total, fees, strict=True)]
    tokens, fees = game.tape.vault_holds()
    assert [token + fee for token, fee in zip(tokens, fees, strict=True)] == total
    mine = [event.kind for event in events if event.kind != "swap" and str(event.args[0]).startswith(world.vault)]
    assert {"mint", "burn", "collect"} <= set(mine)


@pytest.mark.parametrize("known", [False, True])
def test_whose_a_tokens_events_are_follows_it_from_hand_to_hand(chain, tmp_path, known):
    """From one vault to another, to a stranger, and back; whether or not both vaults were followed before.

    What its burns released and nobody collected goes with it: no fee.
    """
    uniswap = anvil.Uniswap(chain)
    (old, new), stranger = (name.lower() for name in chain.accounts[1:3]), chain.accounts[3].lower()
    uniswap.mint_direct(-12000, 12000, 10**20)
    for owner, count in ((old, 2), (new, 1)):
        for _ in range(count):
            uniswap.mint(owner, -600, 600, 10**18, 10**18)
    chain.mine(3)

    def hand(sender: str, to: str) -> None:
        uniswap.send(uniswap.manager, "transferFrom(address,address,uint256)", sender, to, 1, sender=sender)

    def opened(*vaults: str):
        options = {"manager": uniswap.manager, "confirmations": 0, "following": False, "vaults": vaults}
        return Web3Market.open([chain.url], uniswap.address, tmp_path / "a.sqlite3", **options)

    async def look(market: Web3Market, owner: str, holder: str) -> tuple[list[str], list[tuple]]:
        """Names of a vault's positions, then of the events of some burnt liquidity that its holder collects."""
        await market.catch_up()
        opening = (await market.head()).number + 1
        names = [position.owner for position in (await market.snapshot(owner, opening)).vault]
        uniswap.decrease(holder, 1, 10**17)
        chain.mine()
        uniswap.swap(True, 10**16)
        uniswap.collect(holder, 1)
        chain.mine()
        await market.catch_up()
        found = await market.events(opening, (await market.head()).number)
        return names, [(event.kind, event.args[0], event.args[-2:]) for event in found if event.kind != "swap"]

    async def work():
        async with opened(old, new) if known else opened(old) as market:
            await market.catch_up()
            uniswap.decrease(old, 1, 10**17)  # and never collected by its owner
            chain.mine()
            hand(old, new)
            chain.mine(2)
            if known:
                await market.catch_up()
        async with opened(new) as market:
            found = [await look(market, new, new)]
            hand(new, stranger)
            chain.mine()
            found.append(await look(market, new, stranger))
            hand(stranger, old)
            chain.mine()
        async with opened(old) as market:
            found.append(await look(market, old, old))
            back = market._follower.tip.tokens[1]
            await market._follower._load()
            assert market._follower.tip.tokens[1] == back
            at = market._follower.first
            assert (await market._follower.file.tokens(at))[1].vault == old
        return found

    moved, gone, back = asyncio.run(work())
    mine, again = f"{new}#1", old
    assert moved[0] == [mine, new] and gone[0] == [new] and sorted(back[0]) == [again, f"{old}#2"]
    for (_, events), owner in ((moved, mine), (gone, uniswap.manager.lower()), (back, again)):
        assert {name for _, name, _ in events} == {owner} and events[0][0] == "burn"
        for fees in (amounts for kind, _, amounts in events if kind == "collect"):
            assert max(fees) < 10**15, "what was released is no fee"


def test_tokens_that_were_released_and_not_collected_are_idle_and_those_of_other_pools_are_not_the_vaults(
    world, tmp_path
):
    uniswap, vault = world.uniswap, world.vault
    for signature in ("createPool(address,address,uint24)", None):
        if signature:
            uniswap.send(uniswap.factory, signature, uniswap.token0, uniswap.token1, 10_000)
        else:
            get_pool = Function("getPool(address,address,uint24)", "address")
            [other] = world.chain.call(uniswap.factory, get_pool, uniswap.token0, uniswap.token1, 10_000)
            uniswap.send(other, "initialize(uint160)", anvil.Q96)
        world.chain.mine()

    async def work():
        async with world.market(tmp_path / "a.sqlite3") as market:
            before = await market.snapshot(vault, (await market.head()).number + 1)
            uniswap.fee = 10_000
            foreign = uniswap.mint(vault, -1000, 1000, 10**15, 10**15)
            uniswap.decrease(vault, 4, before.vault[0].liquidity // 3)
            uniswap.decrease(vault, 5, before.vault[1].liquidity)
            world.chain.mine()
            world.chain.receipt(foreign)
            await market.catch_up()
            return (
                before,
                await market.snapshot(vault, (await market.head()).number + 1),
                await market.events(market.first + 1, (await market.head()).number),
            )

    before, after, events = asyncio.run(work())
    released = [sum(event.args[n] for event in events) for n in (4, 5)]
    assert [event.kind for event in events] == ["burn", "burn"] and all(released)
    balances = [world.balance(vault, token) for token in (uniswap.token0, uniswap.token1)]
    assert [after.idle0, after.idle1] == [have + got for have, got in zip(balances, released, strict=True)]
    assert [position.key for position in after.vault] == [before.vault[0].key]
    assert after.vault[0].tokens_owed0 == after.vault[0].tokens_owed1 == 0


def test_a_pool_with_two_thousand_ticks_is_read_in_three_requests_a_word_of_words(chain, tmp_path):
    """256 words of bitmap may take three round trips; this pool's are 694."""
    world = World(chain, 1, fee=500, tick_spacing=10)
    for n in range(1000):
        world.uniswap.mint_direct(-20_000 + 20 * n, -19_990 + 20 * n, 10**12 + n)
        if n % 50 == 49:
            world.chain.mine()

    async def work():
        async with world.market(tmp_path / "a.sqlite3", vaults=[]) as market:
            began = market._rpc.requests
            snapshot = await market.snapshot(world.vault, market.first + 1)
            vault_requests = 3
            return len(market.contract.words), market._rpc.requests - began - vault_requests, snapshot

    words, requests, snapshot = asyncio.run(work())
    assert len(snapshot.ticks) >= 2000 and words == 694
    assert requests <= 3 * words / 256


def test_an_audit_on_the_chain_agrees_with_what_happened_and_names_what_was_changed(world, tmp_path):
    """Of a stored round: the snapshot, the events, the hashes."""
    world.trade(5)

    async def work():
        async with world.market(tmp_path / "a.sqlite3") as market:
            opening = (await market.head()).number + 1
            world.trade(12, vault_moves=True)
            await market.catch_up()
            close = await market.head()
            snapshot = await market.snapshot(world.vault, opening)
            events = await market.events(opening, close.number - 1)
        evidence = {
            "pool": world.uniswap.address,
            "round": {
                "opening_hash": snapshot.block_hash,
                "close_block": str(close.number),
                "round_type": "evaluation",
            },
            "executions": [],
            "snapshot": to_plain(snapshot),
            "events": [[*map(str, e[:3]), e.kind, [*map(str, e.args)]] for e in events],
            "asks": [],
        }
        urls, found = [world.chain.url], []
        swap = next(n for n, event in enumerate(events) if event.kind == "swap")
        for path, value in (
            ((), None),
            (("snapshot", "tick"), snapshot.tick + 1),
            (("snapshot", "ticks", 3, "liquidity_gross"), "7"),
            (("snapshot", "idle0"), str(snapshot.idle0 + 1)),
            (("snapshot", "vault", 0, "liquidity"), "5"),
            (("round", "opening_hash"), "0x" + "0" * 64),
            (("events", swap, 4, 1), "12345"),
            (("events",), evidence["events"][:swap] + evidence["events"][swap + 1 :]),
            (("events",), [*evidence["events"], [str(close.number - 1), "9999", "0", "burn", ["x", "1", "2"]]]),
        ):
            changed = copy.deepcopy(evidence)
            at = changed
            for key in path[:-1]:
                at = at[key]
            if path:
                at[path[-1]] = value
            found.append((path, await audit_chain(changed, urls, world.uniswap.manager)))
        return found

    (_, honest), *changed = asyncio.run(work())
    assert honest == []
    for path, wrong in changed:
        words = "block" if path[0] == "round" else "events" if path[0] == "events" else f"{path[0]}.{path[1]}"
        assert len(wrong) == 1 and wrong[0].startswith(words), path


class LiveRound:
    """A live round on the chain with two transactions of the vault, the first in a range that it closed long before."""

    def __init__(self, world: World, market: Web3Market):
        self.world, self.market, self.executions = world, market, []

    async def play(self) -> None:
        world, vault, minting = self.world, self.world.vault, self.world.uniswap.minting
        first, second = (await self.market.snapshot(vault, (await self.market.head()).number + 1)).vault
        lower, upper = first.tick_lower, first.tick_upper
        await self.carry_out([(4, first)], [minting(vault, lower - 600, upper + 600, ETHER // 20, ETHER // 30)])
        self.executions.clear()
        world.trade(2)
        await self.market.catch_up()
        self.opening = (await self.market.head()).number + 1
        world.trade(4)
        await self.carry_out([(5, second)], [minting(vault, lower, upper, ETHER // 50, ETHER // 50)])
        world.trade(4)
        await self.carry_out([], [minting(vault, upper, upper + 60, ETHER // 90, ETHER // 90)])
        world.trade(4)
        await self.market.catch_up()
        self.snapshot = await self.market.snapshot(vault, self.opening)
        self.close = (await self.market.head()).number + 1

    async def carry_out(self, closing: list, minting: list[bytes]) -> None:
        """One transaction, between others in its block; what it did is told by the chain's own logs."""
        world, uniswap, vault = self.world, self.world.uniswap, self.world.vault
        calls = [call for token_id, held in closing for call in uniswap.closing(vault, token_id, held.liquidity)]
        before = [world.balance(vault, token) for token in (uniswap.token0, uniswap.token1)]
        uniswap.swap(True, 10**15)
        transaction = uniswap.send(uniswap.manager, "multicall(bytes[])", [*calls, *minting], sender=vault)
        uniswap.swap(False, 10**15)
        world.chain.mine()
        receipt = world.chain.receipt(transaction)
        await self.market.catch_up()
        block, indices = int(receipt["blockNumber"], 16), {int(log["logIndex"], 16) for log in receipt["logs"]}
        done = [event for event in await self.market.events(block, block) if event.log_index in indices]
        released, fees, paid, minted = sums_of(done)
        after = [world.balance(vault, token) for token in (uniswap.token0, uniswap.token1)]
        assert after == [b + r + f - p for b, r, f, p in zip(before, released, fees, paid, strict=True)]
        gas = int(receipt["gasUsed"], 16)
        wei = gas * int(receipt["effectiveGasPrice"], 16)
        assert wei > 0
        ranges = tuple((held.tick_lower, held.tick_upper) for _, held in closing)
        asked = tuple((*row[:2], 0, 0) for row in minted)
        sent = Sent(Code.EXECUTED, "", transaction, gas, wei, wei, 0)
        amounts = tuple(before), released, fees, paid, tuple(after), minted
        self.executions.append(Execution(block, vault, (), ranges, asked, *amounts, sent))

    async def evidence(self) -> dict[str, Any]:
        """As far as the chain has a say in it."""
        events = await self.market.events(self.opening, self.close - 1)
        closing = await self.market.snapshot(self.world.vault, self.close)
        inputs = self.snapshot, self.close, tuple(events), "", tuple(self.executions), closing
        self.result = play_live(LiveInputs(JobSettings(), *inputs))
        return {
            "pool": self.world.uniswap.address,
            "rules_version": RULES_VERSION,
            "round": {
                "opening_hash": self.snapshot.block_hash,
                "close_block": self.close,
                "round_type": "live",
                "settings": to_plain(JobSettings()),
                "code": str(self.result.code),
                "detail": self.result.detail,
            },
            "snapshot": to_plain(self.snapshot),
            "events": [[*map(str, e[:3]), e.kind, [*map(str, e.args)]] for e in events],
            "asks": [],
            "executions": [
                {"block": one.block, "vault": one.vault, "execution": to_json(one)} for one in self.executions
            ],
        }


def changed(value: Any, path: tuple, new: Any) -> Any:
    value = copy.deepcopy(value)
    at = value
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = new
    return value


def test_a_live_round_is_scored_by_what_the_vault_has_and_audited_down_to_its_transactions(world, tmp_path):
    """Also by an auditor that follows the vault from this round on. What is closed leaves its name to the next."""

    async def work():
        async with world.market(tmp_path / "a.sqlite3") as market:
            world.trade(3)
            await market.catch_up()
            live, urls, manager = LiveRound(world, market), [world.chain.url], world.uniswap.manager
            await live.play()
            evidence = await live.evidence()
            [line], total = live.result.lines, world.everything(await market.snapshot(world.vault, live.close))
            for fees in (await anvil.uncollected(market, world.vault, live.close - 1)).values():
                total = [have + fee for have, fee in zip(total, fees, strict=True)]
            outcome = line.outcome
            assert line.gas == (sum(one.sent.gas_wei for one in live.executions), 0)
            honest = await audit_chain(evidence, urls, manager)
            one = ("executions", 0, "execution")
            wrong = {
                name: await audit_chain(changed(evidence, (*one, *path), new), urls, manager)
                for name, path, new in (
                    ("gas_used", ("sent", "gas_used"), "21000"),
                    ("gas_wei", ("sent", "gas_wei"), "5"),
                    ("success", ("sent", "code"), "execution_reverted"),
                    ("transaction", ("sent", "transaction"), "0x" + "7" * 64),
                    ("sender", ("vault",), world.other),
                    ("block", ("block",), str(live.executions[0].block + 1)),
                    ("released", ("released", 0), "5"),
                    ("minted", ("minted", 0, 2), "5"),
                )
            }
            gas = str(live.executions[0].sent.gas_used + 21000)
            wrong["gas_used "] = await audit_chain(changed(evidence, (*one, "sent", "gas_used"), gas), urls, manager)
            failed = replace(live.executions[0], sent=replace(live.executions[0].sent, transaction=""))
            failed = {"block": 1, "vault": world.vault, "execution": to_json(failed)}
            failed["execution"] |= {"minted": [], "close": []}
            more = evidence | {"executions": [failed, *evidence["executions"]]}
            wrong["the vault sent no other"] = await audit_chain(more, urls, manager)
            world.uniswap.send(world.uniswap.token0, "transfer(address,uint256)", world.vault, 5)
            world.uniswap.send(world.uniswap.token0, "approve(address,uint256)", world.other, 0, sender=world.vault)
            world.chain.mine()
            await market.catch_up()
            live.close += 1
            transfer = await live.evidence()
            gifted = live.result.lines
            hidden = changed(transfer, ("round", "detail"), "")
            void = changed(transfer, ("round", "code"), "live_foreign_transfer")
            earlier = changed(transfer, ("rules_version",), 1)
            assert await audit_chain(changed(transfer, (*one, "sent", "gas_used"), gas), urls, manager) == []
            transfers = [await audit_chain(one, urls, manager) for one in (transfer, hidden, void, earlier)]
            detail = live.result.detail
            [token_id] = world.chain.call(manager, TOKEN_OF_OWNER, world.vault, 0)
            dust = world.uniswap.increase(world.other, token_id, 10**6, 10**6)
            world.chain.mine()
            world.chain.receipt(dust)
            await market.catch_up()
            live.close += 1
            dusty = await live.evidence()
            dusted = await audit_chain(dusty, urls, manager)
            return outcome, total, evidence, honest, wrong, transfers, gifted, detail, dusty, dusted

    outcome, total, evidence, honest, wrong, transfers, gifted, detail, dusty, dusted = asyncio.run(work())
    assert honest == [] and evidence["round"]["code"] == "scored"
    assert [outcome.final0 + outcome.fees0, outcome.final1 + outcome.fees1] == total
    assert outcome.changes == 2 and 0 < outcome.in_range < 1
    assert {args[0] for *_, kind, args in evidence["events"] if args[0].startswith(world.vault)} == {world.vault}
    before = "at the close the vault has +5 of token0 that nothing in the round explains"
    for name, found in wrong.items():
        assert any(what.startswith("executions[0]: ") and name in what for what in found), (name, found)
    assert (
        transfers[0] == []
        and detail == words_of((5, 0))
        and replace(gifted[0].outcome, in_range=outcome.in_range) == outcome
    )
    assert transfers[1] == [f"round: scored; the chain shows scored {detail}"]
    assert transfers[2] == [f"round: live_foreign_transfer {detail}; the chain shows scored {detail}"]
    assert transfers[3] == ["round: scored " + detail + "; the chain shows live_foreign_transfer " + before]
    gifts = gifts_of(dusty["round"]["detail"])  # what somebody added to the vault's position, too
    assert dusty["round"]["code"] == "scored" and 5 < gifts[0] <= 5 + 10**6 and 0 < gifts[1] <= 10**6
    assert dusted == []


@pytest.mark.parametrize(("seed", "theirs"), [(1, ETHER // 10), (1, 1000)])
def test_what_the_pool_pays_less_than_the_manager_asks_for_is_written_off_and_voids_nothing(
    chain, tmp_path, seed, theirs
):
    """Another holder in the vault's range collects now and then: each time the pool rounds down what it owes both."""
    uniswap, rng = anvil.Uniswap(chain), Random(seed)
    vault, other = (account.lower() for account in chain.accounts[1:3])
    uniswap.mint_direct(-12_000, 12_000, ETHER)
    uniswap.mint(vault, -600, 600, ETHER, ETHER)
    uniswap.mint(other, -600, 600, theirs, theirs)
    chain.mine()
    place = SimpleNamespace(uniswap=uniswap, chain=chain, vault=vault)
    place.balance, place.everything = partial(World.balance, place), partial(World.everything, place)

    async def work():
        options = {"vaults": [vault], "manager": uniswap.manager, "confirmations": 0, "following": False}
        async with Web3Market.open([chain.url], uniswap.address, tmp_path / "a.sqlite3", **options) as market:
            live = LiveRound(place, market)
            live.opening = (await market.head()).number + 1
            [position] = (await market.snapshot(vault, live.opening)).vault
            for _ in range(10):
                uniswap.swap(rng.random() < 0.5, rng.randint(10**9, 10**12))
                uniswap.collect(other, 2)
                chain.mine()
            positions = Function("positions(uint256)", *["uint256"] * 7, "uint128", *["uint256"] * 4)
            held = chain.call(uniswap.manager, positions, 2)[7]
            uniswap.send(uniswap.manager, "multicall(bytes[])", uniswap.closing(other, 2, held), sender=other)
            chain.mine()
            minting = [uniswap.minting(vault, -1200, 1200, ETHER // 10, ETHER // 10)]
            await live.carry_out([(1, position)], minting)
            live.snapshot = await market.snapshot(vault, live.opening)
            live.close = (await market.head()).number + 1
            evidence, total = await live.evidence(), place.everything(await market.snapshot(vault, live.close))
            for fees in (await anvil.uncollected(market, vault, live.close - 1)).values():
                total = [have + fee for have, fee in zip(total, fees, strict=True)]
            return live, evidence, total, await audit_chain(evidence, [chain.url], uniswap.manager)

    live, evidence, total, wrong = asyncio.run(work())
    [lost] = [args for *_, kind, args in evidence["events"] if kind == "write_off"]
    assert sum(map(int, lost[3:])) > 0 and wrong == [] and live.result.code == Code.SCORED, live.result.detail
    outcome = live.result.lines[0].outcome
    assert [outcome.final0 + outcome.fees0, outcome.final1 + outcome.fees1] == total
    told = evidence | {"events": [event for event in evidence["events"] if event[3] != "write_off"]}
    assert any("write_off" in what for what in asyncio.run(audit_chain(told, [chain.url], uniswap.manager)))


@pytest.mark.parametrize("seed", range(5))
def test_of_what_burns_released_and_of_fees_that_is_left_what_the_manager_forgot_is_gone(seed):
    """The manager's own ledger is the oracle: it takes off what it asks for; the pool pays some wei less."""
    rng, key = Random(seed), ("vault", -10, 10)
    contract = Contract(Pair(1, "0xp", Token("0x1", "A", 18), Token("0x2", "B", 18), 500, 10), "0xm")
    tape_owed, released, owed, idle, logs, tokens = [0, 0], {}, [0, 0], [0, 0], [], {3: NamedToken(*key)}
    for n in range(0, 400, 4):
        earned, burnt = ([rng.choice([0, rng.randint(0, 50)]) for _ in "01"] for _ in "01")
        asked = [rng.choice([have, rng.randint(0, have)]) for have in map(sum, zip(owed, earned, burnt, strict=True))]
        paid = [max(0, amount - rng.choice([0, 0, 1, 2])) for amount in asked]
        logs = [
            Log(7, n, "0x", "0x1", "0xp", "Burn", ("0xm", -10, 10, 5, *burnt)),
            Log(7, n + 1, "0x", "0x1", "0xm", "DecreaseLiquidity", (3, 5, *burnt)),
            Log(7, n + 2, "0x", "0x1", "0xp", "Collect", ("0xm", -10, 10, "0xv", *paid)),
            Log(7, n + 3, "0x", "0x1", "0xm", "Collect", (3, "0xv", *asked)),
        ]
        named = name_tokens(logs, contract, ["0xv"], tokens)
        pool = [one for one in logs if one.address == "0xp"]
        events, _ = to_events(pool, contract, {7: 70}, named, released)
        owed = [have + more + out - gone for have, more, out, gone in zip(owed, earned, burnt, asked, strict=True)]
        tape_owed = [have + more for have, more in zip(tape_owed, earned, strict=True)]
        for event in events:
            sign = -1 if event.kind == "write_off" else 1
            assert event.args[:3] == key
            idle = [have + sign * amount for have, amount in zip(idle, event.args[-2:], strict=True)]
            if event.kind != "burn":
                tape_owed = [have - amount for have, amount in zip(tape_owed, event.args[3:5], strict=True)]
        left = released.get(key, (0, 0))
        assert [fees + more for fees, more in zip(tape_owed, left, strict=True)] == owed and min(*tape_owed, *left) >= 0
        idle = [have - got for have, got in zip(idle, paid, strict=True)]
        assert idle == list(left)  # what was collected has gone


def dust(world: World, count: int) -> None:
    """Somebody mints for the vault, some in its own range, and sends it what he has minted for himself."""
    uniswap, vault, other, made = world.uniswap, world.vault, world.other, 0
    sends = "transferFrom(address,address,uint256)"
    while made < count:
        part = min(12, count - made)
        calls = [uniswap.minting(vault, -300, 240, 1000 + n, 1000) for n in range(made, made + part - 1)]
        uniswap.send(uniswap.manager, "multicall(bytes[])", calls, sender=other)
        uniswap.mint(other, -60, 60, 10**6, 10**6)
        world.chain.mine()
        [born] = world.chain.call(uniswap.manager, Function("totalSupply()", "uint256"))
        by_index = Function("tokenByIndex(uint256)", "uint256")
        [newest] = world.chain.call(uniswap.manager, by_index, born - 1)
        uniswap.send(uniswap.manager, sends, other, vault, newest, sender=other)
        world.chain.mine()
        made += part
    holds = world.chain.call(uniswap.manager, Function("balanceOf(address)", "uint256"), vault)
    assert holds[0] >= count


@pytest.mark.parametrize("count", [11, 300])
def test_a_strangers_position_tokens_count_nowhere_however_many_they_are(world, tmp_path, count):
    """Some came before the program started, some in the round; in its restart it knows them by its file."""
    dust(world, count // 2)

    async def work():
        async with world.market(tmp_path / "a.sqlite3") as market:
            live = LiveRound(world, market)
            before = await market.snapshot(world.vault, (await market.head()).number + 1)
            dust(world, count - count // 2)
            await market.catch_up()
            await live.play()
            evidence, shown = await live.evidence(), await market.snapshot(world.vault, live.close)
        async with world.market(tmp_path / "a.sqlite3") as market:
            again = await market.snapshot(world.vault, live.close)
        wrong = await audit_chain(evidence, [world.chain.url], world.uniswap.manager)
        return before, live.result, shown, again, wrong, evidence

    before, result, shown, again, wrong, evidence = asyncio.run(work())
    assert [position.key[1:] for position in before.vault] == [(-300, 240), (120, 360)]
    assert (result.code, result.detail, wrong) == (Code.SCORED, "", [])
    assert len(shown.vault) == 3 and again == shown
    mine = {args[0] for *_, kind, args in evidence["events"] if args[0].startswith(world.vault)}
    assert mine == {world.vault}


def test_what_a_named_operator_minted_for_the_vault_is_its_own(world, tmp_path):
    world.uniswap.send(world.uniswap.manager, "multicall(bytes[])", [minting_for(world)], sender=world.other)
    world.chain.mine()

    async def work(operators):
        path = tmp_path / f"{len(operators)}.sqlite3"
        async with world.market(path, operators=operators) as market:
            first = await market.snapshot(world.vault, (await market.head()).number + 1)
            world.uniswap.send(world.uniswap.manager, "multicall(bytes[])", [minting_for(world)], sender=world.other)
            world.chain.mine()
            await market.catch_up()
            return len(first.vault), len((await market.snapshot(world.vault, (await market.head()).number + 1)).vault)

    assert asyncio.run(work([])) == (2, 2)
    assert asyncio.run(work([world.other])) == (4, 5)


def minting_for(world: World) -> bytes:
    return world.uniswap.minting(world.vault, -60, 60, 1000, 1000)


def of_all(asked: list) -> bool:
    return isinstance(asked[0], dict) and asked[0]["fromBlock"] == "0x0"


@pytest.mark.parametrize("method", ["eth_getLogs", "eth_getTransactionByHash"])
def test_where_no_node_says_who_minted_the_vaults_tokens_nothing_is_guessed(world, tmp_path, method):
    fault = refusing(
        method, -32602, "block range is too wide", lambda asked: isinstance(asked[0], str) or of_all(asked)
    )

    async def work():
        async with Node(world.chain, fault) as url, world.market(tmp_path / "a.sqlite3", [url], total_seconds=0.5):
            pass

    with pytest.raises(MarketError, match=r"nobody says who minted the vault's position tokens .*; one RPC node must"):
        asyncio.run(work())


def test_the_audit_command_compares_with_the_chain_after_the_digits(world, tmp_path, monkeypatch, capsys):
    """What it says of digits is tested with `evidence.py`; here they all agree."""
    monkeypatch.setattr("audit.__main__.audit", lambda evidence, _: evidence.get("wrong", []))

    async def work():
        async with world.market(tmp_path / "a.sqlite3") as market:
            live = LiveRound(world, market)
            await live.play()
            return await live.evidence()

    honest, file = asyncio.run(work()), tmp_path / "round.json"
    gas = changed(honest, ("executions", 1, "execution", "sent", "gas_used"), "21000")
    modelled = changed(honest, ("snapshot", "vault_owner"), "vault")
    chain = ["--rpc", world.chain.url, "--manager", world.uniswap.manager]
    for evidence, options, code, said in (
        (honest, chain, 0, "every digit agrees, also with the chain\n1 rounds audited, 0 differ"),
        (honest, [], 0, "every digit agrees\n1 rounds"),
        (gas, chain, 1, "1 differences with the chain\n  executions[1]: gas_used 21000, transaction 0x"),
        (gas | {"wrong": ["round.code: x"]}, chain, 1, "1 differences\n  round.code: x\n1 rounds"),
        (modelled, chain, 0, "every digit agrees; nothing of a chain is in this round to compare with\n1 rounds"),
        (modelled | {"snapshot": None}, chain, 0, "every digit agrees; nothing of a chain is in this round"),
        (changed(honest, ("pool",), "0x" + "1" * 40), chain, 1, f"cannot be audited: 0x{'1' * 40} on chain 31337"),
    ):
        file.write_bytes(canonical(evidence))
        assert validator.main(["audit", str(file), *options]) == code
        assert capsys.readouterr().out.startswith(f"{file}: {said}"), said


# ---------------------------------------------------------------------------------------------------------------------
# When nodes lie, break off or answer late


class Node:
    """A node in front of the chain's, with a fault.

    Args:
        chain: what it passes on.
        fault: called with each request's calls and answers, both lists; what it returns is sent instead: a list, or a
            response. It may take its time.
    """

    def __init__(self, chain: anvil.Chain, fault):
        self._upstream, self._fault, self.faulty = chain.url, fault, True

    async def __aenter__(self) -> str:
        app = web.Application(client_max_size=1 << 26)
        app.router.add_post("/", self._serve)
        self._session = aiohttp.ClientSession()
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = site._server.sockets[0].getsockname()
        return f"http://{host}:{port}/"

    async def __aexit__(self, *_) -> None:
        await self._session.close()
        await self._runner.cleanup()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        async with self._session.post(self._upstream, json=body) as reply:
            answers = await reply.json()
        batch = isinstance(body, list)
        if not self.faulty:
            return web.json_response(answers)
        said = await self._fault(request, body if batch else [body], answers if batch else [answers])
        if isinstance(said, web.StreamResponse):
            return said
        return web.json_response(said if batch else said[0])


def on(method: str, change: Callable):
    """A fault in what one method answers."""

    async def fault(request, calls, answers):
        for call, answer in zip(calls, answers, strict=True):
            if call["method"] == method and "result" in answer:
                answer["result"] = change(call["params"], answer["result"])
        return answers

    return fault


def moved_head(by: int):
    def change(parameters, block):
        return block | {"number": hex(max(0, int(block["number"], 16) + by))} if parameters[0] == "latest" else block

    return on("eth_getBlockByNumber", change)


async def silent(request, calls, answers):
    await asyncio.sleep(30)


async def broken(request, calls, answers):
    request.transport.close()
    return web.Response()


async def too_often(request, calls, answers):
    return web.Response(status=429, headers={"Retry-After": "0"})


async def endless(request, calls, answers):
    return web.Response(body=b" " * (rpc_module.MAX_REPLY_BYTES + 1))


async def a_page(request, calls, answers):
    return web.Response(text="<html>it works</html>", content_type="text/html")


async def fewer_answers(request, calls, answers):
    return answers[:-1] or [{}]


def raw_error(code: str):
    """An error whose code JSON can write and no node should."""

    async def fault(request, calls, answers):
        said = ",".join(f'{{"id":{call["id"]},"error":{{"code":{code},"message":"x"}}}}' for call in calls)
        return web.Response(text=f"[{said}]" if len(calls) > 1 else said, content_type="application/json")

    return fault


async def superscript(request, calls, answers):
    return web.Response(status=429, headers={"Retry-After": "²"})


def in_each_log(**changed):
    return on("eth_getLogs", lambda _, logs: [one | changed for one in logs])


GROWTH1 = "0x46141319"  # feeGrowthGlobal1X128()
FAULTS = {
    "times out": silent,
    "breaks off": broken,
    "says 429": too_often,
    "sends without end": endless,
    "sends a page": a_page,
    "leaves answers out": fewer_answers,
    "asks for a rest of ² seconds": superscript,
    "has a code without end": raw_error("1e999"),
    "has a code that is none": raw_error('[{"a": NaN}]'),
    "has blocks of a time that cannot be": on(
        "eth_getBlockByNumber", lambda _, block: block | {"timestamp": hex(2**255)}
    ),
    "has a list for a block's hash": on("eth_getBlockByNumber", lambda _, block: block | {"hash": [block["hash"]]}),
    "has a list for a log's hash": in_each_log(transactionHash=[]),
    "has a log of a place that cannot be": in_each_log(logIndex=hex(2**255)),
    "has null for logs": on("eth_getLogs", lambda _, logs: None),
    "is ahead of itself": moved_head(1000),
    "is behind": moved_head(-1000),
    "leaves every second log out": on("eth_getLogs", lambda _, logs: logs[::2]),
    "leaves the last log out": on("eth_getLogs", lambda _, logs: logs[:-1]),
    "tells logs twice": on("eth_getLogs", lambda _, logs: logs + logs[:1]),
    "has no logs": on("eth_getLogs", lambda _, logs: []),
    "has no blocks": on("eth_getBlockByNumber", lambda parameters, block: block if parameters[0] == "latest" else None),
    "has logs of another chain": on(
        "eth_getLogs", lambda _, logs: [one | {"blockHash": "0x" + "5" * 64} for one in logs]
    ),
    "changes amounts": on("eth_getLogs", lambda _, logs: [one | {"data": one["data"][:-1] + "7"} for one in logs]),
    "invents state": on("eth_call", lambda call, word: word[:-2] + "05" if call[0]["data"] == GROWTH1 else word),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_with_one_honest_endpoint_no_event_is_lost_or_doubled(world, tmp_path, fault, monkeypatch, caplog):
    """Also when the other one is asked first; and it is said which one failed."""
    monkeypatch.setattr(rpc_module, "MAX_REPLY_BYTES", 1 << 20)
    first = world.chain.height

    async def work():
        node = Node(world.chain, FAULTS[fault])
        node.faulty = fault != "invents state"  # whose word there is to begin with nobody can check
        async with node as url:
            urls, patience = [url, world.chain.url], 0.3 if fault == "times out" else 5
            async with world.market(tmp_path / "a.sqlite3", urls, first=first, attempt_seconds=patience) as market:
                node.faulty = True
                for _ in range(8):
                    world.trade(2)
                    await read_on(market, world)
                head = (await market.head()).number
                return await market.events(first + 1, head), head, url.split("/")[2], market

    events, head, name, market = asyncio.run(work())
    assert events == asyncio.run(world.truth(tmp_path / "b.sqlite3", first)) and len(events) > 20
    assert head == world.chain.height and not market._follower.gaps
    assert fault == "tells logs twice" or any(name in record.getMessage() for record in caplog.records)


def refusing(method: str, code: int, message: str, while_: Callable[[list], bool] = lambda parameters: True):
    """A fault in what one method is answered: an error."""

    async def fault(request, calls, answers):
        return [
            {"id": call["id"], "error": {"code": code, "message": message}}
            if call["method"] == method and while_(call["params"])
            else answer
            for call, answer in zip(calls, answers, strict=True)
        ]

    return fault


def span(parameters: list) -> int:
    return int(parameters[0]["toBlock"], 16) - int(parameters[0]["fromBlock"], 16) + 1


@pytest.mark.parametrize(
    ("code", "message"), [(-32005, "project ID request rate exceeded"), (-32603, "internal error")]
)
def test_what_a_node_cannot_tell_now_is_asked_again_and_is_no_gap(world, tmp_path, code, message):
    first, asked = world.chain.height, []

    async def work():
        def busy(parameters):
            if of_all(parameters):  # who minted the vault's tokens
                return False
            asked.append(span(parameters))
            return len(asked) <= 40

        node, path = Node(world.chain, refusing("eth_getLogs", code, message, busy)), tmp_path / "a.sqlite3"
        async with node as url, world.market(path, [url], first=first, total_seconds=5) as market:
            while (await market.head()).number < world.chain.height:
                with suppress(MarketError):
                    await market.catch_up()
            assert not market._follower.gaps
            return await market.events(first + 1, world.chain.height)

    world.trade(6)
    assert asyncio.run(work()) == asyncio.run(world.truth(tmp_path / "b.sqlite3", first))
    assert len(asked) > 40 and (code != -32005 or set(asked) == {asked[0]})  # a rate limit says nothing about ranges


def test_a_range_that_is_refused_is_made_shorter_until_it_is_taken(world, tmp_path):
    first = world.chain.height
    limit = refusing("eth_getLogs", -32600, "up to a 10 block range", lambda parameters: span(parameters) > 10)

    async def fault(request, calls, answers):
        said = await limit(request, calls, answers)
        return web.json_response(said if len(said) > 1 else said[0], status=400 if said != answers else 200)

    async def work():
        node, path = Node(world.chain, fault), tmp_path / "a.sqlite3"
        async with node as url, world.market(path, [url], first=first, total_seconds=2) as market:
            await market.catch_up()
            assert not market._follower.gaps
            return (await market.head()).number

    world.chain.mine(60)
    assert asyncio.run(work()) == first + 60


def test_a_second_endpoint_that_takes_fewer_blocks_at_once_is_not_distrusted(world, tmp_path):
    first = world.chain.height

    async def work():
        limit = refusing("eth_getLogs", -32600, "block range is too wide", lambda parameters: span(parameters) > 1)
        node, path = Node(world.chain, limit), tmp_path / "a.sqlite3"
        async with node as url, world.market(path, [world.chain.url, url], first=first) as market:
            await market.catch_up()
            return [endpoint.failures for endpoint in market._rpc.endpoints]

    world.trade(3)
    assert asyncio.run(work()) == [0, 0]


def word_of_bitmap(data: str) -> int:
    """Which is asked for; below 0 where it is another call."""
    return int(data[-4:], 16) if data.startswith("0x5339c296") else -1


HOSTILE_AT_FIRST = {
    "a chain that is none": on("eth_chainId", lambda _, chain: {}),
    "a head that is none": on("eth_getBlockByNumber", lambda _, block: block | {"timestamp": hex(2**255)}),
    "calls that are no bytes": on("eth_call", lambda _, data: 7),
    "calls that are not hexadecimal": on("eth_call", lambda _, data: "0xzz"),
    "a full tick bitmap": on(
        "eth_call", lambda call, data: "0x" + "f" * 64 if 0 <= word_of_bitmap(call[0]["data"]) < 50 else data
    ),
    "pointers into one blob": on("eth_call", lambda call, data: "0x" + "00" * 31 + "20" + "ff" * 200_000),
}


@pytest.mark.parametrize("fault", HOSTILE_AT_FIRST)
def test_opening_a_pool_costs_a_hostile_endpoint_only_itself(world, tmp_path, fault):
    async def work():
        async with Node(world.chain, HOSTILE_AT_FIRST[fault]) as url:
            urls = [url, world.chain.url]
            async with world.market(tmp_path / "a.sqlite3", urls, first=world.chain.height) as market:
                snapshot = await market.snapshot(world.vault, world.chain.height + 1)
                return market.pair, snapshot, market._rpc.requests

    async def truth():
        async with world.market(tmp_path / "b.sqlite3", first=world.chain.height) as market:
            return market.pair, await market.snapshot(world.vault, world.chain.height + 1)

    pair, snapshot, asked = asyncio.run(work())
    assert (pair, snapshot) == asyncio.run(truth()) and asked < 28, asked


NAMES = "0x95d89b41", "0x313ce567"  # symbol(), decimals()


@pytest.mark.parametrize(
    "broken",
    [
        *(
            refusing("eth_call", -32000, said, lambda parameters: parameters[0]["data"] in NAMES)
            for said in (
                "invalid opcode: INVALID",
                "EVM error InvalidFEOpcode",
                "VM execution error.",
                "BadInstruction",
            )
        ),
        *(
            on("eth_call", lambda call, data, said=said: said if call[0]["data"] in NAMES else data)
            for said in ("0x", "0x12", "0x" + "ff" * 32)
        ),
    ],
)
def test_a_token_that_breaks_when_it_is_asked_for_its_name_is_followed_all_the_same(world, tmp_path, broken):
    async def work():
        async with Node(world.chain, broken) as url, world.market(tmp_path / "a.sqlite3", [url]) as market:
            return market.pair.token0, market._rpc.endpoints[0].failures

    token, failures = asyncio.run(work())
    assert (token.symbol, token.decimals, failures) == ("?", 0, 0)


def test_a_single_endpoint_that_loses_events_is_found_out_before_the_next_round_begins(world, tmp_path, caplog):
    """What moves money in range is missed at once; ticks out of range are compared when a snapshot is taken."""
    first = world.chain.height

    async def work():
        node = Node(world.chain, on("eth_getLogs", lambda _, logs: [one for one in logs if one["topics"][0] != MINT]))
        async with node as url, world.market(tmp_path / "a.sqlite3", [url], first=first, total_seconds=2) as market:
            spacing = world.uniswap.spacing
            world.uniswap.mint_direct(50 * spacing, 60 * spacing, 10**9)
            world.chain.mine(2)
            await market.catch_up()
            lost = await market.events(first + 1, world.chain.height)
            node.faulty = False
            await market.snapshot(world.vault, world.chain.height + 1)
            await read_on(market, world)
            return lost, await market.events(first + 1, world.chain.height)

    lost, events = asyncio.run(work())
    assert [event.kind for event in lost] == [] and [event.kind for event in events] == ["mint"]
    assert "are read again" in caplog.text


def test_jobs_that_ask_about_one_block_read_its_ticks_once_and_again_if_they_may_be_wrong(world, tmp_path, monkeypatch):
    first, read = world.chain.height, []

    async def counted(rpc, contract, after):
        read.append(after)
        return await read_pool(rpc, contract, after)

    monkeypatch.setattr(market_module, "read_pool", counted)

    async def work():
        node = Node(world.chain, on("eth_getLogs", lambda _, logs: [one for one in logs if one["topics"][0] != MINT]))
        node.faulty = False
        async with node as url, world.market(tmp_path / "a.sqlite3", [url], first=first, total_seconds=2) as market:

            async def snapshots() -> list[Snapshot]:
                at = (await market.head()).number + 1
                return await asyncio.gather(*(market.snapshot(vault, at) for vault in (world.vault, world.other) * 2))

            one, other, *again = await snapshots()
            assert [one, other] == again and one.ticks == other.ticks and one.vault != other.vault
            assert len(read) == 1
            world.chain.mine()
            await market.catch_up()
            await snapshots()
            assert len(read) == 2
            node.faulty = True
            world.uniswap.mint_direct(50 * world.uniswap.spacing, 60 * world.uniswap.spacing, 10**9)
            world.chain.mine()
            await market.catch_up()
            node.faulty = False
            await snapshots()  # not the same as what was followed: one of the two is wrong
            await read_on(market, world)
            await snapshots()
            assert read[-1] == read[-2] != read[1]

    asyncio.run(work())


MINT = "0x7a53080ba414158be7ec69b987b5fb7d07dee101fe85488f0853ae16239d0bde"


def test_what_cannot_be_had_is_a_gap_that_is_named_and_stepped_over(world, tmp_path, caplog):
    """A round over it is void; the ones after it are not."""
    first, bad = world.chain.height, world.chain.height + 3

    async def work():
        node = Node(
            world.chain, on("eth_getLogs", lambda _, logs: [one for one in logs if one["blockNumber"] != hex(bad)])
        )
        async with node as url, world.market(tmp_path / "a.sqlite3", [url], first=first, total_seconds=2) as market:
            for _ in range(6):
                world.uniswap.swap(True, 10**15)
                world.chain.mine()
            await read_on(market, world)
            before = await market.events(first + 1, bad - 1)
            after = await market.events(bad + 1, world.chain.height)
            with pytest.raises(MarketError, match=f"blocks {bad} to {bad} could not be had") as error:
                await market.events(first + 1, world.chain.height)
        async with world.market(tmp_path / "a.sqlite3", following=False) as again:
            with pytest.raises(MarketError, match=f"blocks {bad} to {bad} could not be had"):
                await again.events(bad, bad)
        return before, after, error

    before, after, error = asyncio.run(work())
    whole = asyncio.run(world.truth(tmp_path / "b.sqlite3", first))
    assert before + after == [event for event in whole if event.block != bad] and len(whole) == 6
    assert "differ" in str(error.value) and "cannot be had" in caplog.text


def test_a_full_disk_is_said_in_a_line_and_when_there_is_room_again_no_event_is_lost_or_doubled(
    world, tmp_path, caplog
):
    """SQLite's own error, as a full disk gives it: the file may not grow by a page."""
    first = world.chain.height

    async def work():
        path = tmp_path / "a.sqlite3"
        async with world.market(path, first=first, following=True, poll_seconds=0.02) as market:
            db = market._follower.file._db
            [(pages,)] = await db.execute_fetchall("PRAGMA page_count")
            await db.execute_fetchall(f"PRAGMA max_page_count = {pages}")
            world.trade(40)
            while "database or disk is full" not in caplog.text:
                await asyncio.sleep(0.02)
            await db.execute_fetchall("PRAGMA max_page_count = 1000000")
            await asyncio.wait_for(market.reach(world.chain.height), 30)
            return await market.events(first + 1, world.chain.height)

    found = asyncio.run(asyncio.wait_for(work(), 60))
    assert found == asyncio.run(world.truth(tmp_path / "b.sqlite3", first)) and len(found) > 30
    assert "Traceback" not in caplog.text and "cannot be followed just now" in caplog.text


@pytest.mark.parametrize("confirmations", [0, 1, 3])
def test_after_a_reorganisation_of_three_blocks_the_events_are_those_of_the_chain(
    world, tmp_path, caplog, confirmations
):
    """Unseen with as many confirmations; else rolled back, said, and refused to who had read the old ones."""
    first = world.chain.height

    async def work():
        async with world.market(tmp_path / "a.sqlite3", first=first, confirmations=confirmations) as market:
            world.trade(6)
            world.uniswap.mint(world.vault, -180, 180, 10**15, 10**15)
            old = world.chain.mine()
            await market.catch_up()
            await market.snapshot(world.vault, (await market.head()).number + 1)
            seen = await market.events(first + 1, old - confirmations)
            tip = await market.head()
            world.chain.rpc("anvil_reorg", 3, [])
            world.uniswap.mint(
                world.other, -180, 180, 10**15, 10**15
            )  # its token has the number of the vault's lost one
            for _ in range(4):
                world.uniswap.swap(True, 10**16)
                world.uniswap.increase(world.vault, 4, 10**12, 10**12)
                world.chain.mine()
            await market.catch_up()
            head = (await market.head()).number
            replaced = range(old - 2, old - confirmations + 1)
            for block in replaced:
                with pytest.raises(MarketError, match="replaced"):
                    await market.events(block + 1, head)
            again = await market.events(first + 1, head)
            hashes = [(await market.block(number)).hash for number in range(first, head + 1)]
            return seen, again, hashes, replaced, tip

    seen, again, hashes, replaced, tip = asyncio.run(work())
    chain = [world.chain.rpc("eth_getBlockByNumber", hex(first + n), False)["hash"] for n in range(len(hashes))]
    assert hashes == chain and (tip.hash in chain) == (not replaced)
    truth = asyncio.run(world.truth(tmp_path / "b.sqlite3", first))
    assert again == [event for event in truth if event.block <= first + len(hashes) - 1]
    assert [event for event in seen if event.block not in replaced] == again[: len(again)][
        : sum(e.block not in replaced for e in seen)
    ]
    assert ("reorganisation" in caplog.text) == bool(replaced)
    assert len(replaced) == 3 - confirmations


def test_events_and_cursor_survive_a_restart_and_land_once(world, tmp_path):
    first = world.chain.height

    async def work(blocks: int):
        async with world.market(tmp_path / "a.sqlite3", first=first) as market:
            world.trade(blocks)
            await market.catch_up()
            return await market.events(first + 1, (await market.head()).number)

    for _ in range(3):
        events = asyncio.run(work(5))
    assert events == asyncio.run(world.truth(tmp_path / "b.sqlite3", first)) and len(events) > 15
    with closing(sqlite3.connect(tmp_path / "a.sqlite3")) as db, db:
        assert db.execute("SELECT block FROM cursor").fetchall() == [(world.chain.height,)]


async def read_on(market: Web3Market, world: World) -> None:
    """As the follower does: again, when it failed."""
    for _ in range(40):
        with suppress(MarketError):
            await market.catch_up()
        if (await market.head()).number == world.chain.height:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it does not catch up")


# ---------------------------------------------------------------------------------------------------------------------
# Following


def test_the_follower_waits_with_those_who_wait_and_outlives_its_endpoint(world, tmp_path):
    """A chain that is not there for a while is one that has no new blocks for a while."""
    first = world.chain.height

    async def work():
        node = Node(world.chain, broken)
        node.faulty = False
        async with (
            node as url,
            world.market(
                tmp_path / "a.sqlite3", [url], first=first, following=True, poll_seconds=0.01, total_seconds=0.2
            ) as market,
        ):
            waiting = asyncio.create_task(market.reach(first + 3))
            world.trade(1)
            await market.reach(first + 1)
            node.faulty = True
            world.chain.mine(4)
            await asyncio.sleep(0.5)
            assert not waiting.done()
            node.faulty = False
            head = await waiting
            later = asyncio.create_task(market.reach_time(head.time + 8))
            await asyncio.sleep(0.05)
            world.chain.mine(10)
            return head, await later, await market.block(head.number), market

    head, later, again, _ = asyncio.run(work())
    assert head == again and head.number >= first + 3
    assert later.time >= head.time + 8


def test_blocks_are_found_by_their_time(world, tmp_path):
    """Also where several blocks have the same second, and where time jumps."""
    first = world.chain.height
    for seconds in (2, 100, 2, 3600, 1):
        world.chain.mine(5, seconds)
    world.chain.rpc("anvil_mine", hex(4), hex(0))

    async def work():
        async with world.market(tmp_path / "a.sqlite3", first=first) as market:
            await market.catch_up()
            blocks = [await market.block(number) for number in range(first, world.chain.height + 1)]
            for wanted in {block.time + late for block in blocks for late in (-1, 0, 1)} - {blocks[-1].time + 1}:
                expected = next(block for block in blocks if block.time >= wanted)
                assert await market.first_block_at(wanted) == expected
            with pytest.raises(MarketError, match="after the head"):
                await market.first_block_at(blocks[-1].time + 1)
            with pytest.raises(MarketError, match="above the head"):
                await market.block(blocks[-1].number + 1)
            for early, late in ((first, first), (first + 1, blocks[-1].number + 1)):
                with pytest.raises(MarketError):
                    await market.events(early, late)

    asyncio.run(work())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pool_address": "0x12"}, "40 hexadecimal digits"),
        ({"pool_address": "0x" + "12" * 20}, "does not answer as a Uniswap V3 pool"),
        ({"vaults": ["vault-pol"]}, "40 hexadecimal digits"),
        ({"urls": ["http://127.0.0.1:1"], "total_seconds": 0.2}, "cannot be asked"),
        ({"urls": ["node.example"]}, "is expected"),
        ({"vaults": ["0x" + "12" * 20]}, "no position manager is known on chain 31337.*--manager"),
        ({"manager": "0x" + "12" * 20}, "no position manager stands there; name the pool's own with --manager"),
    ],
)
def test_what_cannot_be_opened_is_said_in_one_line(world, tmp_path, change, message):
    options = {"urls": [world.chain.url], "pool_address": world.uniswap.address} | change

    async def work():
        async with Web3Market.open(**options, path=tmp_path / "a.sqlite3", following=False, confirmations=0):
            pass

    with pytest.raises(MarketError, match=message) as error:
        asyncio.run(work())
    assert "\n" not in str(error.value)


def test_the_usual_manager_of_a_chain_is_none_for_another_exchanges_pool(world, tmp_path, monkeypatch):
    """Its code, tokens and fee are the same: only the factory tells. Without a vault such a pool can be followed."""

    async def work(**options):
        options |= {"following": False, "confirmations": 0}
        opened = Web3Market.open([world.chain.url], pool, tmp_path / "a.sqlite3", **options)
        async with opened as market:
            return market.contract.manager

    monkeypatch.setitem(pool_module.POSITION_MANAGERS, 31337, world.uniswap.manager)
    pool, vaults = world.uniswap.elsewhere(), [world.chain.accounts[1]]
    assert asyncio.run(work()) == ""
    said = "chain 31337's usual position manager is of another factory's pools.*; name the pool's own with --manager"
    with pytest.raises(MarketError, match=said):
        asyncio.run(work(vaults=vaults))
    with pytest.raises(MarketError, match="it is of another factory's pools; name the pool's own"):
        asyncio.run(work(manager=world.uniswap.manager))


def test_a_slipstream_pool_is_told_by_what_it_answers(world, tmp_path):
    slot0 = "0x3850c7bd"
    node = Node(world.chain, on("eth_call", lambda call, word: word[:-64] if call[0]["data"] == slot0 else word))

    async def work():
        async with node as url, world.market(tmp_path / "a.sqlite3", [url]):
            pass

    with pytest.raises(MarketError, match="Slipstream"):
        asyncio.run(work())


def test_another_pools_file_is_refused(world, chain, tmp_path):
    other = World(chain, 2)

    async def work(world):
        async with world.market(tmp_path / "a.sqlite3"):
            pass

    asyncio.run(work(world))
    with pytest.raises(MarketError, match="choose another file"):
        asyncio.run(work(other))


LOG = {
    "address": "0x" + "11" * 20,
    "topics": ["0x7bf8f5b2b0fd5b8e6b4b0d9b8e3a8a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a"],
    "data": "0x",
    "blockNumber": "0x1",
    "logIndex": "0x0",
    "blockHash": "0x" + "22" * 32,
    "transactionHash": "0x" + "33" * 32,
}
FEE_LOG = LOG | {
    "topics": ["0x973d8d92bb299f4af6ce49b52a8adb85ae46b9f214c4c4fc06ac77401237b133"],
    "data": "0x" + "".join(f"{n:064x}" for n in (0, 0, 4, 5)),
}


def told(index: str, order: str = "0x0", **more) -> dict:
    return FEE_LOG | {"logIndex": index, "transactionIndex": order} | more


def test_a_log_that_is_said_to_be_removed_is_left_out_and_one_that_comes_twice_is_read_once():
    logs = [told("0x1", removed=True), told("0x2"), told("0x2", removed=False)]
    assert [log.index for log in read_logs(logs, [told("0x2")])] == [2]


def test_logs_that_are_counted_anew_in_each_transaction_keep_the_order_of_the_transactions():
    logs = read_logs([told("0x0", "0x1"), told("0x1", "0x0"), told("0x0", "0x0")])
    assert [log.order for log in logs] == [0, 0, 1] and [log.index for log in logs] == sorted(
        {log.index for log in logs}
    )


def test_two_logs_in_one_place_are_no_answer():
    with pytest.raises(Malformed, match="one is told twice"):
        read_logs([told("0x1"), told("0x1", transactionHash="0x" + "9" * 64)])


@pytest.mark.parametrize(
    "raw",
    [
        *[None, [], "log", {}, LOG],
        *[{key: value for key, value in FEE_LOG.items() if key != name} for name in FEE_LOG],
        *[FEE_LOG | {name: None} for name in FEE_LOG],
        *[FEE_LOG | {"data": data} for data in ("", "0x", "0xzz", FEE_LOG["data"][:-2], "0x" + "f" * 256)],
        *[FEE_LOG | {"topics": topics} for topics in ([], [5], FEE_LOG["topics"] * 2)],
        *[FEE_LOG | {"transactionHash": []}, FEE_LOG | {"blockHash": "0x"}, FEE_LOG | {"logIndex": "-1x"}],
    ],
)
def test_a_log_that_no_contract_can_have_made_is_refused(raw):
    assert read_logs([FEE_LOG])[0].values == (0, 0, 4, 5)
    with pytest.raises(Malformed):
        read_logs([raw])


@pytest.mark.parametrize(
    "said", [None, 7, True, {}, [], "", "zz", "0x1", "0xzz", "0x" + "0" * 62, "0x" + "f" * 100_000]
)
def test_what_no_function_returns_is_malformed_whatever_it_is(said):
    with pytest.raises(Malformed):
        TOKEN_OF_OWNER.read(said)


@pytest.mark.parametrize("raw", [None, 5, {}, {"number": "0x1"}, {"number": 1, "timestamp": "0x1", "hash": ""}])
def test_a_header_that_cannot_be_is_refused(raw):
    with pytest.raises(Malformed):
        read_header(raw)


# ---------------------------------------------------------------------------------------------------------------------
# Recording


class Elsewhere:
    """A world whose chain is asked through another node."""

    def __init__(self, url: str, uniswap: anvil.Uniswap):
        self.chain, self.uniswap = type("Chain", (), {"url": url}), uniswap


def record(world: World | Elsewhere, first: int, last: int, folder, *more: str, **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "evm", "record", "--rpc", world.chain.url, "--pool", world.uniswap.address]
    command += ["--from", str(first), "--to", str(last), "--out", str(folder), "--name", "x", "--confirmations", "0"]
    return subprocess.Popen([*command, *more], cwd=anvil.ROOT, stdout=-1, stderr=-1, text=True, **options)


def test_a_recording_of_the_chain_replays_to_the_contracts_state_and_is_a_market(world, tmp_path):
    """With flashes and protocol fees, from the middle of the pool's life."""
    world.trade(10)
    world.uniswap.set_fee_protocol(4, 7)
    first = world.chain.mine() + 1
    world.trade(40)
    out, err = (ended := record(world, first, world.chain.height, tmp_path)).communicate(timeout=60)
    assert ended.returncode == 0 and "every digit agrees" in out, err
    recording = read_recording(tmp_path / "x")
    kinds = {event.kind for event in recording.events}
    assert kinds >= {"swap", "mint", "burn", "flash", "set_fee_protocol"}
    assert recording.fee_protocol == (4, 7) and recording.start_block == first
    pool = replay(recording)
    names = ("sqrt_price_x96", "tick", "liquidity", "fee_growth_global0_x128", "fee_growth_global1_x128")
    assert {name: getattr(pool, name) for name in names} == recording.final
    [price, tick] = world.chain.call(world.uniswap.address, Function("slot0()", "uint160", "int24"))
    assert (pool.sqrt_price_x96, pool.tick) == (price, tick)
    assert asyncio.run(RecordedMarket(recording).head()).number == first


def test_a_recording_that_was_killed_goes_on_where_it_stopped(world, tmp_path):
    first = world.chain.height + 1
    world.trade(30)
    last = world.chain.height

    async def work():
        asked = []

        async def slow(request, calls, answers):
            asked.extend(answer for answer in answers if isinstance(answer.get("result"), list))
            if len(asked) > 3:
                await asyncio.sleep(30)
            return answers

        async def small(request, calls, answers):
            for call, answer in zip(calls, answers, strict=True):
                span = call["params"][0] if call["method"] == "eth_getLogs" else {}
                if span and int(span["toBlock"], 16) - int(span["fromBlock"], 16) > 5:
                    answer.clear()
                    answer |= {"jsonrpc": "2.0", "id": call["id"], "error": {"code": -32005, "message": "too many"}}
            return await slow(request, calls, answers)

        async with Node(world.chain, small) as url:
            begun = await asyncio.to_thread(record, Elsewhere(url, world.uniswap), first, last, tmp_path)
            while len(asked) <= 3:
                await asyncio.sleep(0.02)
            begun.send_signal(signal.SIGKILL)
            await asyncio.to_thread(begun.communicate)

    asyncio.run(work())
    with closing(sqlite3.connect(tmp_path / "x.sqlite3")) as db, db:
        [reached] = db.execute("SELECT block FROM cursor").fetchone()
    assert first < reached < last and not (tmp_path / "x.json").exists()
    read = []

    async def note(request, calls, answers):
        read.extend(int(call["params"][0]["fromBlock"], 16) for call in calls if call["method"] == "eth_getLogs")
        return answers

    async def go_on():
        async with Node(world.chain, note) as url:
            ended = await asyncio.to_thread(record, Elsewhere(url, world.uniswap), first, last, tmp_path)
            _, err = await asyncio.to_thread(ended.communicate, timeout=60)
            assert ended.returncode == 0, err

    asyncio.run(go_on())
    truth = asyncio.run(world.truth(tmp_path / "b.sqlite3", first - 1))
    recorded = [event for event in truth if event.kind not in ("collect", "collect_protocol")]
    assert list(read_recording(tmp_path / "x").events) == recorded
    assert read and min(read) > reached


def test_a_recording_that_cannot_be_made_says_so_in_one_line(world, tmp_path):
    height = world.chain.height
    for first, last, text, code in (
        (5, 4, "before --from", 2),
        (height, height + 9, f"confirmations is {height}; wait and run this again, or choose --to {height}", 2),
        (1, 2, "no contract was there at that block", 75),  # says this node: another may have it
    ):
        ended = record(world, first, last, tmp_path / "made" / str(first))
        _, err = ended.communicate(timeout=60)
        assert ended.returncode == code and text in err and "Traceback" not in err
