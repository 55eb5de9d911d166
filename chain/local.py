"""What local mode plugs into the seams: `LocalChain`, a subnet's ledger in one SQLite file.

`python validator.py` without options makes the ledger and advances its blocks; `python miner.py` in a second terminal
opens the same file. Auditors may skip this module: nothing here decides a score.
Read next: `chain.py` (the protocol that `LocalChain` follows), `store.py` (how the file is opened).
"""

from __future__ import annotations

import dataclasses
import functools
import ipaddress
import json
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiosqlite

from chain.base import (
    BLOCK_SECONDS,
    U16_MAX,
    ChainError,
    EpochInfo,
    Metagraph,
    Neuron,
    Next,
    Pool,
    StakeMove,
    WeightParams,
    Weights,
    WriteCode,
    WriteOutcome,
    u16_weights,
)
from runtime.db import connect, transaction

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

MIGRATIONS = (
    """CREATE TABLE subnet (  -- one row: the head of the chain and the subnet's owner and rules
    id INTEGER PRIMARY KEY CHECK (id = 1),
    netuid INTEGER NOT NULL,
    block INTEGER NOT NULL,
    owner_hotkey TEXT NOT NULL,
    owner_coldkey TEXT NOT NULL,
    hyperparameters TEXT NOT NULL  -- JSON object; a version key may exceed SQLite's integers
);
CREATE TABLE hotkeys (  -- every hotkey ever registered
    hotkey TEXT PRIMARY KEY,
    coldkey TEXT NOT NULL
);
CREATE TABLE neurons (
    uid INTEGER PRIMARY KEY,
    hotkey TEXT NOT NULL UNIQUE REFERENCES hotkeys,
    registered_block INTEGER NOT NULL,
    permit INTEGER NOT NULL DEFAULT 0,
    address TEXT,
    emission_rao INTEGER NOT NULL DEFAULT 0  -- earned in the last epoch; the lowest is pruned
);
CREATE TABLE stakes (
    hotkey TEXT NOT NULL REFERENCES hotkeys,
    coldkey TEXT NOT NULL,
    rao INTEGER NOT NULL CHECK (rao >= 0),
    PRIMARY KEY (hotkey, coldkey)
);
CREATE TABLE weights (
    mechid INTEGER NOT NULL,
    uid INTEGER NOT NULL REFERENCES neurons,
    block INTEGER NOT NULL,
    vector TEXT NOT NULL,  -- JSON object: u16 by uid
    PRIMARY KEY (mechid, uid)
);
CREATE TABLE epochs (  -- the key is what runs an epoch once
    block INTEGER PRIMARY KEY,
    emitted_rao INTEGER NOT NULL,
    credited_rao INTEGER NOT NULL,
    burned_rao INTEGER NOT NULL
)""",
    """CREATE TABLE moves (  -- every stake move and transfer that was applied, as the real chain's events
    id INTEGER PRIMARY KEY,
    block INTEGER NOT NULL,
    coldkey TEXT NOT NULL,
    origin_hotkey TEXT NOT NULL,
    dest_hotkey TEXT NOT NULL,
    dest_coldkey TEXT NOT NULL,
    rao INTEGER NOT NULL
)""",
)

