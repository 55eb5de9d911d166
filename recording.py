"""What a chain recorded of a pool: events, the calls behind them, and whole recordings with their replay.

    python sim.py replay ../shared/data/arbitrum_weth_usdt_500_2025-06-27_07-01     # every digit of five days of swaps

An event tells what happened, not what was asked for. `apply_event` makes the call again on an exact pool and holds
every digit against the event, so a missing, doubled or foreign event is found where it matters.
Pure but for `read_recording()` and `main()`, which read files. Read next: `books.py`.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import lzma
import sys
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from protocol import LEFT_OUT, Amount, SqrtPrice, Word
from sim import MAX_SQRT_RATIO, MAX_TICK, MIN_SQRT_RATIO, PIPS, Pool, PoolError, PositionState, SlipstreamPool


class ReplayError(Exception):
    """An event contradicts the replay: the stream has a gap, or is not this pool's. Names the block and the digits."""

    def __init__(self, event: Event, what: str, expected, found):
        super().__init__(
            f"block {event.block} log {event.log_index}: {event.kind} {what} is {found}, the event says {expected}"
        )
        self.event, self.what, self.expected, self.found = event, what, expected, found


class Event(NamedTuple):
    """One event of a pool.

    Attributes:
        block, log_index, time: where and when; time in unix seconds.
        kind: with the meaning of `args`
            `swap`: how, amount0, amount1, sqrt_price_x96, liquidity, tick (all after). `how` is the call behind it:
            `in` exact input, `out` exact output, `limit` more input than needed and a price limit at the event's price,
            `?` unknown for good (take the event's state over), `` not known yet. On Slipstream also fee, unstaked_fee:
            what the factory asked for at that swap, in pips.
            `mint`, `burn`: owner, tick_lower, tick_upper, liquidity, amount0, amount1. On Slipstream those of the gauge
            stake what they mint, and take from the stake what they burn.
            `flash`: amount0, amount1, paid0, paid1 (above the loan). On Slipstream also unstaked_fee, pips.
            `set_fee_protocol`: fee_protocol0, fee_protocol1. `collect_protocol`: amount0, amount1.
            `collect`: owner, tick_lower, tick_upper, amount0, amount1.
            `stake`, `unstake` (Slipstream): owner, tick_lower, tick_upper, liquidity: from the owner's position to the
            gauge's and back; the owner is the position manager, or whose token it is.
            `collect_fees` (Slipstream): amount0, amount1 that the gauge was paid.
    """

    block: int
    log_index: int
    time: int
    kind: str
    args: tuple


def swap_call(event: Event, how: str, before_x96: int = 0) -> tuple[bool, int, int]:
    """The call behind a swap event, were it of the kind `in`, `out` or `limit`: arguments for `Pool.swap`.

    The event tells the result, not the call, and the last unit of the fee depends on the call (v3-core issue 501).
    Where there is no liquidity nothing is paid: then only the price before, if given, tells the direction.
    """
    amount0, amount1, sqrt_price_x96 = event.args[1:4]
    zero_for_one = amount0 > 0 or amount1 < 0 or (not amount0 and not amount1 and sqrt_price_x96 < before_x96)
    if how == "limit":
        return zero_for_one, 2 * (amount0 if zero_for_one else amount1) + 1, sqrt_price_x96
    amount = amount0 if zero_for_one == (how == "in") else amount1
    return zero_for_one, amount, MIN_SQRT_RATIO + 1 if zero_for_one else MAX_SQRT_RATIO - 1


class _CopiedOnRead(list):
    """Ticks for a trial swap: whatever it looks at, and may cross, is a copy from then on."""

    def __getitem__(self, at):
        mark = self[at] = copy.copy(super().__getitem__(at))
        return mark


