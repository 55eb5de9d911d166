"""Burn weights, and sweep what a miner hotkey earned to a treasury: each epoch once, whatever crashes.

    python stake.py burn                    keep a validator's weights on the subnet's owner, for which nobody is paid
    python stake.py sweep --aggregator-hotkey SS58 --destination-coldkey SS58          what would be done: a dry run
    python stake.py sweep --aggregator-hotkey SS58 --destination-coldkey SS58 --yes    do it, every epoch
    python stake.py status                  the wallet's addresses, the journal, the plan, the next epoch

A sweep is planned from what the chain shows and what the journal remembers, written down before it is sent, and done
only when the chain's own record shows it; nothing is sent a second time before the first is known not to have happened.
`docs/stake.md` has every crash and failure with what happens then. Read next: `journal.py`, `chain.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sqlite3
import stat
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from chain.alerts import AlertRules, day_before, summary_due
from chain.base import (
    BLOCK_SECONDS,
    U16_MAX,
    Chain,
    ChainError,
    Metagraph,
    Neuron,
    Next,
    NoSuchSubnet,
    StakeMove,
    WriteCode,
    WriteOutcome,
)
from chain.journal import ROUNDING_RAO, Journal, Reading, Step, Wanted, alpha
from chain.local import LocalChain
from chain.notify import Notifier, add_notify_options
from chain.subtensor import ERA_BLOCKS, BittensorChain
from chain.wallets import check_address, load_wallet
from runtime.db import StoreError
from runtime.options import MAX_NETUID, add_chain_options, add_logging_options, is_local, parse_options, settings_lines
from runtime.passwords import read_password
from runtime.process import EXIT_FAILED, EXIT_OK, Parser, UserError, number, only_one, run
from wire.signing import local_keypair

SET_WEIGHTS_INTERVAL_BLOCKS = 720  # the seed's two epochs, 2.4 hours
POLL_SECONDS = 30.0  # the seed's
MAX_SLEEP_POLLS = 20  # a burn that has nothing to do for hours looks at least so often
RETRY_BLOCKS = 10  # after a refusal that waiting may not mend
FATE_BLOCKS = 2 * ERA_BLOCKS  # then a write of unknown fate cannot land any more: its era, and half for signing it
FINAL_BLOCKS = 5  # with --wait-finalization a block is trusted at this depth; GRANDPA is two or three behind
MINIMUM_RAO = 2_000_000  # subtensor refuses what is worth less in TAO (AmountTooLow)
FEE_RESERVE_RAO = 10_000_000  # free TAO to keep on the coldkey: short of it subtensor takes fees out of the stake
MAX_ALLOW_LIST_CHARS = 2**16
ROLES = ("aggregator-hotkey", "destination-coldkey")  # the options, and the words of the allow-list
READ_TRIES = 5  # to read several values without an epoch in between

log = logging.getLogger("stake")


class Result(NamedTuple):
    """What one step of a loop came to.

    Attributes:
        wait_blocks: before there is something to do again, as far as is known.
        problem: what it waits for or what is wrong, in one line; empty if nothing.
        news: for `AlertRules.observe`.
    """

    wait_blocks: int
    problem: str
    news: dict[str, Any]


# ---------------------------------------------------------------------------------------------------------------------
# Reading: several values between which no epoch fell


async def read(chain: Chain, *positions: tuple[str, str]) -> Reading:
    """Read the stakes of (hotkey, coldkey) pairs between two looks at the epoch that agree.

    Raises:
        ChainError: the chain did not answer, or epochs followed each other faster than it can be read.
    """
    for _ in range(READ_TRIES):
        before, block = await chain.epoch(), await chain.block()
        rao = tuple([await chain.stake(*position) for position in positions])
        if (await chain.epoch()).last_epoch_block == before.last_epoch_block:
            return Reading(block, before.last_epoch_block, before.next_epoch_block, rao)
    raise ChainError(f"an epoch fell into each of {READ_TRIES} readings; trying again later")


# ---------------------------------------------------------------------------------------------------------------------
# The planner: pure functions of a reading and the journal


@dataclass(frozen=True, slots=True)
class Policy:
    """What a sweep may do; the addresses are those of the allow-list.

    Attributes:
        minimum_rao: less is left to the next epoch.
        fee_reserve_rao: free TAO below which nothing is sent.
        take_all: also what was there before, on the miner hotkey and on the aggregator.
        two_calls: move, then transfer; else one call does both.
        wait_final: believe only blocks `FINAL_BLOCKS` deep.
    """

    aggregator_hotkey: str
    destination_coldkey: str
    minimum_rao: int = MINIMUM_RAO
    fee_reserve_rao: int = FEE_RESERVE_RAO
    take_all: bool = False
    two_calls: bool = False
    wait_final: bool = False


def plan(policy: Policy, hotkey: str, coldkey: str, earned_rao: int, aggregator_rao: int) -> list[Wanted]:
    """The movements of one sweep, in order; none when there is less than the minimum.

    Args:
        hotkey, coldkey: whose earnings are swept.
        earned_rao: on the miner hotkey, above the baseline.
        aggregator_rao: what `--all` takes from the aggregator besides; 0 without it.
    """
    to, treasury = policy.aggregator_hotkey, policy.destination_coldkey
    earned_rao = earned_rao if earned_rao >= policy.minimum_rao else 0
    if hotkey == to:  # nothing to move: it is where it should be
        return [Wanted("transfer", to, to, treasury, earned_rao)] if earned_rao else []
    steps = []
    if earned_rao and policy.two_calls:
        steps.append(Wanted("move", hotkey, to, coldkey, earned_rao))
        aggregator_rao += earned_rao
    elif earned_rao:
        steps.append(Wanted("transfer", hotkey, to, treasury, earned_rao))
    if aggregator_rao >= policy.minimum_rao:
        steps.append(Wanted("transfer", to, to, treasury, aggregator_rao))
    return steps


def match(step: Step, moves: Sequence[StakeMove], known: set[str]) -> StakeMove | None:
    """The chain's record of this step among `moves`, leaving out those that are another step's (`known`).

    The real chain's event of a transfer names one of the two hotkeys, so one in common is enough.
    """
    ours = {step.origin_hotkey, step.dest_hotkey}
    for move in moves:
        theirs = {move.origin_hotkey, move.dest_hotkey}
        if move.extrinsic not in known and move.dest_coldkey == step.dest_coldkey and ours & theirs:
            return move
    return None


def fate_by_balances(step: Step, now: Reading) -> str:
    """What became of a step that can no longer land, where the chain's record of those blocks cannot be read.

    Both ends must say the same. Across an epoch both have earned an unknown amount, 0 or more: an origin that fell was
    moved from, a destination that did not grow by the amount received nothing.

    Args:
        now: with the stakes of origin and destination.

    Returns:
        `applied`, `expired` (it did not happen), or `unknown`: then a person has to look.
    """
    origin, dest = now.rao[0] - step.origin_before_rao, now.rao[1] - step.dest_before_rao
    if now.epoch_block == step.sent_epoch_block:
        moved = abs(origin + step.amount_rao) <= ROUNDING_RAO and abs(dest - step.amount_rao) <= ROUNDING_RAO
        stayed = abs(origin) <= ROUNDING_RAO and abs(dest) <= ROUNDING_RAO
    else:
        fell, grew = origin < -ROUNDING_RAO, dest >= step.amount_rao - ROUNDING_RAO
        moved, stayed = fell and grew, not fell and not grew
    return "applied" if moved else "expired" if stayed else "unknown"


# ---------------------------------------------------------------------------------------------------------------------
# The sweep


class Sweeper:
    """Sweeps each observed epoch once; see `docs/stake.md` for what happens when something fails.

    Kill it anywhere: a movement is in the journal before it is sent, and a new process goes on from what the chain and
    the journal say.
    """

    def __init__(self, chain: Chain, journal: Journal, policy: Policy, *, skip_first: bool = False):
        """Args:
        skip_first: do not sweep at once what an epoch brought while nobody was watching.
        """
        self._chain, self._journal, self._policy = chain, journal, policy
        self._new_state = "skipped" if skip_first else "observed"
        self._news: dict[str, Any] = {}

    async def step(self) -> Result:
        """Do all that can be done now.

        Raises:
            ChainError: the chain could not be read; nothing is lost, call again.
        """
        self._news = {}
        now = await read(self._chain, (self._chain.hotkey, self._chain.coldkey))
        first_state = "observed" if self._policy.take_all else "baseline"
        await self._journal.observe(now, self._new_state, first_state)
        self._new_state = "observed"
        while True:
            step = await self._journal.open_step()
            if step is None:
                epoch_block = await self._journal.next_epoch()
                if epoch_block is None:
                    return Result(1, "", self._news)
                await self._plan(epoch_block)
            elif waiting := await (self._settle(step) if step.state == "sent" else self._send(step)):
                return Result(1, waiting, self._news)

    async def _plan(self, epoch_block: int) -> None:
        earned_rao, aggregator_rao = await available(self._chain, self._policy, await self._journal.baseline_rao())
        steps = plan(self._policy, self._chain.hotkey, self._chain.coldkey, earned_rao, aggregator_rao)
        self._news["registered"] = (await self._chain.metagraph()).by_hotkey(self._chain.hotkey) is not None
        await self._journal.write_plan(epoch_block, earned_rao, steps)
        if not steps:
            log.info("epoch %d: %d rao to sweep, below the minimum; left to the next", epoch_block, earned_rao)

    async def _send(self, step: Step) -> str:
        policy, block = self._policy, await self._chain.block()
        if block < step.retry_block:
            return f"step {step.id} ({step.detail}); again at block {step.retry_block}"
        free_rao = await self._chain.free_balance()
        if free_rao is not None and free_rao < policy.fee_reserve_rao:
            detail = f"the coldkey's free TAO is {free_rao} rao, the fee reserve {policy.fee_reserve_rao}: send it some"
            return await self._again(step, block, refusal("FeeReserve", detail, block))
        before = await read(self._chain, *self._ends(step))
        kept_rao = 0
        if step.origin_hotkey == self._chain.hotkey and not policy.take_all:
            kept_rao = await self._journal.baseline_rao()
        amount_rao = min(step.amount_rao, before.rao[0] - kept_rao)
        if amount_rao < step.amount_rao - ROUNDING_RAO:
            detail = f"{step.amount_rao} rao were to leave {step.origin_hotkey}, {max(0, amount_rao)} are there"
            log.warning("epoch %d: %s; dropped", step.epoch_block, detail)
            await self._journal.drop(step, detail)
            self._news["sweep"] = refusal("Dropped", detail, block)
            return ""
        step = await self._journal.sending(step, amount_rao, before)
        if step.action == "move":
            outcome = await self._chain.move_stake(step.origin_hotkey, step.dest_hotkey, amount_rao)
        else:
            elsewhere = step.dest_hotkey if step.dest_hotkey != step.origin_hotkey else None
            outcome = await self._chain.transfer_stake(step.origin_hotkey, step.dest_coldkey, amount_rao, elsewhere)
        if outcome.ok or outcome.next is Next.READ_STATE_FIRST:
            return await self._settle(step)
        return await self._again(step, block, outcome)

    async def _again(self, step: Step, block: int, outcome: WriteOutcome) -> str:
        wait_blocks = {Next.WAIT_BLOCKS: outcome.wait_blocks, Next.SIGN_AGAIN: 1}.get(outcome.next, RETRY_BLOCKS)
        retry_block = max(block, outcome.block) + wait_blocks
        self._news["sweep"] = outcome
        await self._journal.not_applied(step, retry_block, outcome.detail)
        return f"epoch {step.epoch_block}: {outcome.detail}; again at block {retry_block}"

    async def _settle(self, step: Step) -> str:
        """Find out from the chain what became of a step that was sent."""
        last_block = step.sent_block + FATE_BLOCKS
        block = await self._chain.block() - (FINAL_BLOCKS if self._policy.wait_final else 0)
        final = block > last_block
        try:
            moves = await self._chain.stake_moves(step.sent_block, min(block, last_block))
        except ChainError as error:
            if not final:
                raise
            log.warning("epoch %d: %s; judging by the balances", step.epoch_block, error)
            fate = fate_by_balances(step, await read(self._chain, *self._ends(step)))
            found = None
        else:
            found = match(step, moves, await self._journal.extrinsics())
            fate = "applied" if found else "expired" if final else "pending"
        if fate == "applied":
            after = await read(self._chain, *self._ends(step))
            await self._done(step, found.extrinsic if found else None, after)
            return ""
        if fate == "expired":
            detail = f"{step.action} of {step.amount_rao} rao of block {step.sent_block} did not happen"
            log.warning("epoch %d: %s; sending it again", step.epoch_block, detail)
            await self._journal.not_applied(step, 0, detail)
            return ""
        if fate == "pending":
            return f"the fate of step {step.id}, sent at block {step.sent_block}: known after block {last_block}"
        detail = (
            f"step {step.id}: neither the chain's record nor the balances say whether {step.amount_rao} rao left"
            f" {step.origin_hotkey} after block {step.sent_block}; look, then --settle applied or not-applied"
        )
        self._news["sweep"] = refusal("FateUnknown", detail, block)
        return detail

    def _ends(self, step: Step) -> tuple[tuple[str, str], tuple[str, str]]:
        """The two positions that the step changes."""
        return (step.origin_hotkey, self._chain.coldkey), (step.dest_hotkey, step.dest_coldkey)

    async def settle_by_hand(self, applied: bool) -> None:
        """What a person found out about the step in flight.

        Raises:
            UserError: there is none.
        """
        step = await self._journal.open_step()
        if step is None or step.state != "sent":
            raise UserError("--settle: no step in the journal is in flight; leave the option out")
        if applied:
            await self._done(step, None, await read(self._chain, *self._ends(step)))
        else:
            await self._journal.not_applied(step, 0, "said by hand not to have happened")

    async def _done(self, step: Step, extrinsic: str | None, after: Reading) -> None:
        detail = ""
        left = step.origin_before_rao - step.amount_rao
        if after.epoch_block == step.sent_epoch_block and abs(after.rao[0] - left) > ROUNDING_RAO:
            detail = f"origin has {after.rao[0]} rao where {left} were expected: somebody else moved stake too"
            log.warning("epoch %d: %s", step.epoch_block, detail)
        whole = await self._journal.applied(step, extrinsic, after, detail)
        self._news["sweep"] = WriteOutcome(True, WriteCode.OK, "", Next.NOTHING, "", after.block)
        print(
            f"epoch {step.epoch_block}: {step.action} {alpha(step.amount_rao)} from {step.origin_hotkey}"
            f" to {step.dest_hotkey} of {step.dest_coldkey}, extrinsic {extrinsic or 'seen by balances'}"
            f"{', swept' if whole else ''}",
            flush=True,
        )


async def available(chain: Chain, policy: Policy, baseline_rao: int | None) -> tuple[int, int]:
    """What a sweep would take now from the miner hotkey and from the aggregator, rao.

    Args:
        baseline_rao: what stays on the miner hotkey; None before the first sweep: all that is there.
    """
    now = await read(chain, (chain.hotkey, chain.coldkey), (policy.aggregator_hotkey, chain.coldkey))
    miner_rao, aggregator_rao = now.rao
    if policy.take_all:
        return miner_rao, aggregator_rao if policy.aggregator_hotkey != chain.hotkey else 0
    return max(0, miner_rao - (miner_rao if baseline_rao is None else baseline_rao)), 0


def refusal(name: str, detail: str, block: int) -> WriteOutcome:
    """The outcome of what was not even sent."""
    return WriteOutcome(False, WriteCode.INVALID_ARGUMENT, name, Next.NOTHING, detail, block)


# ---------------------------------------------------------------------------------------------------------------------
# The burn


class Burner:
    """Keeps a validator's whole weight on one target, once an interval, measured from the chain's last update."""

    def __init__(
        self,
        chain: Chain,
        journal: Journal,
        *,
        interval_blocks: int = SET_WEIGHTS_INTERVAL_BLOCKS,
        target_uid: int | None = None,
        target_hotkey: str | None = None,
    ):
        """Args:
        target_uid: whom that uid meant when it was first given; None is the owner, looked up each time.
        target_hotkey: this hotkey, whatever its uid.
        """
        self._chain, self._journal, self._interval_blocks = chain, journal, interval_blocks
        self._target_uid, self._target_hotkey = target_uid, target_hotkey
        self._fate_block = 0

    async def step(self) -> Result:
        """Set the weights if they are due and the chain would take them.

        Raises:
            ChainError: the chain could not be read.
        """
        chain, graph = self._chain, await self._chain.metagraph()
        where = f"netuid {graph.netuid} at block {graph.block}"
        me = graph.by_hotkey(chain.hotkey)
        if me is None:
            problem = f"hotkey {chain.hotkey} is not registered on {where}: register it"
            return Result(RETRY_BLOCKS, problem, {"registered": False})
        standing = {"registered": True, "permit": me.permit}
        if not me.permit:
            epoch_block = (await chain.epoch()).next_epoch_block or graph.block + RETRY_BLOCKS
            problem = f"hotkey {chain.hotkey} has no validator permit on {where}: it needs more stake; permits change"
            return Result(max(1, epoch_block - graph.block), f"{problem} at the next epoch, {epoch_block}", standing)
        target = await self._target(graph)
        params = await chain.weight_params(chain.hotkey)
        last = me.last_update_block if params.last_update_block is None else params.last_update_block
        interval_blocks = max(self._interval_blocks, params.rate_limit_blocks)
        due = last + (params.rate_limit_blocks if last == me.registered_block else interval_blocks)  # or never set yet
        if isinstance(target, Neuron) and (wait := max(due, self._fate_block) - graph.block) > 0:
            return Result(wait, "", standing)
        if isinstance(target, Neuron) and target != me:
            fewest = min(params.min_allowed_weights, len(graph.neurons))
            if fewest > 1:
                target = f"{where} takes no vector of 1 weight, at least {fewest} (min_allowed_weights): ask its owner"
            elif params.max_weight < U16_MAX:
                target = f"{where} takes at most {params.max_weight}/{U16_MAX} on one uid (max_weight): ask its owner"
        if not isinstance(target, Neuron):
            problem = f"no weights sent: {target}"
            return Result(RETRY_BLOCKS, problem, standing | {"weights": refusal("NotSent", problem, graph.block)})
        outcome = await chain.set_weights({target.uid: 1}, params.version_key)
        await self._journal.add_burn(target.uid, target.hotkey, outcome)
        standing["weights"] = outcome
        if outcome.ok:
            note = " (the owner: burned)" if target.coldkey == graph.owner_coldkey else ""
            print(
                f"block {outcome.block}: all weight of uid {me.uid} on uid {target.uid}, {target.hotkey}{note}",
                flush=True,
            )
            return Result(interval_blocks, "", standing)
        if outcome.next is Next.WAIT_BLOCKS:
            return Result(max(1, outcome.wait_blocks), "", standing)
        if outcome.next is Next.READ_STATE_FIRST:  # if it happened, the chain's last update will say so
            self._fate_block = max(graph.block, outcome.block) + FATE_BLOCKS
            return Result(1, f"the fate of the weights is unknown: {outcome.detail}", standing)
        wait = 1 if outcome.next is Next.SIGN_AGAIN else RETRY_BLOCKS
        return Result(wait, f"weights refused: {outcome.detail}", standing)

    async def _target(self, graph: Metagraph) -> Neuron | str:
        """Whom to weigh, or why there is nobody."""
        hotkey, uid = self._target_hotkey, self._target_uid
        if hotkey is None and uid is None:
            if (uid := graph.burn_uid()) is None:
                return f"the owner's hotkey {graph.owner_hotkey} is not registered, no uid burns; name a --target-uid"
            return next(neuron for neuron in graph.neurons if neuron.uid == uid)
        if hotkey is None:
            now = next((neuron.hotkey for neuron in graph.neurons if neuron.uid == uid), None)
            hotkey = await self._journal.bind_target(uid, now)
            if hotkey is None:
                return f"the subnet has no uid {uid}: choose another --target-uid"
            if now not in (None, hotkey) and not graph.by_hotkey(hotkey):
                return f"uid {uid} was {hotkey} and is now {now}: to pay that one, say --target-hotkey {now}"
        return graph.by_hotkey(hotkey) or f"the target {hotkey} is not registered: choose another --target-hotkey"


# ---------------------------------------------------------------------------------------------------------------------
# The loops


async def follow(
    step: Callable[[], Awaitable[Result]],
    poll_seconds: float,
    tell: Callable[[dict[str, Any]], Awaitable[None]],
    *,
    once: bool = False,
    longest_polls: int = 1,
) -> int:
    """Step for ever, whatever fails outside, saying what is wrong when that changes.

    Args:
        tell: gets the news of each step.
        once: one step only.
        longest_polls: sleep so many polls at most when a step knows that nothing is due.

    Returns:
        With `once`: EXIT_FAILED if something was wrong or is still to come, else EXIT_OK.
    """
    said = ""
    while True:
        try:
            result = await step()
            news = {"chain": True, **result.news}
        except ChainError as error:
            result, news = Result(1, f"the chain: {error}", {}), {"chain": False}
        except (sqlite3.Error, StoreError) as error:
            result, news = Result(1, f"the journal: {error}; is the disk full or the file in use?", {}), {}
        if result.problem != said:
            log.warning("%s", result.problem or "all is well again")
        said = result.problem
        try:
            await tell(news)
        except (sqlite3.Error, StoreError) as error:
            log.warning("the journal: %s; the daily summary waits", error)
        if once:
            log.info("nothing else to do for %d blocks", result.wait_blocks)
            return EXIT_FAILED if result.problem else EXIT_OK
        await asyncio.sleep(min(max(poll_seconds, result.wait_blocks * BLOCK_SECONDS), poll_seconds * longest_polls))


def teller(notifier: Notifier, rules: AlertRules, journal: Journal) -> Callable[[dict[str, Any]], Awaitable[None]]:
    """Alerts, and at 00:00 UTC or at the first start after it the summary of the day."""

    async def tell(news: dict[str, Any]) -> None:
        for alert in rules.observe(time.monotonic(), **news):
            notifier.notify(*alert)
        now = time.time()
        if text := await journal.summary(day_before(now), lambda last_day: summary_due(now, last_day)):
            notifier.notify("summary", text)

    return tell


# ---------------------------------------------------------------------------------------------------------------------
# The programs


def read_allow_list(path: Path) -> set[tuple[str, str]]:
    """The pairs of an allow-list file: lines `aggregator-hotkey SS58` or `destination-coldkey SS58`, `#` begins a note.

    Raises:
        UserError: it is missing, others may write it, or a line is not one of the two.
    """
    try:
        with open(path, encoding="utf-8") as file:
            if os.fstat(file.fileno()).st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise UserError(f"allow-list {path} can be written by others; run: chmod go-w {path}")
            text = file.read(MAX_ALLOW_LIST_CHARS)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise UserError(
            f"allow-list {path}: {reason}; write the lines `aggregator-hotkey SS58` and `destination-coldkey SS58` into"
            " it, or name another with --allow-list"
        ) from None
    pairs = set()
    for at, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) != 2 or words[0] not in ROLES:
            raise UserError(f"allow-list {path} line {at}: not `{' SS58` or `'.join(ROLES)} SS58`")
        try:
            pairs.add((words[0], check_address(words[1])))
        except ChainError as error:
            raise UserError(f"allow-list {path} line {at}: {error}") from None
    return pairs


def checked_addresses(options: argparse.Namespace, folder: Path) -> tuple[str, str]:
    """Aggregator and destination, as given and allowed.

    Raises:
        UserError: one is no address, or not in the allow-list.
    """
    given = dict(zip(ROLES, (options.aggregator_hotkey, options.destination_coldkey), strict=True))
    for role, address in given.items():
        try:
            check_address(address)
        except ChainError as error:
            raise UserError(f"--{role}: {error}") from None
    path = Path(options.allow_list) if options.allow_list else folder / "stake-allow.txt"
    allowed = read_allow_list(path)
    for role, address in given.items():
        if (role, address) not in allowed:
            raise UserError(f"--{role} {address} is not in allow-list {path}; add it there if it is right")
    return options.aggregator_hotkey, options.destination_coldkey


@asynccontextmanager
async def open_chain(
    options: argparse.Namespace, need_coldkey: bool = False, patient: bool = False
) -> AsyncIterator[tuple[Chain, int, Path]]:
    """The chain of the options, its netuid, and the folder of journal and allow-list.

    Args:
        need_coldkey: unlock it.
        patient: wait for a network that does not answer; else that is an error.

    Raises:
        UserError, ChainError: the wallet, the network or the local subnet cannot be used as named.
    """
    folder, embedded = Path(options.dir), is_local(options) or options.local
    if is_local(options):
        hotkey, coldkey = (local_keypair(f"{options.name}-{kind}").ss58_address for kind in ("hotkey", "coldkey"))
    else:
        names = options.wallet, options.wallet_hotkey, options.wallet_path
        wallet = load_wallet(*names, read_password(options) if need_coldkey else None, need_coldkey)
        hotkey, coldkey = wallet.hotkey.ss58_address, wallet.coldkey_address
    if embedded and not (folder / "chain.sqlite3").exists():
        raise UserError(f"no local subnet in {folder}: start `python validator.py` or name its folder with --dir")
    while True:
        async with AsyncExitStack() as stack:
            try:
                if embedded:
                    print("LOCAL: this is the embedded chain of `python validator.py`, no real subnet.", flush=True)
                    named = {} if is_local(options) else {"netuid": options.netuid}
                    opening = LocalChain.open(folder / "chain.sqlite3", hotkey, coldkey, **named)
                else:
                    network, endpoint = options.network, options.chain_endpoint
                    if network and "://" in network:
                        network, endpoint = None, network
                    opening = BittensorChain.open(
                        network=network or "finney", endpoint=endpoint, netuid=options.netuid, wallet=wallet
                    )
                chain = await stack.enter_async_context(opening)
                netuid = (await chain.metagraph()).netuid
            except ChainError as error:
                if embedded or not patient or isinstance(error, NoSuchSubnet):
                    raise
                log.warning("the chain: %s; trying again in %g s", error, options.poll_interval)
            else:
                yield chain, netuid, folder
                return
        await asyncio.sleep(options.poll_interval)


def journal_path(options: argparse.Namespace, folder: Path, netuid: int, hotkey: str) -> Path:
    return Path(options.journal) if options.journal else folder / f"stake-{netuid}-{hotkey[:8]}.sqlite3"


@asynccontextmanager
async def opened(options: argparse.Namespace, need_coldkey: bool) -> AsyncIterator[tuple[Chain, Journal, Notifier]]:
    """What both loops need: the chain, the wallet's journal held by this process alone, the alerts."""
    async with AsyncExitStack() as stack:
        chain, netuid, folder = await stack.enter_async_context(
            open_chain(options, need_coldkey, patient=not options.once)
        )
        path = journal_path(options, folder, netuid, chain.hotkey)
        try:
            stack.enter_context(only_one(Path(f"{path}.{options.verb}.lock"), "journal"))
        except OSError as error:
            raise UserError(f"journal {path}: {error.strerror}; choose another with --journal") from None
        journal = await stack.enter_async_context(Journal.open(path, netuid, chain.hotkey, chain.coldkey))
        sender = f"stake.py {options.verb}, netuid {netuid}, {chain.hotkey[:8]}"
        yield chain, journal, await stack.enter_async_context(Notifier.open(options.slack_webhook_url, sender))


