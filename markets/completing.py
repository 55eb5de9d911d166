"""Completing a recording: the call behind each swap found, each digit held against the replay, written down.

python -m markets import PATH --out FOLDER
"""

from __future__ import annotations

import lzma
from collections.abc import Iterable, Iterator
from pathlib import Path

from liquidity.calls import with_call
from liquidity.events import Event, ReplayError
from markets.base import MarketError
from markets.memory import advance, contradiction
from markets.recorded import block_times, check_final, open_pool
from markets.recordings import Recording
from sim import PoolError

CALLS = ("in", "out", "limit", "?")  # what a complete recording says of a swap
CSV_HEADER = (
    "block,log_index,time,kind,how_or_owner,amount0_or_tickLower,amount1_or_tickUpper,"
    "sqrtPriceX96_or_liquidityDelta,liquidity_or_amount0,tick_or_amount1"
)


def complete(recording: Recording) -> Iterator[Event]:
    """A recording's events, each with the call behind it, each digit held against the replay, to the final state.

    Raises:
        MarketError: the stream contradicts itself; names the block.
    """
    block_times(recording)
    pool = open_pool(recording)
    for event in recording.events:
        try:
            event = with_call(pool, event)
            advance(pool, event)
        except (ReplayError, PoolError) as error:
            raise MarketError(contradiction(event, error)) from error
        yield event
    check_final(recording, pool)


def write_recording(stem: Path, description: bytes, events: Iterable[Event]) -> None:
    """Write `STEM.json` and `STEM.events.csv.xz`, each whole or not at all."""
    lines = (",".join(map(str, (*event[:4], *event.args))) for event in events)
    table = "\n".join((CSV_HEADER, *lines, "")).encode("ascii")
    for ending, data in ((".events.csv.xz", lzma.compress(table)), (".json", description)):
        part = Path(f"{stem}{ending}.part")
        part.write_bytes(data)
        part.replace(f"{stem}{ending}")
