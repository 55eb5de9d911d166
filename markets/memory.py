"""What markets in memory share: a history that is replayed on the exact pool, vaults' purses, and a clock.

Read first: `base.py`. Read next: `recordings.py`, `model.py`.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from bisect import bisect_left, bisect_right
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress

from liquidity.events import OWN_KINDS, Event, ReplayError, idle_after
from liquidity.executions import Execution, Order
from liquidity.replay import Snapshot, apply_event
from markets.base import MarketEnded, MarketError
from protocol import Block, Pair
from sim import Pool, PoolError
from wire.codec import digest

KEEP_EVERY_EVENTS = 10_000  # between two kept copies of a replayed pool: what a backward request costs at most


class Lockstep:
    """Market time at full speed: it stands still while anybody is busy.

    A task inside `participant()` is busy; while it waits in `reach()` it is not. When nobody is busy, the head advances
    to the smallest block that is waited for, and those who wait for it wake in the order in which they came. So no
    network wait lets market time run on. A wait that is cancelled makes its task busy again until it leaves.

    One task is one participant: a task inside must not wait for other participants, or nothing would ever move; rounds
    that run side by side are tasks of their own. Tasks that start together have their first turn before the head moves.
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
        """Wait until the head is at least `number`."""
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
    """A market's time that follows a clock, from the block `first` on; see `InMemoryMarket`."""

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


class Purse:
    """A vault's tokens outside the pool, after each of its own events.

    Args:
        owns: whether (owner, tick_lower, tick_upper) is the vault's.
        idle: before the first event.
        owner: see `Snapshot.vault_owner`.
    """

    def __init__(self, owns: Callable[[tuple], bool], idle: tuple[int, int], owner: str = ""):
        self.owns, self.owner = owns, owner
        self._indices, self._amounts = [-1], [idle]

    def read(self, index: int, event: Event) -> None:
        """Take note of the next event."""
        if event.kind in OWN_KINDS and self.owns(event.args[:3]):
            self._indices.append(index)
            self._amounts.append(idle_after(self._amounts[-1], event))

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

        Raises `MarketError` where an event contradicts the replay.
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


def place_of(event: Event) -> str:
    return f"block {event.block} log {event.log_index}"


def contradiction(event: Event, error: Exception) -> str:
    """One line for an event that cannot have happened."""
    text = str(error).removeprefix(f"{place_of(event)}: ")
    return f"{place_of(event)}: {text}; the stream lacks an event before it, or is not this pool's: fetch it again"


class InMemoryMarket(ABC):
    """What the recorded market and the model share: a history, vaults' purses, and a clock. Implements `Market`.

    Args:
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
        return Block(number, self.time_of(number), "0x" + digest(f"{self._hash_key}:{number}".encode()))

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