async def require_registered(chain: Chain, journal: Journal) -> None:
    """On a wallet's first start its hotkey must be registered: else it is most likely the wrong one.

    Raises:
        UserError: it is not. Later it is a trouble that is told and waited out.
    """
    graph = await chain.metagraph()
    if graph.by_hotkey(chain.hotkey) is None and await journal.is_new():
        raise UserError(
            f"hotkey {chain.hotkey} is not registered on netuid {graph.netuid}: name the right wallet, or register it"
        )


def log_settings(options: argparse.Namespace) -> None:
    for line in settings_lines(options):
        log.info("%s", line)


async def burn(options: argparse.Namespace) -> int:
    """The validator's loop: registered, permit, then all weight on one target, once an interval."""
    if options.target_hotkey is not None:
        check_address(options.target_hotkey)
    async with opened(options, need_coldkey=False) as (chain, journal, notifier):
        await require_registered(chain, journal)
        burner = Burner(
            chain,
            journal,
            interval_blocks=options.set_weights_interval,
            target_uid=options.target_uid,
            target_hotkey=options.target_hotkey,
        )
        rules = AlertRules(time.monotonic(), options.set_weights_interval * BLOCK_SECONDS)
        tell = teller(notifier, rules, journal)
        log_settings(options)
        return await follow(burner.step, options.poll_interval, tell, once=options.once, longest_polls=MAX_SLEEP_POLLS)


