"""The embedded chain: its ledger, its epochs, its refusals, and what survives crashes and company.

What both chains promise alike is in `test_chain.py`. Run with `python -m pytest tests/test_local.py`.
Read next: `local.py`.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import asynccontextmanager
from fractions import Fraction
from pathlib import Path

import pytest

from chain.base import BLOCK_SECONDS, REFUSALS, ChainError, Neuron, Next, WriteCode
from chain.ledger import Hyperparameters
from chain.local import OWNER_COLDKEY, OWNER_HOTKEY, OWNER_STAKE_RAO, LocalChain, block_at

TAO = 10**9
GENESIS = 1000
ROOT = Path(__file__).parent.parent


@asynccontextmanager
async def subnet(path, who="v", *, stakes=None, **rules):
    """A ledger at GENESIS without rate limit, `who`'s wallet, and a neuron for each of `stakes` (TAO by name)."""
    hyperparameters = Hyperparameters(**{"weights_rate_limit_blocks": 0, **rules})
    wallet = (f"{who}-hot", f"{who}-cold")
    async with LocalChain.open(path, *wallet, genesis_block=GENESIS, hyperparameters=hyperparameters) as chain:
        for name, tao in (stakes or {}).items():
            await chain.register(f"{name}-hot", f"{name}-cold", tao * TAO)
        yield chain


@asynccontextmanager
async def wallet(path, who):
    async with LocalChain.open(path, f"{who}-hot", f"{who}-cold") as chain:
        yield chain


def rows(path, sql):
    """What another program sees in the file: an oracle that shares no code with LocalChain."""
    db = sqlite3.connect(path)
    try:
        return db.execute(sql).fetchall()
    finally:
        db.close()


def check_books(path, faucet_rao, emission_rao_per_block=10**9):
    """Every rao is accounted for: minted by genesis, faucet and epochs; each epoch's emission credited or burned."""
    epochs = rows(path, "SELECT block, emitted_rao, credited_rao, burned_rao FROM epochs ORDER BY block")
    assert all(emitted == credited + burned for _, emitted, credited, burned in epochs)
    assert all(burned >= 0 for *_, burned in epochs)
    for (before, *_), (block, emitted, *_) in itertools.pairwise(epochs):
        assert emitted == (block - before) * emission_rao_per_block
    ((held,),) = rows(path, "SELECT SUM(rao) FROM stakes")
    assert held == OWNER_STAKE_RAO + faucet_rao + sum(credited for _, _, credited, _ in epochs)
    return [block for block, *_ in epochs]


# ---------------------------------------------------------------------------------------------------------------------
# Genesis, blocks, registration


def test_a_new_ledger_has_the_owner_as_uid_0_with_stake_and_permit_and_no_epoch_yet(tmp_path):
    async def main():
        async with LocalChain.open(tmp_path / "l", "h", "c", genesis_block=GENESIS) as chain:
            graph = await chain.metagraph()
            (owner,) = graph.neurons
            assert (graph.netuid, graph.block, graph.tempo, graph.burn_uid()) == (98, GENESIS, 360, 0)
            assert owner == Neuron(0, OWNER_HOTKEY, OWNER_COLDKEY, True, OWNER_STAKE_RAO, None, GENESIS, GENESIS)
            epoch = await chain.epoch()
            assert (epoch.last_epoch_block, epoch.tempo, epoch.next_epoch_block) == (GENESIS, 360, GENESIS + 360)
            params = await chain.weight_params("h")
            assert (params.rate_limit_blocks, params.min_allowed_weights, params.max_weight) == (100, 1, 65535)
            assert (params.version_key, params.commit_reveal, params.last_update_block) == (0, False, None)
            assert await chain.metagraph(GENESIS) == graph
            with pytest.raises(ChainError, match=r"block 999: .* newest, 1000"):
                await chain.metagraph(999)

    asyncio.run(main())


def test_only_who_can_say_the_first_block_starts_a_ledger_and_a_wrong_netuid_is_refused(tmp_path):
    async def main():
        path = tmp_path / "l"
        with pytest.raises(ChainError, match=r"no local subnet in .*: start `python validator.py` first"):
            async with LocalChain.open(path, "h", "c"):
                pass
        async with LocalChain.open(path, "h", "c", genesis_block=5):
            pass
        async with LocalChain.open(path, "h", "c") as chain:
            assert await chain.block() == 5
        with pytest.raises(ChainError, match=r"netuid 98, not 99"):
            async with LocalChain.open(path, "h", "c", netuid=99):
                pass

    asyncio.run(main())


