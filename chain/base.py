"""The Bittensor seam: what a chain is to everything else, in plain values. No SDK here.

Amounts are rao, neurons are known by hotkey; a write ends in an outcome that says what to do next.
Read next: `local.py` (the embedded chain), `subtensor.py` (the real ones).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from fractions import Fraction
from functools import cached_property
from typing import Protocol

from runtime.process import Passing, UserError

BLOCK_SECONDS = 12  # Bittensor's block time
ERA_BLOCKS = 32  # a signed write that did not land within so many blocks never will
U16_MAX = 2**16 - 1  # the largest weight of a stored vector
LEAST_MOVE_TAO_RAO = 2_000_000  # what stake must be worth to move, in rao of TAO (subtensor `DefaultMinStake`)


class ChainError(Passing):
    """The chain did not answer, or cannot do what was asked; the message says what, why and the fix, in one line."""


class ChainMistake(ChainError, UserError):
    """What was named is wrong, a key, an address or a network: no retry helps."""


class NoSuchSubnet(ChainMistake):
    """The network has no subnet with this netuid."""


@dataclass(frozen=True, slots=True)
class Neuron:
    """One uid of the subnet as it is now. Uids are recycled: remember neurons by hotkey."""

    uid: int
    hotkey: str
    coldkey: str
    permit: bool  # may set weights for others (the subnet's validator permit)
    stake_rao: int  # all that counts for the hotkey, whoever owns it (on Bittensor: alpha and a part of its root TAO)
    address: str | None  # `host:port` or `[v6]:port`, None if never published; its holder chose it: hostile input
    registered_block: int
    last_update_block: int  # when its mechanism 0 weights were last set; the block of registration before that


@dataclass(frozen=True)
class Metagraph:
    """The subnet at one block; `neurons` in the order of their uids."""

    netuid: int
    block: int
    tempo: int
    owner_hotkey: str
    owner_coldkey: str
    neurons: tuple[Neuron, ...]

    @cached_property
    def _index(self) -> dict[str, Neuron]:
        return {neuron.hotkey: neuron for neuron in self.neurons}

    def by_hotkey(self, hotkey: str) -> Neuron | None:
        """The neuron registered with `hotkey`, None if there is none at this block."""
        return self._index.get(hotkey)

    def burn_uid(self) -> int | None:
        """The uid whose weight nobody is paid for: the chain withholds what the owner's neurons earn as miners.

        The owner hotkey's, else the lowest of the owner's coldkey, else None: the owner is not registered, no uid is
        safe to burn to. Ownership moves and uids are recycled, so ask a fresh metagraph each time.
        """
        if owner := self.by_hotkey(self.owner_hotkey):
            return owner.uid
        return next((neuron.uid for neuron in self.neurons if neuron.coldkey == self.owner_coldkey), None)


@dataclass(frozen=True, slots=True)
class EpochInfo:
    """The epoch cycle. An epoch has happened when `last_epoch_block` advanced: owners trigger epochs and change the
    tempo, so `next_epoch_block` (None: no epoch is due, tempo 0) is only the present expectation."""

    last_epoch_block: int
    tempo: int
    next_epoch_block: int | None


@dataclass(frozen=True, slots=True)
class WeightParams:
    """What decides whether the chain takes a hotkey's weights."""

    rate_limit_blocks: int  # weights are taken when `block - last_update_block >= rate_limit_blocks`
    min_allowed_weights: int  # the fewest non-zero weights (a single weight on oneself is exempt)
    max_weight: int  # the largest part one uid may have, in units of 1/65535; 65535 is no limit
    version_key: int  # ours must be at least this; 0 accepts any
    commit_reveal: bool  # weights are committed now and shown later
    last_update_block: int | None  # of this hotkey on this mechanism; None if it is not registered
    unrevealed_commits: int = 0  # of this hotkey on this mechanism


