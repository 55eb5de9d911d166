"""The burn and the sweep: what is sent, what is not, and that whatever crashes the chain ends as without it.

Run with `python -m pytest tests/test_stake.py`. The tests of the table in `docs/stake.md` are named there.
Read next: `stakes.py` (the subnet and the faults), `stake.py`.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import random
import re
import shlex
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import bittensor as bt
import pytest
from bittensor.keyfiles import Keyfile
from stakes import (
    GENESIS,
    POLICY,
    PRINCIPAL_RAO,
    TAO,
    UNRELATED_RAO,
    Scripted,
    refused,
    rows,
    run_sweeper,
    stakes,
    subnet,
    wallet,
)
from subnets import write
from substrate import LOST, Node, remember_commits

import stake as stake_module
from chain.base import ERA_BLOCKS, ChainError, EpochInfo, Next, StakeMove, WriteCode, WriteOutcome
from chain.journal import MIGRATIONS, ROUNDING_RAO, Journal, Reading, Step, Wanted, alpha
from chain.ledger import Hyperparameters
from chain.local import OWNER_COLDKEY, LocalChain
from chain.loop import Result, follow
from chain.notify import AlertRules
from chain.subtensor import BittensorChain
from chain.sweeping import (
    FATE_BLOCKS,
    FEE_RESERVE_RAO,
    MINIMUM_RAO,
    RETRY_BLOCKS,
    Policy,
    fate_by_balances,
    match,
    plan,
    read,
    read_allow_list,
)
from chain.wallets import Wallet
from chain.weights import last_weights, weights_noted
from runtime import process as process_module
from stake import FINAL_BLOCKS, Burner, Sweeper
from wire.signing import local_keypair

ROOT = Path(__file__).resolve().parent.parent
EPOCH_RAO = 50 * TAO  # half of 100 blocks' emission: what `miner` earns, and `agg` too
SECONDS = 120  # a deadline that is reached only when something hangs
TWO = replace(POLICY, two_calls=True)
BOTH = pytest.mark.parametrize("policy", [POLICY, TWO], ids=["one call", "two calls"])


@asynccontextmanager
async def sweeping(tmp_path, policy=POLICY, script=None, **rules):
    """A subnet, the scripted chain of the miner's wallet, a sweeper that has its baseline, and its journal."""
    ledger, path = tmp_path / "ledger", tmp_path / "journal"
    async with AsyncExitStack() as stack:
        owner = await stack.enter_async_context(subnet(ledger, **rules))
        chain = Scripted(await stack.enter_async_context(wallet(ledger)), script)
        journal = await stack.enter_async_context(Journal.open(path, 98, "miner", "cold"))
        sweeper = Sweeper(chain, journal, policy)
        assert (await sweeper.step()).problem == ""
        yield owner, chain, sweeper, journal


async def advance(owner, sweeper, block, every=5):
    """Blocks pass, and the sweeper looks every few of them."""
    head = await owner.block()
    results = []
    for at in [*range(head + every, block, every), block]:
        await owner.advance_to(at)
        results.append(await sweeper.step())
    return results


def moved(tmp_path):
    return rows(tmp_path / "ledger", "SELECT origin_hotkey, dest_hotkey, dest_coldkey, rao FROM moves ORDER BY id")


def check(tmp_path, epochs, policy=POLICY):
    """After so many epochs of 100 blocks: each swept once, all earnings are the treasury's, nothing else moved."""
    transfer = ("agg" if policy.two_calls else "miner", "agg", "treasury", EPOCH_RAO)
    move = ("miner", "agg", "cold", EPOCH_RAO)
    assert [row for row in moved(tmp_path) if row[2] == "treasury"] == [transfer] * epochs
    assert [row for row in moved(tmp_path) if row[2] != "treasury"] == [move] * epochs * policy.two_calls
    held = stakes(tmp_path / "ledger")
    assert held["miner", "cold"] == PRINCIPAL_RAO
    assert held["agg", "treasury"] == epochs * EPOCH_RAO
    assert held["agg", "cold"] == UNRELATED_RAO + epochs * EPOCH_RAO  # with the dividends of its own stake
    states = rows(tmp_path / "journal", "SELECT state, earned_rao FROM epochs ORDER BY epoch_block")
    assert states == [("baseline", 0)] + [("swept", EPOCH_RAO)] * epochs
    assert rows(tmp_path / "journal", "SELECT COUNT(*) FROM steps WHERE state != 'applied' OR extrinsic IS NULL") == [
        (0,)
    ]


# ---------------------------------------------------------------------------------------------------------------------
# The planner


def test_a_plan_is_one_call_where_one_does_it_and_two_where_it_was_asked_for():
    one = [Wanted("transfer", "m", "a", "t", 5 * TAO)]
    two = [Wanted("move", "m", "a", "c", 5 * TAO), Wanted("transfer", "a", "a", "t", 5 * TAO)]
    assert plan(Policy("a", "t"), "m", "c", 5 * TAO, 0) == one
    assert plan(Policy("a", "t", two_calls=True), "m", "c", 5 * TAO, 0) == two
    for two_calls in (False, True):
        policy = Policy("m", "t", two_calls=two_calls)
        assert plan(policy, "m", "c", 5 * TAO, 0) == [Wanted("transfer", "m", "m", "t", 5 * TAO)]


def test_a_plan_leaves_less_than_the_minimum_where_it_is():
    policy = Policy("a", "t", minimum_rao=10)
    assert plan(policy, "m", "c", 9, 9) == plan(policy, "m", "c", 0, 0) == []
    assert [step.amount_rao for step in plan(policy, "m", "c", 10, 9)] == [10]
    assert [step.origin_hotkey for step in plan(policy, "m", "c", 9, 10)] == ["a"]


def test_all_takes_the_aggregators_stake_too_each_rao_once():
    assert [(s.origin_hotkey, s.amount_rao) for s in plan(Policy("a", "t"), "m", "c", 5 * TAO, 3 * TAO)] == [
        ("m", 5 * TAO),
        ("a", 3 * TAO),
    ]
    both = plan(Policy("a", "t", two_calls=True), "m", "c", 5 * TAO, 3 * TAO)
    assert [(s.action, s.amount_rao) for s in both] == [("move", 5 * TAO), ("transfer", 8 * TAO)]


def sent(amount=100 * TAO, origin=150 * TAO, dest=1000 * TAO, dest_coldkey="t"):
    return Step(
        1, 50, "transfer", "m", "a", dest_coldkey, amount, "sent", 1, 0, 60, 50, origin, dest, None, None, None, ""
    )


@pytest.mark.parametrize(
    ("epoch", "origin", "dest", "fate"),
    [
        (50, 50, 1100, "applied"),
        (50, 150, 1000, "expired"),
        (50, 50, 1000, "unknown"),  # it left and did not arrive: somebody else acted too
        (50, 150, 1100, "unknown"),
        (90, 60, 1101, "applied"),  # after an epoch: the origin fell although it earned
        (90, 160, 1001, "expired"),  # the destination did not get as much
        (90, 155, 1105, "unknown"),  # 105 earned and 100 moved, or 5 earned: the balances cannot say
        (90, 60, 1001, "unknown"),
    ],
)
def test_balances_decide_a_fate_only_where_both_ends_agree(epoch, origin, dest, fate):
    for noise in (-ROUNDING_RAO, 0, ROUNDING_RAO):
        now = Reading(200, epoch, None, (origin * TAO + noise, dest * TAO - noise))
        assert fate_by_balances(sent(), now) == fate


def test_the_chains_record_is_matched_by_who_gave_what_to_whom_and_never_twice():
    def move(extrinsic="7-1", origin="m", dest="a", dest_coldkey="t"):
        return StakeMove(extrinsic, 7, origin, dest, dest_coldkey)

    assert match(sent(), [move()], set()) == move()
    assert match(sent(), [move(), move("7-2")], {"7-1"}) == move("7-2")
    assert match(sent(), [move(dest="m")], set())  # older runtimes name one hotkey
    assert match(sent(), [move()], {"7-1"}) is None
    assert match(sent(), [move(dest_coldkey="c"), move(origin="x", dest="y")], set()) is None


# ---------------------------------------------------------------------------------------------------------------------
# The sweep