def test_the_block_is_the_clocks_twelfth_second_and_never_goes_back(tmp_path):
    async def main():
        now = 12_000.0
        async with LocalChain.open(tmp_path / "l", "h", "c", clock=lambda: now) as chain:
            for seconds, block in ((0, 1000), (11.9, 1000), (12, 1001), (36, 1003), (0, 1003), (48, 1004)):
                now = 12_000.0 + seconds
                assert await chain.block() == block
            assert (await chain.serve("1.1.1.1", 80)).block == 1004
        assert block_at(BLOCK_SECONDS * 7 - 0.001) == 6

    asyncio.run(main())


def test_advance_to_is_monotonic_and_another_process_view_follows(tmp_path):
    async def main():
        path = tmp_path / "l"
        async with subnet(path) as chain, wallet(path, "other") as other:
            assert await chain.advance_to(GENESIS + 50) == GENESIS + 50
            assert await chain.advance_to(GENESIS + 20) == GENESIS + 50
            assert await other.block() == (await other.metagraph()).block == GENESIS + 50

    asyncio.run(main())


def test_registering_again_keeps_uid_and_stake_and_refuses_a_foreign_coldkey(tmp_path):
    async def main():
        path = tmp_path / "l"
        async with subnet(path) as chain:
            assert await chain.register("a", "cold", 7 * TAO) == 1
            await chain.advance_to(GENESIS + 5)
            assert await chain.register("a", "cold", 7 * TAO) == 1
            assert await chain.stake("a", "cold") == 7 * TAO
            assert (await chain.metagraph()).by_hotkey("a").registered_block == GENESIS
            with pytest.raises(ChainError, match="NonAssociatedColdKey"):
                await chain.register("a", "thief")
        check_books(path, 7 * TAO)

    asyncio.run(main())


def test_permits_go_to_the_highest_stakes_above_the_threshold(tmp_path):
    async def main():
        stakes = {"small": 999, "low": 1000, "high": 3000, "mid": 2000, "twin": 2000}
        async with subnet(tmp_path / "l", "high", stakes=stakes, max_validators=3) as chain:
            permits = {n.hotkey: n.permit for n in (await chain.metagraph()).neurons}
            assert permits == {
                OWNER_HOTKEY: True,
                "high-hot": True,
                "mid-hot": True,  # of equals the lower uid
                "twin-hot": False,
                "low-hot": False,
                "small-hot": False,
            }
            assert (await chain.move_stake("high-hot", "twin-hot", 2500 * TAO)).ok
            assert (await chain.metagraph()).by_hotkey("high-hot").permit  # until the epoch
            await chain.advance_to(GENESIS + 360)
            graph = await chain.metagraph()
            assert [graph.by_hotkey(f"{name}-hot").permit for name in ("high", "mid", "twin")] == [False, True, True]

    asyncio.run(main())


# ---------------------------------------------------------------------------------------------------------------------
# Epochs


def test_an_epoch_pays_half_by_weights_and_half_by_stake_and_burns_the_owners_part(tmp_path):
    """360 TAO are emitted. Validators v and w hold 3000 and 1000, so they share 180 as 135 and 45.

    v gives a 1 and the owner 1, w gives b all: ranks a 1500, owner 1500, b 1000 of 4000 share the other 180:
    a 67.5, b 45, and the owner's 67.5 burn. All parts are whole rao.
    """

    async def main():
        path = tmp_path / "l"
        async with subnet(path, "v", stakes={"v": 3000, "w": 1000, "a": 0, "b": 0}) as v, wallet(path, "w") as w:
            await v.advance_to(GENESIS + 1)
            assert (await v.set_weights({0: 1, 3: 1}, 0)).ok
            assert (await w.set_weights({4: 1}, 0)).ok
            await v.advance_to(GENESIS + 359)
            assert await v.stake("a-hot", "a-cold") == 0
            await v.advance_to(GENESIS + 360)
            assert await v.stake("v-hot", "v-cold") == 3135 * TAO
            assert await v.stake("w-hot", "w-cold") == 1045 * TAO
            assert await v.stake("a-hot", "a-cold") == 67_500_000_000
            assert await v.stake("b-hot", "b-cold") == 45 * TAO
            assert await v.stake(OWNER_HOTKEY, OWNER_COLDKEY) == OWNER_STAKE_RAO
            assert rows(path, "SELECT * FROM epochs WHERE block > 1000") == [
                (GENESIS + 360, 360 * TAO, 292_500_000_000, 67_500_000_000)
            ]
            assert (await v.epoch()).last_epoch_block == GENESIS + 360

    asyncio.run(main())


