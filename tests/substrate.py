"""A small stateful fake of a Subtensor node, for the SDK's real `bittensor.Client`: what `BittensorChain` is tested on.

What it is: `Node`, one subnet as plain Python state with the chain's rules for weights (plain and timelocked commits),
permits, version key, rate limits, serving, stake moves, nonces and fees, read at any past block; and `FakeSubstrate`,
the SDK's own `RpcSubstrate` with the websocket replaced by calls into a `Node`, so that the SDK's client, intents,
preflights, commit encryption, signing and error translation are the real ones. Faults are put on demand.

What it is not: a chain. No runtime, metadata or SCALE: what a real node would encode otherwise goes unnoticed here
(`pytest -m localnet` is for that). No consensus, emission, forks or other subnets, and every extrinsic has a block of
its own. It cannot open a timelock either: `remember_commits` notes the plain vector while the SDK encrypts it. Storage
items and calls are those that SDK 11.3.0 uses; another one is a `ValueError`, as a node older than the SDK gives it.

Read first: `chain.py`. The rules are written from subtensor's error names and documents, apart from `local.py`.
"""

from __future__ import annotations

import asyncio
import copy
import ipaddress
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from types import SimpleNamespace
from typing import Any

import bittensor_core
from bittensor._generated.errors import ERRORS
from bittensor._substrate import RpcSubstrate
from bittensor._transport.contract import InclusionReport
from bittensor._transport.errors import MaxRetriesExceeded, RpcPolicyRejection, SubstrateRequestException
from bittensor.sp_core import ss58_decode, verify

U16_MAX, STRIDE, FEE_RAO, MAX_COMMITS = 65535, 4096, 124_414, 10
ERROR_NAMES = {info.name for info in ERRORS.values()}
IN_FLIGHT = (  # the SDK's words when a connection drops after a submission was sent
    "Connection dropped while an extrinsic submission was in flight; the transaction may already be in the pool or on"
    " chain. Verify chain state before retrying."
)


@dataclass(frozen=True)
class Rules:
    """The subnet's rules; names as in `local.Hyperparameters`, and what only the real chain has."""

    tempo: int = 360
    weights_rate_limit_blocks: int = 0
    min_allowed_weights: int = 1
    max_weight: int = U16_MAX
    version_key: int = 0
    max_validators: int = 64
    stake_threshold_rao: int = 1_000 * 10**9
    min_stake_move_rao: int = 2_000_000  # of TAO, at the pool's price
    alpha_price_rao: int = 30_000_000
    mechanism_count: int = 1
    commit_reveal: bool = False
    reveal_period_epochs: int = 1
    serving_rate_limit_blocks: int = 50
    transfers_allowed: bool = True
    subtoken_enabled: bool = True


@dataclass
class Uid:
    hotkey: str
    coldkey: str
    registered: int
    permit: bool = False
    axon: dict = field(default_factory=lambda: {"ip": 0, "port": 0, "ip_type": 0, "block": 0})


@dataclass
class Commit:
    hotkey: str
    block: int
    ciphertext: bytes
    drand_round: int


