"""What local mode plugs into the seams: `LocalChain`, a subnet's ledger in one SQLite file.

`python validator.py` without options makes the ledger and advances its blocks; `python miner.py` in a second terminal
opens the same file. Auditors may skip this module: nothing here decides a score.
Read next: `ledger.py` (its rules), `base.py` (the protocol that `LocalChain` follows).
"""

from __future__ import annotations

import dataclasses
import functools
import ipaddress
import json
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from chain.base import (
    BLOCK_SECONDS,
    U16_MAX,
    ChainError,
    EpochInfo,
    Metagraph,
    Next,
    Pool,
    StakeMove,
    WeightParams,
    Weights,
    WriteCode,
    WriteOutcome,
    u16_weights,
)
from chain.ledger import (
    DEFAULT_RULES,
    MIGRATIONS,
    Hyperparameters,
    add_stake,
    advance,
    last_update,
    neuron_of,
    neurons_of,
    next_epoch,
    register,
    row_of,
    rules_of,
    stake_of,
    vector_of,
)
from runtime.db import Database, connect

T = TypeVar("T")

OWNER_HOTKEY = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY"  # Substrate's public development key //Alice ...
OWNER_COLDKEY = "5GNJqTPyNqANBkUVMN1LPPrxXnFouWXoe2wNSmmEoLctxiZY"  # ... and //Alice//stash: nobody's real keys
OWNER_STAKE_RAO = 10_000 * 10**9

REFUSALS = {  # the chain's error names that LocalChain knows, and their kind in the SDK's error map
    "SettingWeightsTooFast": WriteCode.RATE_LIMITED,
    "HotKeyNotRegisteredInSubNet": WriteCode.NOT_REGISTERED,
    "HotKeyNotRegisteredInNetwork": WriteCode.NOT_REGISTERED,
    "HotKeyAccountNotExists": WriteCode.NOT_REGISTERED,
    "NeuronNoValidatorPermit": WriteCode.NOT_AUTHORIZED,
    "NotEnoughStakeToSetWeights": WriteCode.INSUFFICIENT_BALANCE,
    "NotEnoughStakeToWithdraw": WriteCode.INSUFFICIENT_BALANCE,
    "IncorrectWeightVersionKey": WriteCode.INVALID_ARGUMENT,
    "UidVecContainInvalidOne": WriteCode.INVALID_ARGUMENT,
    "WeightVecLengthIsLow": WriteCode.INVALID_ARGUMENT,
    "SameNetuid": WriteCode.INVALID_ARGUMENT,
    "InvalidIpAddress": WriteCode.INVALID_ARGUMENT,
    "InvalidPort": WriteCode.INVALID_ARGUMENT,
    "ValueError": WriteCode.INVALID_ARGUMENT,
    "MaxWeightExceeded": WriteCode.LIMIT_EXCEEDED,
    "AmountTooLow": WriteCode.LIMIT_EXCEEDED,
    "MechanismDoesNotExist": WriteCode.SUBNET_NOT_EXISTS,
}