def find_call(pool: Pool, event: Event) -> str:
    """Which call a swap event came from, found by trying each; the pool stays as it is.

    Exact output comes before a price limit: a limit at the right price explains every exact output too.

    Raises:
        ReplayError: none of them gives the event's digits.
    """
    found = "refused"
    for how in ("in", "out", "limit"):
        tried = _try_swap(pool, *swap_call(event, how, pool.sqrt_price_x96))
        if _is_result(event, *tried):
            return how
        found = (*tried[1], tried[0].sqrt_price_x96, tried[0].liquidity) if tried[1] else found
    raise ReplayError(event, "(by any call)", event.args[1:], found)


def find_call_and_fee(pool: SlipstreamPool, event: Event, likely: Iterable[int] = ()) -> tuple[str, int]:
    """As `find_call`, and at which fee: on Slipstream it may change at any swap, and the event does not tell.

    Tried are the pool's fee, the likely ones, what the event's input is above that of the same move without a fee, and
    then all, by halving: with a higher fee the same input moves the price less, and the same move takes more input.
    Where several fees give the event's digits, which only happens to swaps of few units, the first one found is taken.

    Args:
        pool: in the state before the event; it stays as it is.
        event: a swap.
        likely: fees in pips, the likeliest first.

    Raises:
        ReplayError: no call at any fee gives the event's digits.
    """
    amount0, amount1, sqrt_price_x96 = event.args[1:4]
    side = 0 if amount0 > 0 or amount1 < 0 else 1
    paid = event.args[1 + side]
    fees, calls = [pool.fee, *likely], ("in", "out", "limit")
    _, free = _try_swap(pool, *swap_call(event, "limit", pool.sqrt_price_x96), fee=0)
    if free and paid:
        read_off = (paid - free[side]) * PIPS // paid
        fees += [read_off, read_off - 1, read_off + 1]
    for fee in dict.fromkeys(fee for fee in fees if 0 <= fee < PIPS):
        for how in calls:
            if _is_result(event, *_try_swap(pool, *swap_call(event, how, pool.sqrt_price_x96), fee=fee)):
                return how, fee

    def too_high(fee: int, how: str) -> bool:
        """Or just right."""
        fork, amounts = _try_swap(pool, *swap_call(event, how, pool.sqrt_price_x96), fee=fee)
        if how != "in" or not amounts:
            return not amounts or amounts[side] >= paid
        return fork.sqrt_price_x96 >= sqrt_price_x96 if side == 0 else fork.sqrt_price_x96 <= sqrt_price_x96

    for how in calls:
        fee = bisect_left(range(PIPS - 1), True, key=lambda fee, how=how: too_high(fee, how))
        if _is_result(event, *_try_swap(pool, *swap_call(event, how, pool.sqrt_price_x96), fee=fee)):
            return how, fee
    raise ReplayError(event, "(by any call at any fee)", event.args[1:6], "another")


def _try_swap(pool: Pool, *call, fee: int | None = None) -> tuple[Pool, tuple[int, int] | None]:
    """What a swap would make of the pool, and its amounts; None where it would be refused."""
    fork = copy.copy(pool)  # a swap changes numbers, and ticks: all else may be shared
    fork.legs, fork._marks = None, _CopiedOnRead(pool._marks)
    if fee is not None:
        fork.set_fees(fee, pool.unstaked_fee)
    try:
        return fork, fork.swap(*call)
    except PoolError:
        return fork, None


def _is_result(event: Event, after: Pool, amounts: tuple[int, int] | None) -> bool:
    """Whether a swap's amounts and the pool after it are the event's."""
    found = amounts and (*amounts, after.sqrt_price_x96, after.liquidity)
    return found == event.args[1:5] and after.stands_at(event.args[5])


