"""What a market is: the one protocol through which everything else sees a pool and its blocks, and its errors.

A market answers in plain values (`Block`, `Snapshot`, `Event`); amounts are integers of token base units.
Read next: `memory.py`.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Protocol

from liquidity.events import Event
from liquidity.executions import Execution, Order
from liquidity.replay import Snapshot
from protocol import Block, Pair
from runtime.process import UserError


class MarketError(Exception):
    """A market cannot do what was asked; the message says what, why and the fix, in one line."""


class MarketMistake(MarketError, UserError):
    """What was named is no market: no retry helps."""


class MarketGap(MarketError):
    """Some events of these blocks cannot be had, or were replaced after they had been given out."""


class MarketEnded(Exception):
    """Asked for a block beyond the end of a recording: there is nothing after it."""


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
