"""Where reading a pool has come to, and its events made again on an exact pool, which finds the call behind each swap.

Of a Slipstream pool no log tells the fees. A swap's is found with its call. What the gauge takes of unstaked fees is
asked at a chunk's end: its place is found as the one that makes the contract's state.
Read next: `reading.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from evm.abi import Malformed
from evm.manager import NamedToken
from evm.pool import State
from evm.rpc import Endpoint
from liquidity.calls import find_call, find_call_and_fee
from liquidity.events import Event
from liquidity.replay import apply_event
from liquidity.slipstream import SlipstreamPool
from protocol import Block
from sim import Pool


@dataclass(slots=True)
class Tip:
    """Where reading has come to: the last block, the pool after it, and what the next events need.

    Attributes:
        block: the last one read.
        pool: replayed; it knows all ticks and no positions.
        released: by position: tokens that its burns released and no collect has paid.
        tokens: the vaults', by id.
    """

    block: Block
    pool: Pool
    released: dict[tuple, tuple[int, int]] = field(default_factory=dict)
    tokens: dict[int, NamedToken] = field(default_factory=dict)

    def copy(self) -> Tip:
        return Tip(self.block, self.pool.copy(), dict(self.released), dict(self.tokens))


@dataclass(slots=True)
class Draft:
    """What was read beyond the tip and is not committed."""

    tip: Tip
    events: list[Event] = field(default_factory=list)
    blocks: dict[int, Block] = field(default_factory=dict)
    released: list[tuple] = field(default_factory=list)
    tokens: list[tuple] = field(default_factory=list)
    endpoints: set[Endpoint] = field(default_factory=set)


def follow(pool: Pool, events: Iterable[Event], likely_fees: Iterable[int] = ()) -> list[Event]:
    """Make the events' calls again on a pool that knows no positions; returns them with every swap's call.

    On Slipstream also with every swap's fee, and with what the gauge takes of unstaked fees: the pool's `unstaked_fee`.

    Raises:
        ReplayError, PoolError: they are not this pool's, or some are missing.
    """
    done, slipstream = [], isinstance(pool, SlipstreamPool)
    for event in events:
        args = event.args
        if event.kind == "swap" and not args[0]:
            if slipstream:
                how, fee = find_call_and_fee(pool, event, likely_fees)
                args = (how, *args[1:], fee, pool.unstaked_fee)
            else:
                args = (find_call(pool, event), *args[1:])
        elif slipstream and event.kind == "flash" and len(args) == 4:
            args = (*args, pool.unstaked_fee)
        event = event._replace(args=args)
        apply_event(pool, event, ())
        done.append(event)
    return done


def follow_to(pool: Pool, events: Sequence[Event], state: State | None) -> tuple[Pool, list[Event]]:
    """As `follow`, up to the contract's state where it is known: the pool in it, which may be another, and the events.

    On Slipstream the factory may have changed what the gauge takes of unstaked fees. No log tells: it is tried before
    each event.

    Raises:
        ReplayError, PoolError, Malformed: they are not this pool's, or some are missing.
    """
    if state is None or state.unstaked_fee is None:
        done = follow(pool, events)
        if state and (differences := State.of(pool).differences(state)):
            raise Malformed(f"the logs and the contract differ: {differences}")
        return pool, done
    differences, turned = "", state.unstaked_fee != pool.unstaked_fee
    for turn in range(len(events) + 1 if turned else 1):
        trial = pool.copy() if turned else pool
        done = follow(trial, events[:turn], (state.fee,)) if turned else []
        trial.set_fees(trial.fee, state.unstaked_fee)
        done += follow(trial, events[turn:] if turned else events, (state.fee,))
        if not (differences := State.of(trial).differences(state)):
            trial.set_fees(state.fee, state.unstaked_fee)
            return trial, done
    raise Malformed(f"the logs and the contract differ: {differences}")
