"""How much of a score is market drift, and how much is what a miner did? The figures behind `reputation = excess`.

    python bench/drift.py [RECORDING]        default: the market model, which says in its first line that it is a model

For every 15-minute round of three market days the scores of three fixed books are taken: *keep* (the vault's position),
*wide* (all tokens within a tenth around the price) and *hold*. Printed are the median absolute score and the median
absolute excess over keep, in token1. Under the seed's form the first number decides who ranks, under excess the second.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from liquidity.books import Book
from liquidity.rounds import Round
from markets.base import MarketEnded
from markets.model import ModelMarket
from markets.recordings import RecordedMarket, read_recording
from protocol import JobSettings, Position
from scoring import score_outcome

DAYS, ROUND_SECONDS, REACH_TICKS = 3, 900, 960


async def measure(market, vault: str) -> None:
    print(
        f"{market.label}; {DAYS} market days, rounds of {ROUND_SECONDS} s, vault {vault},"
        f" in {market.pair.token1.symbol}"
    )
    unit, spacing = 10**market.pair.token1.decimals, market.pair.tick_spacing
    rows: dict[str, list] = {"PoL": [], "Balanced": []}
    async with market.participant():
        start = -(-(await market.head()).time // ROUND_SECONDS) * ROUND_SECONDS
        for n in range(DAYS * 86_400 // ROUND_SECONDS):
            try:
                await market.reach_time(start + (n + 1) * ROUND_SECONDS)
            except MarketEnded:
                break
            opening = await market.first_block_at(start + n * ROUND_SECONDS)
            close = await market.first_block_at(start + (n + 1) * ROUND_SECONDS)
            game = Round(JobSettings(), await market.snapshot(vault, opening.number))
            game.feed(await market.events(opening.number, close.number - 1))
            tick, wide = game.snapshot.tick, Book(game.tape)
            ends = (tick - REACH_TICKS) // spacing * spacing, (tick + REACH_TICKS) // spacing * spacing
            wide.rebalance(opening.number, [Position(*ends, *wide.initial)], ())
            keep = game.keep(close.number)
            for target, into in rows.items():
                scores = [
                    score_outcome(replace(line.outcome, changes=0), target, 0).score / unit
                    for line in (keep, game.line("wide", wide, close.number))
                ]
                into.append((keep.terms.drift / unit, scores[0], scores[1] - scores[0]))
    print(f"{'target':10}{'rounds':>8}{'|drift|':>14}{'|score(keep)|':>16}{'|wide - keep|':>16}{'drift / excess':>16}")
    for target, found in rows.items():
        drift, score, excess = (statistics.median(abs(row[k]) for row in found) for k in range(3))
        print(f"{target:10}{len(found):8}{drift:14.4f}{score:16.4f}{excess:16.4f}{drift / excess:16.0f}")


def main() -> None:
    if len(sys.argv) > 1:
        market = RecordedMarket(read_recording(sys.argv[1]))
        vault = market.vault
    else:
        market, vault = ModelMarket(98, {"vault": 400_000 * 10**6}), "vault"
    asyncio.run(measure(market, vault))


if __name__ == "__main__":
    main()
