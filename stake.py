"""Burn weights, and sweep what a miner hotkey earned to a treasury: each epoch once, whatever crashes.

    python stake.py burn                    keep a validator's weights on the subnet's owner, for which nobody is paid
    python stake.py sweep --aggregator-hotkey SS58 --destination-coldkey SS58          what would be done: a dry run
    python stake.py sweep --aggregator-hotkey SS58 --destination-coldkey SS58 --yes    do it, every epoch
    python stake.py status                  the wallet's addresses, the journal, the plan, the next epoch

A sweep is planned from what the chain shows and what the journal remembers, written down before it is sent, and done
only when the chain's own record shows it; nothing is sent a second time before the first is known not to have happened.
`docs/stake.md` has every crash and failure with what happens then. Read next: `chain/sweeping.py`, `chain/weights.py`.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

from chain import sweeping
from chain.base import (
    BLOCK_SECONDS,
    Chain,
    ChainError,
    Metagraph,
    Next,
    Refused,
    StakeParams,
    WriteOutcome,
    check_move,
    done,
)
from chain.journal import ROUNDING_RAO, Journal, Reading, Step, alpha
from chain.loop import Result, follow, teller
from chain.notify import AlertRules, Notifier, add_notify_options
from chain.opening import open_chain
from chain.sweeping import FATE_BLOCKS, FEE_RESERVE_RAO, MINIMUM_RAO, RETRY_BLOCKS, Policy
from chain.wallets import check_address
from chain.weights import Vector, Weigher, last_weights
from runtime.db import StoreError
from runtime.options import MAX_NETUID, add_chain_options, add_logging_options, file_path, parse_options, settings_lines
from runtime.process import EXIT_OK, Parser, UserError, number, only_one, run
from scoring import BURN

SET_WEIGHTS_INTERVAL_BLOCKS = 720  # two epochs, 2.4 hours
POLL_SECONDS = 30.0
MAX_SLEEP_POLLS = 20  # a burn that has nothing to do for hours looks at least so often
FINAL_BLOCKS = 5  # with --wait-finalization a block is trusted at this depth; GRANDPA is two or three behind

log = logging.getLogger("stake")


# ---------------------------------------------------------------------------------------------------------------------
# The burn


class Burner:
    """Keeps a validator's whole weight on one target, by `Weigher` as any other weights.

    The target is `target_hotkey`, else who has `target_uid` now and had it when it was first given, else the owner now.
    """

    def __init__(
        self, chain: Chain, journal: Journal, interval_blocks: int = SET_WEIGHTS_INTERVAL_BLOCKS,
        target_uid: int | None = None, target_hotkey: str | None = None,
    ):  # fmt: skip
        self._chain, self._uid, self._hotkey, self._problem = chain, target_uid, target_hotkey, ""
        self._weigher = Weigher(journal, chain, self._vector, interval_blocks=interval_blocks, version_key=None)

    async def step(self) -> Result:
        """Set the weights if they are due, or read them back; raises `ChainError` if the chain cannot be read."""
        graph = await self._chain.metagraph()
        me = graph.by_hotkey(self._chain.hotkey)
        outcome = await self._weigher.weigh(int(time.time()), graph.block)
        if outcome is not None:
            self._problem = "" if outcome.ok or outcome.next is Next.WAIT_BLOCKS else f"weights: {outcome.detail}"
        news = {"registered": me is not None, "permit": me and me.permit, "weights": outcome}
        return Result(max(1, self._weigher.next_block - graph.block), self._problem, news)

    async def plan(self) -> str:
        """One line: on whom the weight will be, and from which block on; raises `ChainError`."""
        graph, last = await self._chain.metagraph(), await last_weights(self._weigher.store)
        params = await self._chain.weight_params(self._chain.hotkey)
        taken = (params.last_update_block or 0) + params.rate_limit_blocks
        due = max(graph.block, taken, last.next_block if last else 0)
        try:
            (hotkey,) = await self._vector(self._weigher.store, 0, graph)
            whom = f"the owner's uid {graph.burn_uid()} (burned)" if hotkey == BURN else f"{hotkey}, who is paid for it"
        except Refused as refused:
            whom = f"nobody: {refused.args[1]}"
        every = f"every {self._weigher.interval_blocks} blocks, next at block {due}; it is block {graph.block}"
        return f"all weight of {self._chain.hotkey} on {whom}; {every}"

    async def _vector(self, journal: Journal, _: int, graph: Metagraph) -> Vector:
        hotkey, uid = self._hotkey, self._uid
        if hotkey is None and uid is None:
            return {BURN: Decimal(1)}
        if hotkey is None:
            found = next((neuron.hotkey for neuron in graph.neurons if neuron.uid == uid), None)
            if found is None:
                raise Refused("NoTarget", f"the subnet has no uid {uid}: choose another --target-uid")
            hotkey = await journal.bind_target(uid, found)
            if found != hotkey:  # what the journal says may stop it, and lead it nowhere else
                fix = "to pay one of them, say --target-hotkey"
                raise Refused("NoTarget", f"uid {uid} was {hotkey} and is now {found}: {fix}")
        if graph.by_hotkey(hotkey) is None:
            raise Refused("NoTarget", f"the target {hotkey} is not registered: choose another --target-hotkey")
        return {hotkey: Decimal(1)}


# ---------------------------------------------------------------------------------------------------------------------
# The sweep


class Sweeper:
    """Sweeps each observed epoch once; see `docs/stake.md` for what happens when something fails.

    Kill it anywhere: a movement is in the journal before it is sent, and a new process goes on from what the chain and
    the journal say.
    """

    def __init__(
        self, chain: Chain, journal: Journal, policy: Policy, skip_first: bool = False, allowed: Callable = lambda: None
    ):
        """With `skip_first`, what an epoch brought while nobody was watching is not swept at once. `allowed` raises
        `UserError` where the policy's addresses are not allowed any more: it is called before each sending."""
        self._chain, self._journal, self._policy, self._allowed = chain, journal, policy, allowed
        self._new_state = "skipped" if skip_first else "observed"
        self._news: dict[str, Any] = {}
        self._elsewhere: str | None = None  # what is wrong with where the income lands; None: not asked yet

    async def step(self) -> Result:
        """Do all that can be done now.

        Raises `ChainError` when the chain could not be read; nothing is lost, call again.
        """
        self._news = {}
        now = await sweeping.read(self._chain, (self._chain.hotkey, self._chain.coldkey))
        first_state = "observed" if self._policy.take_all else "baseline"
        await self._journal.observe(now, self._new_state, first_state)
        self._new_state = "observed"
        if self._elsewhere is None:
            await self._params()
        while True:
            step, epoch_block = await self._journal.open_step(), await self._journal.next_epoch()
            stuck = step if step and step.state == "planned" and step.retry_block else None
            if stuck and now.block < stuck.retry_block:
                return Result(1, f"step {step.id} ({step.detail}); again at block {step.retry_block}", self._news)
            if epoch_block is not None and (stuck or step is None):
                await self._plan(epoch_block, stuck)
            elif step is None:
                return Result(1, self._elsewhere, self._news)
            elif waiting := await (self._settle(step) if step.state == "sent" else self._send(step)):
                return Result(1, waiting, self._news)

    async def _params(self) -> StakeParams:
        params = await self._chain.stake_params()
        self._elsewhere = self._news["income"] = sweeping.elsewhere(self._chain, params)
        return params

    async def _plan(self, epoch_block: int, stuck: Step | None) -> None:
        """Write down an epoch's sweep, with what one that is stuck was to move: its amounts follow what is there."""
        policy, least_rao, moved_rao = self._policy, (await self._params()).least_rao, 0
        earned_rao, aggregator_rao = await sweeping.available(self._chain, policy, await self._journal.baseline_rao())
        if not policy.take_all:
            aggregator_rao = moved_rao = await self._journal.moved_rao(policy.aggregator_hotkey)
        ends = self._chain.hotkey, self._chain.coldkey
        steps = sweeping.plan(policy, *ends, earned_rao, aggregator_rao, least_rao)
        self._news["registered"] = (await self._chain.metagraph()).by_hotkey(self._chain.hotkey) is not None
        await self._journal.write_plan(epoch_block, earned_rao, steps, stuck if steps or not moved_rao else None)
        if not steps:
            log.info("epoch %d: %d rao to sweep, below the minimum; left to the next", epoch_block, earned_rao)

    async def _send(self, step: Step) -> str:
        block, before = await self._chain.block(), await sweeping.read(self._chain, *self._ends(step))
        kept_rao = 0
        if step.origin_hotkey == self._chain.hotkey and not self._policy.take_all:
            kept_rao = await self._journal.baseline_rao()
        amount_rao, detail = min(step.amount_rao, before.rao[0] - kept_rao), ""
        if amount_rao < step.amount_rao - ROUNDING_RAO:
            detail = f"{step.amount_rao} rao were to leave {step.origin_hotkey}, {max(0, amount_rao)} are there"
        if not sweeping.is_planned(self._policy, self._chain.hotkey, self._chain.coldkey, step):
            detail = f"{step.origin_hotkey} to {step.dest_hotkey} of {step.dest_coldkey}: not planned by this program"
        if detail:
            log.warning("epoch %d: %s; dropped", step.epoch_block, detail)
            await self._journal.drop(step, detail)
            self._news["sweep"] = Refused("Dropped", detail).outcome(block)
            return ""
        try:
            await sweeping.check(self._chain, self._policy, self._allowed)
            check_move(await self._params(), True, step.origin_hotkey, amount_rao, before.rao[0])  # a move precedes one
        except Refused as refused:
            return await self._again(step, block + RETRY_BLOCKS, refused.outcome(block))
        later = await sweeping.next_try(self._chain, step.attempts + 1)
        step = await self._journal.sending(step, amount_rao, before)
        if step.action == "move":
            outcome = await self._chain.move_stake(step.origin_hotkey, step.dest_hotkey, amount_rao)
        else:
            elsewhere = step.dest_hotkey if step.dest_hotkey != step.origin_hotkey else None
            outcome = await self._chain.transfer_stake(step.origin_hotkey, step.dest_coldkey, amount_rao, elsewhere)
        if outcome.ok or outcome.next is Next.READ_STATE_FIRST:
            return await self._settle(step)
        soon = sweeping.free_wait(outcome)
        return await self._again(step, max(block, outcome.block) + soon if soon else later, outcome)

    async def _again(self, step: Step, retry_block: int, outcome: WriteOutcome) -> str:
        if outcome.name != "AmountTooLow":  # that is no trouble: it waits for more
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
            fate = sweeping.fate_by_balances(step, await sweeping.read(self._chain, *self._ends(step)))
            found = None
        else:
            found = sweeping.match(step, moves, await self._journal.extrinsics())
            fate = "applied" if found else "expired" if final else "pending"
        if fate == "applied":
            after = await sweeping.read(self._chain, *self._ends(step))
            await self._done(step, found and found.extrinsic, after)
            return ""
        if fate == "expired":
            detail = f"{step.action} of {step.amount_rao} rao of block {step.sent_block} did not happen"
            log.warning("epoch %d: %s; sending it again", step.epoch_block, detail)
            again = await sweeping.next_try(self._chain, step.attempts) if step.attempts > 1 else 0
            await self._journal.not_applied(step, again, detail)
            return ""
        if fate == "pending":
            return f"the fate of step {step.id}, sent at block {step.sent_block}: known after block {last_block}"
        what = f"{step.amount_rao} rao left {step.origin_hotkey} after block {step.sent_block}"
        fix = "look, then --settle applied or not-applied"
        detail = f"step {step.id}: neither the chain's record nor the balances say whether {what}; {fix}"
        self._news["sweep"] = Refused("FateUnknown", detail).outcome(block)
        return detail

    def _ends(self, step: Step) -> tuple[tuple[str, str], tuple[str, str]]:
        """The two positions that the step changes."""
        return (step.origin_hotkey, self._chain.coldkey), (step.dest_hotkey, step.dest_coldkey)

    async def settle_by_hand(self, applied: bool) -> None:
        """What a person found out about the step in flight; raises `UserError` if there is none."""
        step = await self._journal.open_step()
        if step is None or step.state != "sent":
            raise UserError("--settle: no step in the journal is in flight; leave the option out")
        if applied:
            await self._done(step, None, await sweeping.read(self._chain, *self._ends(step)))
        else:
            await self._journal.not_applied(step, 0, "said by hand not to have happened")

    async def _done(self, step: Step, extrinsic: str | None, after: Reading) -> None:
        detail = ""
        left = step.origin_before_rao - step.amount_rao
        if after.epoch_block == step.sent_epoch_block and abs(after.rao[0] - left) > ROUNDING_RAO:
            detail = f"origin has {after.rao[0]} rao where {left} were expected: somebody else moved stake too"
            log.warning("epoch %d: %s", step.epoch_block, detail)
        whole = await self._journal.applied(step, extrinsic, after, detail)
        self._news["sweep"] = done(after.block)
        moved = f"{step.action} {alpha(step.amount_rao)} from {step.origin_hotkey} to {step.dest_hotkey}"
        how = f"extrinsic {extrinsic or 'seen by balances'}{', swept' if whole else ''}"
        print(f"epoch {step.epoch_block}: {moved} of {step.dest_coldkey}, {how}", flush=True)


