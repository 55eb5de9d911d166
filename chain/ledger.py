"""The ledger of the embedded chain: its schema, its rules, and what one epoch or registration does to it.

Plain functions of a `sqlite3` connection inside one transaction of `LocalChain`. Auditors may skip this: nothing here
decides a score. Read next: `local.py`.
"""

from __future__ import annotations

import dataclasses
import json
import sqlite3
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from chain.base import (
    LEAST_MOVE_TAO_RAO,
    U16_MAX,
    ChainMistake,
    EpochInfo,
    Metagraph,
    Neuron,
    StakeParams,
    WeightParams,
)

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
    hotkey TEXT PRIMARY KEY, coldkey TEXT NOT NULL
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
    hotkey TEXT NOT NULL REFERENCES hotkeys, coldkey TEXT NOT NULL, rao INTEGER NOT NULL CHECK (rao >= 0),
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
    block INTEGER PRIMARY KEY, emitted_rao INTEGER NOT NULL, credited_rao INTEGER NOT NULL, burned_rao INTEGER NOT NULL
)""",
    """CREATE TABLE moves (  -- every stake move and transfer that was applied, as the real chain's events
    id INTEGER PRIMARY KEY, block INTEGER NOT NULL, coldkey TEXT NOT NULL,
    origin_hotkey TEXT NOT NULL, dest_hotkey TEXT NOT NULL, dest_coldkey TEXT NOT NULL, rao INTEGER NOT NULL
)""",
)

_NEURONS = """SELECT n.uid, n.hotkey, h.coldkey, permit, address, registered_block,
    COALESCE(w.block, registered_block) AS last_update_block,
    COALESCE((SELECT SUM(rao) FROM stakes WHERE hotkey = n.hotkey), 0) AS stake_rao