_NEURONS = """SELECT n.uid, n.hotkey, h.coldkey, permit, address, registered_block,
    COALESCE(w.block, registered_block) AS last_update_block,
    COALESCE((SELECT SUM(rao) FROM stakes WHERE hotkey = n.hotkey), 0) AS stake_rao
FROM neurons n JOIN hotkeys h USING (hotkey) LEFT JOIN weights w ON w.uid = n.uid AND w.mechid = 0
ORDER BY n.uid"""


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """The subnet's rules; the defaults are the real chain's where it has one.

    Attributes:
        tempo: blocks between epochs; 0 stops them.
        weights_rate_limit_blocks, min_allowed_weights, max_weight, version_key: see `chain.WeightParams`.
        max_uids: neurons that fit; a further registration prunes one. At least 2: the owner is never pruned.
        immunity_blocks: a neuron younger than this is pruned only when all are.
        max_validators: permits, given to the highest stakes.
        stake_threshold_rao: the least stake for a permit, for setting weights and for being heard in an epoch.
        min_stake_move_rao: the least amount of a move or transfer.
        mechanism_count: mechanisms, which share the emission equally.
        emission_rao_per_block: minted per block, paid per epoch: half to miners, half to validators.
    """

    tempo: int = 360
    weights_rate_limit_blocks: int = 100
    min_allowed_weights: int = 1
    max_weight: int = U16_MAX
    version_key: int = 0
    max_uids: int = 256
    immunity_blocks: int = 4096
    max_validators: int = 64
    stake_threshold_rao: int = 1_000 * 10**9
    min_stake_move_rao: int = 2_000_000
    mechanism_count: int = 1
    emission_rao_per_block: int = 10**9


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

    def __init__(self, db: aiosqlite.Connection, path: Path, hotkey: str, coldkey: str, clock: Callable | None):
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
        hyperparameters: Hyperparameters = Hyperparameters(),
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
            async with chain._transaction():
                found = await chain._row("SELECT netuid FROM subnet")
                if found is None and genesis_block is None:
                    raise ChainError(f"no local subnet in {path}: start `python validator.py` first")
                if found and found["netuid"] != netuid:
                    raise ChainError(f"ledger {path} is of netuid {found['netuid']}, not {netuid}: choose another file")
                if found is None:
                    rules = json.dumps(dataclasses.asdict(hyperparameters))
                    await db.execute(
                        "INSERT INTO subnet VALUES (1, ?, ?, ?, ?, ?)", (netuid, genesis_block, *owner, rules)
                    )
                    await db.execute("INSERT INTO epochs VALUES (?, 0, 0, 0)", (genesis_block,))
                    await chain._register(*owner, OWNER_STAKE_RAO)
            yield chain

    # -- the chain's clock

    async def block(self) -> int:
        async with self._at_head() as subnet:
            return subnet["block"]

    async def advance_to(self, block: int) -> int:
        """Let the chain reach `block`, running the epochs on the way; a lower one changes nothing.

        All or nothing: a crash in the middle leaves the block and the payments as they were before.

        Returns:
            The newest block.
        """
        async with self._at_head(block) as subnet:
            return subnet["block"]

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[None]:
        try:
            async with transaction(self._db):
                yield
        except sqlite3.Error as error:
            raise ChainError(f"ledger {self._path}: {error}; see that no process hangs on it and try again") from error

    @asynccontextmanager
    async def _at_head(self, block: int = 0) -> AsyncIterator[sqlite3.Row]:
        """One transaction at the newest block: all that a method reads or writes is of that block."""
        target = max(block, block_at(self._clock()) if self._clock else 0)
        async with self._transaction():
            subnet = await self._row("SELECT * FROM subnet")
            if subnet["block"] < target:
                await self._advance(subnet, target)
                subnet = await self._row("SELECT * FROM subnet")
            self._head = subnet["block"]
            yield subnet

    async def _advance(self, subnet: sqlite3.Row, target: int, triggered: bool = False) -> None:
        """Run the epochs due up to `target` in memory, or one there at once, and write the end state."""
        rules = _rules(subnet)
        (last,) = await self._row("SELECT MAX(block) FROM epochs")
        due = _next_epoch(rules.tempo, last, subnet["block"])
        if triggered:
            due = target if target > last else None
        if due is not None and due <= target:
            neurons = await self._neurons()
            vectors = [
                (row["mechid"], row["uid"], row["block"], _vector(row))
                for row in await self._db.execute_fetchall("SELECT * FROM weights ORDER BY mechid, uid")
            ]
            epochs, earned, paid = [], Counter(), Counter()
            while due <= target:
                emitted = rules.emission_rao_per_block * (due - last)
                paid = _pay(rules, subnet, neurons, vectors, emitted)
                earned.update(paid)
                epochs.append((due, emitted, paid.total(), emitted - paid.total()))
                neurons = _with_permits(
                    rules, [dataclasses.replace(n, stake_rao=n.stake_rao + paid[n.uid]) for n in neurons]
                )
                last, due = due, target + 1 if triggered else due + rules.tempo
            await self._db.executemany("INSERT INTO epochs VALUES (?, ?, ?, ?)", epochs)
            for n in neurons:
                await self._add_stake(n.hotkey, n.coldkey, earned[n.uid])
                await self._db.execute(
                    "UPDATE neurons SET permit = ?, emission_rao = ? WHERE uid = ?", (n.permit, paid[n.uid], n.uid)
                )
        await self._db.execute("UPDATE subnet SET block = ?", (target,))

    # -- reads

    async def metagraph(self, block: int | None = None) -> Metagraph:
        """The subnet now: the ledger keeps no history, so `block`, if given, must be the newest.

        Raises:
            ChainError: another block was asked for.
        """
        async with self._at_head() as subnet:
            if block not in (None, subnet["block"]):
                raise ChainError(f"metagraph at block {block}: the ledger only knows its newest, {subnet['block']}")
            return Metagraph(
                netuid=subnet["netuid"],
                block=subnet["block"],
                tempo=_rules(subnet).tempo,
                owner_hotkey=subnet["owner_hotkey"],
                owner_coldkey=subnet["owner_coldkey"],
                neurons=tuple(await self._neurons()),
            )

    async def epoch(self) -> EpochInfo:
        async with self._at_head() as subnet:
            tempo = _rules(subnet).tempo
            (last,) = await self._row("SELECT MAX(block) FROM epochs")
            return EpochInfo(last, tempo, _next_epoch(tempo, last, subnet["block"]))

    async def weight_params(self, hotkey: str, mechid: int = 0) -> WeightParams:
        async with self._at_head() as subnet:
            rules, neuron = _rules(subnet), await self._neuron(hotkey)
            return WeightParams(
                rate_limit_blocks=rules.weights_rate_limit_blocks,
                min_allowed_weights=rules.min_allowed_weights,
                max_weight=rules.max_weight,
                version_key=rules.version_key,
                commit_reveal=False,
                last_update_block=await self._last_update(neuron, mechid) if neuron else None,
            )

    async def weights_of(self, uid: int, mechid: int = 0) -> dict[int, int]:
        async with self._at_head():
            row = await self._row("SELECT vector FROM weights WHERE mechid = ? AND uid = ?", mechid, uid)
            return _vector(row) if row else {}

    async def stake(self, hotkey: str, coldkey: str) -> int:
        async with self._at_head():
            return await self._stake(hotkey, coldkey)

    async def stake_moves(self, from_block: int, to_block: int) -> list[StakeMove]:
        async with self._at_head():
            found = await self._db.execute_fetchall(
                """SELECT block || '-' || id AS extrinsic, block, origin_hotkey, dest_hotkey, dest_coldkey FROM moves
                WHERE coldkey = ? AND block BETWEEN ? AND ? ORDER BY id""",
                (self.coldkey, from_block, to_block),
            )
            return [StakeMove(**row) for row in found]

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
        async with self._at_head() as subnet:
            rules = _rules(subnet)
            try:
                vector = u16_weights(weights)
            except ValueError as error:
                raise _Refused("ValueError", error) from None
            if not 0 <= mechid < rules.mechanism_count:
                raise _Refused("MechanismDoesNotExist", f"mechid {mechid}, the subnet has {rules.mechanism_count}")
            neurons = {neuron.uid: neuron for neuron in await self._neurons()}
            own = next((neuron for neuron in neurons.values() if neuron.hotkey == self.hotkey), None)
            if own is None:
                raise _Refused("HotKeyNotRegisteredInSubNet", f"hotkey {self.hotkey} on netuid {subnet['netuid']}")
            if own.stake_rao < (least := rules.stake_threshold_rao):
                raise _Refused("NotEnoughStakeToSetWeights", f"stake {own.stake_rao} rao, at least {least}")
            if version_key < rules.version_key:
                raise _Refused("IncorrectWeightVersionKey", f"version key {version_key}, at least {rules.version_key}")
            wait = await self._last_update(own, mechid) + rules.weights_rate_limit_blocks - subnet["block"]
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
            await self._db.execute(
                "INSERT OR REPLACE INTO weights VALUES (?, ?, ?, ?)",
                (mechid, own.uid, subnet["block"], json.dumps(vector)),
            )

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
        async with self._at_head() as subnet:
            if (origin_hotkey, self.coldkey) == (dest_hotkey, dest_coldkey):
                raise _Refused("SameNetuid", f"origin and destination are both {dest_hotkey} of {dest_coldkey}")
            for hotkey in (origin_hotkey, dest_hotkey):
                if not await self._row("SELECT 1 FROM hotkeys WHERE hotkey = ?", hotkey):
                    raise _Refused("HotKeyAccountNotExists", f"hotkey {hotkey} was never registered")
            if amount_rao > (held := await self._stake(origin_hotkey, self.coldkey)):
                raise _Refused("NotEnoughStakeToWithdraw", f"{amount_rao} rao of {held} on {origin_hotkey}")
            if amount_rao < (least := _rules(subnet).min_stake_move_rao):
                raise _Refused("AmountTooLow", f"{amount_rao} rao, at least {least}")
            await self._add_stake(origin_hotkey, self.coldkey, -amount_rao)
            await self._add_stake(dest_hotkey, dest_coldkey, amount_rao)
            await self._db.execute(
                "INSERT INTO moves VALUES (NULL, ?, ?, ?, ?, ?, ?)",
                (subnet["block"], self.coldkey, origin_hotkey, dest_hotkey, dest_coldkey, amount_rao),
            )

    @_outcome
    async def serve(self, host: str, port: int) -> None:
        """See `chain.Chain.serve`. Refused: `InvalidIpAddress`, `InvalidPort`, `HotKeyNotRegisteredInNetwork`."""
        async with self._at_head():
            try:
                ip = ipaddress.ip_address(host)
            except ValueError:
                raise _Refused("InvalidIpAddress", f"{host!r} is not an IP address") from None
            if not 1 <= port <= U16_MAX:
                raise _Refused("InvalidPort", f"port {port}, 1 to {U16_MAX}")
            address = f"[{ip}]:{port}" if ip.version == 6 else f"{ip}:{port}"
            done = await self._db.execute("UPDATE neurons SET address = ? WHERE hotkey = ?", (address, self.hotkey))
            if not done.rowcount:
                raise _Refused("HotKeyNotRegisteredInNetwork", f"hotkey {self.hotkey} is not registered")

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
        async with self._at_head():
            return await self._register(hotkey, coldkey, stake_rao)

    async def set_hyperparameters(self, **changes: int) -> Hyperparameters:
        """Change rules as the subnet's owner would; they hold from the newest block on.

        Raises:
            TypeError: no such hyperparameter.
        """
        async with self._at_head() as subnet:
            rules = dataclasses.replace(_rules(subnet), **changes)
            await self._db.execute("UPDATE subnet SET hyperparameters = ?", (json.dumps(dataclasses.asdict(rules)),))
            return rules

    async def trigger_epoch(self) -> int:
        """Run an epoch at the newest block as the subnet's owner can; the next comes `tempo` blocks later.

        Returns:
            The newest block; it had its epoch already if it was the last one's.
        """
        async with self._at_head() as subnet:
            await self._advance(subnet, subnet["block"], triggered=True)
            return subnet["block"]

    # -- inside a transaction

    async def _register(self, hotkey: str, coldkey: str, stake_rao: int) -> int:
        subnet = await self._row("SELECT * FROM subnet")
        rules, block = _rules(subnet), subnet["block"]
        known = await self._row("SELECT coldkey FROM hotkeys WHERE hotkey = ?", hotkey)
        if known and known["coldkey"] != coldkey:
            raise ChainError(f"NonAssociatedColdKey: hotkey {hotkey} belongs to coldkey {known['coldkey']}")
        if neuron := await self._neuron(hotkey):
            return neuron.uid
        if not known:
            await self._db.execute("INSERT INTO hotkeys VALUES (?, ?)", (hotkey, coldkey))
            await self._add_stake(hotkey, coldkey, stake_rao)
        (uid,) = await self._row("SELECT COUNT(*) FROM neurons")
        if uid >= rules.max_uids:
            pruned = await self._row(
                """SELECT uid FROM neurons WHERE hotkey != ?
                ORDER BY registered_block > ?, emission_rao, registered_block, uid LIMIT 1""",
                subnet["owner_hotkey"],
                block - rules.immunity_blocks,
            )
            if pruned is None:
                raise ChainError(f"NoNeuronIdAvailable: max_uids {rules.max_uids} leaves no uid to hotkey {hotkey}")
            uid = pruned["uid"]
            await self._db.execute("DELETE FROM weights WHERE uid = ?", (uid,))
            await self._db.execute("DELETE FROM neurons WHERE uid = ?", (uid,))
        await self._db.execute(
            "INSERT INTO neurons (uid, hotkey, registered_block) VALUES (?, ?, ?)", (uid, hotkey, block)
        )
        await self._db.executemany(
            "UPDATE neurons SET permit = ? WHERE uid = ?",
            [(n.permit, n.uid) for n in _with_permits(rules, await self._neurons())],
        )
        return uid

    async def _row(self, sql: str, *values) -> sqlite3.Row | None:
        return next(iter(await self._db.execute_fetchall(sql, values)), None)

    async def _neurons(self) -> list[Neuron]:
        rows = await self._db.execute_fetchall(_NEURONS)
        return [Neuron(**{**dict(row), "permit": bool(row["permit"])}) for row in rows]

    async def _neuron(self, hotkey: str) -> Neuron | None:
        return next((neuron for neuron in await self._neurons() if neuron.hotkey == hotkey), None)

    async def _last_update(self, neuron: Neuron, mechid: int) -> int:
        row = await self._row("SELECT block FROM weights WHERE mechid = ? AND uid = ?", mechid, neuron.uid)
        return row["block"] if row else neuron.registered_block

    async def _stake(self, hotkey: str, coldkey: str) -> int:
        row = await self._row("SELECT rao FROM stakes WHERE hotkey = ? AND coldkey = ?", hotkey, coldkey)
        return row["rao"] if row else 0

    async def _add_stake(self, hotkey: str, coldkey: str, rao: int) -> None:
        if rao:
            held = await self._stake(hotkey, coldkey) + rao
            await self._db.execute("INSERT OR REPLACE INTO stakes VALUES (?, ?, ?)", (hotkey, coldkey, held))


