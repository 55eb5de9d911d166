"""The market model beside recordings of real pools: is its invented order flow like theirs?

    python bench/market.py > docs/market.md    on the recordings in ../shared/data, or in the folder ALM_RECORDINGS
    python bench/market.py RECORDING...        on others, each named without its endings

A recording is replayed through the exact pool and measured from its start to its last event, the model for `DAYS`.
Printed is Markdown: a row for each measure, then what does not agree, and why. Read next: `markets/model.py`.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
from collections.abc import Iterable, Sequence
from itertools import pairwise
from math import log, sqrt
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from liquidity.events import Event
from liquidity.fast import FastPool
from liquidity.replay import apply_event
from markets.model import BLOCK_SECONDS, FEE, FIRST_BLOCK, FIRST_PRICE_X96, SPACING, ModelMarket
from markets.recordings import Recording, RecordingError, read_recording
from sim import PIPS, Pool

RECORDINGS = Path(os.environ.get("ALM_RECORDINGS") or Path(__file__).resolve().parents[1] / "../shared/data")
DEFAULT = (
    "arbitrum_weth_usdt_500_2025-06-27_07-01",
    "ethereum_usdc_weth_500_2024-01-05",
    "polygon_usdc_weth_500_2022-01-05",
)
SEED, DAYS = 98, 7  # of the model, as in the demo
OTHER_SEEDS = (1, 2, 3)  # to see that the fit is not to a seed
VAULTS = {"vault": 400_000 * 10**6}
USD = 10**6  # in base units: of USDC, USDC.e and USDT alike
DAY, YEAR = 86_400, 365 * 86_400
BURST_SECONDS = 2  # a swap so soon after another in the same direction may be part of the same trade
SAMPLE_SECONDS = 60  # between two looks at the price and the liquidity
REACH = 1 - 1 / sqrt(1.01)  # how much of its virtual tokens liquidity needs to reach a hundredth of the price, one side

# each measure: its format, and what it is
MEASURES = {
    "block time, seconds": (".2f", "time of the stretch by its blocks"),
    "swaps a block": (".3f", ""),
    "swaps a minute": (".2f", ""),
    "size, 10 % USD": (",.0f", "of a swap: the amount of the dollar token; one of ten swaps is smaller"),
    "size, median USD": (",.0f", ""),
    "size, mean USD": (",.0f", ""),
    "size, 90 % USD": (",.0f", "nine of ten swaps are smaller"),
    "size, 99 % USD": (",.0f", ""),
    "exact output": (".1%", "of the swaps"),
    "price limit": (".1%", "swaps that ended at their price limit; see `Event` in `liquidity/events.py`"),
    "reversals": (".1%", "swaps in the other direction than the swap before"),
    "bursts": (".1%", f"swaps in the same direction as the swap before, at most {BURST_SECONDS} seconds after it"),
    "volatility, 1 minute": (
        ".1%",
        "a year, from the pool's price at the end of blocks, so far apart; growing with the horizon it is momentum,"
        " falling mean reversion",
    ),
    "volatility, 15 minutes": (".1%", ""),
    "volatility, 1 hour": (".1%", ""),
    "volatility, 1 hour / 1 minute": (".2f", ""),
    "active liquidity, USD": (
        ",.0f",
        "mean over minutes: what the liquidity in range would be worth, did it reach 1 % of the price to both sides",
    ),
    "ticks crossed a swap": (".3f", "ticks at which a position begins or ends, mean"),
    "mints an hour": (".2f", ""),
    "burns an hour": (".2f", "those that take liquidity out"),
    "fees a day": (".2%", "of the swaps, relative to the active liquidity above"),
}

FAR = 2  # a factor, up or down

# what does not agree of the default recordings, and why; a test sees that these are all such measures
WHY = {
    "block time, seconds": "The model has the blocks of Base, of which there is no recording.",
    "swaps a block": "Its blocks are longer than Arbitrum's; by the minute it is in the range.",
    "size, 10 % USD": "Real pools see more dust. It pays next to no fees and moves no price.",
    "size, 90 % USD": "Arbitrage makes them: the model closes a gap in one swap, Arbitrum in a burst of small ones.",
    "size, 99 % USD": "As above.",
    "reversals": "The model's noise traders toss a coin and nobody splits a trade; see bursts.",
    "bursts": "Nobody in the model splits a trade.",
    "volatility, 1 hour / 1 minute": "The price rests while the outside price, a random walk, stays within the fee:"
    " short horizons see less of it. Noise makes up for a part.",
    "ticks crossed a swap": "Between Arbitrum's, whose swaps are small, and the other two.",
    "mints an hour": "On Arbitrum many positions last for minutes, the model's providers stay for about a day.",
    "burns an hour": "As above.",
}


def measure(
    pool: Pool, events: Iterable[Event], start: int, seconds: int, blocks: int, dollar: int
) -> dict[str, float]:
    """Take all measures of a stretch of a pool's life.

    Args:
        pool: before the first event; it is replayed to the end.
        events: in order.
        start, seconds, blocks: unix seconds of the stretch's start, its length in seconds and in blocks.
        dollar: which of the two tokens is the dollar, 0 or 1.
    """
    sizes, calls, ways, logs, liquidity = [], [], [], [], []
    crossed = mints = burns = 0

    def sample(until: int) -> None:
        """Note price and liquidity at every sampling time before `until`."""
        while start + len(logs) * SAMPLE_SECONDS < until:
            root = pool.sqrt_price_x96 / 2**96
            logs.append(2 * log(root))
            liquidity.append(2 * REACH * pool.liquidity * (root if dollar else 1 / root) / USD)

    for event in events:
        sample(event.time)
        tick = pool.tick
        apply_event(pool, event)
        if event.kind == "swap":
            how, amount0, amount1, _, _, after = event.args
            sizes.append(abs((amount0, amount1)[dollar]) / USD)
            calls.append(how)
            ways.append((event.time, amount0 > 0 or amount1 < 0))
            low, high = (bound // pool.tick_spacing for bound in sorted((tick, after)))
            crossed += sum(n * pool.tick_spacing in pool.ticks for n in range(low + 1, high + 1))
        elif event.kind in ("mint", "burn"):
            mints += event.kind == "mint"
            burns += event.kind == "burn" and event.args[3] > 0
    sample(start + seconds + 1)

    def volatility(horizon: int) -> float:
        returns = [(b - a) ** 2 for a, b in pairwise(logs[:: horizon // SAMPLE_SECONDS])]
        return sqrt(statistics.fmean(returns) * YEAR / horizon)

    known, hundredths, active = (
        len(calls) - calls.count("?"),
        statistics.quantiles(sizes, n=100),
        statistics.fmean(liquidity),
    )
    values = (
        seconds / blocks,
        len(sizes) / blocks,
        len(sizes) / seconds * 60,
        hundredths[9],
        statistics.median(sizes),
        statistics.fmean(sizes),
        hundredths[89],
        hundredths[98],
        calls.count("out") / known,
        calls.count("limit") / known,
        sum(a != b for (_, a), (_, b) in pairwise(ways)) / len(ways),
        sum(a == b and late - soon <= BURST_SECONDS for (soon, a), (late, b) in pairwise(ways)) / len(ways),
        volatility(60),
        volatility(900),
        volatility(3600),
        volatility(3600) / volatility(60),
        active,
        crossed / len(sizes),
        mints / seconds * 3600,
        burns / seconds * 3600,
        sum(sizes) * pool.fee / PIPS / seconds * DAY / active,
    )
    return dict(zip(MEASURES, values, strict=True))


def measure_recording(recording: Recording) -> dict[str, float]:
    last = recording.events[-1]
    return measure(
        recording.open_pool(),
        recording.events,
        recording.start_time,
        last.time - recording.start_time,
        last.block - recording.start_block,
        dollar=[symbol.startswith("USD") for symbol, _ in (recording.token0, recording.token1)].index(True),
    )


def measure_model(seed: int) -> dict[str, float]:
    """The first block, which fills the pool, is not measured."""
    blocks = DAYS * DAY // BLOCK_SECONDS
    market = ModelMarket(seed, VAULTS, head=FIRST_BLOCK + blocks)
    pool = FastPool(FEE, SPACING)
    pool.initialize(FIRST_PRICE_X96)

    def events(first: int, last: int) -> list[Event]:
        return asyncio.run(market.events(first, last))

    for event in events(FIRST_BLOCK, FIRST_BLOCK):
        apply_event(pool, event)
    hours = range(FIRST_BLOCK + 1, FIRST_BLOCK + blocks + 1, 3600 // BLOCK_SECONDS)  # the market forgets what is old
    flow = (event for first in hours for event in events(first, first + 3600 // BLOCK_SECONDS - 1))
    return measure(pool, flow, market.time_of(FIRST_BLOCK), DAYS * DAY, blocks, dollar=1)


def printed(figures: dict[str, float], name: str) -> float:
    """A figure as the table has it, rounded."""
    return float(format(figures[name], MEASURES[name][0]).replace(",", "").rstrip("%"))


def outside(model: dict[str, float], real: Sequence[dict[str, float]]) -> list[str]:
    """The measures of the model that are below or above all of the recordings'."""
    return [
        name
        for name in MEASURES
        if not min(printed(r, name) for r in real) <= printed(model, name) <= max(printed(r, name) for r in real)
    ]


