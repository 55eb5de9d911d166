"""Recordings of real pools: two files of public facts, read strictly, replayed to the last digit; and as a market.

    python -m markets replay ../shared/data/arbitrum_weth_usdt_500_2025-06-27_07-01

`NAME.json` has `chain`, `pool`, `token0` and `token1` as `SYMBOL (DECIMALS)`, what is known of the `final` state
(`FINAL`), and where it begins: as `snapshot`, a `Snapshot` as in evidence, whose `vault` are the positions that the
events touch; or, of Uniswap's pools, as others write it: `fee`, `tickSpacing`, `start` (sqrtPriceX96, block, time,
feeProtocol), `background` (lower, upper, liquidity) and `preexisting` (owner, lower, upper, liquidity), to be minted at
a fee growth of 0.
`NAME.events.csv.xz` (or `.csv`) has a header, and an event a line: block, log index, time, kind, and its `args` (see
`Event`). A swap whose call is not known has an empty first one, and on Slipstream no fees.
Read first: `memory.py`.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO

from liquidity.calls import with_call
from liquidity.events import Event, ReplayError
from liquidity.fast import FastPool
from liquidity.recheck import check_pool
from liquidity.replay import Snapshot, apply_event
from liquidity.tape import worth
from markets.base import MarketEnded, MarketError
from markets.memory import InMemoryMarket, Purse, advance, contradiction, place_of
from protocol import Pair, ProtocolError, Token
from sim import MAX_TICK, PIPS, Pool, PoolError, amounts_of, sqrt_ratio_at_tick
from wire.codec import from_plain


@dataclass(frozen=True)
class Recording:
    """A stretch of a real pool's life: the state before it, the events, and the state after it.

    Attributes:
        token0, token1: (symbol, decimals).
        start_block, start_time, sqrt_price_x96, fee_protocol: the state before the first event.
        positions: (owner, tick_lower, tick_upper, liquidity) before the first event. `BACKGROUND` owns what nobody
            touches while the recording lasts.
        final: attribute name to value after the last event; may be empty.
        digest: sha256 of both files.
        snapshot: the state before the first event; None where the positions are to be minted, at a fee growth of 0.
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
    snapshot: Snapshot | None = None

    def open_pool(self) -> Pool:
        """A pool in the state before the first event."""
        if self.snapshot:
            return self.snapshot.open()
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
CALLS = ("in", "out", "limit", "?")  # what a complete recording says of a swap
CSV_HEADER = (
    "block,log_index,time,kind,how_or_owner,amount0_or_tickLower,amount1_or_tickUpper,"
    "sqrtPriceX96_or_liquidityDelta,liquidity_or_amount0,tick_or_amount1"
)
_ARGS = {"swap": (6,), "mint": (6,), "burn": (6,), "flash": (4,), "set_fee_protocol": (2,)}  # how many, by kind
_SLIPSTREAM_ARGS = _ARGS | {"swap": (6, 8), "flash": (4, 5), "stake": (4,), "unstake": (4,), "collect_fees": (2,)}
RECORDED = tuple(_SLIPSTREAM_ARGS)  # what changes prices, liquidity, stakes and fee growth
_NAMED = ("swap", "mint", "burn", "stake", "unstake")  # begin with a call or an owner
FINAL = "sqrt_price_x96", "tick", "liquidity", "fee_growth_global0_x128", "fee_growth_global1_x128"
FINAL += "staked_liquidity", "gauge_fees0", "gauge_fees1"
_FINAL_KEYS = {
    **{name: name for name in FINAL},
    "sqrtPriceX96": "sqrt_price_x96",  # as others write it
    "feeGrowth0_since_start": "fee_growth_global0_x128",
    "feeGrowth1_since_start": "fee_growth_global1_x128",
}


