"""Recordings of real pools: two files of public facts, read strictly, replayed to the last digit.

    python -m markets replay ../shared/data/arbitrum_weth_usdt_500_2025-06-27_07-01

Read next: `recorded.py` (a recording as a market).
"""

from __future__ import annotations

import hashlib
import json
import lzma
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

from liquidity.calls import with_call
from liquidity.events import Event, ReplayError
from liquidity.fast import FastPool
from liquidity.replay import apply_event
from sim import MAX_TICK, PIPS, Pool, PoolError


@dataclass(frozen=True)
class Recording:
    """A stretch of a real pool's life: the state before it, the events, and the state after it.

    Attributes:
        name, chain, pool_address: where it is from.
        token0, token1: (symbol, decimals).
        fee, tick_spacing: the pool's.
        start_block, start_time, sqrt_price_x96, fee_protocol: the state before the first event.
        positions: (owner, tick_lower, tick_upper, liquidity) to mint before the first event. `BACKGROUND` owns what
            nobody touches while the recording lasts. Fee growth starts at 0.
        events: in order.
        final: attribute name to value after the last event; may be empty.
        digest: sha256 of both files.
    """

    name: str
    chain: str
    pool_address: str
    token0: tuple[str, int]
    token1: tuple[str, int]
    fee: int
    tick_spacing: int
    start_block: int
    start_time: int
    sqrt_price_x96: int
    positions: tuple[tuple, ...]
    events: tuple[Event, ...]
    final: dict[str, int]
    digest: str
    fee_protocol: tuple[int, int] = (0, 0)

    def open_pool(self) -> Pool:
        """A pool in the state before the first event."""
        pool = FastPool(self.fee, self.tick_spacing)
        pool.initialize(self.sqrt_price_x96)
        if any(self.fee_protocol):
            pool.set_fee_protocol(*self.fee_protocol)
        for position in self.positions:
            pool.mint(*position)
        return pool


class RecordingError(Exception):
    """A recording cannot be read; the message names file, line and fix."""


MAX_DESCRIPTION_BYTES, MAX_LINE_BYTES = 16 * 2**20, 1024
MAX_TABLE_BYTES = 256 * 2**20  # decompressed: twenty busy days; a file that somebody sends shall not fill the memory
MAX_EXPANSION = 32  # how many times longer than its file a table is; real ones four times
BACKGROUND = "background"
_EVENT_LENGTHS = {"swap": 6, "mint": 6, "burn": 6, "flash": 4, "set_fee_protocol": 2}  # args of what is recorded
_FINAL_KEYS = {
    "sqrtPriceX96": "sqrt_price_x96",
    "tick": "tick",
    "liquidity": "liquidity",
    "feeGrowth0_since_start": "fee_growth_global0_x128",
    "feeGrowth1_since_start": "fee_growth_global1_x128",
}


def parse_recording(name: str, description: bytes, table: Iterable[bytes]) -> Recording:
    """Parse a recording's two files (format: the README beside the recordings).

    Args:
        name: for messages.
        description: `NAME.json`.
        table: the lines of `NAME.events.csv`, decompressed; read one by one, a whole day of them is large.

    Raises:
        RecordingError: names the field or line that is wrong.
    """
    try:
        meta = json.loads(description)
        start = meta["start"]
        listed = [(BACKGROUND, *position) for position in meta["background"]] + meta["preexisting"]
        positions = [(str(owner), int(lower), int(upper), int(amount)) for owner, lower, upper, amount in listed]
        fee, tick_spacing = int(meta["fee"]), int(meta["tickSpacing"])
        if not (0 <= fee < PIPS and 0 < tick_spacing <= MAX_TICK):
            raise ValueError(f"fee {fee} and tickSpacing {tick_spacing} are no pool's")
        tokens = [
            (symbol, int(decimals.rstrip(")")))
            for symbol, decimals in (meta[t].split(" (") for t in ("token0", "token1"))
        ]
        hasher, share, found = hashlib.sha256(description), {}, []
        for number, line in enumerate(table, 1):
            if len(line) > MAX_LINE_BYTES:
                raise RecordingError(f"recording {name} line {number}: longer than {MAX_LINE_BYTES} bytes")
            hasher.update(line)
            text = line.decode("ascii")
            if number > 1:
                found.append(_parse_event(name, number, text, share))
        events = tuple(found)
        for number, (one, two) in enumerate(pairwise(events), 3):
            if (one.block, one.log_index) >= (two.block, two.log_index):
                raise RecordingError(
                    f"recording {name} line {number}: block {two.block} log {two.log_index} is out of order"
                )
        return Recording(
            name=name,
            chain=meta["chain"],
            pool_address=meta["pool"],
            token0=tokens[0],
            token1=tokens[1],
            fee=fee,
            tick_spacing=tick_spacing,
            start_block=int(start["block"]),
            start_time=int(start["time"]),
            sqrt_price_x96=int(start["sqrtPriceX96"]),
            positions=tuple(positions),
            events=events,
            final={
                ours: meta["final"][theirs] for theirs, ours in _FINAL_KEYS.items() if theirs in meta.get("final", {})
            },
            digest=hasher.hexdigest(),
            fee_protocol=tuple(map(int, start.get("feeProtocol", (0, 0)))),
        )
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise RecordingError(
            f"recording {name}: {type(error).__name__} {error}; is {name}.json of the documented format?"
        ) from error