@dataclass
class State:
    """Everything of one block."""

    block: int
    rules: Rules
    owner: tuple[str, str]
    last_epoch: int
    epoch_index: int = 0
    uids: list[Uid] = field(default_factory=list)
    stakes: dict = field(default_factory=lambda: defaultdict(int))  # (hotkey, coldkey) -> rao
    hotkeys: dict = field(default_factory=dict)  # hotkey -> its coldkey
    auto_stake: dict = field(default_factory=dict)  # coldkey -> where what it mines is staked
    free: dict = field(default_factory=lambda: defaultdict(lambda: 10**9))  # coldkey -> rao
    nonces: dict = field(default_factory=lambda: defaultdict(int))
    weights: dict = field(default_factory=dict)  # (storage index, uid) -> [(uid, u16), ...]
    updates: dict = field(default_factory=dict)  # (storage index, uid) -> block
    commits: dict = field(default_factory=lambda: defaultdict(list))  # (storage index, epoch) -> [Commit, ...]
    events: list = field(default_factory=list)  # of this block, as the SDK decodes them

    def __deepcopy__(self, memo: dict) -> State:
        copied = {name: copy.copy(value) for name, value in vars(self).items()}
        copied["uids"] = [replace(uid) for uid in self.uids]
        copied["commits"] = defaultdict(list, {key: list(row) for key, row in self.commits.items()})
        return State(**copied)

    def uid_of(self, hotkey: str) -> int | None:
        return next((number for number, uid in enumerate(self.uids) if uid.hotkey == hotkey), None)

    def stake_of(self, hotkey: str) -> int:
        return sum(rao for (held_on, _), rao in self.stakes.items() if held_on == hotkey)

    def last_update(self, index: int, uid: int) -> int:
        return self.updates.get((index, uid), self.uids[uid].registered)


class Failed(Exception):
    """A dispatch error; its name."""


