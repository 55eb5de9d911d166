"""The Bittensor seam: the one protocol through which everything else sees a chain, and the plain values that cross it.

`BittensorChain` follows it for the real networks, through the SDK (bittensor 11); `local.py` has the embedded chain.
Amounts are integers in rao (1e-9 TAO or alpha), times are blocks, weights are exact numbers; no SDK type passes.
A read either answers or raises `ChainError`; a write always ends in a `WriteOutcome`, which also says what may be done
next. Nothing to run here: `python -m pytest tests/test_chain.py` shows the protocol at work on both chains.
Read next: `local.py` (`LocalChain`, the embedded chain of local mode), `scoring.py` (where the weights come from).
"""

from __future__ import annotations

import asyncio
import ipaddress
import math
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from decimal import Decimal
from enum import StrEnum
from fractions import Fraction
from functools import cached_property
from typing import Any, Protocol, TypeVar

import bittensor as bt
from bittensor.keyfiles import Keyfile
from bittensor.settings import NETWORKS
from bittensor.sp_core import CRYPTO_SR25519, KeyfileError, WrongPasswordError, ss58_decode, ss58_encode

BLOCK_SECONDS = 12  # Bittensor's block time
U16_MAX = 2**16 - 1  # the largest weight of a stored vector
MECHANISM_STRIDE = 4096  # a mechanism's weights are stored under mechid * 4096 + netuid (GLOBAL_MAX_SUBNET_COUNT)
READ_SECONDS, WRITE_SECONDS = 60.0, 180.0  # total deadlines; a write waits until it is final, three blocks or more
CLOSE_SECONDS = 5.0
ERA_BLOCKS = 32  # a signed write that did not land within so many blocks never will
MAX_FEE_TAO = "0.01"  # no write may cost more
MAX_DETAIL_CHARS = 300

T = TypeVar("T")


class ChainError(Exception):
    """The chain did not answer, or cannot do what was asked; the message says what, why and the fix, in one line."""


class NoSuchSubnet(ChainError):
    """The network has no subnet with this netuid: no retry helps."""


# ---------------------------------------------------------------------------------------------------------------------
# What is read


@dataclass(frozen=True, slots=True)
class Neuron:
    """One uid of the subnet as it is now. Uids are recycled: remember neurons by hotkey.

    Attributes:
        permit: may set weights for others (the subnet's validator permit).
        stake_rao: all stake that counts for the hotkey in this subnet, whoever owns it (on Bittensor: its stake weight,
            alpha and the counted part of its root TAO).
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
        unrevealed_commits: commits of this hotkey on this mechanism that are still to be shown.
    """

    rate_limit_blocks: int
    min_allowed_weights: int
    max_weight: int
    version_key: int
    commit_reveal: bool
    last_update_block: int | None
    unrevealed_commits: int = 0


@dataclass(frozen=True, slots=True)
class Pool:
    """The pool in which a subnet's alpha is traded for TAO, at one block.

    Attributes:
        price_rao: spot price, rao of TAO for one whole alpha (1e9 rao of alpha).
        moving_price: the chain's moving average of the price, TAO per alpha, exact; it lags and is hard to move.
        tao_in_rao, alpha_in_rao: the pool's two sides.
        alpha_out_rao: alpha outside the pool.
    """

    netuid: int
    block: int
    price_rao: int
    moving_price: Fraction
    tao_in_rao: int
    alpha_in_rao: int
    alpha_out_rao: int


