"""A subnet for tests of `stake.py`, faults between it and the chain, and the sweeper as a process that can be killed.

The subnet: the coldkey `cold` has a miner hotkey `miner` that earns all incentive, and a validator hotkey `agg` with
stake of its own, the only one that votes and so earns all dividends. What a sweep moves, or when, changes no payment.
Used by `test_stake.py`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

from chain.base import ERA_BLOCKS, Chain, ChainError, Next, WriteCode, WriteOutcome
from chain.journal import Journal
from chain.ledger import Hyperparameters
from chain.local import LocalChain
from chain.loop import follow
from chain.sweeping import Policy
from stake import Sweeper

TAO = 10**9
GENESIS = 1000
UNRELATED_RAO = 5_000 * TAO  # the aggregator's own stake
PRINCIPAL_RAO = 7 * TAO  # on the miner hotkey before the first sweep
POLICY = Policy("agg", "treasury")


@asynccontextmanager
async def subnet(path: Path, **rules: int) -> AsyncIterator[LocalChain]:
    """A new ledger at GENESIS, as its owner would see it: `advance_to`, `trigger_epoch`, `set_hyperparameters`."""
    hyperparameters = Hyperparameters(**{"weights_rate_limit_blocks": 0, "tempo": 100, **rules})
    async with LocalChain.open(path, "agg", "cold", genesis_block=GENESIS, hyperparameters=hyperparameters) as chain:
        await chain.register("agg", "cold", UNRELATED_RAO)
        miner_uid = await chain.register("miner", "cold", PRINCIPAL_RAO)
        await chain.advance_to(GENESIS + 1)  # weight on who registered in the vector's block would not count
        assert (await chain.set_weights({miner_uid: 1}, 0)).ok
        yield chain


@asynccontextmanager
async def wallet(path: Path) -> AsyncIterator[LocalChain]:
    """The chain as the sweeper of `miner` sees it."""
    async with LocalChain.open(path, "miner", "cold") as chain:
        yield chain


class Scripted:
    """A chain on which the next calls end as told; everything else is the real one's.

    `script` maps a method's name to a list of what happens at its next calls: an outcome instead of the call, "lost"
    (applied, fate unknown), "gone" (not applied, fate unknown), "late" (applied ERA_BLOCKS later, fate unknown), an
    exception to raise before the call, or None for a plain call. Calls beyond the list are plain.
    """

    def __init__(self, chain: Chain, script: dict[str, list] | None = None):
        self.chain, self.script = chain, script or {}
        self.calls: list[tuple] = []
        self._late: list[tuple[int, str, tuple]] = []

    def __getattr__(self, name: str):
        member = getattr(self.chain, name)
        if not callable(member):
            return member

        async def call(*arguments):
            await self._land()
            if name in ("move_stake", "transfer_stake", "set_weights"):
                self.calls.append((name, *arguments))
            return await self.happen(name, member, arguments)

        return call

    def next(self, name: str):
        return self.script[name].pop(0) if self.script.get(name) else None

    async def happen(self, name: str, member, arguments: tuple):
        happening = self.next(name)
        if isinstance(happening, BaseException):
            raise happening
        if happening is None:
            return await member(*arguments)
        block = await self.chain.block()
        if isinstance(happening, WriteOutcome):
            return happening
        if happening == "lost":
            outcome = await member(*arguments)
            assert outcome.ok, outcome
        elif happening == "late":
            self._late.append((block + ERA_BLOCKS, name, arguments))
        return WriteOutcome(
            False, WriteCode.UNKNOWN, "Lost", Next.READ_STATE_FIRST, "connection lost", block, ERA_BLOCKS
        )

    async def _land(self) -> None:
        block = await self.chain.block()
        for due in [entry for entry in self._late if entry[0] <= block]:
            self._late.remove(due)
            assert (await getattr(self.chain, due[1])(*due[2])).ok


class Unreliable(Scripted):
    """One call of a hundred fails, one write of a hundred has an unknown fate: applied, never applied, or later."""

    def __init__(self, chain: Chain, seed: int):
        super().__init__(chain)
        self.random = random.Random(seed)

    def next(self, name: str):
        draw = self.random.random()
        if name not in ("move_stake", "transfer_stake"):
            return ChainError("the node does not answer") if draw < 0.01 else None
        if draw < 0.01:
            return refused("Stale", Next.SIGN_AGAIN)
        return self.random.choice(["lost", "gone", "late"]) if draw < 0.02 else None


def refused(name: str, following: Next = Next.NOTHING, wait_blocks: int = 0) -> WriteOutcome:
    return WriteOutcome(False, WriteCode.INVALID_ARGUMENT, name, following, f"{name}: refused", 0, wait_blocks)


def rows(path: Path, sql: str, *values: object) -> list[tuple]:
    """What another program sees in a file: an oracle that shares no code with ours."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        return db.execute(sql, values).fetchall()


def stakes(ledger: Path) -> dict[tuple[str, str], int]:
    return {(hotkey, coldkey): rao for hotkey, coldkey, rao in rows(ledger, "SELECT * FROM stakes") if rao}


def run_sweeper(ledger: Path, journal_path: Path, seed: int, policy: Policy) -> None:
    """The sweeper's loop with faults, as a process of its own, until it is killed."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    logging.disable()

    async def tell(news: dict) -> None:
        return None

    async def sweep() -> None:
        async with wallet(ledger) as chain, Journal.open(journal_path, 98, "miner", "cold") as journal:
            await follow(Sweeper(Unreliable(chain, seed), journal, policy).step, 0.01, tell)

    asyncio.run(sweep())
