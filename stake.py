"""Burn weights, and sweep what a miner hotkey earned to a treasury: each epoch once, whatever crashes.

    python stake.py burn                    keep a validator's weights on the subnet's owner, for which nobody is paid
    python stake.py sweep --aggregator-hotkey SS58 --destination-coldkey SS58          what would be done: a dry run
    python stake.py sweep --aggregator-hotkey SS58 --destination-coldkey SS58 --yes    do it, every epoch
    python stake.py status                  the wallet's addresses, the journal, the plan, the next epoch

A sweep is planned from what the chain shows and what the journal remembers, written down before it is sent, and done
only when the chain's own record shows it; nothing is sent a second time before the first is known not to have happened.
`docs/stake.md` has every crash and failure with what happens then. Read next: `chain/sweeping.py` (what a sweep
takes), `chain/burner.py`, `chain/journal.py`, `chain/loop.py`, `chain/allowed.py`.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from chain.alerts import AlertRules
from chain.allowed import checked_addresses
from chain.base import BLOCK_SECONDS, Chain, ChainError, Next, WriteCode, WriteOutcome, refusal
from chain.burner import FATE_BLOCKS, RETRY_BLOCKS, SET_WEIGHTS_INTERVAL_BLOCKS, Burner
from chain.journal import ROUNDING_RAO, Journal, Reading, Step, alpha
from chain.loop import Result, follow, teller
from chain.notify import Notifier, add_notify_options
from chain.opening import open_chain
from chain.sweeping import FEE_RESERVE_RAO, MINIMUM_RAO, Policy, available, fate_by_balances, match, plan, read
from chain.wallets import check_address
from runtime.db import StoreError
from runtime.options import MAX_NETUID, add_chain_options, add_logging_options, parse_options, settings_lines
from runtime.process import EXIT_OK, Parser, UserError, number, only_one, run

POLL_SECONDS = 30.0
MAX_SLEEP_POLLS = 20  # a burn that has nothing to do for hours looks at least so often
FINAL_BLOCKS = 5  # with --wait-finalization a block is trusted at this depth; GRANDPA is two or three behind

log = logging.getLogger("stake")


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


# ---------------------------------------------------------------------------------------------------------------------
# The programs


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