@dataclass(frozen=True, slots=True)
class StakeMove:
    """One stake move or transfer by this coldkey that the chain applied, as its own events record it.

    Attributes:
        extrinsic: `BLOCK-INDEX`, as explorers show it; no two moves have the same.
        dest_coldkey: who owns the stake now; the mover itself when only the hotkey changed.
    """

    extrinsic: str
    block: int
    origin_hotkey: str
    dest_hotkey: str
    dest_coldkey: str


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

    Attributes:
        ok: applied (under commit-reveal: the commit was).
        code: the kind of result.
        name: the chain's name of the error, or the exception's type when it never reached the chain; empty when ok.
        next: what may be done next.
        detail: one line with the values, for people.
        block: the chain's block when it ended, as far as it was seen.
        wait_blocks: with `Next.WAIT_BLOCKS`, how many; with `Next.READ_STATE_FIRST`, after how many what the state
            shows is final, because the write can no longer land; else 0.
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
        """Rao that `coldkey` has on `hotkey` in this subnet; on Bittensor, shares of a pool, rounded down: a move of n
        rao may show as n - 1 at its destination."""
        ...

    async def move_stake(self, origin_hotkey: str, dest_hotkey: str, amount_rao: int) -> WriteOutcome:
        """Move this coldkey's stake from one hotkey to another within the subnet."""
        ...

    async def transfer_stake(
        self, hotkey: str, dest_coldkey: str, amount_rao: int, dest_hotkey: str | None = None
    ) -> WriteOutcome:
        """Give this coldkey's stake on `hotkey` to another coldkey; cannot be undone.

        Args:
            dest_hotkey: where it lands, moved and given in one step; by default it stays on `hotkey`.
        """
        ...

    async def free_balance(self) -> int | None:
        """Free TAO of this coldkey in rao, from which fees are paid; None on a chain without fees."""
        ...

    async def pools(self, block: int | None = None) -> dict[int, Pool]:
        """The pools of all subnets by netuid, at one block; a chain without pools has none."""
        ...

    async def stake_moves(self, from_block: int, to_block: int) -> list[StakeMove]:
        """What this coldkey moved and transferred in these blocks, both included, in order: what became of a write
        whose fate is unknown.

        Raises:
            ChainError: also when the node no longer has one of these blocks.
        """
        ...

    async def serve(self, host: str, port: int) -> WriteOutcome:
        """Publish where this hotkey's server is reached.

        Args:
            host: an IPv4 or IPv6 address, not a name.
            port: 1 to 65535.
        """
        ...


async def vector_in_force(chain: Chain, weights: Weights, mechid: int = 0) -> WriteOutcome:
    """What became of weights that were set: under commit-reveal an accepted commit may still be dropped at its reveal.

    Args:
        weights: as given to the last `set_weights` that was ok.

    Returns:
        ok when exactly these weights are in force for this hotkey; `WAIT_BLOCKS` while a commit is still to be
        revealed; else `NotInForce`: the commit failed at its reveal (stake, permit or version key changed, or it
        expired), or another vector replaced it.

    Raises:
        ChainError: the chain could not be read.
    """
    params = await chain.weight_params(chain.hotkey, mechid)  # before the weights: a reveal in between is then seen
    metagraph = await chain.metagraph()
    me = metagraph.by_hotkey(chain.hotkey)
    if me is None:
        name, detail = "HotKeyNotRegisteredInSubNet", f"hotkey {chain.hotkey} is not registered any more"
        return WriteOutcome(False, WriteCode.NOT_REGISTERED, name, Next.NOTHING, f"{name}: {detail}", metagraph.block)
    stored = await chain.weights_of(me.uid, mechid)
    if stored == u16_weights(weights):
        return WriteOutcome(True, WriteCode.OK, "", Next.NOTHING, "", metagraph.block)
    if params.unrevealed_commits:
        due = (await chain.epoch()).next_epoch_block or metagraph.block
        detail = f"NotRevealed: {params.unrevealed_commits} commits are still to be revealed"
        wait = max(1, due - metagraph.block)
        return WriteOutcome(False, WriteCode.TOO_EARLY, "NotRevealed", Next.WAIT_BLOCKS, detail, metagraph.block, wait)
    detail = f"NotInForce: uid {me.uid} has {len(stored)} other weights; look at its stake, permit and version key"
    return WriteOutcome(False, WriteCode.UNKNOWN, "NotInForce", Next.NOTHING, detail, metagraph.block)


# ---------------------------------------------------------------------------------------------------------------------
# Keys


@dataclass(frozen=True, slots=True)
class Wallet:
    """A participant's keys, unlocked.

    Attributes:
        hotkey: sr25519 `Keypair`; signs requests, answers, weights and serving.
        coldkey_address: ss58 of the coldkey.
        coldkey: `Keypair` that moves stake; None unless it was asked for.
    """

    hotkey: Any = field(repr=False)
    coldkey_address: str
    coldkey: Any = field(default=None, repr=False)


