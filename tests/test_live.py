"""Live rounds end to end, on Uniswap's own contracts: what the winner decides becomes real positions.

A development chain runs on the loopback interface, thirty times as fast as ours; somebody trades in every block. Beside
it run a validator with evaluation and live rounds, two miners (`miner.py`, copied, with `propose` changed) and the
executor bot, all over real HTTP. At the end the chain is asked what the vault has.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from random import Random

import anvil
import pytest
from subnets import (
    DEADLINE_SECONDS,
    ROOT,
    a_job,
    hotkey_of,
    rows,
    standings,
    stored_lines,
    stored_standings,
    wait_for,
    write,
)
from web3 import Account

from contracts import BALANCE_OF, TRANSFER
from evidence import audit
from local import LocalChain
from orders import Bot
from sim import amounts_of, sqrt_ratio_at_tick
from store import Store
from validator import Validator, build_parser
from web3market import Web3Market, audit_chain
from wire import client_session, local_keypair

ETHER = 10**18
MNEMONIC = "test test test test test test test test test test test junk"  # of every development chain of this kind
PACE = 30  # chain seconds per second
BLOCK_SECONDS = 2
ROUND_SECONDS = 480
LEAD_SECONDS = 100  # before the first round's start, when the validator comes up
DAY = 86_400
RULES = {"target": "MaxFees", "checkpoint_blocks": 40}
API_KEY = "a key that only this test knows"
REGISTERED = "SELECT 1 FROM neurons WHERE address != ''"
WALLET = [local_keypair(f"validator-{kind}").ss58_address for kind in ("hotkey", "coldkey")]
LIVE_ASKS = "SELECT 1 FROM predictions JOIN rounds USING (round_id) WHERE round_type = 'live'"
ENDED_LIVE = """
    SELECT DISTINCT round_id FROM predictions JOIN rounds USING (round_id)
    WHERE round_type = 'live' AND rounds.code IS NOT NULL
"""
KEEPER = """
def propose(query):
    return list(query.current_positions)
"""
MOVER = """
def propose(query):
    step = query.tick_spacing * (4 + query.block_number % 3)
    middle = query.tick // query.tick_spacing * query.tick_spacing
    return [Position(middle - step, middle + step, *query.holdings())]
"""


class Street:
    """A pool with a vault and others in it, and trade in every block, which comes when its time has come.

    Attributes:
        time: of the newest block: the clock of all who go by this chain.
    """

    def __init__(self, chain: anvil.Chain, seed: int):
        self.chain, self.rng, self.uniswap = chain, Random(seed), anvil.Uniswap(chain, 3000, 60)
        self.vault = chain.accounts[1]
        Account.enable_unaudited_hdwallet_features()
        account = Account.from_mnemonic(MNEMONIC, account_path="m/44'/60'/0'/0/1")
        assert account.address.lower() == self.vault
        self.key = account.key.hex()
        self.uniswap.mint_direct(-12_000, 12_000, 100 * ETHER)
        self.uniswap.send(self.uniswap.address, "increaseObservationCardinalityNext(uint16)", 400)
        self.uniswap.mint(self.vault, -1200, 900, ETHER, ETHER)
        chain.mine()
        for token, has in zip((self.uniswap.token0, self.uniswap.token1), self.balances(), strict=True):
            self.uniswap.send(
                token, "transfer(address,uint256)", self.uniswap.boss, has - ETHER // 5, sender=self.vault
            )
        chain.mine()
        block = chain.rpc("eth_getBlockByNumber", "latest", False)
        self.time = int(block["timestamp"], 16)

    def block(self, seconds: int = BLOCK_SECONDS) -> None:
        for _ in range(self.rng.randint(0, 2)):
            self.uniswap.swap(self.rng.random() < 0.5, int(10 ** self.rng.uniform(14, 16.8)))
        self.time += seconds
        self.chain.rpc("evm_setNextBlockTimestamp", self.time)
        self.chain.rpc("evm_mine")

    def warm_up(self) -> None:
        """Enough history for a ten-minute average; then wait for a round that is about to be asked for."""
        for _ in range(40):
            self.block(20)
        start = -(-(self.time + LEAD_SECONDS + 1) // ROUND_SECONDS) * ROUND_SECONDS
        self.block(start - LEAD_SECONDS - self.time)
        for _ in range(3):  # that are believed
            self.block()

    async def run(self) -> None:
        while True:
            began = time.monotonic()
            await asyncio.to_thread(self.block)
            await asyncio.sleep(max(0.0, began + BLOCK_SECONDS / PACE - time.monotonic()))

    def market(self, path: Path, **options) -> AbstractAsyncContextManager[Web3Market]:
        options = {"vaults": [self.vault], "manager": self.uniswap.manager, "confirmations": 0} | options
        return Web3Market.open([self.chain.url], self.uniswap.address, path, **options)

    def balances(self, block: str = "latest") -> tuple[int, int]:
        tokens = self.uniswap.token0, self.uniswap.token1
        _, (call, _) = BALANCE_OF.call("", "", self.vault)
        return tuple(int(self.chain.rpc("eth_call", call | {"to": token}, block), 16) for token in tokens)


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
def executor(programs: Subprocesses, street: Street) -> Iterator[str]:
    """The bot with the vault's key, live; yields its address."""
    folder, common = programs.folder, ["--rpc", street.chain.url, "--pool", street.uniswap.address]
    common += ["--manager", street.uniswap.manager, "--dir", folder]
    for name, text in (("vault.key", street.key), ("api.key", API_KEY)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o600)
    common += ["--key-file", folder / "vault.key"]
    approving = programs.start("approve", "executor.py", "approve", *common, "--yes")
    while approving.poll() is None:
        street.block()
        time.sleep(0.05)
    assert approving.wait() == 0, programs.said("approve")
    serving = ["--api-key-file", folder / "api.key", "--port", 0, "--live", "--average-ticks", 2000]
    serving += ["--turnover-percent", 10**6]  # three decisions in eight minutes
    process = programs.start("executor", "executor.py", "serve", *common, *serving)
    found = wait_for(
        "the executor", lambda: re.search(r"Vault.*(http://[\d.]+:\d+)", programs.said("executor")), process
    )
    yield found[1]


