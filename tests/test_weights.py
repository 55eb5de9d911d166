"""Weights: each way an attempt can end, as its stored row, its line in the log and the alert that the validator sends.

A `Validator` looks at both chains as it does at work, over a store with rounds in it; what only a real network does is
shown on the fake node of `substrate.py`. Run: `python -m pytest tests/test_weights.py`. Read next: `weights.py`.
"""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import AsyncExitStack
from decimal import Decimal
from types import SimpleNamespace

import pytest
from subnets import a_job, keep, model, play_subnet, rows
from substrate import LOST, remember_commits
from test_chain import SETTLED, START, WORLDS, BittensorWorld, LocalWorld, _sdk_caches, cold, hot  # noqa: F401
from test_store import START as MARKET_START
from test_store import a_round

import validator as validator_module
from chain import weights as weights_module
from chain.base import BLOCK_SECONDS, Chain, Next, u16_weights
from chain.notify import CHAIN_SILENT_SECONDS, WEIGHTS_LATE_SECONDS
from chain.weights import INTERVAL_BLOCKS, RETRY_BLOCKS
from protocol import Code
from store import Store
from validator import Validator, build_parser
from wire.signing import local_keypair

MARKET = model(pace=1.0)
NOW = MARKET_START + 10 * 3600  # market time, after the rounds
DAY = 86_400
MIDNIGHT = 1_800_057_600  # of a UTC day
V, B = 1, 3  # uids; in the rounds a and b are equal, and of equals b's hotkey comes first


class Look:
    """What one look of the validator left: the row and the log line of an attempt, if there was one, and the alerts."""

    def __init__(self, row: tuple | None, line: str, alerts: list[tuple[str, str]]):
        self.row, self.line, self.alerts = row, line, alerts
        self.code, self.name, self.block, self.next_block, self.uids, self.detail = row or [None] * 6

    def __repr__(self) -> str:
        return f"{self.row} {self.line!r} {self.alerts}"


class Scene:
    """The memory of a validator v (uid 1) on one of the two worlds; `seconds` is its clock, moved with the blocks."""

    def __init__(self, world, chain: Chain, store: Store, path, caplog):
        self.world, self.chain, self.store = world, chain, store
        self.seconds, self.path, self._caplog, self._told = float(MIDNIGHT), path, caplog, []

    def restart(self, *arguments: str) -> None:
        """As after the end of the process: only store and chain remember."""
        options = build_parser().parse_args(list(arguments))
        key = local_keypair("v-hotkey")
        self.validator = Validator(self.store, self.chain, MARKET, None, key, options, {})
        self.validator.notifier = SimpleNamespace(notify=lambda kind, text: self._told.append((kind, text)))

    async def advance(self, blocks: int) -> None:
        await self.world.advance(blocks)
        self.seconds += blocks * BLOCK_SECONDS

    async def advance_to(self, block: int) -> None:
        await self.advance(block - await self.chain.block())

    async def look(self) -> Look:
        """One look, which makes at most one attempt, and never an attempt without one row and one line."""
        before = len(self.attempts())
        self._caplog.clear()
        self._told.clear()
        with self._caplog.at_level(logging.INFO):
            await self.validator._weigh(NOW)
        lines = [record.getMessage() for record in self._caplog.records if record.name == "weights"]
        new = self.attempts()[before:]
        assert len(new) == len(lines) <= 1 and not [line for line in lines if "\n" in line]
        return Look(new[0] if new else None, "".join(lines), [alert for alert in self._told if alert[0] != "summary"])

    def attempts(self) -> list[tuple]:
        found = rows(self.path, "SELECT code, name, block, next_block, uids, detail FROM weights ORDER BY id")
        return [
            (*row[:4], {int(uid): Decimal(part) for uid, part in json.loads(row[4]).items()}, row[5]) for row in found
        ]

    async def quiet_until(self, block: int) -> None:
        """Nothing happens at looks before this block; then it is there."""
        await self.advance_to(block - 1)
        look = await self.look()
        assert look.row is None and not look.alerts
        await self.advance_to(block)

    async def in_force(self) -> dict[int, int]:
        return await self.chain.weights_of(V)