# ---------------------------------------------------------------------------------------------------------------------
# The programs


def journal_path(options: argparse.Namespace, folder: Path, netuid: int, hotkey: str) -> Path:
    return Path(options.journal) if options.journal else folder / f"stake-{netuid}-{hotkey[:8]}.sqlite3"


@asynccontextmanager
async def opened(
    options: argparse.Namespace, need_coldkey: bool, weights_seconds: float | None = None
) -> AsyncIterator[tuple[Chain, Journal, Callable[[dict[str, Any]], Awaitable[None]]]]:
    """What both loops need: the chain, the wallet's journal held by this process alone, and who is told of the news.

    Raises:
        UserError: another process has the journal; or this is the wallet's first start, and its hotkey, most likely the
            wrong one, is not registered. Later that is a trouble that is told and waited out.
    """
    async with AsyncExitStack() as stack:
        opening = open_chain(options, need_coldkey, patient=not options.once)
        chain, netuid, folder = await stack.enter_async_context(opening)
        path = journal_path(options, folder, netuid, chain.hotkey)
        stack.enter_context(only_one(Path(f"{path}.{options.verb}.lock"), "--journal"))
        journal = await stack.enter_async_context(Journal.open(path, netuid, chain.hotkey, chain.coldkey))
        sender = f"stake.py {options.verb}, netuid {netuid}, {chain.hotkey[:8]}"
        notifier = await stack.enter_async_context(Notifier.open(options.slack_webhook_url, sender))
        if (await chain.metagraph()).by_hotkey(chain.hotkey) is None and await journal.is_new():
            fix = "name the right wallet, or register it"
            raise UserError(f"hotkey {chain.hotkey} is not registered on netuid {netuid}: {fix}")
        yield chain, journal, teller(notifier, AlertRules(time.monotonic(), weights_seconds), journal)