@BOTH
def test_each_epochs_earnings_are_swept_once_and_nothing_else_moves(tmp_path, policy):
    async def main():
        async with sweeping(tmp_path, policy) as (owner, chain, sweeper, _):
            results = await advance(owner, sweeper, GENESIS + 540)
            assert not any(result.problem for result in results)
            assert len(chain.calls) == 5 * (2 if policy.two_calls else 1)

    asyncio.run(main())
    check(tmp_path, 5, policy)
    for before, rao, after in rows(
        tmp_path / "journal", "SELECT origin_before_rao, amount_rao, origin_after_rao FROM steps"
    ):
        assert before - rao == after


def test_an_aggregator_that_is_the_miner_hotkey_itself_only_transfers(tmp_path):
    async def main():
        async with sweeping(tmp_path, Policy("miner", "treasury")) as (owner, chain, sweeper, _):
            await advance(owner, sweeper, GENESIS + 240)
            assert chain.calls == [("transfer_stake", "miner", "treasury", EPOCH_RAO, None)] * 2

    asyncio.run(main())
    assert stakes(tmp_path / "ledger")["miner", "cold"] == PRINCIPAL_RAO


@pytest.mark.parametrize(
    ("policy", "write"),
    [(POLICY, "transfer_stake"), (TWO, "move_stake"), (TWO, "transfer_stake")],
    ids=["one call", "the move", "the transfer"],
)
@pytest.mark.parametrize("fate", ["lost", "gone", "late"])
@pytest.mark.parametrize("at_block", [5, 70], ids=["within the epoch", "an epoch in between"])
def test_a_write_of_unknown_fate_is_never_made_twice(tmp_path, policy, write, fate, at_block):
    """Also when an epoch falls in between that pays both ends exactly what was moved: balances alone cannot tell."""

    async def main():
        async with sweeping(tmp_path, policy, {write: [fate]}) as (owner, _, sweeper, _):
            await owner.advance_to(GENESIS + 100 + at_block)
            assert ("fate" in (await sweeper.step()).problem) == (fate != "lost")
            await advance(owner, sweeper, GENESIS + 690)

    asyncio.run(main())
    check(tmp_path, 6, policy)


@BOTH
@pytest.mark.parametrize("fate", ["lost", "gone"])
def test_without_the_chains_record_balances_decide_within_an_epoch(tmp_path, policy, fate):
    async def main():
        script = {"transfer_stake": [fate], "move_stake": [fate], "stake_moves": [ChainError("pruned")] * 500}
        async with sweeping(tmp_path, policy, script, tempo=400) as (owner, _, sweeper, _):
            await owner.advance_to(GENESIS + 401)
            chain_is_silent = False
            for block in range(GENESIS + 401, GENESIS + 790, 10):
                await owner.advance_to(block)
                try:
                    await sweeper.step()
                except ChainError:
                    chain_is_silent = True
            assert chain_is_silent  # it waited for as long as the write could still land

    asyncio.run(main())
    held = stakes(tmp_path / "ledger")
    assert held["miner", "cold"] == PRINCIPAL_RAO and held["agg", "treasury"] == 200 * TAO
    assert held["agg", "cold"] == UNRELATED_RAO + 200 * TAO


def test_a_fate_that_nothing_can_decide_is_held_until_a_person_says(tmp_path):
    async def main():
        script = {"move_stake": ["gone"], "stake_moves": [ChainError("pruned")] * 500}
        async with sweeping(tmp_path, TWO, script) as (owner, chain, sweeper, journal):
            await owner.advance_to(GENESIS + 190)
            with pytest.raises(ChainError):
                await sweeper.step()
            await owner.advance_to(GENESIS + 290)  # the epoch gave both ends what the move would have
            result = await sweeper.step()
            assert "--settle" in result.problem and not result.news["sweep"].ok
            assert AlertRules(0).observe(1, **result.news)[0].kind == "sweep"
            before = stakes(tmp_path / "ledger")
            await owner.advance_to(GENESIS + 295)
            await sweeper.step()
            assert stakes(tmp_path / "ledger") == before and len(chain.calls) == 1
            chain.script.clear()
            await sweeper.settle_by_hand(applied=False)
            await advance(owner, sweeper, GENESIS + 390)
            assert (await journal.open_step()) is None
            with pytest.raises(process_module.UserError, match="no step"):
                await sweeper.settle_by_hand(applied=True)

    asyncio.run(main())
    assert stakes(tmp_path / "ledger")["agg", "treasury"] == 3 * EPOCH_RAO


@BOTH
def test_a_refused_step_is_said_and_tried_again_an_epoch_later_with_all_that_is_there_by_then(tmp_path, policy):
    first = "move_stake" if policy.two_calls else "transfer_stake"

    async def main():
        refusals = [refused("StakeUnavailable"), refused("Stale", Next.SIGN_AGAIN)]
        async with sweeping(tmp_path, policy, {first: refusals}) as (owner, chain, sweeper, _):
            await owner.advance_to(GENESIS + 101)
            result = await sweeper.step()
            assert "StakeUnavailable" in result.problem and result.news["sweep"].name == "StakeUnavailable"
            assert [alert.kind for alert in AlertRules(0).observe(1, **result.news)] == ["sweep"]
            assert chain.calls[0][0] == first and len(chain.calls) == 1 and not moved(tmp_path)
            results = await advance(owner, sweeper, GENESIS + 199, every=1)
            assert all("StakeUnavailable" in result.problem for result in results) and len(chain.calls) == 1
            await owner.advance_to(GENESIS + 200)
            assert "Stale" in (await sweeper.step()).problem and len(chain.calls) == 2
            await owner.advance_to(GENESIS + 201)
            assert (await sweeper.step()).problem == "" and len(chain.calls) == (4 if policy.two_calls else 3)

    asyncio.run(main())
    held = stakes(tmp_path / "ledger")
    assert held["agg", "treasury"] == 2 * EPOCH_RAO and held["miner", "cold"] == PRINCIPAL_RAO
    epochs = rows(tmp_path / "journal", "SELECT state, earned_rao FROM epochs ORDER BY epoch_block")
    assert epochs == [("baseline", 0), ("nothing", 0), ("swept", 2 * EPOCH_RAO)]