def parse_recording(name: str, description: bytes, table: Iterable[bytes]) -> Recording:
    """Parse a recording's two files.

    Args:
        description: `NAME.json`.
        table: the lines of `NAME.events.csv`, decompressed; read one by one, a whole day of them is large.

    Raises:
        RecordingError: names the field or line that is wrong.
    """
    try:
        meta = json.loads(description)
        opening = _opening_of_snapshot(meta["snapshot"]) if "snapshot" in meta else _opening(meta)
        lengths = _SLIPSTREAM_ARGS if opening.get("snapshot") and opening["snapshot"].slipstream else _ARGS
        tokens = [_token(meta[name]) for name in ("token0", "token1")]
        hasher, share, found = hashlib.sha256(description), {}, []
        for number, line in enumerate(table, 1):
            if len(line) > MAX_LINE_BYTES:
                raise RecordingError(f"recording {name} line {number}: longer than {MAX_LINE_BYTES} bytes")
            hasher.update(line)
            text = line.decode("ascii")
            if number > 1:
                found.append(_parse_event(name, number, text, share, lengths))
        for number, (one, two) in enumerate(pairwise(found), 3):
            if one[:2] >= two[:2]:
                where = f"block {two.block} log {two.log_index}"
                raise RecordingError(f"recording {name} line {number}: {where} is out of order")
        final = meta.get("final", {})
        return Recording(
            name=name,
            chain=meta["chain"],
            pool_address=meta["pool"],
            token0=tokens[0],
            token1=tokens[1],
            events=tuple(found),
            final={ours: final[theirs] for theirs, ours in _FINAL_KEYS.items() if theirs in final},
            digest=hasher.hexdigest(),
            **opening,
        )
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError, ProtocolError, PoolError) as error:
        problem = f"{type(error).__name__} {error}; is {name}.json of the documented format?"
        raise RecordingError(f"recording {name}: {problem}") from error


def _opening(meta: dict) -> dict:
    """What a recording that others made says of its start, as of `Recording`."""
    start, fee, tick_spacing = meta["start"], int(meta["fee"]), int(meta["tickSpacing"])
    if not (0 <= fee < PIPS and 0 < tick_spacing <= MAX_TICK):
        raise ValueError(f"fee {fee} and tickSpacing {tick_spacing} are no pool's")
    listed = [(BACKGROUND, *position) for position in meta["background"]] + meta["preexisting"]
    return {
        "fee": fee,
        "tick_spacing": tick_spacing,
        "start_block": int(start["block"]),
        "start_time": int(start["time"]),
        "sqrt_price_x96": int(start["sqrtPriceX96"]),
        "positions": tuple((str(owner), int(low), int(high), int(amount)) for owner, low, high, amount in listed),
        "fee_protocol": tuple(map(int, start.get("feeProtocol", (0, 0)))),
    }


def _opening_of_snapshot(plain: dict) -> dict:
    """The same of one that begins with a snapshot."""
    snapshot = from_plain(Snapshot, plain, "snapshot")
    for problem in check_pool(SimpleNamespace(snapshot=snapshot)):
        raise ValueError(problem)
    snapshot.open()
    return {
        **{name: getattr(snapshot, name) for name in ("fee", "tick_spacing", "sqrt_price_x96")},
        "start_block": snapshot.block,
        "start_time": snapshot.block_time,
        "positions": tuple((*position.key, position.liquidity) for position in snapshot.vault),
        "fee_protocol": (snapshot.fee_protocol0, snapshot.fee_protocol1),
        "snapshot": snapshot,
    }


def _token(text: str) -> tuple[str, int]:
    """`WETH (18)` as (symbol, decimals)."""
    symbol, decimals = text.split(" (")
    return symbol, int(decimals.rstrip(")"))


def _parse_event(name: str, number: int, line: str, share: dict[int, int], lengths: dict[str, tuple]) -> Event:
    """One line; equal liquidities, ticks and times become one object in `share`, for there are few among many lines."""
    try:
        block, log_index, time, kind, first, *rest = line.split(",")
        if kind not in lengths or (kind == "swap" and first not in (*CALLS, "")):
            raise ValueError(f"{kind} {first!r} is of no known kind or call")
        first = sys.intern(first) if kind in _NAMED else int(first)
        args = (first, *map(int, rest[:-2]), *(share.setdefault(int(v), int(v)) for v in rest[-2:]))
        if len(args) not in lengths[kind]:
            raise ValueError(f"{len(args)} values after the kind, {lengths[kind][-1]} expected")
        time = share.setdefault(int(time), int(time))
        return Event(int(block), int(log_index), time, sys.intern(kind), args)
    except ValueError as error:
        fix = "fix the line or fetch the file again"
        raise RecordingError(f"recording {name} line {number}: {error}; {fix}") from error