async def loop(options: argparse.Namespace, step: Callable, tell: Callable, longest_polls: int = 1) -> int:
    for line in settings_lines(options):
        log.info("%s", line)
    return await follow(step, options.poll_interval, tell, options.once, longest_polls)


async def burn(options: argparse.Namespace) -> int:
    """The validator's loop: registered, permit, then all weight on one target, once an interval."""
    if options.target_hotkey is not None:
        check_address(options.target_hotkey)
    interval_blocks = options.set_weights_interval
    async with opened(options, False, interval_blocks * BLOCK_SECONDS) as (chain, journal, tell):
        burner = Burner(chain, journal, interval_blocks, options.target_uid, options.target_hotkey)
        with suppress(ChainError):  # the loop says so
            print(await burner.plan(), flush=True)
        return await loop(options, burner.step, tell, MAX_SLEEP_POLLS)


async def sweep(options: argparse.Namespace) -> int:
    """The sweeper's loop; without `--yes` only what it would do."""
    if not options.yes:
        if options.settle:
            raise UserError("--settle changes the journal; add --yes")
        async with open_chain(options) as (chain, netuid, folder):
            policy = policy_of(options, folder)
            await show(chain, netuid, journal_path(options, folder, netuid, chain.hotkey), policy)
            print("DRY RUN: nothing was sent or written down; add --yes to do it, now and after every epoch.")
            return EXIT_OK
    policy = policy_of(options, Path(options.dir))
    async with opened(options, need_coldkey=True) as (chain, journal, tell):
        await journal.check_addresses(policy.aggregator_hotkey, policy.destination_coldkey)
        if policy.take_all:
            print(await what_all_includes(chain, policy), flush=True)
        allowed = partial(sweeping.checked_addresses, options, Path(options.dir))
        sweeper = Sweeper(chain, journal, policy, options.no_initial_transfer, allowed)
        if options.settle:
            await sweeper.settle_by_hand(options.settle == "applied")
        return await loop(options, sweeper.step, tell)


