"""What local mode plugs into the seams: `LocalChain`, a subnet's ledger in one SQLite file.

`python validator.py` without options makes the ledger and advances its blocks; `python miner.py` in a second terminal
opens the same file. Auditors may skip this module: nothing here decides a score.
Read next: `ledger.py` (its rules), `base.py` (the protocol that `LocalChain` follows).
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

from chain import ledger
from chain.base import (
    BLOCK_SECONDS,
    ChainError,
    ChainMistake,
    EpochInfo,
    Metagraph,
    Next,
    Pool,
    Refused,
    StakeMove,
    StakeParams,
    WeightParams,
    Weights,
    WriteCode,
    WriteOutcome,
    check_move,
    check_weights,
    checked_vector,
    done,
    served_address,
)
from chain.ledger import DEFAULT_RULES, Hyperparameters
from runtime.db import Database, connect, insert

T = TypeVar("T")

OWNER_HOTKEY = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY"  # Substrate's public development key //Alice ...
OWNER_COLDKEY = "5GNJqTPyNqANBkUVMN1LPPrxXnFouWXoe2wNSmmEoLctxiZY"  # ... and //Alice//stash: nobody's real keys
OWNER_STAKE_RAO = 10_000 * 10**9


def block_at(seconds: float) -> int:
    """The number of the block of a unix time, for market time and wall clock alike: floor(seconds / 12 s)."""
    return int(seconds // BLOCK_SECONDS)


def _outcome(write: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[WriteOutcome]]:
    """Turn a write that ends, refuses or fails into one that returns its outcome."""

    @functools.wraps(write)
    async def wrapper(self: LocalChain, *args, **kwargs) -> WriteOutcome:
        try:
            await write(self, *args, **kwargs)
        except Refused as refused:
            return refused.outcome(self._head)
        except ChainError as error:  # perhaps the commit itself: nobody knows
            return WriteOutcome(False, WriteCode.UNKNOWN, "ChainError", Next.READ_STATE_FIRST, str(error), self._head)
        return done(self._head)

    return wrapper


class LocalChain:
    """A subnet on this machine, in an SQLite file that several processes share at once. Follows `Chain`.

    Trust: there are no signatures. The ledger believes every process that can write the file; keys are only names (ss58
    strings given by the caller).

    Blocks: the number is floor(time / 12 s) and never goes back. `advance_to` moves it, at full speed to the market's
    time; with a `clock` it follows that clock by itself. One process, the validator's, does either; others only read.
    Each method is one transaction at one block, and epochs that fell due before it run first, in order, once.

    Epochs: the `tempo` blocks' emission is halved. Miners share one half by weight: the stake-weighted mean of the
    vectors of validators with permit and stake; validators heard share the other half by stake, which is what Yuma pays
    when all agree. What the owner's neurons would earn as miners, rounding, and what nobody earned is burned.
    A vector's weight on a uid registered at or after the vector's block does not count (the uid was recycled), nor does
    weight on oneself but the owner's; both as on the real chain. Permits are given anew at each epoch and registration.

    Simpler than the real chain: no consensus clipping, bonds, commit-reveal, takes, nominators' dividends, owner's cut,
    fees, auto-stake, registration cost or serving rate limit; loopback addresses are served.
    """

    def __init__(self, db: Database, path: Path, hotkey: str, coldkey: str, clock: Callable | None):
        """Use `LocalChain.open`."""
        self.hotkey, self.coldkey = hotkey, coldkey
        self._db, self._path, self._clock, self._head = db, path, clock, 0

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        path: str | Path,
        hotkey: str,
        coldkey: str,
        *,
        clock: Callable[[], float] | None = None,
        genesis_block: int | None = None,
        netuid: int = 98,
        owner: tuple[str, str] = (OWNER_HOTKEY, OWNER_COLDKEY),
        hyperparameters: Hyperparameters = DEFAULT_RULES,
    ) -> AsyncIterator[LocalChain]:
        """Open the ledger; make it if it is new: block `genesis_block`, owner as uid 0 with stake.

        Args:
            clock: unix seconds, for the one process that advances the blocks with the clock.
            genesis_block: the first block of a new ledger, default the clock's; ignored by an existing ledger, as are
                `owner` (hotkey and coldkey) and `hyperparameters`.
            netuid: must be the ledger's, when there is one.

        Raises:
            ChainError: no ledger, and neither clock nor genesis block to start one (only the validator does), or one of
                another netuid.
            StoreError: the file cannot be used.
        """
        async with connect(path, ledger.MIGRATIONS) as db:
            chain = cls(db, Path(path), hotkey, coldkey, clock)
            if genesis_block is None and clock:
                genesis_block = block_at(clock())

            def start(db: sqlite3.Connection) -> None:
                found = ledger.row_of(db, "SELECT netuid FROM subnet")
                if found is None and genesis_block is None:
                    raise ChainMistake(f"no local subnet in {path}: start `python validator.py` first")
                if found and found["netuid"] != netuid:
                    raise ChainMistake(
                        f"ledger {path} is of netuid {found['netuid']}, not {netuid}: choose another file"
                    )
                if found is None:
                    rules = json.dumps(dataclasses.asdict(hyperparameters))
                    db.execute("INSERT INTO subnet VALUES (1, ?, ?, ?, ?, ?)", (netuid, genesis_block, *owner, rules))
                    db.execute("INSERT INTO epochs VALUES (?, 0, 0, 0)", (genesis_block,))
                    ledger.register(db, *owner, OWNER_STAKE_RAO)

            await chain._transaction(start)
            yield chain

    # -- the chain's clock

    async def block(self) -> int:
        return await self._at_head(lambda db, subnet: subnet["block"])

    async def advance_to(self, block: int) -> int:
        """Let the chain reach `block`, running the epochs on the way, all or nothing; a lower one changes nothing.
        Returns the newest block."""
        return await self._at_head(lambda db, subnet: subnet["block"], block)

    async def _transaction(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return await self._db.write(work)
        except sqlite3.Error as error:
            raise ChainError(f"ledger {self._path}: {error}; see that no process hangs on it and try again") from error

    async def _at_head(self, work: Callable[[sqlite3.Connection, sqlite3.Row], T], block: int = 0) -> T:
        """One transaction at the newest block: all that `work` reads or writes is of that block."""
        target = max(block, block_at(self._clock()) if self._clock else 0)

        def run(db: sqlite3.Connection) -> T:
            subnet = ledger.row_of(db, "SELECT * FROM subnet")
            if subnet["block"] < target:
                ledger.advance(db, subnet, target)
                subnet = ledger.row_of(db, "SELECT * FROM subnet")
            self._head = subnet["block"]
            return work(db, subnet)

        return await self._transaction(run)

    # -- reads

    async def metagraph(self, block: int | None = None) -> Metagraph:
        """The subnet now: the ledger keeps no history, so `block`, if given, must be the newest."""
        graph = await self._at_head(ledger.metagraph_of)
        if block not in (None, graph.block):
            raise ChainError(f"metagraph at block {block}: the ledger only knows its newest, {graph.block}")
        return graph

    async def epoch(self) -> EpochInfo:
        return await self._at_head(ledger.epoch_of)

    async def weight_params(self, hotkey: str, mechid: int = 0) -> WeightParams:
        return await self._at_head(lambda db, subnet: ledger.weight_params_of(db, subnet, hotkey, mechid))

    async def weights_of(self, uid: int, mechid: int = 0) -> dict[int, int]:
        sql = "SELECT vector FROM weights WHERE mechid = ? AND uid = ?"
        row = await self._at_head(lambda db, subnet: ledger.row_of(db, sql, mechid, uid))
        return ledger.vector_of(row) if row else {}

    async def stake(self, hotkey: str, coldkey: str) -> int:
        return await self._at_head(lambda db, subnet: ledger.stake_of(db, hotkey, coldkey))

    async def stake_moves(self, from_block: int, to_block: int) -> list[StakeMove]:
        sql = """SELECT block || '-' || id AS extrinsic, block, origin_hotkey, dest_hotkey, dest_coldkey FROM moves
            WHERE coldkey = ? AND block BETWEEN ? AND ? ORDER BY id"""
        values = self.coldkey, from_block, to_block
        return [StakeMove(**row) for row in await self._at_head(lambda db, subnet: db.execute(sql, values).fetchall())]

    async def stake_params(self) -> StakeParams:
        return await self._at_head(lambda db, subnet: ledger.stake_params_of(subnet))

    async def free_balance(self) -> None:
        """None: there are no fees."""

    async def pools(self, block: int | None = None) -> dict[int, Pool]:
        """None: alpha is not traded here."""
        return {}

    # -- writes

    @_outcome
    async def set_weights(self, weights: Weights, version_key: int, mechid: int = 0) -> None:
        def work(db: sqlite3.Connection, subnet: sqlite3.Row) -> None:
            rules, graph = ledger.rules_of(subnet), ledger.metagraph_of(db, subnet)
            vector = checked_vector(weights, mechid, rules.mechanism_count)
            params = ledger.weight_params_of(db, subnet, self.hotkey, mechid)
            own = check_weights(vector, version_key, params, graph, self.hotkey, rules.stake_threshold_rao)
            row = {"mechid": mechid, "uid": own.uid, "block": graph.block, "vector": json.dumps(vector)}
            insert(db, "weights", [row], "INSERT OR REPLACE")

        await self._at_head(work)

    @_outcome
    async def move_stake(self, origin_hotkey: str, dest_hotkey: str, amount_rao: int) -> None:
        await self._move(origin_hotkey, dest_hotkey, self.coldkey, amount_rao)

    @_outcome
    async def transfer_stake(
        self, hotkey: str, dest_coldkey: str, amount_rao: int, dest_hotkey: str | None = None
    ) -> None:
        await self._move(hotkey, dest_hotkey or hotkey, dest_coldkey, amount_rao)

    async def _move(self, origin_hotkey: str, dest_hotkey: str, dest_coldkey: str, amount_rao: int) -> None:
        def work(db: sqlite3.Connection, subnet: sqlite3.Row) -> None:
            if (origin_hotkey, self.coldkey) == (dest_hotkey, dest_coldkey):
                raise Refused("SameNetuid", f"origin and destination are both {dest_hotkey} of {dest_coldkey}")
            for hotkey in (origin_hotkey, dest_hotkey):
                if not ledger.row_of(db, "SELECT 1 FROM hotkeys WHERE hotkey = ?", hotkey):
                    raise Refused("HotKeyAccountNotExists", f"hotkey {hotkey} was never registered")
            held = ledger.stake_of(db, origin_hotkey, self.coldkey)
            check_move(ledger.stake_params_of(subnet), dest_coldkey != self.coldkey, origin_hotkey, amount_rao, held)
            ledger.add_stake(db, origin_hotkey, self.coldkey, -amount_rao)
            ledger.add_stake(db, dest_hotkey, dest_coldkey, amount_rao)
            ends = origin_hotkey, dest_hotkey, dest_coldkey
            db.execute(
                "INSERT INTO moves VALUES (NULL, ?, ?, ?, ?, ?, ?)", (subnet["block"], self.coldkey, *ends, amount_rao)
            )

        await self._at_head(work)

    @_outcome
    async def serve(self, host: str, port: int) -> None:
        def work(db: sqlite3.Connection, subnet: sqlite3.Row) -> None:
            address, _ = served_address(ledger.metagraph_of(db, subnet), self.hotkey, host, port)
            db.execute("UPDATE neurons SET address = ? WHERE hotkey = ?", (address, self.hotkey))

        await self._at_head(work)

    # -- what only a local chain can do

    async def register(self, hotkey: str, coldkey: str, stake_rao: int = 0) -> int:
        """Give `hotkey` a uid; one that has a uid keeps it, and nothing changes.

        In a full subnet the neuron with the lowest last emission goes (of equals the oldest; the immune last; the owner
        hotkey never), with its vectors. Its stake stays on its hotkey, as on the real chain.

        `stake_rao` is minted for the pair with the hotkey's first registration, the faucet of local mode. Raises
        `ChainError` if the hotkey belongs to another coldkey, or no uid can be freed.
        """
        return await self._at_head(lambda db, subnet: ledger.register(db, hotkey, coldkey, stake_rao))

    async def set_hyperparameters(self, **changes: int) -> Hyperparameters:
        """Change rules as the subnet's owner would; they hold from the newest block on."""

        def work(db: sqlite3.Connection, subnet: sqlite3.Row) -> Hyperparameters:
            rules = dataclasses.replace(ledger.rules_of(subnet), **changes)
            db.execute("UPDATE subnet SET hyperparameters = ?", (json.dumps(dataclasses.asdict(rules)),))
            return rules

        return await self._at_head(work)

    async def trigger_epoch(self) -> int:
        """Run an epoch at the newest block, if it had none, as the owner can; returns that block."""

        def work(db: sqlite3.Connection, subnet: sqlite3.Row) -> int:
            ledger.advance(db, subnet, subnet["block"], triggered=True)
            return subnet["block"]

        return await self._at_head(work)