def block_at(seconds: float) -> int:
    """The number of the block of a unix time, for market time and wall clock alike: floor(seconds / 12 s)."""
    return int(seconds // BLOCK_SECONDS)


class _Refused(Exception):
    """Name of the chain's error, detail, and blocks to wait if waiting helps."""


def _outcome(write: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[WriteOutcome]]:
    """Turn a write that ends, refuses or fails into one that returns its outcome."""

    @functools.wraps(write)
    async def wrapper(self: LocalChain, *args, **kwargs) -> WriteOutcome:
        try:
            await write(self, *args, **kwargs)
        except _Refused as refusal:
            name, detail, *wait = refusal.args
            following = Next.WAIT_BLOCKS if wait else Next.NOTHING
            return WriteOutcome(False, REFUSALS[name], name, following, f"{name}: {detail}", self._head, *wait)
        except ChainError as error:  # perhaps the commit itself: nobody knows
            return WriteOutcome(False, WriteCode.UNKNOWN, "ChainError", Next.READ_STATE_FIRST, str(error), self._head)
        return WriteOutcome(True, WriteCode.OK, "", Next.NOTHING, "", self._head)

    return wrapper


class LocalChain:
    """A subnet on this machine, in an SQLite file that several processes share at once. Follows `chain.Chain`.

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
    fees, registration cost or serving rate limit; loopback addresses are served.
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
            path: the file.
            hotkey, coldkey: the wallet that this instance acts for, ss58.
            clock: unix seconds, for the one process that advances the blocks with the clock.
            genesis_block: the first block of a new ledger, default the clock's; ignored by an existing ledger, as are
                `owner` and `hyperparameters`.
            netuid: must be the ledger's, when there is one.
            owner: hotkey and coldkey of the subnet's owner.

        Raises:
            ChainError: no ledger, and neither clock nor genesis block to start one (only the validator does), or the
                ledger is of another netuid.
            StoreError: the file cannot be used.
        """
        async with connect(path, MIGRATIONS) as db:
            chain = cls(db, Path(path), hotkey, coldkey, clock)
            if genesis_block is None and clock:
                genesis_block = block_at(clock())

            def start(db: sqlite3.Connection) -> None:
                found = row_of(db, "SELECT netuid FROM subnet")
                if found is None and genesis_block is None:
                    raise ChainError(f"no local subnet in {path}: start `python validator.py` first")
                if found and found["netuid"] != netuid:
                    raise ChainError(f"ledger {path} is of netuid {found['netuid']}, not {netuid}: choose another file")
                if found is None:
                    rules = json.dumps(dataclasses.asdict(hyperparameters))
                    db.execute("INSERT INTO subnet VALUES (1, ?, ?, ?, ?, ?)", (netuid, genesis_block, *owner, rules))
                    db.execute("INSERT INTO epochs VALUES (?, 0, 0, 0)", (genesis_block,))
                    register(db, *owner, OWNER_STAKE_RAO)

            await chain._transaction(start)
            yield chain

    # -- the chain's clock

    async def block(self) -> int:
        return await self._at_head(lambda db, subnet: subnet["block"])

    async def advance_to(self, block: int) -> int:
        """Let the chain reach `block`, running the epochs on the way; a lower one changes nothing.

        All or nothing: a crash in the middle leaves the block and the payments as they were before.

        Returns:
            The newest block.
        """

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
            subnet = row_of(db, "SELECT * FROM subnet")
            if subnet["block"] < target:
                advance(db, subnet, target)
                subnet = row_of(db, "SELECT * FROM subnet")
            self._head = subnet["block"]
            return work(db, subnet)

        return await self._transaction(run)

    # -- reads

    async def metagraph(self, block: int | None = None) -> Metagraph:
        """The subnet now: the ledger keeps no history, so `block`, if given, must be the newest.

        Raises:
            ChainError: another block was asked for.
        """

        def work(db: sqlite3.Connection, subnet: sqlite3.Row) -> Any:
            if block not in (None, subnet["block"]):
                raise ChainError(f"metagraph at block {block}: the ledger only knows its newest, {subnet['block']}")
            return Metagraph(
                netuid=subnet["netuid"],
                block=subnet["block"],
                tempo=rules_of(subnet).tempo,
                owner_hotkey=subnet["owner_hotkey"],
                owner_coldkey=subnet["owner_coldkey"],
                neurons=tuple(neurons_of(db)),
            )

        return await self._at_head(work)

    async def epoch(self) -> EpochInfo:
        def work(db: sqlite3.Connection, subnet: sqlite3.Row) -> Any:
            tempo = rules_of(subnet).tempo
            (last,) = row_of(db, "SELECT MAX(block) FROM epochs")
            return EpochInfo(last, tempo, next_epoch(tempo, last, subnet["block"]))

        return await self._at_head(work)

    async def weight_params(self, hotkey: str, mechid: int = 0) -> WeightParams:
        def work(db: sqlite3.Connection, subnet: sqlite3.Row) -> Any:
            rules, neuron = rules_of(subnet), neuron_of(db, hotkey)
            return WeightParams(
                rate_limit_blocks=rules.weights_rate_limit_blocks,
                min_allowed_weights=rules.min_allowed_weights,
                max_weight=rules.max_weight,
                version_key=rules.version_key,
                commit_reveal=False,
                last_update_block=last_update(db, neuron, mechid) if neuron else None,
            )

        return await self._at_head(work)

    async def weights_of(self, uid: int, mechid: int = 0) -> dict[int, int]:
        def work(db: sqlite3.Connection, subnet: sqlite3.Row) -> Any:
            row = row_of(db, "SELECT vector FROM weights WHERE mechid = ? AND uid = ?", mechid, uid)
            return vector_of(row) if row else {}

        return await self._at_head(work)

    async def stake(self, hotkey: str, coldkey: str) -> int:
        return await self._at_head(lambda db, subnet: stake_of(db, hotkey, coldkey))

    async def stake_moves(self, from_block: int, to_block: int) -> list[StakeMove]:
        def work(db: sqlite3.Connection, subnet: sqlite3.Row) -> Any:
            found = db.execute(
                """SELECT block || '-' || id AS extrinsic, block, origin_hotkey, dest_hotkey, dest_coldkey FROM moves
                WHERE coldkey = ? AND block BETWEEN ? AND ? ORDER BY id""",
                (self.coldkey, from_block, to_block),
            )
            return [StakeMove(**row) for row in found]

        return await self._at_head(work)

    async def free_balance(self) -> None:
        """None: there are no fees."""

    async def pools(self, block: int | None = None) -> dict[int, Pool]:
        """None: alpha is not traded here."""
        return {}

    # -- writes

    @_outcome
    async def set_weights(self, weights: Weights, version_key: int, mechid: int = 0) -> None:
        """See `chain.Chain.set_weights`.

        Refused, in the chain's order: `ValueError` (numbers that make no vector), `MechanismDoesNotExist`,
        `HotKeyNotRegisteredInSubNet`, `NotEnoughStakeToSetWeights`, `IncorrectWeightVersionKey`,
        `SettingWeightsTooFast` (the first time counted from the registration), `NeuronNoValidatorPermit`,
        `UidVecContainInvalidOne`, `WeightVecLengthIsLow`, `MaxWeightExceeded` (the SDK would clip instead).

        Source: subtensor `do_set_weights`.
        """

        def work(db: sqlite3.Connection, subnet: sqlite3.Row) -> Any:
            rules = rules_of(subnet)
            try:
                vector = u16_weights(weights)
            except ValueError as error:
                raise _Refused("ValueError", error) from None
            if not 0 <= mechid < rules.mechanism_count:
                raise _Refused("MechanismDoesNotExist", f"mechid {mechid}, the subnet has {rules.mechanism_count}")
            neurons = {neuron.uid: neuron for neuron in neurons_of(db)}
            own = next((neuron for neuron in neurons.values() if neuron.hotkey == self.hotkey), None)
            if own is None:
                raise _Refused("HotKeyNotRegisteredInSubNet", f"hotkey {self.hotkey} on netuid {subnet['netuid']}")
            if own.stake_rao < (least := rules.stake_threshold_rao):
                raise _Refused("NotEnoughStakeToSetWeights", f"stake {own.stake_rao} rao, at least {least}")
            if version_key < rules.version_key:
                raise _Refused("IncorrectWeightVersionKey", f"version key {version_key}, at least {rules.version_key}")
            wait = last_update(db, own, mechid) + rules.weights_rate_limit_blocks - subnet["block"]
            if wait > 0:
                raise _Refused("SettingWeightsTooFast", f"again in {wait} blocks", wait)
            only_itself = list(vector) == [own.uid]
            if not own.permit and not only_itself:
                raise _Refused("NeuronNoValidatorPermit", f"uid {own.uid} has no validator permit")
            if unknown := vector.keys() - neurons.keys():
                raise _Refused("UidVecContainInvalidOne", f"uid {min(unknown)}, the subnet has {len(neurons)} uids")
            if len(vector) < (fewest := min(rules.min_allowed_weights, len(neurons))) and not only_itself:
                raise _Refused("WeightVecLengthIsLow", f"{len(vector)} non-zero weights, at least {fewest}")
            largest, total = max(vector.values()), sum(vector.values())
            if largest * U16_MAX > rules.max_weight * total and not only_itself:
                raise _Refused(
                    "MaxWeightExceeded", f"a part of {largest}/{total}, at most {rules.max_weight}/{U16_MAX}"
                )
            db.execute(
                "INSERT OR REPLACE INTO weights VALUES (?, ?, ?, ?)",
                (mechid, own.uid, subnet["block"], json.dumps(vector)),
            )

        return await self._at_head(work)

    @_outcome
    async def move_stake(self, origin_hotkey: str, dest_hotkey: str, amount_rao: int) -> None:
        """See `chain.Chain.move_stake`; refused as `transfer_stake`."""
        await self._move(origin_hotkey, dest_hotkey, self.coldkey, amount_rao)

    @_outcome
    async def transfer_stake(
        self, hotkey: str, dest_coldkey: str, amount_rao: int, dest_hotkey: str | None = None
    ) -> None:
        """See `chain.Chain.transfer_stake`.

        Refused: `SameNetuid` (nothing would move), `HotKeyAccountNotExists`, `NotEnoughStakeToWithdraw`,
        `AmountTooLow`.

        Source: subtensor `validate_stake_transition`; its minimum within a subnet is that of earlier runtimes.
        """
        await self._move(hotkey, dest_hotkey or hotkey, dest_coldkey, amount_rao)

    async def _move(self, origin_hotkey: str, dest_hotkey: str, dest_coldkey: str, amount_rao: int) -> None:
        def work(db: sqlite3.Connection, subnet: sqlite3.Row) -> Any:
            if (origin_hotkey, self.coldkey) == (dest_hotkey, dest_coldkey):
                raise _Refused("SameNetuid", f"origin and destination are both {dest_hotkey} of {dest_coldkey}")
            for hotkey in (origin_hotkey, dest_hotkey):
                if not row_of(db, "SELECT 1 FROM hotkeys WHERE hotkey = ?", hotkey):
                    raise _Refused("HotKeyAccountNotExists", f"hotkey {hotkey} was never registered")
            if amount_rao > (held := stake_of(db, origin_hotkey, self.coldkey)):
                raise _Refused("NotEnoughStakeToWithdraw", f"{amount_rao} rao of {held} on {origin_hotkey}")
            if amount_rao < (least := rules_of(subnet).min_stake_move_rao):
                raise _Refused("AmountTooLow", f"{amount_rao} rao, at least {least}")
            add_stake(db, origin_hotkey, self.coldkey, -amount_rao)
            add_stake(db, dest_hotkey, dest_coldkey, amount_rao)
            db.execute(
                "INSERT INTO moves VALUES (NULL, ?, ?, ?, ?, ?, ?)",
                (subnet["block"], self.coldkey, origin_hotkey, dest_hotkey, dest_coldkey, amount_rao),
            )

        return await self._at_head(work)

    @_outcome
    async def serve(self, host: str, port: int) -> None:
        """See `chain.Chain.serve`. Refused: `InvalidIpAddress`, `InvalidPort`, `HotKeyNotRegisteredInNetwork`."""

        def work(db: sqlite3.Connection, subnet: sqlite3.Row) -> Any:
            try:
                ip = ipaddress.ip_address(host)
            except ValueError:
                raise _Refused("InvalidIpAddress", f"{host!r} is not an IP address") from None
            if not 1 <= port <= U16_MAX:
                raise _Refused("InvalidPort", f"port {port}, 1 to {U16_MAX}")
            address = f"[{ip}]:{port}" if ip.version == 6 else f"{ip}:{port}"
            done = db.execute("UPDATE neurons SET address = ? WHERE hotkey = ?", (address, self.hotkey))
            if not done.rowcount:
                raise _Refused("HotKeyNotRegisteredInNetwork", f"hotkey {self.hotkey} is not registered")

        return await self._at_head(work)

    # -- what only a local chain can do

    async def register(self, hotkey: str, coldkey: str, stake_rao: int = 0) -> int:
        """Give `hotkey` a uid; one that has a uid keeps it, and nothing changes.

        In a full subnet the neuron with the lowest last emission goes (of equals the oldest; the immune last; the owner
        hotkey never), with its vectors. Its stake stays on its hotkey, as on the real chain.

        Args:
            hotkey, coldkey: ss58.
            stake_rao: minted for the pair with the hotkey's first registration, the faucet of local mode.

        Returns:
            The uid.

        Raises:
            ChainError: the hotkey belongs to another coldkey, or no uid can be freed.
        """

        return await self._at_head(lambda db, subnet: register(db, hotkey, coldkey, stake_rao))

    async def set_hyperparameters(self, **changes: int) -> Hyperparameters:
        """Change rules as the subnet's owner would; they hold from the newest block on.

        Raises:
            TypeError: no such hyperparameter.
        """

        def work(db: sqlite3.Connection, subnet: sqlite3.Row) -> Any:
            rules = dataclasses.replace(rules_of(subnet), **changes)
            db.execute("UPDATE subnet SET hyperparameters = ?", (json.dumps(dataclasses.asdict(rules)),))
            return rules

        return await self._at_head(work)

    async def trigger_epoch(self) -> int:
        """Run an epoch at the newest block as the subnet's owner can; the next comes `tempo` blocks later.

        Returns:
            The newest block; it had its epoch already if it was the last one's.
        """

        def work(db: sqlite3.Connection, subnet: sqlite3.Row) -> Any:
            advance(db, subnet, subnet["block"], triggered=True)
            return subnet["block"]

        return await self._at_head(work)