def policy_of(options: argparse.Namespace, folder: Path) -> Policy:
    """The sweep's options, checked; raises `UserError`."""
    aggregator, destination = sweeping.checked_addresses(options, folder)
    return Policy(
        aggregator, destination, options.minimum_rao, options.fee_reserve_rao,
        take_all=options.all, two_calls=options.two_calls, wait_final=options.wait_finalization,
    )  # fmt: skip


async def what_all_includes(chain: Chain, policy: Policy) -> str:
    """One line about what `--all` takes beyond what was earned."""
    ours = (chain.hotkey, chain.coldkey), (policy.aggregator_hotkey, chain.coldkey)
    miner_rao, aggregator_rao = (await sweeping.read(chain, *ours)).rao
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
    now = await sweeping.read(chain, (chain.hotkey, chain.coldkey))
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
        takes, params = await sweeping.available(chain, policy, baseline_rao), await chain.stake_params()
        steps = sweeping.plan(policy, chain.hotkey, chain.coldkey, *takes, params.least_rao)
        print(sweeping.elsewhere(chain, params) or f"the chain moves {alpha(params.least_rao)} or more", flush=True)
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


_FLAGS = {
    "--yes": "really do it",
    "--all": "everything on hotkey and aggregator, not only what was earned since the start",
    "--two-calls": "move, then transfer, on chains that cannot do both in one call",
    "--wait-finalization": f"believe a step only when its block is {FINAL_BLOCKS} deep"
    " (the write itself always waits until final)",
    "--no-initial-transfer": "leave what came while nobody was watching to the next epoch;"
    " a sweep that was begun is still finished",
}


