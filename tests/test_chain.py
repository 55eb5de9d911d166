"""One suite for both chains, through `chain.Chain` alone; then what only a real network can do to us.

`BittensorChain` runs through the SDK's real `bittensor.Client` over the fake node of `substrate.py`.
Run with `python -m pytest tests/test_chain.py`. Read next: `chain/base.py`.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import random
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from fractions import Fraction
from pathlib import Path

import bittensor as bt
import pytest
from bittensor.intents import normalize
from substrate import LOST, THROTTLED, Node, remember_commits

from chain import subtensor
from chain.base import (
    U16_MAX,
    Chain,
    ChainError,
    Metagraph,
    Neuron,
    Next,
    WriteCode,
    WriteOutcome,
    u16_weights,
    vector_in_force,
)
from chain.ledger import Hyperparameters
from chain.local import LocalChain
from chain.subtensor import ERA_BLOCKS, BittensorChain
from chain.wallets import Wallet, check_address, load_wallet
from wire.signing import local_keypair

TAO = 10**9
START = 1000
OWNER_TAO = 10_000
SETTLED = ERA_BLOCKS + 15  # a write's deadline is 15 blocks


@pytest.fixture(autouse=True)
def _sdk_caches(tmp_path, monkeypatch):
    """The SDK writes caches below the home directory when it connects."""
    monkeypatch.setenv("BTCLI_TOKEN_SYMBOLS_CACHE", str(tmp_path / "symbols.json"))
    monkeypatch.setenv("BITTENSOR_RUNTIME_CACHE_DIR", str(tmp_path / "runtime"))


def wallet_of(name: str) -> Wallet:
    coldkey = local_keypair(f"{name}-coldkey")
    return Wallet(local_keypair(f"{name}-hotkey"), coldkey.ss58_address, coldkey)


def hot(name: str) -> str:
    return wallet_of(name).hotkey.ss58_address


def cold(name: str) -> str:
    return wallet_of(name).coldkey_address


# ---------------------------------------------------------------------------------------------------------------------
# Two worlds with the same handles


class LocalWorld:
    """A ledger file."""

    @classmethod
    @asynccontextmanager
    async def open(cls, path, stack, **rules):
        world = cls()
        world._path, world._stack = path / "ledger", stack
        world._rules = Hyperparameters(**{"weights_rate_limit_blocks": 0, **rules})
        world._chain = await world.chain("owner")
        await world._chain.register(hot("owner"), cold("owner"), 0)
        yield world

    async def chain(self, name: str) -> Chain:
        return await self._stack.enter_async_context(
            LocalChain.open(
                self._path,
                hot(name),
                cold(name),
                genesis_block=START,
                owner=(hot("owner"), cold("owner")),
                hyperparameters=self._rules,
            )
        )

    async def register(self, name: str, tao: int = 0) -> int:
        return await self._chain.register(hot(name), cold(name), tao * TAO)

    async def advance(self, blocks: int) -> None:
        await self._chain.advance_to(await self._chain.block() + blocks)

    async def set_rules(self, **changes) -> None:
        await self._chain.set_hyperparameters(**changes)


class BittensorWorld:
    """A fake node, one connection for each wallet."""

    @classmethod
    @asynccontextmanager
    async def open(cls, path, stack, **rules):
        world = cls()
        world._stack, world.node = stack, Node(block=START, owner=(hot("owner"), cold("owner")), **rules)
        await world.register("owner", OWNER_TAO)
        yield world

    async def chain(self, name: str, **options) -> BittensorChain:
        options = {"netuid": 98, "wallet": wallet_of(name), "substrate": self.node.substrate, **options}
        return await self._stack.enter_async_context(BittensorChain.open(**options))

    async def register(self, name: str, tao: int = 0) -> int:
        return self.node.register(hot(name), cold(name), tao * TAO)

    async def advance(self, blocks: int) -> None:
        self.node.advance(blocks)

    async def set_rules(self, **changes) -> None:
        self.node.set_rules(**changes)


WORLDS = {"local": LocalWorld, "bittensor": BittensorWorld}


@pytest.fixture(params=WORLDS)
def in_world(request, tmp_path):
    """Call it with an async function of the world, a validator v of 3000 TAO (uid 1) and its chain, and rules."""
    return lambda main, **rules: play(WORLDS[request.param], tmp_path, main, **rules)


def play(world_class, path, main, **rules):
    async def run():
        async with AsyncExitStack() as stack:
            world = await stack.enter_async_context(world_class.open(path, stack, **rules))
            await world.register("v", 3000)
            await main(world, await world.chain("v"))

    asyncio.run(asyncio.wait_for(run(), 60))


def on_node(tmp_path, main, **rules):
    play(BittensorWorld, tmp_path, main, **rules)


def refused(outcome: WriteOutcome) -> tuple:
    assert not outcome.ok and "\n" not in outcome.detail and outcome.detail.startswith(outcome.name)
    return outcome.name, outcome.code, outcome.next, outcome.wait_blocks


# ---------------------------------------------------------------------------------------------------------------------
# The contract: the same for both


@pytest.mark.parametrize("implementation", [LocalChain, BittensorChain])
def test_both_chains_have_every_method_of_the_protocol_with_the_same_arguments(implementation):
    for name, method in inspect.getmembers(Chain, inspect.isfunction):
        if not name.startswith("_"):
            ours = inspect.signature(getattr(implementation, name)).parameters
            theirs = inspect.signature(method).parameters
            assert [(p.name, p.default, p.kind) for p in ours.values()] == [
                (p.name, p.default, p.kind) for p in theirs.values()
            ], name


def test_the_metagraph_is_the_subnet_at_one_block(in_world):
    async def main(world, v):
        assert (v.hotkey, v.coldkey) == (hot("v"), cold("v"))
        await world.advance(5)
        await world.register("m")
        graph = await v.metagraph()
        assert (graph.netuid, graph.block, graph.tempo) == (98, START + 5, 360)
        assert (graph.owner_hotkey, graph.owner_coldkey, graph.burn_uid()) == (hot("owner"), cold("owner"), 0)
        owner, validator, miner = graph.neurons
        assert owner == Neuron(0, hot("owner"), cold("owner"), True, OWNER_TAO * TAO, None, START, START)
        assert validator == Neuron(1, hot("v"), cold("v"), True, 3000 * TAO, None, START, START)
        assert miner == Neuron(2, hot("m"), cold("m"), False, 0, None, START + 5, START + 5)
        assert graph.by_hotkey(hot("m")) == miner and graph.by_hotkey(hot("nobody")) is None
        assert await v.metagraph(START + 5) == graph
        assert await v.block() == START + 5
        with pytest.raises(ChainError, match="metagraph"):
            await v.metagraph(START + 6)

    in_world(main)


def test_an_epoch_is_seen_by_its_block_having_advanced(in_world):
    async def main(world, v):
        await world.advance(20)
        epoch = await v.epoch()
        assert (epoch.last_epoch_block, epoch.tempo, epoch.next_epoch_block) == (START, 50, START + 50)
        await world.advance(29)
        assert (await v.epoch()).last_epoch_block == START
        await world.advance(1)
        epoch = await v.epoch()
        assert (epoch.last_epoch_block, epoch.next_epoch_block) == (START + 50, START + 100)
        await world.set_rules(tempo=0)
        assert (await v.epoch()).next_epoch_block is None

    in_world(main, tempo=50)


def test_permits_follow_stake_with_the_epoch(in_world):
    async def main(world, v):
        await world.register("w", 2000)
        assert [n.permit for n in (await v.metagraph()).neurons] == [True, True, False]
        assert (await v.move_stake(hot("v"), hot("w"), 2500 * TAO)).ok
        assert (await v.metagraph()).by_hotkey(hot("v")).permit  # until the epoch
        await world.advance(10)
        assert [n.permit for n in (await v.metagraph()).neurons] == [True, False, True]

    in_world(main, tempo=10, max_validators=2)


def test_accepted_weights_read_back_as_the_stored_u16(in_world):
    async def main(world, v):
        await world.register("a")
        await world.register("b")
        await world.advance(3)
        weights = {2: Decimal("0.7"), 3: Decimal("0.299999"), 0: Decimal("0.000001")}
        assert await v.weights_of(1) == {}
        outcome = await v.set_weights(weights, 0)
        block = outcome.block
        assert outcome == WriteOutcome(True, WriteCode.OK, "", Next.NOTHING, "", block) and block >= START + 3
        assert await v.weights_of(1) == u16_weights(weights) == {2: 65535, 3: 28086}
        assert await v.weights_of(2) == {}
        assert (await v.metagraph()).neurons[1].last_update_block == block
        assert (await v.weight_params(v.hotkey)).last_update_block == block
        assert (await vector_in_force(v, weights)).ok
        assert refused(await vector_in_force(v, {2: 1})) == ("NotInForce", WriteCode.UNKNOWN, Next.NOTHING, 0)
        stranger = await world.chain("stranger")
        assert refused(await vector_in_force(stranger, weights))[0] == "HotKeyNotRegisteredInSubNet"

    in_world(main)


def test_weight_params_are_the_subnets_rules_and_the_hotkeys_last_update(in_world):
    async def main(world, v):
        params = await v.weight_params(v.hotkey)
        assert (params.rate_limit_blocks, params.min_allowed_weights, params.max_weight) == (7, 2, 60000)
        assert (params.version_key, params.commit_reveal, params.unrevealed_commits) == (2**64 - 1, False, 0)
        assert params.last_update_block == START
        assert (await v.weight_params(hot("nobody"))).last_update_block is None

    in_world(
        main, weights_rate_limit_blocks=7, min_allowed_weights=2, max_weight=60000, version_key=2**64 - 1, tempo=100
    )


def test_the_rate_limit_counts_from_registration_then_from_the_last_update_exact_at_the_boundary(in_world):
    async def main(world, v):
        for _ in range(2):
            start = (await v.weight_params(v.hotkey)).last_update_block
            for age in (1, 5, 99):
                await world.advance(start + age - await v.block())
                outcome = await v.set_weights({0: 1}, 0)
                assert refused(outcome) == (
                    "SettingWeightsTooFast",
                    WriteCode.RATE_LIMITED,
                    Next.WAIT_BLOCKS,
                    100 - age,
                )
            await world.advance(1)
            assert (await v.set_weights({0: 1}, 0)).ok

    in_world(main, weights_rate_limit_blocks=100)


@pytest.mark.parametrize(("required", "sent", "ok"), [(0, 0, True), (7, 6, False), (7, 7, True), (7, 8, True)])
def test_the_version_key_must_reach_the_subnets(in_world, required, sent, ok):
    async def main(world, v):
        outcome = await v.set_weights({0: 1}, sent)
        assert (outcome.ok, outcome.name) == (ok, "" if ok else "IncorrectWeightVersionKey")

    in_world(main, version_key=required)


@pytest.mark.parametrize(
    ("name", "code", "who", "weights", "rules"),
    [
        ("ValueError", "invalid_argument", "v", {}, {}),
        ("ValueError", "invalid_argument", "v", {0: Decimal(-1)}, {}),
        ("HotKeyNotRegisteredInSubNet", "not_registered", "stranger", {0: 1}, {}),
        ("NotEnoughStakeToSetWeights", "insufficient_balance", "poor", {0: 1}, {}),
        ("IncorrectWeightVersionKey", "invalid_argument", "v", {0: 1}, {"version_key": 2}),
        ("SettingWeightsTooFast", "rate_limited", "v", {0: 1}, {"weights_rate_limit_blocks": 1}),
        ("NeuronNoValidatorPermit", "not_authorized", "v", {0: 1}, {"max_validators": 1}),
        ("UidVecContainInvalidOne", "invalid_argument", "v", {0: 1, 3: 1}, {}),
        ("WeightVecLengthIsLow", "invalid_argument", "v", {0: 1}, {"min_allowed_weights": 2}),
        ("WeightVecLengthIsLow", "invalid_argument", "v", {0: 10**6, 2: 1}, {"min_allowed_weights": 2}),
        ("MaxWeightExceeded", "limit_exceeded", "v", {0: 3, 2: 1}, {"max_weight": 49150}),
    ],
)
def test_each_refusal_of_weights_has_the_chains_name_and_stores_nothing(in_world, name, code, who, weights, rules):
    async def main(world, v):
        await world.register("poor", 1)
        outcome = await (await world.chain(who)).set_weights(weights, 1)
        waiting = name == "SettingWeightsTooFast"
        assert refused(outcome) == (name, code, Next.WAIT_BLOCKS if waiting else Next.NOTHING, int(waiting))
        assert outcome.block == START
        assert [await v.weights_of(uid) for uid in range(3)] == [{}, {}, {}]
        assert (await v.metagraph()).neurons[1].last_update_block == START

    in_world(main, **rules)


def test_the_edges_of_the_limits_pass(in_world):
    async def main(world, v):
        await world.register("a")
        assert (await v.set_weights({0: 3, 2: 1}, 0)).name == "MaxWeightExceeded"  # 49151.25 of 65535
        assert (await v.set_weights({0: 2, 2: 1}, 0)).ok
        assert await v.weights_of(1) == {0: 65535, 2: 32768}
        await world.set_rules(min_allowed_weights=9)
        await world.advance(360)
        assert (await v.set_weights({0: 1, 1: 1, 2: 1}, 0)).ok  # all there are
        await world.set_rules(max_validators=0, min_allowed_weights=3)
        await world.advance(360)
        assert (await v.set_weights({1: 1}, 0)).ok  # a single weight on oneself needs no permit, length or limit
        assert await v.weights_of(1) == {1: 65535}

    in_world(main, max_weight=49151, min_allowed_weights=2)


@pytest.mark.parametrize("mechid", [-1, 1])
def test_an_unknown_mechanism_is_refused(in_world, mechid):
    async def main(world, v):
        outcome = await v.set_weights({0: 1}, 0, mechid)
        assert refused(outcome) == ("MechanismDoesNotExist", WriteCode.SUBNET_NOT_EXISTS, Next.NOTHING, 0)

    in_world(main)


def test_two_mechanisms_have_their_own_vectors_and_rate_limits(in_world):
    async def main(world, v):
        await world.advance(10)
        assert (await v.set_weights({0: 1}, 0, mechid=1)).ok
        assert (await v.metagraph()).neurons[1].last_update_block == START  # mechanism 0's
        assert (await v.weight_params(v.hotkey, 1)).last_update_block >= START + 10
        assert (await v.set_weights({1: 1}, 0)).ok
        assert (await v.set_weights({0: 1}, 0, mechid=1)).name == "SettingWeightsTooFast"
        assert (await v.weights_of(1), await v.weights_of(1, 1)) == ({1: 65535}, {0: 65535})
        assert (await vector_in_force(v, {0: 1}, 1)).ok and not (await vector_in_force(v, {0: 1})).ok

    in_world(main, mechanism_count=2, weights_rate_limit_blocks=10)


def test_the_chain_has_a_record_of_each_stake_move_and_of_no_refused_one(in_world):
    async def main(world, v):
        await world.register("a")
        b = await world.chain("b")
        begin = await v.block()
        assert (await v.move_stake(hot("v"), hot("a"), 9 * TAO)).ok
        await world.advance(1)
        assert (await v.transfer_stake(hot("a"), cold("b"), 5 * TAO)).ok
        assert not (await v.transfer_stake(hot("a"), cold("b"), 99 * TAO)).ok
        assert (await v.transfer_stake(hot("a"), cold("b"), 4 * TAO, hot("v"))).ok
        await world.advance(3)
        moves = await v.stake_moves(begin, await v.block())
        ends = [(move.origin_hotkey, move.dest_hotkey, move.dest_coldkey) for move in moves]
        assert ends == [
            (hot("v"), hot("a"), cold("v")),
            (hot("a"), hot("a"), cold("b")),
            (hot("a"), hot("v"), cold("b")),
        ]
        assert len({move.extrinsic for move in moves}) == 3
        assert all(move.extrinsic.startswith(f"{move.block}-") for move in moves)
        assert await v.stake_moves(moves[1].block, moves[1].block) == [
            move for move in moves if move.block == moves[1].block
        ]
        assert await v.stake_moves(moves[-1].block + 1, await v.block()) == []
        assert await b.stake_moves(begin, await v.block()) == []  # another coldkey's

    in_world(main)


def test_stake_moves_between_hotkeys_and_transfers_between_coldkeys_to_the_rao(in_world):
    async def main(world, v):
        await world.register("agg", 1)
        assert (await v.move_stake(hot("v"), hot("agg"), 5 * TAO)).ok
        assert await v.stake(hot("v"), cold("v")) == 2995 * TAO
        assert await v.stake(hot("agg"), cold("v")) == 5 * TAO
        assert (await v.transfer_stake(hot("agg"), cold("treasury"), 2 * TAO + 1)).ok
        assert await v.stake(hot("agg"), cold("v")) == 3 * TAO - 1
        assert await v.stake(hot("agg"), cold("treasury")) == 2 * TAO + 1
        assert (await v.transfer_stake(hot("v"), cold("treasury"), TAO, hot("agg"))).ok
        assert await v.stake(hot("v"), cold("v")) == 2994 * TAO
        assert await v.stake(hot("agg"), cold("treasury")) == 3 * TAO + 1
        assert await v.stake(hot("agg"), cold("agg")) == TAO  # somebody else's is untouched
        assert (await v.metagraph()).by_hotkey(hot("agg")).stake_rao == 7 * TAO

    in_world(main)


def test_each_refusal_of_a_stake_move_has_the_chains_name_and_moves_nothing(in_world):
    async def main(world, v):
        await world.register("a")
        for write, name, code in (
            (v.move_stake(hot("v"), hot("v"), TAO), "SameNetuid", "invalid_argument"),
            (v.transfer_stake(hot("v"), cold("v"), TAO), "SameNetuid", "invalid_argument"),
            (v.move_stake(hot("v"), hot("x"), TAO), "HotKeyAccountNotExists", "not_registered"),
            (v.transfer_stake(hot("v"), cold("x"), TAO, hot("x")), "HotKeyAccountNotExists", "not_registered"),
            (v.move_stake(hot("v"), hot("a"), 3000 * TAO + 1), "NotEnoughStakeToWithdraw", "insufficient_balance"),
            (v.transfer_stake(hot("a"), cold("x"), TAO), "NotEnoughStakeToWithdraw", "insufficient_balance"),
            (v.transfer_stake(hot("v"), cold("x"), 2**200), "NotEnoughStakeToWithdraw", "insufficient_balance"),
            (v.move_stake(hot("v"), hot("a"), 1_999_999), "AmountTooLow", "limit_exceeded"),
            (v.transfer_stake(hot("v"), cold("x"), 0), "AmountTooLow", "limit_exceeded"),
            (v.transfer_stake(hot("v"), cold("x"), -TAO), "AmountTooLow", "limit_exceeded"),
        ):
            assert refused(await write) == (name, code, Next.NOTHING, 0)
        assert await v.stake(hot("v"), cold("v")) == 3000 * TAO
        least_rao = (await v.stake_params()).least_rao
        assert refused(await v.move_stake(hot("v"), hot("a"), least_rao - 1))[0] == "AmountTooLow"
        assert (await v.move_stake(hot("v"), hot("a"), least_rao)).ok
        assert await v.stake(hot("a"), cold("v")) == least_rao

    in_world(main)


@pytest.mark.parametrize("price_rao", [1, 10_000_000, 999_999_999, 10**9, 7 * 10**10])
def test_the_least_movement_is_worth_more_than_the_chains_minimum_in_tao_and_hardly_more(in_world, price_rao):
    """The minimum is of TAO at the pool's price: at 0.01 TAO an alpha, 0.2 alpha and not 0.002."""

    async def main(world, v):
        await world.set_rules(alpha_price_rao=price_rao)
        worth_rao = (await v.stake_params()).least_rao * price_rao // 10**9
        assert 2_000_000 < worth_rao <= 2_020_000 + price_rao // 10**9 + 1

    in_world(main)


