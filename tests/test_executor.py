"""The executor bot on real contracts: every decision at most once, whatever crashes; every limit with its code.

The chain is anvil with Uniswap's own contracts (`anvil.py`); nothing is mined before a test says so. The tests of the
tables in `docs/executor.md` are named there.
Run: `python -m pytest tests/test_executor.py`. Read next: `execution.py`, `docs/executor.md`.
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from random import Random

import aiohttp
import anvil
import pytest
from eth_account.typed_transactions import TypedTransaction
from hexbytes import HexBytes
from multidict import CIMultiDict
from web3 import Account, Web3

from evm import abi as abi_module
from evm import pool as pool_module
from evm import rpc as rpc_module
from evm.abi import POOL_LOGS, Function
from evm.market import Web3Market
from evm.pool import Contract, TokenPosition, describe
from evm.rpc import Refusal, RpcError, open_rpc
from executor import __main__ as executor_main
from executor import door as door_module
from executor import drafting
from executor import plan as plan_module
from executor import wallet as wallet_module
from executor.client import Bot, place
from executor.door import MIN_API_KEY_CHARS, Door, read_api_key
from executor.drafting import GWEI, Limits
from executor.execution import FOREIGN_SECONDS, MAX_REVERTED, Executor
from executor.journal import MAX_OPEN, Attempt, OrderJournal
from executor.plan import around, close_calls, match_tokens, mint_calls, multicall, size
from executor.readback import gas_of, read_back
from executor.wallet import Wallet, load_account
from liquidity.executions import NOTHING, Order, Report
from liquidity.live import own_events, sums_of
from liquidity.replay import Snapshot
from liquidity.rounds import plan
from liquidity.tape import Tape
from protocol import Code, Inventory, Pair, Position, ProtocolError, Token
from runtime.process import UserError
from sim import Q96, Pool, amounts_of, liquidity_for, sqrt_ratio_at_tick
from wire.codec import decode, encode
from wire.server import serve

pytestmark = pytest.mark.costly("the bot on anvil", fixture="chain")

ETHER = 10**18
VAULT_KEY = "0x47e179ec197488593b187f80a00eb0da91f1b9d0b13f8733639f19c30a34926a"  # the fifth of anvil's own, public
API_KEY = "an-api-key-of-a-test"
CHAIN_ID = 31337
SLOT0 = Function("slot0()", "uint160", "int24")
BALANCE = Function("balanceOf(address)", "uint256")
BALANCE_OF = "0x" + BALANCE.selector.hex()
OF_OWNER = Function("tokenOfOwnerByIndex(address,uint256)", "uint256")
POSITIONS = Function("positions(uint256)", *["uint256"] * 5, "int24", "int24", "uint128")
POOL_TOPICS = {kind.topic for kind in POOL_LOGS}
WIDE = Position(-600, 600, ETHER // 2, ETHER // 2)
SECONDS = 120  # a deadline that is reached only when something hangs


@pytest.fixture(scope="module")
def chain(missing):
    if anvil.missing():
        missing(anvil.missing())
    with anvil.Chain() as chain:
        yield chain


class World:
    """A pool that remembers its price of the last hours, and a vault whose key the bot has."""

    def __init__(self, chain: anvil.Chain):
        self.chain, self.uniswap = chain, anvil.Uniswap(chain)
        uniswap, self.vault = self.uniswap, chain.accounts[4].lower()
        uniswap.mint_direct(-12000, 12000, 100 * ETHER)
        for token in (uniswap.token0, uniswap.token1):
            uniswap.send(token, "transfer(address,uint256)", self.vault, ETHER)
            uniswap.send(token, "approve(address,uint256)", uniswap.manager, anvil.SUPPLY, sender=self.vault)
        uniswap.remember()
        chain.mine(2, 1000)

    @property
    def time(self) -> int:
        return int(self.chain.rpc("eth_getBlockByNumber", "latest", False)["timestamp"], 16)

    @property
    def nonce(self) -> int:
        return int(self.chain.rpc("eth_getTransactionCount", self.vault, "latest"), 16)

    @property
    def price(self) -> tuple[int, int]:
        return self.chain.call(self.uniswap.address, SLOT0)

    def balances(self) -> tuple[int, int]:
        tokens = self.uniswap.token0, self.uniswap.token1
        return tuple(self.chain.call(token, BALANCE, self.vault)[0] for token in tokens)

    def held(self) -> list[tuple[int, int, int, int]]:
        """The vault's tokens: id, ticks, liquidity."""
        manager = self.uniswap.manager
        [count] = self.chain.call(manager, BALANCE, self.vault)
        ids = [self.chain.call(manager, OF_OWNER, self.vault, n)[0] for n in range(count)]
        return [(one, *self.chain.call(manager, POSITIONS, one)[5:8]) for one in sorted(ids)]

    def order(self, decision: str, *desired: Position | int, **changes) -> Order:
        """For the vault as it stands; a number among the desired is the shown position that is kept."""
        price, tick = self.price
        shown = tuple(
            Position(
                lower,
                upper,
                *amounts_of(liquidity, price, *map(sqrt_ratio_at_tick, (lower, upper)), round_up=False),
            )
            for _, lower, upper, liquidity in self.held()
        )
        desired = tuple(shown[one] if isinstance(one, int) else one for one in desired)
        order = Order(
            *(decision, CHAIN_ID, self.uniswap.address, self.vault, shown, desired),
            *(self.chain.height, price, tick, self.time + 120),
        )
        return replace(order, **changes)

    @asynccontextmanager
    async def bot(self, folder: Path, live: bool = True, **limits):
        async with open_rpc([self.chain.url]) as rpc:
            contract = await describe(rpc, self.uniswap.address, self.uniswap.manager)
            path = folder / "journal.sqlite3"
            async with OrderJournal.open(path, CHAIN_ID, self.uniswap.address, self.vault) as journal:
                usual = {"confirmations": 0, "turnover_percent": 10**6, "hourly_transactions": 10**6}
                limits = Limits(**usual | limits)
                account = Account.from_key(VAULT_KEY)
                wallet = Wallet(rpc, contract, self.vault, account, limits.max_gas_wei, folder / "pause")
                yield Executor(wallet, journal, limits, live)

    def run(self, folder: Path, *orders: Order, blocks: int = 8, **options) -> list[Report]:
        """Carry orders out one after the other, a block between two looks."""

        async def work():
            async with self.bot(folder, **options) as bot:
                return [await self.carry_out(bot, order, blocks) for order in orders]

        return asyncio.run(work())

    async def carry_out(self, bot: Executor, order: Order, blocks: int = 8) -> Report | None:
        await bot.journal.accept(order)
        for _ in range(blocks):
            if not await bot.step():
                break
            self.chain.mine()
        return (await bot.journal.report(order.decision))[1]

    def pending(self) -> list[str]:
        """Hashes of the vault's transactions that wait to be mined."""
        waiting = self.chain.rpc("txpool_content")["pending"]
        return [tx["hash"] for by in waiting.values() for tx in by.values() if tx["from"].lower() == self.vault]


@pytest.fixture(scope="module")
def built(chain) -> World:
    return World(chain)


@pytest.fixture
def world(built):
    """As it was built, for each test."""
    saved = built.chain.rpc("evm_snapshot")
    built.chain.rpc("anvil_setNextBlockBaseFeePerGas", hex(10**9))  # what a test set for its next block outlives it
    built.chain.mine()
    yield built
    built.chain.rpc("anvil_dropAllTransactions")
    assert built.chain.rpc("evm_revert", saved)


def balanced(report: Report) -> bool:
    """The identity that every executed report has."""
    return all(
        getattr(report.before, side)
        + getattr(report.released, side)
        + getattr(report.fees, side)
        - getattr(report.paid, side)
        == getattr(report.after, side)
        for side in ("amount0", "amount1")
    )


def rows(folder: Path, sql: str) -> list[tuple]:
    with closing(sqlite3.connect(f"file:{folder / 'journal.sqlite3'}?mode=ro", uri=True)) as db:
        return db.execute(sql).fetchall()


# ---------------------------------------------------------------------------------------------------------------------
# The planner


def random_position(rng: Random, *ranges: tuple[int, int]) -> Position:
    lower = rng.randint(-10, 8) * 60
    ticks = rng.choice(ranges) if ranges else (lower, lower + 60 * rng.randint(1, 8))
    return Position(*ticks, rng.choice([0, 1, int(10 ** rng.uniform(0, 20))]), int(10 ** rng.uniform(0, 20)))


def shown_of(held: list[TokenPosition], price: int) -> list[Position]:
    return [
        Position(
            t.tick_lower,
            t.tick_upper,
            *amounts_of(
                t.liquidity, price, sqrt_ratio_at_tick(t.tick_lower), sqrt_ratio_at_tick(t.tick_upper), round_up=False
            ),
        )
        for t in held
    ]


def token(token_id: int, lower: int, upper: int, liquidity: int) -> TokenPosition:
    return TokenPosition(token_id, lower, upper, liquidity, 0, 0, 0, 0)


@pytest.mark.parametrize("seed", range(200))
def test_the_vaults_tokens_are_kept_and_closed_as_the_plan_of_a_round_says(seed):
    """Ranges that several tokens have, and amounts that moved on since they were shown."""
    rng = Random(seed)
    ranges = [(-600, 600), (-60, 120), (120, 600)]
    held = [token(n, *rng.choice(ranges), int(10 ** rng.uniform(6, 20))) for n in range(rng.randint(0, 6))]
    shown = shown_of(held, sqrt_ratio_at_tick(rng.randint(-700, 700)))
    rng.shuffle(shown)
    desired = rng.sample(shown, rng.randint(0, len(shown))) + [random_position(rng) for _ in range(rng.randint(0, 3))]
    rng.shuffle(desired)
    empty = token(99, -600, 600, 0)  # one that was closed by hand
    keep, close, wanted = match_tokens(shown, desired, [*held, empty])
    kept, closed, mint = plan(shown, desired)
    ticks = [(one.tick_lower, one.tick_upper) for one in keep]
    assert sorted(ticks) == sorted(kept) and sorted((one.tick_lower, one.tick_upper) for one in close) == sorted(closed)
    assert [(p.tick_lower, p.tick_upper, p.allocation0, p.allocation1) for p in wanted] == mint
    assert sorted(keep + close) == sorted(held)


def test_of_several_in_one_range_the_larger_is_the_larger_also_after_strangers_added_to_them():
    small, large = token(7, -600, 600, 10**18), token(5, -600, 600, 3 * 10**18)
    shown = shown_of([large, small], Q96)
    dusted = [large._replace(liquidity=large.liquidity + 1), small._replace(liquidity=small.liquidity + 10**17)]
    assert match_tokens(shown, [shown[0]], dusted) == ([dusted[0]], [dusted[1]], [])
    assert match_tokens(shown, [shown[1]], dusted) == ([dusted[1]], [dusted[0]], [])


@pytest.mark.parametrize("held", [[], [(-600, 660)], [(-600, 600), (-600, 600)], [(-600, 600), (0, 60)]])
def test_ranges_that_the_vault_does_not_hold_are_refused(held):
    tokens = [token(n, *ticks, 10**18) for n, ticks in enumerate(held)]
    with pytest.raises(ProtocolError, match="-600, 600"):
        match_tokens([Position(-600, 600, 1, 1)], [], tokens)


@pytest.mark.parametrize("seed", range(200))
def test_what_is_minted_is_there_and_the_least_is_taken_at_every_price_within_the_bound(seed):
    rng = Random(seed)
    price, slippage = sqrt_ratio_at_tick(rng.randint(-900, 900)) + rng.randint(0, 10**20), rng.choice([0, 1, 50, 500])
    wanted = [random_position(rng) for _ in range(rng.randint(1, 5))]
    there = int(10 ** rng.uniform(0, 20)), int(10 ** rng.uniform(0, 20))
    keep = [token(9, wanted[0].tick_lower, wanted[0].tick_upper, 5)]
    mints, left = size(wanted, keep, there, price, slippage, 1 << 100), there
    for mint in mints:
        assert (mint.token_id == 9) == ((mint.tick_lower, mint.tick_upper) == keep[0][1:3]) and mint.liquidity > 0
        assert all(paid <= most <= have for paid, most, have in zip(mint.paid, mint.most, left, strict=True))
        left = left[0] - mint.paid[0], left[1] - mint.paid[1]
        bounds = sqrt_ratio_at_tick(mint.tick_lower), sqrt_ratio_at_tick(mint.tick_upper)
        low, high = around(price, slippage)
        for at in (low, high, price, rng.randint(low, high), rng.randint(low, high)):
            used = amounts_of(liquidity_for(*mint.most, at, *bounds), at, *bounds, round_up=True)
            assert all(least <= amount for least, amount in zip(mint.least, used, strict=True)), (mint, at)
    assert len(mints) <= len(wanted) and (mints or not any(p.allocation0 and p.allocation1 for p in wanted))


@pytest.mark.parametrize("seed", range(200))
def test_what_a_mint_may_take_is_what_it_needs_within_the_bound_and_gives_the_same_liquidity_there(seed):
    rng = Random(seed)
    price, slippage = sqrt_ratio_at_tick(rng.randint(-900, 900)) + rng.randint(0, 10**20), rng.choice([0, 1, 50, 500])
    wanted, there = random_position(rng), (int(10 ** rng.uniform(0, 20)), int(10 ** rng.uniform(0, 20)))
    offered = min(wanted.allocation0, there[0]), min(wanted.allocation1, there[1])
    bounds = sqrt_ratio_at_tick(wanted.tick_lower), sqrt_ratio_at_tick(wanted.tick_upper)
    for mint in size([wanted], [], there, price, slippage, 1 << 100):
        peak = (0, 0)
        low, high = around(price, slippage)
        for at in (low, high, price, rng.randint(low, high)):
            liquidity = liquidity_for(*offered, at, *bounds)
            assert liquidity_for(*mint.most, at, *bounds) == liquidity
            peak = tuple(map(max, peak, amounts_of(liquidity + 1, at, *bounds, round_up=True)))
        assert all(most <= needed for most, needed in zip(mint.most, peak, strict=True))


def test_a_range_that_can_get_no_liquidity_or_more_than_a_tick_may_hold_is_left_out():
    nothing, fine, much = Position(-60, 60, 0, ETHER), Position(60, 120, ETHER, 0), Position(-60, 60, ETHER, ETHER)
    assert [mint.tick_lower for mint in size([nothing, fine], [], (ETHER, ETHER), Q96, 50, 1 << 100)] == [60]
    assert size([much], [], (ETHER, ETHER), Q96, 50, 10**18) == []


CONTRACT = Contract(
    Pair(8453, "0x" + "11" * 20, Token("0x" + "22" * 20, "A", 18), Token("0x" + "33" * 20, "B", 6), 500, 10),
    "0x" + "44" * 20,
)
VAULT = "0x" + "55" * 20


def decoded(data: bytes, signatures: dict[bytes, tuple[str, list[str]]]) -> tuple:
    name, types = signatures[data[:4]]
    return name, *Web3().codec.decode(types, data[4:])