@dataclass(frozen=True, slots=True)
class StakeParams:
    """What decides whether a coldkey's stake can move in the subnet, and where what it mines lands."""

    moves: bool  # stake may move at all (subtensor `SubtokenEnabled`)
    transfers: bool  # it may change its owner; the subnet's owner decides (`TransferToggle`)
    price_rao: int  # as `Pool.price_rao`
    auto_stake_hotkey: str | None  # where the chain stakes what the coldkey mines, instead of on its miners
    least_tao_rao: int = LEAST_MOVE_TAO_RAO

    @property
    def least_rao(self) -> int:
        """The alpha that may move at least: worth more than the least of TAO, and a hundredth for fee and slippage.

        Source: subtensor `validate_stake_transition`: `sim_swap` must pay out more. Newer runtimes ask it only between
            subnets, older ones of every move; less is worth no fee anyway.
        """
        return self.least_tao_rao * 101 * 10**7 // max(1, self.price_rao) + 1


@dataclass(frozen=True, slots=True)
class Pool:
    """The pool in which a subnet's alpha is traded for TAO, at one block."""

    netuid: int
    block: int
    price_rao: int  # spot: rao of TAO for one whole alpha (1e9 rao of alpha)
    moving_price: Fraction  # the chain's moving average, TAO per alpha, exact; it lags and is hard to move
    tao_in_rao: int
    alpha_in_rao: int
    alpha_out_rao: int  # outside the pool


@dataclass(frozen=True, slots=True)
class StakeMove:
    """One stake move or transfer by this coldkey that the chain applied, as its own events record it."""

    extrinsic: str  # `BLOCK-INDEX`, as explorers show it; no two moves have the same
    block: int
    origin_hotkey: str
    dest_hotkey: str
    dest_coldkey: str  # who owns the stake now; the mover itself when only the hotkey changed


# ---------------------------------------------------------------------------------------------------------------------
# What is written


class WriteCode(StrEnum):
    """The kind of a write's result; the values are those of the SDK's `ErrorCode`, and `ok`."""

    OK = "ok"
    RATE_LIMITED = "rate_limited"
    NOT_REGISTERED = "not_registered"
    NOT_AUTHORIZED = "not_authorized"
    INSUFFICIENT_BALANCE = "insufficient_balance"
    INVALID_ARGUMENT = "invalid_argument"
    LIMIT_EXCEEDED = "limit_exceeded"
    SUBNET_NOT_EXISTS = "subnet_not_exists"
    SUBTOKEN_DISABLED = "subtoken_disabled"
    INSUFFICIENT_LIQUIDITY = "insufficient_liquidity"
    ALREADY_EXISTS = "already_exists"
    NOT_FOUND = "not_found"
    DISABLED = "disabled"
    TOO_EARLY = "too_early"
    EXPIRED = "expired"
    UNIT_MISMATCH = "unit_mismatch"
    POLICY_VIOLATION = "policy_violation"
    INTERNAL = "internal"
    UNKNOWN = "unknown"


class Next(StrEnum):
    """What the caller of a write may do next: a closed list."""

    NOTHING = "nothing"  # done, or refused for a reason that only a change on our side or a person removes
    SIGN_AGAIN = "sign_again"  # certainly not applied, and the same call may pass now
    WAIT_BLOCKS = "wait_blocks"  # not applied; the same call may pass after `wait_blocks` blocks
    READ_STATE_FIRST = "read_state_first"  # fate unknown: it may have been applied


@dataclass(frozen=True, slots=True)
class WriteOutcome:
    """How one write ended. Writes do not raise.

    `wait_blocks` are, with `Next.WAIT_BLOCKS`, how many; with `Next.READ_STATE_FIRST`, after how many what the state
    shows is final, because the write can no longer land; else 0.
    """

    ok: bool  # applied (under commit-reveal: the commit was)
    code: WriteCode
    name: str  # the chain's name of the error, or the exception's type when it never reached the chain; empty when ok
    next: Next
    detail: str  # one line with the values, for people
    block: int  # the chain's when it ended, as far as it was seen
    wait_blocks: int = 0
    paid: bool = False  # it failed inside a block, for its fee: tried again soon, it costs one each time


def done(block: int, detail: str = "") -> WriteOutcome:
    return WriteOutcome(True, WriteCode.OK, "", Next.NOTHING, detail, block)


Weights = Mapping[int, int | Fraction | Decimal]
"""Exact numbers >= 0 by uid; only their ratios matter."""