def test_a_transfer_that_the_subnets_owner_has_switched_off_is_refused_before_it_is_signed(in_world):
    async def main(world, v):
        await world.register("a")
        await world.set_rules(transfers_allowed=False)
        outcome = await v.transfer_stake(hot("v"), cold("x"), 5 * TAO, hot("a"))
        assert refused(outcome) == ("TransferDisallowed", "disabled", Next.NOTHING, 0)
        assert not (await v.stake_params()).transfers
        assert (await v.move_stake(hot("v"), hot("a"), 5 * TAO)).ok  # the owner stays
        assert getattr(world, "node", None) is None or world.node.submitted == 1
        await world.set_rules(transfers_allowed=True)
        assert (await v.transfer_stake(hot("v"), cold("x"), 5 * TAO, hot("a"))).ok

    in_world(main)


def test_a_subnet_that_has_not_started_and_stake_that_lands_elsewhere_are_seen(tmp_path):
    async def main(world, v):
        assert (await v.stake_params()).auto_stake_hotkey is None
        world.node.state.auto_stake[cold("v")] = hot("a")
        assert (await v.stake_params()).auto_stake_hotkey == hot("a")
        await world.set_rules(subtoken_enabled=False)
        outcome = await v.move_stake(hot("v"), hot("owner"), TAO)
        assert refused(outcome)[:2] == ("SubtokenDisabled", "subtoken_disabled") and world.node.submitted == 0

    on_node(tmp_path, main)