def load_wallet(name: str, hotkey: str, path: str, password: str | None = None, need_coldkey: bool = False) -> Wallet:
    """Read a wallet of the usual layout (`PATH/NAME/hotkeys/HOTKEY`); never asks at the terminal.

    Decrypting takes a second or more for each key, by design: call it before the event loop's work begins.

    Args:
        name, hotkey: of the wallet and of its hotkey, as `btcli wallet list` shows them.
        path: the folder of all wallets.
        password: for those of the needed keys that are encrypted.
        need_coldkey: unlock the coldkey too; without it only its public file is read.

    Raises:
        ChainError: a file is missing or broken, or the password is missing or wrong. It never shows the password.
    """
    try:
        wallet = bt.Wallet(name, hotkey, path)
    except ValueError as error:
        raise ChainError(f"wallet {name}: {error}") from None
    hot = _keypair(wallet.hotkey_file, password)
    if hot.crypto_type != CRYPTO_SR25519:
        raise ChainError(f"{wallet.hotkey_file.path}: not an sr25519 key; create the hotkey with btcli's defaults")
    if need_coldkey:
        cold = _keypair(wallet.coldkey_file, password)
        return Wallet(hot, cold.ss58_address, cold)
    return Wallet(hot, _keypair(wallet.coldkeypub_file, None).ss58_address)


def _keypair(file: Keyfile, password: str | None) -> Any:
    try:
        if file.is_encrypted() and not password:  # the SDK would ask at the terminal
            raise ChainError(f"{file.path} is encrypted; give its password (environment variable, file or command)")
        return file.get_keypair(password)
    except FileNotFoundError:
        raise ChainError(f"no key file {file.path}; name the wallet, its hotkey and their folder as they are") from None
    except WrongPasswordError:
        raise ChainError(f"wrong password for {file.path}") from None
    except (OSError, KeyfileError, ValueError) as error:
        raise ChainError(f"{file.path}: {_one_line(error)}") from None


def check_address(text: str) -> str:
    """The text itself if it is an ss58 address as Bittensor writes them (format 42, right checksum).

    Raises:
        ChainError: it is not; the message says why.
    """
    try:
        if not re.fullmatch("[1-9A-HJ-NP-Za-km-z]{48}", text):  # decoding longer ones costs time squared
            raise ValueError("48 characters of base 58 are expected")
        if ss58_encode(ss58_decode(text), 42) != text:
            raise ValueError("the address is another network's")
    except ValueError as error:
        raise ChainError(f"{text[:64]!r} is no ss58 address: {error}") from None
    return text


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or "no detail"
    return f"{type(error).__name__}: {text[:MAX_DETAIL_CHARS]}"


def _stake_move(block: int, record: Mapping[str, Any], netuid: int, coldkey: str) -> StakeMove | None:
    """The move or transfer within the subnet by this coldkey that an event tells of, else None."""
    event = record.get("event") or record
    name, values = event.get("event_id"), event.get("attributes")
    if event.get("module_id") != "SubtensorModule" or not values:
        return None
    if name == "StakeMoved":
        owner, origin, origin_netuid, dest, dest_netuid, _ = values
        new_owner = owner
    elif name == "StakeTransferred":
        owner, new_owner, origin, origin_netuid, dest_netuid, _ = values
        dest = origin
    elif name == "StakeAndHotkeyTransferred":
        owner, new_owner = values["origin_coldkey"], values["destination_coldkey"]
        origin, dest = values["origin_hotkey"], values["destination_hotkey"]
        origin_netuid, dest_netuid = values["origin_netuid"], values["destination_netuid"]
    else:
        return None
    if owner != coldkey or not int(origin_netuid) == int(dest_netuid) == netuid:
        return None
    return StakeMove(f"{block}-{record.get('extrinsic_idx')}", block, origin, dest, new_owner)


# ---------------------------------------------------------------------------------------------------------------------
# BittensorChain

_SIGN_AGAIN = {"BadProof", "AncientBirthBlock", "Stale", "Future", "InvalidRevealRound"}
"""Refused at the door for what the signing adds (signature, era, nonce, reveal round): a new signature may do."""
_FATE_UNKNOWN = {"Dropped", "Invalid", "Usurped", "Retracted", "FinalityTimeout", "AlreadyImported"}
"""The pool took it and lost sight of it; another node may still bring it into a block."""


class _Refused(Exception):
    """Name of the chain's error, detail, and blocks to wait if waiting helps."""


class _Signer:
    """A key as the SDK takes it, noting whether it signed: before that, nothing can have reached the chain."""

    def __init__(self, key: Any):
        self.ss58_address, self.public_key, self.crypto_type = key.ss58_address, key.public_key, key.crypto_type
        self.signed, self._key = False, key

    def sign(self, payload: bytes) -> bytes:
        self.signed = True
        return self._key.sign(payload)


@dataclass(slots=True)
class _Line:
    """One client: the task that opens it, and how many calls are using it."""

    dialing: asyncio.Task
    users: int = 0
    given_up: bool = False