def u16_weights(weights: Weights) -> dict[int, int]:
    """Weights as the chain stores them: the largest becomes 65535, the rest in proportion, half to even, zeros dropped.

    In the order of the uids. Raises `ValueError` if a weight is negative or not finite, or none is above zero.

    Source: the SDK's `intents.weights.normalize`, here without floats.
    """
    try:
        exact = {uid: Fraction(weight) for uid, weight in sorted(weights.items())}
    except (ValueError, OverflowError) as error:
        raise ValueError(f"a weight is not finite: {error}") from None
    if negative := [uid for uid, weight in exact.items() if weight < 0]:
        raise ValueError(f"the weight of uid {negative[0]} is negative: {weights[negative[0]]}")
    largest = max(exact.values(), default=0)
    if not largest:
        raise ValueError(f"none of {len(weights)} weights is above zero")
    scaled = {uid: round(weight * U16_MAX / largest) for uid, weight in exact.items()}
    return {uid: value for uid, value in scaled.items() if value}


# ---------------------------------------------------------------------------------------------------------------------
# What a chain refuses, said before anything is signed

_REFUSALS = {  # the chain's names of its errors by their kind in the SDK's error map, and those of `Refused`
    WriteCode.RATE_LIMITED: "SettingWeightsTooFast CommittingWeightsTooFast",
    WriteCode.NOT_REGISTERED: "HotKeyNotRegisteredInSubNet HotKeyNotRegisteredInNetwork HotKeyAccountNotExists"
    " NoBurnUid NoTarget",
    WriteCode.NOT_AUTHORIZED: "NeuronNoValidatorPermit ColdkeyLocked NotAllowed",
    WriteCode.INSUFFICIENT_BALANCE: "NotEnoughStakeToSetWeights NotEnoughStakeToWithdraw FeeReserve",
    WriteCode.INVALID_ARGUMENT: "IncorrectWeightVersionKey UidVecContainInvalidOne WeightVecLengthIsLow"
    " SameNetuid InvalidIpAddress InvalidPort ValueError Dropped FateUnknown",
    WriteCode.LIMIT_EXCEEDED: "MaxWeightExceeded AmountTooLow",
    WriteCode.DISABLED: "TransferDisallowed",
    WriteCode.SUBTOKEN_DISABLED: "SubtokenDisabled",
    WriteCode.SUBNET_NOT_EXISTS: "MechanismDoesNotExist",
}
REFUSALS = {name: kind for kind, names in _REFUSALS.items() for name in names.split()}


class Refused(Exception):
    """A write that the chain would not take, or that we do not send (`NoBurnUid`, `NoTarget`, `FeeReserve`,
    `NotAllowed`, `Dropped`, `FateUnknown`): the name of the error, detail, and blocks to wait if waiting helps."""

    def outcome(self, block: int) -> WriteOutcome:
        name, detail, *wait = self.args
        following = Next.WAIT_BLOCKS if wait else Next.NOTHING
        return WriteOutcome(False, REFUSALS[name], name, following, f"{name}: {detail}", block, *wait)


def checked_vector(weights: Weights, mechid: int, mechanisms: int) -> dict[int, int]:
    """`u16_weights` for one of the subnet's mechanisms; raises `Refused`."""
    try:
        vector = u16_weights(weights)
    except ValueError as error:
        raise Refused("ValueError", error) from None
    if not 0 <= mechid < mechanisms:
        raise Refused("MechanismDoesNotExist", f"mechid {mechid}, the subnet has {mechanisms}")
    return vector