@pytest.fixture
def play_in(tmp_path, caplog, monkeypatch):
    """Call it with a world's class, an async function of a scene, and the subnet's rules."""

    def play(world_class, main, *arguments: str, **rules):
        async def run():
            async with AsyncExitStack() as stack:
                enter = stack.enter_async_context
                world = await enter(world_class.open(tmp_path, stack, **rules))
                await world.register("v", 3000)
                await world.register("a")
                await world.register("b")
                chain, store = await world.chain("v"), await enter(Store.open(tmp_path / "validator.sqlite3"))
                if world_class is BittensorWorld:
                    remember_commits(monkeypatch, world.node)
                for n in (1, 2):
                    await a_round(store, n, hot("a"), hot("b"))
                scene = Scene(world, chain, store, tmp_path / "validator.sqlite3", caplog)
                clock = SimpleNamespace(monotonic=lambda: scene.seconds, time=lambda: scene.seconds)
                monkeypatch.setattr(validator_module, "time", clock)
                scene.restart(*arguments)
                await main(scene)

        asyncio.run(asyncio.wait_for(run(), 60))

    return play


@pytest.fixture(params=WORLDS)
def on_both(request, play_in):
    return lambda main, *arguments, **rules: play_in(WORLDS[request.param], main, *arguments, **rules)


@pytest.fixture
def on_node(play_in):
    return lambda main, *arguments, **rules: play_in(BittensorWorld, main, *arguments, **rules)


# ---------------------------------------------------------------------------------------------------------------------
# Set, and set again


def test_weights_are_set_once_an_interval_also_when_they_are_the_same(on_both):
    async def main(scene):
        await scene.advance(5)
        for _ in range(3):
            look = await scene.look()
            updated = (await scene.chain.metagraph()).neurons[V].last_update_block
            assert (look.code, look.name, look.detail, look.alerts) == (Code.WEIGHTS_SET, "", "", [])
            assert (look.block, look.next_block) == (updated, updated + INTERVAL_BLOCKS)  # sent, and counted from there
            assert await scene.in_force() == u16_weights(look.uids)
            assert look.uids == {B: 1}  # the winner takes all
            assert look.line.startswith(f"weights_set at block {updated}: uid ")
            assert look.line.endswith(f"; next try at block {look.next_block}")
            await scene.quiet_until(look.next_block)

    on_both(main)


def test_a_dry_run_notes_the_vector_and_sends_nothing(on_both):
    async def main(scene):
        block = await scene.chain.block()
        look = await scene.look()
        assert (look.code, look.block, look.next_block) == (Code.WEIGHTS_DRY_RUN, block, block + INTERVAL_BLOCKS)
        assert look.uids == {B: 1} and look.alerts == [] and look.line.startswith("weights_dry_run at block")
        await scene.quiet_until(look.next_block)
        assert await scene.in_force() == {} and (await scene.look()).code == Code.WEIGHTS_DRY_RUN

    on_both(main, "--dry-run")


def test_the_rate_limit_is_waited_for_to_the_block_and_nobody_is_told(on_both):
    async def main(scene):
        await scene.advance(30)
        look = await scene.look()
        assert (look.code, look.name) == (Code.WEIGHTS_TOO_SOON, "SettingWeightsTooFast")
        assert look.next_block == START + 100 and look.alerts == [] and "again in 70 blocks" in look.line
        await scene.quiet_until(START + 100)
        look = await scene.look()
        assert look.code == Code.WEIGHTS_SET and look.alerts == []

    on_both(main, weights_rate_limit_blocks=100)


def test_a_head_that_moved_on_since_the_look_does_not_shorten_the_wait(on_node):
    """The block of the look may be older than the block at which the chain said how long to wait."""

    async def main(scene):
        weigher, block = scene.validator.weigher, await scene.chain.block()
        await scene.advance(30)
        await scene.chain.block()
        outcome = await weigher.weigh(NOW, block)
        assert (outcome.next, outcome.wait_blocks) == (Next.WAIT_BLOCKS, 70)
        assert scene.attempts()[-1][2:4] == (START + 30, START + 100)

    on_node(main, weights_rate_limit_blocks=100)


# ---------------------------------------------------------------------------------------------------------------------
# Refused: told at once, tried again, and its end is told