def test_serving_publishes_the_address_and_refuses_what_is_none(in_world):
    async def main(world, v):
        for host, port, address in (("5.6.7.8", 8091, "5.6.7.8:8091"), ("2606:4700::AB", 1, "[2606:4700::ab]:1")):
            assert (await v.serve(host, port)).ok
            assert (await v.metagraph()).by_hotkey(v.hotkey).address == address
            await world.advance(50)
        assert (await v.serve("2606:4700::ab", 1)).ok  # as it is
        stranger = await world.chain("stranger")
        for who, host, port, name, code in (
            (v, "localhost", 80, "InvalidIpAddress", "invalid_argument"),
            (v, "", 80, "InvalidIpAddress", "invalid_argument"),
            (v, "5.6.7.8", 0, "InvalidPort", "invalid_argument"),
            (v, "5.6.7.8", 65536, "InvalidPort", "invalid_argument"),
            (stranger, "5.6.7.8", 80, "HotKeyNotRegisteredInNetwork", "not_registered"),
        ):
            assert refused(await who.serve(host, port)) == (name, code, Next.NOTHING, 0)
        assert (await v.metagraph()).by_hotkey(v.hotkey).address == "[2606:4700::ab]:1"

    in_world(main)


# ---------------------------------------------------------------------------------------------------------------------
# Values


