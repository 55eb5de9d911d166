"""`BittensorChain`: a subnet of a real network through the SDK (bittensor 11); no type of the SDK's passes.

Nothing to run here: `python -m pytest tests/test_chain.py` shows the protocol at work on both chains.
Read next: `wallets.py`, `local.py` (the embedded chain).
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from fractions import Fraction
from functools import partial
from typing import Any, NamedTuple, TypeVar

import bittensor as bt
from bittensor.settings import NETWORKS

from chain.base import (
    BLOCK_SECONDS,
    ERA_BLOCKS,
    U16_MAX,
    ChainError,
    ChainMistake,
    EpochInfo,
    Metagraph,
    Neuron,
    Next,
    NoSuchSubnet,
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
from chain.lines import LOST, Lines
from chain.wallets import Wallet, cause, check_address

MECHANISM_STRIDE = 4096  # a mechanism's weights are stored under mechid * 4096 + netuid (GLOBAL_MAX_SUBNET_COUNT)
READ_SECONDS, WRITE_SECONDS = 60.0, 180.0  # total deadlines; a write waits until it is final, three blocks or more
MAX_FEE_TAO = "0.01"  # no write may cost more

T = TypeVar("T")

_SIGN_AGAIN = {"BadProof", "AncientBirthBlock", "Stale", "Future", "InvalidRevealRound"}
"""Refused at the door for what the signing adds (signature, era, nonce, reveal round): a new signature may do."""
_FATE_UNKNOWN = {"Dropped", "Invalid", "Usurped", "Retracted", "FinalityTimeout", "AlreadyImported"}
"""The pool took it and lost sight of it; another node may still bring it into a block."""


class _Signer:
    """A key as the SDK takes it, noting whether it signed: before that, nothing can have reached the chain."""

    def __init__(self, key: Any):
        self.ss58_address, self.public_key, self.crypto_type = key.ss58_address, key.public_key, key.crypto_type
        self.signed, self._key = False, key

    def sign(self, payload: bytes) -> bytes:
        self.signed = True
        return self._key.sign(payload)


class BittensorChain:
    """A subnet of a Bittensor network through the SDK's `Client`. Follows `Chain`.

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
        self._lines, self._wallet = Lines(make_client), wallet
        self._read_seconds, self._write_seconds = read_seconds, write_seconds
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
            wallet: from `load_wallet`; without its coldkey, stake moves are refused.
            deadline_seconds, write_deadline_seconds: total, of one read and of one write.
            substrate: opens another backend of the SDK's `Substrate` protocol for each client: for tests.
        """

        def make_client() -> Any:
            if substrate:
                return bt.Client(network, substrate=substrate())
            if endpoint:
                return bt.Client(endpoint, fallback_endpoints=[], archive_endpoints=[])
            return bt.Client(network)

        if endpoint and not endpoint.startswith(("ws://", "wss://")):  # it may hold an access token: not shown
            raise ChainMistake("the endpoint does not begin with ws:// or wss://")
        if not endpoint and network not in NETWORKS:
            raise ChainMistake(f"no network {network!r}; it is one of {', '.join(NETWORKS)}, or give an endpoint")
        chain = cls(make_client, netuid, wallet, deadline_seconds, write_deadline_seconds)
        try:
            await chain.block()
            yield chain
        finally:
            await chain._lines.close()

    # -- reads

    async def block(self) -> int:
        self._head = max(self._head, block := await self._read("block", lambda client: client.block()))
        return block

    async def metagraph(self, block: int | None = None) -> Metagraph:
        async def read(client: Any) -> Metagraph:
            return await self._metagraph(await client.at(block))

        return await self._read("metagraph", read)

    async def epoch(self) -> EpochInfo:
        async def read(client: Any) -> EpochInfo:
            at, storage = await client.at(), bt.storage.SubtensorModule
            last, tempo, following = await asyncio.gather(
                at.query(storage.LastEpochBlock, [self.netuid]),
                at.query(storage.Tempo, [self.netuid]),
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
        key = [self._index(mechid), uid]
        row = await self._read("weights", lambda client: client.query(bt.storage.SubtensorModule.Weights, key))
        return {int(target): int(weight) for target, weight in sorted(row or []) if weight}

    async def stake(self, hotkey: str, coldkey: str) -> int:
        return (await self._read("stake", lambda client: client.staking.get(coldkey, hotkey, self.netuid))).rao

    async def stake_params(self) -> StakeParams:
        return await self._read("stake parameters", self._stake_params)

    async def stake_moves(self, from_block: int, to_block: int) -> list[StakeMove]:
        """See `Chain.stake_moves`. Two requests a block; a node that prunes has the last 256, an archive has all.

        Source: subtensor's events; those of older runtimes name no second hotkey in a transfer.
        """
        found = []
        for number in range(from_block, to_block + 1):
            asked = partial(_events, number=number)
            records = await self._read(f"events of block {number}", asked) or ()
            found += [stake_move(number, record, self.netuid, self.coldkey) for record in records]
        return [move for move in found if move]

    async def free_balance(self) -> int:
        return (await self._read("balance", lambda client: client.balances.get(self.coldkey))).rao

    async def pools(self, block: int | None = None) -> dict[int, Pool]:
        async def read(client: Any) -> dict[int, Pool]:
            at = await client.at(block)
            subnets, prices = await asyncio.gather(
                at.runtime(bt.runtime_api.SubnetInfoRuntimeApi.get_all_dynamic_info, []),
                at.runtime(bt.runtime_api.SwapRuntimeApi.current_alpha_price_all, []),
            )
            price_rao = {int(price["netuid"]): int(price["price"]) for price in prices}
            pools = {}
            for info in subnets:
                if info is not None and (netuid := int(info["netuid"])):  # netuid 0 is TAO itself
                    moving = Fraction(int(info["moving_price"]["bits"]), 2**32)  # I96F32
                    sides = [int(info[side]) for side in ("tao_in", "alpha_in", "alpha_out")]
                    pools[netuid] = Pool(netuid, at.block, price_rao[netuid], moving, *sides)
            return pools

        return await self._read("pools", read)

    # -- writes

    async def set_weights(self, weights: Weights, version_key: int, mechid: int = 0) -> WriteOutcome:
        async def prepare(client: Any) -> bt.SetWeights:
            vector = await self._checked(client, weights, version_key, mechid)
            return _SetWeights(self.netuid, weights=vector, mechid=mechid, version_key=version_key)

        return await self._write(prepare)

    async def serve(self, host: str, port: int) -> WriteOutcome:
        """See `Chain.serve`. An address that is published already is not sent again: ok at once."""

        async def prepare(client: Any) -> bt.ServeAxon | None:
            address, already = served_address(await self._metagraph(await client.at()), self.hotkey, host, port)
            return None if already else bt.ServeAxon(self.netuid, address.rpartition(":")[0].strip("[]"), port)

        return await self._write(prepare, limit=bt.storage.SubtensorModule.ServingRateLimit)

    async def move_stake(self, origin_hotkey: str, dest_hotkey: str, amount_rao: int) -> WriteOutcome:
        async def prepare(client: Any) -> bt.MoveStake:
            amount = await self._amount(client, origin_hotkey, amount_rao, transfer=False)
            return bt.MoveStake(origin_hotkey, self.netuid, check_address(dest_hotkey), self.netuid, amount)

        return await self._write(prepare, coldkey=True)

    async def transfer_stake(
        self, hotkey: str, dest_coldkey: str, amount_rao: int, dest_hotkey: str | None = None
    ) -> WriteOutcome:
        async def prepare(client: Any) -> bt.TransferStake:
            amount = await self._amount(client, hotkey, amount_rao, transfer=True)
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
        neurons = [
            Neuron(n.uid, n.hotkey, n.coldkey, n.validator_permit, n.total_stake.rao, n.axon, n.block_at_registration,
                   n.last_update)
            for n in graph.neurons
        ]  # fmt: skip
        owner = graph.owner_hotkey, graph.owner_coldkey
        return Metagraph(self.netuid, graph.block, graph.tempo, *owner, tuple(neurons))

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

    async def _checked(self, client: Any, weights: Weights, version_key: int, mechid: int) -> dict[int, int]:
        storage = bt.storage.SubtensorModule
        count, threshold, graph = await asyncio.gather(
            client.query(storage.MechanismCountCurrent, [self.netuid]),
            client.query(storage.StakeThreshold),
            self._metagraph(await client.at()),
        )
        vector = checked_vector(weights, mechid, int(count or 1))
        params = await self._weight_params(client, self.hotkey, mechid)
        check_weights(vector, version_key, params, graph, self.hotkey, int(threshold or 0))
        return vector

    async def _stake_params(self, client: Any) -> StakeParams:
        storage, api = bt.storage.SubtensorModule, bt.runtime_api.SwapRuntimeApi
        moves, transfers, auto, price_rao = await asyncio.gather(
            client.query(storage.SubtokenEnabled, [self.netuid]),
            client.query(storage.TransferToggle, [self.netuid]),
            client.query(storage.AutoStakeDestination, [self.coldkey, self.netuid]),
            client.runtime(api.current_alpha_price, [self.netuid]),
        )
        return StakeParams(bool(moves), bool(transfers), int(price_rao), auto or None)

    async def _amount(self, client: Any, hotkey: str, amount_rao: int, transfer: bool) -> Any:
        held = (await client.staking.get(self.coldkey, check_address(hotkey), self.netuid)).rao
        check_move(await self._stake_params(client), transfer, hotkey, amount_rao, held)
        return bt.Balance.from_rao(amount_rao, self.netuid)

    async def _read(self, what: str, read: Callable[[Any], Awaitable[T]]) -> T:
        try:
            async with asyncio.timeout(self._read_seconds), self._lines.client() as client:
                return await read(client)
        except ChainError:
            raise
        except TimeoutError:
            raise ChainError(f"{what}: no answer from the chain within {self._read_seconds:g} s") from None
        except Exception as error:  # the SDK's own errors, and its plain ValueErrors where the node is older than it
            raise ChainError(f"{what}: {cause(error)}") from error

    async def _write(
        self, prepare: Callable[[Any], Awaitable[Any]], *, coldkey: bool = False, limit: Any = None
    ) -> WriteOutcome:
        """Prepare an intent (None: nothing to do), sign and submit it, and say how that ended.

        `limit` is the storage item whose blocks are to be waited after "too fast", 1 without it.
        """
        signer, wait = None, 1
        try:
            async with asyncio.timeout(self._write_seconds), self._writing, self._lines.client() as client:
                self._head = max(self._head, await client.block())
                if coldkey and self._wallet.coldkey is None:
                    raise Refused("ColdkeyLocked", "the wallet was opened without its coldkey")
                intent = await prepare(client)
                if intent is None:
                    return done(self._head, "already so")
                if limit:
                    wait = max(1, int(await client.query(limit, [self.netuid]) or 0))
                signer = _Signer(self._wallet.coldkey if coldkey else self._wallet.hotkey)
                policy = bt.Policy(max_fee_tao=MAX_FEE_TAO, allowed_netuids=[self.netuid])
                result = await client.execute(intent, signer, policy=policy, period=ERA_BLOCKS)
        except Refused as refused:
            return refused.outcome(self._head)
        except Exception as error:
            return self._failed(error, signer is None or not signer.signed, wait)
        if result.extrinsic_id:
            self._head = max(self._head, int(result.extrinsic_id.partition("-")[0]))
        if result.success:
            drand_round = result.data.get("reveal_round")
            detail = f"committed, to be revealed in drand round {drand_round}" if drand_round else ""
            return done(self._head, detail)
        error = result.error or bt.ChainError(result.message)
        at_the_door = error.name not in _FATE_UNKNOWN and error.code is not bt.ErrorCode.UNKNOWN
        paid = result.block_hash is not None
        return replace(self._failed(error, at_the_door or paid, wait), paid=paid)

    def _failed(self, error: Exception, certain: bool, wait_blocks: int) -> WriteOutcome:
        """How it ended; `certain`: not applied, as it was not signed, refused at the door, or failed inside a block."""
        code, name = _code(error), (isinstance(error, bt.ChainError) and error.name) or type(error).__name__
        detail = f"no answer within {self._write_seconds:g} s" if isinstance(error, TimeoutError) else cause(error)
        following, wait = Next.NOTHING, 0
        if not certain:
            late = math.ceil(self._write_seconds / BLOCK_SECONDS)  # it may have been signed long after `_head`
            following, wait = Next.READ_STATE_FIRST, ERA_BLOCKS + late
        elif isinstance(error, bt.RpcPolicyError):
            following, wait = Next.WAIT_BLOCKS, _blocks(error.retry_after)
        elif code is WriteCode.RATE_LIMITED or name == "ExhaustsResources":
            following, wait = Next.WAIT_BLOCKS, wait_blocks
        elif name in _SIGN_AGAIN or isinstance(error, LOST) or "could not be estimated" in str(error):
            following = Next.SIGN_AGAIN
        return WriteOutcome(False, code, name, following, f"{name}: {detail}", self._head, wait)


class _SetWeights(bt.SetWeights):
    """The SDK's, which counts by `MinAllowedWeights` alone: `check_weights` counts as the chain, no more than uids."""

    async def build(self, substrate: Any, wallet: Any) -> Any:
        return await super().build(_Uncounted(substrate), wallet)