REFUSALS = [  # name, the subnet's rules, those that mend it
    ("IncorrectWeightVersionKey", {"version_key": 2000}, {"version_key": 0}),
    ("WeightVecLengthIsLow", {"min_allowed_weights": 4}, {"min_allowed_weights": 1}),
    ("MaxWeightExceeded", {"max_weight": 20_000}, {"max_weight": 65_535}),
]


@pytest.mark.parametrize(
    ("name", "rules", "mended"), REFUSALS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_what_only_a_person_can_mend_is_told_at_once_and_tried_again_until_it_is_mended(on_both, name, rules, mended):
    async def main(scene):
        for n in range(3):
            look = await scene.look()
            assert (look.code, look.name) == (Code.WEIGHTS_REJECTED, name) and look.detail.startswith(f"{name}: ")
            assert look.next_block == look.block + RETRY_BLOCKS and f"({look.detail})" in look.line
            told = [text for kind, text in look.alerts if kind == "weights"]
            assert told == ([f"ALERT: weights failed, 1 in a row: {look.detail}"] if n == 0 else [])
            await scene.advance_to(look.next_block)
        assert await scene.in_force() == {}
        if isinstance(scene.world, BittensorWorld):
            assert scene.world.node.submitted == 0  # no fee was paid for any of them
        await scene.world.set_rules(**mended)
        look = await scene.look()
        assert look.code == Code.WEIGHTS_SET
        assert ("weights", "RECOVERED: weights, after 15 min") in look.alerts

    on_both(main, **rules)


def test_without_a_permit_both_that_and_the_failure_are_told_and_both_pass_with_the_epoch(on_both):
    async def main(scene):
        look = await scene.look()
        assert (look.code, look.name) == (Code.WEIGHTS_REJECTED, "NeuronNoValidatorPermit")
        assert {kind: text.split(":")[0] for kind, text in look.alerts} == {"weights": "ALERT", "permit": "ALERT"}
        await scene.world.set_rules(max_validators=64)
        await scene.advance_to(max(look.next_block, START + 30))
        look = await scene.look()
        assert look.code == Code.WEIGHTS_SET
        assert {kind: text.split(":")[0] for kind, text in look.alerts} == {
            "weights": "RECOVERED",
            "permit": "RECOVERED",
        }

    on_both(main, max_validators=1, tempo=30)


def test_without_an_owners_neuron_nothing_is_burned_to_a_stranger(on_node):
    async def main(scene):
        scene.world.node.state.owner = (hot("gone"), cold("gone"))
        look = await scene.look()
        assert (look.code, look.name, look.uids) == (Code.WEIGHTS_REJECTED, "NoBurnUid", {})
        assert look.next_block == look.block + RETRY_BLOCKS and "no weights (NoBurnUid: " in look.line
        assert [kind for kind, _ in look.alerts] == ["weights"] and scene.world.node.submitted == 0

    on_node(main)


def test_a_lost_registration_is_told_alone_and_so_is_its_return(on_node):
    async def main(scene):
        own = scene.world.node.state.uids[V]
        own.hotkey = hot("somebody")
        look = await scene.look()
        assert (look.code, look.name) == (Code.WEIGHTS_REJECTED, "HotKeyNotRegisteredInSubNet")
        assert [(kind, text.split(":")[0]) for kind, text in look.alerts] == [("registration", "ALERT")]
        own.hotkey = hot("v")
        await scene.advance_to(look.next_block)
        look = await scene.look()
        assert look.code == Code.WEIGHTS_SET
        assert ("registration", "RECOVERED: registration, after 5 min") in look.alerts

    on_node(main)


def test_weights_that_the_chain_never_takes_are_overdue_an_hour_after_their_time(on_both):
    async def main(scene):
        told = []
        while scene.seconds < MIDNIGHT + INTERVAL_BLOCKS * BLOCK_SECONDS + WEIGHTS_LATE_SECONDS + 600:
            await scene.advance(5)
            look = await scene.look()
            assert look.code in (None, Code.WEIGHTS_TOO_SOON)
            told += [(scene.seconds - MIDNIGHT, *alert) for alert in look.alerts]
        late = INTERVAL_BLOCKS * BLOCK_SECONDS + WEIGHTS_LATE_SECONDS
        assert told == [(late, "weights", "ALERT: weights are overdue: none were set for 2 h 12 min")]
        assert len(scene.attempts()) == 1  # it waits: nothing is written at each look

    on_both(main, weights_rate_limit_blocks=5000)


# ---------------------------------------------------------------------------------------------------------------------
# Fate unknown


@pytest.mark.parametrize("landed", [True, False])
def test_weights_whose_fate_is_unknown_are_looked_for_before_they_are_sent_again(on_node, landed):
    async def main(scene):
        node = scene.world.node
        node.faults["submit"] = ["lost after" if landed else "lost before"]
        look = await scene.look()
        sent = look.uids
        assert look.code == Code.WEIGHTS_UNKNOWN and look.next_block == look.block + SETTLED and look.alerts == []
        await a_round(scene.store, 3, hot("a"))  # what would be sent now is another vector
        await scene.quiet_until(look.next_block)
        look = await scene.look()
        assert look.code == Code.WEIGHTS_SET and look.alerts == []
        assert node.submitted == (1 if landed else 2) and (look.uids == sent) == landed
        assert await scene.in_force() == u16_weights(look.uids)
        updated = node.state.updates[98, V]
        assert look.next_block == updated + INTERVAL_BLOCKS  # the interval counts from the chain's own block

    on_node(main)


def test_the_second_unknown_fate_in_a_row_is_told(on_node):
    async def main(scene):
        scene.world.node.faults["submit"] = ["lost before", "lost before"]
        first = await scene.look()
        await scene.advance_to(first.next_block)
        second = await scene.look()
        assert (first.code, second.code) == (Code.WEIGHTS_UNKNOWN, Code.WEIGHTS_UNKNOWN)
        assert first.alerts == [] and [kind for kind, _ in second.alerts] == ["weights"]

    on_node(main)


def test_a_signature_that_came_too_late_is_made_anew_at_the_next_block(on_node):
    async def main(scene):
        scene.world.node.faults["submit"] = ["pool: Transaction has an ancient birth block"]
        look = await scene.look()
        assert (look.code, look.name, look.alerts) == (Code.WEIGHTS_REJECTED, "AncientBirthBlock", [])
        assert look.next_block == look.block + 1
        await scene.advance(1)
        assert (await scene.look()).code == Code.WEIGHTS_SET

    on_node(main)


def test_what_the_chain_refuses_for_a_fee_is_tried_again_an_interval_later(on_node):
    async def main(scene):
        node = scene.world.node
        node.faults["submit"] = ["dispatch: TooManyUnrevealedCommits", "dispatch: SettingWeightsTooFast"]
        for name in ("TooManyUnrevealedCommits", "SettingWeightsTooFast"):
            look = await scene.look()
            assert look.name == name and look.next_block == look.block + INTERVAL_BLOCKS
            await scene.quiet_until(look.next_block)
        assert (await scene.look()).code == Code.WEIGHTS_SET and node.submitted == 3

    on_node(main)


def test_a_crash_between_the_chain_and_the_note_does_not_send_the_vector_twice(on_both, monkeypatch):
    async def main(scene):
        await scene.advance(5)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(weights_module, "add_weights", _crash)
            await scene.validator._weigh(NOW)
        vector, updated = await scene.in_force(), (await scene.chain.metagraph()).neurons[V].last_update_block
        assert vector and scene.attempts() == []
        await scene.advance(3)
        scene.restart()
        look = await scene.look()
        assert (look.code, look.next_block) == (Code.WEIGHTS_SET, updated + INTERVAL_BLOCKS)
        assert u16_weights(look.uids) == vector == await scene.in_force()
        assert (await scene.chain.metagraph()).neurons[V].last_update_block == updated  # not sent again
        ((shares,),) = rows(scene.path, "SELECT vector FROM weights")
        noted = [share for share in map(Decimal, json.loads(shares).values()) if share]
        assert sorted(noted) == sorted(look.uids.values())
        await scene.quiet_until(look.next_block)
        assert (await scene.look()).code == Code.WEIGHTS_SET
        assert (await scene.chain.metagraph()).neurons[V].last_update_block > updated

    on_both(main)


async def _crash(*_) -> None:
    raise KeyboardInterrupt


def test_a_chain_that_does_not_answer_leaves_no_row_and_is_told_after_ten_minutes(on_node):
    async def main(scene):
        told = []
        for _ in range(CHAIN_SILENT_SECONDS // 60 + 1):
            scene.world.node.faults["read"] = [LOST] * 20
            look = await scene.look()
            assert look.row is None
            told += [(scene.seconds - MIDNIGHT, *alert) for alert in look.alerts]
            await scene.advance(5)
        assert told == [
            (
                CHAIN_SILENT_SECONDS,
                "chain",
                "ALERT: the chain could not be read for 10 min: block: RpcConnectionError; the log says more",
            )
        ]
        scene.world.node.faults.clear()
        look = await scene.look()
        assert look.code == Code.WEIGHTS_SET and [text[:10] for _, text in look.alerts] == ["RECOVERED:"]

    on_node(main)


@pytest.mark.parametrize("item", ["get_metagraph", "CommitRevealWeightsEnabled", "StakeThreshold"])
def test_a_read_that_fails_before_the_signature_sends_nothing_and_the_next_look_sets(on_node, item):
    async def main(scene):
        scene.world.node.faults[item] = [LOST]
        assert (await scene.look()).code in (None, Code.WEIGHTS_REJECTED) and scene.world.node.submitted == 0
        await scene.advance(1)
        assert (await scene.look()).code == Code.WEIGHTS_SET and scene.world.node.submitted == 1

    on_node(main)


# ---------------------------------------------------------------------------------------------------------------------
# Commit-reveal


def committed(look: Look) -> None:
    """A commit was taken: noted, and nobody is told, neither of a trouble nor of its end."""
    assert look.code == Code.WEIGHTS_COMMITTED and look.name == "" and look.alerts == []
    assert "drand round" in look.detail and look.line.startswith(f"weights_committed at block {look.block}: uid ")


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_a_commit_is_read_back_when_it_is_revealed_and_the_interval_counts_from_it(on_node, epochs):
    async def main(scene):
        for _ in range(2):
            commit = await scene.look()
            committed(commit)
            assert commit.block == scene.world.node.state.updates[98, V] and commit.next_block == commit.block + 50
            look = commit
            while look.code == Code.WEIGHTS_COMMITTED:
                await scene.quiet_until(look.next_block)
                look = await scene.look()
                assert look.alerts == [] and look.uids == commit.uids
            assert look.code == Code.WEIGHTS_SET and await scene.in_force() == u16_weights(commit.uids)
            assert look.next_block == commit.block + INTERVAL_BLOCKS
            await scene.quiet_until(look.next_block)
        waits = [row for row in scene.attempts() if row[1] == "NotRevealed"]
        assert len(waits) <= 2 * epochs  # a row for an epoch, not for a look
        assert scene.world.node.submitted == 2

    on_node(main, commit_reveal=True, tempo=50, reveal_period_epochs=epochs)


@pytest.mark.parametrize("why", ["version key", "permit", "stake"])
def test_a_commit_that_fails_at_its_reveal_is_told_and_committed_again_until_one_is_in_force(on_node, why):
    async def main(scene):
        node = scene.world.node
        commit = await scene.look()
        committed(commit)
        if why == "version key":
            node.set_rules(version_key=5000)
        elif why == "permit":
            node.state.uids[V].permit = False
        else:
            node.set_rules(stake_threshold_rao=4000 * 10**9)
        await scene.advance_to(commit.next_block)
        node.set_rules(version_key=0, stake_threshold_rao=10**9)
        node._permits()
        look = await scene.look()
        assert (look.code, look.name, look.uids) == (Code.WEIGHTS_REJECTED, "NotInForce", commit.uids)
        assert look.next_block == look.block + RETRY_BLOCKS and "look at its stake, permit and version key" in look.line
        assert ("weights", f"ALERT: weights failed, 1 in a row: {look.detail}") in look.alerts
        await scene.quiet_until(look.next_block)
        again = await scene.look()
        committed(again)  # a commit alone is not the end of the trouble
        await scene.advance_to(again.next_block)
        look = await scene.look()
        assert look.code == Code.WEIGHTS_SET and [text[:18] for _, text in look.alerts] == ["RECOVERED: weights"]

    on_node(main, commit_reveal=True, tempo=50)


@pytest.mark.parametrize("landed", [True, False])
@pytest.mark.parametrize("tempo", [30, 200])  # revealed, or not, when its fate is looked at
def test_a_commit_whose_fate_is_unknown_is_looked_for_before_another_is_made(on_node, landed, tempo):
    async def main(scene):
        node = scene.world.node
        node.faults["submit"] = ["lost after" if landed else "lost before"]
        look = await scene.look()
        assert look.code == Code.WEIGHTS_UNKNOWN
        sent, updated = look.uids, node.state.updates.get((98, V))
        await a_round(scene.store, 3, hot("a"))
        await scene.quiet_until(look.next_block)
        look = await scene.look()
        if landed and tempo == 30:
            assert (look.code, look.next_block) == (Code.WEIGHTS_SET, updated + INTERVAL_BLOCKS)
        elif landed:
            assert (look.code, look.name, look.block) == (Code.WEIGHTS_COMMITTED, "NotRevealed", updated)
        else:
            committed(look)
        assert (look.uids == sent) == landed and node.submitted == (1 if landed else 2)
        while look.code == Code.WEIGHTS_COMMITTED:
            await scene.advance_to(look.next_block)
            look = await scene.look()
        assert look.code == Code.WEIGHTS_SET and node.submitted == (1 if landed else 2)
        assert look.next_block == node.state.updates[98, V] + INTERVAL_BLOCKS

    on_node(main, commit_reveal=True, tempo=tempo)


def test_a_commit_that_is_never_revealed_is_looked_at_seldom_and_becomes_overdue(on_node):
    async def main(scene):
        committed(await scene.look())
        scene.world.node.set_rules(tempo=0)  # no epoch comes
        told = []
        for _ in range(140):
            await scene.advance(5)
            told += (await scene.look()).alerts
        assert [kind for kind, _ in told] == ["weights"] and "overdue" in told[0][1]
        assert len(scene.attempts()) <= 700 // RETRY_BLOCKS and scene.world.node.submitted == 1

    on_node(main, commit_reveal=True, tempo=50)


# ---------------------------------------------------------------------------------------------------------------------
# The validator around it


def test_the_summary_of_a_day_comes_once_at_midnight_also_after_a_restart(play_in):
    async def main(scene):
        told = []
        scene.validator.notifier = SimpleNamespace(notify=lambda kind, text: told.append((scene.seconds, kind, text)))
        notifier = scene.validator.notifier
        for _ in range(3 * 24):
            scene.seconds += 3600
            scene.restart()
            scene.validator.notifier = notifier
            await scene.validator._weigh(NOW)
        summaries = [(at, text) for at, kind, text in told if kind == "summary"]
        assert [at for at, _ in summaries] == [MIDNIGHT + DAY, MIDNIGHT + 2 * DAY, MIDNIGHT + 3 * DAY]
        assert [text.split(":")[0] for _, text in summaries] == ["2027-01-16", "2027-01-17", "2027-01-18"]
        assert all("weights: weights_set at block" in text for _, text in summaries)

    play_in(LocalWorld, main)


def test_a_chain_that_takes_its_time_does_not_keep_a_new_job_waiting(tmp_path):
    """On a clock: while weights are being set a job that was added starts its rounds."""
    seen = {}

    async def slow(subnet, store, chain, market):
        async def weigh(now, block):
            if not seen:
                seen["set"] = now
                await store.put_job(a_job("late", round_seconds=60))
                for _ in range(300):
                    if seen.setdefault("started", False) or subnet.rows("SELECT 1 FROM rounds WHERE job_id = 'late'"):
                        seen["started"] = True
                        break
                    await asyncio.sleep(0.05)

        subnet.validator.weigher.weigh = weigh

    subnet = play_subnet(
        tmp_path,
        {"a": keep},
        [a_job(round_seconds=300)],
        market=lambda: model(pace=60.0),
        prepare=slow,
        pace=60,
    )
    assert seen["started"] and "scored" in subnet.codes()
