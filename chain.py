"""The Bittensor seam: the one protocol through which everything else sees a chain, and the plain values that cross it.

Amounts are integers in rao (1e-9 TAO or alpha), times are blocks, weights are exact numbers; no SDK type passes.
A read either answers or raises `ChainError`; a write always ends in a `WriteOutcome`, which also says what may be done
next. Nothing to run here: `python -m pytest tests/test_local.py` shows the protocol at work on the embedded chain.
Read next: `local.py` (`LocalChain`, the embedded chain of local mode), `scoring.py` (where the weights come from).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from fractions import Fraction
from functools import cached_property
from typing import Protocol

BLOCK_SECONDS = 12  # Bittensor's block time
U16_MAX = 2**16 - 1  # the largest weight of a stored vector


class ChainError(Exception):
    """The chain did not answer, or cannot do what was asked; the message says what, why and the fix, in one line."""


# ---------------------------------------------------------------------------------------------------------------------
# What is read


@dataclass(frozen=True, slots=True)
class Neuron:
    """One uid of the subnet as it is now. Uids are recycled: remember neurons by hotkey.

    Attributes:
        permit: may set weights for others (the subnet's validator permit).
        stake_rao: all stake on the hotkey in this subnet, whoever owns it.
        address: `host:port` or `[v6]:port` as published, None if never; chosen by the hotkey's holder: hostile input.
        last_update_block: when its mechanism 0 weights were last set; the block of registration before that.
    """

    uid: int
    hotkey: str
    coldkey: str
    permit: bool
    stake_rao: int
    address: str | None
    registered_block: int
    last_update_block: int


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

        Returns:
            The owner hotkey's uid, else the lowest uid of the owner's coldkey, else None: the owner is not registered,
            no uid is safe to burn to. Ownership moves and uids are recycled, so ask a fresh metagraph each time.
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
    """What decides whether the chain takes a hotkey's weights.

    Attributes:
        rate_limit_blocks: weights are taken when `block - last_update_block >= rate_limit_blocks`.
        min_allowed_weights: the fewest non-zero weights (a single weight on oneself is exempt).
        max_weight: the largest part one uid may have, in units of 1/65535; 65535 is no limit.
        version_key: ours must be at least this; 0 accepts any.
        commit_reveal: weights are committed now and shown later.
        last_update_block: of this hotkey on this mechanism; None if it is not registered.
    """

    rate_limit_blocks: int
    min_allowed_weights: int
    max_weight: int
    version_key: int
    commit_reveal: bool
    last_update_block: int | None


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

    Attributes:
        ok: applied (under commit-reveal: the commit was).
        code: the kind of result.
        name: the chain's name of the error, or the exception's type when it never reached the chain; empty when ok.
        next: what may be done next.
        detail: one line with the values, for people.
        block: the chain's block when it ended.
        wait_blocks: with `Next.WAIT_BLOCKS`, how many; else 0.
    """

    ok: bool
    code: WriteCode
    name: str
    next: Next
    detail: str
    block: int
    wait_blocks: int = 0


Weights = Mapping[int, int | Fraction | Decimal]
"""Exact numbers >= 0 by uid; only their ratios matter."""


def u16_weights(weights: Weights) -> dict[int, int]:
    """Weights as the chain stores them: the largest becomes 65535, the rest in proportion, half to even, zeros dropped.

    Args:
        weights: not floats, and not all zero.

    Returns:
        1 to 65535 by uid, in the order of the uids.

    Raises:
        ValueError: a weight is negative or not finite, or none is above zero.

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
# The protocol


class Chain(Protocol):
    """One subnet, seen and acted upon with one wallet: the hotkey signs weights and serving, the coldkey moves stake.

    Every method has its own total deadline. Reads raise `ChainError`; writes return a `WriteOutcome` and never raise.
    """

    hotkey: str
    coldkey: str

    async def block(self) -> int:
        """The newest block's number."""
        ...

    async def metagraph(self, block: int | None = None) -> Metagraph:
        """The whole subnet at one block, by default the newest."""
        ...

    async def epoch(self) -> EpochInfo:
        """Last and next epoch, see `EpochInfo` for how to detect one."""
        ...

    async def weight_params(self, hotkey: str, mechid: int = 0) -> WeightParams:
        """What decides whether weights of `hotkey` would be taken on this mechanism now."""
        ...

    async def set_weights(self, weights: Weights, version_key: int, mechid: int = 0) -> WriteOutcome:
        """Replace this hotkey's weight vector on a mechanism.

        Args:
            weights: `u16_weights` says what is stored of them.
            version_key: of the code that made them, 0 to 2**64 - 1.
            mechid: the subnet's mechanism, 0 unless the subnet has several.
        """
        ...

    async def weights_of(self, uid: int, mechid: int = 0) -> dict[int, int]:
        """The vector in force of the validator `uid`, as stored (under commit-reveal: as revealed).

        Returns:
            1 to 65535 by uid, empty if there is none. It may name uids that were recycled since.
        """
        ...

    async def stake(self, hotkey: str, coldkey: str) -> int:
        """Rao that `coldkey` has on `hotkey` in this subnet."""
        ...

    async def move_stake(self, origin_hotkey: str, dest_hotkey: str, amount_rao: int) -> WriteOutcome:
        """Move this coldkey's stake from one hotkey to another within the subnet."""
        ...

    async def transfer_stake(self, hotkey: str, dest_coldkey: str, amount_rao: int) -> WriteOutcome:
        """Give this coldkey's stake on `hotkey` to another coldkey, on the same hotkey; cannot be undone."""
        ...

    async def serve(self, host: str, port: int) -> WriteOutcome:
        """Publish where this hotkey's server is reached.

        Args:
            host: an IPv4 or IPv6 address, not a name.
            port: 1 to 65535.
        """
        ...