def abi_of(artifact: Path) -> dict[bytes, tuple[str, list[str]]]:
    """Selectors of a contract's functions, with their names and types, from its compiler's output."""
    found = {}
    for item in json.loads(artifact.read_text())["abi"]:
        if item["type"] == "function":
            types = [
                f"({','.join(part['type'] for part in one['components'])})" if "components" in one else one["type"]
                for one in item["inputs"]
            ]
            found[bytes(Web3.keccak(text=f"{item['name']}({','.join(types)})"))[:4]] = item["name"], types
    return found


def test_the_calls_are_those_of_uniswaps_manager(missing):
    if anvil.missing():
        missing(anvil.missing())
    abi = abi_of(anvil.NODE_MODULES / anvil.ARTIFACTS["manager"])
    closing = close_calls([token(8, -600, 600, 10**18)], VAULT, Q96, 50, 99)
    mints = [
        plan_module.Mint(0, -60, 60, (5, 6), (3, 4), 1, (5, 6)),
        plan_module.Mint(8, -60, 60, (5, 6), (3, 4), 1, (5, 6)),
    ]
    decrease, collect, burn, mint, increase = (
        decoded(data, abi) for data in [*closing, *mint_calls(mints, CONTRACT, VAULT, 99)]
    )
    least = decrease[1][2:4]
    exact = amounts_of(10**18, Q96, sqrt_ratio_at_tick(-600), sqrt_ratio_at_tick(600), round_up=False)
    assert decrease == ("decreaseLiquidity", (8, 10**18, *least, 99))
    assert all(0.9 * full < part < full for part, full in zip(least, exact, strict=True))
    most = (1 << 128) - 1
    assert collect == ("collect", (8, VAULT, most, most)) and burn == ("burn", 8)
    tokens = CONTRACT.pair.token0.address, CONTRACT.pair.token1.address
    assert mint == ("mint", (*tokens, 500, -60, 60, 5, 6, 3, 4, VAULT, 99))
    assert increase == ("increaseLiquidity", (8, 5, 6, 3, 4, 99))
    assert decoded(bytes.fromhex(multicall([b"one", b"two"])[2:]), abi) == ("multicall", (b"one", b"two"))


def test_slipstreams_mint_has_the_spacing_in_the_place_of_the_fee_and_a_price_at_its_end():
    types = ["(address,address,int24,int24,int24,uint256,uint256,uint256,uint256,address,uint256,uint160)"]
    selector = bytes(Web3.keccak(text=f"mint({types[0]})"))[:4]

    mints = [plan_module.Mint(0, -60, 60, (5, 6), (3, 4), 1, (5, 6))]
    [data] = mint_calls(mints, replace(CONTRACT, gauge="0x" + "66" * 20), VAULT, 99)
    tokens = CONTRACT.pair.token0.address, CONTRACT.pair.token1.address
    assert decoded(data, {selector: ("mint", types)}) == ("mint", (*tokens, 10, -60, 60, 5, 6, 3, 4, VAULT, 99, 0))


# ---------------------------------------------------------------------------------------------------------------------
# What is done