def test_u16_weights_are_the_max_upscaled_half_even_values_of_the_chain():
    assert u16_weights({3: Fraction(1, 3), 1: Decimal("0.6666")}) == {1: 65535, 3: 32771}
    assert u16_weights({0: 1}) == {0: 65535}
    assert u16_weights({0: 131070, 1: 1, 2: 3}) == {0: 65535, 2: 2}  # 0.5 and 1.5, each to the even neighbour
    assert u16_weights({0: 2 * 10**6, 1: 0, 2: 1}) == {0: 65535}  # 0.03 is nothing
    random_ = random.Random(1)
    with localcontext(prec=200):
        for _ in range(300):
            numbers = {uid: random_.randrange(10**12) for uid in range(random_.randrange(1, 40))}
            numbers[99] = random_.randrange(1, 10**12)
            top = Decimal(max(numbers.values()))
            expected = {
                uid: int((Decimal(n) * U16_MAX / top).quantize(Decimal(1), ROUND_HALF_EVEN))
                for uid, n in numbers.items()
            }
            assert u16_weights(numbers) == {uid: value for uid, value in expected.items() if value}


def test_u16_weights_are_the_sdks_own_where_floats_are_exact():
    """The oracle is `bittensor.intents.normalize`; it also leaves u16 weights as they are, whichever they are."""
    random_ = random.Random(2)
    for _ in range(200):
        numbers = {uid: random_.randrange(2**20) for uid in range(random_.randrange(1, 50))} | {50: 2**20}
        uids, values = normalize(list(numbers), [float(n) for n in numbers.values()])
        assert u16_weights(numbers) == dict(zip(uids, values, strict=True))
    every = list(range(U16_MAX, 0, -1))
    assert normalize(every, every) == (every, every)


@pytest.mark.parametrize("bad", [{}, {0: 0}, {0: -1, 1: 2}, {0: Decimal("NaN")}, {0: Decimal("Infinity")}])
def test_numbers_that_make_no_vector_are_a_value_error(bad):
    with pytest.raises(ValueError, match="weight"):
        u16_weights(bad)


def test_burn_uid_is_the_owner_hotkey_else_the_owner_coldkeys_lowest_uid_else_none():
    def neuron(uid, hotkey, coldkey):
        return Neuron(uid, hotkey, coldkey, False, 0, None, 0, 0)

    graph = Metagraph(98, 1, 360, "owner-hot", "owner-cold", ())
    other = neuron(0, "a", "b")
    second, first = neuron(2, "x", "owner-cold"), neuron(1, "y", "owner-cold")
    assert replace(graph, neurons=(other, first, second, neuron(3, "owner-hot", "owner-cold"))).burn_uid() == 3
    assert replace(graph, neurons=(other, first, second)).burn_uid() == 1
    assert replace(graph, neurons=(other,)).burn_uid() is None
    assert replace(graph, neurons=(other,)).by_hotkey("a") == other
    assert graph.by_hotkey("a") is None


def test_every_error_code_of_the_sdk_is_a_write_code():
    assert {code.value for code in bt.ErrorCode} == {str(code) for code in WriteCode} - {"ok"}


# ---------------------------------------------------------------------------------------------------------------------
# What only a real network has: history, pools, fees


def test_past_blocks_are_read_as_they_were(tmp_path):
    async def main(world, v):
        world.node.advance(3)
        world.node.register(hot("m"), cold("m"))
        assert [len((await v.metagraph(block)).neurons) for block in (START, START + 2, START + 3, None)] == [
            2,
            2,
            3,
            3,
        ]
        assert (await v.metagraph(START)).block == START

    on_node(tmp_path, main)


def test_the_burn_uid_follows_the_owner(tmp_path):
    async def main(world, v):
        assert (await v.metagraph()).burn_uid() == 0
        world.node.state.owner = (hot("elsewhere"), cold("v"))  # a conviction took the subnet
        assert (await v.metagraph()).burn_uid() == 1
        world.node.state.owner = (hot("elsewhere"), cold("elsewhere"))
        assert (await v.metagraph()).burn_uid() is None

    on_node(tmp_path, main)


def test_pools_are_exact_and_of_one_block(tmp_path):
    async def main(world, v):
        (pool,) = (await v.pools(START)).values()
        assert (pool.netuid, pool.block, pool.price_rao, pool.moving_price) == (98, START, 30_001_000, Fraction(1, 32))
        assert (pool.tao_in_rao, pool.alpha_in_rao, pool.alpha_out_rao) == (3 * 10**12, 10**14, 2 * 10**14)
        world.node.advance(4)
        assert [(await v.pools(block))[98].price_rao for block in (START, None)] == [30_001_000, 30_001_004]

    on_node(tmp_path, main)


