"""What a chain records of a pool: its events, and the call that may be behind a swap.

    Event(17, 3, 1767225600, "swap", ("in", 1000, -998, 79150..., 10**18, -20))

Pure. Read next: `calls.py` (which call it was), `replay.py` (the event applied to an exact pool).
"""

from __future__ import annotations

from typing import NamedTuple

from sim import MAX_SQRT_RATIO, MIN_SQRT_RATIO
from wire.text import integer, quoted

OWN_KINDS = ("mint", "burn", "collect", "write_off")  # of events that change what a vault has


class ReplayError(Exception):
    """An event contradicts the replay: the stream has a gap, or is not this pool's. Names the block and the digits."""

    def __init__(self, event: Event, what: str, expected, found):
        where = f"block {event.block} log {event.log_index}"
        super().__init__(f"{where}: {event.kind} {what} is {found}, the event says {expected}")
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
            `write_off`: owner, tick_lower, tick_upper, fees0, fees1, released0, released1: what the position was owed,
            fees and what burns released, and its manager forgot when the pool paid less than it asked for.
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


def idle_after(idle: tuple[int, int], event: Event) -> tuple[int, int]:
    """A vault's idle tokens after its own event: what a burn or collect gives goes in, what of it is written off out; a
    mint is paid from it as far as it reaches, the rest came from outside."""
    sign = -1 if event.kind in ("mint", "write_off") else 1
    return tuple(max(0, have + sign * amount) for have, amount in zip(idle, event.args[-2:], strict=True))


def event_args(kind: str, args: list[str]) -> tuple:
    """Event arguments from their decimal strings; calls and owners stay text."""
    textual = kind in ("swap", "mint", "burn", "collect", "write_off", "stake", "unstake")
    if kind == "swap" and args[0] not in ("in", "out", "limit", "?"):
        raise ValueError(f"{quoted(args[0])} is no call of a swap")
    return tuple(arg if textual and n == 0 else integer(arg) for n, arg in enumerate(args))