def test_random_epochs_agree_with_exact_fractions_to_a_few_rao(tmp_path):
    """The oracle: each voter's row over its sum, times its share of the voting stake; nothing rounded."""

    async def main():
        for seed in range(8):
            random_ = random.Random(seed)
            path = tmp_path / f"l{seed}"
            voters = {f"v{n}": random_.randrange(1000, 9000) for n in range(random_.randrange(1, 5))}
            miners = {f"m{n}": 0 for n in range(random_.randrange(1, 6))}
            async with subnet(path, stakes=voters | miners) as chain:
                await chain.advance_to(GENESIS + 1)
                graph = await chain.metagraph()
                incentive, voting = defaultdict(Fraction), sum(voters.values())
                for name, tao in voters.items():
                    row = {n.uid: random_.randrange(100) for n in graph.neurons} | {0: 1}
                    async with wallet(path, name) as voter:
                        assert (await voter.set_weights(row, 0)).ok
                    me = graph.by_hotkey(f"{name}-hot").uid
                    stored = {uid: weight for uid, weight in (await chain.weights_of(me)).items() if uid != me}
                    for uid, weight in stored.items():
                        incentive[uid] += Fraction(weight, sum(stored.values())) * Fraction(tao, voting)
                await chain.advance_to(GENESIS + 360)
                for neuron in (await chain.metagraph()).neurons[1:]:
                    before = graph.by_hotkey(neuron.hotkey).stake_rao
                    dividend = Fraction(before, voting * TAO)
                    expected = (incentive[neuron.uid] + dividend) * 180 * TAO
                    assert abs(neuron.stake_rao - before - expected) < 10
            check_books(path, sum(voters.values()) * TAO)

    asyncio.run(main())


def test_epochs_run_one_by_one_or_at_once_end_in_the_same_ledger(tmp_path):
    async def main():
        dumps = []
        for step in (1, 37, 10_000):
            path = tmp_path / f"l{step}"
            async with subnet(path, stakes={"v": 1500, "a": 0, "b": 999}, tempo=50, max_validators=2) as chain:
                await chain.advance_to(GENESIS + 1)
                assert (await chain.set_weights({2: 2, 3: 1}, 0)).ok
                for block in [*range(GENESIS + 1, GENESIS + 777, step), GENESIS + 777]:
                    await chain.advance_to(block)
            assert check_books(path, 2499 * TAO) == list(range(GENESIS, GENESIS + 777, 50))
            dumps.append([rows(path, f"SELECT * FROM {table}") for table in ("subnet", "neurons", "stakes", "epochs")])
        assert dumps[0] == dumps[1] == dumps[2]

    asyncio.run(main())


def test_nothing_is_paid_when_nobody_votes_or_the_voter_lost_permit_or_stake(tmp_path):
    async def main():
        path = tmp_path / "l"
        async with subnet(path, stakes={"v": 1500, "a": 0}) as chain:
            await chain.advance_to(GENESIS + 360)  # no vector
            assert (await chain.set_weights({2: 1}, 0)).ok
            assert (await chain.move_stake("v-hot", "a-hot", 501 * TAO)).ok
            await chain.advance_to(GENESIS + 720)  # a vector, 999 TAO
            assert (await chain.move_stake("a-hot", "v-hot", 501 * TAO)).ok
            await chain.advance_to(GENESIS + 1080)  # a vector, 1500 TAO, but the permit went with the epoch before
            await chain.advance_to(GENESIS + 1440)  # and is back
            credited = [rao for (rao,) in rows(path, "SELECT credited_rao FROM epochs")]
            assert credited == [0, 0, 0, 0, 360 * TAO]
        check_books(path, 1500 * TAO)

    asyncio.run(main())


def test_weight_on_oneself_counts_for_the_owner_only(tmp_path):
    async def main():
        path = tmp_path / "l"
        async with subnet(path, stakes={"v": 3000, "a": 0}) as chain:
            await chain.advance_to(GENESIS + 1)
            assert (await chain.set_weights({1: 9, 2: 1}, 0)).ok
            await chain.advance_to(GENESIS + 360)
            assert await chain.stake("a-hot", "a-cold") == 180 * TAO  # all of the miners' half

    asyncio.run(main())