def test_fees_come_from_the_free_balance_of_the_coldkey_also_for_what_the_hotkey_signs(tmp_path):
    async def main(world, v):
        before = await v.free_balance()
        assert (await v.set_weights({0: 1}, 0)).ok
        assert 0 < before - await v.free_balance() < 10**6
        world.node.state.free[cold("v")] = 5
        outcome = await v.set_weights({0: 1}, 0)
        assert refused(outcome) == ("Payment", WriteCode.INSUFFICIENT_BALANCE, Next.NOTHING, 0)

    on_node(tmp_path, main)


def test_no_write_costs_more_than_the_cap(tmp_path, monkeypatch):
    async def main(world, v):
        monkeypatch.setattr(subtensor, "MAX_FEE_TAO", "0.0001")
        outcome = await v.set_weights({0: 1}, 0)
        assert refused(outcome) == ("PolicyError", WriteCode.POLICY_VIOLATION, Next.NOTHING, 0)
        assert world.node.submitted == 0
        monkeypatch.undo()
        world.node.faults["payment"] = [ValueError("no such runtime call")]
        assert refused(await v.set_weights({0: 1}, 0))[2] is Next.SIGN_AGAIN

    on_node(tmp_path, main)


def test_weights_for_a_uid_that_was_recycled_since_are_in_force(tmp_path):
    async def work() -> list[bool]:
        async with AsyncExitStack() as stack:
            world = await stack.enter_async_context(BittensorWorld.open(tmp_path, stack))
            for name, tao in (("v", 10_000), ("a", 0), ("b", 0)):
                await world.register(name, tao)
            v, state, found = await world.chain("v"), world.node.state, []
            graph = await v.metagraph()
            uids = [graph.by_hotkey(hot(name)).uid for name in "vab"]
            weights = dict.fromkeys(uids[1:], 1)
            assert (await v.set_weights(weights, 0)).ok
            state = world.node.state
            state.weights[98, uids[0]] = [(uid, weight) for uid, weight in state.weights[98, uids[0]] if uid != uids[2]]
            found.append((await vector_in_force(v, weights)).ok)  # it is not there, and nobody came in its place
            state.uids[uids[2]].hotkey, state.uids[uids[2]].registered = hot("new"), state.block
            found.append((await vector_in_force(v, weights)).ok)
            found.append((await vector_in_force(v, {uids[1]: 1, uids[0]: 1})).ok)  # another vector stays another
            return found

    assert asyncio.run(work()) == [False, True, False]


def test_an_address_that_is_published_already_is_not_sent_again(tmp_path):
    async def main(world, v):
        assert (await v.serve("5.6.7.8", 80)).ok
        for host in ("5.6.7.8", "5.6.7.8"):
            assert (await v.serve(host, 80)).detail == "already so"
        assert world.node.submitted == 1
        outcome = await v.serve("5.6.7.9", 80)
        assert refused(outcome) == ("ServingRateLimitExceeded", WriteCode.RATE_LIMITED, Next.WAIT_BLOCKS, 50)
        world.node.advance(50)
        assert (await v.serve("5.6.7.9", 80)).ok
        assert refused(await v.serve("127.0.0.1", 80))[0] == "InvalidIpAddress"  # the chain's own refusal

    on_node(tmp_path, main)


def test_without_its_coldkey_a_wallet_moves_no_stake(tmp_path):
    async def main(world, _):
        v = await world.chain("v", wallet=replace(wallet_of("v"), coldkey=None))
        for write in (v.move_stake(hot("v"), hot("owner"), TAO), v.transfer_stake(hot("v"), cold("owner"), TAO)):
            assert refused(await write) == ("ColdkeyLocked", WriteCode.NOT_AUTHORIZED, Next.NOTHING, 0)
        assert (await v.set_weights({0: 1}, 0)).ok

    on_node(tmp_path, main)


def test_a_wrong_destination_is_refused_before_anything_is_signed(tmp_path):
    async def main(world, v):
        wrong = cold("v")[:-1] + ("a" if cold("v")[-1] != "a" else "b")
        for write in (
            v.transfer_stake(hot("v"), wrong, TAO),
            v.transfer_stake(hot("v"), cold("a"), TAO, wrong),
            v.move_stake(hot("v"), wrong, TAO),
            v.move_stake(wrong, hot("owner"), TAO),
        ):
            assert refused(await write) == ("ChainMistake", WriteCode.INVALID_ARGUMENT, Next.NOTHING, 0)
        assert world.node.submitted == 0

    on_node(tmp_path, main)


# ---------------------------------------------------------------------------------------------------------------------
# Commit-reveal


COMMITTED = {0: Fraction(1, 3), 1: 1}


def on_committing_node(tmp_path, monkeypatch, main, **rules):
    async def prepared(world, v):
        remember_commits(monkeypatch, world.node)
        await main(world, v)

    on_node(tmp_path, prepared, **{"commit_reveal": True, "tempo": 20, **rules})


def test_a_commit_is_in_force_after_its_reveal_and_not_before(tmp_path, monkeypatch):
    async def main(world, v):
        assert (await (await world.chain("owner")).set_weights({1: 1}, 3)).ok
        outcome = await v.set_weights(COMMITTED, 3)
        assert outcome.ok and "drand round" in outcome.detail
        params = await v.weight_params(v.hotkey)
        assert (params.commit_reveal, params.unrevealed_commits, params.last_update_block) == (True, 1, outcome.block)
        for _ in range(2):  # two epochs
            waiting = await vector_in_force(v, COMMITTED)
            left = (await v.epoch()).next_epoch_block - await v.block()
            assert refused(waiting) == ("NotRevealed", WriteCode.TOO_EARLY, Next.WAIT_BLOCKS, left)
            assert await v.weights_of(1) == {}
            world.node.advance(left)
        assert (await vector_in_force(v, COMMITTED)).ok
        assert await v.weights_of(1) == u16_weights(COMMITTED)
        assert (await v.weight_params(v.hotkey)).unrevealed_commits == 0
        assert (await v.weight_params(v.hotkey)).last_update_block == outcome.block  # counts from the commit

    on_committing_node(tmp_path, monkeypatch, main, reveal_period_epochs=2, version_key=3)


@pytest.mark.parametrize(
    ("name", "rules", "weights", "version_key"),
    [
        ("NeuronNoValidatorPermit", {"max_validators": 1}, COMMITTED, 0),
        ("NotEnoughStakeToSetWeights", {"stake_threshold_rao": 4000 * TAO}, COMMITTED, 0),
        ("IncorrectWeightVersionKey", {"version_key": 9}, COMMITTED, 8),
        ("WeightVecLengthIsLow", {"min_allowed_weights": 2}, {0: 1}, 0),
        ("UidVecContainInvalidOne", {}, {0: 1, 7: 1}, 0),
        ("MaxWeightExceeded", {"max_weight": 40000}, COMMITTED, 0),
        ("CommittingWeightsTooFast", {"weights_rate_limit_blocks": 10}, COMMITTED, 0),
    ],
)
def test_what_a_reveal_would_refuse_silently_is_refused_before_the_commit(
    tmp_path, monkeypatch, name, rules, weights, version_key
):
    async def main(world, v):
        assert refused(await v.set_weights(weights, version_key))[0] == name
        assert world.node.submitted == 0

    on_committing_node(tmp_path, monkeypatch, main, **rules)