def _parse_event(name: str, number: int, line: str, share: dict[int, int]) -> Event:
    """One line; equal liquidities, ticks and times become one object in `share`, for there are few among many lines."""
    try:
        block, log_index, time, kind, first, *rest = line.split(",")
        if kind not in _EVENT_LENGTHS or (kind == "swap" and first not in ("in", "out", "limit", "?", "")):
            raise ValueError(f"{kind} {first!r} is of no known kind or call")
        first = sys.intern(first) if _EVENT_LENGTHS[kind] == 6 else int(first)  # a call or an owner, else an amount
        args = (first, *map(int, rest[:-2]), *(share.setdefault(int(v), int(v)) for v in rest[-2:]))
        if len(args) != _EVENT_LENGTHS[kind]:
            raise ValueError(f"{len(args)} values after the kind, {_EVENT_LENGTHS[kind]} expected")
        time = share.setdefault(int(time), int(time))
        return Event(int(block), int(log_index), time, sys.intern(kind), args)
    except ValueError as error:
        raise RecordingError(
            f"recording {name} line {number}: {error}; fix the line or fetch the file again"
        ) from error


def read_recording(path: str | Path) -> Recording:
    """Read `PATH.json` and `PATH.events.csv.xz` (or `.csv`); the path may also name either file.

    Raises:
        RecordingError: a file is missing, damaged, not of the format, or longer than any real one.
    """
    stem = Path(path)
    for suffix in (".json", ".xz", ".csv", ".events"):
        stem = stem.with_suffix("") if stem.suffix == suffix else stem
    description, packed, plain = (Path(f"{stem}{end}") for end in (".json", ".events.csv.xz", ".events.csv"))
    try:
        most = MAX_TABLE_BYTES
        if packed.exists():
            most = min(most, 2**20 + MAX_EXPANSION * packed.stat().st_size)
        with description.open("rb") as file:
            told = file.read(MAX_DESCRIPTION_BYTES + 1)
        if len(told) > MAX_DESCRIPTION_BYTES:
            raise RecordingError(f"recording {path}: {description} is longer than {MAX_DESCRIPTION_BYTES} bytes")
        with lzma.open(packed) if packed.exists() else plain.open("rb") as table:
            return parse_recording(stem.name, told, _lines(stem.name, table, most))
    except FileNotFoundError as error:
        raise RecordingError(
            f"recording {path}: {error.filename} does not exist; name a recording without its endings"
        ) from error
    except (OSError, lzma.LZMAError, EOFError) as error:
        raise RecordingError(f"recording {path}: {error}; fetch the file again") from error


def _lines(name: str, table: BinaryIO, most: int) -> Iterator[bytes]:
    """The lines, none read much further than it may be long."""
    while line := table.readline(MAX_LINE_BYTES + 1):
        if (most := most - len(line)) < 0:
            raise RecordingError(f"recording {name}: its events are longer than any real ones; fetch the file again")
        yield line


def replay(recording: Recording, progress: Callable[[int, int, str], None] = lambda *_: None) -> Pool:
    """Replay a recording; every resulting price, tick, liquidity and amount must be the recorded one.

    Args:
        progress: called after each event, as `runtime.progress` is.

    Returns:
        The pool after the last event.

    Raises:
        ReplayError: the first digit that differs, or the first call that the contract would have refused.
        PoolError: the start is not a pool's.
    """
    pool = recording.open_pool()
    for number, event in enumerate(recording.events, 1):
        try:
            apply_event(pool, with_call(pool, event))
        except PoolError as error:
            raise ReplayError(event, "call", "accepted", f"refused ({error})") from error
        progress(number, len(recording.events), "events")
    return pool
