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
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from fractions import Fraction
from typing import Any, TypeVar

import bittensor as bt
from bittensor.settings import NETWORKS

from chain.base import (
    BLOCK_SECONDS,
    ERA_BLOCKS,
    U16_MAX,
    ChainError,
    EpochInfo,
    Metagraph,
    Neuron,
    Next,
    NoSuchSubnet,
    Pool,
    StakeMove,
    WeightParams,
    Weights,
    WriteCode,
    WriteOutcome,
    u16_weights,
)
from chain.lines import LOST, Lines
from chain.moves import stake_move
from chain.wallets import MAX_DETAIL_CHARS, Wallet, check_address, one_line

MECHANISM_STRIDE = 4096  # a mechanism's weights are stored under mechid * 4096 + netuid (GLOBAL_MAX_SUBNET_COUNT)
READ_SECONDS, WRITE_SECONDS = 60.0, 180.0  # total deadlines; a write waits until it is final, three blocks or more
MAX_FEE_TAO = "0.01"  # no write may cost more

T = TypeVar("T")


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
            await chain._lines.close()

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
                if move := stake_move(number, record, self.netuid, self.coldkey):
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
            async with asyncio.timeout(self._read_seconds), self._lines.client() as client:
                return await read(client)
        except ChainError:
            raise
        except TimeoutError:
            raise ChainError(f"{what}: no answer from the chain within {self._read_seconds:g} s") from None
        except Exception as error:  # the SDK's own errors, and its plain ValueErrors where the node is older than it
            raise ChainError(f"{what}: {one_line(error)}") from error

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
            async with asyncio.timeout(self._write_seconds), self._writing, self._lines.client() as client:
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
        elif name in _SIGN_AGAIN or isinstance(error, LOST) or "could not be estimated" in detail:
            following = Next.SIGN_AGAIN
        return WriteOutcome(False, code, name, following, detail, self._head, wait)


_OWN_REFUSALS = {"ValueError": WriteCode.INVALID_ARGUMENT, "ColdkeyLocked": WriteCode.NOT_AUTHORIZED}


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