@pytest.mark.parametrize("changed", ["version key", "permit", "stake"])
def test_a_commit_that_fails_at_its_reveal_is_noticed(tmp_path, monkeypatch, changed):
    async def main(world, v):
        assert (await v.set_weights({0: 1}, 0)).ok
        world.node.advance(40)
        assert (await vector_in_force(v, {0: 1})).ok
        assert (await v.set_weights(COMMITTED, 0)).ok
        if changed == "version key":
            world.node.set_rules(version_key=5)
        elif changed == "permit":
            world.node.state.uids[1].permit = False
        else:
            world.node.set_rules(stake_threshold_rao=4000 * TAO)
        world.node.advance(40)
        assert refused(await vector_in_force(v, COMMITTED)) == ("NotInForce", WriteCode.UNKNOWN, Next.NOTHING, 0)
        assert await v.weights_of(1) == {0: U16_MAX}  # the one before

    on_committing_node(tmp_path, monkeypatch, main)


def test_too_many_unrevealed_commits_are_refused_by_the_chain(tmp_path, monkeypatch):
    async def main(world, v):
        outcomes = [await v.set_weights(COMMITTED, 0) for _ in range(11)]
        assert all(outcome.ok for outcome in outcomes[:10])
        assert refused(outcomes[10]) == ("TooManyUnrevealedCommits", WriteCode.LIMIT_EXCEEDED, Next.NOTHING, 0)
        assert (await v.weight_params(v.hotkey)).unrevealed_commits == 10

    on_committing_node(tmp_path, monkeypatch, main, tempo=360)


# ---------------------------------------------------------------------------------------------------------------------
# Every way a write can fail


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        # refused at the door, in the node's words: certainly not applied
        ("pool: Transaction has a bad signature", ("BadProof", "invalid_argument", "sign_again", 0)),
        ("pool: Transaction has an ancient birth block", ("AncientBirthBlock", "expired", "sign_again", 0)),
        ("pool: Transaction is outdated", ("Stale", "expired", "sign_again", 0)),
        ("pool: Transaction will be valid in the future", ("Future", "too_early", "sign_again", 0)),
        ("pool: Custom error: 15", ("InvalidRevealRound", "expired", "sign_again", 0)),
        ("pool: Priority is too low: (1 vs 1)", ("PriorityTooLow", "rate_limited", "wait_blocks", 1)),
        ("pool: Custom error: 6", ("RateLimitExceeded", "rate_limited", "wait_blocks", 1)),
        ("pool: Transaction would exceed the block limits", ("ExhaustsResources", "limit_exceeded", "wait_blocks", 1)),
        ("pool: Custom error: 19", ("HotKeyNotRegisteredInSubNet", "not_registered", "nothing", 0)),
        ("pool: Custom error: 255", ("BadRequest", "invalid_argument", "nothing", 0)),
        # failed in a block: certainly not applied
        ("dispatch: SettingWeightsTooFast", ("SettingWeightsTooFast", "rate_limited", "wait_blocks", 1)),
        ("dispatch: NeuronNoValidatorPermit", ("NeuronNoValidatorPermit", "not_authorized", "nothing", 0)),
        ("dispatch: StakeUnavailable", ("StakeUnavailable", "insufficient_balance", "nothing", 0)),
        ("dispatch: InvalidRevealRound", ("InvalidRevealRound", "expired", "sign_again", 0)),
        ("dispatch: IncorrectCommitRevealVersion", ("IncorrectCommitRevealVersion", None, "nothing", 0)),
        # signed and lost sight of
        ("watch: retracted", ("Retracted", "unknown", "read_state_first", SETTLED)),
        ("watch: finalitytimeout", ("FinalityTimeout", "unknown", "read_state_first", SETTLED)),
        ("watch: dropped", ("Dropped", "unknown", "read_state_first", SETTLED)),
        ("watch: usurped", ("Usurped", "already_exists", "read_state_first", SETTLED)),
        ("watch: invalid", ("Invalid", "invalid_argument", "read_state_first", SETTLED)),
        ("pool: Transaction is already imported", ("AlreadyImported", None, "read_state_first", SETTLED)),
        ("pool: something nobody has heard of", (None, None, "nothing", 0)),
        ("lost before", ("ChainError", "unknown", "read_state_first", SETTLED)),
        ("lost after", ("ChainError", "unknown", "read_state_first", SETTLED)),
        (LOST, ("RpcConnectionError", "unknown", "read_state_first", SETTLED)),
        (THROTTLED, ("RpcPolicyError", "unknown", "read_state_first", SETTLED)),
        (RuntimeError("out of the blue"), ("ChainError", "unknown", "read_state_first", SETTLED)),
    ],
    ids=str,
)
def test_each_end_of_a_submission_says_what_may_be_done_next(tmp_path, fault, expected):
    async def main(world, v):
        world.node.faults["submit"] = [fault]
        got = refused(await v.set_weights({0: 1}, 0))
        assert [want is None or want == have for want, have in zip(expected, got, strict=True)] == [True] * 4, got
        if got[2] != Next.READ_STATE_FIRST:
            assert await v.weights_of(1) == {}
        assert (await v.set_weights({0: 1}, 0)).ok  # and afterwards all is well again

    on_node(tmp_path, main)


@pytest.mark.parametrize(
    ("where", "fault", "expected"),
    [
        ("read", LOST, ("RpcConnectionError", "unknown", "sign_again", 0)),
        ("get_metagraph", LOST, ("RpcConnectionError", "unknown", "sign_again", 0)),
        ("WeightsSetRateLimit", THROTTLED, ("RpcPolicyError", "unknown", "wait_blocks", 3)),
        ("nonce", LOST, ("RpcConnectionError", "unknown", "sign_again", 0)),
        (
            "StakeThreshold",
            ValueError('Storage function "StakeThreshold" not found'),
            ("ValueError", None, "nothing", 0),
        ),
        ("get_metagraph", KeyError("hotkeys"), ("KeyError", "unknown", "nothing", 0)),
        ("get_metagraph", AttributeError("x", name="y"), ("AttributeError", "unknown", "nothing", 0)),
    ],
    ids=str,
)
def test_what_fails_before_the_signature_certainly_did_not_happen(tmp_path, where, fault, expected):
    async def main(world, v):
        world.node.faults[where] = [fault]
        got = refused(await v.set_weights({0: 1}, 0))
        assert [want is None or want == have for want, have in zip(expected, got, strict=True)] == [True] * 4, got
        assert world.node.submitted == 0 and await v.weights_of(1) == {}
        assert (await v.set_weights({0: 1}, 0)).ok

    on_node(tmp_path, main)