def test_a_refused_transfer_is_tried_ever_more_rarely_and_what_was_moved_goes_with_it_and_nothing_unrelated(tmp_path):
    blocks = []

    async def main():
        async with sweeping(tmp_path, TWO, {"transfer_stake": [refused("StakeUnavailable")] * 3}) as (
            owner, chain, sweeper, _,
        ):  # fmt: skip
            for block in range(GENESIS + 101, GENESIS + 1000, 3):
                await owner.advance_to(block)
                before = sum(call[0] == "transfer_stake" for call in chain.calls)
                await sweeper.step()
                after = sum(call[0] == "transfer_stake" for call in chain.calls)
                blocks.extend([block - GENESIS] * (after - before))

    asyncio.run(main())
    assert [block // 100 for block in blocks] == [1, 2, 4, 8, 9]  # after one epoch, two, four; then all is well
    held = stakes(tmp_path / "ledger")
    assert held["miner", "cold"] == PRINCIPAL_RAO and held["agg", "treasury"] == 9 * EPOCH_RAO
    assert held["agg", "cold"] == UNRELATED_RAO + 9 * EPOCH_RAO  # with the dividends of its own stake


def test_an_ok_that_the_chain_does_not_show_is_not_believed(tmp_path):
    ok = WriteOutcome(True, WriteCode.OK, "", Next.NOTHING, "", 0)

    async def main():
        async with sweeping(tmp_path, POLICY, {"transfer_stake": [ok]}) as (owner, chain, sweeper, _):
            await owner.advance_to(GENESIS + 101)
            assert "fate" in (await sweeper.step()).problem
            await owner.advance_to(GENESIS + 101 + FATE_BLOCKS)
            assert "fate" in (await sweeper.step()).problem and len(chain.calls) == 1
            await owner.advance_to(GENESIS + 102 + FATE_BLOCKS)
            assert (await sweeper.step()).problem == ""

    asyncio.run(main())
    check(tmp_path, 1)


def test_with_wait_finalization_a_step_counts_when_its_block_is_deep_enough(tmp_path):
    async def main():
        async with sweeping(tmp_path, replace(POLICY, wait_final=True)) as (owner, chain, sweeper, _):
            await owner.advance_to(GENESIS + 101)
            assert "fate" in (await sweeper.step()).problem
            await owner.advance_to(GENESIS + 100 + FINAL_BLOCKS)
            assert "fate" in (await sweeper.step()).problem
            await owner.advance_to(GENESIS + 101 + FINAL_BLOCKS)
            assert (await sweeper.step()).problem == "" and len(chain.calls) == 1

    asyncio.run(main())
    check(tmp_path, 1)


def test_too_short_a_free_balance_sends_nothing_and_says_so(tmp_path):
    class Poor(Scripted):
        free_rao = FEE_RESERVE_RAO - 1

        async def free_balance(self):
            return self.free_rao

    async def main():
        async with sweeping(tmp_path) as (owner, chain, _, journal):
            poor = Poor(chain.chain)
            sweeper = Sweeper(poor, journal, POLICY)
            await owner.advance_to(GENESIS + 101)
            assert "fee reserve" in (await sweeper.step()).problem
            assert poor.calls == []
            poor.free_rao += 1
            await advance(owner, sweeper, GENESIS + 150)

    asyncio.run(main())
    check(tmp_path, 1)


@BOTH
def test_what_the_chain_would_refuse_is_seen_told_and_costs_nothing_until_it_is_allowed_again(tmp_path, policy):
    async def main():
        async with sweeping(tmp_path, policy) as (owner, chain, sweeper, _):
            await owner.set_hyperparameters(transfers_allowed=False)
            results = await advance(owner, sweeper, GENESIS + 560)
            told = AlertRules(0).observe(1, **next(one.news for one in results if "sweep" in one.news))
            assert [alert.kind for alert in told] == ["sweep"] and "switched transfers" in told[0].text
            assert "transfer_stake" not in [call[0] for call in chain.calls]
            await owner.set_hyperparameters(transfers_allowed=True)
            assert (await advance(owner, sweeper, GENESIS + 590))[-1].problem == ""

    asyncio.run(main())
    assert stakes(tmp_path / "ledger")["agg", "treasury"] == 5 * EPOCH_RAO


@BOTH
def test_less_than_the_chain_moves_at_the_price_of_the_moment_waits_for_more_and_nobody_is_woken(tmp_path, policy):
    """Also what was moved already, when the price falls before it is given on."""

    async def main():
        rules = {"emission_rao_per_block": 400_000, "alpha_price_rao": 10**9}  # 0.02 alpha an epoch
        script = {"transfer_stake": [refused("StakeUnavailable")]}
        async with sweeping(tmp_path, policy, script, **rules) as (owner, chain, sweeper, _):
            await advance(owner, sweeper, GENESIS + 150)
            await owner.set_hyperparameters(alpha_price_rao=10_000_000)  # at which 0.2 alpha are 0.002 TAO
            results = await advance(owner, sweeper, GENESIS + 1990)
            assert [one.news["sweep"].ok for one in results if "sweep" in one.news] == [True]
            sent = [call[3] for call in chain.calls if call[0] == "transfer_stake"]
            assert sent == [20_000_000, swept_rao]

    swept_rao = 240_000_000 if policy.two_calls else 220_000_000  # with two calls 0.02 were moved before
    asyncio.run(main())
    assert stakes(tmp_path / "ledger")["agg", "treasury"] == swept_rao


def test_income_that_the_chain_stakes_elsewhere_is_said_once_and_its_end_too(tmp_path):
    class Elsewhere(Scripted):
        hotkey_of_income = "agg"

        async def stake_params(self):
            return replace(await self.chain.stake_params(), auto_stake_hotkey=self.hotkey_of_income)

    async def main():
        async with sweeping(tmp_path) as (owner, chain, _, journal):
            chain = Elsewhere(chain.chain)
            sweeper, rules, told = Sweeper(chain, journal, POLICY), AlertRules(0), []
            for at in range(40):
                chain.hotkey_of_income = "agg" if at < 20 else "miner"
                await owner.advance_to(GENESIS + 20 * at)
                result = await sweeper.step()
                assert bool(result.problem) == (at < 20) and ("auto-stake" in result.problem) == (at < 20)
                told += rules.observe(float(at), chain=True, **result.news)
            assert [alert.kind for alert in told] == ["income", "income"] and "agg" in told[0].text
            assert told[1].text.startswith("RECOVERED")

    asyncio.run(main())


def test_less_than_the_minimum_stays_until_it_is_enough(tmp_path):
    async def main():
        policy = replace(POLICY, minimum_rao=2 * EPOCH_RAO)
        async with sweeping(tmp_path, policy) as (owner, _, sweeper, _):
            await advance(owner, sweeper, GENESIS + 450)

    asyncio.run(main())
    assert moved(tmp_path) == [("miner", "agg", "treasury", 2 * EPOCH_RAO)] * 2
    states = [state for (state,) in rows(tmp_path / "journal", "SELECT state FROM epochs ORDER BY epoch_block")]
    assert states == ["baseline", "nothing", "swept", "nothing", "swept"]


def test_stake_that_came_or_went_without_an_epoch_is_not_taken_for_earnings(tmp_path):
    async def main():
        async with sweeping(tmp_path) as (owner, chain, sweeper, journal):
            await advance(owner, sweeper, GENESIS + 150)
            assert (await owner.move_stake("agg", "miner", 30 * TAO)).ok  # a deposit by hand
            await advance(owner, sweeper, GENESIS + 250)
            assert await journal.baseline_rao() == PRINCIPAL_RAO + 30 * TAO
            assert (await owner.move_stake("miner", "agg", 32 * TAO)).ok
            await advance(owner, sweeper, GENESIS + 350)
            assert await journal.baseline_rao() == PRINCIPAL_RAO - 2 * TAO
            assert [call[3] for call in chain.calls] == [EPOCH_RAO] * 3

    asyncio.run(main())
    assert stakes(tmp_path / "ledger")["miner", "cold"] == PRINCIPAL_RAO - 2 * TAO


def test_stake_that_was_taken_away_by_hand_drops_the_sweep_instead_of_touching_what_is_left(tmp_path):
    async def main():
        script = {"transfer_stake": [refused("Stale", Next.SIGN_AGAIN)]}
        async with sweeping(tmp_path, TWO, script) as (owner, _, sweeper, journal):
            await owner.advance_to(GENESIS + 101)
            await sweeper.step()  # moved, not transferred
            held = await owner.stake("agg", "cold")
            assert (await owner.move_stake("agg", "miner", held - EPOCH_RAO + 100)).ok
            await owner.advance_to(GENESIS + 120)
            await sweeper.step()
            assert (await journal.open_step()) is None

    asyncio.run(main())
    assert ("agg", "treasury") not in stakes(tmp_path / "ledger")
    assert rows(tmp_path / "journal", "SELECT action, state FROM steps") == [
        ("move", "applied"),
        ("transfer", "dropped"),
    ]


def test_a_sweep_that_no_longer_fits_above_the_baseline_is_dropped_not_taken_out_of_it(tmp_path):
    async def main():
        async with sweeping(tmp_path, script={"transfer_stake": [refused("TransferDisallowed")]}) as (
            owner, chain, sweeper, _,
        ):  # fmt: skip
            await owner.advance_to(GENESIS + 101)
            await sweeper.step()
            assert (await owner.move_stake("miner", "agg", 55 * TAO)).ok  # with the next epoch, 45 are left of 50
            await owner.advance_to(GENESIS + 201)
            await sweeper.step()
            assert [call[3] for call in chain.calls] == [50 * TAO, 45 * TAO]

    asyncio.run(main())
    assert stakes(tmp_path / "ledger")["miner", "cold"] == PRINCIPAL_RAO
    states = rows(tmp_path / "journal", "SELECT amount_rao, state FROM steps ORDER BY id")
    assert states == [(50 * TAO, "dropped"), (45 * TAO, "applied")]


@BOTH
def test_all_takes_baseline_and_unrelated_stake_too_and_afterwards_less_is_the_baseline(tmp_path, policy):
    async def main():
        ledger = tmp_path / "ledger"
        path = tmp_path / "journal"
        opened = Journal.open(path, 98, "miner", "cold")
        async with subnet(ledger) as owner, wallet(ledger) as chain, opened as journal:
            everything = replace(policy, take_all=True)
            said = await stake_module.what_all_includes(chain, everything)
            assert alpha(PRINCIPAL_RAO) in said and alpha(UNRELATED_RAO) in said
            await Sweeper(chain, journal, everything).step()
            assert stakes(ledger)["agg", "treasury"] == PRINCIPAL_RAO + UNRELATED_RAO
            sweeper = Sweeper(chain, journal, policy)
            await sweeper.step()
            assert await journal.baseline_rao() == 0
            await advance(owner, sweeper, GENESIS + 150)
            assert stakes(ledger)["agg", "treasury"] == PRINCIPAL_RAO + UNRELATED_RAO + EPOCH_RAO

    asyncio.run(main())


@pytest.mark.parametrize("skip", [False, True])
def test_what_came_while_nobody_watched_is_swept_at_the_start_or_with_the_next_epoch(tmp_path, skip):
    async def main():
        async with sweeping(tmp_path) as (owner, chain, _, journal):
            await owner.advance_to(GENESIS + 350)
            again = Sweeper(chain, journal, POLICY, skip_first=skip)
            await again.step()
            assert [call[3] for call in chain.calls] == ([] if skip else [3 * EPOCH_RAO])
            await advance(owner, again, GENESIS + 450)
            assert [call[3] for call in chain.calls] == ([4 * EPOCH_RAO] if skip else [3 * EPOCH_RAO, EPOCH_RAO])

    asyncio.run(main())


def test_owner_triggered_epochs_and_tempo_changes_are_epochs_like_others(tmp_path):
    async def main():
        async with sweeping(tmp_path) as (owner, chain, sweeper, _):
            await advance(owner, sweeper, GENESIS + 130)
            await owner.trigger_epoch()
            await advance(owner, sweeper, GENESIS + 180)
            await owner.set_hyperparameters(tempo=20)  # overdue: the next block
            await advance(owner, sweeper, GENESIS + 225, every=1)
            await owner.set_hyperparameters(tempo=100)
            await advance(owner, sweeper, GENESIS + 330)
            paid = rows(
                tmp_path / "ledger", "SELECT block, emitted_rao / 2 FROM epochs WHERE emitted_rao ORDER BY block"
            )
            assert [call[3] for call in chain.calls] == [rao for _, rao in paid]
            assert len(paid) == 6 and {100, 130, 181, 201, 221} < {block - GENESIS for block, _ in paid}

    asyncio.run(main())


def test_a_reading_never_spans_an_epoch():
    class Moving:
        """An epoch falls into the first reading, between the stakes of two positions."""

        epochs = iter([100, 200, 200, 200])

        async def epoch(self):
            return EpochInfo(next(self.epochs), 100, None)

        async def block(self):
            return 201

        async def stake(self, hotkey, coldkey):
            return 5

    assert asyncio.run(read(Moving(), ("a", "b"))) == Reading(201, 200, None, (5,))


# ---------------------------------------------------------------------------------------------------------------------
# Crashes


class Killed(BaseException):
    """Like kill -9: nothing of ours catches it."""


class Dying:
    """Lets so many calls of its objects begin or end, then the process dies."""

    def __init__(self, moments):
        self.moments = moments

    def of(self, thing):
        dying = self

        class Proxy:
            def __getattr__(self, name):
                member = getattr(thing, name)
                if not asyncio.iscoroutinefunction(member):
                    return member

                async def call(*arguments):
                    dying.tick()
                    result = await member(*arguments)
                    dying.tick()
                    return result

                return call

        return Proxy()

    def tick(self):
        self.moments -= 1
        if self.moments < 0:
            raise Killed


@BOTH
@pytest.mark.costly("a sweep killed")
def test_killed_before_or_after_any_single_operation_it_ends_as_if_never_killed(tmp_path, policy):
    """Every moment between two operations on chain or journal, one after the other."""

    async def killed_after(moments, folder):
        folder.mkdir()
        async with sweeping(folder, policy) as (owner, chain, _, journal):
            await owner.advance_to(GENESIS + 101)
            dying = Dying(moments)
            died = False
            try:
                await Sweeper(dying.of(chain.chain), dying.of(journal), policy).step()
            except Killed:
                died = True
            await advance(owner, Sweeper(chain.chain, journal, policy), GENESIS + 290, every=33)
            return died

    moments = 0
    while asyncio.run(killed_after(moments, tmp_path / str(moments))):
        check(tmp_path / str(moments), 2, policy)
        moments += 1
    assert moments > 50


@pytest.mark.costly("a sweep killed")
def test_a_month_of_faults_kills_triggered_epochs_and_tempo_changes_ends_like_one_without(tmp_path):
    """30 days of 7200 blocks: one call of a hundred fails, one write of a hundred has an unknown fate, and the process
    is killed with SIGKILL at a random moment each day. The epochs are the same in the run without faults."""
    days, last = 30, GENESIS + 30 * 7200

    async def play(owner, settle):
        """From epoch to epoch, letting the sweeper finish after each; some come early, after some the tempo changes."""
        random_ = random.Random(7)
        while await owner.block() < last:
            epoch = await owner.epoch()
            early = random_.randrange(150, epoch.tempo) if random_.random() < 0.1 else None
            if early is None:
                await owner.advance_to(epoch.next_epoch_block)
            else:
                await owner.advance_to(epoch.last_epoch_block + early)
                await owner.trigger_epoch()
            if random_.random() < 0.05:
                await owner.set_hyperparameters(tempo=random_.choice([360, 720, 1000]))
            await settle(owner)

    async def without_faults():
        ledger, opened = tmp_path / "calm", Journal.open(tmp_path / "calm.journal", 98, "miner", "cold")
        async with subnet(ledger, tempo=720) as owner, wallet(ledger) as chain, opened as journal:
            sweeper = Sweeper(chain, journal, POLICY)  # in one call: it makes no difference
            await sweeper.step()

            async def settle(owner):
                assert (await sweeper.step()).problem == ""

            await play(owner, settle)

    async def with_faults():
        ledger, path = tmp_path / "rough", tmp_path / "rough.journal"
        kills, deaths, process = iter(sorted(random.Random(3).sample(range(1, 250), days))), [0], None
        upcoming = next(kills)
        begun = time.monotonic()

        processes = multiprocessing.get_context("forkserver")  # a new process in milliseconds
        processes.set_forkserver_preload(["stakes"])

        def start():
            nonlocal process
            process = processes.Process(target=run_sweeper, args=(ledger, path, deaths[0], TWO))
            process.start()

        def seen():
            try:
                return rows(path, "SELECT block FROM seen")[0][0]
            except (sqlite3.OperationalError, IndexError):
                return 0

        async with subnet(ledger, tempo=720) as owner:
            start()
            while seen() < GENESIS:
                await asyncio.sleep(0.01)
            epochs = 0

            async def settle(owner):
                nonlocal epochs, upcoming
                epochs += 1
                if epochs >= upcoming:
                    await asyncio.sleep(random.random() * 0.03)
                    process.kill()
                    process.join()
                    assert process.exitcode == -signal.SIGKILL
                    deaths[0] += 1
                    upcoming = next(kills, 10**9)
                    start()
                head = last_epoch = (await owner.epoch()).last_epoch_block
                state = "SELECT MAX(epoch_block), SUM(state IN ('observed', 'open')) FROM epochs"
                while rows(path, state) != [(last_epoch, 0)]:
                    if seen() == head:
                        head = await owner.advance_to(head + 4)
                    assert process.is_alive() and time.monotonic() < begun + 15 * SECONDS
                    await asyncio.sleep(0.005)

            try:
                await play(owner, settle)
            finally:
                process.kill()
                process.join()
        return deaths[0]

    asyncio.run(without_faults())
    deaths = asyncio.run(with_faults())
    assert deaths >= 28
    swept = "SELECT earned_rao FROM epochs WHERE state = 'swept' ORDER BY epoch_block"
    given = "SELECT rao FROM moves WHERE dest_coldkey = 'treasury' ORDER BY id"
    paid = "SELECT emitted_rao / 2 FROM epochs WHERE emitted_rao ORDER BY block"
    for name in ("calm", "rough"):
        amounts = rows(tmp_path / name, paid)
        assert len(amounts) > 250
        assert rows(tmp_path / name, given) == rows(tmp_path / f"{name}.journal", swept) == amounts  # one an epoch
    assert rows(tmp_path / "calm", "SELECT * FROM epochs") == rows(tmp_path / "rough", "SELECT * FROM epochs")
    assert stakes(tmp_path / "calm") == stakes(tmp_path / "rough")
    rough = stakes(tmp_path / "rough")
    earned = sum(rao for (rao,) in amounts)
    assert rough["miner", "cold"] == PRINCIPAL_RAO and rough["agg", "treasury"] == earned
    assert rough["agg", "cold"] == UNRELATED_RAO + sum(rao for (rao,) in amounts)
    attempts = rows(tmp_path / "rough.journal", "SELECT COUNT(*) FROM steps WHERE attempts > 1")
    assert attempts[0][0] > 3  # the faults were real


# ---------------------------------------------------------------------------------------------------------------------
# Through the SDK's own client, over a fake node


@BOTH
@pytest.mark.parametrize(
    "fault", [None, "lost before", "lost after", "dispatch: StakeUnavailable", "dispatch: TxRateLimitExceeded", LOST]
)
def test_the_sweep_through_the_sdks_client_ends_the_same_whatever_becomes_of_a_call(
    tmp_path, sdk_caches, policy, fault
):
    keys = {name: local_keypair(name) for name in ("miner", "agg", "cold", "treasury", "owner")}
    ss58 = {name: key.ss58_address for name, key in keys.items()}
    policy = replace(policy, aggregator_hotkey=ss58["agg"], destination_coldkey=ss58["treasury"])
    node = Node(block=GENESIS, owner=(ss58["owner"], ss58["owner"]))
    node.register(ss58["owner"], ss58["owner"], TAO)
    node.register(ss58["agg"], ss58["cold"], UNRELATED_RAO)
    node.register(ss58["miner"], ss58["cold"], PRINCIPAL_RAO)

    async def main():
        wallet_ = Wallet(keys["miner"], ss58["cold"], keys["cold"])
        async with AsyncExitStack() as stack:
            opened = BittensorChain.open(netuid=98, wallet=wallet_, substrate=node.substrate)
            chain = await stack.enter_async_context(opened)
            path = tmp_path / "journal"
            journal = await stack.enter_async_context(Journal.open(path, 98, chain.hotkey, chain.coldkey))
            sweeper = Sweeper(chain, journal, policy)
            assert (await sweeper.step()).problem == ""
            node.advance(node.state.rules.tempo)
            node.state.stakes[ss58["miner"], ss58["cold"]] += EPOCH_RAO  # the epoch's pay
            if fault:
                node.faults["submit"].append(fault)
            for _ in range(80):
                with suppress(ChainError):
                    await sweeper.step()
                node.advance(5)
            assert await journal.open_step() is None

    asyncio.run(main())
    assert node.state.stakes[ss58["miner"], ss58["cold"]] == PRINCIPAL_RAO
    assert node.state.stakes[ss58["agg"], ss58["cold"]] == UNRELATED_RAO
    assert node.state.stakes[ss58["agg"], ss58["treasury"]] == EPOCH_RAO
    steps = rows(tmp_path / "journal", "SELECT state, extrinsic IS NULL FROM steps WHERE state != 'dropped'")
    assert steps == [("applied", 0)] * (2 if policy.two_calls else 1)


# ---------------------------------------------------------------------------------------------------------------------
# The burn


@asynccontextmanager
async def burning(tmp_path, script=None, interval=720, target_uid=None, target_hotkey=None, **rules):
    """The subnet as `agg`, which has stake and permit, sees it, and a burner for it."""
    async with AsyncExitStack() as stack:
        owner = await stack.enter_async_context(subnet(tmp_path / "ledger", **rules))
        chain = Scripted(owner, script)
        journal = await stack.enter_async_context(Journal.open(tmp_path / "burns", 98, "agg", "cold"))

        def burner():
            return Burner(chain, journal, interval_blocks=interval, target_uid=target_uid, target_hotkey=target_hotkey)

        yield owner, chain, burner


def test_without_a_target_all_weight_goes_to_the_owners_uid_once_an_interval_over_10000_blocks_and_restarts(tmp_path):
    """The interval is measured from the chain's last update, so a restart at any moment changes nothing."""

    async def main():
        async with burning(tmp_path) as (owner, chain, burner):
            await owner.set_hyperparameters(weights_rate_limit_blocks=100)
            random_ = random.Random(1)
            blocks, current, waited = [], burner(), 0
            while (head := await owner.block()) < GENESIS + 10_000:
                if random_.random() < 0.2:
                    current = burner()
                calls = len(chain.calls)
                result = await current.step()
                assert result.problem == "" and result.wait_blocks > 0
                if len(chain.calls) > calls and result.news["weights"].ok:
                    blocks.append(head)
                waited = min(result.wait_blocks, random_.choice([1, 50, 300, 10**6]))
                await owner.advance_to(head + waited)
            assert [call for call in chain.calls if call[0] == "set_weights"][-13:] == [("set_weights", {0: 1}, 0)] * 13
            assert blocks == [GENESIS + 101 + n * 720 for n in range(14)]  # the subnet's own vector was of GENESIS + 1
            assert await owner.weights_of(1) == {0: 65535}

    asyncio.run(main())
    set_ = rows(tmp_path / "burns", "SELECT uids, code FROM weights WHERE code != 'weights_too_soon'")
    assert set_ == [('{"0":"1"}', "weights_set")] * 14


def test_what_is_burned_is_paid_to_nobody(tmp_path):
    async def main():
        async with burning(tmp_path, interval=1) as (owner, _, burner):
            await owner.advance_to(GENESIS + 50)
            await burner().step()
            before = stakes(tmp_path / "ledger")
            await owner.advance_to(GENESIS + 150)
            after = stakes(tmp_path / "ledger")
            assert {key: after[key] - before[key] for key in after if after[key] != before[key]} == {
                ("agg", "cold"): EPOCH_RAO  # the dividends
            }

    asyncio.run(main())


def test_the_first_weights_of_a_new_validator_wait_for_the_rate_limit_only(tmp_path):
    async def main():
        async with AsyncExitStack() as stack:
            owner = await stack.enter_async_context(subnet(tmp_path / "ledger"))
            await owner.set_hyperparameters(weights_rate_limit_blocks=100)
            await owner.register("new", "fresh", 6000 * TAO)
            chain = await stack.enter_async_context(LocalChain.open(tmp_path / "ledger", "new", "fresh"))
            journal = await stack.enter_async_context(Journal.open(tmp_path / "burns", 98, "new", "fresh"))
            said = await Burner(chain, journal).plan()
            assert f"next at block {GENESIS + 101}" in said and "uid 0 (burned)" in said
            assert (await Burner(chain, journal).step())[:2] == (100, "")
            await owner.advance_to(GENESIS + 101)
            assert (await Burner(chain, journal).step()).news["weights"].ok

    asyncio.run(main())


def test_an_owner_without_a_uid_is_a_clear_error_and_no_extrinsic(tmp_path):
    async def main():
        async with burning(tmp_path, interval=1) as (owner, chain, burner):
            await owner.advance_to(GENESIS + 50)
            with_owner = owner.metagraph

            async def without_owner(block=None):
                graph = await with_owner(block)
                return replace(graph, neurons=tuple(n for n in graph.neurons if n.coldkey != OWNER_COLDKEY))

            owner.metagraph = without_owner
            result = await burner().step()
            assert "the owner has no neuron" in result.problem and chain.calls == []
            assert AlertRules(0).observe(1, **result.news)[0].kind == "weights"

    asyncio.run(main())


def test_a_recycled_uid_is_never_paid_not_even_after_a_restart(tmp_path):
    async def main():
        rules = {"max_uids": 4, "immunity_blocks": 0}
        async with burning(tmp_path, interval=10, target_uid=3, **rules) as (owner, chain, burner):
            assert await owner.register("target", "theirs") == 3
            await owner.advance_to(GENESIS + 110)
            assert (await burner().step()).problem == "" and chain.calls == [("set_weights", {3: 1}, 0)]
            assert await owner.register("stranger", "else") == 3  # of all it earned least
            await owner.advance_to(GENESIS + 130)
            result = await burner().step()
            assert "uid 3 was target and is now stranger" in result.problem and "--target-hotkey" in result.problem
            assert len(chain.calls) == 1
            assert AlertRules(0).observe(1, **result.news)[0].kind == "weights"
            await owner.set_hyperparameters(max_uids=5)
            assert await owner.register("target", "theirs") == 4  # back, with another uid
            assert "uid 3 was target" in (await burner().step()).problem and len(chain.calls) == 1

    asyncio.run(main())


def test_a_row_in_the_journal_pays_nobody_else_by_a_burn(tmp_path):
    async def main():
        async with burning(tmp_path, interval=10, target_uid=2) as (owner, chain, burner):
            thief_uid = await owner.register("thief", "else")
            await owner.advance_to(GENESIS + 110)
            write(tmp_path / "burns", "INSERT INTO targets VALUES (2, 'thief')")
            assert "uid 2 was thief" in (await burner().step()).problem and thief_uid == 3 and chain.calls == []

    asyncio.run(main())


def test_a_target_that_is_not_there_is_said_and_nothing_is_sent(tmp_path):
    async def main():
        async with burning(tmp_path, interval=10, target_uid=9) as (owner, chain, burner):
            await owner.advance_to(GENESIS + 20)
            assert "no uid 9" in (await burner().step()).problem
        async with burning(tmp_path, interval=10, target_hotkey="nobody") as (owner, chain, burner):
            assert "nobody is not registered" in (await burner().step()).problem and chain.calls == []
        async with burning(tmp_path, interval=10, target_hotkey="miner") as (owner, chain, burner):
            await owner.advance_to(GENESIS + 60)
            assert (await burner().step()).problem == "" and chain.calls == []  # it is in force already
            assert await owner.weights_of(1) == {2: 65535}

    asyncio.run(main())


@pytest.mark.parametrize(
    ("rules", "says"),
    [({"min_allowed_weights": 9}, "WeightVecLengthIsLow"), ({"max_weight": 40000}, "MaxWeightExceeded")],
)
def test_a_vector_that_the_chain_would_refuse_is_said_and_not_sent(tmp_path, rules, says):
    async def main():
        async with burning(tmp_path, interval=1) as (owner, _, burner):
            await owner.set_hyperparameters(**rules)
            await owner.advance_to(GENESIS + 50)
            result = await burner().step()
            assert says in result.problem and result.news["weights"].next is Next.NOTHING
            assert await owner.weights_of(1) == {2: 65535}  # as before

    asyncio.run(main())


def test_lost_registration_and_permit_are_told_and_nothing_is_sent(tmp_path):
    async def main():
        async with burning(tmp_path, interval=1) as (owner, _, burner):
            await owner.advance_to(GENESIS + 20)
            rules = AlertRules(0)
            assert (await owner.move_stake("agg", "miner", UNRELATED_RAO)).ok
            await owner.advance_to(GENESIS + 120)
            result = await burner().step()
            assert "NotEnoughStake" in result.problem and (await owner.weights_of(1)) == {2: 65535}
            assert {alert.kind for alert in rules.observe(1, **result.news)} == {"permit", "weights"}
            owner.hotkey = "nobody"
            await owner.advance_to(GENESIS + 180)
            result = await burner().step()
            assert "NotRegistered" in result.problem
            assert "registration" in {alert.kind for alert in rules.observe(2, **result.news)}

    asyncio.run(main())


def test_too_soon_waits_exactly_as_long_as_needed_and_an_unknown_fate_is_read_from_the_chain(tmp_path):
    async def main():
        script = {"set_weights": [refused("SettingWeightsTooFast", Next.WAIT_BLOCKS, 37), "lost", "gone"]}
        async with burning(tmp_path, script, interval=100) as (owner, chain, burner):
            await owner.advance_to(GENESIS + 101)
            one = burner()
            assert (await one.step())[:2] == (37, "")
            await owner.advance_to(GENESIS + 138)
            assert "connection lost" in (await one.step()).problem  # it happened
            await owner.advance_to(GENESIS + 170)
            assert (await one.step())[:2] == (68, "")
            await owner.advance_to(GENESIS + 238)
            assert "connection lost" in (await one.step()).problem  # it did not
            assert (await one.step()).wait_blocks == ERA_BLOCKS and len(chain.calls) == 3
            await owner.advance_to(GENESIS + 238 + ERA_BLOCKS)
            assert (await one.step()).news["weights"].ok

    asyncio.run(main())


@pytest.fixture
def sdk_caches(tmp_path, monkeypatch):
    monkeypatch.setenv("BTCLI_TOKEN_SYMBOLS_CACHE", str(tmp_path / "symbols.json"))
    monkeypatch.setenv("BITTENSOR_RUNTIME_CACHE_DIR", str(tmp_path / "runtime"))


@pytest.mark.parametrize("dropped", [True, False])
def test_a_burn_is_read_back_and_one_that_the_chain_drops_at_its_reveal_is_told_and_tried_again(
    tmp_path, monkeypatch, sdk_caches, dropped
):
    key, owner = local_keypair("v-hotkey"), local_keypair("owner-hotkey").ss58_address
    node = Node(owner=(owner, "cold"), commit_reveal=True)
    for hotkey in (owner, key.ss58_address):
        node.register(hotkey, "cold", 10**13)
    remember_commits(monkeypatch, node)
    epoch = node._epoch
    monkeypatch.setattr(node, "_epoch", lambda: (node.state.commits.clear() if dropped else None, epoch()))

    async def main():
        wallet_, rules, told = Wallet(key, local_keypair("v-coldkey").ss58_address), AlertRules(0, 8640), []
        opened = BittensorChain.open(netuid=98, wallet=wallet_, substrate=node.substrate)
        async with opened as chain, Journal.open(tmp_path / "j", 98, chain.hotkey, chain.coldkey) as journal:
            burner = Burner(chain, journal)
            for block in range(0, 2400, 60):
                result = await burner.step()
                told += rules.observe(12.0 * block, chain=True, **result.news)
                node.advance(60)
            assert bool(result.problem) == dropped and (await chain.weights_of(1) == {0: 65535}) != dropped

        assert [alert.kind for alert in told] == ["weights"] * len(told) and bool(told) == dropped
        assert not dropped or "NotInForce" in told[0].text
        assert node.submitted == (6 if dropped else 4)

    asyncio.run(main())


def test_a_journal_of_before_opens_and_its_burns_are_still_there(tmp_path):
    with closing(sqlite3.connect(tmp_path / "j")) as db:
        db.executescript(MIGRATIONS[0])
        db.execute("PRAGMA user_version = 1")
        db.execute("INSERT INTO wallet VALUES (1, 98, 'agg', 'cold')")
        db.execute("INSERT INTO burns VALUES (3, 1500, 0, 'owner', 'set', '')")
        db.execute("INSERT INTO burns VALUES (4, 2300, 0, 'owner', 'Stale', 'too old')")
        db.commit()

    async def main():
        async with Journal.open(tmp_path / "j", 98, "agg", "cold") as journal:
            last = await last_weights(journal)
            assert (last.block, last.uids, last.code, last.next_block) == (2300, {0: 1}, "weights_rejected", 2300)
            assert await weights_noted(journal) == 1500 and not await journal.is_new()
            lines = await journal.lines()
            assert ["weights_set" in lines[0], "too old" in lines[1], len(lines)] == [True, True, 2]

    asyncio.run(main())


# ---------------------------------------------------------------------------------------------------------------------
# The loops


def test_a_loop_survives_chain_and_journal_failing_and_says_so_once(caplog):
    failures = [ChainError("gone"), ChainError("gone"), sqlite3.OperationalError("disk full"), None, None]
    news = []

    async def step():
        if not failures:
            raise asyncio.CancelledError
        if (failure := failures.pop(0)) is not None:
            raise failure
        return Result(1, "", {"registered": True})

    async def tell(fresh):
        news.append(fresh)

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(follow(step, 0.001, tell))
    assert news == [{"chain": "gone"}, {"chain": "gone"}, {}] + [{"chain": True, "registered": True}] * 2
    assert [record.getMessage()[:12] for record in caplog.records] == ["the chain: g", "the journal:", "all is well "]


def test_the_daily_summary_comes_once_a_day_at_its_end_also_on_the_31st_and_after_a_restart(tmp_path):
    at = {"30th": 1761868800 - 60, "31st": 1761955200 - 60, "1st": 1761955200, "3rd": 1762128000 + 60}  # October 2025

    async def main():
        async with sweeping(tmp_path) as (owner, _, sweeper, journal):

            async def said(now):
                return await journal.summary(now)

            assert await said(at["30th"]) is None
            await advance(owner, sweeper, GENESIS + 250)
            text = await said(at["31st"])
            assert "2025-10-30" in text and "2 transfers" in text and alpha(2 * EPOCH_RAO) in text
            assert await said(at["31st"] + 30) is None
            async with Journal.open(tmp_path / "journal", 98, "miner", "cold") as again:  # a restart over midnight
                text = await again.summary(at["1st"])
            assert "2025-10-31" in text and "0 transfers" in text
            assert "2025-11-02" in await said(at["3rd"]) and await said(at["3rd"]) is None

    asyncio.run(main())


# ---------------------------------------------------------------------------------------------------------------------
# The command line


@pytest.fixture(scope="module")
def wallets(tmp_path_factory):
    """A folder with wallet `w`: hotkey `plain`, coldkey encrypted."""
    folder = str(tmp_path_factory.mktemp("wallets"))
    bt.Wallet("w", "plain", folder).create_new_coldkey(coldkey_password="right", suppress=True).create_new_hotkey(
        suppress=True
    )
    return folder


def local_subnet(folder, stakes_tao, **rules):
    """A ledger as `python validator.py` makes it, with development wallets; the validator votes for `wide`."""

    async def make():
        validator = [local_keypair(f"validator-{kind}").ss58_address for kind in ("hotkey", "coldkey")]
        hyperparameters = Hyperparameters(weights_rate_limit_blocks=0, tempo=100, **rules)
        async with LocalChain.open(
            folder / "chain.sqlite3", *validator, genesis_block=GENESIS, hyperparameters=hyperparameters
        ) as chain:
            for name, tao in stakes_tao.items():
                keys = [local_keypair(f"{name}-{kind}").ss58_address for kind in ("hotkey", "coldkey")]
                await chain.register(*keys, tao * TAO)
            await chain.advance_to(GENESIS + 1)
            assert (await chain.set_weights({2: 1}, 0)).ok

    folder.mkdir()
    asyncio.run(make())


def later(folder, block):
    async def main():
        async with LocalChain.open(folder / "chain.sqlite3", "x", "x") as chain:
            await chain.advance_to(block)

    asyncio.run(main())


def call(cwd, *words, **environment):
    known = {name: value for name, value in os.environ.items() if not name.startswith(("BT_", "NETUID", "SLACK"))}
    return subprocess.run(
        [sys.executable, str(ROOT / "stake.py"), *words],
        cwd=cwd,
        env=known | environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )


def test_a_stranger_who_has_only_help_completes_a_burn_and_a_sweep(tmp_path):
    """Follows the examples of `--help` word for word, putting in the addresses that the program prints."""
    local_subnet(tmp_path / "local", {"validator": 5000, "wide": 1})
    shown = call(tmp_path, "--help").stdout
    lines = [line.strip().split("   ")[0] for line in shown.splitlines() if line.startswith("  python stake.py")]
    status, burn, dry, real = (
        next(line for line in lines if found in line and not left_out(line))
        for found, left_out in [
            ("status", lambda line: False),
            ("burn", lambda line: "--netuid" in line),
            ("sweep", lambda line: "--yes" in line),
            ("--yes", lambda line: False),
        ]
    )
    notes = re.findall(r'echo "([a-z-]+) SS58" >> (\S+)', shown)

    def typed(line):
        words = shlex.split(line)[2:]
        return [found.get(before.removeprefix("--"), word) for before, word in zip(["", *words], words, strict=False)]

    found: dict[str, str] = {}
    treasury = call(tmp_path, *typed(status)).stdout
    aggregator = call(tmp_path, *typed(status.replace("treasury", "validator"))).stdout
    found["destination-coldkey"] = re.search(r"coldkey (\w{48})", treasury)[1]
    found["aggregator-hotkey"] = re.search(r"hotkey (\w{48})", aggregator)[1]
    for role, path in notes:
        with open(tmp_path / path, "a", encoding="utf-8") as file:
            file.write(f"{role} {found[role]}\n")

    later(tmp_path / "local", GENESIS + 900)
    ended = call(tmp_path, *typed(burn))
    assert ended.returncode == 0 and "burned" in ended.stdout, ended
    ledger = tmp_path / "local/chain.sqlite3"
    assert rows(ledger, "SELECT vector FROM weights") == [('{"0": 65535}',)]

    ended = call(tmp_path, *typed(dry))
    assert ended.returncode == 0 and "DRY RUN" in ended.stdout and rows(ledger, "SELECT * FROM moves") == [], ended
    assert call(tmp_path, *typed(real), "--once").returncode == 0  # the baseline

    async def pay():
        keys = [local_keypair(f"validator-{kind}").ss58_address for kind in ("hotkey", "coldkey")]
        async with LocalChain.open(ledger, *keys) as chain:
            assert (await chain.set_weights({2: 1}, 0)).ok
            await chain.advance_to(GENESIS + 1000)

    asyncio.run(pay())
    ended = call(tmp_path, *typed(dry))
    assert ended.returncode == 0 and "transfer 50.000000000 alpha" in ended.stdout
    ended = call(tmp_path, *typed(real), "--once")
    assert ended.returncode == 0 and "swept" in ended.stdout, ended
    held = stakes(ledger)
    assert held[found["aggregator-hotkey"], found["destination-coldkey"]] == EPOCH_RAO
    assert "swept" in call(tmp_path, "status", "--name", "wide").stdout


def test_sigterm_stops_the_loop_cleanly_and_one_journal_has_one_process(tmp_path):
    local_subnet(tmp_path / "local", {"validator": 5000, "wide": 1})
    arguments = [
        sys.executable,
        str(ROOT / "stake.py"),
        "burn",
        "--name",
        "validator",
        "--poll-interval",
        "0.05",
        "--set-weights-interval",
        "10",
    ]
    later(tmp_path / "local", GENESIS + 50)
    with subprocess.Popen(
        arguments, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert "LOCAL" in process.stdout.readline() and "block" in process.stdout.readline()
            second = call(tmp_path, "burn", "--name", "validator")
            assert second.returncode == 2 and "another process" in second.stderr and second.stderr.count("\n") == 1
            process.send_signal(signal.SIGTERM)
            assert process.wait(SECONDS) == 0
        finally:
            process.kill()


def test_a_network_that_does_not_answer_is_waited_for_but_not_with_once(tmp_path, wallets):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody can connect
        where = ["--netuid", "98", "--chain-endpoint", f"ws://127.0.0.1:{taken.getsockname()[1]}"]
        words = ["burn", *where, "--wallet", "w", "--wallet-hotkey", "plain", "--wallet-path", wallets, "--dir", "."]
        arguments = [sys.executable, ROOT / "stake.py", *words, "--poll-interval", "0.05"]
        with subprocess.Popen(arguments, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
            try:
                said = [process.stderr.readline() for _ in range(4)]  # what the SDK said, and what is done, twice
                assert sum("trying again" in line for line in said) == 2
                process.send_signal(signal.SIGTERM)
                assert process.wait(SECONDS) == 0
            finally:
                process.kill()
        ended = call(tmp_path, *words, "--once")
        assert ended.returncode == 75 and ended.stderr.count("\n") == 2 and ended.stdout == ""


@pytest.mark.parametrize("verb", [("burn", "--once"), ("status",)])
def test_the_password_that_is_given_opens_an_encrypted_hotkey(tmp_path, monkeypatch, capsys, sdk_caches, verb):
    hot, cold = local_keypair("v-hotkey"), local_keypair("v-coldkey")
    Keyfile(tmp_path / "w/hotkeys/v").set_keypair(hot, password="correct horse 7")
    Keyfile(tmp_path / "w/coldkeypub.txt").set_keypair(cold, encrypt=False)
    (tmp_path / "password").write_text("correct horse 7\n")
    (tmp_path / "password").chmod(0o600)
    node = Node(owner=(hot.ss58_address, cold.ss58_address))
    node.register(hot.ss58_address, cold.ss58_address, 10**13)
    monkeypatch.setattr(BittensorChain, "open", partial(BittensorChain.open, substrate=node.substrate))
    where = ["--netuid", "98", "--wallet", "w", "--wallet-hotkey", "v", "--wallet-path", str(tmp_path)]
    assert (
        stake_module.main([*verb, *where, "--password-file", str(tmp_path / "password"), "--dir", str(tmp_path)]) == 0
    )
    assert hot.ss58_address in capsys.readouterr().out


SWEEP = ("sweep", "--yes", "--once", "--aggregator-hotkey", "AGG", "--destination-coldkey", "COLD")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("burn", "--name", "nobody"), "not registered"),  # a wrong key
        ((*SWEEP, "--name", "nobody"), "not registered"),
        ((*SWEEP, "--netuid", "98", "--local", "--wallet", "w", "--wallet-hotkey", "nosuch"), "no key file"),
        ((*SWEEP, "--netuid", "98", "--local", "--wallet", "w", "--wallet-hotkey", "plain"), "wrong password"),
        (
            ("burn", "--netuid", "77", "--local", "--wallet", "w", "--wallet-hotkey", "plain"),
            "netuid 98, not 77",
        ),
        ((*SWEEP[:4], "5C" + "A" * 46, *SWEEP[5:]), "no ss58 address"),
        ((*SWEEP[:6], "BADSUM"), "checksum"),
        ((*SWEEP[:6], "AGG"), "not in allow-list"),  # an address of the other role
        ((*SWEEP, "--allow-list", "nosuch"), "allow-list nosuch"),
        (("sweep", "--yes"), "--aggregator-hotkey"),  # no default
        (("burn", "--target-hotkey", "BADSUM"), "no ss58 address"),
        (("burn", "--dir", "nosuch"), "no local subnet"),
        ((*SWEEP, "--settle", "applied"), "--settle"),
    ],
)
def test_a_mistake_is_one_line_exit_code_2_and_nothing_sent(tmp_path, wallets, words, says):
    local_subnet(tmp_path / "local", {"validator": 5000, "wide": 1, "mine": 1})
    good = local_keypair("any").ss58_address
    swapped = good[:20] + good[21] + good[20] + good[22:]
    known = {"AGG": local_keypair("validator-hotkey").ss58_address, "COLD": good, "BADSUM": swapped}
    lines = f"aggregator-hotkey {known['AGG']}\ndestination-coldkey {good}  # ours\n\n"
    (tmp_path / "local/stake-allow.txt").write_text(lines)
    words = [known.get(word, word) for word in words]
    environment = {"BT_WALLET_PATH": wallets, "BT_WALLET_PASSWORD": "not-this-one"}
    ended = call(tmp_path, *words, **environment)
    assert ended.returncode == 2, ended
    assert says in ended.stderr and ended.stderr.count("\n") == 1, ended.stderr
    assert "not-this-one" not in ended.stderr  # the password itself is not shown
    assert rows(tmp_path / "local/chain.sqlite3", "SELECT * FROM moves") == []
    assert rows(tmp_path / "local/chain.sqlite3", "SELECT block FROM weights") == [(GENESIS + 1,)]