def a_miner(programs: Subprocesses, name: str, propose: str) -> None:
    """As the README says: `miner.py` copied, `propose` changed, started beside the validator."""
    text = (ROOT / "miner.py").read_text()
    begin, end = text.index("def propose("), text.index("\n# ====", text.index("def propose("))
    copied = programs.folder / f"{name}_miner.py"
    copied.write_text(text[:begin] + propose.strip() + "\n\n" + text[end:])
    programs.start(name, copied, "--name", name, "--dir", programs.folder, "--port", 0, "--status-port", 0)


async def validate(folder: Path, street: Street, bot_url: str, until: str, count: int) -> None:
    """A validator beside trade in every block, until a query of its database gives so many rows."""
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        store, session = await enter(Store.open(folder / "validator.sqlite3")), await enter(client_session(0))
        market = await enter(
            street.market(
                folder / "pool.sqlite3",
                confirmations=2,
                poll_seconds=0.05,
                clock=lambda: street.time,
                bot=Bot(session, bot_url, API_KEY),
            )
        )
        key = local_keypair("validator-hotkey")
        for what, value in (("market", market.label), ("pool", market.pair.pool_address), ("validator", WALLET[0])):
            await store.claim(what, value)
        chain = await enter(LocalChain.open(folder / "chain.sqlite3", *WALLET, clock=time.time))
        validator = Validator(store, chain, market, session, key, build_parser().parse_args([f"--pace={PACE}"]), {})
        tasks = asyncio.create_task(street.run()), asyncio.create_task(validator.work())
        try:
            async with asyncio.timeout(DEADLINE_SECONDS):
                while len(rows(folder / "validator.sqlite3", until)) < count:
                    for task in (await asyncio.wait(tasks, timeout=0.05))[0]:
                        task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def prepare(folder: Path, street: Street, programs: Subprocesses) -> None:
    """A subnet with two miners, one job, and six days on which both miners were ranked (`test_eligibility.py`)."""
    async with AsyncExitStack() as stack:
        chain = await stack.enter_async_context(LocalChain.open(folder / "chain.sqlite3", *WALLET, clock=time.time))
        store = await stack.enter_async_context(Store.open(folder / "validator.sqlite3"))
        await chain.register(*WALLET, 100_000 * 10**9)
        await store.put_job(replace(a_job(live=True, round_seconds=ROUND_SECONDS, **RULES), vault=street.vault))
    for name, propose in (("mover", MOVER), ("keeper", KEEPER)):
        a_miner(programs, name, propose)
        for day in range(1, 7):
            sql, at = "INSERT INTO miner_participation VALUES ('job', ?, ?, ?)", street.time - day * DAY
            write(folder / "validator.sqlite3", sql, hotkey_of(name), at // DAY, at)
    wait_for("both miners", lambda: len(rows(folder / "chain.sqlite3", REGISTERED)) == 2, programs.running[-1])


@pytest.fixture(scope="module")
def played(tmp_path_factory, missing):
    """Two live rounds, the validator stopped in the first and started again; what is left of them."""
    if anvil.missing():
        missing(anvil.missing())
    folder = tmp_path_factory.mktemp("live")
    with anvil.Chain() as chain, subprocesses(folder) as programs:
        street = Street(chain, seed=3)
        street.warm_up()
        with executor(programs, street) as bot_url:
            asyncio.run(prepare(folder, street, programs))
            street.warm_up()
            asyncio.run(validate(folder, street, bot_url, LIVE_ASKS, 2))  # stopped with a decision on its way
            asyncio.run(validate(folder, street, bot_url, ENDED_LIVE, 2))
            yield folder, street, programs


def scored_rounds(folder: Path) -> list[str]:
    sql = "SELECT round_id FROM rounds WHERE round_type = 'live' AND code = 'scored' ORDER BY start_time"
    return [round_id for (round_id,) in rows(folder / "validator.sqlite3", sql)]


def executions(folder: Path, round_id: str) -> list[dict]:
    sql = "SELECT execution FROM live_executions WHERE round_id = ? ORDER BY block"
    return [json.loads(text) for (text,) in rows(folder / "validator.sqlite3", sql, round_id)]


async def on_chain(street: Street, folder: Path, block: int) -> tuple[int, int]:
    """All that the vault has after a block, as the contracts say: balances, what burning would release, and fees."""
    async with street.market(folder / f"after-{block}.sqlite3", first=block - 1, following=False) as market:
        await market.catch_up(block)
        snapshot = await market.snapshot(street.vault, block + 1)
        owed = (await market.uncollected(street.vault, block)).values()
    have = list(street.balances(hex(block)))
    for position in snapshot.vault:
        bounds = sqrt_ratio_at_tick(position.tick_lower), sqrt_ratio_at_tick(position.tick_upper)
        released = amounts_of(position.liquidity, snapshot.sqrt_price_x96, *bounds, round_up=False)
        have = [a + b for a, b in zip(have, released, strict=True)]
    return have[0] + sum(fees[0] for fees in owed), have[1] + sum(fees[1] for fees in owed)


def test_what_the_vault_has_on_chain_at_the_close_is_what_was_recorded_to_the_wei(played):
    folder, street, _ = played
    rounds = scored_rounds(folder)
    assert len(rounds) == 2
    for round_id in rounds:
        [(close,)] = rows(folder / "validator.sqlite3", "SELECT close_block FROM rounds WHERE round_id = ?", round_id)
        outcome = stored_lines(folder / "validator.sqlite3", round_id)[hotkey_of("mover")]["outcome"]
        recorded = tuple(int(outcome[f"final{n}"]) + int(outcome[f"fees{n}"]) for n in (0, 1))
        assert asyncio.run(on_chain(street, folder, close - 1)) == recorded


def test_each_decision_is_on_the_chain_once_or_refused_with_its_gas_and_what_was_there_before_and_after(played):
    """The bot's operator lets four times the inventory be moved within an hour; what is beyond that is refused."""
    folder, street, _ = played
    every = [execution for round_id in scored_rounds(folder) for execution in executions(folder, round_id)]
    done = [execution for execution in every if execution["sent"]["code"] == "executed"]
    assert {execution["sent"]["code"] for execution in every} == {"executed", "turnover_limit"}
    assert len(done) >= 4 and all(
        execution["sent"]["transaction"] == "" for execution in every if execution not in done
    )
    assert len({execution["sent"]["transaction"] for execution in done}) == len(done)
    for execution in done:
        receipt = street.chain.receipt(execution["sent"]["transaction"])
        assert (receipt["from"], int(receipt["blockNumber"], 16)) == (street.vault, int(execution["block"]))
        wei = int(receipt["gasUsed"], 16) * int(receipt["effectiveGasPrice"], 16)
        assert [execution["sent"][name] for name in ("gas_wei", "gas0", "gas1")] == [str(wei), str(wei), "0"]
        assert street.balances(receipt["blockNumber"]) == tuple(map(int, execution["after"]))
        before, released, fees, paid, after = (
            tuple(map(int, execution[name])) for name in ("before", "released", "fees", "paid", "after")
        )
        assert after == tuple(before[n] + released[n] + fees[n] - paid[n] for n in (0, 1))
    topics = [TRANSFER.topic, f"0x{0:064x}", f"0x{street.vault[2:]:0>64}"]
    born = street.chain.rpc("eth_getLogs", {"fromBlock": "0x0", "address": street.uniswap.manager, "topics": topics})
    first_mint, minted = born[0], born[1:]
    assert [one["transactionHash"] for one in minted] == [execution["sent"]["transaction"] for execution in done]
    assert all(len(execution["minted"]) == 1 for execution in done) and first_mint["blockNumber"] != "0x0"


def test_gas_is_a_cost_of_the_live_score_and_the_reputation_follows_from_it(played):
    folder, _, _ = played
    for round_id in scored_rounds(folder):
        terms = stored_lines(folder / "validator.sqlite3", round_id)[hotkey_of("mover")]["terms"]
        assert Decimal(terms["costs"]) > 0
    [(lives,)] = rows(
        folder / "validator.sqlite3", "SELECT lives FROM miner_scores WHERE hotkey = ?", hotkey_of("mover")
    )
    assert lives == 2
    assert stored_standings(folder / "validator.sqlite3") == standings(folder / "validator.sqlite3")


def test_every_round_can_be_recomputed_and_is_what_the_chain_has(played):
    folder, street, _ = played

    async def work() -> None:
        async with Store.open(folder / "validator.sqlite3") as store:
            finished = await store.finished()
            assert len(finished) >= 5
            for round_id in finished:
                evidence = await store.evidence(round_id)
                assert audit(evidence) == []
                if evidence["round"]["code"] == "scored":
                    assert await audit_chain(evidence, [street.chain.url], street.uniswap.manager) == []

    asyncio.run(work())