FROM neurons n JOIN hotkeys h USING (hotkey) LEFT JOIN weights w ON w.uid = n.uid AND w.mechid = 0
ORDER BY n.uid"""


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """The subnet's rules; the defaults are the real chain's where it has one. See also `WeightParams`."""

    tempo: int = 360  # blocks between epochs; 0 stops them
    weights_rate_limit_blocks: int = 100
    min_allowed_weights: int = 1
    max_weight: int = U16_MAX
    version_key: int = 0
    max_uids: int = 256  # a further registration prunes one. At least 2: the owner is never pruned
    immunity_blocks: int = 4096  # a neuron younger than this is pruned only when all are
    max_validators: int = 64  # permits, given to the highest stakes
    stake_threshold_rao: int = 1_000 * 10**9  # the least for a permit, for setting weights, for being heard in an epoch
    min_stake_move_rao: int = LEAST_MOVE_TAO_RAO  # what a move or transfer must be worth, in TAO
    alpha_price_rao: int = 10**9  # rao of TAO for one alpha; here nobody trades it
    transfers_allowed: bool = True  # stake may change its owner
    mechanism_count: int = 1  # they share the emission equally
    emission_rao_per_block: int = 10**9  # paid per epoch: half to miners, half to validators


DEFAULT_RULES = Hyperparameters()


def advance(db: sqlite3.Connection, subnet: sqlite3.Row, target: int, triggered: bool = False) -> None:
    """Run the epochs due up to `target` in memory, or one there at once, and write the end state."""
    rules, epoch = rules_of(subnet), epoch_of(db, subnet)
    last, due = epoch.last_epoch_block, epoch.next_epoch_block
    if triggered:
        due = target if target > last else None
    if due is not None and due <= target:
        neurons = neurons_of(db)
        rows = db.execute("SELECT * FROM weights ORDER BY mechid, uid")
        vectors = [(row["mechid"], row["uid"], row["block"], vector_of(row)) for row in rows]
        epochs, earned, paid = [], Counter(), Counter()
        while due <= target:
            emitted = rules.emission_rao_per_block * (due - last)
            paid = pay(rules, subnet, neurons, vectors, emitted)
            earned.update(paid)
            epochs.append((due, emitted, paid.total(), emitted - paid.total()))
            richer = [dataclasses.replace(n, stake_rao=n.stake_rao + paid[n.uid]) for n in neurons]
            neurons = with_permits(rules, richer)
            last, due = due, target + 1 if triggered else due + rules.tempo
        db.executemany("INSERT INTO epochs VALUES (?, ?, ?, ?)", epochs)
        for n in neurons:
            add_stake(db, n.hotkey, n.coldkey, earned[n.uid])
            db.execute("UPDATE neurons SET permit = ?, emission_rao = ? WHERE uid = ?", (n.permit, paid[n.uid], n.uid))
    db.execute("UPDATE subnet SET block = ?", (target,))


def register(db: sqlite3.Connection, hotkey: str, coldkey: str, stake_rao: int) -> int:
    subnet = row_of(db, "SELECT * FROM subnet")
    rules, block = rules_of(subnet), subnet["block"]
    known = row_of(db, "SELECT coldkey FROM hotkeys WHERE hotkey = ?", hotkey)
    if known and known["coldkey"] != coldkey:
        raise ChainMistake(f"NonAssociatedColdKey: hotkey {hotkey} belongs to coldkey {known['coldkey']}")
    if neuron := neuron_of(db, hotkey):
        return neuron.uid
    if not known:
        db.execute("INSERT INTO hotkeys VALUES (?, ?)", (hotkey, coldkey))
        add_stake(db, hotkey, coldkey, stake_rao)
    (uid,) = row_of(db, "SELECT COUNT(*) FROM neurons")
    if uid >= rules.max_uids:
        sql = """SELECT uid FROM neurons WHERE hotkey != ?
            ORDER BY registered_block > ?, emission_rao, registered_block, uid LIMIT 1"""
        pruned = row_of(db, sql, subnet["owner_hotkey"], block - rules.immunity_blocks)
        if pruned is None:
            raise ChainMistake(f"NoNeuronIdAvailable: max_uids {rules.max_uids} leaves no uid to hotkey {hotkey}")
        uid = pruned["uid"]
        db.execute("DELETE FROM weights WHERE uid = ?", (uid,))
        db.execute("DELETE FROM neurons WHERE uid = ?", (uid,))
    db.execute("INSERT INTO neurons (uid, hotkey, registered_block) VALUES (?, ?, ?)", (uid, hotkey, block))
    permits = [(n.permit, n.uid) for n in with_permits(rules, neurons_of(db))]
    db.executemany("UPDATE neurons SET permit = ? WHERE uid = ?", permits)
    return uid


def row_of(db: sqlite3.Connection, sql: str, *values) -> sqlite3.Row | None:
    return db.execute(sql, values).fetchone()


def neurons_of(db: sqlite3.Connection) -> list[Neuron]:
    rows = db.execute(_NEURONS)
    return [Neuron(**{**dict(row), "permit": bool(row["permit"])}) for row in rows]


def metagraph_of(db: sqlite3.Connection, subnet: sqlite3.Row) -> Metagraph:
    owner = subnet["owner_hotkey"], subnet["owner_coldkey"]
    return Metagraph(subnet["netuid"], subnet["block"], rules_of(subnet).tempo, *owner, tuple(neurons_of(db)))


def epoch_of(db: sqlite3.Connection, subnet: sqlite3.Row) -> EpochInfo:
    tempo, (last,) = rules_of(subnet).tempo, row_of(db, "SELECT MAX(block) FROM epochs")
    return EpochInfo(last, tempo, next_epoch(tempo, last, subnet["block"]))


def weight_params_of(db: sqlite3.Connection, subnet: sqlite3.Row, hotkey: str, mechid: int) -> WeightParams:
    rules, last = rules_of(subnet), None
    if neuron := neuron_of(db, hotkey):
        row = row_of(db, "SELECT block FROM weights WHERE mechid = ? AND uid = ?", mechid, neuron.uid)
        last = row["block"] if row else neuron.registered_block
    limits = rules.weights_rate_limit_blocks, rules.min_allowed_weights, rules.max_weight
    return WeightParams(*limits, rules.version_key, commit_reveal=False, last_update_block=last)


def stake_params_of(subnet: sqlite3.Row) -> StakeParams:
    rules = rules_of(subnet)
    return StakeParams(True, rules.transfers_allowed, rules.alpha_price_rao, None, rules.min_stake_move_rao)


def neuron_of(db: sqlite3.Connection, hotkey: str) -> Neuron | None:
    return next((neuron for neuron in neurons_of(db) if neuron.hotkey == hotkey), None)


def stake_of(db: sqlite3.Connection, hotkey: str, coldkey: str) -> int:
    row = row_of(db, "SELECT rao FROM stakes WHERE hotkey = ? AND coldkey = ?", hotkey, coldkey)
    return row["rao"] if row else 0


def add_stake(db: sqlite3.Connection, hotkey: str, coldkey: str, rao: int) -> None:
    if rao:
        held = stake_of(db, hotkey, coldkey) + rao
        db.execute("INSERT OR REPLACE INTO stakes VALUES (?, ?, ?)", (hotkey, coldkey, held))


def rules_of(subnet: sqlite3.Row) -> Hyperparameters:
    return Hyperparameters(**json.loads(subnet["hyperparameters"]))


def vector_of(row: sqlite3.Row) -> dict[int, int]:
    return {int(uid): value for uid, value in json.loads(row["vector"]).items()}


def next_epoch(tempo: int, last: int, head: int) -> int | None:
    """`tempo` blocks after the last one; at the next block when a shortened tempo made it overdue."""
    return max(last + tempo, head + 1) if tempo else None


def with_permits(rules: Hyperparameters, neurons: Sequence[Neuron]) -> list[Neuron]:
    """The same neurons, with permits for the highest stakes at or above the threshold; of equals the lowest uid."""
    eligible = [n for n in neurons if n.stake_rao >= rules.stake_threshold_rao]
    chosen = sorted(eligible, key=lambda n: (-n.stake_rao, n.uid))[: rules.max_validators]
    permitted = {n.uid for n in chosen}
    return [dataclasses.replace(n, permit=n.uid in permitted) for n in neurons]


def pay(
    rules: Hyperparameters, subnet: sqlite3.Row, neurons: Sequence[Neuron], vectors: Sequence[tuple], emitted: int
) -> Counter[int]:
    """What one epoch credits to each uid, rao; what is left of `emitted`, the rao minted since the last, is burned.

    The rules are `LocalChain`'s. A vector is (mechid, uid, block, u16 by uid).
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