def far(model: dict[str, float], first: dict[str, float]) -> list[str]:
    """The measures of the model that are more than `FAR` times the first recording's, or less than that part of it."""
    pairs = {name: sorted((printed(model, name), printed(first, name))) for name in MEASURES}
    return [name for name, (low, high) in pairs.items() if high > FAR * low]


def document(real: dict[str, dict[str, float]], model: dict[str, float], others: Sequence[dict[str, float]]) -> str:
    """All that is printed.

    Args:
        real: the recordings' figures by name.
        model, others: the model's with `SEED`, and with `OTHER_SEEDS`.
    """
    first, *_ = real
    beyond, differs = outside(model, list(real.values())), far(model, real[first])
    seeds = ", ".join(map(str, OTHER_SEEDS))
    lines = [
        "# The model beside real pools",
        "",
        "Printed by `python bench/market.py`, which has the code that measures. The columns *model* are a MODEL of a",
        f"market: invented order flow, {DAYS} days of seed {SEED}, and the lowest and highest of seeds {seeds}.",
        "The others are recordings of real pools of WETH and a dollar with a fee of 0.05 %. The constants at the top",
        "of `markets/model.py` were chosen by this table; a figure in **bold** is below or above all recordings.",
        "",
        "| | " + " | ".join((*real, "model", "model, other seeds")) + " |",
        "|---|" + "---:|" * (len(real) + 2),
    ]
    for name, (form, _) in MEASURES.items():
        mark = "**" if name in beyond else ""
        low, high = (format(edge(other[name] for other in others), form) for edge in (min, max))
        cells = [format(figures[name], form) for figures in real.values()]
        cells += [f"{mark}{format(model[name], form)}{mark}", low if low == high else f"{low} to {high}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "## What is measured", ""]
    lines += [f"- {name}: {what}." for name, (_, what) in MEASURES.items() if what]
    lines += [
        "",
        "## What does not agree",
        "",
        f"Where the model is beyond all recordings, or a factor of more than {FAR} away from the first one:",
        "",
    ]
    for name in MEASURES:
        if name in beyond or name in differs:
            lines.append(
                f"- {name} ({'beyond all' if name in beyond else 'far from the first'}). {WHY.get(name, '')}".rstrip()
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    try:
        recordings = [read_recording(path) for path in sys.argv[1:] or [RECORDINGS / name for name in DEFAULT]]
    except RecordingError as error:
        print(f"{error}; or set ALM_RECORDINGS to the folder that has the recordings", file=sys.stderr)
        raise SystemExit(2) from error
    real = {recording.name.replace("_", " "): measure_recording(recording) for recording in recordings}
    print(document(real, measure_model(SEED), [measure_model(seed) for seed in OTHER_SEEDS]), end="")


if __name__ == "__main__":
    main()
