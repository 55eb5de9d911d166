"""What it costs to score a round: 256 miners with 5 positions each over 2,000 real swaps, and how that grows.

    python bench/scoring.py              about 20 seconds; `--passes 1` for a quick look

One pass is the whole of `rounds.play`: the market's events replayed and held against the recorded digits, a book for
every miner, its decision at the opening, fees leg by leg, *keep*, *hold* and the best fixed range in hindsight,
scores and ranks. Positions are random around the price, from a seed. Times are CPU time of this one process, median
over passes; every pass must give the same result. The last column says how a cost grew beside a linear one: 1.00 is
linear, less is better.

Recording: `ALM_RECORDINGS`, default `../shared/data`. Read next: `liquidity/tape.py`, `Tape.growth`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

sys.path.insert(
    0, str(Path(__file__).resolve().parent.parent)
)  # before this folder, where `scoring` would be this file

from bench.sim import ARBITRUM, RECORDINGS, machine
from liquidity.books import Book
from liquidity.hindsight import best_fixed_range
from liquidity.replay import Snapshot, apply_event
from liquidity.rounds import Decision, RoundInputs, play
from liquidity.tape import Tape
from markets.recordings import RecordingError, read_recording
from protocol import Entrant, JobSettings, Position
from sim import tick_at_sqrt_ratio

MINERS, SWAPS, POSITIONS = 256, 2000, 5
TARGET_SECONDS, STRETCH_SECONDS = 0.5, 0.1
VAULT = ("0", -199760, -196890)  # the recording's most valuable position that lies unchanged for days
FIRST_EVENT = 20_000
GRID = {
    "swaps": (500, 1000, 2000, 4000, 8000),
    "miners": (32, 64, 128, 256, 512),
    "positions": (1, 2, 5, 10),
}


def round_of(recording, snapshot: Snapshot, swaps: int = SWAPS, miners: int = MINERS, positions: int = POSITIONS):
    """A round of so many swaps in which every miner asks for so many random ranges at the opening."""
    events, left = [], swaps
    for event in recording.events[FIRST_EVENT:]:
        events.append(event)
        left -= event.kind == "swap"
        if not left:
            break
    rng, book = Random(1), Book(Tape(snapshot))
    shown, tick = tuple(book.shown(snapshot.sqrt_price_x96)), tick_at_sqrt_ratio(snapshot.sqrt_price_x96)
    amounts = [amount // positions for amount in book.initial]
    entrants, decisions = [], []
    for n in range(miners):
        desired = []
        for _ in range(positions):
            width, centre = rng.choice([20, 50, 100, 200, 400, 1000]), tick // 10 * 10 + rng.randint(-30, 30) * 10
            desired.append(Position(centre - width, centre + width, *amounts))
        entrants.append(Entrant(f"miner{n:03}", n, Decimal(0)))
        decisions.append(Decision(f"miner{n:03}", snapshot.block, shown, tuple(desired)))
    return RoundInputs(JobSettings(), snapshot, events[-1].block + 1, tuple(events), tuple(entrants), tuple(decisions))


def seconds_of(work: Callable[[], Any], passes: int) -> float:
    """Median CPU time of a piece of work that must always give the same."""
    times, results = [], []
    for _ in range(passes):
        start = time.process_time()
        results.append(work())
        times.append(time.process_time() - start)
    if any(result != results[0] for result in results):
        sys.exit("the same round gave two results")
    return median(times)


def print_growth(name: str, values: Sequence[int], costs: Sequence[float]) -> None:
    for value, cost in zip(values, costs, strict=True):
        linear = costs[0] * value / values[0]
        print(f"{name:>10} {value:>6,} {cost * 1000:>9.1f} ms {cost / linear:>9.2f} x linear")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--passes", type=int, default=5, help="passes a figure is the median of")
    passes = parser.parse_args().passes
    print(f"{machine()}; CPU time of one process, median of {passes}")
    try:
        recording = read_recording(RECORDINGS / ARBITRUM)
    except RecordingError as error:
        print(f"scoring is left out: {error}")
        return
    pool = recording.open_pool()
    for event in recording.events[:FIRST_EVENT]:
        apply_event(pool, event)
    snapshot = Snapshot.of(pool, [VAULT], (0, 0), recording.events[FIRST_EVENT].block, 0, "")

    inputs = round_of(recording, snapshot)
    whole = seconds_of(lambda: play(inputs), passes)
    tape, tokens = Tape(snapshot), Book(Tape(snapshot)).initial
    tape.feed(inputs.events)
    price = tape.price_before(inputs.close_block)
    market = seconds_of(lambda: Tape(snapshot).feed(inputs.events), passes)
    search = seconds_of(lambda: best_fixed_range(tape, inputs.settings, tokens, inputs.close_block, price), passes)
    print(f"full scoring of {MINERS} miners x {SWAPS:,} real swaps x {POSITIONS} positions: {whole:.3f} s", end="; ")
    print(f"target {TARGET_SECONDS} s, stretch {STRETCH_SECONDS} s")
    print(
        f"of that: market {market:.3f} s, best range in hindsight {search:.3f} s, books {whole - market - search:.3f} s"
    )
    for name, values in GRID.items():
        rounds = [round_of(recording, snapshot, **{name: value}) for value in values]
        print_growth(name, values, [seconds_of(lambda inputs=inputs: play(inputs), passes) for inputs in rounds])


if __name__ == "__main__":
    main()
