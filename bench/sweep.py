"""A year of epochs of sweeps in which the chain refuses calls for days at a time: what that costs, and what arrives.

    python bench/sweep.py [--days N]        default: 365 days of 7200 blocks, an epoch each 360; about a minute

The chain is one of plain Python, written for this; sweeper and journal are the real ones, the journal in memory. In
turns of one to six days all is well, transfers are off, alpha is worth almost nothing, stake is locked (only the
refused call shows it), and calls are answered with "too fast"; all the while one call in fifty is lost, half of those
after it was applied. Printed are calls and fees by how they ended. The exit code is 1 if two calls failed in an epoch,
or if on the last two days, on which all is well, anything that was earned has not arrived.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import sys
from collections import Counter
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from chain.base import ERA_BLOCKS, EpochInfo, Next, StakeMove, StakeParams, WriteCode, WriteOutcome, done
from chain.journal import Journal
from chain.sweeping import Policy
from stake import Sweeper

DAY_BLOCKS, TEMPO = 7200, 360
FEE_RAO = 124_414  # of one call, failed or not, as a node of 2025 took it
EARNED_RAO = 20_000_000  # an epoch: 0.02 alpha, at 0.3 TAO three times what the chain moves at least
WEATHERS = ("well", "transfers off", "worthless", "locked", "too fast")
REFUSALS = {"locked": ("StakeUnavailable", WriteCode.INSUFFICIENT_BALANCE, Next.NOTHING)}
REFUSALS |= {"too fast": ("TxRateLimitExceeded", WriteCode.RATE_LIMITED, Next.WAIT_BLOCKS)}


class Year:
    """The chain: what `Sweeper` asks of a `Chain`, and its weather."""

    hotkey, coldkey = "miner", "cold"

    def __init__(self, seed: int, two_calls: bool):
        self.random, self.now, self.weather = random.Random(seed), 0, "well"
        self.stakes = Counter({("miner", "cold"): 7 * 10**9, ("agg", "cold"): 5 * 10**12})
        self.moves: list[StakeMove] = []
        self.ended, self.failed_in = Counter(), Counter()

    async def block(self) -> int:
        return self.now

    async def epoch(self) -> EpochInfo:
        last = self.now - self.now % TEMPO
        return EpochInfo(last, TEMPO, last + TEMPO)

    async def stake(self, hotkey: str, coldkey: str) -> int:
        return self.stakes[hotkey, coldkey]

    async def metagraph(self) -> SimpleNamespace:
        return SimpleNamespace(by_hotkey=lambda hotkey: hotkey)

    async def free_balance(self) -> int:
        return 10**9

    async def stake_params(self) -> StakeParams:
        return StakeParams(
            True, self.weather != "transfers off", 3 * 10 ** (5 if self.weather == "worthless" else 8), None
        )

    async def stake_moves(self, from_block: int, to_block: int) -> list[StakeMove]:
        return [move for move in self.moves[-10:] if from_block <= move.block <= to_block]

    async def move_stake(self, origin: str, dest: str, rao: int) -> WriteOutcome:
        return self.call(origin, dest, "cold", rao)

    async def transfer_stake(self, origin: str, dest_coldkey: str, rao: int, dest: str | None) -> WriteOutcome:
        return self.call(origin, dest or origin, dest_coldkey, rao)

    def call(self, origin: str, dest: str, dest_coldkey: str, rao: int) -> WriteOutcome:
        transfer, lost = dest_coldkey != "cold", self.random.random() < 0.02
        if lost and self.random.random() < 0.5:
            self.ended["lost, not applied, no fee"] += 1
            return self.unknown()
        refusal = REFUSALS.get(self.weather) or ("TransferDisallowed",) * (transfer and self.weather == "transfers off")
        if refusal:
            self.ended[f"failed: {refusal[0]}"] += 1
            self.failed_in[self.now // TEMPO] += 1
            return WriteOutcome(False, *refusal[1:2], refusal[0], refusal[2], refusal[0], self.now, 1, paid=True)
        assert rao <= self.stakes[origin, "cold"] and rao > 0
        self.stakes[origin, "cold"] -= rao
        self.stakes[dest, dest_coldkey] += rao
        self.moves.append(StakeMove(f"{self.now}-{len(self.moves)}", self.now, origin, dest, dest_coldkey))
        self.ended["applied"] += 1
        return self.unknown() if lost else done(self.now)

    def unknown(self) -> WriteOutcome:
        return WriteOutcome(False, WriteCode.UNKNOWN, "Lost", Next.READ_STATE_FIRST, "lost", self.now, ERA_BLOCKS)


async def play(days: int, two_calls: bool) -> bool:
    """A year with one or with two calls a sweep; whether it was as it should be."""
    chain, end, turn = Year(7, two_calls), days * DAY_BLOCKS, 0
    policy, spent = Policy("agg", "treasury", two_calls=two_calls), Counter()
    async with Journal.open(Path(":memory:"), 98, "miner", "cold") as journal:
        sweeper = Sweeper(chain, journal, policy)
        for chain.now in range(0, end, TEMPO // 4):
            if chain.now >= turn:
                turn = chain.now + chain.random.randrange(DAY_BLOCKS, 6 * DAY_BLOCKS)
                chain.weather = chain.random.choice(WEATHERS)
            if chain.now >= end - 2 * DAY_BLOCKS:
                chain.weather = "well"
            if chain.now and chain.now % TEMPO == 0:
                chain.stakes["miner", "cold"] += EARNED_RAO
            spent[chain.weather] += 1
            with redirect_stdout(None):
                await sweeper.step()
    epochs, arrived = (end - 1) // TEMPO, chain.stakes["agg", "treasury"]
    calls = sum(chain.ended.values()) - chain.ended["lost, not applied, no fee"]
    print(f"{'two calls' if two_calls else 'one call'} a sweep, {days} days, {epochs} epochs")
    said = [f"{what} {n * TEMPO // 4 / DAY_BLOCKS:.0f} days" for what, n in spent.most_common()]
    print(f"  weather: {', '.join(said)}")
    for what, count in chain.ended.most_common():
        print(f"  {what}: {count}")
    print(f"  fees: {calls * FEE_RAO / 1e9:.4f} TAO, of failed calls {chain.failed_in.total() * FEE_RAO / 1e9:.4f}")
    most = max(chain.failed_in.values(), default=0)
    earned = epochs * EARNED_RAO
    print(f"  failed calls in one epoch: at most {most}; earned {earned / 1e9} alpha, arrived {arrived / 1e9}")
    kept = chain.stakes["miner", "cold"] == 7 * 10**9 and chain.stakes["agg", "cold"] == 5 * 10**12
    return most <= 1 and arrived == earned and kept


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--days", type=int, default=365, metavar="N")
    given = parser.parse_args()
    logging.disable(logging.CRITICAL)
    good = [asyncio.run(play(given.days, two_calls)) for two_calls in (False, True)]
    sys.exit(0 if all(good) else 1)