class _Uncounted(NamedTuple):
    """A node whose `MinAllowedWeights` is 0."""

    node: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self.node, name)

    async def query(self, pallet: str, item: str, *rest: Any, **options: Any) -> Any:
        return 0 if item == "MinAllowedWeights" else await self.node.query(pallet, item, *rest, **options)


def _code(error: Exception) -> WriteCode:
    """The kind of an exception: the SDK's code where it has one; an argument that it or we would not take."""
    if isinstance(error, bt.ChainError | bt.PolicyError):
        return next((known for known in WriteCode if known == error.code.value), WriteCode.UNKNOWN)
    invalid = isinstance(error, ChainError | bt.BittensorError) and not isinstance(error, LOST)
    return WriteCode.INVALID_ARGUMENT if invalid else WriteCode.UNKNOWN


def _blocks(retry_after: str | None) -> int:
    """How many blocks an endpoint asks to stay away; a minute when it does not say, an hour at most."""
    seconds = float(retry_after) if re.fullmatch(r"[0-9]{1,9}", retry_after or "") else 60.0
    return max(1, math.ceil(min(seconds, 3600.0) / BLOCK_SECONDS))


async def _events(client: Any, number: int) -> list:
    return await client.query(bt.storage.System.Events, [], block=number)


def stake_move(block: int, record: Mapping[str, Any], netuid: int, coldkey: str) -> StakeMove | None:
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