def test_an_odd_rao_is_the_validators_and_rounding_burns(tmp_path):
    """3 rao an epoch: 1 for two equal miners, which is 0 each, and 2 for the validator."""

    async def main():
        path = tmp_path / "l"
        async with subnet(path, stakes={"v": 3000, "a": 0, "b": 0}, tempo=1, emission_rao_per_block=3) as chain:
            await chain.advance_to(GENESIS + 1)
            assert (await chain.set_weights({2: 1, 3: 1}, 0)).ok
            await chain.advance_to(GENESIS + 11)
            assert await chain.stake("v-hot", "v-cold") == 3000 * TAO + 20
            assert await chain.stake("a-hot", "a-cold") == await chain.stake("b-hot", "b-cold") == 0
        check_books(path, 3000 * TAO, emission_rao_per_block=3)

    asyncio.run(main())


def test_a_changed_tempo_moves_the_next_epoch_and_tempo_0_stops_them(tmp_path):
    async def main():
        path = tmp_path / "l"
        async with subnet(path) as chain:
            await chain.advance_to(GENESIS + 200)
            await chain.set_hyperparameters(tempo=50)  # was due at 1050: now at the next block
            assert (await chain.epoch()).next_epoch_block == GENESIS + 201
            await chain.advance_to(GENESIS + 260)
            await chain.set_hyperparameters(tempo=0)
            assert (await chain.epoch()).next_epoch_block is None
            await chain.advance_to(GENESIS + 10_000)
            assert check_books(path, 0) == [GENESIS, GENESIS + 201, GENESIS + 251]
            await chain.set_hyperparameters(tempo=100)
            await chain.advance_to(GENESIS + 10_001)
            assert check_books(path, 0)[-1] == GENESIS + 10_001
            with pytest.raises(TypeError):
                await chain.set_hyperparameters(tempi=1)

    asyncio.run(main())


def test_two_mechanisms_share_the_emission_and_have_their_own_vectors_and_rate_limits(tmp_path):
    async def main():
        path = tmp_path / "l"
        rules = {"mechanism_count": 2, "weights_rate_limit_blocks": 10}
        async with subnet(path, stakes={"v": 3000, "a": 0, "b": 0}, **rules) as chain:
            await chain.advance_to(GENESIS + 10)
            assert (await chain.set_weights({3: 1}, 0, mechid=1)).ok
            assert (await chain.metagraph()).neurons[1].last_update_block == GENESIS  # mechanism 0's
            assert (await chain.weight_params("v-hot", 1)).last_update_block == GENESIS + 10
            assert (await chain.set_weights({2: 1}, 0)).ok
            assert (await chain.set_weights({3: 1}, 0, mechid=1)).name == "SettingWeightsTooFast"
            assert (await chain.weights_of(1), await chain.weights_of(1, 1)) == ({2: 65535}, {3: 65535})
            await chain.advance_to(GENESIS + 360)
            assert await chain.stake("a-hot", "a-cold") == await chain.stake("b-hot", "b-cold") == 90 * TAO

    asyncio.run(main())


def test_every_rao_is_accounted_for_over_random_operations_and_epochs(tmp_path):
    async def main():
        random_ = random.Random(11)
        path, faucet, names = tmp_path / "l", 0, [f"k{n}" for n in range(12)]
        rules = {"tempo": 20, "max_uids": 8, "immunity_blocks": 15, "min_stake_move_rao": 10}
        outcomes = defaultdict(int)
        async with subnet(path, **rules) as owner:
            known = set()
            for _ in range(200):
                name, other, third = random_.choices(names, k=3)
                origin = f"{random_.choice((name, other))}-hot"
                operation = random_.choice(("register", "move", "move", "transfer", "weights", "weights", "advance"))
                amount = random_.choice((5, random_.randrange(900 * TAO)))
                if operation == "register":
                    minted = random_.randrange(4000 * TAO)
                    await owner.register(f"{name}-hot", f"{name}-cold", minted)
                    faucet += 0 if name in known else minted
                    known.add(name)
                    continue
                if operation == "advance":
                    await owner.advance_to(await owner.block() + random_.randrange(60))
                    continue
                async with wallet(path, name) as chain:
                    if operation == "move":
                        outcome = await chain.move_stake(origin, f"{third}-hot", amount)
                    elif operation == "transfer":
                        outcome = await chain.transfer_stake(origin, f"{third}-cold", amount)
                    else:
                        outcome = await chain.set_weights({random_.randrange(8): 1, random_.randrange(8): 3}, 0)
                outcomes[operation, outcome.ok] += 1
                assert outcome.ok or outcome.name in REFUSALS
        check_books(path, faucet)
        assert all(outcomes[operation, ok] > 2 for operation in ("move", "transfer", "weights") for ok in (True, False))
        ((credited,),) = rows(path, "SELECT SUM(credited_rao) FROM epochs")
        assert credited > 0

    asyncio.run(main())


