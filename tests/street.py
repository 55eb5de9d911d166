"""A development chain with trade in every block, a vault's executor bot, and a validator beside them, for tests.

Nothing is faked: Uniswap's own contracts on anvil (`anvil.py`), `executor.py` as a process, the validator's own code.
The chain runs thirty times as fast as ours; its newest block is the clock of all who go by it.
Used by `test_live.py` and `test_live_faults.py`.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from random import Random

import anvil
from subnets import ROOT, wait_for
from web3 import Account

from chain.local import LocalChain
from evm.market import Web3Market
from evm.pool import BALANCE_OF
from executor import client
from executor.client import Bot
from sim import amounts_of, sqrt_ratio_at_tick
from store import Store
from validator import Validator, build_parser
from wire.client import client_session
from wire.signing import local_keypair

ETHER = 10**18
MNEMONIC = "test test test test test test test test test test test junk"  # of every development chain of this kind
PACE = 30  # chain seconds per second
BLOCK_SECONDS = 2
LEAD_SECONDS = 100  # before the first round's start, when the validator comes up
API_KEY = "a-key-that-only-this-test-knows"
WALLET = [local_keypair(f"validator-{kind}").ss58_address for kind in ("hotkey", "coldkey")]


class Street:
    """A pool with vaults and others in it, and trade in every block, which comes when its time has come.

    Args:
        vaults: how many; the bot has the first one's key.
        largest: power of ten of the largest swap.

    Attributes:
        vault, vaults: the first one's address, and all.
        born: the first block after all that was made ready.
        time: of the newest block: the clock of all who go by this chain.
        pace: chain seconds per second.
        before: called before each block is mined, in the thread that mines it.
    """

    def __init__(self, chain: anvil.Chain, seed: int, vaults: int = 1, largest: float = 16.8):
        self.chain, self.rng, self.largest = chain, Random(seed), largest
        self.uniswap = uniswap = anvil.Uniswap(chain, 3000, 60)
        self.vaults = chain.accounts[1 : 1 + vaults]
        self.vault, self.pace, self.before = self.vaults[0], PACE, None
        Account.enable_unaudited_hdwallet_features()
        account = Account.from_mnemonic(MNEMONIC, account_path="m/44'/60'/0'/0/1")
        assert account.address.lower() == self.vault
        self.key = account.key.hex()
        uniswap.mint_direct(-12_000, 12_000, 100 * ETHER)
        uniswap.remember()
        for token in (uniswap.token0, uniswap.token1):
            for account in (uniswap.boss, *self.vaults):
                uniswap.send(token, "approve(address,uint256)", uniswap.manager, anvil.SUPPLY, sender=account)
                uniswap.send(token, "transfer(address,uint256)", account, 2 * ETHER)
        for vault in self.vaults:
            uniswap.mint(vault, -1200, 900, ETHER, ETHER)
        chain.mine()
        for vault in self.vaults:
            for token, has in zip((uniswap.token0, uniswap.token1), self.balances(vault=vault), strict=True):
                uniswap.send(token, "transfer(address,uint256)", uniswap.boss, has - ETHER // 5, sender=vault)
        self.born = chain.mine() + 1
        self.catch_up()

    def catch_up(self) -> None:
        """Go on after another process has mined."""
        self.time = int(self.chain.rpc("eth_getBlockByNumber", "latest", False)["timestamp"], 16)

    def block(self, seconds: int = BLOCK_SECONDS) -> None:
        if self.before:
            self.before()
        for _ in range(self.rng.randint(0, 2)):
            self.uniswap.swap(self.rng.random() < 0.5, int(10 ** self.rng.uniform(14, self.largest)))
        self.time += seconds  # first: no block is ahead of the clock
        self.chain.rpc("evm_setNextBlockTimestamp", self.time)
        self.chain.rpc("evm_mine")

    def warm_up(self, round_seconds: int) -> None:
        """Enough history for a ten-minute average; then wait for a round that is about to be asked for."""
        for _ in range(40):
            self.block(20)
        start = -(-(self.time + LEAD_SECONDS + 1) // round_seconds) * round_seconds
        self.block(start - LEAD_SECONDS - self.time)
        for _ in range(3):  # that are believed
            self.block()

    async def run(self) -> None:
        while True:
            began = time.monotonic()
            await asyncio.to_thread(self.block)
            await asyncio.sleep(max(0.0, began + BLOCK_SECONDS / self.pace - time.monotonic()))

    def market(self, path: Path, **options) -> AbstractAsyncContextManager[Web3Market]:
        options = {"vaults": self.vaults, "manager": self.uniswap.manager, "confirmations": 0} | options
        return Web3Market.open([options.pop("url", self.chain.url)], self.uniswap.address, path, **options)

    def balances(self, block: str = "latest", vault: str = "") -> tuple[int, int]:
        tokens = self.uniswap.token0, self.uniswap.token1
        _, (call, _) = BALANCE_OF.call("", "", vault or self.vault)
        return tuple(int(self.chain.rpc("eth_call", call | {"to": token}, block), 16) for token in tokens)

    def sent_by(self, account: str, last: int, first: int = 0) -> list[dict]:
        """Receipts of all that an account sent in these blocks, also of what failed; from `born` on without a first."""
        numbers = range(first or self.born, last + 1)
        blocks = (self.chain.rpc("eth_getBlockByNumber", hex(number), True) for number in numbers)
        hashes = [sent["hash"] for block in blocks for sent in block["transactions"] if sent["from"] == account]
        return [self.chain.rpc("eth_getTransactionReceipt", hash_) for hash_ in hashes]

    async def holds(self, folder: Path, block: int, vault: str = "") -> tuple[int, int]:
        """All that a vault has after a block, as the contracts say: balances, what burning would release, and fees."""
        vault = vault or self.vault
        async with self.market(folder / f"after-{block}.sqlite3", first=block - 1, following=False) as market:
            await market.catch_up(block)
            snapshot = await market.snapshot(vault, block + 1)
            owed = (await anvil.uncollected(market, vault, block)).values()
        have = list(self.balances(hex(block), vault))
        for position in snapshot.vault:
            bounds = sqrt_ratio_at_tick(position.tick_lower), sqrt_ratio_at_tick(position.tick_upper)
            released = amounts_of(position.liquidity, snapshot.sqrt_price_x96, *bounds, round_up=False)
            have = [a + b for a, b in zip(have, released, strict=True)]
        return have[0] + sum(fees[0] for fees in owed), have[1] + sum(fees[1] for fees in owed)


class Subprocesses:
    """Programs that end with the test, their output in files."""

    def __init__(self, folder: Path):
        self.folder, self.running = folder, []

    def start(self, name: str, *command: object) -> subprocess.Popen:
        with open(self.folder / f"{name}.log", "ab") as log:
            process = subprocess.Popen(
                [sys.executable, *map(str, command)],
                cwd=ROOT,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": str(ROOT), "NETUID": "", "EXECUTOR_API_KEY": ""},
            )
        self.running.append(process)
        return process

    def said(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()


@contextmanager
def subprocesses(folder: Path) -> Iterator[Subprocesses]:
    programs = Subprocesses(folder)
    try:
        yield programs
    finally:
        for process in programs.running:
            process.kill()
            process.wait()
        for log in sorted(folder.glob("*.log")):  # pytest shows them where a test fails
            print(f"--- {log.name}\n{log.read_text()[-4000:]}")


@contextmanager
def executor(programs: Subprocesses, street: Street, *options: object) -> Iterator[ExecutorBot]:
    """The bot with the first vault's key, live."""
    folder, common = programs.folder, ["--rpc", street.chain.url, "--pool", street.uniswap.address]
    common += ["--manager", street.uniswap.manager, "--dir", folder]
    for name, text in (("vault.key", street.key), ("api.key", API_KEY)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o600)
    common += ["--key-file", folder / "vault.key"]
    approving = programs.start("approve", "-m", "executor", "approve", *common, "--yes")
    while approving.poll() is None:
        street.block()
        time.sleep(0.05)
    assert approving.wait() == 0, programs.said("approve")
    serving = ["--api-key-file", folder / "api.key", "--live", "--average-ticks", 2000, "--turnover-percent", 400]
    bot = ExecutorBot(programs, [*common, *serving, *options])
    bot.start()
    yield bot