class BittensorChain:
    """A subnet of a Bittensor network through the SDK's `Client`. Follows `chain.Chain`.

    One client: all calls of a process share it (make one `BittensorChain` a process). The SDK itself reconnects for
    plain reads; when it gives up, or a deadline passes, the client is closed after its last call and the next call
    opens another. Writes go one after the other, so that nonces stay in order.

    Writes wait until they are final. A write fails in one of three ways: before the key signed, it certainly did not
    happen; refused by the chain, it did not either; after signing without a word from the chain its fate is unknown,
    until so many blocks have passed (the outcome's `wait_blocks`) that it can no longer land. What the chain would
    refuse only later, when a commit is revealed, is checked before: stake, permit, version key, lengths.
    """

    def __init__(self, make_client: Callable[[], Any], netuid: int, wallet: Wallet, read_seconds, write_seconds):
        """Use `BittensorChain.open`."""
        self.hotkey, self.coldkey = wallet.hotkey.ss58_address, wallet.coldkey_address
        self.netuid = netuid
        self._make_client, self._wallet = make_client, wallet
        self._read_seconds, self._write_seconds = read_seconds, write_seconds
        self._line: _Line | None = None
        self._closing: set[asyncio.Task] = set()
        self._writing = asyncio.Lock()
        self._head = 0

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        *,
        network: str = "finney",
        endpoint: str | None = None,
        netuid: int,
        wallet: Wallet,
        deadline_seconds: float = READ_SECONDS,
        write_deadline_seconds: float = WRITE_SECONDS,
        substrate: Callable[[], Any] | None = None,
    ) -> AsyncIterator[BittensorChain]:
        """Connect, and hang up at the end.

        Args:
            network: `finney`, `test`, `local`; with the SDK's public endpoints and their fallbacks.
            endpoint: `ws://` or `wss://` of one node, instead of the network's.
            netuid: the subnet.
            wallet: from `load_wallet`; without its coldkey, stake moves are refused.
            deadline_seconds, write_deadline_seconds: total, of one read and of one write.
            substrate: opens another backend of the SDK's `Substrate` protocol for each client: for tests.

        Raises:
            ChainError: no such network, or no answer.
        """

        def make_client() -> Any:
            if substrate:
                return bt.Client(network, substrate=substrate())
            if endpoint:
                return bt.Client(endpoint, fallback_endpoints=[], archive_endpoints=[])
            return bt.Client(network)

        if endpoint and not endpoint.startswith(("ws://", "wss://")):  # it may hold an access token: not shown
            raise ChainError("the endpoint does not begin with ws:// or wss://")
        if not endpoint and network not in NETWORKS:
            raise ChainError(f"no network {network!r}; it is one of {', '.join(NETWORKS)}, or give an endpoint")
        chain = cls(make_client, netuid, wallet, deadline_seconds, write_deadline_seconds)
        try:
            await chain.block()
            yield chain
        finally:
            chain._give_up(chain._line)
            if chain._closing:
                await asyncio.wait(chain._closing, timeout=2 * CLOSE_SECONDS)

    # -- reads

    async def block(self) -> int:
        async def read(client: Any) -> int:
            return await client.block()

        self._head = max(self._head, block := await self._read("block", read))
        return block

    async def metagraph(self, block: int | None = None) -> Metagraph:
        async def read(client: Any) -> Metagraph:
            return await self._metagraph(await client.at(block))

        return await self._read("metagraph", read)

    async def epoch(self) -> EpochInfo:
        async def read(client: Any) -> EpochInfo:
            at = await client.at()
            last, tempo, following = await asyncio.gather(
                at.query(bt.storage.SubtensorModule.LastEpochBlock, [self.netuid]),
                at.query(bt.storage.SubtensorModule.Tempo, [self.netuid]),
                at.epochs.next_epoch_start_block(netuid=self.netuid),
            )
            return EpochInfo(int(last or 0), int(tempo or 0), following if tempo else None)

        return await self._read("epoch", read)

    async def weight_params(self, hotkey: str, mechid: int = 0) -> WeightParams:
        async def read(client: Any) -> WeightParams:
            params = await self._weight_params(client, hotkey, mechid)
            if not params.commit_reveal:
                return params
            epochs = await client.weights.timelocked_weight_commits(netuid=self.netuid, mechid=mechid)
            unrevealed = sum(commit["hotkey"] == hotkey for commits in epochs.values() for commit in commits)
            return replace(params, unrevealed_commits=unrevealed)

        return await self._read("weight parameters", read)

    async def weights_of(self, uid: int, mechid: int = 0) -> dict[int, int]:
        async def read(client: Any) -> dict[int, int]:
            row = await client.query(bt.storage.SubtensorModule.Weights, [self._index(mechid), uid])
            return {int(target): int(weight) for target, weight in sorted(row or []) if weight}

        return await self._read("weights", read)

    async def stake(self, hotkey: str, coldkey: str) -> int:
        async def read(client: Any) -> int:
            return (await client.staking.get(coldkey, hotkey, self.netuid)).rao

        return await self._read("stake", read)

    async def stake_moves(self, from_block: int, to_block: int) -> list[StakeMove]:
        """See `chain.Chain.stake_moves`. Two requests a block; a node that prunes has the last 256, an archive has all.

        Source: subtensor's events; those of older runtimes name no second hotkey in a transfer.
        """
        found = []
        for number in range(from_block, to_block + 1):

            async def read(client: Any, number: int = number) -> list:
                return await client.query(bt.storage.System.Events, [], block=number)

            for record in await self._read(f"events of block {number}", read) or ():
                if move := _stake_move(number, record, self.netuid, self.coldkey):
                    found.append(move)
        return found

    async def free_balance(self) -> int:
        async def read(client: Any) -> int:
            return (await client.balances.get(self.coldkey)).rao

        return await self._read("balance", read)

    async def pools(self, block: int | None = None) -> dict[int, Pool]:
        async def read(client: Any) -> dict[int, Pool]:
            at = await client.at(block)
            subnets, prices = await asyncio.gather(
                at.runtime(bt.runtime_api.SubnetInfoRuntimeApi.get_all_dynamic_info, []),
                at.runtime(bt.runtime_api.SwapRuntimeApi.current_alpha_price_all, []),
            )
            price_rao = {int(price["netuid"]): int(price["price"]) for price in prices}
            pools = [
                Pool(
                    netuid=int(info["netuid"]),
                    block=at.block,
                    price_rao=price_rao[int(info["netuid"])],
                    moving_price=Fraction(int(info["moving_price"]["bits"]), 2**32),  # I96F32
                    tao_in_rao=int(info["tao_in"]),
                    alpha_in_rao=int(info["alpha_in"]),
                    alpha_out_rao=int(info["alpha_out"]),
                )
                for info in subnets
                if info is not None and int(info["netuid"])  # netuid 0 is TAO itself
            ]
            return {pool.netuid: pool for pool in pools}

        return await self._read("pools", read)

    # -- writes

    async def set_weights(self, weights: Weights, version_key: int, mechid: int = 0) -> WriteOutcome:
        """See `chain.Chain.set_weights`. Refused before sending, with the chain's names, in the chain's order:

        `ValueError` (numbers that make no vector), `MechanismDoesNotExist`, `HotKeyNotRegisteredInSubNet`,
        `NotEnoughStakeToSetWeights`, `IncorrectWeightVersionKey`, `SettingWeightsTooFast` (`CommittingWeightsTooFast`),
        `NeuronNoValidatorPermit`, `UidVecContainInvalidOne`, `WeightVecLengthIsLow`, `MaxWeightExceeded` (the SDK alone
        would clip, and another vector than ours would be in force).

        Source: subtensor `do_set_weights`, `do_commit_timelocked_weights`.
        """

        async def prepare(client: Any) -> bt.SetWeights:
            try:
                vector = u16_weights(weights)
            except ValueError as error:
                raise _Refused("ValueError", error) from None
            await self._check_weights(client, vector, version_key, mechid)
            return bt.SetWeights(self.netuid, weights=vector, mechid=mechid, version_key=version_key)

        return await self._write(prepare)

    async def serve(self, host: str, port: int) -> WriteOutcome:
        """See `chain.Chain.serve`. An address that is published already is not sent again: ok at once.

        Refused before sending: `InvalidIpAddress`, `InvalidPort`, `HotKeyNotRegisteredInNetwork`.
        """

        async def prepare(client: Any) -> bt.ServeAxon | None:
            try:
                ip = ipaddress.ip_address(host)
            except ValueError:
                raise _Refused("InvalidIpAddress", f"{host!r} is not an IP address") from None
            if not 1 <= port <= U16_MAX:
                raise _Refused("InvalidPort", f"port {port}, 1 to {U16_MAX}")
            me = (await self._metagraph(await client.at())).by_hotkey(self.hotkey)
            if me is None:
                raise _Refused("HotKeyNotRegisteredInNetwork", f"hotkey {self.hotkey} is not registered")
            if me.address == (f"[{ip}]:{port}" if ip.version == 6 else f"{ip}:{port}"):
                return None
            return bt.ServeAxon(self.netuid, str(ip), port)

        return await self._write(prepare, limit=bt.storage.SubtensorModule.ServingRateLimit)

    async def move_stake(self, origin_hotkey: str, dest_hotkey: str, amount_rao: int) -> WriteOutcome:
        """See `chain.Chain.move_stake`; refused before sending as `transfer_stake`."""

        async def prepare(client: Any) -> bt.MoveStake:
            amount = await self._amount(client, origin_hotkey, amount_rao)
            return bt.MoveStake(origin_hotkey, self.netuid, check_address(dest_hotkey), self.netuid, amount)

        return await self._write(prepare, coldkey=True)

    async def transfer_stake(
        self, hotkey: str, dest_coldkey: str, amount_rao: int, dest_hotkey: str | None = None
    ) -> WriteOutcome:
        """See `chain.Chain.transfer_stake`. Refused before sending: `NotEnoughStakeToWithdraw`, `AmountTooLow` (not
        above 0), no coldkey in the wallet, a wrong address."""

        async def prepare(client: Any) -> bt.TransferStake:
            amount = await self._amount(client, hotkey, amount_rao)
            landing = check_address(dest_hotkey) if dest_hotkey else None
            return bt.TransferStake(check_address(dest_coldkey), hotkey, self.netuid, self.netuid, amount, landing)

        return await self._write(prepare, coldkey=True)

    # -- inside one call

    def _index(self, mechid: int) -> int:
        return mechid * MECHANISM_STRIDE + self.netuid

    async def _metagraph(self, at: Any) -> Metagraph:
        graph = await at.subnets.metagraph(self.netuid, commitments=False)
        if graph is None:
            raise NoSuchSubnet(f"netuid {self.netuid} does not exist on this network")
        self._head = max(self._head, graph.block)
        return Metagraph(
            netuid=self.netuid,
            block=graph.block,
            tempo=graph.tempo,
            owner_hotkey=graph.owner_hotkey,
            owner_coldkey=graph.owner_coldkey,
            neurons=tuple(
                Neuron(
                    uid=neuron.uid,
                    hotkey=neuron.hotkey,
                    coldkey=neuron.coldkey,
                    permit=neuron.validator_permit,
                    stake_rao=neuron.total_stake.rao,
                    address=neuron.axon,
                    registered_block=neuron.block_at_registration,
                    last_update_block=neuron.last_update,
                )
                for neuron in graph.neurons
            ),
        )

    async def _weight_params(self, client: Any, hotkey: str, mechid: int) -> WeightParams:
        storage, index = bt.storage.SubtensorModule, self._index(mechid)
        limit, fewest, largest, key, hidden, uid, updates = await asyncio.gather(
            client.query(storage.WeightsSetRateLimit, [self.netuid]),
            client.query(storage.MinAllowedWeights, [self.netuid]),
            client.query(storage.MaxWeightsLimit, [self.netuid]),
            client.query(storage.WeightsVersionKey, [self.netuid]),
            client.query(storage.CommitRevealWeightsEnabled, [self.netuid]),
            client.query(storage.Uids, [self.netuid, hotkey]),
            client.query(storage.LastUpdate, [index]),
        )
        if uid is not None:
            updates = [*(updates or ()), *[0] * (int(uid) + 1)]  # a mechanism just added has no list yet: 0 is never
        return WeightParams(
            rate_limit_blocks=int(limit or 0),
            min_allowed_weights=int(fewest or 0),
            max_weight=U16_MAX if largest is None else int(largest),
            version_key=int(key or 0),
            commit_reveal=bool(hidden),
            last_update_block=None if uid is None else int(updates[int(uid)]),
        )

    async def _check_weights(self, client: Any, vector: dict[int, int], version_key: int, mechid: int) -> None:
        """Raise `_Refused` for what the chain would refuse, now or at the reveal."""
        storage = bt.storage.SubtensorModule
        count, threshold, graph = await asyncio.gather(
            client.query(storage.MechanismCountCurrent, [self.netuid]),
            client.query(storage.StakeThreshold),
            self._metagraph(await client.at()),
        )
        if not 0 <= mechid < (count := int(count or 1)):
            raise _Refused("MechanismDoesNotExist", f"mechid {mechid}, the subnet has {count}")
        params, me = await self._weight_params(client, self.hotkey, mechid), graph.by_hotkey(self.hotkey)
        if me is None or params.last_update_block is None:
            raise _Refused("HotKeyNotRegisteredInSubNet", f"hotkey {self.hotkey} on netuid {self.netuid}")
        is_owner, only_itself = self.hotkey == graph.owner_hotkey, list(vector) == [me.uid]
        if me.stake_rao < int(threshold or 0) and not is_owner:
            raise _Refused("NotEnoughStakeToSetWeights", f"stake {me.stake_rao} rao, at least {threshold}")
        if version_key < params.version_key:
            raise _Refused("IncorrectWeightVersionKey", f"version key {version_key}, at least {params.version_key}")
        wait = params.last_update_block + params.rate_limit_blocks - graph.block if params.last_update_block else 0
        if wait > 0:
            name = "CommittingWeightsTooFast" if params.commit_reveal else "SettingWeightsTooFast"
            raise _Refused(name, f"again in {wait} blocks", wait)
        if not me.permit and not only_itself and not is_owner:
            raise _Refused("NeuronNoValidatorPermit", f"uid {me.uid} has no validator permit")
        if unknown := vector.keys() - {neuron.uid for neuron in graph.neurons}:
            raise _Refused("UidVecContainInvalidOne", f"uid {min(unknown)}, the subnet has {len(graph.neurons)} uids")
        if len(vector) < params.min_allowed_weights and not only_itself:
            detail = f"{len(vector)} non-zero weights, at least {params.min_allowed_weights}"
            raise _Refused("WeightVecLengthIsLow", detail)
        largest, total = max(vector.values()), sum(vector.values())
        if largest * U16_MAX > params.max_weight * total and not only_itself:
            detail = f"a part of {largest}/{total}, at most {params.max_weight}/{U16_MAX}"
            raise _Refused("MaxWeightExceeded", detail)

    async def _amount(self, client: Any, hotkey: str, amount_rao: int) -> Any:
        held = (await client.staking.get(self.coldkey, check_address(hotkey), self.netuid)).rao
        if amount_rao <= 0:
            raise _Refused("AmountTooLow", f"{amount_rao} rao")
        if amount_rao > held:
            raise _Refused("NotEnoughStakeToWithdraw", f"{amount_rao} rao of {held} on {hotkey}")
        return bt.Balance.from_rao(amount_rao, self.netuid)

    async def _read(self, what: str, read: Callable[[Any], Awaitable[T]]) -> T:
        try:
            async with asyncio.timeout(self._read_seconds), self._client() as client:
                return await read(client)
        except ChainError:
            raise
        except TimeoutError:
            raise ChainError(f"{what}: no answer from the chain within {self._read_seconds:g} s") from None
        except Exception as error:  # the SDK's own errors, and its plain ValueErrors where the node is older than it
            raise ChainError(f"{what}: {_one_line(error)}") from error

    async def _write(
        self, prepare: Callable[[Any], Awaitable[Any]], *, coldkey: bool = False, limit: Any = None
    ) -> WriteOutcome:
        """Prepare an intent (None: nothing to do), sign and submit it, and say how that ended.

        Args:
            coldkey: it signs, not the hotkey.
            limit: the storage item whose blocks are to be waited after "too fast", 1 by default.
        """
        signer, wait = None, 1
        try:
            async with asyncio.timeout(self._write_seconds), self._writing, self._client() as client:
                self._head = max(self._head, await client.block())
                if coldkey and self._wallet.coldkey is None:
                    raise _Refused("ColdkeyLocked", "the wallet was opened without its coldkey")
                intent = await prepare(client)
                if intent is None:
                    return WriteOutcome(True, WriteCode.OK, "", Next.NOTHING, "already so", self._head)
                if limit:
                    wait = max(1, int(await client.query(limit, [self.netuid]) or 0))
                signer = _Signer(self._wallet.coldkey if coldkey else self._wallet.hotkey)
                policy = bt.Policy(max_fee_tao=MAX_FEE_TAO, allowed_netuids=[self.netuid])
                result = await client.execute(intent, signer, policy=policy, period=ERA_BLOCKS)
        except _Refused as refusal:
            name, detail, *blocks = refusal.args
            code = _OWN_REFUSALS.get(name) or _code(bt.ChainError("", name))
            following = Next.WAIT_BLOCKS if blocks else Next.NOTHING
            return WriteOutcome(False, code, name, following, f"{name}: {detail}", self._head, *blocks)
        except Exception as error:
            return self._failed(error, signer is None or not signer.signed, wait)
        if result.extrinsic_id:
            self._head = max(self._head, int(result.extrinsic_id.partition("-")[0]))
        if result.success:
            drand_round = result.data.get("reveal_round")
            detail = f"committed, to be revealed in drand round {drand_round}" if drand_round else ""
            return WriteOutcome(True, WriteCode.OK, "", Next.NOTHING, detail, self._head)
        error = result.error or bt.ChainError(result.message)
        refused = error.name not in _FATE_UNKNOWN and error.code is not bt.ErrorCode.UNKNOWN
        return self._failed(error, refused or result.block_hash is not None, wait)

    def _failed(self, error: Exception, certain: bool, wait_blocks: int) -> WriteOutcome:
        """The outcome of a write that failed.

        Args:
            certain: it was certainly not applied: not signed, refused at the door, or failed inside a block.
            wait_blocks: what "too fast" asks for.
        """
        code, name = _code(error), (isinstance(error, bt.ChainError) and error.name) or type(error).__name__
        detail = f"no answer within {self._write_seconds:g} s" if isinstance(error, TimeoutError) else str(error)
        detail = " ".join(f"{name}: {detail}".split())[:MAX_DETAIL_CHARS]
        following, wait = Next.NOTHING, 0
        if not certain:
            late = math.ceil(self._write_seconds / BLOCK_SECONDS)  # it may have been signed long after `_head`
            following, wait = Next.READ_STATE_FIRST, ERA_BLOCKS + late
        elif isinstance(error, bt.RpcPolicyError):
            following, wait = Next.WAIT_BLOCKS, _blocks(error.retry_after)
        elif code is WriteCode.RATE_LIMITED or name == "ExhaustsResources":
            following, wait = Next.WAIT_BLOCKS, wait_blocks
        elif name in _SIGN_AGAIN or isinstance(error, _LOST) or "could not be estimated" in detail:
            following = Next.SIGN_AGAIN
        return WriteOutcome(False, code, name, following, detail, self._head, wait)

    # -- the one client

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[Any]:
        """The open client, or a new one; when it fails or does not answer in time, the next call dials anew."""
        if self._line is None:
            self._line = _Line(asyncio.create_task(self._dial()))
            self._line.dialing.add_done_callback(lambda task: task.cancelled() or task.exception())  # it is seen here
        line = self._line
        line.users += 1
        try:
            yield await asyncio.shield(line.dialing)  # a deadline stops the call, not the dialing: the SDK ends that
        except BaseException as error:
            dialed = line.dialing.done() and not line.dialing.cancelled()
            if dialed and (line.dialing.exception() or isinstance(error, (asyncio.CancelledError, *_LOST))):
                self._give_up(line)
            raise
        finally:
            line.users -= 1
            if line.given_up and not line.users:
                self._hang_up(line)

    async def _dial(self) -> Any:
        client = self._make_client()
        try:
            return await client.connect()
        except BaseException:
            await client.close()
            raise

    def _give_up(self, line: _Line | None) -> None:
        if line and not line.given_up:
            line.given_up, self._line = True, None if self._line is line else self._line
            if not line.users:
                self._hang_up(line)

    def _hang_up(self, line: _Line) -> None:
        async def close() -> None:
            with suppress(Exception):
                async with asyncio.timeout(CLOSE_SECONDS):
                    if line.dialing.done():
                        await line.dialing.result().close()
                    else:
                        line.dialing.cancel()

        task = asyncio.create_task(close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


_LOST = (bt.RpcConnectionError, bt.ConnectionNotReady, OSError, TimeoutError)
_OWN_REFUSALS = {"ValueError": WriteCode.INVALID_ARGUMENT, "ColdkeyLocked": WriteCode.NOT_AUTHORIZED}


def _code(error: Exception) -> WriteCode:
    """The kind of an exception: the SDK's code where it has one; an argument that it or we would not take."""
    if isinstance(error, bt.ChainError | bt.PolicyError):
        return next((known for known in WriteCode if known == error.code.value), WriteCode.UNKNOWN)
    invalid = isinstance(error, ChainError | bt.BittensorError) and not isinstance(error, _LOST)
    return WriteCode.INVALID_ARGUMENT if invalid else WriteCode.UNKNOWN


def _blocks(retry_after: str | None) -> int:
    """How many blocks an endpoint asks to stay away; a minute when it does not say, an hour at most."""
    seconds = float(retry_after) if re.fullmatch(r"[0-9]{1,9}", retry_after or "") else 60.0
    return max(1, math.ceil(min(seconds, 3600.0) / BLOCK_SECONDS))