# ---------------------------------------------------------------------------------------------------------------------
# Weights: what is stored, and each refusal


def test_the_rate_limit_counts_from_registration_then_from_the_last_update_exact_at_the_boundary(tmp_path):
    async def main():
        path = tmp_path / "l"
        async with subnet(path, stakes={"v": 3000}, weights_rate_limit_blocks=100) as chain:
            for start in (GENESIS, GENESIS + 100):
                for block, wait in ((start, 100), (start + 1, 99), (start + 99, 1)):
                    await chain.advance_to(block)
                    outcome = await chain.set_weights({0: 1}, 0)
                    assert (outcome.ok, outcome.name, outcome.wait_blocks) == (False, "SettingWeightsTooFast", wait)
                    assert (outcome.code, outcome.next) == (WriteCode.RATE_LIMITED, Next.WAIT_BLOCKS)
                await chain.advance_to(start + 100)
                assert (await chain.set_weights({0: 1}, 0)).ok
        async with wallet(path, "v") as chain:  # a restart does not reset it
            assert (await chain.set_weights({0: 1}, 0)).wait_blocks == 100

    asyncio.run(main())


def test_a_version_key_of_64_bits_is_kept(tmp_path):
    async def main():
        async with subnet(tmp_path / "l", stakes={"v": 3000}, version_key=2**64 - 1) as chain:
            assert (await chain.weight_params("v-hot")).version_key == 2**64 - 1
            assert (await chain.set_weights({0: 1}, 2**64 - 1)).ok
            assert (await chain.set_weights({0: 1}, 2**64 - 2)).name == "IncorrectWeightVersionKey"

    asyncio.run(main())


def test_the_edges_of_the_limits_pass(tmp_path):
    async def main():
        rules = {"min_allowed_weights": 9, "max_weight": 49151}  # 3/4 is 49151.25 of 65535, above 49151; 2/3 is below
        async with subnet(tmp_path / "l", stakes={"v": 3000, "a": 0}, **rules) as chain:
            assert (await chain.set_weights({0: 3, 2: 1}, 0)).name == "WeightVecLengthIsLow"  # 2 of min(9, 3 uids)
            await chain.set_hyperparameters(min_allowed_weights=2)
            assert (await chain.set_weights({0: 3, 2: 1}, 0)).name == "MaxWeightExceeded"
            assert (await chain.set_weights({0: 2, 2: 1}, 0)).ok
            await chain.set_hyperparameters(min_allowed_weights=9)
            assert (await chain.set_weights({0: 1, 1: 1, 2: 1}, 0)).ok  # all there are
            await chain.set_hyperparameters(max_validators=0)
            await chain.advance_to(GENESIS + 360)
            assert (
                await chain.set_weights({1: 1}, 0)
            ).ok  # a single weight on oneself needs no permit, length or limit

    asyncio.run(main())


# ---------------------------------------------------------------------------------------------------------------------
# Recycled uids


def test_a_recycled_uid_inherits_nothing_and_old_vectors_do_not_pay_its_new_holder(tmp_path):
    async def main():
        path = tmp_path / "l"
        rules = {"max_uids": 4, "immunity_blocks": 10, "tempo": 100, "weights_rate_limit_blocks": 5}
        async with subnet(path, stakes={"v": 3000, "a": 0, "b": 2000}, **rules) as v, wallet(path, "b") as b:
            await v.advance_to(GENESIS + 50)
            assert (await v.set_weights({2: 3, 3: 1}, 0)).ok
            assert (await b.set_weights({2: 1}, 0)).ok
            assert (await b.serve("192.0.2.1", 8000)).ok
            await v.advance_to(GENESIS + 100)  # a earns 42.5, v 30, b 27.5 and goes; the owner nothing, and stays
            assert (await v.set_weights({2: 3, 3: 1}, 0)).ok  # in the very block of the recycling, meaning b
            assert await v.register("new-hot", "new-cold", 2000 * TAO) == 3
            graph = await v.metagraph()
            assert [n.hotkey for n in graph.neurons] == [OWNER_HOTKEY, "v-hot", "a-hot", "new-hot"]
            assert graph.neurons[3] == Neuron(
                3, "new-hot", "new-cold", True, 2000 * TAO, None, GENESIS + 100, GENESIS + 100
            )
            assert await v.weights_of(3) == {}
            assert (await b.set_weights({0: 1}, 0)).name == "HotKeyNotRegisteredInSubNet"
            assert await b.stake("b-hot", "b-cold") > 2000 * TAO  # its stake is its own
            async with wallet(path, "new") as new:
                assert (await new.set_weights({0: 1}, 0)).wait_blocks == 5

            before = await v.stake("new-hot", "new-cold")
            await v.advance_to(GENESIS + 200)  # v's vector still names uid 3, but was set before uid 3 was its
            assert (await v.weights_of(1)).keys() == {2, 3}
            assert await v.stake("new-hot", "new-cold") == before
            assert (await v.set_weights({2: 3, 3: 1}, 0)).ok
            await v.advance_to(GENESIS + 300)
            assert await v.stake("new-hot", "new-cold") == before + 50 * TAO // 4
        check_books(path, 7000 * TAO)

    asyncio.run(main())