async def sweep(options: argparse.Namespace) -> int:
    """The sweeper's loop; without `--yes` only what it would do."""
    async with AsyncExitStack() as stack:
        if not options.yes:
            chain, netuid, folder = await stack.enter_async_context(open_chain(options))
            policy = policy_of(options, folder)
            path = journal_path(options, folder, netuid, chain.hotkey)
            await show(chain, netuid, path, policy)
            print("DRY RUN: nothing was sent or written down; add --yes to do it, now and after every epoch.")
            return EXIT_OK
        policy = policy_of(options, Path(options.dir))
        chain, journal, notifier = await stack.enter_async_context(opened(options, need_coldkey=True))
        await require_registered(chain, journal)
        await journal.check_addresses(policy.aggregator_hotkey, policy.destination_coldkey)
        if policy.take_all:
            print(await what_all_includes(chain, policy), flush=True)
        sweeper = Sweeper(chain, journal, policy, skip_first=options.no_initial_transfer)
        if options.settle:
            await sweeper.settle_by_hand(options.settle == "applied")
        tell = teller(notifier, AlertRules(time.monotonic()), journal)
        log_settings(options)
        return await follow(sweeper.step, options.poll_interval, tell, once=options.once)


def policy_of(options: argparse.Namespace, folder: Path) -> Policy:
    """The sweep's options, checked; raises `UserError`."""
    aggregator, destination = checked_addresses(options, folder)
    return Policy(
        aggregator,
        destination,
        minimum_rao=options.minimum_rao,
        fee_reserve_rao=options.fee_reserve_rao,
        take_all=options.all,
        two_calls=options.two_calls,
        wait_final=options.wait_finalization,
    )