def apply_event(pool: Pool, event: Event, accounts: Collection[tuple] | None = None) -> None:
    """Advance a pool by one event and hold every digit of the result against it.

    Args:
        pool: in the state before the event.
        event: the next one.
        accounts: the positions (owner, tick_lower, tick_upper) that the pool knows; None for all. Of others only the
            liquidity is followed: a snapshot of a chain has every tick but not every position.

    Raises:
        ReplayError: the first thing that differs.
        PoolError: the contract would have refused the call.
    """
    kind, args = event.kind, event.args
    slipstream = isinstance(pool, SlipstreamPool)
    if kind == "swap":
        how, amount0, amount1, sqrt_price_x96, liquidity, tick, *fees = args
        if fees:
            _set_fees(pool, event, *fees)
        if how == "?":
            pool.jump(sqrt_price_x96, tick, liquidity)
            return
        if how == "in":
            found = (
                pool.swap(True, amount0, MIN_SQRT_RATIO + 1)
                if amount0 > 0
                else pool.swap(False, amount1, MAX_SQRT_RATIO - 1)
            )
        else:
            found = pool.swap(*swap_call(event, how or find_call(pool, event), pool.sqrt_price_x96))
        if pool.sqrt_price_x96 != sqrt_price_x96:
            raise ReplayError(event, "sqrt_price_x96", sqrt_price_x96, pool.sqrt_price_x96)
        if found != (amount0, amount1):
            raise ReplayError(event, "amounts", (amount0, amount1), found)
        if pool.liquidity != liquidity:
            raise ReplayError(event, "liquidity", liquidity, pool.liquidity)
        if not pool.stands_at(tick):
            raise ReplayError(event, "tick", tick, pool.tick)
    elif kind == "mint" or kind == "burn":
        owner, tick_lower, tick_upper, amount, amount0, amount1 = args
        if accounts is None or (owner, tick_lower, tick_upper) in accounts:
            found = (pool.mint if kind == "mint" else pool.burn)(owner, tick_lower, tick_upper, amount)
        elif kind == "mint":
            found = pool.change_liquidity(tick_lower, tick_upper, amount)
        else:
            released0, released1 = pool.change_liquidity(tick_lower, tick_upper, -amount) if amount else (0, 0)
            found = (-released0, -released1)
        if found != (amount0, amount1):
            raise ReplayError(event, "amounts", (amount0, amount1), found)
        if slipstream and owner == pool.gauge and amount:
            pool.stake(amount if kind == "mint" else -amount, tick_lower, tick_upper, False)
    elif slipstream and kind == "flash":  # which part of it was the fee changes nothing
        amount0, amount1, paid0, paid1, *unstaked_fee = args
        fee = pool.fee
        _set_fees(pool, event, 0, *(unstaked_fee or [pool.unstaked_fee]))
        pool.flash(amount0, amount1, paid0, paid1)
        pool.set_fees(fee, pool.unstaked_fee)
    elif slipstream and kind in ("stake", "unstake"):
        owner, tick_lower, tick_upper, amount = args
        everybody = accounts is None
        pool.stake(amount if kind == "stake" else -amount, tick_lower, tick_upper, everybody)
        if not everybody and kind == "unstake" and args[:3] in accounts:  # it earned no fees meanwhile
            inside = pool.fee_growth_inside(tick_lower, tick_upper)
            pool.position(owner, tick_lower, tick_upper).settle(*inside, earns=False)
    elif slipstream and kind == "collect_fees":
        found = pool.collect_fees()
        if any(paid != told and (paid, told) != (1, 0) for paid, told in zip(found, args, strict=True)):
            raise ReplayError(event, "amounts", args, found)  # some versions tell of a lone unit, which stays
    elif kind == "flash":
        amount0, amount1, paid0, paid1 = args
        fee0, fee1 = (-(-amount * pool.fee // PIPS) for amount in (amount0, amount1))
        pool.flash(amount0, amount1, paid0 - fee0, paid1 - fee1)
    elif kind == "set_fee_protocol":
        pool.set_fee_protocol(*args)
    elif kind == "collect_protocol":
        if (found := pool.collect_protocol(*args)) != args:
            raise ReplayError(event, "amounts", args, found)
    elif kind == "collect":
        if (accounts is None or args[:3] in accounts) and (found := pool.collect(*args)) != args[3:]:
            raise ReplayError(event, "amounts", args[3:], found)
    else:
        raise ReplayError(event, "kind", "one this program knows", kind)


def _set_fees(pool: Pool, event: Event, fee: int, unstaked_fee: int) -> None:
    """What Slipstream's factory answered at an event."""
    if not (isinstance(pool, SlipstreamPool) and 0 <= fee < PIPS and 0 <= unstaked_fee <= PIPS):
        raise ReplayError(event, "fees", (fee, unstaked_fee), "none that this pool can have")
    if (pool.fee, pool.unstaked_fee) != (fee, unstaked_fee):
        pool.set_fees(fee, unstaked_fee)


# ---------------------------------------------------------------------------------------------------------------------
# Snapshots


@dataclass(frozen=True, slots=True)
class TickState:
    """One initialised tick; see `sim.Tick`, and for `staked_liquidity_net` `sim.SlipstreamTick`."""

    index: int
    liquidity_gross: Amount
    liquidity_net: str  # signed, decimal
    fee_growth_outside0_x128: Word
    fee_growth_outside1_x128: Word
    staked_liquidity_net: str | None = field(default=None, metadata=LEFT_OUT)  # signed, decimal


@dataclass(frozen=True, slots=True)
class VaultPosition:
    """One of the vault's positions in the pool; see `sim.PositionState`.

    Attributes:
        staked: True where Slipstream's gauge holds it, whose positions earn no fees; else None.
    """

    owner: str
    tick_lower: int
    tick_upper: int
    liquidity: Amount
    fee_growth_inside0_last_x128: Word
    fee_growth_inside1_last_x128: Word
    tokens_owed0: Amount
    tokens_owed1: Amount
    staked: bool | None = field(default=None, metadata=LEFT_OUT)

    @property
    def key(self) -> tuple[str, int, int]:
        return self.owner, self.tick_lower, self.tick_upper


@dataclass(frozen=True, slots=True)
class SlipstreamState:
    """What a Slipstream pool has besides; see `sim.SlipstreamPool`. Rewards are not scored, and not here.

    Attributes:
        manager, gauge: the owners of those positions that have tokens, and of those that are staked.
        unstaked_fee: pips, as the factory answers at the snapshot.
        staked_liquidity, gauge_fees0, gauge_fees1: the pool's.
    """

    manager: str
    gauge: str
    unstaked_fee: int
    staked_liquidity: Amount
    gauge_fees0: Amount
    gauge_fees1: Amount


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A pool and a vault before the first event of a block: all that a round starts from.

    Attributes:
        block, block_time, block_hash: the block that comes next; the hash is synthetic for recordings.
        fee, tick_spacing, fee_protocol0, fee_protocol1, sqrt_price_x96, tick, liquidity,
            fee_growth_global0_x128, fee_growth_global1_x128, ticks: the pool.
        vault: the vault's positions, in the order in which miners are shown them.
        idle0, idle1: the vault's tokens outside the pool, base units.
        vault_owner: whose positions are the vault's, also those opened later; empty if only the listed ones are.
        slipstream: what a Slipstream pool has besides; None for Uniswap's. Its `fee` is what the factory answers at the
            snapshot; each swap says its own.
    """

    block: int
    block_time: int
    block_hash: str
    fee: int
    tick_spacing: int
    fee_protocol0: int
    fee_protocol1: int
    sqrt_price_x96: SqrtPrice
    tick: int
    liquidity: Amount
    fee_growth_global0_x128: Word
    fee_growth_global1_x128: Word
    ticks: tuple[TickState, ...]
    vault: tuple[VaultPosition, ...]
    idle0: Amount
    idle1: Amount
    vault_owner: str = ""
    slipstream: SlipstreamState | None = field(default=None, metadata=LEFT_OUT)

    @classmethod
    def of(
        cls,
        pool: Pool,
        vault_keys: Sequence[tuple],
        idle: tuple[int, int],
        block: int,
        block_time: int,
        block_hash: str,
        vault_owner: str = "",
    ) -> Snapshot:
        """Take a pool's state; `vault_keys` are the vault's positions in it, those without liquidity are left out."""
        held = [(key, pool.positions[key]) for key in vault_keys if key in pool.positions]
        slipstream = isinstance(pool, SlipstreamPool)
        return cls(
            block=block,
            block_time=block_time,
            block_hash=block_hash,
            fee=pool.fee,
            tick_spacing=pool.tick_spacing,
            fee_protocol0=pool.fee_protocol[0],
            fee_protocol1=pool.fee_protocol[1],
            sqrt_price_x96=pool.sqrt_price_x96,
            tick=pool.tick,
            liquidity=pool.liquidity,
            fee_growth_global0_x128=pool.fee_growth_global0_x128,
            fee_growth_global1_x128=pool.fee_growth_global1_x128,
            ticks=tuple(
                TickState(
                    index,
                    mark.liquidity_gross,
                    str(mark.liquidity_net),
                    mark.fee_growth_outside0_x128,
                    mark.fee_growth_outside1_x128,
                    str(mark.staked_liquidity_net) if slipstream else None,
                )
                for index, mark in sorted(pool.ticks.items())
            ),
            vault=tuple(
                VaultPosition(
                    str(key[0]),
                    *key[1:],
                    state.liquidity,
                    state.fee_growth_inside0_last_x128,
                    state.fee_growth_inside1_last_x128,
                    state.tokens_owed0,
                    state.tokens_owed1,
                )
                for key, state in held
                if state.liquidity
            ),
            idle0=idle[0],
            idle1=idle[1],
            vault_owner=vault_owner,
            slipstream=SlipstreamState(
                str(pool.nft),
                str(pool.gauge),
                pool.unstaked_fee,
                pool.staked_liquidity,
                pool.gauge_fees0,
                pool.gauge_fees1,
            )
            if slipstream
            else None,
        )

    def open(self) -> Pool:
        """A pool in this state, which knows the vault's positions and no others."""
        known = self.slipstream
        pool = Pool(self.fee, self.tick_spacing)
        if known:
            pool = SlipstreamPool(self.fee, self.tick_spacing, known.unstaked_fee, known.manager, known.gauge)
        pool.initialize(self.sqrt_price_x96)
        if self.fee_protocol0 or self.fee_protocol1:
            pool.set_fee_protocol(self.fee_protocol0, self.fee_protocol1)
        pool.load_ticks(
            self.tick,
            self.liquidity,
            self.fee_growth_global0_x128,
            self.fee_growth_global1_x128,
            [
                (
                    t.index,
                    t.liquidity_gross,
                    int(t.liquidity_net),
                    t.fee_growth_outside0_x128,
                    t.fee_growth_outside1_x128,
                )
                for t in self.ticks
            ],
        )
        if known:
            pool.staked_liquidity = known.staked_liquidity
            pool.gauge_fees0, pool.gauge_fees1 = known.gauge_fees0, known.gauge_fees1
            for t in self.ticks:
                pool.ticks[t.index].staked_liquidity_net = int(t.staked_liquidity_net)
        for position in self.vault:
            state = pool.positions[position.key] = PositionState()
            state.liquidity = position.liquidity
            state.fee_growth_inside0_last_x128 = position.fee_growth_inside0_last_x128
            state.fee_growth_inside1_last_x128 = position.fee_growth_inside1_last_x128
            state.tokens_owed0, state.tokens_owed1 = position.tokens_owed0, position.tokens_owed1
        return pool


# ---------------------------------------------------------------------------------------------------------------------
# Recordings


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
        pool = Pool(self.fee, self.tick_spacing)
        pool.initialize(self.sqrt_price_x96)
        if any(self.fee_protocol):
            pool.set_fee_protocol(*self.fee_protocol)
        for position in self.positions:
            pool.mint(*position)
        return pool


class RecordingError(Exception):
    """A recording cannot be read; the message names file, line and fix."""


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
        positions = [(BACKGROUND, int(lower), int(upper), int(amount)) for lower, upper, amount in meta["background"]]
        positions += [
            (str(owner), int(lower), int(upper), int(amount)) for owner, lower, upper, amount in meta["preexisting"]
        ]
        fee, tick_spacing = int(meta["fee"]), int(meta["tickSpacing"])
        if not (0 <= fee < PIPS and 0 < tick_spacing <= MAX_TICK):
            raise ValueError(f"fee {fee} and tickSpacing {tick_spacing} are no pool's")
        tokens = [
            (symbol, int(decimals.rstrip(")")))
            for symbol, decimals in (meta[t].split(" (") for t in ("token0", "token1"))
        ]
        hasher, share, found = hashlib.sha256(description), {}, []
        for number, line in enumerate(table, 1):
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
    except (AttributeError, KeyError, TypeError, ValueError) as error:
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
        RecordingError: a file is missing, damaged or not of the format.
    """
    stem = Path(path)
    for suffix in (".json", ".xz", ".csv", ".events"):
        stem = stem.with_suffix("") if stem.suffix == suffix else stem
    description, packed, plain = (Path(f"{stem}{end}") for end in (".json", ".events.csv.xz", ".events.csv"))
    try:
        with lzma.open(packed) if packed.exists() else plain.open("rb") as table:
            return parse_recording(stem.name, description.read_bytes(), table)
    except FileNotFoundError as error:
        raise RecordingError(
            f"recording {path}: {error.filename} does not exist; name a recording without its endings"
        ) from error
    except (OSError, lzma.LZMAError, EOFError) as error:
        raise RecordingError(f"recording {path}: {error}; fetch the file again") from error


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
            apply_event(pool, event)
        except PoolError as error:
            raise ReplayError(event, "call", "accepted", f"refused ({error})") from error
        progress(number, len(recording.events), "events")
    return pool


def main(argv: list[str] | None = None) -> int:
    """`python sim.py replay RECORDING`; exit code 0 when every digit agrees, 1 when one does not, 2 when unreadable."""
    from runtime import clear_progress, progress  # of the shell: for this command alone

    parser = argparse.ArgumentParser(prog="sim.py", description="Replay a recorded pool through the exact simulator.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser(
        "replay", help="exit 0 when every digit of the recording agrees, else 1 with the first that does not"
    )
    verb.add_argument("recording", help="path of a recording, without its endings")
    options = parser.parse_args(argv)
    try:
        recording = read_recording(options.recording)
    except RecordingError as error:
        print(error, file=sys.stderr)
        return 2
    try:
        pool = replay(recording, progress)
    except (ReplayError, PoolError) as error:
        clear_progress()
        print(f"{recording.name}: {error}", file=sys.stderr)
        return 1
    wrong = {k: (getattr(pool, k), v) for k, v in recording.final.items() if getattr(pool, k) != v}
    for name, (found, expected) in wrong.items():
        print(f"{recording.name}: final {name} is {found}, the recording says {expected}", file=sys.stderr)
    if wrong:
        return 1
    kinds = Counter(event.kind for event in recording.events)
    unknown = sum(event.kind == "swap" and event.args[0] == "?" for event in recording.events)
    print(
        f"{recording.name}: {kinds['swap']} swaps ({unknown} of unknown call, taken over),"
        f" {kinds['mint']} mints, {kinds['burn']} burns"
    )
    print(
        "every price, tick, liquidity and amount equals the recorded one; final state: "
        + ", ".join(f"{k} {v}" for k, v in recording.final.items())
    )
    return 0