@pytest.mark.parametrize(("age", "pruned"), [(99, 3), (100, 1)])
def test_a_neuron_below_the_immunity_period_outlives_older_ones_that_earn_more(tmp_path, age, pruned):
    """v and a earn 25 TAO each; b, 40 blocks younger, nothing. While all are immune b would go, then v, before a."""

    async def main():
        rules = {"max_uids": 4, "immunity_blocks": 100, "tempo": 50}
        async with subnet(tmp_path / "l", stakes={"v": 3000, "a": 0}, **rules) as chain:
            await chain.advance_to(GENESIS + 40)
            assert (await chain.set_weights({2: 1}, 0)).ok
            assert await chain.register("b", "x") == 3
            await chain.advance_to(GENESIS + age)
            assert await chain.register("c", "x") == pruned

    asyncio.run(main())


def test_pruning_takes_the_oldest_of_equals_and_never_the_owner(tmp_path):
    async def main():
        rules = {"max_uids": 4, "immunity_blocks": 10, "tempo": 0}
        async with subnet(tmp_path / "l", stakes={"a": 0, "b": 0}, **rules) as chain:
            await chain.advance_to(GENESIS + 9)
            assert await chain.register("c", "x") == 3
            assert await chain.register("d", "x") == 1  # all immune: the oldest of equals, the lower uid
            await chain.advance_to(GENESIS + 10)
            assert await chain.register("e", "x") == 2  # b is 10 blocks old; c and d are immune
            await chain.advance_to(GENESIS + 30)
            assert await chain.register("f", "x") == 1
            assert await chain.register("a-hot", "a-cold") == 3  # back again, on another uid
            assert (await chain.metagraph()).neurons[0].hotkey == OWNER_HOTKEY

    asyncio.run(main())


def test_a_subnet_without_room_says_so(tmp_path):
    async def main():
        async with subnet(tmp_path / "l", max_uids=1) as chain:
            with pytest.raises(ChainError, match="NoNeuronIdAvailable: max_uids 1"):
                await chain.register("a", "x", TAO)
            assert await chain.stake("a", "x") == 0  # a refused registration mints nothing

    asyncio.run(main())


# ---------------------------------------------------------------------------------------------------------------------
# Stake and serving


def test_each_refusal_of_a_stake_move_has_the_chains_name_and_moves_nothing(tmp_path):
    async def main():
        path = tmp_path / "l"
        async with subnet(path, stakes={"v": 5, "a": 0}) as chain:
            before = rows(path, "SELECT * FROM stakes")
            for outcome, name, code in (
                (await chain.move_stake("v-hot", "v-hot", TAO), "SameNetuid", "invalid_argument"),
                (await chain.transfer_stake("v-hot", "v-cold", TAO), "SameNetuid", "invalid_argument"),
                (await chain.move_stake("v-hot", "nobody", TAO), "HotKeyAccountNotExists", "not_registered"),
                (await chain.move_stake("nobody", "v-hot", TAO), "HotKeyAccountNotExists", "not_registered"),
                (await chain.transfer_stake("nobody", "x", TAO), "HotKeyAccountNotExists", "not_registered"),
                (
                    await chain.move_stake("v-hot", "a-hot", 5 * TAO + 1),
                    "NotEnoughStakeToWithdraw",
                    "insufficient_balance",
                ),
                (await chain.transfer_stake("a-hot", "x", TAO), "NotEnoughStakeToWithdraw", "insufficient_balance"),
                (await chain.transfer_stake("v-hot", "x", 2**200), "NotEnoughStakeToWithdraw", "insufficient_balance"),
                (await chain.move_stake("v-hot", "a-hot", 1_999_999), "AmountTooLow", "limit_exceeded"),
                (await chain.transfer_stake("v-hot", "x", 0), "AmountTooLow", "limit_exceeded"),
                (await chain.transfer_stake("v-hot", "x", -TAO), "AmountTooLow", "limit_exceeded"),
            ):
                assert (outcome.ok, outcome.name, outcome.code, outcome.next) == (False, name, code, Next.NOTHING)
            assert rows(path, "SELECT * FROM stakes") == before
            assert (await chain.move_stake("v-hot", "a-hot", 2_020_001)).ok  # and one hundredth for fee and slippage

    asyncio.run(main())