def check_weights(
    vector: Mapping[int, int], version_key: int, params: WeightParams, graph: Metagraph, hotkey: str, least_rao: int
) -> Neuron:
    """What the chain holds against a vector, in its order, raising `Refused`; returns the hotkey's neuron.

    `least_rao` is the stake that setting weights needs; the subnet's owner needs neither it nor a permit.

    Source: subtensor `do_set_weights`, `do_commit_timelocked_weights`; and `MaxWeightExceeded`, where the SDK alone
        would clip and another vector than ours would be in force.
    """
    me = graph.by_hotkey(hotkey)
    if me is None or params.last_update_block is None:
        raise Refused("HotKeyNotRegisteredInSubNet", f"hotkey {hotkey} on netuid {graph.netuid}")
    is_owner, only_itself = hotkey == graph.owner_hotkey, list(vector) == [me.uid]
    if me.stake_rao < least_rao and not is_owner:
        raise Refused("NotEnoughStakeToSetWeights", f"stake {me.stake_rao} rao, at least {least_rao}")
    if version_key < params.version_key:
        raise Refused("IncorrectWeightVersionKey", f"version key {version_key}, at least {params.version_key}")
    wait = params.last_update_block + params.rate_limit_blocks - graph.block if params.last_update_block else 0
    if wait > 0:
        name = "CommittingWeightsTooFast" if params.commit_reveal else "SettingWeightsTooFast"
        raise Refused(name, f"again in {wait} blocks", wait)
    if not me.permit and not only_itself and not is_owner:
        raise Refused("NeuronNoValidatorPermit", f"uid {me.uid} has no validator permit")
    if unknown := vector.keys() - {neuron.uid for neuron in graph.neurons}:
        raise Refused("UidVecContainInvalidOne", f"uid {min(unknown)}, the subnet has {len(graph.neurons)} uids")
    fewest = min(params.min_allowed_weights, len(graph.neurons))  # a young subnet has fewer
    if len(vector) < fewest and not only_itself:
        raise Refused("WeightVecLengthIsLow", f"{len(vector)} non-zero weights, at least {fewest}")
    largest, total = max(vector.values()), sum(vector.values())
    if largest * U16_MAX > params.max_weight * total and not only_itself:
        raise Refused("MaxWeightExceeded", f"a part of {largest}/{total}, at most {params.max_weight}/{U16_MAX}")
    return me


def check_move(params: StakeParams, transfer: bool, hotkey: str, amount_rao: int, held_rao: int) -> None:
    """Whether so much can leave a hotkey, with `transfer` to another coldkey; raises `Refused`."""
    if not params.moves:
        raise Refused("SubtokenDisabled", "no stake of this subnet moves; its owner has not started it")
    if amount_rao > held_rao:
        raise Refused("NotEnoughStakeToWithdraw", f"{amount_rao} rao of {held_rao} on {hotkey}")
    if amount_rao < params.least_rao:
        raise Refused("AmountTooLow", f"{amount_rao} rao, at least {params.least_rao} at the price of the moment")
    if transfer and not params.transfers:
        raise Refused("TransferDisallowed", "the subnet's owner has switched transfers of stake off")


def served_address(graph: Metagraph, hotkey: str, host: str, port: int) -> tuple[str, bool]:
    """Host and port as the chain shows them, and whether it shows them of this hotkey already; raises `Refused`."""
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        raise Refused("InvalidIpAddress", f"{host!r} is not an IP address") from None
    if not 1 <= port <= U16_MAX:
        raise Refused("InvalidPort", f"port {port}, 1 to {U16_MAX}")
    me, address = graph.by_hotkey(hotkey), f"[{ip}]:{port}" if ip.version == 6 else f"{ip}:{port}"
    if me is None:
        raise Refused("HotKeyNotRegisteredInNetwork", f"hotkey {hotkey} is not registered")
    return address, me.address == address


# ---------------------------------------------------------------------------------------------------------------------
# The protocol