def test_an_order_becomes_one_transaction_and_the_report_is_what_the_chain_has(world, tmp_path):
    """Mint; then keep one, close one and collect its fees, add to the kept one and mint another."""
    before, nonce = world.balances(), world.nonce
    first = world.order("first", WIDE, Position(-60, 60, ETHER // 10, ETHER // 10))
    [one] = world.run(tmp_path, first)
    assert (one.code, one.before, one.released) == (Code.EXECUTED, Inventory(*before), NOTHING) and balanced(one)
    assert world.balances() == (one.after.amount0, one.after.amount1)
    held = world.held()
    assert [(m.tick_lower, m.tick_upper, m.liquidity) for m in one.minted] == [row[1:] for row in held]
    for down in (True, False):
        world.uniswap.swap(down, ETHER // 10)
        world.chain.mine()
    more, new = Position(-600, 600, ETHER // 100, ETHER // 100), Position(-120, 180, ETHER, ETHER)
    [two] = world.run(tmp_path, world.order("second", 0, more, new))
    receipt = world.chain.receipt(two.transaction)
    assert two.code == Code.EXECUTED and balanced(two) and two.block == int(receipt["blockNumber"], 16)
    assert two.fees.amount0 > 0 and two.fees.amount1 > 0 and two.before == one.after
    assert world.balances() == (two.after.amount0, two.after.amount1) and world.nonce == nonce + 2
    kept, minted = world.held()
    assert kept[0] == held[0][0] and kept[3] == held[0][3] + two.minted[0].liquidity  # its token, with more in it
    assert minted[1:3] == (-120, 180) and minted[3] == two.minted[1].liquidity
    paid = int(receipt["gasUsed"], 16) * int(receipt["effectiveGasPrice"], 16)
    assert (two.gas_used, two.gas_wei, two.gas0, two.gas1) == (int(receipt["gasUsed"], 16), paid, paid, 0)


def test_a_dry_run_says_to_the_wei_what_then_is_done(world, tmp_path):
    (tmp_path / "dry").mkdir()
    world.run(tmp_path, world.order("first", WIDE))
    world.uniswap.swap(True, ETHER // 10)
    world.chain.mine()
    order, nonce = world.order("second", Position(-120, 60, ETHER, ETHER)), world.nonce
    [foreseen] = world.run(tmp_path / "dry", order, live=False)
    assert foreseen.code == Code.EXECUTION_DRY_RUN and world.nonce == nonce and not foreseen.transaction
    [done] = world.run(tmp_path, order)
    names = "before", "released", "fees", "paid", "after", "minted"
    assert {name: getattr(foreseen, name) for name in names} == {name: getattr(done, name) for name in names}
    assert done.fees.amount0 > 0 and balanced(foreseen) and len(foreseen.minted) == 1


def test_an_order_that_changes_nothing_sends_nothing(world, tmp_path):
    world.run(tmp_path, world.order("first", WIDE))
    nonce, balances = world.nonce, world.balances()
    [report] = world.run(tmp_path, world.order("second", 0, Position(-60, 60, 0, ETHER)))
    assert (report.code, report.transaction, report.detail) == (Code.EXECUTED, "", "nothing to do")
    assert report.before == report.after == Inventory(*balances) and world.nonce == nonce


def test_what_others_pay_the_vault_in_the_same_block_is_not_the_bots_doing(world, tmp_path):
    """The balances before and after the transaction, not before and after its block."""

    async def work():
        async with world.bot(tmp_path) as bot:
            await bot.journal.accept(order)
            transfer = "transfer(address,uint256)"
            world.uniswap.send(world.uniswap.token0, transfer, world.vault, 111)
            await bot.step()
            world.uniswap.send(world.uniswap.token0, transfer, world.vault, 5000)
            world.uniswap.send(world.uniswap.token1, transfer, world.vault, 70000)
            world.chain.mine()
            world.uniswap.send(world.uniswap.token1, transfer, world.vault, 900000)
            world.chain.mine()
            await bot.step()
            return (await bot.journal.report("first"))[1]

    before, order = world.balances(), world.order("first", WIDE)
    report = asyncio.run(work())
    assert report.code == Code.EXECUTED and balanced(report) and "balances" not in report.detail
    assert report.before == Inventory(before[0] + 111, before[1])
    assert world.balances() == (report.after.amount0 + 5000, report.after.amount1 + 970000)


def test_what_is_read_back_is_held_against_the_balances_also_by_a_node_that_forgot_old_states(world, tmp_path):
    async def work():
        async with world.bot(tmp_path) as bot:
            [mined] = await bot.journal.attempts("first")
            tip, batch = await bot.wallet.tip(), bot.wallet.rpc.batch

            async def forgetful(calls, **options):
                answers = await batch(calls, **options)
                for n, (method, parameters) in enumerate(calls):
                    if method == "eth_call" and parameters[1]["blockHash"] != tip.hash:
                        answers[n] = Refusal(-32000, "missing trie node")
                return answers

            found = [await read_back(bot.wallet.rpc, bot.wallet.contract, bot.wallet.vault, mined, tip)]

            async def narrow(calls, **options):
                spans = [given[0] for method, given in calls if method == "eth_getLogs"]
                if any(span["fromBlock"] != span["toBlock"] for span in spans):
                    raise RpcError("logs of one block at a time")
                return await batch(calls, **options)

            bot.wallet.rpc.batch = narrow  # what was mined may be long ago, and nodes give logs of few blocks
            found.append(await read_back(bot.wallet.rpc, bot.wallet.contract, bot.wallet.vault, mined, tip))
            bot.wallet.rpc.batch = forgetful
            found.append(await read_back(bot.wallet.rpc, bot.wallet.contract, bot.wallet.vault, mined, tip))
            log = of_pool(mined.receipt)
            log["data"] = log["data"][:-1] + ("1" if log["data"][-1] == "0" else "0")
            return *found, await read_back(bot.wallet.rpc, bot.wallet.contract, bot.wallet.vault, mined, tip)

    [report] = world.run(tmp_path, world.order("first", WIDE))
    world.chain.mine(3)
    sound, narrowed, forgotten, other = asyncio.run(work())
    assert (
        sound == narrowed == forgotten
        and not sound.trouble
        and sound.fill(replace(report, block=0, minted=())) == report
    )
    assert "the pool's" in other.trouble


def test_what_the_manager_did_in_another_pool_is_none_of_this_pools_and_is_said(world, tmp_path, caplog):
    """As of a manager of another factory's pools, which the bot once took for this pool's."""

    async def work():
        async with world.bot(tmp_path) as bot:
            [mined] = await bot.journal.attempts("first")
            pool, others = world.uniswap.address, "0x" + "12" * 20
            logs = [one | {"address": others} if one["address"] == pool else one for one in mined.receipt["logs"]]
            other = replace(mined, receipt=mined.receipt | {"logs": logs})
            tip = await bot.wallet.tip()
            return await read_back(bot.wallet.rpc, bot.wallet.contract, bot.wallet.vault, other, tip)

    world.run(tmp_path, world.order("first", WIDE))
    done = asyncio.run(work())
    assert (done.minted, done.paid) == ((), (0, 0)) and "the pool's 0, 0" in done.trouble


def test_what_an_empty_token_is_owed_is_collected_first_and_was_shown_as_idle(world, tmp_path):
    """All was taken out by hand, and never collected."""

    async def look(since: Snapshot | None = None) -> tuple[Snapshot, dict]:
        """The vault as its miners are shown it, and its own events since."""
        path = tmp_path / "events.sqlite3"
        options = {"manager": world.uniswap.manager, "vaults": [world.vault], "confirmations": 0, "following": False}
        async with Web3Market.open([world.chain.url], world.uniswap.address, path, **options) as market:
            await market.catch_up()
            head = (await market.head()).number
            snapshot = await market.snapshot(world.vault, head + 1)
            return snapshot, own_events(Tape(since), await market.events(since.block, head)) if since else {}

    part = ETHER // 10 * 9
    world.run(tmp_path, world.order("first", Position(-600, 600, part, part), Position(-60, 60, part, part)))
    asyncio.run(look())
    for down in (True, False):
        world.uniswap.swap(down, ETHER)
        world.chain.mine()
    for token_id, _, _, liquidity in (taken := world.held()):
        world.uniswap.decrease(world.vault, token_id, liquidity)
    world.chain.mine()
    (before, _), (had, _) = asyncio.run(look()), world.balances()
    idle = Inventory(before.idle0, before.idle1)
    assert had < ETHER // 5 and idle.amount0 > ETHER // 10 * 9
    order = replace(world.order("second", Position(-1200, 1200, idle.amount0, idle.amount1)), shown=())
    saved = world.chain.rpc("evm_snapshot")
    (tmp_path / "dry").mkdir()
    [foreseen] = world.run(tmp_path / "dry", order, live=False)
    [report] = world.run(tmp_path, order)
    assert report.code == Code.EXECUTED and report.before == idle and balanced(report), report
    assert min(report.paid.amount0, report.paid.amount1) > ETHER // 10 * 9
    names = "before", "released", "fees", "paid", "after", "minted"
    assert {name: getattr(foreseen, name) for name in names} == {name: getattr(report, name) for name in names}
    after, own = asyncio.run(look(before))
    assert report.after == Inventory(*world.balances()) == Inventory(after.idle0, after.idle1)
    released, fees, paid, _ = sums_of(own[report.block])
    assert (Inventory(*released), Inventory(*fees), Inventory(*paid)) == (report.released, report.fees, report.paid)
    assert len(world.held()) == len(taken) + 1
    world.chain.rpc("evm_revert", saved)


@pytest.mark.parametrize("kept", [False, True])
def test_what_was_taken_out_of_a_position_and_not_collected_is_no_fee_and_can_be_spent(world, tmp_path, kept):
    """It was idle, as it was shown: else what the chain tells would differ from what the bot says it did."""

    async def work():
        options = {"manager": world.uniswap.manager, "vaults": [world.vault], "confirmations": 0, "following": False}
        async with world.bot(tmp_path) as bot:

            async def place_(order: Order, _: float) -> Report:
                report = await world.carry_out(bot, order)
                await market.catch_up()
                return report

            opened = Web3Market.open([world.chain.url], world.uniswap.address, tmp_path / "a.sqlite3", **options)
            async with opened as market:
                market._place = place_
                await market.execute(world.order("first", WIDE))
                [(token_id, _, _, liquidity)] = world.held()
                world.uniswap.decrease(world.vault, token_id, liquidity // 2)
                for down in (True, False):
                    world.uniswap.swap(down, ETHER)
                    world.chain.mine()
                await market.catch_up()
                snapshot = await market.snapshot(world.vault, (await market.head()).number + 1)
                wanted = Position(-600, 660, snapshot.idle0, snapshot.idle1)
                done = await market.execute(world.order("second", *([0] if kept else []), wanted))
                events = await market.events(snapshot.block, (await market.head()).number)
                return snapshot, done, own_events(Tape(snapshot), events)[done.block]

    snapshot, done, own = asyncio.run(work())
    assert (done.released, done.fees, done.paid, done.minted) == sums_of(own) and min(done.fees) > 0
    assert done.before == (snapshot.idle0, snapshot.idle1) and snapshot.idle0 > 7 * ETHER // 10
    assert done.after == world.balances() and min(done.paid) > 6 * ETHER // 10
    flows = zip(done.before, done.released, done.fees, done.paid, done.after, strict=True)
    assert all(before + out + fee - paid == after for before, out, fee, paid, after in flows)


def test_gas_is_that_of_all_mined_transactions_with_a_second_layers_own_fees():
    def attempt(**gas: int) -> Attempt:
        receipt = {"from": "0x", "logs": [], "blockNumber": "0x1", "status": "0x1"}
        receipt |= {name: hex(value) for name, value in gas.items()}
        return Attempt(0, "plan", "0x", "0x", 0, 0, 0, 0, receipt if gas else None)

    found = [attempt(gasUsed=5, effectiveGasPrice=7), attempt(), attempt(gasUsed=11, effectiveGasPrice=13, l1Fee=17)]
    assert gas_of(found) == (5 + 11, 5 * 7 + 11 * 13 + 17)
    fees = {"l1Fee": 17, "operatorFeeScalar": 2 * 10**6, "operatorFeeConstant": 19}
    more = attempt(gasUsed=11, effectiveGasPrice=13, **fees)  # the operator's fee, since Isthmus, and since Jovian
    assert gas_of([more]) == (11, 11 * 13 + 17 + 11 * 2 + 19)
    more = attempt(gasUsed=11, effectiveGasPrice=13, **fees | {"operatorFeeScalar": 2, "daFootprintGasScalar": 400})
    assert gas_of([more]) == (11, 11 * 13 + 17 + 11 * 2 * 100 + 19)


def test_liquidity_that_a_stranger_adds_to_the_vaults_position_changes_no_decision(world, tmp_path):
    world.run(tmp_path, world.order("first", WIDE, Position(-60, 60, ETHER // 10, ETHER // 10)))
    order, token_id = world.order("second", 1), world.held()[0][0]
    world.uniswap.increase(world.chain.accounts[2], token_id, 10**9, 10**9)
    world.chain.mine()
    [report] = world.run(tmp_path, order)
    assert report.code == Code.EXECUTED and [row[1:3] for row in world.held()] == [(-60, 60)]


def test_with_a_reserve_a_mint_succeeds_though_the_price_moves_before_it_is_mined(world, tmp_path):
    """Without one the bot has to plan anew: tokens that were all meant for the range are not there any more."""

    async def work(folder, reserve):
        folder.mkdir()
        async with world.bot(folder, reserve_ticks=reserve) as bot:
            await bot.journal.accept(order)
            await bot.step()
            [waiting] = world.pending()
            world.chain.rpc("anvil_dropTransaction", waiting)
            world.uniswap.swap(True, ETHER // 5)
            await bot.step()  # sends it again, now behind the swap
            world.chain.mine()
            return world.chain.rpc("eth_getTransactionReceipt", waiting)["status"]

    world.run(tmp_path, world.order("first", Position(-60, 60, ETHER, ETHER)))
    order = world.order("second", Position(-600, 600, 10 * ETHER, 10 * ETHER))
    saved = world.chain.rpc("evm_snapshot")
    assert asyncio.run(work(tmp_path / "tight", 0)) == "0x0"
    assert world.chain.rpc("evm_revert", saved)
    assert asyncio.run(work(tmp_path / "loose", 30)) == "0x1"


# ---------------------------------------------------------------------------------------------------------------------
# At most once


class Crash(BaseException):
    """The process is gone."""


def with_fuse(bot: Executor, at: int | None) -> list[str]:
    """Let the bot die at the n-th of the moments before and after each write and each send; returns those passed."""
    moments: list[str] = []

    def pass_by(name: str) -> None:
        moments.append(name)
        if at is not None and len(moments) > at:
            raise Crash(name)

    def around_(name: str, call):
        async def wrapped(*arguments, **options):
            if name == "batch" and "eth_sendRawTransaction" not in [method for method, _ in arguments[0]]:
                return await call(*arguments, **options)
            pass_by(f"before {name}")
            result = await call(*arguments, **options)
            pass_by(f"after {name}")
            return result

        return wrapped

    for name in ("accept", "sign", "mined", "finish"):
        setattr(bot.journal, name, around_(name, getattr(bot.journal, name)))
    bot.wallet.rpc.batch = around_("batch", bot.wallet.rpc.batch)
    return moments


def test_a_hundred_decisions_with_a_crash_at_every_step_are_each_carried_out_once(world, tmp_path):
    """Each decision is tried with one crash or two, at any of the ten moments; a new process finds the same files."""
    rng, start, first_nonce, reports, crashes = Random(6), world.balances(), world.nonce, [], []

    def wanted(n: int) -> list[Position | int]:
        lower, upper = -60 * rng.randint(1, 9), 60 * rng.randint(1, 9)
        new = Position(lower, upper, ETHER // rng.randint(2, 9), ETHER // rng.randint(2, 9))
        held = world.held()
        return [0, new] if held and n % 3 == 0 and len(held) < 4 else [new]

    async def one(order: Order, points: list[int]) -> Report:
        while True:
            async with world.bot(tmp_path) as bot:
                moments = with_fuse(bot, points.pop(0) if points else None)
                try:
                    report = await world.carry_out(bot, order)
                    assert moments[-1] == "after finish" or not points
                    return report
                except Crash as error:
                    crashes.append(str(error))
                    if rng.random() < 0.5:
                        world.chain.mine()

    async def work():
        for n in range(100):
            order = world.order(f"decision {n}", *wanted(n))
            points = [n % 10] if n < 50 else [n % 10, rng.randrange(8)]
            reports.append(await one(order, points))
            world.uniswap.swap(n % 2 == 0, rng.randint(1, ETHER // 10))
            world.chain.mine()

    asyncio.run(work())
    assert len(crashes) >= 130 and len(set(crashes)) == 10, sorted(set(crashes))
    assert [report.code for report in reports] == [Code.EXECUTED] * 100 and all(map(balanced, reports))
    assert world.nonce == first_nonce + 100 and len({report.transaction for report in reports}) == 100
    for earlier, later in pairwise(reports):
        assert earlier.after == later.before and earlier.block < later.block
    assert reports[0].before == Inventory(*start) and world.balances() == (
        reports[-1].after.amount0,
        reports[-1].after.amount1,
    )
    count = "SELECT COUNT(*), COUNT(DISTINCT decision), COUNT(DISTINCT nonce) FROM attempts"
    assert rows(tmp_path, f"{count} WHERE json_extract(receipt, '$.status') = '0x1'") == [(100, 100, 100)]
    assert sum(report.fees.amount0 for report in reports) > 0 and any(len(report.minted) for report in reports)


TROUBLES = {  # what befalls a decision, and how it may end
    "none": {Code.EXECUTED},
    "rate limits": {Code.EXECUTED},
    "a least tip": {Code.EXECUTED},
    "refused for good": {Code.EXECUTION_REFUSED},
    "lost": {Code.EXECUTION_EXPIRED},
    "lost, and mined after all": {Code.EXECUTION_EXPIRED},
    "an allowance taken back": {Code.EXECUTION_REVERTED},
    "a position given away": {Code.VAULT_CHANGED},
    "a position as a gift": {Code.EXECUTED},
    "a position emptied by hand": {Code.EXECUTED},
}


def test_a_hundred_decisions_in_the_field_are_each_carried_out_once_or_refused_with_their_code_in_time(
    world, tmp_path, monkeypatch
):
    """Among rate limits, tips and sends that are refused, odd tokens, and positions that others or the owner move."""
    monkeypatch.setattr(rpc_module, "MAX_REST_SECONDS", 0.001)
    monkeypatch.setattr(wallet_module, "POLL_SECONDS", 0.01)
    rng, uniswap, chain, stranger = Random(13), world.uniswap, world.chain, world.chain.accounts[2]
    anvil.make_odd(chain, uniswap.token0, "through_zero")
    said, limits, ended, late, gifts, held = {}, [0], [], [], [], world.held
    monkeypatch.setattr(world, "held", lambda: [row for row in held() if row[0] not in gifts])

    def takes(least: int):
        return lambda raw: Refusal(-32000, f"minimum needed {least}") if tip_of(raw) < least else None

    def befall(trouble: str) -> None:
        """Before the vault is shown."""
        limits[0] = 3 if trouble == "rate limits" else 0
        said.clear()
        if trouble == "a least tip":
            said["eth_maxPriorityFeePerGas"] = rpc_module._Limited("too many requests")
            said["eth_sendRawTransaction"] = takes(rng.randint(1, 9) * GWEI)
        elif trouble == "refused for good":
            said["eth_sendRawTransaction"] = Refusal(-32000, "exceeds block gas limit")
        elif trouble.startswith("lost"):
            said["eth_sendRawTransaction"] = "0x" + "12" * 32
        elif trouble == "an allowance taken back":
            uniswap.send(uniswap.token0, "approve(address,uint256)", uniswap.manager, 0, sender=world.vault)
            chain.mine()
        elif trouble == "a position emptied by hand":
            token_id, _, _, liquidity = next(row for row in world.held() if row[3])
            uniswap.decrease(world.vault, token_id, liquidity)
            chain.mine()

    def change_hands(trouble: str) -> None:
        """After it was shown."""
        signature, full = "transferFrom(address,address,uint256)", [row[0] for row in world.held() if row[3]]
        if trouble == "a position given away":
            uniswap.send(uniswap.manager, signature, world.vault, stranger, full[0], sender=world.vault)
            for token in (uniswap.token0, uniswap.token1):  # in its place
                uniswap.send(token, "transfer(address,uint256)", world.vault, ETHER // 9)
        elif trouble == "a position as a gift":
            uniswap.mint(stranger, -300, 300, 10**15, 10**15)
            chain.mine()
            [count] = chain.call(uniswap.manager, BALANCE, stranger)
            [mine] = chain.call(uniswap.manager, OF_OWNER, stranger, count - 1)
            uniswap.send(uniswap.manager, signature, stranger, world.vault, mine, sender=stranger)
            gifts.append(mine)
        chain.mine()

    async def one(bot: Executor, trouble: str, sent: list[str]) -> Report:
        befall(trouble)
        lower, upper = -60 * rng.randint(1, 9), 60 * rng.randint(1, 9)
        order = world.order(f"decision {len(ended)}", Position(lower, upper, ETHER // 9, ETHER // 9))
        order = replace(order, shown=tuple(one for one in order.shown if one.allocation0 or one.allocation1))
        change_hands(trouble)
        await bot.journal.accept(order)
        before = len(sent)
        while await bot.step():
            chain.mine(1, 10)
            limits[0] = 3 if trouble == "rate limits" else 0
        late.append(world.time - order.deadline)
        if trouble == "lost, and mined after all":
            said.clear()
            chain.rpc("eth_sendRawTransaction", sent[before])
        if trouble == "an allowance taken back":
            with mining(chain):
                await bot.wallet.approve(uniswap.token0, 0)
        return (await bot.journal.report(order.decision))[1]

    async def work() -> None:
        async with world.bot(tmp_path) as bot:
            sent, post = speaking(bot, said), bot.wallet.rpc._post

            async def limited(*arguments):
                limits[0] -= 1
                if limits[0] >= 0:
                    raise rpc_module._Limited("too many requests")
                return await post(*arguments)

            bot.wallet.rpc._post = limited
            for n in range(100):
                trouble = "none" if n < 2 else list(TROUBLES)[n % len(TROUBLES)]
                ended.append((trouble, await one(bot, trouble, sent)))
                uniswap.swap(n % 2 == 0, rng.randint(1, ETHER // 100))
                chain.mine()

    asyncio.run(work())
    assert {trouble: {report.code for of, report in ended if of == trouble} for trouble in TROUBLES} == TROUBLES
    assert max(late) <= FOREIGN_SECONDS + 12, "open past its deadline"
    done = [report for _, report in ended if report.code == Code.EXECUTED]
    assert all(map(balanced, done)) and len({report.transaction for report in done}) == len(done) == 50
    succeeded = rows(tmp_path, "SELECT decision FROM attempts WHERE json_extract(receipt, '$.status') = '0x1'")
    assert sorted(name for (name,) in succeeded) == sorted(report.decision for report in done)


def test_an_order_is_not_carried_out_again_though_it_comes_back_days_later(world, tmp_path):
    order = world.order("first", WIDE)
    [report] = world.run(tmp_path, order)
    nonce = world.nonce
    world.chain.mine(2, 5 * 86400)
    assert world.run(tmp_path, order) == [report] and world.nonce == nonce


def test_another_order_under_a_used_name_is_refused(world, tmp_path):
    order = world.order("first", WIDE)
    world.run(tmp_path, order)
    with pytest.raises(ProtocolError) as error:
        world.run(tmp_path, replace(order, deadline=order.deadline + 1))
    assert error.value.code == Code.ORDER_CONFLICT


def test_more_than_a_few_open_orders_are_not_taken(world, tmp_path):
    async def work():
        async with world.bot(tmp_path) as bot:
            for n in range(MAX_OPEN + 1):
                await bot.journal.accept(replace(order, decision=str(n)))

    order = world.order("", WIDE)
    with pytest.raises(ProtocolError) as error:
        asyncio.run(work())
    assert error.value.code == Code.BUSY


def test_a_dropped_transaction_is_sent_again_as_it_was(world, tmp_path):
    async def work():
        async with world.bot(tmp_path) as bot:
            await bot.journal.accept(order)
            await bot.step()
            [waiting] = world.pending()
            world.chain.rpc("anvil_dropTransaction", waiting)
            assert world.pending() == []
            await bot.step()
            assert world.pending() == [waiting]
            return await world.carry_out(bot, order), waiting

    order = world.order("first", WIDE)
    report, sent = asyncio.run(work())
    assert (report.code, report.transaction) == (Code.EXECUTED, sent)
    assert len(rows(tmp_path, "SELECT 1 FROM attempts")) == 1


def test_a_dry_run_awaits_what_was_sent_before_and_sends_nothing(world, tmp_path):
    async def work(live: bool, blocks: int):
        async with world.bot(tmp_path, live=live, replace_blocks=1) as bot:
            await bot.journal.accept(order)
            for _ in range(blocks):
                if await bot.step() and world.pending():
                    world.chain.rpc("anvil_dropTransaction", world.pending()[0])
                    lost.append(world.nonce)
                world.chain.mine()
            return (await bot.journal.report("first"))[1]

    order, nonce, lost = world.order("first", WIDE), world.nonce, []
    assert asyncio.run(work(True, 1)) is None and len(lost) == 1
    assert asyncio.run(work(False, 3)) is None and len(lost) == 1
    world.chain.mine(2, 200)  # past the deadline: what cancels it is not sent either
    assert asyncio.run(work(False, 3)).code == Code.EXECUTION_EXPIRED and len(lost) == 1 and world.nonce == nonce
    assert len(rows(tmp_path, "SELECT 1 FROM attempts")) == 1


@pytest.mark.parametrize("dear", [False, True])
def test_a_stuck_transaction_is_replaced_with_the_same_nonce_and_a_higher_fee(world, tmp_path, dear):
    """By a new plan; only one of them can be mined. At once where a block costs more than it offers."""

    async def work():
        async with world.bot(tmp_path, replace_blocks=2) as bot:
            said = {} if dear else {"eth_sendRawTransaction": "0x" + "12" * 32}  # taken, and lost
            speaking(bot, said)
            await bot.journal.accept(order)
            await bot.step()
            for _ in range(1 if dear else 2):
                assert len(rows(tmp_path, "SELECT 1 FROM attempts")) == 1
                if dear:
                    world.chain.rpc("anvil_setNextBlockBaseFeePerGas", hex(40 * GWEI))
                world.chain.mine()
                assert await bot.step()
            assert len(rows(tmp_path, "SELECT 1 FROM attempts")) == 2
            said.clear()
            return await world.carry_out(bot, order)

    order, nonce = world.order("first", WIDE), world.nonce
    report = asyncio.run(work())
    attempts = rows(tmp_path, "SELECT nonce, kind, hash, max_fee_wei, receipt IS NOT NULL FROM attempts ORDER BY id")
    assert [row[:2] for row in attempts] == [(nonce, "plan")] * 2
    assert [row[4] for row in attempts] == [0, 1] and int(attempts[1][3]) > int(attempts[0][3]) * 9 // 8
    assert (report.code, report.transaction) == (Code.EXECUTED, attempts[1][2]) and world.nonce == nonce + 1


def test_a_transaction_that_waits_past_the_deadline_is_cancelled_and_the_next_order_goes_on(world, tmp_path):
    async def work():
        async with world.bot(tmp_path, replace_blocks=100) as bot:
            await bot.journal.accept(order)
            await bot.step()
            world.chain.rpc("anvil_setNextBlockBaseFeePerGas", hex(40 * 10**9))
            world.chain.mine(1)
            world.chain.rpc("anvil_setNextBlockBaseFeePerGas", hex(40 * 10**9))
            world.chain.rpc("evm_setNextBlockTimestamp", order.deadline + 1)
            world.chain.mine()
            report = await world.carry_out(bot, order)
            later = await world.carry_out(bot, world.order("second", WIDE))
            return report, later

    order, nonce, balances = world.order("first", WIDE), world.nonce, world.balances()
    report, later = asyncio.run(work())
    assert report.code == Code.EXECUTION_EXPIRED and report.gas_used == 21000 and report.gas0 == report.gas_wei > 0
    assert "cancelled" in report.detail and later.code == Code.EXECUTED and later.before == Inventory(*balances)
    kinds = rows(tmp_path, "SELECT decision, kind, nonce FROM attempts ORDER BY id")
    assert kinds == [("first", "plan", nonce), ("first", "cancel", nonce), ("second", "plan", nonce + 1)]


def speaking(bot: Executor, said: dict[str, object]) -> list[str]:
    """Let the node answer these methods otherwise; returns the raw transactions that it was sent."""
    post, sent = bot.wallet.rpc._post, []

    async def wrapped(endpoint, calls, seconds, refusable):
        (method, parameters), *_ = calls
        if method == "eth_sendRawTransaction":
            sent.append(parameters[0])
        answer = said.get(method)
        answer = answer(*parameters) if callable(answer) else answer
        if isinstance(answer, Exception) and not isinstance(answer, Refusal):
            raise answer
        return [answer] if answer is not None else await post(endpoint, calls, seconds, refusable)

    bot.wallet.rpc._post = wrapped
    return sent


def tip_of(raw: str) -> int:
    return TypedTransaction.from_bytes(HexBytes(raw)).as_dict()["maxPriorityFeePerGas"]


@pytest.mark.parametrize(
    ("words", "most"),
    [
        ("gas tip cap {0}, minimum needed 25000000000", 2),
        ("transaction underpriced: tip needed 25000000000, tip permitted {0}", 2),
        ("transaction underpriced: address 0x12 have gas tip cap ({0}) < pool gas tip cap (25000000000)", 2),
        ("max priority fee per gas {0} is below the minimum of 25 gwei", 2),
        ("transaction underpriced", 9),
    ],
)
def test_the_least_tip_of_a_chain_is_found_in_what_refuses_less(world, tmp_path, monkeypatch, words, most):
    """And what is usual in what was paid lately, where nobody says it. The next order offers enough at once."""
    monkeypatch.setattr(rpc_module, "MAX_REST_SECONDS", 0.01)
    tips = []

    def takes(raw: str) -> Refusal | None:
        tips.append(tip_of(raw))
        return Refusal(-32000, words.format(tips[-1])) if tips[-1] < 25 * GWEI else None

    async def work():
        async with world.bot(tmp_path, max_gas_wei=500 * GWEI) as bot:
            limited = rpc_module._Limited("too many requests")
            sent = speaking(bot, {"eth_maxPriorityFeePerGas": limited, "eth_sendRawTransaction": takes})
            first = await world.carry_out(bot, world.order("first", WIDE))
            tried = len(set(sent))
            return first, tried, await world.carry_out(bot, world.order("second")), len(set(sent)) - tried

    first, tried, second, again = asyncio.run(work())
    assert first.code == second.code == Code.EXECUTED and 2 <= tried <= most, tips
    assert (again == 1 or most > 2) and max(tips) < 60 * GWEI


@pytest.mark.parametrize(
    ("refusal", "code", "said"),
    [
        (
            Refusal(-32000, "insufficient funds for gas * price + value: have 5"),
            Code.EXECUTION_REFUSED,
            "too little for",
        ),
        (
            Refusal(-32000, "exceeds block gas limit"),
            Code.EXECUTION_REFUSED,
            "a node refuses it, an error (code -32000)",
        ),
        (Refusal(-32000, "gas tip cap 1, minimum needed 900000000000"), Code.GAS_PRICE_LIMIT, "gas would cost"),
    ],
)
def test_a_send_that_is_refused_for_good_is_told_and_ends_the_order_and_the_next_one_goes_on(
    world, tmp_path, refusal, code, said
):
    async def work():
        async with world.bot(tmp_path) as bot:
            bot._tell = lambda *what: told.append(what)
            answers = {"eth_sendRawTransaction": refusal}
            speaking(bot, answers)
            report = await world.carry_out(bot, first, blocks=12)
            answers.clear()
            return report, await world.carry_out(bot, world.order("second", WIDE))

    first, nonce, told = world.order("first", WIDE), world.nonce, []
    report, second = asyncio.run(work())
    assert report.code == code and said in report.detail and world.time < first.deadline
    assert (second.code, world.nonce) == (Code.EXECUTED, nonce + 1)
    alerts = [text for kind, text in told if kind == "trouble"]
    assert len(set(alerts)) == len(alerts) and all("is not sent" in text for text in alerts) and alerts
    assert [kind for kind, _ in told].count("executor") == 1


def given_up(world: World, folder: Path, paused: bool = False) -> tuple[Report, list[str]]:
    """An order whose transactions a node takes and loses until it is over, and those transactions."""

    async def work():
        async with world.bot(folder) as bot:
            sent = speaking(bot, {"eth_sendRawTransaction": lambda raw: "0x" + "12" * 32})
            await bot.journal.accept(order)
            while await bot.step():
                assert world.time < order.deadline + 90
                if paused:
                    bot.wallet.pause_file.touch()
                world.chain.mine(1, 10)
            bot.wallet.pause_file.unlink(missing_ok=True)
            return (await bot.journal.report("first"))[1], sent

    order = world.order("first", WIDE)
    return asyncio.run(work())


@pytest.mark.parametrize("paused", [False, True])
def test_an_order_that_no_block_takes_ends_past_its_deadline_and_the_next_one_takes_its_nonce(world, tmp_path, paused):
    nonce = world.nonce
    first, _ = given_up(world, tmp_path, paused)
    assert first.code == Code.EXECUTION_EXPIRED and "the next order gets its nonce" in first.detail
    assert ("nothing is sent in a pause" in first.detail) == paused
    [second] = world.run(tmp_path, world.order("second", WIDE))
    assert (second.code, world.nonce, len(world.held())) == (Code.EXECUTED, nonce + 1, 1)


def test_what_was_given_up_and_is_mined_after_all_does_nothing_and_the_next_order_takes_another_nonce(world, tmp_path):
    async def work():
        async with world.bot(tmp_path) as bot:
            await bot.journal.accept(world.order("second", WIDE))
            await bot.step()
            world.chain.rpc("anvil_dropAllTransactions")
            world.chain.rpc("eth_sendRawTransaction", sent[0])
            world.chain.mine()
            for _ in range(4):
                await bot.step()
                world.chain.mine()
            return (await bot.journal.report("second"))[1], await bot.journal.lines()

    nonce = world.nonce
    _, sent = given_up(world, tmp_path)
    second, lines = asyncio.run(work())
    assert (second.code, world.nonce, len(world.held())) == (Code.EXECUTED, nonce + 2, 1)
    assert sum(", reverted" in line for line in lines) == 1 == sum(", succeeded" in line for line in lines), lines


def test_a_transaction_that_is_mined_after_the_deadline_does_nothing(world, tmp_path):
    """The contract refuses it too, if it is faster than what should cancel it."""

    async def work():
        async with world.bot(tmp_path) as bot:
            await bot.journal.accept(order)
            await bot.step()
            world.chain.rpc("evm_setNextBlockTimestamp", order.deadline + 1)
            world.chain.mine()
            return await world.carry_out(bot, order)

    order, balances = world.order("first", WIDE), world.balances()
    report = asyncio.run(work())
    assert report.code == Code.EXECUTION_EXPIRED and report.gas_used > 21000
    assert world.balances() == balances and len(rows(tmp_path, "SELECT 1 FROM attempts")) == 1


def test_a_reverted_transaction_is_planned_anew_and_all_its_gas_is_counted(world, tmp_path):
    """A swap came before it in the block: tokens that it counted on were not there."""

    async def work():
        async with world.bot(folder) as bot:
            await bot.journal.accept(order)
            for _ in range(reverts):
                await bot.step()
                [waiting] = world.pending()
                world.chain.rpc("anvil_dropTransaction", waiting)
                world.uniswap.swap(True, ETHER // 5)
                await bot.step()
                world.chain.mine()
            return await world.carry_out(bot, order)

    def gas(status: str) -> list[int]:
        receipts = [
            json.loads(row[0]) for row in rows(folder, "SELECT receipt FROM attempts WHERE decision = 'second'")
        ]
        return [int(one["gasUsed"], 16) for one in receipts if one["status"] == status]

    world.run(tmp_path, world.order("first", Position(-60, 60, ETHER, ETHER)))
    order, reverts, nonce = world.order("second", Position(-600, 600, 10 * ETHER, 10 * ETHER)), 1, world.nonce
    folder, saved = tmp_path, world.chain.rpc("evm_snapshot")
    report = asyncio.run(work())
    assert report.code == Code.EXECUTED and balanced(report) and world.nonce == nonce + 2
    assert len(gas("0x0")) == len(gas("0x1")) == 1 and report.gas_used == sum(gas("0x0") + gas("0x1"))
    assert report.gas0 == report.gas_wei > 0

    assert world.chain.rpc("evm_revert", saved)
    reverts, folder = MAX_REVERTED, tmp_path / "again"
    folder.mkdir()
    report = asyncio.run(work())
    assert report.code == Code.EXECUTION_REVERTED and world.nonce == nonce + MAX_REVERTED
    assert report.gas_used > 0 and not report.transaction and report.released == NOTHING


@pytest.mark.parametrize(("slippage", "status"), [(50, "0x0"), (400, "0x1")])
@pytest.mark.parametrize("what", ["mint", "close"])
def test_a_price_that_moves_beyond_the_slippage_bound_before_it_is_mined_reverts_it(
    world, tmp_path, what, slippage, status
):
    """A swap in front of it in its block, with tokens left to mint from: without least amounts it would succeed."""

    async def work():
        async with world.bot(tmp_path, slippage_ticks=slippage) as bot:
            await bot.journal.accept(order)
            await bot.step()
            [waiting] = world.pending()
            world.chain.rpc("anvil_dropTransaction", waiting)
            world.uniswap.swap(True, ETHER)
            await bot.step()
            world.chain.mine()
            assert world.chain.rpc("eth_getTransactionReceipt", waiting)["status"] == status
            return await world.carry_out(bot, order)

    if what == "close":
        world.run(tmp_path, world.order("first", WIDE))
    order = world.order("second", *([WIDE] if what == "mint" else []))
    report = asyncio.run(work())
    if status == "0x1":
        assert report.code == Code.EXECUTED and balanced(report)
    else:  # planned anew it is refused: the price is no more what it was
        assert report.code == Code.PRICE_MOVED and report.gas_used > 0 and not report.transaction


def test_dust_of_one_token_does_not_sell_the_other_where_somebody_moves_the_price_in_front_of_it(world, tmp_path):
    """The range begins at the price: dust is all it needs now. Above it all of token1 would be sold too cheap."""

    async def work():
        async with world.bot(tmp_path, turnover_percent=1) as bot:
            await bot.journal.accept(order)
            await bot.step()
            [waiting] = world.pending()
            world.chain.rpc("anvil_dropTransaction", waiting)
            world.uniswap.swap(False, 60 * ETHER)
            await bot.step()
            world.chain.mine()
            assert world.price[1] > 6000
            return await world.carry_out(bot, order)

    order, before = world.order("first", Position(0, 6000, 1, ETHER)), world.balances()
    report = asyncio.run(work())
    assert report.code == Code.EXECUTED and report.paid.amount1 <= 2 and world.balances()[1] >= before[1] - 2


def test_a_mint_that_needs_little_now_but_may_need_much_in_its_block_counts_as_much(world, tmp_path):
    """Within the slippage bound the price of its block is others' choice: the whole range is."""
    order, limits = world.order("first", Position(0, 60, 1000, ETHER)), {"slippage_ticks": 100, "average_ticks": 200}
    assert refused(world, tmp_path, order, turnover_percent=49, **limits).code == Code.TURNOVER_LIMIT
    [report] = world.run(tmp_path, replace(order, decision="second"), turnover_percent=51, **limits)
    assert report.code == Code.EXECUTED and report.paid == Inventory(1000, 0)


def test_who_also_chooses_the_price_wins_no_more_than_the_bounds_say(world, tmp_path):
    """A range above what the price should be takes all of one token where the price is moved above it for a block."""

    async def work():
        async with world.bot(tmp_path, **limits) as bot:
            world.uniswap.swap(False, 1000 * ETHER, sqrt_ratio_at_tick(59))
            world.chain.mine()
            await bot.journal.accept(order := world.order("first", Position(60, 120, ETHER, ETHER)))
            await bot.step()
            [waiting] = world.pending()
            world.chain.rpc("anvil_dropTransaction", waiting)
            world.uniswap.swap(False, 1000 * ETHER, sqrt_ratio_at_tick(125))
            await bot.step()
            world.chain.mine()
            world.uniswap.swap(True, 1000 * ETHER, Q96)
            world.chain.mine()
            return await world.carry_out(bot, order)

    limits = {"average_ticks": 60, "slippage_ticks": 70}
    before = sum(world.balances())
    report = asyncio.run(work())
    [(_, *ticks, liquidity)] = world.held()
    inside = amounts_of(liquidity, Q96, *map(sqrt_ratio_at_tick, ticks), round_up=False)
    lost = before - sum(world.balances()) - sum(inside)
    assert report.paid.amount1 == ETHER and 0 < lost < ETHER * sum(limits.values()) // 10**4
    assert rows(tmp_path, "SELECT moved_ppm FROM attempts") >= [(500_000,)]


def test_what_replaces_a_transaction_offers_an_eighth_more_within_the_limit_or_is_not_sent(world, tmp_path):
    async def work():
        async with world.bot(tmp_path, max_gas_wei=90 * 10**9) as bot:
            tip = (await bot.wallet.tip())._replace(base_fee_wei=10**9)
            old = Attempt(0, "plan", "0x", "0x", 40 * 10**9, 8 * 10**9, 0, 0)
            fees = [await bot.wallet.fees(tip, None), await bot.wallet.fees(tip, old)]
            with pytest.raises(ProtocolError) as error:
                await bot.wallet.fees(tip, replace(old, max_fee_wei=80 * 10**9))
            return *fees, error.value.code

    first, second, code = asyncio.run(work())
    assert 2 * 10**9 <= first.most < 10**10 and first.priority < 10**10
    assert second == (45 * 10**9 + 1, 9 * 10**9 + 1) and code == Code.GAS_PRICE_LIMIT


def test_a_node_that_fails_at_times_delays_and_repeats_nothing(world, tmp_path, caplog):
    """Every third answer is lost, that to a send after it arrived."""

    async def work():
        async with world.bot(tmp_path, confirmations=1) as bot:
            batch, asked = bot.wallet.rpc.batch, []

            async def unreliable(calls, **options):
                answers = await batch(calls, **options)
                asked.append(calls)
                if len(asked) % 3 == 0 or (calls and calls[0][0] == "eth_sendRawTransaction"):
                    raise RpcError("no answer")
                return answers

            bot.wallet.rpc.batch = unreliable
            await bot.journal.accept(order)
            task = asyncio.create_task(bot.follow(0.01))
            async with asyncio.timeout(SECONDS):
                while not (report := (await bot.journal.report("first"))[1]):
                    await asyncio.sleep(0.05)
                    world.chain.mine()
                    if len(asked) > 60:
                        bot.wallet.rpc.batch = batch
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            return report

    order, nonce = world.order("first", WIDE, deadline=world.time + 590), world.nonce
    report = asyncio.run(work())
    assert report.code == Code.EXECUTED and world.nonce == nonce + 1 and "no answer; trying again" in caplog.text


def test_a_node_that_stands_still_gives_way_to_the_next(world, tmp_path, caplog, monkeypatch):
    async def work():
        async with world.bot(tmp_path) as bot, open_rpc([world.chain.url] * 2) as bot.wallet.rpc:
            first, post = bot.wallet.rpc.endpoints[0], bot.wallet.rpc._post
            then = world.chain.height

            async def frozen(endpoint, calls, *arguments):
                at = hex(then) if endpoint is first else "latest"
                calls = [(method, [at if one == "latest" else one for one in given]) for method, given in calls]
                return await post(endpoint, calls, *arguments)

            bot.wallet.rpc._post = frozen
            await bot.journal.accept(world.order("first", WIDE))
            task = asyncio.create_task(bot.follow(0.01))
            async with asyncio.timeout(SECONDS):
                while not (report := (await bot.journal.report("first"))[1]):
                    await asyncio.sleep(0.1)
                    world.chain.mine()
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            return report

    monkeypatch.setattr(wallet_module, "STILL_SECONDS", 1)
    report = asyncio.run(work())
    assert report.code == Code.EXECUTED and "a node is behind: its head is block" in caplog.text


async def follow_until_reported(world, bot, order) -> Report:
    """As the running bot does, a block mined between two looks."""
    await bot.journal.accept(order)
    task = asyncio.create_task(bot.follow(0.01))
    async with asyncio.timeout(SECONDS):
        while not (report := (await bot.journal.report(order.decision))[1]):
            await asyncio.sleep(0.02)
            world.chain.mine()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    return report


def word(number: int) -> bytes:
    return number.to_bytes(32, "big")


def test_an_answer_that_decodes_to_a_thousand_times_its_size_is_refused_and_the_next_node_asked(
    world, tmp_path, monkeypatch
):
    """Two megabytes of `bytes[]` whose pointers all lead to one blob: decoded they would be three gigabytes."""
    bomb = "0x" + (word(32) + word(3000) + word(32 * 3000) * 3000 + word(10**6) + bytes(10**6)).hex()
    selector, decode, decoded = "0x" + plan_module.MULTICALL.selector.hex(), abi_module._decode, []

    def counting(types, data):
        decoded.append(len(data))
        return decode(types, data)

    async def work():
        async with world.bot(tmp_path) as bot, open_rpc([world.chain.url] * 2) as bot.wallet.rpc:
            (first, second), post = bot.wallet.rpc.endpoints, bot.wallet.rpc._post

            async def lying(endpoint, calls, *arguments):
                found = await post(endpoint, calls, *arguments)
                ours = [method == "eth_call" and given[0]["data"].startswith(selector) for method, given in calls]
                return [bomb if endpoint is first and mine else one for one, mine in zip(found, ours, strict=True)]

            bot.wallet.rpc._post = lying
            return await follow_until_reported(world, bot, world.order("first", WIDE)), first.lies, second.lies

    monkeypatch.setattr(abi_module, "_decode", counting)
    report, lies, others = asyncio.run(work())
    assert report.code == Code.EXECUTED and lies and not others and max(decoded) < 20_000


def test_a_fault_of_the_bots_own_is_told_and_tried_again_and_no_node_is_blamed(world, tmp_path, caplog):
    async def work():
        async with world.bot(tmp_path) as bot:
            draft, tries = bot.drafter.draft, []

            async def once_broken(order, tip):
                tries.append(order)
                return await draft(order, tip if len(tries) > 2 else None)

            bot.drafter.draft = once_broken
            report = await follow_until_reported(world, bot, world.order("first", WIDE, deadline=world.time + 590))
            return report, [(one.failures, one.lies) for one in bot.wallet.rpc.endpoints]

    report, blamed = asyncio.run(work())
    assert report.code == Code.EXECUTED and blamed == [(0, 0)]
    assert caplog.text.count("Traceback") == 2 and "a fault of this program (AttributeError)" in caplog.text


def test_an_order_that_the_bot_can_never_work_on_ends_with_its_deadline(world, tmp_path):
    async def work():
        async with world.bot(tmp_path) as bot:

            async def broken(order, tip):
                raise KeyError("no such thing")

            bot.drafter.draft = broken
            return await follow_until_reported(world, bot, world.order("first", WIDE, deadline=world.time + 5))

    report = asyncio.run(work())
    assert report.code == Code.ORDER_STALE and "a fault of this program (KeyError)" in report.detail


def of_pool(receipt: dict) -> dict:
    [log] = [one for one in receipt["logs"] if one["topics"][0] in POOL_TOPICS]
    return log


@pytest.mark.parametrize(
    "change",
    [
        lambda receipt: of_pool(receipt).update(data=of_pool(receipt)["data"][:-2]),
        lambda receipt: of_pool(receipt).update(topics=[[]]),
        lambda receipt: receipt.update(gasUsed=hex(2**255)),
        lambda receipt: receipt.update(effectiveGasPrice=hex(2**255)),
        lambda receipt: receipt.update(blockHash=[receipt["blockHash"]]),
    ],
)
def test_a_receipt_that_cannot_be_read_in_all_its_parts_counts_for_nothing(world, tmp_path, change):
    """Else what was written down could never be read back."""

    async def work():
        async with world.bot(tmp_path) as bot:
            batch = bot.wallet.rpc.batch

            async def lying(calls, **options):
                answers = await batch(calls, **options)
                for answer in answers:
                    if isinstance(answer, dict) and "transactionHash" in answer:
                        change(answer)
                return answers

            await bot.journal.accept(order)
            await bot.step()
            world.chain.mine()
            bot.wallet.rpc.batch = lying
            with pytest.raises(abi_module.Malformed, match="a receipt that cannot be"):
                await bot.step()
            bot.wallet.rpc.batch = batch
            return await world.carry_out(bot, order)

    order = world.order("first", WIDE)
    assert asyncio.run(work()).code == Code.EXECUTED


@pytest.mark.parametrize("method", ["eth_getTransactionCount", "eth_call"])
def test_a_number_that_cannot_be_is_the_nodes_fault(world, tmp_path, caplog, monkeypatch, method):
    """A count of transactions, a balance: nothing of it is written down or reported."""
    monkeypatch.setattr(rpc_module, "MAX_REST_SECONDS", 0.01)

    async def work():
        async with world.bot(tmp_path) as bot:
            batch, lies = bot.wallet.rpc.batch, []

            async def lying(calls, **options):
                answers = await batch(calls, **options)
                told = [name for name, _ in calls][-1:] == [method] and world.nonce > nonce and len(lies) < 3
                if told and (method != "eth_call" or all(call[0]["data"].startswith(BALANCE_OF) for _, call in calls)):
                    lies.append(calls)
                    answers[:] = [hex(2**256 - 1)] * len(answers)
                return answers

            bot.wallet.rpc.batch = lying
            return await follow_until_reported(world, bot, order), lies

    order, nonce = world.order("first", WIDE, deadline=world.time + 590), world.nonce
    report, lies = asyncio.run(work())
    assert report.code == Code.EXECUTED and balanced(report) and lies and "Traceback" not in caplog.text


def test_on_a_full_disk_nothing_is_sent_that_is_not_written_down_and_nothing_twice(world, tmp_path, caplog):
    async def work(step: str):
        async with world.bot(tmp_path) as bot:
            write, db = getattr(bot.journal, step), bot.journal._db

            async def full(*arguments):
                [(pages,)] = await db.execute_fetchall("PRAGMA page_count")
                await db.execute(f"PRAGMA max_page_count = {pages}")
                await db.write(
                    lambda connection: connection.execute("CREATE TABLE filler AS SELECT randomblob(1 << 20)")
                )
                await write(*arguments)

            setattr(bot.journal, step, full)
            await bot.journal.accept(order)
            task = asyncio.create_task(bot.follow(0.01))
            while "full" not in bot.said:
                await asyncio.sleep(0.02)
            world.chain.mine(2)
            await asyncio.sleep(0.1)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            return world.nonce - nonce, len(world.pending()), (await bot.journal.report("first"))[1]

    order, nonce = world.order("first", WIDE), world.nonce
    assert asyncio.run(work("sign")) == (0, 0, None)
    [sent] = world.run(tmp_path, order, blocks=1) or [None]
    assert sent is None and world.nonce == nonce + 1
    assert [asyncio.run(work(step)) for step in ("mined", "finish")] == [(1, 0, None)] * 2
    [report] = world.run(tmp_path, order)
    assert report.code == Code.EXECUTED and world.nonce == nonce + 1
    assert "disk is full; trying again" in caplog.text and "Traceback" not in caplog.text


@pytest.mark.parametrize("seed", range(30))
def test_whatever_one_answer_of_the_node_is_the_order_is_carried_out_once_or_refused(world, tmp_path, caplog, seed):
    rng, hit = Random(seed), []
    garbage = rng.choice([None, "0x", "zz", {}, [], 7, "-0x5", "0x" + "f" * 64, "0x" + "f" * 600])
    at = rng.randrange(22)

    async def work():
        async with world.bot(tmp_path) as bot:
            batch, asked = bot.wallet.rpc.batch, []

            async def once_wrong(calls, **options):
                answers = await batch(calls, **options)
                asked.append(1)
                if len(asked) == at and not options.get("usable"):
                    hit.append(calls)
                    answers[:] = [garbage] * len(answers)
                return answers

            bot.wallet.rpc.batch = once_wrong
            return await follow_until_reported(world, bot, order)

    order, nonce = world.order("first", WIDE, deadline=world.time + 590), world.nonce
    report = asyncio.run(work())
    assert world.nonce - nonce == len(world.held()) == (report.code == Code.EXECUTED), (hit, garbage)
    assert report.code == Code.EXECUTED or hit
    assert "Traceback" not in caplog.text, (hit, garbage)  # what a node says is read strictly wherever it is read


def test_a_receipt_of_a_block_that_the_chain_does_not_have_counts_for_nothing(world, tmp_path):
    """As a node gives it that is on another branch, or has not tidied up."""

    async def work():
        async with world.bot(tmp_path) as bot:
            batch = bot.wallet.rpc.batch

            async def elsewhere(calls, **options):
                answers = await batch(calls, **options)
                for answer in answers:
                    if isinstance(answer, dict) and "transactionHash" in answer:
                        answer["blockHash"] = "0x" + "12" * 32
                return answers

            await bot.journal.accept(order)
            await bot.step()
            world.chain.mine()
            bot.wallet.rpc.batch = elsewhere
            with pytest.raises(abi_module.Malformed, match="is in another"):
                await bot.step()
            assert (await bot.journal.attempts("first"))[0].receipt is None
            bot.wallet.rpc.batch = batch
            return await world.carry_out(bot, order)

    order = world.order("first", WIDE)
    assert asyncio.run(work()).code == Code.EXECUTED


def test_after_a_reorganisation_the_transaction_is_sent_again_and_what_counts_is_where_it_then_is(chain, tmp_path):
    """On a chain of its own: anvil loses all states in a reorganisation after it has mined 500 blocks."""

    async def work():
        async with world.bot(tmp_path, confirmations=3) as bot:
            await bot.journal.accept(order)
            await bot.step()
            first = world.chain.mine()
            world.chain.mine()
            assert await bot.step() and "more are awaited" in bot.said
            world.chain.rpc("anvil_reorg", 3, [])
            with suppress(RuntimeError):
                world.chain.rpc("anvil_dropAllTransactions")
            assert world.nonce == nonce and not world.pending()
            world.uniswap.send(world.uniswap.token0, "transfer(address,uint256)", world.vault, 77)
            assert await bot.step() and len(world.pending()) == 1
            return first, await world.carry_out(bot, order)

    with anvil.Chain() as fresh:
        world = World(fresh)
        order, balances, nonce = world.order("first", WIDE), world.balances(), world.nonce
        first, report = asyncio.run(work())
        assert report.code == Code.EXECUTED and report.block > first - 1 and world.nonce == nonce + 1
        assert report.before == Inventory(balances[0] + 77, balances[1]) and balanced(report)
        assert int(world.chain.receipt(report.transaction)["blockNumber"], 16) == report.block
        assert world.chain.height >= report.block + 3 and len(rows(tmp_path, "SELECT 1 FROM attempts")) == 1


def test_a_reorganisation_deeper_than_the_confirmations_is_said_and_made_good(world, tmp_path, caplog):
    """What was final is sent again, as it was, before anything new; its report stands."""
    first = world.order("first", WIDE)
    saved = world.chain.rpc("evm_snapshot")
    [report] = world.run(tmp_path, first)
    later = world.order("second", 0, Position(-60, 60, ETHER // 4, ETHER // 4))
    assert world.chain.rpc("evm_revert", saved)
    assert world.held() == []
    lost = world.order("third", Position(-120, 120, ETHER // 9, ETHER // 9))
    refused_, done = world.run(tmp_path, lost, replace(later, deadline=later.deadline + 60))
    assert "was final and is not in the chain" in caplog.text and report.transaction in caplog.text
    assert refused_.code == Code.VAULT_CHANGED and done.code == Code.EXECUTED and done.before == report.after
    assert world.chain.receipt(report.transaction) and len(world.held()) == 2


def test_what_a_deep_reorganisation_took_back_is_sent_again_before_what_was_signed_behind_it(world, tmp_path, caplog):
    """Else the next nonce would wait for ever, and every later order with it."""

    async def work():
        async with world.bot(tmp_path) as bot:
            await bot.journal.accept(second)
            await bot.step()
            assert len(world.pending()) == 1  # signed behind the first one's nonce, in the chain as it was
            assert world.chain.rpc("evm_revert", saved)
            world.chain.rpc("anvil_dropAllTransactions")
            return await world.carry_out(bot, second)

    saved = world.chain.rpc("evm_snapshot")
    [report] = world.run(tmp_path, world.order("first", WIDE))
    second = world.order("second", 0, Position(-60, 60, ETHER // 4, ETHER // 4))
    done = asyncio.run(work())
    assert f"{report.transaction} was final and is not in the chain" in caplog.text
    assert done.code == Code.EXECUTED and done.before == report.after
    assert world.chain.receipt(report.transaction) and len(world.held()) == 2


def test_a_nonce_that_somebody_else_used_ends_the_order_and_is_said(world, tmp_path):
    """Somebody signs with the vault's key beside the bot: nothing is tried under another nonce."""

    async def work():
        async with world.bot(tmp_path) as bot:
            await bot.journal.accept(order)
            await bot.step()
            [waiting] = world.pending()
            world.chain.rpc("anvil_dropTransaction", waiting)
            world.uniswap.send(world.uniswap.token0, "transfer(address,uint256)", world.vault, 1, sender=world.vault)
            world.chain.mine()
            assert await bot.step() and not world.pending()
            world.chain.rpc("evm_setNextBlockTimestamp", order.deadline + FOREIGN_SECONDS + 1)
            world.chain.mine()
            return await world.carry_out(bot, order)

    order, balances = world.order("first", WIDE), world.balances()
    report = asyncio.run(work())
    assert report.code == Code.EXECUTION_EXPIRED and "who else has the key" in report.detail
    assert world.balances() == balances


def test_a_decision_that_another_bot_or_a_lost_journal_carried_out_is_not_carried_out_again(world, tmp_path):
    """Where nothing else shows it: it leaves the vault with the ranges that it found."""
    for name in ("there", "here"):
        (tmp_path / name).mkdir()
    world.run(tmp_path / "there", world.order("first", WIDE))
    order = world.order("second", Position(-600, 600, ETHER // 4, ETHER // 4))
    [done] = world.run(tmp_path / "there", order)
    assert done.code == Code.EXECUTED and [row[1:3] for row in world.held()] == [(-600, 600)]
    report = refused(world, tmp_path / "here", order)
    assert report.code == Code.VAULT_CHANGED and "1 of the vault's transactions" in report.detail
    [report] = world.run(tmp_path / "here", world.order("third", WIDE))
    assert report.code == Code.EXECUTED


@pytest.mark.parametrize(
    ("code", "message", "skipped"),
    [
        (-32005, "request rate limited", False),
        (-32603, "internal error", False),
        (-32000, "header not found", False),
        (-32019, "block is out of range", False),
        (-32000, "missing trie node", True),
    ],
)
def test_only_a_state_that_is_forgotten_lets_the_look_for_a_second_execution_be_left_out(
    world, tmp_path, monkeypatch, caplog, code, message, skipped
):
    """Its journal is lost; the node refuses the one question whose answer would say that all this was done before."""
    monkeypatch.setattr(rpc_module, "FIRST_REST_SECONDS", 0.01)
    refusals = []

    async def work():
        async with world.bot(tmp_path / "here") as bot:
            read = rpc_module._results

            def results(raw, count, status):
                if asked[0] == (call := ("eth_getTransactionCount", [world.vault, hex(order.block_number)])):
                    refusals.append(call)
                    if skipped or len(refusals) == 1:
                        said = {"id": 0, "error": {"code": code, "message": message}}
                        return read(json.dumps(said).encode(), count, status)
                return read(raw, count, status)

            post, asked = bot.wallet.rpc._post, [None]

            async def watched(endpoint, calls, *arguments):
                asked[0] = calls[0]
                return await post(endpoint, calls, *arguments)

            bot.wallet.rpc._post = watched
            monkeypatch.setattr(rpc_module, "_results", results)
            return await world.carry_out(bot, order)

    for name in ("there", "here"):
        (tmp_path / name).mkdir()
    world.run(tmp_path / "there", world.order("first", WIDE))
    order = world.order("second", Position(-600, 600, ETHER // 4, ETHER // 4))
    world.run(tmp_path / "there", order)
    report = asyncio.run(work())
    assert refusals and report.code == (Code.EXECUTED if skipped else Code.VAULT_CHANGED)
    assert ("whether this journal is complete is unknown" in caplog.text) == skipped


def test_an_order_that_was_shown_a_block_that_the_node_does_not_have_yet_waits_for_it(world, tmp_path):
    order = world.order("first", WIDE)
    [report] = world.run(tmp_path, replace(order, block_number=order.block_number + 3))
    assert report.code == Code.EXECUTED and report.block > order.block_number + 3


@pytest.mark.parametrize("behind", ["a part of the node", "the first of two nodes"])
def test_a_receipt_that_a_node_does_not_have_yet_makes_no_failure_of_what_was_done(world, tmp_path, behind):
    """It has the nonce of it already, and the deadline passed."""

    async def work():
        async with world.bot(tmp_path) as bot:
            batch, looks = bot.wallet.rpc.batch, []

            async def partly(calls, **options):
                answers = await batch(calls, **options)
                for n, (method, _) in enumerate(calls):
                    if method == "eth_getTransactionReceipt" and len(looks) < 3:
                        answers[n] = None
                looks.append(1)
                return answers

            await bot.journal.accept(order)
            await bot.step()
            world.chain.mine()
            late = 2 if behind == "a part of the node" else FOREIGN_SECONDS + 2
            world.chain.rpc("evm_setNextBlockTimestamp", order.deadline + late)
            world.chain.mine()
            bot.wallet.rpc.batch = partly
            return await world.carry_out(bot, order)

    order = world.order("first", WIDE)
    report = asyncio.run(work())
    assert report.code == Code.EXECUTED and report.transaction and balanced(report)


def test_a_failure_that_a_reorganisation_undoes_is_none(world, tmp_path):
    """Deeper than the confirmations; where the transaction then is it succeeds, and no other is sent beside it."""

    async def work():
        async with world.bot(tmp_path) as bot:
            await bot.journal.accept(order)
            await bot.step()
            [waiting] = world.pending()
            raw = rows(tmp_path, "SELECT raw FROM attempts")[0][0]
            world.chain.rpc("anvil_dropTransaction", waiting)
            saved = world.chain.rpc("evm_snapshot")
            world.uniswap.swap(True, ETHER)
            await bot.step()
            world.chain.mine()
            advance = bot._begin
            bot._begin = None  # the process dies once it has written down that it failed
            with suppress(TypeError):
                await bot.step()
            bot._begin = advance
            assert json.loads(rows(tmp_path, "SELECT receipt FROM attempts")[0][0])["status"] == "0x0"
            assert world.chain.rpc("evm_revert", saved)
            world.chain.rpc("eth_sendRawTransaction", raw)
            world.chain.mine()
            return await world.carry_out(bot, order)

    order, nonce = world.order("first", WIDE), world.nonce
    report = asyncio.run(work())
    assert report.code == Code.EXECUTED and world.nonce == nonce + 1 and len(world.held()) == 1


# ---------------------------------------------------------------------------------------------------------------------
# What is refused


def refused(world: World, folder: Path, order: Order, **limits) -> Report:
    """It is refused, and nothing was sent."""
    nonce = world.nonce
    [report] = world.run(folder, order, **limits)
    assert report is not None and report.code not in (Code.EXECUTED, Code.EXECUTION_DRY_RUN), report
    assert world.nonce == nonce and not world.pending() and not rows(folder, "SELECT 1 FROM attempts")
    return report


BAD = [Position(-61, 60, 1, 1), Position(60, -60, 1, 1), Position(-887280, 60, 1, 1)]


@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        ({"pool": "0x" + "12" * 20}, Code.FOREIGN_POOL, "0x1212"),
        ({"chain_id": 1}, Code.FOREIGN_POOL, "chain 1"),
        ({"vault": "0x" + "12" * 20}, Code.FOREIGN_VAULT, "0x1212"),
        ({"deadline": 1000}, Code.ORDER_STALE, "deadline 1000"),
        ({"deadline": 1 << 40}, Code.ORDER_STALE, "at most 600"),
        ({"tick": 101}, Code.PRICE_MOVED, "tick 0, shown was 101"),
        ({"tick": -101}, Code.PRICE_MOVED, "tick 0, shown was -101"),
        ({"shown": (WIDE,)}, Code.VAULT_CHANGED, "(-600, 600)"),
        ({"desired": (WIDE,) * 11}, Code.TOO_MANY_POSITIONS, "11 positions, at most 10"),
        ({"desired": (BAD[0],)}, Code.TICK_SPACING, "-61"),
        ({"desired": (BAD[1],)}, Code.TICK_ORDER, "-60"),
        ({"desired": (BAD[2],)}, Code.TICK_RANGE, "-887280"),
    ],
)
def test_an_order_that_is_not_allowed_is_refused_with_its_code(world, tmp_path, caplog, changes, code, said):
    report = refused(world, tmp_path, replace(world.order("first", WIDE), **changes))
    assert report.code == code and said in report.detail and f"first: {code}" in caplog.text


def test_a_vault_that_was_sent_too_many_tokens_is_refused(world, tmp_path, monkeypatch):
    world.run(tmp_path, world.order("first", WIDE))
    monkeypatch.setattr(pool_module, "MAX_LISTED_TOKENS", 0)
    [report] = world.run(tmp_path, world.order("second", 0, Position(-60, 60, 1000, 1000)))
    assert report.code == Code.TOO_MANY_POSITIONS and "holds 1 position tokens" in report.detail


def test_tokens_that_strangers_minted_for_the_vault_are_left_alone_however_many_they_are(world, tmp_path):
    """They are in the range of its own, too, and are owed something."""
    world.run(tmp_path, world.order("first", WIDE))
    [own], uniswap, stranger = world.held(), world.uniswap, world.chain.accounts[1]
    order = world.order("second", Position(-1200, 1200, ETHER // 10, ETHER // 10))
    for _ in range(25):
        calls = [uniswap.minting(world.vault, -600, 600, 1000, 1000)] * 12
        uniswap.send(uniswap.manager, "multicall(bytes[])", calls, sender=stranger)
        world.chain.mine(1, 0)
    assert len(world.held()) == 301
    seen = {"block_number": world.chain.height, "deadline": world.time + 120}
    [report] = world.run(tmp_path, replace(order, **seen))
    assert report.code == Code.EXECUTED and own not in world.held() and len(world.held()) == 301
    assert world.held()[-1][1:3] == (-1200, 1200)


def test_no_more_tokens_are_minted_than_can_be_read(world, tmp_path, monkeypatch):
    monkeypatch.setattr(drafting, "MAX_VAULT_TOKENS", 1)
    report = refused(world, tmp_path, world.order("first", WIDE, Position(-60, 60, 1000, 1000)))
    assert report.code == Code.TOO_MANY_POSITIONS and "may hold 1 position tokens" in report.detail


def test_a_position_that_is_staked_is_kept_and_refused_to_who_was_shown_it(world, tmp_path, monkeypatch):
    """As on Slipstream, where the gauge then has the token; here it is only said to be."""

    async def staked(*arguments):
        held, idle = await pool_module.read_vault(*arguments)
        return [one._replace(staked=one.token_id == first) for one in held], idle

    world.run(tmp_path, world.order("first", WIDE))
    first = world.held()[0][0]
    monkeypatch.setattr(drafting, "read_vault", staked)
    [report] = world.run(tmp_path, world.order("second"))
    assert report.code == Code.VAULT_CHANGED and "it holds []" in report.detail
    order = world.order("third", Position(-600, 600, ETHER // 9, ETHER // 9))
    [report] = world.run(tmp_path, replace(order, shown=()))
    assert report.code == Code.EXECUTED and [row[1:3] for row in world.held()] == [(-600, 600)] * 2
    [report] = world.run(tmp_path, replace(world.order("fourth"), shown=world.order("fourth").shown[1:]))
    assert report.code == Code.EXECUTED and [row[0] for row in world.held()] == [first]


def test_a_position_that_a_stranger_sends_is_not_the_vaults(world, tmp_path):
    order, sender = world.order("first", WIDE), world.chain.accounts[2]
    world.uniswap.mint(sender, -60, 60, 10**9, 10**9)
    world.chain.mine()
    [token_id] = world.chain.call(world.uniswap.manager, OF_OWNER, sender, 0)
    world.uniswap.send(
        world.uniswap.manager, "transferFrom(address,address,uint256)", sender, world.vault, token_id, sender=sender
    )
    world.chain.mine()
    [report] = world.run(tmp_path, order)
    assert report.code == Code.EXECUTED and [row[1:3] for row in world.held()] == [(-60, 60), (-600, 600)]


def test_a_price_that_a_swap_moved_in_the_block_before_is_refused(world, tmp_path):
    """Also where the miner was shown the moved price; the average does not know it yet."""
    world.uniswap.swap(True, 2 * ETHER)
    world.chain.mine()
    order = world.order("first", WIDE)
    assert order.tick < -300
    report = refused(world, tmp_path, order)
    assert report.code == Code.PRICE_MANIPULATED
    assert re.search(rf"tick {order.tick}, the average of 600 s is -?\d, at most 50", report.detail)
    world.chain.mine(2, 900)  # the price stands: it is the average
    [report] = world.run(tmp_path, world.order("second", WIDE))
    assert report.code == Code.EXECUTED


def test_an_absurd_price_that_stood_for_one_block_makes_no_other_price_the_usual_one(world, tmp_path):
    """Beyond the liquidity it costs next to nothing to go far; then the average is what somebody likes."""
    world.uniswap.swap(False, 2000 * ETHER, sqrt_ratio_at_tick(20000))
    world.chain.mine()
    world.uniswap.swap(True, 2000 * ETHER, sqrt_ratio_at_tick(402))
    world.chain.mine(1, 12)
    order = world.order("first", WIDE)
    report = refused(world, tmp_path, order)
    assert order.tick == 402 and report.code == Code.PRICE_MANIPULATED
    assert re.search(r"tick 402, the median of 600 s is -?\d, at most 50", report.detail)


def test_where_the_pool_does_not_remember_its_price_the_order_is_refused_with_the_fix(chain, tmp_path, monkeypatch):
    monkeypatch.setattr(anvil.Uniswap, "remember", lambda self: None)
    world = World(chain)
    world.uniswap.swap(True, 1000)
    world.chain.mine()
    report = refused(world, tmp_path, world.order("first", WIDE))
    assert report.code == Code.PRICE_UNKNOWN and "increaseObservationCardinalityNext" in report.detail


def test_gas_above_the_limit_is_refused_and_what_is_offered_is_never_above_it(world, tmp_path):
    world.chain.rpc("anvil_setNextBlockBaseFeePerGas", hex(5 * 10**9))
    world.chain.mine()
    report = refused(world, tmp_path, world.order("first", WIDE), max_gas_wei=4 * 10**9)
    assert report.code == Code.GAS_PRICE_LIMIT and "at most 4000000000" in report.detail
    [report] = world.run(tmp_path, world.order("second", WIDE), max_gas_wei=5 * 10**9)
    assert report.code == Code.EXECUTED
    assert rows(tmp_path, "SELECT max_fee_wei FROM attempts") == [(str(5 * 10**9),)]


def test_what_moves_within_an_hour_is_limited(world, tmp_path):
    """By value, and by the chain's time."""
    limits = {"turnover_percent": 60}
    [first] = world.run(tmp_path, world.order("first", WIDE), **limits)
    assert first.code == Code.EXECUTED
    nonce, order = world.nonce, world.order("second", Position(-60, 60, ETHER // 4, ETHER // 4))
    [second] = world.run(tmp_path, order, **limits)
    assert second.code == Code.TURNOVER_LIMIT and world.nonce == nonce
    assert "would move 50.00 %" in second.detail and "50.00 % were moved" in second.detail and "60 %" in second.detail
    [third] = world.run(tmp_path, world.order("third", 0, Position(-60, 60, ETHER // 20, ETHER // 20)), **limits)
    assert third.code == Code.EXECUTED
    world.chain.mine(2, 3601)
    [fourth] = world.run(tmp_path, world.order("fourth", 0), **limits)
    assert fourth.code == Code.EXECUTED


def test_transactions_within_an_hour_are_limited_those_that_failed_too(world, tmp_path):
    async def fail():
        async with world.bot(tmp_path) as bot:
            attempt = Attempt(0, "plan", "0x00", "0x", 0, 0, 0, 0)
            await bot.journal.sign("first", attempt)
            await bot.journal.mined(attempt, {"status": "0x0"}, world.time)

    limits = {"hourly_transactions": 2}
    world.run(tmp_path, world.order("first", WIDE), **limits)
    asyncio.run(fail())
    nonce, small = world.nonce, Position(-60, 60, 1000, 1000)
    [second] = world.run(tmp_path, world.order("second", 0, small), **limits)
    assert second.code == Code.TURNOVER_LIMIT and world.nonce == nonce and "2 transactions" in second.detail
    world.chain.mine(2, 3601)
    [third] = world.run(tmp_path, world.order("third", 0, small), **limits)
    assert third.code == Code.EXECUTED


def test_missing_allowances_and_missing_gas_money_are_said_with_their_fix(world, tmp_path):
    uniswap, chain = world.uniswap, world.chain
    uniswap.send(uniswap.token1, "approve(address,uint256)", uniswap.manager, 5, sender=world.vault)
    chain.mine()
    report = refused(world, tmp_path, world.order("first", WIDE))
    assert report.code == Code.EXECUTION_REVERTED and "python -m executor approve" in report.detail
    assert f"may take 5 of {uniswap.token1}" in report.detail
    chain.rpc("anvil_setBalance", world.vault, "0x5")
    report = refused(world, tmp_path, world.order("second", Position(60, 120, ETHER // 2, 0)))
    assert report.code == Code.EXECUTION_REVERTED and f"send some to {world.vault}" in report.detail
    [need] = re.search(r"5 wei for gas, (\d+) are needed", report.detail).groups()
    chain.rpc("anvil_setBalance", world.vault, hex(int(need) - 1))
    assert refused(world, tmp_path, world.order("third", Position(60, 120, ETHER // 2, 0))).code == report.code
    chain.rpc("anvil_setBalance", world.vault, hex(int(need)))
    [report] = world.run(tmp_path, world.order("fourth", Position(60, 120, ETHER // 2, 0)))
    assert report.code == Code.EXECUTED  # the node takes it


def test_gas_money_must_do_for_a_second_layers_fees_for_data_and_to_its_operator_too(world, tmp_path):
    """Each costs an ether there: getL1Fee(bytes) and getOperatorFee(uint256), to whatever data and gas."""
    code = anvil.assemble(f"{ETHER:x} 0 MSTORE 20 0 RETURN")
    world.chain.rpc("anvil_setCode", wallet_module.GAS_ORACLE, "0x" + code.hex())
    world.chain.rpc("anvil_setBalance", world.vault, hex(2 * ETHER))
    report = refused(world, tmp_path, world.order("first", WIDE))
    [need] = re.search(rf"{2 * ETHER} wei for gas, (\d+) are needed", report.detail).groups()
    assert report.code == Code.EXECUTION_REVERTED and 2 * ETHER < int(need) < 2 * ETHER + ETHER // 10
    world.chain.rpc("anvil_setBalance", world.vault, hex(int(need)))
    assert world.run(tmp_path, world.order("second", WIDE))[0].code == Code.EXECUTED


def test_a_plan_that_the_contracts_would_refuse_is_refused_before_anything_is_signed(world, tmp_path):
    """Here the range's ticks hold as much as a tick may hold."""
    most = Pool(world.uniswap.fee, world.uniswap.spacing).max_liquidity_per_tick
    world.chain.receipt((world.uniswap.mint_direct(6000, 6060, most - 1), world.chain.mine())[0])
    report = refused(world, tmp_path, world.order("first", Position(6000, 6060, ETHER, 0)))
    assert report.code == Code.EXECUTION_REVERTED and "the contracts would refuse it" in report.detail


def test_a_pause_is_looked_at_before_every_send(world, tmp_path, caplog):
    """What was sent before may still land; what was lost is not sent again until it is over, nor is it cancelled."""
    pause = tmp_path / "pause"

    async def work():
        async with world.bot(tmp_path) as bot:
            pause.touch()
            first = await world.carry_out(bot, world.order("first", WIDE))
            pause.unlink()
            order, sign = world.order("second", WIDE), bot.journal.sign

            async def signed(*arguments):
                await sign(*arguments)
                pause.touch()  # between the journal and the send

            bot.journal.sign = signed
            await bot.journal.accept(order)
            assert await bot.step() and not world.pending()
            bot.journal.sign = sign
            for _ in range(3):
                assert await bot.step() and not world.pending() and "pause" in bot.said
                world.chain.mine()
            pause.unlink()
            second, third = await world.carry_out(bot, order), world.order("third", 0, Position(-60, 60, 10**9, 10**9))
            await bot.journal.accept(third)
            await bot.step()
            pause.touch()
            world.chain.rpc("anvil_dropAllTransactions")
            world.chain.rpc("evm_setNextBlockTimestamp", third.deadline + 2)
            world.chain.mine()
            assert await bot.step() and not world.pending()
            pause.unlink()
            return first, second, await world.carry_out(bot, third)

    first, second, third = asyncio.run(work())
    assert [report.code for report in (first, second, third)] == [
        Code.EXECUTOR_PAUSED,
        Code.EXECUTED,
        Code.EXECUTION_EXPIRED,
    ]
    assert f"paused: {second.transaction} is not sent" in caplog.text


@pytest.mark.parametrize(
    ("happening", "code"),
    [
        ("swap", Code.PRICE_MOVED),
        ("pause", Code.EXECUTOR_PAUSED),
        ("gas", Code.GAS_PRICE_LIMIT),
        ("late", Code.ORDER_STALE),
    ],
)
def test_all_is_looked_at_again_right_before_signing(world, tmp_path, happening, code):
    """What happens here happens after the plan was simulated."""

    async def work():
        async with world.bot(tmp_path, max_gas_wei=20 * 10**9) as bot:
            estimate = bot.wallet.estimate

            async def meanwhile(to: str, data: str) -> int:
                gas = await estimate(to, data)
                match happening:
                    case "swap":
                        world.uniswap.swap(True, ETHER)
                    case "pause":
                        (tmp_path / "pause").touch()
                    case "gas":
                        world.chain.rpc("anvil_setNextBlockBaseFeePerGas", hex(30 * 10**9))
                    case "late":
                        world.chain.rpc("evm_setNextBlockTimestamp", order.deadline + 1)
                world.chain.mine()
                return gas

            bot.wallet.estimate = meanwhile
            return await world.carry_out(bot, order)

    order, nonce = world.order("first", WIDE), world.nonce
    report = asyncio.run(work())
    assert report.code == code and world.nonce == nonce and rows(tmp_path, "SELECT 1 FROM attempts") == []


def test_an_order_that_became_stale_while_the_bot_was_down_is_not_begun(world, tmp_path):
    async def accept():
        async with world.bot(tmp_path) as bot:
            await bot.journal.accept(order)

    order = world.order("first", WIDE)
    asyncio.run(accept())
    world.chain.mine(2, 200)
    assert refused(world, tmp_path, order).code == Code.ORDER_STALE


# ---------------------------------------------------------------------------------------------------------------------
# The door


def private(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o600)
    return path


@contextmanager
def mining(chain: anvil.Chain, every: float = 0.05):
    """A block now and then, in the background."""
    stop = threading.Event()

    def work():
        while not stop.wait(every):
            chain.mine()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@asynccontextmanager
async def open_door(world: World, folder: Path, **limits):
    """The bot at work behind its door, and a client."""
    key_file = private(folder / "api.key", f"{API_KEY}\n")
    async with world.bot(folder, **limits) as bot, aiohttp.ClientSession() as session:
        door = Door(bot, key_file, answer_seconds=0.2)
        async with serve(door.app, "127.0.0.1", 0) as port:
            task = asyncio.create_task(bot.follow(0.02))
            try:
                yield f"http://127.0.0.1:{port}", session
            finally:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task


async def ask(session, method: str, url: str, key: str | None = API_KEY, **options) -> tuple[int, Report]:
    headers = {"Authorization": f"Bearer {key}"} if key is not None else {}
    async with session.request(method, url, headers=headers | options.pop("headers", {}), **options) as reply:
        return reply.status, decode(Report, await reply.read(), 1 << 16)


def test_an_order_is_placed_waited_for_and_looked_up(world, tmp_path):
    async def work():
        async with open_door(world, tmp_path, confirmations=2) as (url, session):
            _, pending = await ask(session, "POST", f"{url}/orders", data=encode(order))
            with mining(world.chain):
                report = await place(Bot(session, url, API_KEY), order, SECONDS)
            found = await ask(session, "GET", f"{url}/orders/{order.decision}")
            again = await ask(session, "POST", f"{url}/orders", data=encode(order))
            async with session.get(f"{url}/health") as reply:
                health = await reply.json()
            return pending, report, found, again, health

    order = world.order("job/7 live: 1", WIDE)
    pending, report, found, again, health = asyncio.run(work())
    assert pending.code == Code.EXECUTION_PENDING
    assert report.code == Code.EXECUTED and found == again == (200, report)
    assert health["live"] and not health["paused"] and health["vault"] == world.vault


def test_without_the_right_key_nothing_is_taken_and_a_key_that_was_replaced_opens_no_more(world, tmp_path, caplog):
    async def work():
        found = []
        async with open_door(world, tmp_path) as (url, session):
            for method, path in (("POST", "orders"), ("GET", "orders/first")):
                for key in (None, "", "wrong", API_KEY + "x", API_KEY[:-1], "\u00e9" * 20):
                    found.append(await ask(session, method, f"{url}/{path}", key, data=encode(order)))
            found.append(await ask(session, "POST", f"{url}/orders", None, headers={"Authorization": API_KEY}))
            twice = CIMultiDict([("Authorization", f"Bearer {API_KEY}"), ("Authorization", "Bearer another")])
            async with session.post(f"{url}/orders", data=encode(order), headers=twice) as reply:
                found.append((reply.status, decode(Report, await reply.read(), 1 << 16)))
            private(tmp_path / "api.key", "another-key-of-this-test\n")
            found.append(await ask(session, "POST", f"{url}/orders", API_KEY, data=encode(order)))
            (tmp_path / "api.key").chmod(0o644)
            found.append(await ask(session, "POST", f"{url}/orders", "another-key-of-this-test", data=encode(order)))
            (tmp_path / "api.key").unlink()
            found.append(await ask(session, "POST", f"{url}/orders", "another-key-of-this-test", data=encode(order)))
        return found

    order = world.order("first", WIDE)
    found = asyncio.run(work())
    assert {(status, report.code) for status, report in found} == {(401, Code.EXECUTOR_KEY)}
    assert rows(tmp_path, "SELECT 1 FROM orders") == [] and caplog.text.count("executor_key") == len(found)
    assert API_KEY not in caplog.text and "chmod 600" in caplog.text


def test_bytes_that_are_no_order_are_refused_with_a_code(world, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(door_module, "BODY_SECONDS", 0.3)

    async def slowly():
        yield b"{"
        await asyncio.sleep(5)

    async def work():
        good = encode(world.order("first", WIDE))
        bodies = [b"", b"{}", b"\xff", b"[" * 9000, b"null", good[:-1], good.replace(b'"tick":0', b'"tick":0.5')]
        async with open_door(world, tmp_path) as (url, session):
            found = [await ask(session, "POST", f"{url}/orders", data=body) for body in bodies]
            found.append(await ask(session, "POST", f"{url}/orders", data=good.replace(b'"first"', b'""')))
            found.append(await ask(session, "POST", f"{url}/orders", data=b" " * (1 << 20)))
            found.append(await ask(session, "POST", f"{url}/orders", data=slowly()))
            zipped = {"Content-Encoding": "gzip"}
            found.append(await ask(session, "POST", f"{url}/orders", data=good, headers=zipped))
            found += [await ask(session, *what) for what in (("GET", f"{url}/orders"), ("PUT", f"{url}/orders/a"))]
            found.append(await ask(session, "GET", f"{url}/orders/unknown"))
            await ask(session, "POST", f"{url}/orders", data=good)
            other = good.replace(b'"tick":0', b'"tick":1')
            found.append(await ask(session, "POST", f"{url}/orders", data=other))
            return found

    found = asyncio.run(work())
    codes = [(status, report.code) for status, report in found]
    assert [status for status, _ in codes[:8]] == [400] * 8
    assert {code for _, code in codes[:8]} == {Code.MALFORMED}
    assert codes[8:] == [
        (413, Code.BODY_TOO_LARGE),
        (408, Code.BODY_TIMEOUT),
        (415, Code.CONTENT_TYPE),
        (404, Code.NOT_FOUND),
        (404, Code.NOT_FOUND),
        (404, Code.NOT_FOUND),
        (409, Code.ORDER_CONFLICT),
    ]
    assert all(f"{code}," in caplog.text for _, code in codes)


# ---------------------------------------------------------------------------------------------------------------------
# The program


def words(world: World, folder: Path, verb: str, *more: str) -> list[str]:
    key_file = private(folder / "vault.key", VAULT_KEY)
    chain = ["--rpc", world.chain.url, "--pool", world.uniswap.address, "--manager", world.uniswap.manager]
    return [verb, *chain, "--key-file", str(key_file), "--dir", str(folder / "bot"), *more]


def command(capsys, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the program, run in this process."""
    try:
        code = executor_main.main([*arguments])
    except SystemExit as error:
        code = error.code
    return code, *capsys.readouterr()


class Process:
    """`python -m executor serve` as a process of its own."""

    def __init__(self, world: World, folder: Path, *more: str):
        api_key = private(folder / "api.key", API_KEY)
        options = words(world, folder, "serve", "--api-key-file", str(api_key), "--port", "0", "--confirmations", "1")
        self.log = open(folder / "serve.log", "ab")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-m", "executor", *options, "--turnover-percent", "100000", *more],
            cwd=anvil.ROOT, stdout=subprocess.PIPE, stderr=self.log, text=True,
        )  # fmt: skip
        self.first = self.process.stdout.readline()
        self.url = re.search(r"http://\S+", self.first)[0]

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        ended = self.process.wait(SECONDS)
        self.process.stdout.close()
        self.log.close()
        return ended


def test_killed_at_any_moment_and_started_again_each_decision_is_carried_out_once(world, tmp_path):
    """The real program, the real signal, over real HTTP."""
    rng, reports, first_nonce, start = Random(4), [], world.nonce, world.balances()

    async def one(order: Order, waits: list[float]) -> Report:
        async with aiohttp.ClientSession() as session:
            while True:
                process = await asyncio.to_thread(Process, world, tmp_path, "--live")
                try:
                    placing = asyncio.create_task(place(Bot(session, process.url, API_KEY), order, SECONDS))
                    await asyncio.wait({placing}, timeout=waits.pop() if waits else None)
                    if placing.done():
                        return placing.result()
                    placing.cancel()
                finally:
                    process.end(signal.SIGKILL)

    with mining(world.chain, 0.2):
        for n in range(3):
            order = world.order(f"decision {n}", Position(-60 * (n + 1), 60, ETHER // 3, ETHER // 3))
            reports.append(asyncio.run(one(order, [rng.uniform(0.02, 0.5)])))
    assert [report.code for report in reports] == [Code.EXECUTED] * 3 and all(map(balanced, reports))
    assert world.nonce == first_nonce + 3 and reports[0].before == Inventory(*start)
    assert [report.after for report in reports[:-1]] == [report.before for report in reports[1:]]
    assert world.balances() == (reports[-1].after.amount0, reports[-1].after.amount1)


def test_it_serves_a_dry_run_by_default_and_stops_when_asked(world, tmp_path, capsys):
    async def work():
        async with aiohttp.ClientSession() as session:
            return await place(Bot(session, process.url, API_KEY), order, SECONDS)

    order, nonce = world.order("first", WIDE), world.nonce
    process = Process(world, tmp_path)
    try:
        assert process.first.startswith("DRY RUN")
        api_key = str(tmp_path / "api.key")
        code, _, said = command(capsys, *words(world, tmp_path, "serve", "--api-key-file", api_key))
        report = asyncio.run(work())
    finally:
        ended = process.end(signal.SIGTERM)
    assert ended == 0 and report.code == Code.EXECUTION_DRY_RUN and world.nonce == nonce
    assert code == 2 and "another process works with this executor's folder" in said
    logged = (tmp_path / "serve.log").read_text()
    assert VAULT_KEY[2:] not in logged and API_KEY not in logged and "the position manager may take" in logged
    shown = command(capsys, *words(world, tmp_path, "status"))[1]
    assert "last started as a dry run" in shown and "  confirmations 1\n" in shown and "  first: execution_dry" in shown


def test_status_shows_vault_price_and_journal_and_makes_none(world, tmp_path, capsys):
    status = words(world, tmp_path, "status")
    assert command(capsys, *status)[1].endswith("no orders yet\n") and not list((tmp_path / "bot").glob("*"))
    (tmp_path / "bot" / executor_main.JOURNAL_FILE).symlink_to(tmp_path / "journal.sqlite3")
    world.run(tmp_path, world.order("first", WIDE))
    code, shown, _ = command(capsys, *status)
    assert code == 0 and "first: executed, 1 minted" in shown and "average of 600 s 0" in shown
    assert "token 1: -600..600" in shown and "moved within an hour: 50.00 %" in shown and "not paused" in shown


def test_pause_and_resume_are_commands(tmp_path, capsys):
    folder = str(tmp_path)
    code, _, said = command(capsys, "pause", "--dir", folder)  # nobody would look there
    assert code == 2 and "no executor bot" in said and not list(tmp_path.iterdir())
    (tmp_path / executor_main.JOURNAL_FILE).touch()
    assert command(capsys, "pause", "--dir", folder)[0] == 0 and (tmp_path / executor_main.PAUSE_FILE).exists()
    assert command(capsys, "resume", "--dir", folder)[0] == 0 and not (tmp_path / executor_main.PAUSE_FILE).exists()
    code, _, said = command(capsys, "pause", "--dir", str(tmp_path / "gone"))
    assert code == 2 and "--dir" in said


def test_approve_gives_the_allowances_only_with_yes(world, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(wallet_module, "POLL_SECONDS", 0.01)
    uniswap = world.uniswap
    uniswap.send(uniswap.token0, "approve(address,uint256)", uniswap.manager, 0, sender=world.vault)
    world.chain.mine()
    nonce, approve = world.nonce, words(world, tmp_path, "approve")
    code, said, _ = command(capsys, *approve)
    assert code == 0 and "DRY RUN" in said and world.nonce == nonce
    with mining(world.chain):
        code, said, _ = command(capsys, *approve, "--yes")
    assert code == 0 and world.nonce > nonce
    assert "already" in command(capsys, *approve)[1]
    [report] = world.run(tmp_path, world.order("first", WIDE))
    assert report.code == Code.EXECUTED


@pytest.mark.parametrize(("how", "transactions"), [("through_zero", 2), ("narrow", 1), ("capped", 1)])
def test_approve_knows_tokens_that_take_no_allowance_but_through_0_or_of_96_bits(
    world, tmp_path, capsys, monkeypatch, how, transactions
):
    monkeypatch.setattr(wallet_module, "POLL_SECONDS", 0.01)
    uniswap, chain = world.uniswap, world.chain
    for token in (uniswap.token0, uniswap.token1):
        uniswap.send(token, "approve(address,uint256)", uniswap.manager, 1, sender=world.vault)
    chain.mine()
    anvil.make_odd(chain, uniswap.token0, how)
    nonce, approve = world.nonce, words(world, tmp_path, "approve")
    with mining(chain):
        code, said, _ = command(capsys, *approve, "--yes")
    assert (code, world.nonce) == (0, nonce + transactions + 1) and said.count("  0x") == transactions + 1
    assert "already" in command(capsys, *approve)[1]
    assert command(capsys, *words(world, tmp_path, "status"))[1].count("may take all") == 2
    [report] = world.run(tmp_path, world.order("first", WIDE))
    assert report.code == Code.EXECUTED


@pytest.mark.parametrize(
    ("refusal", "code", "said"),
    [("minimum needed 7000000000", 0, ""), ("exceeds block gas limit", 2, "a node refuses it")],
)
def test_an_approval_that_no_node_takes_is_said_at_once_or_offers_more(
    world, tmp_path, capsys, monkeypatch, refusal, code, said
):
    async def wrapped(rpc, endpoint, calls, *more):
        (method, parameters), *_ = calls
        if method == "eth_sendRawTransaction" and tip_of(parameters[0]) < 7 * GWEI:
            return [Refusal(-32000, refusal)]
        return await post(rpc, endpoint, calls, *more)

    post, uniswap = rpc_module.Rpc._post, world.uniswap
    uniswap.send(uniswap.token0, "approve(address,uint256)", uniswap.manager, 0, sender=world.vault)
    world.chain.mine()
    nonce = world.nonce
    monkeypatch.setattr(rpc_module.Rpc, "_post", wrapped)
    monkeypatch.setattr(wallet_module, "POLL_SECONDS", 0.01)
    with mining(world.chain):
        ended, _, trouble = command(capsys, *words(world, tmp_path, "approve"), "--yes")
    assert ended == code and said in trouble and world.nonce == nonce + (not code)


def test_a_token_that_cannot_be_approved_is_said_and_the_other_is_approved(world, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(wallet_module, "POLL_SECONDS", 0.01)
    uniswap = world.uniswap
    for token in (uniswap.token0, uniswap.token1):
        uniswap.send(token, "approve(address,uint256)", uniswap.manager, 0, sender=world.vault)
    world.chain.mine()
    anvil.make_odd(world.chain, uniswap.token0, "stubborn")
    with mining(world.chain):
        code, said, trouble = command(capsys, *words(world, tmp_path, "approve"), "--yes")
    assert code == 2 and said.count("  0x") == 1 and uniswap.token1 in said
    assert f"{uniswap.token0} cannot be approved" in trouble and trouble.count("\n") == 1


def test_keys_are_read_from_files_that_nobody_else_may_read(tmp_path):
    account = Account.from_key(VAULT_KEY)
    plain = private(tmp_path / "plain", f"{VAULT_KEY[2:]}\n")
    stored = private(tmp_path / "keystore", json.dumps(Account.encrypt(VAULT_KEY, "secret", iterations=2)))
    assert load_account(plain, None).address == load_account(stored, "secret").address == account.address
    for path, password, said in (
        (stored, None, "--password-file"),
        (stored, "wrong", "is its password right"),
        (private(tmp_path / "short", VAULT_KEY[:-1]), None, "64 hexadecimal digits"),
        (private(tmp_path / "zero", "0" * 64), None, "64 hexadecimal digits"),
        (tmp_path / "none", None, "No such file"),
    ):
        with pytest.raises(UserError, match=said) as error:
            load_account(path, password)
        assert VAULT_KEY[10:40] not in str(error.value) and "\n" not in str(error.value)
    plain.chmod(0o640)
    with pytest.raises(UserError, match="chmod 600"):
        load_account(plain, None)
    for text, said in (
        ("", "is empty"), ("\n" + "k" * 40, "is empty"), ("short", "at least 16"), ("k" * 40 + "\xa0", r"U\+00A0")
    ):  # fmt: skip
        with pytest.raises(UserError, match=said):
            read_api_key(private(tmp_path / "api", text))


def test_a_mistake_in_the_options_is_one_line_and_exit_code_2(world, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(pool_module.POSITION_MANAGERS, CHAIN_ID, world.uniswap.manager)
    api_key = str(private(tmp_path / "api.key", API_KEY))
    good = words(world, tmp_path, "serve", "--api-key-file", api_key)
    foreign = private(tmp_path / "foreign.key", "11" * 32)
    no_key = [word for word in good if word not in ("--key-file", str(tmp_path / "vault.key"))]
    usual = [word for word in good if word not in ("--manager", world.uniswap.manager)]
    for arguments, said in (
        ([*good, "--vault", "0x" + "12" * 20], "is the key of"),
        ([*no_key, "--live"], "--key-file"),
        (no_key, "--vault ADDRESS"),
        ([*good, "--api-key-file", str(tmp_path / "none")], "No such file"),
        (["serve", "--key-file", str(foreign), "--api-key-file", api_key, "--dir", str(tmp_path / "x")], "--rpc URL"),
        ([*good, "--rpc", "ws://127.0.0.1"], "http"),
        ([*good, "--pool", world.uniswap.elsewhere()], "it is of another factory's pools"),
        ([*usual, "--pool", world.uniswap.elsewhere()], "usual position manager is of another factory's pools"),
    ):
        code, out, err = command(capsys, *arguments)
        assert code == 2 and said in err and err.count("\n") == 1 and not out, (arguments, err)


def test_nobody_else_may_read_what_was_signed(world, tmp_path):
    """What a pause holds back could be sent by whoever has it."""

    async def work():
        path.touch(0o644)
        async with OrderJournal.open(path, CHAIN_ID, world.uniswap.address, world.vault) as journal:
            await journal.accept(world.order("first", WIDE))
            return [file.stat().st_mode & 0o077 for file in tmp_path.iterdir()]

    path = tmp_path / "journal.sqlite3"
    assert set(asyncio.run(work())) == {0}


def test_another_vaults_journal_is_refused(world, tmp_path):
    async def work(vault: str):
        async with OrderJournal.open(tmp_path / "journal.sqlite3", CHAIN_ID, world.uniswap.address, vault):
            pass

    asyncio.run(work(world.vault))
    with pytest.raises(UserError, match="choose another --dir"):
        asyncio.run(work("0x" + "12" * 20))


# ---------------------------------------------------------------------------------------------------------------------
# The documentation

DOCUMENT = (anvil.ROOT / "docs/executor.md").read_text()


def test_every_row_of_the_tables_in_the_documentation_names_tests_that_exist():
    lines = [line for line in DOCUMENT.splitlines() if line.startswith("| ")]
    rows_ = [line for line in lines if "test_" in line]
    named = {name for line in rows_ for name in re.findall(r"`(test_\w+)`", line)}
    assert len(rows_) > 40 and len(rows_) == len(lines) - sum(line.endswith("| test |") for line in lines)
    assert not named - globals().keys()
    codes = {code for line in lines for code in re.findall(r"`([a-z]+_[a-z_]+)`", line.rpartition("|")[0])} - named
    assert {code for code in codes if not code.startswith("test_")} <= {code.value for code in Code}


def test_the_documentation_names_the_options_and_constants_as_they_are():
    """Every option that it names exists, and every default that it says is the program's."""
    help_ = {}
    for action in executor_main.build_parser()._subparsers._group_actions[0].choices["serve"]._actions:
        help_ |= dict.fromkeys(action.option_strings, action.default)
    named = re.findall(r"`(--[a-z-]+)(?: N)?`(?: \((\d+)\))?", DOCUMENT)
    assert {flag for flag, _ in named} <= help_.keys() and sum(bool(default) for _, default in named) >= 7
    for flag, default in named:
        value = help_[flag] // GWEI if flag == "--max-gas-gwei" else help_[flag]
        assert not default or int(default) == value, flag
    text = " ".join(DOCUMENT.split())
    for value in (f"waits {door_module.ANSWER_SECONDS:g} seconds", f"{MAX_REVERTED} times at most", f"{MAX_OPEN} open"):
        assert value in text, value
    assert f"at least {MIN_API_KEY_CHARS} characters" in text
    limits = Limits()
    ticks, gas = limits.average_ticks + limits.slippage_ticks, 4 * limits.hourly_transactions
    for value in (
        f"{ticks} ticks x {limits.turnover_percent} % = {ticks * limits.turnover_percent / 10**4:g} %",
        f"| {limits.hourly_transactions} transactions at",
        f"{gas} million gas: {gas * limits.max_gas_wei / 10**12:g} ether at {limits.max_gas_wei // GWEI} gwei",
        f"{gas / 1000:g} at 1 |",
    ):
        assert value in text, value
