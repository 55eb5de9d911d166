"""`python miner.py --check`: one round, and what is wrong in one sentence.

Read first: `trial.py`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from decimal import Decimal
from functools import partial

from doctor.trial import (
    Asked,
    Played,
    Respond,
    Strategy,
    ask_strategy,
    job_of,
    markets_of,
    money,
    places,
    play_round,
    problem,
)
from liquidity import showing
from markets.base import Market
from protocol import ASK_SECONDS, FIRST_ASK_LEAD_SECONDS, Job
from runtime.process import EXIT_FAILED, EXIT_OK, UserError
from status.board import leaderboard

SLOW_SECONDS = 10  # an answer that takes longer gets a warning
CHECK_TRIES = 8  # rounds that `--check` tries until one has scores: a recording may begin with an unknown swap
YOURS = "yours"  # what the leaderboard of `--check` calls the strategy


async def check_command(options: argparse.Namespace, strategies: Mapping[str, Strategy], respond: Callable) -> int:
    """`--check`: the first round with scores of the last market that was named."""
    *_, (market, vault, end) = markets_of(options)
    (settings, rules), strategy = job_of(options), strategies[options.strategy]
    job = Job(options.target.lower(), vault, options.round_seconds, settings)
    mine = partial(respond, strategy=strategy, name=options.strategy)
    print(f"CHECK of strategy {options.strategy} on {market.label}, vault {vault}")
    print(rules, flush=True)
    played, asked = await _first_scored(market, job, end, mine)
    again = []
    for said in asked:
        if not (wrong := problem(said, strategy)):
            again.append(ask_strategy(YOURS, mine, said.query))
            wrong = problem(again[-1], strategy)
        if wrong:
            print(f"WRONG: {wrong}.")
            return EXIT_FAILED
    excess, unit = played.excess(YOURS), Decimal(10) ** market.pair.token1.decimals
    if excess is None:
        print(f"RIGHT: your strategy refuses ({played.first[YOURS][1]}), which is legal; there is no score then.")
    else:
        worth = money(excess / unit, places(played, unit))
        print(f"RIGHT: {len(asked)} asks, {len(asked)} legal answers; {worth} {market.pair.token1.symbol} over keep.")
    slowest = max(said.seconds for said in (*asked, *again))
    print(f"The slowest answer took {slowest:.3f} s, the deadline is {ASK_SECONDS} s.")
    if slowest > SLOW_SECONDS:
        print(f"WARNING: that is above {SLOW_SECONDS} s; network and a busy machine come on top: make it faster.")
    if differs := [one for one, two in zip(asked, again, strict=True) if one.body != two.body]:
        print(
            f"NOTE: the same query twice got different answers, {len(differs)} of {len(asked)} times, first at block"
            f" {differs[0].query.block_number}: what your strategy remembers or draws at random decides."
        )
    print("\n" + leaderboard(showing, market.label, market.pair, {}, job, played.round_id, played.result))
    return EXIT_OK


async def _first_scored(market: Market, job: Job, end: int, mine: Respond) -> tuple[Played, list[Asked]]:
    """The market's first round with scores; every second one is tried, so that each first ask leaves in time."""
    begins, length = (await market.block(market.first)).time + FIRST_ASK_LEAD_SECONDS, job.round_seconds
    first, step, why = -(-begins // length) * length, -(-(length + FIRST_ASK_LEAD_SECONDS) // length) * length, ""
    async with market.participant():
        for start in range(first, min(end - length, first + CHECK_TRIES * step) + 1, step):
            await market.reach_time(start - FIRST_ASK_LEAD_SECONDS)
            played, asked = await play_round(market, job, start, {YOURS: mine}, {YOURS: Decimal(0)}, hindsight=True)
            if played.result.baselines:
                return played, asked
            why = f", {played.result.code} {played.result.detail}"
    raise UserError(f"{market.label}: no round with scores at its beginning{why}; name another market or a --vault")