def test_a_rate_limit_that_only_the_sdk_sees_is_still_a_wait(tmp_path, monkeypatch, caplog):
    async def main(world, v):
        monkeypatch.setattr(subtensor, "check_weights", lambda *_: None)
        outcome = await v.set_weights({0: 1}, 0)
        assert (outcome.code, outcome.next) == (WriteCode.RATE_LIMITED, Next.WAIT_BLOCKS)
        assert "Retry in ~9 blocks" in caplog.text and "Retry" not in outcome.detail

    on_node(tmp_path, main, weights_rate_limit_blocks=9)


def test_after_a_lost_write_the_state_tells_what_became_of_it(tmp_path):
    async def main(world, v):
        for fault, moved in (("lost before", 0), ("lost after", 7), ("hang after", 14)):
            world.node.faults["submit"] = [fault]
            outcome = await v.move_stake(hot("v"), hot("owner"), 7 * TAO)
            assert refused(outcome)[2:] == (Next.READ_STATE_FIRST, ERA_BLOCKS + 1)
            assert await v.stake(hot("owner"), cold("v")) == moved * TAO
        assert (await v.move_stake(hot("v"), hot("owner"), 7 * TAO)).ok  # the nonce is the node's again
        assert set(world.node.periods) == {ERA_BLOCKS}  # none of them can land later than we say

    async def impatient(world, _):
        await main(world, await world.chain("v", write_deadline_seconds=0.3))

    on_node(tmp_path, impatient)


# ---------------------------------------------------------------------------------------------------------------------
# Deadlines and the one client


def test_a_read_that_hangs_meets_its_deadline_and_the_next_one_dials_anew(tmp_path):
    async def main(world, _):
        v = await world.chain("v", deadline_seconds=0.2)
        before = world.node.connections
        for method, point in ((v.block, "block"), (v.metagraph, "get_metagraph"), (v.epoch, "LastEpochBlock")):
            world.node.faults[point] = ["hang"]
            with pytest.raises(ChainError, match=r"no answer from the chain within 0.2 s"):
                await method()
            assert await v.block() == START
        assert (world.node.connections - before, world.node.closed) == (3, 3)

    on_node(tmp_path, main)


@pytest.mark.parametrize("fault", [LOST, THROTTLED, ConnectionResetError("peer"), TimeoutError()], ids=str)
def test_a_lost_connection_is_an_error_for_the_call_and_nothing_to_the_next(tmp_path, fault):
    async def main(world, v):
        world.node.faults["read"] = [fault]
        with pytest.raises(ChainError, match=r"^block: "):
            await v.block()
        assert await v.block() == START
        assert (world.node.connections, world.node.closed) == (2, 1)

    on_node(tmp_path, main)


def test_an_error_of_the_node_does_not_cost_the_connection(tmp_path):
    async def main(world, v):
        world.node.unknown = {"LastEpochBlock"}
        with pytest.raises(ChainError, match=r"^epoch: ValueError; .*update bittensor; the log says more$"):
            await v.epoch()
        assert await v.block() == START
        assert (world.node.connections, world.node.closed) == (1, 0)

    on_node(tmp_path, main)


def test_dialing_that_fails_or_takes_longer_than_a_call_is_tried_again(tmp_path):
    async def main(world, v):
        world.node.faults["read"] = [LOST]
        world.node.faults["connect"] = [LOST, LOST]
        for _ in range(3):
            with pytest.raises(ChainError, match="block: RpcConnectionError"):
                await v.block()
        assert await v.block() == START
        v._read_seconds = 0.1
        world.node.faults["read"], world.node.faults["connect"] = [LOST], ["hang"]
        for _ in range(3):
            with pytest.raises(ChainError):
                await v.block()
        assert world.node.connections == 5  # one dialing, however many wait for it

    on_node(tmp_path, main)


def test_a_slow_call_keeps_its_client_while_others_go_on_with_a_new_one(tmp_path):
    async def main(world, v):
        world.node.faults["submit"] = ["hang after"]
        v._write_seconds = 1.0
        slow = asyncio.create_task(v.set_weights({0: 1}, 0))
        while not world.node.submitted:
            await asyncio.sleep(0.01)
        world.node.faults["read"] = [LOST]
        with pytest.raises(ChainError):
            await v.block()
        assert await v.block() == START + 1
        assert (world.node.connections, world.node.closed, slow.done()) == (2, 0, False)
        assert refused(await slow)[2] is Next.READ_STATE_FIRST
        await asyncio.sleep(0.05)
        assert (world.node.connections, world.node.closed) == (2, 1)
        assert (await v.set_weights({0: 1}, 0)).ok

    on_node(tmp_path, main)


def test_calls_at_the_same_time_share_a_client_and_writes_go_one_after_the_other(tmp_path):
    async def main(world, v):
        moves = [v.move_stake(hot("v"), hot("owner"), TAO) for _ in range(6)]
        reads = [v.metagraph() for _ in range(6)]
        done = await asyncio.gather(*moves, *reads)
        assert all(outcome.ok for outcome in done[:6])
        assert await v.stake(hot("owner"), cold("v")) == 6 * TAO
        assert (world.node.connections, world.node.most_at_once) == (1, 1)

    on_node(tmp_path, main)


def test_a_cancelled_write_leaves_a_chain_that_works(tmp_path):
    async def main(world, v):
        world.node.faults["submit"] = ["hang"]
        task = asyncio.create_task(v.set_weights({0: 1}, 0))
        while world.node.faults["submit"]:  # until the node hangs in it: a cancel before would leave that to the next
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await v.set_weights({0: 1}, 0)).ok

    on_node(tmp_path, main)


def test_every_connection_is_closed_at_the_end(tmp_path):
    nodes = []

    async def main(world, v):
        nodes.append(world.node)
        world.node.faults["read"] = [LOST]
        with pytest.raises(ChainError):
            await v.block()
        await v.block()

    on_node(tmp_path, main)
    assert nodes[0].connections == nodes[0].closed == 2


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ({"network": "finey"}, "no network 'finey'; it is one of finney, test"),
        ({"network": "ws://127.0.0.1"}, "no network 'ws://127.0.0.1'; .* or give an endpoint"),
        ({"endpoint": "https://127.0.0.1/token"}, "^the endpoint does not begin with ws:// or wss://$"),
        ({"endpoint": "ws://127.0.0.1:9"}, "block: RpcConnectionError; the log"),
    ],
)
def test_a_network_that_is_none_or_does_not_answer_is_said_in_one_line(where, says):
    async def main():
        async with BittensorChain.open(netuid=98, wallet=wallet_of("v"), deadline_seconds=20, **where):
            pass

    with pytest.raises(ChainError, match=says) as caught:
        asyncio.run(main())
    assert "\n" not in str(caught.value)