class Chain(Protocol):
    """One subnet, seen and acted upon with one wallet: the hotkey signs weights and serving, the coldkey moves stake.

    Every method has its own total deadline. Reads raise `ChainError`; writes return a `WriteOutcome` and never raise.
    """

    hotkey: str
    coldkey: str

    async def block(self) -> int:
        """The newest block's number."""

    async def metagraph(self, block: int | None = None) -> Metagraph:
        """The whole subnet at one block, by default the newest."""

    async def epoch(self) -> EpochInfo:
        """Last and next epoch, see `EpochInfo` for how to detect one."""

    async def weight_params(self, hotkey: str, mechid: int = 0) -> WeightParams:
        """What decides whether weights of `hotkey` would be taken on this mechanism now."""

    async def set_weights(self, weights: Weights, version_key: int, mechid: int = 0) -> WriteOutcome:
        """Replace this hotkey's weight vector on a mechanism; `u16_weights` says what is stored of it.

        Refused as `checked_vector` and `check_weights` say. `version_key`, 0 to 2**64 - 1, is of the code that made it.
        """

    async def weights_of(self, uid: int, mechid: int = 0) -> dict[int, int]:
        """The vector in force of the validator `uid`, as stored (under commit-reveal: as revealed): 1 to 65535 by uid,
        empty if there is none. It may name uids that were recycled since."""

    async def stake(self, hotkey: str, coldkey: str) -> int:
        """Rao that `coldkey` has on `hotkey` in this subnet; on Bittensor, shares of a pool, rounded down: a move of n
        rao may show as n - 1 at its destination."""

    async def move_stake(self, origin_hotkey: str, dest_hotkey: str, amount_rao: int) -> WriteOutcome:
        """Move this coldkey's stake from one hotkey to another within the subnet; refused as `transfer_stake`."""

    async def transfer_stake(
        self, hotkey: str, dest_coldkey: str, amount_rao: int, dest_hotkey: str | None = None
    ) -> WriteOutcome:
        """Give this coldkey's stake on `hotkey` to another coldkey, moved to `dest_hotkey` in the same step if there is
        one; cannot be undone.

        Refused: `SameNetuid` (nothing would move), `HotKeyAccountNotExists`, `NotEnoughStakeToWithdraw`,
        `AmountTooLow`, `TransferDisallowed`, `SubtokenDisabled`; on Bittensor also without the coldkey in the wallet,
        and for a wrong address.

        Source: subtensor `validate_stake_transition`.
        """

    async def stake_params(self) -> StakeParams:
        """What decides whether this coldkey's stake can move now; `check_move` is what both chains hold against it."""

    async def free_balance(self) -> int | None:
        """Free TAO of this coldkey in rao, from which fees are paid; None on a chain without fees."""

    async def pools(self, block: int | None = None) -> dict[int, Pool]:
        """The pools of all subnets by netuid, at one block; a chain without pools has none."""

    async def stake_moves(self, from_block: int, to_block: int) -> list[StakeMove]:
        """What this coldkey moved and transferred in these blocks, both included, in order: what became of a write
        whose fate is unknown. `ChainError` also when the node no longer has one of these blocks."""

    async def serve(self, host: str, port: int) -> WriteOutcome:
        """Publish where this hotkey's server is reached: an IPv4 or IPv6 address, not a name, and a port from 1."""


async def vector_in_force(chain: Chain, weights: Weights, mechid: int = 0) -> WriteOutcome:
    """What became of weights that were set: under commit-reveal an accepted commit may still be dropped at its reveal.

    Returns:
        ok when exactly these weights are in force for this hotkey, but for uids recycled since; `WAIT_BLOCKS` while a
        commit is still to be revealed; else `NotInForce`: the commit failed at its reveal (stake, permit or version key
        changed, or it expired), or another vector replaced it.
    """
    params = await chain.weight_params(chain.hotkey, mechid)  # before the weights: a reveal in between is then seen
    graph = await chain.metagraph()
    me = graph.by_hotkey(chain.hotkey)
    if me is None:
        detail = f"hotkey {chain.hotkey} is not registered any more"
        return Refused("HotKeyNotRegisteredInSubNet", detail).outcome(graph.block)
    stored, sent = await chain.weights_of(me.uid, mechid), u16_weights(weights)
    since = params.last_update_block or 0  # a uid recycled later is taken out of everybody's row
    recycled = {neuron.uid for neuron in graph.neurons if neuron.registered_block >= since} - stored.keys()
    if stored and stored == {uid: weight for uid, weight in sent.items() if uid not in recycled}:
        return done(graph.block)
    if params.unrevealed_commits:
        wait = max(1, ((await chain.epoch()).next_epoch_block or graph.block) - graph.block)
        detail = f"NotRevealed: {params.unrevealed_commits} commits are still to be revealed"
        return WriteOutcome(False, WriteCode.TOO_EARLY, "NotRevealed", Next.WAIT_BLOCKS, detail, graph.block, wait)
    detail = f"NotInForce: uid {me.uid} has {len(stored)} other weights; look at its stake, permit and version key"
    return WriteOutcome(False, WriteCode.UNKNOWN, "NotInForce", Next.NOTHING, detail, graph.block)
