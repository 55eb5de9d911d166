"""The EVM seam: the one protocol through which everything else sees a pool and its blocks, and the recorded market.

    python market.py import PATH --out FOLDER     complete a recording: find the call behind each swap that lacks it
    python market.py record --rpc URL --pool ...  record a real pool; `recorder.py`

A market answers in plain values (`Block`, `Snapshot`, `Event`); amounts are integers of token base units. What lies in
memory, a recording or the model, is replayed on the exact pool; at full speed its time is a lock-step clock, which
stands still while anybody is busy.
Read next: `recording.py` (events and snapshots), `model.py` (the market for where no data is at hand).
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import lzma
import sys
import time
from abc import ABC, abstractmethod
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from orders import Order
from protocol import Code, Token
from recording import (
    BACKGROUND,
    Event,
    Recording,
    RecordingError,
    ReplayError,
    Snapshot,
    apply_event,
    find_call,
    read_recording,
)
from runtime import clear_progress, progress
from sim import Pool, PoolError, amounts_of, sqrt_ratio_at_tick

UNCHANGED = 0.8  # part of a recording for which the default vault's position must stay as it is (DESIGN section 3)
KEEP_EVERY_EVENTS = 10_000  # between two kept copies of a replayed pool: what a backward request costs at most
CHAIN_IDS = {"ethereum": 1, "polygon": 137, "base": 8453, "arbitrum": 42161}  # by a recording's `chain`; others 0
CALLS = ("in", "out", "limit", "?")  # what a complete recording says of a swap
CSV_HEADER = (
    "block,log_index,time,kind,how_or_owner,amount0_or_tickLower,amount1_or_tickUpper,"
    "sqrtPriceX96_or_liquidityDelta,liquidity_or_amount0,tick_or_amount1"
)


class MarketError(Exception):
    """A market cannot do what was asked; the message says what, why and the fix, in one line."""


class MarketGap(MarketError):
    """Some events of these blocks cannot be had, or were replaced after they had been given out."""


class MarketEnded(Exception):
    """Asked for a block beyond the end of a recording: there is nothing after it."""


@dataclass(frozen=True, slots=True)
class Block:
    """A block's number, time in unix seconds, and hash (0x and 64 hex digits)."""

    number: int
    time: int
    hash: str


@dataclass(frozen=True, slots=True)
class Pair:
    """What a market trades, and where; fee in pips (1e-6)."""

    chain_id: int
    pool_address: str
    token0: Token
    token1: Token
    fee: int
    tick_spacing: int


@dataclass(frozen=True, slots=True)
class Sent:
    """How a plan was carried out on a chain, or why it was not.

    Attributes:
        code: `EXECUTED`, or why nothing of the plan is on the chain; `EXECUTION_UNKNOWN` if nobody said in time.
        detail: in words.
        transaction: hash of the one that did it; empty if there is none.
        gas_used: of all transactions that were mined for it, also reverted ones.
        gas_wei: paid for that in the chain's native token, a layer 2's fee for data included.
        gas0, gas1: the same where token0 or token1 is the wrapped native one, else 0: what a live score deducts.
    """

    code: Code
    detail: str
    transaction: str
    gas_used: int
    gas_wei: int
    gas0: int
    gas1: int


@dataclass(frozen=True, slots=True)
class Execution:
    """What was asked of a vault, and what became of it; amounts are (token0, token1) in base units.

    Always `before + released + fees - paid == after`. The first five fields are enough to repeat it on the model.

    Attributes:
        block: the plan acted before this block's other events.
        vault: its name.
        keep, close: ranges (tick_lower, tick_upper) left untouched, and closed.
        mint: (tick_lower, tick_upper, amount0_max, amount1_max) as asked for.
        before, after: idle tokens.
        released, fees: what closing gave back, and paid in fees.
        paid: what the new positions took.
        minted: (tick_lower, tick_upper, liquidity) of the new positions; what would get no liquidity is left out.
        sent: on a chain; None on the model, where every plan acts at once.
    """

    block: int
    vault: str
    keep: tuple[tuple[int, int], ...]
    close: tuple[tuple[int, int], ...]
    mint: tuple[tuple[int, int, int, int], ...]
    before: tuple[int, int] = (0, 0)
    released: tuple[int, int] = (0, 0)
    fees: tuple[int, int] = (0, 0)
    paid: tuple[int, int] = (0, 0)
    after: tuple[int, int] = (0, 0)
    minted: tuple[tuple[int, int, int], ...] = ()
    sent: Sent | None = None