def _rules(subnet: sqlite3.Row) -> Hyperparameters:
    return Hyperparameters(**json.loads(subnet["hyperparameters"]))


def _vector(row: sqlite3.Row) -> dict[int, int]:
    return {int(uid): value for uid, value in json.loads(row["vector"]).items()}


def _next_epoch(tempo: int, last: int, head: int) -> int | None:
    """`tempo` blocks after the last one; at the next block when a shortened tempo made it overdue."""
    return max(last + tempo, head + 1) if tempo else None


def _with_permits(rules: Hyperparameters, neurons: Sequence[Neuron]) -> list[Neuron]:
    """The same neurons, with permits for the highest stakes at or above the threshold; of equals the lowest uid."""
    eligible = [n for n in neurons if n.stake_rao >= rules.stake_threshold_rao]
    chosen = sorted(eligible, key=lambda n: (-n.stake_rao, n.uid))[: rules.max_validators]
    permitted = {n.uid for n in chosen}
    return [dataclasses.replace(n, permit=n.uid in permitted) for n in neurons]


def _pay(
    rules: Hyperparameters,
    subnet: sqlite3.Row,
    neurons: Sequence[Neuron],
    vectors: Sequence[tuple[int, int, int, dict[int, int]]],
    emitted: int,
) -> Counter[int]:
    """What one epoch credits to each uid, rao; what is left of `emitted` is burned. The rules are `LocalChain`'s.

    Args:
        vectors: (mechid, uid, block, u16 by uid).
        emitted: rao minted since the last epoch.
    """
    by_uid = {n.uid: n for n in neurons}
    paid: Counter[int] = Counter()
    for mechid in range(rules.mechanism_count):
        pot = emitted // rules.mechanism_count + (emitted % rules.mechanism_count if mechid == 0 else 0)
        incentive, dividend = Counter(), Counter()
        for vector_mechid, voter_uid, block, vector in vectors:
            voter = by_uid[voter_uid]
            if vector_mechid != mechid or not voter.permit or voter.stake_rao < max(1, rules.stake_threshold_rao):
                continue
            may_name_itself = voter.hotkey == subnet["owner_hotkey"]
            counted = {
                uid: weight
                for uid, weight in vector.items()
                if block > by_uid[uid].registered_block and (uid != voter_uid or may_name_itself)
            }
            total = sum(counted.values())
            for uid, weight in counted.items():
                incentive[uid] += voter.stake_rao * weight // total
            if counted:
                dividend[voter_uid] = voter.stake_rao
        ranks, stakes = incentive.total(), dividend.total()
        for uid, part in incentive.items():
            if part and by_uid[uid].coldkey != subnet["owner_coldkey"]:
                paid[uid] += pot // 2 * part // ranks
        for uid, part in dividend.items():
            paid[uid] += (pot - pot // 2) * part // stakes
    return paid