@pytest.mark.parametrize(
    ("text", "mode", "says"),
    [
        ("aggregator-hotkey\n", 0o600, "line 1"),
        ("# a note\n\nhotkey GOOD\n", 0o600, "line 3"),
        ("aggregator-hotkey GOODx\n", 0o600, "no ss58 address"),
        ("aggregator-hotkey GOOD\n", 0o666, "chmod"),
    ],
)
def test_an_allow_list_that_is_not_as_it_should_be_allows_nothing(tmp_path, text, mode, says):
    path = tmp_path / "allow"
    path.write_text(text.replace("GOOD", local_keypair("any").ss58_address))
    path.chmod(mode)
    with pytest.raises(process_module.UserError, match=says):
        read_allow_list(path)


@pytest.mark.parametrize(
    ("action", "origin", "hotkey", "coldkey"),
    [
        ("transfer", "miner", "thief", "thief"),
        ("transfer", "miner", "agg", "thief"),
        ("transfer", "miner", "thief", "treasury"),
        ("transfer", "other", "agg", "treasury"),
        ("move", "miner", "thief", "cold"),
        ("move", "miner", "agg", "treasury"),
    ],
)
@pytest.mark.parametrize("state", ["planned", "sent"])
def test_a_row_that_somebody_put_into_the_journal_moves_nothing_and_the_sweep_goes_on(
    tmp_path, action, origin, hotkey, coldkey, state
):
    async def main():
        async with sweeping(tmp_path) as (owner, chain, sweeper, _):
            for name in ("thief", "other"):
                await owner.register(name, "cold", 5 * TAO)
            block = await owner.block()
            sql = "INSERT INTO steps (epoch_block, action, origin_hotkey, dest_hotkey, dest_coldkey, amount_rao, state,"
            sql += (
                " sent_block, sent_epoch_block, origin_before_rao, dest_before_rao) SELECT max(epoch_block), ?, ?, ?,"
            )
            sql += " ?, ?, ?, ?, 0, 0, 0 FROM epochs"
            write(tmp_path / "journal", "UPDATE baselines SET rao = 0")
            write(tmp_path / "journal", sql, action, origin, hotkey, coldkey, 4 * TAO, state, block)
            results = await advance(owner, sweeper, GENESIS + 99)
            told = [one.news["sweep"].name for one in results if "sweep" in one.news]
            assert told == ["Dropped"] and chain.calls == []
            await advance(owner, sweeper, GENESIS + 101)
            assert [call[:3] for call in chain.calls] == [("transfer_stake", "miner", "treasury")]

    asyncio.run(main())