class ExecutorBot:
    """`python -m executor serve` as a process, which may be killed and started again at the same address."""

    def __init__(self, programs: Subprocesses, options: list):
        self._programs, self._options, self._starts, self._port = programs, options, 0, 0

    def begin(self) -> None:
        """Start it and wait for nothing."""
        self._starts += 1
        where = "-m", "executor", "serve", *self._options, "--port", self._port
        self._process = self._programs.start(f"executor-{self._starts}", *where)

    def ready(self) -> str:
        """Its address; empty while it comes up."""
        found = re.search(r"Vault.*http://[\d.]+:(\d+)", self._programs.said(f"executor-{self._starts}"))
        self._port = int(found[1]) if found else self._port
        return f"http://127.0.0.1:{self._port}" if found else ""

    def start(self) -> None:
        self.begin()
        wait_for("the executor", self.ready, self._process)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@asynccontextmanager
async def validating(
    folder: Path, street: Street, bot_url: str, confirmations: int = 2, **options
) -> Iterator[Validator]:
    """A validator on the street with what it stands on; `work` is the caller's to start."""
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        store, session = await enter(Store.open(folder / "validator.sqlite3")), await enter(client_session(0))
        market = await enter(
            street.market(
                folder / "pool.sqlite3",
                confirmations=confirmations,
                poll_seconds=0.05,
                clock=lambda: street.time,
                place=partial(client.place, Bot(session, bot_url, API_KEY)),
                **options,
            )
        )
        key = local_keypair("validator-hotkey")
        for what, value in (("market", market.label), ("pool", market.pair.pool_address), ("validator", WALLET[0])):
            await store.claim(what, value)
        chain = await enter(LocalChain.open(folder / "chain.sqlite3", *WALLET, clock=time.time))
        yield Validator(store, chain, market, session, key, build_parser().parse_args([f"--pace={PACE}"]), {})


async def work_until(validator: Validator, street: Street, done: Callable[[], object], seconds: float) -> None:
    """Let a validator work beside trade in every block until something is so."""
    tasks = asyncio.create_task(street.run()), asyncio.create_task(validator.work())
    try:
        async with asyncio.timeout(seconds):
            while not done():
                for task in (await asyncio.wait(tasks, timeout=0.05, return_when=asyncio.FIRST_COMPLETED))[0]:
                    task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