class Market(Protocol):
    """A pool and its blocks.

    Attributes:
        label: one line that says what this is; a model is called a model, a recording a recording.
        pair: what is traded.
        first: the first block that may be asked for.
        read_only: why `execute` does not work here; empty where it does.
        settle_seconds: of market time that an order may take at most after the answer it comes from.
        full_speed: whether market time waits for those inside `participant()` instead of following a clock.

    All methods raise `MarketEnded` for blocks beyond the end, and `MarketError`.
    """

    label: str
    pair: Pair
    first: int
    read_only: str
    settle_seconds: int
    full_speed: bool

    async def head(self) -> Block:
        """The last complete block."""

    async def now(self) -> int:
        """Market time, unix seconds: at full speed the head's, else the clock's, which may be far ahead of it."""

    async def block(self, number: int) -> Block:
        """Any block up to the head; a market in memory knows the others too."""

    async def first_block_at(self, time_seconds: int) -> Block:
        """The first block with a timestamp of at least `time_seconds`; as `block`."""

    async def reach(self, number: int) -> Block:
        """Wait until the head is at least there; returns the head.

        At full speed only inside `participant()`; the head is then exactly that block, unless it was past it before.
        """

    async def reach_time(self, time_seconds: int) -> Block:
        """`reach` for the first block with a timestamp of at least `time_seconds`."""

    async def reach_first(self, number: int, time_seconds: int) -> Block:
        """`reach` or `reach_time`, whichever comes first."""

    async def snapshot(self, vault: str, block: int) -> Snapshot:
        """Pool and vault before the first event of `block`, which is at most one above the head."""

    async def events(self, first: int, last: int) -> list[Event]:
        """The events of blocks `first` to `last`, both included; `last` is at most the head.

        A burn takes its tokens out of the pool at once: no `collect` follows for them, only for fees.
        """

    def participant(self) -> AbstractAsyncContextManager[None]:
        """Inside, a task is busy unless it waits in `reach`; see `Lockstep`."""

    async def execute(self, order: Order) -> Execution:
        """Rebalance a vault as soon as it can be done; only where not `read_only`.

        Asked again with the same `order.decision`, a chain's market says again what became of it. The model acts before
        the first event of the block after the head, each time it is asked.
        """


# ---------------------------------------------------------------------------------------------------------------------
# Clocks


class Lockstep:
    """Market time at full speed: it stands still while anybody is busy.

    A task inside `participant()` is busy; while it waits in `reach()` it is not. When nobody is busy, the head advances
    to the smallest block that is waited for, and those who wait for it wake in the order in which they came. So no
    network wait lets market time run on. A wait that is cancelled makes its task busy again until it leaves.

    One task is one participant: a task inside must not wait for other participants, or nothing would ever move; rounds
    that run side by side are tasks of their own. Tasks that start together have their first turn before the head moves.

    Attributes:
        head: the last complete block.
    """

    def __init__(self, head: int):
        self.head = head
        self._inside: set[asyncio.Task] = set()
        self._waiting: list[tuple[int, asyncio.Future]] = []

    @asynccontextmanager
    async def participant(self) -> AsyncIterator[None]:
        task = asyncio.current_task()
        if task in self._inside:
            raise MarketError("participant() inside participant(): one task is one participant; start another task")
        self._inside.add(task)
        try:
            yield
        finally:
            self._inside.remove(task)
            self._settle()

    async def reach(self, number: int) -> None:
        """Wait until the head is at least `number`.

        Raises:
            MarketError: called outside of `participant()`, where market time would not wait for the caller.
        """
        if asyncio.current_task() not in self._inside:
            raise MarketError("reach() outside of participant(): market time would not wait; enter participant() first")
        if number > self.head:
            woken = asyncio.get_running_loop().create_future()
            self._waiting.append((number, woken))
            self._settle()
            await woken

    def _settle(self) -> None:
        asyncio.get_running_loop().call_soon(self._advance)

    def _advance(self) -> None:
        # whoever was woken or cancelled is busy again at once, even before it runs
        self._waiting = [(number, woken) for number, woken in self._waiting if not woken.done()]
        if self._waiting and len(self._waiting) == len(self._inside):
            self.head = min(number for number, _ in self._waiting)
            for number, woken in self._waiting:
                if number == self.head:
                    woken.set_result(None)