def test_an_address_that_is_taken_off_the_allow_list_gets_nothing_more(tmp_path):
    def not_allowed():
        raise process_module.UserError("it is not in the allow-list")

    async def main():
        async with sweeping(tmp_path) as (owner, chain, _, journal):
            await owner.advance_to(GENESIS + 101)
            result = await Sweeper(chain, journal, POLICY, allowed=not_allowed).step()
            assert "not in the allow-list" in result.problem and result.news["sweep"].name == "NotAllowed"
            await owner.advance_to(GENESIS + 120)
            assert chain.calls == [] and (await Sweeper(chain, journal, POLICY).step()).problem == ""
            assert len(chain.calls) == 1

    asyncio.run(main())


def test_a_sweep_that_was_begun_is_not_ended_elsewhere(tmp_path):
    async def main():
        script = {"transfer_stake": [refused("TransferDisallowed")]}
        async with sweeping(tmp_path, TWO, script) as (owner, _, sweeper, journal):
            await owner.advance_to(GENESIS + 101)
            await sweeper.step()
            await journal.check_addresses("agg", "treasury")
            for other in (("agg", "thief"), ("elsewhere", "treasury")):
                with pytest.raises(process_module.UserError, match="epoch 1100 was begun"):
                    await journal.check_addresses(*other)

    asyncio.run(main())