async def what_all_includes(chain: Chain, policy: Policy) -> str:
    """One line about what `--all` takes beyond what was earned."""
    ours = (chain.hotkey, chain.coldkey), (policy.aggregator_hotkey, chain.coldkey)
    miner_rao, aggregator_rao = (await read(chain, *ours)).rao
    return (
        f"--all takes everything of this coldkey, at once and after every epoch: {alpha(miner_rao)} on {chain.hotkey}"
        f" and {alpha(aggregator_rao)} on the aggregator {policy.aggregator_hotkey}, also what was never earned there"
    )


async def status(options: argparse.Namespace) -> None:
    """Who we are, where the chain is, and the journal."""
    async with open_chain(options) as (chain, netuid, folder):
        print(f"hotkey {chain.hotkey}, coldkey {chain.coldkey}, netuid {netuid}")
        await show(chain, netuid, journal_path(options, folder, netuid, chain.hotkey), None)


async def show(chain: Chain, netuid: int, path: Path, policy: Policy | None) -> None:
    """Print the next epoch, the journal, and what the next sweep would do (of `policy`, if there is one)."""
    now = await read(chain, (chain.hotkey, chain.coldkey))
    baseline_rao = None
    print(f"block {now.block}, last epoch {now.epoch_block}, next expected {now.next_epoch_block or 'never (tempo 0)'}")
    if path.exists():
        print(f"journal {path}:")
        async with Journal.open(path, netuid, chain.hotkey, chain.coldkey) as journal:
            baseline_rao = await journal.baseline_rao()
            for line in await journal.lines():
                print(f"  {line}")
    else:
        print(f"journal {path}: none yet; the stake at the first sweep --yes becomes the baseline and is not swept")
    kept_rao = now.rao[0] if baseline_rao is None else baseline_rao
    print(f"on the hotkey: {alpha(now.rao[0])}; baseline {alpha(kept_rao)}, earned {alpha(now.rao[0] - kept_rao)}")
    if policy is not None:
        if policy.take_all:
            print(await what_all_includes(chain, policy))
        steps = plan(policy, chain.hotkey, chain.coldkey, *await available(chain, policy, baseline_rao))
        print(f"plan, if an epoch came now:{'' if steps else ' nothing, it is below the minimum'}")
        for step in steps:
            to = f"{step.dest_hotkey} of {step.dest_coldkey}"
            print(f"  {step.action} {alpha(step.amount_rao)} from {step.origin_hotkey} to {to}")