def test_serving_publishes_the_address_and_refuses_what_is_none(tmp_path):
    async def main():
        path = tmp_path / "l"
        async with subnet(path, stakes={"v": 0}) as chain, wallet(path, "stranger") as stranger:
            for host, port, address in (("127.0.0.1", 8091, "127.0.0.1:8091"), ("2001:DB8::1", 1, "[2001:db8::1]:1")):
                assert (await chain.serve(host, port)).ok
                assert (await chain.metagraph()).by_hotkey("v-hot").address == address
            for who, host, port, name in (
                (chain, "localhost", 80, "InvalidIpAddress"),
                (chain, "", 80, "InvalidIpAddress"),
                (chain, "127.0.0.1", 0, "InvalidPort"),
                (chain, "127.0.0.1", 65536, "InvalidPort"),
                (stranger, "127.0.0.1", 80, "HotKeyNotRegisteredInNetwork"),
            ):
                outcome = await who.serve(host, port)
                assert (outcome.ok, outcome.name, outcome.code) == (False, name, REFUSALS[name])
            assert (await chain.metagraph()).by_hotkey("v-hot").address == "[2001:db8::1]:1"

    asyncio.run(main())


# ---------------------------------------------------------------------------------------------------------------------
# Company and crashes


def start(code, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )


WRITER = """
import asyncio, sys
from chain.ledger import Hyperparameters
from chain.local import LocalChain
async def main(path, me):
    rules = Hyperparameters(tempo=10, weights_rate_limit_blocks=0)
    async with LocalChain.open(path, me + "0-hot", me, genesis_block=1000, hyperparameters=rules) as chain:
        for n in range(20):
            await chain.register(f"{me}{n}-hot", me, 2000 * 10**9)
            await chain.advance_to(await chain.block() + 1)
            assert (await chain.set_weights({0: 1, n: n + 1}, 0)).ok
            if n:
                assert (await chain.move_stake(f"{me}{n}-hot", f"{me}{n - 1}-hot", 7 * 10**9)).ok
asyncio.run(main(*sys.argv[1:]))
"""


def test_processes_that_start_and_write_at_the_same_time_lose_nothing(tmp_path):
    path = tmp_path / "l"
    writers = [start(WRITER, path, name) for name in ("a", "b", "c")]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    for writer in writers:
        writer.stdout.close()
    assert rows(path, "SELECT uid FROM neurons ORDER BY uid") == [(uid,) for uid in range(61)]
    blocks = check_books(path, 60 * 2000 * TAO)
    ((head,),) = rows(path, "SELECT block FROM subnet")
    assert GENESIS + 20 <= head <= GENESIS + 60
    assert blocks == list(range(GENESIS, head + 1, 10))


DIES_WHILE_ADVANCING = """
import asyncio, os, signal, sys
from chain.local import LocalChain
async def main(path, die_at):
    async with LocalChain.open(path, "v-hot", "v-cold") as chain:
        count = 0
        def counting(sql):
            nonlocal count
            count += 1
            if count == int(die_at):
                os.kill(os.getpid(), signal.SIGKILL)
        await chain._db.set_trace_callback(counting)
        await chain.advance_to(5000)
        print(count)
asyncio.run(main(*sys.argv[1:]))
"""

ADVANCES_FOREVER = """
import asyncio, sys
from chain.local import LocalChain
async def main(path):
    async with LocalChain.open(path, "v-hot", "v-cold") as chain:
        print("ready", flush=True)
        for block in range(1000, 10**9, 7):
            await chain.advance_to(block)
asyncio.run(main(*sys.argv[1:]))
"""


async def voting_subnet(path):
    async with subnet(path, stakes={"v": 3000, "a": 0}, tempo=10) as chain:
        await chain.advance_to(GENESIS + 1)
        assert (await chain.set_weights({0: 1, 2: 2}, 0)).ok