class Paced:
    """Market time that follows a clock.

    Args:
        market: for the times of its blocks.
        first: the head at the start.
        pace: market seconds per second of the clock.
        clock: seconds, from any start.
    """

    def __init__(self, market: InMemoryMarket, first: int, pace: float, clock: Callable[[], float]):
        self._market, self._pace, self._clock = market, pace, clock
        self._origin = clock() - market.time_of(first) / pace

    def now(self) -> float:
        return (self._clock() - self._origin) * self._pace

    @property
    def head(self) -> int:
        return self._market.last_block_by(int(self.now()))

    @asynccontextmanager
    async def participant(self) -> AsyncIterator[None]:
        yield

    async def reach(self, number: int) -> None:
        while self.head < number:
            await asyncio.sleep(max(0.0, self._market.time_of(number) - self.now()) / self._pace)


# ---------------------------------------------------------------------------------------------------------------------
# Markets in memory


class Purse:
    """A vault's tokens outside the pool, after each of its own events.

    What a burn or collect gives goes in; a mint is paid from it as far as it reaches, the rest came from outside.

    Args:
        owns: whether (owner, tick_lower, tick_upper) is the vault's.
        idle: before the first event.
        owner: whose positions are the vault's, also those opened later; empty if the vault is just one position.
    """

    def __init__(self, owns: Callable[[tuple], bool], idle: tuple[int, int], owner: str = ""):
        self.owns, self.owner = owns, owner
        self._indices, self._amounts = [-1], [idle]

    def read(self, index: int, event: Event) -> None:
        """Take note of the next event."""
        if event.kind in ("mint", "burn", "collect") and self.owns(event.args[:3]):
            sign = -1 if event.kind == "mint" else 1
            idle = zip(self._amounts[-1], event.args[-2:], strict=True)
            self._indices.append(index)
            self._amounts.append(tuple(max(0, have + sign * amount) for have, amount in idle))

    @property
    def newest(self) -> tuple[int, int]:
        """Idle tokens after all events."""
        return self._amounts[-1]

    def before(self, index: int) -> tuple[int, int]:
        """Idle tokens before an event."""
        return self._amounts[bisect_left(self._indices, index) - 1]


class History:
    """A pool's events in order, its state before any of them, and the purses of vaults.

    A position's tokens leave the pool with the burn that releases them: only fees stay owed. A position that has
    neither liquidity nor fees is dropped.

    Args:
        pool: before the first event.
        most_events: about how many of the newest events to keep; None for all.
    """

    def __init__(self, pool: Pool, most_events: int | None = None):
        self._events: list[Event] = []
        self._blocks: list[int] = []
        self._start, self._most = 0, most_events  # index of the first event that is still here
        self._kept = [(0, pool)]
        self._pool, self._index = pool.copy(), 0
        self._purses: list[Purse] = []

    def append(self, event: Event) -> None:
        for purse in self._purses:
            purse.read(self._start + len(self._events), event)
        self._events.append(event)
        self._blocks.append(event.block)
        if self._most and len(self._events) >= self._most + KEEP_EVERY_EVENTS:
            self._forget()

    def index(self, block: int) -> int:
        """Index of the first event of this block or a later one. Raises `MarketError` where that is forgotten."""
        if self._start and block <= self._blocks[0]:
            raise MarketError(f"block {block} is forgotten: the last {self._most} events are kept, ask earlier")
        return self._start + bisect_left(self._blocks, block)

    def between(self, first: int, last: int) -> list[Event]:
        """The events of these blocks, both included."""
        return self._events[self.index(first) - self._start : self.index(last + 1) - self._start]

    def pool_before(self, index: int) -> Pool:
        """The pool before an event, to read only. Later requests go on from here, earlier ones from a kept copy.

        Raises:
            MarketError: an event contradicts the replay.
        """
        at, kept = self._kept[bisect_right(self._kept, index, key=lambda pair: pair[0]) - 1]
        if not at <= self._index <= index:
            self._pool, self._index = kept.copy(), at
        while self._index < index:
            event = self._events[self._index - self._start]
            try:
                advance(self._pool, event)
            except (ReplayError, PoolError) as error:
                raise MarketError(contradiction(event, error)) from error
            self._index += 1
            if self._index % KEEP_EVERY_EVENTS == 0:
                self._kept.append((self._index, self._pool.copy()))
        return self._pool

    def add_purse(self, purse: Purse) -> Purse:
        """Let a purse read all events, those to come too; before any are forgotten."""
        for index, event in enumerate(self._events):
            purse.read(index, event)
        self._purses.append(purse)
        return purse

    def _forget(self) -> None:
        until = self._start + KEEP_EVERY_EVENTS
        if self._kept[-1][0] < until:
            self.pool_before(until)  # leaves the copy from which the remaining events go on
        if self._index < until:
            self._pool, self._index = self._kept[1][1].copy(), until
        del self._kept[0], self._events[:KEEP_EVERY_EVENTS], self._blocks[:KEEP_EVERY_EVENTS]
        self._start = until