def build_parser() -> Parser:
    how = {"epilog": _EXAMPLES, "formatter_class": argparse.RawDescriptionHelpFormatter}
    what = "Burn a validator's weights; sweep what a miner hotkey earned to a treasury, once an epoch."
    parser = Parser(prog="stake.py", description=what, **how)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="burn | sweep | status")

    def verb(name: str, what: str) -> Callable:
        inner = verbs.add_parser(name, help=what, description=what, **how)
        add = inner.add_argument
        what = "SQLite (default: stake-NETUID-HOTKEY.sqlite3 in the folder)"
        add("--journal", type=file_path, metavar="FILE", help=what)
        what = "folder of journal, allow-list and local subnet (default: local)"
        add("--dir", type=file_path, default="local", help=what)
        add("--name", default="mine", help="development wallet on the local subnet (default: mine)")
        add("--local", action="store_true", help="with --netuid: the wallet on the local subnet, to try it out")
        add_chain_options(inner)
        add_logging_options(inner)
        if name != "status":
            add("--once", action="store_true", help="do what is due now and end; exit code 1: not all done")
            what, seconds = f"how often the chain is looked at (default: {POLL_SECONDS:g})", number(0.01, 3600, float)
            add("--poll-interval", type=seconds, default=POLL_SECONDS, metavar="SECONDS", help=what)
            add_notify_options(inner)
        return add

    add = verb("burn", "keep all of a validator's weight on the owner's uid, for which nobody is paid")
    what = "who holds this uid now, and no later holder of it, instead of the owner: that one is paid"
    add("--target-uid", type=number(0, MAX_NETUID), metavar="N", help=what)
    add("--target-hotkey", metavar="SS58", help="the same by hotkey; also the answer to a recycled uid")
    default, blocks = SET_WEIGHTS_INTERVAL_BLOCKS, number(1, 10**6)
    what = f"from the chain's last update to the next (default: {default})"
    add("--set-weights-interval", type=blocks, default=default, metavar="BLOCKS", help=what)

    add = verb("sweep", "after each epoch, give what the hotkey earned to a treasury; a dry run without --yes")
    what = "where the stake lands (as in the allow-list)"
    add("--aggregator-hotkey", metavar="SS58", required=True, help=what)
    add("--destination-coldkey", metavar="SS58", required=True, help="who owns it then (as in the allow-list)")
    what = "lines `aggregator-hotkey SS58` and `destination-coldkey SS58` (default: stake-allow.txt in the folder)"
    add("--allow-list", type=file_path, metavar="FILE", help=what)
    what = f"less is left to the next epoch (default: {MINIMUM_RAO}; and than 0.002 TAO at the pool's price)"
    add("--minimum-rao", type=number(1), default=MINIMUM_RAO, metavar="RAO", help=what)
    what = f"send nothing while the coldkey's free TAO is below this (default: {FEE_RESERVE_RAO})"
    add("--fee-reserve-rao", type=number(0), default=FEE_RESERVE_RAO, metavar="RAO", help=what)
    for flag, what in _FLAGS.items():
        add(flag, action="store_true", help=what)
    what = "what you found out about the step whose fate is unknown"
    add("--settle", choices=("applied", "not-applied"), help=what)

    verb("status", "the wallet's addresses, the journal, the plan and the next epoch; sends nothing")
    return parser


def main(argv: list[str] | None = None) -> int:
    options = parse_options(build_parser(), argv)
    work = {"burn": burn, "sweep": sweep, "status": status}[options.verb]
    return run(work(options), options.log_level, (ChainError, StoreError), options.log_json, options.log_file)


if __name__ == "__main__":
    sys.exit(main())