def read_recording(path: str | Path) -> Recording:
    """Read `PATH.json` and `PATH.events.csv.xz` (or `.csv`); the path may also name either file."""
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
        problem = f"{error.filename} does not exist; name a recording without its endings"
        raise RecordingError(f"recording {path}: {problem}") from error
    except (OSError, lzma.LZMAError, EOFError) as error:
        raise RecordingError(f"recording {path}: {error}; fetch the file again") from error


def _lines(name: str, table: BinaryIO, most: int) -> Iterator[bytes]:
    """The lines, none read much further than it may be long."""
    while line := table.readline(MAX_LINE_BYTES + 1):
        if (most := most - len(line)) < 0:
            raise RecordingError(f"recording {name}: its events are longer than any real ones; fetch the file again")
        yield line


def replay(recording: Recording, progress: Callable[[int, int, str], None] = lambda *_: None) -> Pool:
    """The pool after a recording's last event; every price, tick, liquidity and amount must be the recorded one.

    Args:
        progress: called after each event, as `runtime.progress` is.

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


def write_recording(stem: Path, description: bytes, events: Sequence[Event]) -> None:
    """Write `STEM.json` and `STEM.events.csv.xz`, each whole or not at all."""
    lines = (",".join(map(str, (*event[:4], *event.args))) for event in events)
    header = CSV_HEADER + ",fee,unstakedFee" * any(len(event.args) > 6 for event in events)
    table = "\n".join((header, *lines, "")).encode("ascii")
    for ending, data in ((".events.csv.xz", lzma.compress(table)), (".json", description)):
        part = Path(f"{stem}{ending}.part")
        part.write_bytes(data)
        part.replace(f"{stem}{ending}")


# ---------------------------------------------------------------------------------------------------------------------
# A recording as a market

UNCHANGED = 0.8  # part of a recording for which the default vault's position must stay as it is
CHAIN_IDS = {"ethereum": 1, "polygon": 137, "base": 8453, "arbitrum": 42161}  # by a recording's `chain`; others 0


class RecordedMarket(InMemoryMarket):
    """A recording, block by block.

    It has no vault and no block hashes of its own. A vault is one recorded position, named `OWNER:LOWER:UPPER`; others
    than `vault` may be asked for as well. None is what a Slipstream gauge holds: it earns no fees. Block times are
    interpolated between the blocks that have events, rounded down.

    Args:
        recording: with the call of every swap.
        vault: its name; None for the most valuable position that is in range at the start and unchanged for at least
            `UNCHANGED` of the recording's time.
        idle: every vault's tokens outside the pool at the start, base units.
        options: see `InMemoryMarket`.

    Raises:
        MarketError: the replay contradicts the events or the final state, a swap's call is not known, or there is no
            such vault.
    """

    def __init__(self, recording: Recording, vault: str | None = None, idle: tuple[int, int] = (0, 0), **options):
        if min(idle) < 0:
            raise MarketError(f"idle {idle[0]},{idle[1]}: token amounts in base units, 0 or more")
        for event in recording.events:
            if event.kind == "swap" and not event.args[0]:
                fix = "complete the recording: python -m markets import PATH --out FOLDER"
                raise MarketError(f"{place_of(event)}: the call of this swap is not known; {fix}")
        self._recording, self._idle = recording, idle
        slipstream = recording.snapshot and recording.snapshot.slipstream
        self._no_vaults = BACKGROUND, slipstream.gauge if slipstream else BACKGROUND
        remark = "; of Slipstream, whose rewards are not scored" if slipstream else ""
        self._blocks, self._times = block_times(recording)
        token0, token1 = (Token("", *token) for token in (recording.token0, recording.token1))
        chain_id = CHAIN_IDS.get(recording.chain, 0)
        super().__init__(
            label=f"recording {recording.name} ({recording.chain}); its block hashes are synthetic{remark}",
            pair=Pair(chain_id, recording.pool_address, token0, token1, recording.fee, recording.tick_spacing),
            pool=open_pool(recording),
            first=recording.start_block,
            last=self._blocks[-1],
            hash_key=recording.digest,
            **options,
        )
        for event in recording.events:
            self._history.append(event)
        check_final(recording, self._history.pool_before(len(recording.events)))
        self.vault = vault or self._choose_vault()
        self._purse(self.vault)

    def time_of(self, number: int) -> int:
        at = bisect_right(self._blocks, number) - 1
        block, time_ = self._blocks[at], self._times[at]
        if number == block:
            return time_
        return time_ + (number - block) * (self._times[at + 1] - time_) // (self._blocks[at + 1] - block)

    def number_at(self, time_seconds: int) -> int:
        if time_seconds > self._times[-1]:
            raise MarketEnded(f"time {time_seconds}: {self.label} ends at {self._times[-1]}")
        return self.first + bisect_left(range(self.first, self.last + 1), time_seconds, key=self.time_of)

    def _grow(self, last: int) -> None:
        """All events are there from the start."""

    def _new_purse(self, vault: str) -> Purse:
        try:
            owner, lower, upper = vault.rsplit(":", 2)
            key = owner, int(lower), int(upper)
        except ValueError:
            raise MarketError(f"vault {vault!r}: OWNER:LOWER:UPPER is expected, like 0:-199760:-196890") from None
        known = {position[:3] for position in self._recording.positions}
        known |= {event.args[:3] for event in self._recording.events if event.kind in ("mint", "unstake")}
        if key not in known or owner in self._no_vaults:
            fix = "leave the vault out for the default, or record from before it was minted"
            raise MarketError(f"vault {vault!r}: recording {self._recording.name} shows no such position; {fix}")
        return Purse(lambda args: args == key, self._idle)

    def _choose_vault(self) -> str:
        recording, pool = self._recording, open_pool(self._recording)
        until = recording.start_time + UNCHANGED * (self._times[-1] - recording.start_time)
        changed = {
            event.args[:3]
            for event in recording.events
            if event.kind in ("mint", "burn", "stake", "unstake") and event.args[3] and event.time < until
        }

        def value(key: tuple) -> int:
            bounds = (sqrt_ratio_at_tick(tick) for tick in key[1:])
            held = amounts_of(pool.positions[key].liquidity, pool.sqrt_price_x96, *bounds, round_up=False)
            return worth(held, pool.sqrt_price_x96)

        own = [key for key in pool.positions if key[0] not in self._no_vaults and key not in changed]
        fit = [key for key in own if key[1] <= pool.tick < key[2]]
        if not fit:
            fix = "name one that comes later with --vault OWNER:LOWER:UPPER, or record a longer stretch"
            raise MarketError(f"recording {recording.name}: no position in it is in range and stays; {fix}")
        return ":".join(map(str, max(fit, key=value)))


def block_times(recording: Recording) -> tuple[list[int], list[int]]:
    """The blocks whose times a recording knows, and those times; both ascending, else `MarketError`."""
    blocks, times = [recording.start_block], [recording.start_time]
    for event in recording.events:
        backwards = event.block < blocks[-1] or event.time < times[-1]
        if backwards or (event.block == blocks[-1] and event.time != times[-1]):
            before = f"block {blocks[-1]} was at time {times[-1]}"
            raise MarketError(f"{place_of(event)}: time {event.time}, but {before}; fetch the recording again")
        if event.block > blocks[-1]:
            blocks.append(event.block)
            times.append(event.time)
    return blocks, times


def open_pool(recording: Recording) -> Pool:
    """`Recording.open_pool`; raises `MarketError` where the contract would have refused its start."""
    try:
        return recording.open_pool()
    except PoolError as error:
        raise MarketError(f"the start of recording {recording.name}: {error}; fetch the recording again") from error


def check_final(recording: Recording, pool: Pool) -> None:
    """Raises `MarketError` where the pool after the last event is not what the recording says."""
    for name, expected in recording.final.items():
        if (found := getattr(pool, name)) != expected:
            where = f"after block {recording.events[-1].block}" if recording.events else "without events"
            raise MarketError(f"{where}: final {name} is {found}, the recording says {expected}; fetch it again")


def complete(recording: Recording) -> Iterator[Event]:
    """A recording's events, each with the call behind it, each digit held against the replay, to the final state.

    Raises `MarketError`, which names the block, where the stream contradicts itself.
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