def test_kill_9_in_the_middle_of_advancing_leaves_the_state_before_and_the_next_run_ends_the_same(tmp_path):
    tables = ("subnet", "neurons", "stakes", "epochs", "weights")

    def state(path):
        return [rows(path, f"SELECT * FROM {table} ORDER BY 1, 2") for table in tables]

    asyncio.run(voting_subnet(tmp_path / "whole"))
    before = state(tmp_path / "whole")
    whole = start(DIES_WHILE_ADVANCING, tmp_path / "whole", 0)
    statements = int(whole.communicate(timeout=60)[0])
    after = state(tmp_path / "whole")
    assert after[0] != before[0]
    path = tmp_path / "killed"
    asyncio.run(voting_subnet(path))
    for die_at in (1, 2, statements // 2, statements - 1, statements):
        process = start(DIES_WHILE_ADVANCING, path, die_at)
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL
        assert state(path) == before, die_at
    assert start(DIES_WHILE_ADVANCING, path, 0).communicate(timeout=60)[0] == f"{statements}\n"
    assert state(path) == after


def test_kill_9_at_any_moment_leaves_whole_epochs(tmp_path):
    random_ = random.Random(3)
    path = tmp_path / "l"
    asyncio.run(voting_subnet(path))
    for _ in range(4):
        process = start(ADVANCES_FOREVER, path)
        assert process.stdout.readline() == "ready\n"
        time.sleep(random_.uniform(0.05, 0.3))
        process.kill()
        process.communicate(timeout=60)
        blocks = check_books(path, 3000 * TAO)
        ((head,),) = rows(path, "SELECT block FROM subnet")
        assert blocks == list(range(GENESIS, head + 1, 10))


def test_a_restart_keeps_everything(tmp_path):
    async def main():
        path = tmp_path / "l"
        async with subnet(path, stakes={"v": 3000, "a": 0}, tempo=10, version_key=3) as chain:
            await chain.advance_to(GENESIS + 1)
            assert (await chain.set_weights({2: 1}, 3)).ok
            assert (await chain.serve("127.0.0.1", 9)).ok
            await chain.advance_to(GENESIS + 25)
            seen = [await chain.metagraph(), await chain.epoch(), await chain.weight_params("v-hot")]
            seen += [await chain.weights_of(1), await chain.stake("a-hot", "a-cold")]
        async with LocalChain.open(
            path, "v-hot", "v-cold", genesis_block=5, hyperparameters=Hyperparameters()
        ) as chain:
            again = [await chain.metagraph(), await chain.epoch(), await chain.weight_params("v-hot")]
            again += [await chain.weights_of(1), await chain.stake("a-hot", "a-cold")]
        assert seen == again

    asyncio.run(main())


def test_tasks_of_one_process_share_a_connection_without_mixing_their_transactions(tmp_path):
    async def main():
        path = tmp_path / "l"
        async with subnet(path, stakes={"v": 1000, "a": 0}, tempo=3) as chain:
            moves = [chain.move_stake("v-hot", "a-hot", TAO) for _ in range(40)]
            refused = [chain.move_stake("v-hot", "a-hot", 10**15) for _ in range(20)]
            advances = [chain.advance_to(GENESIS + n) for n in range(40)]
            done = await asyncio.gather(*moves, *refused, *advances)
            assert sum(outcome.ok for outcome in done[:60]) == 40
            assert await chain.stake("a-hot", "v-cold") == 40 * TAO
        check_books(path, 1000 * TAO)

    asyncio.run(main())


def test_a_locked_ledger_is_an_unknown_fate_for_writes_an_error_for_reads_and_no_harm_afterwards(tmp_path):
    async def main():
        path = tmp_path / "l"
        async with subnet(path, stakes={"v": 3000, "a": 0}) as chain:
            await chain._db.execute("PRAGMA busy_timeout = 20")
            other = sqlite3.connect(path, isolation_level=None)
            other.execute("BEGIN IMMEDIATE")
            outcome = await chain.move_stake("v-hot", "a-hot", TAO)
            assert (outcome.ok, outcome.code, outcome.next) == (False, WriteCode.UNKNOWN, Next.READ_STATE_FIRST)
            assert "locked" in outcome.detail
            with pytest.raises(ChainError, match=r"ledger .*: database is locked"):
                await chain.metagraph()
            await chain._db.execute("PRAGMA busy_timeout = 5000")
            waiting = asyncio.create_task(chain.advance_to(GENESIS + 360))
            await asyncio.sleep(0.05)
            waiting.cancel()  # while SQLite's thread waits for the lock
            other.rollback()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            other.close()
            assert await chain.block() == GENESIS + 360  # what was begun for a caller that is gone ends as a whole
            assert (await chain.move_stake("v-hot", "a-hot", TAO)).ok
        check_books(path, 3000 * TAO)

    asyncio.run(main())
