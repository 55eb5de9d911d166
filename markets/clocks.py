"""Market time: in lock-step with those who take part, or following a clock.

At full speed market time stands still while anybody is busy, so no network wait lets it run on.
Read next: `memory.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from markets.base import MarketError


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
        time_of: unix seconds of a block.
        last_block_by: the last block with a timestamp of at most so many unix seconds.
        first: the head at the start.
        pace: market seconds per second of the clock.
        clock: seconds, from any start.
    """

    def __init__(
        self,
        time_of: Callable[[int], int],
        last_block_by: Callable[[int], int],
        first: int,
        pace: float,
        clock: Callable[[], float],
    ):
        self._time_of, self._last_block_by, self._pace, self._clock = time_of, last_block_by, pace, clock
        self._origin = clock() - time_of(first) / pace

    def now(self) -> float:
        return (self._clock() - self._origin) * self._pace

    @property
    def head(self) -> int:
        return self._last_block_by(int(self.now()))

    @asynccontextmanager
    async def participant(self) -> AsyncIterator[None]:
        yield

    async def reach(self, number: int) -> None:
        while self.head < number:
            await asyncio.sleep(max(0.0, self._time_of(number) - self.now()) / self._pace)
