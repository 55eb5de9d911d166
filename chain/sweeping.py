"""What a sweep takes, what became of it, and whom it may pay: functions of what chain, journal and allow-list say.

    earned_rao, aggregator_rao = await available(chain, policy, baseline_rao)
    steps = plan(policy, hotkey, coldkey, earned_rao, aggregator_rao)

Read next: `journal.py`, `stake.py` (who carries it out).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chain.base import ERA_BLOCKS, Chain, ChainError, Next, Refused, StakeMove, StakeParams, WriteOutcome
from chain.journal import ROUNDING_RAO, Reading, Step, Wanted
from chain.wallets import check_address
from runtime.passwords import read_private
from runtime.process import UserError

MINIMUM_RAO = 2_000_000  # in alpha; what the chain itself asks for at the price of the moment holds besides
FEE_RESERVE_RAO = 10_000_000  # free TAO to keep on the coldkey: short of it subtensor takes fees out of the stake
RETRY_BLOCKS = 10  # after what cost nothing and waiting may not mend
FATE_BLOCKS = 2 * ERA_BLOCKS  # then a write of unknown fate cannot land any more: its era, and half for signing it
LONGEST_EPOCHS = 16  # between two tries of what the chain refuses for a fee: 19 hours at a tempo of 360
READ_TRIES = 5  # to read several values without an epoch in between
MAX_ALLOW_LIST_BYTES = 2**16
ROLES = ("aggregator-hotkey", "destination-coldkey")  # the options, and the words of the allow-list


@dataclass(frozen=True, slots=True)
class Policy:
    """What a sweep may do; the addresses are those of the allow-list."""

    aggregator_hotkey: str
    destination_coldkey: str
    minimum_rao: int = MINIMUM_RAO  # less is left to the next epoch
    fee_reserve_rao: int = FEE_RESERVE_RAO  # free TAO below which nothing is sent
    take_all: bool = False  # also what was there before, on the miner hotkey and on the aggregator
    two_calls: bool = False  # move, then transfer; else one call does both
    wait_final: bool = False  # believe only blocks `FINAL_BLOCKS` deep


def plan(
    policy: Policy, hotkey: str, coldkey: str, earned_rao: int, aggregator_rao: int, least_rao: int = 0
) -> list[Wanted]:
    """The movements of one sweep, in order; none when there is less than the minimum.

    Args:
        earned_rao: on the miner hotkey, above the baseline.
        aggregator_rao: what to take from the aggregator besides: by `--all`, or moved there and not given on yet.
        least_rao: what the chain moves at least.
    """
    to, treasury = policy.aggregator_hotkey, policy.destination_coldkey
    least_rao = max(least_rao, policy.minimum_rao)
    earned_rao = earned_rao if earned_rao >= least_rao else 0
    if hotkey == to:  # nothing to move: it is where it should be
        return [Wanted("transfer", to, to, treasury, earned_rao)] if earned_rao else []
    steps = []
    if earned_rao and policy.two_calls:
        steps.append(Wanted("move", hotkey, to, coldkey, earned_rao))
        aggregator_rao += earned_rao
    elif earned_rao:
        steps.append(Wanted("transfer", hotkey, to, treasury, earned_rao))
    if aggregator_rao >= least_rao:
        steps.append(Wanted("transfer", to, to, treasury, aggregator_rao))
    return steps


def is_planned(policy: Policy, hotkey: str, coldkey: str, step: Step) -> bool:
    """Whether `plan` could have made this step: whoever writes to the journal does not choose whom it pays."""
    owner = coldkey if step.action == "move" else policy.destination_coldkey
    ends = step.origin_hotkey in (hotkey, policy.aggregator_hotkey), step.dest_hotkey, step.dest_coldkey
    return ends == (True, policy.aggregator_hotkey, owner)


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
        now: of origin and destination.

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


async def read(chain: Chain, *positions: tuple[str, str]) -> Reading:
    """The stakes of (hotkey, coldkey) pairs, read between two looks at the epoch that agree; raises `ChainError`."""
    for _ in range(READ_TRIES):
        before, block = await chain.epoch(), await chain.block()
        rao = tuple([await chain.stake(*position) for position in positions])
        if (await chain.epoch()).last_epoch_block == before.last_epoch_block:
            return Reading(block, before.last_epoch_block, before.next_epoch_block, rao)
    raise ChainError(f"an epoch fell into each of {READ_TRIES} readings; trying again later")


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


async def check(chain: Chain, policy: Policy, allowed: Callable[[], Any]) -> None:
    """Whether a wallet may send anything now; raises `Refused`."""
    free_rao = await chain.free_balance()
    if free_rao is not None and free_rao < policy.fee_reserve_rao:
        detail = f"the coldkey's free TAO is {free_rao} rao, the fee reserve {policy.fee_reserve_rao}: send it some"
        raise Refused("FeeReserve", detail)
    try:
        allowed()
    except UserError as error:
        raise Refused("NotAllowed", error) from None


def free_wait(outcome: WriteOutcome) -> int:
    """After how many blocks what certainly failed without a fee is tried again; else 0."""
    waits = {Next.WAIT_BLOCKS: outcome.wait_blocks, Next.SIGN_AGAIN: 1}
    return 0 if outcome.paid else waits.get(outcome.next, 0)


async def next_try(chain: Chain, attempts: int) -> int:
    """The block of the next try after so many that failed for a fee: one, two, four, ... epochs on."""
    epoch, block = await chain.epoch(), await chain.block()
    following = epoch.next_epoch_block or block + 360
    return following + (min(2 ** (attempts - 1), LONGEST_EPOCHS) - 1) * (following - epoch.last_epoch_block)


def elsewhere(chain: Chain, params: StakeParams) -> str:
    """What is to be said where the chain stakes what this wallet mines on another hotkey; empty if it does not."""
    if params.auto_stake_hotkey in (None, chain.hotkey):
        return ""
    fix = "set it to this one (btcli stake set-auto), or sweep with that one's wallet"
    return f"the chain stakes what is mined on {params.auto_stake_hotkey}, not on {chain.hotkey} (auto-stake): {fix}"


# ---------------------------------------------------------------------------------------------------------------------
# Whom it may pay: addresses that also stand in a file that nobody but its owner may write


def read_allow_list(path: Path) -> set[tuple[str, str]]:
    """The pairs of an allow-list file: lines `aggregator-hotkey SS58` or `destination-coldkey SS58`, `#` begins a note.

    Raises `UserError` if it is missing, not ours, others may write it, or a line is not one of the two.
    """
    fix = "; write the lines `aggregator-hotkey SS58` and `destination-coldkey SS58` into it, or name another with"
    fix += " --allow-list"
    data = read_private(path, "allow-list", MAX_ALLOW_LIST_BYTES, 0o022, fix)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"allow-list {path}: it is no text{fix}") from None
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
    """Aggregator and destination; raises `UserError` for one that is no address, or not in the allow-list."""
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