# ---------------------------------------------------------------------------------------------------------------------
# The command line

_EXAMPLES = """examples, on the local subnet that `python validator.py` runs:
  python stake.py burn --name validator --once
  python stake.py status --name treasury            prints the addresses of the wallet `treasury`
  echo "aggregator-hotkey SS58" >> local/stake-allow.txt
  echo "destination-coldkey SS58" >> local/stake-allow.txt
  python stake.py sweep --name wide --aggregator-hotkey SS58 --destination-coldkey SS58
  python stake.py sweep --name wide --aggregator-hotkey SS58 --destination-coldkey SS58 --yes
on a network, with wallets as btcli keeps them:
  python stake.py burn --netuid 98 --wallet NAME --wallet-hotkey HOTKEY
"""


def build_parser() -> Parser:
    parser = Parser(
        prog="stake.py",
        description="Burn a validator's weights; sweep what a miner hotkey earned to a treasury, once an epoch.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="burn | sweep | status")

    def verb(name: str, what: str, default_name: str) -> argparse.ArgumentParser:
        inner = verbs.add_parser(
            name, help=what, description=what, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        inner.add_argument(
            "--journal", metavar="FILE", help="SQLite (default: stake-NETUID-HOTKEY.sqlite3 in the folder)"
        )
        inner.add_argument(
            "--dir", default="local", help="folder of journal, allow-list and local subnet (default: local)"
        )
        inner.add_argument(
            "--name", default=default_name, help=f"development wallet on the local subnet (default: {default_name})"
        )
        inner.add_argument(
            "--local", action="store_true", help="with --netuid: the wallet on the local subnet, to try it out"
        )
        add_chain_options(inner)
        add_logging_options(inner)
        return inner

    def loop(inner: argparse.ArgumentParser) -> None:
        inner.add_argument("--once", action="store_true", help="do what is due now and end; exit code 1: not all done")
        inner.add_argument(
            "--poll-interval", type=number(0.01, 3600, float), default=POLL_SECONDS, metavar="SECONDS",
            help=f"how often the chain is looked at (default: {POLL_SECONDS:g})",
        )  # fmt: skip
        add_notify_options(inner)

    inner = verb("burn", "keep all of a validator's weight on the owner's uid, for which nobody is paid", "validator")
    inner.add_argument(
        "--target-uid", type=number(0, MAX_NETUID), metavar="N",
        help="who holds this uid now, and no later holder of it, instead of the owner: that one is paid",
    )  # fmt: skip
    inner.add_argument("--target-hotkey", metavar="SS58", help="the same by hotkey; also the answer to a recycled uid")
    inner.add_argument(
        "--set-weights-interval", type=number(1, 10**6), default=SET_WEIGHTS_INTERVAL_BLOCKS, metavar="BLOCKS",
        help=f"from the chain's last update to the next (default: {SET_WEIGHTS_INTERVAL_BLOCKS})",
    )  # fmt: skip
    loop(inner)

    inner = verb(
        "sweep", "after each epoch, give what the hotkey earned to a treasury; a dry run without --yes", "mine"
    )
    inner.add_argument(
        "--aggregator-hotkey", metavar="SS58", required=True, help="where the stake lands (as in the allow-list)"
    )
    inner.add_argument(
        "--destination-coldkey", metavar="SS58", required=True, help="who owns it then (as in the allow-list)"
    )
    inner.add_argument(
        "--allow-list", metavar="FILE",
        help="lines `aggregator-hotkey SS58` and `destination-coldkey SS58` (default: stake-allow.txt in the folder)",
    )  # fmt: skip
    inner.add_argument("--yes", action="store_true", help="really do it")
    inner.add_argument(
        "--all",
        action="store_true",
        help="everything on hotkey and aggregator, not only what was earned since the start",
    )
    inner.add_argument(
        "--two-calls", action="store_true", help="move, then transfer, on chains that cannot do both in one call"
    )
    inner.add_argument(
        "--minimum-rao", type=number(1), default=MINIMUM_RAO, metavar="RAO",
        help=f"less is left to the next epoch (default: {MINIMUM_RAO}, about the chain's own minimum)",
    )  # fmt: skip
    inner.add_argument(
        "--fee-reserve-rao", type=number(0), default=FEE_RESERVE_RAO, metavar="RAO",
        help=f"send nothing while the coldkey's free TAO is below this (default: {FEE_RESERVE_RAO})",
    )  # fmt: skip
    inner.add_argument(
        "--wait-finalization", action="store_true",
        help=f"believe a step only when its block is {FINAL_BLOCKS} deep (the write itself always waits until final)",
    )  # fmt: skip
    inner.add_argument(
        "--no-initial-transfer", action="store_true",
        help="leave what came while nobody was watching to the next epoch; a sweep that was begun is still finished",
    )  # fmt: skip
    inner.add_argument(
        "--settle", choices=("applied", "not-applied"), help="what you found out about the step whose fate is unknown"
    )
    loop(inner)

    verb("status", "the wallet's addresses, the journal, the plan and the next epoch; sends nothing", "mine")
    return parser


def main(argv: list[str] | None = None) -> int:
    options = parse_options(build_parser(), argv)
    work = {"burn": burn, "sweep": sweep, "status": status}[options.verb]
    return run(work(options), options.log_level, (ChainError, StoreError), options.log_json, options.log_file)


if __name__ == "__main__":
    sys.exit(main())