class Node:
    """One subnet, shared by all connections to it.

    Attributes:
        faults: by point, what happens next there, first in first out. Points: `connect`, `read`, `submit`, and the name
            of a storage item. A fault is an exception to raise, or `hang`; at `submit` also `lost before` and `lost
            after` (the connection drops in flight, the extrinsic not landing or landing), `hang after`, `pool: TEXT`
            (the node refuses it), `watch: STATUS` (it lands, but the watch says so) and `dispatch: NAME`.
        connections, closed, submitted: how many there were; `most_at_once`: submissions in flight at the same time.
        periods: for how many blocks each submission was signed.
    """

    def __init__(self, netuid: int = 98, block: int = 1000, owner: tuple[str, str] = ("", ""), **rules: Any):
        self.netuid = netuid
        self.state = State(block, Rules(**rules), owner, last_epoch=block)
        self.history: dict[int, State] = {}
        self.plain: dict[bytes, tuple] = {}
        self.faults: dict[str, list] = defaultdict(list)
        self.unknown: set[str] = set()
        self.periods: list[int] = []
        self.connections = self.closed = self.submitted = self.in_flight = self.most_at_once = 0

    def substrate(self) -> FakeSubstrate:
        """A new connection, as `BittensorChain.open(substrate=...)` takes it."""
        return FakeSubstrate(self)

    def at(self, block_hash: str | None) -> State:
        number = self.state.block if block_hash is None else int(block_hash, 16)
        return self.state if number == self.state.block else self.history[number]

    # -- what happens without a signature

    def advance(self, blocks: int = 1) -> None:
        for _ in range(blocks):
            self.history[self.state.block] = copy.deepcopy(self.state)
            self.state.block += 1
            self.state.events = []
            tempo = self.state.rules.tempo
            if tempo and self.state.block >= self.state.last_epoch + tempo:
                self._epoch()

    def register(self, hotkey: str, coldkey: str, stake_rao: int = 0) -> int:
        state = self.state
        state.hotkeys[hotkey] = coldkey
        state.stakes[hotkey, coldkey] += stake_rao
        state.uids.append(Uid(hotkey, coldkey, state.block))
        self._permits()
        return len(state.uids) - 1

    def set_rules(self, **changes: Any) -> None:
        self.state.rules = replace(self.state.rules, **changes)

    def _permits(self) -> None:
        state, rules = self.state, self.state.rules
        able = [n for n, uid in enumerate(state.uids) if state.stake_of(uid.hotkey) >= rules.stake_threshold_rao]
        chosen = sorted(able, key=lambda n: (-state.stake_of(state.uids[n].hotkey), n))[: rules.max_validators]
        for number, uid in enumerate(state.uids):
            uid.permit = number in chosen

    def _epoch(self) -> None:
        """Reveal what is due, silently dropping what the rules refuse; give permits anew."""
        state = self.state
        state.last_epoch, state.epoch_index = state.block, state.epoch_index + 1
        for index, epoch in sorted(state.commits):
            if epoch + state.rules.reveal_period_epochs <= state.epoch_index:
                for commit in state.commits.pop((index, epoch)):
                    uids, weights, version_key = self.plain[commit.ciphertext]
                    with suppress(Failed):  # a line in the node's log, nothing more
                        self._store(commit.hotkey, index, uids, weights, version_key, revealed=True)
        self._permits()

    # -- extrinsics

    def dispatch(self, signer: str, function: str, args: dict) -> None:
        """Run one call. Raises `Failed` with the chain's name of the error; then nothing has changed."""
        getattr(self, f"_{function}")(signer, **args)

    def _known(self, netuid: int, mecid: int, hotkey: str) -> tuple[int, int]:
        """Storage index and uid."""
        if netuid != self.netuid or mecid >= self.state.rules.mechanism_count:
            raise Failed("MechanismDoesNotExist")
        if (uid := self.state.uid_of(hotkey)) is None:
            raise Failed("HotKeyNotRegisteredInSubNet")
        return mecid * STRIDE + netuid, uid

    def _check_rate(self, index: int, uid: int, error: str) -> None:
        if self.state.block - self.state.last_update(index, uid) < self.state.rules.weights_rate_limit_blocks:
            raise Failed(error)

    def _set_mechanism_weights(self, signer, netuid, mecid, dests, weights, version_key) -> None:
        index, _ = self._known(netuid, mecid, signer)
        if self.state.rules.commit_reveal:
            raise Failed("CommitRevealEnabled")
        self._store(signer, index, dests, weights, version_key)

    def _store(self, hotkey, index, dests, weights, version_key, revealed: bool = False) -> None:
        state, rules, uid = self.state, self.state.rules, self.state.uid_of(hotkey)
        if uid is None:
            raise Failed("HotKeyNotRegisteredInSubNet")
        owns, only_itself = hotkey == state.owner[0], dests == [uid]
        if state.stake_of(hotkey) < rules.stake_threshold_rao and not owns:
            raise Failed("NotEnoughStakeToSetWeights")
        if version_key < rules.version_key:
            raise Failed("IncorrectWeightVersionKey")
        if not revealed:
            self._check_rate(index, uid, "SettingWeightsTooFast")
        if not (state.uids[uid].permit or only_itself or owns):
            raise Failed("NeuronNoValidatorPermit")
        if max(dests) >= len(state.uids):
            raise Failed("UidVecContainInvalidOne")
        if len(dests) < min(rules.min_allowed_weights, len(state.uids)) and not only_itself:
            raise Failed("WeightVecLengthIsLow")
        if max(weights) * U16_MAX > rules.max_weight * sum(weights) and not only_itself:
            raise Failed("MaxWeightExceeded")
        state.weights[index, uid] = list(zip(dests, weights, strict=True))
        if not revealed:
            state.updates[index, uid] = state.block

    def _commit_timelocked_mechanism_weights(self, signer, netuid, mecid, commit, reveal_round, commit_reveal_version):
        index, uid = self._known(netuid, mecid, signer)
        if not self.state.rules.commit_reveal:
            raise Failed("CommitRevealDisabled")
        if commit_reveal_version != 4:
            raise Failed("IncorrectCommitRevealVersion")
        self._check_rate(index, uid, "CommittingWeightsTooFast")
        waiting = [c for (i, _), row in self.state.commits.items() if i == index for c in row if c.hotkey == signer]
        if len(waiting) >= MAX_COMMITS:
            raise Failed("TooManyUnrevealedCommits")
        row = self.state.commits[index, self.state.epoch_index]
        row.append(Commit(signer, self.state.block, bytes(commit), reveal_round))
        self.state.updates[index, uid] = self.state.block

    def _serve_axon(self, signer, netuid, version, ip, port, ip_type, protocol, placeholder1, placeholder2) -> None:
        uid = self.state.uid_of(signer)
        if uid is None:
            raise Failed("HotKeyNotRegisteredInNetwork")
        address = (ipaddress.IPv4Address if ip_type == 4 else ipaddress.IPv6Address)(ip)
        if address.is_loopback or address.is_unspecified:
            raise Failed("InvalidIpAddress")
        if port == 0:
            raise Failed("InvalidPort")
        before, now = self.state.uids[uid].axon["block"], self.state.block
        if before and now - before < self.state.rules.serving_rate_limit_blocks:
            raise Failed("ServingRateLimitExceeded")
        self.state.uids[uid].axon = {"ip": ip, "port": port, "ip_type": ip_type, "protocol": protocol, "block": now}

    def _move_stake(
        self, signer, origin_hotkey, destination_hotkey, origin_netuid, destination_netuid, alpha_amount
    ) -> None:
        self._shift(signer, signer, origin_hotkey, destination_hotkey, alpha_amount)
        values = (signer, origin_hotkey, origin_netuid, destination_hotkey, destination_netuid, alpha_amount // 2)
        self._event("StakeMoved", values)

    def _transfer_stake(
        self, signer, destination_coldkey, hotkey, origin_netuid, destination_netuid, alpha_amount
    ) -> None:
        if not self.state.rules.transfers_allowed:
            raise Failed("TransferDisallowed")
        self._shift(signer, destination_coldkey, hotkey, hotkey, alpha_amount)
        values = (signer, destination_coldkey, hotkey, origin_netuid, destination_netuid, alpha_amount // 2)
        self._event("StakeTransferred", values)

    def _transfer_stake_and_hotkey(
        self,
        signer,
        destination_coldkey,
        origin_hotkey,
        destination_hotkey,
        origin_netuid,
        destination_netuid,
        alpha_amount,
    ) -> None:
        if not self.state.rules.transfers_allowed:
            raise Failed("TransferDisallowed")
        self._shift(signer, destination_coldkey, origin_hotkey, destination_hotkey, alpha_amount)
        values = {
            "origin_coldkey": signer,
            "destination_coldkey": destination_coldkey,
            "origin_hotkey": origin_hotkey,
            "destination_hotkey": destination_hotkey,
            "origin_netuid": origin_netuid,
            "destination_netuid": destination_netuid,
        }
        self._event("StakeAndHotkeyTransferred", values)

    def _event(self, name: str, attributes: Any) -> None:
        event = {"module_id": "SubtensorModule", "event_id": name, "attributes": attributes}
        self.state.events.append({"extrinsic_idx": 1, "event": event})
        self.state.events.append({"extrinsic_idx": 1, "event": {"module_id": "System", "event_id": "ExtrinsicSuccess"}})

    def _shift(self, origin: str, destination: str, hotkey: str, dest_hotkey: str, rao: int) -> None:
        state = self.state
        if not state.rules.subtoken_enabled:
            raise Failed("SubtokenDisabled")
        if (origin, hotkey) == (destination, dest_hotkey):
            raise Failed("SameNetuid")
        if not {hotkey, dest_hotkey} <= state.hotkeys.keys():
            raise Failed("HotKeyAccountNotExists")
        if rao > state.stakes[hotkey, origin]:
            raise Failed("NotEnoughStakeToWithdraw")
        if rao * state.rules.alpha_price_rao // 10**9 <= state.rules.min_stake_move_rao:
            raise Failed("AmountTooLow")
        state.stakes[hotkey, origin] -= rao
        state.stakes[dest_hotkey, destination] += rao

    # -- reads

    def query(self, state: State, module: str, item: str, params: list) -> Any:
        rules, n = state.rules, len(state.uids)
        if (module, item) == ("System", "Account"):
            return {"data": {"free": state.free[params[0]], "reserved": 0, "frozen": 0}}
        if (module, item) == ("System", "Events"):
            return state.events
        found = {
            "AutoStakeDestination": lambda coldkey, _: state.auto_stake.get(coldkey),
            "CommitRevealWeightsEnabled": lambda _: rules.commit_reveal,
            "LastEpochBlock": lambda _: state.last_epoch,
            "LastUpdate": lambda index: (
                [state.last_update(index, uid) for uid in range(n)] if index // STRIDE < rules.mechanism_count else []
            ),
            "BlocksSinceLastStep": lambda _: state.block - state.last_epoch,
            "MaxWeightsLimit": lambda _: rules.max_weight,
            "MechanismCountCurrent": lambda _: rules.mechanism_count,
            "MinAllowedWeights": lambda _: rules.min_allowed_weights,
            "PendingEpochAt": lambda _: 0,
            "RevealPeriodEpochs": lambda _: rules.reveal_period_epochs,
            "ServingRateLimit": lambda _: rules.serving_rate_limit_blocks,
            "StakeThreshold": lambda: rules.stake_threshold_rao,
            "SubtokenEnabled": lambda _: rules.subtoken_enabled,
            "TransferToggle": lambda _: rules.transfers_allowed,
            "SubnetEpochConsensus": lambda _: "Yuma",
            "SubnetEpochIndex": lambda _: state.epoch_index,
            "Tempo": lambda _: rules.tempo,
            "Uids": lambda _, hotkey: state.uid_of(hotkey),
            "Weights": lambda index, uid: state.weights.get((index, uid), []),
            "WeightsSetRateLimit": lambda _: rules.weights_rate_limit_blocks,
            "WeightsVersionKey": lambda _: rules.version_key,
        }.get(item)
        if module != "SubtensorModule" or found is None or item in self.unknown:
            raise ValueError(f'Storage function "{module}.{item}" not found')
        return found(*params)

    def query_map(self, state: State, item: str, params: list) -> list[tuple[Any, Any]]:
        if item == "TimelockedWeightCommits":
            return [
                (epoch, [(c.hotkey, c.block, f"0x{c.ciphertext.hex()}", c.drand_round) for c in row])
                for (index, epoch), row in state.commits.items()
                if index == params[0]
            ]
        if item in ("TokenSymbol", "Lock"):
            return []
        raise ValueError(f'Storage function "{item}" not found')

    def runtime(self, state: State, method: str, params: Any) -> Any:
        if method == "get_metagraph":
            return self._graph(state) if params[0] == self.netuid else None
        if method == "get_stake_info_for_hotkey_coldkey_netuid":
            return {"stake": state.stakes[params[0], params[1]] if params[2] == self.netuid else 0}
        if method == "get_next_epoch_start_block":
            return state.last_epoch + state.rules.tempo if state.rules.tempo else None
        if method == "get_stake_availability_for_coldkeys":
            return {}
        if method == "get_all_dynamic_info":  # a gap, the root subnet, and ours
            root = {"netuid": 0, "tao_in": 7, "alpha_in": 7, "alpha_out": 7, "moving_price": {"bits": 2**32}}
            ours = {"netuid": self.netuid, "tao_in": 3 * 10**12, "alpha_in": 10**14, "alpha_out": 2 * 10**14}
            return [root, None, ours | {"moving_price": {"bits": 2**27}}]
        if method == "current_alpha_price":
            return state.rules.alpha_price_rao
        if method == "current_alpha_price_all":
            return [{"netuid": 0, "price": 10**9}, {"netuid": self.netuid, "price": 30_000_000 + state.block}]
        raise ValueError(f"Runtime API Call {method} not found in registry")

    def _graph(self, state: State) -> dict:
        stakes = [state.stake_of(uid.hotkey) for uid in state.uids]
        return {
            "netuid": self.netuid,
            "block": state.block,
            "tempo": state.rules.tempo,
            "last_step": state.last_epoch,
            "blocks_since_last_step": state.block - state.last_epoch,
            "owner_hotkey": state.owner[0],
            "owner_coldkey": state.owner[1],
            "network_registered_at": 1,
            "num_uids": len(state.uids),
            "hotkeys": [uid.hotkey for uid in state.uids],
            "coldkeys": [uid.coldkey for uid in state.uids],
            "axons": [uid.axon for uid in state.uids],
            "validator_permit": [uid.permit for uid in state.uids],
            "last_update": [state.last_update(self.netuid, number) for number in range(len(state.uids))],
            "block_at_registration": [uid.registered for uid in state.uids],
            "alpha_stake": stakes,
            "total_stake": stakes,
        }


def remember_commits(monkeypatch: Any, node: Node) -> None:
    """Let the node know what is in each commit that the SDK encrypts; the encryption is the real one."""
    encrypt = bittensor_core.get_encrypted_commit_v2

    def remembering(**args: Any) -> tuple[bytes, int]:
        ciphertext, drand_round = encrypt(**args)
        node.plain[bytes(ciphertext)] = (args["uids"], args["weights"], args["version_key"])
        return ciphertext, drand_round

    monkeypatch.setattr(bittensor_core, "get_encrypted_commit_v2", remembering)


class FakeSubstrate(RpcSubstrate):
    """The SDK's `Substrate`, over a `Node` instead of a websocket."""

    def __init__(self, node: Node):
        super().__init__("ws://fake")
        self._node = node

    def _interface(self, endpoint: str, fallbacks: list[str]) -> Connection:
        return Connection(self._node)


class Connection:
    """What `RpcSubstrate` calls of the SDK's `SubstrateConnection`; it caches nonces as that one does."""

    def __init__(self, node: Node):
        self._node, self._nonces, self._open = node, {}, False

    async def _fault(self, *points: str) -> str | None:
        for point in points:
            if self._node.faults[point]:
                fault = self._node.faults[point].pop(0)
                if isinstance(fault, Exception):
                    raise fault
                if fault == "hang":
                    await asyncio.sleep(3600)
                return fault
        return None

    async def initialize(self) -> None:
        self._node.connections += 1
        await self._fault("connect")
        self._open = True

    async def close(self) -> None:
        assert self._open, "closed twice"
        self._open = False
        self._node.closed += 1

    async def _reading(self, *points: str) -> None:
        assert self._open, "a call after the connection was closed"
        await asyncio.sleep(0)
        await self._fault(*points, "read")

    async def get_chain_head(self) -> str:
        return await self.get_block_hash(None)

    async def get_block_hash(self, block: int | None) -> str:
        await self._reading()
        if block is not None and block != self._node.state.block and block not in self._node.history:
            raise SubstrateRequestException(f"no block at height {block}")
        return f"0x{self._node.state.block if block is None else block:064x}"

    async def get_block_number(self, block_hash: str | None = None) -> int:
        await self._reading("block")
        return self._node.at(block_hash).block

    async def query(self, module: str, item: str, params: list, block_hash: str | None = None) -> Any:
        await self._reading(item)
        return self._node.query(self._node.at(block_hash), module, item, params)

    async def query_map(self, module: str, item: str, params: list, block_hash: str | None = None) -> AsyncIterator:
        await self._reading(item)
        pairs = self._node.query_map(self._node.at(block_hash), item, params)

        async def pages():
            for pair in pairs:
                yield pair

        return pages()

    async def runtime_call(self, api: str, method: str, params: Any, block_hash: str | None = None) -> Any:
        await self._reading(method)
        return self._node.runtime(self._node.at(block_hash), method, params)

    async def get_constant(self, module: str, name: str) -> Any:
        return {"SlotDuration": 12_000, "ExistentialDeposit": 500}[name]

    async def compose_call(self, call_module: str, call_function: str, call_params: dict) -> Any:
        for name, value in call_params.items():
            if name.endswith(("hotkey", "coldkey")):
                ss58_decode(value)  # a ValueError, as the real codec's
        if not hasattr(self._node, f"_{call_function}"):
            raise ValueError(f'Call "{call_module}.{call_function}" not found')
        data = repr((call_module, call_function, call_params)).encode()
        return SimpleNamespace(module=call_module, function=call_function, params=call_params, data=data)

    async def get_payment_info(self, call: Any, keypair: Any) -> dict:
        await self._reading("payment")
        return {"partial_fee": FEE_RAO}

    async def create_signed_extrinsic(self, call: Any, keypair: Any, *, nonce: Any, era: dict) -> Any:
        await self._reading("nonce")
        who = keypair.ss58_address
        self._nonces[who] = self._nonces[who] + 1 if who in self._nonces else self._node.state.nonces[who]
        payload = repr((call.data, self._nonces[who], era, self._node.state.block)).encode()
        return SimpleNamespace(
            call=call,
            signer=who,
            nonce=self._nonces[who],
            period=era["period"],
            payload=payload,
            signature=keypair.sign(payload),
            crypto_type=keypair.crypto_type,
        )

    def clear_nonce_cache_for_account(self, address: str) -> None:
        self._nonces.pop(address, None)

    async def submit_extrinsic(self, signed: Any, **waits: bool) -> InclusionReport:
        node = self._node
        node.submitted, node.in_flight = node.submitted + 1, node.in_flight + 1
        node.periods.append(signed.period)
        node.most_at_once = max(node.most_at_once, node.in_flight)
        try:
            await asyncio.sleep(0.001)
            return await self._include(node, signed, **waits)
        finally:
            node.in_flight -= 1

    async def _include(self, node: Node, signed: Any, wait_for_inclusion: bool, wait_for_finalization: bool) -> Any:
        assert verify(signed.payload, signed.signature, signed.signer, signed.crypto_type)
        assert wait_for_inclusion and wait_for_finalization, "a write is over when it is final"
        fault = await self._fault("submit") or ""
        kind, _, text = fault.partition(": ")
        if kind == "pool":
            raise SubstrateRequestException({"error": {"code": 1010, "message": "Invalid Transaction", "data": text}})
        if kind == "lost before":
            raise SubstrateRequestException(IN_FLIGHT)
        payer = node.state.hotkeys.get(signed.signer, signed.signer)
        if node.state.free[payer] < FEE_RAO:
            why = "Inability to pay some fees , e.g. account balance too low"
            raise SubstrateRequestException({"error": {"code": 1010, "message": "Invalid Transaction", "data": why}})
        if signed.nonce != node.state.nonces[signed.signer]:
            why = "is outdated" if signed.nonce < node.state.nonces[signed.signer] else "will be valid in the future"
            raise SubstrateRequestException({"error": {"code": 1010, "message": f"Transaction {why}"}})
        node.advance()
        node.state.nonces[signed.signer] += 1
        node.state.free[payer] -= FEE_RAO
        error = None
        try:
            if kind == "dispatch":
                raise Failed(text)
            node.dispatch(signed.signer, signed.call.function, signed.call.params)
        except Failed as failed:
            (name,) = failed.args
            assert name in ERROR_NAMES, name
            error = {"type": "Module", "name": name, "docs": [f"what the chain says of {name}"]}
        if kind == "lost after":
            raise SubstrateRequestException(IN_FLIGHT)
        if kind == "hang after":
            await asyncio.sleep(3600)
        if kind == "watch":
            raise SubstrateRequestException(f"Extrinsic {text}: {{}}")
        return InclusionReport(
            extrinsic_hash=f"0x{blake2b(signed.payload, digest_size=32).hexdigest()}",
            finalized=True,
            block_hash=f"0x{node.state.block:064x}",
            block_number=node.state.block,
            extrinsic_idx=1,
            is_success=error is None,
            total_fee_amount=FEE_RAO,
            error_message=error,
        )


LOST = MaxRetriesExceeded("could not connect to any endpoint: Connection refused")
THROTTLED = RpcPolicyRejection("RPC endpoint rate limited this source (HTTP 429)", status_code=429, retry_after="30")