def test_a_node_that_accepts_and_stays_silent_meets_the_deadline():
    async def main():
        tasks = []

        async def silent(reader, writer):
            tasks.append(asyncio.current_task())
            try:
                await reader.read(-1)
            finally:
                writer.close()

        async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
            endpoint = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            options = {"netuid": 98, "wallet": wallet_of("v"), "deadline_seconds": 0.3}
            try:
                async with BittensorChain.open(endpoint=endpoint, **options):
                    pass
            finally:
                for task in tasks:  # from Python 3.12 on a server waits for its connections
                    task.cancel()

    with pytest.raises(ChainError, match=r"no answer from the chain within 0.3 s"):
        asyncio.run(asyncio.wait_for(main(), 30))


def test_another_netuid_does_not_exist(tmp_path):
    async def main(world, _):
        v = await world.chain("v", netuid=5)
        with pytest.raises(ChainError, match="netuid 5 does not exist"):
            await v.metagraph()

    on_node(tmp_path, main)


# ---------------------------------------------------------------------------------------------------------------------
# Wallets and addresses

PASSWORD = "correct horse 7"


@pytest.fixture(scope="module")
def wallets(tmp_path_factory):
    """A folder with wallet `w`: coldkey and hotkey `safe` encrypted (seconds each, by design), hotkey `plain` not."""
    folder = str(tmp_path_factory.mktemp("wallets"))
    made = bt.Wallet("w", "plain", folder).create_new_coldkey(coldkey_password=PASSWORD, suppress=True)
    made.create_new_hotkey(suppress=True)
    bt.Wallet("w", "safe", folder).create_new_hotkey(hotkey_password=PASSWORD, suppress=True)
    return folder


@pytest.fixture(autouse=True)
def _no_prompts(monkeypatch):
    def prompt(*_, **__):
        raise AssertionError("it asked at the terminal")

    for place in ("builtins.input", "getpass.getpass", "bittensor.keyfiles.masked_input"):
        monkeypatch.setattr(place, prompt)


def test_a_wallet_opens_without_a_prompt_and_its_keys_sign(wallets):
    made = bt.Wallet("w", "plain", wallets)
    wallet = load_wallet("w", "plain", wallets)
    assert (wallet.hotkey.ss58_address, wallet.coldkey) == (made.hotkey.ss58_address, None)
    assert wallet.coldkey_address == made.coldkeypub.ss58_address
    unlocked = load_wallet("w", "safe", wallets, PASSWORD, need_coldkey=True)
    assert unlocked.coldkey.ss58_address == unlocked.coldkey_address == wallet.coldkey_address
    for key in (wallet.hotkey, unlocked.hotkey, unlocked.coldkey):
        assert key.verify(b"data", key.sign(b"data"))
    assert PASSWORD not in repr(unlocked) and "Keypair" not in repr(unlocked)


@pytest.mark.parametrize(
    ("name", "hotkey", "password", "need_coldkey", "says"),
    [
        ("w", "plain", None, True, "coldkey is encrypted; give its password"),
        ("w", "plain", "", True, "coldkey is encrypted; give its password"),
        ("w", "safe", None, False, "safe is encrypted; give its password"),
        ("w", "plain", PASSWORD + "x", True, "wrong password for .*coldkey$"),
        ("w", "plain", PASSWORD + "\xa0", True, "wrong password for .*coldkey; it has what cannot be seen: U\\+00A0"),
        ("nobody", "plain", None, False, "no key file .*nobody"),
        ("w", "nobody", None, False, "no key file .*nobody"),
        ("w/plain", "other", None, False, "wallet w/plain: "),
    ],
)
def test_a_wallet_that_does_not_open_says_why_in_one_line(wallets, name, hotkey, password, need_coldkey, says):
    with pytest.raises(ChainError, match=says) as caught:
        load_wallet(name, hotkey, wallets, password, need_coldkey)
    assert "\n" not in str(caught.value)
    assert not password or password not in str(caught.value)
    error = caught.value
    assert error.__suppress_context__ or error.__context__ is None  # nothing of the SDK's is shown along


def test_a_broken_key_file_and_a_hotkey_of_another_scheme_are_said(wallets):
    for content in ("{}", "", "[]", "\0" * 100, '{"secretSeed": "0x12"}'):
        (Path(wallets) / "w/hotkeys/broken").write_text(content)
        with pytest.raises(ChainError, match="broken: "):
            load_wallet("w", "broken", wallets)
    bt.Wallet("w", "ed", wallets).create_new_hotkey(suppress=True, crypto_type=0)
    with pytest.raises(ChainError, match="not an sr25519 key"):
        load_wallet("w", "ed", wallets)


def test_an_address_has_the_right_format_and_checksum():
    alice = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY"
    assert check_address(alice) == alice
    for wrong, says in (
        (alice[:-1] + "Z", "checksum"),
        (alice[:-1], "48 characters"),
        ("0" + alice[1:], "48 characters"),
        ("", "48 characters"),
        ("1" * 100_000, "48 characters"),
        ("15oF4uVJwmo4TdGW7VfQxNLavjCXviqxT9S1MgbjMNHr6Sp5", "another network"),  # Alice on Polkadot
    ):
        with pytest.raises(ChainError, match=says) as caught:
            check_address(wrong)
        assert len(str(caught.value)) < 200


# ---------------------------------------------------------------------------------------------------------------------
# A real node: `pytest -m localnet`, see docs/real-network.md


@pytest.mark.localnet
def test_a_localnet_node_answers_every_read_and_refuses_in_our_words():
    """Development keys against the node at BT_CHAIN_ENDPOINT; a fresh hotkey, so nothing on the chain matters."""

    async def main():
        endpoint = os.environ.get("BT_CHAIN_ENDPOINT", "ws://127.0.0.1:9944")
        key = local_keypair("localnet-hotkey")
        alice = bt.keyfiles.Keypair.create_from_uri("//Alice")
        wallet = Wallet(key, alice.ss58_address, alice)
        netuid = int(os.environ.get("BT_NETUID", "1"))
        async with BittensorChain.open(endpoint=endpoint, netuid=netuid, wallet=wallet) as chain:
            head = await chain.block()
            graph = await chain.metagraph(head)
            assert (graph.netuid, graph.block) == (netuid, head)
            assert [neuron.uid for neuron in graph.neurons] == list(range(len(graph.neurons)))
            epoch = await chain.epoch()
            assert epoch.last_epoch_block <= await chain.block() and epoch.tempo == graph.tempo
            assert (await chain.weight_params(key.ss58_address)).last_update_block is None
            assert await chain.weights_of(65_000) == {}
            assert await chain.stake(key.ss58_address, alice.ss58_address) == 0
            assert await chain.free_balance() > 0
            assert (await chain.pools())[netuid].price_rao > 0
            assert refused(await chain.set_weights({0: 1}, 0))[0] == "HotKeyNotRegisteredInSubNet"
            assert refused(await chain.serve("5.6.7.8", 80))[0] == "HotKeyNotRegisteredInNetwork"
            outcome = await chain.transfer_stake(key.ss58_address, alice.ss58_address, TAO)
            assert refused(outcome)[0] == "NotEnoughStakeToWithdraw"

    asyncio.run(main())