def test_a_journal_of_another_wallet_or_subnet_is_refused(tmp_path):
    async def main():
        async with Journal.open(tmp_path / "j", 98, "miner", "cold"):
            pass
        for other in ((99, "miner", "cold"), (98, "other", "cold"), (98, "miner", "other")):
            with pytest.raises(process_module.UserError, match="--journal"):
                async with Journal.open(tmp_path / "j", *other):
                    pass

    asyncio.run(main())


# ---------------------------------------------------------------------------------------------------------------------
# The documentation


def test_every_row_of_the_tables_in_the_documentation_names_tests_that_exist():
    lines = [line for line in (ROOT / "docs/stake.md").read_text().splitlines() if line.startswith("| ")]
    rows_ = [line for line in lines if "test_" in line]
    named = {name for line in rows_ for name in re.findall(r"`(test_\w+)`", line)}
    assert len(rows_) > 20 and len(rows_) == len(lines) - sum(line.endswith("| test |") for line in lines)
    assert not named - globals().keys()


def test_the_documentation_names_the_constants_as_they_are():
    text = " ".join((ROOT / "docs/stake.md").read_text().split())
    for value in (
        f"{FATE_BLOCKS} blocks",
        f"{RETRY_BLOCKS} blocks",
        f"{ROUNDING_RAO} rao",
        f"{MINIMUM_RAO:,} rao",
    ):
        assert value in text, value
