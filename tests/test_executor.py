from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace

import anvil
import pytest
from web3 import Account


from contracts import Function, address, describe, read_vault
from execution import Executor, Limits
from order_journal import OrderJournal
from orders import Order, Report
from protocol import Code, Inventory, Position
from rpc import open_rpc
from sim import amounts_of, sqrt_ratio_at_tick

ETHER = 10**18
VAULT_KEY = "0x47e179ec197488593b187f80a00eb0da91f1b9d0b13f8733639f19c30a34926a"  # the fifth of anvil's own, public
SLOT0 = Function("slot0()", "uint160", "int24")
BALANCE = Function("balanceOf(address)", "uint256")


class World:
    """A pool that remembers its price, and a vault whose key the bot has."""

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

    def balances(self) -> tuple[int, int]:
        tokens = self.uniswap.token0, self.uniswap.token1
        return tuple(self.chain.call(token, BALANCE, self.vault)[0] for token in tokens)

    def held(self):
        async def work():
            async with open_rpc([self.chain.url]) as rpc:
                contract = await describe(rpc, self.uniswap.address, self.uniswap.manager)
                block = self.chain.rpc("eth_getBlockByNumber", "latest", False)
                return (await read_vault(rpc, contract, self.vault, block["hash"]))[0]

        return asyncio.run(work())

    def order(self, decision: str, *desired: Position | int, **changes) -> Order:
        """Now; a number among the desired stands for the shown position that is kept."""
        price, tick = self.chain.call(self.uniswap.address, SLOT0)
        shown = tuple(
            Position(
                one.tick_lower,
                one.tick_upper,
                *amounts_of(
                    one.liquidity,
                    price,
                    sqrt_ratio_at_tick(one.tick_lower),
                    sqrt_ratio_at_tick(one.tick_upper),
                    round_up=False,
                ),
            )
            for one in self.held()
        )
        order = Order(
            decision=decision,
            chain_id=31337,
            pool=self.uniswap.address,
            vault=self.vault,
            shown=shown,
            desired=tuple(shown[one] if isinstance(one, int) else one for one in desired),
            block_number=self.chain.height,
            sqrt_price_x96=price,
            tick=tick,
            deadline=self.time + 120,
        )
        return replace(order, **changes)

    @asynccontextmanager
    async def bot(self, folder, live: bool = True, **limits):
        async with open_rpc([self.chain.url]) as rpc:
            contract = await describe(rpc, self.uniswap.address, self.uniswap.manager)
            async with OrderJournal.open(folder / "j.sqlite3", 31337, self.uniswap.address, self.vault) as journal:
                limits = Limits(**{"confirmations": 0} | limits)
                account = Account.from_key(VAULT_KEY)
                yield Executor(rpc, contract, journal, self.vault, account, limits, folder / "pause", live)


@pytest.fixture(scope="session")
def chain(missing):
    if anvil.missing():
        missing(anvil.missing())
    with anvil.Chain() as chain:
        yield chain


@pytest.fixture
def world(chain):
    return World(chain)


async def carry_out(bot, chain, order, blocks=5) -> Report:
    await bot.journal.accept(order)
    for _ in range(blocks):
        if not await bot.step():
            break
        chain.mine()
    _, report = await bot.journal.report(order.decision)
    return report


def test_smoke(world, tmp_path):
    async def work():
        async with world.bot(tmp_path) as bot:
            first = await carry_out(bot, world.chain, a)
            return first

    a = world.order("a", Position(-600, 600, ETHER // 2, ETHER // 2))
    r = asyncio.run(work())
    print(r)
    print(world.held(), world.balances())
    world.uniswap.swap(True, ETHER)
    world.chain.mine()
    a = world.order("b", Position(-1200, 600, ETHER * 3 // 4, ETHER * 3 // 4), Position(-120, -60, ETHER, ETHER))
    r = asyncio.run(work())
    print(r)
    print(world.balances())
    assert 0