def advance(pool: Pool, event: Event) -> None:
    """`apply_event`, and what `History` says of burns."""
    apply_event(pool, event)
    if event.kind in ("burn", "collect"):
        key = event.args[:3]
        if event.kind == "burn":
            pool.collect(*key, *event.args[4:])
        state = pool.position(*key)
        if not (state.liquidity or state.tokens_owed0 or state.tokens_owed1):
            pool.positions.pop(key, None)


def _place(event: Event) -> str:
    return f"block {event.block} log {event.log_index}"


def contradiction(event: Event, error: Exception) -> str:
    """One line for an event that cannot have happened."""
    text = str(error).removeprefix(f"{_place(event)}: ")
    return f"{_place(event)}: {text}; the stream lacks an event before it, or is not this pool's: fetch it again"


class InMemoryMarket(ABC):
    """What the recorded market and the model share: a history, vaults' purses, and a clock. Implements `Market`.

    Args:
        label, pair: see `Market`.
        pool: before the first event.
        first, last: the blocks there are; `last` is None where the market goes on for ever.
        head: the last complete block at the start; None for `first`.
        most_events: see `History`.
        hash_key: block hashes are sha256(`hash_key`:number), nobody's real hash.
        pace: market seconds per second of `clock`; None for full speed.
        clock: seconds, for a pace.
    """

    read_only = "what happened has happened"
    settle_seconds = 0

    def __init__(
        self,
        label: str,
        pair: Pair,
        pool: Pool,
        first: int,
        hash_key: str,
        last: int | None = None,
        most_events: int | None = None,
        head: int | None = None,
        pace: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        head = first if head is None else head
        if head < first or (last is not None and head > last):
            raise MarketError(f"head {head}: the market has blocks {first} to {last or 'infinity'}")
        if pace is not None and not pace > 0:
            raise MarketError(f"pace {pace}: market seconds per second, above 0; leave it out for full speed")
        self.label, self.pair, self.first, self.last, self.full_speed = label, pair, first, last, pace is None
        self._history = History(pool, most_events)
        self._purses: dict[str, Purse] = {}
        self._hash_key = hash_key
        self._clock = Lockstep(head) if pace is None else Paced(self, head, pace, clock)

    @abstractmethod
    def time_of(self, number: int) -> int:
        """Unix seconds of a block that there is; monotonic."""

    @abstractmethod
    def number_at(self, time_seconds: int) -> int:
        """The first block with a timestamp of at least `time_seconds`. Raises `MarketEnded` if there is none."""

    @abstractmethod
    def _new_purse(self, vault: str) -> Purse:
        """A purse for a vault that was not asked for before. Raises `MarketError` for an unknown vault."""

    @abstractmethod
    def _grow(self, last: int) -> None:
        """See to it that the history has all events up to the block `last`."""

    def last_block_by(self, time_seconds: int) -> int:
        """The last block with a timestamp of at most `time_seconds`, the first one if there is none."""
        try:
            return max(self.first, self.number_at(time_seconds + 1) - 1)
        except MarketEnded:
            return self.last

    async def head(self) -> Block:
        return await self.block(self._clock.head)

    async def now(self) -> int:
        return self.time_of(self._clock.head) if isinstance(self._clock, Lockstep) else int(self._clock.now())

    async def block(self, number: int) -> Block:
        if self.last is not None and number > self.last:
            raise MarketEnded(f"block {number}: {self.label} ends with block {self.last}")
        if number < self.first:
            raise MarketError(f"block {number}: {self.label} begins with block {self.first}")
        return Block(
            number, self.time_of(number), "0x" + hashlib.sha256(f"{self._hash_key}:{number}".encode()).hexdigest()
        )

    async def first_block_at(self, time_seconds: int) -> Block:
        return await self.block(self.number_at(time_seconds))

    async def reach(self, number: int) -> Block:
        await self.block(number)
        await self._clock.reach(number)
        return await self.head()

    async def reach_time(self, time_seconds: int) -> Block:
        return await self.reach(self.number_at(time_seconds))

    async def reach_first(self, number: int, time_seconds: int) -> Block:
        with suppress(MarketEnded):
            number = min(number, self.number_at(time_seconds))
        return await self.reach(number)

    def participant(self) -> AbstractAsyncContextManager[None]:
        return self._clock.participant()

    async def events(self, first: int, last: int) -> list[Event]:
        self._see(last)
        return self._history.between(first, last)

    async def snapshot(self, vault: str, block: int) -> Snapshot:
        self._see(block - 1)
        at = await self.block(block)
        purse, index = self._purse(vault), self._history.index(block)
        pool = self._history.pool_before(index)
        keys = [key for key in pool.positions if purse.owns(key)]
        return Snapshot.of(pool, keys, purse.before(index), block, at.time, at.hash, purse.owner)

    async def execute(self, order: Order) -> Execution:
        raise MarketError(f"{self.label} cannot be changed: {self.read_only}")

    def _purse(self, vault: str) -> Purse:
        if vault not in self._purses:
            self._purses[vault] = self._history.add_purse(self._new_purse(vault))
        return self._purses[vault]

    def _see(self, block: int) -> None:
        if block > self._clock.head:
            raise MarketError(f"block {block} is above the head {self._clock.head}: reach it first")
        self._grow(block)


# ---------------------------------------------------------------------------------------------------------------------
# A recording as a market


class RecordedMarket(InMemoryMarket):
    """A recording, block by block.

    It has no vault and no block hashes of its own. A vault is one recorded position, named `OWNER:LOWER:UPPER`; what a
    recorded burn of it releases goes to idle, a recorded mint is paid from there as far as it reaches. Block times are
    interpolated between the blocks that have events, rounded down.

    Args:
        recording: with the call of every swap.
        vault: the name of a vault; None for the most valuable position that is in range at the start and unchanged for
            at least `UNCHANGED` of the recording's time.
        idle: every vault's tokens outside the pool at the start, base units.
        head, pace, clock: see `InMemoryMarket`.

    Attributes:
        vault: the name of the vault. Others may be asked for as well.

    Raises:
        MarketError: the replay contradicts the events or the final state, a swap's call is not known, or there is no
            such vault.
    """

    def __init__(
        self,
        recording: Recording,
        vault: str | None = None,
        idle: tuple[int, int] = (0, 0),
        **options,
    ):
        if min(idle) < 0:
            raise MarketError(f"idle {idle[0]},{idle[1]}: token amounts in base units, 0 or more")
        for event in recording.events:
            if event.kind == "swap" and not event.args[0]:
                fix = "complete the recording: python market.py import PATH --out FOLDER"
                raise MarketError(f"{_place(event)}: the call of this swap is not known; {fix}")
        self._recording, self._idle = recording, idle
        self._blocks, self._times = block_times(recording)
        token0, token1 = (Token("", *token) for token in (recording.token0, recording.token1))
        chain_id = CHAIN_IDS.get(recording.chain, 0)
        super().__init__(
            label=f"recording {recording.name} ({recording.chain}); its block hashes are synthetic",
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
        known |= {event.args[:3] for event in self._recording.events if event.kind == "mint"}
        if key not in known or owner == BACKGROUND:
            raise MarketError(
                f"vault {vault!r}: recording {self._recording.name} shows no such position; leave the vault out for the"
                " default, or record from before it was minted"
            )
        return Purse(lambda args: args == key, self._idle)

    def _choose_vault(self) -> str:
        recording, pool = self._recording, open_pool(self._recording)
        until = recording.start_time + UNCHANGED * (self._times[-1] - recording.start_time)
        changed = {
            event.args[:3]
            for event in recording.events
            if event.kind in ("mint", "burn") and event.args[3] and event.time < until
        }

        def value(key: tuple) -> int:
            bounds = (sqrt_ratio_at_tick(tick) for tick in key[1:])
            amount0, amount1 = amounts_of(pool.positions[key].liquidity, pool.sqrt_price_x96, *bounds, round_up=False)
            return amount0 * pool.sqrt_price_x96**2 + (amount1 << 192)

        fit = [k for k in pool.positions if k[0] != BACKGROUND and k not in changed and k[1] <= pool.tick < k[2]]
        if not fit:
            raise MarketError(
                f"recording {recording.name}: no position in it is in range and stays; name one that comes later with"
                " --vault OWNER:LOWER:UPPER, or record a longer stretch"
            )
        return ":".join(map(str, max(fit, key=value)))


def block_times(recording: Recording) -> tuple[list[int], list[int]]:
    """The blocks whose times a recording knows, and those times; both ascending.

    Raises:
        MarketError: time runs backwards, or one block has two times.
    """
    blocks, times = [recording.start_block], [recording.start_time]
    for event in recording.events:
        if (
            event.block < blocks[-1]
            or event.time < times[-1]
            or (event.block == blocks[-1] and event.time != times[-1])
        ):
            before = f"block {blocks[-1]} was at time {times[-1]}"
            raise MarketError(f"{_place(event)}: time {event.time}, but {before}; fetch the recording again")
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


# ---------------------------------------------------------------------------------------------------------------------
# Completing a recording


def complete(recording: Recording) -> Iterator[Event]:
    """A recording's events, each with the call behind it, each digit held against the replay, to the final state.

    Raises:
        MarketError: the stream contradicts itself; names the block.
    """
    block_times(recording)
    pool = open_pool(recording)
    for event in recording.events:
        try:
            if event.kind == "swap" and not event.args[0]:
                event = event._replace(args=(find_call(pool, event), *event.args[1:]))
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


def main(argv: list[str] | None = None) -> int:
    """`python market.py import PATH --out FOLDER`; exit code 0: written, 1: contradicts itself, 2: cannot be read."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["record"]:
        from recorder import main as record_main  # it needs web3, which takes seconds to import

        return record_main(argv[1:])
    parser = argparse.ArgumentParser(prog="market.py", description="Recorded markets.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("record", help="fetch a stretch of a real pool's life from a chain (record --help)")
    verb = verbs.add_parser("import", help="find the call behind each swap that lacks it, and check every digit")
    verb.add_argument("path", help="path of a recording, without its endings")
    verb.add_argument("-o", "--out", required=True, type=Path, metavar="FOLDER", help="where the completed one goes")
    options = parser.parse_args(argv)
    events = []
    try:
        recording = read_recording(options.path)
        source, target = Path(options.path).parent / recording.name, options.out / recording.name
        if not options.out.is_dir():
            raise RecordingError(f"--out {options.out}: no such folder; create it or choose another")
        if source.parent.resolve() == options.out.resolve():
            raise RecordingError(f"--out {options.out}: the recording itself is there; choose another folder")
        for event in complete(recording):
            events.append(event)
            progress(len(events), len(recording.events), "events")
        write_recording(target, Path(f"{source}.json").read_bytes(), events)
    except MarketError as error:
        clear_progress()
        print(f"{recording.name}: {error}", file=sys.stderr)
        return 1
    except RecordingError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{target}: {error.strerror}; choose another --out", file=sys.stderr)
        return 2
    calls = Counter(event.args[0] for event in events if event.kind == "swap")
    found = sum(event.kind == "swap" and not event.args[0] for event in recording.events)
    print(f"{recording.name}: {calls.total()} swaps, {len(events) - calls.total()} mints and burns, every digit agrees")
    print(f"calls: {', '.join(f'{how} {calls[how]}' for how in CALLS)}; {found} of them found now")
    print(f"written to {target}.json and {target}.events.csv.xz")
    return 0


if __name__ == "__main__":
    sys.exit(main())
